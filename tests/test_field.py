"""The embedding field: quantiser, layout, what a stranger's open sees, sampling; and its picture."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import CRS, Transformer

from aefcli.errors import BadInput
from aefcli.extent import Period, Tile, tiles
from aefcli.field import (
    LABELS,
    _by_chunk,
    create,
    dequantise,
    finish,
    geobox,
    open_field,
    quantise,
    sample,
    write,
)
from aefcli.report import preview

UTM = GeoBox((75, 70), Affine(10, 0, 500120, 0, -10, 5400330), "EPSG:32631")
# 1/1024 degrees: edges and centres are exact in binary, so that points can lie on edges.
DEGREES = GeoBox((75, 70), Affine(2**-10, 0, 2.25, 0, -(2**-10), 48.5), "EPSG:4326")
PERIODS = [Period.parse("2023"), Period.parse("2024-03:2024-05")]
CHUNK = 32
PUBLISHED = Path(__file__).parents[2] / "shared/data/aef/aef_2024_wisconsin_utm16n_10m_int8.tif"

# rioxarray multiplies transforms with `*`, which affine 3 will drop one day.
rio_of_today = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")


def unit_vectors(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Random unit vectors along the last axis."""
    vectors = np.random.default_rng(seed).normal(size=(*shape, 64))
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def make_codes(shape: tuple[int, int], times: int = 2) -> np.ndarray:
    """int8 (time, 64, y, x), with a block of nodata in the first period that fills the chunk (1, 1)."""
    vectors = np.moveaxis(unit_vectors((times, *shape)), -1, 1)
    vectors[0, 7, CHUNK : 2 * CHUNK, CHUNK : 2 * CHUNK] = np.nan
    return quantise(vectors, axis=1)


