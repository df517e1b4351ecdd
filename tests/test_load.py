"""Loading: both loaders give the same bytes, and take the same for nodata."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio
from affine import Affine
from archives import DAYS, ORIGIN, OVERLAP, SIDE, Toy, canvas, write_tif
from faults import Faults, fault_server
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.warp import reproject

from aefcli.cube import frames_of
from aefcli.cube.frames import Frame
from aefcli.cube.load import Loading, load
from aefcli.errors import BadInput, RemoteFailed
from aefcli.sources import SOURCES

# rasterio says it of its own scratch rasters when several threads warp; `write` hides it too.
pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")

S2 = SOURCES["sentinel-2"]
BOTH = ("odc", "stackstac")
GRID = GeoBox((48, 96), Affine(60, 0, ORIGIN[0] + 300, 0, -60, ORIGIN[1] - 300), "EPSG:32633")
Change = Callable[[dict[str, Any]], None]


def frames_from(items: list[dict[str, Any]], change: Change = lambda item: None) -> list[Frame]:
    items = copy.deepcopy(items)
    for item in items:
        change(item)
    return frames_of([pystac.Item.from_dict(item) for item in items], S2)


def both(frames: list[Frame], key: str, how: str, grid: GeoBox, dtype: str = "uint16", nodata: float = 0) -> np.ndarray:
    """What the two loaders agree on, to the byte."""
    ours, theirs = (load(frames, key, dtype, nodata, how, grid, Loading(name)) for name in BOTH)
    assert ours[0].dtype == theirs[0].dtype == np.dtype(dtype)
    np.testing.assert_array_equal(ours[0].view("uint8"), theirs[0].view("uint8"))
    assert ours[1] == theirs[1] == []
    return ours[0]


@pytest.fixture(scope="module")
def real_frames(real: Path) -> list[Frame]:
    items = []
    for path in sorted((real / "earth-search-33T").glob("sentinel-2-l2a/*/*.json")):
        item = json.loads(path.read_text()) | {"links": []}
        for asset in item["assets"].values():
            asset["href"] = str(path.parent / asset["href"])
        items.append(item)
    return frames_from(items)


@pytest.mark.parametrize("how", ["nearest", "bilinear"])
@pytest.mark.parametrize("gsd", [60, 120, 480])  # twice as fine as the files, the same, from their overviews
def test_loaders_agree_on_the_real_archive(real_frames: list[Frame], gsd: int, how: str) -> None:
    side = 108_000 // gsd  # about all of them, where both tiles overlap
    grid = GeoBox((side // 3, side), Affine(gsd, 0, 499980, 0, -gsd, 5100000 + 480 * 40), "EPSG:32633")
    for key, dtype in (("red", "uint16"), ("scl", "uint8")):
        read = both(real_frames, key, how, grid, dtype)
        assert (read > 0).any(axis=(1, 2)).all()
    assert (read == 0).any()  # the edge of the swath


def test_loaders_agree_where_they_average(real_frames: list[Frame]) -> None:
    for gsd in (240, 360, 960):
        grid = GeoBox((60, 60), Affine(gsd, 0, 499980 + 960 * 10, 0, -gsd, 5200020 - 960 * 30), "EPSG:32633")
        assert both(real_frames, "red", "average", grid).any()


@pytest.mark.parametrize("how", ["nearest", "bilinear", "average"])
def test_loaders_agree_in_another_zone(real_frames: list[Frame], how: str) -> None:
    corner = (60_000, 5_130_000)  # the archive's middle, in the zone to the east
    grid = GeoBox((150, 150), Affine(120, 0, corner[0], 0, -120, corner[1]), "EPSG:32634")
    assert both(real_frames, "red", how, grid).any()


@pytest.mark.parametrize("how", ["nearest", "bilinear", "average"])
@pytest.mark.parametrize(
    ("gsd", "epsg", "corner"),
    [(60, 32633, (499980, 5119200)), (480, 32633, (499980, 5119200)), (120, 32634, (60_000, 5_130_000))],
)
def test_both_read_as_odc_stac_does_with_its_own_reader(
    real_frames: list[Frame], gsd: int, epsg: int, corner: tuple[float, float], how: str
) -> None:
    import odc.stac

    grid = GeoBox((150, 300), Affine(gsd, 0, corner[0], 0, -gsd, corner[1]), f"EPSG:{epsg}")
    for number, read in enumerate(both(real_frames, "red", how, grid)):
        theirs = odc.stac.load(
            real_frames[number].items, bands=["red"], geobox=grid, resampling=how, dtype="uint16", nodata=0,
            groupby=lambda item, parsed, index: 0, preserve_original_order=True,
        )["red"]  # fmt: skip
        np.testing.assert_array_equal(read, theirs[0])


@pytest.mark.parametrize("how", ["nearest", "bilinear"])
def test_both_read_as_stackstac_does_with_its_own_reader(real_frames: list[Frame], how: str) -> None:
    import stackstac
    from rasterio.enums import Resampling

    grid = GeoBox((300, 600), Affine(60, 0, 499980, 0, -60, 5119200), "EPSG:32633")
    for number, read in enumerate(both(real_frames, "red", how, grid)):
        stack = stackstac.stack(
            [item.to_dict() for item in real_frames[number].items[::-1]], assets=["red"], epsg=32633,
            bounds=grid.boundingbox.bbox, resolution=60, resampling=Resampling[how], rescale=False, sortby_date=False,
            dtype=np.dtype("uint16"), fill_value=np.uint16(0), xy_coords="center", errors_as_nodata=(),
        )  # fmt: skip
        theirs = stackstac.mosaic(stack, nodata=0)[0].compute(scheduler="threads")  # the last is in front
        np.testing.assert_array_equal(read, theirs)
        np.testing.assert_array_equal(theirs["x"], 499980 + 60 * (np.arange(600) + 0.5))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("how", ["nearest", "bilinear"])
@pytest.mark.parametrize("stated", [True, False])
def test_loaders_agree_on_kinds_of_numbers_and_nodata(
    tmp_path: Path, dtype: str, how: str, stated: bool, toy: Toy
) -> None:
    """Two tiles that overlap, each with a hole, off the grid by a third of a cell."""
    nodata = {"uint8": 255, "uint16": 0, "float32": -32768.0}[dtype]
    rng = np.random.default_rng(0)
    items = copy.deepcopy(toy.items[:2])
    for tile, item in enumerate(items):
        values = rng.integers(1, 200, (SIDE, SIDE)).astype(dtype)
        values[10:30, 20:60] = nodata
        left = ORIGIN[0] + tile * (SIDE - OVERLAP) * 60 + 20
        path = tmp_path / f"{tile}.tif"
        write_tif(path, values, left=left, nodata=nodata if stated else None)
        item["assets"]["red"]["href"] = str(path)
    read = both(frames_from(items), "red", how, GRID, dtype, nodata)
    assert (read == nodata).any()
    assert len(np.unique(read)) > 50
    assert ((read >= 1) & (read < 200) | (read == nodata)).all()  # nothing is blended with nodata


@pytest.mark.parametrize(("dtype", "nodata"), [("uint8", 255), ("uint8", 100), ("uint16", 0), ("float32", 0)])
@pytest.mark.parametrize("how", ["nearest", "bilinear"])
@pytest.mark.parametrize("times", [2, 3, 4, 5])
def test_windows_on_a_finer_grid_are_parts_of_one_warp(
    tmp_path: Path, toy: Toy, times: int, how: str, dtype: str, nodata: int
) -> None:
    """Cells that are whole numbers of the grid's are not warped, but enlarged while they are read."""
    rng = np.random.default_rng(times)
    values = rng.integers(1, {"uint8": 255}.get(dtype, 65_536), (SIDE, SIDE)).astype(dtype)
    values[values == nodata] += 1
    values[-30:-20, 20:30] = nodata  # beside which the rest alone counts
    if times in (2, 4):  # in thirds and fifths a warp rounds a tie as its window lies
        values[:, :20][rng.random((SIDE, 20)) < 0.4] = nodata
    write_tif(tmp_path / "a.tif", values, left=ORIGIN[0], nodata=nodata)
    item = copy.deepcopy(toy.items[0])
    item["assets"]["red"]["href"] = str(tmp_path / "a.tif")
    frames, side = frames_from([item]), SIDE * times + 40
    fine = Affine(60 / times, 0, ORIGIN[0] - 20 * 60 / times, 0, -60 / times, ORIGIN[1] + 20 * 60 / times)
    whole = np.full((side, side), nodata, dtype)
    with rasterio.open(tmp_path / "a.tif") as file:
        reproject(
            rasterio.band(file, 1),
            whole,
            dst_transform=fine,
            dst_crs=file.crs,
            dst_nodata=nodata,
            resampling=Resampling[how],
        )
    for _ in range(12):
        top, left = (int(number) for number in rng.integers(0, side - 50, 2))
        rows, columns = slice(top, top + 50), slice(left, left + 47)
        grid = GeoBox((side, side), fine, "EPSG:32633")[rows, columns]
        read, _ = load(frames, "red", dtype, nodata, how, grid, Loading())
        np.testing.assert_allclose(read[0], whole[rows, columns], rtol=1e-6 if dtype == "float32" else 0)


