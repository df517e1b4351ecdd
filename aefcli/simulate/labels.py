"""The truth at points of every site, as tables in the form that probes read.

    cover    all classes                     crops    the ten crops, in fields
    nature   grass, woods, wetland           twins    pairs that differ by little
    sar      pairs that radar alone tells    yield    tonnes per hectare of crops
    height   metres of what stands           change   pairs of a year and the next

Every table has `site`, and `edge`: pixels to the nearest one of another class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.ndimage import distance_transform_edt, maximum_filter, minimum_filter

from aefcli.extent import Period
from aefcli.simulate import events
from aefcli.simulate.climate import day_of
from aefcli.simulate.kinds import CLASSES, CODE, CROPS, GROUP, GROUPS, KINDS, RADAR_TWINS, ROAD, TWINS, table
from aefcli.simulate.land import NORTH, WEST, Grid, Site, degrees, heights
from aefcli.simulate.season import canopy_on
from aefcli.simulate.streams import stream

Years = tuple[int, int]
_NATURE = ("grassland", "pasture", "meadow", "broadleaf", "plantation", "conifer", "orchard", "savanna", "wetland")
_CLASSES_OF = {
    "cover": tuple(range(len(CLASSES))),
    "crops": tuple(range(CROPS)),
    "nature": tuple(CODE[name] for name in _NATURE),
    "twins": tuple(CODE[name] for pair in TWINS for name in pair),
    "sar": tuple(CODE[name] for pair in RADAR_TWINS for name in pair),
}
TASKS = (*_CLASSES_OF, "yield", "height", "change")
_NUMBER = {task: number for number, task in enumerate((*TASKS, "years"))}  # of each one's random streams
_MOST, _MEASURED = 45, 30  # points of one task in a site: classes, values
_TALL = 1.45  # metres: above the crops, but for maize


@dataclass(frozen=True)
class View:
    """What all tables need of a site."""

    site: Site
    told: np.ndarray  # (p) the year that a parcel's points tell of, from 0
    kind: np.ndarray  # (p) its kind in that year
    edge: np.ndarray  # (y, x) pixels to the nearest one of another class in that year
    deep: np.ndarray  # (y, x) two pixels inside its parcel or more


class Spot(NamedTuple):
    """One row: a pixel of a site, its label, and the year that it holds for; of a change what was before."""

    site: int
    row: int
    col: int
    edge: float
    label: float
    year: Period


def tables(seed: int, grid: Grid, land: Sequence[Site], years: Years) -> dict[str, pd.DataFrame]:
    """Every task's table; `change` only where there are two years to compare."""
    views = [_view(seed, site, years) for site in land]
    found = {task: _table(grid, _classes(seed, views, years, task), np.int64) for task in _CLASSES_OF}
    for task, wanted, measure in (("yield", _is_crop, _yields), ("height", _is_tall, _heights)):
        found[task] = _table(grid, _values(seed, views, years, task, wanted, measure), np.float64)
    if years[1] > years[0]:
        found["change"] = _changes(seed, grid, views, years)
    return found


def _view(seed: int, site: Site, years: Years) -> View:
    many, parcel = site.soil.size, site.parcel
    told = stream(seed, 10, _NUMBER["years"], site.number).integers(0, years[1] - years[0] + 1, many)
    kind = site.kind[told, np.arange(many)]
    return View(site, told, kind, edges(kind[parcel]), minimum_filter(parcel, 5) == maximum_filter(parcel, 5))


def edges(kind: np.ndarray) -> np.ndarray:
    """Pixels (y, x) from each pixel's middle to that of the nearest one of another class; at most the side."""
    out = np.full(kind.shape, float(len(kind)))
    for one in np.unique(kind).tolist():
        own = kind == one
        if not own.all():
            out[own] = distance_transform_edt(own)[own]
    return out


def _table(grid: Grid, spots: Iterator[Spot], dtype: type) -> pd.DataFrame:
    """The columns that all tables share; classes with their names."""
    rows = list(spots)
    label: np.ndarray = np.array([spot.label for spot in rows], dtype)
    columns: dict[str, Any] = _places(grid, rows) | {"label": label}
    if dtype is np.int64:
        columns["label_name"] = [KINDS[one].name for one in label]
    for span in ("valid", "support"):
        for end in ("start", "end"):
            columns[f"{span}_time_{end}_ms"] = _moments((spot.year for spot in rows), end)
    return pd.DataFrame(columns | _whose(rows))


