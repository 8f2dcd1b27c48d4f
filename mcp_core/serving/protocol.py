"""What a client may ask: the OpenAI API's request bodies, checked, with our extensions.

Fields beside OpenAI's: top_k, min_p, repetition_penalty, min_tokens, ignore_eos, return_tokens_as_token_ids (vLLM's
names). A field that OpenAI has and this server has not is refused by name, unless its value asks for nothing (null,
or ``NEUTRAL_VALUES``). A field that nobody knows is refused by name. Accepted without effect, as OpenAI's meaning
allows: user, safety_identifier, metadata (labels), prompt_cache_key (a hint), store false, service_tier auto or
default.

This file does not know the model: lengths in tokens, vocabulary and name are checked in ``service.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from mcp_core.generation import Sampling

__all__ = ["ChatMessage", "ChatRequest", "CompletionRequest", "GenerateRequest", "Prompt", "StreamOptions"]

Prompt = str | list[int]
"""One prompt: text, or token ids."""

# OpenAI takes 4; evaluation tasks send more (lm-eval's HumanEval 5, and the end of text), and so other servers do.
MAX_STOPS = 32
MAX_LOGPROBS = 20
_SEEDS = 2**63

# Fields of OpenAI's that are not served -> the values that ask for nothing. null is one for all of them.
NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}
_MESSAGE_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "refusal": (),
    "tool_call_id": (),
    "tool_calls": ([],),
}


def _problem(message: str, param: str | None = None) -> PydanticCustomError:
    """A validation error whose ``ctx.param`` names the field, where its place in the document does not."""
    return PydanticCustomError("request", "{message}", {"message": message, "param": param})


class _Body(BaseModel):
    # Strict: "5" is not a number and true is not 1. Inputs stay out of errors: prompts are never logged.
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _leave_out_what_asks_for_nothing(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        kept = {}
        for name, value in data.items():
            if name in cls.neutral and value is not None and value not in cls.neutral[name]:
                raise _problem(f"{name} is not supported by this server.", name)
            if name not in cls.neutral and not (value is None and name in cls.model_fields):
                kept[name] = value
        return kept


class StreamOptions(_Body):
    """Options of a stream."""

    include_usage: bool = Field(default=False, description="A last chunk without choices that carries usage.")
    include_obfuscation: bool = Field(default=False, description="Accepted; nothing is padded here.")


def _as_stops(value: Any) -> Any:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise _problem("must be a non-empty string or a list of them")
    if len(stops) > MAX_STOPS:
        raise _problem(f"has {len(stops)} strings; at most {MAX_STOPS} are served")
    return stops


class GenerateRequest(_Body):
    """What chat and completions have in common."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = NEUTRAL_VALUES

    model: str = Field(min_length=1, description="The id that /v1/models lists.")
    stream: bool = Field(default=False, description="Send chunks as they are generated.")
    stream_options: StreamOptions | None = Field(default=None, description="Only with stream.")
    n: int = Field(default=1, ge=1, le=128, description="Choices per prompt, with seeds seed, seed + 1, ...")
    max_tokens: int | None = Field(default=None, ge=0, description="Tokens at most; clipped to what fits.")
    min_tokens: int = Field(default=0, ge=0, description="No end of text before that many tokens.")
    ignore_eos: bool = Field(default=False, description="Go on after the end-of-text token.")
    stop: Annotated[list[str], BeforeValidator(_as_stops)] = Field(
        default_factory=list, description="Up to four strings; the first one met ends the text before it."
    )
    temperature: float = Field(default=1.0, ge=0, le=2, description="0 is greedy.")
    top_p: float = Field(default=1.0, gt=0, le=1, description="Nucleus.")
    top_k: int = Field(default=0, ge=-1, description="0 or -1 is off.")
    min_p: float = Field(default=0.0, ge=0, le=1, description="0 is off.")
    repetition_penalty: float = Field(default=1.0, gt=0, le=10, description="1 is off.")
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2, description="0 is off.")
    presence_penalty: float = Field(default=0.0, ge=-2, le=2, description="0 is off.")
    seed: int | None = Field(
        default=None, ge=-_SEEDS, lt=_SEEDS, description="Repeats a sampled reply; surely in mode off."
    )
    user: str | None = Field(default=None, description="Accepted; a label without effect.")
    safety_identifier: str | None = Field(default=None, description="Accepted; a label without effect.")
    metadata: dict[str, str] | None = Field(default=None, description="Accepted; labels without effect.")
    prompt_cache_key: str | None = Field(default=None, description="Accepted; a hint without effect.")
    cache_salt: str | None = Field(
        default=None, min_length=1, max_length=256, description="Prefixes are shared among equal salts only."
    )
    store: Literal[False] | None = Field(default=None, description="Nothing is stored.")
    service_tier: Literal["auto", "default"] | None = Field(default=None, description="There is one tier.")

    @model_validator(mode="after")
    def _options_go_together(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise _problem("stream_options goes with stream: true only.", "stream_options")
        if self.token_limit is not None and self.min_tokens > self.token_limit:
            raise _problem(f"min_tokens {self.min_tokens} is more than the {self.token_limit} asked.", "min_tokens")
        return self

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with a chunk of usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def token_limit(self) -> int | None:
        """Tokens at most per choice; None is the route's default."""
        return self.max_tokens

    def sampling(self, choice: int) -> Sampling:
        """How choice number ``choice`` of a prompt is sampled."""
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(0, self.top_k),
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            seed=None if self.seed is None else (self.seed + choice) % _SEEDS,
        )


