"""Fields in Python: `aefcli.open_field` and `ds.aef`, however the field was opened; nothing is read too early."""

from __future__ import annotations

import doctest
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from test_field import CHUNK, PERIODS, UTM, make_field

import aefcli
from aefcli import accessor, field
from aefcli.errors import BadInput
from aefcli.extent import Tile, tiles
from aefcli.published import open_vectors
from aefcli.report.thin import Thinned, painter_of

HOLE = (slice(CHUNK, 2 * CHUNK), slice(CHUNK, 2 * CHUNK))  # without data in the first period


def lonlat(row: float, column: float) -> tuple[float, float]:
    """Degrees of a pixel's centre."""
    to_degrees = Transformer.from_crs("EPSG:32631", "EPSG:4326", always_xy=True)
    affine = UTM.transform
    return to_degrees.transform(affine.c + affine.a * (column + 0.5), affine.f + affine.e * (row + 0.5))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A field of two periods, and its vectors float32 (time, 64, y, x). Not to be changed."""
    path = tmp_path_factory.mktemp("field") / "embeddings.zarr"
    codes, _ = make_field(path)
    return path, field.dequantise(codes, axis=1)


@pytest.fixture(scope="module")
def floats(made: tuple[Path, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same vectors stored as float16."""
    path, vectors = tmp_path_factory.mktemp("floats") / "embeddings.zarr", made[1].astype("float16")
    field.create(path, UTM, PERIODS, sources=[], attrs={}, chunk=CHUNK, dtype="float16")
    for tile in tiles((UTM.shape[0], UTM.shape[1]), CHUNK):
        field.write(path, tile, vectors[(..., *tile.slices)], {})
    field.finish(path)
    return path


