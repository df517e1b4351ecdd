"""Fetch: items into a cube. On ten real Sentinel-2 items, where they lie beside the checkout; and on made-up ones."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio
import rasterio.warp
import xarray as xr
from affine import Affine
from archives import (
    AUGUST,
    DAYS,
    KEYS,
    ORIGIN,
    OVERLAP,
    SIDE,
    TOY_BOX,
    Toy,
    canvas,
    to_server,
    toy_request,
    write_tif,
)
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from servers import Files, file_server, stac_api

import aefcli.cube.write as store_module
from aefcli import stac
from aefcli.cube import Request, Work, cube_of, fetch, open_cube, write_cube
from aefcli.errors import AefError, BadInput, Locked, RemoteFailed
from aefcli.extent import BBox, Period, Tile
from aefcli.sources import SOURCES

BOX = BBox(15.00, 45.95, 15.40, 46.15)
S2 = SOURCES["sentinel-2"]
BANDS = ("B02", "B03", "B04", "B08")
CLOUDED = (0, 1, 3, 8, 9, 10, 12)  # 12 is no class of the product, yet these files have a few


# ---------------------------------------------------------------- the real archive


@pytest.fixture(scope="module")
def archive(real: Path) -> Path:
    return real / "earth-search-33T"


@pytest.fixture(scope="module")
def real_items(archive: Path) -> list[dict[str, Any]]:
    """The ten items, with absolute hrefs."""
    found = []
    for path in sorted(archive.glob("sentinel-2-l2a/*/*.json")):
        item = json.loads(path.read_text())
        item["links"] = []
        for asset in item["assets"].values():
            asset["href"] = str(path.parent / asset["href"])
        found.append(item)
    return found


def request_of(catalog: Path | str, **changes: Any) -> Request:
    return Request(**{"catalog": str(catalog), "bbox": BOX, "period": AUGUST, "gsd": 60, **changes})


@pytest.fixture(scope="module")
def cube(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real cube, bilinear as by default."""
    path = tmp_path_factory.mktemp("real") / "cube.zarr"
    fetched = fetch(request_of(archive / "catalog.json"), path, work=Work(2))
    assert (fetched.frames, fetched.items) == ({"sentinel-2": 5}, 10)
    assert len(fetched.notes) == 2  # no radar, no Landsat in that catalog
    return path


def opened(path: Path, group: str = "sentinel-2") -> xr.Dataset:
    return xr.open_zarr(path, group=group, chunks=None, mask_and_scale=False)


