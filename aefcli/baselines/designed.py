"""All designed baselines at the pixels of labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aefcli.baselines import learned, season
from aefcli.baselines.seen import see
from aefcli.baselines.series import CHUNK, apart, read
from aefcli.cube import Cube
from aefcli.errors import unknown
from aefcli.extent import Period, tiles

DESIGNED = ("xy", "xyz", "composite", "percentiles", "harmonics", "raw", "pca", "mosaiks")

_DRAWN, _CHUNKS = 4096, 16  # random pixels that are learned from, in at most so many chunks of the cube
_DEM, _HEIGHT = "glo-30", "elevation"
_INNER = {"pca": "raw", "mosaiks": "image"}  # what is made first
_METRE = 1.6e-7  # on the globe, in radians


def designed(
    cube: Cube,
    names: Sequence[str],
    rows: np.ndarray,
    columns: np.ndarray,
    periods: Sequence[Period],
    *,
    seed: int = 0,
    like: Cube | None = None,
) -> dict[str, np.ndarray]:
    """Features float32 (n, p, d) of each baseline named, at pixels of the cube for valid periods.

    xy           sine and cosine of longitude and latitude of the pixel's centre, standardised: 4
    xyz          elevation, standardised, beside them; left out of the answer where the cube has no glo-30
    composite    per band of each source the median, of radar the mean, of clear frames in the period
    percentiles  per channel 5, 25, 50, 75 and 95% of them
    harmonics    per channel offset, trend, three annual harmonics and RMSE, over a year around the period at least
    raw          per channel the series over the period, gaps filled and smoothed, 24 steps a year
    pca          64 principal components of raw
    mosaiks      256 random convolutional features of a composite of the channels around the pixel

    Channels are bands, with the colours of Sentinel-2 and Landsat joined, and indices of them. All are in the model's
    normalised units: to standardise each feature told crops apart worse by kNN. Where the period has no clear frame,
    the nearest in time stand in. A channel that a pixel never has takes its usual value, 0;
    a pixel without any is NaN, but for xy and xyz. Without an input in the cube, xy and xyz alone are answered.

    xy, xyz, pca and mosaiks learn scales, axes and filters from random pixels of the cube, drawn by `seed`, for all
    `periods` together; from those of `like`, another cube, where it is given: features of both can then be compared,
    and what `cube` has not is never seen. Labels have no part in it.
    """
    for name in names:
        if name not in DESIGNED:
            raise unknown("baseline", name, DESIGNED)
    model = like or cube
    found = [name for name in dict.fromkeys(names) if _possible(name, model)]
    points, back = np.unique(rows * cube.shape[1] + columns, return_inverse=True)
    rng = np.random.default_rng([seed, 4])
    drawn = _drawn(model, rng)
    made: dict[str, np.ndarray] = {}
    if not {"xy", "xyz"}.isdisjoint(found):
        made["xyz"] = _standard(_places(cube, points), _places(model, drawn), len(periods))
        made["xy"] = made["xyz"][..., :4]
    if inner := {_INNER.get(name, name) for name in found} - {"xy", "xyz"}:
        seen = see(cube, model, inner, points, periods)
        made |= seen.made
    if taught := {_INNER[name] for name in found if name in _INNER}:
        known = see(model, model, taught, drawn, periods)
        if "pca" in found:
            made["pca"] = learned.axes(_complete(known.made["raw"])).project(made["raw"]).astype("float32")
        if "mosaiks" in found:
            made["mosaiks"] = seen.pooled(points, learned.filters(_complete(known.patches(drawn)), rng))
    return {name: made[name][back.reshape(-1)] for name in found}


def composite(cube: Cube, rows: np.ndarray, columns: np.ndarray, periods: Sequence[Period]) -> np.ndarray:
    """The baseline of that name alone, (n, p, bands)."""
    return designed(cube, ["composite"], rows, columns, periods)["composite"]


def _possible(name: str, cube: Cube) -> bool:
    """Whether a cube has what a baseline is made of."""
    if name == "xyz":
        return _DEM in cube.sources and _HEIGHT in cube.sources[_DEM].bands
    return name == "xy" or bool(apart(cube))


def _complete(vectors: np.ndarray) -> np.ndarray:
    """The rows (m, d) of vectors (n, p, d) without NaN."""
    return vectors[np.isfinite(vectors).all(axis=2)]


def _drawn(cube: Cube, rng: np.random.Generator) -> np.ndarray:
    """Random pixels, distinct and in order, of at most 16 chunks of the cube: to read all of a large one takes long."""
    chunks = list(tiles(cube.shape, CHUNK))
    chosen = [chunks[at] for at in rng.permutation(len(chunks))[:_CHUNKS]]
    areas = np.array([np.prod(tile.shape) for tile in chosen])
    tile = [chosen[at] for at in rng.choice(len(chosen), size=_DRAWN, p=areas / areas.sum())]
    row = rng.integers([one.top for one in tile], [one.bottom for one in tile])
    column = rng.integers([one.left for one in tile], [one.right for one in tile])
    return np.unique(row * cube.shape[1] + column)


def _places(cube: Cube, points: np.ndarray) -> np.ndarray:
    """Sine and cosine of longitude and of latitude, and elevation, float64 (n, 5); NaN where it is not known."""
    from pyproj import Transformer

    assert cube.grid.crs is not None, "a cube has a CRS"
    row, column = np.divmod(points, cube.shape[1])
    to_degrees = Transformer.from_crs(cube.grid.crs.proj, "EPSG:4326", always_xy=True)
    affine = cube.grid.transform
    x, y = affine.c + affine.a * (column + 0.5), affine.f + affine.e * (row + 0.5)
    lon, lat = np.radians(to_degrees.transform(x, y))
    height = np.full(len(points), np.nan)
    if _possible("xyz", cube):
        for at, block in read(cube, [_DEM], row, column):
            height[at] = season.mean(block.values[_DEM][:, [cube.sources[_DEM].bands.index(_HEIGHT)]])[:, 0]
    return np.column_stack([np.sin(lon), np.cos(lon), np.sin(lat), np.cos(lat), height])


def _standard(places: np.ndarray, drawn: np.ndarray, periods: int) -> np.ndarray:
    """Places by the mean and deviation of drawn ones, the same for all periods: float32 (n, p, 5)."""
    known = np.isfinite(drawn)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, drawn, 0).sum(axis=0) / count
    spread = np.sqrt(np.where(known, np.square(drawn - mean), 0).sum(axis=0) / count)
    standard = (places - mean) / np.maximum(spread, _METRE)  # a cube of one row has no spread
    return np.repeat(standard[:, None], periods, axis=1).astype("float32")