def test_loaders_agree_on_nan(tmp_path: Path, toy: Toy) -> None:
    item = copy.deepcopy(toy.items[0])
    values = np.random.default_rng(0).random((SIDE, SIDE)).astype("float32")
    values[:20] = np.nan
    write_tif(tmp_path / "a.tif", values, left=ORIGIN[0], nodata=np.nan)
    item["assets"]["red"]["href"] = str(tmp_path / "a.tif")
    read = both(frames_from([item]), "red", "nearest", GRID, "float32", np.nan)
    np.testing.assert_array_equal(read[0, 15:, :59], values[20 : 5 + 48, 5:64])
    assert np.isnan(read[0, :15]).all()


def test_both_give_the_pixels_of_the_files_where_tiles_overlap(toy: Toy) -> None:
    read = both(frames_from(toy.items), "nir", "nearest", GRID)
    for number, day in enumerate(DAYS):
        np.testing.assert_array_equal(read[number], canvas(toy, "B08", day, GRID))


@pytest.mark.parametrize("change", ["bbox", "geometry", "both"])
def test_items_that_say_little_of_where_they_lie_are_read_by_both(toy: Toy, change: str) -> None:
    def forget(item: dict[str, Any]) -> None:
        item["properties"] |= {"proj:shape": [SIDE, SIDE]}
        left = ORIGIN[0] + (item["id"][4:9] == "33TXM") * (SIDE - OVERLAP) * 60
        item["properties"] |= {"proj:transform": [60, 0, left, 0, -60, ORIGIN[1]]}
        if change != "bbox":
            item["geometry"] = None
        if change != "geometry":
            item.pop("bbox")

    if change == "bbox":
        items = [item | {"bbox": item["bbox"]} for item in toy.items]  # a geometry wants a box
        frames = frames_from(items)
    else:
        frames = frames_from([{**item, "geometry": None} for item in toy.items], forget)
    np.testing.assert_array_equal(both(frames, "red", "nearest", GRID)[0], canvas(toy, "B04", DAYS[0], GRID))


