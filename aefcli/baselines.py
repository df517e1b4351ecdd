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

_TILE = 128  # px; a chunk of the cube


def composite(cube: Cube, rows: np.ndarray, columns: np.ndarray, periods: Sequence[Period]) -> np.ndarray:
    """Features (n, p, bands): per band over the valid period the median (optical) or mean (radar) of clear pixels.

    Bands are normalised as the model's inputs are, so that distances weigh them alike. Where the period has no clear
    frame the nearest clear ones in time stand in. NaN where there never is one.
    """
    parts = []
    for source in cube.sources.values():
        series, clear = _series(cube, source, rows, columns)
        parts.append(np.stack([_compose(source, series, clear, period) for period in periods], axis=1))
    return np.concatenate(parts, axis=2)


def untrained(
    recipe: Recipe, cube: Cube, rows: np.ndarray, columns: np.ndarray, periods: Sequence[Period], device: torch.device
) -> np.ndarray:
    """Vectors (n, p, 64) of the recipe's network with the weights that training started from."""
    model = checkpoint.build(recipe).to(device).eval()
    return embed.at_points(model, recipe, cube, rows, columns, periods, device)


def _series(cube: Cube, source: CubeSource, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All frames of a source at some pixels: normalised values (n, t, c) and whether each is clear (n, t)."""
    frames = np.arange(len(source.times))
    values = np.zeros((len(rows), len(frames), len(source.bands)), dtype="float32")
    clear = np.zeros((len(rows), len(frames)), dtype=bool)
    for tile in tiles(cube.shape, _TILE):
        here = (rows >= tile.top) & (rows < tile.bottom) & (columns >= tile.left) & (columns < tile.right)
        if here.any():
            stored, weight = source.read(tile, frames)
            at = (rows[here] - tile.top, columns[here] - tile.left)
            picked, there = normalise(stored[..., at[0], at[1]][..., None], source, frames)
            values[here] = picked[..., 0].transpose(2, 0, 1)
            clear[here] = (there[..., 0] & (weight[:, at[0], at[1]] > 0)).T
    return values, clear


def _compose(source: CubeSource, series: np.ndarray, clear: np.ndarray, period: Period) -> np.ndarray:
    """One period's composite (n, c) of series (n, t, c)."""
    times = source.times
    outside = np.maximum(np.maximum(period.start - times, times - (period.end - 1)), 0)
    away = np.where(clear, outside, np.iinfo("int64").max)
    nearest = away.min(axis=1, keepdims=True)
    used = clear & (away == nearest)
    masked = np.where(used[..., None], series, np.nan)
    empty = ~used.any(axis=1)
    masked[empty] = 0.0  # a slice of nothing but NaN would warn
    reduce = np.nanmean if source.source.name == "sentinel-1" else np.nanmedian
    out = reduce(masked, axis=1)
    out[empty] = np.nan
    return out
