"""The land of one site: who owns which parcel, what is grown there season by season, and what happens to it.

Owns the drawing of it, and how squares of sites become the one rectangle of the archive (`Grid`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from rasterio.warp import transform
from scipy.spatial import cKDTree

from aefcli.simulate.climate import Climate, day_of, draw_climate
from aefcli.simulate.events import Events, draw_events
from aefcli.simulate.kinds import BARE, CODE, CROPS, FIELD, KINDS, ROAD, TOWN, WATER, table
from aefcli.simulate.streams import noise, stream

_NATURAL = 1 << 32  # where the numbers of natural patches begin, in the drawing of a site
EPSG, WEST, NORTH = 32633, 501_000, 5_099_040  # metres, multiples of 60; inside MGRS tile 33TWL
PLAIN = 300.0  # metres above the sea at the borders of every site, so that squares meet


@dataclass(frozen=True)
class Grid:
    """`sites` squares of `size` 10 m pixels, row by row from the north-west; the last row may have gaps.

    The archive's rectangle goes on to whole cells of 60 m, beyond the last site if need be.
    """

    sites: int
    size: int

    @property
    def cols(self) -> int:
        return math.ceil(math.sqrt(self.sites))

    @property
    def rows(self) -> int:
        return math.ceil(self.sites / self.cols)

    @property
    def span(self) -> tuple[int, int]:
        """Height and width of the sites together, in 10 m pixels."""
        return self.rows * self.size, self.cols * self.size

    def corner(self, site: int) -> tuple[int, int]:
        """Row and column of a site's north-western pixel."""
        row, col = divmod(site, self.cols)
        return row * self.size, col * self.size

    def shape(self, gsd: int) -> tuple[int, int]:
        """The rectangle's rows and columns at a spacing of 10, 20 or 30 m."""
        rows, cols = (math.ceil(pixels / 6) * 60 // gsd for pixels in self.span)
        return rows, cols

    def transform(self, gsd: int) -> list[int]:
        return [gsd, 0, WEST, 0, -gsd, NORTH]


def degrees(east: np.ndarray, north: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """UTM metres to longitude and latitude."""
    lon, lat = transform(f"EPSG:{EPSG}", "EPSG:4326", np.asarray(east, float), np.asarray(north, float))
    return np.array(lon), np.array(lat)


@dataclass(frozen=True)
class Site:
    """The truth of one site. p: its parcels; seasons as in its climate; years: those of the world."""

    number: int
    climate: Climate
    parcel: np.ndarray  # (y, x) index into p
    kind: np.ndarray  # (year, p) index into KINDS: what a parcel is for most of a calendar year
    grown: np.ndarray  # (season, p) index into KINDS, events left aside
    events: Events
    shift: np.ndarray  # (season, p) thermal time by which a season is late
    length: np.ndarray  # (season, p) thermal time by which it is longer
    vigour: np.ndarray  # (season, p) factor on green cover
    stems: np.ndarray  # (season, p) factor on canopy backscatter
    bounce: np.ndarray  # (season, p) factor on double bounce
    leafy: np.ndarray  # (season, p, 5) factor on the leaves' reflectance
    cuts: np.ndarray  # (season, p, 6) thermal time, inf: not cut
    irrigated: np.ndarray  # (p) bool
    soil: np.ndarray  # (p) brightness factor
    rough: np.ndarray  # (p) factor on soil backscatter
    tall: np.ndarray  # (p) factor on the height of what grows
    texture: np.ndarray  # (y, x) smooth factor on green cover
    grain: np.ndarray  # (y, x) rough factor on everything
    slope: np.ndarray  # (y, x) towards the morning sun, about -1..1
    elevation: np.ndarray  # (y, x) metres
    gloom: float  # log-odds of cloud above the mean
    orbits: tuple[bool, bool]  # seen by the ascending, the descending radar orbit
    swath: np.ndarray  # (y, x) inside the swath of Sentinel-2's second orbit; the first sees all


def draw_site(seed: int, site: int, size: int, first: int, last: int) -> Site:
    """Draw one site: its climate, its land, and what becomes of it."""
    climate = draw_climate(seed, site, first, last)
    parcel, uses, height = _parcels(stream(seed, 1, site), size)
    crops, seasons = _crops(seed, site), len(climate.starts)
    grown = _rotation(stream(seed, 2, site), uses, crops, seasons, climate.south)
    days = np.array([day_of(year, first) for year in range(first, last + 2)])
    events = draw_events(stream(seed, 5, site), grown, days)
    rng = stream(seed, 6, site)
    return Site(
        number=site,
        climate=climate,
        parcel=parcel,
        kind=events.applied(grown[: last - first + 1]),
        grown=grown,
        events=events,
        **_growth(rng, grown),
        **_ground(rng, uses.size, height),
        grain=np.exp(table("grain")[grown[0]][parcel] * rng.standard_normal((size, size))).astype(np.float32),
        **_seen(rng, size),
    )


def _growth(rng: np.random.Generator, grown: np.ndarray) -> dict[str, Any]:
    """How each parcel's season differs from that of its class. What is perennial does not jump in winter."""
    shape, crop = grown.shape, grown < CROPS

    def lasting(values: np.ndarray) -> np.ndarray:
        return np.where(crop if values.ndim == 2 else crop[..., None], values, values[:1])

    tone = np.array([0.08, 0.08, 0.10, 0.08, 0.08])
    return {
        "shift": rng.normal(0, np.where(crop, 0.021, 0.010)) + rng.normal(0, 0.006),
        "length": rng.normal(0, np.where(crop, 0.018, 0.008)),
        "vigour": lasting(np.clip(rng.normal(1, 0.12, shape), 0.6, 1.12)),
        "stems": lasting(10 ** rng.normal(0, 0.07, shape)),
        "bounce": lasting(10 ** rng.normal(0, 0.15, shape)),
        "leafy": lasting(1 + tone * rng.normal(0, 1, (*shape, 5))),
        "cuts": _cut_days(rng, grown),
    }


def _ground(rng: np.random.Generator, many: int, height: np.ndarray) -> dict[str, Any]:
    """Soils, water, what is tall, and the lie of the land, which ends level at the site's border."""
    size = len(height)
    edge = np.minimum(np.arange(size), np.arange(size)[::-1])
    level = np.minimum(np.minimum(edge[:, None], edge) / 4.0, 1.0)
    soil = rng.normal(1, 0.15) * rng.normal(1, 0.09, many)  # differs more between sites than within
    return {
        "irrigated": rng.random(many) < 0.3,
        "soil": np.clip(soil, 0.55, 1.5),
        "rough": 10 ** rng.normal(0, 0.13, many),
        "tall": np.exp(rng.normal(0, 0.3, many)),
        "texture": 1 + 0.07 * noise(rng, size, 3),
        "slope": (np.gradient(height, axis=1) * 3).astype(np.float32),
        "elevation": (PLAIN + height * rng.uniform(2.0, 14.0) * level).astype(np.float32),
    }


def _seen(rng: np.random.Generator, size: int) -> dict[str, Any]:
    """How cloudy the site is, and which orbits see it: of radar often one, of Sentinel-2's second all, none or part."""
    one, other = rng.random(), rng.random()
    y, x = np.mgrid[:size, :size] / size
    part = (other < 0.8) & (x + 0.3 * y < rng.uniform(0.3, 1.0))
    return {
        "gloom": float(rng.normal(0, 0.4)),
        "orbits": (one >= 0.3, one <= 0.7),
        "swath": np.full((size, size), other < 0.6) | part,
    }


def _cells(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, spacing: float) -> np.ndarray:
    """Voronoi cells of a jittered lattice in the coordinates (u, v); any shape in, cell numbers out."""
    reach = float(max(np.abs(u).max(), np.abs(v).max())) + spacing
    line = np.arange(-reach, reach + spacing, spacing)
    seeds = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    seeds += rng.uniform(-0.38, 0.38, seeds.shape) * spacing
    return cKDTree(seeds).query(np.stack([u, v], -1))[1]


def _parcels(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parcel numbers (y, x), what each parcel is (a kind, or FIELD), height (y, x) of mean 0 and spread 1."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    turn = rng.uniform(0, np.pi)
    u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    height, wild, bend, sway = (noise(rng, size, scale) for scale in (10, 7, 4, 4))
    ids = _cells(rng, u, v / rng.uniform(1.2, 2.2), rng.uniform(8, 11))
    natural = wild > np.quantile(wild, rng.uniform(0.50, 0.72))
    ids[natural] = _NATURAL + _cells(rng, x + 3 * bend, y + 3 * sway, 12)[natural]
    if rng.random() < 0.7:
        low = np.quantile(height, rng.uniform(0.04, 0.11))
        ids[height < low] = -WATER
        if rng.random() < 0.7:
            ids[(height >= low) & (height < low + 0.45)] = -CODE["wetland"]
    if rng.random() < 0.7:
        at, half = rng.uniform(-size / 4, size / 4, 2), rng.uniform(4, 8, 2)
        ids[(np.abs(u - at[0]) < half[0]) & (np.abs(v - at[1]) < half[1])] = -TOWN
    for axis, place in ((u, rng.uniform(-size / 3, size / 3)), (v, rng.uniform(-size / 3, size / 3))):
        ids[np.abs(axis - place) < 0.5] = -ROAD
    names, parcel = np.unique(ids, return_inverse=True)
    return parcel.reshape(size, size), _uses(rng, names), height


def _uses(rng: np.random.Generator, names: np.ndarray) -> np.ndarray:
    """What each parcel of a site is for good: fields are FIELD, natural patches woods, grass or open trees."""
    fields = [FIELD, *(CODE[name] for name in ("meadow", "pasture", "orchard"))]
    patches = [CODE[name] for name in ("broadleaf", "plantation", "conifer", "grassland", "pasture", "savanna")]
    tilled = rng.choice([*fields, BARE], names.size, p=[0.74, 0.07, 0.03, 0.10, 0.06])
    wild = rng.choice(patches, names.size, p=[0.19, 0.19, 0.16, 0.17, 0.10, 0.19])
    # water, wetland, town and road are named by their kind, negated
    return np.where(names < 0, -names, np.where(names < _NATURAL, tilled, wild))


def _crops(seed: int, site: int) -> np.ndarray:
    """Five crops of a site, and often a sixth; the next site of each pair has the other five, so that none is rare."""
    half, rng = stream(seed, 15, site // 2).permutation(CROPS), stream(seed, 16, site)
    own, others = np.split(half if site % 2 == 0 else half[::-1], 2)
    return np.concatenate([own, others[: rng.integers(2)]])


def _rotation(rng: np.random.Generator, uses: np.ndarray, crops: np.ndarray, seasons: int, south: bool) -> np.ndarray:
    """Kinds (season, p): a new crop in every field each year.

    In the south, where a summer's season runs over New Year, a field keeps its crop: a calendar year has one label.
    """
    turn = rng.permutation(uses.size)
    kinds = []
    for _ in range(seasons):
        kinds.append(np.where(uses == FIELD, crops[turn % crops.size], uses))
        step = rng.integers(1, crops.size, uses.size)
        turn = turn + (0 if south else step)
    return np.stack(kinds)


def _cut_days(rng: np.random.Generator, grown: np.ndarray) -> np.ndarray:
    """When each parcel is mown or grazed, (season, p, 6) in thermal time; what is left out is infinitely late."""
    most = table("cuts")[grown][..., None]
    turn = np.arange(6)
    when = 0.16 + 0.74 * (turn + 0.5 + rng.uniform(-0.35, 0.35, (*grown.shape, 6))) / np.maximum(most, 1)
    least = rng.integers(0, 2, (*grown.shape, 1))
    return np.where(turn < most - least, when, np.inf)


def heights(site: Site, year: int) -> np.ndarray:
    """Metres of what stands on each parcel, (p)."""
    return np.array([kind.tall for kind in KINDS])[site.kind[year]] * site.tall * site.events.left(year)
