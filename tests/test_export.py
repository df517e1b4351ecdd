"""What leaves as GeoTIFF or table is the field: its codes, place and periods; and overviews are means of vectors."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import pytest
import rasterio
import xarray as xr
from conftest import Aef
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from rasterio import Affine
from rasterio.shutil import copy

from aefcli import export, field, ledger
from aefcli.errors import BadInput, Damaged, Locked, NoResources
from aefcli.export import write_cogs, write_table
from aefcli.extent import Period, Tile, tiles
from aefcli.probe import read_points
from aefcli.published import open_vectors

SHAPE = H, W = (38, 530)  # two overviews, in 3, 2 and 1 tiles
NORTH_UP = Affine(10, 0, 500_000, 0, -10, 5_100_000)
PERIODS = (Period.parse("2023-05"), Period.parse("2023"))
OLD = Period.parse("2001-02-03")
NAMES = [f"A{index:02d}" for index in range(64)]
HOLE = np.s_[:, 10:31, 40:45]
NODATA = 21 * 5 / (H * W)
FILES = ["two_2023-05-01_2023-05-31.tif", "two_2023-01-01_2023-12-31.tif"]


def codes_of(seed: int) -> np.ndarray:
    """int8 (64, H, W): directions that drift from west to east under noise; no data in a hole."""
    rng = np.random.default_rng(seed)
    ends = rng.normal(size=(2, 64, 1, 1)).astype("float32")
    part = np.linspace(0, 1, W, dtype="float32")
    found = ends[0] * (1 - part) + ends[1] * part + rng.standard_normal((64, H, W), dtype="float32") / 2
    codes = field.quantise(found / np.linalg.norm(found, axis=0), axis=0)
    codes[HOLE] = field.NODATA
    return codes


def write_tiff(path: Path, values: np.ndarray, transform: Affine = NORTH_UP, **options: Any) -> Path:
    options = {"nodata": -128, "crs": "EPSG:32633", **options}
    shape = {"count": len(values), "height": values.shape[1], "width": values.shape[2], "dtype": values.dtype}
    with rasterio.open(path, "w", driver="GTiff", transform=transform, **shape, **options) as file:
        file.write(values)
    return path


def place(rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Longitude and latitude of pixel centres."""
    to_degrees = Transformer.from_crs("EPSG:32633", "EPSG:4326", always_xy=True)
    return to_degrees.transform(500_000 + 10 * (columns + 0.5), 5_100_000 - 10 * (rows + 0.5))