def _moments(periods: Iterable[Period], end: str) -> np.ndarray:
    return np.array([getattr(period, end) for period in periods], np.int64)


def _places(grid: Grid, spots: Sequence[Spot]) -> dict[str, np.ndarray]:
    site, row, col = (np.array([getattr(spot, name) for spot in spots], float) for name in ("site", "row", "col"))
    down, right = np.divmod(site, grid.cols)
    lon, lat = degrees(WEST + 10 * (right * grid.size + col) + 5, NORTH - 10 * (down * grid.size + row) - 5)
    return {"x": lon, "y": lat}


def _whose(spots: Sequence[Spot]) -> dict[str, np.ndarray]:
    return {
        "site": np.array([spot.site for spot in spots], np.int64),
        "edge": np.array([spot.edge for spot in spots], np.float64),
    }


# -------------------------------------------------------------------------------------------------------------- places


def _pick(rng: np.random.Generator, pool: np.ndarray) -> tuple[int, int]:
    places = np.flatnonzero(pool)
    row, col = divmod(int(places[rng.integers(len(places))]), pool.shape[1])
    return row, col


def _inside(size: int) -> np.ndarray:
    """Points of neighbouring sites keep their distance too."""
    free = np.zeros((size, size), bool)
    free[2:-2, 2:-2] = True
    return free


@lru_cache(maxsize=8)
def _far(size: int) -> np.ndarray:
    """Four pixels or more from the middle, (2 size, 2 size)."""
    y, x = np.ogrid[-size:size, -size:size]
    return np.asarray(y**2 + x**2 >= 16)


def _apart(size: int, row: int, col: int) -> np.ndarray:
    return _far(size)[size - row : 2 * size - row, size - col : 2 * size - col]


# ------------------------------------------------------------------------------------------------------------- classes


def _classes(seed: int, views: Sequence[View], years: Years, task: str) -> Iterator[Spot]:
    """Points of some classes. Where crops rotate a point tells of one year, elsewhere of all that it is the same in."""
    tally, count = np.zeros(len(KINDS), np.int64), years[1] - years[0] + 1
    for view in views:
        rng, site = stream(seed, 10, _NUMBER[task], view.site.number), view.site
        for row, col in _points(rng, view, _CLASSES_OF[task], tally):
            parcel = site.parcel[row, col]
            kind, told = int(view.kind[parcel]), int(view.told[parcel])
            same = kind >= CROPS and (site.kind[:, parcel] == kind).all()
            for year in range(count) if same else (told,):
                period = Period.parse(str(years[0] + year))
                yield Spot(site.number, row, col, view.edge[row, col], kind, period)


