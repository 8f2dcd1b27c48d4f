"""Content hashes of model files, remembered so that an unchanged file is read once.

This file does not know what the files hold or which hash is the right one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from tempfile import NamedTemporaryFile

from mcp_core import paths

__all__ = ["file_sha256", "folder_sha256"]

_SAMPLES = 64
_SAMPLE_BYTES = 64 * 1024


def file_sha256(path: Path) -> str:
    """SHA-256 of the whole file; read once for each (path, size, modification time)."""
    remembered = paths.home("checksums") / _key(path)
    if remembered.is_file():
        return remembered.read_text(encoding="ascii")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with NamedTemporaryFile("w", encoding="ascii", dir=remembered.parent, delete=False) as temporary:
        temporary.write(digest)
    Path(temporary.name).replace(remembered)
    return digest


def folder_sha256(weights: Iterable[Path], others: Iterable[Path]) -> str:
    """One hash for a model folder: config and tokenizer files whole, weight files by sample.

    A weight file gives its name, its size and 64 evenly spaced samples of 64 KiB, its header and its end among
    them: hashing tens of GB would take minutes, and two checkpoints of one architecture differ in every sample.
    """
    digest = hashlib.sha256()
    for path in sorted(weights):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        _update_with_samples(digest, path)
    for path in sorted(others):
        digest.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _key(path: Path) -> str:
    status = path.stat()
    return hashlib.sha256(f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}".encode()).hexdigest()


def _update_with_samples(digest: hashlib._Hash, path: Path) -> None:
    last = max(0, path.stat().st_size - _SAMPLE_BYTES)
    with path.open("rb") as file:
        for index in range(_SAMPLES):
            file.seek(last * index // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
