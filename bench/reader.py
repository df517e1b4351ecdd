"""Random patches through a year of a cube: `python -m bench.reader [--json] [--quick] [--repeats N]`.

`ours` is CubeSource.read of four bands and the weight over random windows of 128 px, from a cube as fetch lays it out.
`one-frame` is the same read from the same values in chunks of one frame and 256 px, `tensorstore` reads the same
store, all bands at a time; `zarr` is zarr-python's own reading of it. Values are smooth fields with a little noise, for
noise alone would not compress. Files are in the system's cache.

Ratios: `layout` is the time from one-frame chunks over ours, `tensorstore` and `zarr` are ours over theirs. Correct:
equal values.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from rasterio import Affine

from aefcli.cube import Cube, CubeSource, open_cube, write_cube
from aefcli.extent import Period, Tile
from bench import measure
from bench.measure import Check, Result

BANDS = ("B02", "B03", "B04", "B08")
SOURCE = "sentinel-2"
YEAR = Period.parse("2023")
PATCHES = 16  # per repeat
REPEATS = 5

Reader = Callable[[Tile], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Size:
    """Of the cube and of a patch, in frames and px."""

    frames: int = 65
    side: int = 768
    patch: int = 128


QUICK = Size(5, 256, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--quick", action="store_true", help="small cube, one repeat: only to see it run")
    parser.add_argument("--repeats", type=int, default=REPEATS, help=f"of which the median is taken ({REPEATS})")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        size, repeats = (QUICK, 1) if chosen.quick else (Size(), chosen.repeats)
        run(Path(folder), size, repeats).show(chosen.json)


def run(folder: Path, size: Size, repeats: int) -> Result:
    cube = made_up(folder / "cube.zarr", size)
    readers = readers_of(cube, folder / "one-frame.zarr")
    windows = corners(size)
    works = {name: lambda reader=reader: [reader(tile) for tile in windows] for name, reader in readers.items()}
    taken = {name: spent / PATCHES for name, spent in measure.seconds(works, repeats).items()}
    correct = {name: Check(differing(readers["zarr"], reader, windows), 0) for name, reader in readers.items()}
    ratios = {
        "layout": taken["one-frame"] / taken["ours"],
        "tensorstore": taken["ours"] / taken["tensorstore"],
        "zarr": taken["ours"] / taken["zarr"],
    }
    rows = [(name, f"{spent * 1e3:.1f}", f"{1 / spent:.1f}", name) for name, spent in taken.items()]
    title = f"{size.frames} frames of 4 bands, {size.side} px, patches of {size.patch} px, median of {repeats}"
    return Result("reader", title, ("ms/patch", "patches/s"), rows, ratios, correct, {"seconds": taken})


def made_up(path: Path, size: Size) -> Cube:
    """A cube of Sentinel-2 through a year, as `write` lays it out."""
    rng = np.random.default_rng(0)
    grid = GeoBox((size.side, size.side), Affine(10, 0, 500_000, 0, -10, 5_100_000), 32633)
    step = (YEAR.end - YEAR.start) // size.frames
    coords = {**xr_coords(grid), "time": (YEAR.start + step * np.arange(size.frames)).astype("datetime64[ms]")}
    layers: dict[str, Any] = {name: (("time", "y", "x"), _values(rng, size)) for name in BANDS}
    clear = np.stack([_smooth(rng, size.side) > -0.5 for _ in range(size.frames)])
    layers["weight"] = (("time", "y", "x"), clear.astype("uint8"))
    return open_cube(write_cube(path, {SOURCE: xr.Dataset(layers, coords)}, YEAR))


def _values(rng: np.random.Generator, size: Size) -> np.ndarray:
    """uint16 (t y x): fields of 16 px, a season, slow changes and noise of 20."""
    fields = rng.uniform(0, 900, (size.side // 16, size.side // 16)).repeat(16, 0).repeat(16, 1)
    out = np.empty((size.frames, size.side, size.side), "uint16")
    for at in range(size.frames):
        season = 400 * np.sin(2 * np.pi * at / size.frames)
        noise = rng.normal(0, 20, (size.side, size.side))
        out[at] = 1500 + fields + season + 200 * _smooth(rng, size.side) + noise
    return out


def _smooth(rng: np.random.Generator, side: int) -> np.ndarray:
    """(y x) in -1 ... 1: a wave some 300 px long."""
    y, x = np.mgrid[0:side, 0:side]
    turn, phase = rng.uniform(0, 2 * np.pi, 2)
    return np.sin((x * np.cos(turn) + y * np.sin(turn)) / 50 + phase)


def corners(size: Size) -> list[Tile]:
    """Windows anywhere in the cube."""
    rng = np.random.default_rng(1)
    places = rng.integers(0, size.side - size.patch + 1, (PATCHES, 2)).tolist()
    return [Tile(top, left, top + size.patch, left + size.patch) for top, left in places]


def readers_of(cube: Cube, aside: Path) -> dict[str, Reader]:
    source = cube.sources[SOURCE]
    frames = np.arange(len(source.times))
    other = one_frame(source, aside)
    return {
        "ours": lambda tile: source.read(tile, frames),
        "one-frame": lambda tile: other.read(tile, frames),
        "tensorstore": tensorstore_reader(cube.path / SOURCE),
        "zarr": lambda tile: stacked([np.asarray(source.arrays[n][:, *tile.slices]) for n in (*BANDS, "weight")]),
    }


def one_frame(source: CubeSource, aside: Path) -> CubeSource:
    """The same values in chunks of one frame and 256 px, with the same codecs."""
    arrays = {}
    for name, array in source.arrays.items():
        shape, side = array.shape, min(256, array.shape[1])
        place: dict[str, Any] = {"shape": shape, "chunks": (1, side, side), "dtype": array.dtype}
        copy = zarr.create_array(
            aside / name, **place, compressors=array.compressors, config={"write_empty_chunks": True}
        )
        copy[:] = array[:]
        arrays[name] = copy
    return replace(source, arrays=arrays)


def tensorstore_reader(group: Path) -> Reader:
    import tensorstore

    def opened(name: str) -> Any:
        place = {"driver": "file", "path": str(group / name)}
        return tensorstore.open({"driver": "zarr3", "kvstore": place}, read=True).result()

    arrays = [opened(name) for name in (*BANDS, "weight")]

    def read(tile: Tile) -> tuple[np.ndarray, np.ndarray]:
        rows, columns = tile.slices
        running = [array[:, rows, columns].read() for array in arrays]
        return stacked([each.result() for each in running])

    return read


def stacked(found: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """As CubeSource.read gives it: values (t c h w) and weight (t h w)."""
    *values, weight = found
    return np.stack(values, axis=1), weight


def differing(one: Reader, other: Reader, windows: list[Tile]) -> int:
    """How many values of all windows differ."""
    pairs = [pair for tile in windows for pair in zip(one(tile), other(tile), strict=True)]
    return sum(int(np.not_equal(mine, theirs).sum()) for mine, theirs in pairs)


if __name__ == "__main__":
    main()
