"""vLLM and SGLang as targets: the same flags with which MCP starts them (``engines/``), as a script.

This file does not know what any flag is called, or how a process is started.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from mcp_core.decision.bundle import Bundle, Command, shell_script
from mcp_core.decision.shipment import Shipment
from mcp_core.engines import FOREIGN
from mcp_core.engines.launch import Given, Refusal
from mcp_core.engines.model_files import shape_files
from mcp_core.errors import RecipeError
from mcp_core.recipe import ModelRef, Recipe
from mcp_core.schemes import SCHEMES

__all__ = ["PORTS", "ForeignServe", "bundle", "serve", "to_engine"]

PORTS = {"vllm": 8000, "sglang": 30_000}
_PROGRAMS = {"vllm": "vllm serve", "sglang": "python -m sglang.launch_server"}
# Arguments that stand before those which the script shows.
_ENTRY = {"vllm": 3, "sglang": 2}
# The share of the device's memory that vLLM takes where nobody says which; its own default.
_MEMORY_SHARE = 0.9
_INSTALL = {"vllm": "pip install vllm (made for 0.23)", "sglang": "pip install sglang (made for 0.5.23)"}
# MCP serves what lies in a folder and fetches nothing meanwhile; a deployment may have to fetch.
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_KEYS = ("VLLM_API_KEY",)


@dataclass(frozen=True, slots=True)
class ForeignServe:
    """An engine's command for a Shipment; ``model`` is where the model is, as an argument."""

    engine: str
    recipe: Recipe
    model: str
    arguments: tuple[str, ...]
    environment: dict[str, str]
    not_carried: tuple[str, ...]

    def shown(self, model: str = '"$MODEL"') -> str:
        """The command line as a shell reads it, from the engine's program on."""
        words = [
            model if word == self.model else shlex.quote(word) for word in self.arguments[_ENTRY[self.engine] :]
        ]
        return " \\\n  ".join([_PROGRAMS[self.engine], *_paired(words)])


def to_engine(recipe: Recipe, engine: str) -> Recipe:
    """The Recipe for vLLM or SGLang on a GPU. Raises RecipeError for what the engine cannot do, with the reason."""
    changes = {"engine": engine, "engine_python": None}
    if not recipe.device.startswith("cuda"):
        changes["device"] = "cuda:0"
    asked = recipe.replace(changes)
    refusals = list(FOREIGN[engine].refusals(asked))
    if refusals:
        raise RecipeError(_why(refusals, engine), _hint(refusals, recipe))
    return asked


def serve(shipment: Shipment, engine: str, port: int | None = None) -> ForeignServe:
    """The command. Raises RecipeError where the engine cannot do it, InputError for an unknown context."""
    recipe = to_engine(shipment.recipe, engine)
    given = Given(
        folder=Path(_place(recipe.model)),
        max_context=shipment.max_context,
        port=port or PORTS[engine],
        token="",
        scratch=Path(),
        memory_share=_MEMORY_SHARE,
        random_weights=recipe.model.source == "shape",
        draft=Path(_place(recipe.draft)) if recipe.draft else None,
    )
    launched = FOREIGN[engine].launch(recipe, given)
    fetches = "hub" in (recipe.model.source, recipe.draft.source if recipe.draft else None)
    dropped = _OFFLINE + _KEYS if fetches else _KEYS
    environment = {name: value for name, value in launched.environment.items() if name not in dropped}
    return ForeignServe(
        engine,
        recipe,
        str(given.folder),
        _without_key_file(launched.arguments) + _revision(recipe.model),
        environment,
        tuple(map(str, FOREIGN[engine].not_carried(recipe))) + _device(shipment.recipe, engine),
    )


def bundle(shipment: Shipment, engine: str) -> Bundle:
    """A script that starts the engine, with the files of a random-weight shape where that is the model."""
    served = serve(shipment, engine)
    title = FOREIGN[engine].title
    files = model_folder(served.recipe.model)
    here = '$(dirname "$0")/model' if files else ""
    before = f"MODEL=${{MODEL:-{here or shlex.quote(served.model)}}}\n{_key(engine)}"
    script = shell_script(
        f"{title}, from Run {shipment.run_id}.", served.shown() + ' \\\n  "$@"', served.environment, before
    )
    return Bundle(
        target=engine,
        title=title,
        engine=engine,
        files={"serve.sh": script, **files},
        run="./serve.sh",
        command=Command(engine, served.arguments, served.environment),
        executable=frozenset({"serve.sh"}),
        not_carried=served.not_carried,
        steps=(_INSTALL[engine], *_fetching(served.recipe.model)),
    )


def model_folder(ref: ModelRef) -> dict[str, str]:
    """config.json and tokenizer of a random-weight shape, under model/; nothing for another source."""
    return {f"model/{name}": text for name, text in shape_files(ref).items()} if ref.source == "shape" else {}


def _place(ref: ModelRef) -> str:
    """A folder by its whole path: a script in quotes expands no ~, and starts wherever it is called."""
    if ref.source == "folder":
        return str(Path(ref.id).expanduser().absolute())
    return "model" if ref.source == "shape" else ref.id


def _revision(ref: ModelRef) -> tuple[str, ...]:
    return ("--revision", ref.revision) if ref.source == "hub" and ref.revision else ()


def _fetching(ref: ModelRef) -> tuple[str, ...]:
    if ref.source == "hub":
        return (f"the server downloads {ref.id} itself; a gated model needs HF_TOKEN",)
    if ref.source == "folder":
        return (f"copy {ref.id} to the server and set MODEL to where it is",)
    return ()


def _without_key_file(arguments: tuple[str, ...]) -> tuple[str, ...]:
    """MCP hands SGLang its key in a file of its own; a deployment brings its own key."""
    if "--config" not in arguments:
        return arguments
    at = arguments.index("--config")
    return arguments[:at] + arguments[at + 2 :]


def _key(engine: str) -> str:
    if engine == "vllm":
        return "# vLLM reads a key for its clients from VLLM_API_KEY.\n"
    return (
        "# SGLang takes a key for its clients on its command line only, that other users of the host can read.\n"
        'if [ -n "${API_KEY:-}" ]; then set -- "$@" --api-key "$API_KEY"; fi\n'
    )


def _device(recipe: Recipe, engine: str) -> tuple[str, ...]:
    if recipe.device.startswith("cuda") or recipe.device == "auto":
        return ()
    return (f"device: it was measured on {recipe.device}; {FOREIGN[engine].title} is started on the first GPU.",)


def _why(refusals: list[Refusal], engine: str) -> str:
    reasons = "; ".join(f"{each.field}: {each.reason.rstrip('.')}" for each in refusals)
    return f"This configuration cannot be exported to {FOREIGN[engine].title}: {reasons}."


def _hint(refusals: list[Refusal], recipe: Recipe) -> str:
    scheme = recipe.quantization.scheme
    fixes = " ".join(dict.fromkeys(each.fix for each in refusals))
    if any(each.field == "quantization.scheme" for each in refusals):
        return f"{scheme} deploys as: {SCHEMES[scheme].deployable_as}. {fixes}"
    return fixes


def _paired(words: list[str]) -> list[str]:
    """A flag with its values on one line."""
    lines: list[str] = []
    for word in words:
        if lines and not word.startswith("--") and lines[-1].startswith("--"):
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
