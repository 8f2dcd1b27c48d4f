"""A checkpoint that comes quantized: by which method, what that needs here, and where its weights stay packed.

The table follows the quantizers of transformers 5.23. This file does not know tensors (``stored_tensors.py``) or
how such a checkpoint is loaded (``quantized_loading.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from packaging.requirements import Requirement

from mcp_core.errors import InvalidModel, RecipeError
from mcp_core.hardware import Device, Hardware
from mcp_core.recipe import Recipe, SchemeName

__all__ = ["StoredQuantization", "read_stored_quantization", "require_loadable_here", "require_quantized_once"]

_DEQUANTIZED = "Choose its original checkpoint and a scheme here."
_LOADED_AS_IS = "vLLM, SGLang: this checkpoint as it is"
# transformers' kernels from the Hub work with these releases of the package that fetches them.
_KERNELS = "kernels>=0.18.2,<0.19"


@dataclass(frozen=True, slots=True)
class StoredQuantization:
    """How the weights of one checkpoint are quantized.

    ``label`` names it for people ("gptq w4a16"); ``bits`` are stored bits a weight without scales. Without
    ``libraries`` (requirements) it cannot be loaded. Its weights stay packed on ``packed_on`` where ``kernels``
    (requirements) are installed; elsewhere transformers expands them to the Recipe's dtype. ``computes_as`` is the
    scheme whose kernels packed weights are computed with, so that memory follows from what is known of that one;
    "none" where MCP applies no such scheme.
    """

    method: str
    label: str
    bits: int
    libraries: tuple[str, ...]
    packed_on: tuple[Literal["cpu", "cuda"], ...] = ("cpu", "cuda")
    kernels: tuple[str, ...] = ()
    min_capability: tuple[int, int] | None = None
    deployable_as: str = _LOADED_AS_IS
    computes_as: SchemeName = "none"

    def why_expanded(self, device: Device, installed: Mapping[str, str]) -> str:
        """Why its weights do not stay packed on this device, as half a sentence; empty where they do."""
        if not self.packed_on:
            return "transformers has no kernel for it"
        if device.kind not in self.packed_on:
            return f"there is no kernel for it on {device.kind}"
        has, needed = device.compute_capability, self.min_capability
        if needed and has and has < needed:
            return f"its kernel needs compute capability {needed[0]}.{needed[1]}"
        missing = _missing(self.kernels, installed)
        return f"its kernel needs {missing[0]}" if missing else ""


def read_stored_quantization(config: Mapping[str, Any], title: str) -> StoredQuantization | None:
    """What a config.json says of its weights; None where they are not quantized.

    Raises InvalidModel for a method that is not loaded here, and for a description that cannot be understood.
    """
    document = config.get("quantization_config")
    if not document:
        return None
    method = _method(document, title)
    reader = _READERS.get(method)
    if reader is None:
        raise InvalidModel(
            f"{title} is quantized by {method}, which is not loaded here.",
            f"Loaded are: {', '.join(_READERS)}. {_DEQUANTIZED}",
        )
    try:
        return reader(document)
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise InvalidModel(
            f"The quantization_config of {title} ({method}) is not understood.", _DEQUANTIZED
        ) from error


def require_loadable_here(stored: StoredQuantization | None, recipe: Recipe, hardware: Hardware) -> None:
    """Raise RecipeError where a quantized checkpoint is asked to be quantized again, or its library is missing."""
    if stored is None:
        return
    require_quantized_once(stored, recipe)
    missing = _missing(stored.libraries, hardware.libraries)
    if missing:
        raise RecipeError(
            f"model: a checkpoint in {stored.label} needs {' and '.join(missing)}, which is not installed.",
            f"pip install {' '.join(missing)}",
        )
    if stored.computes_as == "bnb-int8" and recipe.compile != "off":
        raise RecipeError(
            "compile: the checkpoint's LLM.int8 asks the host at every layer, which no graph can hold.",
            "Set it to off.",
        )


def require_quantized_once(stored: StoredQuantization, recipe: Recipe) -> None:
    """Raise RecipeError where a checkpoint that came quantized is asked to be quantized again, by any engine."""
    if recipe.quantization.scheme != "none":
        raise RecipeError(
            f"quantization.scheme: the checkpoint is already quantized ({stored.label}).",
            "Set it to none, which keeps what the checkpoint came with, or choose its original checkpoint.",
        )


def _missing(requirements: tuple[str, ...], installed: Mapping[str, str]) -> list[str]:
    return [text for text in requirements if not _is_met(Requirement(text), installed)]


def _is_met(requirement: Requirement, installed: Mapping[str, str]) -> bool:
    version = installed.get(requirement.name)
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def _method(document: Any, title: str) -> str:
    if not isinstance(document, dict):
        raise InvalidModel(f"The quantization_config of {title} is not a JSON object.", _DEQUANTIZED)
    if document.get("load_in_4bit") or document.get("load_in_8bit"):
        return "bitsandbytes"
    return str(document.get("quant_method", "an unnamed method"))


def _gptq(document: dict[str, Any]) -> StoredQuantization:
    bits = int(document["bits"])
    return StoredQuantization("gptq", f"gptq w{bits}a16", bits, ("gptqmodel>=1.4.3", "optimum>=1.24"))


def _awq(document: dict[str, Any]) -> StoredQuantization:
    bits = int(document.get("bits") or document["w_bit"])
    return StoredQuantization("awq", f"awq w{bits}a16", bits, ("gptqmodel>=1.4.3",))


def _bitsandbytes(document: dict[str, Any]) -> StoredQuantization:
    if document.get("load_in_8bit"):
        return StoredQuantization("bitsandbytes", "bitsandbytes int8", 8, ("bitsandbytes",), computes_as="bnb-int8")
    levels = str(document.get("bnb_4bit_quant_type", "fp4"))
    stored = StoredQuantization("bitsandbytes", f"bitsandbytes {levels}", 4, ("bitsandbytes",))
    return replace(stored, computes_as="bnb-nf4" if levels == "nf4" else "bnb-fp4")


def _torchao(document: dict[str, Any]) -> StoredQuantization:
    name = str(document["quant_type"]["default"]["_type"]).removesuffix("Config")
    stored = StoredQuantization("torchao", f"torchao {name}", 4 if "Int4" in name else 8, ("torchao",))
    deployable_as = "vLLM: this checkpoint as it is"
    return replace(stored, deployable_as=deployable_as, computes_as=_TORCHAO_SCHEMES.get(name, "none"))


_TORCHAO_SCHEMES: dict[str, SchemeName] = {
    "Int8WeightOnly": "torchao-int8-weight-only",
    "Int8DynamicActivationInt8Weight": "torchao-int8-dynamic",
    "Int4WeightOnly": "torchao-int4-weight-only",
    "Float8WeightOnly": "torchao-fp8-weight-only",
    "Float8DynamicActivationFloat8Weight": "torchao-fp8-dynamic",
}


def _compressed_tensors(document: dict[str, Any]) -> StoredQuantization:
    """A checkpoint may mix several groups; the one with the fewest bits gives its name."""
    groups = [group for group in document["config_groups"].values() if group.get("weights")]
    group = min(groups, key=lambda each: int(each["weights"]["num_bits"]))
    weights, activations = group["weights"], group.get("input_activations")
    bits, is_float = int(weights["num_bits"]), weights["type"] == "float"
    precision = f"w{bits}a{activations['num_bits'] if activations else 16}"
    stored = StoredQuantization(
        "compressed-tensors",
        f"compressed-tensors {'fp ' if is_float else ''}{precision}",
        bits,
        ("compressed-tensors>=0.15",),
        packed_on=(),
    )
    has_kernel = is_float and bits == 8 and activations and len(groups) == 1
    return replace(stored, packed_on=("cuda",), min_capability=(8, 9)) if has_kernel else stored


def _fine_grained_fp8(document: dict[str, Any]) -> StoredQuantization:
    return StoredQuantization(
        "fp8", "fp8 w8a8 in blocks", 8, (), packed_on=("cuda",), kernels=(_KERNELS,), min_capability=(8, 9)
    )


def _mxfp4(document: dict[str, Any]) -> StoredQuantization:
    return StoredQuantization(
        "mxfp4", "mxfp4 w4a16", 4, (), packed_on=("cuda",), kernels=(_KERNELS,), min_capability=(7, 5)
    )


_READERS: dict[str, Callable[[dict[str, Any]], StoredQuantization]] = {
    "gptq": _gptq,
    "awq": _awq,
    "compressed-tensors": _compressed_tensors,
    "mxfp4": _mxfp4,
    "bitsandbytes": _bitsandbytes,
    "torchao": _torchao,
    "fp8": _fine_grained_fp8,
}
