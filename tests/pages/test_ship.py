"""ship: what speaks for it, each target's files or the reason, the commands, confirming."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from collections.abc import Callable

import fake_workbench as fakes
import pytest
from streamlit.testing.v1 import AppTest

from mcp_core.decision.confirmation import confirm
from mcp_core.decision.shipment import of_run
from mcp_core.results import Failure, Run
from pages._ui import format as fmt
from tests.decision.planted import Law, machine, planted_run

OpenPage = Callable[[str], AppTest]
CPU = {"device": "cpu", "kv.max_context": 512}


def planted(wb: fakes.FakeWorkbench, **changes: object) -> Run:
    wb.machine = machine()
    run, records = planted_run(Law(), 4)
    run = run.model_copy(update={"recipe": run.recipe.replace(CPU | changes)})
    wb.add(run)
    wb.request_records[run.id] = tuple(records)
    return run


def opened(page: OpenPage, run: Run, target: str) -> AppTest:
    at = page("ship")
    at.query_params["run"] = run.id
    at.query_params["target"] = target
    return at.run()


def texts(at: AppTest) -> str:
    return "\n".join(each.value for each in (*at.markdown, *at.caption, *at.warning)).replace("\\", "")


def test_empty_says_what_is_needed(page: OpenPage) -> None:
    at = page("ship").run()
    assert not at.exception
    assert at.header[0].value == "There is nothing to ship yet"


def test_a_link_to_no_run_says_so(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    planted(wb)
    at = page("ship")
    at.query_params["run"] = "gone"
    at.run()
    assert not at.exception
    assert "Run gone is not among those that can be shipped." in texts(at)


def test_a_run_shows_its_evidence_files_and_commands(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    run = planted(wb)
    at = opened(page, run, "worker")
    assert not at.exception
    assert "a candidate, not yet a recommendation" in texts(at)
    codes = [each.value for each in at.code]
    assert any("mcp-core serve" in code for code in codes)
    assert any(
        f"mcp-core export {run.id} --target worker --out DIR" in code and "mcp-core confirm DIR" in code
        for code in codes
    )


def test_the_decision_comes_first_and_brings_verify(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    planted(wb)
    at = page("ship").run()
    assert not at.exception
    assert at.selectbox[0].value == "decision"
    assert any("mcp-core verify" in each.value for each in at.code)
    assert any(
        "mcp-core recommend '{}' --out decision.json\nmcp-core export decision.json" in each.value
        for each in at.code
    )
    assert {each.label for each in at.get("download_button")} >= {"Report", "CSV", "JSON", "Download all files"}


def test_a_decision_has_the_figures_that_decide_gave_it(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    """Of all its fresh starts, not of one of them."""
    wb.machine = machine()
    for start, tpot_ms in enumerate((20.0, 26.0, 32.0)):
        run, records = planted_run(Law(tpot_ms=tpot_ms), 4, start=start)
        run = run.model_copy(update={"recipe": run.recipe.replace(CPU)})
        wb.add(run)
        wb.request_records[run.id] = tuple(records)
    decided, shipped = ({each.label: each.value for each in page(name).run().metric} for name in ("decide", "ship"))
    assert {name: decided[name] for name in shipped} == shipped
    assert {"Throughput", "TTFT p50", "TPOT p50", "Peak memory"} == set(shipped)
    one = fmt.ms(wb.run_values[-1].measurement.tpot_ms.p50)
    assert shipped["TPOT p50"] != one


def test_a_target_that_cannot_says_why(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    at = opened(page, planted(wb), "vllm")
    assert not at.exception
    assert "vLLM reads checkpoints in safetensors, not a GGUF file" in texts(at)
    assert not at.button


def test_containers_ask_for_their_engine(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    at = opened(page, planted(wb, model={"source": "hub", "id": "a/b"}), "kubernetes")
    assert not at.exception
    engine = at.selectbox[1]
    assert engine.options == ["vllm", "sglang", "llama.cpp"]
    assert any("kind: Deployment" in each.value for each in at.code)
    at.selectbox[1].set_value("llama.cpp").run()
    assert "llama.cpp reads GGUF files" in texts(at)


def test_confirming_starts_a_job_and_shows_predicted_beside_measured(
    page: OpenPage, wb: fakes.FakeWorkbench
) -> None:
    run = planted(wb)
    at = opened(page, run, "worker")
    at.button(key="confirm-start").click().run()
    assert not at.exception
    ((_, *arguments),) = [call for call in wb.calls if call[0] == "start_confirm"]
    assert (arguments[0].run_id, arguments[1:4]) == (run.id, ["worker", None, None])
    found = confirm(of_run(run), planted_run(Law(tpot_ms=21), 4, seed=5)[0], "worker", "transformers")
    (job,) = wb.job_views.values()
    result = {"confirmation": found.model_dump(mode="json"), "decision": None, "run": None}
    wb.add(dataclasses.replace(job, state="done", result=result, progress=None))
    at.run()
    assert not at.exception
    assert "against the prediction" in texts(at)
    table = at.dataframe[0].value
    assert list(table["figure"])[:2] == ["output tokens/s", "requests/s"]


def _confirmed(page: OpenPage, wb: fakes.FakeWorkbench, measured: Run) -> AppTest:
    """The page after a confirmation by that Run, which is stored only where the caller stored it."""
    run = planted(wb)
    found = confirm(of_run(run), measured, "worker", "transformers")
    result = {"confirmation": found.model_dump(mode="json"), "decision": None, "run": None}
    wb.add(dataclasses.replace(fakes.study_job("confirm"), state="done", result=result, progress=None))
    return opened(page, run, "worker")


def test_a_confirmation_links_to_what_there_is(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    measured, _ = planted_run(Law(tpot_ms=21), 4, seed=5)
    at = _confirmed(page, wb, measured)
    assert not at.exception
    assert "no longer stored" in texts(at)
    assert "See what was measured" not in texts(at)
    wb.add(measured)
    assert "See what was measured" in texts(at.run())


def test_one_that_measured_nothing_says_so_and_shows_no_figures(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    failure = Failure(kind="worker", message="The server ended.", hint="Start it again.")
    measured, _ = planted_run(Law(tpot_ms=21), 4, seed=5)
    failed = measured.model_copy(update={"status": "failed", "failure": failure, "measurement": None})
    wb.add(failed)
    at = _confirmed(page, wb, failed)
    assert not at.exception
    assert "**The server ended.**" in texts(at)
    assert "See how it failed" in texts(at)
    assert "See what was measured" not in texts(at)
    assert not at.dataframe


def test_a_url_is_measured_where_nothing_is_started(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    at = opened(page, planted(wb), "transformers")
    assert at.button(key="confirm-start").disabled
    assert "A transformers script is no server: measure its Recipe by the command above" in texts(at)
    assert "mcp-core bench DIR/recipe.json DIR/workload.json" in "".join(each.value for each in at.code)
    at.text_input(key="confirm-url-transformers").set_value("http://127.0.0.1:9").run()
    at.button(key="confirm-start").click().run()
    ((_, *arguments),) = [call for call in wb.calls if call[0] == "start_confirm"]
    assert arguments[3] == "http://127.0.0.1:9"


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "`x` **b** [l](javascript:1)"])
def test_a_name_is_text(page: OpenPage, wb: fakes.FakeWorkbench, name: str) -> None:
    at = opened(page, planted(wb, model={"source": "folder", "id": f"/models/{name}"}), "vllm")
    assert not at.exception


def test_the_zip_holds_what_is_shown() -> None:
    from mcp_core.decision.bundle import zipped
    from mcp_core.decision.export import export

    run, _ = planted_run(Law(), 4)
    made = export(of_run(run.model_copy(update={"recipe": run.recipe.replace(CPU)})), "worker")
    with zipfile.ZipFile(io.BytesIO(zipped(made, "x"))) as packed:
        assert set(packed.namelist()) == {f"x/{name}" for name in made.files}
        assert packed.getinfo("x/serve.sh").external_attr >> 16 & 0o111
        assert json.loads(packed.read("x/bundle.json"))["target"] == "worker"