def _points(
    rng: np.random.Generator, view: View, wanted: Sequence[int], tally: np.ndarray
) -> Iterator[tuple[int, int]]:
    """Row and column of each point of a site; the class that has fewest so far goes first."""
    site, size = view.site, len(view.edge)
    settled = site.events.old == site.events.new  # what is changing is for `change`
    kind = np.where(settled, view.kind, ROAD)[site.parcel]
    free = _inside(size) & np.isin(kind, wanted)
    used = np.zeros(site.soil.size, np.int64)
    for _ in range(min(_MOST, size**2 // 90)):
        ready = np.flatnonzero(np.bincount(kind[free], minlength=len(KINDS)))
        if not ready.size:
            return
        rarest = ready[np.argmin(tally[ready] + 0.5 * rng.random(ready.size))]
        pool = free & (kind == rarest)
        inner = pool & view.deep if rng.random() < 0.8 else pool
        row, col = _pick(rng, inner if inner.any() else pool)
        tally[rarest] += 1
        used[site.parcel[row, col]] += 1
        free &= _apart(size, row, col) & (used[site.parcel] < 4)
        yield row, col


# -------------------------------------------------------------------------------------------------------------- values


def _is_crop(kind: np.ndarray) -> np.ndarray:
    return kind < CROPS


def _is_tall(kind: np.ndarray) -> np.ndarray:
    return (table("tall")[kind] > _TALL) & (kind >= CROPS) & (GROUP[kind] != GROUPS.index("built"))


def _values(
    seed: int,
    views: Sequence[View],
    years: Years,
    task: str,
    wanted: Callable[[np.ndarray], np.ndarray],
    measure: Callable[[Site, int, int], np.ndarray],
) -> Iterator[Spot]:
    """A measurement of parcels in a year, times the pixel's own share of green."""
    for view in views:
        site, rng = view.site, stream(seed, 10, _NUMBER[task], view.site.number)
        year = int(rng.integers(years[1] - years[0] + 1))
        period, value = Period.parse(str(years[0] + year)), measure(site, year, years[0])[site.parcel] * site.texture
        free = _inside(len(value)) & (wanted(site.kind[year]) & (site.events.what == 0))[site.parcel] & view.deep
        for _ in range(_MEASURED):
            if not free.any():
                break
            row, col = _pick(rng, free)
            free &= _apart(len(value), row, col)
            yield Spot(site.number, row, col, view.edge[row, col], value[row, col], period)


def _yields(site: Site, year: int, first: int) -> np.ndarray:
    """Tonnes per hectare, (p): light that green leaves caught over the year, by what the crop makes of it."""
    days = np.arange(day_of(first + year, first), day_of(first + year + 1, first), 3)
    climate = site.climate
    warm, wet = climate.at(climate.celsius, days), climate.at(climate.wet, days)
    worth = np.clip(warm / 18, 0, 1) * np.clip((38 - warm) / 14, 0, 1) * np.clip(0.35 + 1.3 * wet, 0, 1)
    return table("grade")[site.kind[year]] ** 0.5 * (canopy_on(site, days).green * worth).sum(1) / 12


def _heights(site: Site, year: int, first: int) -> np.ndarray:
    return heights(site, year)


# -------------------------------------------------------------------------------------------------------------- change


def _changes(seed: int, grid: Grid, views: Sequence[View], years: Years) -> pd.DataFrame:
    """Points in pairs of years, half of them where the group of the land changed; of the rest half were disturbed.

    `label` is 1 where it changed, else 0; a spot's own is the group before.
    """
    spots, after, later, what = [], [], [], []
    for view in views:
        site, happened = view.site, view.site.events
        rng, size = stream(seed, 10, _NUMBER["change"], site.number), len(view.edge)
        changed = np.isin(happened.what, events.CHANGES)
        free = _inside(size) & (site.kind[0] != ROAD)[site.parcel] & view.deep
        pools = (changed, (happened.what > 0) & ~changed, happened.what == 0)
        for pool, many in zip(pools, (20, 10, 10), strict=True):
            for _ in range(many):
                here = free & pool[site.parcel]
                if not here.any():
                    break
                row, col = _pick(rng, here)
                free &= _apart(size, row, col)
                parcel = site.parcel[row, col]
                year = int(happened.year[parcel]) or int(rng.integers(1, years[1] - years[0] + 1))
                old, new = (int(happened.groups(site.kind, one)[parcel]) for one in (year - 1, year))
                before, now = (Period.parse(str(years[0] + one)) for one in (year - 1, year))
                spots.append(Spot(site.number, row, col, view.edge[row, col], old, before))
                later.append(now)
                after.append(new)
                what.append(events.NAMES[happened.what[parcel]])
    names, old_of = (*GROUPS, events.THINNED), [int(spot.label) for spot in spots]
    columns: dict[str, Any] = _places(grid, spots) | {"label": np.array(old_of, np.int64) != np.array(after, np.int64)}
    columns["label"] = columns["label"].astype(np.int64)
    for when, codes, years_of in (("before", old_of, [spot.year for spot in spots]), ("after", after, later)):
        columns |= {f"label_{when}": np.array(codes, np.int64), f"label_{when}_name": [names[one] for one in codes]}
        for span in ("valid", "support"):
            for end in ("start", "end"):
                columns[f"{span}_time_{end}_{when}_ms"] = _moments(years_of, end)
    return pd.DataFrame(columns | _whose(spots) | {"event": what})
