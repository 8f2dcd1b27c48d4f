"""Models kept on this machine: GGUF files prepared as dense safetensors, and the Hub's own snapshot cache.

This file does not know how a model is prepared (``prepare.py``) or downloaded (``hub.py``).
"""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from filelock import FileLock

from mcp_core import paths
from mcp_core.errors import DiskFull, ModelNotFound
from mcp_core.models.architecture import DTYPE_BYTES, Architecture
from mcp_core.recipe import DType

if TYPE_CHECKING:
    from huggingface_hub import CachedRepoInfo

__all__ = [
    "PARTIAL_SUFFIX",
    "PREPARED_DTYPE",
    "PreparedModel",
    "delete",
    "disk_full",
    "find",
    "folder_for",
    "list_models",
    "prepared_bytes",
    "require_space",
    "staging",
]

# A dequantized GGUF weight is scale x integer + offset: exact in fp32, rounded in anything shorter.
PREPARED_DTYPE: DType = "fp32"
# config.json and tokenizer files beside the weights.
_SMALL_FILES_BYTES = 16 * 2**20
_MAKE_ROOM = "Delete a model (Recipe page, mcp-core models), or move MCP_HOME or HF_HOME to a larger disk."
# A weight file of the Hub that is still being fetched (hub.py), beside the finished ones.
PARTIAL_SUFFIX = ".mcp-partial"
_META = "meta.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class PreparedModel:
    """One model on this machine. ``id`` is what ``delete`` takes; ``bytes`` is what it occupies on disk."""

    id: str
    title: str
    path: Path
    bytes: int
    created: datetime
    kind: Literal["prepared", "hub"]


def folder_for(sha256: str) -> Path:
    """Where the prepared model of that content hash lies or will lie; it may not exist yet (see ``find``)."""
    if not _SHA256.fullmatch(sha256):
        raise ModelNotFound(
            f'"{sha256}" is not the id of a prepared model.', "mcp-core models lists those there are."
        )
    return paths.home("models") / sha256


def find(sha256: str) -> Path | None:
    """The prepared model's folder when it is complete, else None."""
    folder = folder_for(sha256)
    return folder if (folder / _META).is_file() else None


def prepared_bytes(architecture: Architecture) -> int:
    """Disk bytes of this model once prepared: every weight in PREPARED_DTYPE, and the small files."""
    return architecture.parameters * DTYPE_BYTES[PREPARED_DTYPE] + _SMALL_FILES_BYTES


@contextmanager
def staging(sha256: str, needed_bytes: int, *, title: str, source: str) -> Iterator[Path | None]:
    """An empty folder to write a model into; it becomes ``folder_for(sha256)`` at the end, all or nothing.

    Yields None when the model is already there, also when another process prepared it while this one waited.
    Anything raised inside removes what was written. Raises DiskFull before (less than ``needed_bytes`` free)
    or midway.
    """
    final = folder_for(sha256)
    with FileLock(final.with_name(f".{sha256}.lock")):
        if find(sha256):
            yield None
            return
        temporary = final.with_name(f".staging-{sha256}")
        _remove(temporary)  # left by a process that was killed
        _remove(final)
        require_space(final.parent, needed_bytes, title)
        temporary.mkdir(mode=0o700)
        try:
            with disk_full(final.parent, title):
                yield temporary
                _write_meta(temporary, sha256, title, source)
                temporary.rename(final)
        finally:
            _remove(temporary)


def list_models() -> tuple[PreparedModel, ...]:
    """Prepared models, then Hub snapshots, newest first within each."""
    by_age = sorted(_prepared(), key=lambda model: model.created, reverse=True)
    return (*by_age, *sorted(_snapshots(), key=lambda model: model.created, reverse=True))


def delete(model_id: str) -> None:
    """Remove a model by the id that ``list_models`` gave it; nothing outside the two caches can be named.

    Raises ModelNotFound.
    """
    if model_id.startswith("hub:"):
        _delete_snapshot(model_id)
        return
    folder = find(model_id)
    if folder is None:
        raise ModelNotFound(f'There is no prepared model "{model_id}".', "mcp-core models lists those there are.")
    with FileLock(folder.with_name(f".{model_id}.lock")):
        (folder / _META).unlink(missing_ok=True)  # without it the folder no longer counts as prepared
        _remove(folder)


def require_space(folder: Path, needed_bytes: int, what: str) -> None:
    """Raise DiskFull when the disk of ``folder`` has less than ``needed_bytes`` free."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise DiskFull(
            f"{what} needs {needed_bytes / 1e9:.2f} GB of disk; {free / 1e9:.2f} GB are free in {folder}.",
            _MAKE_ROOM,
        )


@contextmanager
def disk_full(folder: Path, what: str) -> Iterator[None]:
    """Map "no space left", however a library words it, to DiskFull; everything else passes."""
    try:
        yield
    except Exception as error:
        if not _says_disk_full(error):
            raise
        free = shutil.disk_usage(folder).free
        raise DiskFull(
            f"The disk filled while writing {what}; {free / 1e9:.2f} GB are free in {folder}.",
            _MAKE_ROOM,
        ) from error


def _says_disk_full(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return True
    return "No space left on device" in str(error)  # safetensors wraps the system's error in its own


def _write_meta(folder: Path, sha256: str, title: str, source: str) -> None:
    created = datetime.now(UTC).isoformat(timespec="seconds")
    meta = {"id": sha256, "title": title, "source": source, "created": created}
    (folder / _META).write_text(json.dumps(meta, indent=2), encoding="utf-8")


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _prepared() -> Iterator[PreparedModel]:
    for meta_file in paths.home("models").glob(f"*/{_META}"):
        folder = meta_file.parent
        if not _SHA256.fullmatch(folder.name):
            continue
        meta = json.loads(meta_file.read_text(encoding="utf-8"))
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        created = datetime.fromisoformat(meta["created"])
        yield PreparedModel(folder.name, meta["title"], folder, size, created, "prepared")


def _snapshots() -> Iterator[PreparedModel]:
    for repo in _cached_repos():
        partial_bytes = sum(file.stat().st_size for file in repo.repo_path.glob(f"blobs/*{PARTIAL_SUFFIX}"))
        if partial_bytes or _has_weights(repo):  # a look-up leaves a config.json behind; that is no model
            created = datetime.fromtimestamp(repo.last_modified, UTC)
            size = repo.size_on_disk + partial_bytes
            yield PreparedModel(f"hub:{repo.repo_id}", repo.repo_id, repo.repo_path, size, created, "hub")


def _has_weights(repo: CachedRepoInfo) -> bool:
    return any(file.file_name.endswith(".safetensors") for each in repo.revisions for file in each.files)


def _cached_repos() -> list[CachedRepoInfo]:
    """The models in huggingface_hub's cache."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        return [repo for repo in scan_cache_dir(constants.HF_HUB_CACHE).repos if repo.repo_type == "model"]
    except CacheNotFound:
        return []


def _delete_snapshot(model_id: str) -> None:
    from huggingface_hub import constants, scan_cache_dir

    wanted = model_id.removeprefix("hub:")
    repos = [repo for repo in _cached_repos() if repo.repo_id == wanted]
    revisions = [revision.commit_hash for repo in repos for revision in repo.revisions]
    if not revisions:
        raise ModelNotFound(f"{wanted} is not in the Hub cache.", "mcp-core models lists what is there.")
    scan_cache_dir(constants.HF_HUB_CACHE).delete_revisions(*revisions).execute()
