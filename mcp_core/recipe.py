"""Recipe: how one model is served. A frozen value; it is replaced, never edited.

This file does not know what a machine can run (``conflicts.py``), what a model weighs
(``models/footprint.py``) or how anything is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mcp_core.errors import RecipeError

if TYPE_CHECKING:
    from mcp_core.conflicts import Conflict
    from mcp_core.hardware import Hardware

__all__ = [
    "SCHEMA_VERSION",
    "Attention",
    "Batching",
    "Calibration",
    "Compile",
    "DType",
    "KVCache",
    "ModelRef",
    "Quantization",
    "Recipe",
    "SchemeName",
    "ShapeSpec",
    "Switches",
    "validation_message",
]

SCHEMA_VERSION = 1

DType = Literal["fp32", "bf16", "fp16"]
Source = Literal["bundled", "hub", "folder", "gguf", "shape", "endpoint"]
Engine = Literal["transformers", "llama.cpp", "vllm", "sglang", "endpoint"]
Attention = Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"]
KVKind = Literal[
    "dynamic", "static", "sliding", "quantized-fp8", "quantized-quanto", "quantized-hqq", "offloaded", "off"
]
BatchingMode = Literal["off", "static", "continuous"]
Speculation = Literal["off", "prompt-lookup", "draft"]
Compile = Literal["off", "graphs", "compiled", "autotuned"]
SchemeName = Literal[
    "none",
    "bnb-int8",
    "bnb-nf4",
    "bnb-fp4",
    "torchao-int8-weight-only",
    "torchao-int4-weight-only",
    "torchao-int8-dynamic",
    "torchao-int8-static",
    "torchao-int8-static-smoothquant",
    "torchao-fp8-weight-only",
    "torchao-fp8-dynamic",
    "classic-dynamic",
    "gguf",
]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ShapeSpec(_Value):
    """Sizes of a Llama-style decoder that is built with random weights (``model.id = "custom"``)."""

    layers: Annotated[int, Field(ge=1, le=512)] = Field(description="Decoder layers.")
    hidden: Annotated[int, Field(ge=8, le=65_536)] = Field(description="Width of the residual stream.")
    intermediate: Annotated[int, Field(ge=8, le=262_144)] = Field(description="Width of the MLP.")
    heads: Annotated[int, Field(ge=1, le=512)] = Field(description="Query heads; divides hidden.")
    kv_heads: Annotated[int, Field(ge=1, le=512)] = Field(description="Key/value heads; divides heads.")
    head_dim: Annotated[int, Field(ge=2, le=1024)] | None = Field(
        default=None, description="Width of one head; hidden / heads when absent."
    )
    vocab: Annotated[int, Field(ge=300, le=1_000_000)] = Field(description="Vocabulary, at least 300.")
    context: Annotated[int, Field(ge=16, le=10_000_000)] = Field(
        default=4096, description="Longest context in tokens."
    )
    tied: bool = Field(default=False, description="Output layer shares the embedding's weights.")

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.head_dim is None and self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} is not a multiple of heads {self.heads}")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        if (self.head_dim or self.hidden // self.heads) % 2:
            raise ValueError("the width of one head must be even (rotary embedding)")
        return self


class ModelRef(_Value):
    """Which model. ``id`` means: a Hub id, a path, a shape's name, or a URL, by ``source``."""

    source: Source = Field(default="bundled", description="Where the model comes from.")
    id: str = Field(
        default="smollm2-135m-instruct",
        min_length=1,
        max_length=1024,
        description="Hub id (owner/name), folder, GGUF file, shape name, or endpoint URL.",
    )
    revision: str | None = Field(default=None, max_length=128, description="Hub revision; null is main.")
    sha256: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{64}$",
        description="Content hash, filled in when the id is resolved.",
    )
    shape: ShapeSpec | None = Field(default=None, description='Sizes, for source "shape" with id "custom".')

    @model_validator(mode="after")
    def _shape_goes_with_custom(self) -> Self:
        custom = self.source == "shape" and self.id == "custom"
        if custom != (self.shape is not None):
            raise ValueError('shape goes with source "shape" and id "custom", and only there')
        return self


