"""Every target's files: what they say, that they are valid, that nothing else is written."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from mcp_core.decision.bundle import write
from mcp_core.decision.export import export, why_not
from mcp_core.decision.shipment import Shipment, of_decision, of_run, read_shipment
from mcp_core.decision.targets.readme import confirm_command
from mcp_core.errors import InputError, ModelNotFound, RecipeError
from mcp_core.recipe import Recipe
from mcp_core.schemes import SCHEMES
from tests.decision.planted import Law, planted_run
from tests.tiny_llama import build_tiny_llama

HUB = {
    "model": {"source": "hub", "id": "owner/llama", "revision": "abc"},
    "kv.max_context": 2048,
    "device": "cuda:1",
}


def shipment(changes: dict[str, Any] | None = None, **rest: Any) -> Shipment:
    run, _ = planted_run(Law(), 4)
    recipe = run.recipe.replace({"kv.max_context": 512, "device": "cpu", **(changes or {})})
    return of_run(run.model_copy(update={"recipe": recipe, **rest}))


def test_each_target_is_in_the_bundle_with_its_papers(tmp_path: Path) -> None:
    for target in ("worker", "llama.cpp", "transformers"):
        made = export(shipment(), target)
        assert {"README.md", "recipe.json", "workload.json", "run.json", "bundle.json"} <= set(made.files)
        assert Recipe.from_json(made.files["recipe.json"]) == shipment().recipe
        assert "mcp-core confirm ." in made.files["README.md"]


def test_vllm_script_has_the_flags_of_the_engine_and_runs_as_a_shell_script(tmp_path: Path) -> None:
    made = export(shipment(HUB | {"batching.mode": "continuous", "prefix_cache": True}), "vllm")
    stub = tmp_path / "bin" / "vllm"
    stub.parent.mkdir()
    stub.write_text('#!/bin/sh\nprintf "%s\\n" "$@" "$CUDA_VISIBLE_DEVICES" "${HF_HUB_OFFLINE-online}"\n')
    stub.chmod(0o755)
    folder = tmp_path / "out"
    write(made, folder)
    environment = {"PATH": f"{stub.parent}:{os.environ['PATH']}"}
    said = subprocess.run(
        [folder / "serve.sh", "--more"], env=environment, capture_output=True, text=True, check=True
    )
    words = said.stdout.splitlines()
    assert words[:2] == ["serve", "owner/llama"]
    assert words[words.index("--max-model-len") + 1] == "2048"
    assert words[words.index("--served-model-name") + 1] == "owner/llama"
    assert words[words.index("--revision") + 1] == "abc"
    assert "--enable-prefix-caching" in words
    assert words[-3:] == ["--more", "1", "online"]


def test_a_folder_goes_by_its_whole_path_whatever_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    what = shipment(HUB | {"model": {"source": "folder", "id": "~/a $(touch x):'b"}})
    script = tmp_path / "serve.sh"
    script.write_text(export(what, "vllm").files["serve.sh"].replace("exec vllm", "printf '%s\\n'"))
    environment = {"PATH": os.environ["PATH"]}
    said = subprocess.run(["sh", script], env=environment, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert f"{tmp_path}/a $(touch x):'b" in said.stdout.splitlines()
    assert not (tmp_path / "x").exists()
    compose = yaml.safe_load(export(what, "docker-compose", "vllm").files["docker-compose.yaml"])
    (volume,) = compose["services"]["llm"]["volumes"]
    assert volume["source"] == f"{tmp_path}/a $$(touch x):'b"  # a lone dollar is a variable to docker-compose
    assert volume["target"] == "/models"


def test_a_run_from_elsewhere_puts_no_line_into_a_script(tmp_path: Path) -> None:
    document = shipment().run
    assert document is not None
    for bad in ("x\ntouch here", "../x", ""):
        file = tmp_path / "run.json"
        file.write_text(json.dumps(document.model_dump(mode="json") | {"id": bad}))
        with pytest.raises(InputError, match="id"):
            read_shipment(str(file), lambda _: None)


def test_sglang_script_holds_no_key_of_ours() -> None:
    made = export(shipment(HUB), "sglang")
    assert "--config" not in made.files["serve.sh"]
    assert "--model-path" in made.files["serve.sh"]


def test_a_random_weight_shape_brings_its_config() -> None:
    made = export(shipment({"model": {"source": "shape", "id": "llama-2-7b"}}), "vllm")
    assert json.loads(made.files["model/config.json"])["num_hidden_layers"] == 32
    assert "--load-format" in made.files["serve.sh"]


def test_refusals_name_the_field_and_what_the_scheme_deploys_as() -> None:
    static = shipment(HUB | {"quantization.scheme": "torchao-int8-static"})
    error = why_not(static, "vllm")
    assert error is not None
    assert "quantization.scheme" in error.message
    assert SCHEMES["torchao-int8-static"].deployable_as in error.hint
    assert why_not(shipment(), "vllm") is not None
    assert why_not(shipment(HUB), "llama.cpp") is not None
    with pytest.raises(RecipeError, match="no container image"):
        export(shipment(), "kubernetes")
    with pytest.raises(InputError, match="no target"):
        export(shipment(), "ray")
    with pytest.raises(InputError, match="takes no engine"):
        export(shipment(), "worker", "vllm")


def test_what_did_not_carry_over_is_in_the_readme() -> None:
    text = export(shipment(HUB), "vllm").files["README.md"]
    assert "a candidate, not yet a recommendation" in text
    assert "measured on transformers, not on vllm" in text
    assert "vLLM chooses its own kernel; it has no sdpa" in text
    confirmed = replace(shipment(HUB), evidence="confirmed on vllm")
    assert "Confirmed on vllm: a recommendation." in export(confirmed, "vllm").files["README.md"]
    assert "a candidate, not yet a recommendation" in export(confirmed, "sglang").files["README.md"]


@pytest.mark.parametrize("engine", ["vllm", "sglang", "llama.cpp"])
def test_kubernetes_manifests_hang_together(engine: str) -> None:
    made = export(shipment({} if engine == "llama.cpp" else HUB), "kubernetes", engine)
    claim, deployment, service = yaml.safe_load_all(made.files["kubernetes.yaml"])
    assert [each["kind"] for each in (claim, deployment, service)] == [
        "PersistentVolumeClaim",
        "Deployment",
        "Service",
    ]
    template = deployment["spec"]["template"]
    assert (
        template["metadata"]["labels"]
        == deployment["spec"]["selector"]["matchLabels"]
        == service["spec"]["selector"]
    )
    (container,) = template["spec"]["containers"]
    assert all(isinstance(word, str) for word in container.get("args", container.get("command")))
    assert all(isinstance(each.get("value", ""), str) for each in container["env"])
    assert "127.0.0.1" not in made.files["kubernetes.yaml"]
    mounted = {each["name"] for each in container["volumeMounts"]}
    assert mounted == {each["name"] for each in template["spec"]["volumes"]}
    (port,) = container["ports"]
    assert service["spec"]["ports"][0]["targetPort"] == port["name"] == container["startupProbe"]["httpGet"]["port"]
    words = container.get("args", container.get("command"))
    assert words[words.index("--port") + 1] == str(port["containerPort"])
    claimed = template["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"]
    assert claimed == claim["metadata"]["name"]
    assert ("resources" in container) == (engine != "llama.cpp")


def test_compose_is_reached_from_its_own_machine_only() -> None:
    service = yaml.safe_load(export(shipment(HUB), "docker-compose", "vllm").files["docker-compose.yaml"])[
        "services"
    ]["llm"]
    assert service["ports"] == ["127.0.0.1:8000:8000"]
    assert "0.0.0.0" in service["command"]
    assert all(isinstance(word, str) for word in service["command"])


def test_nothing_is_written_outside_and_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    bundle = export(shipment(), "worker")
    assert "pip install mcp-core" not in bundle.files["README.md"]  # that is somebody else's on PyPI
    paths = write(bundle, out)
    assert all(path.is_relative_to(out) for path in paths)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(paths)
    before = (out / "README.md").read_text()
    with pytest.raises(InputError, match="not empty"):
        write(export(shipment(), "worker"), out)
    assert (out / "README.md").read_text() == before


def test_the_gguf_is_copied_not_linked(tmp_path: Path) -> None:
    model = tmp_path / "some.gguf"
    model.write_bytes(b"GGUF")
    made = export(shipment({"model": {"source": "gguf", "id": str(model)}}), "llama.cpp")
    write(made, tmp_path / "out")
    (tmp_path / "out" / "model.gguf").write_bytes(b"other")
    assert model.read_bytes() == b"GGUF"


@pytest.mark.parametrize(("attention", "flag", "number"), [("sdpa", "auto", -1), ("eager", "off", 0)])
def test_llama_cpp_is_started_with_the_attention_that_was_measured(
    attention: str, flag: str, number: int, tmp_path: Path
) -> None:
    model = tmp_path / "some.gguf"
    model.write_bytes(b"GGUF")
    changes = {"model": {"source": "gguf", "id": str(model)}, "engine": "llama.cpp", "attention": attention}
    made = export(shipment(changes | {"quantization.scheme": "gguf"}), "llama.cpp")
    assert f"--flash-attn {flag}" in made.files["serve.sh"]
    assert f'"flash_attn": {number}' in made.files["serve.py"]
    assert not [each for each in made.not_carried if each.startswith("attention")]


@pytest.mark.parametrize("target", ["docker-compose", "kubernetes"])
def test_a_container_refuses_a_draft_that_it_does_not_see(target: str) -> None:
    main = HUB | {"model": {"source": "folder", "id": "/m/big"}, "speculation": "draft"}
    with pytest.raises(RecipeError, match="/m/small lies on this machine"):
        export(shipment(main | {"draft": {"source": "folder", "id": "/m/small"}}), target, "vllm")
    fetched = export(shipment(main | {"draft": {"source": "hub", "id": "o/small"}}), "vllm").files["serve.sh"]
    assert "o/small" in fetched
    assert "OFFLINE" not in fetched


@pytest.mark.parametrize("target", ["llama.cpp", "worker", "transformers"])
def test_the_command_that_starts_it_is_one_that_a_shell_can_read(target: str) -> None:
    made = export(shipment(), target)
    started = shlex.split(made.run)
    named = [word.removeprefix("./") for word in started if word.endswith((".sh", ".py"))]
    assert named
    assert set(named) <= made.files.keys()
    assert " or " not in made.run


def test_what_is_no_server_is_verified_by_measuring_its_recipe() -> None:
    made = export(shipment(), "transformers")
    assert confirm_command(made, "my dir") == "mcp-core bench 'my dir/recipe.json' 'my dir/workload.json'"
    assert {"recipe.json", "workload.json"} <= made.files.keys()
    text = made.files["README.md"]
    assert "    mcp-core bench recipe.json workload.json\n" in text
    assert f"mcp-core compare {shipment().run_id} RUN" in text


def test_the_command_that_verifies_quotes_its_folder() -> None:
    assert confirm_command(export(shipment(), "worker"), "my $(x)") == "mcp-core confirm 'my $(x)'"


def test_a_gguf_that_is_gone_is_said_by_every_target(tmp_path: Path) -> None:
    gone = shipment({"model": {"source": "gguf", "id": str(tmp_path / "gone.gguf")}})
    for target in ("llama.cpp", "transformers"):
        with pytest.raises(ModelNotFound, match="no file"):
            export(gone, target)


_MORE = ("torchao-int8-weight-only", "torchao-int8-dynamic", "torchao-fp8-weight-only", "bnb-nf4", "bnb-int8")


@pytest.mark.parametrize(
    "scheme",
    [
        "none",
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in (*_MORE, "classic-dynamic", "torchao-int4-weight-only")
        ),
    ],
)
def test_the_transformers_script_runs_alone(tmp_path: Path, scheme: str) -> None:
    model = build_tiny_llama(tmp_path / "tiny")
    changes = {"model": {"source": "folder", "id": str(model)}, "dtype": "bf16" if "int4" in scheme else "fp32"}
    changes["quantization.scheme"] = scheme
    write(export(shipment(changes), "transformers"), tmp_path / "out")
    assert "mcp_core" not in (tmp_path / "out" / "run.py").read_text()
    command = [sys.executable, "-W", "ignore", tmp_path / "out" / "run.py", "hello", "--tokens", "3"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    said = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert said.returncode == 0, said.stderr[-2000:]
    assert "tokens in" in said.stdout


@pytest.mark.parametrize("scheme", [name for name, row in SCHEMES.items() if row.engine == "transformers"])
def test_every_scheme_makes_a_script_or_says_why_not(scheme: str) -> None:
    what = shipment(HUB | {"quantization.scheme": scheme})
    if (why := why_not(what, "transformers")) is None:
        compile(export(what, "transformers").files["run.py"], "run.py", "exec")
    else:
        assert "activation ranges" in why.message


def test_runs_that_speak_for_nothing_are_not_shipped(tmp_path: Path) -> None:
    run, _ = planted_run(Law(), 4)
    with pytest.raises(InputError, match="measured nothing"):
        of_run(run.model_copy(update={"status": "failed"}))
    endpoint = run.recipe.replace({"model": {"source": "endpoint", "id": "http://x"}, "engine": "endpoint"})
    with pytest.raises(InputError, match="someone else set up"):
        of_run(run.model_copy(update={"recipe": endpoint}))
    with pytest.raises(ModelNotFound):
        read_shipment("no-such-run", lambda _: None)
    wrong = tmp_path / "wrong.json"
    wrong.write_text('{"a": 1}')
    with pytest.raises(InputError, match="neither a Run nor a Decision"):
        read_shipment(str(wrong), lambda _: None)
    open_context = replace(of_run(run), recipe=run.recipe.replace({"kv.max_context": None}), run=None)
    with pytest.raises(InputError, match="context length"):
        export(open_context, "llama.cpp")


def test_a_decision_is_read_from_its_file(tmp_path: Path) -> None:
    from tests.decision.test_confirmation import decision

    file, made = tmp_path / "decision.json", decision()
    file.write_text(made.to_json())
    what = read_shipment(str(file), lambda _: None)
    assert what.decision == made
    assert what.evidence == "measured on transformers"
    assert "mcp-core verify decision.json" in export(what, "worker").files["README.md"]
    with pytest.raises(InputError, match="no winner"):
        of_decision(made.model_copy(update={"winner": None}))


def test_a_bundle_quotes_the_figures_of_its_decision_not_the_newest_runs() -> None:
    from tests.decision.test_confirmation import decision

    run, _ = planted_run(Law(), 4)
    made = decision()
    assert made.winner is not None
    figures = made.winner.figures.model_copy(
        update={"output_tok_s": 1291.04, "ttft_ms": 46.2, "failed_share": 0.0, "within": ("p90 TPOT 12.1 ≤ 40 ms",)}
    )
    changed = {"figures": figures, "starts": 2, "runs": (run.id, "20261126-015444-0394f20e")}
    what = of_decision(made.model_copy(update={"winner": made.winner.model_copy(update=changed)}), lambda _: run)
    text = export(what, "worker").files["README.md"]
    assert "| output tokens/s | 1,291.0 |" in text
    assert "| p50 TTFT, ms | 46.2 |" in text
    assert "| fresh starts | 2, figures are their mean |" in text
    assert "| within | p90 TPOT 12.1 ≤ 40 ms |" in text
    assert f"Runs {run.id}, 20261126-015444-0394f20e, workload" in text
    assert run.measurement is not None
    assert f"{run.measurement.output_tok_s:,.1f}" not in text
    alone = export(of_run(run.model_copy(update={"recipe": what.recipe})), "worker").files["README.md"]
    assert f"| output tokens/s | {run.measurement.output_tok_s:,.1f} |" in alone