WAYS: dict[str, Callable[[Path], xr.Dataset]] = {
    "ours": aefcli.open_field,
    "ours in chunks": lambda path: aefcli.open_field(path, chunks={}),
    "plain": xr.open_zarr,
    "plain without dask": lambda path: xr.open_zarr(path, chunks=None),
    "codes": lambda path: xr.open_zarr(path, mask_and_scale=False),
    "in memory": lambda path: xr.open_zarr(path).load(),
    "other chunks": lambda path: xr.open_zarr(path).chunk({"embedding": 8, "y": -1, "x": 40}),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_opening_gives_the_same(way: str, made: tuple[Path, np.ndarray]) -> None:
    path, expected = made
    opened = WAYS[way](path)
    assert opened.aef.grid == UTM
    assert opened.aef.periods == tuple(PERIODS)
    decoded = opened.aef.decode()
    assert (decoded.dims, decoded.dtype) == (("time", "embedding", "y", "x"), np.float32)
    assert len(decoded.chunks[1]) == 1  # whole vectors
    np.testing.assert_array_equal(decoded.values, expected)
    assert "_FillValue" not in decoded.attrs
    mask = opened.aef.mask()
    assert (mask.dims, mask.dtype) == (("time", "y", "x"), bool)
    np.testing.assert_array_equal(mask.values, np.isfinite(expected[:, 0]))
    assert not mask.values[0][HOLE].any()
    place = lonlat(5, 60)
    alike = opened.aef.similarity(*place)
    assert (alike.dims, alike.dtype) == (("time", "y", "x"), np.float32)
    cosine = np.einsum("tdyx,td->tyx", expected, expected[:, :, 5, 60])
    np.testing.assert_allclose(alike.values, cosine, atol=1e-6)
    assert alike.values[:, 5, 60] == pytest.approx([1, 1], abs=1e-6)
    rgb = opened.aef.rgb()
    assert (rgb.dims, rgb.dtype, rgb.shape) == (("time", "band", "y", "x"), np.uint8, (2, 4, 75, 70))
    np.testing.assert_array_equal(rgb.sel(band="alpha").values, np.isfinite(expected[:, 0]) * 255)
    for found in (decoded, mask, alike, rgb):
        assert {"x", "y", "time"} <= set(found.coords)


def test_vectors_stored_as_floats_come_out_as_they_are(made: tuple[Path, np.ndarray], floats: Path) -> None:
    for opened in (aefcli.open_field(floats), xr.open_zarr(floats)):
        assert opened["embeddings"].dtype == np.float16
        decoded = opened.aef.decode().values
        np.testing.assert_allclose(decoded, made[1], atol=6e-4)
        np.testing.assert_allclose(np.linalg.norm(decoded[1], axis=0), 1, atol=1e-6)
        np.testing.assert_array_equal(opened.aef.mask().values, np.isfinite(made[1][:, 0]))
        sampled = opened.aef.sample(*lonlat(5, 60)).values
        np.testing.assert_allclose(sampled[0], made[1][:, :, 5, 60], atol=6e-4)
        codes = aefcli.open_field(made[0])
        differ = opened.aef.rgb().values.astype(int) - codes.aef.rgb().values
        assert np.abs(differ).max() <= 2


def test_pictures_and_the_reader_of_all_fields_take_floats_as_well(floats: Path, made: tuple[Path, np.ndarray]) -> None:
    theirs, codes = open_vectors(floats), open_vectors(made[0])
    assert theirs.codes(Tile(0, 0, 1, 1)).dtype == np.float16
    np.testing.assert_allclose(theirs.window(Tile(0, 0, 75, 70), 0), made[1][0], atol=6e-4)
    pictures = [Thinned(vectors).painted(1, painter_of(vectors)) for vectors in (theirs, codes)]
    assert np.abs(pictures[0].astype(int) - pictures[1]).max() <= 2
    rgb = aefcli.open_field(made[0]).aef.rgb()
    np.testing.assert_array_equal(rgb.transpose("time", "y", "x", "band").values[1], pictures[1])


def test_points_have_their_pixels_vectors_and_none_outside(made: tuple[Path, np.ndarray]) -> None:
    path, expected = made
    rng = np.random.default_rng(4)
    rows, columns = rng.integers(0, 75, 40), rng.integers(0, 70, 40)
    lon, lat = np.array([lonlat(row, column) for row, column in zip(rows, columns, strict=True)]).T
    found = aefcli.open_field(path).aef.sample([*lon, 3.5], [*lat, 48.0])
    assert found.dims == ("point", "time", "embedding")
    np.testing.assert_array_equal(found.values[:-1], expected[:, :, rows, columns].transpose(2, 0, 1))
    assert np.isnan(found.values[-1]).all()
    assert found["inside"].values.tolist() == [True] * 40 + [False]
    assert found["lon"].values[-1] == 3.5
    with pytest.raises(BadInput, match="two lists"):
        aefcli.open_field(path).aef.sample([1.0, 2.0], [3.0])


@pytest.mark.parametrize(
    "cut",
    [
        {"y": slice(10, 30), "x": slice(50, 70)},
        {"y": slice(None, None, -1)},
        {"x": slice(None, None, -1), "time": slice(1, 2)},
        {"time": 1},
        {"time": 0, "y": slice(40, 20, -2), "x": slice(3, 64, 3)},
        {"y": slice(8, 9)},
    ],
    ids=str,
)
@pytest.mark.parametrize("way", ["ours", "plain"])
def test_windows_are_fields_too(way: str, cut: dict[str, slice | int], made: tuple[Path, np.ndarray]) -> None:
    path, vectors = made
    whole = xr.DataArray(vectors, dims=("time", "embedding", "y", "x")).isel(cut)
    window = WAYS[way](path).isel(cut)
    np.testing.assert_array_equal(window.aef.decode().values, whole.values)
    grid = window.aef.grid
    assert grid.shape == (whole.sizes["y"], whole.sizes["x"])
    affine = grid.transform
    np.testing.assert_allclose(affine.c + affine.a * (np.arange(grid.shape[1]) + 0.5), window["x"].values)
    np.testing.assert_allclose(affine.f + affine.e * (np.arange(grid.shape[0]) + 0.5), window["y"].values)
    row, column = grid.shape[0] // 2, grid.shape[1] // 3
    x, y = float(window["x"][column]), float(window["y"][row])
    place = Transformer.from_crs("EPSG:32631", "EPSG:4326", always_xy=True).transform(x, y)
    reference = whole.isel(y=row, x=column)
    sampled = window.aef.sample(*place).isel(point=0)
    assert sampled.dims == reference.dims
    np.testing.assert_array_equal(sampled.values, reference.values)
    alike = window.aef.similarity(*place)
    assert alike.dims == tuple(name for name in whole.dims if name != "embedding")
    np.testing.assert_allclose(alike.values, (whole * reference).sum("embedding", skipna=False).values, atol=1e-6)
    assert window.aef.rgb().dims == tuple({"embedding": "band"}.get(str(name), name) for name in whole.dims)
    assert len(window.aef.periods) == np.atleast_1d(window["time"].values).size


def test_nothing_is_read_before_it_is_computed(tmp_path: Path) -> None:
    """A field whose southern half is damaged serves the northern one, and says so only where it is touched."""
    make_field(tmp_path / "f.zarr")
    for chunk in (tmp_path / "f.zarr" / "embeddings" / "c").glob("*/0/2/*"):
        chunk.write_bytes(b"nonsense")
    place = lonlat(5, 60)
    for opened in (aefcli.open_field(tmp_path / "f.zarr"), xr.open_zarr(tmp_path / "f.zarr")):
        lazy = [opened.aef.decode(), opened.aef.mask(), opened.aef.similarity(*place)]
        for found in lazy:
            assert dask.is_dask_collection(found.data)
            assert found.isel(y=slice(0, 2 * CHUNK)).notnull().any().compute()
            with pytest.raises(RuntimeError):
                found.compute()


def test_blocks_follow_the_store_or_what_is_asked_for(made: tuple[Path, np.ndarray]) -> None:
    opened = aefcli.open_field(made[0])
    assert opened["embeddings"].chunks is None
    assert opened.aef.decode().chunks == ((1, 1), (64,), (32, 32, 11), (32, 32, 6))
    assert opened.aef.decode(chunks={"y": 64}).chunks == ((1, 1), (64,), (64, 11), (32, 32, 6))
    chunked = aefcli.open_field(made[0], chunks={"time": 2, "y": 75})
    assert chunked["embeddings"].chunks == ((2,), (64,), (75,), (70,))
    assert chunked.aef.similarity(*lonlat(5, 60)).chunks == ((2,), (75,), (70,))
    assert aefcli.open_field(made[0], chunks={})["embeddings"].chunks == opened.aef.decode().chunks


def test_colours_mean_the_same_in_every_period(tmp_path: Path) -> None:
    codes, _ = make_field(tmp_path / "g.zarr")
    field.create(tmp_path / "f.zarr", UTM, PERIODS, sources=[], attrs={}, chunk=96)
    field.write(tmp_path / "f.zarr", Tile(0, 0, 75, 70), np.stack([codes[1], codes[1]]), {})
    field.finish(tmp_path / "f.zarr")
    rgb = aefcli.open_field(tmp_path / "f.zarr").aef.rgb().values
    np.testing.assert_array_equal(rgb[0], rgb[1])
    assert rgb[0, :3].std() > 40
    assert rgb[0, :3].min() == 0
    assert rgb[0, :3].max() == 255


def test_a_period_without_data_at_the_place_has_no_similarity(made: tuple[Path, np.ndarray]) -> None:
    alike = aefcli.open_field(made[0]).aef.similarity(*lonlat(40, 40)).values
    assert np.isnan(alike[0]).all()
    assert np.isfinite(alike[1]).all()
    first = aefcli.open_field(made[0]).isel(time=[0])
    with pytest.raises(BadInput, match="no data at"):
        first.aef.similarity(*lonlat(40, 40))
    with pytest.raises(BadInput, match=r"no data at 3\.5, 48 .*covers 3\."):
        first.aef.similarity(3.5, 48)


def test_what_is_no_field_or_too_little_of_one_is_refused(made: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no embeddings"):
        xr.Dataset({"a": ("x", [1, 2])}).aef  # noqa: B018
    with pytest.raises(BadInput, match="does not exist"):
        aefcli.open_field(tmp_path / "none.zarr")
    opened = aefcli.open_field(made[0])
    with pytest.raises(BadInput, match="32 of 64 dimensions"):
        opened.isel(embedding=slice(0, 32)).aef.decode()
    with pytest.raises(BadInput, match="32 of 64 dimensions"):
        opened.isel(embedding=slice(0, 32)).aef.sample(3.004, 48.751)
    with xr.set_options(keep_attrs=False):
        bare = opened.assign(embeddings=opened["embeddings"].astype("float32") * 1)
    with pytest.raises(BadInput, match="codes whose attributes are gone"):
        bare.aef.decode().compute()
    with pytest.raises(BadInput, match="codes of the embeddings were averaged"):
        xr.open_zarr(made[0]).coarsen(y=5, x=5).mean(keep_attrs=True).aef.decode().compute()
    with pytest.raises(BadInput, match="no dimension y"):
        opened.isel(y=3).aef.grid  # noqa: B018
    with pytest.raises(BadInput, match="evenly spaced"):
        opened.isel(x=[1, 2, 5]).aef.grid  # noqa: B018
    with pytest.raises(BadInput, match="time_bnds"):
        opened.drop_vars("time_bnds").aef.periods  # noqa: B018


def test_a_grid_in_degrees_and_one_pixel(tmp_path: Path) -> None:
    grid = GeoBox((1, 1), Affine(2**-10, 0, 2.25, 0, -(2**-10), 48.5), "EPSG:4326")
    field.create(tmp_path / "f.zarr", grid, PERIODS[:1], sources=[], attrs={})
    vector = np.zeros((1, 64, 1, 1))
    vector[0, 3] = 1
    field.write(tmp_path / "f.zarr", Tile(0, 0, 1, 1), field.quantise(vector, 1), {})
    field.finish(tmp_path / "f.zarr")
    opened = xr.open_zarr(tmp_path / "f.zarr")
    assert opened.aef.similarity(2.2504, 48.4996).values.tolist() == [[[1.0]]]
    assert opened.aef.rgb().values[0, :, 0, 0].tolist() == [128, 128, 128, 255]  # one vector has no components


def test_the_example_of_the_module_runs(
    made: tuple[Path, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "embeddings.zarr").symlink_to(made[0])
    monkeypatch.chdir(tmp_path)
    assert doctest.testmod(accessor, optionflags=doctest.ELLIPSIS).attempted >= 6
    assert doctest.testmod(accessor, optionflags=doctest.ELLIPSIS).failed == 0


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, aefcli; print(sorted({'xarray', 'numpy', 'torch', 'dask'} & set(sys.modules)))\n"
        "print(hasattr(aefcli, 'open_fields'), callable(aefcli.open_field))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\nFalse True\n"
