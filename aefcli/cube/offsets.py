"""A check of decided offsets: neighbouring dates show the same ground, so that their dark ends must agree."""

from __future__ import annotations

import numpy as np

from aefcli.cube.store import Cube, CubeSource
from aefcli.cube.write import CHUNK
from aefcli.extent import Tile

_DARK = 5  # per cent of the clear pixels that are darker than what is compared
_STEP = 4  # every n-th pixel of a few windows of this side is looked at
_SIDE, _WINDOWS = 256, 4
_FEWEST = 100  # clear pixels of a frame that tell something
_NEAR = 45 * 86_400_000  # ms within which frames are neighbours
_MISSED = (0.06, 0.14)  # difference in reflectance that an offset of 0.1 would make


def doubts(cube: Cube) -> list[str]:
    """Sentinel-2 frames that are brighter or darker than those around by what an offset too few or too many makes.

    Compares the dark end of the blue band's reflectance, over clear pixels, with the median of the frames around.
    Snow and haze make brighter frames, too: a doubt, not a verdict.
    """
    source = cube.sources.get("sentinel-2")
    if source is None or "B02" not in source.bands or len(source.times) < 3:
        return []
    level, offset = _levels(cube, source), source.offset[:, source.bands.index("B02")]
    found = []
    for frame, value in enumerate(level):
        near = (np.abs(source.times - source.times[frame]) < _NEAR) & np.isfinite(level)
        near[frame] = False
        if not np.isfinite(value) or near.sum() < 2:
            continue
        apart = value - np.median(level[near])
        if offset[frame] == 0 and _MISSED[0] < apart < _MISSED[1]:
            found.append((frame, "brighter", "missed"))
        elif offset[frame] < 0 and -_MISSED[1] < apart < -_MISSED[0]:
            found.append((frame, "darker", "not in the numbers"))
    dates = source.times.astype("datetime64[ms]").astype("datetime64[D]")
    return [
        f"sentinel-2: {dates[frame]} is about 0.1 {what} than the dates around, as if its offset were {why}"
        for frame, what, why in found
    ]


def _levels(cube: Cube, source: CubeSource) -> np.ndarray:
    """The dark end of each frame's clear blue reflectance (t); NaN where too little is clear."""
    band, count = source.bands.index("B02"), len(source.times)
    seen: list[list[np.ndarray]] = [[] for _ in range(count)]
    for tile in _windows(cube.shape):
        for first in range(0, count, CHUNK[0]):
            frames = np.arange(first, min(first + CHUNK[0], count))
            stored, weight = source.variables(tile, frames, ("B02", "weight"))
            for frame, numbers, clear in zip(
                frames, stored[:, ::_STEP, ::_STEP], weight[:, ::_STEP, ::_STEP] > 0, strict=True
            ):
                seen[frame].append(numbers[clear] * source.scale[frame, band] + source.offset[frame, band])
    clear_ones = [np.concatenate(parts) for parts in seen]
    return np.array([np.percentile(part, _DARK) if len(part) >= _FEWEST else np.nan for part in clear_ones])


def _windows(shape: tuple[int, int]) -> list[Tile]:
    """A few windows along the diagonal; of a small cube all of it."""
    if max(shape) <= 2 * _SIDE:
        return [Tile(0, 0, *shape)]
    middles = [(length * part // (_WINDOWS + 1) for length in shape) for part in range(1, _WINDOWS + 1)]
    corners = [(max(0, row - _SIDE // 2), max(0, column - _SIDE // 2)) for row, column in middles]
    return [Tile(top, left, min(top + _SIDE, shape[0]), min(left + _SIDE, shape[1])) for top, left in corners]
