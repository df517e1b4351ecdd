"""From stored numbers to frames and batches."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import threading
from collections import deque
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import shapely
import torch
import xarray as xr
from conftest import Aef
from odc.geo.geobox import GeoBox
from rasterio import Affine
from toys import YEAR, made_up_cube, stream, toy_recipe

from aefcli import recipe
from aefcli.batch import Batch
from aefcli.cube import Cube, open_cube, write_cube
from aefcli.errors import BadInput, Damaged
from aefcli.extent import Period, Tile
from aefcli.recipe import Recipe
from aefcli.sample import Samples, batches, check, draw, measure, memory, normalise, supports_of, validation, window
from aefcli.sample.memory import Cubes
from aefcli.sample.plan import Plan
from aefcli.sample.read import Reader
from aefcli.sources import INPUTS, SOURCES
from aefcli.text import Texts


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> Cube:
    return made_up_cube(tmp_path_factory.mktemp("cube") / "cube.zarr")


def scene(
    name: str, values: dict[str, np.ndarray], gsd: int, offset: float = 0.0, first: str = "2023-01-05", every: int = 20
) -> xr.Dataset:
    """A dataset of a source whose corner is (500000, 5000000), a frame every 20 days from 5 January 2023."""
    import rioxarray  # noqa: F401 - adds .rio
    from rasterio import Affine

    t, height, width = next(iter(values.values())).shape
    coords = {
        "time": np.datetime64(first, "ms") + every * np.arange(t) * np.timedelta64(1, "D"),
        "y": 5_000_000 - gsd * (np.arange(height) + 0.5),
        "x": 500_000 + gsd * (np.arange(width) + 0.5),
    }
    made = xr.Dataset({key: (("time", "y", "x"), value) for key, value in values.items()}, coords)
    bands = [band for band in SOURCES[name].bands if band.name in values]
    made["offset"] = ("band", np.array([band.offset + offset for band in bands]))
    made["scale"] = ("band", np.array([band.scale for band in bands]))
    made = made.assign_coords(band=[band.name for band in bands]).rio.write_crs("EPSG:32633")
    return made.rio.write_transform(Affine(gsd, 0, 500_000, 0, -gsd, 5_000_000))


def test_optical_values_are_log_reflectance_in_sigmas(tmp_path: Path) -> None:
    stored = np.array([[[0, 1000, 2000], [3000, 65535, 1001]]], dtype="uint16")
    data = scene("sentinel-2", {"B02": stored, "B08": np.maximum(stored, 1)}, 10, offset=-0.1)
    source = open_cube(write_cube(tmp_path / "c.zarr", {"sentinel-2": data}, YEAR)).sources["sentinel-2"]
    values, present = normalise(source.read(Tile(0, 0, 2, 3), np.array([0]))[0], source, np.array([0]), {})
    band = SOURCES["sentinel-2"].band("B02")
    reflectance = np.maximum(stored.astype(float) * 1e-4 - 0.1, 0)
    expected = np.clip((np.log(reflectance * 1e4 + 1) - band.mean) / band.std, -6, 6)
    np.testing.assert_array_equal(present[0], stored[0] > 0)
    np.testing.assert_allclose(values[0, 0][present[0]], expected[0][present[0]], rtol=1e-5)
    assert (values[0, :, 0, 0] == 0).all(), "nodata in one band is absence in all"
    assert values.min() == -6


def test_radar_is_decibel_and_its_range_is_enforced(tmp_path: Path) -> None:
    power = np.array([[[0.1, 1e-4, 20.0], [np.nan, -1.0, 0.0]]], dtype="float32")
    data = scene("sentinel-1", {"VV": power}, 10)
    source = open_cube(write_cube(tmp_path / "c.zarr", {"sentinel-1": data}, YEAR)).sources["sentinel-1"]
    values, present = normalise(source.read(Tile(0, 0, 2, 3), np.array([0]))[0], source, np.array([0]), {})
    assert present[0].tolist() == [[True, False, False], [False, False, False]]
    band = SOURCES["sentinel-1"].band("VV")
    assert values[0, 0, 0, 0] == pytest.approx((-10 - band.mean) / band.std, rel=1e-5)
    assert np.isfinite(values).all()


def test_coarse_sources_are_repeated_and_what_lies_outside_is_not_present(tmp_path: Path) -> None:
    fine = np.full((2, 12, 12), 2000, dtype="uint16")
    coarse = np.arange(1, 33, dtype="uint16").reshape(2, 4, 4) * 1000
    made = {"sentinel-2": scene("sentinel-2", {"B02": fine}, 10), "landsat": scene("landsat", {"B2": coarse}, 30)}
    cube = open_cube(write_cube(tmp_path / "c.zarr", made, YEAR))
    stored, _ = cube.sources["landsat"].read(Tile(1, 2, 9, 12), np.array([0, 1]))
    np.testing.assert_array_equal(stored[:, 0], coarse.repeat(3, 1).repeat(3, 2)[:, 1:9, 2:12])
    frames = window(cube, "landsat", Tile(-4, -2, 12, 14), np.array([1]), {})
    inside = torch.zeros(16, 16, dtype=torch.bool)
    inside[4:, 2:14] = True
    assert torch.equal(frames.present[0, 0], inside)
    assert torch.equal(frames.weight[0, 0] > 0, inside)
    assert not frames.pixels[0, 0][:, ~inside].any()
    assert frames.bands[0, 0].tolist() == [True, False, False, False, False, False]


def test_a_pass_with_one_pair_of_polarisations_weighs_by_the_pair_it_has(tmp_path: Path) -> None:
    from aefcli.cube.write import Clear, Part

    def weight() -> np.ndarray:
        clear = Clear(SOURCES["sentinel-1"], delivered, (3, 3))
        for name, values in slab.items():
            clear.add(Part(name, values))
        return clear.weight()

    power = np.full((2, 3, 3), 0.1, dtype="float32")
    nodata = np.full((1, 3, 3), SOURCES["sentinel-1"].nodata, dtype="float32")
    slab = {name: np.concatenate([power[:1], nodata]) for name in ("VV", "VH")}
    slab |= {name: np.concatenate([nodata, power[:1]]) for name in ("HH", "HV")}
    delivered = np.array([[True, True, False, False], [False, False, True, True]])
    assert weight().all()
    slab["VV"][0, 1, 1] = nodata[0, 0, 0]
    assert weight()[0].sum() == 8


def test_clouded_pixels_keep_their_values_and_weigh_nothing(cube: Cube) -> None:
    frames = window(cube, "sentinel-2", Tile(0, 0, 32, 32), np.arange(3), {})
    assert frames.present.all()
    assert not frames.weight[..., :12, :12].any()
    assert frames.weight[..., 12:, 12:].all()
    assert frames.pixels[..., :12, :12].abs().sum() > 0


def test_a_source_without_a_frame_in_the_support_is_not_present(tmp_path: Path) -> None:
    """The cube has the source, of other years: as if it had it not, through the whole of a batch."""
    two = {"sources": ["sentinel-2", "landsat"], "frames": [6, 4]}
    made = {
        "sentinel-2": scene("sentinel-2", {"B02": np.full((9, 48, 48), 2000, dtype="uint16")}, 10),
        "landsat": scene("landsat", {"B2": np.full((2, 16, 16), 9000, dtype="uint16")}, 30, first="2030-01-05"),
    }
    cube = open_cube(write_cube(tmp_path / "c.zarr", made, YEAR))
    batch = next(stream([cube], toy_recipe(data=two)))
    assert batch.inputs["sentinel-2"].present.any()
    assert not batch.inputs["landsat"].present.any()
    assert not batch.targets["landsat"].weight.any()


def test_cubes_that_do_not_fit_the_recipe_are_refused(cube: Cube) -> None:
    with pytest.raises(BadInput, match="sentinel-1"):
        check([cube], toy_recipe(data={"sources": ["landsat"], "frames": [3]}))
    with pytest.raises(BadInput, match="smaller than"):
        check([cube], toy_recipe(data={"patch": 112}))


def test_support_is_at_most_a_year_and_two_of_two_years_lie_apart() -> None:
    rng = np.random.default_rng(0)
    assert supports_of(YEAR, rng) == [YEAR]
    short = Period.parse("2023-05")
    assert supports_of(short, rng) == [short]
    some = Period.parse("2022-01:2023-06")
    drawn = [supports_of(some, rng) for _ in range(50)]
    assert all(len(each) == 1 and each[0].days == 366 for each in drawn)
    assert len({each[0].start for each in drawn}) > 40
    for text, days in (("2022:2023", 365), ("2020:2023", 366)):
        long = Period.parse(text)
        pairs = [supports_of(long, rng) for _ in range(50)]
        for first, second in pairs:
            assert first.days == second.days == days
            assert long.start <= first.start < first.end <= second.start < second.end <= long.end
        assert text == "2022:2023" or len({second.start for _, second in pairs}) > 40


RASTERS = [name for name in SOURCES if name != "text"]
ALONE = [name for name in RASTERS if name not in INPUTS]
SIDE = 96  # px of the cube with every source
SPOT = (40, 57)  # where its one text lies
GSD = {"era5-land": 1280, "grace": 1280, "gedi": 20, "sentinel-2": 10, "sentinel-1": 10, "worldcover": 10}  # or 30
MAPPED = np.array(["2016-07-01", "2021-07-01"], "datetime64[ms]").astype("int64")  # of land cover


def physical(name: str, rng: np.random.Generator) -> xr.Dataset:
    """Made-up values of one source in a cube of 96 px: usual ones, a class drawn per cell."""
    source, gsd = SOURCES[name], GSD.get(name, 30)
    cells = -(-SIDE * 10 // gsd)
    frames = 2 if source.kind == "categorical" else 1 if name == "glo-30" else 12
    shape = (frames, cells, cells)
    if source.kind == "categorical":
        codes = rng.choice([*source.classes, 99], shape).astype("uint8")  # 99 is no class of any
        return scene(name, {source.bands[0].name: codes}, gsd, first="2016-07-01", every=1826)
    values = {}
    for band in source.bands:
        usual = {"log": 0.2, "db": 0.1, "amplitude": 7000.0}.get(band.transform, band.mean)
        stored = (usual * rng.uniform(0.9, 1.1, shape) - band.offset) / band.scale
        values[band.name] = stored.astype(source.dtype)
    if name == "gedi":  # sparse: a track in June
        empty = np.ones(shape, dtype=bool)
        empty[5, :, 7] = False
        values = {key: np.where(empty, np.float32(np.nan), value) for key, value in values.items()}
    made = scene(name, values, gsd, first="2010-01-01" if source.static else "2023-01-05", every=30)
    if name == "sentinel-1":
        made["orbit"] = ("time", ["ascending", "descending"] * 6)
    if name == "palsar-2":
        made["pass"], made["look"] = ("time", ["descending", ""] * 6), ("time", np.resize([1.0, -1.0, np.nan], 12))
    return made


@pytest.fixture(scope="module")
def datasets() -> dict[str, xr.Dataset]:
    rng = np.random.default_rng(0)
    return {name: physical(name, rng) for name in RASTERS}


@pytest.fixture(scope="module")
def whole(datasets: dict[str, xr.Dataset], tmp_path_factory: pytest.TempPathFactory) -> Cube:
    """A cube of every source that a cube can have."""
    return open_cube(write_cube(tmp_path_factory.mktemp("whole") / "cube.zarr", datasets, YEAR))


def told(cube: Cube, row: int = SPOT[0], column: int = SPOT[1]) -> Texts:
    """One text in the middle of a pixel, of the spring of 2023, and one on another continent."""
    from pyproj import Transformer

    degrees = Transformer.from_crs(cube.grid.crs, "EPSG:4326", always_xy=True)
    lon, lat = degrees.transform(500_000 + 10 * (column + 0.5), 5_000_000 - 10 * (row + 0.5))
    spring = Period.parse("2023-03:2023-05")
    vectors = np.eye(5, dtype="float32")[:2]
    starts, ends = np.array([spring.start] * 2), np.array([spring.end] * 2)
    return Texts(np.array([lon, -120.0]), np.array([lat, 40.0]), starts, ends, vectors)


def every_target(seed: int = 0, **data: object) -> Recipe:
    """Every target of the table. Without `data`, windows of 32 px; a patch of a cube's side is all of it."""
    site = {"site": data["patch"]} if "patch" in data else {}
    return toy_recipe(data={"targets": [*ALONE, "text"], **data, **site}, model={"text": 5}, train={"seed": seed})


