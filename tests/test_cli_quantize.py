from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from mcp_core import cli
from mcp_core.commands import quantize

SAVED = {
    "folder": "/models/out",
    "format": "library",
    "bytes": 1_000_000,
    "files": ["model.safetensors"],
    "weights_bytes": 900_000,
    "quantized_modules": 14,
    "skip_reasons": {"lm_head": "output layer"},
    "logit_difference": 0.0,
    "deployable_as": "vLLM --quantization bitsandbytes; transformers",
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the job is asked for; it answers SAVED."""
    requests: list[Any] = []
    monkeypatch.setattr(quantize, "run_job", lambda *args, **_: requests.append(args) or SAVED)
    return requests


def run(*arguments: str) -> int:
    return cli.main(["quantize", "bundled", "--set", "device=cpu", *arguments])


def test_it_says_what_was_written_and_who_serves_it(asked, tmp_path: Path, capsys) -> None:
    assert run("--set", "quantization.scheme=bnb-nf4", "--out", str(tmp_path / "out")) == 0
    said = capsys.readouterr().out
    assert "identical logits" in said
    assert "lm_head (output layer)" in said
    assert "vLLM --quantization bitsandbytes" in said
    verb, _, request = asked[0]
    assert (verb, request["format"], request["out"]) == ("quantize", "library", str(tmp_path / "out"))
    assert request["recipe"]["quantization"]["scheme"] == "bnb-nf4"


def test_json_is_the_jobs_answer(asked, tmp_path: Path, capsys) -> None:
    assert run("--set", "quantization.scheme=bnb-nf4", "--out", str(tmp_path / "out"), "--json") == 0
    assert json.loads(capsys.readouterr().out) == SAVED


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["--set", "quantization.scheme=torchao-int4-weight-only", "--set", "dtype=bf16"], "CPU layout of int4"),
        (["--set", "quantization.scheme=classic-dynamic", "--set", "dtype=fp32"], "only pickle"),
        (["--set", "quantization.scheme=bnb-nf4", "--format", "compressed-tensors"], "llmcompressor"),
        (["--set", "quantization.scheme=torchao-fp8-dynamic"], "has no kernel for cpu"),
        ([], "nothing is quantized"),
    ],
)
def test_what_cannot_be_written_is_a_wrong_argument_with_its_cause(
    arguments, cause, asked, tmp_path, capsys
) -> None:
    assert run(*arguments, "--out", str(tmp_path / "out")) == 2
    assert cause in capsys.readouterr().err
    assert not asked


def test_what_was_quantized_anew_lists_its_dense_layers_and_is_to_be_judged(tmp_path, capsys, monkeypatch) -> None:
    anew = SAVED | {"format": "llmcompressor", "weights_bytes": None, "logit_difference": None}
    monkeypatch.setattr(quantize, "run_job", lambda *_, **__: anew)
    monkeypatch.setenv("MCP_LLMCOMPRESSOR_PYTHON", sys.executable)
    int4 = ("--set", "quantization.scheme=torchao-int4-weight-only", "--set", "dtype=bf16")
    assert run(*int4, "--format", "llmcompressor", "--out", str(tmp_path / "out")) == 0
    said = capsys.readouterr().out
    assert "lm_head (output layer)" in said
    assert "mcp-core fidelity RECIPE --original MODEL" in said
