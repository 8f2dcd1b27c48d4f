#!/bin/bash
# Makes DEST: an interpreter that has vLLM 0.23.0, from W/piece.*.tar.xz and the torch of BASE. V5=1: link_torch.py.
set -eu
BASE=${BASE:-/opt/torch/.venv/bin/python3}   # the interpreter that has torch 2.11.0+cu130
W=${W:-/tmp/w}                               # where the pieces lie
export SITE=${SITE:-/tmp/vllmsite} DEST=${DEST:-/tmp/vllm}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$SITE" "$W"

pids=
for piece in "$W"/piece.*.tar.xz; do   # at once, and those only that unpack.sh did not unpack before
    BASE=$BASE bash "$here/unpack.sh" "$piece" & pids="$pids $!"
done
for pid in $pids; do wait "$pid"; done

env -u PYTHONPATH "$BASE" "$here/link_torch.py"

cd /tmp && env -u PYTHONPATH "$DEST/bin/python" - <<'P'
from importlib.metadata import version
import torch, vllm
print("vllm", version("vllm"), "torch", torch.__version__, "transformers", version("transformers"))
assert version("vllm") == "0.23.0"
try:
    import vllm._C, vllm._C_stable_libtorch, vllm._moe_C
    from vllm.vllm_flash_attn import flash_attn_interface
    print("extensions loaded, FlashAttention 3:", flash_attn_interface.FA3_AVAILABLE)
except ImportError as error:
    print("EXTENSIONS NOT LOADED:", error)  # as on a machine without a driver
P
echo "export MCP_VLLM_PYTHON=$DEST/bin/python"
