"""The folder that another engine reads a model from, and what has to be known of its tokenizer.

A random-weight shape gets a folder with its config.json and a synthetic tokenizer; weights it has none. This file
does not know the engine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from mcp_core import paths
from mcp_core.errors import InvalidModel
from mcp_core.models import hub, shapes
from mcp_core.models.architecture import ResolvedModel
from mcp_core.models.rope_fields import with_top_level_rope
from mcp_core.models.synthetic_tokenizer import BOS, BOS_ID, CHAT_TEMPLATE, EOS, EOS_ID, synthetic_tokenizer
from mcp_core.recipe import ModelRef

__all__ = ["fetched_folder", "shape_files", "special_ids"]

Report = Callable[[float | None, str], None]


def fetched_folder(resolved: ResolvedModel, hub_token: str | None, report: Report) -> Path:
    """The model's folder, downloaded or written where it was not here. Raises what ``hub.download`` raises."""
    if resolved.random_weights:
        return _shape_folder(resolved.ref)
    return resolved.folder or hub.download(resolved.ref, hub_token, report)


def special_ids(folder: Path) -> frozenset[int]:
    """Ids of special tokens, as tokenizer.json marks them; none where there is no such file.

    Raises InvalidModel for a file that is not JSON of that form.
    """
    file = folder / "tokenizer.json"
    try:
        added = json.loads(file.read_text(encoding="utf-8")).get("added_tokens", ()) if file.is_file() else ()
        return frozenset(int(each["id"]) for each in added if each.get("special"))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InvalidModel(f"{file} is not a tokenizer's file.", "Copy it again from where it came.") from error


def shape_files(ref: ModelRef) -> dict[str, str]:
    """The files of a random-weight shape by name: its config.json and a synthetic tokenizer."""
    spec = shapes.spec_of(ref)
    config = shapes.config_of(ref) | {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID}
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "chat_template": CHAT_TEMPLATE,
        "model_max_length": spec.context,
    }
    return {
        "config.json": json.dumps(with_top_level_rope(config), indent=2),
        "tokenizer_config.json": json.dumps(tokenizer, indent=2),
        "tokenizer.json": synthetic_tokenizer(spec.vocab).to_str(),
    }


def _shape_folder(ref: ModelRef) -> Path:
    """Written anew each time: it takes a second, and a half-written one never stays."""
    name = (
        ref.id
        if ref.shape is None
        else f"custom-{hashlib.sha256(ref.shape.model_dump_json().encode()).hexdigest()}"
    )
    folder = paths.home("shapes", name)
    for file, text in shape_files(ref).items():
        (folder / file).write_text(text)
    return folder
