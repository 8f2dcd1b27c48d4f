"""Small functions compiled: once for all layers and any number of tokens; the model is what it was outside."""

from __future__ import annotations

import copy
import functools
import logging

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.models.llama import modeling_llama

from mcp_core.generation import GenerationRequest
from mcp_core.inference.joined_projections import join_projections
from mcp_core.inference.paged import runner as runner_file
from mcp_core.inference.paged.fused_functions import FusedFunctions
from mcp_core.inference.paged.pages import PagePool
from mcp_core.inference.paged.runner import PagedRunner
from mcp_core.inference.paged.scheduler import Scheduler
from tests.inference.conftest import CONTEXT, VOCAB
from tests.inference.paged.test_prompt_steps import Unrecorded
from tests.inference.test_engine import greedy

PAGE = 16
# torch.compile's own use of what torch deprecates
pytestmark = pytest.mark.filterwarnings("default")


class Backend:
    """In inductor's place, seconds faster: what is compiled is counted, and how often it is then called."""

    def __init__(self):
        self.compiled = self.calls = 0
        self.fails = False

    def __call__(self, graph, inputs):
        if self.fails:
            raise RuntimeError("no such kernel")
        self.compiled += 1

        def compute(*values):
            self.calls += 1
            return graph.forward(*values)

        return compute

    def calls_of(self, work):
        before = self.calls
        work()
        return self.calls - before


