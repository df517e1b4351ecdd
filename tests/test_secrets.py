"""What is secret stays so: in no output, log, store or report, and with nobody but the host that it was given for.

Commands run in processes of their own, with a token in every place that takes one, against servers that note whatever
they are sent. Afterwards all that was printed and every file below the folder, the home and the folder of temporary
files is searched.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from archives import TOY_BOX, Toy, to_server
from test_faults import chunks_of

STEM = "SENTINEL7f3a"
KEY, SIGNATURE, USER, NETRC, VARIABLE, SAS = (f"{STEM}{kind}" for kind in ("key", "sig", "user", "netrc", "env", "sas"))
BOX = ",".join(map(repr, (TOY_BOX.west, TOY_BOX.south, TOY_BOX.east, TOY_BOX.north)))
# Everything a child sees before `aef` starts: it gives up soon, and resolves no name but this machine's.
CHILD = """
import socket
real = socket.getaddrinfo
def here(host, *rest, **more):
    if host not in ("127.0.0.1", "localhost"):
        raise socket.gaierror(-2, "no names here")
    return real(host, *rest, **more)
socket.getaddrinfo = here
import aefcli.cube.read, aefcli.cube.web, aefcli.stac.web as documents
aefcli.cube.web.PATIENCE, aefcli.cube.web.TRIES, aefcli.cube.read.TRIES = 1.0, 2, 2
documents._PATIENCE, documents._RETRY = 1, documents._RETRY.new(total=1)
from aefcli.cli import main
main()
"""


@dataclass
class Host:
    """A server on loopback: `seen` has the path with its query and the headers of each request.

    `answers` maps the end of a path to what is sent instead of the file: a status, a body, `reset`, or where to go.
    Documents want `key` in the query and .tif files `signature`, where these are not empty.
    """

    url: str
    folder: Path
    key: str = ""
    signature: str = ""
    seen: list[str] = field(default_factory=list)
    answers: dict[str, int | bytes | str] = field(default_factory=dict)

    def told(self) -> str:
        return "\n".join(self.seen)


@contextmanager
def host(folder: Path, **options: Any) -> Iterator[Host]:
    known = Host("", folder, **options)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            if length := int(self.headers.get("Content-Length") or 0):
                self.rfile.read(length)
            known.seen.append(f"{self.path}\n{self.headers}")
            parts = urlsplit(self.path)
            answer = next((found for end, found in known.answers.items() if parts.path.endswith(end)), None)
            if answer == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                self.connection.close()
            elif isinstance(answer, str):
                self.send(302, b"", Location=answer)
            elif isinstance(answer, int):
                self.send(answer, f"you sent {self.path}".encode())
            elif not self.welcome(parts.path, parse_qs(parts.query)):
                self.send(403, f"you sent {self.path}".encode())
            else:
                self.file(parts.path.lstrip("/"), answer)

        do_POST = do_CONNECT = do_GET

        def welcome(self, path: str, query: dict[str, list[str]]) -> bool:
            if path.endswith(".tif"):
                return not known.signature or query.get("sig") == [known.signature]
            return not known.key or query.get("key") == [known.key]

        def file(self, name: str, body: bytes | None) -> None:
            path = folder / name
            if body is None and not path.is_file():
                self.send(404, b"")
                return
            data = path.read_bytes() if body is None else body
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if not match:
                self.send(200, data)
                return
            start, stop = int(match[1]), min(int(match[2]) + 1, len(data))
            self.send(206, data[start:stop], Content_Range=f"bytes {start}-{stop - 1}/{len(data)}")

        def send(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content_Length": str(len(body))}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    known.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield known
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def home(toy: Toy, tmp_path: Path) -> Iterator[Host]:
    """The archive: its catalog wants a key, its files a signature, which the catalog's addresses have."""
    folder = tmp_path / "archive"
    folder.mkdir()
    for item in toy.items:
        (folder / item["id"]).symlink_to(toy.folder / item["id"])
    with host(folder, key=KEY, signature=SIGNATURE) as running:
        publish(running, toy)
        yield running


