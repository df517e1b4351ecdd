"""Archives that fail: whatever the faults, a cube has the same bytes, or the fetch ends in a line that names the file.

The fault server runs in a process of its own. A few seeds run on every change; ten of each kind with `-m slow`.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from archives import DAYS, KEYS, ORIGIN, OVERLAP, SIDE, Toy, to_server, toy_item, toy_request, write_tif
from faults import KINDS, Faults, fault_server
from rasterio import Affine

import aefcli.cube.write as write_module
from aefcli.cube import Request, fetch, read, web
from aefcli.cube.read import Reads
from aefcli.errors import RemoteFailed

MIXED = dict.fromkeys(("503", "truncated", "reset", "html", "wrong-range", "range-ignored"), 0.2 / 6)
STEADY: dict[str, Any] = {"faults": {}, "seed": 0, "retry_after": 1, "lifetime": 0, "gone": [], "moved": {}}
FINE = 4  # files' pixels along one of the toy's: 15 m


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """The toy's items with larger files, so that a window takes several requests."""
    folder = tmp_path_factory.mktemp("archive")
    made = Toy(folder, [toy_item(folder, day, tile) for day in DAYS for tile in (0, 1)], {})
    rng = np.random.default_rng(0)
    side = SIDE * FINE
    for number, item in enumerate(made.items):
        (folder / item["id"]).mkdir()
        left = ORIGIN[0] + (number % 2) * (SIDE - OVERLAP) * 60
        for band in KEYS:
            high, dtype = (12, "uint8") if band == "scl" else (4000, "uint16")
            values = rng.integers(0, high, (side, side)).astype(dtype)
            write_tif(
                folder / item["id"] / f"{band}.tif", values, left=left, height=side, width=side, compress="deflate",
                transform=Affine(60 / FINE, 0, left, 0, -60 / FINE, ORIGIN[1]), blockxsize=64, blockysize=64,
            )  # fmt: skip
            made.pixels[item["id"], band] = values
    plain = folder / "plain.tif"  # not compressed: any bytes of it are pixels
    write_tif(plain, made.pixels[made.items[0]["id"], "B02"], left=ORIGIN[0], height=side, width=side)
    return made


@pytest.fixture(scope="module")
def server(archive: Toy) -> Iterator[Faults]:
    with fault_server(archive.folder) as running:
        yield running


@pytest.fixture(autouse=True)
def steady(server: Faults) -> Iterator[None]:
    """Each test begins with a server that does not fail, and small slabs."""
    server.tell(**STEADY)
    patch = pytest.MonkeyPatch()
    patch.setattr(write_module, "SLAB", 128)
    yield
    patch.undo()


def request_to(server: Faults, archive: Toy, **changes: Any) -> Request:
    items = to_server(archive.items, archive.folder, server.url)
    archive.saved(items, "web.json")
    return toy_request(f"{server.url}/web.json", gsd=60 / FINE, **changes)


def chunks_of(path: Path) -> dict[str, str]:
    """A hash per file below the arrays."""
    files = sorted(file for file in path.rglob("*") if file.is_file() and "c" in file.relative_to(path).parts)
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


# ---------------------------------------------------------------- one file


def read_red(url: str) -> np.ndarray:
    reads = Reads(mask=())

    def pixels(opened: Callable[..., Any]) -> np.ndarray:
        with opened() as file:
            return np.asarray(file.read(1, window=((10, 250), (20, 240))))

    return np.asarray(reads.window(url, pixels))


@pytest.fixture
def red(archive: Toy) -> tuple[str, np.ndarray]:
    """The path of a file, and what `read_red` is to bring."""
    item = archive.items[0]["id"]
    return f"{item}/B04.tif", archive.pixels[item, "B04"][10:250, 20:240]


@pytest.mark.parametrize("kind", KINDS)
def test_every_other_request_fails_and_the_pixels_are_right(
    server: Faults, red: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "_STALL", (0.2, 0.5))
    failed = 0
    for seed in range(4):
        server.tell(faults={kind: 0.5}, seed=seed, retry_after=0.1)
        read.forget()
        np.testing.assert_array_equal(read_red(f"{server.url}/{red[0]}"), red[1])
        failed += server.counts().get(kind, 0)
    assert failed > 2


@pytest.mark.parametrize("kind", ["wrong-range", "range-ignored", "html", "truncated"])
def test_lies_about_a_file_whose_bytes_are_all_pixels(server: Faults, archive: Toy, kind: str) -> None:
    """Nothing would tell later."""
    expected = archive.pixels[archive.items[0]["id"], "B02"][10:250, 20:240]
    failed = 0
    for seed in range(4):
        server.tell(faults={kind: 0.5}, seed=seed)
        read.forget()
        np.testing.assert_array_equal(read_red(f"{server.url}/plain.tif"), expected)
        failed += server.counts().get(kind, 0)
    assert failed > 2


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("503", "response code: 503"),
        ("429", "response code: 429"),
        ("truncated", "bytes"),
        ("reset", "(?i)connection"),
        ("hang", "(?i)timed out"),
        ("html", "all of a file of text/html came"),
        ("range-ignored", "all of a file of image/tiff came"),
        ("wrong-range", "was asked for"),
        ("other-bytes", "not recognized"),
    ],
)
def test_what_always_fails_ends_in_one_line(
    server: Faults, red: Any, kind: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "PATIENCE", 1.0)
    monkeypatch.setattr(web, "_STALL", (0.3, 0.3))
    monkeypatch.setattr(web, "TRIES", 4)
    monkeypatch.setattr(read, "TRIES", 4)
    server.tell(faults={kind: 1.0}, retry_after=30)
    read.forget()
    with pytest.raises(web.Unreadable, match=says) as caught:
        read_red(f"{server.url}/{red[0]}?key=s3cret")
    assert str(caught.value).startswith(f"{server.url}/{red[0]}: ")
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not caught.value.gone


