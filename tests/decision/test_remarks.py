from __future__ import annotations

from datetime import UTC, datetime

import pytest

from mcp_core.decision.facts import RunFacts
from mcp_core.decision.remarks import Remarks
from mcp_core.decision.staleness import stale_runs
from mcp_core.errors import InputError
from tests.decision.planted import Law, machine, planted_run


def test_tags_are_in_order_and_once():
    assert Remarks().with_tags(["b", " a  b ", "b", "Å"]).tags == ("a b", "b", "Å")


@pytest.mark.parametrize("tag", ["", "  ", "a,b", "x" * 41, "bell\x07", "half\ud800"])
def test_what_is_no_tag_is_refused(tag):
    with pytest.raises(InputError, match="a tag has 1 to 40 letters and no comma"):
        Remarks().with_tags(["good", tag])


def test_a_note_keeps_its_lines_and_letters():
    assert Remarks().with_note(" one\r\ntwo 👩‍💻\n").note == "one\ntwo 👩‍💻"


@pytest.mark.parametrize("note", ["x" * 4001, "\x00"])
def test_what_is_no_note_is_refused(note):
    with pytest.raises(InputError, match="a note has at most 4,000 letters"):
        Remarks().with_note(note)


def test_the_same_note_again_is_no_newer_one():
    once = Remarks().with_note("said")
    assert once.with_note(" said ") == once
    assert Remarks().with_note("") == Remarks()


def test_merged_the_newer_note_stays_whoever_asks():
    older = Remarks(tags=("a",), note="older", noted=datetime(2026, 1, 1, tzinfo=UTC))
    newer = Remarks(tags=("b",), note="", noted=datetime(2026, 1, 2, tzinfo=UTC))
    assert older.merged(newer) == newer.merged(older) == newer.model_copy(update={"tags": ("a", "b")})
    assert Remarks().merged(older) == older.merged(Remarks()) == older


def facts(minutes: float, versions: dict[str, str], **rest: object) -> RunFacts:
    return RunFacts.of(planted_run(Law(), 1, requests=4, minutes=minutes, versions=versions, **rest)[0])


def test_a_run_is_stale_when_its_machine_has_other_versions_now():
    old = facts(1, {"torch": "2.11", "transformers": "5.22"}, tag="old")
    half = facts(2, {"torch": "2.12", "transformers": "5.22"}, tag="half")
    new = facts(3, {"torch": "2.12"}, tag="new")  # says nothing of transformers: what was last known holds
    latest = facts(4, {"torch": "2.12", "transformers": "5.23"}, tag="latest")
    assert stale_runs([new, half, old]) == {old.id: "torch 2.11 then, 2.12 now"}
    assert stale_runs([latest, new, half, old]) == {
        half.id: "transformers 5.22 then, 5.23 now",
        old.id: "torch 2.11 then, 2.12 now; transformers 5.22 then, 5.23 now",
    }


def test_another_device_makes_none_stale_a_run_that_failed_does():
    old = facts(1, {"torch": "2.11"}, tag="old")
    elsewhere = facts(2, {"torch": "2.12"}, hardware=machine("Other GPU"), tag="elsewhere")
    assert stale_runs([elsewhere, old]) == {}
    run, _ = planted_run(Law(), 1, requests=4, versions={"torch": "2.13"})
    failed = RunFacts.of(run.model_copy(update={"status": "failed", "measurement": None}))
    assert stale_runs([failed, old]) == {old.id: "torch 2.11 then, 2.13 now"}


def test_a_card_of_another_host_of_that_name_makes_none_stale_its_own_newer_run_does():
    old = facts(1, {"torch": "2.11"}, hardware=machine(card="a"), tag="old")
    other = facts(2, {"torch": "2.12"}, hardware=machine(card="b"), tag="other")
    assert stale_runs([other, old]) == {}
    own = facts(3, {"torch": "2.12"}, hardware=machine(card="a", host="renamed"), tag="own")
    assert stale_runs([own, other, old]) == {old.id: "torch 2.11 then, 2.12 now"}
