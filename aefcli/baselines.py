"""What people would compute by hand, and the network untrained: features to hold embeddings against.

Every baseline is features at the pixels of labels, for the valid period of each, from the same cube. Source:
evaluation.md, "Baselines".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from aefcli import checkpoint, embed
from aefcli.cube import Cube, CubeSource
from aefcli.extent import Period, tiles
from aefcli.recipe import Recipe
from aefcli.sample import normalise
from aefcli.sources import INPUTS

_TILE = 128  # px; a chunk of the cube


def composite(cube: Cube, rows: np.ndarray, columns: np.ndarray, periods: Sequence[Period]) -> np.ndarray:
    """Features (n, p, bands): per band over the valid period the median (optical) or mean (radar) of clear pixels.

    Bands are normalised as the model's inputs are, so that distances weigh them alike. Where the period has no clear
    frame the nearest clear ones in time stand in; a band that never has one is 0, its usual value. NaN where no band
    ever has one.
    """
    parts = []
    for source in (cube.sources[name] for name in INPUTS if name in cube.sources):
        series, clear = _series(cube, source, rows, columns)
        parts.append(np.stack([_compose(source, series, clear, period) for period in periods], axis=1))
    out = np.concatenate(parts, axis=2)
    nothing = np.isnan(out).all(axis=2, keepdims=True)
    return np.where(np.isnan(out) & ~nothing, np.float32(0), out)


def untrained(
    recipe: Recipe, cube: Cube, rows: np.ndarray, columns: np.ndarray, periods: Sequence[Period], device: torch.device
) -> np.ndarray:
    """Vectors (n, p, 64) of the recipe's network with the weights that training started from."""
    model = checkpoint.build(recipe).to(device).eval()
    return embed.at_points(model, recipe, cube, rows, columns, periods, device)


def _series(cube: Cube, source: CubeSource, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All frames of a source at some pixels: normalised values and whether each is clear (n, t, c)."""
    frames = np.arange(len(source.times))
    values = np.zeros((len(rows), len(frames), len(source.bands)), dtype="float32")
    clear = np.zeros(values.shape, dtype=bool)
    for tile in tiles(cube.shape, _TILE):
        here = (rows >= tile.top) & (rows < tile.bottom) & (columns >= tile.left) & (columns < tile.right)
        if here.any():
            stored, weight = source.read(tile, frames)
            at = (rows[here] - tile.top, columns[here] - tile.left)
            picked, there = normalise(stored[..., at[0], at[1]][..., None], source, frames)
            values[here] = picked[..., 0].transpose(2, 0, 1)
            seen = there[..., 0] & (weight[:, at[0], at[1]] > 0)
            clear[here] = seen.T[..., None] & source.delivered
    return values, clear


def _compose(source: CubeSource, series: np.ndarray, clear: np.ndarray, period: Period) -> np.ndarray:
    """One period's composite (n, c) of series (n, t, c); NaN where a band is never clear."""
    times = source.times
    outside = np.maximum(np.maximum(period.start - times, times - (period.end - 1)), 0)
    away = np.where(clear, outside[:, None], np.iinfo("int64").max)
    used = clear & (away == away.min(axis=1, keepdims=True))
    masked = np.where(used, series, np.float32(np.nan))
    never = ~clear.any(axis=1)
    masked[:, 0][never] = 0.0  # a slice of nothing but NaN would warn
    reduce = np.nanmean if source.source.name == "sentinel-1" else np.nanmedian
    return np.where(never, np.float32(np.nan), reduce(masked, axis=1))