def passes(items: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The items by day, each in the order of acquisition then id: one pass a day in this archive."""
    days: dict[str, list[dict[str, Any]]] = {}
    for item in sorted(items, key=lambda item: (item["properties"]["datetime"], item["id"])):
        days.setdefault(item["properties"]["datetime"][:10], []).append(item)
    return list(days.values())


def mosaic(layers: list[np.ndarray]) -> np.ndarray:
    """The first valid pixel of some layers, nodata being 0."""
    out = layers[0].copy()
    for layer in layers[1:]:
        out = np.where(out == 0, layer, out)
    return out


def nearest(href: str, grid: GeoBox) -> np.ndarray:
    """The value of the file's cell that holds each pixel's centre; 0 outside."""
    with rasterio.open(href) as file:
        data, transform = file.read(1), file.transform
    x = grid.transform.c + (np.arange(grid.shape[1]) + 0.5) * grid.resolution.x
    y = grid.transform.f + (np.arange(grid.shape[0]) + 0.5) * grid.resolution.y
    columns = np.floor((x - transform.c) / transform.a).astype(int)
    rows = np.floor((y - transform.f) / transform.e).astype(int)
    inside = ((rows >= 0) & (rows < data.shape[0]))[:, None] & ((columns >= 0) & (columns < data.shape[1]))
    taken = data[np.clip(rows, 0, data.shape[0] - 1)[:, None], np.clip(columns, 0, data.shape[1] - 1)]
    return np.where(inside, taken, 0)


def bilinear(href: str, grid: GeoBox) -> np.ndarray:
    """The whole file warped at once onto the whole grid."""
    out = np.zeros(grid.shape, "uint16")
    with rasterio.open(href) as file:
        rasterio.warp.reproject(
            rasterio.band(file, 1),
            out,
            src_nodata=0,
            dst_nodata=0,
            dst_crs=file.crs,
            dst_transform=grid.transform,
            resampling=rasterio.warp.Resampling.bilinear,
        )
    return out


def test_nearest_pixels_are_those_of_the_files(archive: Path, real_items: list[dict[str, Any]], tmp_path: Path) -> None:
    fetch(request_of(archive / "catalog.json", resampling="nearest"), tmp_path / "c.zarr", work=Work(2))
    data, grid = opened(tmp_path / "c.zarr"), open_cube(tmp_path / "c.zarr").grid
    for name in (*BANDS, "scl"):
        for number, members in enumerate(passes(real_items)):
            expected = mosaic([nearest(item["assets"][KEYS[name]]["href"], grid) for item in members])
            np.testing.assert_array_equal(data[name][number], expected, err_msg=f"{name} {number}")


def test_the_order_of_the_mosaic_matters_in_these_files(real_items: list[dict[str, Any]], cube: Path) -> None:
    """Else the test above would pass with any order."""
    layers = [nearest(item["assets"]["blue"]["href"], open_cube(cube).grid) for item in passes(real_items)[0]]
    assert (mosaic(layers) != mosaic(layers[::-1])).sum() > 1000


def test_bilinear_pixels_are_those_of_one_warp_per_file(real_items: list[dict[str, Any]], cube: Path) -> None:
    data, grid = opened(cube), open_cube(cube).grid
    for name in BANDS:
        for number, members in enumerate(passes(real_items)):
            expected = mosaic([bilinear(item["assets"][KEYS[name]]["href"], grid) for item in members])
            stored = data[name][number].to_numpy()
            np.testing.assert_array_equal(stored == 0, expected == 0, err_msg=f"{name} {number}")
            assert abs(stored.astype(int) - expected).max() <= 1, f"{name} {number}"
    assert (data["B02"] == 0).any()  # the edge of the swath lies in the box: nodata was compared


def test_bands_and_numbers_of_the_real_items(cube: Path) -> None:
    data = opened(cube)
    assert "B11" not in data
    np.testing.assert_array_equal(data["delivered"], [[1, 1, 1, 1, 0]] * 5)
    np.testing.assert_array_equal(data["offset"], np.zeros((5, 5)))  # although raster:bands announce -0.1
    np.testing.assert_array_equal(data["scale"], np.full((5, 5), 1e-4))
    # The southern tile is imaged later, and comes first by id.
    assert data["items"].to_numpy()[0] == "S2B_33TWM_20230810_0_L2A,S2B_33TWL_20230810_0_L2A"
    assert set(data["platform"].to_numpy()) == {"sentinel-2a", "sentinel-2b"}


def test_weight_is_clear_and_delivered(cube: Path) -> None:
    data = opened(cube)
    delivered = np.logical_and.reduce([data[name].to_numpy() != 0 for name in BANDS])
    clear = ~np.isin(data["scl"].to_numpy(), CLOUDED)
    np.testing.assert_array_equal(data["weight"].to_numpy(), delivered & clear)
    for value in (0, 3, 8, 9, 10):
        assert (data["scl"] == value).any(), f"the box has no class {value}: the test would say nothing of it"
    wedge = ~delivered
    assert wedge.sum() > 100
    assert not data["weight"].to_numpy()[wedge].any()
    read, weight = open_cube(cube).sources["sentinel-2"].read(Tile(10, 20, 40, 60), np.array([0, 3]))
    np.testing.assert_array_equal(read[:, 2], data["B04"][[0, 3], 10:40, 20:60])
    np.testing.assert_array_equal(weight, data["weight"][[0, 3], 10:40, 20:60])


def test_group_opens_without_help(cube: Path) -> None:
    data = xr.open_zarr(cube, group="sentinel-2")
    assert rasterio.crs.CRS.from_wkt(data["spatial_ref"].attrs["crs_wkt"]).to_epsg() == 32633
    assert all(data[name].attrs["grid_mapping"] == "spatial_ref" for name in (*BANDS, "scl", "weight"))
    corner, grid = (499980.0, 5110800.0), open_cube(cube).grid
    assert (grid.transform.c, grid.transform.f) == corner
    assert all(value % 60 == 0 for value in corner)
    np.testing.assert_allclose(data["x"], corner[0] + 60 * (np.arange(grid.shape[1]) + 0.5))
    np.testing.assert_allclose(data["y"], corner[1] - 60 * (np.arange(grid.shape[0]) + 0.5))
    times = data["time"].to_numpy()
    assert (np.diff(times) > np.timedelta64(0, "s")).all()
    assert str(times[0].astype("datetime64[ms]")) == "2023-08-10T09:57:57.166"
    assert set(xr.open_zarr(cube, group="sentinel-2").coords) >= {"x", "y", "time", "band"}


def test_grid_holds_the_box_and_no_more_than_a_cell_beyond(cube: Path) -> None:
    grid = open_cube(cube).grid
    to_utm = Transformer.from_crs(4326, 32633, always_xy=True)
    edge = np.linspace(0, 1, 101)
    west, east = BOX.west + 0 * edge, BOX.east + 0 * edge
    along, up = BOX.west + edge * (BOX.east - BOX.west), BOX.south + edge * (BOX.north - BOX.south)
    x, y = to_utm.transform(np.r_[west, east, along, along], np.r_[up, up, 0 * edge + BOX.south, 0 * edge + BOX.north])
    for value, low, high in ((x, *grid.boundingbox[0::2]), (y, *grid.boundingbox[1::2])):
        assert low <= value.min() < low + 60
        assert high - 60 < value.max() <= high


def chunks_of(path: Path) -> dict[str, str]:
    """A hash per file below the arrays."""
    files = sorted(file for file in path.rglob("*") if file.is_file() and "c" in file.relative_to(path).parts)
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def everything(path: Path) -> dict[str, tuple[int, str]]:
    """Times and contents of every file of a store."""
    files = (file for file in path.rglob("*") if file.is_file())
    return {str(file): (file.stat().st_mtime_ns, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files}


def test_an_api_over_http_gives_the_same_bytes(
    archive: Path, real_items: list[dict[str, Any]], cube: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = json.loads((archive / "sentinel-2-l2a/collection.json").read_text()) | {"links": []}
    monkeypatch.setattr(stac.catalog, "_PAGE", 4)  # three pages
    with file_server(archive) as files:
        items = to_server(real_items[::-1], archive, files.url)
        with stac_api(tmp_path, [collection], items) as api:
            fetched = fetch(request_of(api.url), tmp_path / "c.zarr", work=Work(2))
            assert [line for line in api.log() if "search" in line[0]] == [("POST /search", "200")] * 3
            assert chunks_of(tmp_path / "c.zarr") == chunks_of(cube)
            before, asked = everything(tmp_path), len(files.log)
            again = fetch(request_of(api.url), tmp_path / "c.zarr", work=Work(2))
            assert (again.frames, again.items, again.written) == (fetched.frames, 10, 0)
            after = everything(tmp_path)
            assert after == before  # the API's log is among these files: no request was sent
            assert len(files.log) == asked > 0


def test_an_item_collection_gives_the_same_bytes(
    real_items: list[dict[str, Any]], archive: Path, cube: Path, tmp_path: Path
) -> None:
    with file_server(archive) as files:
        items = to_server(real_items, archive, files.url)
        (tmp_path / "web").mkdir()
        (tmp_path / "web/items.json").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
        # Its own host may be named; the folder of the catalog is another one than the pixels'.
        with file_server(tmp_path / "web") as web:
            fetch(request_of(f"{web.url}/items.json"), tmp_path / "c.zarr", work=Work(2))
    assert chunks_of(tmp_path / "c.zarr") == chunks_of(cube)


# ---------------------------------------------------------------- a made-up archive: two tiles, three passes, 60 m


@pytest.fixture(scope="module", autouse=True)
def small_chunks() -> Iterator[None]:
    """Many units of work in small cubes: chunks of 128 px, two of them a slab for the real archive."""
    patch = pytest.MonkeyPatch()
    patch.setattr(store_module, "SLAB", 256)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def toy_cube(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("toy-cube") / "c.zarr"
    fetch(toy_request(toy), path)
    return path


def test_made_up_archive_comes_back_pixel_by_pixel(toy: Toy, toy_cube: Path) -> None:
    data, grid = opened(toy_cube), open_cube(toy_cube).grid
    assert all(20 < side < 100 for side in grid.shape)
    for band in KEYS:
        for number, day in enumerate(DAYS):
            np.testing.assert_array_equal(data[band][number], canvas(toy, band, day, grid), err_msg=f"{band} {day}")
    seen = np.logical_and.reduce([data[band].to_numpy() > 0 for band in S2_BANDS])
    np.testing.assert_array_equal(data["weight"], seen & ~np.isin(data["scl"], CLOUDED))
    np.testing.assert_array_equal(data["offset"], np.full((3, 5), -0.1))
    assert set(np.unique(data["scl"])) == set(range(12))


S2_BANDS = tuple(band.name for band in S2.bands)


def test_coarser_cubes_average(toy: Toy, tmp_path: Path) -> None:
    fetch(toy_request(toy, gsd=120), tmp_path / "c.zarr")
    data, grid = opened(tmp_path / "c.zarr"), open_cube(tmp_path / "c.zarr").grid
    fine = canvas(toy, "B04", DAYS[0], GeoBox((2 * grid.shape[0], 2 * grid.shape[1]), Affine(
        60, 0, grid.transform.c, 0, -60, grid.transform.f), grid.crs))  # fmt: skip
    cells = fine.reshape(grid.shape[0], 2, grid.shape[1], 2)
    alone = (cells > 0).all(axis=(1, 3))
    alone[:, 20:30] = False  # where tiles overlap, each is averaged by itself
    np.testing.assert_allclose(data["B04"][0].to_numpy()[alone], cells.mean(axis=(1, 3))[alone], atol=1)
    assert alone.sum() > 200


def test_files_that_do_not_state_their_nodata(toy: Toy, tmp_path: Path) -> None:
    """Zeros of such a file are not blended into their neighbours."""
    item = copy.deepcopy(toy.items[0])
    values = np.full((SIDE, SIDE), 1000, "uint16")
    values[:, 32:] = 0
    for key in ("blue", "green", "red", "nir", "swir16"):
        item["assets"][key]["href"] = str(tmp_path / "plain.tif")
    item["assets"]["scl"]["href"] = str(tmp_path / "scl.tif")
    write_tif(tmp_path / "plain.tif", values, left=ORIGIN[0], nodata=None)
    write_tif(tmp_path / "scl.tif", np.full((SIDE, SIDE), 4, "uint8"), left=ORIGIN[0])
    (tmp_path / "i.json").write_text(json.dumps({"type": "FeatureCollection", "features": [item]}))
    fetch(toy_request(tmp_path / "i.json", gsd=45), tmp_path / "c.zarr")
    assert set(np.unique(opened(tmp_path / "c.zarr")["B02"])) == {0, 1000}


def test_names_of_assets_may_differ_between_items(toy: Toy, toy_cube: Path, tmp_path: Path) -> None:
    items = copy.deepcopy(toy.items)
    for item in items[::3]:
        item["assets"] = {band if band != "scl" else "SCL": item["assets"][key] for band, key in KEYS.items()}
    fetch(toy_request(toy.saved(items, "named.json")), tmp_path / "c.zarr")
    assert chunks_of(tmp_path / "c.zarr") == chunks_of(toy_cube)


def test_items_without_what_is_needed_are_left_out_and_counted(toy: Toy, tmp_path: Path) -> None:
    items = copy.deepcopy(toy.items)
    del items[0]["assets"]["scl"]  # nothing says what is clear
    items[1]["assets"] = {"thumbnail": {"href": "https://example.com/x.png"}}
    fetched = fetch(toy_request(toy.saved(items, "lacking.json")), tmp_path / "c.zarr")
    assert fetched.frames == {"sentinel-2": 2}
    left = next(note for note in fetched.notes if "left out" in note)
    assert "1 without a band of sentinel-2" in left
    assert "1 without a layer that says what is clear" in left


def test_items_without_geometry_are_read(toy: Toy, toy_cube: Path, tmp_path: Path) -> None:
    items = copy.deepcopy(toy.items)
    for item in items:
        item["properties"] |= {"proj:shape": [SIDE, SIDE]}
        left = ORIGIN[0] + (item["id"][4:9] == "33TXM") * (SIDE - OVERLAP) * 60
        item["properties"] |= {"proj:transform": [60, 0, left, 0, -60, ORIGIN[1]]}
        item["geometry"] = None
        del item["bbox"]
    fetch(toy_request(toy.saved(items, "nowhere.json")), tmp_path / "c.zarr")
    assert chunks_of(tmp_path / "c.zarr").keys() == chunks_of(toy_cube).keys()
    np.testing.assert_array_equal(opened(tmp_path / "c.zarr")["B02"], opened(toy_cube)["B02"])


def test_collections_nested_by_year_are_searched(toy: Toy, toy_cube: Path, tmp_path: Path) -> None:
    """catalog -> collection -> 2023 -> item, with relative links and hrefs."""
    root = pystac.Catalog("root", "a catalog")
    extent = pystac.Extent(pystac.SpatialExtent([[-180, -90, 180, 90]]), pystac.TemporalExtent([[None, None]]))
    collection = pystac.Collection("sentinel-2-l2a", "some", extent)
    year = pystac.Catalog("2023", "by year")
    root.add_child(collection)
    collection.add_child(year)
    for item in toy.items:
        year.add_item(pystac.Item.from_dict(copy.deepcopy(item)))
    (tmp_path / "pixels").symlink_to(toy.folder)
    for item in year.get_items():
        for asset in item.assets.values():
            asset.href = asset.href.replace(str(toy.folder), str(tmp_path / "pixels"))
    root.normalize_and_save(str(tmp_path), pystac.CatalogType.SELF_CONTAINED)
    with pytest.raises(BadInput, match="outside of it"):  # the link leads out of the folder
        fetch(toy_request(tmp_path / "catalog.json"), tmp_path / "c.zarr")
    (tmp_path / "pixels").unlink()
    toy.folder.rename(tmp_path / "pixels")
    try:
        fetch(toy_request(tmp_path / "catalog.json"), tmp_path / "c.zarr")
    finally:
        (tmp_path / "pixels").rename(toy.folder)
    assert chunks_of(tmp_path / "c.zarr") == chunks_of(toy_cube)


# ---------------------------------------------------------------- again, another, overwrite


def test_finished_fetch_writes_nothing_and_asks_nothing(toy: Toy, tmp_path: Path) -> None:
    with file_server(toy.folder) as files:
        (toy.folder / "web.json").write_text(json.dumps({"type": "FeatureCollection", "features": toy.over(files.url)}))
        request = toy_request(f"{files.url}/web.json")
        fetch(request, tmp_path / "c.zarr")
        before, asked = everything(tmp_path), len(files.log)
        again = fetch(request, tmp_path / "c.zarr", work=Work(1))
        assert (again.written, again.frames, again.items) == (0, {"sentinel-2": 3}, 6)
        assert everything(tmp_path) == before
        assert len(files.log) == asked > 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"bbox": BBox(TOY_BOX.west, TOY_BOX.south, TOY_BOX.east, TOY_BOX.north + 1e-9)}, "bbox"),
        ({"period": Period.parse("2023-08-01:2023-08-14")}, "period"),
        ({"gsd": 120}, "gsd"),
        ({"sources": ()}, "sources"),
        ({"resampling": "nearest"}, "resampling"),
        ({"crs": "EPSG:32634"}, "crs"),
    ],
)
def test_another_request_is_refused_and_touches_nothing(
    toy: Toy, toy_cube: Path, change: dict[str, Any], named: str
) -> None:
    before = everything(toy_cube.parent)
    with pytest.raises(BadInput, match=f"another request: {named}: .* -> ") as refused:
        fetch(toy_request(toy, **change), toy_cube)
    assert "--overwrite" in refused.value.hint
    assert everything(toy_cube.parent) == before


def test_the_same_request_typed_in_another_way(toy: Toy, toy_cube: Path) -> None:
    assert fetch(toy_request(toy, gsd=60.0, period=Period.parse("2023-08-01:2023-08-31")), toy_cube).written == 0


def test_overwrite_replaces(toy: Toy, tmp_path: Path) -> None:
    fetch(toy_request(toy, gsd=120), tmp_path / "c.zarr")
    fetch(toy_request(toy, gsd=120), tmp_path / "other.zarr")
    fetch(toy_request(toy), tmp_path / "c.zarr", overwrite=True)
    assert open_cube(tmp_path / "c.zarr").grid.resolution.x == 60
    assert fetch(toy_request(toy), tmp_path / "c.zarr").written == 0
    fetch(toy_request(toy, gsd=120), tmp_path / "c.zarr", overwrite=True)
    assert chunks_of(tmp_path / "c.zarr") == chunks_of(tmp_path / "other.zarr")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "c.zarr", "c.zarr.build", "other.zarr", "other.zarr.build"]  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "c.zarr.build").iterdir()) == ["ledger.jsonl", "lock", "plan.json"]


# ---------------------------------------------------------------- kill -9, two writers

CHILD = """
import sys, time, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import aefcli.cube.write as store
from aefcli.cube import Request, fetch
from aefcli.extent import BBox, Period
store.CHUNK, store.SLAB = (32, 32, 32), 32
write = store.write_slab
store.write_slab = lambda *args: (time.sleep(0.2), write(*args))[1]
catalog, box, gsd, out, overwrite = sys.argv[1:]
box = BBox(*map(float, box.split("/")))
request = Request(catalog, box, Period.parse("2023-08"), ("sentinel-2",), float(gsd))
fetch(request, Path(out), overwrite=overwrite == "1")
"""


@pytest.fixture
def tiny_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the child has them, so that a made-up cube is dozens of units."""
    monkeypatch.setattr(store_module, "CHUNK", (32, 32, 32))
    monkeypatch.setattr(store_module, "SLAB", 32)


def child(toy: Toy, out: Path, *, gsd: int = 60, overwrite: bool = False) -> subprocess.Popen[bytes]:
    """A slow fetch in a process of its own."""
    box = "/".join(map(repr, (TOY_BOX.west, TOY_BOX.south, TOY_BOX.east, TOY_BOX.north)))
    arguments = [str(toy.catalog), box, str(gsd), str(out), str(int(overwrite))]
    return subprocess.Popen([sys.executable, "-c", CHILD, *arguments])


def await_lines(ledger: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(1500):
        if ledger.exists() and ledger.read_bytes().count(b"\n") >= count:
            return
        assert process.poll() is None, "the child ended before it was killed"
        time.sleep(0.02)
    raise AssertionError("no line in the ledger in 30 s")


def kill(process: subprocess.Popen[bytes]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL


@pytest.mark.usefixtures("tiny_chunks")
def test_overwrite_killed_halfway_leaves_the_old_store_whole(toy: Toy, tmp_path: Path) -> None:
    out = tmp_path / "c.zarr"
    fetch(toy_request(toy, gsd=120), out)
    before = everything(out)
    process = child(toy, out, overwrite=True)
    await_lines(tmp_path / "c.zarr.build/next/ledger.jsonl", 2, process)
    kill(process)
    assert everything(out) == before
    assert open_cube(out).grid.resolution.x == 120
    assert fetch(toy_request(toy, gsd=120), out).written == 0  # still the finished one
    done = fetch(toy_request(toy), out, overwrite=True)
    assert open_cube(out).grid.resolution.x == 60
    units = len(list((out / "sentinel-2/B02/c/0").glob("*/*")))
    assert done.written <= units - 2  # it went on with what was built
    fetch(toy_request(toy), tmp_path / "whole.zarr")
    assert chunks_of(out) == chunks_of(tmp_path / "whole.zarr")


@pytest.mark.usefixtures("tiny_chunks")
def test_a_second_writer_is_refused_at_once(toy: Toy, tmp_path: Path) -> None:
    process = child(toy, tmp_path / "c.zarr")
    try:
        await_lines(tmp_path / "c.zarr.build/ledger.jsonl", 1, process)
        for overwrite in (False, True):
            began = time.monotonic()
            with pytest.raises(Locked):
                fetch(toy_request(toy), tmp_path / "c.zarr", overwrite=overwrite)
            assert time.monotonic() - began < 1
        assert process.wait(60) == 0  # the first was not disturbed
    finally:
        process.kill()
    assert fetch(toy_request(toy), tmp_path / "c.zarr").written == 0


# ---------------------------------------------------------------- what is refused


def one_line(error: AefError) -> str:
    assert str(error).strip()
    assert "\n" not in str(error)
    return str(error)


def refused(request: Request, folder: Path) -> str:
    """The line of a BadInput that made nothing."""
    place = folder / "place"
    place.mkdir(exist_ok=True)
    with pytest.raises(BadInput) as caught:
        fetch(request, place / "c.zarr")
    assert list(place.iterdir()) == []
    return one_line(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"hello", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[1, 2]", "no object"),
        (b"{}", "not STAC"),
        (b'{"type": "Feature"}', "not STAC"),
        (b'{"type": "Catalog"}', "not valid STAC"),
        (b'{"type": "FeatureCollection"}', "not give sentinel-2"),
        (
            b'{"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": null, "properties": {}}]}',
            "STAC",
        ),
        (b'{"type": "FeatureCollection", "features": [17]}', "not valid STAC"),
        (b'{"type": "FeatureCollection", "features": []}', "sentinel-2"),
    ],
)
def test_a_file_that_is_no_catalog(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    assert says in refused(toy_request(tmp_path / "x.json"), tmp_path)


def test_a_catalog_that_is_not_there(tmp_path: Path) -> None:
    assert "known catalogs: earth-search" in refused(toy_request(tmp_path / "none.json"), tmp_path)
    assert "earth-search" in refused(toy_request("earthsearch"), tmp_path)
    assert refused(toy_request(tmp_path), tmp_path)  # a folder
    with file_server(tmp_path) as files:
        assert "404" in refused(toy_request(f"{files.url}/none.json"), tmp_path)
        (tmp_path / "page.html").write_text("<html>hello</html>")
        assert "not JSON" in refused(toy_request(f"{files.url}/page.html"), tmp_path)
    line = refused(toy_request("https://someone:s3cret@example.com/v1"), tmp_path)
    assert "s3cret" not in line


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sources": ("sentinel2",)}, "did you mean sentinel-2?"),
        ({"sources": ("landsat",)}, "does not give landsat"),
        ({"period": Period.parse("2023-09")}, "0 items of sentinel-2-l2a in .* 2023-09-01:2023-09-30"),
        ({"bbox": BBox(100, 10, 100.1, 10.1)}, "0 items"),
        ({"gsd": 0}, "--gsd 0 "),
        ({"gsd": math.nan}, "--gsd nan"),
        ({"gsd": math.inf}, "--gsd inf"),
        ({"gsd": 0.0001}, "degrees"),
        ({"crs": "EPSG:4326"}, "not in metres"),
        ({"crs": "EPSG:2263"}, "not in metres"),  # feet
        ({"crs": "nonsense"}, "no coordinate reference system"),
        ({"crs": "EPSG:32633", "bbox": BBox(105, -10, 106, 10)}, "does not lie in"),
        ({"bbox": BBox(0, 89, 10, 89.9)}, "--crs"),
    ],
)
def test_bad_input_makes_nothing(toy: Toy, tmp_path: Path, change: dict[str, Any], says: str) -> None:
    import re

    assert re.search(says, refused(toy_request(toy, **change), tmp_path))


def test_places_that_are_not_ours_are_left_alone(toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/thesis.txt").write_text("mine")
    before = everything(tmp_path)
    for name in ("file", "folder"):
        for overwrite in (False, True):
            with pytest.raises(BadInput, match="not written by aef"):
                fetch(toy_request(toy), tmp_path / name, overwrite=overwrite)
    assert everything(tmp_path) == before
    with pytest.raises(AefError) as caught:
        fetch(toy_request(toy), tmp_path / "file/c.zarr")  # below a file
    assert caught.value.code == 6
    with pytest.raises(BadInput, match="no name"):
        fetch(toy_request(toy), Path())


# ---------------------------------------------------------------- hostile catalogs


@pytest.fixture
def listener() -> Iterator[tuple[int, list[int]]]:
    """A port of this machine that counts who connects."""
    import threading

    seen: list[int] = []
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(16)
        server.settimeout(0.05)
        stop = threading.Event()

        def count() -> None:
            while not stop.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                seen.append(1)
                connection.close()

        thread = threading.Thread(target=count, daemon=True)
        thread.start()
        yield server.getsockname()[1], seen
        stop.set()
        thread.join()


HOSTILE = [
    "file:///etc/passwd",
    "/etc/passwd",
    "../../x",
    "../x.tif",
    "http://127.0.0.1:{port}/x.tif",
    "https://127.0.0.1:{port}/x.tif",
    "https://localhost:{port}/x.tif",
    "https://LOCALHOST:{port}/x.tif",
    "https://localhost.:{port}/x.tif",
    "https://127.1:{port}/x.tif",
    "https://2130706433:{port}/x.tif",
    "https://0x7f000001:{port}/x.tif",
    "https://0177.0.0.1:{port}/x.tif",
    "https://[::1]:{port}/x.tif",
    "https://[::ffff:127.0.0.1]:{port}/x.tif",
    "https://127%2e0.0.1:{port}/x.tif",
    "https://①②⑦.0.0.1:{port}/x.tif",
    "https://0.0.0.0:{port}/x.tif",
    "https://10.0.0.1/x.tif",
    "https://192.168.1.1/x.tif",
    "https://169.254.169.254/latest/meta-data",
    "https://metadata.google.internal/x",
    "https://router/x.tif",
    "https://[/x.tif",
    "http://example.com/x.tif",
    "https://user:pass@example.com/x.tif",
    "https://example.com@127.0.0.1:{port}/x.tif",
    "https://example.com/x.tif\r\nHost: evil",
    "ftp://example.com/x.tif",
    "s3://bucket/x.tif",
    "/vsicurl/http://127.0.0.1:{port}/x.tif",
    "/vsizip//vsicurl/http://127.0.0.1:{port}/x.zip/x.tif",
    "/vsimem/x.tif",
    "zip+https://127.0.0.1:{port}/x.zip!x.tif",
    "zip:///etc/x.zip!x.tif",
    "data:text/plain,hello",
]


@pytest.mark.parametrize("href", HOSTILE)
def test_hostile_hrefs_are_refused_unopened(
    toy: Toy, tmp_path: Path, href: str, listener: tuple[int, list[int]]
) -> None:
    port, seen = listener
    item = copy.deepcopy(toy.items[0])
    item["assets"]["red"]["href"] = href.format(port=port)
    (tmp_path / "x").mkdir()
    (tmp_path / "x/i.json").write_text(json.dumps({"type": "FeatureCollection", "features": [item]}))
    for asset in item["assets"].values():
        asset["href"] = asset["href"].replace(str(toy.folder), str(tmp_path / "x"))
    (tmp_path / "x/i.json").write_text(json.dumps({"type": "FeatureCollection", "features": [item]}))
    line = refused(toy_request(tmp_path / "x/i.json"), tmp_path)
    assert "the catalog names" in line or "Invalid IPv6" in line
    assert seen == []


@pytest.mark.parametrize(
    "href", ["https://example.com/x.tif", "https://8.8.8.8/x.tif", "https://a.b.example.org./x.tif"]
)
def test_ordinary_hrefs_pass(toy: Toy, href: str) -> None:
    catalog = stac.open_catalog(str(toy.catalog))
    assert catalog.vet(href) == href
    assert catalog.vet(str(toy.folder / "x y/vsi.tif"))


@pytest.mark.parametrize(
    "href", ["file:///etc/passwd", "/etc/passwd", "../outside.json", "http://127.0.0.1:{port}/c.json"]
)
def test_links_of_a_static_catalog_stay_inside(tmp_path: Path, href: str, listener: tuple[int, list[int]]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "outside.json").write_text("{}")
    links = [{"rel": "child", "href": href.format(port=listener[0])}]
    catalog = {"type": "Catalog", "id": "x", "stac_version": "1.0.0", "description": "x", "links": links}
    (tmp_path / "in/catalog.json").write_text(json.dumps(catalog))
    assert "the catalog names" in refused(toy_request(tmp_path / "in/catalog.json"), tmp_path)
    assert listener[1] == []


def test_a_virtual_raster_named_tif_is_not_followed(toy: Toy, tmp_path: Path) -> None:
    with file_server(toy.folder) as files:
        target = f"/vsicurl/{files.url}/{toy.items[0]['id']}/B04.tif"
        recipe = (
            f'<VRTDataset rasterXSize="{SIDE}" rasterYSize="{SIDE}"><SRS>EPSG:32633</SRS>'
            f"<GeoTransform>{ORIGIN[0]},60,0,{ORIGIN[1]},0,-60</GeoTransform>"
            f'<VRTRasterBand dataType="UInt16" band="1"><SimpleSource><SourceFilename>{target}</SourceFilename>'
            f"<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
        )
        (toy.folder / "recipe.tif").write_text(recipe)
        with rasterio.open(toy.folder / "recipe.tif") as file:  # rasterio itself would
            assert file.driver == "VRT"
        asked = len(files.log)
        item = copy.deepcopy(toy.items[0])
        item["assets"]["red"]["href"] = str(toy.folder / "recipe.tif")
        with pytest.raises(RemoteFailed, match=rf"red of {item['id']}: .*recipe.tif"):
            fetch(toy_request(toy.saved([item], "recipe.json")), tmp_path / "c.zarr")
        assert len(files.log) == asked


def test_a_file_without_georeference_is_refused(toy: Toy, tmp_path: Path) -> None:
    item = copy.deepcopy(toy.items[0])
    item["assets"]["red"]["href"] = str(toy.folder / "bare.tif")
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        write_tif(toy.folder / "bare.tif", np.ones((SIDE, SIDE), "uint16"), left=0, crs=None, transform=None)
    with pytest.raises(RemoteFailed, match="georeference"):
        fetch(toy_request(toy.saved([item], "bare.json")), tmp_path / "c.zarr")


# ---------------------------------------------------------------- archives that fail


def web_items(toy: Toy, files: Files) -> str:
    (toy.folder / "web.json").write_text(json.dumps({"type": "FeatureCollection", "features": toy.over(files.url)}))
    return f"{files.url}/web.json"


def test_a_missing_file_names_its_item_and_can_be_resumed(toy: Toy, toy_cube: Path, tmp_path: Path) -> None:
    lost = toy.items[3]["id"]
    with file_server(toy.folder) as files:
        request = toy_request(web_items(toy, files))
        files.gone.add(f"{lost}/B08.tif")
        with pytest.raises(RemoteFailed) as caught:
            fetch(request, tmp_path / "c.zarr")
        assert caught.value.code == 3
        line = one_line(caught.value)
        assert f"nir of {lost}: " in line
        assert "404" in line
        assert not any(item["id"] in line for item in toy.items if item["id"] != lost)
        with pytest.raises(BadInput, match="not finished"):
            open_cube(tmp_path / "c.zarr")
        files.gone.clear()
        assert fetch(request, tmp_path / "c.zarr").written == 1
    assert chunks_of(tmp_path / "c.zarr") == chunks_of(toy_cube)


def test_an_api_whose_next_leads_to_itself_ends(toy: Toy, tmp_path: Path) -> None:
    """A page that repeats brings nothing new. Served as files: an API's landing page and searches by GET."""
    with file_server(tmp_path) as files:
        kinds = ("core", "item-search", "collections", "ogcapi-features")
        conforms = [f"https://api.stacspec.org/v1.0.0/{kind}" for kind in kinds]
        links = [
            {"rel": "self", "href": f"{files.url}/api.json"},
            {"rel": "root", "href": f"{files.url}/api.json"},
            {"rel": "search", "href": f"{files.url}/search", "method": "GET", "type": "application/geo+json"},
            {"rel": "data", "href": f"{files.url}/collections"},
        ]
        landing = {"type": "Catalog", "id": "x", "stac_version": "1.0.0", "description": "x"}
        (tmp_path / "api.json").write_text(json.dumps({**landing, "conformsTo": conforms, "links": links}))
        page = {"type": "FeatureCollection", "features": toy.items[:2]}
        (tmp_path / "search").write_text(
            json.dumps({**page, "links": [{"rel": "next", "href": f"{files.url}/search"}]})
        )
        found = stac.open_catalog(f"{files.url}/api.json").search("sentinel-2-l2a", TOY_BOX, AUGUST)
        assert sorted(item.id for item in found) == sorted(item["id"] for item in toy.items[:2])
        assert sum("search" in line for line in files.log) == 2
        (tmp_path / "search").write_text(json.dumps({**page, "links": [{"rel": "next", "href": "file:///etc/passwd"}]}))
        with pytest.raises(BadInput, match="the catalog names"):
            stac.open_catalog(f"{files.url}/api.json").search("sentinel-2-l2a", TOY_BOX, AUGUST)


def test_an_item_in_the_last_second_of_the_period_is_found(toy: Toy, tmp_path: Path) -> None:
    items = copy.deepcopy(toy.items[:2])
    items[0]["properties"]["datetime"] = "2023-08-31T23:59:59.700Z"
    items[1]["properties"]["datetime"] = "2023-09-01T00:00:00Z"
    extent = {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}}
    collection = {"type": "Collection", "id": "sentinel-2-l2a", "stac_version": "1.0.0", "description": "x",
                  "license": "other", "extent": extent, "links": []}  # fmt: skip
    with stac_api(tmp_path, [collection], items) as api:
        found = stac.open_catalog(api.url).search("sentinel-2-l2a", TOY_BOX, AUGUST)
    assert [item.id for item in found] == [items[0]["id"]]


# ---------------------------------------------------------------- the xarray door


def dataset(
    bands: tuple[str, ...], *, gsd: float, shape: tuple[int, int] = (60, 90), dtype: str = "uint16"
) -> xr.Dataset:
    """Two frames of random numbers, the later one first."""
    from odc.geo.xr import xr_coords

    grid = GeoBox(shape, Affine(gsd, 0, 500010, 0, -gsd, 5100000), "EPSG:32633")
    rng = np.random.default_rng(1)
    times = np.array(["2023-08-15T10:00:00.250", "2023-08-10T10:00:00"], "datetime64[ns]")
    values = {name: (("time", "y", "x"), rng.integers(1, 9000, (2, *shape)).astype(dtype)) for name in bands}
    return xr.Dataset(values, coords={**xr_coords(grid), "time": times})


def test_write_cube_round_trip_with_a_coarser_source(tmp_path: Path) -> None:
    fine = dataset(BANDS, gsd=10)
    fine["B02"][1, :5] = 0
    fine["scl"] = ("time", "y", "x"), np.random.default_rng(2).integers(0, 12, (2, 60, 90)).astype("uint8")
    coarse = dataset(("B2", "B10"), gsd=30, shape=(20, 30))
    coarse["weight"] = coarse["B2"] > 4000
    path = write_cube(tmp_path / "c.zarr", {"landsat": coarse, "sentinel-2": fine}, AUGUST)
    cube = open_cube(path)
    assert cube.shape == (60, 90)
    assert (cube.grid.transform.c, cube.grid.transform.f, cube.grid.resolution.x) == (500010, 5100000, 10)
    assert cube.period == AUGUST
    s2, landsat = cube.sources["sentinel-2"], cube.sources["landsat"]
    assert (s2.bands, s2.factor, landsat.bands, landsat.factor) == (BANDS, 1, ("B2", "B10"), 3)
    assert list(np.diff(s2.times)) == [5 * 86_400_000 + 250]  # sorted
    ordered, tile = fine.sortby("time"), Tile(7, 11, 47, 83)
    read, weight = s2.read(tile, np.array([0, 1]))
    np.testing.assert_array_equal(read, np.stack([ordered[name][:, 7:47, 11:83] for name in BANDS], axis=1))
    clear = ~np.isin(ordered["scl"], CLOUDED) & (ordered["B02"].to_numpy() > 0)
    np.testing.assert_array_equal(weight, clear[:, 7:47, 11:83])
    assert (weight[0] == 0).any()
    assert (weight[0] == 1).any()
    read, weight = landsat.read(tile, np.array([1]))
    later = coarse.sortby("time").isel(time=1)
    repeated = np.repeat(np.repeat(later["B10"].to_numpy(), 3, axis=0), 3, axis=1)
    np.testing.assert_array_equal(read[0, 1], repeated[7:47, 11:83])
    clear = np.repeat(np.repeat(later["weight"].to_numpy(), 3, axis=0), 3, axis=1)
    np.testing.assert_array_equal(weight[0], clear[7:47, 11:83])
    np.testing.assert_allclose(landsat.scale[0], [2.75e-5, 0.00341802])
    np.testing.assert_allclose(landsat.offset[0], [-0.2, 149.0])
    before = everything(tmp_path)
    write_cube(path, {"landsat": coarse, "sentinel-2": fine}, AUGUST)
    assert everything(tmp_path) == before
    coarse["B2"][0, 0, 0] += 1
    with pytest.raises(BadInput, match="another request"):
        write_cube(path, {"landsat": coarse, "sentinel-2": fine}, AUGUST)


def test_a_cube_in_memory_reads_as_the_one_on_disk(tmp_path: Path) -> None:
    fine = dataset(BANDS, gsd=10)
    fine["scl"] = ("time", "y", "x"), np.random.default_rng(2).integers(0, 12, (2, 60, 90)).astype("uint8")
    radar = dataset(("VV",), gsd=20, shape=(30, 45), dtype="float32")
    radar["orbit"] = "time", ["ascending", "descending"]
    data = {"sentinel-2": fine, "sentinel-1": radar}
    held, stored = cube_of(data, AUGUST), open_cube(write_cube(tmp_path / "c.zarr", data, AUGUST))
    assert (held.grid, held.period, held.key) == (stored.grid, stored.period, stored.key)
    for name, source in stored.sources.items():
        own = held.sources[name]
        assert (own.bands, own.factor, own.source) == (source.bands, source.factor, source.source)
        for key in ("times", "delivered", "scale", "offset", "meta"):
            np.testing.assert_array_equal(getattr(own, key), getattr(source, key))
        window, frames = Tile(7, 11, 47, 83), np.array([1, 0])
        for mine, theirs in zip(own.read(window, frames), source.read(window, frames), strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert held.sources["sentinel-1"].meta.any()


def test_write_cube_takes_floats_and_scales_by_band(tmp_path: Path) -> None:
    data = dataset(("B03", "B02"), gsd=10).astype("float64") + 0.25
    data["B02"][0, 0, 0] = np.nan
    data = data.assign_coords(band=["B03", "B02"]).assign(scale=("band", [3.0, 2.0]))
    cube = open_cube(write_cube(tmp_path / "c.zarr", {"sentinel-2": data}, AUGUST))
    read, weight = cube.sources["sentinel-2"].read(Tile(0, 0, 60, 90), np.array([1]))
    assert read[0, 0, 0, 0] == 0
    assert weight[0, 0, 0] == 0
    assert weight.sum() == 60 * 90 - 1
    np.testing.assert_array_equal(read[0, 1], np.rint(data["B03"][0]))
    np.testing.assert_array_equal(cube.sources["sentinel-2"].scale[0], [2.0, 3.0])


def test_write_cube_keeps_nan_of_radar(tmp_path: Path) -> None:
    data = dataset(("VV",), gsd=10, dtype="float32")
    data["VV"][0, :3] = np.nan
    data["VV"][0, 3:6] = -32768
    cube = open_cube(write_cube(tmp_path / "c.zarr", {"sentinel-1": data}, AUGUST))
    _, weight = cube.sources["sentinel-1"].read(Tile(0, 0, 60, 90), np.array([0, 1]))
    assert not weight[1, :6].any()
    assert weight[1, 6:].all()
    assert weight[0].all()


def test_write_cube_refuses_what_does_not_fit(tmp_path: Path) -> None:
    good = dataset(BANDS, gsd=10)
    bare = good.drop_vars("spatial_ref").assign_coords(x=good.x.to_numpy(), y=good.y.to_numpy())
    shifted = dataset(("B2",), gsd=30, shape=(20, 30)).assign_coords(x=lambda data: data.x + 10)
    cases = [
        ({"sentinel-2": bare}, "no CRS"),
        ({"sentinel-2": good.isel(y=slice(None, None, -1))}, "north up"),
        ({"sentinel2": good}, "did you mean sentinel-2?"),
        ({}, "at least one source"),
        ({"landsat": good}, "none of its bands"),
        ({"sentinel-2": good.isel(time=0)}, "lacks the dimension time"),
        ({"sentinel-2": good.isel(time=slice(0))}, "empty"),
        ({"sentinel-2": good, "landsat": dataset(("B2",), gsd=25, shape=(24, 36))}, "whole cells"),
        ({"sentinel-2": good, "landsat": dataset(("B2",), gsd=30, shape=(19, 30))}, "whole cells"),
        ({"sentinel-2": good, "landsat": shifted}, "corner"),
        ({"sentinel-2": good.astype("float64") * 10}, "uint16 cannot"),
        ({"sentinel-2": good.astype("int32") - 9000}, "uint16 cannot"),
        ({"sentinel-2": good.assign(scale=("band", [1.0, 2.0]))}, "one per band"),
    ]
    for datasets, says in cases:
        with pytest.raises(BadInput) as caught:
            write_cube(tmp_path / "c.zarr", datasets, AUGUST)
        assert says in one_line(caught.value)
        assert list(tmp_path.iterdir()) == []