def test_retry_after_is_obeyed(server: Faults, red: Any) -> None:
    began = time.monotonic()
    server.tell(faults={"429": 0.5}, seed=3, retry_after=0.5)
    read.forget()
    np.testing.assert_array_equal(read_red(f"{server.url}/{red[0]}"), red[1])
    counts = server.counts()
    assert counts["429"] > 0
    assert counts["early"] == 0
    assert time.monotonic() - began >= 0.5


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7", 7), ("0.5", 0.5), ("", 0), ("soon", 0), ("-3", 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0)],
)
def test_retry_after_is_a_number_or_a_date(text: str, seconds: float) -> None:
    assert web._asked_to_wait(text) == seconds
    later = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 100))
    assert 98 <= web._asked_to_wait(later) <= 100


def test_waiting_ends_when_it_is_told_to(server: Faults, red: Any) -> None:
    server.tell(faults={"503": 1.0})
    read.forget()
    threading.Timer(0.5, read.abandon).start()
    began = time.monotonic()
    with pytest.raises(web.Unreadable, match="stopped"):
        read_red(f"{server.url}/{red[0]}")
    assert 0.4 < time.monotonic() - began < web.PATIENCE / 10


@pytest.mark.parametrize("where", ["http://localhost:{port}/x.tif", "file:///etc/passwd", "http://10.0.0.1/x.tif"])
def test_redirects_lead_where_addresses_may(server: Faults, red: Any, where: str) -> None:
    port = server.url.rpartition(":")[2]
    server.tell(moved={"here.tif": f"/{red[0]}", "away.tif": where.format(port=port)})
    np.testing.assert_array_equal(read_red(f"{server.url}/here.tif"), red[1])
    before = server.counts()["requests"]
    with pytest.raises(web.Unreadable, match=r"away\.tif: "):
        read_red(f"{server.url}/away.tif")
    assert server.counts()["requests"] == before + 1


def test_a_file_that_changes_meanwhile_is_no_mosaic_of_both(server: Faults, archive: Toy) -> None:
    path = archive.folder / "changing.tif"
    path.write_bytes((archive.folder / "plain.tif").read_bytes())
    read_red(f"{server.url}/changing.tif")
    path.write_bytes((archive.folder / "plain.tif").read_bytes() + bytes(100))
    with pytest.raises(web.Unreadable, match="size"):
        read_red(f"{server.url}/changing.tif")
    assert read_red(f"{server.url}/changing.tif").any()  # its beginning was forgotten


def test_files_that_are_no_cogs(server: Faults, archive: Toy) -> None:
    """Read bit by bit: JPEG 2000, and a GeoTIFF whose directory lies behind its pixels."""
    item = archive.items[0]["id"]
    source = archive.folder / item / "B04.tif"
    expected = archive.pixels[item, "B04"][10:250, 20:240]
    rasterio.shutil.copy(source, archive.folder / "a.jp2", driver="JP2OpenJPEG", QUALITY="100", REVERSIBLE="YES")
    (archive.folder / "tail.tif").write_bytes(source.read_bytes())
    with rasterio.open(archive.folder / "tail.tif", "r+") as file:
        file.update_tags(note="x" * 70_000)
    assert int.from_bytes((archive.folder / "tail.tif").read_bytes()[4:8], "little") > 70_000
    for name in ("a.jp2", "tail.tif"):
        server.tell(faults={"503": 0.3, "truncated": 0.3}, seed=1)
        np.testing.assert_array_equal(read_red(f"{server.url}/{name}"), expected)
        assert server.counts()["requests"] < 40


# ---------------------------------------------------------------- signatures


class Signer:
    """Signs for the loopback host as the server wants it, and anew when that is refused."""

    def __init__(self, server: Faults) -> None:
        self.server, self.lock, self.signature, self.refused = server, threading.Lock(), server.signature(), 0

    def __call__(self, href: str, refused: bool) -> str:
        with self.lock:
            if refused:
                self.signature, self.refused = self.server.signature(), self.refused + 1
            return f"{href}?sig={self.signature}"


