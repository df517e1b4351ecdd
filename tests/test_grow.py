"""A finished cube grows, and is then what one fetch of everything would have made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import rioxarray  # noqa: F401 - adds .rio
import xarray as xr
import zarr
from archives import DAYS, KEYS, Toy, toy_request, write_tif
from servers import file_server

import aefcli.cube.write as writing
from aefcli import ledger
from aefcli.cube import Request, Work, add_source, fetch, open_cube, repair, write_cube
from aefcli.errors import BadInput, Damaged, RemoteFailed
from aefcli.extent import Period
from aefcli.sources import SOURCES

FIRST = Period.parse("2023-08-01:2023-08-13")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two frames to a chunk, several units in a small cube."""
    monkeypatch.setattr(writing, "CHUNK", (2, 32, 32))
    monkeypatch.setattr(writing, "SLAB", 64)


def chunks(path: Path) -> dict[str, bytes]:
    """Everything below the root's own metadata, which name the request."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file != path / "zarr.json"
    }


def request_over(toy: Toy, url: str, **changes: object) -> Request:
    (toy.folder / "grown.json").write_text(json.dumps({"type": "FeatureCollection", "features": toy.over(url)}))
    return toy_request(f"{url}/grown.json", **changes)


def test_a_longer_period_reads_only_what_is_new(toy: Toy, tmp_path: Path) -> None:
    fetch(toy_request(toy), tmp_path / "whole.zarr")
    with file_server(toy.folder) as web:
        fetch(request_over(toy, web.url, period=FIRST), tmp_path / "c.zarr")
        web.log.clear()
        done = fetch(request_over(toy, web.url), tmp_path / "c.zarr")
        asked = {line.split("/")[1] for line in web.log if line.endswith(".tif")}
    assert asked == {item["id"] for item in toy.items if DAYS[2] in item["properties"]["datetime"]}
    assert done.frames == {"sentinel-2": 3}
    assert done.adopted == done.written, "the first two frames fill their chunks"
    assert done.adopted > 0
    assert chunks(tmp_path / "c.zarr") == chunks(tmp_path / "whole.zarr")
    assert open_cube(tmp_path / "c.zarr").period == Period.parse("2023-08")
    assert not (tmp_path / "c.zarr.build/next").exists()
    assert ledger.verify(tmp_path / "c.zarr")[0] == []


def test_frames_may_come_before_those_that_are_there(toy: Toy, tmp_path: Path) -> None:
    fetch(toy_request(toy), tmp_path / "whole.zarr")
    with file_server(toy.folder) as web:
        fetch(request_over(toy, web.url, period=Period.parse("2023-08-12:2023-08-31")), tmp_path / "c.zarr")
        web.log.clear()
        done = fetch(request_over(toy, web.url), tmp_path / "c.zarr")
        asked = {line.split("/")[1] for line in web.log if line.endswith(".tif")}
    assert asked == {item["id"] for item in toy.items if DAYS[0] in item["properties"]["datetime"]}
    assert done.adopted == 0, "every frame has moved on in time"
    assert chunks(tmp_path / "c.zarr") == chunks(tmp_path / "whole.zarr")


def test_refresh_appends_what_is_new_and_asks_only_when_told(toy: Toy, tmp_path: Path) -> None:
    catalog = toy.saved(toy.items[:4], "growing.json")
    request = toy_request(catalog)
    fetch(request, tmp_path / "c.zarr")
    toy.saved(toy.items, "growing.json")
    assert fetch(request, tmp_path / "c.zarr").frames == {"sentinel-2": 2}, "a finished cube searches no more"
    assert fetch(request, tmp_path / "c.zarr", refresh=True).frames == {"sentinel-2": 3}
    again = fetch(request, tmp_path / "c.zarr", refresh=True)
    assert (again.written, again.adopted) == (0, 0)
    fetch(request, tmp_path / "whole.zarr")
    assert chunks(tmp_path / "c.zarr") == chunks(tmp_path / "whole.zarr")


def test_a_frame_that_was_processed_anew_is_fetched_anew(toy: Toy, tmp_path: Path) -> None:
    items = json.loads(json.dumps(toy.items))
    request = toy_request(toy.saved(items, "again.json"))
    fetch(request, tmp_path / "c.zarr")
    changed = items[2]
    changed["id"] = changed["id"].replace("_0_", "_1_")
    for band, key in KEYS.items():
        path = toy.folder / changed["id"] / f"{band}.tif"
        path.parent.mkdir(exist_ok=True)
        write_tif(path, np.full((64, 64), 5, "uint8" if band == "scl" else "uint16"), left=500040.0)
        changed["assets"][key]["href"] = str(path)
    toy.saved(items, "again.json")
    done = fetch(request, tmp_path / "c.zarr", refresh=True)
    assert done.adopted == done.written, "the chunks of the third frame stay"
    data = xr.open_zarr(tmp_path / "c.zarr", group="sentinel-2", mask_and_scale=False)
    assert "_1_" in str(data["items"].values[1])
    fetch(request, tmp_path / "whole.zarr")
    assert chunks(tmp_path / "c.zarr") == chunks(tmp_path / "whole.zarr")


def test_shorter_or_other_periods_are_another_request(toy: Toy, tmp_path: Path) -> None:
    fetch(toy_request(toy, period=FIRST), tmp_path / "c.zarr")
    with pytest.raises(BadInput, match="another request: period"):
        fetch(toy_request(toy, period=Period.parse("2023-08-01:2023-08-12")), tmp_path / "c.zarr")
    with pytest.raises(BadInput, match="another request: gsd"):
        fetch(toy_request(toy, gsd=120), tmp_path / "c.zarr")


def test_growth_that_fails_leaves_the_cube_and_goes_on_later(toy: Toy, tmp_path: Path) -> None:
    fetch(toy_request(toy), tmp_path / "whole.zarr")
    with file_server(toy.folder) as web:
        fetch(request_over(toy, web.url, period=FIRST), tmp_path / "c.zarr")
        before = chunks(tmp_path / "c.zarr")
        web.gone.add(f"{toy.items[5]['id']}/B04.tif")
        with pytest.raises(RemoteFailed, match=toy.items[5]["id"]):
            fetch(request_over(toy, web.url), tmp_path / "c.zarr")
        assert chunks(tmp_path / "c.zarr") == before
        assert open_cube(tmp_path / "c.zarr").period == FIRST
        web.gone.clear()
        fetch(request_over(toy, web.url), tmp_path / "c.zarr")
    assert chunks(tmp_path / "c.zarr") == chunks(tmp_path / "whole.zarr")


def test_a_chunk_that_is_gone_is_no_nodata(toy: Toy, tmp_path: Path) -> None:
    fetch(toy_request(toy, period=Period.parse("2023-08-12:2023-08-31")), tmp_path / "c.zarr")
    (tmp_path / "c.zarr/sentinel-2/B04/c/0/0/0").unlink()
    with pytest.raises(Damaged, match="B04"):
        fetch(toy_request(toy), tmp_path / "c.zarr")


LATER = Period.parse("2023-08-12:2023-08-31")


@pytest.mark.parametrize(
    ("harm", "period"),
    [
        ("flipped", FIRST),
        ("flipped", LATER),  # a frame comes before those that are there: all chunks are read, to be written anew
        ("swapped", LATER),
        ("missing", LATER),
        ("missing", FIRST),  # one comes after them: the chunk would be taken over as it is
        ("metadata", FIRST),
        ("coordinate", FIRST),
    ],
)
def test_what_is_damaged_is_not_grown_from(toy: Toy, tmp_path: Path, harm: str, period: Period) -> None:
    fetch(toy_request(toy, period=period), path := tmp_path / "c.zarr")
    group = path / "sentinel-2"
    file = group / {"metadata": "B03/zarr.json", "coordinate": "time/c/0"}.get(harm, "B03/c/0/0/0")
    if harm == "missing":
        file.unlink()
    elif harm == "swapped":
        file.write_bytes((group / "B04/c/0/0/0").read_bytes())
    else:
        raw = bytearray(file.read_bytes())
        raw[len(raw) // 2] ^= 1
        file.write_bytes(raw)
    before = chunks(path)
    with pytest.raises(Damaged, match=rf"{file.name} is (damaged|missing).*aef repair .*c\.zarr mends"):
        fetch(toy_request(toy), path)
    assert chunks(path) == before, "nothing is written and nothing lost"
    repair(path)
    fetch(toy_request(toy), path)
    fetch(toy_request(toy), whole := tmp_path / "whole.zarr")
    assert chunks(path) == chunks(whole)


@pytest.mark.parametrize("done", [0, 1, 2])
def test_a_swap_that_was_cut_off_is_no_damage(toy: Toy, tmp_path: Path, done: int) -> None:
    """Killed while the grown cube took the old one's place: after its store, its plan, its ledger."""
    fetch(toy_request(toy, period=FIRST), path := tmp_path / "c.zarr")
    fetch(toy_request(toy), tmp_path / "whole.zarr")
    old, new = tmp_path / "c.zarr.build/old", tmp_path / "c.zarr.build/next"
    path.rename(old)
    new.mkdir()
    shutil.copytree(tmp_path / "whole.zarr", path)
    for name in ("plan.json", "ledger.jsonl")[done:]:
        shutil.copy(tmp_path / "whole.zarr.build" / name, new)
    for name in ("plan.json", "ledger.jsonl")[:done]:
        shutil.copy(tmp_path / "whole.zarr.build" / name, new.parent)
    assert fetch(toy_request(toy), path).written == 0
    assert ledger.verify(path)[0] == []