def publish(home: Host, toy: Toy, name: str = "items.json", change: Callable[[Any], Any] = lambda items: items) -> None:
    """Write the catalog, with the signature of the day in every address, and elsewhere too."""
    items = to_server(toy.items, toy.folder, home.url)
    for item in items:
        for asset in item["assets"].values():
            asset["href"] += f"?sig={home.signature}"
            asset["alternate"] = {"s3": {"href": f"s3://{USER}:{USER}@bucket/file.tif?sig={home.signature}"}}
        item["properties"]["preview"] = f"{home.url}/preview.png?sig={home.signature}"
    document = {"type": "FeatureCollection", "features": change(items)}
    (home.folder / name).write_text(json.dumps(document))


@dataclass
class Place:
    """Where a child works: its folder, its home and its folder of temporary files, and all that it printed."""

    folder: Path
    env: dict[str, str]
    printed: str = ""

    def start(self, *words: str, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", CHILD, *words],
            cwd=self.folder / "work",
            env={**self.env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self, child: subprocess.Popen[str]) -> tuple[int, str, str]:
        out, err = child.communicate(timeout=100)
        self.printed += out + err
        return child.returncode, out, err

    def aef(self, *words: str, **env: str) -> tuple[int, str, str]:
        return self.end(self.start(*words, **env))

    def leaks(self) -> list[str]:
        """Where a token is: in what was printed, in the names of files or in them, as it is or in base 64."""
        stems = [STEM.encode(), *(base64.b64encode(b"x" * shift + STEM.encode())[4:-4] for shift in (0, 1, 2))]
        found = ["printed"] if any(stem in self.printed.encode() for stem in stems) else []
        for path in (path for path in self.folder.rglob("*") if path.name != ".netrc"):
            data = path.read_bytes() if path.is_file() else b""
            if any(stem in data or stem in bytes(path) for stem in stems):
                found.append(str(path.relative_to(self.folder)))
        return found


@pytest.fixture
def place(tmp_path: Path) -> Place:
    folder = tmp_path / "place"
    for name in ("work", "home", "tmp"):
        (folder / name).mkdir(parents=True)
    (folder / "home" / ".netrc").write_text(f"machine 127.0.0.1 login {USER} password {NETRC}\n")
    secret = (
        "PC_SDK_SUBSCRIPTION_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
        "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_ACCESS_KEY", "GS_SECRET_ACCESS_KEY", "GDAL_HTTP_USERPWD",
        "GDAL_HTTP_COOKIE",
    )  # fmt: skip
    passed = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG") if name in os.environ}
    return Place(
        folder,
        {
            **passed,
            "HOME": str(folder / "home"),
            "TMPDIR": str(folder / "tmp"),
            "OMP_NUM_THREADS": "1",
            "CPL_DEBUG": "OFF",
            "GDAL_HTTP_HEADERS": f"Authorization: Bearer {VARIABLE}",
            **dict.fromkeys(secret, VARIABLE),
        },
    )


def words(home: Host, *more: str, stac: str = "", bbox: str = BOX) -> list[str]:
    stac = stac or f"{home.url}/items.json?key={KEY}"
    return ["fetch", "--stac", stac, "--bbox", bbox, "--period", "2023-08", "--gsd", "60", "--source", "sentinel-2",
            *more]  # fmt: skip


# --- success ----------------------------------------------------------------------------------------------------------


def test_nothing_secret_is_kept_of_a_fetch_that_succeeds(home: Host, place: Place, toy: Toy) -> None:
    assert place.aef(*words(home, "--dry-run", "--json"))[0] == 0
    assert place.aef("fetch", "--stac", f"{home.url}/items.json?key={KEY}", "--list")[0] == 0
    code, _, err = place.aef(*words(home))
    assert code == 0, err
    assert f"sig={SIGNATURE}" in home.told(), "or else nothing was tried"
    assert f"key={KEY}" in home.told()
    assert place.leaks() == []
    cube = place.folder / "work" / "cube.zarr"
    for command in (("info", "cube.zarr", "--json"), ("plot", "cube.zarr"), ("verify", "cube.zarr")):
        assert place.aef(*command)[0] == 0
    whole = chunks_of(cube)
    home.signature = f"{SIGNATURE}two"  # another one each day: nothing new for all that
    publish(home, toy)
    asked = len(home.seen)
    code, out, err = place.aef(*words(home, "--refresh", "--json"))
    assert code == 0, err
    assert json.loads(out)["units_written"] == 0
    assert ".tif" not in "".join(home.seen[asked:]), "the same items are nothing new, however they are signed"
    assert chunks_of(cube) == whole
    assert place.leaks() == []


def test_what_was_signed_is_signed_anew_when_a_fetch_is_gone_on_with(home: Host, place: Place, toy: Toy) -> None:
    assert place.aef(*words(home, "--out", "once.zarr"))[0] == 0
    home.answers["scl.tif"] = 503
    code, _, err = place.aef(*words(home))
    assert code == 3, err
    home.answers.clear()
    home.signature = f"{SIGNATURE}two"
    publish(home, toy)
    code, _, err = place.aef(*words(home))
    assert code == 0, err
    work = place.folder / "work"
    assert chunks_of(work / "cube.zarr") == chunks_of(work / "once.zarr")
    assert place.leaks() == []


def test_repair_asks_the_catalog_for_signatures(home: Host, place: Place, toy: Toy) -> None:
    home.key = ""  # one typed at --stac is not kept, so only a catalog without it can be asked again
    assert place.aef(*words(home, stac=f"{home.url}/items.json"))[0] == 0
    work = place.folder / "work"
    whole = chunks_of(work / "cube.zarr")
    home.signature = f"{SIGNATURE}two"
    publish(home, toy)
    (work / "cube.zarr/sentinel-2/B04/c/0/0/0").unlink()
    code, _, err = place.aef("repair", "cube.zarr")
    assert code == 0, err
    assert chunks_of(work / "cube.zarr") == whole
    assert place.leaks() == []


def test_repair_takes_the_key_that_is_not_kept(home: Host, place: Place) -> None:
    assert place.aef(*words(home))[0] == 0
    chunk = place.folder / "work" / "cube.zarr/sentinel-2/B04/c/0/0/0"
    whole = chunk.read_bytes()
    chunk.unlink()
    code, _, err = place.aef("repair", "cube.zarr")
    assert (code, err.count("\n")) == (2, 1), err
    assert "wants credentials" in err
    assert "--stac" in err
    code, _, err = place.aef("repair", "cube.zarr", "--stac", f"{home.url}/other.json?key={KEY}")
    assert (code, f"fetched from {home.url}/items.json" in err) == (2, True), err
    code, _, err = place.aef("repair", "cube.zarr", "--stac", f"{home.url}/items.json?key={KEY}")
    assert code == 0, err
    assert chunk.read_bytes() == whole
    assert place.leaks() == []


def test_a_key_longer_than_a_file_name(home: Host, place: Place, toy: Toy) -> None:
    """As tokens of Azure and web tokens are."""
    home.key = KEY * 40
    code, _, err = place.aef(*words(home, stac=f"{home.url}/items.json?key={home.key}"))
    assert code == 0, err
    assert place.leaks() == []


# --- failure ----------------------------------------------------------------------------------------------------------

VRT = b"""<VRTDataset rasterXSize="64" rasterYSize="64"><VRTRasterBand dataType="UInt16" band="1"><SimpleSource>
<SourceFilename>/etc/hostname</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"""
FAILURES: dict[str, tuple[str, int | bytes | str, int, str]] = {
    "catalog 401": ("items.json", 401, 2, "credentials"),
    "catalog 403": ("items.json", 403, 2, "credentials"),
    "catalog 404": ("items.json", 404, 2, "404"),
    "catalog 503": ("items.json", 503, 3, "items.json"),
    "catalog reset": ("items.json", "reset", 3, "items.json"),
    "catalog not JSON": ("items.json", f"<a href='?key={KEY}'>".encode(), 2, "not JSON"),
    "catalog not STAC": ("items.json", json.dumps({"key": KEY}).encode(), 2, "not STAC"),
    "catalog redirects": ("items.json", f"http://10.0.0.1/?key={KEY}", 2, "10.0.0.1"),
    "file 401": ("B04.tif", 401, 3, "401"),
    "file 403": ("B04.tif", 403, 3, "403"),
    "file 404": ("B04.tif", 404, 3, "404"),
    "file 503": ("B04.tif", 503, 3, "503"),
    "file reset": ("B04.tif", "reset", 3, "B04.tif"),
    "file broken": ("B04.tif", b"II*\0" + STEM.encode() * 900, 3, "B04.tif"),
    "file a recipe": ("B04.tif", VRT, 3, "B04.tif"),
    "file redirects": ("B04.tif", f"http://10.0.0.1/B04.tif?sig={SIGNATURE}", 3, "10.0.0.1"),
}


OFTEN = ("catalog 401", "catalog redirects", "file 403", "file 503", "file broken")  # the others with -m slow


@pytest.mark.parametrize(
    "kind", [kind if kind in OFTEN else pytest.param(kind, marks=pytest.mark.slow) for kind in FAILURES]
)
def test_nothing_secret_is_kept_of_an_answer_that_fails(home: Host, place: Place, kind: str) -> None:
    end, answer, expected, says = FAILURES[kind]
    home.answers[end] = answer
    code, out, err = place.aef(*words(home))
    assert (code, out, err.count("\n")) == (expected, "", 1), err
    assert says in err
    assert STEM in home.told(), "or else nothing was tried"
    assert place.leaks() == []


@pytest.mark.parametrize("kind", ["file 503", "file broken"])
def test_nothing_secret_is_said_of_a_dry_run_that_fails(home: Host, place: Place, kind: str) -> None:
    end, answer, expected, says = FAILURES[kind]
    home.answers[end] = answer
    code, out, err = place.aef(*words(home, "--dry-run"))
    assert (code, out, err.count("\n")) == (expected, "", 1), err
    assert says in err
    assert place.leaks() == []


@pytest.mark.parametrize(
    ("stac", "says"),
    [
        ("http://{user}:{user}@{host}/items.json", "user name or password"),
        ("{user}:{user}@{host}/items.json?key={key}", "no file"),
        ("http://[::1/items.json?key={key}", "address"),
    ],
)
def test_catalogs_that_are_misspelt(home: Host, place: Place, stac: str, says: str) -> None:
    typed = stac.format(host=home.url.removeprefix("http://"), user=USER, key=KEY)
    code, out, err = place.aef(*words(home, stac=typed))
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert says in err
    assert place.leaks() == []
    assert list((place.folder / "work").iterdir()) == []


def test_a_bad_box_and_a_lock(home: Host, place: Place) -> None:
    assert place.aef(*words(home, bbox="1,2,3"))[0] == 2
    (place.folder / "work/cube.zarr.build").mkdir()
    with (place.folder / "work/cube.zarr.build/lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert place.aef(*words(home))[0] == 5
    assert place.leaks() == []


def test_a_proxy_that_wants_a_password_and_is_not_there(home: Host, place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code, out, err = place.aef(*words(home), http_proxy=f"http://{USER}:{KEY}@127.0.0.1:{port}")
    assert (code, out, err.count("\n")) == (3, "", 1), err
    assert home.seen == []
    assert place.leaks() == []


def test_a_fetch_that_is_told_to_stop(home: Host, place: Place, toy: Toy) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        publish(home, toy, change=lambda items: json.loads(
            json.dumps(items).replace(home.url, f"http://127.0.0.1:{silent.getsockname()[1]}")
        ))  # fmt: skip
        child = place.start(*words(home))
        for _ in range(600):
            if (place.folder / "work/cube.zarr").exists():
                break
            time.sleep(0.05)
        child.send_signal(signal.SIGTERM)
        code, _, err = place.end(child)
    assert code == 143, err
    assert place.leaks() == []


def test_addresses_with_a_user_are_refused_and_not_shown(home: Host, place: Place, toy: Toy) -> None:
    publish(home, toy, change=lambda items: json.loads(
        json.dumps(items).replace("http://", f"http://{USER}:{USER}@")
    ))  # fmt: skip
    code, _, err = place.aef(*words(home))
    assert (code, err.count("\n")) == (2, 1), err
    assert place.leaks() == []


# --- other hosts ------------------------------------------------------------------------------------------------------


@pytest.fixture
def other(home: Host) -> Iterator[Host]:
    """Another host with the same files, which asks for nothing and is to be told nothing."""
    with host(home.folder) as running:
        yield running


def test_keys_do_not_go_along_to_where_a_redirect_leads(home: Host, other: Host, place: Place) -> None:
    shutil.copy(home.folder / "items.json", home.folder / "moved.json")
    home.answers["items.json"] = f"{other.url}/moved.json"
    for path in home.folder.glob("*/*.tif"):
        name = str(path.relative_to(home.folder))
        home.answers[name] = f"{other.url}/{name}"
    code, _, err = place.aef(*words(home))
    assert code == 0, err
    assert f"sig={SIGNATURE}" in home.told()
    assert ".tif" in other.told()
    assert "moved.json" in other.told()
    assert not leaked(other)


def test_keys_do_not_go_along_to_where_a_next_link_or_an_href_leads(
    home: Host, other: Host, place: Place, toy: Toy
) -> None:
    api = {
        "type": "Catalog", "id": "api", "stac_version": "1.0.0", "description": "",
        "conformsTo": [f"https://api.stacspec.org/v1.0.0/{part}" for part in ("core", "item-search", "collections")],
        "links": [{"rel": "search", "href": f"{home.url}/search", "method": "GET", "type": "application/geo+json"},
                  {"rel": "data", "href": f"{home.url}/collections", "type": "application/json"}],
    }  # fmt: skip
    collection = {
        "type": "Collection", "id": "sentinel-2-l2a", "stac_version": "1.0.0", "description": "", "license": "other",
        "extent": {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}}, "links": [],
    }  # fmt: skip
    there = [dict(item) for item in to_server(toy.items, toy.folder, other.url)]
    (home.folder / "api").write_text(json.dumps(api))
    (home.folder / "collections").write_text(json.dumps({"collections": [collection], "links": []}))
    for name, part, links in (
        ("search", there[:3], [{"rel": "next", "href": f"{other.url}/second"}]),
        ("second", there[3:], []),
    ):
        document = {"type": "FeatureCollection", "features": part, "links": links}
        (home.folder / name).write_text(json.dumps(document))
    code, out, err = place.aef(*words(home, "--json", stac=f"{home.url}/api?key={KEY}"))
    assert code == 0, err
    assert json.loads(out)["items"] == 6
    assert "/search" in home.told()
    assert "/second" in other.told()
    assert ".tif" in other.told()
    assert not leaked(other)
    assert place.leaks() == []


def leaked(host: Host) -> list[str]:
    """Requests with a token. A password of .netrc goes to whatever port of its machine, and is meant to."""
    allowed = base64.b64encode(f"{USER}:{NETRC}".encode()).decode()
    return [request for request in host.seen if STEM in request or "uthorization" in request.replace(
        f"Authorization: Basic {allowed}", "")]  # fmt: skip


def test_the_key_of_the_signer_goes_to_the_signer_and_its_signature_to_the_blob(
    home: Host, place: Place, toy: Toy, tmp_path: Path
) -> None:
    """The service at PC_SDK_SAS_URL is asked; the blob itself is out of reach, as is every host but this one."""
    publish(home, toy, change=lambda items: json.loads(
        re.sub(rf"{home.url}/([^?\"]*)\?sig=\w+", r"https://made.blob.core.windows.net/files/\1", json.dumps(items))
    ))  # fmt: skip
    folder = tmp_path / "signer"
    (folder / "token/made").mkdir(parents=True)
    token = {"msft:expiry": "2099-01-01T00:00:00Z", "token": f"st=2020&se=2099&sp=rl&sig={SAS}"}
    (folder / "token/made/files").write_text(json.dumps(token))
    with host(folder) as signer, host(folder) as proxy:
        proxy.answers[""] = 502
        env = {"PC_SDK_SAS_URL": f"{signer.url}/token", "https_proxy": proxy.url}
        code, out, err = place.aef(*words(home), **env)
        assert (code, out, err.count("\n")) == (3, "", 1), err
        assert f"Ocp-Apim-Subscription-Key: {VARIABLE}" in signer.told()
        assert "made.blob.core.windows.net" in proxy.told(), "it was on its way with the signature"
        assert not leaked(proxy)
        assert VARIABLE not in home.told()
        assert place.leaks() == []
        signer.answers["files"] = 401
        code, out, err = place.aef(*words(home), **env)
        assert (code, out, err.count("\n")) == (3, "", 1), err
        assert "401" in err
        assert "(1 tries)" in err, "a signer that says no is not asked for five minutes"
        assert place.leaks() == []