def _as_text(value: Any) -> Any:
    """A message's content as one text; parts of type text are joined by line ends, as vLLM does."""
    if not isinstance(value, list):
        return value
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise _problem(
                f"content parts of type {kind or 'unknown'} are not supported; this model reads text only"
            )
    return "\n".join(part["text"] for part in value)


class ChatMessage(_Body):
    """One message. The role developer is given to the template as system."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = _MESSAGE_NEUTRAL

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_as_text)]
    name: str | None = None

    def for_template(self) -> dict[str, str]:
        """As chat templates read it."""
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": self.content} | ({"name": self.name} if self.name else {})


class ChatRequest(GenerateRequest):
    """Body of POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, description="The conversation so far.")
    max_completion_tokens: int | None = Field(default=None, ge=1, description="The newer name of max_tokens.")
    logprobs: bool = Field(default=False, description="Log-probability of each token.")
    top_logprobs: int | None = Field(
        default=None, ge=0, le=MAX_LOGPROBS, description="Alternatives, with logprobs."
    )

    @model_validator(mode="after")
    def _chat_options_go_together(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise _problem("top_logprobs goes with logprobs: true only.", "top_logprobs")
        if self.max_tokens == 0:
            raise _problem("max_tokens must be at least 1.", "max_tokens")
        if None not in (self.max_tokens, self.max_completion_tokens) and (
            self.max_tokens != self.max_completion_tokens
        ):
            raise _problem("max_tokens and max_completion_tokens differ; send one of them.", "max_tokens")
        return self

    @property
    def token_limit(self) -> int | None:
        """Tokens at most per choice; None is the rest of the context."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def logprob_count(self) -> int | None:
        """Alternatives per token; None is no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


def _as_prompts(value: Any) -> Any:
    """Every form of a prompt as a list of prompts."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise _problem("must be a text, a list of texts, a list of token ids or a list of such lists, not empty")
    if _are_ids(value):
        return [value]
    if all(isinstance(item, str) for item in value) or all(
        isinstance(item, list) and _are_ids(item) for item in value
    ):
        return value
    raise _problem("must be all texts, all token ids or all lists of token ids")


def _are_ids(items: list[Any]) -> bool:
    return all(type(item) is int for item in items)


class CompletionRequest(GenerateRequest):
    """Body of POST /v1/completions."""

    # Checked by _as_prompts; checking a million token ids a second time would only cost time.
    prompt: Annotated[list[Any], BeforeValidator(_as_prompts)] = Field(description="One prompt or several.")
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS, description="Alternatives per token.")
    echo: bool = Field(default=False, description="Begin the text with the prompt, log-probabilities included.")
    return_tokens_as_token_ids: bool = Field(
        default=False, description='In logprobs, write a token as "token_id:42": exact where texts are alike.'
    )

    @model_validator(mode="after")
    def _completion_options_go_together(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise _problem("max_tokens 0 goes with echo: true only.", "max_tokens")
        return self

    @property
    def token_limit(self) -> int:
        """Tokens at most per choice."""
        return 16 if self.max_tokens is None else self.max_tokens

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts, in order."""
        return self.prompt