# --- sources from elsewhere -------------------------------------------------------------------------------------------


def height(cube: Path, value: float) -> xr.Dataset:
    """Elevation on the cells of a cube of 60 m."""
    found = xr.open_zarr(cube, group="sentinel-2", mask_and_scale=False, decode_coords="all")
    time = np.array(["2021-01-01"], "datetime64[ms]")
    rise = value + np.arange(found.sizes["x"], dtype="float32")[None, None] * np.ones(
        (1, found.sizes["y"], 1), "float32"
    )
    made = xr.Dataset({"elevation": (("time", "y", "x"), rise)}, {"time": time, "y": found.y, "x": found.x})
    return made.rio.write_crs("EPSG:32633")


def test_a_source_is_attached_beside_what_is_there(toy: Toy, tmp_path: Path) -> None:
    fetch(toy_request(toy), path := tmp_path / "c.zarr")
    before, key = chunks(path), open_cube(path).key
    assert add_source(path, "glo-30", height(path, 100), {"files": ["dem.tif"]})
    cube = open_cube(path)
    assert list(cube.sources) == ["sentinel-2", "glo-30"]
    np.testing.assert_array_equal(cube.sources["glo-30"].arrays["elevation"][0, 0, :3], [100, 101, 102])
    assert {name: data for name, data in chunks(path).items() if name.startswith("sentinel-2/")} == {
        name: data for name, data in before.items() if name.startswith("sentinel-2/")
    }
    assert cube.attrs["aef:request"]["attached"]["glo-30"]["files"] == ["dem.tif"]
    assert cube.key != key, "fields made of it are of another cube"
    assert not add_source(path, "glo-30", height(path, 100), {"files": ["dem.tif"]}), "the very same"
    with pytest.raises(BadInput, match="has glo-30 already"):
        add_source(path, "glo-30", height(path, 200), {})
    assert add_source(path, "glo-30", height(path, 200), {}, overwrite=True)
    assert open_cube(path).sources["glo-30"].arrays["elevation"][0, 0, 0] == 200
    assert ledger.verify(path)[0] == []


