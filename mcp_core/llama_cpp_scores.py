"""How likely llama.cpp's server finds a token: what its native route is asked, and what it answers.

It scores no prompt, but says how likely each token was before temperature and filters; so it is made to draw the
very token that is asked about. This file does not know who asks (``inference/llama_cpp_engine.py``,
``evaluation/position_scores.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["ALL", "SMALLEST", "listed", "question"]

# More alternatives than any vocabulary has tokens.
ALL = 1_000_000
# llama.cpp's probabilities are fp32; ln of the smallest above 0. A smaller one is told as ln 0.
SMALLEST = -104.0
# Added to a token's logit when it is drawn, and to none of those that are told: no other logit comes near.
_CERTAIN = 1e6


def question(before: Sequence[int], drawn: int, top: int) -> dict[str, Any]:
    """Ask how likely ``drawn`` and the ``top`` likeliest tokens are after ``before``.

    They are the model's own: ``post_sampling_probs`` is off, so neither the bias nor the temperature is in them.
    All but the newest of ``before`` is the slot's already when positions are asked for in order; the first position
    leaves nothing of what the slot held for others.
    """
    return {
        "prompt": before,
        "n_predict": 1,
        "n_probs": top,
        "post_sampling_probs": False,
        "logit_bias": [[drawn, _CERTAIN]],
        "samplers": ["temperature"],
        "temperature": 0,
        "cache_prompt": len(before) > 1,
        "stream": False,
    }


def listed(answer: Mapping[str, Any]) -> tuple[tuple[int, float], ...]:
    """Ids and natural log-probabilities, the likeliest first, what was drawn once more as the last; () for none."""
    rows = answer.get("completion_probabilities")
    if not rows:
        return ()
    return tuple(
        (int(each["id"]), max(SMALLEST, float(each["logprob"]))) for each in (*rows[0]["top_logprobs"], rows[0])
    )
