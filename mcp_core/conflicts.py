"""What a Recipe asks for that a machine cannot do: one table of rules, used by the page, the CLI and sweeps.

This file does not know sizes (``models/footprint.py`` answers "does it fit").
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from shutil import which

from pydantic import BaseModel

from mcp_core import llama_cpp
from mcp_core.engines import FOREIGN
from mcp_core.engines.interpreters import ALLOWED, VARIABLES, why_none
from mcp_core.errors import RecipeError
from mcp_core.hardware import Device, Hardware, physical_cores
from mcp_core.recipe import KVKind, Quantization, Recipe, SchemeName
from mcp_core.schemes import INT4_GROUP_SIZES, SCHEMES, Scheme

__all__ = ["Conflict", "find_conflicts", "options_read_by", "require_runnable", "resolve"]


@dataclass(frozen=True, slots=True)
class Conflict:
    """One field that cannot be honoured, why, and what to choose instead."""

    field: str
    reason: str
    fix: str


Rule = Callable[[Recipe, Hardware], Iterator[Conflict]]


def options_read_by(scheme: str) -> frozenset[str]:
    """Fields of ``Recipe.quantization`` that this scheme reads, besides skip."""
    return frozenset(field for field, schemes in _READ_BY.items() if scheme in schemes)


def find_conflicts(recipe: Recipe, hardware: Hardware) -> tuple[Conflict, ...]:
    """Every conflict of this Recipe on this machine, in the order of the table."""
    rules = _FOREIGN_RULES if recipe.engine in FOREIGN and recipe.model.source != "endpoint" else _RULES
    return tuple(conflict for rule in rules for conflict in rule(recipe, hardware))


def require_runnable(recipe: Recipe, hardware: Hardware) -> None:
    """Raise RecipeError for the first conflict; nothing is silently ignored."""
    for conflict in find_conflicts(recipe, hardware):
        raise RecipeError(f"{conflict.field}: {conflict.reason}", conflict.fix)


def resolve(recipe: Recipe, hardware: Hardware) -> Recipe:
    """The Recipe with ``device: auto`` and ``threads: null`` replaced by what this machine gives them."""
    device = _device_of(recipe, hardware)
    threads = recipe.threads or max(1, physical_cores() - 1)
    return recipe.model_copy(update={"device": device.id if device else recipe.device, "threads": threads})


def _device_of(recipe: Recipe, hardware: Hardware) -> Device | None:
    """The Recipe's device; ``auto`` needs no torch of ours where another engine brings its own."""
    if recipe.engine in FOREIGN and recipe.device == "auto":
        return next(iter(hardware.cuda_devices), hardware.device("cpu"))
    return hardware.device(recipe.device)


def _foreign_engine(recipe: Recipe, hardware: Hardware) -> Iterator[Conflict]:
    """What an engine of its own interpreter needs, and cannot do."""
    engine = FOREIGN[recipe.engine]
    why = why_none(recipe.engine, recipe.engine_python)
    if why:
        field = "engine_python" if recipe.engine_python else "engine"
        fix = f"Name it in {VARIABLES[recipe.engine]}, or in {ALLOWED} for a Recipe to choose; MCP starts no other."
        yield Conflict(field, f"{engine.title}: {why}", fix)
    device = _device_of(recipe, hardware)
    if device is None:
        there = ", ".join(each.id for each in hardware.devices)
        yield Conflict("device", f"this machine has no {recipe.device}.", f"It has: {there}.")
    elif device.kind != "cuda":
        # Where there is no such device at all, no other choice of device helps.
        field = "device" if hardware.cuda_devices else "engine"
        yield Conflict(field, f"{engine.title} runs on NVIDIA devices only.", "Choose engine transformers.")
    yield from (Conflict(each.field, each.reason, each.fix) for each in engine.refusals(recipe))


def _own_python(recipe: Recipe, hardware: Hardware) -> Iterator[Conflict]:
    if recipe.engine_python is not None and recipe.engine not in FOREIGN:
        reason = f"{recipe.engine} runs in MCP's own interpreter; it belongs to {' and '.join(FOREIGN)}."
        yield Conflict("engine_python", reason, "Leave it at null.")


