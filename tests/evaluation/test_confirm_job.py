"""The confirm job over a URL, and over a real llama.cpp server of an exported bundle."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mcp_core.decision.export import export
from mcp_core.decision.recommend import recommend
from mcp_core.decision.shipment import of_run
from mcp_core.decision.store import Store
from mcp_core.errors import InputError, LoadFailed, RecipeError, WorkerDied
from mcp_core.evaluation import exported_server, fake_server
from mcp_core.evaluation.confirm_job import run
from mcp_core.evaluation.exported_server import command_of, started
from mcp_core.evaluation.fake_server import FakeServer, LatencyLaw
from mcp_core.goal import Goal
from mcp_core.jobs import Job, Outcome
from mcp_core.presets import bundled, llama_2_7b_shape
from mcp_core.results import Run
from tests.decision.planted import Law, machine, planted_run


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MCP_HOME", str(tmp_path / "home"))
    return tmp_path


def small(predicted_tpot_ms: float) -> Run:
    found, _ = planted_run(Law(tpot_ms=predicted_tpot_ms, ttft_ms=20, users_tpot=1e9, users_ttft=1e9), 4)
    changes = {"requests": 12, "prompt_tokens": {"min": 8, "max": 8}, "output_tokens": {"min": 8, "max": 8}}
    recipe = found.recipe.replace({"device": "cpu", "kv.max_context": 256})
    return found.model_copy(update={"workload": found.workload.replace(changes), "recipe": recipe})


def confirmed(home: Path, predicted: Run, **request: Any) -> Outcome:
    url = f"sqlite:///{home / 'runs.sqlite'}"
    with Store(url) as store:
        store.add(predicted)
    asked = {"target": "worker", "run": predicted.model_dump(mode="json"), **request}
    folder = home / "job"
    folder.mkdir(exist_ok=True)
    return asyncio.run(run(Job(folder, asked, {"store_url": url})))


def test_a_running_server_is_measured_with_new_prompts_and_both_runs_are_raised(home: Path) -> None:
    predicted = small(2.0)
    slow = predicted.measurement
    assert slow is not None
    predicted = predicted.model_copy(update={"measurement": slow.model_copy(update={"output_tok_s": 50.0})})
    with FakeServer(LatencyLaw(ttft_ms=5, tpot_ms=2)) as server:
        outcome = confirmed(home, predicted, url=server.url)
    found = outcome.result["confirmation"]
    assert found["holds"], found["why"]
    with Store(f"sqlite:///{home / 'runs.sqlite'}") as store:
        both = {each.id: each for each in store.list()}
    assert {each.evidence for each in both.values()} == {"confirmed on transformers"}
    assert both[found["run"]].workload.repeat == predicted.workload.repeat + 1
    with Store(f"sqlite:///{home / 'runs.sqlite'}") as store:
        made = recommend(Goal(), store.facts(), store.samples, machine())
    assert [each.run for each in (made.winner, *made.runners_up) if each] == [predicted.id]
    assert not made.refused


@pytest.mark.parametrize(("shape", "kind"), [(True, list), (False, str)], ids=["shape", "others"])
def test_a_shape_s_prompts_are_token_ids_of_exact_lengths(
    home: Path, monkeypatch: pytest.MonkeyPatch, shape: bool, kind: type
) -> None:
    """Its tokenizer knows no words: each would be several tokens."""
    sent = []
    look = fake_server._prompt_tokens
    monkeypatch.setattr(fake_server, "_prompt_tokens", lambda body: sent.append(body["prompt"]) or look(body))
    predicted = small(2.0)
    if shape:
        model = llama_2_7b_shape().model
        predicted = predicted.model_copy(update={"recipe": predicted.recipe.model_copy(update={"model": model})})
    with FakeServer(LatencyLaw(ttft_ms=5, tpot_ms=2)) as server:
        confirmed(home, predicted, url=server.url)
    assert {type(prompt) for prompt in sent} == {kind}
    if shape:
        assert {len(prompt) for prompt in sent} == {8}
        assert all(0 <= token < 32_000 and token not in (256, 257) for prompt in sent for token in prompt)


def test_a_slower_server_leaves_the_answer_a_candidate(home: Path) -> None:
    with FakeServer(LatencyLaw(ttft_ms=50, tpot_ms=20)) as server:
        outcome = confirmed(home, small(0.1), url=server.url)
    assert not outcome.result["confirmation"]["holds"]
    with Store(f"sqlite:///{home / 'runs.sqlite'}") as store:
        assert not any(each.evidence.startswith("confirmed") for each in store.list())


def test_a_server_that_does_not_answer_leaves_no_run(home: Path) -> None:
    predicted = small(2.0)
    with pytest.raises(WorkerDied, match="does not answer"):
        confirmed(home, predicted, url="http://127.0.0.1:1")
    with Store(f"sqlite:///{home / 'runs.sqlite'}") as store:
        assert [each.id for each in store.list()] == [predicted.id]


def test_a_server_that_fails_while_it_is_measured_leaves_its_run(home: Path) -> None:
    with FakeServer(LatencyLaw(ttft_ms=5, tpot_ms=2, die_at=4)) as server:
        outcome = confirmed(home, small(2.0), url=server.url)
    found = outcome.result["confirmation"]
    assert not found["holds"]
    with Store(f"sqlite:///{home / 'runs.sqlite'}") as store:
        assert found["run"] in {each.id for each in store.list()}


def test_an_engine_without_an_interpreter_is_refused_with_its_variable(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MCP_VLLM_PYTHON", raising=False)
    changes = {"model": {"source": "hub", "id": "a/b"}, "kv.max_context": 256}
    predicted = small(2.0)
    predicted = predicted.model_copy(update={"recipe": predicted.recipe.replace(changes)})
    with pytest.raises(RecipeError, match="vLLM cannot be started here") as caught:
        confirmed(home, predicted, target="vllm")
    assert "MCP_VLLM_PYTHON" in caught.value.hint


def test_what_is_no_server_needs_a_url(home: Path) -> None:
    with pytest.raises(InputError, match="not started from here"):
        confirmed(home, small(2.0), target="transformers")


def test_a_command_that_ends_says_its_last_words(home: Path) -> None:
    what = of_run(small(2.0))
    made = export(what, "llama.cpp")
    files = {**made.files, "serve.py": "import sys\nsys.exit('no such model')\n"}

    async def start() -> None:
        async with started(type(made)(**{**_fields(made), "files": files}), what.recipe, lambda words: None):
            pass

    with pytest.raises(LoadFailed, match=r"ended while loading \(exit code 1\). It said: no such model"):
        asyncio.run(start())


def _fields(made: Any) -> dict[str, Any]:
    return {name: getattr(made, name) for name in made.__slots__}


def test_the_command_has_a_free_port_and_its_files_where_they_lie(tmp_path: Path) -> None:
    what = of_run(small(2.0))
    words = command_of(export(what, "llama.cpp"), what.recipe, tmp_path, 4321)
    assert words[1:] == (str(tmp_path / "serve.py"), "--port", "4321")
    made = export(what, "llama.cpp")
    assert made.command is not None
    port = made.command.arguments[made.command.arguments.index("--port") + 1]
    alike = (*made.command.arguments, "--max-model-len", port)
    long = replace(made, command=replace(made.command, arguments=alike))
    assert command_of(long, what.recipe, tmp_path, 4321)[-4:] == ("--port", "4321", "--max-model-len", alike[-1])


def test_a_server_that_never_answers_is_given_up_with_a_hint(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exported_server, "READY_TIMEOUT_S", 1.0)
    monkeypatch.setattr(exported_server, "_END_GRACE_S", 0.2)
    what = of_run(small(2.0))
    made = export(what, "llama.cpp")

    async def start() -> None:
        files = {**made.files, "serve.py": "import time; time.sleep(60)"}
        async with started(replace(made, files=files), what.recipe, lambda words: None):
            pass

    with pytest.raises(LoadFailed, match="did not answer within 1 s"):
        asyncio.run(start())


@pytest.mark.slow
def test_the_exported_gguf_is_served_by_llama_cpp_and_confirmed(home: Path) -> None:
    pytest.importorskip("xllamacpp")
    recipe = bundled().replace(
        {
            "engine": "llama.cpp",
            "quantization.scheme": "gguf",
            "dtype": "bf16",
            "kv.max_context": 256,
            "device": "cpu",
        }
    )
    predicted = small(2.0).model_copy(update={"recipe": recipe})
    slow = predicted.measurement
    assert slow is not None
    predicted = predicted.model_copy(update={"measurement": slow.model_copy(update={"output_tok_s": 1.0})})
    outcome = confirmed(home, predicted, target="llama.cpp")
    found = outcome.result["confirmation"]
    assert found["holds"], json.dumps(found)
    assert found["engine"] == "llama.cpp"
    assert outcome.result["run"]["evidence"] == "confirmed on llama.cpp"
    assert not any((home / "home" / "engines").iterdir())
