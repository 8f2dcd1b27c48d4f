"""The arrows between the rooms, held by a test (mcp_core/README.md has the picture)."""

from __future__ import annotations

import ast
import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = ROOT / "mcp_core"
HEAVY_LIBRARIES = {"torch", "transformers", "bitsandbytes", "torchao", "accelerate"}
VALUES = {
    "errors",
    "recipe",
    "presets",
    "workload",
    "workload_parts",
    "goal",
    "goal_presets",
    "sweep_plan",
    "sweep_presets",
    "ceilings",
    "hardware",
    "schemes",
    "conflicts",
    "results",
    "memory_readings",
    "generation",
    "token_map",
    "trace_summary",
    "profile_plan",
    "views",
    "paths",
    "llama_cpp",
    "engines",
    "engines.launch",
    "engines.interpreters",
    "engines.vllm",
    "engines.sglang",
}
# Rooms that only a worker or a job child imports.
HEAVY = {
    "models.loader",
    "models.loaded",
    "models.checkpoint",
    "models.text_codec",
    "models.load_errors",
    "models.quantized_loading",
    "models.linear_experts",
    "models.prepare",
    "models.gguf_tokenizer",
    "models.random_weights",
    "memory",
    "inference",
    "evaluation.experiment_arms",
    "evaluation.experiment_job",
    "evaluation.ceilings_job",
    "serving.worker",
    "serving.cuda_memory",
    "evaluation.fidelity",
    "evaluation.fidelity_job",
    "evaluation.fidelity_memory",
    "evaluation.fidelity_passages",
    "evaluation.fidelity_scoring",
    "evaluation.sensitivity",
}


@functools.cache
def modules() -> dict[str, Path]:
    names = {}
    for path in CORE.rglob("*.py"):
        parts = path.relative_to(CORE).with_suffix("").parts
        names[".".join(part for part in parts if part != "__init__")] = path
    return names


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def imported(path: Path) -> frozenset[str]:
    """Absolute names of all modules that a file imports, at any depth, type-checking blocks left out."""
    tree = tree_of(path)
    skipped = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def is_heavy(name: str) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in HEAVY)


LIGHT = sorted(name for name in modules() if name and not is_heavy(name))


@pytest.mark.parametrize("name", sorted(modules()))
def test_core_knows_nothing_of_pages_or_streamlit(name):
    for module in imported(modules()[name]):
        assert module.split(".")[0] not in {"streamlit", "pages", "app"}


@pytest.mark.parametrize("name", LIGHT)
def test_light_rooms_never_import_heavy_ones(name):
    for module in imported(modules()[name]):
        assert module.split(".")[0] not in HEAVY_LIBRARIES, f"{name} imports {module}"
        assert not is_heavy(module.removeprefix("mcp_core.")), f"{name} imports {module}"


def test_light_rooms_load_no_heavy_library():
    """The same, transitively, by importing them all in a fresh process."""
    libraries = sorted(HEAVY_LIBRARIES | {"streamlit", "plotly", "pandas"})
    code = (
        "import importlib, json, sys\n"
        f"for name in {LIGHT!r}: importlib.import_module('mcp_core.' + name)\n"
        f"print(json.dumps(sorted(set(sys.modules) & set({libraries!r}))))"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert json.loads(result.stdout) == []


@pytest.mark.parametrize("name", sorted(VALUES))
def test_values_import_only_values(name):
    allowed = VALUES | {"monitoring.nvml"}  # hardware is read through NVML
    ours = {
        module.removeprefix("mcp_core.") for module in imported(modules()[name]) if module.startswith("mcp_core.")
    }
    assert {module for module in ours if module in modules()} <= allowed


PAGES = [*(ROOT / "pages").rglob("*.py"), ROOT / "app.py"]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_pages_use_the_light_side_only(path):
    for module in imported(path):
        assert module.split(".")[0] not in HEAVY_LIBRARIES
        assert not is_heavy(module.removeprefix("mcp_core."))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_session_state_and_cache_have_one_home_each(path):
    text = path.read_text()
    if path.name != "session.py":
        assert "st.session_state" not in text
    if path.name != "workbench.py":
        assert "cache_resource" not in text


@pytest.mark.parametrize("name", sorted(modules()))
def test_every_module_says_what_it_is(name):
    docstring = ast.get_docstring(tree_of(modules()[name]))
    assert docstring
    assert len(docstring) > 30


@pytest.mark.parametrize("name", sorted(modules()))
def test_all_names_exist(name):
    tree = tree_of(modules()[name])
    top = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} | {
        node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
    }
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            exported = ast.literal_eval(node.value)
            assert len(exported) == len(set(exported))
            assert set(exported) <= top, set(exported) - top


NOTE = (CORE / "README.md").read_text()


def expanded(text: str) -> set[str]:
    """``a, b.{c, d}`` as {a, b.c, b.d}."""
    names = set()
    for prefix, braced, plain in re.findall(r"(\w+)\.\{([^}]*)\}|([\w.]+)", text):
        names |= {f"{prefix}.{each.strip()}" for each in braced.split(",")} if braced else {plain}
    return names


@pytest.mark.parametrize(("row", "names"), [("values", VALUES), ("heavy", HEAVY)])
def test_the_note_lists_values_and_heavy_modules(row, names):
    (cell,) = re.findall(rf"^\| {row} \| (.*) \|$", NOTE, re.MULTILINE)
    assert expanded(cell) == names


def test_the_note_has_every_file_and_no_other():
    named = set(re.findall(r"`([a-z0-9_/]+\.py)`", NOTE))  # NAME.py stands for any
    core = {str(path.relative_to(CORE)) for path in CORE.rglob("*.py") if path.name != "__init__.py"}
    pages = {str(path.relative_to(ROOT)) for path in (ROOT / "pages").glob("*.py")}
    parts = {path.name for path in (ROOT / "pages" / "_ui").glob("*.py")}
    assert (core | pages | parts) - named == set(), "files without a line in mcp_core/README.md"
    homes = (ROOT, CORE, CORE / "serving", ROOT / "pages" / "_ui")
    gone = {name for name in named if not any((home / name).is_file() for home in homes)}
    assert gone == set(), "lines about files that are not there"


def test_the_note_has_every_method_of_the_workbench():
    from mcp_core.workbench import Workbench

    methods = {name for name in vars(Workbench) if not name.startswith("_")}
    (section,) = re.findall(r"^## The Workbench's methods\n(.*?)^## ", NOTE, re.MULTILINE | re.DOTALL)
    assert methods - set(re.findall(r"`(\w+)", section)) == set()


def test_the_note_has_every_route():
    files = (CORE / "serving" / "control.py", *(CORE / "serving").glob("*_routes.py"))
    source = "".join(path.read_text() for path in files)
    routes = {f"/control{path}" for path in re.findall(r'@router\.\w+\("(/[\w-]+)"\)', source)}
    assert len(routes) >= 13
    assert {route for route in routes if not re.search(rf"{route}[`?]", NOTE)} == set()
