"""The made-up world on disk: is it a readable archive, is it the same each time, and does it say what it is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pystac
import pytest
import rasterio
from rasterio.warp import transform

from aefcli import simulate as package
from aefcli.cube import Request, fetch, open_cube
from aefcli.errors import BadInput
from aefcli.extent import BBox, Period
from aefcli.simulate import World, archive, simulate
from aefcli.simulate.kinds import CLASSES
from aefcli.simulate.labels import TASKS
from aefcli.simulate.land import NORTH, WEST, Grid, draw_site
from aefcli.simulate.passes import DEM, LANDSAT, LAYERS, S1, S2, passes
from aefcli.sources import SOURCES

SITES, SIZE = 5, 32  # five on a 3 x 2 arrangement: one square is a gap; two rows of 32 are no whole cells of 60 m
BESIDE = {"captions.parquet", "labels.parquet", "nlcd_2023.tif", *(f"labels-{task}.parquet" for task in TASKS[:-1])}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return simulate(tmp_path_factory.mktemp("world") / "out", seed=3, sites=SITES, size=SIZE)


@pytest.fixture(scope="module")
def items(world) -> list[pystac.Item]:
    return list(pystac.Catalog.from_file(str(world.catalog)).get_items(recursive=True))


def read(item: pystac.Item, key: str) -> np.ndarray:
    with rasterio.open(item.assets[key].get_absolute_href()) as file:
        return file.read(1)


def of(items: list[pystac.Item], collection: str) -> list[pystac.Item]:
    return [item for item in items if item.collection_id == collection]


def squares(gsd: int, size: int = SIZE) -> np.ndarray:
    """True in cells that hold a pixel of a site: of all but the last square, none beyond the two rows."""
    here = np.zeros([-(-side * size // 6) * 6 for side in (2, 3)], bool)
    here[:size, : 3 * size] = here[: 2 * size, : 2 * size] = True
    return here[:: gsd // 10, :: gsd // 10]  # a cell's north-western pixel always is the last to go


def test_catalog_opens_and_every_asset_is_what_its_item_says(world, items):
    assert len(items) == world.items
    assert len({item.id for item in items}) == len(items)
    for item in items:
        source = next(source for source in SOURCES.values() if item.collection_id in source.collections)
        keys = [band.assets[0] for band in source.bands if band.name not in ("HH", "HV")]
        assert set(item.assets) == {*keys, *(source.quality.assets[:1] if source.quality else ())}
        for asset in item.assets.values():
            told = asset.extra_fields
            assert not Path(asset.href).is_absolute()
            with rasterio.open(asset.get_absolute_href()) as file:
                assert file.crs.to_string() == item.properties["proj:code"] == "EPSG:32633"
                assert list(file.shape) == told["proj:shape"]
                assert list(file.transform)[:6] == told["proj:transform"]
                assert file.transform.c % 60 == file.transform.f % 60 == 0
                assert all(side * told["gsd"] % 60 == 0 for side in file.shape)
                assert file.nodata == told["raster:bands"][0]["nodata"]
                assert file.dtypes[0] == told["raster:bands"][0]["data_type"]
                assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"


def test_scales_are_those_of_the_real_products(items):
    for collection, key, scale, offset in (
        (S2, "nir", 1e-4, -0.1),
        (LANDSAT, "nir08", 2.75e-5, -0.2),
        (LANDSAT, "lwir11", 0.00341802, 149.0),
    ):
        band = of(items, collection)[0].assets[key].extra_fields["raster:bands"][0]
        assert (band["scale"], band["offset"]) == (scale, offset)


def test_collections_span_the_box_and_the_year(world, items):
    catalog = pystac.Catalog.from_file(str(world.catalog))
    ids = [collection.id for collection in catalog.get_children()]
    assert ids == ["sentinel-2-c1-l2a", "sentinel-1-rtc", "landsat-c2-l2", "cop-dem-glo-30"]
    west, south, east, north = world.bbox
    for collection in catalog.get_children():
        assert collection.extent.spatial.bboxes == [list(world.bbox)]
        start, end = collection.extent.temporal.intervals[0]
        assert (start.year, start.month, start.day, end.year, end.month, end.day) == (2023, 1, 1, 2023, 12, 31)
    for item in items:
        left, low, right, high = item.bbox
        assert west <= left < right <= east
        assert south <= low < high <= north


def test_the_box_is_that_of_the_sites_rounded_outward_and_by_little(world):
    right, low = WEST + 30 * SIZE, NORTH - 20 * SIZE
    lon, lat = transform("EPSG:32633", "EPSG:4326", [WEST, right] * 2, [low] * 2 + [NORTH] * 2)
    west, south, east, north = world.bbox
    assert west <= min(lon) < west + 2e-4
    assert south <= min(lat) < south + 2e-4
    assert east - 2e-4 < max(lon) <= east
    assert north - 2e-4 < max(lat) <= north
    assert all(edge == round(edge, 4) for edge in world.bbox)


def test_passes_come_as_often_as_they_should(items):
    for collection, low, high in ((S2, 55, 74), (S1, 60, 90), (LANDSAT, 36, 46)):
        found = of(items, collection)
        assert low <= len(found) <= high
        assert all(item.datetime.year == 2023 for item in found)
    gaps = np.diff(sorted(item.datetime.timetuple().tm_yday for item in of(items, S2)))
    assert gaps.min() == 5
    assert gaps.max() > 5
    assert {item.properties["platform"] for item in of(items, S2)} == {"sentinel-2a", "sentinel-2b"}
    assert {item.properties["platform"] for item in of(items, LANDSAT)} == {"landsat-8", "landsat-9"}
    takes = [item.properties["s2:datatake_id"] for item in of(items, S2)]
    assert len(set(takes)) == len(takes)


def test_sentinel_2_is_zero_outside_its_swath_and_nowhere_else(items):
    """Of the second orbit some sites lie outside, some on the border; the first sees all."""
    whole = squares(10)
    second = np.zeros_like(whole)
    grid = Grid(SITES, SIZE)
    for number in range(SITES):
        row, col = grid.corner(number)
        second[row : row + SIZE, col : col + SIZE] = draw_site(3, number, SIZE, 2023, 2023).swath
    assert second.any()
    assert (second != whole).any()
    for item in of(items, S2):
        swath = whole if item.properties["sat:relative_orbit"] == 122 else second
        for key in ("blue", "green", "red", "nir"):
            assert np.array_equal(read(item, key) > 0, swath)
        rows, cols = swath.shape[0] // 2, swath.shape[1] // 2
        some = swath.reshape(rows, 2, cols, 2).any((1, 3))
        assert np.array_equal(read(item, "scl") > 0, some)
        assert np.array_equal(read(item, "swir16") > 0, some)


def test_about_half_of_what_is_seen_is_clear_and_cover_is_told(items):
    quality, shares = SOURCES["sentinel-2"].quality, []
    for item in of(items, S2):
        scl = read(item, "scl")
        shares.append(quality.clear(scl)[scl > 0].mean())
        assert np.isin(scl, [0, 3, 4, 5, 6, 8, 9, 10]).all()
        assert item.properties["eo:cloud_cover"] == pytest.approx(
            100 * np.isin(scl, [8, 9, 10])[scl > 0].mean(), abs=0.01
        )
    assert 0.36 < np.mean(shares) < 0.56
    assert np.std(shares) > 0.15
    quality, shares = SOURCES["landsat"].quality, []
    for item in of(items, LANDSAT):
        layer = read(item, "qa_pixel")
        shares.append(quality.clear(layer)[layer != 1].mean())
    assert 0.30 < np.mean(shares) < 0.56


def test_masks_mostly_tell_clouds_from_land(items):
    bright, dark = [], []
    for item in of(items, S2):
        scl, blue = np.kron(read(item, "scl"), np.ones((2, 2), np.uint8)), read(item, "blue") / 1e4 - 0.1
        bright += blue[scl == 9].tolist()
        dark += blue[np.isin(scl, [4, 5, 6])].tolist()
    assert np.median(bright) > 0.35
    assert np.median(dark) < 0.12
    assert 0.001 < np.mean(np.array(dark) > 0.3) < 0.1  # a few masks are wrong


def test_landsat_is_clear_land_somewhere_and_fill_in_the_gap(items):
    here, kelvin = squares(30), []
    values: set[int] = set()
    for item in of(items, LANDSAT):
        layer = read(item, "qa_pixel")
        values |= set(np.unique(layer).tolist())
        assert np.array_equal(layer != 1, here)
        assert np.array_equal(read(item, "red") > 0, here)
        kelvin += (read(item, "lwir11")[here & (layer == 21824)] * 0.00341802 + 149).tolist()
    low, middle, high = np.quantile(kelvin, [0.02, 0.5, 0.98])  # where the mask is wrong, clouds are colder
    assert 250 < low < middle < high < 330
    assert {1, 21824, 22280} <= values
    assert all(any(value >> bit & 1 for value in values) for bit in (1, 2, 3, 4))


def test_radar_has_both_orbits_and_some_sites_see_one_alone(items):
    seen = {}
    for item in of(items, S1):
        vv, vh = read(item, "vv"), read(item, "vh")
        valid = vv != -32768
        assert (vv[valid] > 0).all()
        assert np.array_equal(valid, vh != -32768)
        key = item.properties["sat:orbit_state"], item.properties["sat:relative_orbit"]
        assert np.array_equal(seen.setdefault(key, valid), valid)
    assert sorted(seen) == [("ascending", 44), ("descending", 22)]
    one, other = seen.values()
    assert np.array_equal(one | other, squares(10))
    assert (one != other).any()


def test_labels_are_a_table_of_pixel_centres_that_hold_their_class(world):
    table = pd.read_parquet(world.labels)
    assert len(table) == world.points
    names = {"x": "float64", "y": "float64", "label": "int64", "label_name": "str", "site": "int64", "edge": "float64"}
    times = {f"{span}_time_{end}_ms": "int64" for span in ("valid", "support") for end in ("start", "end")}
    assert set(table.columns) == {*names, *times}
    numbers = {name: kind for name, kind in (names | times).items() if kind != "str"}
    assert {name: str(table[name].dtype) for name in numbers} == numbers
    west, south, east, north = world.bbox
    assert table.x.between(west, east).all()
    assert table.y.between(south, north).all()
    assert [CLASSES[label] for label in table.label] == table.label_name.tolist()
    year = Period.parse("2023")
    for span in ("valid", "support"):
        assert set(zip(table[f"{span}_time_start_ms"], table[f"{span}_time_end_ms"], strict=True)) == {
            (year.start, year.end)
        }
    col, row = pixel_of(table)
    assert np.allclose(col, np.round(col), atol=1e-3)
    assert np.allclose(row, np.round(row), atol=1e-3)
    col, row = np.round(col).astype(int), np.round(row).astype(int)
    assert np.array_equal(row // SIZE * 3 + col // SIZE, table.site)
    land = [draw_site(3, site, SIZE, 2023, 2023) for site in range(SITES)]
    held = [
        land[site].kind[0][land[site].parcel[y % SIZE, x % SIZE]]
        for site, y, x in zip(table.site, row, col, strict=True)
    ]
    assert held == table.label.tolist()


def test_every_table_says_which_world_it_is_of(world):
    told = {"aef:simulate": package.VERSION, "seed": 3, "sites": SITES, "size": SIZE, "years": [2023, 2023]}
    for task in TASKS[:-1]:
        metadata = pq.read_schema(world.catalog.parent / f"labels-{task}.parquet").metadata
        assert json.loads(metadata[b"PANDAS_ATTRS"]) == told
    assert json.loads(world.catalog.read_text())["aef:simulate"] == package.VERSION
    assert (world.catalog.parent / "labels-cover.parquet").read_bytes() == world.labels.read_bytes()


def test_the_ground_can_be_fetched_and_the_map_lies_on_it(world, items, tmp_path):
    request = Request(str(world.catalog), BBox(*world.bbox), Period.parse("2023-01"), sources=("landsat", "glo-30"))
    cube = open_cube(fetch(request, tmp_path / "cube.zarr").path)
    assert set(cube.sources) == {"landsat", "glo-30"}
    (ground,) = of(items, DEM)
    height = read(ground, "data")
    assert np.ptp(height) > 3
    with rasterio.open(world.catalog.parent / "nlcd_2023.tif") as file:
        assert set(np.unique(file.read(1))) <= {0, *SOURCES["nlcd"].classes}
        assert (file.crs.to_string(), file.shape) == ("EPSG:32633", height.shape)
        assert np.array_equal(file.read(1) > 0, squares(30))


def pixel_of(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows in 10 m pixels; pixel centres are whole."""
    east, north = transform("EPSG:4326", "EPSG:32633", table.x.to_numpy(), table.y.to_numpy())
    return (np.array(east) - WEST) / 10 - 0.5, (NORTH - np.array(north)) / 10 - 0.5


