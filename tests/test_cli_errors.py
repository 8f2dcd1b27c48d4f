"""What users get wrong, verb by verb: cause and hint in a line each, the documented exit code, no traceback."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mcp_core import cli
from mcp_core.commands.output import one_line
from mcp_core.decision.store import Store
from mcp_core.evaluation.fake_server import FakeServer, LatencyLaw
from tests.decision.planted import Law, planted_run

GOAL = '{"slo": {"ttft_ms": {"p95": 500}}}'
DEAD = "http://127.0.0.1:9"
FULL = "/dev/full"

Complaint = Callable[..., str]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MCP_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MCP_STORE_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def complaint(capsys: pytest.CaptureFixture[str]) -> Complaint:
    """What a verb says last on stderr, which is two lines, with this exit code."""

    def complain(*arguments: str, code: int = 2) -> str:
        assert cli.main(arguments) == code
        lines = capsys.readouterr().err.splitlines()[-2:]
        assert [line.split()[0] for line in lines] == ["error:", "hint:"], lines
        return "\n".join(lines)

    return complain


def planted() -> str:
    run, records = planted_run(Law(), 8, requests=220)
    with Store() as store:
        store.add(run, records)
    return run.id


# Every verb that reads a file, FILE in its place.
READERS = (
    ("footprint", "FILE"),
    ("serve", "FILE"),
    ("bench", "FILE", "chat"),
    ("bench", "bundled", "FILE"),
    ("capacity", "bundled", "chat", "--goal", "FILE"),
    ("profile", "FILE", "--out", "out"),
    ("sweep", "FILE"),
    ("fidelity", "FILE"),
    ("fidelity", "bundled", "--text", "FILE"),
    ("sensitivity", "FILE"),
    ("quality", "bundled", "--items", "FILE"),
    ("calibrate", "FILE"),
    ("quantize", "FILE", "--out", "out"),
    ("runs", "merge", "FILE"),
    ("why", "FILE"),
    ("compare", "FILE", "FILE"),
    ("recommend", "FILE"),
    ("export", "FILE", "--target", "worker", "--out", "out"),
    ("report", "FILE", "--out", "out.html"),
    ("import", "FILE"),
    ("verify", "FILE"),
    ("confirm", "FILE"),
    ("recordings", "add", "FILE"),
)
# Files that nobody can use, by name; None: there is none.
FILES: dict[str, bytes | None] = {
    "none.json": None,
    "empty.json": b"",
    "half.json": b'{"model": ',
    "list.json": b"[]",
    "binary.json": b"\x00\xff\xfe\x80" * 100,
    "deep.json": b"[" * 100_000,
}


def _is_wrong(verb: tuple[str, ...], name: str) -> bool:
    """Any text is one that fidelity can read."""
    return "--text" not in verb or name not in ("half.json", "list.json", "deep.json")


@pytest.mark.parametrize(
    ("verb", "name"), [(verb, name) for verb in READERS for name in (*FILES, "folder") if _is_wrong(verb, name)]
)
def test_a_file_that_nobody_can_use(complaint: Complaint, tmp_path: Path, verb: tuple[str, ...], name: str) -> None:
    content = FILES.get(name)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    if name == "folder":
        (tmp_path / name).mkdir()
    said = complaint(*(name if word == "FILE" else word for word in verb))
    assert "BaseModel" not in said
    assert "instance of" not in said


@pytest.mark.parametrize("verb", READERS, ids="-".join)
def test_a_name_that_is_longer_than_a_file_s(complaint: Complaint, verb: tuple[str, ...]) -> None:
    said = complaint(*("x" * 5000 if word == "FILE" else word for word in verb))
    assert "MCP_HOME" not in said
    assert len(said) < 1000


@pytest.mark.parametrize("verb", ["footprint", "serve", "fidelity", "sensitivity", "calibrate"])
def test_an_empty_name(complaint: Complaint, verb: str) -> None:
    assert "empty" in complaint(verb, "")


def test_where_another_can_be_had_is_said(complaint: Complaint) -> None:
    assert "mlperf-chat" in complaint("recommend", "mlperf-caht")
    assert "recommend GOAL --out" in complaint("verify", "none.json")
    assert "profile --help" in complaint("profile", "bundled")


def test_a_run_where_a_decision_is_asked_is_called_one(complaint: Complaint, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(planted_run(Law(), 8, requests=2)[0].model_dump_json())
    said = complaint("verify", "run.json")
    assert "run.json holds a Run and no Decision." in said
    assert "recommend GOAL --out" in said


# --out


@pytest.mark.parametrize(
    "verb",
    [
        ("bench", "bundled", "short-chat", "--url", DEAD),
        ("capacity", "bundled", "chat", "--goal", GOAL, "--url", DEAD),
        ("fidelity", "bundled"),
        ("quality", "bundled"),
        ("sweep", "bundled"),
        ("recommend", "{}"),
    ],
    ids=lambda verb: verb[0],
)
def test_out_in_no_folder_or_onto_one_is_known_at_once(
    complaint: Complaint, tmp_path: Path, verb: tuple[str, ...]
) -> None:
    assert "There is no folder" in complaint(*verb, "--out", "none/x.json")
    (tmp_path / "there").mkdir()
    assert "is a folder" in complaint(*verb, "--out", "there")


def test_a_full_disk_under_out_is_not_the_disk_of_ours(
    complaint: Complaint, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    planted()
    said = complaint("bench", "bundled", "short-chat", "--url", DEAD, "--out", FULL, code=1)
    assert f"{FULL} cannot be written: No space left on device" in said
    said = complaint("recommend", "{}", "--out", FULL, code=1)
    assert f"{FULL} cannot be written: No space left on device" in said
    (tmp_path / "x.html").symlink_to(FULL)
    assert "x.html cannot be written" in complaint("report", planted(), "--out", "x.html", code=1)
    quick = ("--set", "workload.requests=2", "--set", "workload.output_tokens=2")
    with FakeServer(LatencyLaw(1, 1)) as server:
        limits = ("--goal", '{"slo": {"tpot_ms": {"p50": 500}}}', "--most", "1", "--out", FULL)
        assert cli.main(["capacity", "bundled", "short-chat", "--url", server.url, *limits, *quick]) == 1
    captured = capsys.readouterr()
    assert "1 user meets every limit" in captured.out  # what took minutes is said first
    assert f"{FULL} cannot be written" in captured.err


def test_a_full_disk_under_stdout() -> None:
    with Path(FULL).open("w") as full:
        command = [sys.executable, "-m", "mcp_core.cli", "preset"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert (
        done.stderr
        == "error: The answer cannot be written: No space left on device.\nhint: Send stdout elsewhere.\n"
    )


# Servers


class _Page(http.server.BaseHTTPRequestHandler):
    """Some other server: it has no such page, and says so at length."""

    def do_GET(self) -> None:
        self.send_error(404, explain="nothing\nhere " * 500)

    def log_message(self, *_: object) -> None:
        """Not on our stderr."""


@pytest.fixture
def page() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_url_behind_which_is_something_else(
    complaint: Complaint, page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MCP_CONTROL_TOKEN", "a-secret-of-this-test")
    for code, verb in (
        (1, ("bench", "bundled", "short-chat")),
        (2, ("capacity", "bundled", "chat", "--goal", GOAL)),
        (2, ("profile", "bundled", "--out", "out")),
        (2, ("fidelity", "bundled")),
    ):
        said = complaint(*verb, "--url", page, code=code)
        assert "404" in said
        assert len(said) < 1300


def test_a_url_where_nobody_answers(complaint: Complaint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCP_CONTROL_TOKEN", "a-secret-of-this-test")
    for verb in (
        ("bench", "bundled", "short-chat"),
        ("capacity", "bundled", "chat", "--goal", GOAL),
        ("profile", "bundled", "--out", "out"),
        ("fidelity", "bundled"),
    ):
        assert "does not answer" in complaint(*verb, "--url", DEAD, code=1)


def test_a_cause_is_one_line() -> None:
    assert one_line("a\n  b\tc") == "a b c"
    assert len(one_line("x " * 10_000)) < 700


def test_what_is_valid_elsewhere_is_no_run(complaint: Complaint, tmp_path: Path) -> None:
    (tmp_path / "goal.json").write_text(json.dumps({"users": 1}))
    for verb in (("why", "goal.json"), ("compare", "goal.json", "goal.json"), ("import", "goal.json")):
        assert "goal.json" in complaint(*verb)
