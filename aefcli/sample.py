"""Windows of cubes into frames: where arrays become tensors, and the one place where values are normalised.

Owns the read of a window, its normalisation [paper S1], the choice of frames and places, and the endless stream of
training batches. Knows neither the network nor the losses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from aefcli.batch import DAY, Batch, Frames, make_batch, stack
from aefcli.cube import Cube, CubeSource, valid
from aefcli.errors import BadInput
from aefcli.extent import Period, Tile
from aefcli.recipe import Recipe
from aefcli.sources import transform

_CLIP = 6.0  # sigmas
_YEAR = 366 * DAY  # a support period is at most this long
_PRELOAD = 2 << 30  # bytes of stored values that are kept in memory rather than read again for every batch
_TRIES = 100  # draws of a place before giving up on one with data, or apart from the others
_LEAST = 0.5  # share of a place's pixels that some frame must have seen clearly
_HEADING = {"ascending": 1.0, "descending": -1.0}


def normalise(stored: np.ndarray, source: CubeSource, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Stored values (t c h w) of a source's bands to model inputs, and where all delivered bands have one (t h w).

    Physical value, transform, standardise with the table's statistics, clip at 6 sigma; 0 where there is no value.
    """
    physical = stored * source.scale[frames][:, :, None, None] + source.offset[frames][:, :, None, None]
    there = valid(stored, source.source.nodata)
    out = np.empty(stored.shape, dtype="float32")
    for index, name in enumerate(source.bands):
        band = source.source.band(name)
        value = transform(np.where(there[:, index], physical[:, index], 1.0), band.transform)
        if band.valid is not None:
            there[:, index] &= (value >= band.valid[0]) & (value <= band.valid[1])
        out[:, index] = np.clip((value - band.mean) / band.std, -_CLIP, _CLIP)
    lacking = ~source.delivered[frames][:, :, None, None]
    present = (there | lacking).all(axis=1) & source.delivered[frames].any(axis=1)[:, None, None]
    return np.where(present[:, None] & ~lacking, out, 0.0).astype("float32"), present


def window(cube: Cube, name: str, tile: Tile, frames: np.ndarray) -> Frames:
    """Some frames of one source over a tile, as a batch of one. Pixels outside the cube are not present."""
    source, bands = cube.sources[name], cube.sources[name].source.bands
    height, width = cube.shape
    inside = Tile(max(tile.top, 0), max(tile.left, 0), min(tile.bottom, height), min(tile.right, width))
    stored, weight = source.read(inside, frames)
    values, there = normalise(stored, source, frames)
    place = (
        slice(inside.top - tile.top, inside.bottom - tile.top),
        slice(inside.left - tile.left, inside.right - tile.left),
    )
    columns = [index for index, band in enumerate(bands) if band.name in source.bands]
    pixels = torch.zeros(1, len(frames), len(bands), *tile.shape)
    present = torch.zeros(1, len(frames), *tile.shape, dtype=torch.bool)
    clear = torch.zeros(1, len(frames), *tile.shape)
    has = torch.zeros(1, len(frames), len(bands), dtype=torch.bool)
    has[0][:, columns] = torch.from_numpy(source.delivered[frames])
    pixels[(0, slice(None), columns, *place)] = torch.from_numpy(values)
    present[(0, slice(None), *place)] = torch.from_numpy(there)
    clear[(0, slice(None), *place)] = torch.from_numpy((there & (weight > 0)).astype("float32"))
    heading = torch.tensor([[[_HEADING.get(source.orbit[index], 0.0)] for index in frames]]).reshape(1, len(frames), 1)
    return Frames(pixels, present, has, clear, torch.from_numpy(source.times[frames])[None], heading)


def in_period(source: CubeSource, period: Period) -> np.ndarray:
    """Indices of the source's frames in the period, in order of time."""
    return np.nonzero((source.times >= period.start) & (source.times < period.end))[0]


def size_of(cube: Cube) -> int:
    """Bytes of a cube's arrays, decoded."""
    return sum(array.nbytes for source in cube.sources.values() for array in source.arrays.values())


def preload(cube: Cube) -> Cube:
    """The cube with its arrays in memory."""
    loaded = {
        name: replace(source, arrays={key: np.asarray(array[:]) for key, array in source.arrays.items()})
        for name, source in cube.sources.items()
    }
    return replace(cube, sources=loaded)


def check(cubes: Sequence[Cube], recipe: Recipe) -> None:
    """Refuse a cube without a source of the recipe, or smaller than its patch."""
    for cube in cubes:
        if not set(cube.sources) & set(recipe.data.sources):
            raise BadInput(
                f"{cube.path} has {sorted(cube.sources)}, the recipe reads {list(recipe.data.sources)}",
                "choose another --recipe",
            )
        if min(cube.shape) < recipe.data.patch:
            raise BadInput(
                f"{cube.path} is {cube.shape[0]}x{cube.shape[1]} px, smaller than the recipe's patch of "
                f"{recipe.data.patch}",
                "fetch a larger box, or lower data.patch",
            )


