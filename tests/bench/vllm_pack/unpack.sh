#!/bin/bash
# unpack.sh PIECE...: each into SITE, once; waits for one that another process is unpacking.
set -eu -o pipefail
BASE=${BASE:-/opt/torch/.venv/bin/python3}; SITE=${SITE:-/tmp/vllmsite}; mkdir -p "$SITE"
without_xz='import sys, tarfile; tarfile.open(sys.argv[1], "r|xz").extractall(sys.argv[2], filter="fully_trusted")'
for piece in "$@"; do
    (   ! command -v flock >/dev/null || flock 9
        [ -e "$piece.done" ] && exit 0
        if command -v xz >/dev/null; then xz -dc "$piece" | tar x -C "$SITE"
        else "$BASE" -c "$without_xz" "$piece" "$SITE"; fi
        touch "$piece.done"
    ) 9>"$piece.lock"
done
