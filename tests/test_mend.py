"""What a ledger says of a store is held against it, and what is wrong in a cube is fetched again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from archives import Toy, make_toy, toy_request, write_tif
from servers import file_server

import aefcli.cube.write as writing
from aefcli import ledger
from aefcli.cube import add_source, fetch, open_cube, repair
from aefcli.errors import BadInput, Damaged, Locked, RemoteFailed


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "CHUNK", (2, 32, 32))
    monkeypatch.setattr(writing, "SLAB", 32)


@pytest.fixture
def cube(toy: Toy, tmp_path: Path) -> Path:
    fetch(toy_request(toy), path := tmp_path / "c.zarr")
    return path


def files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def chunks(path: Path) -> list[Path]:
    """All chunk files of the pixels, in order."""
    return sorted(file for file in path.glob("*/*/c/*/*/*") if file.is_file())


def flip(path: Path, rng: np.random.Generator) -> None:
    data = bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)


def cut(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(path.read_bytes()[: int(rng.integers(1, path.stat().st_size))])


def emptied(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(b"")


def gone(path: Path, rng: np.random.Generator) -> None:
    path.unlink()


def turned_into_a_folder(path: Path, rng: np.random.Generator) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("harms", [[flip], [cut, emptied, gone, turned_into_a_folder]])
def test_every_harm_to_120_chunks_is_found_and_mended(
    cube: Path, harms: list[Callable[[Path, np.random.Generator], None]]
) -> None:
    before, rng = files(cube), np.random.default_rng(0)
    everything = chunks(cube)
    harmed = [everything[index] for index in rng.permutation(len(everything))[:120]]
    assert len(harmed) >= 60
    for number, path in enumerate(harmed):
        harms[number % len(harms)](path, rng)
    faults, looked = ledger.verify(cube)
    assert {fault.path for fault in faults} == {str(path.relative_to(cube)) for path in harmed}
    assert all(fault.unit and fault.path.startswith(fault.unit.split("/")[0]) for fault in faults)
    assert looked == len(before)
    for path in harmed:
        if path.is_dir():  # which is nobody's to remove
            path.rmdir()
    done = repair(cube)
    assert set(done.files) == {fault.path for fault in faults}
    assert done.changed == ()
    assert files(cube) == before
    assert ledger.verify(cube)[0] == []


def test_swapped_chunks_are_found_and_mended(cube: Path) -> None:
    """Each is whole and passes its own checksum: only the ledger knows that it is not the one for its place."""
    before = files(cube)
    distinct = {path.read_bytes(): path for path in chunks(cube)}
    paths = sorted(distinct.values())[: len(distinct) // 2 * 2]
    assert len(paths) >= 20
    for one, other in zip(paths[::2], paths[1::2], strict=True):
        first, second = one.read_bytes(), other.read_bytes()
        one.write_bytes(second)
        other.write_bytes(first)
    assert {fault.path for fault in ledger.verify(cube)[0]} == {str(path.relative_to(cube)) for path in paths}
    repair(cube)
    assert files(cube) == before


def test_metadata_and_coordinates_are_held_and_mended_too(cube: Path) -> None:
    before = files(cube)
    rest = [name for name in before if "/c/" not in name or name.split("/")[1] in ("time", "x", "y", "scale", "items")]
    for name in rest:
        if name != "zarr.json":
            (cube / name).unlink()
    (cube / "zarr.json").write_text("{}")
    assert {fault.path for fault in ledger.verify(cube)[0]} == set(rest)
    assert repair(cube).units == 0
    assert files(cube) == before
    assert open_cube(cube).shape


def test_only_what_was_masked_before_is_masked_again(tmp_path: Path) -> None:
    """An archive that is not there, as a disk that is not mounted, is none of whose assets are lost for good."""
    (tmp_path / "archive").mkdir()
    toy, cube = make_toy(tmp_path / "archive"), tmp_path / "c.zarr"
    Path(toy.items[0]["assets"]["blue"]["href"]).unlink()
    fetched = fetch(toy_request(toy, on_missing="mask"), cube)
    assert fetched.missing == (f"{toy.items[0]['id']}/blue",)
    before = files(cube)
    lost = chunks(cube)[0]
    lost.unlink()
    (tmp_path / "archive").rename(tmp_path / "elsewhere")
    with pytest.raises(RemoteFailed, match="cannot read"):
        repair(cube)
    assert files(cube) == {name: data for name, data in before.items() if name != str(lost.relative_to(cube))}
    (tmp_path / "elsewhere").rename(tmp_path / "archive")
    assert repair(cube).changed == ()
    assert files(cube) == before


def test_an_archive_that_has_changed_is_said(toy: Toy, tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    shutil.copytree(toy.folder, folder)
    items = json.loads((folder / "items.json").read_text().replace(str(toy.folder), str(folder)))
    (folder / "items.json").write_text(json.dumps(items))
    fetch(toy_request(folder / "items.json"), path := tmp_path / "c.zarr")
    for item in toy.items:
        write_tif(folder / item["id"] / "B04.tif", np.full((64, 64), 7, "uint16"), left=500040.0)
    chunks(path)[0].unlink()
    done = repair(path)
    assert done.units == 1
    assert len(done.changed) == 1
    assert ledger.verify(path)[0] == [], "what is written down is what is there"


def test_a_source_that_came_from_files_is_not_fetched(cube: Path) -> None:
    found = xr.open_zarr(cube, group="sentinel-2", mask_and_scale=False, decode_coords="all")
    for name, band, kind in (("nlcd", "land_cover", "uint8"), ("glo-30", "elevation", "float32")):
        values = np.full((1, found.sizes["y"], found.sizes["x"]), 11, kind)
        time = np.array(["2021-01-01"], "datetime64[ms]")
        made = xr.Dataset({band: (("time", "y", "x"), values)}, {"time": time, "y": found.y, "x": found.x})
        add_source(cube, name, made.assign_coords(spatial_ref=found.spatial_ref), {})
    before = files(cube)
    for lost in ("sentinel-2/time/zarr.json", "zarr.json"):
        (cube / lost).unlink()
        repair(cube)
        assert files(cube) == before
    attached = {
        name: xr.open_zarr(cube, group=name, mask_and_scale=False, decode_coords="all")[[band]].load()
        for name, band in (("glo-30", "elevation"), ("nlcd", "land_cover"))
    }
    for lost in ("glo-30/elevation/c/0/0/0", "glo-30/time/c/0", "nlcd/land_cover/c/0/0/0"):
        (cube / lost).unlink()
    fetched = [*sorted(cube.glob("sentinel-2/B0*/c/*/*/*"))[:2], cube / "sentinel-2/time/c/0"]
    for file in fetched:
        file.unlink()
    says = (
        r"nlcd/land_cover/c/0/0/0 came from files.*attach .* --source glo-30 FILE ... and aef attach .* --source nlcd"
    )
    with pytest.raises(Damaged, match=says):
        repair(cube)
    assert all(file.exists() for file in fetched), "what is not of files is mended"
    for name, dataset in attached.items():
        assert add_source(cube, name, dataset, {}), "the very same, of which a part is gone"
        assert not add_source(cube, name, dataset, {})
    assert files(cube) == before
    assert ledger.verify(cube)[0] == []


def test_what_somebody_put_into_a_cube_is_not_taken_for_its_own(cube: Path) -> None:
    _, count = ledger.verify(cube)
    chunks(cube)[0].unlink()
    (cube / "notes.txt").write_text("mine")
    repair(cube)
    assert ledger.verify(cube) == ([], count)
    (cube / "notes.txt").unlink()
    assert ledger.verify(cube) == ([], count)


def test_a_repair_that_cannot_read_goes_on_later(toy: Toy, tmp_path: Path) -> None:
    with file_server(toy.folder) as web:
        (toy.folder / "mend.json").write_text(json.dumps({"type": "FeatureCollection", "features": toy.over(web.url)}))
        fetch(toy_request(f"{web.url}/mend.json"), path := tmp_path / "c.zarr")
        before = files(path)
        for file in chunks(path)[:7]:
            file.unlink()
        web.gone.add(f"{toy.items[0]['id']}/B04.tif")
        with pytest.raises(RemoteFailed, match=toy.items[0]["id"]):
            repair(path)
        assert ledger.verify(path)[0]
        web.gone.clear()
        repair(path)
    assert files(path) == before


def test_what_cannot_be_held_to_anything_is_refused(cube: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no records"):
        ledger.verify(tmp_path / "nothing.zarr")
    with ledger.reopen(cube), pytest.raises(Locked):
        repair_of_a_broken(cube)
    shutil.rmtree(ledger.records_of(cube))
    with pytest.raises(BadInput, match="no records"):
        ledger.verify(cube)


def repair_of_a_broken(cube: Path) -> None:
    chunks(cube)[0].unlink()
    repair(cube)