def halved(vectors: np.ndarray, factor: int, *, unit: bool = True) -> np.ndarray:
    """Means of the vectors with data in squares of `factor` pixels, from the pixels themselves, float64 (d, h, w)."""
    d, height, width = vectors.shape
    rows, columns = -(-height // factor), -(-width // factor)
    whole = np.full((d, rows * factor, columns * factor), np.nan)
    whole[:, :height, :width] = np.where(np.isfinite(vectors).all(axis=0), vectors, np.nan)
    squares = whole.reshape(d, rows, factor, columns, factor)
    count = np.isfinite(squares[:1]).sum(axis=(2, 4))
    mean = np.nansum(squares, axis=(2, 4)) / np.where(count, count, np.nan)
    return mean / np.linalg.norm(mean, axis=0) if unit else mean


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """two.zarr of two periods, which says what it was made from; labels.csv of 60 points, 4 of them useless."""
    folder = tmp_path_factory.mktemp("world")
    stack = np.stack([codes_of(index) for index in (0, 1)])
    attrs = {"aef:request": {"model": "m", "periods": []}, "aef:model": "toy-001", "aef:cube": "cube.zarr"}
    grid = GeoBox(SHAPE, NORTH_UP, "EPSG:32633")
    field.create(folder / "two.zarr", grid, PERIODS, sources=["sentinel-2"], attrs=attrs, chunk=128)
    for tile in tiles(SHAPE, 128):
        seen = np.ones((2, *tile.shape), dtype="uint16")
        field.write(folder / "two.zarr", tile, stack[(..., *tile.slices)], {"sentinel-2": seen})
    field.finish(folder / "two.zarr")
    rng = np.random.default_rng(3)
    rows, columns = rng.integers(0, 9, 60), rng.integers(0, W, 60)
    rows[:3], columns[:3], rows[3] = 20, 42, -5
    lon, lat = place(rows, columns)
    labels = {"name": [f"00{index}" for index in range(60)], "x": lon, "y": lat, "label": columns * 2 // W}
    pd.DataFrame({**labels, "site": rng.integers(0, 20, 60)}).to_csv(folder / "labels.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def cogs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The GeoTIFFs of two.zarr, in a folder without anything else."""
    done = write_cogs(open_vectors(world / "two.zarr"), tmp_path_factory.mktemp("cogs"), workers=2)
    assert [each.nodata for each in done] == [pytest.approx(NODATA)] * 2
    return [each.path for each in done]


# --- GeoTIFFs -------------------------------------------------------------------------------------------------------


def test_a_geotiff_for_each_period_and_nothing_beside_it(cogs: list[Path]) -> None:
    assert [path.name for path in cogs] == FILES
    assert sorted(path.name for path in cogs[0].parent.iterdir()) == sorted(FILES)


def test_codes_and_places_are_those_of_the_zarr(world: Path, cogs: list[Path]) -> None:
    store = field.open_field(world / "two.zarr")
    for index, path in enumerate(cogs):
        with rasterio.open(path) as file:
            np.testing.assert_array_equal(file.read(), store["embeddings"][index].to_numpy())
            assert (file.crs.to_epsg(), file.transform, file.nodata) == (32633, NORTH_UP, -128)
            corner_x, corner_y = file.xy(0, 0)
            far_x, far_y = file.xy(H - 1, W - 1)
            for found, stated in ((corner_x, store["x"][0]), (far_x, store["x"][-1])):
                assert abs(found - float(stated)) < 1e-9
            for found, stated in ((corner_y, store["y"][0]), (far_y, store["y"][-1])):
                assert abs(found - float(stated)) < 1e-9
        with xr.open_dataset(path, engine="rasterio", mask_and_scale=False) as seen:
            np.testing.assert_allclose(seen["x"], store["x"], rtol=0, atol=1e-9)
            np.testing.assert_allclose(seen["y"], store["y"], rtol=0, atol=1e-9)


def test_it_is_a_cog_that_says_what_it_holds(cogs: list[Path], tmp_path: Path) -> None:
    with rasterio.open(cogs[0]) as file:
        assert file.dtypes == ("int8",) * 64
        assert file.descriptions == tuple(NAMES)
        assert set(file.block_shapes) == {(256, 256)}
        structure = file.tags(ns="IMAGE_STRUCTURE")
        assert (structure["LAYOUT"], structure["COMPRESSION"], structure["PREDICTOR"]) == ("COG", "DEFLATE", "2")
        assert file.overviews(1) == file.overviews(64) == [2, 4]
        tags = file.tags()
    assert tags["period"] == "2023-05-01:2023-05-31"
    assert (tags["period_start"], tags["period_end"]) == ("2023-05-01T00:00:00Z", "2023-06-01T00:00:00Z")
    assert (tags["model"], tags["field"]) == ("toy-001", "two.zarr")
    assert tags["source"] == "sentinel-2 of cube.zarr"
    assert "127.5" in tags["decoding"]
    assert not {name for name in tags if name.startswith(("proj:", "spatial:", "geoemb:"))}
    # The order of a COG: directories first, then the smallest overview, then larger ones, then the field itself
    with rasterio.open(cogs[0]) as file:
        at = [int(file.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=1, **way)) for way in ({"ovr": 1}, {"ovr": 0}, {})]
    assert at == sorted(at)
    copy(cogs[0], tmp_path / "look.vrt", driver="VRT")  # GDAL's own words for what it sees
    seen = (tmp_path / "look.vrt").read_text()
    assert re.findall("<Description>(A\\d\\d)<", seen) == NAMES
    assert seen.count("<NoDataValue>-128</NoDataValue>") == 64


def test_overviews_are_means_of_vectors_and_not_of_codes(world: Path, cogs: list[Path]) -> None:
    vectors = open_vectors(world / "two.zarr").window(Tile(0, 0, H, W), 1)
    codes = field.open_field(world / "two.zarr")["embeddings"][1].to_numpy().astype("float64")
    for level, factor in enumerate((2, 4)):
        expected = halved(vectors, factor)
        with rasterio.open(cogs[1], overview_level=level) as file:
            found = file.read()
            assert file.shape == expected.shape[1:]
        empty = np.isnan(expected).any(axis=0)
        np.testing.assert_array_equal((found == -128).all(axis=0), empty)
        assert empty.any()
        there = ~empty
        quantised = field.quantise(expected, axis=0).astype(int)
        assert np.abs(found.astype(int) - quantised)[:, there].max() <= 1  # a tie may round either way
        assert (found == quantised)[:, there].mean() > 0.9999
        averaged = np.rint(halved(np.where(codes == -128, np.nan, codes), factor, unit=False))
        assert (found == averaged)[:, there].mean() < 0.5


def test_each_level_is_the_mean_of_pixels_and_not_of_means(tmp_path: Path) -> None:
    """Where one pixel of four has data, a mean of means would give it the weight of four."""
    codes = np.full((64, 600, 20), field.NODATA, dtype="int8")
    two = field.quantise(np.eye(64, dtype="float32")[:2])
    codes[:, 0, 0] = two[0]
    codes[:, 0:2, 2:4] = two[1][:, None, None]
    codes[:, 599, :] = 0  # no direction, as nobody's quantiser makes them: kept, and part of no mean
    path = write_tiff(tmp_path / "x_2023.tif", codes)
    (done,) = write_cogs(open_vectors(path), tmp_path / "out")
    with rasterio.open(done.path, overview_level=1) as file:
        mean = field.dequantise(file.read()[:, 0, 0])
        assert (file.read()[:, 1:] == -128).all()
    with rasterio.open(done.path) as file:
        np.testing.assert_array_equal(file.read(), codes)
    np.testing.assert_allclose(mean[:2], np.array([1, 4]) / np.sqrt(17), atol=0.01)
    assert done.nodata == pytest.approx(1 - 5 / (600 * 20))


def test_the_published_file_of_wisconsin_comes_back_code_by_code(real: Path, aef: Aef, tmp_path: Path) -> None:
    source = real / "aef/aef_2024_wisconsin_utm16n_10m_int8.tif"
    code, out, err = aef("export", str(source), "--cog", "--out", "cogs")
    assert (code, out) == (0, "cogs/aef_2024_wisconsin_utm16n_10m_int8_2024-01-01_2024-12-31.tif\n"), err
    with rasterio.open(source) as before, rasterio.open(tmp_path / out.strip()) as after:
        np.testing.assert_array_equal(after.read(), before.read())
        assert (after.transform, after.crs, after.nodata) == (before.transform, before.crs, before.nodata)
        assert after.descriptions == before.descriptions
        assert after.tags()["SOURCE"] == before.tags()["SOURCE"]  # whom to thank
        assert after.tags()["YEAR"] == "2024"


def test_a_month_is_read_back_as_that_month(world: Path, cogs: list[Path]) -> None:
    """The name and the folder say 2023 alone."""
    for path, period in zip(cogs, PERIODS, strict=True):
        again = open_vectors(path)
        assert again.periods == (period,)
        whole = Tile(0, 0, H, W)
        mine = open_vectors(world / "two.zarr").window(whole, PERIODS.index(period))
        np.testing.assert_array_equal(again.window(whole), mine)


def test_a_south_up_field_is_written_north_up(tmp_path: Path) -> None:
    codes = codes_of(4)
    south = write_tiff(tmp_path / "s_2023.tif", codes[:, ::-1], NORTH_UP * Affine(1, 0, 0, 0, -1, H))
    north = write_tiff(tmp_path / "n_2023.tif", codes)
    found = []
    for path in (south, north):
        (done,) = write_cogs(open_vectors(path), tmp_path / "out")
        for level in (None, 0, 1):
            with rasterio.open(done.path, **({} if level is None else {"overview_level": level})) as file:
                found.append(file.read())
                assert file.transform.e < 0
        with rasterio.open(done.path) as file:
            assert file.transform == NORTH_UP
    np.testing.assert_array_equal(found[0], codes)
    for mine, other in zip(found[:3], found[3:], strict=True):
        np.testing.assert_array_equal(mine, other)


def test_floats_stay_floats_and_their_overviews_are_plain_means(tmp_path: Path) -> None:
    """Of lengths that mean something; in a pyramid of three overviews with tiles on all sides."""
    values = np.random.default_rng(0).normal(size=(3, 530, 1100)).astype("float32")
    values[1, 60:90, 70:1100] = -9999
    path = write_tiff(tmp_path / "f_2023.tif", values, nodata=-9999, blockysize=64)
    (done,) = write_cogs(open_vectors(path), tmp_path / "out", workers=2)
    expected = np.where((values == -9999).any(axis=0), np.nan, values)
    with rasterio.open(done.path) as file:
        assert (file.dtypes[0], np.isnan(file.nodata), file.descriptions) == ("float32", True, ("A00", "A01", "A02"))
        assert file.overviews(1) == [2, 4, 8]
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        np.testing.assert_array_equal(file.read(), expected)
    for level in range(3):
        with rasterio.open(done.path, overview_level=level) as file:
            np.testing.assert_allclose(file.read(), halved(expected, 2 ** (level + 1), unit=False), atol=1e-6)


def test_a_field_of_floats_keeps_them(tmp_path: Path) -> None:
    """float16 as our fields may hold them: float32 of length 1, and means of length 1."""
    values = np.random.default_rng(0).normal(size=(1, 64, 20, 260))
    values = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype("float16")
    values[..., 3:7, 9] = np.nan
    grid = GeoBox((20, 260), NORTH_UP, "EPSG:32633")
    field.create(tmp_path / "half.zarr", grid, PERIODS[1:], sources=[], attrs={}, dtype="float16")
    for tile in tiles((20, 260), 256):
        field.write(tmp_path / "half.zarr", tile, values[(..., *tile.slices)], {})
    field.finish(tmp_path / "half.zarr")
    (done,) = write_cogs(open_vectors(tmp_path / "half.zarr"), tmp_path)
    expected = values[0].astype("float64")
    expected /= np.linalg.norm(expected, axis=0)
    with rasterio.open(done.path) as file:
        assert (file.dtypes[0], np.isnan(file.nodata), file.descriptions) == ("float32", True, tuple(NAMES))
        np.testing.assert_allclose(file.read(), expected, atol=1e-6)
        assert np.isnan(file.read(64)).sum() == 4
        assert "127.5" not in file.tags()["decoding"]
    with rasterio.open(done.path, overview_level=0) as file:
        np.testing.assert_allclose(file.read(), halved(expected, 2), atol=1e-6)


def test_dequantised_are_the_vectors_of_the_codes(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "x_2023.tif", codes_of(0)[:, :20, :260])
    (done,) = write_cogs(open_vectors(path), tmp_path, dequantised=True)
    expected = open_vectors(path).window(Tile(0, 0, 20, 260))
    with rasterio.open(done.path) as file:
        assert (file.dtypes[0], file.tags()["decoding"]) == ("float32", "values as they stand")
        np.testing.assert_array_equal(file.read(), expected)
    with rasterio.open(done.path, overview_level=0) as file:
        np.testing.assert_allclose(file.read(), halved(expected, 2), atol=1e-6)


def test_the_same_file_with_any_number_of_workers(world: Path, cogs: list[Path], tmp_path: Path) -> None:
    (done,) = write_cogs(open_vectors(world / "two.zarr"), tmp_path, PERIODS[:1], workers=5)
    assert done.path.read_bytes() == cogs[0].read_bytes()


def test_names_of_periods_are_their_own() -> None:
    day = 86_400_000
    assert export._stamp(Period.parse("2023-05")) == "2023-05-01_2023-05-31"
    assert export._stamp(Period(0, day)) == "1970-01-01_1970-01-01"
    assert export._stamp(Period(3_600_000, day + 1)) == "1970-01-01T010000Z_1970-01-02T000000.001Z"
    assert export._safe("a b/ü..é:*") == "a-b-ü..é"
    assert export._safe("***") == "field"


# --- again, and what goes wrong ---------------------------------------------------------------------------------------


def test_a_finished_file_is_left_alone_and_another_is_refused(world: Path, tmp_path: Path) -> None:
    vectors = open_vectors(world / "two.zarr")
    (first,) = write_cogs(vectors, tmp_path, PERIODS[:1])
    before = first.path.stat().st_mtime_ns
    again = write_cogs(vectors, tmp_path)
    assert (again[0].nodata, again[1].nodata) == (None, pytest.approx(NODATA))
    assert first.path.stat().st_mtime_ns == before
    with pytest.raises(BadInput, match="is there already"):
        write_cogs(vectors, tmp_path, dequantised=True)
    first.path.write_text("a thesis")
    with pytest.raises(BadInput, match="is there already"):
        write_cogs(vectors, tmp_path, PERIODS[:1])
    assert first.path.read_text() == "a thesis"
    write_cogs(vectors, tmp_path, PERIODS[:1], overwrite=True)
    assert write_cogs(vectors, tmp_path, PERIODS[:1])[0].nodata is None


def test_a_field_that_does_not_say_what_it_is_made_from_is_never_taken_for_the_same(
    cogs: list[Path], tmp_path: Path
) -> None:
    write_cogs(open_vectors(cogs[0]), tmp_path)
    with pytest.raises(BadInput, match="is there already"):
        write_cogs(open_vectors(cogs[0]), tmp_path)


@pytest.fixture
def limit() -> Iterator[Any]:
    """Set how large a file may become: what a full disk looks like."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.99])
def test_a_full_disk_leaves_nothing(world: Path, tmp_path: Path, limit: Any, share: float) -> None:
    """Of a field of one tile, the plain file and the COG are nearly as large: each fails in its turn."""
    (tmp_path / "in").mkdir()
    codes = np.random.default_rng(0).integers(-127, 127, (64, 256, 256)).astype("int8")
    vectors = open_vectors(write_tiff(tmp_path / "in" / "x_2023.tif", codes))
    limit(int(codes.nbytes * share))
    with pytest.raises(NoResources, match="cannot write"):
        write_cogs(vectors, tmp_path / "new" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_source_that_does_not_read_is_damaged(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "x_2023.tif", codes_of(0), compress="deflate", tiled=True)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(Damaged, match="does not read"):
        write_cogs(open_vectors(path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_writers_and_what_a_killed_one_left(world: Path, tmp_path: Path) -> None:
    vectors, part = open_vectors(world / "two.zarr"), tmp_path / f".{FILES[0]}.part"
    part.mkdir()
    (part / "plain.tif").write_bytes(b"half")
    with ledger.locked(part / "lock", part), pytest.raises(Locked, match="another process"):
        write_cogs(vectors, tmp_path, PERIODS[:1])
    assert (part / "plain.tif").read_bytes() == b"half"
    (done,) = write_cogs(vectors, tmp_path, PERIODS[:1])
    assert [path.name for path in tmp_path.iterdir()] == [done.path.name]


def run_export(world: Path, folder: Path) -> subprocess.Popen[bytes]:
    words = ["export", str(world / "two.zarr"), "--cog", "--out", str(folder), "--period", "2023-05"]
    probe = f"import sys; sys.argv = ['aef', *{words!r}]; from aefcli import cli; cli.main()"
    return subprocess.Popen([sys.executable, "-c", probe], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_ctrl_c_leaves_nothing_and_a_kill_nothing_under_the_name(world: Path, cogs: list[Path], tmp_path: Path) -> None:
    part = tmp_path / "out" / f".{FILES[0]}.part"
    for number in (signal.SIGTERM, signal.SIGKILL):
        process = run_export(world, tmp_path / "out")
        while not (part / "plain.tif").exists():
            assert process.poll() is None, "it ended before it was stopped"
            time.sleep(0.002)
        process.send_signal(number)
        assert process.wait() == (143 if number == signal.SIGTERM else -signal.SIGKILL)
        left = {path.name for path in (tmp_path / "out").iterdir()} if (tmp_path / "out").exists() else set()
        assert left == (set() if number == signal.SIGTERM else {part.name})
    write_cogs(open_vectors(world / "two.zarr"), tmp_path / "out", PERIODS[:1])
    assert [path.name for path in (tmp_path / "out").iterdir()] == [FILES[0]]
    assert (tmp_path / "out" / FILES[0]).read_bytes() == cogs[0].read_bytes()


@pytest.mark.slow
def test_killed_at_any_moment_the_file_is_whole_or_not_there(world: Path, cogs: list[Path], tmp_path: Path) -> None:
    rng, out = np.random.default_rng(0), tmp_path / FILES[0]
    started = time.monotonic()
    assert run_export(world, tmp_path).wait() == 0
    took = time.monotonic() - started
    for _ in range(20):
        out.unlink(missing_ok=True)
        process = run_export(world, tmp_path)
        time.sleep(took * rng.uniform(0.4, 1.1))
        process.kill()
        process.wait()
        assert not out.exists() or out.read_bytes() == cogs[0].read_bytes()


# --- tables ---------------------------------------------------------------------------------------------------------


def test_a_row_for_each_point_and_period(world: Path, aef: Aef, tmp_path: Path) -> None:
    code, out, err = aef("export", str(world / "two.zarr"), "--points", str(world / "labels.csv"))
    assert (code, out) == (0, "points.parquet\n")
    assert err == "8 of 120 rows have no vector: 2 outside, 6 nodata\n"
    found, labels = pd.read_parquet("points.parquet"), pd.read_csv(world / "labels.csv")
    assert list(found.columns) == [*labels.columns, "period_start", "period_end", *NAMES]
    assert set(found[NAMES].dtypes) == {np.dtype("float32")}
    store = field.open_field(world / "two.zarr")
    vectors, inside = field.sample(store, labels["x"].to_numpy(), labels["y"].to_numpy())
    for index, (period, part) in enumerate(zip(PERIODS, (found[:60], found[60:]), strict=True)):
        pd.testing.assert_frame_equal(part[labels.columns].reset_index(drop=True), labels)
        np.testing.assert_array_equal(part[NAMES].to_numpy(), vectors[:, index])
        assert set(part["period_start"].astype("int64")) == {period.start}
        assert set(part["period_end"].astype("int64")) == {period.end}
    assert str(found["period_start"].dtype) == "datetime64[ms, UTC]"
    assert inside.sum() == 59
    lengths = np.linalg.norm(found[NAMES].dropna().to_numpy(), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-6)
    code, out, err = aef(
        "eval", "points.parquet", "--features", "A00:A63", "--probe", "knn", "--shots", "max", "--json"
    )
    assert code == 0, err
    assert json.loads(out)["results"][0]["mean"] > 0.6


def test_a_csv_keeps_the_cells_as_they_were(world: Path, aef: Aef) -> None:
    line = ("export", str(world / "two.zarr"), "--points", str(world / "labels.csv"), "--period", "2023-05")
    code, out, err = aef(*line, "--out", "new/table.csv", "--json")
    document = json.loads(out)
    assert (code, document["outputs"], document["rows"]) == (0, ["new/table.csv"], 60), err
    assert document["missing"] == {"outside": 1, "nodata": 3, "other periods": 0}
    found = pd.read_csv("new/table.csv", dtype=str, keep_default_na=False)
    before = pd.read_csv(world / "labels.csv", dtype=str, keep_default_na=False)
    pd.testing.assert_frame_equal(found[before.columns], before)
    assert set(found["period_start"]) == {"2023-05-01T00:00:00Z"}
    assert set(found["period_end"]) == {"2023-06-01T00:00:00Z"}
    assert set(found["A00"][:4]) == {""}
    labels = pd.read_csv(world / "labels.csv")
    expected, _ = open_vectors(world / "two.zarr").sample(labels["x"].to_numpy(), labels["y"].to_numpy(), 0)
    np.testing.assert_array_equal(found["A63"].replace("", "nan").astype("float32"), expected[:, 63])
    labelled, matrix = read_points(Path("new/table.csv"), "A00:A63")
    assert (len(labelled), labelled.names) == (60, ("0", "1"))
    np.testing.assert_allclose(matrix, expected, atol=1e-9)


@pytest.mark.parametrize("kind", ["geojson", "gpkg", "parquet"])
def test_geometries_of_any_crs_become_degrees(world: Path, tmp_path: Path, kind: str) -> None:
    rows, columns = np.array([5, 25, 37]), np.array([0, 100, 529])
    lon, lat = place(rows, columns)
    crs = 4326 if kind == "geojson" else 3857
    table = geopandas.GeoDataFrame(
        {"label": ["a", "b", "c"]}, geometry=geopandas.points_from_xy(lon, lat, crs=4326).to_crs(crs)
    )
    path = tmp_path / f"points.{kind}"
    table.to_parquet(path) if kind == "parquet" else table.to_file(path)
    done = write_table(open_vectors(world / "two.zarr"), path, tmp_path / "out.parquet", PERIODS[:1])
    found = pd.read_parquet(done.path)
    assert list(found.columns) == ["label", "longitude", "latitude", "period_start", "period_end", *NAMES]
    np.testing.assert_allclose(found[["longitude", "latitude"]], np.stack([lon, lat], axis=1), atol=1e-9)
    codes = field.open_field(world / "two.zarr")["embeddings"][0].to_numpy()
    np.testing.assert_array_equal(found[NAMES].to_numpy(), field.dequantise(codes[:, rows, columns].T))


def test_points_with_a_period_of_their_own_get_that_one(world: Path, tmp_path: Path) -> None:
    labels = pd.read_csv(world / "labels.csv")[4:10].reset_index(drop=True)
    may, year = PERIODS
    labels["valid_time_start_ms"] = [may.start, year.start, may.start + 1, OLD.start, year.start, may.start]
    labels["valid_time_end_ms"] = [may.end, year.end, may.end - 1, OLD.end, year.end, may.end]
    labels.to_csv(tmp_path / "own.csv", index=False)
    vectors = open_vectors(world / "two.zarr")
    done = write_table(vectors, tmp_path / "own.csv", tmp_path / "out.parquet")
    assert (done.rows, dict(done.missing)) == (6, {"outside": 0, "nodata": 0, "other periods": 1})
    found = pd.read_parquet(done.path)
    both = [vectors.sample(labels["x"].to_numpy(), labels["y"].to_numpy(), index)[0] for index in (0, 1)]
    expected = np.stack([both[0][0], both[1][1], both[0][2], np.full(64, np.nan), both[1][4], both[0][5]])
    np.testing.assert_array_equal(found[NAMES].to_numpy(), expected)
    assert found["period_start"].astype("int64").tolist()[2:4] == [may.start, OLD.start]
    done = write_table(vectors, tmp_path / "own.csv", tmp_path / "may.parquet", PERIODS[:1])
    assert dict(done.missing) == {"outside": 0, "nodata": 0, "other periods": 3}


def test_a_full_disk_leaves_no_table(world: Path, tmp_path: Path, limit: Any) -> None:
    for name in ("out.parquet", "out.csv"):
        limit(10_000)
        with pytest.raises(NoResources, match="cannot write"):
            write_table(open_vectors(world / "two.zarr"), world / "labels.csv", tmp_path / name)
    assert not list(tmp_path.iterdir())


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.fixture
def stage(world: Path, tmp_path: Path) -> Path:
    """A folder with a link to the field, tables that cannot be used, and what is in the way."""
    (tmp_path / "two.zarr").symlink_to(world / "two.zarr")
    labels = pd.read_csv(world / "labels.csv")
    labels.to_csv(tmp_path / "labels.csv", index=False)
    labels.assign(A07=1.0).to_csv(tmp_path / "vectors.csv", index=False)
    labels.assign(x=labels["x"] + 5).to_csv(tmp_path / "away.csv", index=False)
    labels[:3].to_csv(tmp_path / "hole.csv", index=False)
    old = labels.assign(valid_time_start_ms=OLD.start, valid_time_end_ms=OLD.end)
    old.to_csv(tmp_path / "old.csv", index=False)
    labels.drop(columns="x").to_csv(tmp_path / "nowhere.csv", index=False)
    labels[:0].to_csv(tmp_path / "none.csv", index=False)
    labels.assign(y=[*[np.nan] * 4, *labels["y"][4:]]).to_csv(tmp_path / "gaps.csv", index=False)
    (tmp_path / "there.csv").write_text("mine")
    (tmp_path / "folder.csv").mkdir()
    write_tiff(tmp_path / "undated.tif", codes_of(0)[:, :9, :9])
    return tmp_path


FIELD = ("export", "two.zarr")
POINTS = (*FIELD, "--points")
BAD = [
    (FIELD, "--cog or --points"),
    ((*POINTS, "labels.csv", "--cog"), "one of --cog and --points"),
    ((*POINTS, "labels.csv", "--dequantised"), "--dequantised is of --cog"),
    (("export", "--cog"), "embeddings.zarr"),
    (("export", "labels.csv", "--cog"), "not an embedding field"),
    (("export", "undated.tif", "--cog"), "--period 2024 says it"),
    (("export", "undated.tif", "--cog", "--period", "2023", "--period", "2024"), "--period 2024 says it"),
    ((*FIELD, "--cog", "--period", "soon"), "soon"),
    ((*FIELD, "--cog", "--period", "2023", "--period", "2024"), "2023-05-01:2023-05-31, 2023-01-01:2023-12-31"),
    ((*FIELD, "--cog", "--out", "map.tif"), "no folder"),
    ((*FIELD, "--cog", "--out", "labels.csv"), "no folder"),
    ((*FIELD, "--cog", "--out", "labels.csv/below"), "no folder"),
    ((*FIELD, "--cog", "--out", "s3://bucket/cogs"), "no path on disk"),
    ((*FIELD, "--cog", "--out", ""), "--out is empty"),
    ((*POINTS, "missing.csv"), "there is no missing.csv"),
    ((*POINTS, "undated.tif"), "unknown kind of table of points '.tif'"),
    ((*POINTS, "nowhere.csv"), "no coordinates"),
    ((*POINTS, "none.csv"), "no rows"),
    ((*POINTS, "gaps.csv"), "4 of 60 rows have no coordinates"),
    ((*POINTS, "vectors.csv"), "a column 'A07' of its own"),
    ((*POINTS, "away.csv"), "all 60 points of away.csv lie outside of two.zarr"),
    ((*POINTS, "hole.csv", "--out", "new/hole.csv"), "nodata at all points of hole.csv"),
    ((*POINTS, "old.csv"), "the first is of 2001-02-03:2001-02-03"),
    ((*POINTS, "labels.csv", "--period", "2024"), "not 2024-01-01:2024-12-31"),
    ((*POINTS, "labels.csv", "--out", "out.xlsx"), "no table"),
    ((*POINTS, "labels.csv", "--out", "folder.csv"), "a folder"),
    ((*POINTS, "labels.csv", "--out", "there.csv"), "there already"),
    ((*POINTS, "labels.csv", "--out", "labels.csv", "--overwrite"), "the table of the points"),
    ((*POINTS, "labels.csv", "--out", "gs://bucket/table.csv"), "no path on disk"),
]


@pytest.mark.parametrize(("words", "says"), BAD, ids=lambda value: " ".join(value) if isinstance(value, tuple) else "")
def test_bad_input_gets_one_line_and_makes_nothing(words: tuple[str, ...], says: str, aef: Aef, stage: Path) -> None:
    before = sorted(stage.rglob("*"))
    code, out, err = aef(*words)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("aef: ")
    assert says in err
    assert sorted(stage.rglob("*")) == before


def test_the_command_prints_paths_and_notes(aef: Aef, stage: Path) -> None:
    assert aef(*FIELD, "--cog", "-q", "--period", "2023-05") == (0, f"{FILES[0]}\n", "")
    code, out, err = aef(*FIELD, "--cog")
    assert (code, out) == (0, "".join(f"{name}\n" for name in FILES))
    assert err.splitlines() == [f"{FILES[0]}: is there", f"{FILES[1]}: 2023-01-01:2023-12-31, 0.5% nodata"]
    document = json.loads(aef(*FIELD, "--cog", "--json", "--overwrite", "--period", "2023-05")[1])
    assert document["outputs"] == FILES[:1]
    assert document["files"] == [{"path": FILES[0], "period": str(PERIODS[0]), "nodata": pytest.approx(NODATA)}]
    (stage / "tiffs").mkdir()
    assert aef("export", "undated.tif", "--cog", "--period", "2024-02", "--out", "tiffs", "-q")[0] == 0
    assert os.listdir("tiffs") == ["undated_2024-02-01_2024-02-29.tif"]  # noqa: PTH208 - by name
