"""The truth at points of every site, as a table in the form that probes read."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.ndimage import maximum_filter, minimum_filter

from aefcli.extent import Period
from aefcli.simulate.kinds import CROPS, KINDS, ROAD
from aefcli.simulate.land import NORTH, WEST, Grid, Land, degrees, stream


def truth_table(seed: int, grid: Grid, land: Land, first: int, last: int) -> pd.DataFrame:
    """The truth at points of every site. Where crops rotate a point tells of one year, elsewhere of all."""
    rows = []
    for *place, told in _points(seed, grid, land, last - first + 1):
        years = range(last - first + 1) if place[3] >= CROPS else (told,)
        rows += [(*place, first + year) for year in years]
    site, row, col, label, year_of = np.array(rows, np.int64).reshape(-1, 5).T
    lon, lat = degrees(
        WEST + 10 * (site % grid.cols * grid.size + col) + 5,
        NORTH - 10 * (site // grid.cols * grid.size + row) - 5,
    )
    periods = [Period.parse(str(year)) for year in year_of]
    start = np.array([period.start for period in periods], np.int64)
    end = np.array([period.end for period in periods], np.int64)
    table = {"x": lon, "y": lat, "label": label, "label_name": [KINDS[one].name for one in label]}
    for span in ("valid", "support"):
        table |= {f"{span}_time_start_ms": start, f"{span}_time_end_ms": end}
    return pd.DataFrame(table | {"site": site})


def _points(seed: int, grid: Grid, land: Land, years: int) -> list[tuple[int, int, int, int, int]]:
    """Site, row, column, kind and year of each point; the class that has fewest so far goes first."""
    tally = np.zeros(len(KINDS), np.int64)
    points = []
    y, x = np.ogrid[: grid.size, : grid.size]
    for site in range(grid.sites):
        rng = stream(seed, 10, site)
        told = rng.integers(0, years, land.site.size)  # the year a parcel's points tell of
        parcel = land.parcel[site]
        kind = land.kind[told, np.arange(land.site.size)][parcel]
        free = kind != ROAD
        for border in (free, free.T):
            border[:2] = border[-2:] = False  # points of neighbouring sites keep their distance too
        deep = minimum_filter(parcel, 5) == maximum_filter(parcel, 5)
        used = np.zeros(land.site.size, np.int64)
        for _ in range(min(60, grid.size**2 // 90)):
            ready = np.flatnonzero(np.bincount(kind[free], minlength=len(KINDS)))
            if not ready.size:
                break
            rarest = ready[np.argmin(tally[ready] + 0.5 * rng.random(ready.size))]
            pool = free & (kind == rarest)
            inner = pool & deep if rng.random() < 0.8 else pool
            places = np.argwhere(inner if inner.any() else pool)
            row, col = (int(one) for one in places[rng.integers(len(places))])
            here = parcel[row, col]
            points.append((site, row, col, int(rarest), int(told[here])))
            tally[rarest] += 1
            used[here] += 1
            free &= ((y - row) ** 2 + (x - col) ** 2 >= 16) & (used[parcel] < 4)
    return points