def test_frames_without_the_asset_are_nodata(toy: Toy) -> None:
    def drop(item: dict[str, Any]) -> None:
        if DAYS[1].replace("-", "") in item["id"] or item["id"].startswith("S2A_33TWM_20230815"):
            del item["assets"]["green"]

    frames = frames_from(toy.items, drop)
    read = both(frames, "green", "nearest", GRID)
    assert [layer.any() for layer in read] == [frame.delivered[1] for frame in frames]
    assert not both(frames, "no such asset", "nearest", GRID).any()
    assert both([], "green", "nearest", GRID).shape == (0, *GRID.shape)


def test_a_grid_beyond_all_files_is_nodata(toy: Toy) -> None:
    far = GeoBox((16, 16), Affine(60, 0, 700020, 0, -60, 5400000), "EPSG:32633")
    assert not both(frames_from(toy.items), "red", "bilinear", far).any()


def test_stackstac_wants_an_epsg_code_and_loaders_have_names(toy: Toy) -> None:
    odd = GeoBox(GRID.shape, GRID.transform, "+proj=laea +lat_0=46 +lon_0=15.1 +datum=WGS84 +units=m")
    with pytest.raises(BadInput, match=r"EPSG code \(give --crs"):
        load(frames_from(toy.items), "red", "uint16", 0, "nearest", odd, Loading("stackstac"))
    with pytest.raises(BadInput, match="did you mean stackstac"):
        load(frames_from(toy.items), "red", "uint16", 0, "nearest", GRID, Loading("stakstac"))


