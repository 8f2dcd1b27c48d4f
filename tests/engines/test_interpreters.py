from __future__ import annotations

import os
from pathlib import Path

import pytest

from mcp_core.engines.interpreters import interpreter, why_none
from mcp_core.hardware import Hardware
from mcp_core.recipe import ModelRef, Recipe


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_the_engines_own_variable_is_the_default(tmp_path: Path) -> None:
    python = executable(tmp_path / "python")
    environment = {"MCP_VLLM_PYTHON": str(python)}
    assert interpreter("vllm", None, environment) == python
    assert interpreter("vllm", str(python), environment) == python
    assert "no interpreter that has sglang" in why_none("sglang", None, environment)


def test_a_recipe_chooses_among_those_that_were_allowed(tmp_path: Path) -> None:
    first, second = executable(tmp_path / "a" / "python"), executable(tmp_path / "b" / "python")
    environment = {"MCP_ENGINE_PYTHONS": os.pathsep.join((str(first), str(second)))}
    assert interpreter("sglang", str(second), environment) == second
    assert interpreter("sglang", None, environment) is None


@pytest.mark.parametrize("asked", ["/bin/sh", "{folder}/other/python", "{folder}/../../bin/sh", "python"])
def test_a_recipe_never_makes_a_path_run(tmp_path: Path, asked: str) -> None:
    python = executable(tmp_path / "python")
    executable(tmp_path / "other" / "python")
    environment = {"MCP_VLLM_PYTHON": str(python), "MCP_ENGINE_PYTHONS": ""}
    assert "not among the interpreters" in why_none("vllm", asked.format(folder=tmp_path), environment)


def test_a_path_that_comes_to_the_same_is_the_same_and_links_are_kept(tmp_path: Path) -> None:
    executable(tmp_path / "real")
    (tmp_path / "venv").mkdir()
    link = tmp_path / "venv" / "python"
    link.symlink_to(tmp_path / "real")
    environment = {"MCP_VLLM_PYTHON": str(link)}
    assert interpreter("vllm", f"{tmp_path}/venv/../venv/python", environment) == link
    assert interpreter("vllm", str(tmp_path / "real"), environment) is None


def test_what_is_named_must_be_there_and_executable(tmp_path: Path) -> None:
    assert "does not exist" in why_none("vllm", None, {"MCP_VLLM_PYTHON": str(tmp_path / "gone")})
    plain = tmp_path / "plain"
    plain.write_text("")
    assert "cannot be executed" in why_none("vllm", None, {"MCP_VLLM_PYTHON": str(plain)})


FOLDER = Recipe(model=ModelRef(source="folder", id="/models/m"), engine="vllm")


def conflicts(recipe: Recipe, machine: Hardware) -> dict[str, str]:
    return {each.field: each.reason for each in recipe.conflicts(machine)}


def test_conflicts_with_an_interpreter_and_a_gpu_there_are_none(gpu: Hardware, engine_python: Path) -> None:
    assert conflicts(FOLDER, gpu) == {}
    assert conflicts(FOLDER.replace({"engine": "sglang", "engine_python": str(engine_python)}), gpu) == {}


def test_conflicts_name_what_is_missing(gpu: Hardware, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MCP_VLLM_PYTHON", raising=False)
    assert "no interpreter that has vllm" in conflicts(FOLDER, gpu)["engine"]
    found = conflicts(FOLDER.replace({"engine_python": "/bin/sh"}), gpu)
    assert "not among" in found["engine_python"]


def test_without_a_gpu_it_is_refused(gpu: Hardware, engine_python: Path) -> None:
    without = gpu.model_copy(update={"devices": gpu.devices[:1]})
    assert "NVIDIA" in conflicts(FOLDER, without)["engine"]
    assert "NVIDIA" in conflicts(FOLDER.replace({"device": "cpu"}), gpu)["device"]
    assert "no cuda:3" in conflicts(FOLDER.replace({"device": "cuda:3"}), gpu)["device"]


def test_our_own_engines_take_no_interpreter(gpu: Hardware, engine_python: Path) -> None:
    recipe = FOLDER.replace({"engine": "transformers", "engine_python": str(engine_python), "device": "cpu"})
    assert "engine_python" in conflicts(recipe, gpu)


def test_where_it_runs_is_no_part_of_what_it_is(engine_python: Path) -> None:
    other = FOLDER.replace({"engine_python": str(engine_python)})
    assert other.fingerprint == FOLDER.fingerprint
    assert other.numerics_key == FOLDER.numerics_key
    assert other.load_key != FOLDER.load_key
