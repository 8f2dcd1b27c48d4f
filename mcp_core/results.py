"""What happened: request records, measurements, memory, failures, Runs. Frozen values, no arithmetic.

Unmeasured is None, never 0 or NaN. This file does not know how anything is measured
(``evaluation/metrics.py``) or stored (``decision/store.py``).
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mcp_core.errors import McpError
from mcp_core.hardware import Hardware
from mcp_core.memory_readings import MemoryTimeline
from mcp_core.recipe import Recipe
from mcp_core.workload import Workload

__all__ = [
    "AlphaLoss",
    "Calibrated",
    "Comparable",
    "Conditions",
    "DeviceConditions",
    "Divergence",
    "Effective",
    "EngineWork",
    "Failure",
    "Fidelity",
    "Imported",
    "Mean",
    "Measurement",
    "Memory",
    "Prediction",
    "Quantiles",
    "RequestRecord",
    "Run",
    "RunId",
    "RunStatus",
    "StoredFidelity",
    "StratumFidelity",
    "TopKTruncation",
    "new_run_id",
    "now",
]

RunStatus = Literal["ok", "failed", "cancelled", "interrupted", "refused"]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class Failure(_Value):
    """Why something did not happen."""

    kind: str = Field(description="An error kind of errors.py.")
    message: str = Field(description="The cause, one line.")
    hint: str = Field(default="", description="What to do.")

    @classmethod
    def of(cls, error: McpError) -> Failure:
        """The failure that this error is."""
        return cls(**error.as_dict())


class RequestRecord(_Value):
    """One request as its client saw it. Times are ms on the client's monotonic clock from ``sent``."""

    index: int = Field(description="Position in the workload.")
    status: Literal["ok", "failed", "cancelled"] = Field(description="How it ended.")
    sent_ms: float = Field(description="When it was sent, ms after the measurement began.")
    late_ms: float | None = Field(
        default=None, description="Sent so long after it was due, ms; null where nothing was due."
    )
    ttft_ms: float | None = Field(default=None, description="Sent to first chunk that carries a token, ms.")
    first_answer_ms: float | None = Field(
        default=None, description="Sent to first chunk of the answer, ms; null where no reasoning was marked."
    )
    e2e_ms: float | None = Field(default=None, description="Sent to last token, ms.")
    chunk_ms: tuple[float, ...] = Field(default=(), description="Arrival of each token chunk, ms after sent.")
    chunk_tokens: tuple[int, ...] = Field(default=(), description="Tokens each chunk carried.")
    prompt_tokens: int | None = Field(default=None, description="From usage.")
    output_tokens: int | None = Field(default=None, description="From usage.")
    cached_tokens: int | None = Field(default=None, description="Prompt tokens served from a cache.")
    shared_tokens: int = Field(
        default=0, description="First prompt tokens that other requests had before, by the workload's own plan."
    )
    prompt_sha256: str | None = Field(default=None, description="Hash of what was sent.")
    server_timing: dict[str, float] | None = Field(default=None, description="The server's own usage.timing, ms.")
    failure: Failure | None = Field(default=None, description="Set when status is not ok.")


class Quantiles(_Value):
    """Percentiles of a sample; p95 is None under 200 requests and p99 under 1,000 ("too few requests")."""

    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    max: float | None = None
    n: int = Field(default=0, description="Requests behind the figures.")


class Measurement(_Value):
    """Speed of one Run. Definitions: evaluation/metrics.py."""

    ttft_ms: Quantiles
    tpot_ms: Quantiles
    itl_ms: Quantiles
    e2e_ms: Quantiles
    duration_s: float
    requests: int
    completed: int
    failed: int
    cancelled: int
    prompt_tokens: int
    output_tokens: int
    output_tok_s: float | None
    total_tok_s: float | None
    requests_s: float | None
    engine_output_tok_s: float | None = Field(default=None, description="From the engine's own clock.")
    engine_tpot_ms: float | None = Field(default=None, description="Median by the engine's own clock.")
    client_lag_p99_ms: float | None = Field(default=None, description="Lateness of the load generator's own loop.")
    queue_ms: Quantiles | None = Field(default=None, description="Waiting, by the server's own timing.")
    prefill_ms: Quantiles | None = Field(default=None, description="First step to first token, by the server's.")
    decode_ms: Quantiles | None = Field(default=None, description="First token to last, by the server's.")
    first_answer_ms: Quantiles | None = Field(
        default=None, description="Sent to first token of the answer, where the server marks reasoning."
    )
    late_p99_ms: float | None = Field(default=None, description="Lateness of sending, where requests were due.")
    mean_at_once: float | None = Field(default=None, description="Completed requests running at once, mean.")
    over_saturated: bool | None = Field(
        default=None, description="Whether the queue grew all the while; null where clients wait for replies."
    )