@pytest.fixture
def backend(monkeypatch):
    made, real = Backend(), torch.compile
    torch._dynamo.reset()  # what other tests compiled of the same classes
    monkeypatch.setattr(
        torch, "compile", lambda *args, **named: real(*args, **named | {"backend": made, "options": None})
    )
    yield made
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def with_head_norms():
    """A norm for queries and keys too, of heads' width."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = Qwen3Config(vocab_size=VOCAB, num_key_value_heads=2, head_dim=16, initializer_range=0.3, **sizes)
    return Qwen3ForCausalLM(config).eval().requires_grad_(requires_grad=False)


def logits_of(model, count):
    with torch.inference_mode():
        return model(torch.arange(count)[None] % VOCAB, use_cache=False).logits


def fused_of(model):
    fused = FusedFunctions(model)
    with torch.inference_mode():
        fused.compile(functools.partial(logits_of, model), (63, 31))
    return fused


@pytest.mark.parametrize("joined", [False, True], ids=["apart", "joined"])
@pytest.mark.parametrize(("name", "compiled", "calls"), [("model", 3, 13), ("with_head_norms", 4, 19)])
def test_one_compilation_does_for_all_layers_and_any_number_of_tokens(
    request, backend, name, compiled, calls, joined
):
    model = copy.deepcopy(request.getfixturevalue(name))
    assert not joined or join_projections(model) == 9
    fused = fused_of(model)
    assert (backend.compiled, fused.compiled) == (compiled, 3)
    for count in (2, 17, 64, 500):
        own = logits_of(model, count)
        before = backend.calls
        with fused.used():
            assert torch.equal(logits_of(model, count), own)
        assert backend.calls - before == calls
    assert backend.compiled == compiled


def test_a_call_that_does_not_fit_is_the_model_s_own_and_is_not_compiled(model, backend):
    fused, before = fused_of(model), backend.compiled
    own = logits_of(model, 1)  # torch takes a size of one for a constant
    with fused.used():
        assert backend.calls_of(lambda: logits_of(model, 1)) == 0
        assert torch.equal(logits_of(model, 1), own)
    assert backend.compiled == before


def test_outside_the_model_is_as_it_was_after_a_failure_too(model, backend):
    fused, rotary = fused_of(model), modeling_llama.apply_rotary_pos_emb

    def assert_own():
        assert modeling_llama.apply_rotary_pos_emb is rotary
        assert not any("forward" in module.__dict__ for module in model.modules())
        assert backend.calls_of(lambda: logits_of(model, 20)) == 0

    assert_own()
    with pytest.raises(ZeroDivisionError), fused.used():
        1 / (modeling_llama.apply_rotary_pos_emb is rotary)
    assert_own()
    with pytest.raises(ZeroDivisionError):
        fused.compile(lambda count: 1 / (count - count), (63,))
    assert_own()


def test_what_torch_cannot_compile_is_said_and_stays_as_it_was(model, backend, caplog):
    backend.fails = True
    with caplog.at_level(logging.INFO):
        fused = fused_of(model)
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == fused.compiled + 3 == 3  # each once
    assert any("LlamaRMSNorm.forward" in line and "no such kernel" in line for line in said)
    assert "0 of 3 small functions" in caplog.text
    own = logits_of(model, 20)
    with fused.used():
        assert torch.equal(logits_of(model, 20), own)


def test_a_hook_of_others_and_another_kind_of_gating_are_left_alone(model, backend):
    own = copy.deepcopy(model)
    own.model.norm.forward = own.model.norm.forward  # as accelerate's

    class OtherMLP(type(own.model.layers[0].mlp)):
        def forward(self, x):
            return self.down_proj(self.act_fn(self.gate_proj(x)) + self.up_proj(x))

    own.model.layers[0].mlp.__class__ = OtherMLP
    expected = logits_of(own, 20)
    with fused_of(own).used():
        assert backend.calls_of(lambda: logits_of(own, 20)) == 13 - 2
        assert torch.equal(logits_of(own, 20), expected)
    assert "forward" in own.model.norm.__dict__


def test_an_argument_given_by_name_has_any_number_of_tokens_too(model, backend):
    rotary = modeling_llama.apply_rotary_pos_emb
    fused, at = FusedFunctions(model), model.model.layers[0].self_attn.head_dim

    def rotated(count):
        query, cos = torch.ones(1, 4, count, at), torch.ones(1, count, at)
        return modeling_llama.apply_rotary_pos_emb(query, query, cos=cos, sin=cos)[0]

    fused.compile(rotated, (63,))
    assert (fused.compiled, backend.compiled) == (1, 1)
    with fused.used():
        assert backend.calls_of(lambda: rotated(40)) == 1
    assert modeling_llama.apply_rotary_pos_emb is rotary


class Served:
    """One prompt, computed in one step by a runner; on a host that is taken for a device."""

    def __init__(self, model):
        self.runner = PagedRunner(model, 40, PAGE)
        self.said = []

    def prepare(self, kind, most_tokens=64):
        self.runner.prepare(
            kind, 2, most_tokens, CONTEXT // PAGE, lambda part, text: self.said.append((part, text))
        )

    def logits(self, count=50):
        scheduler = Scheduler(PagePool(40, PAGE), 512, 2)
        scheduler.add(GenerationRequest("r", tuple(range(3, 3 + count)), 8))
        return self.runner.run(scheduler.plan()).logits.clone()


@pytest.fixture
def served(model, monkeypatch):
    monkeypatch.setattr(runner_file, "_FUSED_ON", ("cpu",))
    made = Served(model)
    yield made
    made.runner.close()


def test_a_runner_compiles_them_before_it_serves(served, backend):
    own = served.logits()
    served.prepare("compiled")
    assert "Compiling the small functions of prefill steps." in [text for _, text in served.said]
    assert [part for part, _ in served.said] == sorted(part for part, _ in served.said)
    compiled = backend.compiled
    assert compiled == 2 + 3  # two decode steps
    before = backend.calls
    torch.testing.assert_close(served.logits(), own)
    assert backend.calls - before == 13
    served.prepare("compiled")
    assert backend.compiled == compiled


def test_torch_s_own_limit_of_compilations_is_not_a_runner_s(with_head_norms, backend, monkeypatch):
    """It counts those of every model in a process: here the second would be refused."""
    monkeypatch.setattr(runner_file, "_FUSED_ON", ("cpu",))
    other, own = Served(with_head_norms), torch._dynamo.config.recompile_limit
    with torch._dynamo.config.patch(recompile_limit=1):
        other.prepare("compiled")
    assert (other.runner._fused.compiled, backend.compiled) == (3, 2 + 4)  # norms of two widths
    assert backend.calls_of(other.logits) == 19
    assert torch._dynamo.config.recompile_limit == own
    other.runner.close()


def test_neither_steps_as_they_come_nor_those_only_recorded_have_any(served, backend, model, monkeypatch):
    served.prepare("graphs")
    assert backend.calls_of(served.logits) == backend.compiled == 0
    monkeypatch.setattr(runner_file, "_FUSED_ON", ("cuda",))
    on_host = Served(model)
    on_host.prepare("compiled")
    assert backend.calls_of(on_host.logits) == 0
    on_host.runner.close()


def test_short_prefill_steps_are_recorded_with_them(served, backend, monkeypatch):
    monkeypatch.setattr(runner_file, "Graphs", Unrecorded)
    served.runner._records_prompts = True
    served.prepare("compiled")
    monkeypatch.setattr(served.runner, "_forward_fused", None)  # of steps that are not recorded
    assert backend.calls_of(served.logits) == 13  # what a device would record


@pytest.fixture
def inductor(tmp_path_factory, monkeypatch):
    """The real one, with a folder of its own."""
    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "inductor"))
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "within"),
    [(torch.float32, {"rtol": 1e-6, "atol": 1e-6}), (torch.bfloat16, {"rtol": 2**-6, "atol": 2**-8})],
    ids=["fp32", "bf16"],
)
def test_compiled_functions_compute_the_same_within_rounding(model, inductor, dtype, within):
    own = copy.deepcopy(model).to(dtype)
    fused, layer = fused_of(own), own.model.layers[1]
    layer.mlp.down_proj = torch.nn.Identity()  # its sums would round, too
    draw = torch.Generator().manual_seed(0)
    hidden, queries, keys, cos, sin = (
        torch.randn(shape, generator=draw).to(dtype)
        for shape in ((1, 40, 64), (1, 4, 40, 16), (1, 2, 40, 16), (1, 40, 16), (1, 40, 16))
    )

    def computed():
        rotated = modeling_llama.apply_rotary_pos_emb(queries, keys, cos, sin)
        return [layer.input_layernorm(hidden), layer.mlp(hidden), *rotated]

    with torch.inference_mode():
        expected = computed()
        with fused.used():
            found = computed()
    assert fused.compiled == 3
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **within)


@pytest.mark.slow  # decode steps are compiled, too
@pytest.mark.parametrize("kind", ["dense", "int8", "head norms"])
def test_an_engine_gives_generate_s_tokens_with_them(
    model, with_head_norms, make_engine, recorder, request_of, inductor, monkeypatch, kind
):
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    monkeypatch.setattr(runner_file, "_FUSED_ON", ("cpu",))
    own = copy.deepcopy(with_head_norms if kind == "head norms" else model)
    if kind == "int8":
        quantize_(own.model, Int8WeightOnlyConfig(set_inductor_config=False))
    prompts = [tuple(range(5, 5 + count)) for count in (40, 7, 200)]
    expected = [greedy(own, each, 24) for each in prompts]
    changes = {"batching.mode": "continuous", "batching.max_requests": 4, "compile": "compiled"}
    engine = make_engine(changes, model=own)
    runner = engine._mode._runner
    assert runner._fused.compiled == 3
    for index, each in enumerate(prompts):
        engine.submit(request_of(str(index), prompt=each, ignore_eos=True))
    for index in range(len(prompts)):
        recorder.wait_end(str(index))
        assert recorder.tokens(str(index))[: len(expected[index])] == expected[index]  # generate may end
