"""Other tools' files: every metric by its definition, everything else kept, wrong files refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from mcp_core.cli import main
from mcp_core.decision.facts import RunFacts
from mcp_core.decision.importers import FORMATS, read_file
from mcp_core.decision.recommend import recommend
from mcp_core.decision.store import Store
from mcp_core.errors import InputError, ModelNotFound
from mcp_core.goal import Goal
from mcp_core.results import Measurement, Run
from tests.decision.planted import machine
from tests.decision.result_files import AIPERF, GUIDELLM, LLAMA_BENCH, OPTIMUM, SGLANG, VLLM


def imported(tmp_path: Path, document: Any) -> tuple[Run, ...]:
    file = tmp_path / "result.json"
    file.write_text(json.dumps(document))
    return tuple(run for run, _ in read_file(file))


def measured(run: Run) -> Measurement:
    assert run.measurement is not None
    return run.measurement


def test_vllm_metrics_are_ours(tmp_path: Path) -> None:
    (run,) = imported(tmp_path, VLLM)
    found = measured(run)
    assert run.evidence == "imported from vLLM bench serve"
    assert (found.ttft_ms.mean, found.ttft_ms.p50, found.ttft_ms.p95) == (100, 90, 150)
    assert found.ttft_ms.p99 is None  # 396 requests are too few
    assert (found.tpot_ms.p50, found.itl_ms.p50) == (19, 18)
    assert (found.completed, found.failed, found.output_tok_s) == (396, 4, 198)
    assert found.e2e_ms.n == 0
    assert run.workload.arrivals.rate_s == 4
    assert run.workload.prompt_tokens.min == 100
    assert run.recipe.engine == "vllm"
    assert run.imported is not None
    assert run.imported.fields["max_output_tokens_per_s"] == 260
    assert "mean_ttft_ms" not in run.imported.fields


def test_sglang_lines_bring_their_requests(tmp_path: Path) -> None:
    file = tmp_path / "online.jsonl"
    file.write_text(json.dumps(SGLANG) + "\n" + json.dumps(SGLANG | {"completed": 4}) + "\n")
    (first, records), (second, _) = read_file(file)
    assert measured(first).e2e_ms.p50 == 11
    assert measured(first).failed == 1
    assert [each.status for each in records] == ["ok", "ok", "failed"]
    assert records[0].ttft_ms == pytest.approx(12)
    assert records[0].e2e_ms == pytest.approx(15)
    assert first.workload.concurrency == 8
    assert first.id != second.id
    assert first.imported is not None
    assert "divides a gap" in first.imported.notes[0]


def test_aiperf_inter_token_latency_is_tpot_and_units_are_read(tmp_path: Path) -> None:
    (run,) = imported(tmp_path, AIPERF)
    found = measured(run)
    assert (found.tpot_ms.p50, found.itl_ms.p50) == (7.5, 7.0)
    assert (found.e2e_ms.p50, found.e2e_ms.p95) == (1000, 1600)
    assert (found.completed, found.failed, found.duration_s) == (250, 2, 50)
    assert found.output_tokens == 25_000
    assert run.recipe.model.id.startswith("Qwen/Qwen3-0.6B")
    assert run.imported is not None
    assert "output_token_throughput_per_user" in run.imported.fields
    strange = AIPERF | {"time_to_first_token": {"unit": "fortnights", "avg": 1}}
    with pytest.raises(InputError, match="fortnights"):
        imported(tmp_path, strange)


@pytest.mark.parametrize(("field", "value"), [("request_rate", -1), ("burstiness", -1), ("request_rate", 1e30)])
def test_a_figure_out_of_range_is_refused_by_its_name(tmp_path: Path, field: str, value: float) -> None:
    with pytest.raises(InputError, match=r"looks like vLLM bench serve, but cannot be read: .*(rate_s|burstiness)"):
        imported(tmp_path, VLLM | {field: value})


def _spoiled(document: Any, path: tuple[Any, ...], value: float) -> Any:
    whole = copy.deepcopy(document)
    part = whole
    for name in path[:-1]:
        part = part[name]
    assert path[-1] in part if isinstance(part, dict) else part
    part[path[-1]] = value
    return whole


@pytest.mark.parametrize(
    ("document", "path", "named"),
    [
        (VLLM, ("mean_ttft_ms",), "ttft_ms mean"),
        (VLLM, ("median_tpot_ms",), "tpot_ms p50"),
        (VLLM, ("output_throughput",), "output_tok_s"),
        (SGLANG, ("mean_e2e_latency_ms",), "e2e_ms mean"),
        (AIPERF, ("time_to_first_token", "p90"), "ttft_ms p90"),
        (AIPERF, ("output_sequence_length", "avg"), "output_tokens"),
        (GUIDELLM, ("benchmarks", 1, "metrics", "request_latency", "successful", "mean"), "e2e_ms mean"),
        (GUIDELLM, ("benchmarks", 0, "metrics", "prompt_token_count", "successful", "total_sum"), "prompt_tokens"),
        (LLAMA_BENCH, (1, "avg_ts"), "output_tok_s"),
    ],
)
def test_no_figure_of_any_format_is_below_nothing(
    tmp_path: Path, document: Any, path: tuple[Any, ...], named: str
) -> None:
    with pytest.raises(InputError, match=rf"cannot be read: {named} is -\d+: it is not negative"):
        imported(tmp_path, _spoiled(document, path, -5))


def test_arrivals_more_even_than_poisson_are_imported_and_their_figure_kept(tmp_path: Path) -> None:
    (run,) = imported(tmp_path, VLLM | {"burstiness": 2.0})
    assert run.workload.arrivals.kind == "poisson"
    assert run.imported is not None
    assert run.imported.fields["burstiness"] == 2.0


def test_guidellm_tpot_is_its_inter_token_latency_never_its_own(tmp_path: Path) -> None:
    closed, open_loop = imported(tmp_path, GUIDELLM)
    found = measured(closed)
    assert found.tpot_ms.p50 == 14
    assert found.itl_ms.p50 is None
    assert found.e2e_ms.p95 == pytest.approx(1100)
    assert (found.completed, found.failed, found.cancelled) == (300, 3, 5)
    assert closed.workload.concurrency == 8
    assert open_loop.workload.arrivals.rate_s == 5
    assert closed.imported is not None
    assert closed.imported.fields["metrics"]["time_per_output_token_ms"]["successful"]["mean"] == 17


@pytest.mark.parametrize(
    ("strategy", "load", "words"),
    [
        ({"type_": "synchronous"}, 1, "1 user"),
        ({"type_": "throughput", "max_concurrency": 64}, 64, "64 users"),
        ({"type_": "throughput"}, None, "a load that is not known"),
        ({"type_": "constant", "max_concurrency": 64}, None, "a load that is not known"),
        ({"type_": "poisson", "rate": 2.5, "max_concurrency": 64}, 2.5, "2.5 requests/s, Poisson"),
        ({}, None, "a load that is not known"),
    ],
)
def test_guidellm_load_is_what_its_file_says_or_not_known(
    tmp_path: Path, strategy: dict[str, Any], load: float | None, words: str
) -> None:
    benchmark = GUIDELLM["benchmarks"][0] | {"config": {"strategy": strategy}}
    (run,) = imported(tmp_path, GUIDELLM | {"benchmarks": [benchmark]})
    assert (run.load, run.load_words) == (load, words)
    assert RunFacts.of(run).load == load
    assert run.imported is not None
    said = "GuideLLM does not say at which load it was measured." in run.imported.notes
    assert said == (load is None)


def test_optimum_benchmark_has_prefill_and_no_ttft(tmp_path: Path) -> None:
    (run,) = imported(tmp_path, OPTIMUM)
    found = measured(run)
    assert found.ttft_ms.n == 0
    assert found.prefill_ms is not None
    assert found.prefill_ms.p50 == pytest.approx(32.435, abs=0.001)
    # 63 gaps a reply: its own throughput is 63 tokens / decode.
    assert found.tpot_ms.mean == pytest.approx(1e3 / 43.089241533217766, rel=1e-3)
    assert found.output_tok_s == pytest.approx(64 / (0.03244741 + 1.4620819), rel=1e-6)
    assert run.memory is not None
    assert run.memory.device_allocated_peak_bytes == 6_813_987_840
    assert run.load_s == pytest.approx(11.754, abs=0.001)
    assert run.hardware.devices[0].name == "NVIDIA A100-SXM4-80GB"
    assert run.versions["transformers"] == "4.47.1"
    (report_alone,) = imported(tmp_path, OPTIMUM["report"])
    assert measured(report_alone).tpot_ms.n == 0


def test_llama_bench_times_prompt_and_reply_apart(tmp_path: Path) -> None:
    prompt, reply = imported(tmp_path, LLAMA_BENCH)
    assert measured(prompt).output_tok_s is None
    assert measured(prompt).prefill_ms is not None
    assert measured(reply).output_tok_s == pytest.approx(118.881588)
    assert measured(reply).tpot_ms.p50 == pytest.approx(1075.3613 / 128, rel=1e-6)
    assert [each.workload.name for each in (prompt, reply)] == ["imported pp512", "imported tg128"]
    assert reply.memory is not None
    assert reply.memory.weights_bytes == 4_677_120_000


def test_every_format_is_recognized_as_itself_only() -> None:
    samples = [SGLANG, VLLM, AIPERF, GUIDELLM, OPTIMUM, LLAMA_BENCH]
    for index, sample in enumerate(samples):
        assert [position for position, each in enumerate(FORMATS) if each.fits(sample)] == [index]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "neither JSON"),
        (b"\xff\xfe\x00", "UTF-8"),
        (b'{"a": 1}', "its fields: a"),
        (b"[]", "JSON list"),
        (b"3", "JSON int"),
        (b"{" * 50, "neither JSON"),
        (b'{"benchmarks": [{"metrics": {"time_to_first_token_ms": 3}}]}', "no completed request"),
        (json.dumps(VLLM | {"completed": 0}).encode(), "no completed request"),
        (json.dumps(VLLM | {"duration": "long"}).encode(), "no completed request"),
        (json.dumps(VLLM | {"completed": -5}).encode(), "not negative"),
        (json.dumps(SGLANG | {"ttfts": [None]}).encode(), "cannot be read"),
        (json.dumps([LLAMA_BENCH[0], 3]).encode(), "cannot be read"),
    ],
)
def test_wrong_files_are_refused_clearly(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "wrong.json"
    file.write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        read_file(file)
    assert "Traceback" not in str(caught.value)
    with pytest.raises(ModelNotFound):
        read_file(tmp_path / "none.json")


def test_nan_is_not_measured(tmp_path: Path) -> None:
    (run,) = imported(tmp_path, VLLM | {"mean_tpot_ms": float("nan"), "median_tpot_ms": float("nan")})
    assert measured(run).tpot_ms.p50 is None


def test_imported_runs_stand_in_the_table_once_and_never_as_measured_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MCP_HOME", str(tmp_path))
    for name, document in (("vllm", VLLM), ("guide", GUIDELLM)):
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    assert main(["import", str(tmp_path / "vllm.json"), str(tmp_path / "guide.json")]) == 0
    assert main(["import", str(tmp_path / "vllm.json")]) == 0
    assert "1 were there already" in capsys.readouterr().err
    with Store() as store:
        assert store.count() == 3
        assert all(Run.model_validate_json(each.model_dump_json()) == each for each in store.list())
        decision = recommend(Goal(), store.facts(), store.samples, machine())
    assert decision.evidence == "none"
    assert main(["import", str(tmp_path / "none.json")]) == 2
