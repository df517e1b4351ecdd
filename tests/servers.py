"""Servers for tests, on loopback: files with ranges, and a STAC API (stac-fastapi) over items in memory.

`python tests/servers.py catalog.json port` runs the API; catalog.json holds {"collections": [...], "items": [...]}.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Files:
    """A running file server. `log` holds "METHOD path" of each request; paths in `gone` answer 404."""

    url: str
    log: list[str] = field(default_factory=list)
    gone: set[str] = field(default_factory=set)
    sent: int = 0  # bytes of bodies


@contextmanager
def file_server(folder: Path) -> Iterator[Files]:
    """Serve the files of a folder with HEAD, GET and single ranges."""
    files = Files("")

    class Handler(SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or small answers take 40 ms

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            name = self.path.partition("?")[0].lstrip("/")
            files.log.append(f"{self.command} /{name}")
            path = folder / name
            if name in files.gone or not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
                self.send_error(404)
                return
            data = path.read_bytes()
            match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            start = int(match[1]) if match else 0
            stop = min(int(match[2]) + 1, len(data)) if match and match[2] else len(data)
            if start >= len(data):
                self.send_error(416)
                return
            self.send_response(206 if match else 200)
            if match:
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Type", "application/json" if path.suffix == ".json" else "image/tiff")
            self.send_header("Content-Length", str(stop - start))
            self.end_headers()
            if body:
                self.wfile.write(data[start:stop])
                files.sent += stop - start

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    files.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield files
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Api:
    """A running STAC API."""

    url: str
    log_file: Path

    def log(self) -> list[str]:
        """ "METHOD path status" of each request, the polls while it started included."""
        return re.findall(r'"((?:GET|POST) \S+) HTTP[^"]*" (\d+)', self.log_file.read_text())


@contextmanager
def stac_api(folder: Path, collections: list[dict[str, Any]], items: list[dict[str, Any]]) -> Iterator[Api]:
    """Run the API in a process of its own; `folder` takes its catalog and its log."""
    catalog, log = folder / "catalog-of-api.json", folder / "api.log"
    catalog.write_text(json.dumps({"collections": collections, "items": items}))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with log.open("w") as out:
        process = subprocess.Popen([sys.executable, __file__, str(catalog), str(port)], stdout=out, stderr=out)
    try:
        api = Api(f"http://127.0.0.1:{port}", log)
        _wait(api, process)
        yield api
    finally:
        process.terminate()
        process.wait(10)


def _wait(api: Api, process: subprocess.Popen[bytes]) -> None:
    """Poll until it answers, 30 s at most."""
    for _ in range(300):
        assert process.poll() is None, api.log_file.read_text()
        try:
            with urllib.request.urlopen(api.url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise AssertionError(f"no answer in 30 s: {api.log_file.read_text()}")


def _serve(catalog: Path, port: int) -> None:
    """The API itself. Its imports are heavy, and live in its process alone."""
    import attr
    import uvicorn
    from stac_fastapi.api.app import StacApi
    from stac_fastapi.api.models import create_get_request_model, create_post_request_model
    from stac_fastapi.extensions.pagination import TokenPaginationExtension
    from stac_fastapi.types.config import ApiSettings
    from stac_fastapi.types.core import BaseCoreClient
    from stac_fastapi.types.errors import NotFoundError
    from stac_fastapi.types.rfc3339 import str_to_interval

    held = json.loads(catalog.read_text())

    def matches(item: dict[str, Any], wanted: dict[str, Any]) -> bool:
        if wanted.get("collections") and item["collection"] not in wanted["collections"]:
            return False
        if wanted.get("ids") and item["id"] not in wanted["ids"]:
            return False
        if box := wanted.get("bbox"):
            west, south, east, north = item["bbox"]
            if west > box[2] or east < box[0] or south > box[3] or north < box[1]:
                return False
        if wanted.get("datetime"):
            when = str_to_interval(item["properties"]["datetime"])
            span = str_to_interval(wanted["datetime"])
            start, end = span if isinstance(span, tuple) else (span, span)
            return (start is None or start <= when) and (end is None or when <= end)
        return True

    def page(wanted: dict[str, Any], request: Any) -> dict[str, Any]:
        found = [item for item in held["items"] if matches(item, wanted)]
        begin, limit = int(wanted.get("token") or 0), wanted.get("limit") or 10
        links = []
        if begin + limit < len(found):
            onward = {**{key: value for key, value in wanted.items() if value}, "token": str(begin + limit)}
            if request.method == "POST":
                links = [{"rel": "next", "method": "POST", "href": str(request.url), "body": onward}]
            else:
                links = [{"rel": "next", "href": str(request.url.include_query_params(token=begin + limit))}]
        return {
            "type": "FeatureCollection",
            "features": found[begin : begin + limit],
            "links": links,
            "numberMatched": len(found),
        }

    @attr.s
    class Memory(BaseCoreClient):
        def post_search(self, search_request: Any, **kwargs: Any) -> Any:
            return page(search_request.model_dump(mode="json", exclude_none=True), kwargs["request"])

        def get_search(self, **kwargs: Any) -> Any:
            return page({key: value for key, value in kwargs.items() if key != "request"}, kwargs["request"])

        def item_collection(self, collection_id: str, **kwargs: Any) -> Any:
            return self.get_search(collections=[collection_id], **kwargs)

        def get_item(self, item_id: str, collection_id: str, **kwargs: Any) -> Any:
            return first(item for item in held["items"] if (item["id"], item["collection"]) == (item_id, collection_id))

        def all_collections(self, **kwargs: Any) -> Any:
            return {"collections": held["collections"], "links": []}

        def get_collection(self, collection_id: str, **kwargs: Any) -> Any:
            return first(known for known in held["collections"] if known["id"] == collection_id)

    def first(found: Iterator[Any]) -> Any:
        for one in found:
            return one
        raise NotFoundError("no such thing here")

    paging = [TokenPaginationExtension()]
    api = StacApi(
        settings=ApiSettings(enable_response_models=False),
        client=Memory(extensions=paging),
        extensions=paging,
        search_get_request_model=create_get_request_model(paging),
        search_post_request_model=create_post_request_model(paging),
    )
    uvicorn.run(api.app, host="127.0.0.1", port=port, log_level="info")


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), int(sys.argv[2]))
