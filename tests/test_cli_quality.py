"""quality and fidelity --url, from the command line to the answer, over servers that are known."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import pytest

from mcp_core.cli import main
from mcp_core.evaluation.length_drift import builtin_prompts
from tests.evaluation.bigram_server import Bigrams, running, table

REPLIES = {each.messages[-1].content: ("yes it is so", "stop") for each in builtin_prompts()}
LONGER = dict.fromkeys(REPLIES, ("yes it is so indeed", "stop"))


@contextmanager
def up(*servers: Bigrams) -> Iterator[list[str]]:
    """Their URLs, served by a thread."""
    urls: list[str] = []
    ready, done = threading.Event(), threading.Event()

    async def serve() -> None:
        async with AsyncExitStack() as stack:
            for each in servers:
                urls.append((await stack.enter_async_context(running(each))).client.url)
            ready.set()
            while not done.is_set():  # noqa: ASYNC110 - a thread's event
                await asyncio.sleep(0.02)

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(20)
    yield urls
    done.set()
    thread.join(timeout=20)


def test_replies_and_tasks_of_two_servers(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    items = tmp_path / "own.jsonl"
    items.write_text('{"context": "Is it?", "choices": ["yes", "no"], "answer": 0}\n' * 3)
    with up(Bigrams(table(1), replies=REPLIES), Bigrams(table(1), replies=LONGER)) as (reference, candidate):
        servers = ("--url", candidate, "--reference-url", reference)
        assert main(["quality", "bundled", *servers, "--items", str(items), "--out", str(tmp_path / "q.json")]) == 0
    said = capfd.readouterr().out
    assert "the candidate says more" in said
    assert "length ratio 1.250 (95 %: 1.250 to 1.250), same text 0%" in said
    assert "flips: 0 lost, 0 won" in said
    written = json.loads((tmp_path / "q.json").read_text())
    assert len(written["replies"]["pairs"]) == 16
    assert written["tasks"]["name"] == "own.jsonl"


def test_fidelity_of_a_url(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "own.txt"
    text.write_text("\n\n".join("the cat sat on the mat. it was warm there, " * 60 for _ in range(3)))
    with up(Bigrams(table(1)), Bigrams(table(1))) as (reference, candidate):
        servers = ("--url", candidate, "--reference-url", reference)
        assert main(["fidelity", "bundled", *servers, "--text", str(text), "--json"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert (answer["status"], answer["path"], answer["kl"]["mean"], answer["top1"]["mean"]) == (
        "measured",
        "endpoint",
        0,
        1,
    )
    assert answer["truncation"]["top_k"] == 20
    assert answer["notes"][0] == "screening only: 3 documents"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["quality", "bundled", "--url", "localhost:8000"], "is not the URL of a server"),
        (["quality", "bundled", "--items", "/nowhere.jsonl"], "cannot be read"),
        (["quality", "bundled", "--out", "/nowhere/q.json"], "There is no folder /nowhere"),
        (["quality", "bundled", "--out", "/tmp"], "/tmp is a folder"),
        (["fidelity", "bundled", "--url", "ftp://x"], "is not the URL of a server"),
        (["fidelity", "bundled", "--reference-url", "http://127.0.0.1:1"], "goes with --url only"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(
    arguments: list[str], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert words in capfd.readouterr().err
