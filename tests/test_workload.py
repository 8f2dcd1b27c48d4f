from __future__ import annotations

import pytest

from mcp_core.errors import ModelNotFound, WorkloadError
from mcp_core.workload import WORKLOADS, Lengths, Workload, workload_preset


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_preset_survives_a_json_round_trip(name):
    workload = workload_preset(name)
    assert workload.name == name
    assert Workload.from_json(workload.model_dump_json()) == workload


def test_the_presets_that_others_rely_on():
    chat, burst = workload_preset("short-chat"), workload_preset("burst")
    assert (chat.requests, chat.concurrency, chat.prompt_tokens, chat.output_tokens) == (
        16,
        1,
        Lengths(min=64, max=64),
        Lengths(min=32, max=32),
    )
    assert (burst.requests, burst.concurrency, burst.prompt_tokens, burst.output_tokens) == (
        32,
        32,
        Lengths(min=16, max=96),
        Lengths(min=4, max=24),
    )
    assert chat.smoke_test
    assert burst.smoke_test


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"requests": 0}, "requests"),
        ({"prompt_tokens": {"min": 9, "max": 3}}, "prompt_tokens"),
        ({"slo": {}}, "slo"),
        ([], "document"),
    ],
)
def test_a_malformed_workload_names_the_field(document, words):
    with pytest.raises(WorkloadError, match=words):
        Workload.from_dict(document)


def test_replace_and_unknown_names():
    assert Workload().replace({"prompt_tokens.max": 80, "seed": 3}).prompt_tokens.max == 80
    with pytest.raises(WorkloadError, match="colour"):
        Workload().replace({"colour": 1})
    with pytest.raises(ModelNotFound, match="burst"):
        workload_preset("nonsense")


def test_fingerprint_ignores_the_name_and_sees_the_rest():
    base = Workload()
    assert base.replace({"name": "other"}).fingerprint == base.fingerprint
    assert base.replace({"repeat": 1}).fingerprint != base.fingerprint