class Memory(_Value):
    """Memory of one worker, bytes; when each is read: serving/worker_memory.py."""

    weights_bytes: int | None = Field(default=None, description="Unique tensor storages of the loaded model.")
    baseline_bytes: int | None = Field(default=None, description="Resident after imports, before loading.")
    load_peak_bytes: int | None = Field(default=None, description="Highest resident from spawn to ready.")
    process_peak_bytes: int | None = Field(default=None, description="Highest resident while serving.")
    peak_bytes: int | None = Field(
        default=None,
        description="CPU: serving peak - baseline. GPU: highest reserved since ready + context.",
    )
    device_allocated_peak_bytes: int | None = Field(
        default=None, description="GPU: most in torch's tensors at once."
    )
    device_reserved_peak_bytes: int | None = Field(
        default=None, description="GPU: most that torch took of the device; unused blocks are in it."
    )
    kv_bytes_per_token: int | None = Field(default=None, description="All layers' keys and values of one position.")


class AlphaLoss(_Value):
    """One SmoothQuant alpha that was tried."""

    alpha: float
    kl: float = Field(description="Mean KL(dense || quantized) on calibration passages, nats.")


class Calibrated(_Value):
    """What a static scheme watched activations on."""

    text: str = Field(description="The text's name.")
    sha256: str | None = Field(description="Its content hash; null for random tokens.")
    samples: int = Field(description="Passages that were run.")
    tokens: int = Field(description="Tokens of each.")
    random_tokens: bool = Field(default=False, description="Random weights saw random tokens: no quality, no cost.")
    alpha: float | None = Field(default=None, description="SmoothQuant's alpha; null for the plain scheme.")
    alpha_search: tuple[AlphaLoss, ...] = Field(default=(), description="Every alpha tried; empty: it was given.")
    reused: bool = Field(default=False, description="The ranges were kept from an earlier calibration.")
    seconds: float = Field(description="What this load spent on calibrating.")


class EngineWork(_Value):
    """What the engine did while it was measured: differences of its counters (generation.EngineStats)."""

    prefill_s: float = Field(description="In steps with at least one prompt token, s.")
    decode_s: float = Field(description="In all other steps, s.")
    decode_steps: int
    prompt_tokens: int = Field(description="Computed, so without those that a cache had.")
    output_tokens: int
    cached_prompt_tokens: int
    kv_evictions: int = Field(description="Kept pages given up for others.")
    preemptions: int = Field(description="Requests put back because pages ran out.")
    kv_capacity_tokens: int = Field(default=0, description="What the KV pool holds; 0 without a pool.")


class Effective(_Value):
    """What the worker really runs, read back from it."""

    device: str
    dtype: str
    scheme: str
    attention: str
    kv_kind: str
    max_context: int
    threads: int
    batching_mode: str
    engine: str = "transformers"
    engine_version: str | None = None
    quantized_modules: int = 0
    skipped_modules: tuple[str, ...] = ()
    skip_reasons: dict[str, str] = Field(
        default_factory=dict, description="Why each of skipped_modules is dense: output layer, its shape, ..."
    )
    model_type: str | None = None
    parameters: int | None = None
    calibration: Calibrated | None = Field(default=None, description="For static schemes.")
    attention_backend: str | None = Field(
        default=None, description="The kernel that sdpa settled on: flash, mem-efficient, cudnn or math."
    )
    gemm_backend: str | None = Field(
        default=None, description="The library of dense products: cublas, cublaslt, mkl, onednn, native."
    )
    switches: tuple[str, ...] = Field(default=(), description="Those of torch in force while the model computes.")
    compile_s: float | None = Field(
        default=None,
        description="What making decode steps ahead took, s: at this start (part of load_s), and since then for "
        "live changes to more requests.",
    )
    compile_kept: bool | None = Field(
        default=None, description="Whether all that torch compiled was found from an earlier start."
    )
    kv_host_limit_bytes: int | None = Field(
        default=None,
        description="Host memory that keys and values of preempted requests may take, where copying them there and "
        "back is measured to be cheaper than computing them again; bytes.",
    )
    not_carried: tuple[str, ...] = Field(
        default=(), description="Fields of the Recipe that another engine does not have or does otherwise, and why."
    )


