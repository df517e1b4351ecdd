"""Windows of a cube straight from its chunk files: the values that Zarr gives, and damage that Zarr would pass over."""

from __future__ import annotations

import random
import struct
from dataclasses import replace
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import xarray as xr
import zarr
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from rasterio import Affine
from zarr.codecs import GzipCodec

from aefcli.cube import Cube, CubeSource, open_cube, write_cube
from aefcli.cube.chunks import Chunks
from aefcli.errors import Damaged
from aefcli.extent import Period, Tile

YEAR = Period.parse("2023")
FRAMES, SIDE = 40, 150  # two chunks of frames, two of rows and of columns


def dataset(band: str, dtype: str, gsd: int, side: int) -> xr.Dataset:
    rng = np.random.default_rng(gsd)
    grid = GeoBox((side, side), Affine(gsd, 0, 500_000, 0, -gsd, 5_100_000), 32633)
    times = (YEAR.start + 86_400_000 * np.arange(FRAMES)).astype("datetime64[ms]")
    values = (("time", "y", "x"), rng.integers(1, 9999, (FRAMES, side, side)).astype(dtype))
    weight = (("time", "y", "x"), rng.integers(0, 2, (FRAMES, side, side)).astype("uint8"))
    return xr.Dataset({band: values, "weight": weight}, {**xr_coords(grid), "time": times})


@pytest.fixture
def cube(tmp_path: Path) -> Cube:
    """Sentinel-2 at 10 m and Landsat at 30 m."""
    datasets = {"sentinel-2": dataset("B02", "uint16", 10, SIDE), "landsat": dataset("B2", "uint16", 30, SIDE // 3)}
    return open_cube(write_cube(tmp_path / "cube.zarr", datasets, YEAR))


def in_memory(source: CubeSource) -> CubeSource:
    return replace(source, arrays={name: np.asarray(array[:]) for name, array in source.arrays.items()})


def test_chunk_files_are_those_that_zarr_writes(cube: Cube) -> None:
    """To the byte; also those that the array's end cuts."""
    for source in cube.sources.values():
        for name, array in source.arrays.items():
            folder = cube.path / array.path
            ours = {path: path.read_bytes() for path in folder.rglob("c/*/*/*")}
            assert len(ours) == np.prod([-(-n // size) for n, size in zip(array.shape, array.chunks, strict=True)]), (
                name
            )
            again = zarr.open_array(folder, mode="r+").with_config({"write_empty_chunks": True})
            again[...] = array[...]
            assert {path: path.read_bytes() for path in folder.rglob("c/*/*/*")} == ours


@pytest.mark.parametrize("name", ["sentinel-2", "landsat"])
def test_windows_are_those_of_the_whole_array(cube: Cube, name: str) -> None:
    source, rng = cube.sources[name], np.random.default_rng(0)
    assert all(Chunks.of(array) for array in source.arrays.values())
    whole = in_memory(source)
    for _ in range(60):
        (top, bottom), (left, right) = (np.sort(rng.choice(SIDE + 1, 2, replace=False)).tolist() for _ in range(2))
        frames = [
            np.arange(FRAMES),
            np.arange(*sorted(rng.choice(FRAMES + 1, 2, replace=False))),
            rng.integers(0, FRAMES, rng.integers(0, 9)),  # in any order, some of them twice, or none
        ][rng.integers(3)]
        tile = Tile(top, left, bottom, right)
        for ours, expected in zip(source.read(tile, frames), whole.read(tile, frames), strict=True):
            assert ours.dtype == expected.dtype
            np.testing.assert_array_equal(ours, expected)
        np.testing.assert_array_equal(source.clear(tile, frames), whole.clear(tile, frames))


def test_another_layout_is_left_to_zarr(cube: Cube, tmp_path: Path) -> None:
    source = cube.sources["sentinel-2"]
    other = {}
    for name, array in source.arrays.items():
        other[name] = zarr.create_array(
            tmp_path / "other" / name, shape=array.shape, chunks=(7, 50, 60), dtype=array.dtype, compressors=GzipCodec()
        )
        other[name][:] = array[:]
        assert Chunks.of(other[name]) is None
    tile, frames = Tile(20, 30, 140, 99), np.array([3, 35, 11])
    for ours, expected in zip(source.read(tile, frames), replace(source, arrays=other).read(tile, frames), strict=True):
        np.testing.assert_array_equal(ours, expected)


def refused(cube: Cube, path: Path, what: str) -> None:
    """Reading over the chunk names it; reading beside it does not mind."""
    source = cube.sources["sentinel-2"]
    with pytest.raises(Damaged, match=what) as error:
        source.read(Tile(0, 0, SIDE, SIDE), np.arange(FRAMES))
    assert str(path) in error.value.what
    assert f"aef verify {cube.path}" in error.value.hint
    source.read(Tile(0, 0, 128, 128), np.arange(FRAMES))


def test_a_missing_chunk_is_no_nodata(cube: Cube) -> None:
    path = cube.path / "sentinel-2/B02/c/1/0/1"
    path.unlink()
    refused(cube, path, "is missing")
    array = cube.sources["sentinel-2"].arrays["B02"]
    with pytest.raises(Damaged, match="is missing"):
        array[:]
    assert array[:32].all()


def test_every_flipped_bit_is_found(cube: Cube) -> None:
    path, rng = cube.path / "sentinel-2/B02/c/0/1/1", random.Random(0)
    whole = path.read_bytes()
    for _ in range(40):
        broken = bytearray(whole)
        broken[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
        refused(cube, path, "is damaged")


@pytest.mark.parametrize("length", [0, 3, 19, 4000, -1])
def test_a_cut_chunk_is_found(cube: Cube, length: int) -> None:
    path = cube.path / "sentinel-2/weight/c/0/1/0"
    path.write_bytes(path.read_bytes()[:length])
    refused(cube, path, "is damaged")


@pytest.mark.parametrize("claimed", [1 << 30, 100])
def test_a_chunk_that_claims_another_size_is_refused(cube: Cube, claimed: int) -> None:
    """Its checksum is right; what it claims to hold is more or less than a chunk."""
    path = cube.path / "sentinel-2/B02/c/0/0/1"
    packed = bytearray(path.read_bytes()[:-4])
    packed[4:8] = struct.pack("<I", claimed)
    path.write_bytes(packed + struct.pack("<I", google_crc32c.value(bytes(packed))))
    refused(cube, path, "is of another size")
