"""An OpenAI endpoint whose next-token distribution is known: a table of what follows each letter.

It scores prompts (completions with echo and logprobs) and chats with a scripted reply; options make it answer as
other servers do.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from aiohttp import web

from mcp_core.evaluation.endpoints import Endpoint
from mcp_core.serving.client import ServerClient

LETTERS = "abcdefghijklmnopqrstuvwxyz .,?:ABCDEFGHIJKLMNOPQRSTUVWXYZ\n"


def table(seed: int, sharpness: float = 2.0) -> np.ndarray:
    """Natural log-probabilities [letter, next letter]."""
    logits = np.random.default_rng(seed).normal(size=(len(LETTERS), len(LETTERS))) * sharpness
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


@dataclass
class Bigrams:
    """``refuses`` are fields answered with 400; ``most`` alternatives; ``echoes`` False scores the generated token
    only, as llama.cpp's server does, whose own routes it has where ``native``: those say nothing when one of the
    letters ``hidden`` is drawn. ``counts_one`` is vLLM's way with max_tokens 0."""

    logprobs: np.ndarray
    refuses: tuple[str, ...] = ()
    most: int = 20
    echoes: bool = True
    counts_one: bool = False
    native: bool = False
    hidden: str = ""
    offsets: bool = True
    letters: str = LETTERS
    context: int = 10_000
    replies: dict[str, tuple[str, str]] = field(default_factory=dict)  # prompt -> (text, finish reason)
    bodies: list[dict[str, Any]] = field(default_factory=list)

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "bigrams"}]})

    async def complete(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        for name in self.refuses:
            if name in body:
                return _refused(f"{name} is not supported.", name)
        if body["logprobs"] > self.most:
            return _refused(f"logprobs must be at most {self.most}.", "logprobs")
        if len(body["prompt"]) > self.context:
            error = {"message": "It does not fit.", "code": "context_length_exceeded"}
            return web.json_response({"error": error}, status=400)
        return web.json_response(self._answer(body))

    def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = body["prompt"]
        ids = [self.letters.index(letter) for letter in prompt]
        generated = [0] * body["max_tokens"]
        listed = [*ids, *generated] if self.echoes else generated or [0]
        name = (
            (lambda token: f"token_id:{token}")
            if body.get("return_tokens_as_token_ids")
            else (lambda token: self.letters[token])
        )
        rows = [
            None,
            *(self._row(before, after, body["logprobs"], name) for before, after in itertools.pairwise(listed)),
        ]
        if not self.echoes:
            rows = [({name(0): -1.0}, -1.0)]
        logprobs = {
            "tokens": [name(each) for each in listed],
            "token_logprobs": [None if row is None else row[1] for row in rows],
            "top_logprobs": [None if row is None else row[0] for row in rows],
            "text_offset": list(range(len(listed))) if self.offsets else None,
        }
        completion = body["max_tokens"] or int(self.counts_one)
        usage = {"prompt_tokens": len(ids), "completion_tokens": completion}
        return {"choices": [{"text": prompt, "logprobs": logprobs}], "usage": usage}

    def _row(self, before: int, after: int, top: int, name: Any) -> tuple[dict[str, float], float]:
        row = self.logprobs[before]
        best = [int(each) for each in np.argsort(-row)[:top]]
        return {name(each): float(row[each]) for each in [*best, after]}, float(row[after])

    async def tokenize(self, request: web.Request) -> web.Response:
        text = (await request.json())["content"]
        return web.json_response({"tokens": [{"id": self.letters.index(each), "piece": each} for each in text]})

    async def draw(self, request: web.Request) -> web.Response:
        """The next letter as llama.cpp's server draws it, by its bias, and what the model itself says."""
        body = await request.json()
        self.bodies.append(body)
        if len(body["prompt"]) >= self.context:
            return _refused("the request exceeds the available context size", "prompt")
        row = self.logprobs[body["prompt"][-1]]
        biased = row + 0
        for token, bias in body.get("logit_bias", ()):
            biased[token] += bias
        drawn = int(biased.argmax())
        if "n_probs" not in body or self.letters[drawn] in self.hidden:
            return web.json_response({"tokens": [drawn]})
        best = [{"id": int(each), "logprob": row[each]} for each in np.argsort(-row)[: body["n_probs"]]]
        told = {"id": drawn, "logprob": row[drawn], "top_logprobs": best}
        return web.json_response({"completion_probabilities": [told]})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        text, finish = self.replies[body["messages"][-1]["content"]]
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        words = [{"choices": [{"delta": {"content": f"{word} "}}]} for word in text.split()]
        last = {"choices": [{"delta": {}, "finish_reason": finish}]}
        usage = {"choices": [], "usage": {"completion_tokens": len(words)}}
        for chunk in (*words, last, usage):
            await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response


@asynccontextmanager
async def running(bigrams: Bigrams) -> AsyncIterator[Endpoint]:
    """The server on a port of its own, while the block lasts."""
    app = web.Application()
    app.router.add_get("/v1/models", bigrams.models)
    app.router.add_post("/v1/completions", bigrams.complete)
    app.router.add_post("/v1/chat/completions", bigrams.chat)
    if bigrams.native:
        app.router.add_post("/tokenize", bigrams.tokenize)
        app.router.add_post("/completion", bigrams.draw)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    try:
        async with ServerClient(f"http://127.0.0.1:{port}") as client:
            yield Endpoint(client, "bigrams")
    finally:
        await runner.cleanup()


def full_kl(p: np.ndarray, q: np.ndarray, text: str) -> list[float]:
    """KL(P || Q) over the whole alphabet at every scored position of a text, by hand."""
    rows = [LETTERS.index(letter) for letter in text[:-1]]
    return [math.fsum(np.exp(p[row]) * (p[row] - q[row])) for row in rows]


def _refused(message: str, param: str) -> web.Response:
    return web.json_response({"error": {"message": message, "param": param}}, status=400)
