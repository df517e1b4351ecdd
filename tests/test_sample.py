"""From stored numbers to frames and batches."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from odc.geo.geobox import GeoBox
from rasterio import Affine
from toys import YEAR, made_up_cube, toy_recipe

from aefcli.batch import perturb
from aefcli.cube import Cube, open_cube, write_cube
from aefcli.errors import BadInput
from aefcli.extent import Period, Tile
from aefcli.recipe import Recipe
from aefcli.sample import batches, check, normalise, preload, support_of, window
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
    values, present = normalise(source.read(Tile(0, 0, 2, 3), np.array([0]))[0], source, np.array([0]))
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
    values, present = normalise(source.read(Tile(0, 0, 2, 3), np.array([0]))[0], source, np.array([0]))
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
    frames = window(cube, "landsat", Tile(-4, -2, 12, 14), np.array([1]))
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
    frames = window(cube, "sentinel-2", Tile(0, 0, 32, 32), np.arange(3))
    assert frames.present.all()
    assert not frames.weight[..., :12, :12].any()
    assert frames.weight[..., 12:, 12:].all()
    assert frames.pixels[..., :12, :12].abs().sum() > 0


def test_batches_depend_on_seed_and_number_alone(cube: Cube) -> None:
    plan = toy_recipe()
    first, again = (list(islice(batches([cube], plan, seed=1), 3)) for _ in range(2))
    (third,) = islice(batches([cube], plan, seed=1, skip=2), 1)
    (other,) = islice(batches([cube], plan, seed=2), 1)
    for name in plan.data.sources:
        assert torch.equal(first[2].inputs[name].pixels, again[2].inputs[name].pixels)
        assert torch.equal(first[2].inputs[name].pixels, third.inputs[name].pixels)
        assert torch.equal(first[2].valid[name], third.valid[name])
    assert not torch.equal(first[0].inputs["sentinel-2"].pixels, other.inputs["sentinel-2"].pixels)
    assert first[0].inputs["sentinel-2"].pixels.shape[:1] == (2,)
    assert first[0].inputs["sentinel-2"].time.shape[1] == 7, "six frames and the one that becomes the target"
    assert not first[0].inputs["landsat"].present.any(), "a source that the cube lacks is not present"


def test_a_source_without_a_frame_in_the_support_is_not_present(tmp_path: Path) -> None:
    """The cube has the source, of other years: as if it had it not, through the whole of a batch."""
    two = {"sources": ["sentinel-2", "landsat"], "frames": [6, 4]}
    made = {
        "sentinel-2": scene("sentinel-2", {"B02": np.full((9, 48, 48), 2000, dtype="uint16")}, 10),
        "landsat": scene("landsat", {"B2": np.full((2, 16, 16), 9000, dtype="uint16")}, 30, first="2030-01-05"),
    }
    cube = open_cube(write_cube(tmp_path / "c.zarr", made, YEAR))
    (batch,) = islice(batches([cube], toy_recipe(data=two), 1), 1)
    assert batch.inputs["sentinel-2"].present.any()
    assert not batch.inputs["landsat"].present.any()
    assert not batch.targets["landsat"].weight.any()
    perturb(batch, torch.Generator().manual_seed(0))


def test_pairs_of_the_same_ground_are_known(cube: Cube, tmp_path: Path) -> None:
    """Uniformity rests on pairs of independent places: a batch says which of its pairs are not."""
    plan = toy_recipe(train={"batch": 4})
    (roomy,) = islice(batches([made_up_cube(tmp_path / "large.zarr", side=320)], plan, 1), 1)
    assert roomy.apart.all()
    tight = made_up_cube(tmp_path / "tight.zarr", side=40, hole=False)
    (crowded,) = islice(batches([tight], plan, 1), 1)
    assert not crowded.apart.any()
    twin = replace(tight, path=tmp_path / "twin.zarr")
    (copied,) = islice(batches([tight, twin], plan, 1), 1)
    assert not copied.apart.any(), "two cubes of one ground"
    moved = GeoBox(tight.shape, tight.grid.transform * Affine.translation(4000, 0), tight.grid.crs)
    (both,) = islice(batches([tight, replace(twin, grid=moved)], toy_recipe(train={"batch": 2}), 1), 1)
    assert both.apart.all(), "one place in each"


def test_reading_from_memory_and_from_disk_is_the_same(cube: Cube) -> None:
    loaded = preload(cube)
    for name, source in cube.sources.items():
        for ours, theirs in zip(
            source.read(Tile(5, 7, 50, 41), np.array([0, 3, 5])),
            loaded.sources[name].read(Tile(5, 7, 50, 41), np.array([0, 3, 5])),
            strict=True,
        ):
            np.testing.assert_array_equal(ours, theirs)


def test_cubes_that_do_not_fit_the_recipe_are_refused(cube: Cube) -> None:
    with pytest.raises(BadInput, match="sentinel-1"):
        check([cube], toy_recipe(data={"sources": ["landsat"], "frames": [3]}))
    with pytest.raises(BadInput, match="smaller than"):
        check([cube], toy_recipe(data={"patch": 112}))


def test_support_is_at_most_a_year(cube: Cube) -> None:
    rng = np.random.default_rng(0)
    assert support_of(cube, rng) == cube.period
    long = replace(cube, period=Period.parse("2020:2023"))
    drawn = [support_of(long, rng) for _ in range(50)]
    assert all(support.days == 366 for support in drawn)
    assert min(support.start for support in drawn) >= long.period.start
    assert max(support.end for support in drawn) <= long.period.end
    assert len({support.start for support in drawn}) > 40


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


def every_target(**data: object) -> Recipe:
    return toy_recipe(data={"targets": [*ALONE, "text"], **data}, model={"text": 5})


def test_a_cube_of_every_source_becomes_batches_with_every_target(whole: Cube) -> None:
    batch = next(batches([whole], every_target(), seed=0, texts=told(whole)))
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
        start, end = batch.valid[name].unbind(1)
        assert ((start <= target.time[:, 0]) & (target.time[:, 0] < end)).all(), "the period holds the instant"
        assert ((batch.support[:, 0] <= start) & (end <= batch.support[:, 1])).all(), name
    assert batch.gsd == 10


def test_targets_hold_what_the_cube_holds_at_their_instant(whole: Cube, datasets: dict[str, xr.Dataset]) -> None:
    """The patch is the cube, so that every pixel is known."""
    batch = next(batches([whole], every_target(patch=SIDE), seed=1))
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
    stream = islice(batches([whole], every_target(), seed=2), 8)
    instants = torch.cat([torch.cat([batch.targets[name].time for name in ("glo-30", "nlcd")]) for batch in stream])
    assert ((instants >= YEAR.start) & (instants < YEAR.end)).all()
    assert len(instants.unique()) == len(instants)
    months = (instants - YEAR.start) // (YEAR.days * 86_400_000 / 12)
    assert len(months.unique()) > 6


def test_the_mapped_year_nearest_to_the_support_is_taken(whole: Cube) -> None:
    maps = [window(whole, "nlcd", Tile(0, 0, SIDE, SIDE), np.array([index])).pixels for index in range(2)]
    np.testing.assert_array_equal(whole.sources["nlcd"].times, MAPPED)
    for year, index in (("2010", 0), ("2018", 0), ("2019", 1), ("2023", 1)):
        period = Period.parse(year)
        inputs = {
            name: replace(source, times=source.times + period.start - YEAR.start) if name in INPUTS else source
            for name, source in whole.sources.items()
        }
        moved = replace(whole, period=period, sources=inputs)
        batch = next(batches([moved], every_target(patch=SIDE), seed=0))
        assert torch.equal(batch.targets["nlcd"].pixels[0], maps[index][0]), year


def test_a_frame_with_something_in_it_is_preferred(whole: Cube) -> None:
    june = whole.sources["gedi"].times[5]
    for batch in islice(batches([whole], every_target(patch=SIDE), seed=3), 3):
        assert batch.targets["gedi"].time.tolist() == [[june], [june]]
    dynamic = torch.cat([batch.targets["grace"].time for batch in islice(batches([whole], every_target(), seed=3), 8)])
    assert len(dynamic.unique()) > 5


def test_targets_that_a_cube_lacks_are_not_present(cube: Cube) -> None:
    plan = every_target()
    check([cube], plan)
    batch = next(batches([cube], plan, seed=0))
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
    ours, theirs = (next(batches([one], toy_recipe(), seed=4, texts=told(one))) for one in (whole, bare))
    assert set(ours.targets) == set(INPUTS)
    assert ours.text is None
    for name in INPUTS:
        assert torch.equal(ours.inputs[name].pixels, theirs.inputs[name].pixels)
        assert torch.equal(ours.valid[name], theirs.valid[name])


def test_the_text_of_a_place_travels_with_its_pixel_and_period(whole: Cube) -> None:
    text = next(batches([whole], every_target(patch=SIDE), seed=0, texts=told(whole))).text
    assert text is not None
    assert text.there.tolist() == [True, True]
    assert text.pixel.tolist() == [list(SPOT)] * 2
    assert torch.equal(text.vector, torch.eye(5)[[0, 0]])
    spring = Period.parse("2023-03:2023-05")
    assert text.valid.tolist() == [[spring.start, spring.end]] * 2


def test_texts_are_sought_and_their_absence_is_said(tmp_path: Path) -> None:
    """One text on a cube of 256 px: by chance a patch of 32 px would hold it once in fifty."""
    large = made_up_cube(tmp_path / "large.zarr", side=256)
    drawn = [batch.text for batch in islice(batches([large], every_target(), seed=0, texts=told(large, 133, 99)), 8)]
    there = torch.cat([text.there for text in drawn if text is not None])
    assert 4 <= there.sum() <= 12
    for text in drawn:
        assert text is not None
        assert not text.vector[~text.there].any()
        assert torch.equal(text.valid[~text.there], torch.tensor([[YEAR.start, YEAR.end]]).expand(2, 2)[~text.there])
        assert ((text.pixel >= 0) & (text.pixel < 32)).all()
    pixels = torch.cat([text.pixel[text.there] for text in drawn if text is not None])
    assert len(pixels.unique(dim=0)) > 2, "anywhere in the patch"
    only = next(batches([large], every_target(), seed=0, texts=told(large, 999, 999))).text
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
    frames = window(whole, "palsar-2", Tile(0, 0, 16, 16), np.array([0, 4]))
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
    values, present = normalise(source.read(Tile(0, 0, 2, 3), np.array([0]))[0], source, np.array([0]))
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
    values, present = normalise(stored, source.sources["nlcd"], np.array([0]))
    assert (values.shape, values.dtype) == ((1, 1, 5, 5), np.float32)
    assert present.ravel().tolist() == [True] * 20 + [False] * 5
    np.testing.assert_array_equal(values.ravel(), [*range(20), 0, 0, 0, 0, 0])
    assert weight.ravel().tolist() == [1] * 20 + [0, 1, 1, 1, 1], "only nodata was not delivered"
    frames = window(source, "nlcd", Tile(0, 0, 5, 5), np.array([0]))
    assert torch.equal(frames.weight[0, 0] > 0, frames.present[0, 0]), "an unknown code weighs nothing"


def test_cubes_of_two_spacings_do_not_share_a_batch(
    cube: Cube, datasets: dict[str, xr.Dataset], tmp_path: Path
) -> None:
    coarse = open_cube(write_cube(tmp_path / "c.zarr", {"landsat": datasets["landsat"]}, YEAR))
    with pytest.raises(BadInput, match="pixels of 30 m"):
        check([cube, coarse], toy_recipe(data={"patch": 32}))
