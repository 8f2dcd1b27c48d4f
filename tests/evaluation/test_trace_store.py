from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest

from mcp_core import paths
from mcp_core.errors import InputError
from mcp_core.evaluation import trace_store
from mcp_core.evaluation.chrome_trace import read_trace
from mcp_core.evaluation.trace_reading import read_summary, summarize
from tests.evaluation.traces import MadeTrace


def kept(name: str, most_bytes: int = trace_store.MOST_BYTES) -> trace_store.KeptTrace:
    trace = MadeTrace()
    trace.step(0, 100)
    document = trace.document(trace_id=name, created=datetime(2026, 11, 25, tzinfo=UTC).isoformat())
    return trace_store.keep(document, summarize(document), most_bytes)


def test_what_is_kept_is_found_listed_and_deleted():
    for name in ("20261125-1", "20261125-2"):
        kept(name)
    assert [each.id for each in trace_store.list_traces()] == ["20261125-2", "20261125-1"]
    found = trace_store.find("20261125-1")
    assert read_summary(found.path) == found.summary
    assert found.bytes == found.path.stat().st_size > 100
    trace_store.delete("20261125-1")
    with pytest.raises(InputError, match="no trace"):
        trace_store.find("20261125-1")


def test_the_oldest_go_when_there_are_too_many_bytes():
    size = kept("20261125-1").bytes
    for number in (2, 3, 4):
        kept(f"20261125-{number}", most_bytes=int(2.5 * size))
    assert [each.id for each in trace_store.list_traces()] == ["20261125-4", "20261125-3"]
    kept("20261125-5", most_bytes=1)  # the newest stays, whatever it takes
    assert [each.id for each in trace_store.list_traces()] == ["20261125-5"]


@pytest.mark.parametrize("name", ["", "../jobs", "a/b", ".", "a\0b"])
def test_a_name_leads_nowhere_else(name):
    with pytest.raises(InputError, match="not the name"):
        trace_store.find(name)


def test_a_half_written_one_is_not_listed():
    (paths.home("traces", "20261125-9") / "summary.json").write_text("{")
    assert trace_store.list_traces() == ()


def test_tensorboard_finds_it(tmp_path):
    copy = trace_store.write_layout(kept("20261125-1"), tmp_path)
    folder, name = copy.parent.relative_to(tmp_path), copy.name
    assert folder.as_posix() == "plugins/profile/20261125-1"
    # As torch-tb-profiler's consts.WORKER_PATTERN has it: worker, time in ms.
    assert re.fullmatch(r"(.*?)(\.\d+)?\.pt\.trace\.json(?:\.gz)?", name).group(2) == ".1795564800000"
    assert read_trace(copy)["mcp"]["trace_id"] == "20261125-1"