def _engine(recipe: Recipe, hardware: Hardware) -> Iterator[Conflict]:
    if recipe.engine == "llama.cpp" and recipe.model.source != "endpoint":
        yield from (Conflict(*refusal) for refusal in llama_cpp.refusals(recipe, hardware))
    elif recipe.engine != "transformers" and recipe.model.source != "endpoint":
        yield Conflict(
            "engine",
            f"this version runs models with transformers, not with {recipe.engine}.",
            "Set engine to transformers, or measure a running server: mcp-core bench --url.",
        )
    if recipe.model.source == "endpoint":
        yield Conflict(
            "model.source", "an endpoint is not loaded here.", "Measure it with mcp-core bench --url URL."
        )


def _device(recipe: Recipe, hardware: Hardware) -> Iterator[Conflict]:
    device = hardware.device(recipe.device)
    if device is None:
        there = ", ".join(each.id for each in hardware.devices)
        yield Conflict("device", f"this machine has no {recipe.device}.", f"It has: {there}.")
    elif device.kind == "cuda" and hardware.torch_cuda is None:
        yield Conflict(
            "device",
            "the installed torch is a CPU build.",
            "Install the CUDA build: make install TORCH=cuda.",
        )


def _threads(recipe: Recipe, hardware: Hardware) -> Iterator[Conflict]:
    if recipe.threads is not None and recipe.threads > hardware.cores:
        yield Conflict("threads", f"this machine has {hardware.cores} cores.", "Choose fewer threads.")


def _scheme(recipe: Recipe, hardware: Hardware) -> Iterator[Conflict]:
    name = recipe.quantization.scheme
    scheme = SCHEMES.get(name)
    if scheme is None:
        yield Conflict(
            "quantization.scheme",
            f"{name} is not built in this version.",
            f"There are: {', '.join(SCHEMES)}.",
        )
        return
    yield from _scheme_of_engine(recipe, scheme)
    device = hardware.device(recipe.device)
    if scheme.library and scheme.library not in hardware.libraries:
        yield Conflict(
            "quantization.scheme",
            f"{name} needs {scheme.library}, which is not installed.",
            f"pip install {scheme.library}",
        )
    if device is not None:
        yield from _scheme_on_device(recipe, device)


def _scheme_of_engine(recipe: Recipe, scheme: Scheme) -> Iterator[Conflict]:
    """llama.cpp computes with the file's own weights and with nothing else; no other engine does."""
    field, engine = "quantization.scheme", recipe.engine
    if engine == "llama.cpp" and scheme.engine != engine:
        yield Conflict(field, "llama.cpp keeps the weights as the GGUF has them.", "Set it to gguf.")
    elif scheme.engine == "llama.cpp" and engine != "llama.cpp":
        reason = f"gguf is what engine llama.cpp computes with; {engine} expands a GGUF's weights to dtype."
        yield Conflict(field, reason, "Set it to none, or engine to llama.cpp.")


def _scheme_on_device(recipe: Recipe, device: Device) -> Iterator[Conflict]:
    scheme, field = SCHEMES[recipe.quantization.scheme], "quantization.scheme"
    if device.kind not in scheme.devices:
        yield Conflict(field, f"{scheme.name} has no kernel for {device.kind}.", _instead(scheme, device))
    elif not _capable(scheme, device):
        assert scheme.min_capability is not None
        needed, has = (
            ".".join(map(str, each or ())) for each in (scheme.min_capability, device.compute_capability)
        )
        reason = f"{scheme.name} needs compute capability {needed}; {device.name} has {has}."
        yield Conflict(field, reason, _instead(scheme, device))
    if recipe.dtype not in scheme.dtypes:
        dtypes = " or ".join(scheme.dtypes)
        yield Conflict(field, f"{scheme.name} works with {dtypes} only.", f"Set dtype to {dtypes}.")
    sizes, asked = INT4_GROUP_SIZES[device.kind], recipe.quantization.group_size
    if scheme.name == "torchao-int4-weight-only" and asked is not None and asked not in sizes:
        there = ", ".join(map(str, sizes))
        yield Conflict(
            "quantization.group_size",
            f"the int4 kernel of {device.kind} has no groups of {asked}.",
            f"It has {there}.",
        )


