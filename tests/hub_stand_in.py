"""A stand-in for the Hugging Face Hub: one model repository over HTTP, as huggingface_hub asks for it."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar, Self

COMMIT = "c" * 40


@dataclass
class HubStandIn:
    """Serves ``files`` as ``repo_id``. ``token``: what a reader must send. ``gated``: files are refused.

    ``cut_after``: a response of a file breaks off after so many bytes. ``ranges`` collects the Range headers
    of file requests in order, "" for none.
    """

    repo_id: str
    files: dict[str, bytes]
    token: str | None = None
    gated: bool = False
    cut_after: int | None = None
    ranges: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _stored_apart(name: str) -> bool:
    return name.endswith((".safetensors", ".bin"))


def _entry(name: str, content: bytes) -> dict[str, object]:
    git = hashlib.sha1(content).hexdigest()
    lfs = {"size": len(content), "pointerSize": 134}
    sha256 = hashlib.sha256(content).hexdigest()
    entry = {"size": len(content), "rfilename": name, "path": name, "type": "file", "blobId": git, "oid": git}
    return entry | ({"lfs": lfs | {"sha256": sha256, "oid": sha256}} if _stored_apart(name) else {})


class _Handler(BaseHTTPRequestHandler):
    hub: ClassVar[HubStandIn]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._route(body=False)

    def do_GET(self) -> None:
        self._route(body=True)

    def _route(self, *, body: bool) -> None:
        path, hub = self.path.partition("?")[0], self.hub
        if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self._refuse(401, "RepoNotFound")
        elif path.startswith(f"/api/models/{hub.repo_id}"):
            self._api(path, body)
        elif path.startswith(f"/{hub.repo_id}/resolve/"):
            self._file(path.split("/", 5)[5], body)
        else:
            self._refuse(404, "RepoNotFound")

    def _api(self, path: str, body: bool) -> None:
        entries = [_entry(name, content) for name, content in self.hub.files.items()]
        if "/tree/" in path:
            self._json(entries, body)
        elif "/revision/" in path and not path.endswith(("main", COMMIT)):
            self._refuse(404, "RevisionNotFound")
        else:
            self._json({"id": self.hub.repo_id, "sha": COMMIT, "siblings": entries}, body)

    def _json(self, document: object, body: bool) -> None:
        self._send(200, json.dumps(document).encode(), {"Content-Type": "application/json"}, body)

    def _file(self, name: str, body: bool) -> None:
        content = self.hub.files.get(name)
        if self.hub.gated:
            self._refuse(403, "GatedRepo")
        elif content is None:
            self._refuse(404, "EntryNotFound")
        else:
            self._content(name, content, body)

    def _content(self, name: str, content: bytes, body: bool) -> None:
        entry, asked = _entry(name, content), self.headers.get("Range", "")
        etag = hashlib.sha256(content).hexdigest() if _stored_apart(name) else str(entry["oid"])
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if body:
            self.hub.ranges.append((name, asked))
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            stop = min(int(last) + 1, len(content)) if last else len(content)
            headers["Content-Range"] = f"bytes {first}-{stop - 1}/{len(content)}"
            self._send(206, content[int(first) : stop], headers, body, name)
        else:
            self._send(200, content, headers, body, name)

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code}, self.command == "GET")

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool, name: str = "") -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if not body:
            return
        cut = self.hub.cut_after if _stored_apart(name) and "Range" not in self.headers else None
        self.wfile.write(content[:cut])
        if cut is not None and cut < len(content):
            self.close_connection = True
