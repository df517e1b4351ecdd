"""Windows of cubes into frames: where arrays become tensors, and the one place where values are normalised.

Owns the read of a window, its normalisation [paper S1], the choice of frames and places, and the endless stream of
training batches. Knows neither the network nor the losses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from aefcli.batch import DAY, Batch, Frames, Text, make_batch, stack
from aefcli.cube import Cube, CubeSource
from aefcli.errors import BadInput
from aefcli.extent import Period, Tile
from aefcli.recipe import Recipe
from aefcli.sources import SOURCES, transform, valid
from aefcli.text import Drawn, Placed, Texts, draw, on

_CLIP = 6.0  # sigmas
_YEAR = 366 * DAY  # a support period is at most this long
_PRELOAD = 2 << 30  # bytes of stored values that are kept in memory rather than read again for every batch
Ground = tuple[str, float, float, float, float]  # CRS; west, south, east, north
_TRIES = 100  # draws of a place before giving up on one with data, or apart from the others
_LEAST = 0.5  # share of a place's pixels that some frame must have seen clearly


def normalise(stored: np.ndarray, source: CubeSource, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Stored values (t c h w) of a source's bands to model inputs, and where all delivered bands have one (t h w).

    Physical value, transform, standardise with the table's statistics, clip at 6 sigma; 0 where there is no value.
    A categorical source's codes become indices into its classes; a code that is not among them is no value.
    """
    if source.source.kind == "categorical":
        return _indices(stored, source.source.classes)
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


