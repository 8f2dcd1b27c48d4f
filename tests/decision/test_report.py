"""Reports: complete, offline, and nothing that came from outside is markup in them."""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mcp_core.cli import main
from mcp_core.commands.run_table import show
from mcp_core.decision.decision import Decision
from mcp_core.decision.facts import RunFacts
from mcp_core.decision.remarks import Remarks
from mcp_core.decision.report import Report, as_csv, as_html, as_json
from mcp_core.decision.store import Store
from mcp_core.results import Conditions, DeviceConditions
from tests.decision.planted import Law, planted_run
from tests.decision.test_confirmation import FAST, SLOW, decision

EVIL = '</script><script>alert(1)</script><img src=x onerror="alert(2)"><!--'


class _Tags(HTMLParser):
    """Tags, attributes and text outside of scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(page: str) -> _Tags:
    tags = _Tags()
    tags.feed(page)
    return tags


def evil_decision() -> Decision:
    made = decision(limit_ms=500)
    assert made.winner is not None
    winner = made.winner.model_copy(update={"name": EVIL})
    return made.model_copy(update={"winner": winner, "answer": EVIL, "notes": (EVIL,), "workload": EVIL})


def test_a_decision_is_told_whole() -> None:
    made = decision(limit_ms=110)
    text = parsed(as_html(Report(made))).text
    assert made.answer in text
    assert all(each.reason in text for each in made.refused)
    assert all(each.name in text for each in (*made.runners_up, *([made.winner] if made.winner else [])))


def test_memory_and_energy_are_told_and_what_nobody_knows_has_no_column() -> None:
    made = decision(limit_ms=500)
    assert made.winner is not None
    text = parsed(as_html(Report(made))).text
    assert "Peak GB" in text
    assert "J/token" not in text
    figures = made.winner.figures.model_copy(update={"energy_j_per_token": 0.322, "output_tok_s": 12345.6})
    measured = made.model_copy(update={"winner": made.winner.model_copy(update={"figures": figures})})
    text = parsed(as_html(Report(measured))).text
    assert all(each in text for each in ("J/token", "0.322", "12,346"))
    assert "Limits that hold" in text
    assert all(each in text for each in figures.within)
    refused = parsed(as_html(Report(decision(limit_ms=110)))).text
    assert "latency" in refused


def test_no_name_becomes_markup() -> None:
    plain, evil = parsed(as_html(Report(decision()))), parsed(as_html(Report(evil_decision())))
    assert evil.tags.count("script") == plain.tags.count("script") == 2
    assert "img" not in evil.tags
    assert not any(name.startswith("on") for name, _ in evil.attributes)
    page = as_html(Report(evil_decision()))
    drawn = page[page.rindex("<script>") :]
    assert drawn.count("<") == drawn.count("</script>") + drawn.count("<script>") + drawn.count("</body>") + 1


def test_it_asks_for_nothing_from_the_network() -> None:
    page = as_html(Report(decision()))
    assert "default-src 'none'" in page
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=", page)
    assert not [value for name, value in parsed(page).attributes if name in ("src", "href")]


def test_runs_are_compared_with_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCP_HOME", str(tmp_path))
    ids = []
    with Store() as store:
        for law in (FAST, SLOW):
            for start in range(3):
                run, records = planted_run(law, 4, start=start)
                store.add(run, records)
            ids.append(run.id)
    out = tmp_path / "r.html"
    assert main(["report", *ids, "--out", str(out)]) == 0
    text = parsed(out.read_text()).text
    assert f"{ids[1]} against {ids[0]}" in text
    assert "worse" in text
    assert "peak memory, GB" in text
    for ending in ("csv", "json"):
        assert main(["report", *ids, "--out", str(tmp_path / f"r.{ending}")]) == 0
    assert json.loads((tmp_path / "r.json").read_text())["comparisons"][ids[1]]
    assert main(["report", *ids, "--out", str(tmp_path / "r.pdf")]) == 2
    assert main(["report", "none", "--out", str(out)]) == 2
    (tmp_path / "no.json").write_text("[]")
    assert main(["report", str(tmp_path / "no.json"), "--out", str(out)]) == 2


def test_files_of_runs_are_reported_beside_stored_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As why and compare do: a colleague's file needs no merge first."""
    monkeypatch.setenv("MCP_HOME", str(tmp_path / "home"))
    (stored, records), (brought, _) = planted_run(FAST, 4), planted_run(SLOW, 4)
    with Store() as store:
        store.add(stored, records)
    file, out = tmp_path / "theirs.json", tmp_path / "r.json"
    file.write_text(brought.model_dump_json())
    assert main(["report", stored.id, str(file), "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert [run["id"] for run in found["runs"]] == [stored.id, brought.id]
    assert {each["quantity"] for each in found["comparisons"][brought.id]} >= {"tpot_ms"}
    assert main(["report", str(file), "--out", str(out)]) == 0  # one Run alone is no Decision
    assert [run["id"] for run in json.loads(out.read_text())["runs"]] == [brought.id]


def test_csv_has_every_configuration_and_no_formula() -> None:
    made = decision()
    assert made.winner is not None
    winner = made.winner.model_copy(update={"name": "=cmd|' /C calc'!A0"})
    rows = list(csv.DictReader(io.StringIO(as_csv(Report(made.model_copy(update={"winner": winner}))))))
    assert [row["role"] for row in rows][:2] == ["winner", "runner-up"]
    assert rows[0]["configuration"].startswith("'=")
    run, _ = planted_run(Law(), 4)
    (row,) = csv.DictReader(io.StringIO(as_csv(Report(runs=[RunFacts.of(run)]))))
    assert float(row["output_tok_s"]) > 0


def test_what_people_said_of_runs_is_in_every_form() -> None:
    run, _ = planted_run(Law(), 4)
    remarks = Remarks().with_tags(["best", "nightly"]).with_note("=<b>1</b>")
    report = Report(runs=[RunFacts.of(run)], remarks={run.id: remarks, "another": remarks})
    (row,) = csv.DictReader(io.StringIO(as_csv(report)))
    assert (row["tags"], row["note"]) == ("best, nightly", "'=<b>1</b>")
    assert "best, nightly" in (page := as_html(report))
    assert "&lt;b&gt;1" in page
    assert list(found := json.loads(as_json(report))["remarks"]) == [run.id]
    assert Remarks.model_validate(found[run.id]) == remarks


def test_a_cards_own_power_cap_is_told_with_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    device = DeviceConditions(
        sm_clock_mhz=1917.0, power_limit_w=700.0, power_limit_default_w=700.0, power_capped=0.67, slowed=0.0
    )
    run, _ = planted_run(Law(), 4, requests=4, conditions=Conditions(device=device))
    words = "at the limit of 700 W, the card's own, 67% of the time, mean SM clock 1,917 MHz"
    one = Report(runs=(RunFacts.of(run),))
    text = parsed(as_html(one)).text
    assert "Power cap" in text
    assert words in text
    assert next(csv.DictReader(io.StringIO(as_csv(one))))["power_cap"] == f"power cap: {words}"
    plain = Report(runs=(RunFacts.of(planted_run(Law(), 4, requests=4)[0]),))
    assert "Power cap" not in as_html(plain)
    show(run)
    assert f"power cap: {words}\n" in capsys.readouterr().out


def test_json_of_a_decision_is_the_decision() -> None:
    made = decision()
    assert Decision.from_json(as_json(Report(made))) == made
