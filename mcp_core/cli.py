"""The command line: ``mcp-core VERB``. A table of verbs, and how what they raise is told.

Exit codes: 0 it answered; 1 it failed, cause and hint on stderr; 2 wrong arguments or Recipe; 130 stopped by the
user. This file does not know what a verb does: only the asked one's module is imported, so that starting is fast.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import NoReturn

from mcp_core.commands.output import complain
from mcp_core.errors import DiskFull, InputError, McpError

__all__ = ["VERBS", "main"]

# verb -> what it does. mcp_core.commands.VERB has add_arguments(parser) and run(options) -> exit code.
VERBS: dict[str, str] = {
    "doctor": "what this machine has and can run",
    "preset": "list the presets, or print one",
    "schema": "JSON Schema of Recipe, Workload, Run, Goal, Decision and sweep plan",
    "footprint": "the memory that a Recipe takes, before loading it",
    "serve": "load a Recipe and serve it by OpenAI's API, in the foreground",
    "bench": "load a Recipe, measure it with a Workload, store one Run",
    "sweep": "measure many configurations unattended, the slow ones shortly; resumed after a crash",
    "capacity": "the largest load that meets every limit of a Goal; each load tried is a stored Run",
    "fidelity": "how far a Recipe's predictions are from the unquantized model's",
    "sensitivity": "which layers lose most by a Recipe's scheme",
    "quality": "what a Recipe changes in replies and in answers to small tasks",
    "handbook": "the article's advice, each tried once on this machine",
    "calibrate": "run a text through a model and keep its activation ranges, for the static schemes",
    "quantize": "write a quantized model as a checkpoint that others can serve",
    "profile": "record what a worker does in a few steps, and say where the time goes",
    "runs": "list, show, tag, delete or merge stored Runs",
    "why": "why a Run is as slow as it is, and what would help",
    "compare": "whether one Run's configuration is better than another's, by the interval of their ratio",
    "recommend": "one configuration for a Goal, and why each other one was refused",
    "export": "the files that deploy a Run or Decision: vLLM, SGLang, llama.cpp, containers, scripts",
    "report": "a Decision or a comparison of Runs as one HTML file, as CSV or JSON",
    "import": "other tools' result files into the store: vLLM, SGLang, AIPerf, GuideLLM, optimum, llama-bench",
    "verify": "whether a Decision still holds, by measuring winner and runner-up again",
    "confirm": "measure what export wrote beside what was predicted of it",
    "models": "list or delete the models kept on this machine",
    "recordings": "list or add recorded requests, to be replayed",
    "texts": "list, add or delete the texts that calibration and fidelity read",
}

_ABOUT = "Master Control Program: LLM inference, measured."
_BEGINNING = """words:
  Recipe     how one model is served: model, engine, scheme, batching; JSON or a preset
  Workload   the requests that are sent: lengths, users or requests/s; JSON or a preset
  Run        one measurement of a Recipe with a Workload on this machine, kept in the store
  Goal       limits that must hold, such as p95 TTFT; a Decision says which Recipe meets them

begin with:
  mcp-core doctor
  mcp-core bench bundled short-chat
  mcp-core why

mcp-core VERB --help says what a verb takes. Exit codes: 0 it answered; 1 it failed or cannot
answer; 2 wrong arguments or input; 130 stopped by you. Answers go to stdout, the rest to stderr."""

# Where a verb's name is none that a module can have.
_MODULES = {"import": "import_runs"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code. Nothing but a bug of ours leaves this as a traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        options = _parsed(arguments)
        code: int = _module_of(options.verb).run(options)
        sys.stdout.flush()  # here, where a reader that has gone is understood
    except SystemExit as stop:  # argparse has said why, or printed its help
        return int(stop.code or 0)
    except McpError as error:
        return _told(error)
    except BrokenPipeError:
        _drop_stdout()
        return 1
    except OSError as error:  # a folder of MCP's own that cannot be used; the user's files are checked where read
        return _told(_of_own_folder(error))
    except KeyboardInterrupt:
        return 130
    return code


class _Help(argparse.RawDescriptionHelpFormatter):
    """Every verb on a line with what it does."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog)
        self._action_max_length = 16  # argparse forgets that verbs are indented below VERB


class _Parser(argparse.ArgumentParser):
    """Says what is wrong as every other error is said: cause and hint, a line each."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}.", f"{self.prog} --help says what it takes.")


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """Raises InputError for what no verb takes, SystemExit once help is printed."""
    options, left = _parser(arguments).parse_known_args(arguments)
    if left:
        hint = f"mcp-core {options.verb} --help says what it takes."
        raise InputError(f"{options.verb} takes no {' '.join(left)}.", hint)
    return options


def _parser(arguments: Sequence[str]) -> _Parser:
    """The parser, with the arguments of the asked verb only."""
    parser = _Parser(prog="mcp-core", description=_ABOUT, epilog=_BEGINNING, formatter_class=_Help)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, about in VERBS.items():
        each = verbs.add_parser(verb, help=about, description=f"{about[0].upper()}{about[1:]}.")
        if verb in arguments:
            _module_of(verb).add_arguments(each)
    return parser


def _module_of(verb: str) -> ModuleType:
    return import_module(f"mcp_core.commands.{_MODULES.get(verb, verb)}")


def _of_own_folder(error: OSError) -> McpError:
    if error.errno == errno.ENAMETOOLONG:  # only what a user gives as a file is that long
        return InputError("An argument is too long for the name of a file.", "Give a file or an id.")
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "Free some disk space (mcp-core models delete ID), or move MCP_HOME to a larger disk."
        return DiskFull(f"{where}The disk that MCP_HOME is on is full.", hint)
    return McpError(f"{where}{error.strerror or error}.", "MCP_HOME says where MCP keeps what it needs.")


def _told(error: McpError) -> int:
    """Its exit code, once it is said."""
    complain(error)
    return 2 if isinstance(error, InputError) else 1


def _drop_stdout() -> None:
    """Whoever read our output has gone; Python would complain once more when it flushes at the end."""
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123 - os.devnull is a name, not a path of ours
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
