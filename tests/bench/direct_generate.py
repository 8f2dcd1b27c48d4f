"""The peer of the HTTP stream: the same model, loaded the same way, run by transformers' own ``generate``.

Reads a Recipe document on the first stdin line; then for each line ``{"prompt": [ids], "tokens": n}`` prints
the seconds that n greedy tokens took. Runs alone in its process, as a worker does.
"""

from __future__ import annotations

import json
import sys
import time

import torch

from mcp_core.models import catalog, loader
from mcp_core.recipe import Recipe


def main() -> None:
    recipe = Recipe.from_json(sys.stdin.readline())
    torch.set_num_threads(recipe.threads or 1)
    loaded = loader.load(catalog.resolve(recipe.model), recipe, lambda *_: None)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps({"seconds": seconds(loaded.model, order["prompt"], order["tokens"])}), flush=True)


@torch.inference_mode()
def seconds(model: torch.nn.Module, prompt: list[int], tokens: int) -> float:
    ids = torch.tensor([prompt], device=model.device)
    started = time.perf_counter()
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0,
    )
    elapsed = time.perf_counter() - started
    assert output.shape[1] == len(prompt) + tokens
    return elapsed


if __name__ == "__main__":
    main()
