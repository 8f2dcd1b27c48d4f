"""Models of the Hugging Face Hub: what one is, whether it is on this machine, and fetching it.

HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE are honoured, by huggingface_hub. This file does not know what
else a model may come from (``catalog.py``).
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Self

from filelock import FileLock

from mcp_core.errors import HubError, InvalidModel, UnsafeModel
from mcp_core.models.architecture import TensorInfo
from mcp_core.models.headers import dtype_of, read_folder, tensors_of_header
from mcp_core.models.hub_errors import hub_errors
from mcp_core.models.model_config import read_config, require_loadable
from mcp_core.models.prepared import PARTIAL_SUFFIX, disk_full, require_space
from mcp_core.recipe import DType, ModelRef

__all__ = ["HubModel", "download", "look_up", "require_plain_id", "snapshot"]

# Everything a worker reads; nothing else is fetched (no pickles, no code, no second copy of the weights).
PATTERNS = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_NOT_IN_ID = re.compile(r"\.\.|--|[.-]/|[.-]$|\.git$")  # huggingface_hub refuses these too
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]*", re.ASCII)
_PARALLEL = 4

Report = Callable[[float | None, str], None]


@dataclass(frozen=True, slots=True)
class HubModel:
    """A Hub model as its headers describe it. ``bytes_to_fetch`` is what is not in the cache yet."""

    config: dict[str, Any]
    tensors: tuple[TensorInfo, ...]
    dtype: DType
    bytes_to_fetch: int


@dataclass(frozen=True, slots=True)
class _RepoFile:
    """One file of a repository; ``sha256`` only where it is stored apart from git, as weights are."""

    name: str
    bytes: int
    sha256: str | None


def require_plain_id(ref: ModelRef) -> None:
    """Raise UnsafeModel unless the id is owner/name and the revision a plain one: both become path parts."""
    if not _ID.fullmatch(ref.id) or _NOT_IN_ID.search(ref.id):
        raise UnsafeModel(f'"{ref.id}" is not a Hub id.', "A Hub id is owner/name, as in Qwen/Qwen3-0.6B.")
    if ref.revision is not None and (not _REVISION.fullmatch(ref.revision) or ".." in ref.revision):
        raise UnsafeModel(f'"{ref.revision}" is not a revision.', "Give a branch, a tag or a commit.")


def snapshot(ref: ModelRef) -> Path | None:
    """The folder of a completely downloaded model, found without a network; None when it is not here."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    require_plain_id(ref)
    try:
        folder = Path(
            snapshot_download(ref.id, revision=ref.revision, local_files_only=True, allow_patterns=list(PATTERNS))
        )
        read_folder(folder)
    except (LocalEntryNotFoundError, InvalidModel):
        return None
    has_tokenizer = any((folder / name).is_file() for name in _TOKENIZERS)
    return folder if has_tokenizer and (folder / "config.json").is_file() else None


def look_up(ref: ModelRef, token: str | None) -> HubModel:
    """Ask the Hub what this model is: config.json and the safetensors headers, not the weights.

    Raises ModelNotFound, HubError, UnsafeModel (pickles only, remote code), InvalidModel.
    """
    from huggingface_hub import HfApi, hf_hub_download

    require_plain_id(ref)
    with hub_errors(ref.id, token):
        commit, files = _list_files(ref, token)
        config = read_config(Path(hf_hub_download(ref.id, "config.json", revision=commit, token=token)))
        require_loadable(config, ref.id)
        weights = [file.name for file in files if file.name.endswith(".safetensors")]
        api = HfApi(token=token)
        with ThreadPoolExecutor(_PARALLEL) as pool:
            parse = api.parse_safetensors_file_metadata
            headers = list(pool.map(lambda name: parse(ref.id, name, revision=commit), weights))
    tensors = [(name, each) for header in headers for name, each in header.tensors.items()]
    return HubModel(
        config=config,
        tensors=tensors_of_header({name: {"dtype": each.dtype, "shape": each.shape} for name, each in tensors}),
        dtype=dtype_of(each.dtype for _, each in tensors),
        bytes_to_fetch=sum(file.bytes for file in files if not _blob(ref.id, file).is_file()),
    )


def download(ref: ModelRef, token: str | None, on_progress: Report) -> Path:
    """Fetch what is not here yet and return the snapshot folder. A weight file goes on where it was left.

    Raises DiskFull before the first byte when the disk is too small, HubError, ModelNotFound, UnsafeModel.
    """
    from huggingface_hub import constants, snapshot_download

    require_plain_id(ref)
    cache = Path(constants.HF_HUB_CACHE)
    with hub_errors(ref.id, token):
        commit, files = _list_files(ref, token)
        missing = [file for file in files if not _blob(ref.id, file).is_file()]
        cache.mkdir(parents=True, exist_ok=True)
        require_space(cache, sum(file.bytes - _partial_bytes(ref.id, file) for file in missing), ref.id)
        with disk_full(cache, ref.id):
            _fetch_weights(ref, commit, missing, token, on_progress)
            on_progress(None, "config and tokenizer")
            folder = snapshot_download(
                ref.id,
                revision=ref.revision,
                token=token,
                allow_patterns=[file.name for file in files],
            )
    on_progress(1.0, "downloaded")
    return Path(folder)