def _capable(scheme: Scheme, device: Device) -> bool:
    """Whether the device is new enough; where it does not say, it is."""
    needed, has = scheme.min_capability, device.compute_capability
    return device.kind != "cuda" or needed is None or has is None or has >= needed


def _instead(scheme: Scheme, device: Device) -> str:
    """Schemes of the same size that the device has."""
    others = (each for each in SCHEMES.values() if each.bits == scheme.bits and each.name != scheme.name)
    names = [each.name for each in others if device.kind in each.devices and _capable(each, device)]
    return f"On {device.kind} there are: {', '.join(names)}."


# Fields of Recipe.quantization -> the schemes that read them; set for another scheme they would change nothing.
_READ_BY: dict[str, frozenset[SchemeName]] = {
    "double_quant": frozenset({"bnb-nf4", "bnb-fp4"}),
    "outlier_threshold": frozenset({"bnb-int8"}),
    "group_size": frozenset({"torchao-int4-weight-only"}),
    "parameters": frozenset({"torchao-int4-weight-only"}),
    "activations": frozenset({"torchao-int8-dynamic"}),
    "calibration": frozenset({"torchao-int8-static", "torchao-int8-static-smoothquant"}),
    "alpha": frozenset({"torchao-int8-static-smoothquant"}),
}


def _quantization_options(recipe: Recipe, hardware: Hardware) -> Iterator[Conflict]:
    options = recipe.quantization
    defaults = Quantization()
    for field, schemes in _READ_BY.items():
        default = getattr(defaults, field)
        if getattr(options, field) != default and options.scheme not in schemes:
            yield Conflict(
                f"quantization.{field}",
                f"{options.scheme} does not read it; it belongs to {' and '.join(sorted(schemes))}.",
                f"Leave it at {_in_json(default)}.",
            )
    if options.skip and options.scheme in ("none", "gguf"):
        yield Conflict("quantization.skip", "nothing is quantized here, so nothing is skipped.", "Leave it empty.")


def _in_json(value: object) -> str:
    return json.dumps(value.model_dump() if isinstance(value, BaseModel) else value)


_FLASH = {
    "flash_attention_2": ("flash_attn", "flash-attn"),
    "flash_attention_3": ("flash_attn_interface", "flash-attn-3"),
}


def _attention(recipe: Recipe, hardware: Hardware) -> Iterator[Conflict]:
    if recipe.attention not in _FLASH:
        return
    module, package = _FLASH[recipe.attention]
    device = hardware.device(recipe.device)
    if device is None or device.kind != "cuda":
        yield Conflict("attention", f"{recipe.attention} runs on NVIDIA devices only.", "Choose sdpa.")
    elif find_spec(module) is None:
        yield Conflict("attention", f"{recipe.attention} needs {package}, which is not installed.", "Choose sdpa.")
    elif recipe.dtype == "fp32":
        yield Conflict("attention", f"{recipe.attention} does not compute in fp32.", "Choose bf16 or fp16.")


def _flex(recipe: Recipe, hardware: Hardware) -> Iterator[Conflict]:
    device = hardware.device(recipe.device)
    on_cpu = device is not None and device.kind == "cpu"
    if recipe.attention == "flex_attention" and on_cpu and not any(map(which, _COMPILERS)):
        yield Conflict(
            "attention", "flex_attention is compiled at its first use; there is no C++ compiler.", "Choose sdpa."
        )


_COMPILERS = ("g++", "clang++", "c++")
# Cache kinds whose keys are packed by a library of their own -> its package, and the bits that it can do.
_KV_LIBRARIES: dict[KVKind, tuple[str, tuple[int, ...]]] = {
    "quantized-quanto": ("optimum-quanto", (2, 4)),
    "quantized-hqq": ("hqq", (2, 4, 8)),
}
_MASKED = ("sdpa", "eager")  # attention that takes a mask of ours