class Mean(_Value):
    """A mean with its standard error, by bootstrap over documents."""

    mean: float
    se: float | None = Field(default=None, description="Standard error; null with a single document.")


class Divergence(_Value):
    """KL(P_reference || Q) over scored positions, nats."""

    mean: float
    mean_se: float | None = None
    median: float
    p99: float | None = Field(default=None, description="Null under 1,000 positions.")
    max: float


class StratumFidelity(_Value):
    """Fidelity on one kind of text."""

    name: str = Field(description="prose, code, json, maths, languages, long-context, or the user's own.")
    documents: int
    tokens: int = Field(description="Scored positions.")
    perplexity: Mean
    reference_perplexity: Mean
    kl: Divergence | None = None
    top1: Mean | None = None
    rms_dp: Mean | None = None


class TopKTruncation(_Value):
    """What an endpoint's log-probabilities leave out."""

    top_k: int = Field(description="Alternatives the endpoint gives for each position.")
    tail_mass: float = Field(description="Mean probability outside them, by the reference.")


class Fidelity(_Value):
    """How far a configuration's token distributions are from its reference's, on identical tokens.

    Definitions: evaluation/fidelity_metrics.py. ``strata`` are worst first.
    """

    status: Literal["measured", "lossless-by-test", "not-measurable"]
    reason: str = Field(
        default="", description="Why it could not be measured, or which test shows that it loses nothing."
    )
    key: str | None = Field(default=None, description="Digest of model, numerics_key, reference and text.")
    numerics_key: str | None = Field(default=None, description="Of the Recipe that was judged.")
    reference: str = Field(default="", description="What it is compared with, in words.")
    path: Literal["prefill", "decode", "endpoint"] = Field(
        default="prefill", description="How tokens were scored: whole chunks, one a step, or by a running server."
    )
    engine: str = "transformers"
    text_sha256: str | None = Field(default=None, description="Hash of the scored text.")
    text_name: str = Field(default="", description="The built-in set, or the name of the user's own text.")
    documents: int = 0
    tokens: int = Field(default=0, description="Scored positions.")
    perplexity: Mean | None = None
    reference_perplexity: Mean | None = None
    kl: Divergence | None = None
    top1: Mean | None = Field(default=None, description="Share of positions whose likeliest token is the same.")
    rms_dp: Mean | None = Field(
        default=None, description="Root mean square difference of the true token's probability."
    )
    noise_floor: Mean | None = Field(
        default=None, description="Mean KL of the reference against itself in another batch composition or kernel."
    )
    kl_over_floor: float | None = Field(default=None, description="The headline: mean KL / noise floor.")
    truncation: TopKTruncation | None = None
    strata: tuple[StratumFidelity, ...] = ()
    notes: tuple[str, ...] = Field(default=(), description='As "screening only: 12 documents".')


class StoredFidelity(_Value):
    """A Recipe that was judged, with what came out; one without a measured Run counts too."""

    created: datetime
    recipe: Recipe
    fidelity: Fidelity


class Prediction(_Value):
    """What the footprint planner had said for this Run's own load, bytes; judged against ``Memory``."""

    weights_bytes: int
    peak_bytes: int
    load_peak_bytes: int
    context_tokens: int = Field(description="Longest request of the workload, which is what was predicted for.")


class Comparable(_Value):
    """Whether this Run may be compared with others, and why not."""

    ok: bool = True
    reasons: tuple[str, ...] = ()


