"""RunFacts: what lists, filters and decisions read of one Run, without its whole document.

A flat value that the store keeps beside the document and makes anew when ``VERSION`` has moved on. This file does
not know where it is kept (``store.py``) or what is decided by it (``recommend.py``).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from pydantic_core import from_json

from mcp_core.conflicts import resolve
from mcp_core.decision.counterparts import key_of
from mcp_core.decision.traffic import traffic_key
from mcp_core.evaluation.conditions import own_clock_mhz, remarks
from mcp_core.goal import METRICS, Metric
from mcp_core.hardware import Device, Hardware
from mcp_core.recipe import Recipe
from mcp_core.results import Conditions, Fidelity, Measurement, Quantiles, Run
from mcp_core.sweep_plan import RACED

__all__ = [
    "CONFIRMATION",
    "VERSION",
    "RunFacts",
    "configuration_name",
    "fidelity_facts",
    "numerics_of",
    "short_model",
    "short_names",
    "versions_of",
    "whole_runs",
]

# Raised whenever the facts of an old Run would come out otherwise.
VERSION = 10

# What a server elsewhere runs is not known, so that all of them may answer one Goal.
_ELSEWHERE = "servers elsewhere"
# How a Run's reasons say that it judged a deployment: no configuration to choose among others.
CONFIRMATION = "confirmation:"
_DOT = " · "
# Letters of a digest: enough to tell apart what one store holds.
_KEY = 16
_STATISTICS = tuple(Quantiles.model_fields)
# Libraries whose version changes an engine's speed; a scheme's own come on top.
_ENGINE_LIBRARIES = {
    "transformers": ("mcp-core", "torch", "transformers", "kernels"),
    "llama.cpp": ("mcp-core", "xllamacpp"),
}
_SCHEME_LIBRARIES = {"bnb": "bitsandbytes", "torchao": "torchao"}
_ATTENTION_LIBRARIES = {"flash_attention_2": "flash-attn", "flash_attention_3": "flash-attn-3"}
# Parts of a configuration that are told by their value alone; any other as field=value.
_TOLD_BY_VALUE = ("quantization.scheme", "batching.mode", "attention", "engine")
_NOT_TOLD = ("schema_version", "model.", "engine_python", "dtype", "threads", "device")


@dataclass(frozen=True, slots=True)
class RunFacts:
    """One Run in a line. Times ms, sizes bytes; None was not measured, and is never NaN.

    ``card`` is the device's own identifier, empty where it has none: host names repeat, a host has several cards.
    ``clock_mhz`` is the SM clock apart from what the card's own power cap took, which ``power_cap`` puts in words.
    """

    id: str
    created: str
    status: str
    configuration: str
    name: str
    model: str
    engine: str
    scheme: str
    dtype: str
    batching: str
    random_weights: bool
    recipe: str
    host: str
    device: str
    device_kind: str
    card: str
    cpu: str
    devices: int
    versions: dict[str, str]
    traffic: str
    workload: str
    workload_document: str
    load_kind: str
    load: float | None
    repeat: str
    start: str
    evidence: str
    comparable: bool
    reasons: tuple[str, ...]
    failure_kind: str = ""
    failure: str = ""
    latency: tuple[tuple[float | None, ...], ...] = ()
    requests: int = 0
    completed: int = 0
    failed: int = 0
    duration_s: float | None = None
    load_s: float | None = None
    output_tok_s: float | None = None
    total_tok_s: float | None = None
    requests_s: float | None = None
    weights_bytes: int | None = None
    peak_bytes: int | None = None
    kv_tokens: int | None = None
    energy_j_per_token: float | None = None
    clock_mhz: float | None = None
    power_limit_w: float | None = None
    power_cap: str = ""
    numerics: str = ""
    fidelity: dict[str, float | str | None] | None = None

    @classmethod
    def of(cls, run: Run) -> RunFacts:
        """Of this Run."""
        device = run.hardware.device(run.effective.device if run.effective else run.recipe.device)
        return cls(
            id=run.id,
            created=run.created.isoformat(),
            status=run.status,
            configuration=key_of(run.recipe, run.hardware)[:_KEY],
            name=configuration_name(run.recipe),
            model=_ELSEWHERE if run.recipe.model.source == "endpoint" else run.recipe.model.id,
            engine=run.recipe.engine,
            scheme=run.recipe.quantization.scheme,
            dtype=run.recipe.dtype,
            batching=run.recipe.batching.mode,
            random_weights=run.recipe.model.source == "shape",
            recipe=run.recipe.model_dump_json(),
            host=run.hardware.host,
            device=device.name if device else "",
            device_kind=device.kind if device else "",
            card=_card(device),
            cpu=run.hardware.cpu,
            devices=1,
            versions=versions_of(run),
            traffic=traffic_key(run.workload),
            workload=run.workload.name,
            workload_document=run.workload.model_dump_json(),
            load_kind=run.workload.load_kind,
            load=run.load,
            repeat=f"{run.workload.seed}/{run.workload.repeat}",
            start=_start(run, _card(device)),
            evidence=run.evidence,
            comparable=run.comparable.ok,
            reasons=run.comparable.reasons,
            failure_kind=run.failure.kind if run.failure else "",
            failure=run.failure.message if run.failure else "",
            numerics=numerics_of(run.recipe, run.hardware),
            load_s=_finite(run.load_s),
            energy_j_per_token=_finite(run.energy_j_per_token),
            **_device_conditions(run.conditions),
            fidelity=fidelity_facts(run.fidelity),
            **_speed(run.measurement),
            **_memory(run),
        )

    @classmethod
    def unpack(cls, packed: str, texts: Mapping[str, str]) -> RunFacts:
        """What ``pack`` made, with the texts that it named."""
        # pydantic's reader takes half of json's time, values in the order of the fields less than by their names.
        values = from_json(packed)
        values[_REASONS] = tuple(values[_REASONS])
        values[_LATENCY] = tuple(map(tuple, values[_LATENCY]))
        for place in _SHARED_TEXTS:
            values[place] = texts[values[place]]
        return cls(*values)

    def pack(self) -> tuple[str, dict[str, str]]:
        """One line of JSON, and by their digests the texts that many Runs share."""
        texts = {_digest(text): text for text in (self.recipe, self.workload_document)}
        short = replace(self, recipe=_digest(self.recipe), workload_document=_digest(self.workload_document))
        values = [getattr(short, name) for name in _NAMES]
        return json.dumps(values, separators=(",", ":"), allow_nan=False), texts

    @property
    def measured(self) -> bool:
        """Whether there are figures of a load that ran to its end."""
        return self.status == "ok" and bool(self.latency)

    @property
    def failed_share(self) -> float | None:
        """Failed requests over those that ended, 0..1."""
        ended = self.completed + self.failed
        return self.failed / ended if ended else None

    @property
    def kind(self) -> tuple[object, ...]:
        """Equal for repeats: good Runs of one configuration under one load, with the same versions."""
        return self.kind_under(self)

    def kind_under(self, other: RunFacts) -> tuple[object, ...]:
        """The ``kind`` of this configuration's Runs under the load of another Run."""
        versions = tuple(sorted(self.versions.items()))
        measured = (self.measured, self.reasons == ())
        return self.configuration, self.device, other.traffic, other.load_kind, other.load, measured, versions

    def figure(self, metric: Metric, statistic: str) -> float | None:
        """A percentile, the mean or the number of requests of a latency, ms."""
        return self.latency[METRICS.index(metric)][_STATISTICS.index(statistic)] if self.latency else None


