"""A plain transformers script as target: it loads the model with the same scheme and answers one prompt.

This file does not know what a scheme is; it only writes what each one's library is told.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from mcp_core.decision.bundle import Bundle
from mcp_core.decision.shipment import Shipment
from mcp_core.decision.targets.llama_cpp import gguf_file
from mcp_core.engines.launch import DTYPE_NAMES
from mcp_core.errors import RecipeError
from mcp_core.recipe import Recipe, SchemeName
from mcp_core.schemes import SCHEMES, group_size_of

__all__ = ["bundle", "script"]

_KV = ("dynamic", "static", "offloaded", "off")


def bundle(shipment: Shipment) -> Bundle:
    """Raises RecipeError for what transformers alone cannot do."""
    recipe = shipment.recipe
    _require(recipe)
    return Bundle(
        target="transformers",
        title="transformers script",
        engine="transformers",
        files={"run.py": script(recipe)},
        run='python run.py "Why is the sky blue?"',
        copies={"model.gguf": gguf_file(recipe)} if _gguf_name(recipe) else {},
        not_carried=_not_carried(recipe),
        steps=(f"pip install {_packages(recipe)}",),
        serves=False,
    )


def script(recipe: Recipe) -> str:
    """The script's text."""
    device = "cuda:0" if recipe.device == "auto" else recipe.device
    values = {
        "__MODEL__": _model(recipe),
        "__GGUF__": repr(_gguf_name(recipe) or None),
        "__REVISION__": repr(recipe.model.revision),
        "__DTYPE__": f"torch.{DTYPE_NAMES[recipe.dtype]}",
        "__DEVICE__": repr(device),
        "__ATTENTION__": repr(recipe.attention),
        "__THREADS__": repr(recipe.threads or 1),
        "__SKIP__": json.dumps(["lm_head", *recipe.quantization.skip]),
        "__CONFIG__": _config(recipe),
        "__AFTER__": _AFTER.get(recipe.quantization.scheme, ""),
        "__GENERATE__": _generate(recipe),
        "__TF32__": "torch.backends.cuda.matmul.allow_tf32 = True\n    " if recipe.switches.tf32 else "",
    }
    text = _SCRIPT
    for name, value in values.items():
        text = text.replace(name, value)
    return text


def _require(recipe: Recipe) -> None:
    scheme = recipe.quantization.scheme
    if recipe.engine != "transformers":
        raise RecipeError(
            f"This configuration was measured on {recipe.engine}, not on transformers.",
            f"Export it to {recipe.engine}.",
        )
    if recipe.model.source == "shape":
        raise RecipeError(
            "Random weights answer no prompt.", "Export a real model, or choose vLLM with --load-format dummy."
        )
    if scheme not in _CONFIGS and scheme not in _AFTER:
        raise RecipeError(
            f"{scheme} needs the activation ranges that MCP found: a plain script has none.",
            f"It deploys as: {SCHEMES[scheme].deployable_as}. Or export the worker.",
        )
    if recipe.kv.kind not in _KV:
        raise RecipeError(
            f"KV cache {recipe.kv.kind} is MCP's own setting.", "Export the worker, or choose dynamic."
        )
    if any(mark in pattern for pattern in recipe.quantization.skip for mark in "*?["):
        raise RecipeError(
            "Patterns in quantization.skip are MCP's own.", "Name whole modules, or export the worker."
        )


def _not_carried(recipe: Recipe) -> tuple[str, ...]:
    found = [
        "It answers one prompt at a time and is no server: speed under load is that of MCP's worker, not of this."
    ]
    if recipe.batching.mode != "off":
        found.append(f"batching.mode: {recipe.batching.mode} is MCP's engine; this script runs one request.")
    if recipe.compile != "off":
        found.append("compile: MCP records its own decode steps; this script runs eagerly.")
    if recipe.prefix_cache:
        found.append("prefix_cache: nothing is kept between prompts.")
    if recipe.speculation != "off":
        found.append("speculation: left out; generate(prompt_lookup_num_tokens=...) is transformers' own.")
    if recipe.switches.autocast:
        found.append("switches.autocast: left out.")
    if _gguf_name(recipe):
        found.append("The GGUF is expanded by transformers' own reader, not by MCP's.")
    return tuple(found)


def _gguf_name(recipe: Recipe) -> str:
    return "model.gguf" if recipe.model.source in ("bundled", "gguf") else ""


def _model(recipe: Recipe) -> str:
    return "str(pathlib.Path(__file__).parent)" if _gguf_name(recipe) else repr(recipe.model.id)


def _packages(recipe: Recipe) -> str:
    library = SCHEMES[recipe.quantization.scheme].library
    names = ["torch", "transformers", "accelerate", *([library] if library else [])]
    return " ".join([*names, *(["gguf"] if _gguf_name(recipe) else [])])


def _generate(recipe: Recipe) -> str:
    extra = {"static": ', cache_implementation="static"', "offloaded": ', cache_implementation="offloaded"'}
    return extra.get(recipe.kv.kind, ", use_cache=False" if recipe.kv.kind == "off" else "")


