"""A tiny random Llama in fp32 and an engine around it that records its events."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import tokenizers
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mcp_core.generation import GenerationRequest, TokenEvent
from mcp_core.inference.engine import Engine
from mcp_core.models.architecture import Architecture, ResolvedModel
from mcp_core.models.loaded import LoadedModel
from mcp_core.recipe import ModelRef, Recipe
from mcp_core.results import Effective

VOCAB, CONTEXT, EOS = 320, 512, 2


@pytest.fixture(scope="session")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        eos_token_id=EOS,
        bos_token_id=1,
        pad_token_id=0,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(requires_grad=False)


@pytest.fixture
def loaded(model: LlamaForCausalLM) -> LoadedModel:
    architecture = Architecture("llama", 3, 64, 128, 4, 2, 16, VOCAB, CONTEXT, False, "fp32", ())
    effective = Effective(
        device="cpu",
        dtype="fp32",
        scheme="none",
        attention="sdpa",
        kv_kind="dynamic",
        max_context=CONTEXT,
        threads=1,
        batching_mode="off",
    )
    return LoadedModel(
        model=model,
        tokenizer=tokenizers.Tokenizer(tokenizers.models.BPE()),
        chat_template=None,
        template_tokens={},
        eos_ids=frozenset({EOS}),
        special_ids=frozenset({0, 1, EOS}),
        vocab_size=VOCAB,
        max_context=CONTEXT,
        weights_bytes=0,
        effective=effective,
        title="tiny",
        random_weights=True,
        resolved=ResolvedModel(ModelRef(source="shape", id="llama-2-7b"), "tiny", architecture),
    )


class Recorder:
    """A sink that keeps events and can wait for a request's end."""

    def __init__(self) -> None:
        self.events: list[TokenEvent] = []
        self._changed = threading.Condition()

    def __call__(self, events: list[TokenEvent]) -> None:
        with self._changed:
            self.events += events
            self._changed.notify_all()

    def of(self, request_id: str) -> list[TokenEvent]:
        return [event for event in self.events if event.request_id == request_id]

    def tokens(self, request_id: str) -> list[int]:
        return [event.token for event in self.of(request_id) if event.token is not None]

    def wait(self, done: Callable[[], bool], timeout_s: float = 60) -> None:
        with self._changed:
            assert self._changed.wait_for(done, timeout_s), f"only {len(self.events)} events"

    def wait_end(self, request_id: str) -> TokenEvent:
        self.wait(lambda: any(event.finish for event in self.of(request_id)))
        return self.of(request_id)[-1]


class Gate:
    """Lets an engine's first ``passes`` forward passes through and holds the next one until ``open``."""

    def __init__(self, engine: Engine, passes: int) -> None:
        self._permits = threading.Semaphore(passes)
        self._forward = engine._decoder._forward
        self._held = threading.Event()
        engine._decoder._forward = self._pass  # type: ignore[method-assign]

    def _pass(self, *args: object, **kwargs: object) -> torch.Tensor:
        if not self._permits.acquire(blocking=False):
            self._held.set()
            assert self._permits.acquire(timeout=60)
        return self._forward(*args, **kwargs)  # type: ignore[arg-type]

    def wait(self) -> None:
        """Until the engine stands before it."""
        assert self._held.wait(60)

    def open(self) -> None:
        """Let everything through."""
        self._permits.release(100_000)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def make_engine(loaded: LoadedModel, recorder: Recorder) -> Iterator[Callable[..., Engine]]:
    engines: list[Engine] = []

    def make(changes: dict[str, object] | None = None, *, start: bool = True, **fields: object) -> Engine:
        changes = dict(changes or {})
        ahead = changes.pop("ahead", False)  # as on a CUDA device: the next step is launched before one is read
        engine = Engine(replace(loaded, **fields), Recipe(dtype="fp32").replace(changes), recorder)
        engines.append(engine)
        if ahead:
            engine._mode._ahead = True
        if start:
            engine.start()
        return engine

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture
def prompt() -> tuple[int, ...]:
    return tuple(int(token) for token in torch.randint(3, VOCAB, (40,), generator=torch.Generator().manual_seed(1)))


@pytest.fixture
def request_of(prompt: tuple[int, ...]) -> Callable[..., GenerationRequest]:
    from mcp_core.generation import Sampling

    def make(request_id: str = "r", **fields: object) -> GenerationRequest:
        base = GenerationRequest(request_id, prompt, 24, Sampling(temperature=0))
        return replace(base, **fields)

    return make
