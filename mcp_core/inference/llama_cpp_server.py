"""llama.cpp's own server in this process, behind a Unix socket that only this user can open, and how it is asked.

Its native ``/completion`` is used rather than the OpenAI form: that one gives no token ids. This file does not know
whose requests these are (``llama_cpp_engine.py``) or what a token reads (``llama_cpp_tokens.py``).
"""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xllamacpp

from mcp_core import llama_cpp
from mcp_core.errors import LoadFailed, McpError
from mcp_core.generation import GenerationRequest, Sampling
from mcp_core.inference.llama_cpp_scoring import Position
from mcp_core.llama_cpp_scores import question
from mcp_core.recipe import Recipe

__all__ = ["Answer", "LlamaServer", "score_body", "stream_body", "whole_body"]

_LOG_ERRORS = 1
_RECEIVE_BYTES = 65_536
_FLASH_ATTENTION = {
    True: xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_AUTO,
    False: xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}
# llama.cpp reads this seed as "any".
_ANY_SEED = 0xFFFF_FFFF


class LlamaServer:
    """A model that llama.cpp holds and serves. Raises LoadFailed when it cannot load the file."""

    def __init__(self, model: Path, recipe: Recipe, max_context: int) -> None:
        self.slots = llama_cpp.slots(recipe)
        self._folder = Path(tempfile.mkdtemp(prefix="mcp-llama-"))  # readable by this user only
        self._address = str(self._folder / "s.sock")  # the name's end makes it a Unix socket
        parameters = _parameters(model, recipe, max_context, self.slots)
        parameters.hostnames = [self._address]
        try:
            self._server: Any = xllamacpp.Server(parameters)
        except RuntimeError as error:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise LoadFailed(f"llama.cpp could not load {model.name}.", "The worker's log says why.") from error

    def complete(self, body: dict[str, Any]) -> Answer:
        """Begin a completion. Raises OSError."""
        return Answer(self._address, "/completion", body)

    def tokenize(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids as llama.cpp cuts a text."""
        asked = {"content": text, "add_special": add_special_tokens, "parse_special": True}
        (answer,) = Answer(self._address, "/tokenize", asked).read_all()
        return [int(token) for token in answer["tokens"]]

    def close(self) -> None:
        """Give its memory back; what it was asked ends."""
        self._server = None
        shutil.rmtree(self._folder, ignore_errors=True)


class Answer:
    """One request to the server while its answer comes in: JSON documents, one a token where it streams.

    Made, it is sent; raises OSError. ``fileno`` is for selectors. ``close`` before the end cancels it: the server
    notices at its next token.
    """

    def __init__(self, address: str, path: str, body: dict[str, Any]) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._rest = b""
        self._streams = bool(body.get("stream"))
        self.ended = False
        payload = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: mcp\r\nConnection: close\r\nContent-Type: application/json\r\n"
        try:
            self._socket.connect(address)
            self._socket.sendall(f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload)
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Of the connection."""
        return self._socket.fileno()

    def read(self) -> list[dict[str, Any]]:
        """What has come in; blocks only while nothing has. Raises McpError in the server's words."""
        received = self._socket.recv(_RECEIVE_BYTES)
        self._rest += received
        self.ended = not received
        if self._streams and not self._failed:
            return self._take_events()
        return self._take_whole() if self.ended else []

    def read_all(self) -> list[dict[str, Any]]:
        """Everything until its end."""
        documents: list[dict[str, Any]] = []
        while not self.ended:
            documents += self.read()
        self.close()
        return documents

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    @property
    def _failed(self) -> bool:
        """Whether it was refused: the head, which stays until the first event, says no 200."""
        return self._rest.startswith(b"HTTP/1.1 ") and not self._rest.startswith(b"HTTP/1.1 200")

    def _take_events(self) -> list[dict[str, Any]]:
        """Each event is one line of one chunk; the lines between are HTTP's."""
        *lines, self._rest = self._rest.split(b"\n")
        events = [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]
        events += [{"error": json.loads(line[7:])} for line in lines if line.startswith(b"error: {")]
        for event in events:
            _raise_error(event)
        return events

    def _take_whole(self) -> list[dict[str, Any]]:
        document: dict[str, Any] = json.loads(self._rest.partition(b"\r\n\r\n")[2])
        _raise_error(document)
        return [document]


def stream_body(request: GenerationRequest, reply: Sequence[int], slot: int, *, reuse: bool) -> dict[str, Any]:
    """Ask for what follows prompt and ``reply``, a token an event. ``reuse`` keeps what the slot has of it."""
    return _body(request, reply, slot) | {"stream": True, "return_progress": True, "cache_prompt": reuse}


def whole_body(request: GenerationRequest, reply: Sequence[int], slot: int, tokens: int) -> dict[str, Any]:
    """Ask for the next ``tokens`` in one answer, which gives the ids of all of them."""
    asked = {"stream": False, "return_tokens": True, "cache_prompt": True, "n_predict": tokens}
    return _body(request, reply, slot) | asked


def score_body(request: GenerationRequest, asked: Position, slot: int) -> dict[str, Any]:
    """Ask how likely the prompt's own token is after the first ``asked.index`` of it."""
    return question(request.prompt[: asked.index], asked.drawn, asked.top) | {"id_slot": slot}


def _body(request: GenerationRequest, reply: Sequence[int], slot: int) -> dict[str, Any]:
    return {
        "prompt": [*request.prompt, *reply],
        "n_predict": request.max_tokens - len(reply),
        "id_slot": slot,
        "ignore_eos": request.ignore_eos,
        "n_probs": 0 if request.logprobs is None else max(1, request.logprobs),
        **_penalties(request),
        **_sampling(request.sampling, len(reply)),
    }


def _penalties(request: GenerationRequest) -> dict[str, Any]:
    """Over all of prompt and reply, as transformers counts."""
    penalty = request.sampling.repetition_penalty
    if penalty == 1:
        return {}
    return {"repeat_penalty": penalty, "repeat_last_n": len(request.prompt) + request.max_tokens}


def _sampling(sampling: Sampling, drawn: int) -> dict[str, Any]:
    """The same filters in the same order as ``inference/sampling.py``; llama.cpp's defaults are others."""
    before = ["penalties"] if sampling.repetition_penalty != 1 else []
    if sampling.temperature == 0:
        # At temperature 0 all but the largest logit are dropped; top_k 1 sorts, and made a token 8 % slower.
        return {"samplers": [*before, "temperature"], "temperature": 0}
    seed = {} if sampling.seed is None else {"seed": (sampling.seed + drawn) % _ANY_SEED}
    return {
        "samplers": [*before, "temperature", "top_k", "top_p", "min_p"],
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        **seed,
    }


def _parameters(model: Path, recipe: Recipe, max_context: int, slots: int) -> Any:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(model)
    parameters.load_mode = xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_NONE  # read, not mapped (CONTRACTS.md)
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = recipe.threads or 1
    parameters.n_parallel = slots
    parameters.n_ctx = slots * llama_cpp.slot_tokens(max_context)
    parameters.n_batch = max(recipe.batching.step_tokens, slots)
    parameters.n_ubatch = min(parameters.n_batch, llama_cpp.PASS_TOKENS)
    parameters.n_threads_http = 2 * slots + 2  # a thread a connection; cancelled ones linger for a second
    parameters.flash_attn_type = _FLASH_ATTENTION[llama_cpp.flash_attention(recipe)]
    parameters.fit_params = False  # it would shorten the context instead of failing
    parameters.cache_ram_mib = 0  # prefixes are reused from slots; a second copy is not in any footprint
    parameters.cache_idle_slots = False
    parameters.ui = parameters.use_jinja = False
    parameters.verbosity = _LOG_ERRORS
    return parameters


def _raise_error(document: dict[str, Any]) -> None:
    error = document.get("error")
    if error:
        said = str(error.get("message", error))
        raise McpError(f"llama.cpp failed: {said}", "The worker's log says more.")