def _kv(recipe: Recipe, hardware: Hardware) -> Iterator[Conflict]:
    device, kind = hardware.device(recipe.device), recipe.kv.kind
    on_cuda = device is not None and device.kind == "cuda"
    if kind == "offloaded" and not on_cuda:
        yield Conflict(
            "kv.kind",
            "offloaded moves keys and values from a GPU to the host; this is the host.",
            "Choose dynamic.",
        )
    if kind == "quantized-hqq" and not on_cuda:
        yield Conflict("kv.kind", "HQQ packs keys and values on NVIDIA devices only.", "Choose quantized-fp8.")
    if kind == "sliding" and recipe.attention not in _MASKED:
        yield Conflict("kv.kind", f"sliding needs a mask that {recipe.attention} does not take.", "Choose sdpa.")
    if kind == "static" and recipe.attention in _FLASH:
        yield Conflict(
            "kv.kind",
            f"{recipe.attention} would read the unfilled part of a static cache.",
            "Choose dynamic, or attention sdpa.",
        )
    yield from _kv_library(recipe, hardware)
    yield from _kv_options(recipe)


def _kv_library(recipe: Recipe, hardware: Hardware) -> Iterator[Conflict]:
    library, _ = _KV_LIBRARIES.get(recipe.kv.kind, ("", ()))
    if library and library not in hardware.libraries:
        yield Conflict(
            "kv.kind", f"{recipe.kv.kind} needs {library}, which is not installed.", f"pip install {library}"
        )
    if library == "optimum-quanto" and library in hardware.libraries and not any(map(which, _COMPILERS)):
        yield Conflict(
            "kv.kind", "optimum-quanto builds itself at its first use; there is no C++ compiler.", "Choose dynamic."
        )


def _kv_options_alone(recipe: Recipe, hardware: Hardware) -> Iterator[Conflict]:
    yield from _kv_options(recipe)


def _kv_options(recipe: Recipe) -> Iterator[Conflict]:
    _, able = _KV_LIBRARIES.get(recipe.kv.kind, ("", ()))
    if recipe.kv.window is not None and recipe.kv.kind != "sliding":
        yield Conflict(
            "kv.window", f"{recipe.kv.kind} does not read it; it belongs to sliding.", "Leave it at null."
        )
    if recipe.kv.bits is not None and recipe.kv.bits not in able:
        belongs = f"{recipe.kv.kind} does not read it; it belongs to {' and '.join(_KV_LIBRARIES)}."
        reason = f"{recipe.kv.kind} stores {' or '.join(map(str, able))} bits." if able else belongs
        yield Conflict("kv.bits", reason, "Leave it at null.")


# TF32 came with this compute capability.
_TF32_CAPABILITY = (8, 0)


def _switches(recipe: Recipe, hardware: Hardware) -> Iterator[Conflict]:
    device = hardware.device(recipe.device)
    if recipe.switches.tf32:
        yield from _tf32(recipe, device)
    if recipe.switches.autocast is not None:
        yield from _autocast(recipe)
    if recipe.switches.cudnn_benchmark and (device is None or device.kind != "cuda"):
        yield Conflict("switches.cudnn_benchmark", "cuDNN runs on NVIDIA devices only.", "Leave it at false.")


def _tf32(recipe: Recipe, device: Device | None) -> Iterator[Conflict]:
    field, off = "switches.tf32", "Leave it at false."
    if device is None or device.kind != "cuda":
        yield Conflict(field, "TF32 is a mode of NVIDIA's tensor cores; a CPU has none.", off)
    elif device.compute_capability and device.compute_capability < _TF32_CAPABILITY:
        has = ".".join(map(str, device.compute_capability))
        yield Conflict(field, f"TF32 needs compute capability 8.0; {device.name} has {has}.", off)
    if recipe.dtype != "fp32":
        yield Conflict(field, f"TF32 replaces fp32 products; this model computes in {recipe.dtype}.", off)


