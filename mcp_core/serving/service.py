"""Service: between HTTP and the engine. Checks a request against the model and starts its choices.

This file does not know about JSON, server-sent events or routes (``api.py``), or how tokens are made.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from mcp_core.errors import ContextTooLong, ModelNotFound, QueueFull, RequestRejected
from mcp_core.generation import GenerationRequest
from mcp_core.monitoring.prometheus import WorkerMetrics
from mcp_core.sections import profile_section
from mcp_core.serving.chat_template import ChatTemplate
from mcp_core.serving.exchange import Exchange
from mcp_core.serving.inbox import Inboxes
from mcp_core.serving.protocol import ChatRequest, CompletionRequest, GenerateRequest
from mcp_core.serving.reply import Reply
from mcp_core.serving.served_model import ServedModel, ServingEngine
from mcp_core.serving.text import encode

__all__ = ["Service"]

_log = logging.getLogger(__name__)

# Texts up to this many characters are tokenized on the event loop: that takes less than handing them to a thread.
_SHORT_TEXT = 2000


@dataclass(frozen=True, slots=True)
class _Prompt:
    """Token ids, and the text that an echo begins with (None: no echo)."""

    ids: tuple[int, ...]
    echo: str | None = None


class Service:
    """Answers chat and completion requests for one model. ``ready`` false refuses new ones."""

    def __init__(
        self, model_id: str, model: ServedModel, engine: ServingEngine, inboxes: Inboxes, metrics: WorkerMetrics
    ) -> None:
        self.model_id = model_id
        self.model = model
        self.engine = engine
        self.metrics = metrics
        self.ready = True
        self._inboxes = inboxes
        self._template = ChatTemplate(model.chat_template, model.template_tokens)

    async def chat(self, request: ChatRequest) -> Exchange:
        """Start a chat request. Raises ModelNotFound, RequestRejected, ContextTooLong, QueueFull."""
        arrived_s = time.perf_counter()
        self._check(request, prompts=1)
        text = await self._template.render([message.for_template() for message in request.messages])
        # The template writes the special tokens itself.
        ids = await self._encode(text, "messages", add_special_tokens=False)
        return self._start("chatcmpl", request, "messages", [_Prompt(ids)], request.logprob_count, arrived_s)

    async def complete(self, request: CompletionRequest) -> Exchange:
        """Start a completion request. Raises as ``chat`` does."""
        arrived_s = time.perf_counter()
        self._check(request, len(request.prompts))
        prompts = [await self._prompt(given, echo=request.echo) for given in request.prompts]
        return self._start("cmpl", request, "prompt", prompts, request.logprobs, arrived_s)

    def require_model(self, model_id: str) -> None:
        """Raises ModelNotFound unless ``model_id`` is the served one's."""
        if model_id != self.model_id:
            raise ModelNotFound(f'There is no model "{model_id}" here.', f'There is "{self.model_id}".')

    async def warm_up(self) -> None:
        """Start the chat template's helper; a template that refuses a plain message is said in the log only."""
        if self.model.chat_template is not None:
            try:
                await self._template.render([{"role": "user", "content": "Hi"}])
            except RequestRejected as error:
                _log.warning("%s", error)

    async def close(self) -> None:
        """End the chat template's helper process."""
        await self._template.close()

    def _check(self, request: GenerateRequest, prompts: int) -> None:
        self.require_model(request.model)
        if not self.ready:
            raise QueueFull("The worker is draining.", "Send the request to another worker.")
        held = self.engine.stats().max_requests
        if prompts * request.n > held:
            raise RequestRejected(
                f"The request asks for {prompts * request.n} choices; this server holds {held} at once.",
                "Send fewer at once, or raise batching.max_requests.",
                param="prompt" if prompts > 1 else "n",
            )

    async def _prompt(self, given: str | list[int], *, echo: bool) -> _Prompt:
        if isinstance(given, str):
            ids = await self._encode(given, "prompt", add_special_tokens=True) if given else ()
            return _Prompt(ids, given if echo else None)
        self._check_vocabulary(given)
        text = self.model.tokenizer.decode(given, skip_special_tokens=False) if echo else None
        return _Prompt(tuple(given), text)

    def _check_vocabulary(self, ids: list[int]) -> None:
        if ids and (min(ids) < 0 or max(ids) >= self.model.vocab_size):
            raise RequestRejected(
                f"Token ids of this model go from 0 to {self.model.vocab_size - 1}.",
                "Use this model's tokenizer.",
                param="prompt",
            )

    async def _encode(self, text: str, param: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestRejected(
                "The text has half of a surrogate pair.", "Send valid Unicode.", param=param
            ) from error
        tokenizer = self.model.tokenizer
        if len(text) <= _SHORT_TEXT:
            return _encode(tokenizer, text, add_special_tokens)
        return await asyncio.to_thread(_encode, tokenizer, text, add_special_tokens)

    def _start(
        self,
        prefix: str,
        request: GenerateRequest,
        param: str,
        prompts: Sequence[_Prompt],
        logprobs: int | None,
        arrived_s: float,
    ) -> Exchange:
        exchange_id = f"{prefix}-{uuid.uuid4().hex}"
        replies: list[Reply] = []
        for prompt in prompts:
            limit = self._token_limit(prompt, request, param)
            for sample in range(request.n):
                generation = GenerationRequest(
                    id=f"{exchange_id}-{len(replies)}",
                    prompt=prompt.ids,
                    max_tokens=limit,
                    sampling=request.sampling(sample),
                    min_tokens=min(request.min_tokens, limit),
                    ignore_eos=request.ignore_eos,
                    logprobs=logprobs,
                    prompt_logprobs=_prompt_logprobs(prompt, limit, logprobs),
                    arrived_s=arrived_s,
                    tenant=request.cache_salt or "",
                )
                replies.append(Reply(len(replies), generation, self.model, request.stop, self.metrics, prompt.echo))
        return Exchange(exchange_id, replies, self.engine, self._inboxes)

    def _token_limit(self, prompt: _Prompt, request: GenerateRequest, param: str) -> int:
        """Tokens to generate: what was asked, clipped to what fits beside the prompt."""
        context, asked = self.model.max_context, request.token_limit
        length = len(prompt.ids)
        if not length:
            raise RequestRejected("The prompt is empty.", "Send at least one token.", param=param)
        if length + (asked != 0) > context:
            raise ContextTooLong(
                f"This model's context holds {context} tokens; the prompt has {length}.",
                "Shorten it, or load the model with a larger kv.max_context.",
                param=param,
            )
        return context - length if asked is None else min(asked, context - length)


def _encode(tokenizer: Tokenizer, text: str, add_special_tokens: bool) -> tuple[int, ...]:
    with profile_section("tokenization"):
        return encode(tokenizer, text, add_special_tokens=add_special_tokens)


def _prompt_logprobs(prompt: _Prompt, limit: int, logprobs: int | None) -> int | None:
    if prompt.echo is None:
        return None
    # The engine accepts a request for no tokens only as one that scores its prompt.
    return 0 if limit == 0 and logprobs is None else logprobs
