"""A worker without a model for sweeps: its speed is a law of scheme and batching, it changes live, it can die.

``SWEEP_LOG`` names a file: a line for every start and live change. ``SWEEP_DIES`` names a scheme at which it ends
itself midway, ``SWEEP_FAILS`` one that it refuses to load.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from aiohttp import web

# ms a token
LAW = {"none": 10.0, "bnb-nf4": 2.0, "bnb-int8": 20.0, "gguf": 5.0}


def say(**event: Any) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    if path := os.environ.get("SWEEP_LOG"):
        with Path(path).open("a") as file:
            file.write(f"{text}\n")


def name_of(recipe: dict[str, Any]) -> str:
    return f"{recipe['quantization']['scheme']} {recipe['batching']['mode']}"


class SweepWorker:
    def __init__(self, recipe: dict[str, Any]) -> None:
        self.recipe = recipe
        self.tokens = self.running = 0
        self.stopping = asyncio.Event()

    def routes(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/v1/completions", self.complete)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/control/state", self.state)
        app.router.add_get("/control/stats", self.stats)
        app.router.add_post("/control/recipe", self.set_recipe)
        app.router.add_post("/control/shutdown", self.shutdown)
        for name in ("hold", "release", "reset-peaks"):
            app.router.add_post(f"/control/{name}", self.fine)
        return app

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "fake"}]})

    async def fine(self, request: web.Request) -> web.Response:
        return web.json_response({})

    async def shutdown(self, request: web.Request) -> web.Response:
        self.stopping.set()
        return web.json_response({})

    async def set_recipe(self, request: web.Request) -> web.Response:
        self.recipe = await request.json()
        note(f"live {name_of(self.recipe)}")
        return await self.state(request)

    async def stats(self, request: web.Request) -> web.Response:
        return web.json_response({"output_tokens_total": self.tokens})

    async def state(self, request: web.Request) -> web.Response:
        scheme = self.recipe["quantization"]["scheme"]
        effective = {
            "device": "cpu",
            "dtype": self.recipe["dtype"],
            "scheme": scheme,
            "attention": "sdpa",
            "kv_kind": "dynamic",
            "max_context": 512,
            "threads": 1,
            "batching_mode": self.recipe["batching"]["mode"],
        }
        return web.json_response(
            {
                "state": "ready",
                "title": "Fake",
                "model": "fake",
                "recipe": self.recipe,
                "effective": effective,
                "memory": {"weights_bytes": 1000, "peak_bytes": 2000},
                "vocab_size": 300,
                "special_ids": [],
                "max_context": 512,
                "load_s": 0.1,
                "pid": os.getpid(),
            }
        )

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.running += 1
        try:
            return await self.stream(request, body)
        finally:
            self.running -= 1

    async def stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        scheme, batching = self.recipe["quantization"]["scheme"], self.recipe["batching"]["mode"]
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for index in range(body["max_tokens"]):
            shared = 1.25 * self.running if batching == "off" else 1.0
            await asyncio.sleep(LAW[scheme] * shared / 1e3)
            self.tokens += 1
            if scheme == os.environ.get("SWEEP_DIES") and self.tokens > 20:
                os.kill(os.getpid(), signal.SIGKILL)
            last = index == body["max_tokens"] - 1
            event: dict[str, Any] = {
                "choices": [
                    {"index": 0, "text": "w", "token_ids": [index], "finish_reason": "length" if last else None}
                ]
            }
            if last:
                event["usage"] = {"prompt_tokens": len(body["prompt"]), "completion_tokens": body["max_tokens"]}
            await response.write(f"data: {json.dumps(event)}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response


async def serve(recipe: dict[str, Any]) -> None:
    worker = SweepWorker(recipe)
    runner = web.AppRunner(worker.routes(), handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    say(event="ready", port=runner.addresses[0][1], pid=os.getpid())
    await worker.stopping.wait()
    await runner.cleanup()


def end_with_stdin() -> None:
    while os.read(0, 1024):
        pass
    os._exit(0)


def main() -> None:
    line = b""
    while not line.endswith(b"\n"):
        read = os.read(0, 1)
        if not read:  # whoever started it was killed before it said what to serve
            return
        line += read
    recipe = json.loads(line)["recipe"]
    note(f"start {name_of(recipe)}")
    threading.Thread(target=end_with_stdin, daemon=True).start()
    if recipe["quantization"]["scheme"] == os.environ.get("SWEEP_FAILS"):
        failure = {"kind": "oom", "message": "Memory ran out while loading.", "hint": "Less."}
        say(event="failed", failure=failure)
        return
    asyncio.run(serve(recipe))


if __name__ == "__main__":
    main()
