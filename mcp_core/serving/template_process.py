"""Renders one model's chat template, as a process of its own that its worker can kill.

A chat template comes from the model's author and may loop or grow without end: it runs in jinja2's sandbox, with
limited memory, and its caller (``chat_template.py``) sets the time. The environment is the one that transformers
gives to templates. Stdin: a JSON line ``{"template", "tokens"}``, then one a request, ``{"messages"}``. Stdout: a
JSON line each, ``{"text"}`` or ``{"error"}``. This file knows neither tokenizers nor HTTP, and imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import sys
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

__all__ = ["compile_template", "main"]

MEMORY_LIMIT_BYTES = 1024**3


def main() -> None:
    """Serve until stdin ends."""
    _limit_memory()
    setup = json.loads(sys.stdin.readline())
    try:
        template = compile_template(setup["template"])
        _answer({"text": ""})
    except Exception as error:  # noqa: BLE001 - a process boundary: the template's author may have written anything
        _answer({"error": _cause(error)})
        return
    for line in sys.stdin:
        _answer(_render(template, setup["tokens"], json.loads(line)["messages"]))


def compile_template(source: str) -> Template:
    """The template in transformers' environment. Raises jinja2.TemplateError."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "namespace": _TemplateNamespace,
    }
    return environment.from_string(source)


def _render(template: Template, tokens: dict[str, str], messages: list[dict[str, Any]]) -> dict[str, str]:
    try:
        text = template.render(
            **{**tokens, "messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
        )
    except Exception as error:  # noqa: BLE001 - a process boundary: the template's author may have written anything
        return {"error": _cause(error)}
    return {"text": text}


class _GenerationTag(Extension):
    """``{% generation %}`` marks the assistant's text for training; here its body is simply rendered."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _TemplateNamespace(Namespace):
    """A namespace without names that reach Python's internals."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a chat template cannot store {name!r} on a namespace")
        super().__setitem__(name, value)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes HTML characters, which a prompt must not have.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)


def _cause(error: Exception) -> str:
    """One line."""
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, TemplateError) and text else f"{type(error).__name__} {text}".strip()


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource  # not on Windows

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))


def _answer(document: dict[str, str]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
