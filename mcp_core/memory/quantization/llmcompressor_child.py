"""llmcompressor at work, in an interpreter of its own: ``python llmcompressor_child.py ORDER``.

It is run by path and imports nothing of MCP, which that interpreter does not have. ORDER is a JSON file {source,
out, dtype, threads, bits, group_size, alpha, skip, passages}: passages are token ids, alpha is null without
SmoothQuant, group_size where a scale is an output's. Stdout ends with one JSON line {packed, left_dense}: how many
layers, and the reason for each other one. This file does not know Recipes.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

__all__ = ["left_dense", "main"]


def main(order_file: str) -> None:
    """Quantize and write, as the order says."""
    order = json.loads(Path(order_file).read_text())
    torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    torch.set_num_threads(order["threads"])
    model = transformers.AutoModelForCausalLM.from_pretrained(
        order["source"], dtype=getattr(torch, order["dtype"]), trust_remote_code=False, local_files_only=True
    )
    linears = {name: each for name, each in model.named_modules() if isinstance(each, torch.nn.Linear)}
    output = next((name for name, each in linears.items() if each is model.get_output_embeddings()), "")
    kept = left_dense({name: each.in_features for name, each in linears.items()}, output, order)
    importlib.import_module("llmcompressor").oneshot(
        model=model,
        dataset=_dataset(order["passages"]),
        recipe=_recipe(order, list(kept)),
        max_seq_length=max(map(len, order["passages"])),
        num_calibration_samples=len(order["passages"]),
    )
    model.save_pretrained(order["out"], save_compressed=True)
    print(json.dumps({"packed": len(linears) - len(kept), "left_dense": kept}), flush=True)  # noqa: T201


def left_dense(inputs: Mapping[str, int], output: str, order: Mapping[str, Any]) -> dict[str, str]:
    """The linear layers that stay dense, each with its reason; ``inputs`` are their widths by name."""
    group, kept = order["group_size"], {}
    for name, columns in inputs.items():
        if name == output:
            kept[name] = "output layer"
        elif any(fnmatchcase(name, pattern) for pattern in order["skip"]):
            kept[name] = "quantization.skip"
        elif group and columns % group:
            kept[name] = f"{columns} inputs are not a multiple of {group} (the group size)"
    return kept


def _recipe(order: Mapping[str, Any], ignore: list[str]) -> list[Any]:
    """llmcompressor's modifiers, in their order."""
    quantization = importlib.import_module("llmcompressor.modifiers.quantization")
    grouped = {"strategy": "group", "group_size": order["group_size"]}
    weights = {"num_bits": order["bits"], "type": "int", "symmetric": True, "dynamic": False}
    group: dict[str, Any] = {
        "targets": ["Linear"],
        "weights": weights | (grouped if order["group_size"] else {"strategy": "channel"}),
    }
    if order["alpha"] is None:
        return [quantization.GPTQModifier(config_groups={"group_0": group}, ignore=ignore)]
    by_token = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": True, "strategy": "token"}
    group["input_activations"] = by_token  # a scale a layer, which it does not smooth everywhere, loses far more
    transform = importlib.import_module("llmcompressor.modifiers.transform.smoothquant")
    smooth = transform.SmoothQuantModifier(smoothing_strength=order["alpha"], ignore=ignore)
    return [smooth, quantization.GPTQModifier(config_groups={"group_0": group}, ignore=ignore)]


def _dataset(passages: list[list[int]]) -> Any:
    rows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in passages]
    return importlib.import_module("datasets").Dataset.from_list(rows)


if __name__ == "__main__":
    main(sys.argv[1])
