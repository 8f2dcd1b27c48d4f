"""A server whose streams all get their next chunk at one moment, as an engine's do at the end of a decode step.

``python tests/bench/beat_server.py [--beat-ms 12] [--form worker|vllm]``: its address on stdout, until stdin ends.
Sockets and one loop without a framework, so that 64 chunks leave within a millisecond. The text of a chunk is
time.perf_counter() in seconds just before it was written. It knows HTTP as far as our client speaks it.
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import sys
import time
from dataclasses import dataclass

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
FORMS = {
    "worker": '{"id":"cmpl-8b1a9953c4611296a827abf8c47804d7","created":1769400000,"model":"bundled:smollm2-135m",'
    '"object":"text_completion","choices":[{"index":0,"text":"%s ","logprobs":null,"finish_reason":%s,'
    '"token_ids":[%d]}]}',
    "vllm": '{"id":"cmpl-8b1a9953c4611296a827abf8c47804d7","object":"text_completion","created":1769400000,'
    '"model":"Qwen/Qwen2.5-7B-Instruct","choices":[{"index":0,"text":"%s ","logprobs":null,"finish_reason":%s,'
    '"stop_reason":null,"token_ids":[%d],"prompt_token_ids":null}],"usage":null}',
}


@dataclass(slots=True)
class Stream:
    """One connection: what of a request has come, and the chunks that its reply still lacks."""

    peer: socket.socket
    asked: bytes = b""
    prompt_tokens: int = 0
    tokens: int = 0
    left: int = 0

    def read(self) -> bool:
        """Take what has come; False where the other end has closed."""
        try:
            data = self.peer.recv(1 << 20)
        except ConnectionError:
            return False
        self.asked += data
        head, found, body = self.asked.partition(b"\r\n\r\n")
        if found and len(body) >= _length(head):
            self._begin(json.loads(body))
        return bool(data)

    def _begin(self, body: dict) -> None:
        self.asked, self.prompt_tokens = b"", len(body["prompt"])
        self.tokens = self.left = int(body["max_tokens"])
        self.peer.send(HEAD)

    def beat(self, form: str) -> None:
        """Write the next chunk; the last one brings usage and the end along."""
        self.left -= 1
        finish = "null" if self.left else '"length"'
        data = b"" if self.left else self._ending()
        event = form % (f"{time.perf_counter():.9f}", finish, self.tokens - self.left)
        self.peer.send(_part(f"data: {event}\n\n".encode()) + data)

    def _ending(self) -> bytes:
        usage = {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.tokens}
        event = json.dumps({"object": "text_completion", "choices": [], "usage": usage})
        return _part(f"data: {event}\n\ndata: [DONE]\n\n".encode()) + b"0\r\n\r\n"


def _part(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _length(head: bytes) -> int:
    lines = head.lower().split(b"\r\n")
    return int(next(line.partition(b":")[2] for line in lines if line.startswith(b"content-length:")))


def serve(beat_s: float, form: str) -> None:
    """Until stdin ends."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        sys.stdout.write(f"http://127.0.0.1:{listening.getsockname()[1]}\n")
        sys.stdout.flush()
        _serve(listening, beat_s, form)


def _serve(listening: socket.socket, beat_s: float, form: str) -> None:
    streams: dict[int, Stream] = {}
    polled = select.epoll()
    for file in (listening, sys.stdin):
        polled.register(file.fileno(), select.EPOLLIN)
    due_s = time.perf_counter() + beat_s
    while True:
        for number, _ in polled.poll(max(0.0, due_s - time.perf_counter())):
            if number == sys.stdin.fileno():
                return
            if number == listening.fileno():
                peer, _address = listening.accept()
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                streams[peer.fileno()] = Stream(peer)
                polled.register(peer.fileno(), select.EPOLLIN)
            elif not streams[number].read():
                polled.unregister(number)
                streams.pop(number).peer.close()
        if time.perf_counter() >= due_s:
            for each in [each for each in streams.values() if each.left]:
                each.beat(form)
            due_s = max(due_s + beat_s, time.perf_counter())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--beat-ms", type=float, default=12.0)
    parser.add_argument("--form", choices=FORMS, default="worker")
    options = parser.parse_args()
    serve(options.beat_ms / 1e3, FORMS[options.form])
