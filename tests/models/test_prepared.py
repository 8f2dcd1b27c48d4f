from __future__ import annotations

import errno
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from safetensors import SafetensorError

from mcp_core import paths
from mcp_core.errors import DiskFull, ModelNotFound
from mcp_core.models import prepared

SHA = "a" * 64
OTHER = "b" * 64


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture(autouse=True)
def hub_cache(tmp_path, monkeypatch):
    cache = tmp_path / "hf"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return cache


def write(sha256: str = SHA, content: bytes = b"weights", title: str = "Tiny") -> Path:
    with prepared.staging(sha256, 10, title=title, source="tiny.gguf") as folder:
        assert folder is not None
        (folder / "model.safetensors").write_bytes(content)
    return prepared.folder_for(sha256)


def fail_midway(error: Exception) -> None:
    with prepared.staging(SHA, 10, title="Tiny", source="tiny.gguf") as folder:
        assert folder is not None
        (folder / "half").write_bytes(b"x")
        raise error


def left_over() -> list[str]:
    return [path.name for path in paths.home("models").iterdir() if not path.name.endswith(".lock")]


def test_prepared_model_is_found_and_listed():
    assert prepared.find(SHA) is None
    folder = write()
    assert prepared.find(SHA) == folder
    (model,) = prepared.list_models()
    assert (model.id, model.title, model.path, model.kind) == (SHA, "Tiny", folder, "prepared")
    assert model.bytes == sum(file.stat().st_size for file in folder.iterdir())
    assert left_over() == [SHA]


def test_second_preparation_is_told_that_it_is_there():
    write()
    with prepared.staging(SHA, 10, title="Tiny", source="tiny.gguf") as folder:
        assert folder is None
    assert (prepared.folder_for(SHA) / "model.safetensors").read_bytes() == b"weights"


def test_an_error_inside_leaves_nothing():
    with pytest.raises(RuntimeError, match="stopped"):
        fail_midway(RuntimeError("stopped"))
    assert prepared.find(SHA) is None
    assert left_over() == []


def test_remains_of_a_killed_process_are_replaced():
    stale = paths.home("models", f".staging-{SHA}")
    (stale / "half").write_bytes(b"x")
    paths.home("models", SHA)  # a folder without its meta.json does not count
    folder = write()
    assert sorted(file.name for file in folder.iterdir()) == ["meta.json", "model.safetensors"]


def test_too_little_disk_is_refused_with_the_numbers(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 0, 2 * 10**9))
    with (
        pytest.raises(DiskFull, match=r"needs 3\.00 GB of disk; 2\.00 GB are free"),
        prepared.staging(SHA, 3 * 10**9, title="Tiny", source="tiny.gguf"),
    ):
        pytest.fail("began to write")
    assert left_over() == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("I/O: No space left on device (os error 28)"),
    ],
    ids=["os", "safetensors"],
)
def test_disk_that_fills_midway_is_named_and_cleared(error):
    with pytest.raises(DiskFull, match="filled while writing Tiny"):
        fail_midway(error)
    assert left_over() == []


def test_delete_removes_that_one_only():
    write()
    write(OTHER)
    prepared.delete(SHA)
    assert [model.id for model in prepared.list_models()] == [OTHER]
    assert left_over() == [OTHER]


@pytest.mark.parametrize("model_id", ["..", "../outside", "/etc", "", OTHER, "hub:nobody/nothing", "hub:../x"])
def test_delete_names_nothing_outside_the_cache(model_id, tmp_path):
    outside = tmp_path / "mcp-home" / "outside"
    outside.mkdir(parents=True)
    (outside / "meta.json").write_text("{}")
    with pytest.raises(ModelNotFound):
        prepared.delete(model_id)
    assert (outside / "meta.json").exists()


_PREPARE_SLOWLY = f"""
import time
from mcp_core.models import prepared
with prepared.staging("{SHA}", 10, title="Tiny", source="tiny.gguf") as folder:
    if folder is not None:
        time.sleep(0.5)
        (folder / "model.safetensors").write_bytes(b"weights")
    print("waited" if folder is None else "wrote")
"""


def test_two_processes_prepare_once():
    command = [sys.executable, "-c", _PREPARE_SLOWLY]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0].strip() for process in both]
    assert sorted(said) == ["waited", "wrote"]


def snapshot(cache: Path, name: str, files: dict[str, bytes]) -> Path:
    """As huggingface_hub lays a downloaded model out."""
    repo = cache / f"models--tiny--{name}"
    commit = hashlib.sha1(name.encode()).hexdigest()
    folder = repo / "snapshots" / commit
    folder.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    (repo / "blobs").mkdir()
    for file, content in files.items():
        blob = repo / "blobs" / f"{name}-{file}"
        blob.write_bytes(content)
        (folder / file).symlink_to(blob)
    return repo


def test_hub_snapshots_are_listed_with_their_bytes_and_deleted(hub_cache):
    repo = snapshot(hub_cache, "llama", {"config.json": b"{}", "model.safetensors": b"12345678"})
    snapshot(hub_cache, "looked-up", {"config.json": b"{}"})
    (model,) = prepared.list_models()
    assert (model.id, model.bytes, model.kind) == ("hub:tiny/llama", 10, "hub")
    prepared.delete(model.id)
    assert not repo.exists()


def test_a_download_that_broke_off_is_listed_with_its_part(hub_cache):
    repo = snapshot(hub_cache, "half", {"config.json": b"{}"})
    (repo / "blobs" / f"abc{prepared.PARTIAL_SUFFIX}").write_bytes(bytes(100))
    (model,) = prepared.list_models()
    assert model.bytes == 102
    prepared.delete(model.id)
    assert not repo.exists()
