"""Cubes and catalogs that were made to do harm, or were harmed: one line, and nothing outside the cube."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from archives import TOY_BOX, Toy, toy_request
from conftest import Aef

from aefcli.cube import fetch, open_cube
from aefcli.stac import public

BOX = ",".join(map(repr, (TOY_BOX.west, TOY_BOX.south, TOY_BOX.east, TOY_BOX.north)))
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