def test_the_same_seed_gives_the_same_world_and_another_seed_another(world, tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "passes", lambda *plan: [one for one in passes(*plan) if one.day < 25])
    again = simulate(tmp_path / "again", seed=3, sites=SITES, size=SIZE)
    other = simulate(tmp_path / "other", seed=4, sites=SITES, size=SIZE)
    assert again.labels.read_bytes() == world.labels.read_bytes()
    assert again.labels.read_bytes() != other.labels.read_bytes()
    files = sorted(again.catalog.parent.rglob("*.tif"))
    files = [file for file in files if file.parts[-3] in LAYERS]
    assert {file.parts[-3] for file in files} == set(LAYERS)
    for file in files:
        with (
            rasterio.open(file) as new,
            rasterio.open(world.catalog.parent / file.relative_to(again.catalog.parent)) as old,
        ):
            assert np.array_equal(new.read(1), old.read(1))
    reds = [next(one.catalog.parent.glob(f"{S2}/*/red.tif")) for one in (again, other)]
    pixels = []
    for red in reds:
        with rasterio.open(red) as file:
            pixels.append(file.read(1))
    assert not np.array_equal(*pixels)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"sites": 0}, "--sites 0"),
        ({"size": 31}, r"--size 31 .*use 32 or more"),
        ({"years": (2024, 2023)}, "--years 2024:2023"),
        ({"years": (2014, 2015)}, "from 2015 to 2035"),
        ({"years": (2035, 2036)}, "from 2015 to 2035"),
        ({"seed": -1}, "--seed -1"),
        ({"sites": 4000, "size": 96}, "16,000,000"),
    ],
)
def test_bad_arguments_are_named_and_nothing_is_made(tmp_path, wrong, told):
    with pytest.raises(BadInput) as caught:
        simulate(tmp_path / "new", **wrong)
    assert re.search(told, str(caught.value))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["catalog.json", "labels-crops.parquet", "sentinel-1-rtc"])