def _config(recipe: Recipe) -> str:
    made = _CONFIGS.get(recipe.quantization.scheme)
    return made(recipe) if made else "None"


def _torchao(imports: str, config: str) -> str:
    return f"torchao_config({imports!r}, lambda m: {config})"


def _four_bit(levels: str) -> Callable[[Recipe], str]:
    return lambda recipe: (
        f'transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="{levels}", '
        f"bnb_4bit_use_double_quant={recipe.quantization.double_quant}, bnb_4bit_compute_dtype=DTYPE, "
        "llm_int8_skip_modules=SKIP)"
    )


def _bnb_int8(recipe: Recipe) -> str:
    threshold = recipe.quantization.outlier_threshold
    value, skip = 6.0 if threshold is None else threshold, "llm_int8_skip_modules=SKIP"
    return f"transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold={value}, {skip})"


def _int8_dynamic(recipe: Recipe) -> str:
    mapping = recipe.quantization.activations.upper()
    return _torchao(
        "torchao.quantization", f"m.Int8DynamicActivationInt8WeightConfig(act_mapping_type=m.MappingType.{mapping})"
    )


def _int4(recipe: Recipe) -> str:
    algorithm = {"minmax": "tinygemm", "hqq": "hqq"}[recipe.quantization.parameters]
    size = group_size_of(recipe.quantization)
    if recipe.device == "cpu":
        return _torchao(
            "torchao.prototype.quantization.int4",
            f"m.PrototypeInt4WeightOnlyConfig(group_size={size}, int4_choose_qparams_algorithm={algorithm!r})",
        )
    return _torchao(
        "torchao.quantization",
        f"m.Int4WeightOnlyConfig(group_size={size}, int4_choose_qparams_algorithm={algorithm!r}, "
        "int4_packing_format='tile_packed_to_4d')",
    )


_CONFIGS: dict[SchemeName, Callable[[Recipe], str]] = {
    "none": lambda _: "None",
    "bnb-int8": _bnb_int8,
    "bnb-nf4": _four_bit("nf4"),
    "bnb-fp4": _four_bit("fp4"),
    "torchao-int8-weight-only": lambda _: _torchao("torchao.quantization", "m.Int8WeightOnlyConfig()"),
    "torchao-int8-dynamic": _int8_dynamic,
    "torchao-int4-weight-only": _int4,
    "torchao-fp8-weight-only": lambda _: _torchao("torchao.quantization", "m.Float8WeightOnlyConfig()"),
    "torchao-fp8-dynamic": lambda _: _torchao(
        "torchao.quantization", "m.Float8DynamicActivationFloat8WeightConfig(granularity=m.PerRow())"
    ),
}
# What is done to a model that was loaded dense.
_AFTER: dict[SchemeName, str] = {
    "classic-dynamic": (
        "    kept = {name for name, _ in model.named_modules() if name in SKIP}\n"
        "    linear = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n not in kept}\n"
        "    spec = {name: torch.ao.quantization.default_dynamic_qconfig for name in linear}\n"
        "    model = torch.ao.quantization.quantize_dynamic(model, spec, dtype=torch.qint8)\n"
    )
}

_SCRIPT = '''"""Answer one prompt with transformers, loaded as measured: python run.py "PROMPT" [--tokens N]"""

import argparse
import importlib
import pathlib
import time

import torch
import transformers

MODEL = __MODEL__
GGUF_FILE = __GGUF__
REVISION = __REVISION__
DTYPE = __DTYPE__
DEVICE = __DEVICE__
ATTENTION = __ATTENTION__
THREADS = __THREADS__
SKIP = __SKIP__  # modules that stay dense


def torchao_config(module, make):
    return transformers.TorchAoConfig(make(importlib.import_module(module)), modules_to_not_convert=SKIP)


def load(model_id):
    __TF32__torch.set_num_threads(THREADS)
    source = {"gguf_file": GGUF_FILE} if GGUF_FILE else {}
    source |= {"revision": REVISION} if REVISION else {}
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_id, **source)
    config = __CONFIG__
    quantized = {"quantization_config": config} if config is not None else {}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        model_id, dtype=DTYPE, device_map=DEVICE, attn_implementation=ATTENTION, **source, **quantized
    )
__AFTER__    return tokenizer, model.eval()


def answer(tokenizer, model, prompt, tokens):
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False).to(model.device)
    else:
        inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
    inputs.pop("token_type_ids", None)
    begun = time.perf_counter()
    with torch.inference_mode():
        ids = model.generate(
            **inputs, max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.eos_token_id__GENERATE__
        )
    new = ids[0, inputs["input_ids"].shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True), len(new), time.perf_counter() - begun


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("prompt", nargs="?", default="Why is the sky blue?")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--model", default=MODEL)
    options = parser.parse_args()
    tokenizer, model = load(options.model)
    text, tokens, seconds = answer(tokenizer, model, options.prompt, options.tokens)
    print(text)
    print(f"[{tokens} tokens in {seconds:.2f} s, prompt included]")


if __name__ == "__main__":
    main()
'''
