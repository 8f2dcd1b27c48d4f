"""From a resolved model and a Recipe to a LoadedModel: download → prepare → load and quantize → describe.

Checkpoints and random shapes take one way: transformers places each tensor as it is read or drawn, and
quantizes it there. This file does not know how tokens are generated, nor whether the model fits (``footprint``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from mcp_core import hardware
from mcp_core.errors import InvalidModel
from mcp_core.memory import quantization
from mcp_core.memory.attention import require_attention, running_attention
from mcp_core.memory.current_device import make_current
from mcp_core.memory.device_allocator import weights_placed_for
from mcp_core.memory.gemm import gemm_backend
from mcp_core.memory.host_allocator import return_large_blocks, reuse_large_blocks
from mcp_core.memory.storage import weights_bytes
from mcp_core.memory.switches import apply_switches
from mcp_core.models import checkpoint, footprint, headers, hub, quantized_loading, shapes
from mcp_core.models.architecture import LINEAR_EXPERTS, ResolvedModel
from mcp_core.models.checkpoint import ByteCount, LazyTensor
from mcp_core.models.linear_experts import with_linear_experts
from mcp_core.models.load_errors import first_error_raised, foreign_errors, require_complete
from mcp_core.models.loaded import LoadedModel, Report
from mcp_core.models.prepare import prepare_gguf
from mcp_core.models.random_weights import random_tensors
from mcp_core.models.stored_quantization import require_loadable_here
from mcp_core.models.text_codec import TextCodec, read_codec, synthetic_codec
from mcp_core.recipe import DType, Recipe
from mcp_core.results import Calibrated, Effective
from mcp_core.schemes import SCHEMES

__all__ = ["fetch", "load"]

_TORCH_DTYPES: dict[DType, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def load(resolved: ResolvedModel, recipe: Recipe, report: Report, hub_token: str | None = None) -> LoadedModel:
    """Bring the model into memory as the Recipe says; ``device`` and ``threads`` of it already resolved.

    ``report(stage, fraction, message)`` hears how far it is, from several threads but one at a time. Raises
    InvalidModel, UnsafeModel, RecipeError, OutOfMemory, DiskFull or HubError.
    """
    assert recipe.device != "auto", "conflicts.resolve comes first"
    machine = hardware.detect()
    require_loadable_here(resolved.quantized, recipe, machine)
    device = machine.device(recipe.device)
    computing = recipe if device is None else resolved.computed_by(recipe, device, machine)
    return_large_blocks(computing.quantization.scheme)
    transformers_logging.disable_progress_bar()
    resolved = fetch(resolved, report, hub_token)
    codec = _codec(resolved)
    doing = f"loading {resolved.title} on {recipe.device}"
    if (scheme := recipe.quantization.scheme) != "none":
        doing += f" and quantizing it to {scheme}"
    with foreign_errors(resolved.title, doing):
        make_current(recipe.device)
        model, packing = _load_model(resolved, recipe, report, codec)
    reuse_large_blocks(computing.quantization.scheme)
    in_force = apply_switches(model, recipe.switches, torch.device(recipe.device))
    loaded = _describe(model, codec, resolved, recipe, packing)
    return replace(loaded, effective=loaded.effective.model_copy(update={"switches": in_force}))


def fetch(resolved: ResolvedModel, report: Report, hub_token: str | None) -> ResolvedModel:
    """The same model with its files in ``folder``; a random shape has none."""
    if resolved.random_weights or resolved.folder is not None:
        return resolved
    if resolved.gguf_file is not None:
        return replace(resolved, folder=prepare_gguf(resolved, report))
    return replace(
        resolved, folder=hub.download(resolved.ref, hub_token, lambda part, text: report("download", part, text))
    )


def _codec(resolved: ResolvedModel) -> TextCodec:
    if resolved.random_weights:
        return synthetic_codec(resolved.architecture.vocab)
    return read_codec(_folder(resolved))


def _load_model(
    resolved: ResolvedModel, recipe: Recipe, report: Report, codec: TextCodec
) -> tuple[PreTrainedModel, _Packing]:
    """The model in eval mode on its device, packed if asked, and how that came about."""
    dtype, device = _TORCH_DTYPES[recipe.dtype], torch.device(recipe.device)
    config = _read_config(resolved)
    scheme, packed = _settle_scheme(config, resolved, recipe)
    plan = _Plan.make(config, recipe, dtype)
    opened = _open_weights(resolved, plan.skeleton, dtype, device)
    with weights_placed_for(recipe), opened as (tensors, total_bytes):
        arrived = _reporter(report, recipe, scheme)
        model = plan.load(checkpoint.counted(tensors, ByteCount(total_bytes, arrived)), device, recipe.attention)
        arrived(1.0)
    quantized_loading.finish(model, dtype, packed=packed)
    model.requires_grad_(requires_grad=False)
    calibrated = quantization.convert(model, _conversion(plan, resolved, recipe, report, codec))
    quantization.require_packed(model, recipe.quantization)
    _read_generation_config(model, resolved)
    return model, _Packing(scheme, plan.kept_dense, calibrated)


def _settle_scheme(config: PretrainedConfig, resolved: ResolvedModel, recipe: Recipe) -> tuple[str, bool]:
    """The scheme that will run, the Recipe's or the checkpoint's own, and whether this device keeps it packed."""
    stored, machine = resolved.quantized, hardware.detect()
    device = machine.device(recipe.device)
    if stored is None or device is None:
        return _unstored_scheme(resolved, recipe), True
    packed = not stored.why_expanded(device, machine.libraries)
    quantized_loading.configure(config, stored, packed=packed)
    return quantized_loading.scheme_name(stored, recipe.dtype, packed=packed), packed


def _conversion(
    plan: _Plan, resolved: ResolvedModel, recipe: Recipe, report: Report, codec: TextCodec
) -> quantization.Conversion:
    return quantization.Conversion(
        recipe=recipe.model_copy(update={"model": resolved.ref}),
        dtype=plan.dtype,
        device=torch.device(recipe.device),
        keep_dense=tuple(plan.kept_dense),
        codec=codec,
        report=lambda fraction, message: report("quantize", fraction, message),
    )


def _read_config(resolved: ResolvedModel) -> PretrainedConfig:
    if resolved.random_weights:
        return AutoConfig.for_model(**shapes.config_of(resolved.ref))
    config = AutoConfig.from_pretrained(str(_folder(resolved)), trust_remote_code=False, local_files_only=True)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InvalidModel(
            f"{resolved.title} is a {config.model_type} model, not a causal language model.",
            "Choose a text-only causal language model.",
        )
    return config


def _unstored_scheme(resolved: ResolvedModel, recipe: Recipe) -> str:
    """The Recipe's; where that is none, a GGUF says that its own was expanded."""
    scheme = recipe.quantization.scheme
    if scheme != "none" or not resolved.gguf_type:
        return scheme
    return f"gguf {resolved.gguf_type}, expanded to {recipe.dtype}"