def test_a_cube_of_every_source_becomes_batches_with_every_target(whole: Cube) -> None:
    batch = next(stream([whole], every_target(), told(whole)))
    assert list(batch.inputs) == list(INPUTS), "a source that is decoded alone is never an input"
    assert set(batch.targets) == set(batch.valid) == set(RASTERS)
    for name, target in batch.targets.items():
        source = SOURCES[name]
        assert target.pixels.shape == (2, 1, len(source.bands), 32, 32), name
        assert target.meta.shape == (2, 1, len(source.meta)), name
        assert target.bands.all(), name
        assert name == "gedi" or (target.weight > 0).flatten(1).any(1).all(), name
        assert (target.present == (target.weight > 0)).all(), name
        assert target.pixels.isfinite().all(), name
        start, end = batch.valid[name].unbind(-1)
        assert ((start <= target.time[:, 0]) & (target.time[:, 0] < end)).all(), "the period holds the instant"
        assert ((batch.support[:, 0] <= start) & (end <= batch.support[:, 1])).all(), name
    assert batch.gsd == 10


def test_targets_hold_what_the_cube_holds_at_their_instant(whole: Cube, datasets: dict[str, xr.Dataset]) -> None:
    """The patch is the cube, so that every pixel is known."""
    batch = next(stream([whole], every_target(patch=SIDE)))
    for name in ALONE:
        source, made, target = SOURCES[name], datasets[name], batch.targets[name]
        times = made["time"].to_numpy().astype("datetime64[ms]").astype("int64")
        for sample in range(2):
            nearest = {1: 0, 2: 1}.get(len(times))  # of one map or two
            at = times.tolist().index(target.time[sample, 0]) if nearest is None else nearest
            for index, band in enumerate(source.bands):
                stored = made[band.name].to_numpy()[at].repeat(GSD.get(name, 30) // 10, 0)
                stored = stored.repeat(GSD.get(name, 30) // 10, 1)[:SIDE, :SIDE]
                if source.kind == "categorical":
                    there = stored != 99
                    expected = np.searchsorted(source.classes, stored)
                else:
                    there = np.isfinite(stored)
                    value = stored.astype("float64") * band.scale
                    value = 10 * np.log10(value**2) - 83 if band.transform == "amplitude" else value
                    expected = np.clip((value - band.mean) / band.std, -6, 6)
                assert there.any()
                np.testing.assert_array_equal(target.present[sample, 0].numpy(), there, err_msg=name)
                ours = target.pixels[sample, 0, index].numpy()
                np.testing.assert_allclose(ours[there], expected[there], rtol=1e-4, atol=1e-4, err_msg=name)
                assert not ours[~there].any()


def test_a_static_source_serves_at_any_instant_of_the_support(whole: Cube) -> None:
    drawn = islice(stream([whole], every_target(2)), 8)
    instants = torch.cat([torch.cat([batch.targets[name].time for name in ("glo-30", "nlcd")]) for batch in drawn])
    assert ((instants >= YEAR.start) & (instants < YEAR.end)).all()
    assert len(instants.unique()) == len(instants)
    months = (instants - YEAR.start) // (YEAR.days * 86_400_000 / 12)
    assert len(months.unique()) > 6


def test_the_mapped_year_nearest_to_the_support_is_taken(whole: Cube) -> None:
    maps = [window(whole, "nlcd", Tile(0, 0, SIDE, SIDE), np.array([index]), {}).pixels for index in range(2)]
    np.testing.assert_array_equal(whole.sources["nlcd"].times, MAPPED)
    for year, index in (("2010", 0), ("2018", 0), ("2019", 1), ("2023", 1)):
        period = Period.parse(year)
        inputs = {
            name: replace(source, times=source.times + period.start - YEAR.start) if name in INPUTS else source
            for name, source in whole.sources.items()
        }
        moved = replace(whole, period=period, sources=inputs)
        batch = next(stream([moved], every_target(patch=SIDE)))
        assert torch.equal(batch.targets["nlcd"].pixels[0], maps[index][0]), year


def test_a_frame_with_something_in_it_is_preferred(whole: Cube) -> None:
    june = whole.sources["gedi"].times[5]
    for batch in islice(stream([whole], every_target(3, patch=SIDE)), 3):
        assert batch.targets["gedi"].time.tolist() == [[june], [june]]
    dynamic = torch.cat([batch.targets["grace"].time for batch in islice(stream([whole], every_target(3)), 8)])
    assert len(dynamic.unique()) > 5


def test_targets_that_a_cube_lacks_are_not_present(cube: Cube) -> None:
    plan = every_target()
    check([cube], plan)
    batch = next(stream([cube], plan))
    assert batch.text is None
    for name in ALONE:
        target = batch.targets[name]
        assert not target.present.any()
        assert not target.weight.any()
        assert target.pixels.shape[:3] == (2, 1, len(SOURCES[name].bands))
        assert target.meta.shape == (2, 1, len(SOURCES[name].meta))


def test_a_cube_with_targets_trains_a_recipe_without_them_as_before(
    whole: Cube, datasets: dict[str, xr.Dataset], tmp_path: Path
) -> None:
    inputs = {name: datasets[name] for name in INPUTS}
    bare = open_cube(write_cube(tmp_path / "c.zarr", inputs, YEAR))
    ours, theirs = (next(stream([one], toy_recipe(), told(one))) for one in (whole, bare))
    assert set(ours.targets) == set(INPUTS)
    assert ours.text is None
    for name in INPUTS:
        assert torch.equal(ours.inputs[name].pixels, theirs.inputs[name].pixels)
        assert torch.equal(ours.valid[name], theirs.valid[name])


def test_the_text_of_a_place_travels_with_its_pixel_and_period(whole: Cube) -> None:
    text = next(stream([whole], every_target(patch=SIDE), told(whole))).text
    assert text is not None
    assert text.there.tolist() == [True, True]
    assert text.pixel.tolist() == [list(SPOT)] * 2
    assert torch.equal(text.vector, torch.eye(5)[[0, 0]])
    spring = Period.parse("2023-03:2023-05")
    assert text.valid.tolist() == [[spring.start, spring.end]] * 2


def test_texts_are_sought_and_their_absence_is_said(tmp_path: Path) -> None:
    """One text on a cube of one site of 256 px: by chance a window of 32 px would hold it once in fifty."""
    large, plan = made_up_cube(tmp_path / "large.zarr", side=256), every_target(windows=16).replace(data={"site": 256})
    drawn = [batch.text for batch in islice(stream([large], plan, told(large, 133, 99)), 8)]
    there = torch.cat([text.there for text in drawn if text is not None])
    assert there.tolist().count(True) in range(6, 11), "half of the windows"
    for text in drawn:
        assert text is not None
        assert not text.vector[~text.there].any()
        assert torch.equal(text.valid[~text.there], torch.tensor([[YEAR.start, YEAR.end]]).expand(2, 2)[~text.there])
        assert ((text.pixel >= 0) & (text.pixel < 32)).all()
    pixels = torch.cat([text.pixel[text.there] for text in drawn if text is not None])
    assert len(pixels.unique(dim=0)) > 2, "anywhere in the patch"
    only = next(stream([large], plan, told(large, 999, 999))).text
    assert only is not None
    assert not only.there.any()


def test_geometry_of_an_acquisition_is_read_as_numbers(whole: Cube, cube: Cube) -> None:
    for name, source in whole.sources.items():
        assert source.meta.shape == (len(source.times), len(SOURCES[name].meta))
        assert source.meta.dtype == np.float32
    np.testing.assert_array_equal(whole.sources["sentinel-1"].meta[:, 0], [1, -1] * 6)
    np.testing.assert_array_equal(whole.sources["palsar-2"].meta[:, 0], [-1, 0] * 6)
    np.testing.assert_array_equal(whole.sources["palsar-2"].meta[:, 1], [1, -1, 0] * 4)
    assert cube.sources["sentinel-1"].meta.tolist() == [[0.0]] * 15, "not known"
    frames = window(whole, "palsar-2", Tile(0, 0, 16, 16), np.array([0, 4]), {})
    assert frames.meta.tolist() == [[[-1.0, 1.0], [-1.0, -1.0]]]


def test_geometry_that_cannot_be_is_refused(datasets: dict[str, xr.Dataset], tmp_path: Path) -> None:
    fine = datasets["palsar-2"]
    with pytest.raises(BadInput, match=r"unknown pass of palsar-2 'ascendin'.*did you mean ascending"):
        write_cube(tmp_path / "a.zarr", {"palsar-2": fine.assign({"pass": ("time", ["ascendin"] * 12)})}, YEAR)
    with pytest.raises(BadInput, match="look of palsar-2 has the shape"):
        write_cube(tmp_path / "b.zarr", {"palsar-2": fine.assign(look=1.0)}, YEAR)
    with pytest.raises(BadInput, match="text is no raster"):
        write_cube(tmp_path / "c.zarr", {"text": fine}, YEAR)
    path = write_cube(tmp_path / "d.zarr", {"palsar-2": fine}, YEAR)
    with pytest.raises(BadInput):
        write_cube(path, {"palsar-2": fine.assign(look=-fine["look"])}, YEAR)


def test_geometry_that_nobody_gave_is_unknown(datasets: dict[str, xr.Dataset], tmp_path: Path) -> None:
    """So it is in cubes written before it was stored: their groups hold the words of the orbit at most."""
    bare = {"palsar-2": datasets["palsar-2"].drop_vars(["pass", "look"])}
    opened = open_cube(write_cube(tmp_path / "c.zarr", bare, YEAR))
    assert opened.sources["palsar-2"].meta.tolist() == [[0.0, 0.0]] * 12


def test_a_source_of_one_cell_covers_its_cube(whole: Cube, datasets: dict[str, xr.Dataset], tmp_path: Path) -> None:
    assert whole.sources["era5-land"].factor == 128
    assert whole.sources["era5-land"].arrays["temperature_2m"].shape == (12, 1, 1)
    stored, weight = whole.sources["era5-land"].read(Tile(10, 20, 42, 52), np.array([3]))
    assert stored.shape == (1, 12, 32, 32)
    assert (stored[0, 3] == datasets["era5-land"]["temperature_2m"].to_numpy()[3, 0, 0]).all()
    assert weight.all()
    unsized = datasets["era5-land"].drop_vars("spatial_ref").rio.write_crs("EPSG:32633")
    with pytest.raises(BadInput, match=r"no cell size.*write_transform"):
        write_cube(tmp_path / "c.zarr", {"sentinel-2": datasets["sentinel-2"], "era5-land": unsized}, YEAR)


def test_amplitudes_are_decibel_and_angles_radians(tmp_path: Path) -> None:
    numbers = np.array([[[0, 1, 7000], [20000, 65535, 500]]], dtype="uint16")
    angles = np.array([[[3000, 3000, 4500], [0, 9000, 1]]], dtype="uint16")
    data = scene("palsar-2", {"HH": numbers, "LIN": angles}, 30)
    source = open_cube(write_cube(tmp_path / "c.zarr", {"palsar-2": data}, YEAR)).sources["palsar-2"]
    values, present = normalise(source.read(Tile(0, 0, 2, 3), np.array([0]))[0], source, np.array([0]), {})
    assert present[0].tolist() == [[False, True, True], [False, True, True]]
    table, there = SOURCES["palsar-2"], present[0]
    decibel = 10 * np.log10(numbers[0][there].astype("float64") ** 2) - 83
    radians = np.deg2rad(angles[0][there] / 100)
    for index, (name, truth) in enumerate((("HH", decibel), ("LIN", radians))):
        band = table.band(name)
        expected = np.clip((truth - band.mean) / band.std, -6, 6)
        np.testing.assert_allclose(values[0, index][there], expected, rtol=1e-4, atol=1e-5)
    assert not values[0][:, ~there].any()


def test_codes_are_places_among_the_classes(tmp_path: Path) -> None:
    classes = np.array(SOURCES["nlcd"].classes, dtype="uint8")
    codes = np.concatenate([classes, [0, 1, 10, 99, 255]]).astype("uint8").reshape(1, 5, 5)
    source = open_cube(write_cube(tmp_path / "c.zarr", {"nlcd": scene("nlcd", {"land_cover": codes}, 30)}, YEAR))
    stored, weight = source.sources["nlcd"].read(Tile(0, 0, 5, 5), np.array([0]))
    values, present = normalise(stored, source.sources["nlcd"], np.array([0]), {})
    assert (values.shape, values.dtype) == ((1, 1, 5, 5), np.float32)
    assert present.ravel().tolist() == [True] * 20 + [False] * 5
    np.testing.assert_array_equal(values.ravel(), [*range(20), 0, 0, 0, 0, 0])
    assert weight.ravel().tolist() == [1] * 20 + [0, 1, 1, 1, 1], "only nodata was not delivered"
    frames = window(source, "nlcd", Tile(0, 0, 5, 5), np.array([0]), {})
    assert torch.equal(frames.weight[0, 0] > 0, frames.present[0, 0]), "an unknown code weighs nothing"


def test_cubes_of_two_spacings_do_not_share_a_batch(
    cube: Cube, datasets: dict[str, xr.Dataset], tmp_path: Path
) -> None:
    coarse = open_cube(write_cube(tmp_path / "c.zarr", {"landsat": datasets["landsat"]}, YEAR))
    with pytest.raises(BadInput, match="pixels of 30 m"):
        check([cube, coarse], toy_recipe(data={"patch": 32}))


# --- the table of samples -------------------------------------------------------------------------------------------


def moved(cube: Cube, path: Path, columns: float = 0, crs: str | None = None) -> Cube:
    """The same cube elsewhere: so many px to the east, or in another CRS."""
    grid = GeoBox(cube.shape, cube.grid.transform * Affine.translation(columns, 0), crs or cube.grid.crs)
    return replace(cube, path=path, grid=grid)


def tiles_of(samples: Samples) -> list[Tile]:
    places = zip(samples.top.tolist(), samples.left.tolist(), samples.side.tolist(), strict=True)
    return [Tile(top, left, top + side, left + side) for top, left, side in places]


def overlap(a: Tile, b: Tile) -> bool:
    return a.top < b.bottom and b.top < a.bottom and a.left < b.right and b.left < a.right


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Cube:
    """192 px: sixteen sites of 48 px."""
    return made_up_cube(tmp_path_factory.mktemp("wide") / "cube.zarr", side=192)


def test_windows_lie_inside_sites_and_whole_sites_are_held_out(wide: Cube) -> None:
    plan = toy_recipe(data={"validation": 0.25, "windows": 3})
    samples = draw([wide], plan)
    assert samples.counts() == {"train": 36, "validation": 12, "sites": 16}
    assert (samples.side == 32).all()
    sites = {}
    for tile, site, split in zip(tiles_of(samples), samples.site, samples.split, strict=True):
        corner = tile.top // 48, tile.left // 48
        assert ((tile.bottom - 1) // 48, (tile.right - 1) // 48) == corner
        assert sites.setdefault(corner, (site, split)) == (site, split)
    assert len({site for site, _ in sites.values()}) == len(sites) == 16
    again = draw([wide], plan)
    other = draw([wide], plan.replace(train={"seed": 1}))
    assert again.top.tolist() == samples.top.tolist()
    assert again.split.tolist() == samples.split.tolist()
    assert other.top.tolist() != samples.top.tolist()


def test_windows_hold_data(tmp_path: Path) -> None:
    """The left half of this cube was never delivered."""
    stored = np.full((4, 96, 96), 2000, dtype="uint16")
    stored[:, :, :48] = 0
    data = {"sentinel-2": scene("sentinel-2", {"B02": stored}, 10)}
    samples = draw([open_cube(write_cube(tmp_path / "c.zarr", data, YEAR))], toy_recipe(data={"site": 96}))
    assert len(samples) == 4
    assert (samples.left >= 32).all()
    empty = {"sentinel-2": scene("sentinel-2", {"B02": np.zeros_like(stored)}, 10)}
    with pytest.raises(BadInput, match=r"d.zarr: no 32x32 px place with data"):
        draw([open_cube(write_cube(tmp_path / "d.zarr", empty, YEAR))], toy_recipe())


def test_a_year_without_data_has_no_sample(tmp_path: Path) -> None:
    """Two years of a cube, the second of which holds frames: supports that lie in the first fall out."""
    data = scene("sentinel-2", {"B02": np.full((18, 48, 48), 2000, dtype="uint16")}, 10, first="2023-01-05")
    cube = open_cube(write_cube(tmp_path / "c.zarr", {"sentinel-2": data}, Period.parse("2022:2023")))
    samples = draw([cube], toy_recipe())
    assert len(samples) == 4
    assert set(samples.start.tolist()) == {YEAR.start}


@pytest.mark.parametrize("by", ["the same ground", "half a site", "another CRS"])
def test_two_cubes_of_one_ground_share_no_ground_between_splits(wide: Cube, tmp_path: Path, by: str) -> None:
    """However their grids lie to one another."""
    plan = toy_recipe(data={"validation": 0.2, "windows": 6})
    if by == "another CRS":
        # Zone 33's central meridian is zone 32's 6 degrees east: 500 km there are some 970 km here.
        from odc.geo.geom import point

        corner = point(500_000, 5_000_000, "EPSG:32633").to_crs("EPSG:32632")
        x, y = corner.coords[0]
        grid = GeoBox(wide.shape, Affine(10, 0, round(x, -1) - 500, 0, -10, round(y, -1)), "EPSG:32632")
        twin = replace(wide, path=tmp_path / "twin.zarr", grid=grid)
    else:
        twin = moved(wide, tmp_path / "twin.zarr", 24 if by == "half a site" else 0)
    samples = draw([wide, twin], plan)
    counts = samples.counts()
    assert counts["validation"] > 0
    assert counts["train"] > 40
    if by == "the same ground":
        assert counts["sites"] == 16
        assert len(samples) == 2 * 16 * 6
    else:
        assert counts["sites"] > 20
    cubes = {str(cube.path): cube for cube in (wide, twin)}
    boxes = [
        cubes[path].grid[tile.slices].extent.to_crs("EPSG:32633").geom.buffer(-2)  # metres: what touches shares nothing
        for path, tile in zip(samples.cube, tiles_of(samples), strict=True)
    ]
    train, held = (np.array(boxes)[samples.split == split] for split in ("train", "validation"))
    assert not any(shapely.intersects(box, held).any() for box in train)


def test_a_cube_too_small_for_two_sites_holds_nothing_out(tmp_path: Path) -> None:
    small = made_up_cube(tmp_path / "small.zarr", side=40, hole=False)
    samples = draw([small], toy_recipe(data={"validation": 0.3}))
    assert samples.counts() == {"train": 4, "validation": 0, "sites": 1}
    two = [small, moved(small, tmp_path / "b.zarr", 20)]
    with pytest.raises(BadInput, match=r"data.validation = 0.5 leaves no ground of 2 sites"):
        draw(two, toy_recipe(data={"validation": 0.5}))


def test_a_saved_table_gives_the_same_batches(wide: Cube, tmp_path: Path) -> None:
    plan = toy_recipe(data={"validation": 0.25})
    samples = draw([wide], plan)
    loaded = Samples.load(samples.save(tmp_path / "samples.parquet"), [wide], plan)
    assert loaded.counts() == samples.counts()
    for name in ("cube", "site", "top", "left", "side", "start", "end", "split"):
        assert getattr(loaded, name).tolist() == getattr(samples, name).tolist()
    same(next(batches([wide], samples, plan)), next(batches([wide], loaded, plan)))
    elsewhere = replace(wide, path=tmp_path / "moved.zarr")
    assert set(Samples.load(tmp_path / "samples.parquet", [elsewhere], plan).cube) == {str(elsewhere.path)}


def test_a_table_that_does_not_fit_is_refused(wide: Cube, cube: Cube, tmp_path: Path) -> None:
    plan, path = toy_recipe(), tmp_path / "samples.parquet"
    draw([wide], plan).save(path)

    def refused(cubes: list[Cube], recipe: Recipe, match: str) -> None:
        with pytest.raises(BadInput, match=match) as told:
            Samples.load(path, cubes, recipe)
        assert "\n" not in str(told.value)

    refused([cube], plan, r"it was drawn from .*cube.zarr too, which is not given")
    refused([wide, cube], plan, r"it was not drawn from .*cube.zarr")
    refused([wide], toy_recipe(data={"patch": 48}), r"windows are of 32 px, the recipe's data.patch is 48")
    refused([replace(cube, path=wide.path)], plan, r"windows lie outside .*96x96 px")
    refused([replace(wide, period=Period.parse("2023-02"))], plan, r"periods lie outside 2023-02-01:2023-02-28")
    path.write_bytes(b"no table")
    refused([wide], plan, "no Parquet file, or damaged")
    import pandas as pd

    pd.DataFrame({"top": [1]}).to_parquet(path)
    refused([wide], plan, "no table of samples")
    path.unlink()
    refused([wide], plan, "there is no table of samples")


# --- statistics -----------------------------------------------------------------------------------------------------


def test_statistics_are_those_of_clear_values_of_training_samples(tmp_path: Path) -> None:
    """Two levels of blue: over clear pixels half of either; clouded pixels hold another."""
    stored = np.full((4, 96, 96), 1000, dtype="uint16")
    stored[2:] = 3000
    scl = np.full(stored.shape, 4, dtype="uint8")
    scl[:, ::2], stored[:, ::2] = 9, 60000
    data = scene("sentinel-2", {"B02": stored}, 10).assign(scl=(("time", "y", "x"), scl))
    cube = open_cube(write_cube(tmp_path / "c.zarr", {"sentinel-2": data}, YEAR))
    plan = toy_recipe()
    found = measure([cube], draw([cube], plan), plan)
    low, high = np.log1p(1000), np.log1p(3000)
    assert set(found) == set(plan.data.sources)
    assert found["sentinel-2"].mean[0] == pytest.approx((low + high) / 2, rel=1e-6)
    assert found["sentinel-2"].std[0] == pytest.approx((high - low) / 2, rel=1e-6)
    table = SOURCES["sentinel-2"].bands[1]
    assert (found["sentinel-2"].mean[1], found["sentinel-2"].std[1]) == (table.mean, table.std), "never delivered"
    assert found["landsat"].mean == tuple(band.mean for band in SOURCES["landsat"].bands)


def test_inputs_are_standardised_by_the_recipes_statistics(wide: Cube) -> None:
    plan = toy_recipe()
    samples = draw([wide], plan)
    found = measure([wide], samples, plan)
    assert measure([wide], samples, plan) == found
    known = plan.replace(statistics={name: moments.model_dump() for name, moments in found.items()})
    assert measure([wide], samples, known) == found
    frames = next(batches([wide], samples, known)).inputs["sentinel-2"]
    values = frames.pixels.movedim(2, 0)[:, frames.weight > 0]
    torch.testing.assert_close(values.mean(1), torch.zeros(5), atol=0.25, rtol=0)
    torch.testing.assert_close(values.std(1), torch.ones(5), atol=0.25, rtol=0)
    narrow = {"sentinel-1": {"mean": [0.0] * 4, "std": [1.0] * 4}}
    one = window(wide, "sentinel-1", Tile(0, 0, 32, 32), np.array([0]), plan.replace(statistics=narrow).statistics)
    assert one.pixels.min() == -6, "decibels, cut at 6"


def test_every_continuous_source_has_statistics(whole: Cube) -> None:
    plan = every_target()
    found = measure([whole], draw([whole], plan), plan)
    assert set(found) == {name for name in RASTERS if SOURCES[name].kind == "continuous"}
    for name, moments in found.items():
        for band, mean, std in zip(SOURCES[name].bands, moments.mean, moments.std, strict=True):
            assert std > 0
            varied = band.mean != 0  # these made-up values are some tenths more or less than the table's mean
            assert ((mean, std) != (band.mean, band.std)) == varied, (name, band.name)


# --- batches --------------------------------------------------------------------------------------------------------


def same(a: Batch, b: Batch, rows: slice = slice(None)) -> None:
    """All of one batch, as some rows of another."""
    assert set(a.inputs) == set(b.inputs)
    for ours, theirs in ((a.inputs, b.inputs), (a.targets, b.targets)):
        for name, frames in ours.items():
            for part in ("pixels", "present", "bands", "weight", "time", "meta"):
                assert torch.equal(getattr(frames, part), getattr(theirs[name], part)[rows]), (name, part)
    for name, valid in a.valid.items():
        assert torch.equal(valid, b.valid[name][rows])
    for name, drops in a.student.drops.items():
        assert torch.equal(drops, b.student.drops[name][rows])
    assert torch.equal(a.student.valid, b.student.valid[rows])
    assert torch.equal(a.support, b.support[rows])
    assert torch.equal(a.apart, b.apart[rows])


def test_batches_hang_on_the_seed_and_the_step_alone(wide: Cube) -> None:
    plan = toy_recipe(loss={"targets": 2}, train={"accumulate": 2})
    samples = draw([wide], plan)
    first = list(islice(batches([wide], samples, plan), 6))
    same(first[4], next(batches([wide], samples, plan, first=3)))
    twice = plan.replace(train={"batch": 4, "accumulate": 1})
    other = next(batches([wide], samples, plan.replace(train={"seed": 1})))
    assert not torch.equal(first[0].inputs["sentinel-2"].time, other.inputs["sentinel-2"].time)
    assert not torch.equal(first[0].inputs["sentinel-2"].time, first[1].inputs["sentinel-2"].time)
    assert first[0].inputs["sentinel-2"].time.shape == (2, 8), "six frames and the two that become targets"
    assert first[0].targets["sentinel-2"].time.shape == (2, 2)
    assert first[0].valid["sentinel-2"].shape == (2, 2)
    assert not first[0].inputs["landsat"].present.any(), "a source that the cube lacks is not present"
    assert next(batches([wide], samples, twice)).inputs["sentinel-2"].time.shape == (4, 8)


def test_processes_share_the_batch_of_one(wide: Cube, tmp_path: Path) -> None:
    """The second cube has fewer frames, so that rows differ in length."""
    short = replace(wide, path=tmp_path / "b.zarr", period=Period.parse("2023-02:2023-05"))
    cubes = [wide, moved(short, tmp_path / "b.zarr", 1000)]
    plan = toy_recipe(data={"frames": [20, 4, 4]}, train={"batch": 6})
    samples = draw(cubes, plan)
    for step in (1, 2):
        whole = next(batches(cubes, samples, plan, first=step))
        assert len({tuple(row) for row in whole.support.tolist()}) == 2
        for rank in range(3):
            part = next(batches(cubes, samples, plan, first=step, rank=rank, world=3))
            same(part, whole, slice(2 * rank, 2 * rank + 2))
    with pytest.raises(BadInput, match=r"train.batch = 6 is no multiple of 4 processes"):
        next(batches(cubes, samples, plan, world=4))
    with pytest.raises(BadInput, match=r"2 samples of train\.batch a process"):
        next(batches(cubes, samples, plan.replace(loss={"student_every": 4}), world=3))


def test_an_epoch_visits_every_site_once_and_each_visit_another_window(wide: Cube) -> None:
    plan = toy_recipe(train={"batch": 4})
    samples = draw([wide], plan)
    site, rows = {}, Plan(samples, [wide], plan)
    for tile, name in zip(tiles_of(samples), samples.site, strict=True):
        site[tile] = name
    seen: list[Tile] = []
    for epoch in range(4):
        works = [rows.work(4 * epoch + number, (1, 0), 0, 1) for number in range(4)]
        assert all(all(work.apart) for work in works)
        tiles = [place.tile for work in works for place in work.places]
        assert sorted(site[tile] for tile in tiles) == sorted(set(samples.site))
        seen += tiles
    assert len(set(seen)) == len(samples) == 64


def test_batches_are_of_places_apart_where_there_is_room(wide: Cube, tmp_path: Path) -> None:
    """Uniformity rests on pairs of independent places: a batch says which of its pairs are not."""
    plan = toy_recipe(train={"batch": 4}, data={"site": 32, "windows": 2})
    tight = made_up_cube(tmp_path / "tight.zarr", side=40, hole=False)
    assert not next(stream([tight], plan)).apart.any()
    twin = moved(tight, tmp_path / "twin.zarr")
    assert not next(stream([tight, twin], plan)).apart.any(), "two cubes of one ground"
    far = moved(tight, tmp_path / "far.zarr", 4000)
    assert next(stream([tight, far], toy_recipe())).apart.all(), "one place in each"
    shifted = [wide, moved(wide, tmp_path / "shifted.zarr", 24)]
    rows = Plan(draw(shifted, toy_recipe(train={"batch": 6})), shifted, toy_recipe(train={"batch": 6}))
    apart = [rows.work(number, (1, 0), 0, 1).apart for number in range(4)]
    assert all(map(all, apart)), "of two grids, sites that share ground are kept from one another"


def test_rows_of_like_length_come_together(cube: Cube, tmp_path: Path) -> None:
    """Four kinds of cube, of a quarter of a year to a year: a batch pads little, though rows are drawn at random."""
    months = ("2023-01:2023-03", "2023-01:2023-05", "2023-01:2023-08", "2023")
    cubes = [
        replace(moved(cube, tmp_path / f"{number}.zarr", 1000 * number), period=Period.parse(months[number % 4]))
        for number in range(16)
    ]
    plan = toy_recipe(data={"frames": [40, 20, 4], "validation": 0.0}, train={"batch": 4})
    rows = Plan(draw(cubes, plan), cubes, plan)
    lengths = {}
    for number in range(16):
        work = rows.work(number, (1, 0), 0, 1)
        lengths[number] = {place.support for place in work.places}
    assert sum(len(each) == 1 for each in lengths.values()) >= 12
    firsts = [next(iter(each)).end for each in lengths.values()]
    assert firsts != sorted(firsts), "not the shortest first"


def test_sites_of_many_frames_are_visited_though_an_epoch_leaves_some_out(cube: Cube, tmp_path: Path) -> None:
    """With 62 sites an epoch of 15 batches leaves two out: not always the two of the longest supports."""
    short = replace(cube, period=Period.parse("2023-01:2023-03"))
    cubes = [moved(short, tmp_path / f"{number}.zarr", 1000 * number) for number in range(15)]
    cubes.append(moved(cube, tmp_path / "whole.zarr", 15000))
    plan = toy_recipe(data={"frames": [40, 20, 4], "validation": 0.0}, train={"batch": 4})
    samples = draw(cubes, plan)
    for gone in np.unique(samples.site[samples.cube == str(cubes[-1].path)])[:2]:
        samples = samples.at(samples.site != gone)
    assert len(np.unique(samples.site)) == 62
    rows = Plan(samples, cubes, plan)
    long = [sum(place.cube == 15 for place in rows.work(number, (1, 0), 0, 1).places) for number in range(15 * 8)]
    assert sum(long) >= 8, "of the two sites that have more frames, in eight epochs"


def test_held_out_batches_are_the_same_every_time(wide: Cube) -> None:
    plan = toy_recipe(data={"validation": 0.25})
    samples = draw([wide], plan)
    held = validation([wide], samples, plan, 3)
    assert len(held) == 3
    for one, other in zip(held, validation([wide], samples, plan, 3), strict=True):
        same(one, other)
    assert not torch.equal(held[0].inputs["sentinel-2"].pixels, held[1].inputs["sentinel-2"].pixels)


def levels(batch: Batch) -> set[float]:
    """Every value of blue in the inputs and targets."""
    frames = (batch.inputs["sentinel-2"], batch.targets["sentinel-2"])
    return {value for each in frames for value in each.pixels[:, :, 0][each.present].unique().tolist()}


def test_no_value_of_a_held_out_site_is_trained_on(wide: Cube) -> None:
    plan = toy_recipe(data={"validation": 0.25})
    samples = draw([wide], plan)
    source = wide.sources["sentinel-2"]
    blue = np.full((len(source.times), 192, 192), 2000, dtype="uint16")
    for tile in tiles_of(samples.of("validation")):
        blue[:, tile.top // 48 * 48 : tile.top // 48 * 48 + 48, tile.left // 48 * 48 : tile.left // 48 * 48 + 48] = 900
    marked = replace(source, arrays={**{key: array[:] for key, array in source.arrays.items()}, "B02": blue})
    cube = replace(wide, sources={**wide.sources, "sentinel-2": marked})
    trained = {level for batch in islice(batches([cube], samples, plan), 12) for level in levels(batch)}
    held = {level for batch in validation([cube], samples, plan, 4) for level in levels(batch)}
    assert (len(trained), len(held)) == (1, 1)
    assert trained != held
    none = validation([cube], samples.of("train"), plan, 1)
    assert len(none) == 1


def test_reading_from_memory_and_from_disk_is_the_same(wide: Cube) -> None:
    plan = toy_recipe()
    work = Plan(draw([wide], plan), [wide], plan).work(5, (6, 0), 0, 1)
    same(Reader(Cubes([wide], plan), plan, None)(work), Reader(Cubes([wide], plan, most=0), plan, None)(work))


def test_loader_processes_give_the_same_batches_and_their_errors(
    cube: Cube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One cube lies in memory, which they share; the other on disk, and is damaged while they run."""
    monkeypatch.setattr(memory, "_PRELOAD", 0)
    at_hand = {
        name: replace(source, arrays={key: array[:] for key, array in source.arrays.items()})
        for name, source in cube.sources.items()
    }
    held = replace(moved(cube, tmp_path / "held.zarr", 1000), sources=at_hand)
    cubes, plan = [made_up_cube(tmp_path / "c.zarr", seed=1), held], toy_recipe(loss={"targets": 2})
    samples, workers = draw(cubes, plan), plan.replace(data={"workers": 2})
    with closing(batches(cubes, samples, plan)) as here, closing(batches(cubes, samples, workers)) as there:
        for _ in range(3):
            same(next(here), next(there))
        shutil.rmtree(cubes[0].path / "sentinel-2" / "B02" / "c")
        with pytest.raises(Damaged, match=r"B02/c/\d/\d/\d is missing \(aef verify"):
            deque(islice(there, 20), maxlen=0)
    assert not multiprocessing.active_children()


def test_an_error_of_reading_comes_out_where_a_batch_is_asked_for(tmp_path: Path) -> None:
    cube, plan = made_up_cube(tmp_path / "c.zarr", side=48), toy_recipe()
    samples = draw([cube], plan)
    shutil.rmtree(cube.path / "sentinel-2" / "B02" / "c")
    with pytest.raises(Damaged, match="is missing"):
        next(batches([cube], samples, plan))


def test_closing_ends_the_thread(wide: Cube) -> None:
    before = set(threading.enumerate())
    running = stream([wide], toy_recipe())
    next(running)
    assert set(threading.enumerate()) - before
    running.close()
    assert set(threading.enumerate()) == before


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_writes_the_table_and_says_what_it_holds(aef: Aef, wide: Cube) -> None:
    words = ["samples", str(wide.path), "--set", "data.patch=32", "--set", "data.site=48", "--set", "data.windows=2"]
    code, out, err = aef(*words, "--set", "data.validation=0.25", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert (told["train"], told["validation"], told["sites"]) == (24, 8, 16)
    row = {"cube": str(wide.path), "sites": 16, "train": 24, "validation": 8, "windows": 32, "supports": 16}
    assert told["cubes"] == [row]
    plan = recipe.load("nano").replace(data={"site": 48, "patch": 32})
    assert Samples.load(Path("samples.parquet"), [wide], plan).counts()["train"] == 24
    code, out, err = aef(*words, "--set", "data.validation=0.01", "--out", "folder/other.parquet")
    assert code == 0
    assert "too few sites to hold 0.01 of them out" in err
    assert "│" in out
    assert Path("folder/other.parquet").is_file()
    assert aef("samples", "nowhere.zarr")[0] == 2
    code, out, err = aef(*words, "--rows")
    head, *rows = [line for line in out.splitlines() if line.count(",") == 7]
    assert (code, head) == (0, "cube,site,top,left,side,first,last,split"), err
    table = Samples.load(Path("samples.parquet"), [wide], plan)
    assert [line.split(",")[2:4] for line in rows] == [
        [str(top), str(left)] for top, left in zip(table.top, table.left, strict=True)
    ]
    assert {tuple(line.split(",")[4:7]) for line in rows} == {("32", "2023-01-01", "2023-12-31")}
    assert [line.split(",")[7] for line in rows] == table.split.tolist()