def batches(cubes: Sequence[Cube], recipe: Recipe, seed: int, skip: int = 0) -> Iterator[Batch]:
    """Endless training batches of independent places. The i-th batch depends on the seed and on i alone.

    `skip` starts at a later one. Raises BadInput where `check` does.
    """
    check(cubes, recipe)
    if sum(map(size_of, cubes)) <= _PRELOAD:
        cubes = [preload(cube) for cube in cubes]
    number = skip
    while True:
        yield _batch(cubes, recipe, np.random.default_rng([seed, number]))
        number += 1


def _batch(cubes: Sequence[Cube], recipe: Recipe, rng: np.random.Generator) -> Batch:
    samples: list[dict[str, Frames]] = []
    supports: list[list[int]] = []
    taken: list[tuple[object, Tile]] = []
    for _ in range(recipe.train.batch):
        cube, tile, support = _place(cubes, recipe, rng, taken)
        taken.append((cube.path, tile))
        samples.append(_sample(cube, tile, support, recipe, rng))
        supports.append([support.start, support.end])
    frames = {name: stack([sample[name] for sample in samples]) for name in recipe.data.sources}
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    return make_batch(frames, torch.tensor(supports), recipe.loss.whole_support, generator)


def _place(
    cubes: Sequence[Cube], recipe: Recipe, rng: np.random.Generator, taken: Sequence[tuple[object, Tile]]
) -> tuple[Cube, Tile, Period]:
    """A cube, a tile of it with clear data, and a support; apart from the batch's others, for half of the draws."""
    size = recipe.data.patch
    areas = np.array([cube.shape[0] * cube.shape[1] for cube in cubes], dtype="float64")
    for attempt in range(_TRIES):
        cube = cubes[rng.choice(len(cubes), p=areas / areas.sum())]
        top, left = (int(rng.integers(extent - size + 1)) for extent in cube.shape)
        tile = Tile(top, left, top + size, left + size)
        near = any(path == cube.path and _overlap(tile, other) for path, other in taken)
        if (near and attempt < _TRIES // 2) or _covered(cube, tile, recipe.data.sources) < _LEAST:
            continue
        return cube, tile, support_of(cube, rng)
    raise BadInput(
        f"{', '.join(str(cube.path) for cube in cubes)}: no {size}x{size} px place with data found in {_TRIES} draws",
        "fetch a box or a period with more data",
    )


def _overlap(a: Tile, b: Tile) -> bool:
    return a.top < b.bottom and b.top < a.bottom and a.left < b.right and b.left < a.right


def _covered(cube: Cube, tile: Tile, names: Sequence[str]) -> float:
    """Share of a coarse raster of the tile's pixels that some of a source's frames saw clearly, for the best source."""
    best = 0.0
    for source in (cube.sources[name] for name in names if name in cube.sources):
        weight = source.clear(tile, np.arange(0, len(source.times), max(1, len(source.times) // 8)))
        best = max(best, float((weight[:, ::4, ::4] > 0).any(axis=0).mean()) if len(weight) else 0.0)
    return best


def support_of(cube: Cube, rng: np.random.Generator) -> Period:
    """The cube's period, or a year of it at random where it is longer."""
    spare = cube.period.end - cube.period.start - _YEAR
    if spare <= 0:
        return cube.period
    start = cube.period.start + int(rng.integers(spare + 1))
    return Period(start, start + _YEAR)


def _sample(cube: Cube, tile: Tile, support: Period, recipe: Recipe, rng: np.random.Generator) -> dict[str, Frames]:
    """Every source of the recipe over one tile: at most its number of frames, at random, those absent as t = 0."""
    sample = {}
    for name, most in zip(recipe.data.sources, recipe.data.frames, strict=True):
        if name not in cube.sources:
            sample[name] = _nothing(name, tile)
            continue
        frames = in_period(cube.sources[name], support)
        chosen = np.sort(rng.permutation(frames)[: most + 1])  # one of them becomes the target
        sample[name] = window(cube, name, tile, chosen)
    return sample


def _nothing(name: str, tile: Tile) -> Frames:
    """A source that the cube does not have: one frame that is not present."""
    from aefcli.sources import SOURCES

    bands = len(SOURCES[name].bands)
    return Frames(
        torch.zeros(1, 1, bands, *tile.shape),
        torch.zeros(1, 1, *tile.shape, dtype=torch.bool),
        torch.zeros(1, 1, bands, dtype=torch.bool),
        torch.zeros(1, 1, *tile.shape),
        torch.zeros(1, 1, dtype=torch.int64),
        torch.zeros(1, 1, 1),
    )