def _autocast(recipe: Recipe) -> Iterator[Conflict]:
    field, off = "switches.autocast", "Leave it at null."
    if recipe.dtype != "fp32":
        yield Conflict(field, f"autocast converts fp32 weights at each use; these are {recipe.dtype} already.", off)
    if recipe.quantization.scheme != "none":
        yield Conflict(field, f"{recipe.quantization.scheme} chooses the types of its products itself.", off)
    if recipe.kv.kind == "static" or recipe.kv.kind.startswith("quantized"):
        yield Conflict(field, f"keys and values then differ in type, and a {recipe.kv.kind} cache needs one.", off)


def _batching(recipe: Recipe, hardware: Hardware) -> Iterator[Conflict]:
    mode = recipe.batching.mode
    if recipe.asks_too_much_of_kv:
        yield Conflict(
            "kv.kind",
            f"{recipe.kv.kind} holds one sequence; batching, prefix_cache and compile keep many.",
            "Choose dynamic, quantized-fp8 with batching.mode continuous, or off without prefix_cache and compile.",
        )
    if recipe.is_paged and recipe.attention not in ("sdpa", "flash_attention_3"):
        yield Conflict(
            "attention",
            f"keys and values in pages are attended to by kernels of their own, not by {recipe.attention}.",
            "Choose sdpa, or batching.mode off without prefix_cache and compile.",
        )
    if mode == "static" and recipe.prefix_cache:
        yield Conflict("prefix_cache", "a padded batch shares no pages.", "Choose continuous, or leave it false.")
    if mode == "static" and recipe.compile != "off":
        yield Conflict("compile", "a padded batch has no fixed step.", "Choose continuous or off.")


def _compile(recipe: Recipe, hardware: Hardware) -> Iterator[Conflict]:
    if recipe.compile == "off":
        return
    device = hardware.device(recipe.device)
    on_host = device is None or device.kind != "cuda"
    if on_host and recipe.compile == "graphs":
        yield Conflict(
            "compile", "graphs are recorded on NVIDIA devices; this is the host.", "Choose compiled or off."
        )
    if on_host and recipe.compile == "autotuned":
        yield Conflict("compile", "what is tuned are kernels of NVIDIA devices.", "Choose compiled or off.")
    if on_host and recipe.compile == "compiled" and not any(map(which, _COMPILERS)):
        yield Conflict("compile", "torch.compile needs a C++ compiler, and there is none.", "Install g++, or off.")
    if not on_host and recipe.kv.kind == "quantized-fp8":
        yield Conflict(
            "compile",
            "fp8 pages are made dense at each step, for the whole context in a recorded one.",
            "Set it to off.",
        )
    if recipe.quantization.scheme == "bnb-int8":
        yield Conflict(
            "compile", "LLM.int8 asks the host at every layer, which no graph can hold.", "Set it to off."
        )


def _speculation(recipe: Recipe, hardware: Hardware) -> Iterator[Conflict]:
    kind = recipe.speculation
    if kind == "off":
        if recipe.draft is not None:
            yield Conflict("draft", "only speculation draft reads it.", "Set it to null, or speculation to draft.")
        if recipe.draft_tokens is not None:
            yield Conflict("draft_tokens", "only speculation reads it.", "Set it to null.")
        return
    if recipe.batching.mode != "off" or recipe.is_paged or recipe.kv.kind != "dynamic":
        yield Conflict(
            "speculation",
            "guesses are checked for one sequence with a dynamic cache.",
            "Set batching.mode and compile to off, kv.kind to dynamic and prefix_cache to false.",
        )
    if kind == "draft" and recipe.draft is None:
        yield Conflict("speculation", "there is no draft model.", "Name one in draft, or choose prompt-lookup.")
    if kind == "prompt-lookup" and recipe.draft is not None:
        yield Conflict("draft", "prompt-lookup needs no model.", "Set it to null.")


# Beside what each engine itself says; whether torch, its kernels and libraries are here is no matter of theirs.
_FOREIGN_RULES: tuple[Rule, ...] = (_foreign_engine, _threads, _quantization_options, _kv_options_alone)

_RULES: tuple[Rule, ...] = (
    _engine,
    _own_python,
    _device,
    _threads,
    _scheme,
    _quantization_options,
    _attention,
    _flex,
    _kv,
    _switches,
    _batching,
    _compile,
    _speculation,
)
