"""README.md as a newcomer runs it: its shell commands, its make targets and its Python snippet, as written."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
FIRST_PORT = 8000  # the one that README's snippet names; the test's server takes another


def blocks(language: str) -> list[str]:
    """The fenced code blocks of that language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines() if line.strip()]
VERBS = [line for line in COMMANDS if line.startswith("mcp-core ")]
MAKE = [line for line in COMMANDS if line.startswith("make ")]


@pytest.fixture
def shell(shared_home: Path, tmp_path: Path) -> dict[str, str]:
    """The environment of a reader who has activated the virtual environment."""
    binaries = Path(sys.executable).parent
    return os.environ | {"MCP_HOME": str(shared_home), "PATH": f"{binaries}:{os.environ['PATH']}"}


def run(line: str, environment: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        line, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False
    )


def test_every_line_of_the_shell_blocks_is_tested_here() -> None:
    assert len(VERBS) >= 6
    assert sorted(VERBS + MAKE) == sorted(COMMANDS)
    assert sum(" bench " in line for line in VERBS) == 1  # a minute each


# One after the other, in README's order: a reader sees the Run of ``bench`` in ``runs``.
@pytest.mark.timeout(600)  # a minute by itself
def test_the_commands_do_what_they_say(shell: dict[str, str], tmp_path: Path) -> None:
    said = {}
    for line in VERBS:
        result = run(line, shell, tmp_path)
        assert result.returncode == 0, f"{line}\n{result.stdout}\n{result.stderr}"
        assert "Traceback" not in result.stderr
        said[line] = result.stdout
    assert all(text.strip() for text in said.values())
    assert (tmp_path / "run.json").is_file()
    assert "short-chat" in said["mcp-core runs"]


@pytest.mark.parametrize(("line", "program"), [("make run", "streamlit run app.py"), ("make test", "pytest")])
def test_make_runs_what_readme_says(line: str, program: str, shell: dict[str, str]) -> None:
    assert line in MAKE
    result = run(line.replace("make", "make -n --no-print-directory", 1), shell, ROOT)
    assert result.returncode == 0, result.stderr
    assert program in result.stdout.splitlines()[-1]


def test_make_targets_in_the_text_exist(shell: dict[str, str]) -> None:
    named = set(re.findall(r"`make\s+([\w-]+)", README))
    assert {"install", "lint", "bench", "screenshots"} <= named
    for target in named:
        result = run(f"make -n {target}", shell, ROOT)
        assert result.returncode == 0, f"{target}: {result.stderr}"


@pytest.fixture
def served(shell: dict[str, str], tmp_path: Path) -> Iterator[int]:
    """README's ``mcp-core serve``, on a free port."""
    (line,) = re.findall(rf"`(mcp-core serve [^`]*--port {FIRST_PORT})`", README)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = line.replace(str(FIRST_PORT), str(port)).split()
    with subprocess.Popen(command, env=shell, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == f"ready http://127.0.0.1:{port}\n"
            yield port
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == 0


def test_the_snippet_gets_an_answer(served: int, shell: dict[str, str], tmp_path: Path) -> None:
    (snippet,) = blocks("python")
    assert f":{FIRST_PORT}/v1" in snippet
    if "temperature" not in snippet:  # greedy: the same answer every time
        snippet = snippet.replace("messages=[", "temperature=0, messages=[")
    script = tmp_path / "snippet.py"
    script.write_text(snippet.replace(str(FIRST_PORT), str(served)))
    result = run(f"{sys.executable} {script}", shell, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "Paris" in result.stdout


def test_the_settings_are_those_that_the_code_reads() -> None:
    named = set(re.findall(r"^\| `([A-Z_]+)` \|", README, re.MULTILINE))
    sources = [*(ROOT / "mcp_core").rglob("*.py"), *(ROOT / "pages").rglob("*.py")]
    text = "".join(path.read_text() for path in sources)
    read = set(re.findall(r'environ(?:\.get\(|\[)"(\w+)"|"(?=MCP_)(\w+)"', text))
    read = {name for pair in read for name in pair if name and name != "MCP_"}
    assert named == read, "README's table and the code's variables differ"
