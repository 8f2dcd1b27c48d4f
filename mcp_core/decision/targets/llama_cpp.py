"""llama.cpp as target: the GGUF itself, a script for ``llama-server``, and one for the PyPI wheel xllamacpp.

The parameters are those with which MCP's own engine runs it (``inference/llama_cpp_server.py``). This file does not
know how the server is asked.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mcp_core import llama_cpp
from mcp_core.decision.bundle import Bundle, Command, shell_script
from mcp_core.decision.shipment import Shipment
from mcp_core.errors import ModelNotFound, RecipeError
from mcp_core.models.catalog import bundled_gguf
from mcp_core.recipe import Recipe

__all__ = ["MODEL_FILE", "PORT", "Sizes", "bundle", "flags", "gguf_file", "sizes_of"]

PORT = 8080
MODEL_FILE = "model.gguf"
_RELEASE = "xllamacpp 2026.10"
# Of what llama.cpp does not read, these change what is served; the others only say how transformers did it.
_MEANING = ("kv.kind", "draft", "speculation", "batching.mode")


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the server is started with; tokens, threads, requests at once, attention's kernel."""

    context: int
    slots: int
    threads: int
    batch: int
    flash_attention: bool

    @property
    def http_threads(self) -> int:
        """One a connection; cancelled ones linger for a second."""
        return 2 * self.slots + 2

    @property
    def pass_tokens(self) -> int:
        """Tokens of a prompt in one pass."""
        return min(self.batch, llama_cpp.PASS_TOKENS)


def sizes_of(shipment: Shipment) -> Sizes:
    """As MCP's own engine has them. Raises InputError where the context is not known."""
    recipe = shipment.recipe
    slots = llama_cpp.slots(recipe)
    return Sizes(
        context=slots * llama_cpp.slot_tokens(shipment.max_context),
        slots=slots,
        threads=recipe.threads or 1,
        batch=max(recipe.batching.step_tokens, slots),
        flash_attention=llama_cpp.flash_attention(recipe),
    )


def flags(sizes: Sizes, host: str = "127.0.0.1", port: int = PORT) -> tuple[str, ...]:
    """The flags of llama-server, without the model's."""
    return (
        *("--host", host, "--port", str(port)),
        *("--ctx-size", str(sizes.context), "--parallel", str(sizes.slots)),
        *("--threads", str(sizes.threads), "--threads-batch", str(sizes.threads)),
        *("--batch-size", str(sizes.batch), "--ubatch-size", str(sizes.pass_tokens)),
        *("--threads-http", str(sizes.http_threads)),
        *("--flash-attn", "auto" if sizes.flash_attention else "off"),
        *("--load-mode", "none", "--fit", "off"),
        *("--cache-ram", "0", "--no-cache-idle-slots", "--no-webui"),
    )


def bundle(shipment: Shipment) -> Bundle:
    """Raises RecipeError where the model is no GGUF, or asks what llama.cpp cannot do."""
    recipe = shipment.recipe
    _require(recipe)
    sizes = sizes_of(shipment)
    before = f'MODEL=${{MODEL:-$(dirname "$0")/{MODEL_FILE}}}\n'
    command = " \\\n  ".join(["llama-server", '--model "$MODEL"', *_paired(flags(sizes)), '"$@"'])
    return Bundle(
        target="llama.cpp",
        title="llama.cpp",
        engine="llama.cpp",
        files={
            "serve.sh": shell_script(f"llama.cpp's own server, from Run {shipment.run_id}.", command, {}, before),
            "serve.py": python_script(sizes),
        },
        run="./serve.sh",
        command=Command("python", ("serve.py", "--port", str(PORT))),
        copies={MODEL_FILE: gguf_file(recipe)},
        executable=frozenset({"serve.sh"}),
        not_carried=tuple(_not_carried(recipe)),
        steps=(
            f"install llama.cpp (llama-server; flags as of {_RELEASE}). Or pip install xllamacpp, and start "
            f"python serve.py --port {PORT} in place of serve.sh",
        ),
    )


