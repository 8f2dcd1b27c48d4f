"""Rotary embedding's fields in a config.json that readers of transformers 4's form understand too.

Transformers 5 keeps them together in ``rope_parameters``. A class of transformers 4, which vLLM 0.23 may run with,
looks for each at the top level; what is not there gets its default, and vLLM's ``patch_rope_parameters`` prefers
that: a base of 500,000 would be served as 10,000. This file does not know who writes the config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["with_top_level_rope"]

_OWN_FIELDS = ("rope_theta", "partial_rotary_factor")


def with_top_level_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same config.json, with each rotary field also where transformers 4 keeps it.

    Parameters that differ by layer type have no such form; vLLM reads those as they are.
    """
    rope: Mapping[str, Any] = config.get("rope_parameters") or {}
    if any(isinstance(value, Mapping) for value in rope.values()):
        return dict(config)
    fields = {name: rope[name] for name in _OWN_FIELDS if rope.get(name) is not None}
    if rope.get("rope_type", "default") != "default":
        fields["rope_scaling"] = dict(rope)  # whole: transformers 5 takes it instead of rope_parameters
    return {**config, **fields}
