"""A made-up world: land, climate and seasons with known truth, and the sensors that look at it.

For tests, demonstrations, CI and the suites of `eval`. A score on this world says whether time, sources and space were
used; it says nothing of any real place. Nothing here is read by the rest of the toolkit except through what fetch
reads; the truth is for judges.

K sites adjoin as squares of one UTM zone; each has its own land and climate. The latitude behind a climate is drawn,
never read off the map, so coordinates tell nothing. A site's arrays are `(frame, y, x)` at 10 m.

    streams, kinds -> climate, events -> land -> season -> optics (sky), radar -> others, labels, latents
        -> world -> archive

This file refuses wrong arguments and loads the rest only to make a world.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aefcli.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import xarray as xr

    from aefcli.extent import Period

__all__ = ["VERSION", "Imagined", "World", "imagine", "simulate"]

VERSION = "2"  # of what a seed stands for: another one gives other pixels
SMALLEST, MOST_PIXELS = 32, 16_000_000  # a pass holds about 30 float32 numbers per pixel: 2 GB at the most
FIRST_YEAR, LAST_YEAR = 2015, 2035


@dataclass(frozen=True)
class World:
    """What was written. `bbox`: W, S, E, N in degrees, rounded outward; `points`: rows of the labels table."""

    catalog: Path
    labels: Path
    bbox: tuple[float, float, float, float]
    items: int
    points: int


@dataclass(frozen=True)
class Imagined:
    """A made-up world in memory.

    datasets  source -> dataset (time, y, x), stored as `sources` has it: as `aefcli.cube.write_cube` takes it
    points    "text" -> captions: x, y, text, start, end
    truth     task -> label table in the evaluation format, with `site` and `edge` (pixels to the nearest other class)
    oracle    float32 (year, latent, y, x) at 10 m: the state behind the images, without noise. For judging only
    period    the years
    """

    datasets: Mapping[str, xr.Dataset]
    points: Mapping[str, pd.DataFrame]
    truth: Mapping[str, pd.DataFrame]
    oracle: np.ndarray
    period: Period


def simulate(
    out: Path,
    *,
    seed: int = 0,
    sites: int = 36,
    size: int = 64,
    years: tuple[int, int] = (2023, 2023),
    progress: Callable[[int, int], None] | None = None,
) -> World:
    """Write a made-up world: a static STAC catalog `out`/catalog.json and its truth, `out`/labels.parquet.

    sites: squares of `size` x `size` 10 m pixels; size: at least 32; years: first and last, both included;
    progress(done, total): called after each item. The same arguments give the same pixels and labels.
    BadInput: arguments out of range, or a world in `out` already; NoResources: it cannot be written.
    """
    _check(seed, sites, size, years)
    from aefcli.simulate import archive
    from aefcli.simulate.land import Grid

    out = Path(out).resolve()
    box, items, points = archive.write(out, seed, Grid(sites, size), years, progress)
    return World(out / archive.CATALOG, out / archive.LABELS, box, items, points)


def imagine(seed: int = 0, sites: int = 36, size: int = 64, years: tuple[int, int] = (2022, 2023)) -> Imagined:
    """The same world in memory, with all its sources, its truth and its oracle; nothing is written.

    Arguments as `simulate`. A site is the same in both, and whatever other sites there are, but for cells of Landsat
    and other coarse sources that two sites share.
    """
    _check(seed, sites, size, years)
    from aefcli.simulate import world
    from aefcli.simulate.land import Grid

    return world.imagine(seed, Grid(sites, size), years)


def _check(seed: int, sites: int, size: int, years: tuple[int, int]) -> None:
    """Refuse what no world can be made of."""
    first, last = years
    most, within = f"at most {MOST_PIXELS:,} in all", f"use years from {FIRST_YEAR} to {LAST_YEAR}"
    for wrong, what, hint in (
        (seed < 0, f"--seed {seed} is negative", "use 0 or more"),
        (sites < 1, f"--sites {sites} is too few", "use 1 or more"),
        (size < SMALLEST, f"--size {size} is too small", f"use {SMALLEST} or more"),
        (sites * size**2 > MOST_PIXELS, f"{sites} sites of {size} x {size} pixels are too many", most),
        (first > last, f"--years {first}:{last} ends before it begins", "put the earlier year first"),
        (first < FIRST_YEAR or last > LAST_YEAR, f"--years {first}:{last} is out of range", within),
    ):
        if wrong:
            raise BadInput(what, hint)