def test_another_world_is_never_written_over(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(BadInput, match=f"already holds {name}.*another folder"):
        simulate(tmp_path, sites=1, size=32)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with pytest.raises(BadInput, match="is a file"):
        simulate(tmp_path / name, sites=1, size=32)


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(archive, "passes", lambda *plan: passes(*plan)[::40])


def test_a_working_folder_with_other_files_is_fine_and_progress_is_told(tmp_path, short):
    (tmp_path / "notes.txt").write_text("mine")
    told = []
    world = simulate(tmp_path, sites=1, size=32, progress=lambda done, total: told.append((done, total)))
    assert told == [(step, world.items) for step in range(1, world.items + 1)]
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "catalog.json", DEM, *LAYERS, *BESIDE}
    assert len(list(pystac.Catalog.from_file(str(world.catalog)).get_items(recursive=True))) == world.items


@pytest.mark.parametrize("size", [33, 35, 64])
def test_a_size_that_nests_with_nothing_loses_no_pixel_of_a_site(tmp_path, monkeypatch, size):
    monkeypatch.setattr(archive, "passes", lambda *plan: [one for one in passes(*plan) if one.turn < 2])
    world = simulate(tmp_path / "out", sites=SITES, size=size)
    items = list(pystac.Catalog.from_file(str(world.catalog)).get_items(recursive=True))
    assert {item.properties["sat:relative_orbit"] for item in of(items, S2)} == {122, 79}
    right, low = transform("EPSG:32633", "EPSG:4326", [WEST + 30 * size], [NORTH - 20 * size])
    assert 0 <= world.bbox[2] - right[0] < 2e-4
    assert 0 <= low[0] - world.bbox[1] < 2e-4
    table = pd.read_parquet(world.labels)
    col, row = np.round(pixel_of(table)).astype(int)
    assert np.array_equal(row // size * 3 + col // size, table.site)
    for item in items:
        for asset in item.assets.values():
            with rasterio.open(asset.get_absolute_href()) as file:
                valid, here = file.read(1) != file.nodata, squares(asset.extra_fields["gsd"], size)
            assert valid.shape == here.shape
            if item.collection_id == DEM:  # the plain goes on
                assert valid.all()
                continue
            assert not valid[~here].any()
            if item.collection_id == LANDSAT or item.properties.get("sat:relative_orbit") == 122:  # a whole swath
                assert np.array_equal(valid, here)


def test_the_door_is_light():
    told = "import sys, aefcli.simulate; print(*{'numpy', 'scipy', 'rasterio', 'pandas'} & set(sys.modules))"
    assert not subprocess.run([sys.executable, "-c", told], capture_output=True, check=True).stdout.strip()


def test_a_stop_midway_leaves_nothing(tmp_path, short):
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path / "new", sites=1, size=32, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_the_catalog_may_be_moved(world, tmp_path):
    for path in world.catalog.parent.rglob("*.json"):
        text = path.read_text()
        assert str(world.catalog.parent) not in text
        assert all(link["href"].startswith(("./", "../")) for link in json.loads(text)["links"])
