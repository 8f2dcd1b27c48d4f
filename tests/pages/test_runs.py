"""runs: the table, one Run in full, links, deletion."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable

import fake_workbench as fakes
import pytest
from streamlit.testing.v1 import AppTest

from mcp_core.decision.facts import RunFacts
from mcp_core.decision.overview import groups, points_of
from mcp_core.decision.remarks import Remarks
from mcp_core.errors import StoreError
from mcp_core.results import Comparable, Conditions, DeviceConditions, Imported
from pages._ui import run_table, telemetry_csv
from pages._ui.decision_charts import crossover_figure, frontier_figure
from pages._ui.fidelity_result import headline
from tests.decision.planted import Law, machine, planted_run

OpenPage = Callable[[str], AppTest]
OK, FAILED = fakes.ok_run(), fakes.failed_run()


def _open(page: OpenPage, run_id: str) -> AppTest:
    at = page("runs")
    at.query_params["run"] = run_id
    return at.run()


def test_empty_says_what_a_run_is(page: OpenPage) -> None:
    at = page("runs").run()
    assert not at.exception
    assert at.header[0].value == "Nothing has been measured yet"
    assert len(at.dataframe) == 0


def test_a_store_that_cannot_be_read_is_an_error_with_a_hint(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    def broken(**_: object) -> tuple[()]:
        raise StoreError("The results store cannot be used.", "Free some disk.")

    wb.runs = broken  # type: ignore[method-assign]
    at = page("runs").run()
    assert not at.exception
    assert "The results store cannot be used." in at.error[0].value
    assert "Free some disk." in at.error[0].value


def test_the_table_is_newest_first_with_words_and_units(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    wb.add(FAILED, OK)
    at = page("runs").run()
    assert not at.exception
    table = at.dataframe[0].value
    assert list(table["id"]) == [OK.id, FAILED.id]
    assert list(table["status"]) == ["✓ ok *", "✕ failed"]
    assert table["ttft_p50_ms"][0] == 84.2
    assert table["ttft_p50_ms"].isna()[1]
    assert table["peak_memory_gb"][0] == 0.63
    assert table["caveats"][0] == "smoke test · too few requests"
    assert "tags" not in at.dataframe[0].proto.column_order  # nobody gave any


def test_the_fidelity_of_a_run_is_its_answer_in_a_sentence(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    judged = fakes.fidelity(OK.recipe).fidelity
    wb.add(OK.model_copy(update={"fidelity": judged}))
    at = _open(page, OK.id)
    assert not at.exception
    assert "Fidelity" in [each.value for each in at.subheader]
    assert any(each.value.startswith(headline(judged)) for each in at.markdown)


def test_a_link_opens_a_run_in_full(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    wb.add(OK, FAILED)
    wb.request_records = {OK.id: fakes.records()}
    at = _open(page, OK.id)
    assert not at.exception
    assert at.header[0].value == "SmolLM2-135M-Instruct · fp32 · unquantized"
    latency = at.table[0].value.set_index("")
    assert list(latency.index) == ["TTFT", "TPOT", "ITL", "E2E"]
    assert latency.loc["TTFT", "p50"] == "84.2 ms"
    assert latency.loc["TTFT", "p95"] == "too few"
    assert set(latency["n"]) == {"16"}
    assert len(at.get("plotly_chart")) == 1
    assert at.query_params["run"] == OK.id
    assert '"dtype": "fp32"' in at.code[0].value


def test_a_run_that_cannot_be_compared_says_each_reason_in_full(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    reasons = ("smoke test: too small to decide anything", "noisy: other processes used 1.2 cores meanwhile")
    wb.add(fakes.ok_run(comparable=Comparable(ok=False, reasons=reasons)))
    at = _open(page, OK.id)
    assert at.dataframe[0].value["caveats"][0] == "smoke test · too few requests · noisy"
    assert "Smoke test: too small" in at.warning[0].value
    assert "Noisy: other processes used 1.2 cores" in at.warning[0].value


def test_a_comparable_run_says_that_its_card_was_at_its_own_power_limit(
    page: OpenPage, wb: fakes.FakeWorkbench
) -> None:
    device = DeviceConditions(
        sm_clock_mhz=1917.0, power_limit_w=700.0, power_limit_default_w=700.0, power_capped=0.67, slowed=0.0
    )
    wb.add(fakes.ok_run(conditions=Conditions(device=device)))
    at = _open(page, OK.id)
    assert not at.exception
    assert not at.warning
    (said,) = [each for each in at.caption if "Power cap" in each.value]
    assert "At the limit of 700 W".lower() in said.value.lower()
    assert "67% of the time, mean SM clock 1,917 MHz." in said.value
    assert "stays comparable" in said.help


def test_a_failed_run_shows_why_and_no_figures(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    wb.add(FAILED)
    at = _open(page, FAILED.id)
    assert not at.exception
    assert "Memory ran out while serving." in at.error[0].value
    assert "Lower kv.max" in at.error[0].value
    assert len(at.metric) == 0


def test_a_link_to_an_older_run_works_although_the_table_does_not_list_it(
    page: OpenPage, wb: fakes.FakeWorkbench
) -> None:
    wb.add(OK)
    wb.run = {"old": FAILED}.get  # type: ignore[method-assign, assignment]
    assert "Memory ran out while serving." in _open(page, "old").error[0].value


def test_an_imported_run_says_what_its_file_does_not(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    note = "GuideLLM does not say at which load it was measured."
    source = Imported(tool="GuideLLM", file="b.json", sha256="a" * 64, notes=(note,), load_known=False)
    apart = Comparable(ok=False, reasons=("endpoint: imported from GuideLLM",))
    wb.add(OK.model_copy(update={"imported": source, "comparable": apart}))
    at = _open(page, OK.id)
    assert not at.exception
    assert any(note in each.value for each in at.caption)
    assert at.dataframe[0].value["load"].isna().all()


def test_the_filter_says_unquantized_too(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    int8 = OK.recipe.replace({"quantization.scheme": "bnb-int8"})
    wb.add(OK, OK.model_copy(update={"id": "int8", "recipe": int8}))
    at = page("runs").run()
    assert at.multiselect(key="filter-scheme").options == ["bnb-int8", "unquantized"]
    at.multiselect(key="filter-scheme").set_value(["unquantized"]).run()
    assert list(at.dataframe[0].value["id"]) == [OK.id]


def test_one_model_is_said_once_and_its_column_leaves_room(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    wb.add(OK)
    at = page("runs").run()
    assert "Runs 1–1 of 1, newest first, all of SmolLM2-135M-Instruct" in [each.value for each in at.caption]
    assert "model" not in at.dataframe[0].proto.column_order
    other = OK.recipe.replace({"model": {"source": "shape", "id": "llama-2-7b"}})
    wb.add(OK.model_copy(update={"id": "other", "recipe": other}))
    at = page("runs").run()
    assert "model" in at.dataframe[0].proto.column_order


def test_what_all_runs_share_is_said_once_and_leaves_room(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    base = OK.recipe.replace({"kv.max_context": 512})
    for scheme in ("none", "bnb-int8"):
        recipe = base.replace({"quantization.scheme": scheme})
        wb.add(OK.model_copy(update={"id": scheme, "recipe": recipe}))
    wb.add(FAILED.model_copy(update={"recipe": base}))
    at = page("runs").run()
    table = at.dataframe[0]
    assert set(table.value["served"]) == {"fp32", "fp32 · bnb-int8"}
    assert "caveats" not in table.proto.column_order
    (said,) = [each.value for each in at.caption if each.value.startswith("Runs 1")]
    assert "all with kv.max\\_context 512. All figures: smoke test, too few requests" in said
    wb.add(fakes.ok_run(id="noisy", recipe=base, comparable=Comparable(ok=False, reasons=("noisy: 1.2 cores",))))
    table = page("runs").run().dataframe[0]
    assert "caveats" in table.proto.column_order
    assert table.value.set_index("id").loc["noisy", "caveats"] == "noisy"


def test_a_link_to_a_deleted_run_says_so(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    wb.add(OK)
    at = _open(page, "gone")
    assert not at.exception
    assert "There is no Run gone" in at.warning[0].value


def test_use_this_recipe_puts_it_into_the_session(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    wb.add(FAILED)
    at = _open(page, FAILED.id)
    at.button(key=f"use-{FAILED.id}").click().run()
    assert at.session_state["mcp_recipe"] == FAILED.recipe
    assert at.session_state["mcp_recipe_revision"] == 1


def test_delete_asks_first_and_leaves_the_rest(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    wb.add(OK, FAILED)
    at = _open(page, OK.id)
    at.button(key=f"delete-{OK.id}").click().run()
    assert not at.exception
    assert ("delete_run", OK.id) in wb.calls
    assert list(at.dataframe[0].value["id"]) == [FAILED.id]
    assert "run" not in at.query_params


def test_more_than_a_page_of_runs_has_older_ones(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    wb.add(
        *(fakes.ok_run(f"r{index:03}", created=fakes.CREATED.replace(minute=index % 60)) for index in range(120))
    )
    at = page("runs").run()
    assert len(at.dataframe[0].value) == 100
    next(button for button in at.button if button.label == "Older").click().run()
    assert not at.exception
    assert len(at.dataframe[0].value) == 20
    assert at.query_params["from"] == "100"


def test_an_offset_beyond_the_end_falls_back_to_the_newest(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    wb.add(OK)
    at = page("runs")
    at.query_params["from"] = "500"
    at.run()
    assert not at.exception
    assert list(at.dataframe[0].value["id"]) == [OK.id]


REMARKS = Remarks().with_tags(["best", "night: run"]).with_note("=1+1 is *not* a formula")


def test_tags_and_the_note_are_shown_edited_and_filtered_by(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    wb.add(OK, FAILED).run_remarks = {FAILED.id: REMARKS}
    at = _open(page, OK.id)
    assert {"tags", "note"} < set(at.dataframe[0].proto.column_order)
    assert [list(tags) for tags in at.dataframe[0].value["tags"]] == [[], ["best", "night: run"]]
    assert at.multiselect(key=f"tags-{OK.id}").options == ["best", "night: run"]
    at.multiselect(key=f"tags-{OK.id}").set_value(["best"])
    at.text_area(key=f"note-{OK.id}").set_value("Measured twice.")
    next(button for button in at.button if button.label == "Save").click().run()
    assert not at.exception
    assert (wb.run_remarks[OK.id].tags, wb.run_remarks[OK.id].note) == (("best",), "Measured twice.")
    assert "Measured twice." in [caption.value for caption in at.caption]
    at.multiselect(key="filter-tag").set_value(["night: run"]).run()
    assert not at.exception
    assert list(at.dataframe[0].value["id"]) == [FAILED.id]


def test_what_another_wrote_meanwhile_is_not_undone(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    wb.add(OK)
    at = _open(page, OK.id)
    at.text_area(key=f"note-{OK.id}").set_value("Mine.")
    wb.run_remarks[OK.id] = Remarks().with_tags(["theirs"])
    next(button for button in at.button if button.label == "Save").click().run()
    assert (wb.run_remarks[OK.id].tags, wb.run_remarks[OK.id].note) == (("theirs",), "Mine.")


def test_what_is_no_tag_is_said_in_the_form(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    wb.add(OK)
    at = _open(page, OK.id)
    at.multiselect(key=f"tags-{OK.id}").set_value(["a,b"])
    next(button for button in at.button if button.label == "Save").click().run()
    assert not at.exception
    assert "no comma" in at.error[0].value
    assert wb.run_remarks == {}


def test_a_stale_run_says_what_changed_since(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    old, new = (planted_run(Law(), 4, start=start, requests=4)[0] for start in (0, 1))
    wb.add(old.model_copy(update={"versions": {"torch": "2.11.0"}}), new)
    at = _open(page, old.id)
    table = at.dataframe[0].value.set_index("id")
    assert table.loc[old.id, "caveats"].startswith("stale: torch 2.11.0 then, 2.12.0 now")
    assert list(table["status"]) == ["✓ ok *", "✓ ok · stale *"]
    assert "stale" not in table.loc[new.id, "caveats"]
    assert any("orange-badge[stale]" in each.value for each in at.markdown)
    at.multiselect(key="filter-versions").set_value(["current"]).run()
    assert list(at.dataframe[0].value["id"]) == [new.id]


def test_what_few_share_comes_first_in_a_name(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    base = OK.recipe.replace({"kv.max_context": 512})
    changes = {"plain": {}, "graphs": {"compile": "graphs"}, "other": {"kv.max_context": 1024}}
    for name, each in changes.items():
        wb.add(OK.model_copy(update={"id": name, "recipe": base.replace(each)}))
    names = page("runs").run().dataframe[0].value.set_index("id")["served"]
    assert names["graphs"] == "fp32 · compile graphs · kv.max_context 512"


def test_csv_has_remarks_and_no_formula_in_them() -> None:
    about = run_table.RunsBeside({OK.id: REMARKS}, {OK.id: "torch 2.11 then, 2.12 now"})
    (row,) = csv.DictReader(io.StringIO(run_table.csv_text([RunFacts.of(OK)], about)))
    assert (row["tags"], row["note"]) == ("best, night: run", "'=1+1 is *not* a formula")
    assert row["caveats"].startswith("stale: torch 2.11 then, 2.12 now")


def test_csv_keeps_numbers_unrounded_and_unmeasured_empty() -> None:
    about = run_table.RunsBeside()
    rows = list(csv.DictReader(io.StringIO(run_table.csv_text([RunFacts.of(OK), RunFacts.of(FAILED)], about))))
    assert [row["status"] for row in rows] == ["ok", "failed"]
    assert (rows[0]["scheme"], rows[0]["dtype"]) == ("none", "fp32")
    assert rows[0]["output_tok_s"] == "29.9"
    assert rows[0]["created"] == "2026-11-20T09:30:00+00:00"
    assert rows[1]["output_tok_s"] == ""


def test_the_machine_during_a_run_is_replayed(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    wb.add(OK).telemetry_of = {OK.id: fakes.run_telemetry(gpu=True)}
    at = _open(page, OK.id)
    assert not at.exception
    assert "Machine during this Run" in [each.value for each in at.subheader]
    figures = {metric.label: metric.value for metric in at.metric}
    assert figures["Throughput"] == "30.9 tok/s"
    assert figures["Others' load"] == "0.25 cores"
    assert figures["GPU 0 power"] == "350 W"
    assert figures["GPU 0 temperature"] == "61 °C"
    assert len(at.get("echarts_chart")) == 7
    header = telemetry_csv.csv_text(fakes.run_telemetry().window()).splitlines()[0]
    assert "worker_output_tok_s" in header.split(",")
    assert any("GPU 0's clocks were held down: software power cap." in each.value for each in at.caption)


def test_a_run_of_a_gpu_names_it_with_its_energy(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    """Seen on a laptop: the machine that it was measured on is another."""
    recipe = OK.recipe.replace({"device": "cuda:0"})
    there = {"hardware": fakes.hardware(gpu=True), "recipe": recipe, "effective": None, "energy_j_per_token": 0.31}
    assert OK.memory is not None
    of_device = ("device_allocated_peak_bytes", "device_reserved_peak_bytes", "kv_bytes_per_token")
    there["memory"] = OK.memory.model_copy(update=dict.fromkeys(of_device, 10**9))
    wb.add(OK.model_copy(update=there))
    at = _open(page, OK.id)
    assert not at.exception
    assert any("NVIDIA H100 80GB HBM3 · " in each.value for each in at.caption)
    (energy,) = [each for each in at.metric if each.label == "Energy / token"]
    assert (energy.value, "NVML" in energy.help) == ("0.31 J", True)
    memory = next(each.value for each in at.table if "Weights" in str(each.value))
    assert len(memory) >= 5
    assert all(memory["meaning"])
    machine = next(each.value for each in at.table if "580.95.05" in str(each.value))
    assert "NVIDIA H100 80GB HBM3" in str(machine)
    (row,) = csv.DictReader(io.StringIO(run_table.csv_text(wb.decisions.facts(), run_table.RunsBeside())))
    assert row["energy_j_per_token"] == "0.31"


def test_a_run_made_without_a_recording_has_no_such_section(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    wb.add(OK)
    at = _open(page, OK.id)
    assert "Machine during this Run" not in [each.value for each in at.subheader]


def _planted(wb: fakes.FakeWorkbench, starts: int = 3) -> list[str]:
    """Two configurations, each at two loads in so many starts; the second is twice as fast."""
    ids = []
    for law in (Law(), Law(tpot_ms=10, ttft_ms=50, changes={"attention": "eager"})):
        for users in (4, 16):
            for start in range(starts):
                run, records = planted_run(law, users, start=start, requests=40)
                wb.add(run).request_records[run.id] = tuple(records)
                ids.append(run.id)
    return ids


def test_a_pinned_baseline_makes_ratios_with_verdicts(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    ids = _planted(wb)
    at = page("runs")
    at.query_params["baseline"] = ids[0]
    at.run()
    assert not at.exception
    table = at.dataframe[0].value.set_index("id")
    assert table.loc[ids[0], "against"] == "baseline"
    assert table.loc[ids[6], "against"].startswith("2.00× (")
    assert table.loc[ids[6], "against"].endswith("better")
    assert table.loc[ids[3], "against"] == "baseline"
    assert table.loc[ids[9], "against"].startswith("2.00× (")  # at its own load


def test_a_ratio_to_another_card_of_the_same_kind_says_so(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    for law, card in ((Law(), "a"), (Law(tpot_ms=10, changes={"attention": "eager"}), "b")):
        for start in range(3):
            run, records = planted_run(law, 4, start=start, requests=40, hardware=machine(card=card))
            wb.add(run).request_records[run.id] = tuple(records)
    at = page("runs")
    at.query_params["baseline"] = wb.run_values[0].id
    at.run()
    against = set(at.dataframe[0].value["against"])
    assert "baseline" in against
    assert all(each.endswith("another card") for each in against - {"baseline"})
    assert len(against) > 1


def test_one_of_several_repeats_can_be_pinned_the_linked_one_or_the_newest(
    page: OpenPage, wb: fakes.FakeWorkbench
) -> None:
    ids = _planted(wb)
    at = page("runs").run()
    choice = next(each for each in at.selectbox if each.label == "Baseline")
    assert len(choice.options) == 4  # of 12 Runs: two configurations at two loads
    newest_first = [run.id for run in wb.runs(limit=100)]
    choice.select_index(0).run()
    assert at.query_params["baseline"] == newest_first[0]
    at = page("runs")
    at.query_params["baseline"] = ids[1]
    at.run()
    assert next(each for each in at.selectbox if each.label == "Baseline").value == ids[1]
    assert at.query_params["baseline"] == ids[1]


def test_filters_leave_what_they_name(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    _planted(wb)
    wb.add(OK, FAILED)
    at = page("runs").run()
    at.multiselect(key="filter-status").set_value(["failed"]).run()
    assert not at.exception
    assert list(at.dataframe[0].value["id"]) == [FAILED.id]


def test_pictures_of_all_configurations(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    _planted(wb)
    at = page("runs").run()
    assert len(at.get("plotly_chart")) == 1
    for picture in ("Goodput", "Crossover"):
        at.segmented_control(key="picture").set_value(picture).run()
        assert not at.exception
        assert len(at.get("plotly_chart")) == 1
    assert any("the same configuration is the fastest" in each.value for each in at.caption)


def test_one_load_says_nothing_of_a_crossover_and_long_names_have_room(
    page: OpenPage, wb: fakes.FakeWorkbench
) -> None:
    changes: tuple[dict[str, object], ...] = ({}, {"attention": "eager", "compile": "graphs"})
    runs = [planted_run(Law(tpot_ms=10 + at, changes=each), 4, requests=40)[0] for at, each in enumerate(changes)]
    wb.add(*runs)
    at = page("runs").run()
    at.segmented_control(key="picture").set_value("Crossover").run()
    assert any("Measured at one load only" in each.value for each in at.caption)
    points = points_of(wb.decisions.facts(), next(iter(groups(wb.decisions.facts()))))
    figure = crossover_figure(points, "users")
    lines = max(str(name).count("<br>") + 1 for name in figure.data[0].y)
    assert lines == 3
    assert (figure.layout.height - 110) / len(runs) >= 15 * lines
    front = frontier_figure(points).data[0]  # one that beats the other in both: a line alone would not be seen
    assert (len(front.x), front.text) == (1, ("fp32",))
    assert "markers" in front.mode


def test_names_on_the_frontier_are_not_cut_by_the_edge_of_the_picture(wb: fakes.FakeWorkbench) -> None:
    fast, slow = Law(tpot_ms=5, users_tpot=2), Law(tpot_ms=40, users_tpot=900, changes={"attention": "eager"})
    wb.add(*(planted_run(law, users, requests=40)[0] for law, users in ((fast, 1), (slow, 64))))
    points = points_of(wb.decisions.facts(), next(iter(groups(wb.decisions.facts()))))
    line = frontier_figure(points).data[0]
    assert list(line.x) == sorted(line.x)
    assert line.x[0] < line.x[-1] / 2
    assert list(line.textposition) == ["top right", "top left"]


def test_pictures_are_of_one_model_that_is_named(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    for model in ("llama-2-7b", "llama-2-13b"):
        for attention in ("sdpa", "eager"):
            changes = {"model": {"source": "shape", "id": model}, "attention": attention}
            run, records = planted_run(Law(changes=changes), 4, requests=40)
            wb.add(run).request_records[run.id] = tuple(records)
    at = page("runs").run()
    assert not at.exception
    choice = next(each for each in at.selectbox if each.label == "Of")
    assert sorted(each.partition(" · ")[0] for each in choice.options) == ["llama-2-13b", "llama-2-7b"]


@pytest.mark.parametrize(
    ("changes", "px"), [({}, None), ({"quantization.group_size": 32, "compile": "graphs"}, 66)]
)
def test_a_name_that_its_column_would_cut_is_wrapped(
    page: OpenPage, wb: fakes.FakeWorkbench, changes: dict[str, object], px: int | None
) -> None:
    long = {"quantization.scheme": "torchao-int4-weight-only", "dtype": "bf16"} | changes if changes else {}
    for each in (long, {"dtype": "fp16"}):
        run, records = planted_run(Law(changes=each), 4, requests=40)
        wb.add(run).request_records[run.id] = tuple(records)
    at = page("runs").run()
    assert not at.exception
    assert at.dataframe[0].proto.row_height == (px or 35)