class DeviceConditions(_Value):
    """One NVIDIA device while a Run was measured; None where it has no such counter."""

    sm_clock_mhz: float | None = Field(default=None, description="Mean.")
    memory_clock_mhz: float | None = Field(default=None, description="Mean.")
    power_w: float | None = Field(default=None, description="Mean.")
    power_limit_w: float | None = Field(default=None, description="The cap that was enforced, at its lowest.")
    temperature_c: float | None = Field(default=None, description="Highest.")
    power_limit_default_w: float | None = Field(default=None, description="The limit that the card came with.")
    throttled: float | None = Field(default=None, description="Share of time for power or heat, 0..1.")
    power_capped: float | None = Field(
        default=None, description="Share of time at the enforced power limit (software power cap), 0..1."
    )
    slowed: float | None = Field(
        default=None, description="Share of time for heat, or by the board or its supply, 0..1."
    )
    uncapped_clock_mhz: float | None = Field(
        default=None,
        description="Mean SM clock away from any moment of a software power cap; null where there was none such.",
    )
    throttle_reasons: tuple[str, ...] = Field(default=(), description="Every reason that NVML gave.")
    others_memory_bytes: int | None = Field(
        default=None, description="Highest of processes that are not ours; null where a container hides them."
    )

    @property
    def power_limit_lowered(self) -> bool | None:
        """Whether the enforced limit was below the one that the card came with; None where that is not known."""
        limit, default = self.power_limit_w, self.power_limit_default_w
        return None if limit is None or default is None else limit < default


class Conditions(_Value):
    """What the machine was like meanwhile; point by point it is in the Run's telemetry."""

    load_average: float | None = Field(default=None, description="Over one minute, mean.")
    others_cores: float | None = Field(default=None, description="Cores' worth of CPU that others used, mean.")
    launch_us: float | None = Field(
        default=None, description="The host's time for one tiny operation, by the device's ceilings; us."
    )
    device: DeviceConditions | None = Field(default=None, description="Null on a CPU.")


class Imported(_Value):
    """Where a Run comes from that another tool measured, and what of its file has no place in a Run."""

    tool: str
    file: str = Field(description="Its name.")
    sha256: str = Field(description="Of its content.")
    notes: tuple[str, ...] = Field(default=(), description="What its metrics mean where they differ from ours.")
    load_known: bool = Field(default=True, description="Whether its file says at which load it was measured.")
    fields: dict[str, Any] = Field(default_factory=dict, description="Every field that was not taken over.")


# It names files and stands in scripts: a Run that came from elsewhere must not choose where, or what runs.
RunId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class Run(_Value):
    """Recipe x Workload x Hardware -> Measurement or Failure."""

    schema_version: Literal[1] = 1
    id: RunId
    created: datetime
    recipe: Recipe
    workload: Workload
    hardware: Hardware
    status: RunStatus
    effective: Effective | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    failure: Failure | None = None
    measurement: Measurement | None = None
    memory: Memory | None = None
    load_s: float | None = None
    energy_j_per_token: float | None = None
    fidelity: Fidelity | None = None
    predicted: Prediction | None = Field(default=None, description="The footprint's estimate for this load.")
    timeline: MemoryTimeline | None = Field(default=None, description="The worker's memory up to its end.")
    engine_work: EngineWork | None = None
    conditions: Conditions | None = Field(default=None, description="The machine while it was measured.")
    trace_id: str | None = Field(default=None, description="The profile that was recorded of this configuration.")
    comparable: Comparable = Comparable()
    evidence: str = Field(
        default="measured on transformers",
        description="predicted, probed, measured on ENGINE, confirmed on ENGINE, imported from TOOL.",
    )
    imported: Imported | None = Field(default=None, description="Set when another tool measured it.")

    @property
    def load(self) -> float | None:
        """Clients, or arrivals a second; None for a replay, and where another tool's file does not say it."""
        return self.workload.load if self._load_known else None

    @property
    def load_words(self) -> str:
        """As "8 users" or "2.5 requests/s, Poisson"."""
        return self.workload.load_words if self._load_known else "a load that is not known"

    @property
    def _load_known(self) -> bool:
        return self.imported is None or self.imported.load_known


def new_run_id() -> str:
    """A fresh id: sortable by time, unguessable enough to be unique."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:8]}"


def now() -> datetime:
    """The current time with its zone."""
    return datetime.now(UTC)