def test_a_finished_fetch_knows_its_cube_with_attached_sources(toy: Toy, tmp_path: Path) -> None:
    fetch(toy_request(toy, period=FIRST), path := tmp_path / "c.zarr")
    add_source(path, "glo-30", height(path, 100), {})
    assert fetch(toy_request(toy, period=FIRST), path).written == 0
    fetch(toy_request(toy), path)
    cube = open_cube(path)
    assert {name: len(source.times) for name, source in cube.sources.items()} == {"sentinel-2": 3, "glo-30": 1}
    assert cube.sources["glo-30"].arrays["elevation"][0, 0, 0] == 100
    fetch(toy_request(toy), path, overwrite=True)
    assert list(open_cube(path).sources) == ["sentinel-2"], "overwritten is begun anew"


def test_a_table_is_attached_whole(toy: Toy, tmp_path: Path) -> None:
    fetch(toy_request(toy), path := tmp_path / "c.zarr")
    table = xr.Dataset({
        "lon": ("point", [15.1, 15.2]),
        "start": ("point", np.array([1, 2])),
        "vector": (("point", "number"), np.ones((2, 3), "float32")),
    })  # fmt: skip
    assert add_source(path, "text", table, {"model": "toy"})
    assert not add_source(path, "text", table, {"model": "toy"})
    assert list(open_cube(path).sources) == ["sentinel-2"]
    np.testing.assert_array_equal(zarr.open_group(path / "text", mode="r")["lon"][:], [15.1, 15.2])
    add_source(path, "glo-30", height(path, 100), {})
    xr.testing.assert_equal(xr.open_zarr(path, group="text", chunks=None).load(), table)