def test_a_signature_that_expires_midway_is_made_anew(
    server: Faults, archive: Toy, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.tell(lifetime=25)
    signer = Signer(server)
    monkeypatch.setitem(web.SIGNERS, "127.0.0.1", signer)
    fetch(request_to(server, archive), tmp_path / "c.zarr")
    assert signer.refused > 2
    assert server.counts()["status 403"] >= signer.refused
    assert chunks_of(tmp_path / "c.zarr") == whole
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or b"sig=" not in file.read_bytes()


def test_what_is_refused_signed_anew_is_gone(server: Faults, red: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def sign(href: str, refused: bool) -> str:
        asked.append(refused)
        return f"{href}?sig=s3cret"

    server.tell(gone=[red[0]])
    read.forget()
    monkeypatch.setitem(web.SIGNERS, "127.0.0.1", sign)
    with pytest.raises(web.Unreadable, match="404") as caught:
        read_red(f"{server.url}/{red[0]}")
    assert caught.value.gone
    assert asked == [False, True]
    assert "s3cret" not in str(caught.value)


# ---------------------------------------------------------------- whole fetches


@pytest.fixture(scope="module")
def whole(server: Faults, archive: Toy, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The hashes of a cube that was fetched without a fault, the same as from the disk."""
    server.tell(**STEADY)  # this comes before `steady`, and may come after any test
    patch = pytest.MonkeyPatch()
    patch.setattr(write_module, "SLAB", 128)
    folder = tmp_path_factory.mktemp("whole")
    fetch(request_to(server, archive), folder / "web.zarr")
    fetch(toy_request(archive.saved(archive.items, "items.json"), gsd=60 / FINE), folder / "disk.zarr")
    patch.undo()
    hashes = chunks_of(folder / "web.zarr")
    assert hashes == chunks_of(folder / "disk.zarr")
    assert len(hashes) > 30
    return hashes


@pytest.mark.parametrize(
    "kind", ["mixed", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("503", "truncated", "reset"))]
)
def test_a_fifth_of_all_requests_fails_and_the_cube_is_the_same(
    server: Faults, archive: Toy, whole: dict[str, str], tmp_path: Path, kind: str
) -> None:
    faults = MIXED if kind == "mixed" else {kind: 0.2}
    for seed in (0, 1):
        server.tell(faults=faults, seed=seed)
        read.forget()
        fetch(request_to(server, archive), tmp_path / f"{seed}.zarr")
        counts = server.counts()
        assert sum(counts.get(name, 0) for name in faults) > counts["requests"] / 10
        assert chunks_of(tmp_path / f"{seed}.zarr") == whole


def test_an_archive_that_is_down_ends_the_fetch_which_can_be_resumed(
    server: Faults, archive: Toy, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "PATIENCE", 2.0)
    server.tell(faults={"503": 1.0})
    read.forget()
    began = time.monotonic()
    with pytest.raises(RemoteFailed, match=r"cannot read \w+ of S2A\S+: .*response code: 503") as caught:
        fetch(request_to(server, archive), tmp_path / "c.zarr")
    assert caught.value.code == 3
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 60  # a fifth of what it bears by default
    server.tell(faults={})
    fetch(request_to(server, archive), tmp_path / "c.zarr")
    assert chunks_of(tmp_path / "c.zarr") == whole


def test_one_lost_asset_is_named_or_masked(server: Faults, archive: Toy, whole: dict[str, str], tmp_path: Path) -> None:
    item = archive.items[2]["id"]
    server.tell(gone=[f"{item}/B03.tif"])
    read.forget()
    with pytest.raises(RemoteFailed, match=f"cannot read green of {item}: .*404") as caught:
        fetch(request_to(server, archive), tmp_path / "fail.zarr")
    assert caught.value.code == 3
    fetched = fetch(request_to(server, archive, on_missing="mask"), tmp_path / "mask.zarr")
    assert fetched.missing == (f"{item}/green",)
    masked = chunks_of(tmp_path / "mask.zarr")
    assert {name.split("/")[1] for name in whole if masked[name] != whole[name]} == {"B03", "weight"}


# ---------------------------------------------------------------- campaigns


@pytest.mark.slow
@pytest.mark.parametrize(
    "faults",
    [{"503": 0.2}, {"truncated": 0.2}, {"reset": 0.2}, MIXED, {"hang": 0.05}],
    ids=["503", "truncated", "reset", "mixed", "hang"],
)
def test_ten_seeds_give_the_same_cube_in_at_most_four_times_the_time(
    server: Faults, archive: Toy, whole: dict[str, str], tmp_path: Path, faults: dict[str, float]
) -> None:
    def timed(name: str) -> float:
        read.forget()
        began = time.monotonic()
        fetch(request_to(server, archive), tmp_path / name)
        taken = time.monotonic() - began
        assert chunks_of(tmp_path / name) == whole
        return taken

    plain = statistics.median(timed(f"plain-{turn}.zarr") for turn in range(5))
    taken = []
    for seed in range(10):
        server.tell(faults=faults, seed=seed)
        taken.append(timed(f"{seed}.zarr"))
        assert server.counts()[next(iter(faults))] > 0
    ratios = [each / plain for each in taken]
    print(f"\n{json.dumps(faults)}: {plain:.2f} s, times {statistics.median(ratios):.2f}, at most {max(ratios):.2f}")  # noqa: T201
    assert max(ratios) <= 4