_NAMES = tuple(each.name for each in fields(RunFacts))
_REASONS, _LATENCY = _NAMES.index("reasons"), _NAMES.index("latency")
_SHARED_TEXTS = (_NAMES.index("recipe"), _NAMES.index("workload_document"))


def whole_runs(runs: Sequence[RunFacts]) -> tuple[RunFacts, ...]:
    """Of one configuration under one load. A short look counts only as long as there is no whole measurement, and
    that by which a sweep chose whom to confirm only until it is confirmed: it is too good by the choosing."""
    whole = tuple(each for each in runs if not each.evidence.startswith("probed"))
    return tuple(each for each in whole if not each.evidence.endswith(RACED)) or whole or tuple(runs)


def short_names(runs: Sequence[RunFacts]) -> dict[str, str]:
    """By configuration: its name without what all of its model share; the model first where there are several."""
    names = {run.configuration: (run.model, run.name.split(_DOT)) for run in runs}
    models = {model for model, _ in names.values()}
    shared = {model: _shared([words for each, words in names.values() if each == model]) for model in models}
    short: dict[str, str] = {}
    for configuration, (model, words) in names.items():
        first = [short_model(model)] if len(models) > 1 and model != _ELSEWHERE else []
        kept = [word for word in words[1:] if word not in shared[model]]
        short[configuration] = _DOT.join([*first, words[0], *kept])
    return short


def short_model(model: str) -> str:
    """The last part of a path or Hub id."""
    return model.rstrip("/").rsplit("/", 1)[-1]


def _shared(names: Sequence[Sequence[str]]) -> frozenset[str]:
    """Words in every name; of a single one nothing is left out."""
    return frozenset.intersection(*map(frozenset, names)) if len(names) > 1 else frozenset()


def configuration_name(recipe: Recipe) -> str:
    """What sets a Recipe apart, in a few words: dtype, then every field that is not at its default."""
    if recipe.model.source == "endpoint":
        return recipe.model.id
    document = recipe.model_dump(mode="json", exclude_defaults=True)
    told = [words for path, value in _leaves("", document) if (words := _words(path, value))]
    if recipe.engine == "llama.cpp":  # computes in the types that the file's weights have
        return _DOT.join(["llama.cpp", *(word for word in told if word not in ("llama.cpp", "gguf"))])
    return _DOT.join([recipe.dtype, *told])


