"""llama.cpp's own routes: planted, where every probability is known, and a real server beside MCP's own worker."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from mcp_core.documents import Document, text_set
from mcp_core.errors import ContextTooLong, Unscorable
from mcp_core.evaluation.endpoint_fidelity import common, compare, score_all
from mcp_core.evaluation.endpoints import Endpoint
from mcp_core.evaluation.fidelity_metrics import figures
from mcp_core.evaluation.prompt_scores import Dialect, PromptScores, dialect_of, score
from mcp_core.serving.client import ServerClient
from tests.evaluation.bigram_server import LETTERS, Bigrams, running, table

TEXT = "the cat sat on the mat: why?"
P = table(1)
NATIVE = Dialect(20, 0, as_ids=True, by_position=True)


def scored(server: Bigrams, dialect: Dialect, text: str = TEXT) -> PromptScores:
    async def run() -> PromptScores:
        async with running(server) as endpoint:
            return await score(endpoint, dialect, text)

    return asyncio.run(run())


def test_it_is_the_last_dialect_that_is_tried() -> None:
    async def run(server: Bigrams) -> Dialect:
        async with running(server) as endpoint:
            return await dialect_of(endpoint)

    assert asyncio.run(run(Bigrams(P, echoes=False, native=True))) == NATIVE
    assert not asyncio.run(run(Bigrams(P, native=True))).by_position
    with pytest.raises(Unscorable, match="gives no log-probabilities of a prompt"):
        asyncio.run(run(Bigrams(P, echoes=False)))
    assert common([NATIVE]) == Dialect(20, 0, as_ids=True)  # the other side need not be asked so


def test_it_says_what_echo_says_and_draws_the_text_s_own_tokens() -> None:
    server = Bigrams(P, echoes=False, native=True)
    found, echoed = scored(server, NATIVE), scored(Bigrams(P), Dialect(20, 0, as_ids=True))
    assert (found.tokens, found.offsets) == (echoed.tokens, echoed.offsets)
    assert found.logprobs == pytest.approx(echoed.logprobs)
    for ours, theirs in zip(found.top, echoed.top, strict=True):
        assert ours == pytest.approx(theirs)
    drawn = [body["logit_bias"][0][0] for body in server.bodies if "logit_bias" in body]
    assert drawn == [LETTERS.index(each) for each in TEXT[1:]]
    kept = [body["cache_prompt"] for body in server.bodies if "logit_bias" in body]
    assert (kept[0], set(kept[1:])) == (False, {True})


def test_of_what_the_server_hides_the_whole_list_tells_the_probability() -> None:
    server = Bigrams(P, echoes=False, native=True, hidden="t:?")
    found = scored(server, NATIVE)
    assert found.logprobs == pytest.approx(scored(Bigrams(P, native=True), NATIVE).logprobs)
    assert max(body.get("n_probs", 0) for body in server.bodies) > len(LETTERS)


def test_a_text_that_does_not_fit_is_known_at_once() -> None:
    server = Bigrams(P, native=True, context=10)
    with pytest.raises(ContextTooLong, match="context size"):
        scored(server, NATIVE)
    assert len(server.bodies) == 1


def test_a_server_that_says_nothing_is_named_so() -> None:
    with pytest.raises(Unscorable, match="without log-probabilities"):
        scored(Bigrams(P, native=True, hidden=LETTERS), NATIVE)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """llama.cpp's server with the bundled model, as llama-server serves it: over TCP, nothing of MCP in between."""
    xllamacpp = pytest.importorskip("xllamacpp")
    from mcp_core.models import catalog
    from mcp_core.presets import bundled

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(catalog.resolve(bundled().model).gguf_file)
    parameters.n_ctx, parameters.n_parallel, parameters.verbosity = 256, 1, 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.hostnames, parameters.port = ["127.0.0.1"], 0
    server = xllamacpp.Server(parameters)
    yield server.listening_address
    del server


def test_a_real_server_is_scored_and_is_at_no_distance_from_itself(url: str) -> None:
    text = text_set("mixed", [Document("a", text="The sea was rough: naïve 日本語 🎉 of wood smoke, and so on")])

    async def run() -> tuple[Dialect, list[PromptScores | None], list[PromptScores | None]]:
        async with ServerClient(url) as client:
            endpoint = Endpoint(client, (await client.models())[0])
            dialect = await dialect_of(endpoint)
            once, again = [[*await score_all(endpoint, dialect, text.documents)] for _ in range(2)]
            return dialect, once, again

    dialect, once, again = asyncio.run(run())
    assert dialect == NATIVE
    (found,) = once
    assert found is not None
    assert found.offsets is not None
    assert found.offsets[0] == 0
    assert list(found.offsets) == sorted(found.offsets)
    assert all(value is not None and -60 < value < 0 for value in found.logprobs[1:])
    (compared,) = compare(text.documents, once, again)
    assert figures([compared.scores]).kl.max < 1e-6
