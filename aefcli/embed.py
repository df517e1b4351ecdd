"""The trained model over the tiles of a cube, into an embedding field.

Owns which frames serve which valid period, how patches with their halo are laid over a tile, what is nodata, and the
resumable writing of a field. One encoder pass serves all valid periods that share a support period. Sources:
method.md section 10, stores.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from aefcli import checkpoint, field, ledger
from aefcli.batch import DAY, Frames
from aefcli.checkpoint import Run
from aefcli.cube import Cube, grid_attrs
from aefcli.errors import BadInput, NoResources
from aefcli.extent import Period, Tile, tiles
from aefcli.model import Model
from aefcli.recipe import Dtype, Embed, Recipe
from aefcli.sample import in_period, window

_YEAR = 366 * DAY
_AT_ONCE = 4  # valid periods summarised together; memory grows with it, time hardly falls beyond

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Embedded:
    """What an embed ended with."""

    path: Path
    periods: tuple[Period, ...]
    extrapolated: tuple[Period, ...]  # those that hold no frame of the cube
    tiles: int
    written: int  # by this call
    nodata: float  # share of pixels that no frame saw clearly, over the tiles written by this call


def embed(
    cube: Cube,
    run: Run,
    periods: Sequence[Period],
    out: Path,
    *,
    device: torch.device,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Embedded:
    """Write the field of a cube for some valid periods; resume one that was cut off; leave a finished one alone.

    Raises BadInput where the model reads none of the cube's sources, or where `out` holds something else.
    """
    recipe, model = run.recipe, checkpoint.load(run).to(device)
    periods = sorted(set(periods), key=lambda period: (period.start, -period.end))
    names = readable(cube, recipe)
    request = {
        "format": field.FORMAT,
        "cube": cube.key,
        "model": checkpoint.identity(run),
        "periods": [[period.start, period.end] for period in periods],
        "grid": grid_attrs(cube.grid),
    }
    attrs = {
        "aef:cube": os.path.relpath(cube.path.resolve(), out.resolve().parent),
        "aef:key": ledger.digest(request),
        "aef:model": checkpoint.identity(run),
        "aef:recipe": recipe.to_toml(),
        "aef:request": request,
    }
    work = list(tiles(cube.shape, field.CHUNK))
    empty, written = 0.0, 0
    with ledger.build(out, request, dict, overwrite=overwrite) as build:
        try:
            build.template(
                lambda path: field.create(path, cube.grid, periods, sources=names, attrs=attrs, chunk=field.CHUNK)
            )
            todo = [] if build.complete else build.remaining([_unit(tile) for tile in work])
            for tile in [tile for tile in work if _unit(tile) in set(todo)]:
                if progress:
                    progress(len(work) - len(todo) + written, len(work))
                vectors, observed = embed_tile(model, recipe, cube, names, tile, periods, device)
                files = field.write(build.store, tile, field.quantise(vectors, axis=1), observed)
                build.record(_unit(tile), files)
                empty += float(np.isnan(vectors[:, 0]).mean())
                written += 1
            if not build.complete:
                build.finish(field.finish)
        except OSError as error:
            raise NoResources(f"cannot write {out}: {error.strerror or error}", "make room, then run again") from error
    outside = tuple(period for period in periods if not _frames_inside(cube, names, period))
    return Embedded(out, tuple(periods), outside, len(work), written, empty / max(1, written))


def readable(cube: Cube, recipe: Recipe) -> list[str]:
    """The sources of the cube that the model reads; none is refused."""
    names = [name for name in recipe.data.sources if name in cube.sources]
    if not names:
        raise BadInput(
            f"the model reads {list(recipe.data.sources)}, {cube.path} has {sorted(cube.sources)}",
            "fetch one of the model's sources, or train on this cube",
        )
    return names


def _unit(tile: Tile) -> str:
    return f"{tile.top}/{tile.left}"


def _frames_inside(cube: Cube, names: Sequence[str], period: Period) -> int:
    return sum(len(in_period(cube.sources[name], period)) for name in names)


def support_of(cube: Period, valid: Period) -> Period:
    """The support period of a valid one: the year of the cube, counted from its start, that holds it.

    A cube of at most a year has one; a valid period outside the cube takes the nearest. One of at most a year that lies
    across two takes the year that starts with it, a longer one all the years it touches.
    """
    years = max(1, -(-(cube.end - cube.start) // _YEAR))
    if valid.end - valid.start <= _YEAR < cube.end - cube.start and not _same_year(cube, valid):
        start = min(max(valid.start, cube.start), cube.end - _YEAR)
        return Period(start, start + _YEAR)
    first = min(max((valid.start - cube.start) // _YEAR, 0), years - 1)
    last = min(max((valid.end - 1 - cube.start) // _YEAR, 0), years - 1)
    return Period(cube.start + first * _YEAR, min(cube.start + (last + 1) * _YEAR, cube.end))


def _same_year(cube: Period, valid: Period) -> bool:
    return (valid.start - cube.start) // _YEAR == (valid.end - 1 - cube.start) // _YEAR


def embed_tile(
    model: Model,
    recipe: Recipe,
    cube: Cube,
    names: Sequence[str],
    tile: Tile,
    periods: Sequence[Period],
    device: torch.device,
    wanted: np.ndarray | None = None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Vectors (p, 64, h, w) of a tile, NaN where no frame of the support was clear; clear frames per source (p, h, w).

    With `wanted`, a mask of the tile's pixels, patches that hold none of them are left NaN.
    """
    (height, width), sizes = tile.shape, recipe.embed
    out = np.full((len(periods), field.DIMENSIONS, height, width), np.nan, dtype="float32")
    observed = {name: np.zeros((len(periods), height, width), dtype="uint16") for name in names}
    supports = [support_of(cube.period, period) for period in periods]
    for support in dict.fromkeys(supports):
        chosen = [index for index, own in enumerate(supports) if own == support]
        valid = [periods[index] for index in chosen]
        frames = read_tile(cube, names, tile, support, recipe)
        for name, source in frames.items():
            for index, period in zip(chosen, valid, strict=True):
                observed[name][index] = _count(source, sizes.halo, tile, period)
        for part, place, own in patches(frames, tile, sizes):
            if wanted is not None and not wanted[place].any():
                continue
            vectors = encode_patch(model, part, valid, device, sizes.dtype)
            out[(np.array(chosen)[:, None], slice(None), *place)] = vectors[:, None][(..., *own)]
        clear = np.logical_or.reduce([_count(source, sizes.halo, tile, None) > 0 for source in frames.values()])
        out[np.array(chosen)] = np.where(clear, out[np.array(chosen)], np.nan)
    return out, observed


