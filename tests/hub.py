"""A server on this machine that speaks as much of the hub's protocol as `localr1 pull` uses.

Listings with sizes and sums, resolve addresses that send on to another host, Range. It can be told
to misbehave: cut connections, be slow, answer with any status, send wrong bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

PIECE = 16 << 10  # bytes written at a time


@dataclass
class Request:
    """What a client asked for."""

    path: str
    range: str | None
    token: str | None
    host: str


@dataclass
class Hub:
    """The repositories, how to misbehave, and what was asked."""

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    commit: str = "0" * 40
    licence: str = "mit"
    token: str | None = None  # asked for, if set
    gated: set[str] = field(default_factory=set)
    lie: dict[str, bytes] = field(default_factory=dict)  # path -> bytes sent instead of the file's
    hide: set[str] = field(default_factory=set)  # listed, but answered with 404
    cut_after: int | None = None  # bytes of a file, then the connection is closed
    cuts: int = 1 << 30  # how many answers are cut
    statuses: list[tuple[int, dict[str, str]]] = field(default_factory=list)  # for the next answers
    listing_statuses: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    ranges: bool = True  # whether Range is understood
    seconds: float = 0.0  # waited before every piece
    requests: list[Request] = field(default_factory=list)
    address: str = ""

    def add(self, repo: str, files: dict[str, bytes]) -> None:
        """Publish a repository."""
        self.repos[repo] = files

    def asked(self, name: str) -> list[Request]:
        """Requests for the bytes of a file."""
        return [r for r in self.requests if r.path.startswith("/cdn/") and r.path.endswith(name)]

    def info(self, repo: str) -> dict[str, Any]:
        """The answer of api/models with blobs=true. Files of more than 1 KiB are in LFS."""
        siblings = [_sibling(path, data) for path, data in self.repos[repo].items()]
        return {
            "id": repo,
            "sha": self.commit,
            "siblings": siblings,
            "cardData": {"license": self.licence},
            "gated": "auto" if repo in self.gated else False,
        }


def _sibling(path: str, data: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    row: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": blob}
    if len(data) > 1024:
        sha256 = hashlib.sha256(data).hexdigest()
        row["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 134}
    return row


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve on a free port of the loopback; `hub.address` is what HF_ENDPOINT takes."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = _Server(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is what some tests are about; anything else is told."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Any request of the protocol."""
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        token = self.headers.get("Authorization")
        hub.requests.append(
            Request(path, self.headers.get("Range"), token, self.headers.get("Host", ""))
        )
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)", path):
            self._listing(found[1])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(found[1], found[2], found[3])
        elif found := re.fullmatch(r"/cdn/([^/]+/[^/]+)/(.+)", path):
            self._bytes(found[1], found[2])
        else:
            self._say(404, {})

    def _listing(self, repo: str) -> None:
        if self.hub.listing_statuses:
            self._say(*self.hub.listing_statuses.pop(0))
        elif not self._known(repo):
            self._say(401, {"X-Error-Code": "RepoNotFound"})
        else:
            body = json.dumps(self.hub.info(repo)).encode()
            self._say(200, {"Content-Type": "application/json"}, body)

    def _known(self, repo: str) -> bool:
        wanted = self.hub.token and f"Bearer {self.hub.token}"
        return repo in self.hub.repos and wanted in (None, self.headers.get("Authorization"))

    def _resolve(self, repo: str, commit: str, path: str) -> None:
        """As the hub: not the bytes, but where they are: on another host."""
        port = self.hub.address.rpartition(":")[2]
        if self.hub.statuses:
            self._say(*self.hub.statuses.pop(0))
        elif repo in self.hub.gated:
            self._say(403, {"X-Error-Code": "GatedRepo"})
        elif not self._known(repo) or path not in self.hub.repos[repo] or path in self.hub.hide:
            self._say(404, {"X-Error-Code": "EntryNotFound"})
        else:
            data = self.hub.repos[repo][path]
            headers = {
                "Location": f"http://localhost:{port}/cdn/{repo}/{path}",
                "X-Repo-Commit": commit,
                "X-Linked-Size": str(len(data)),
                "X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"',
            }
            self._say(302, headers)

    def _bytes(self, repo: str, path: str) -> None:
        hub = self.hub
        data = hub.lie.get(path, hub.repos[repo][path])
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(found[1]) if found and hub.ranges else 0
        if start >= len(data) > 0:
            self._say(416, {"Content-Range": f"bytes */{len(data)}"})
            return
        self.send_response(206 if found and hub.ranges else 200)
        if found and hub.ranges:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        end = len(data)
        if hub.cut_after is not None and hub.cuts > 0:
            hub.cuts -= 1
            end = min(end, start + hub.cut_after)
        for at in range(start, end, PIECE):
            time.sleep(hub.seconds)
            self.wfile.write(data[at : min(at + PIECE, end)])
        if end < len(data):
            self.close_connection = True

    def _say(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
