"""llmcompressor's route: what is asked of its interpreter, what comes back, and what it is told there."""

from __future__ import annotations

import asyncio
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mcp_core.checkpoint_formats import SavedCheckpoint, why_not_saved
from mcp_core.errors import InvalidModel, OutOfMemory, RecipeError
from mcp_core.jobs import Job
from mcp_core.memory.quantization import checkpoint_job, llmcompressor_child
from mcp_core.memory.quantization.llmcompressor_child import left_dense
from mcp_core.presets import bundled
from mcp_core.recipe import ModelRef, Quantization, Recipe

sys.path.insert(0, str(Path(__file__).parents[2]))
from tiny_llama import build_tiny_llama

# Writes the model as it is and what it was asked beside it: whatever it makes has to load again.
STAND_IN = """
import json, os, shutil, sys
order = json.load(open(sys.argv[3]))
for name in ("model.safetensors", "config.json"):
    shutil.copy(os.path.join(order["source"], name), order["out"])
order["child"], order["secret"] = sys.argv[2], os.environ.get("HF_TOKEN")
json.dump(order, open(os.path.join(order["out"], "order.json"), "w"))
print("noise")
print(json.dumps({"packed": 14, "left_dense": {"lm_head": "output layer"}}))
print("more noise, at the end")
"""
INT4 = "torchao-int4-weight-only"


@pytest.fixture
def model(tmp_path: Path) -> ModelRef:
    return ModelRef(source="folder", id=str(build_tiny_llama(tmp_path / "tiny")))


@pytest.fixture
def interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(Job, "tell", lambda *_: None)
    monkeypatch.setenv("HF_TOKEN", "secret")
    python = tmp_path / "python"
    monkeypatch.setenv("MCP_LLMCOMPRESSOR_PYTHON", str(python))
    return does(python, STAND_IN)


def does(python: Path, code: str) -> Path:
    """A program in the interpreter's place."""
    python.write_text(f"#!{sys.executable}\nimport sys\n{code}")
    python.chmod(0o755)
    return python


def write(model: ModelRef, out: Path, **options: Any) -> SavedCheckpoint:
    recipe = Recipe(model=model, device="cpu", threads=1, quantization=Quantization(**options))
    request = {"recipe": recipe.model_dump(mode="json"), "out": str(out), "format": "llmcompressor"}
    return SavedCheckpoint.model_validate(asyncio.run(checkpoint_job.run(Job(out.parent, request, {}))).result)


def test_it_is_asked_for_what_the_recipe_says_and_its_answer_is_kept(model, tmp_path, interpreter) -> None:
    samples = {"samples": 3, "tokens": 32}
    saved = write(model, tmp_path / "out", scheme=INT4, group_size=32, skip=("*.o_proj",), calibration=samples)
    order = json.loads((tmp_path / "out" / "order.json").read_text())
    assert (order["bits"], order["group_size"], order["alpha"], order["skip"]) == (4, 32, None, ["*.o_proj"])
    assert (order["dtype"], order["source"], order["secret"]) == ("bfloat16", model.id, None)
    assert [len(each) for each in order["passages"]] == [32, 32, 32]
    assert Path(order["child"]) == Path(llmcompressor_child.__file__)
    assert (saved.quantized_modules, saved.skip_reasons) == (14, {"lm_head": "output layer"})
    assert saved.logit_difference is None
    assert {"tokenizer.json", "chat_template.jinja"} <= set(saved.files)
    assert "vLLM" in saved.deployable_as


def test_an_interpreter_and_a_model_may_be_named_from_the_present_folder(
    model, tmp_path, interpreter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is started in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MCP_LLMCOMPRESSOR_PYTHON", interpreter.name)
    near = ModelRef(source="folder", id=Path(model.id).name)
    write(near, Path("out"), scheme=INT4, group_size=32, calibration={"samples": 2, "tokens": 32})
    order = json.loads((tmp_path / "out" / "order.json").read_text())
    assert (order["source"], Path(order["out"]).parent) == (model.id, tmp_path)


def test_smoothquant_has_an_alpha_and_a_scale_for_each_output(model, tmp_path, interpreter) -> None:
    samples = {"samples": 2, "tokens": 32}
    scheme = "torchao-int8-static-smoothquant"
    write(model, tmp_path / "found", scheme=scheme, calibration=samples)
    write(model, tmp_path / "asked", scheme=scheme, calibration=samples, alpha=0.25)
    orders = [json.loads((tmp_path / name / "order.json").read_text()) for name in ("found", "asked")]
    assert [(each["bits"], each["group_size"], each["alpha"]) for each in orders] == [
        (8, None, 0.8),
        (8, None, 0.25),
    ]


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        ("sys.exit('ModuleNotFoundError: No module named llmcompressor')", InvalidModel, "No module named"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", OutOfMemory, "memory ran out"),
        ("sys.exit(0)", InvalidModel, "failed: 0"),
        ("print('done')", InvalidModel, "failed: 0"),
    ],
)
def test_what_goes_wrong_there_is_said_and_nothing_is_kept(model, tmp_path, interpreter, code, kind, words) -> None:
    does(interpreter, code)
    with pytest.raises(kind, match=words):
        write(model, tmp_path / "out", scheme=INT4, group_size=32, calibration={"samples": 2, "tokens": 32})
    assert not any(path.name.lstrip(".").startswith("out") for path in tmp_path.iterdir())