def _paired(words: tuple[str, ...]) -> Iterator[str]:
    """A flag with its value on one line."""
    line: list[str] = []
    for word in words:
        if word.startswith("--") and line:
            yield " ".join(line)
            line = []
        line.append(shlex.quote(word))
    yield " ".join(line)


def python_script(sizes: Sizes) -> str:
    """A server from the wheel xllamacpp alone; it needs no MCP."""
    return _SCRIPT.replace("__SIZES__", json.dumps(_named(sizes), indent=4))


def _named(sizes: Sizes) -> dict[str, int]:
    return {
        "n_ctx": sizes.context,
        "n_parallel": sizes.slots,
        "n_batch": sizes.batch,
        "n_ubatch": sizes.pass_tokens,
        "n_threads_http": sizes.http_threads,
        "threads": sizes.threads,
        "flash_attn": -1 if sizes.flash_attention else 0,
    }


def _require(recipe: Recipe) -> None:
    scheme = recipe.quantization.scheme
    if recipe.model.source not in ("bundled", "gguf"):
        raise RecipeError(
            f"llama.cpp reads GGUF files; this model comes from {recipe.model.source}.",
            "Convert it with llama.cpp's convert_hf_to_gguf.py, measure that file, and export that Run.",
        )
    if scheme not in ("none", "gguf"):
        raise RecipeError(
            f"llama.cpp serves the GGUF as it is: it does not apply {scheme}.",
            "Choose engine llama.cpp and measure it.",
        )
    for field, reason, fix in llama_cpp.unread(recipe):
        if field in _MEANING:
            raise RecipeError(f"This configuration cannot be exported to llama.cpp: {field}: {reason}", fix)


def _not_carried(recipe: Recipe) -> Iterator[str]:
    if recipe.engine != "llama.cpp":
        yield "engine: measured on transformers, with the GGUF's weights expanded; llama.cpp keeps them packed."
        yield f"dtype: {recipe.dtype} is not read: llama.cpp computes in the types that the GGUF's weights have."
        if recipe.quantization.scheme == "none":
            yield "fidelity: that of expanded weights; llama.cpp also rounds activations, so judge it again."
    for field, reason, _ in llama_cpp.unread(recipe):
        if field != "dtype":
            yield f"{field}: {reason}"
    if recipe.batching.max_requests > llama_cpp.MOST_SLOTS and recipe.batching.mode != "off":
        yield f"batching.max_requests: {llama_cpp.MOST_SLOTS} slots at once; one request more waits."
    if not recipe.prefix_cache:
        yield "prefix_cache: llama.cpp's server reuses what a slot has of a prompt unless a request says otherwise."


def gguf_file(recipe: Recipe) -> Path:
    """The GGUF of a bundled or GGUF model, to be copied. Raises ModelNotFound where it is gone."""
    if recipe.model.source == "bundled":
        return bundled_gguf()
    path = Path(recipe.model.id).expanduser()
    if not path.is_file():
        raise ModelNotFound(f"There is no file {path}.", "The GGUF must be where the Run found it.")
    return path


_SCRIPT = '''"""Serve model.gguf with llama.cpp from the wheel xllamacpp: an OpenAI-compatible API at /v1.

python serve.py [--model FILE] [--host H] [--port N]
"""

import argparse
import pathlib
import signal
import threading

import xllamacpp

SIZES = __SIZES__


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default=str(pathlib.Path(__file__).with_name("model.gguf")))
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    options = parser.parse_args()
    parameters = xllamacpp.CommonParams()
    parameters.model.path = options.model
    parameters.hostnames = [options.host]
    parameters.port = options.port
    parameters.load_mode = xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_NONE
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = SIZES["threads"]
    for name in ("n_ctx", "n_parallel", "n_batch", "n_ubatch", "n_threads_http"):
        setattr(parameters, name, SIZES[name])
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type(SIZES["flash_attn"])
    parameters.fit_params = False
    parameters.cache_ram_mib = 0
    parameters.cache_idle_slots = False
    parameters.ui = False
    parameters.verbosity = 1
    server = xllamacpp.Server(parameters)
    print("ready", server.listening_address, flush=True)
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    stopped.wait()


if __name__ == "__main__":
    main()
'''
