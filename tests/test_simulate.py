"""The made-up world: is it a readable archive, is it the same each time, and is it hard where it should be."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pystac
import pytest
import rasterio
from rasterio.warp import transform
from scipy.ndimage import find_objects

from aefcli.errors import BadInput
from aefcli.extent import Period
from aefcli.simulate import World, archive, kinds, optics, radar, simulate
from aefcli.simulate.kinds import CLASSES, CROPS
from aefcli.simulate.labels import truth_table
from aefcli.simulate.land import NORTH, WEST, Climate, Grid, Land, draw_climate, draw_land, stream
from aefcli.simulate.passes import LANDSAT, LAYERS, S1, S2, Pass, passes
from aefcli.simulate.season import canopy, canopy_on
from aefcli.sources import SOURCES

SITES, SIZE = 5, 32  # five on a 3 x 2 arrangement: one square is a gap; two rows of 32 are no whole cells of 60 m
KIND = {name: number for number, name in enumerate(CLASSES)}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return simulate(tmp_path_factory.mktemp("world") / "out", seed=3, sites=SITES, size=SIZE)


@pytest.fixture(scope="module")
def items(world) -> list[pystac.Item]:
    return list(pystac.Catalog.from_file(str(world.catalog)).get_items(recursive=True))


@pytest.fixture(scope="module")
def truth() -> tuple[Land, Climate]:
    return draw_land(1, Grid(9, 36), 2), draw_climate(1, 9, 2)


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
    assert ids == ["sentinel-2-c1-l2a", "sentinel-1-rtc", "landsat-c2-l2"]
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
    partial = 0
    for item in of(items, S2):
        scl, here = read(item, "scl"), squares(20)
        valid = scl > 0
        assert np.array_equal(read(item, "swir16") > 0, valid)
        for key in ("blue", "green", "red", "nir"):
            assert np.array_equal(read(item, key) > 0, np.kron(valid, np.ones((2, 2), bool)))
        partial += not valid[here].all()
        assert not valid[~here].any()
        width = item.bbox[2] - item.bbox[0]
        share = valid[: SIZE // 2].mean()  # the northern row of sites is complete
        assert abs(width / 0.01243 - share) < 0.12  # 960 m are 0.01243 degrees here
    assert 0.35 < partial / len(of(items, S2)) < 0.65


def test_about_half_of_what_is_seen_is_clear_and_cover_is_told(items):
    quality, shares = SOURCES["sentinel-2"].quality, []
    for item in of(items, S2):
        scl = read(item, "scl")
        shares.append(quality.clear(scl)[scl > 0].mean())
        assert np.isin(scl, [0, 3, 4, 5, 6, 8, 9, 10]).all()
        assert item.properties["eo:cloud_cover"] == pytest.approx(
            100 * np.isin(scl, [8, 9, 10])[scl > 0].mean(), abs=0.01
        )
    assert 0.38 < np.mean(shares) < 0.62
    assert np.std(shares) > 0.15
    quality, shares = SOURCES["landsat"].quality, []
    for item in of(items, LANDSAT):
        layer = read(item, "qa_pixel")
        shares.append(quality.clear(layer)[layer != 1].mean())
    assert 0.33 < np.mean(shares) < 0.62


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
    here = squares(30)
    values: set[int] = set()
    for item in of(items, LANDSAT):
        layer = read(item, "qa_pixel")
        values |= set(np.unique(layer).tolist())
        assert np.array_equal(layer != 1, here)
        assert np.array_equal(read(item, "red") > 0, here)
        kelvin = read(item, "lwir11")[here & (layer == 21824)] * 0.00341802 + 149
        assert ((kelvin > 240) & (kelvin < 330)).all()
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


def test_speckle_has_about_five_looks(truth):
    land, climate = truth
    at = Pass(S1, 0, 180, 0, 0, datetime(2023, 6, 30, tzinfo=UTC))
    all_seen = dataclasses.replace(climate, orbits=np.ones((9, 2), bool))
    grid = Grid(9, 36)
    power = radar.sentinel_1(stream(1), grid, land, all_seen, at).pixels["vv"]
    clean = grid.means(radar.backscatter(land, climate, 0, 180, 0)[0], 1)
    dry = grid.means(land.kind[0][land.parcel] != kinds.WATER, 1) == 1
    ratio = (power / clean)[dry]
    assert ratio.mean() == pytest.approx(1, abs=0.02)
    assert 1 / ratio.var() == pytest.approx(5, rel=0.1)


def test_labels_are_a_table_of_pixel_centres_that_hold_their_class(world):
    table = pd.read_parquet(world.labels)
    assert len(table) == world.points
    names = {"x": "float64", "y": "float64", "label": "int64", "label_name": "str", "site": "int64"}
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
    land = draw_land(3, Grid(SITES, SIZE), 2)
    assert np.array_equal(land.kind[0][land.parcel[table.site, row % SIZE, col % SIZE]], table.label)


def pixel_of(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows in 10 m pixels; pixel centres are whole."""
    east, north = transform("EPSG:4326", "EPSG:32633", table.x.to_numpy(), table.y.to_numpy())
    return (np.array(east) - WEST) / 10 - 0.5, (NORTH - np.array(north)) / 10 - 0.5


