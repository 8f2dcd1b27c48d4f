from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pytest
from safetensors.numpy import save

from mcp_core.errors import DiskFull, HubError, InvalidModel, McpError, ModelNotFound, UnsafeModel
from mcp_core.models import catalog, hub
from mcp_core.models.architecture import TensorInfo
from mcp_core.recipe import ModelRef

REPO = "tiny/llama"
REF = ModelRef(source="hub", id=REPO)
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 1,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "vocab_size": 3000,
    "max_position_embeddings": 64,
}
WEIGHTS = save({"model.embed_tokens.weight": np.random.default_rng(0).normal(size=(3000, 64)).astype(np.float16)})
FILES = {
    "config.json": json.dumps(CONFIG).encode(),
    "tokenizer.json": b"{}",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"pickle",
    "modeling_tiny.py": b"code",
    "original/model.safetensors": b"second copy",
    "README.md": b"hello",
}


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def ignore(fraction: float | None, message: str) -> None:
    pass


@pytest.fixture
def serve(tmp_path, monkeypatch) -> Iterator[Callable]:
    """A function that starts a stand-in and points huggingface_hub at it."""
    from hub_stand_in import HubStandIn
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    started = []

    def start(files: dict[str, bytes] = FILES, **options: object) -> HubStandIn:
        stand_in = HubStandIn(REPO, files, **options).__enter__()
        started.append(stand_in)
        monkeypatch.setattr(constants, "ENDPOINT", stand_in.url)
        template = stand_in.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        return stand_in

    yield start
    _http.close_session()
    for stand_in in started:
        stand_in.__exit__()


def test_look_up_reads_headers_not_weights(serve):
    served = serve()
    resolved = catalog.resolve(REF)
    assert (resolved.title, resolved.folder, resolved.ref) == (REPO, None, REF)
    assert resolved.download_bytes == sum(
        len(FILES[name]) for name in ("config.json", "tokenizer.json", "model.safetensors")
    )
    assert [tensor.shape for tensor in resolved.architecture.tensors] == [(3000, 64)]
    assert (resolved.architecture.native_dtype, resolved.architecture.tied) == ("fp16", True)
    assert [asked for name, asked in served.ranges if name == "model.safetensors"] == ["bytes=0-100000"]