def make_field(path: Path, grid: GeoBox = UTM, *, done: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Write a field of two periods in chunks of 32; returns its codes and its observation counts."""
    codes = make_codes(grid.shape)
    seen = np.random.default_rng(1).integers(0, 60_000, size=(2, *grid.shape)).astype(np.uint16)
    seen[0, 0, :3] = 0, 1, 65535
    create(path, grid, PERIODS, sources=["sentinel-2"], attrs={"aef:model": "a1b2"}, chunk=CHUNK)
    for tile in tiles(grid.shape, 2 * CHUNK):
        rows, columns = tile.slices
        write(path, tile, codes[:, :, rows, columns], {"sentinel-2": seen[:, rows, columns]})
    if done:
        finish(path)
    return codes, seen


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, np.ndarray]:
    """A finished field in UTM: its path, codes and counts. Not to be changed."""
    path = tmp_path_factory.mktemp("field") / "f.zarr"
    return path, *make_field(path)


# ---- quantiser


def test_every_code_comes_back() -> None:
    codes = np.arange(-127, 128, dtype=np.int8)[:, None]
    values = dequantise(codes, renormalise=False)
    assert values.dtype == np.float32
    assert np.array_equal(quantise(values), codes)
    assert np.array_equal(quantise(values.astype(np.float64)), codes)
    expected = [math.copysign((abs(q) / 127.5) ** 2, q) for q in range(-127, 128)]
    np.testing.assert_allclose(values[:, 0], expected, rtol=1e-6)


def test_codes_of_known_values() -> None:
    # By hand: sqrt(0.25) * 127.5 = 63.75; sqrt(1) * 127.5 is clipped; sqrt(1e-6) * 127.5 = 0.1275.
    x = np.array([0.25, -0.25, 1.0, -1.0, 1e-6, 0.0])
    assert quantise(x).tolist() == [64, -64, 127, -127, 0, 0]


def test_decoded_vectors_are_unit_and_close_to_the_originals() -> None:
    vectors = unit_vectors((2000,))
    decoded = dequantise(quantise(vectors))
    np.testing.assert_allclose(np.linalg.norm(decoded, axis=-1), 1, atol=1e-6)
    assert (decoded * vectors).sum(axis=-1).min() > 0.999
    raw = np.linalg.norm(dequantise(quantise(vectors), renormalise=False), axis=-1)
    assert np.abs(raw - 1).max() > 1e-4  # else the flag did nothing


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_missing_value_makes_all_64_nodata(axis: int, bad: float) -> None:
    vectors = unit_vectors((4, 5))
    vectors[2, 3, 11] = bad
    vectors = np.moveaxis(vectors, -1, axis)
    codes = quantise(vectors.astype(np.float32), axis=axis)
    at = np.moveaxis(codes, axis, -1)
    assert codes.dtype == np.int8
    assert (at[2, 3] == -128).all()
    assert (at == -128).sum() == 64
    for renormalise in (True, False):
        back = np.moveaxis(dequantise(codes, axis, renormalise=renormalise), axis, -1)
        assert np.isnan(back[2, 3]).all()
        assert np.isnan(back).sum() == 64


def test_a_vector_without_direction_is_not_a_unit_vector() -> None:
    zeros = np.zeros((1, 64), dtype=np.int8)
    assert np.isnan(dequantise(zeros)).all()
    assert (dequantise(zeros, renormalise=False) == 0).all()


# ---- the store as anybody sees it


def test_plain_open_shows_nan_where_there_is_nothing(made: tuple[Path, np.ndarray, np.ndarray]) -> None:
    path, codes, seen = made
    with xr.open_zarr(path) as plain:  # warnings are errors here
        values = plain["embeddings"].values
        assert plain["embeddings"].dims == ("time", "embedding", "y", "x")
        assert np.array_equal(np.isnan(values), codes == -128)
        assert np.array_equal(values[codes != -128], codes[codes != -128])
        assert plain["observations_sentinel-2"].dtype == np.uint16
        assert np.array_equal(plain["observations_sentinel-2"].values, seen)
        assert set(plain.data_vars) == {"embeddings", "observations_sentinel-2"}
    with xr.open_zarr(path, mask_and_scale=False) as raw:
        assert raw["embeddings"].dtype == np.int8
        assert np.array_equal(raw["embeddings"].values, codes)
        assert raw["embeddings"].attrs["_FillValue"] == -128


def test_labels_and_times(made: tuple[Path, np.ndarray, np.ndarray]) -> None:
    with xr.open_zarr(made[0]) as plain:
        assert tuple(plain["embedding"].values) == LABELS == tuple(f"A{i:02d}" for i in range(64))
        assert plain["embedding"].dtype.kind in "OT"  # object or variable-length strings
        assert plain.sel(embedding="A63")["embeddings"].dims == ("time", "y", "x")
    field = open_field(made[0])
    days = np.array([["2023-01-01", "2024-01-01"], ["2024-03-01", "2024-06-01"]], dtype="datetime64[ms]")
    assert field["time"].dtype == "datetime64[ms]"
    assert np.array_equal(field["time"].values, days[:, 0])
    assert np.array_equal(field["time_bnds"].values, days)


@rio_of_today
@pytest.mark.parametrize("grid", [UTM, DEGREES], ids=["utm", "degrees"])
def test_every_georeference_says_the_same(tmp_path: Path, grid: GeoBox) -> None:
    import rioxarray  # noqa: F401

    make_field(tmp_path / "f.zarr", grid)
    with xr.open_zarr(tmp_path / "f.zarr") as plain:
        affine, attrs = plain["embeddings"].rio.transform(), plain.attrs
        assert affine == plain["embeddings"].rio.transform(recalc=True) == grid.transform
        # rioxarray believes x and y before GeoTransform, so that it would not show a wrong one.
        numbers = [float(number) for number in plain["spatial_ref"].attrs["GeoTransform"].split()]
        assert Affine.from_gdal(*numbers) == grid.transform
        assert plain["embeddings"].rio.bounds() == tuple(grid.boundingbox) == tuple(attrs["spatial:bbox"])
        assert attrs["spatial:transform"] == list(grid.transform)[:6]
        assert attrs["spatial:shape"] == [75, 70]
        assert plain["embeddings"].rio.encoded_nodata == -128
        names = ["x", "y"] if grid is UTM else ["longitude", "latitude"]
        for name, first, step, expected in zip("xy", (affine.c, affine.f), (affine.a, affine.e), names, strict=True):
            assert np.array_equal(plain[name].values, [first + step * (i + 0.5) for i in range(len(plain[name]))])
            assert expected in plain[name].attrs["standard_name"]
        units = (plain["x"].attrs["units"], plain["y"].attrs["units"])
        assert units == (("metre", "metre") if grid is UTM else ("degrees_east", "degrees_north"))
        crs = CRS(attrs["proj:code"])
        assert crs == CRS(attrs["proj:wkt2"]) == CRS(plain["spatial_ref"].attrs["crs_wkt"])
        assert crs.to_epsg() == plain["embeddings"].rio.crs.to_epsg() == grid.crs.to_epsg()
        assert all(plain[name].attrs["grid_mapping"] == "spatial_ref" for name in plain.data_vars)
    field = open_field(tmp_path / "f.zarr")
    assert geobox(field) == grid
    assert geobox(field.isel(y=slice(10, 50), x=slice(3, 4))).transform == grid.transform @ Affine.translation(3, 10)
    wider = grid.transform @ Affine.translation(0, -0.5) @ Affine.scale(1, 2)  # around the centres that are left
    assert geobox(field.isel(y=slice(0, 74, 2))).transform == wider


def test_attributes_say_how_to_decode_and_promise_no_linear_scale(
    made: tuple[Path, np.ndarray, np.ndarray],
) -> None:
    root = json.loads((made[0] / "zarr.json").read_text())["attributes"]
    array = json.loads((made[0] / "embeddings/zarr.json").read_text())
    assert "(|q| / 127.5)^2" in root["quantisation"] == array["attributes"]["quantisation"]
    assert not [key for key in (*root, *root["geoemb:quantization"], *array["attributes"]) if "scale" in key]
    assert root["geoemb:quantization"]["method"] == "signed_power"
    assert {entry["name"] for entry in root["zarr_conventions"]} == {"proj:", "spatial:", "geoemb:"}
    assert all(set(entry) == {"uuid", "name", "description"} for entry in root["zarr_conventions"])
    assert (root["aef:format"], root["aef:model"], root["state"]) == ("embedding-field/1", "a1b2", "complete")
    assert array["fill_value"] == array["attributes"]["_FillValue"] == -128
    assert array["data_type"] == "int8"
    assert array["chunk_grid"]["configuration"]["chunk_shape"] == [1, 64, CHUNK, CHUNK]
    assert array["codecs"][-1] == {"name": "zstd", "configuration": {"level": 3, "checksum": True}}


# ---- writing


def test_the_template_holds_no_data_and_write_names_every_file(tmp_path: Path) -> None:
    path = tmp_path / "f.zarr"
    create(path, UTM, PERIODS, sources=["sentinel-1", "sentinel-2"], attrs={}, chunk=CHUNK)
    before = {file for file in path.rglob("*") if file.is_file()}
    assert not [file for file in before if re.search(r"(embeddings|observations_.*)/c/", file.as_posix())]
    tile = Tile(CHUNK, 0, 75, 2 * CHUNK)
    empty = np.full((2, 64, *tile.shape), -128, dtype=np.int8)
    none = np.zeros((2, *tile.shape), dtype=np.int64)
    files = write(path, tile, empty, {"sentinel-1": none, "sentinel-2": none + 70_000})
    # Pure nodata and pure zeros are written all the same: an absent chunk means "not done".
    assert set(files) == {file for file in path.rglob("*") if file.is_file()} - before
    assert len(files) == len(set(files)) == 3 * 2 * 4
    assert path / "embeddings/c/1/0/2/1" in files
    finish(path)
    field = open_field(path)
    assert (field["observations_sentinel-2"].values[:, CHUNK:, : 2 * CHUNK] == 65535).all()


def test_same_tiles_same_bytes_in_any_order(tmp_path: Path) -> None:
    codes = make_codes(UTM.shape)
    stores = []
    for name, size, step in (("a", CHUNK, 1), ("b", 3 * CHUNK, -1)):
        path = tmp_path / name
        create(path, UTM, PERIODS, sources=[], attrs={}, chunk=CHUNK)
        for tile in list(tiles(UTM.shape, size))[::step]:
            write(path, tile, codes[:, :, *tile.slices], {})
        finish(path)
        finish(path)  # again: nothing changes
        stores.append({str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()})
    assert stores[0] == stores[1]


@pytest.mark.parametrize("tile", [Tile(0, 0, 20, 32), Tile(16, 0, 32, 32), Tile(0, 64, 32, 69)])
def test_a_tile_that_cuts_a_chunk_is_our_fault(tmp_path: Path, tile: Tile) -> None:
    create(tmp_path / "f", UTM, PERIODS, sources=[], attrs={}, chunk=CHUNK)
    with pytest.raises(AssertionError, match="cuts chunks"):
        write(tmp_path / "f", tile, np.zeros((2, 64, *tile.shape), np.int8), {})
    assert not (tmp_path / "f/embeddings/c").exists()


def test_a_tile_without_its_observations_is_our_fault(tmp_path: Path) -> None:
    create(tmp_path / "f", UTM, PERIODS, sources=["sentinel-2"], attrs={}, chunk=CHUNK)
    with pytest.raises(AssertionError, match="observations_sentinel-2"):
        write(tmp_path / "f", Tile(0, 0, 32, 32), np.zeros((2, 64, 32, 32), np.int8), {})


def test_flipped_bits_are_found(tmp_path: Path) -> None:
    make_field(tmp_path / "f.zarr")
    chunk = tmp_path / "f.zarr/embeddings/c/0/0/0/0"
    body = bytearray(chunk.read_bytes())
    body[len(body) // 2] ^= 1
    chunk.write_bytes(body)
    with pytest.raises(RuntimeError, match=r"[Zz]std"):
        open_field(tmp_path / "f.zarr")["embeddings"][0, :, 0, 0].load()


# ---- refusals


def test_what_is_no_finished_field_is_refused_in_one_line(tmp_path: Path) -> None:
    make_field(tmp_path / "f.zarr", done=False)
    document = json.loads((tmp_path / "f.zarr/zarr.json").read_text())
    cases = {
        "gone": (None, "does not exist"),
        "folder": ("", "not an embedding field"),
        "torn": ('{"attri', "not an embedding field"),
        "list": ("[1]", "not an embedding field"),
        "cube": ({"aef:format": "datacube/1", "state": "complete"}, "not an embedding field"),
        "newer": ({"aef:format": "embedding-field/2", "state": "complete"}, "embedding-field/2, newer than"),
        "building": (document["attributes"], "run aef embed again"),
    }
    for name, (root, message) in cases.items():
        store = tmp_path / name
        if root is not None:
            store.mkdir()
        if root:
            text = json.dumps({**document, "attributes": root}) if isinstance(root, dict) else root
            (store / "zarr.json").write_text(text)
        with pytest.raises(BadInput, match=re.escape(message)) as caught:
            open_field(store)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
    (tmp_path / "file.zarr").write_text("no folder")
    with pytest.raises(BadInput, match="not an embedding field"):
        open_field(tmp_path / "file.zarr")
    finish(tmp_path / "f.zarr")
    assert open_field(tmp_path / "f.zarr").attrs["state"] == "complete"


# ---- sampling


def brute_force(codes: np.ndarray, grid: GeoBox, lon: np.ndarray, lat: np.ndarray) -> list[np.ndarray | None]:
    """Point by point: the pixel whose half-open square holds it."""
    to_grid = Transformer.from_crs(4326, grid.crs.proj, always_xy=True)
    (height, width), affine = grid.shape, grid.transform
    found: list[np.ndarray | None] = []
    for a, b in zip(lon, lat, strict=True):
        x, y = to_grid.transform(a, b)
        rows = [i for i in range(height) if affine.f + affine.e * (i + 1) < y <= affine.f + affine.e * i]
        columns = [i for i in range(width) if affine.c + affine.a * i <= x < affine.c + affine.a * (i + 1)]
        found.append(codes[:, :, rows[0], columns[0]] if rows and columns else None)
    return found


@pytest.mark.parametrize("grid", [UTM, DEGREES], ids=["utm", "degrees"])
def test_sampling_agrees_with_a_loop(tmp_path: Path, grid: GeoBox) -> None:
    codes, _ = make_field(tmp_path / "f.zarr", grid)
    to_degrees = Transformer.from_crs(grid.crs.proj, 4326, always_xy=True)
    west, south, east, north = to_degrees.transform_bounds(*grid.boundingbox)
    rng = np.random.default_rng(3)
    margin = 0.2 * (east - west)
    lon = rng.uniform(west - margin, east + margin, 400)
    lat = rng.uniform(south - margin, north + margin, 400)
    lon, lat = np.concatenate([lon, lon[:50]]), np.concatenate([lat, lat[:50]])  # duplicates, far apart
    vectors, inside = sample(open_field(tmp_path / "f.zarr"), lon, lat)
    assert vectors.shape == (450, 2, 64)
    assert vectors.dtype == np.float32
    expected = brute_force(codes, grid, lon, lat)
    assert [found is not None for found in expected] == inside.tolist()
    assert 0 < inside.sum() < 450
    nodata = 0
    for vector, found in zip(vectors, expected, strict=True):
        if found is None:
            assert np.isnan(vector).all()
            continue
        np.testing.assert_array_equal(vector, dequantise(found))
        nodata += int(np.isnan(vector[0]).all() and not np.isnan(vector[1]).any())
    assert nodata > 0  # inside, yet nothing there in the first period


def test_pixels_own_their_north_and_west_edges(tmp_path: Path) -> None:
    codes, _ = make_field(tmp_path / "f.zarr", DEGREES)
    west, south, east, north = DEGREES.boundingbox
    middle, pixel = (north + south) / 2, 2**-10
    points = {
        (west, north): (0, 0),
        (east, middle): None,
        (west, south): None,
        (np.nextafter(east, 0), np.nextafter(south, 90)): (74, 69),
        (west + 5 * pixel, north - 7 * pixel): (7, 5),
        (np.nextafter(west, -180), north): None,
        (np.nan, middle): None,
        (np.inf, middle): None,
    }
    lon, lat = np.array(list(points)).T
    vectors, inside = sample(open_field(tmp_path / "f.zarr"), lon, lat)
    assert inside.tolist() == [place is not None for place in points.values()]
    for vector, place in zip(vectors, points.values(), strict=True):
        expected = np.full((2, 64), np.nan) if place is None else dequantise(codes[:, :, *place])
        np.testing.assert_array_equal(vector, expected)


def test_sampling_one_period_a_window_and_no_points(made: tuple[Path, np.ndarray, np.ndarray]) -> None:
    path, codes, _ = made
    field = open_field(path)
    lon, lat = Transformer.from_crs(32631, 4326, always_xy=True).transform(500120 + 10 * 40 + 5, 5400330 - 10 * 3 - 5)
    points = np.array([lon]), np.array([lat])
    for index, kept in ((0, [0]), (1, [1]), (-1, [1]), ([1, 0], [1, 0])):
        vectors, _ = sample(field, *points, index)
        np.testing.assert_array_equal(vectors[0], dequantise(codes[kept, :, 3, 40]))
    vectors, inside = sample(field.isel(y=slice(2, 40), x=slice(33, 60)), *points)
    assert inside.all()
    np.testing.assert_array_equal(vectors[0], dequantise(codes[:, :, 3, 40]))
    vectors, inside = sample(field, np.array([]), np.array([]))
    assert vectors.shape == (0, 2, 64)
    assert inside.shape == (0,)


def test_sampling_reads_only_chunks_that_hold_points(tmp_path: Path) -> None:
    codes, _ = make_field(tmp_path / "f.zarr")
    for chunk in (tmp_path / "f.zarr/embeddings/c").rglob("*"):
        if chunk.is_file() and chunk.relative_to(tmp_path / "f.zarr/embeddings/c").parts[2:] != ("1", "2"):
            chunk.write_bytes(b"damaged")
    to_degrees = Transformer.from_crs(32631, 4326, always_xy=True)
    lon, lat = to_degrees.transform(np.array([500120 + 695.0]), np.array([5400330 - 405.0]))
    vectors, _ = sample(open_field(tmp_path / "f.zarr"), lon, lat)
    np.testing.assert_array_equal(vectors[0], dequantise(codes[:, :, 40, 69]))


def test_points_are_grouped_by_chunk_each_chunk_once() -> None:
    rng = np.random.default_rng(5)
    rows, columns, inside = rng.integers(0, 75, 500), rng.integers(0, 70, 500), rng.random(500) < 0.8
    groups = list(_by_chunk(rows, columns, inside, (32, 16)))
    chunks = [set(zip(rows[group] // 32, columns[group] // 16, strict=True)) for group in groups]
    assert all(len(chunk) == 1 for chunk in chunks)
    assert len(chunks) == len(set().union(*chunks)) == 3 * 5
    assert sorted(np.concatenate(groups)) == np.flatnonzero(inside).tolist()


def test_a_masked_field_gives_the_same_vectors(made: tuple[Path, np.ndarray, np.ndarray]) -> None:
    rng = np.random.default_rng(7)
    lon, lat = rng.uniform(3.0015, 3.011, 60), rng.uniform(48.748, 48.755, 60)
    expected, inside = sample(open_field(made[0]), lon, lat)
    assert inside.any()
    with xr.open_zarr(made[0]) as plain:
        assert plain["embeddings"].dtype == np.float32
        np.testing.assert_array_equal(sample(plain, lon, lat)[0], expected)


# ---- the published field


def test_published_codes_come_back_code_by_code(tmp_path: Path) -> None:
    if not PUBLISHED.exists():
        pytest.skip(f"no published field at {PUBLISHED}")
    import rasterio

    with rasterio.open(PUBLISHED) as source:
        codes = source.read()[None]
        grid = GeoBox((source.height, source.width), Affine(*list(source.transform)[:6]), str(source.crs))
    values = dequantise(codes, 1, renormalise=False)
    assert np.array_equal(quantise(values, 1), codes)
    norms = np.linalg.norm(values, axis=1)
    assert np.isfinite(norms).mean() > 0.9
    assert 0.993 < np.nanmin(norms) < np.nanmax(norms) < 1.008
    create(tmp_path / "f.zarr", grid, [Period.parse("2024")], sources=[], attrs={})
    write(tmp_path / "f.zarr", Tile(0, 0, *grid.shape), codes, {})
    finish(tmp_path / "f.zarr")
    field = open_field(tmp_path / "f.zarr")
    assert np.array_equal(field["embeddings"].values, codes)
    assert geobox(field) == grid


# ---- the picture


def pixels(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGBA"))


def test_preview_draws_the_same_picture_twice_and_leaves_nodata_white(tmp_path: Path) -> None:
    make_field(tmp_path / "f.zarr")
    out = preview(tmp_path / "f.zarr")
    assert out == tmp_path / "f.png"
    image = pixels(out)
    assert image.shape[1] >= 600
    assert preview(tmp_path / "f.zarr", tmp_path / "new/g.png").read_bytes() == out.read_bytes()
    # Two panels of 70 x 75 pixels, each drawn as squares of 5: the left one has a hole of 32 x 32.
    panels = image[24 : 24 + 375, :].astype(int)
    left, right = panels[:, 10:360, :3], panels[:, 380:730, :3]
    hole = (slice(5 * 32 + 2, 5 * 64 - 2), slice(5 * 32 + 2, 5 * 64 - 2))
    assert (left[hole] == 255).all()
    assert not (right[hole] == 255).all(axis=-1).mean() > 0.1
    square = right[5 * 40 + 1 : 5 * 41 - 1, 5 * 20 + 1 : 5 * 21 - 1].reshape(-1, 3)
    assert (square == square[0]).all()  # nothing is blended
    assert len(np.unique(right.reshape(-1, 3), axis=0)) > 1000


def test_preview_colours_agree_across_periods_and_north_is_up(tmp_path: Path) -> None:
    vectors = unit_vectors((75, 70))
    vectors[:20] = vectors[0, 0]  # one colour in the north
    codes = np.moveaxis(quantise(vectors), -1, 0)
    create(tmp_path / "f.zarr", UTM, PERIODS, sources=[], attrs={})
    write(tmp_path / "f.zarr", Tile(0, 0, 75, 70), np.stack([codes, codes]), {})
    finish(tmp_path / "f.zarr")
    image = pixels(preview(tmp_path / "f.zarr")).astype(int)
    left, right = image[26:395, 12:358, :3], image[26:395, 382:728, :3]
    assert np.array_equal(left, right)
    assert np.ptp(left[:90], axis=(0, 1)).max() == 0
    assert np.ptp(left[-90:], axis=(0, 1)).min() > 50


def test_preview_of_nothing_is_blank_and_of_one_period_has_axes(tmp_path: Path) -> None:
    for name, codes in (("blank", np.full((1, 64, 75, 70), -128, np.int8)), ("one", make_codes(UTM.shape, 1))):
        create(tmp_path / name, UTM, PERIODS[:1], sources=[], attrs={})
        write(tmp_path / name, Tile(0, 0, 75, 70), codes, {})
        finish(tmp_path / name)
    blank, one = (pixels(preview(tmp_path / name))[..., :3].astype(int) for name in ("blank", "one"))
    assert np.ptp(blank, axis=-1).max() == 0  # frame, labels and title, no colour
    assert np.ptp(one, axis=-1).max() > 100
    assert one.shape[1] >= 600


def test_large_fields_are_thinned_out(tmp_path: Path) -> None:
    grid = GeoBox((300, 2100), UTM.transform, "EPSG:32631")
    create(tmp_path / "f.zarr", grid, PERIODS[:1], sources=[], attrs={}, chunk=300)
    row = quantise(unit_vectors((2100,))).T[None, :, None, :]
    write(tmp_path / "f.zarr", Tile(0, 0, 300, 2100), np.repeat(row, 300, axis=2), {})
    finish(tmp_path / "f.zarr")
    assert pixels(preview(tmp_path / "f.zarr")).shape[1] == 700 + 88 + 20


def test_importing_the_format_is_light() -> None:
    heavy = "{'torch', 'xarray', 'zarr', 'matplotlib', 'sklearn', 'odc'}"
    code = f"import sys, aefcli.field, aefcli.report; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
