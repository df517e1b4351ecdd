"""From stored numbers to frames and batches."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from toys import YEAR, made_up_cube, toy_recipe

from aefcli.cube import Cube, open_cube, write_cube
from aefcli.errors import BadInput
from aefcli.extent import Period, Tile
from aefcli.sample import batches, check, normalise, preload, support_of, window
from aefcli.sources import SOURCES


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> Cube:
    return made_up_cube(tmp_path_factory.mktemp("cube") / "cube.zarr")


def scene(name: str, values: dict[str, np.ndarray], gsd: int, offset: float = 0.0) -> xr.Dataset:
    """A dataset of a source whose corner is (500000, 5000000), a frame every 20 days from 5 January 2023."""
    import rioxarray  # noqa: F401 - adds .rio

    t, height, width = next(iter(values.values())).shape
    coords = {
        "time": np.datetime64("2023-01-05", "ms") + 20 * np.arange(t) * np.timedelta64(1, "D"),
        "y": 5_000_000 - gsd * (np.arange(height) + 0.5),
        "x": 500_000 + gsd * (np.arange(width) + 0.5),
    }
    made = xr.Dataset({key: (("time", "y", "x"), value) for key, value in values.items()}, coords)
    bands = [band for band in SOURCES[name].bands if band.name in values]
    made["offset"] = ("band", np.array([band.offset + offset for band in bands]))
    made["scale"] = ("band", np.array([band.scale for band in bands]))
    return made.assign_coords(band=[band.name for band in bands]).rio.write_crs("EPSG:32633")


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
    from aefcli.cube.store import _weight

    power = np.full((2, 3, 3), 0.1, dtype="float32")
    nodata = np.full((1, 3, 3), SOURCES["sentinel-1"].nodata, dtype="float32")
    slab = {name: np.concatenate([power[:1], nodata]) for name in ("VV", "VH")}
    slab |= {name: np.concatenate([nodata, power[:1]]) for name in ("HH", "HV")}
    delivered = np.array([[True, True, False, False], [False, False, True, True]])
    assert _weight(slab, SOURCES["sentinel-1"], delivered).all()
    slab["VV"][0, 1, 1] = nodata[0, 0, 0]
    assert _weight(slab, SOURCES["sentinel-1"], delivered)[0].sum() == 8


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
    from dataclasses import replace

    rng = np.random.default_rng(0)
    assert support_of(cube, rng) == cube.period
    long = replace(cube, period=Period.parse("2020:2023"))
    drawn = [support_of(long, rng) for _ in range(50)]
    assert all(support.days == 366 for support in drawn)
    assert min(support.start for support in drawn) >= long.period.start
    assert max(support.end for support in drawn) <= long.period.end
    assert len({support.start for support in drawn}) > 40