def test_what_cannot_be_attached_leaves_the_cube_alone(toy: Toy, tmp_path: Path) -> None:
    fetch(toy_request(toy), path := tmp_path / "c.zarr")
    before = chunks(path)
    shifted = height(path, 1).assign_coords(x=height(path, 1).x + 10)
    with pytest.raises(BadInput, match="does not share"):
        add_source(path, "glo-30", shifted, {})
    with pytest.raises(BadInput, match="none of its bands"):
        add_source(path, "gedi", height(path, 1), {})
    with pytest.raises(BadInput, match="no finished cube"):
        add_source(tmp_path / "other.zarr", "glo-30", height(path, 1), {})
    assert chunks(path) == before


def test_cubes_of_datasets_take_sources_too(tmp_path: Path) -> None:
    from toys import YEAR, made_up_cube

    cube = made_up_cube(tmp_path / "c.zarr")
    time, coords = np.array(["2021-01-01"], "datetime64[ms]"), xr.open_zarr(cube.path, group="sentinel-2")
    codes = np.full((1, 32, 32), SOURCES["nlcd"].classes[0], "uint8")
    x, y = coords.x.values.reshape(-1, 3).mean(1), coords.y.values.reshape(-1, 3).mean(1)
    made = xr.Dataset({"land_cover": (("time", "y", "x"), codes)}, {"time": time, "y": y, "x": x})
    assert add_source(cube.path, "nlcd", made.rio.write_crs(cube.grid.crs), {})
    assert open_cube(cube.path).period == YEAR
    assert open_cube(cube.path).sources["nlcd"].factor == 3


# --- assets that are not there, and who does the work -----------------------------------------------------------------


def test_workers_of_a_cluster_make_the_same_cube(toy: Toy, tmp_path: Path) -> None:
    fetch(toy_request(toy), tmp_path / "threads.zarr", work=Work(1))
    fetch(toy_request(toy), tmp_path / "cluster.zarr", work=Work(1, dask="2"))
    assert chunks(tmp_path / "cluster.zarr") == chunks(tmp_path / "threads.zarr")


def test_a_cluster_that_does_not_answer_is_one_line(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no dask scheduler answers"):
        fetch(toy_request(toy), tmp_path / "c.zarr", work=Work(1, dask="tcp://127.0.0.1:9"))


def test_write_cube_and_growth_share_one_form(tmp_path: Path) -> None:
    """A cube of datasets is refused to a fetch, as any other request's."""
    from toys import YEAR, made_up_cube

    cube = made_up_cube(tmp_path / "c.zarr")
    with pytest.raises(BadInput, match="another request"):
        fetch(toy_request(tmp_path / "nothing.json"), cube.path)
    assert write_cube is not None
    assert open_cube(cube.path).period == YEAR
