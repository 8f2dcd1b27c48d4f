"""A fidelity job without a model, its answer planted by scheme: ``python fidelity_stand_in.py fidelity DIR``.

It keeps its answer in the store as the real one does. ``SWEEP_LOG`` names a file: a line for every scheme that is
judged. ``JUDGE_FAILS`` names a scheme that ends in an error, ``JUDGE_HANGS`` one that never comes to an end.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from mcp_core.decision.store import Store
from mcp_core.evaluation.fidelity_plan import make_plan
from mcp_core.hardware import detect
from mcp_core.recipe import Recipe
from mcp_core.results import Divergence, Fidelity, Mean

# Mean KL as a multiple of a noise floor of 0.001 nats.
PLANTED = {"none": 0.0, "bnb-nf4": 300.0, "bnb-int8": 6.0, "gguf": 4.0}


def answered(recipe: Recipe) -> dict[str, Any]:
    plan = make_plan(recipe, detect())
    floors = PLANTED[recipe.quantization.scheme]
    kl = floors * 1e-3
    fidelity = Fidelity(
        status="measured",
        key=plan.key,
        numerics_key=recipe.numerics_key,
        kl=Divergence(mean=kl, mean_se=kl / 10, median=kl, p99=kl, max=kl),
        noise_floor=Mean(mean=1e-3, se=1e-4),
        kl_over_floor=floors,
        top1=Mean(mean=0.9, se=0.01),
    )
    with Store() as store:
        store.add_fidelity(plan.recipe, fidelity)
    return {"fidelity": fidelity.model_dump(mode="json"), "cached": False}


def main() -> int:
    sys.stdin.readline()
    folder = Path(sys.argv[2])
    recipe = Recipe.from_dict(json.loads((folder / "request.json").read_text())["recipe"])
    scheme = recipe.quantization.scheme
    with Path(os.environ["SWEEP_LOG"]).open("a") as log:
        log.write(f"judge {scheme}\n")
    stage = "score" if recipe.engine == "transformers" else "candidate"
    event = {"at_s": time.time(), "stage": stage, "fraction": 0.5, "message": "planted"}
    (folder / "events.jsonl").write_text(json.dumps(event) + "\n")
    if scheme == os.environ.get("JUDGE_HANGS"):
        time.sleep(60)
    failed = scheme == os.environ.get("JUDGE_FAILS")
    document = {
        "state": "failed" if failed else "done",
        "failure": {"kind": "oom", "message": "Memory ran out while judging.", "hint": "Less."} if failed else None,
        "result": None if failed else answered(recipe),
    }
    (folder / "result.json").write_text(json.dumps(document))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
