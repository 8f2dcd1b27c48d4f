"""Bundle: the files that deploy a configuration, and the command that starts it. Values, and writing them out.

This file does not know what is in them (``targets/``).
"""

from __future__ import annotations

import io
import shlex
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from mcp_core.errors import DiskFull, InputError

__all__ = ["Bundle", "Command", "shell_script", "write", "zipped"]

_LEAST_LEFT_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class Command:
    """A server's command line. ``interpreter`` says which program starts it: vllm, sglang, python or llama-server;
    ``arguments`` follow it, its port after --port."""

    interpreter: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bundle:
    """``files``: text by its name; ``copies``: what is copied as it is; ``executable``: names to be run.

    ``command`` starts the server, None where none is started. ``not_carried`` says what of the Recipe is done
    otherwise. ``steps``: what has to be done before, in order. ``serves``: whether a server is what is started.
    """

    target: str
    title: str
    engine: str
    files: Mapping[str, str]
    run: str
    command: Command | None = None
    copies: Mapping[str, Path] = field(default_factory=dict)
    executable: frozenset[str] = frozenset()
    not_carried: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    serves: bool = True


def shell_script(about: str, command: str, environment: Mapping[str, str], before: str = "") -> str:
    """A POSIX script that becomes the server; values of the caller's own environment go first."""
    exports = "".join(
        f"export {name}=${{{name}:-{shlex.quote(value)}}}\n" for name, value in environment.items() if value != ""
    )
    return f"#!/bin/sh\n# {about}\nset -eu\n{exports}{before}exec {command}\n"


def write(bundle: Bundle, folder: Path) -> tuple[Path, ...]:
    """Write every file into ``folder``, which is made or empty; their paths.

    Nothing outside of it is touched. Raises InputError for a folder in use or a place that cannot be written,
    DiskFull where a copied model would not fit.
    """
    _require_empty(folder)
    _require_space(bundle, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = [_write_text(folder, name, text, bundle) for name, text in bundle.files.items()]
        written += [_copy(folder, name, source) for name, source in bundle.copies.items()]
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}.", "Choose another folder.") from error
    return tuple(written)


def zipped(bundle: Bundle, name: str) -> bytes:
    """Its texts as a zip file, in a folder of that name; what is copied, a model, is not in it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        for file, text in bundle.files.items():
            entry = zipfile.ZipInfo(f"{name}/{file}", date_time=(2026, 1, 1, 0, 0, 0))
            entry.external_attr = (0o755 if file in bundle.executable else 0o644) << 16
            packed.writestr(entry, text, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def _require_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there already and is not empty.", "Choose a new folder.")


def _require_space(bundle: Bundle, folder: Path) -> None:
    needed = sum(path.stat().st_size for path in bundle.copies.values())
    nearest = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    free = shutil.disk_usage(nearest).free
    if needed and free < needed + _LEAST_LEFT_BYTES:
        raise DiskFull(
            f"The model takes {needed / 1e9:.1f} GB; {free / 1e9:.1f} GB are free at {nearest}.",
            "Free some space, or choose another folder.",
        )


def _inside(folder: Path, name: str) -> Path:
    relative = PurePosixPath(name)
    assert not relative.is_absolute(), "names are ours"
    assert ".." not in relative.parts, "names are ours"
    return folder.joinpath(*relative.parts)


def _write_text(folder: Path, name: str, text: str, bundle: Bundle) -> Path:
    path = _inside(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    if name in bundle.executable:
        path.chmod(0o755)
    return path


def _copy(folder: Path, name: str, source: Path) -> Path:
    """A copy, never a link: what is done to the bundle must not reach the file that others read."""
    path = _inside(folder, name)
    shutil.copyfile(source, path)
    return path
