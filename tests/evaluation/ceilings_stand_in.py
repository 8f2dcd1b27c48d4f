"""A ceilings job without torch, its answer planted: ``python ceilings_stand_in.py ceilings DIR``.

``CEILINGS_LOG`` names a file: a line for every time it is asked. ``CEILINGS_END`` is "failed", "cancelled"
or "hangs".
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from tests.evaluation.known_ceilings import keep_known


def main() -> int:
    sys.stdin.readline()
    folder = Path(sys.argv[2])
    request = json.loads((folder / "request.json").read_text())
    with Path(os.environ["CEILINGS_LOG"]).open("a") as log:
        log.write(f"{request['device']} {request['threads']}\n")
    event = {"at_s": time.time(), "stage": "measure", "fraction": 0.5, "message": "memory bandwidth"}
    (folder / "events.jsonl").write_text(json.dumps(event) + "\n")
    end = os.environ.get("CEILINGS_END", "done")
    if end == "hangs":
        time.sleep(60)
    failure = {"kind": "oom" if end == "failed" else "cancelled", "message": f"It has {end}.", "hint": ""}
    result = keep_known(request["threads"]).model_dump(mode="json") if end == "done" else None
    document = {"state": end, "failure": None if result else failure, "result": result}
    (folder / "result.json").write_text(json.dumps(document))
    return int(end != "done")


if __name__ == "__main__":
    sys.exit(main())