def test_a_quantized_model_is_known_by_its_headers_before_it_is_downloaded(serve):
    quantization = {"quant_method": "awq", "bits": 4, "group_size": 32}
    parts = {
        "model.layers.0.mlp.up_proj.qweight": np.zeros((64, 128 // 8), np.int32),
        "model.layers.0.mlp.up_proj.qzeros": np.zeros((2, 128 // 8), np.int32),
        "model.layers.0.mlp.up_proj.scales": np.zeros((2, 128), np.float16),
        "model.norm.weight": np.zeros(64, np.float16),
    }
    config = json.dumps(CONFIG | {"quantization_config": quantization}).encode()
    serve(FILES | {"config.json": config, "model.safetensors": save(parts)})
    resolved = catalog.resolve(REF)
    assert resolved.quantized.label == "awq w4a16"
    assert resolved.architecture.tensors == (
        TensorInfo("model.layers.0.mlp.up_proj.weight", (128, 64), 4096 + 128 + 512),
        TensorInfo("model.norm.weight", (64,)),
    )
    assert resolved.architecture.native_dtype == "fp16"


def test_download_fetches_only_what_a_worker_reads(serve):
    serve()
    folder = hub.download(REF, None, ignore)
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_progress_grows_to_one(serve):
    serve()
    heard = []
    hub.download(REF, None, lambda fraction, message: heard.append((fraction, message)))
    fractions = [fraction for fraction, _ in heard if fraction is not None]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert all(message for _, message in heard)


def test_downloaded_model_is_found_without_a_network(serve, monkeypatch):
    serve()
    assert hub.snapshot(REF) is None
    folder = hub.download(REF, None, ignore)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    resolved = catalog.resolve(REF)
    assert (resolved.folder, resolved.download_bytes) == (folder, 0)
    assert len(resolved.ref.sha256) == 64


def test_a_look_up_alone_is_no_download(serve):
    serve()
    catalog.resolve(REF)
    assert hub.snapshot(REF) is None


def test_second_download_fetches_nothing(serve):
    served = serve()
    hub.download(REF, None, ignore)
    served.ranges.clear()
    hub.download(REF, None, ignore)
    assert served.ranges == []


def test_interrupted_download_goes_on_where_it_was_left(serve, monkeypatch):
    served = serve(cut_after=100_000)
    refused = RuntimeError("the process was killed")

    def die(*_: object) -> None:
        raise refused

    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)
        patch.setattr("huggingface_hub.file_download.time.sleep", die)  # called before http_get tries again
        with pytest.raises(RuntimeError):
            hub.download(REF, None, ignore)
    assert hub.snapshot(REF) is None
    served.ranges.clear()
    heard = []
    folder = hub.download(REF, None, lambda fraction, _: heard.append(fraction))
    (asked,) = [asked for name, asked in served.ranges if name == "model.safetensors"]
    start = int(asked.removeprefix("bytes=").rstrip("-"))
    assert start == 100_000
    assert heard[0] == pytest.approx(start / len(WEIGHTS))
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_part_that_does_not_match_is_removed_not_used(serve, tmp_path):
    served = serve()
    digest = hub.hashlib.sha256(WEIGHTS).hexdigest()
    partial = tmp_path / "hf" / "models--tiny--llama" / "blobs" / f"{digest}.mcp-partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"x" * 50_000)
    with pytest.raises(HubError, match="damaged"):
        hub.download(REF, None, ignore)
    assert not partial.exists()
    served.ranges.clear()
    assert (hub.download(REF, None, ignore) / "model.safetensors").read_bytes() == WEIGHTS


def test_disk_is_checked_before_the_first_byte(serve, monkeypatch):
    served = serve()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 0, 1000))
    with pytest.raises(DiskFull, match="are free"):
        hub.download(REF, None, ignore)
    assert served.ranges == []


def test_disk_that_fills_midway(serve, monkeypatch):
    serve()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(DiskFull, match="filled"):
        hub.download(REF, None, ignore)


@pytest.mark.parametrize(
    "call", [catalog.resolve, lambda ref: hub.download(ref, None, ignore)], ids=["look-up", "get"]
)
@pytest.mark.parametrize(
    ("options", "ref", "error", "says", "hint"),
    [
        ({"gated": True}, REF, HubError, "gated", "HF_TOKEN"),
        ({"token": "hf_x"}, REF, ModelNotFound, "shows no model", "HF_TOKEN"),
        ({}, ModelRef(source="hub", id="tiny/other"), ModelNotFound, "tiny/other", "spelling"),
        ({}, ModelRef(source="hub", id=REPO, revision="v9"), ModelNotFound, "revision", "newest"),
    ],
    ids=["gated", "private", "unknown", "revision"],
)
def test_refusals_are_named(serve, call, options, ref, error, says, hint):
    serve(**options)
    with pytest.raises(error, match=says) as caught:
        call(ref)
    assert hint in caught.value.hint


def test_wrong_token_is_told_apart_from_an_unknown_model(serve):
    serve(token="hf_right")
    with pytest.raises(HubError, match="refused the token") as caught:
        catalog.resolve(REF, hub_token="hf_wrong")
    assert "hf_wrong" not in str(caught.value)


def test_token_opens_a_private_model(serve):
    serve(token="hf_right")
    assert catalog.resolve(REF, hub_token="hf_right").title == REPO
    assert hub.download(REF, "hf_right", ignore).is_dir()


@pytest.mark.parametrize(
    "call", [catalog.resolve, lambda ref: hub.download(ref, None, ignore)], ids=["look-up", "get"]
)
def test_no_network(serve, call):
    serve().__exit__()
    with pytest.raises(HubError, match="could not be reached") as caught:
        call(REF)
    assert "HF_ENDPOINT" in caught.value.hint


def test_offline_switch_is_named(serve, monkeypatch):
    serve()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        catalog.resolve(REF)


def without(*names: str, **more: bytes) -> dict[str, bytes]:
    return {name: content for name, content in FILES.items() if name not in names} | more


@pytest.mark.parametrize(
    ("files", "error", "says"),
    [
        (without("model.safetensors"), UnsafeModel, "pickle"),
        (without("model.safetensors", "pytorch_model.bin"), InvalidModel, "no model.safetensors"),
        (without("config.json"), InvalidModel, "config.json"),
        (FILES | {"config.json": json.dumps(CONFIG | {"auto_map": {"a": "b"}}).encode()}, UnsafeModel, "code"),
        (FILES | {"config.json": b'{"architectures": ["BertModel"]}'}, InvalidModel, "BertModel"),
        (FILES | {"model.safetensors": b"garbage" * 100}, InvalidModel, "damaged"),
    ],
    ids=["pickle", "empty", "no-config", "code", "encoder", "garbage"],
)
def test_repository_that_cannot_be_loaded(serve, files, error, says):
    serve(files)
    with pytest.raises(error, match=says):
        catalog.resolve(REF)


@pytest.mark.parametrize(
    "model_id",
    [
        "gpt2",
        "../../etc",
        "a/../b",
        "/etc/passwd",
        "a\\b",
        "~/x",
        "a/b/c",
        "a/b..c",
        "a/.b",
        "a/b--c",
        "a/b.git",
        "a/b ",
        "a/b\n",
    ],
)
def test_id_that_is_no_hub_id(model_id):
    with pytest.raises(UnsafeModel, match="not a Hub id"):
        catalog.resolve(ModelRef(source="hub", id=model_id))


@pytest.mark.parametrize("revision", ["../../x", "/etc", "a..b", "", "a b"])
def test_revision_that_is_no_revision(revision):
    with pytest.raises(UnsafeModel, match="not a revision"):
        hub.snapshot(ModelRef(source="hub", id=REPO, revision=revision))


def test_every_hub_error_has_a_hint(serve):
    for options in ({"gated": True}, {"token": "x"}):
        serve(**options)
        with pytest.raises(McpError) as caught:
            catalog.resolve(REF)
        assert caught.value.hint
