"""ChatTemplate: messages to prompt text, rendered in a helper process under a time limit.

This file does not know what a template says (``template_process.py`` renders it) or how text becomes tokens.
"""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from mcp_core.errors import RequestRejected

__all__ = ["ChatTemplate"]

TIME_LIMIT_S = 2.0
# Starting Python and importing jinja2 on a busy machine is not the template's fault.
START_LIMIT_S = 30.0
# The longest rendered prompt, as a JSON line.
_LINE_LIMIT_BYTES = 64 * 1024**2


class ChatTemplate:
    """One model's chat template; ``source`` None for a model without one.

    The helper process starts at the first use, is shared, and is started anew after it had to be killed. It ends
    with this process, whose end of its stdin closes.
    """

    def __init__(
        self, source: str | None, tokens: Mapping[str, str], *, time_limit_s: float = TIME_LIMIT_S
    ) -> None:
        self._source = source
        self._tokens = dict(tokens)
        self._time_limit_s = time_limit_s
        self._process: Process | None = None
        self._turn = asyncio.Lock()

    async def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt text, with the generation prompt at its end. Raises RequestRejected."""
        if self._source is None:
            raise RequestRejected(
                "This model has no chat template, so it cannot answer messages.",
                "Send a prompt to /v1/completions.",
                param="messages",
            )
        async with self._turn:
            process = self._process or await self._start(self._source)
            answer = await self._exchange(process, {"messages": list(messages)}, self._time_limit_s)
        if "error" in answer:
            _reject(f"The model's chat template refused these messages: {answer['error']}.")
        return str(answer["text"])

    async def close(self) -> None:
        """End the helper process, if there is one."""
        async with self._turn:
            await self._kill()

    async def _start(self, source: str) -> Process:
        command = (sys.executable, "-m", "mcp_core.serving.template_process")
        self._process = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, limit=_LINE_LIMIT_BYTES
        )
        setup = {"template": source, "tokens": self._tokens}
        answer = await self._exchange(self._process, setup, START_LIMIT_S)
        if "error" in answer:
            await self._kill()
            _reject(f"The model's chat template cannot be read: {answer['error']}.")
        return self._process

    async def _exchange(self, process: Process, document: Any, limit_s: float) -> dict[str, str]:
        """One line there, one line back; a helper that is late, too wordy or dead is killed."""
        assert process.stdin is not None
        assert process.stdout is not None
        answer: dict[str, str] | None = None
        try:
            async with asyncio.timeout(limit_s):
                process.stdin.write(json.dumps(document).encode() + b"\n")
                await process.stdin.drain()
                answer = json.loads(await process.stdout.readline())
        except TimeoutError:
            _reject(f"The model's chat template did not finish in {limit_s:g} s.")
        except (ValueError, ConnectionError):
            _reject("The model's chat template used too much memory or text.")
        finally:
            # Also when cancelled: what is still in the pipe would be the next request's answer.
            if answer is None:
                await self._kill()
        return answer

    async def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            process.kill()
        await process.communicate()


def _reject(message: str) -> NoReturn:
    raise RequestRejected(
        message, "Check the roles and their order, or send a prompt to /v1/completions.", param="messages"
    )