def _list_files(ref: ModelRef, token: str | None) -> tuple[str, list[_RepoFile]]:
    """The commit that the revision means, and its files that a worker reads."""
    from huggingface_hub import HfApi

    info = HfApi(token=token).model_info(ref.id, revision=ref.revision, files_metadata=True)
    siblings = info.siblings or []
    _require_safetensors(ref.id, [sibling.rfilename for sibling in siblings])
    files = [
        _RepoFile(sibling.rfilename, sibling.size or 0, sibling.lfs.sha256 if sibling.lfs else None)
        for sibling in siblings
        if "/" not in sibling.rfilename and any(fnmatch.fnmatch(sibling.rfilename, each) for each in PATTERNS)
    ]
    return str(info.sha), files


def _require_safetensors(repo_id: str, names: Sequence[str]) -> None:
    if any(fnmatch.fnmatch(name, "model*.safetensors") for name in names):
        return
    if any(fnmatch.fnmatch(name, pattern) for name in names for pattern in _PICKLES):
        raise UnsafeModel(
            f"{repo_id} has pickle weights only; loading them can run code.",
            "Choose a repository with safetensors, or convert it.",
        )
    raise InvalidModel(f"{repo_id} has no model.safetensors.", "Choose a repository with safetensors.")


def _repo_folder(repo_id: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type="model")


def _blob(repo_id: str, file: _RepoFile) -> Path:
    """Where huggingface_hub keeps this file's content; only files with a sha256 are looked up there."""
    return _repo_folder(repo_id) / "blobs" / (file.sha256 or "not-stored-apart")


def _partial(repo_id: str, file: _RepoFile) -> Path:
    return _blob(repo_id, file).with_suffix(PARTIAL_SUFFIX)


def _partial_bytes(repo_id: str, file: _RepoFile) -> int:
    path = _partial(repo_id, file)
    return path.stat().st_size if path.is_file() else 0


def _fetch_weights(
    ref: ModelRef, commit: str, missing: Sequence[_RepoFile], token: str | None, on_progress: Report
) -> None:
    """Fetch the weight files into the Hub cache's blobs, a few at a time.

    huggingface_hub throws a partial file away when its process ends, so these are fetched here, kept under a
    name of their own, and moved in when complete; it then finds them as its own.
    """
    from huggingface_hub import constants

    weights = [file for file in missing if file.sha256 and file.bytes <= constants.MAX_HTTP_DOWNLOAD_SIZE]
    tally = _Tally(sum(file.bytes for file in weights), on_progress)
    with ThreadPoolExecutor(_PARALLEL) as pool:
        list(pool.map(lambda file: _fetch_weight(ref.id, commit, file, token, tally), weights))


def _fetch_weight(repo_id: str, commit: str, file: _RepoFile, token: str | None, tally: _Tally) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    blob, partial = _blob(repo_id, file), _partial(repo_id, file)
    blob.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(partial.with_suffix(".mcp-lock")):
        if blob.is_file():
            tally.add(file.bytes)
            return
        already = _partial_bytes(repo_id, file)
        tally.add(already)
        if already < file.bytes:
            url = hf_hub_url(repo_id, file.name, revision=commit)
            headers = build_hf_headers(token=token)
            with partial.open("ab") as target:
                http_get(url, target, resume_size=already, headers=headers, tqdm_class=tally.bar())
        _require_hash(partial, file, repo_id)
        partial.rename(blob)


def _require_hash(partial: Path, file: _RepoFile, repo_id: str) -> None:
    with partial.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if digest != file.sha256:
        partial.unlink()
        raise HubError(f"{file.name} of {repo_id} arrived damaged.", "Load it again; the damaged part was removed.")


class _Tally:
    """Bytes of several parallel downloads, reported as one fraction."""

    def __init__(self, total_bytes: int, on_progress: Report) -> None:
        self._total_bytes = total_bytes
        self._on_progress = on_progress
        self._done_bytes = 0
        self._lock = Lock()

    def add(self, count: float) -> None:
        with self._lock:
            self._done_bytes += int(count)
            fraction = self._done_bytes / self._total_bytes
            self._on_progress(fraction, f"{self._done_bytes / 1e9:.2f} of {self._total_bytes / 1e9:.2f} GB")

    def bar(self) -> type[Any]:
        """A class with the part of tqdm's interface that huggingface_hub's http_get calls."""
        add = self.add

        class Bar:
            def __init__(self, *_: Any, **__: Any) -> None:
                pass

            def __enter__(self) -> Self:
                return self

            def __exit__(self, *_: object) -> None:
                pass

            def update(self, count: float) -> None:
                add(count)

        return Bar