class Calibration(_Value):
    """Which text the static schemes watch activations on, and how much of it."""

    text: str = Field(
        default="builtin",
        pattern=r"^(builtin|[0-9a-f]{64})$",
        description="builtin, or the SHA-256 of a text that was added to MCP (mcp-core texts add FILE).",
    )
    samples: Annotated[int, Field(ge=1, le=4096)] = Field(default=16, description="Passages of the text.")
    tokens: Annotated[int, Field(ge=16, le=8192)] = Field(default=256, description="Tokens of each passage.")


class Quantization(_Value):
    """How weights are stored. What a scheme needs and costs is in ``schemes.py``."""

    scheme: SchemeName = Field(
        default="none", description="Quantization scheme; none keeps dtype, or what the checkpoint came with."
    )
    double_quant: bool = Field(
        default=False,
        description="bnb-nf4 and bnb-fp4: quantize the block scales too (saves 0.4 bit/weight).",
    )
    group_size: Annotated[int, Field(ge=16, le=1024)] | None = Field(
        default=None, description="Weights that share a scale; null is the scheme's own."
    )
    skip: tuple[str, ...] = Field(
        default=(), description="Module name patterns (fnmatch) kept dense, besides lm_head and embeddings."
    )
    calibration: Calibration = Field(
        default=Calibration(), description="Calibration text and its size, for static schemes."
    )
    alpha: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None,
        description="SmoothQuant: how much of the outliers moves into the weights; null searches for it.",
    )
    activations: Literal["symmetric", "asymmetric"] = Field(
        default="symmetric", description="torchao-int8-dynamic: how activations are mapped to int8."
    )
    outlier_threshold: Annotated[float, Field(ge=0, le=1000)] | None = Field(
        default=None, description="bnb-int8: activations beyond this are computed apart; null is 6, 0 is never."
    )
    parameters: Literal["minmax", "hqq"] = Field(
        default="minmax", description="torchao-int4-weight-only: how scales and zero points are found."
    )


class KVCache(_Value):
    """How keys and values of past tokens are kept."""

    kind: KVKind = Field(default="dynamic", description="Cache kind.")
    max_context: Annotated[int, Field(ge=16, le=10_000_000)] | None = Field(
        default=None, description="Longest prompt + reply, tokens; null is the model's own, at most 4096."
    )
    window: Annotated[int, Field(ge=16, le=10_000_000)] | None = Field(
        default=None, description="sliding: how many of the last tokens are kept; null is 512."
    )
    bits: Literal[2, 4, 8] | None = Field(
        default=None, description="quantized-quanto, quantized-hqq: stored bits; null is 4."
    )


class Switches(_Value):
    """torch's process-wide switches, as the article names them; what each is worth: the Handbook page."""

    tf32: bool = Field(default=False, description="fp32 products in TF32 on NVIDIA devices.")
    autocast: Literal["bf16", "fp16"] | None = Field(
        default=None, description="Compute products in this type, weights stay as loaded; null is off."
    )
    cudnn_benchmark: bool = Field(
        default=False, description="cuDNN tries convolution algorithms; a language model has no convolution."
    )


class Batching(_Value):
    """How requests share the model. mode, max_requests and max_wait_ms change live."""

    mode: BatchingMode = Field(default="off", description="off serves one request at a time.")
    max_requests: Annotated[int, Field(ge=1, le=4096)] = Field(
        default=64, description="Requests held at once, running and queued; one more is refused (HTTP 503)."
    )
    max_wait_ms: Annotated[float, Field(ge=0, le=60_000)] = Field(
        default=5.0, description="static: how long to wait for a fuller batch, ms."
    )
    step_tokens: Annotated[int, Field(ge=16, le=1_000_000)] = Field(
        default=512, description="continuous: token budget of one step."
    )
    kv_blocks: Annotated[int, Field(ge=4, le=10_000_000)] | None = Field(
        default=None, description="continuous: pages in the KV pool; null sizes it from max_context."
    )


