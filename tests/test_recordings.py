from __future__ import annotations

import pytest

from mcp_core import recordings
from mcp_core.errors import InputError

OURS = b"""{"at_s": 10.5, "prompt_tokens": 7, "output_tokens": 3}
{"at_s": 10, "prompt_tokens": 5, "output_tokens": 2}
"""
MOONCAKE = b"""{"timestamp": 500, "input_length": 7, "output_length": 3, "hash_ids": [1]}
{"timestamp": 0, "input_length": 5, "output_length": 2, "hash_ids": [1]}"""
AZURE = b"""TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,5,2
2023-11-16 18:15:47.1805900,7,3
"""


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", OURS), ("m.jsonl", MOONCAKE), ("azure.csv", AZURE)])
def test_the_same_requests_in_three_forms_are_one_recording(name, content):
    kept = recordings.add(name, content)
    assert [(each.at_s, each.prompt_tokens, each.output_tokens) for each in kept.requests] == [
        (0, 5, 2),
        (0.5, 7, 3),
    ]
    assert (kept.duration_s, kept.rate_s) == (0.5, 2)
    assert kept.sha256 == recordings.add("again.jsonl", OURS).sha256
    assert recordings.get(kept.sha256) == recordings.list_recordings()[0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no requests"),
        (b"{", "line 1, is not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"when": 1}', "none of the columns"),
        (b'{"at_s": "soon", "prompt_tokens": 7, "output_tokens": 3}', "not a time"),
        (b'{"at_s": NaN, "prompt_tokens": 7, "output_tokens": 3}', "out of range"),
        (b'{"at_s": 1, "prompt_tokens": -7, "output_tokens": 3}', "out of range"),
        (b"\xff\xfe", "UTF-8"),
    ],
)
def test_a_wrong_file_is_refused_by_line(content, words):
    with pytest.raises(InputError, match=words):
        recordings.add("x.jsonl", content)


def test_an_unknown_recording_is_refused():
    with pytest.raises(InputError, match="no recording"):
        recordings.get("../" * 10)
