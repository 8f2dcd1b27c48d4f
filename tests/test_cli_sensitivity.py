"""``mcp-core sensitivity``: what it asks the job for, and how it tells the answer. The job itself is replaced."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mcp_core import cli
from mcp_core.commands import sensitivity as command
from mcp_core.evaluation.sensitivity_values import GroupSensitivity, Sensitivity

MB = 1_000_000


def answer() -> dict[str, Any]:
    def group(name: str, pattern: str, kl: float) -> GroupSensitivity:
        return GroupSensitivity(
            name=name,
            pattern=pattern,
            modules=7,
            kl_mean=kl,
            kl_max=kl * 9,
            top1=0.9,
            dense_bytes=14 * MB,
            packed_bytes=2 * MB,
        )

    return Sensitivity(
        scheme="bnb-nf4",
        by="module",
        groups=(group("v_proj", "*.v_proj", 0.06), group("q_proj", "*.q_proj", 0.01)),
        together=group("all layers", "*", 0.08),
        dense_weights_bytes=538 * MB,
        unpacked=("model.layers.0.odd",),
        tokens=512,
        text_name="a text",
        text_sha256="0" * 64,
        seconds=9.0,
    ).model_dump(mode="json")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    requests: list[dict[str, Any]] = []

    def run_job(verb: str, title: str, request: dict[str, Any], **options: Any) -> dict[str, Any]:
        requests.append({"verb": verb, **request, **options})
        return answer()

    monkeypatch.setattr(command, "run_job", run_job)
    return requests


NF4 = ("bundled", "--set", "quantization.scheme=bnb-nf4")


def test_a_table_worst_first_and_the_mixed_recipe(
    asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["sensitivity", *NF4, "--by", "module", "--tokens", "256"]) == 0
    assert (asked[0]["verb"], asked[0]["by"], asked[0]["tokens"]) == ("sensitivity", "module", 256)
    assert asked[0]["recipe"]["device"] == asked[0]["device"] != "auto"
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[2:6]] == ["GROUP", "all", "v_proj", "q_proj"]
    assert "The scheme leaves dense: model.layers.0.odd" in out
    assert "Mixed: 86% less KL (estimated), 12.00 MB more weights:" in out
    assert """--set 'quantization.skip=["*.v_proj"]'""" in out


def test_json_is_the_answer(asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sensitivity", *NF4, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == answer()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("bundled",), "none quantizes nothing"),
        ((*NF4, "--tokens", "5"), "must be between 128 and 4096"),
        ((*NF4, "--by", "head"), "invalid choice"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_starts(
    asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], reason: str
) -> None:
    assert cli.main(["sensitivity", *arguments]) == 2
    assert reason in capsys.readouterr().err
    assert asked == []