def test_points_keep_their_distance_and_classes_their_balance():
    grid = Grid(16, 64)
    land = draw_land(5, grid, 2)
    table = truth_table(5, grid, land, 2023, 2023)
    assert table.groupby("site").size().between(40, 45).all()
    counts = table.label_name.value_counts()
    assert set(counts.index) == set(CLASSES)
    assert counts.min() > 0.25 * counts.max()
    spots = np.stack(pixel_of(table), -1)
    apart = np.hypot(*(spots[:, None] - spots[None]).transpose(2, 0, 1)) + 1e9 * np.eye(len(spots))
    assert apart.min() >= 4 - 1e-3
    col, row = np.round(spots).astype(int).T
    parcel = land.parcel[table.site, row % 64, col % 64]
    assert np.bincount(parcel).max() <= 4
    inside = [
        np.unique(land.parcel[site, y % 64 - 1 : y % 64 + 2, x % 64 - 1 : x % 64 + 2]).size == 1
        for site, y, x in zip(table.site, row, col, strict=True)
    ]
    assert 0.65 < np.mean(inside) < 0.98


def test_over_years_crops_rotate_and_only_constant_classes_repeat():
    grid = Grid(4, 48)
    land = draw_land(7, grid, 3)
    table = truth_table(7, grid, land, 2022, 2023)
    crop = land.kind[0] < CROPS
    assert np.array_equal(crop, land.kind[1] < CROPS)
    assert (land.kind[0] != land.kind[1])[crop].all()
    assert (land.kind[0] == land.kind[1])[~crop].all()
    repeats = table.groupby(["x", "y"]).agg(
        rows=("label", "size"), label=("label", "first"), kinds=("label", "nunique")
    )
    assert (repeats.kinds == 1).all()
    assert (repeats.rows == np.where(repeats.label < CROPS, 1, 2)).all()
    starts = set(table[table.label < CROPS].valid_time_start_ms)
    assert starts == {Period.parse("2022").start, Period.parse("2023").start}


def test_the_same_seed_gives_the_same_world_and_another_seed_another(world, tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "passes", lambda *plan: [one for one in passes(*plan) if one.day < 25])
    again = simulate(tmp_path / "again", seed=3, sites=SITES, size=SIZE)
    other = simulate(tmp_path / "other", seed=4, sites=SITES, size=SIZE)
    assert again.labels.read_bytes() == world.labels.read_bytes()
    assert again.labels.read_bytes() != other.labels.read_bytes()
    files = sorted(again.catalog.parent.rglob("*.tif"))
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


def test_more_sites_leave_the_first_ones_their_land():
    few, many = draw_land(2, Grid(2, 36), 2), draw_land(2, Grid(5, 36), 2)
    assert np.array_equal(few.parcel, many.parcel[:2])
    assert np.array_equal(few.kind, many.kind[:, : few.kind.shape[1]])


def curves(name: str, days: np.ndarray) -> np.ndarray:
    """Covers and structure (4, day) of a class in the mean climate."""
    one = canopy(np.full(days.size, KIND[name]), days, np.ones(days.size), np.full((days.size, 4), np.inf))
    return np.stack([one.green, one.straw, one.flower, one.standing])


def test_the_cereals_differ_by_their_season_alone():
    days = np.arange(0.0, 330.0)
    early, late = curves("winter_cereal_a", days), curves("winter_cereal_b", days + kinds.CEREAL_GAP)
    assert np.allclose(early, late)
    assert np.abs(early - curves("winter_cereal_b", days))[0].max() > 0.4
    mine, yours = (dataclasses.asdict(kinds.KINDS[KIND[f"winter_cereal_{one}"]]) for one in "ab")
    assert {key for key in mine if mine[key] != yours[key]} == {"name", "late"}


def test_the_cereals_look_alike_over_their_season_and_unlike_on_a_day(truth):
    land, climate = truth
    calm = dataclasses.replace(climate, wet=np.full_like(climate.wet, 0.4), stretch=np.ones(9))
    field = (land.kind[0] < CROPS)[land.parcel]
    early, late = (painted(land, f"winter_cereal_{one}") for one in "ab")
    days = range(60, 201, 7)
    first, second = (
        np.array([optics.reflectance(twin, calm, 0, day)[:, field].mean(1) for day in days]) for twin in (early, late)
    )
    assert np.abs(second[3:] - first[:-3]).max() < 0.012  # 21 days are three steps; the sun climbs a little
    assert np.abs(second - first)[:, 3].max() > 0.05