class Recipe(_Value):
    """How one model is served: everything that must be equal for two servers to be the same."""

    schema_version: Literal[1] = Field(default=1, description="Version of this document's form.")
    model: ModelRef = Field(default=ModelRef(), description="Which model.")
    engine: Engine = Field(default="transformers", description="What runs it.")
    engine_python: str | None = Field(
        default=None,
        min_length=1,
        max_length=1024,
        description="vllm, sglang: path of the Python interpreter that has it, one of those that MCP_VLLM_PYTHON, "
        "MCP_SGLANG_PYTHON or MCP_ENGINE_PYTHONS name; null is the engine's own variable. It says where, not how: "
        "no part of fingerprint or numerics_key.",
    )
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda:\d{1,2})$",
        description="auto is cuda:0 where there is one, else cpu.",
    )
    threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        default=None, description="CPU threads of the worker; null is physical cores - 1, at least 1."
    )
    dtype: DType = Field(default="bf16", description="Type of dense weights and activations.")
    quantization: Quantization = Field(default=Quantization(), description="How weights are stored.")
    attention: Attention = Field(
        default="sdpa",
        description="Attention implementation. llama.cpp: sdpa is its FlashAttention, eager is without it.",
    )
    kv: KVCache = Field(default=KVCache(), description="Key/value cache.")
    switches: Switches = Field(default=Switches(), description="torch's process-wide switches.")
    compile: Compile = Field(
        default="off",
        description="Decode steps made ahead: graphs are recorded on CUDA (seconds), and short prefill steps with "
        "them; compiled ones are compiled by torch too (a minute or two, kept for the next start), autotuned ones "
        "also tuned (up to twice as long, kept). With both, other steps on CUDA compute norms, rotary embedding "
        "and gating compiled.",
    )
    batching: Batching = Field(default=Batching(), description="How requests share the model.")
    prefix_cache: bool = Field(default=False, description="Reuse keys and values of shared prompt prefixes.")
    speculation: Speculation = Field(
        default="off", description="Speculative decoding: guesses from the prompt, or from a smaller model."
    )
    draft: ModelRef | None = Field(default=None, description="speculation draft: a smaller model, same tokens.")
    draft_tokens: Annotated[int, Field(ge=1, le=64)] | None = Field(
        default=None,
        description="speculation: tokens guessed for a pass; null is 10 from the prompt, 5 by a draft.",
    )

    @field_validator("compile", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        """true and false are how documents were written when recording was all there was."""
        return {True: "graphs", False: "off"}[value] if isinstance(value, bool) else value

    @classmethod
    def from_json(cls, text: str | bytes) -> Recipe:
        """Read a Recipe document, upgrading an older schema_version. Raises RecipeError naming the field."""
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:  # a number too long, brackets too deep: not JSONDecodeError
            raise RecipeError(
                f"The Recipe is not valid JSON: {error}.", "Print a valid one: mcp-core preset bundled."
            ) from error
        return cls.from_dict(document)

    @classmethod
    def from_dict(cls, document: Any) -> Recipe:
        """As ``from_json``, from parsed JSON."""
        if not isinstance(document, dict):
            raise RecipeError("The Recipe is not a JSON object.", "Print a valid one: mcp-core preset bundled.")
        try:
            return cls.model_validate(_upgrade(document))
        except ValidationError as error:
            raise RecipeError(
                f"The Recipe is not valid: {validation_message(error)}.", "mcp-core schema lists every field."
            ) from error

    def to_json(self) -> str:
        """The whole document, defaults included, two-space indented."""
        return self.model_dump_json(indent=2) + "\n"

    def replace(self, changes: Mapping[str, Any]) -> Recipe:
        """A copy with dotted fields replaced: ``{"quantization.scheme": "bnb-nf4"}``. Raises RecipeError."""
        document = self.model_dump(mode="json")
        for path, value in changes.items():
            _set_path(document, path, value)
        return Recipe.from_dict(document)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the fields that differ from their defaults, and schema_version."""
        return _digest(self._distinct())

    @property
    def load_key(self) -> str:
        """Digest of the part whose change needs a new worker; the rest changes live."""
        document = self._distinct() | ({"engine_python": self.engine_python} if self.engine_python else {})
        document.pop("prefix_cache", None)
        for field in ("mode", "max_requests", "max_wait_ms"):
            document.get("batching", {}).pop(field, None)
        return _digest({key: value for key, value in document.items() if value != {}})

    @property
    def is_paged(self) -> bool:
        """Whether keys and values of its sequences live in pages of one pool."""
        mode = self.batching.mode
        return mode == "continuous" or (mode == "off" and (self.prefix_cache or self.compile != "off"))

    @property
    def asks_too_much_of_kv(self) -> bool:
        """Whether its kind of cache holds one sequence at a time and it asks for many. Pages are dense or fp8."""
        keeps_many = self.kv.kind == "dynamic" or (self.is_paged and self.kv.kind == "quantized-fp8")
        return not keeps_many and (self.batching.mode != "off" or self.is_paged)

    @property
    def numerics_key(self) -> str:
        """Digest of the part that can change logits."""
        document = self._distinct()
        kept = {key: document[key] for key in _NUMERIC_FIELDS if key in document}
        kept["device"] = self.device.split(":")[0]
        kept["kv"] = self.kv.model_dump(mode="json", exclude_defaults=True, exclude={"max_context"})
        if self.kv.kind == "quantized-fp8":  # sets apart what was judged with scales calibrated on 64 tokens
            kept["kv"]["scales"] = "token and head"
        return _digest(kept)

    @property
    def unquantized_words(self) -> str:
        """What a model is called to which no scheme is applied: a checkpoint may come quantized."""
        return "as stored" if self.model.source in ("folder", "hub") else "unquantized"

    def conflicts(self, hardware: Hardware) -> tuple[Conflict, ...]:
        """Every field that this machine cannot honour, with the reason and the fix."""
        from mcp_core.conflicts import find_conflicts

        return find_conflicts(self, hardware)

    def _distinct(self) -> dict[str, Any]:
        document = self.model_dump(mode="json", exclude_defaults=True, exclude={"engine_python"})
        return document | {"schema_version": self.schema_version}


_NUMERIC_FIELDS = (
    "model",
    "engine",
    "dtype",
    "quantization",
    "attention",
    "switches",
    "compile",
    "schema_version",
)

# version -> the function that lifts a document of that version by one. Numbered, never edited once shipped.
_UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}


def _upgrade(document: dict[str, Any]) -> dict[str, Any]:
    version = document.get("schema_version", SCHEMA_VERSION)
    while isinstance(version, int) and version in _UPGRADES:
        document = _UPGRADES[version](document)
        version = document["schema_version"]
    return document


def _set_path(document: dict[str, Any], path: str, value: Any) -> None:
    *parents, leaf = path.split(".")
    node: Any = document
    for name in parents:
        node = node.get(name) if isinstance(node, dict) else None
    if not isinstance(node, dict) or leaf not in node:
        raise RecipeError(f'A Recipe has no field "{path}".', "mcp-core schema lists every field.")
    node[leaf] = value


def _digest(document: Mapping[str, Any]) -> str:
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


# What pydantic words for programmers.
_PROBLEMS = {"extra_forbidden": "there is no such field", "model_type": "it is not a JSON object"}


def validation_message(error: ValidationError) -> str:
    """The first problem of a pydantic error as ``field: what is wrong``, with a count of the others.

    Where fields contradict each other no single one is named.
    """
    problems = error.errors(include_url=False, include_context=False)
    first = problems[0]
    told = first["type"] == "value_error"  # our own validators name the fields that contradict each other
    field = ".".join(str(part) for part in first["loc"]) or ("" if told else "document")
    rest = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    what = _PROBLEMS.get(first["type"], first["msg"].removeprefix("Value error, "))
    return f"{field}: {what}{rest}" if field else f"{what}{rest}"