def versions_of(run: Run) -> dict[str, str]:
    """The versions that decide how fast this Run's engine is here: driver, engine, kernels."""
    engine, scheme, attention = run.recipe.engine, run.recipe.quantization.scheme, run.recipe.attention
    names = [*_ENGINE_LIBRARIES.get(engine, ())]
    names += [library for prefix, library in _SCHEME_LIBRARIES.items() if scheme.startswith(prefix)]
    names += [_ATTENTION_LIBRARIES[attention]] if attention in _ATTENTION_LIBRARIES else []
    found = {name: run.versions[name] for name in names if name in run.versions}
    if run.hardware.driver and run.recipe.model.source != "endpoint":
        found["driver"] = run.hardware.driver
    if run.effective and run.effective.engine_version and engine not in _ENGINE_LIBRARIES:
        found[engine] = run.effective.engine_version
    return found


def fidelity_facts(fidelity: Fidelity | None) -> dict[str, float | str | None] | None:
    """What limits and ties read of a Fidelity; a scheme that a test shows to lose nothing has KL 0, what cannot be
    measured only ``why``. KL that ``top_k`` tokens tell is a lower bound; None: the whole vocabulary tells it."""
    if fidelity is None:
        return None
    if fidelity.status == "not-measurable":
        return {"why": fidelity.reason}
    if fidelity.status == "lossless-by-test":
        return {"kl": 0.0, "kl_se": 0.0, "kl_over_floor": 0.0, "top1": 1.0, "text": None}
    return {
        "kl": _finite(fidelity.kl.mean) if fidelity.kl else None,
        "kl_se": _finite(fidelity.kl.mean_se) if fidelity.kl else None,
        "kl_over_floor": _finite(fidelity.kl_over_floor),
        "top1": _finite(fidelity.top1.mean) if fidelity.top1 else None,
        "text": fidelity.text_sha256,
        "top_k": fidelity.truncation.top_k if fidelity.truncation else None,
    }


def numerics_of(recipe: Recipe, hardware: Hardware) -> str:
    """The same for Recipes whose logits are the same here; without the content hash, known only after a load."""
    resolved = resolve(recipe, hardware)
    model = resolved.model.model_copy(update={"sha256": None})
    return resolved.model_copy(update={"model": model}).numerics_key[:_KEY]


def _card(device: Device | None) -> str:
    return (device.uuid if device else None) or ""


def _start(run: Run, card: str) -> str:
    """Which start of a process it was measured on: Runs of one start on one card took exactly as long to load."""
    return f"{run.load_s!r} {card}".rstrip() if run.load_s is not None else run.id


def _device_conditions(found: Conditions | None) -> dict[str, Any]:
    device = found.device if found else None
    return {
        "clock_mhz": _finite(own_clock_mhz(found)),
        "power_limit_w": _finite(device.power_limit_w) if device else None,
        "power_cap": "; ".join(remarks(found)),
    }


def _speed(measured: Measurement | None) -> dict[str, Any]:
    if measured is None:
        return {}
    return {
        "latency": tuple(_quantiles(getattr(measured, metric)) for metric in METRICS),
        "requests": measured.requests,
        "completed": measured.completed,
        "failed": measured.failed,
        "duration_s": _finite(measured.duration_s),
        "output_tok_s": _finite(measured.output_tok_s),
        "total_tok_s": _finite(measured.total_tok_s),
        "requests_s": _finite(measured.requests_s),
    }


def _quantiles(measured: Quantiles) -> tuple[float | None, ...]:
    return tuple(_finite(getattr(measured, name)) for name in _STATISTICS)


def _memory(run: Run) -> dict[str, Any]:
    capacity = run.engine_work.kv_capacity_tokens if run.engine_work else 0
    memory = run.memory
    return {
        "weights_bytes": memory.weights_bytes if memory else None,
        "peak_bytes": memory.peak_bytes if memory else None,
        "kv_tokens": capacity or (run.effective.max_context if run.effective else None),
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY]


def _finite(value: float | None) -> float | None:
    """Seven digits: more are no measurement, and take long to read."""
    return float(f"{value:.7g}") if value is not None and math.isfinite(value) else None


def _leaves(path: str, document: dict[str, Any]) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in document.items():
        where = f"{path}{name}"
        found += _leaves(f"{where}.", value) if isinstance(value, dict) else [(where, value)]
    return found


def _words(path: str, value: Any) -> str:
    if path.startswith(_NOT_TOLD):
        return ""
    if path in _TOLD_BY_VALUE:
        return str(value)
    name = path.removeprefix("quantization.").removeprefix("batching.")
    name = "KV" if path == "kv.kind" else name
    return name if value is True else f"{name} {value}"