@pytest.mark.skipif(find_spec("llmcompressor") is not None, reason="it is installed beside MCP")
def test_an_interpreter_without_it_says_so(model, tmp_path, interpreter, monkeypatch: pytest.MonkeyPatch) -> None:
    """For real: nothing of MCP passes for the library there."""
    monkeypatch.setenv("MCP_LLMCOMPRESSOR_PYTHON", sys.executable)
    with pytest.raises(InvalidModel, match="No module named 'llmcompressor'"):
        write(model, tmp_path / "out", scheme=INT4, group_size=32, calibration={"samples": 2, "tokens": 32})


def test_without_an_interpreter_it_is_said_how_to_make_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MCP_LLMCOMPRESSOR_PYTHON", raising=False)
    recipe = bundled().replace({"dtype": "bf16", "quantization.scheme": INT4})
    reason, fix = why_not_saved(recipe, "cpu", "llmcompressor") or ("", "")
    assert "no interpreter that has llmcompressor is named" in reason
    assert "MCP_LLMCOMPRESSOR_PYTHON" in fix
    monkeypatch.setenv("MCP_LLMCOMPRESSOR_PYTHON", str(tmp_path / "none"))
    assert why_not_saved(recipe, "cpu", "llmcompressor") == (reason, fix)
    other = bundled().replace({"quantization.scheme": "bnb-nf4"})
    assert INT4 in (why_not_saved(other, "cpu", "llmcompressor") or ("", ""))[1]


def test_a_scheme_without_a_counterpart_is_refused_by_the_job(model, tmp_path, interpreter) -> None:
    with pytest.raises(RecipeError, match="bnb-nf4 cannot be written as llmcompressor"):
        write(model, tmp_path / "out", scheme="bnb-nf4")


# What runs in its interpreter


def order(**changes: Any) -> dict[str, Any]:
    base = {"dtype": "float32", "threads": 1, "bits": 4, "group_size": 32, "alpha": None, "skip": []}
    return base | {"passages": [[1, 2, 3], [4, 5, 6]]} | changes


def test_layers_that_stay_dense_are_told_with_their_reason() -> None:
    inputs = {"lm_head": 64, "a.q_proj": 64, "a.o_proj": 48, "a.v_proj": 64}
    kept = left_dense(inputs, "lm_head", order(skip=["*.v_proj"]))
    assert kept == {
        "lm_head": "output layer",
        "a.o_proj": "48 inputs are not a multiple of 32 (the group size)",
        "a.v_proj": "quantization.skip",
    }
    assert "a.o_proj" not in left_dense(inputs, "lm_head", order(group_size=None))


class _Recorded:
    """A modifier, or a dataset: what it was made with."""

    def __init__(self, *given: Any, **options: Any) -> None:
        self.given, self.options = given, options

    from_list = classmethod(lambda cls, rows: cls(rows))


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """llmcompressor and datasets in name only; what oneshot was called with."""
    called: dict[str, Any] = {}

    def module(name: str, **attributes: Any) -> None:
        made = ModuleType(name)
        vars(made).update(attributes)
        monkeypatch.setitem(sys.modules, name, made)

    module("llmcompressor", oneshot=lambda **options: called.update(options))
    module("llmcompressor.modifiers")
    module("llmcompressor.modifiers.quantization", GPTQModifier=type("GPTQ", (_Recorded,), {}))
    module("llmcompressor.modifiers.transform")
    module("llmcompressor.modifiers.transform.smoothquant", SmoothQuantModifier=type("Smooth", (_Recorded,), {}))
    module("datasets", Dataset=_Recorded)
    return called


@pytest.mark.parametrize(
    ("changes", "modifiers", "weights", "activations"),
    [
        ({}, ["GPTQ"], {"num_bits": 4, "strategy": "group", "group_size": 32}, None),
        ({"bits": 8, "group_size": None}, ["GPTQ"], {"num_bits": 8, "strategy": "channel"}, None),
        (
            {"bits": 8, "group_size": None, "alpha": 0.5},
            ["Smooth", "GPTQ"],
            {"num_bits": 8, "strategy": "channel"},
            {"num_bits": 8, "strategy": "token", "dynamic": True},
        ),
    ],
)
def test_its_recipe_is_of_the_order(
    model, tmp_path, library, capsys, changes, modifiers, weights, activations
) -> None:
    file = tmp_path / "order.json"
    file.write_text(json.dumps(order(source=model.id, out=str(tmp_path / "made"), **changes)))
    llmcompressor_child.main(str(file))
    made = library["recipe"]
    assert [type(each).__name__ for each in made] == modifiers
    group = made[-1].options["config_groups"]["group_0"]
    assert weights.items() <= group["weights"].items()
    assert ("input_activations" in group) == (activations is not None)
    assert (activations or {}).items() <= group.get("input_activations", {}).items()
    assert made[-1].options["ignore"] == ["lm_head"]
    if len(made) > 1:
        assert made[0].options["smoothing_strength"] == 0.5
    assert library["num_calibration_samples"] == 2
    assert library["dataset"].given[0][1]["input_ids"] == [4, 5, 6]
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["packed"], told["left_dense"]) == (14, {"lm_head": "output layer"})
    assert (tmp_path / "made" / "config.json").is_file()
