"""Cubes and catalogs that were made to do harm, or were harmed: one line, and nothing outside the cube."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import google_crc32c
import numpy as np
import pytest
from archives import TOY_BOX, Toy, toy_request
from conftest import Aef
from numcodecs import Zstd

from aefcli.cube import fetch, open_cube
from aefcli.cube.grow import Group
from aefcli.errors import Damaged
from aefcli.stac import public

BOX = ",".join(map(repr, (TOY_BOX.west, TOY_BOX.south, TOY_BOX.east, TOY_BOX.north)))
GZIP = {"name": "gzip", "configuration": {"level": 5}}
WEIGHT, RED = "sentinel-2/weight/c/0/0/0", "sentinel-2/B04/c/0/0/0"


@pytest.fixture(scope="module")
def made(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished cube and its records. Not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    fetch(toy_request(toy), folder / "cube.zarr")
    return folder


@pytest.fixture
def cube(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path / "cube.zarr"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def claiming(path: Path) -> None:
    """A chunk that says it unpacks to 1 GiB, with a checksum that is right."""
    packed = bytearray(path.read_bytes()[:-4])
    packed[4:8] = struct.pack("<I", 1 << 30)
    path.write_bytes(bytes(packed) + struct.pack("<I", google_crc32c.value(bytes(packed))))


@pytest.mark.parametrize("harm", [cut, emptied, claiming, Path.unlink])
@pytest.mark.parametrize(("command", "chunk"), [("info", WEIGHT), ("plot", WEIGHT), ("plot", RED)])
def test_a_damaged_chunk_is_named(cube: Path, aef: Aef, harm: Callable[[Path], None], command: str, chunk: str) -> None:
    harm(cube / chunk)
    code, out, err = aef(command, "cube.zarr")
    assert (code, out, err.count("\n")) == (4, "", 1), err
    assert chunk in err
    assert "aef repair cube.zarr" in err


ROOTS: dict[str, object] = {
    "aef:grid": {"crs": "x", "transform": [1], "shape": [1]},
    "aef:period": ["a", "b"],
    "aef:sources": ["../../etc"],
    "aef:points": ["../points"],
    "aef:key": None,
}


@pytest.mark.parametrize("name", ROOTS)
@pytest.mark.parametrize("lacks", [True, False])
def test_a_root_that_lacks_or_garbles_something(cube: Path, aef: Aef, name: str, lacks: bool) -> None:
    document = json.loads((cube / "zarr.json").read_text())
    document["attributes"][name] = ROOTS[name]
    if lacks:
        del document["attributes"][name]
    (cube / "zarr.json").write_text(json.dumps(document))
    code, _, err = aef("info", "cube.zarr")
    if name == ("aef:points" if lacks else "aef:key"):
        assert code == 0, "it may be so"
    else:
        assert (code, err.count("\n")) == (4, 1), err


@pytest.mark.parametrize("file", ["items/c/0", "time/c/0"])
@pytest.mark.parametrize("command", ["info", "plot"])
def test_coordinates_that_do_not_decode(cube: Path, aef: Aef, file: str, command: str) -> None:
    (cube / "sentinel-2" / file).write_bytes(b"x" * 40)
    code, out, err = aef(command, "cube.zarr")
    assert (code, out, err.count("\n")) == (4, "", 1), err
    assert "aef repair cube.zarr" in err


def bomb(size: int, start: bytes = b"") -> bytes:
    """A Zstandard frame that unpacks to so many bytes, and says so."""
    return bytes(Zstd().encode(start + bytes(size - len(start))))


def mute(size: int) -> bytes:
    """One that does not say how many."""
    return b"\x28\xb5\x2f\xfd\x00\x58" + bomb(size)[9:]


@pytest.mark.parametrize(
    ("file", "holds"),
    [
        ("time/c/0", bomb(1 << 26)),
        ("time/c/0", bomb(8)),
        ("time/c/0", mute(24)),
        ("scale/c/0/0", bomb(1 << 26)),
        ("band/c/0", bomb(1 << 29)),
        ("band/c/0", bomb(64, b"\xff\xff\xff\x3f")),  # 2 ** 30 texts
        ("items/c/0", bomb(64, b"\xff\xff\xff\x3f")),
    ],
)
def test_coordinates_that_claim_another_size(cube: Path, aef: Aef, file: str, holds: bytes) -> None:
    (cube / "sentinel-2" / file).write_bytes(holds)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code, out, err = aef("info", "cube.zarr")
    assert (code, out, err.count("\n")) == (4, "", 1), err
    assert f"{file} is of another size" in err
    with pytest.raises(Damaged, match=f"{file} is of another size"):
        Group.read(cube, "sentinel-2")  # what grows a cube reads it by itself
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 16, "KiB"


DECLARED: dict[str, tuple[str, dict[str, Any]]] = {
    "instants": ("time", {"shape": [1 << 40]}),
    "a chunk of them": ("time", {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1 << 40]}}}),
    "a file each": ("time", {"shape": [1 << 20]}),
    "scales": ("scale", {"shape": [1 << 30, 5]}),
    "packed otherwise": ("time", {"codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, GZIP]}),
    "frames": ("B04", {"shape": [1 << 40, 51, 96]}),
    "rows": ("B04", {"shape": [3, 1 << 40, 96]}),
    "a chunk of pixels": (
        "B04",
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [3, 1 << 30, 1 << 30]}}},
    ),
    "pixels packed otherwise": ("B04", {"codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, GZIP]}),
}


@pytest.mark.parametrize("what", DECLARED)
@pytest.mark.parametrize("command", ["info", "plot"])
def test_arrays_that_declare_more_than_there_is(cube: Path, aef: Aef, what: str, command: str) -> None:
    name, changes = DECLARED[what]
    document = json.loads((cube / "zarr.json").read_text())
    document["consolidated_metadata"]["metadata"][f"sentinel-2/{name}"].update(changes)
    (cube / "zarr.json").write_text(json.dumps(document))
    code, out, err = aef(command, "cube.zarr")
    assert (code, out, err.count("\n")) == (4, "", 1), err
    assert "aef repair cube.zarr" in err


@pytest.mark.parametrize("more", [(), ("--dry-run",), ("--overwrite",)])
def test_what_its_disk_cannot_hold_is_refused_before_it_is_searched_for(
    aef: Aef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    """The catalog is not there: nobody looks."""
    disk = {"f_frsize": 1 << 20, "f_bavail": 9_000, "f_blocks": 9_000, "f_files": 0, "f_favail": 0}
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(**disk))
    code, out, err = aef(
        "fetch", "--stac", "none.json", "--bbox", "5,20,25,80", "--period", "2023", "--source", "sentinel-2", *more
    )
    assert (code, out, err.count("\n")) == (6, "", 1), err
    assert re.search(r"cube.zarr would take [\d.]+ GB or more, and its disk has 9.44 GB free", err)
    assert list(tmp_path.iterdir()) == []


def test_a_box_wider_than_a_zone_wants_a_crs(aef: Aef, tmp_path: Path) -> None:
    line = ("fetch", "--stac", "none.json", "--period", "2023", "--gsd", "1000", "--bbox")
    code, _, err = aef(*line, "-20,46,20,47")
    assert code == 2
    assert "40 degrees wide" in err
    assert "--crs" in err
    for rest in (("-20,46,20,47", "--crs", "EPSG:6933"), ("-10,46,10,47",)):
        _, _, err = aef(*line, *rest)
        assert "wide" not in err
        assert "none.json" in err
    assert list(tmp_path.iterdir()) == []


def test_what_the_plan_says_does_not_fit_is_refused(
    toy: Toy, aef: Aef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two chunks would fit, the seven of the plan do not; a disk with few names left; a cube that is begun."""
    line = ("fetch", "--stac", str(toy.catalog), "--bbox", BOX, "--period", "2023-08", "--gsd", "60",
            "--source", "sentinel-2")  # fmt: skip
    disk = {"f_frsize": 512, "f_bavail": 6, "f_blocks": 9, "f_files": 9, "f_favail": 9}
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(**disk))
    for more in ((), ("--dry-run",)):
        code, out, err = aef(*line, *more)
        assert (code, out, err.count("\n")) == (6, "", 1), err
    disk |= {"f_bavail": 9, "f_favail": 6}
    code, _, err = aef(*line)
    assert (code, "7 files or more" in err) == (6, True), err
    assert list(tmp_path.iterdir()) == []
    disk |= {"f_favail": 7}
    assert aef(*line)[0] == 0
    disk |= {"f_bavail": 0, "f_favail": 0}
    assert aef(*line)[0] == 0, "it is there"
    code, out, err = aef(*line, "--dry-run", "--json", "--out", "b.zarr")
    assert (code, "free" in err) == (6, True), err
    disk |= {"f_bavail": 9, "f_favail": 9}
    code, out, err = aef(*line, "--dry-run", "--json", "--out", "b.zarr")
    assert (code, err.count("\n")) == (6, 1), "it compresses less well than it might"
    assert json.loads(out)["bytes_written"] > json.loads(out)["bytes_free"] == 9 * 512