@dataclass(frozen=True, slots=True)
class _Packing:
    """What scheme ran, why which layers were to stay dense, and what the others were calibrated with, if so."""

    scheme: str
    kept_dense: dict[str, str]
    calibrated: Calibrated | None


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to be built: the class, an empty model of it (meta device), how weights are packed, which are not."""

    model_class: type[PreTrainedModel]
    config: PretrainedConfig
    skeleton: PreTrainedModel
    dtype: torch.dtype
    packing: Any
    kept_dense: dict[str, str]

    @classmethod
    def make(cls, config: PretrainedConfig, recipe: Recipe, dtype: torch.dtype) -> _Plan:
        model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        require_attention(model_class, recipe.attention)
        if SCHEMES[recipe.quantization.scheme].apply and config.model_type in LINEAR_EXPERTS:
            model_class = with_linear_experts(model_class)
        with torch.device("meta"):
            skeleton = model_class(config)
        device = torch.device(recipe.device)
        dense = quantization.layers_to_keep_dense(skeleton, recipe.quantization, device)
        packing = quantization.configure(recipe.quantization, dtype, device, dense)
        return cls(model_class, config, skeleton, dtype, packing, dense)

    def load(self, tensors: Mapping[str, LazyTensor], device: torch.device, attention: str) -> PreTrainedModel:
        """Raises InvalidModel where a weight is missing: transformers would draw it at random."""
        with first_error_raised():
            model, info = self.model_class.from_pretrained(
                None,
                config=self.config,
                state_dict=tensors,
                dtype=self.dtype,
                device_map={"": device},
                quantization_config=self.packing,
                attn_implementation=attention,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # require_complete names them
                local_files_only=True,
            )
        require_complete(info)
        return model


@contextmanager
def _open_weights(
    resolved: ResolvedModel, skeleton: PreTrainedModel, dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[Mapping[str, LazyTensor], int]]:
    """Every weight, unread or undrawn, and the bytes of all of them."""
    if resolved.random_weights:
        drawn = random_tensors(skeleton, dtype, device)
        yield drawn, sum(tensor.nbytes for tensor in drawn.values())
        return
    files = headers.read_folder(_folder(resolved)).files
    with checkpoint.open_tensors(files) as tensors, quantized_loading.headers_known(files):
        yield tensors, sum(path.stat().st_size for path in files)


def _reporter(report: Report, recipe: Recipe, scheme: str) -> Callable[[float], None]:
    """Weights that are packed as they arrive make reading them the stage "quantize"."""
    packed = SCHEMES[recipe.quantization.scheme].apply is not None
    stored = f" ({scheme})" if scheme != recipe.quantization.scheme else ""
    stage, doing = ("quantize", f"Quantizing to {scheme}.") if packed else ("load", f"Loading weights{stored}.")
    report(stage, 0.0, doing)
    return lambda fraction: report(stage, fraction, doing)


def _read_generation_config(model: PreTrainedModel, resolved: ResolvedModel) -> None:
    if resolved.folder is not None and (resolved.folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(resolved.folder), local_files_only=True)


def _describe(
    model: PreTrainedModel, codec: TextCodec, resolved: ResolvedModel, recipe: Recipe, packing: _Packing
) -> LoadedModel:
    max_context = footprint.resolve_max_context(recipe, resolved.architecture)
    return LoadedModel(
        model=model,
        tokenizer=codec.tokenizer,
        chat_template=codec.chat_template,
        template_tokens=codec.template_tokens,
        eos_ids=codec.eos_ids | _model_eos(model),
        special_ids=codec.special_ids,
        vocab_size=_rows(model.get_output_embeddings()),
        max_context=max_context,
        weights_bytes=weights_bytes(model),
        effective=_effective(model, recipe, max_context, packing, resolved),
        title=resolved.title,
        random_weights=resolved.random_weights,
        resolved=resolved,
    )


def _rows(output: Any) -> int:
    """A packed weight's own shape need not be the layer's."""
    return int(getattr(output, "out_features", None) or output.weight.shape[0])


def _effective(
    model: PreTrainedModel, recipe: Recipe, max_context: int, packing: _Packing, resolved: ResolvedModel
) -> Effective:
    """Read back from the model wherever it can be; the engine has yet to settle the rest."""
    embedding = model.get_input_embeddings().weight
    skipped, packed = _skipped(model, recipe, packing, resolved), quantization.quantized_modules(model)
    return Effective(
        device=str(embedding.device),
        dtype=next(name for name, dtype in _TORCH_DTYPES.items() if dtype == embedding.dtype),
        scheme=packing.scheme,
        attention=running_attention(model),
        kv_kind=recipe.kv.kind,
        max_context=max_context,
        threads=torch.get_num_threads(),
        batching_mode=recipe.batching.mode,
        engine_version=transformers.__version__,
        gemm_backend=gemm_backend(embedding.device, embedding.dtype),
        quantized_modules=len(quantized_loading.packed_modules(model) if resolved.quantized else packed),
        skipped_modules=tuple(skipped),
        skip_reasons=skipped,
        model_type=model.config.model_type,
        parameters=resolved.architecture.parameters,
        calibration=packing.calibrated,
    )


def _skipped(model: PreTrainedModel, recipe: Recipe, packing: _Packing, resolved: ResolvedModel) -> dict[str, str]:
    """Layers left dense, each with the reason; none where nothing was to be packed."""
    if resolved.quantized:
        return quantized_loading.skipped_modules(model)
    if recipe.quantization.scheme == "none":
        return {}
    return quantization.skip_reasons(model, packing.kept_dense)


def _model_eos(model: PreTrainedModel) -> frozenset[int]:
    """Ids that end a reply by the model's own files, from generation_config.json and config.json."""
    configured = (model.generation_config.eos_token_id, model.config.get_text_config(decoder=True).eos_token_id)
    return frozenset(index for entry in configured for index in _as_ids(entry))


def _as_ids(entry: int | list[int] | None) -> list[int]:
    if entry is None:
        return []
    return [entry] if isinstance(entry, int) else list(entry)


def _folder(resolved: ResolvedModel) -> Path:
    assert resolved.folder is not None, "a model with files has been fetched"
    return resolved.folder