def painted(land: Land, name: str) -> Land:
    """The same land with one crop in every field."""
    return dataclasses.replace(land, kind=np.where(land.kind < CROPS, KIND[name], land.kind))


def test_the_summer_crops_differ_in_radar_alone(truth):
    land, climate = truth
    wet, dry = painted(land, "summer_crop_wet"), painted(land, "summer_crop_dry")
    field = (land.kind[0] < CROPS)[land.parcel]
    for day in range(5, 365, 40):
        assert np.array_equal(optics.reflectance(wet, climate, 0, day), optics.reflectance(dry, climate, 0, day))
    power = [10 * np.log10(radar.backscatter(one, climate, 0, 225, 0)[:, field]).mean(1) for one in (wet, dry)]
    assert (power[0] - power[1] > 1.5).all()
    bare = [10 * np.log10(radar.backscatter(one, climate, 0, 40, 0)[:, field]).mean(1) for one in (wet, dry)]
    assert np.allclose(*bare, atol=0.05)


def test_each_class_has_its_season(truth):
    days = np.arange(0.0, 365.0)
    green = {name: curves(name, days)[0] for name in CLASSES}
    assert curves("rapeseed", days)[2].max() > 0.4
    assert (curves("rapeseed", days)[2] > 0.1).sum() < 35
    assert green["evergreen_forest"].min() > 0.7
    assert np.ptp(green["deciduous_forest"]) > 0.6
    assert green["water"].max() == green["bare"].max() == 0
    assert days[green["maize"].argmax()] > days[green["rapeseed"].argmax()] + 60
    land, climate = truth
    meadow = np.flatnonzero(land.kind[0] == kinds.MEADOW)[0]
    height = [canopy_on(land, climate, 0, day).green[meadow] for day in range(120, 300)]
    assert (np.diff(height) < -0.15).sum() >= 2  # cut, not faded


def test_seasons_move_with_the_climate_and_run_on_over_new_year(truth):
    land, climate = truth
    fields = painted(land, "maize")
    up = []
    for site in range(9):
        rows = (land.site == site) & (land.kind[0] < CROPS)
        green = [canopy_on(fields, climate, 0, day).green[rows].mean() for day in range(120, 220)]
        up.append(int(np.argmax(np.array(green) > 0.45)))
    assert np.corrcoef(up, climate.offset[0])[0, 1] > 0.9
    assert 10 < np.ptp(up) < 50
    winter = painted(land, "winter_cereal_a")
    old, new = (canopy_on(winter, climate, *when).green for when in ((0, 364), (1, 0)))
    assert np.abs(old - new).max() < 0.06
    assert new[land.kind[0] < CROPS].mean() > 0.1


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


@pytest.mark.parametrize("name", ["catalog.json", "labels.parquet", "sentinel-1-rtc"])
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
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "catalog.json", "labels.parquet", *LAYERS}
    assert len(list(pystac.Catalog.from_file(str(world.catalog)).get_items(recursive=True))) == world.items


@pytest.mark.parametrize("size", [33, 35, 64])
def test_a_size_that_nests_with_nothing_loses_no_pixel_of_a_site(tmp_path, monkeypatch, size):
    monkeypatch.setattr(archive, "passes", lambda *plan: [one for one in passes(*plan) if one.turn < 2])
    world = simulate(tmp_path / "out", sites=SITES, size=size)
    items = list(pystac.Catalog.from_file(str(world.catalog)).get_items(recursive=True))
    assert {122, 79} & {item.properties["sat:relative_orbit"] for item in of(items, S2)} == {122, 79}
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
            assert not valid[~here].any()
            if item.collection_id == LANDSAT or item.properties["sat:relative_orbit"] == 122:  # a whole swath
                assert np.array_equal(valid, here)


def test_means_are_those_of_the_pixels_that_exist():
    grid, rng = Grid(3, 35), np.random.default_rng(0)
    stack = rng.random((3, 35, 35), np.float32)
    whole = np.full((72, 72), np.nan)
    whole[:35, :35], whole[:35, 35:70], whole[35:70, :35] = stack
    for factor in (1, 2, 3):
        means = grid.means(stack, factor)
        assert means.shape == grid.shape(10 * factor)
        for row, col in np.ndindex(means.shape):
            cell = whole[row * factor : (row + 1) * factor, col * factor : (col + 1) * factor]
            known = cell[~np.isnan(cell)]
            assert means[row, col] == pytest.approx(known.mean() if known.size else np.nan, nan_ok=True, abs=1e-6)


def test_parcels_of_a_large_site_keep_apart():
    land = draw_land(1, Grid(1, 1000), 2)
    scattered = np.isin(land.kind[0], [kinds.WATER, kinds.TOWN, kinds.ROAD])
    boxes = find_objects(land.parcel[0] + 1)
    assert (
        max(side.stop - side.start for box, many in zip(boxes, scattered, strict=True) if not many for side in box) < 80
    )


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