# ---------------------------------------------------------------- assets that are gone


@pytest.fixture(scope="module")
def server(toy: Toy) -> Iterator[Faults]:
    with fault_server(toy.folder) as running:
        yield running


@pytest.mark.parametrize("loader", BOTH)
@pytest.mark.parametrize("where", ["disk", "web"])
def test_what_is_gone_is_named_or_masked(toy: Toy, server: Faults, tmp_path: Path, loader: str, where: str) -> None:
    lost = [toy.items[3]["id"], toy.items[0]["id"]]
    server.tell(gone=[f"{name}/B04.tif" for name in lost])

    def move(item: dict[str, Any]) -> None:
        asset = item["assets"]["red"]
        if where == "web":
            asset["href"] = asset["href"].replace(str(toy.folder), server.url)
        elif item["id"] in lost:
            asset["href"] = str(tmp_path / f"{item['id']}.tif")

    whole, frames = frames_from(toy.items), frames_from(toy.items, move)
    with pytest.raises(RemoteFailed) as caught:
        load(frames, "red", "uint16", 0, "nearest", GRID, Loading(loader))
    line = str(caught.value)
    assert any(f"cannot read red of {name}: " in line for name in lost)
    assert "\n" not in line
    read, missing = load(frames, "red", "uint16", 0, "nearest", GRID, Loading(loader, mask=True))
    assert missing == sorted(f"{name}/red" for name in lost)
    kept = [replace(frame, items=tuple(item for item in frame.items if item.id not in lost)) for frame in whole]
    np.testing.assert_array_equal(read, load(kept, "red", "uint16", 0, "nearest", GRID, Loading())[0])
    assert (read != load(whole, "red", "uint16", 0, "nearest", GRID, Loading())[0]).any()
    server.tell(gone=[])
    again, missing = load(whole, "red", "uint16", 0, "nearest", GRID, Loading(loader, mask=True))
    assert missing == []
    assert (again != read).any()


@pytest.mark.parametrize("loader", BOTH)
def test_all_gone_is_all_nodata(toy: Toy, loader: str, tmp_path: Path) -> None:
    frames = frames_from(toy.items, lambda item: item["assets"]["red"].update(href=str(tmp_path / f"{item['id']}.tif")))
    read, missing = load(frames, "red", "uint16", 0, "nearest", GRID, Loading(loader, mask=True))
    assert not read.any()
    assert missing == sorted(f"{item['id']}/red" for item in toy.items)


@pytest.mark.parametrize("loader", BOTH)
def test_what_is_there_and_no_raster_is_never_masked(toy: Toy, loader: str, tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_text("<html>hello</html>")
    frames = frames_from(toy.items[:1], lambda item: item["assets"]["red"].update(href=str(tmp_path / "a.tif")))
    with pytest.raises(RemoteFailed, match=f"red of {toy.items[0]['id']}: .*not recognized"):
        load(frames, "red", "uint16", 0, "nearest", GRID, Loading(loader, mask=True))