def read_tile(cube: Cube, names: Sequence[str], tile: Tile, support: Period, recipe: Recipe) -> dict[str, Frames]:
    """Every frame of the support over the tile and its halo, out to whole patches; one read per tile."""
    step, halo = recipe.embed.patch - 2 * recipe.embed.halo, recipe.embed.halo
    rows, columns = (-(-extent // step) * step + 2 * halo for extent in tile.shape)
    around = Tile(tile.top - halo, tile.left - halo, tile.top - halo + rows, tile.left - halo + columns)
    given = recipe.statistics
    return {name: window(cube, name, around, in_period(cube.sources[name], support), given) for name in names}


def _count(source: Frames, halo: int, tile: Tile, period: Period | None) -> np.ndarray:
    """How many frames (of a period) saw each pixel of the tile clearly: (h, w)."""
    weight = source.weight[0, :, halo : halo + tile.shape[0], halo : halo + tile.shape[1]] > 0
    if period is not None:
        weight = weight[(source.time[0] >= period.start) & (source.time[0] < period.end)]
    return weight.sum(0).numpy()


def patches(
    frames: Mapping[str, Frames], tile: Tile, sizes: Embed
) -> Iterator[tuple[dict[str, Frames], tuple[slice, slice], tuple[slice, slice]]]:
    """Patches over a tile: the frames of one, the pixels of the tile that it writes, and where it has them."""
    halo, step = sizes.halo, sizes.patch - 2 * sizes.halo
    for cell in tiles(tile.shape, step):
        window_of = (..., slice(cell.top, cell.top + sizes.patch), slice(cell.left, cell.left + sizes.patch))
        part = {
            name: replace(
                source,
                pixels=source.pixels[window_of],
                present=source.present[window_of],
                weight=source.weight[window_of],
            )
            for name, source in frames.items()
        }
        own = (slice(halo, halo + cell.shape[0]), slice(halo, halo + cell.shape[1]))
        yield part, cell.slices, own


@torch.inference_mode()
def encode_patch(
    model: Model, frames: Mapping[str, Frames], periods: Sequence[Period], device: torch.device, dtype: Dtype
) -> np.ndarray:
    """Mean directions (p, 64, h, w) of one patch for some valid periods, from one encoder pass."""
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        encoded = model.encode({name: source.to(device) for name, source in frames.items()})
        valid = torch.tensor([[period.start, period.end] for period in periods], device=device)[None]
        parts = [model.summarise(encoded, part)[0] for part in valid.split(_AT_ONCE, dim=1)]
    return torch.cat(parts).cpu().numpy()


def at_points(
    model: Model,
    recipe: Recipe,
    cube: Cube,
    rows: np.ndarray,
    columns: np.ndarray,
    periods: Sequence[Period],
    device: torch.device,
) -> np.ndarray:
    """Vectors (n, p, 64) at some pixels of a cube, NaN where nodata: what a field would hold there, before int8."""
    names = readable(cube, recipe)
    out = np.full((len(rows), len(periods), field.DIMENSIONS), np.nan, dtype="float32")
    for tile in tiles(cube.shape, field.CHUNK):
        here = (rows >= tile.top) & (rows < tile.bottom) & (columns >= tile.left) & (columns < tile.right)
        if not here.any():
            continue
        wanted = np.zeros(tile.shape, dtype=bool)
        wanted[rows[here] - tile.top, columns[here] - tile.left] = True
        vectors, _ = embed_tile(model, recipe, cube, names, tile, periods, device, wanted)
        out[here] = vectors[:, :, rows[here] - tile.top, columns[here] - tile.left].transpose(2, 0, 1)
    return out
