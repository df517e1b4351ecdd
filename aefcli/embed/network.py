"""One patch of a cube through the model: vectors for some valid periods, what was seen, and how they spread."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from aefcli import field
from aefcli.batch import Frames
from aefcli.cube import Cube
from aefcli.embed.periods import support_of
from aefcli.embed.tiling import AT_ONCE, around, cells, runs, tile_side
from aefcli.errors import BadInput, NoResources
from aefcli.extent import Period, Tile, tiles
from aefcli.model import Model
from aefcli.recipe import Dtype, Recipe
from aefcli.sample import in_period, window

_DROPPED = 1 / 3  # of the frames, in each pass for the uncertainty
_STEPS = 127.5  # of the quantiser

OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory")  # as torch says it, on any device

Read = dict[str, Frames]  # source -> the frames of one place


@dataclass(frozen=True)
class Network:
    """A model on its device, and what its recipe says of inference."""

    model: Model
    recipe: Recipe
    device: torch.device

    def directions(self, frames: Mapping[str, Frames], periods: Sequence[Period]) -> Tensor:
        """Mean directions float32 (p, 64, h, w) of one patch for some valid periods, from one encoder pass."""
        return directions(self.model, frames, periods, self.device, self.recipe.embed.dtype)


@dataclass(frozen=True)
class Seen:
    """One cell of a field, computed."""

    vectors: Tensor  # float32 (p, 64, h, w) of unit length, on the device; meaningless where not `clear`
    clear: np.ndarray  # bool (h, w): a frame of the support saw the pixel clearly
    observed: dict[str, np.ndarray]  # source -> clear frames within each valid period (p, h, w)
    spread: Tensor | None  # float32 (p, h, w), degrees


def readable(cube: Cube, recipe: Recipe) -> list[str]:
    """The sources of the cube that the model reads; none is refused."""
    names = [name for name in recipe.data.sources if name in cube.sources]
    if not names:
        raise BadInput(
            f"the model reads {list(recipe.data.sources)}, {cube.path} has {sorted(cube.sources)}",
            "fetch one of the model's sources, or train on this cube",
        )
    return names


def read_frames(cube: Cube, names: Sequence[str], tile: Tile, support: Period, recipe: Recipe) -> Read:
    """Every frame of the support over a tile of the cube, which may reach beyond it."""
    given = recipe.statistics
    return {name: window(cube, name, tile, in_period(cube.sources[name], support), given) for name in names}


def encode_patch(
    model: Model, frames: Mapping[str, Frames], periods: Sequence[Period], device: torch.device, dtype: Dtype
) -> np.ndarray:
    """Mean directions float32 (p, 64, h, w) of one patch for some valid periods, from one encoder pass."""
    return directions(model, frames, periods, device, dtype).cpu().numpy()


@torch.inference_mode()
def directions(
    model: Model, frames: Mapping[str, Frames], periods: Sequence[Period], device: torch.device, dtype: Dtype
) -> Tensor:
    """As `encode_patch`, left on the device. Where memory is short there, fewer periods are summarised together."""
    at_once, encoded = AT_ONCE, None
    valid = torch.tensor([[period.start, period.end] for period in periods], device=device)[None]
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        while True:
            try:
                encoded = encoded or model.encode({name: source.to(device) for name, source in frames.items()})
                return model.summarise(encoded, valid, at_once)[0].float()
            except RuntimeError as error:
                if not OUT_OF_MEMORY.search(str(error)):
                    raise
                if encoded is None or at_once == 1:  # one patch: what is encoded at once cannot be less
                    size = next(iter(frames.values())).pixels.shape[-1]
                    what = f"a patch of {size} px does not fit into the memory of {device}"
                    other = "--device cpu, or " if device.type != "cpu" else ""
                    raise NoResources(what, f"{other}lower embed.patch by --set") from error
                at_once //= 2
                torch.cuda.empty_cache()


def seen(
    network: Network,
    frames: Mapping[str, Frames],
    cell: Tile,
    periods: Sequence[Period],
    passes: int = 0,
) -> Seen:
    """The cell in the middle of a patch. `passes`: encodings with frames dropped, for the spread."""
    halo = network.recipe.embed.halo
    own = (..., slice(halo, halo + cell.shape[0]), slice(halo, halo + cell.shape[1]))
    weight = {name: source.weight[0][own].numpy() > 0 for name, source in frames.items()}
    within = {
        name: [(time >= period.start) & (time < period.end) for period in periods]
        for name, time in ((name, source.time[0].numpy()) for name, source in frames.items())
    }
    observed = {
        name: np.stack([weight[name][frames_].sum(0, dtype="uint16") for frames_ in within[name]]) for name in frames
    }
    clear = np.logical_or.reduce([one.any(0) for one in weight.values()])
    if not clear.any():
        empty = torch.zeros(len(periods), field.DIMENSIONS, *cell.shape, device=network.device)
        return Seen(empty, clear, observed, empty[:, 0] if passes else None)
    vectors = network.directions(frames, periods)
    spread = None
    if passes:
        others = (network.directions(dropped(frames, each), periods) for each in range(passes))
        spread = sum((_angle(vectors, other) for other in others), torch.zeros_like(vectors[:, 0]))[own] / passes
    return Seen(vectors[own], clear, observed, spread)


def dropped(frames: Mapping[str, Frames], number: int) -> Read:
    """The frames less a third of them, the same ones wherever and in whatever order they are read."""

    def gone(time: int) -> bool:
        return bool(np.random.default_rng((number, time)).random() < _DROPPED)

    return {
        name: source.without(torch.tensor([[gone(time) for time in source.time[0].tolist()]]).view(1, -1))
        for name, source in frames.items()
    }


def _angle(one: Tensor, other: Tensor) -> Tensor:
    """Degrees between unit vectors (p, 64, h, w)."""
    return torch.rad2deg(torch.arccos((one * other).sum(1).clamp(-1, 1)))


def stored(found: Seen, dtype: str) -> np.ndarray:
    """The vectors as a field of this dtype stores them (p, 64, h, w): quantised on the device, nodata set."""
    if dtype != "int8":
        values = found.vectors.to(getattr(torch, dtype)).cpu().numpy()
        return np.where(found.clear, values, values.dtype.type(np.nan))
    x = found.vectors
    codes = (x.sign() * x.abs().sqrt() * _STEPS).round().clamp(-127, 127).to(torch.int8).cpu().numpy()
    return np.where(found.clear, codes, np.int8(field.NODATA))


def patches(
    cube: Cube,
    names: Sequence[str],
    support: Period,
    recipe: Recipe,
    row: Sequence[Tile],
) -> Iterator[tuple[Tile, Read]]:
    """Neighbouring cells of a row (of the cube), and the frames of the patch around each; they are read at once."""
    first, last = around(row[0], recipe.embed), around(row[-1], recipe.embed)
    frames = read_frames(cube, names, Tile(first.top, first.left, last.bottom, last.right), support, recipe)
    for cell in row:
        left = around(cell, recipe.embed).left - first.left
        yield cell, {name: _columns(source, left, left + recipe.embed.patch) for name, source in frames.items()}


def _columns(source: Frames, left: int, right: int) -> Frames:
    part = (..., slice(left, right))
    return replace(source, pixels=source.pixels[part], present=source.present[part], weight=source.weight[part])


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
    names, network = readable(cube, recipe), Network(model, recipe, device)
    out = np.full((len(rows), len(periods), field.DIMENSIONS), np.nan, dtype="float32")
    supports = [support_of(cube.period, period) for period in periods]
    for support in dict.fromkeys(supports):
        chosen = [index for index, own in enumerate(supports) if own == support]
        valid = [periods[index] for index in chosen]
        for tile in tiles(cube.shape, tile_side(recipe.embed)):
            holding = {cell: here for cell in cells(tile, recipe.embed) if len(here := _in(cell, rows, columns))}
            for run in runs(list(holding), len(holding)):
                for cell, frames in patches(cube, names, support, recipe, run):
                    found, here = seen(network, frames, cell, valid), holding[cell]
                    row, column = rows[here] - cell.top, columns[here] - cell.left
                    vectors = found.vectors[:, :, row, column].permute(2, 0, 1).cpu().numpy()
                    vectors[~found.clear[row, column]] = np.nan
                    out[np.ix_(here, np.array(chosen))] = vectors
    return out


def _in(cell: Tile, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Which points lie in a cell."""
    return np.flatnonzero((rows >= cell.top) & (rows < cell.bottom) & (columns >= cell.left) & (columns < cell.right))