def _indices(stored: np.ndarray, classes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Codes (t 1 h w), unsigned, to their places among the classes, and where they have one (t h w)."""
    table = np.full(np.iinfo(stored.dtype).max + 1, -1, dtype="int16")
    table[list(classes)] = np.arange(len(classes))
    index = table[stored]
    return np.maximum(index, 0).astype("float32"), index[:, 0] >= 0


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
    time, meta = torch.from_numpy(source.times[frames])[None], torch.from_numpy(source.meta[frames])[None]
    return Frames(pixels, present, has, clear, time, meta)


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


def _only(cube: Cube, names: Sequence[str]) -> Cube:
    """The cube without the sources that nobody asks for."""
    return replace(cube, sources={name: source for name, source in cube.sources.items() if name in names})


def check(cubes: Sequence[Cube], recipe: Recipe) -> None:
    """Refuse a cube without an input of the recipe, smaller than its patch or with other pixels than the first.

    It may lack any of the targets.
    """
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
        if (gsd := cube.grid.resolution.x) != cubes[0].grid.resolution.x:
            raise BadInput(
                f"{cube.path} has pixels of {gsd:g} m, {cubes[0].path} of {cubes[0].grid.resolution.x:g} m",
                "train on cubes of one --gsd",
            )


def batches(
    cubes: Sequence[Cube], recipe: Recipe, seed: int, skip: int = 0, texts: Texts | None = None
) -> Iterator[Batch]:
    """Endless training batches of places apart, as far as the cubes have room; `Batch.apart` tells where they had none.
    The i-th batch depends on the seed and on i alone.

    `skip` starts at a later one; `texts` are drawn from where the recipe has text among its targets. Raises BadInput
    where `check` does.
    """
    check(cubes, recipe)
    cubes = [_only(cube, (*recipe.data.sources, *recipe.data.targets)) for cube in cubes]
    placed = {}
    if texts is not None and "text" in recipe.data.targets:
        placed = {cube.path: on(texts, cube) for cube in cubes}
    if sum(map(size_of, cubes)) <= _PRELOAD:
        cubes = [preload(cube) for cube in cubes]
    number = skip
    while True:
        yield _batch(cubes, placed, recipe, np.random.default_rng([seed, number]))
        number += 1


def _batch(cubes: Sequence[Cube], placed: Mapping[Path, Placed], recipe: Recipe, rng: np.random.Generator) -> Batch:
    samples: list[dict[str, Frames]] = []
    taken: list[tuple[Cube, Tile, Period]] = []
    told: list[Drawn | None] = []
    for _ in range(recipe.train.batch):
        cube, tile, support = _place(cubes, placed, recipe, rng, taken)
        taken.append((cube, tile, support))
        samples.append(_sample(cube, tile, support, recipe, rng))
        told.append(draw(placed[cube.path], tile, support, rng) if placed else None)
    frames = {name: stack([sample[name] for sample in samples]) for name in samples[0]}
    alone = {name: frames.pop(name) for name in recipe.data.targets if name in frames}
    supports = [(support.start, support.end) for _, _, support in taken]
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    batch = make_batch(frames, alone, torch.tensor(supports), recipe.loss.whole_support, generator)
    text = _text(told, supports, recipe.model.text) if placed else None
    grounds = [_ground(cube, tile) for cube, tile, _ in taken]
    apart = torch.tensor([not _overlap(ground, grounds[row - 1]) for row, ground in enumerate(grounds)])
    return replace(batch, apart=apart, text=text, gsd=cubes[0].grid.resolution.x)


def _text(told: Sequence[Drawn | None], supports: Sequence[tuple[int, int]], width: int) -> Text:
    """What was drawn for each sample; where nothing was, its period is the support and the rest is 0."""
    vectors = [drawn.vector if drawn else np.zeros(width) for drawn in told]
    return Text(
        vector=torch.from_numpy(np.stack(vectors).astype("float32")),
        pixel=torch.tensor([drawn.pixel if drawn else (0, 0) for drawn in told]),
        valid=torch.tensor([drawn.valid if drawn else support for drawn, support in zip(told, supports, strict=True)]),
        there=torch.tensor([drawn is not None for drawn in told]),
    )


def _place(
    cubes: Sequence[Cube],
    placed: Mapping[Path, Placed],
    recipe: Recipe,
    rng: np.random.Generator,
    taken: Sequence[tuple[Cube, Tile, Period]],
) -> tuple[Cube, Tile, Period]:
    """A cube, a tile of it with clear data, and a support; apart from the batch's others, for half of the draws.

    About half of the tiles hold the place of a text, where there are texts: at random they would be rare.
    """
    size = recipe.data.patch
    areas = np.array([cube.shape[0] * cube.shape[1] for cube in cubes], dtype="float64")
    texts = np.array([len(placed[cube.path]) if placed else 0 for cube in cubes], dtype="float64")
    for attempt in range(_TRIES):
        told = texts.any() and rng.random() < 0.5
        share = texts if told else areas
        cube = cubes[rng.choice(len(cubes), p=share / share.sum())]
        tile = _around(placed[cube.path], cube, size, rng) if told else _anywhere(cube, size, rng)
        near = any(_overlap(_ground(cube, tile), _ground(other, place)) for other, place, _ in taken)
        if (near and attempt < _TRIES // 2) or _covered(cube, tile, recipe.data.sources) < _LEAST:
            continue
        return cube, tile, support_of(cube, rng)
    raise BadInput(
        f"{', '.join(str(cube.path) for cube in cubes)}: no {size}x{size} px place with data found in {_TRIES} draws",
        "fetch a box or a period with more data",
    )


def _anywhere(cube: Cube, size: int, rng: np.random.Generator) -> Tile:
    top, left = (int(rng.integers(extent - size + 1)) for extent in cube.shape)
    return Tile(top, left, top + size, left + size)


def _around(placed: Placed, cube: Cube, size: int, rng: np.random.Generator) -> Tile:
    """A tile of the cube that holds one of the texts' pixels, anywhere in it."""
    point = placed.pixels[rng.integers(len(placed))]
    corner = np.clip(point - rng.integers(size, size=2), 0, np.array(cube.shape) - size)
    top, left = map(int, corner)
    return Tile(top, left, top + size, left + size)


def _ground(cube: Cube, tile: Tile) -> Ground:
    """The tile in the units of its cube's CRS, so that cubes of the same ground are known for what they are."""
    step, (x, y) = cube.grid.resolution.x, (cube.grid.transform.c, cube.grid.transform.f)
    return str(cube.grid.crs), x + step * tile.left, y - step * tile.bottom, x + step * tile.right, y - step * tile.top


def _overlap(a: Ground, b: Ground) -> bool:
    return a[0] == b[0] and a[1] < b[3] and b[1] < a[3] and a[2] < b[4] and b[2] < a[4]


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
    """Every raster of the recipe over one tile.

    Of an input at most its number of frames, at random; of a source that is decoded alone one. A source that the cube
    lacks is one frame that is not present.
    """
    sample = {}
    for name, most in zip(recipe.data.sources, recipe.data.frames, strict=True):
        frames = in_period(cube.sources[name], support) if name in cube.sources else np.array([], dtype=int)
        if not len(frames):
            sample[name] = _nothing(name, tile)
            continue
        chosen = np.sort(rng.permutation(frames)[: most + 1])  # one of them becomes the target
        sample[name] = window(cube, name, tile, chosen)
    for name in recipe.data.targets:
        if SOURCES[name].kind != "text":
            sample[name] = _alone(cube, name, tile, support, rng)
    return sample


def _alone(cube: Cube, name: str, tile: Tile, support: Period, rng: np.random.Generator) -> Frames:
    """One frame of a source over a tile, at random of those in the support; of those clear somewhere, if there are any.

    A static source gives the frame nearest to the middle of the support, at a random instant of it: any would be true.
    """
    if name not in cube.sources:
        return _nothing(name, tile)
    source = cube.sources[name]
    if source.source.static:
        nearest = np.abs(source.times - (support.start + support.end) // 2).argmin()
        instant = int(rng.integers(support.start, support.end))
        return replace(window(cube, name, tile, np.array([nearest])), time=torch.tensor([[instant]]))
    frames = in_period(source, support)
    if not len(frames):
        return _nothing(name, tile)
    seen = frames[source.clear(tile, frames).any(axis=(1, 2))]
    return window(cube, name, tile, rng.choice(seen if len(seen) else frames, 1))


def _nothing(name: str, tile: Tile) -> Frames:
    """A source that the cube does not have: one frame that is not present."""
    bands, meta = len(SOURCES[name].bands), len(SOURCES[name].meta)
    return Frames(
        torch.zeros(1, 1, bands, *tile.shape),
        torch.zeros(1, 1, *tile.shape, dtype=torch.bool),
        torch.zeros(1, 1, bands, dtype=torch.bool),
        torch.zeros(1, 1, *tile.shape),
        torch.zeros(1, 1, dtype=torch.int64),
        torch.zeros(1, 1, meta),
    )
