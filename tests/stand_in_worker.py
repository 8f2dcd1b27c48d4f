"""A worker without a model: speaks the worker's protocol, answers "w0 w1 w2 ..." and misbehaves on request.

Run by the tests of the supervisor, the client and the Workbench; the flags say how it misbehaves.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import threading
import time
from typing import Any

from aiohttp import web


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--delay", type=float, default=0.002, help="seconds a token")
    parser.add_argument("--context", type=int, default=10_000, help="words of prompt that fit")
    parser.add_argument("--queue", type=int, default=64, help="requests held at once")
    parser.add_argument("--fail", default="", help="kind of the failed line")
    parser.add_argument("--die-loading", type=int, default=0, help="signal to end by, while loading")
    parser.add_argument("--die-after", type=int, default=0, help="tokens, then SIGKILL to itself")
    parser.add_argument("--hang", action="store_true", help="never ready")
    parser.add_argument("--stubborn", action="store_true", help="ignores shutdown, SIGTERM and the end of stdin")
    parser.add_argument("--say", default="", help="environment variable to write to stderr")
    return parser.parse_args()


def say(**event: Any) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def first_line() -> dict[str, Any]:
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(0, 1)
    return json.loads(line)


def end_with_stdin() -> None:
    while os.read(0, 1024):
        pass
    os._exit(0)


class StandIn:
    def __init__(self, order: dict[str, Any], chosen: argparse.Namespace) -> None:
        self.order, self.chosen = order, chosen
        self.recipe = order["recipe"]
        self.running = self.finished = self.cancelled = self.tokens = 0
        self.bodies: list[dict[str, Any]] = []
        self.stopping = asyncio.Event()

    def routes(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/control/state", self.state)
        app.router.add_get("/control/stats", self.stats)
        app.router.add_post("/control/recipe", self.set_recipe)
        app.router.add_post("/control/reset-peaks", self.fine)
        app.router.add_post("/control/drain", self.fine)
        app.router.add_post("/control/shutdown", self.shutdown)
        app.router.add_get("/bodies", self.seen)
        return app

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": self.recipe["model"]["id"]}]})

    async def seen(self, request: web.Request) -> web.Response:
        return web.json_response(self.bodies)

    async def fine(self, request: web.Request) -> web.Response:
        return web.json_response({"ok": True, "asked": await request.json()})

    async def shutdown(self, request: web.Request) -> web.Response:
        if not self.chosen.stubborn:
            self.stopping.set()
        return web.json_response({"ok": True})

    async def set_recipe(self, request: web.Request) -> web.Response:
        asked = await request.json()
        if asked["dtype"] != self.recipe["dtype"]:
            error = {"message": "dtype cannot change in a running worker.", "hint": "Load it anew."}
            return web.json_response({"error": error}, status=400)
        self.recipe = asked
        return await self.state(request)

    async def state(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {self.order['token']}":
            return web.json_response({"error": {"message": "no such token"}}, status=401)
        effective = {
            "device": "cpu",
            "dtype": "fp32",
            "scheme": "none",
            "attention": "sdpa",
            "kv_kind": "dynamic",
            "max_context": self.chosen.context,
            "threads": 1,
            "batching_mode": "off",
        }
        return web.json_response(
            {
                "state": "ready",
                "title": "Stand-in",
                "recipe": self.recipe,
                "effective": effective,
                "memory": {"weights_bytes": 1000},
                "max_context": self.chosen.context,
                "load_s": 0.1,
                "random_weights": False,
                "pid": os.getpid(),
            }
        )

    async def stats(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "running": self.running,
                "finished_total": self.finished,
                "cancelled_total": self.cancelled,
                "output_tokens_total": self.tokens,
                "memory": {"weights_bytes": 1000, "process_peak_bytes": 2000},
            }
        )

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        words = sum(len(message["content"].split()) for message in body["messages"])
        if words > self.chosen.context:
            error = {"message": f"{words} tokens do not fit", "code": "context_length_exceeded"}
            return web.json_response({"error": error}, status=400)
        if self.running >= self.chosen.queue:
            return web.json_response({"error": {"message": "full"}}, status=503, headers={"Retry-After": "1"})
        self.bodies.append(body)
        self.running += 1
        try:
            return await self.stream(request, body, words)
        except (ConnectionResetError, asyncio.CancelledError):
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def stream(self, request: web.Request, body: dict[str, Any], words: int) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        count = body["max_tokens"]
        for index in range(count):
            await asyncio.sleep(self.chosen.delay)
            choice = {"index": 0, "delta": {"content": f"w{index} "}, "token_ids": [index], "finish_reason": None}
            event: dict[str, Any] = {"choices": [choice]}
            if index == count - 1:
                choice["finish_reason"] = "length"
                event["usage"] = {"prompt_tokens": words, "completion_tokens": count}
            await response.write(f"data: {json.dumps(event)}\n\n".encode())
            self.tokens += 1
            if self.chosen.die_after == index + 1:
                os.kill(os.getpid(), signal.SIGKILL)
        await response.write(b"data: [DONE]\n\n")
        self.finished += 1
        return response


async def serve(order: dict[str, Any], chosen: argparse.Namespace) -> None:
    stand_in = StandIn(order, chosen)
    runner = web.AppRunner(stand_in.routes(), handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", order["port"])
    await site.start()
    say(event="ready", port=runner.addresses[0][1], pid=os.getpid())
    await stand_in.stopping.wait()
    await runner.cleanup()


def main() -> None:
    chosen, order = options(), first_line()
    if chosen.stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        threading.Thread(target=end_with_stdin, daemon=True).start()
    sys.stderr.write(f"token {order['token']} hub {order['hub_token']}\n")
    if chosen.say:
        sys.stderr.write(f"{chosen.say}={os.environ.get(chosen.say)}\n")
    sys.stderr.flush()
    say(event="progress", stage="load", fraction=0.25, message="a quarter")
    time.sleep(0.05)
    say(event="progress", stage="load", fraction=0.5, message="half")
    if chosen.fail:
        say(event="failed", failure={"kind": chosen.fail, "message": "no luck", "hint": "try less"})
        sys.exit(1)
    if chosen.die_loading:
        os.kill(os.getpid(), chosen.die_loading)
    while chosen.hang:
        time.sleep(0.05)
    asyncio.run(serve(order, chosen))


if __name__ == "__main__":
    main()