def test_a_picture_is_of_every_nth_pixel(cube: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aefcli.report import cube as report

    monkeypatch.setattr(report, "_LONGEST", 20)
    array = open_cube(cube).sources["sentinel-2"].arrays["B04"]
    whole = np.asarray(array[:])
    step = -(-max(whole.shape[1:]) // 20)
    assert step > 1
    np.testing.assert_array_equal(report._every(array, np.array([0, 2])), whole[[0, 2], ::step, ::step])
    np.testing.assert_array_equal(report._every(whole, np.array([0, 2])), whole[[0, 2], ::step, ::step])


def test_names_in_a_catalog_lead_nowhere(toy: Toy, aef: Aef, tmp_path: Path) -> None:
    """Ids of items and of collections, and keys of assets that nobody asks for."""
    items = json.loads(json.dumps(toy.items))
    for item, name in zip(items, ("../../up", "/absolute", "a\0b", "..", "line\nline", "x" * 4000), strict=True):
        item["id"] = name
        item["collection"] = "../sentinel-2-l2a"
        item["assets"]["../../evil"] = {"href": item["assets"]["blue"]["href"]}
    catalog = toy.saved(items, "hostile.json")
    before = {path for path in tmp_path.parent.rglob("*") if tmp_path not in path.parents}
    where = ("--bbox", BOX, "--period", "2023-08", "--gsd", "60", "--source", "sentinel-2")
    code, _, err = aef(
        "fetch", "--stac", str(catalog), *where, "--collection", "sentinel-2=../sentinel-2-l2a", "--out", "a/cube.zarr"
    )
    assert code == 0, err
    assert {path.name for path in tmp_path.iterdir()} == {"a"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"cube.zarr", "cube.zarr.build"}
    assert {path for path in tmp_path.parent.rglob("*") if tmp_path not in path.parents} == before
    for command in (("info", "a/cube.zarr"), ("plot", "a/cube.zarr"), ("verify", "a/cube.zarr")):
        code, _, err = aef(*command)
        assert code == 0, err


@pytest.mark.parametrize("name", ["../../outside", "/outside", "c/../../outside"])
@pytest.mark.parametrize("command", [("verify", "cube.zarr"), ("repair", "cube.zarr")])
def test_a_ledger_that_names_files_elsewhere_is_refused(
    cube: Path, aef: Aef, name: str, command: tuple[str, ...]
) -> None:
    """Or else growing such a cube would replace those files."""
    ledger = cube.with_name("cube.zarr.build") / "ledger.jsonl"
    first, *rest = ledger.read_text().splitlines()
    line = json.loads(first)
    line["files"][name] = "0" * 64
    ledger.write_text("\n".join([json.dumps(line), *rest]) + "\n")
    code, out, err = aef(*command)
    assert (code, out, err.count("\n")) == (4, "", 1), err
    assert "ledger.jsonl" in err


@pytest.mark.parametrize(("name", "value"), [("bbox", [1, 2]), ("catalog", "https://elsewhere.org"), ("period", None)])
def test_a_plan_of_another_request(cube: Path, aef: Aef, name: str, value: object) -> None:
    """Repair would take it for an unfinished one, and clear the ledger away."""
    plan, ledger = (cube.with_name("cube.zarr.build") / file for file in ("plan.json", "ledger.jsonl"))
    document, before = json.loads(plan.read_text()), ledger.read_bytes()
    document["request"][name] = value
    plan.write_text(json.dumps(document))
    (cube / RED).unlink()
    code, out, err = aef("repair", "cube.zarr")
    assert (code, out, err.count("\n")) == (4, "", 1), err
    assert "plan.json" in err
    assert ledger.read_bytes() == before


ITEMS: list[tuple[tuple[Any, ...], object]] = [
    (("id",), 5),
    (("collection",), ["sentinel-2-l2a"]),
    (("bbox",), 5),
    (("bbox", 0), {}),
    (("geometry", "type"), "../.."),
    (("geometry", "coordinates", 0, 2, 1), None),
    (("geometry", "coordinates", 0, 2, 1), float("nan")),
    (("properties",), 5),
    (("properties", "datetime"), 5),
    (("properties", "proj:transform"), ["x"] * 6),
    (("properties", "sat:orbit_state"), []),
    (("assets", "red"), "red.tif"),
    (("assets", "red", "href"), 5),
]


def changed(items: list[dict[str, Any]], where: tuple[Any, ...], value: object) -> list[dict[str, Any]]:
    found = json.loads(json.dumps(items))
    place = found[2]
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value
    return found


@pytest.mark.parametrize(("where", "value"), ITEMS, ids=str)
def test_items_that_hold_other_types(toy: Toy, aef: Aef, tmp_path: Path, where: Any, value: object) -> None:
    catalog = toy.saved(changed(toy.items, where, value), "odd.json")
    code, out, err = aef("fetch", "--stac", str(catalog), "--bbox", BOX, "--period", "2023-08", "--gsd", "60")
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert "odd.json is not valid STAC" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("where", "value"), [ITEMS[3], ITEMS[7], ITEMS[-2], ITEMS[-1]], ids=str)
def test_a_plan_whose_items_hold_other_types(cube: Path, aef: Aef, where: Any, value: object) -> None:
    plan = cube.with_name("cube.zarr.build") / "plan.json"
    document = json.loads(plan.read_text())
    document["plan"]["items"]["sentinel-2"] = changed(document["plan"]["items"]["sentinel-2"], where, value)
    plan.write_text(json.dumps(document))
    (cube / RED).unlink()
    code, out, err = aef("repair", "cube.zarr")
    assert (code, out, err.count("\n")) == (4, "", 1), err
    assert "plan.json is no plan" in err


@pytest.mark.parametrize("text", ["[]", "{}", "null", '{"key": 1}'])
@pytest.mark.parametrize("command", ["verify", "repair"])
def test_a_plan_that_is_none(cube: Path, aef: Aef, text: str, command: str) -> None:
    (cube.with_name("cube.zarr.build") / "plan.json").write_text(text)
    code, out, err = aef(command, "cube.zarr")
    assert (code, out, err.count("\n")) == (4, "", 1), err
    assert "plan.json" in err


@pytest.mark.parametrize("gone", ["sentinel-2", "sentinel-2/weight", "sentinel-2/time/c"])
def test_folders_that_are_gone_are_mended(cube: Path, aef: Aef, gone: str) -> None:
    shutil.rmtree(cube / gone)
    code, _, err = aef("repair", "cube.zarr")
    assert code == 0, err
    assert aef("verify", "cube.zarr")[0] == 0


@pytest.mark.parametrize("stac", ["http://[::1/catalog.json", "x" * 300, "x/" * 3000, "user@host/catalog.json"])
def test_catalogs_that_are_no_names(aef: Aef, tmp_path: Path, stac: str) -> None:
    code, out, err = aef("fetch", "--stac", stac, "--bbox", BOX, "--period", "2023-08")
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert len(err) < 300
    assert "--stac" in err
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_address_is_shown_without_what_looks_secret() -> None:
    assert public("http://[::1/x?key=secret") == "http://[::1/x"
    assert public("https://me:secret@[::1/x?key=secret") == "https://[::1/x"
