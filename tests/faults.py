"""A file server that fails on purpose, on loopback and in a process of its own.

`python tests/faults.py folder port '{"faults": {"503": 0.2}, "seed": 0}'` runs it. Which request fails, and how, hangs
on the seed, the path, the range and how often that was asked before: not on the order in which threads come. `/-/` is
for the tests: counts, signatures, what is gone.
"""

from __future__ import annotations

import json
import random
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

KINDS = ("503", "429", "truncated", "reset", "hang", "html", "wrong-range", "range-ignored", "other-bytes")


@dataclass(frozen=True)
class Faults:
    """A running server."""

    url: str

    def counts(self) -> dict[str, int]:
        """Since it started or was told to: "requests", "bytes", how many of each kind of fault, and of each status.

        "early": the same request again before the Retry-After of a 429 was over.
        """
        return dict(self._call("counts"))

    def tell(self, **changes: Any) -> None:
        """Change what it was started with, such as `faults` or `gone`, and count from 0."""
        self._call("tell", json.dumps(changes).encode())

    def signature(self) -> int:
        """A fresh one, for as many requests as `lifetime` says."""
        return int(self._call("sign"))

    def _call(self, name: str, body: bytes | None = None) -> Any:
        with urllib.request.urlopen(f"{self.url}/-/{name}", body, timeout=30) as answer:
            return json.load(answer)


@contextmanager
def fault_server(
    folder: Path, faults: Mapping[str, float] | None = None, seed: int = 0, **more: Any
) -> Iterator[Faults]:
    """Serve a folder; each request for a .tif or .jp2 fails with the probabilities given by kind, all others never.

    `more`: `retry_after` seconds of a 429; `lifetime`, the requests that a signature is good for (0: none is wanted);
    `gone`, paths that answer 404; `moved`, paths and where they redirect to; `latency` seconds before each answer.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = json.dumps({"faults": dict(faults or {}), "seed": seed, **more})
    process = subprocess.Popen([sys.executable, __file__, str(folder), str(port), settings])
    try:
        server = Faults(f"http://127.0.0.1:{port}")
        for _ in range(300):
            assert process.poll() is None, "the fault server ended"
            try:
                server.counts()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        yield server
    finally:
        process.kill()
        process.wait(10)


@dataclass
class _State:
    faults: dict[str, float]
    seed: int
    retry_after: float = 1
    lifetime: int = 0
    latency: float = 0
    gone: tuple[str, ...] = ()
    moved: Mapping[str, str] = field(default_factory=dict)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path, port: int, settings: dict[str, Any]) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.folder, self.state, self.lock = folder, _State(**settings), threading.Lock()
        self.counts: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()  # how often each request came
        self.barred: dict[str, float] = {}  # until when a request was told to wait
        self.signature = 0  # the newest
        self.used: Counter[int] = Counter()  # requests by signature

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients hang up on what fails

    def fault(self, request: str) -> str:
        """The kind of fault of this request, or none. Counts it."""
        with self.lock:
            self.counts["requests"] += 1
            self.counts["early"] += time.monotonic() < self.barred.pop(request, 0.0)
            self.asked[request] += 1
            draw = random.Random(f"{self.state.seed} {request} {self.asked[request]}").random()
            for kind, share in self.state.faults.items():
                if draw < share:
                    self.counts[kind] += 1
                    return kind
                draw -= share
            return ""

    def is_signed(self, query: str) -> bool:
        """Whether a signature is good, and uses it once."""
        with self.lock:
            given = int(parse_qs(query).get("sig", ["0"])[0])
            self.used[given] += 1
            return 0 < given <= self.signature and self.used[given] <= self.state.lifetime


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or small answers take 40 ms
    server: _Server

    def do_POST(self) -> None:
        changes = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            for name, value in changes.items():
                setattr(self.server.state, name, value)
            self.server.counts.clear()
            self.server.asked.clear()
        self.answer(200, b"{}", json_too=True)

    def do_GET(self) -> None:
        parts = urlparse(self.path)
        if parts.path.startswith("/-/"):
            self.control(parts.path[3:])
            return
        server, span = self.server, self.headers.get("Range", "")
        request = f"{parts.path} {span}"
        kind = server.fault(request) if parts.path.endswith((".tif", ".jp2")) else ""
        time.sleep(server.state.latency)
        if kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
        elif kind == "hang":
            self.connection.settimeout(120)
            self.connection.recv(1)  # until the client hangs up
            self.close_connection = True
        elif kind == "503":
            self.answer(503, b"busy")
        elif kind == "429":
            with server.lock:
                server.barred[request] = time.monotonic() + server.state.retry_after
            self.answer(429, b"slow down", {"Retry-After": f"{server.state.retry_after:g}"})
        elif kind == "html":
            self.answer(200, b"<html>Please log in</html>", {"Content-Type": "text/html"})
        elif server.state.lifetime and parts.path.endswith(".tif") and not server.is_signed(parts.query):
            self.answer(403, b"expired")
        else:
            self.file(parts.path.lstrip("/"), span, kind)

    def file(self, name: str, span: str, kind: str) -> None:
        path = self.server.folder / name
        inside = path.resolve().is_relative_to(self.server.folder.resolve())
        if name in self.server.state.moved:
            self.answer(302, b"", {"Location": self.server.state.moved[name]})
            return
        if name in self.server.state.gone or not inside or not path.is_file():
            self.answer(404, b"not here")
            return
        data = path.read_bytes()
        match = None if kind == "range-ignored" else re.fullmatch(r"bytes=(\d+)-(\d*)", span)
        if not match:
            self.answer(200, data, {"Content-Type": "image/tiff"})
            return
        start, stop = int(match[1]), min(int(match[2] or len(data)) + 1, len(data))
        shift = 256 if start >= 256 else -256  # elsewhere, as many bytes
        low = max(0, start - shift) if kind in ("wrong-range", "other-bytes") else start
        body = data[low : low + stop - start]
        told = low if kind == "wrong-range" else start
        headers = {"Content-Range": f"bytes {told}-{told + len(body) - 1}/{len(data)}", "Content-Type": "image/tiff"}
        self.answer(206, body, headers, keep=len(body) // 2 if kind == "truncated" else None)

    def control(self, name: str) -> None:
        with self.server.lock:
            if name == "sign":
                self.server.signature += 1
                self.server.counts["signatures"] += 1
            made = {"counts": dict(self.server.counts), "sign": self.server.signature}[name]
        self.answer(200, json.dumps(made).encode(), json_too=True)

    def answer(
        self, status: int, body: bytes, headers: Mapping[str, str] | None = None, *, keep: int | None = None,
        json_too: bool = False,
    ) -> None:  # fmt: skip
        """Send it all, or the first `keep` bytes and hang up."""
        if not json_too:
            with self.server.lock:
                self.server.counts[f"status {status}"] += 1
                self.server.counts["bytes"] += len(body)
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body if keep is None else body[:keep])
        self.close_connection = self.close_connection or keep is not None

    def do_HEAD(self) -> None:
        """For clients that look before they read; it never fails."""
        path = self.server.folder / urlparse(self.path).path.lstrip("/")
        self.send_response(200 if path.is_file() else 404)
        self.send_header("Content-Length", str(path.stat().st_size if path.is_file() else 0))
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


if __name__ == "__main__":
    _Server(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])).serve_forever(0.05)
