"""The land of all sites and its climate: who owns which parcel, what is grown there, and what weather comes.

Owns the drawing of both, and how squares of sites become the one rectangle of the archive (`Grid`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from rasterio.warp import transform
from scipy.ndimage import gaussian_filter, zoom
from scipy.spatial import cKDTree

from aefcli.simulate.kinds import BARE, CROPS, DECIDUOUS, EVERGREEN, FIELD, MEADOW, ROAD, TOWN, WATER, table

_NATURAL = 1 << 32  # where the numbers of natural patches begin, in the drawing of a site
EPSG, WEST, NORTH = 32633, 501_000, 5_099_040  # metres, multiples of 60; inside MGRS tile 33TWL


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
    def span(self) -> tuple[int, int]:
        """Height and width of the sites together, in 10 m pixels."""
        return math.ceil(self.sites / self.cols) * self.size, self.cols * self.size

    def shape(self, gsd: int) -> tuple[int, int]:
        """The rectangle's rows and columns at a spacing of 10, 20 or 30 m."""
        rows, cols = (math.ceil(pixels / 6) * 60 // gsd for pixels in self.span)
        return rows, cols

    def transform(self, gsd: int) -> list[int]:
        return [gsd, 0, WEST, 0, -gsd, NORTH]

    def means(self, stack: np.ndarray, factor: int) -> np.ndarray:
        """Float32 (site, y, x) to means of factor x factor pixels on the rectangle; NaN where no site lies."""
        full = np.full(self.shape(10), np.nan, np.float32)
        for site, square in enumerate(stack):
            row, col = (step * self.size for step in divmod(site, self.cols))
            full[row : row + self.size, col : col + self.size] = square
        if factor == 1:
            return full
        parts = np.stack([full[i::factor, j::factor] for i in range(factor) for j in range(factor)])
        known = ~np.isnan(parts)
        count = known.sum(0)
        return np.divide(np.where(known, parts, 0).sum(0), count, out=full[::factor, ::factor].copy(), where=count > 0)


def degrees(east: np.ndarray, north: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """UTM metres to longitude and latitude."""
    lon, lat = transform(f"EPSG:{EPSG}", "EPSG:4326", np.asarray(east, float), np.asarray(north, float))
    return np.array(lon), np.array(lat)


@dataclass(frozen=True)
class Land:
    """The truth. p: parcels of all sites in one list; years: those asked for and one more, sown in the last autumn."""

    parcel: np.ndarray  # (site, y, x) index into p
    site: np.ndarray  # (p,)
    kind: np.ndarray  # (year, p) index into KINDS
    jitter: np.ndarray  # (year, p) days
    vigour: np.ndarray  # (year, p) factor on green cover
    stems: np.ndarray  # (year, p) factor on canopy backscatter
    cuts: np.ndarray  # (year, p, 4) days, inf: not cut
    soil: np.ndarray  # (p,) brightness factor
    rough: np.ndarray  # (p,) factor on soil backscatter
    texture: np.ndarray  # (site, y, x) smooth factor on green cover
    grain: np.ndarray  # (site, y, x) rough factor on everything
    slope: np.ndarray  # (site, y, x) towards the morning sun, about -1..1


@dataclass(frozen=True)
class Climate:
    """What drives the seasons of each site."""

    offset: np.ndarray  # (year, site) days by which a season is late, -20..20
    stretch: np.ndarray  # (site,) length of the season over the mean one
    wet: np.ndarray  # (year, site, day) soil moisture 0..1
    weather: np.ndarray  # (year, site, day) kelvin above the season's mean
    warmth: np.ndarray  # (site, 2) yearly mean and amplitude, degrees Celsius
    gloom: np.ndarray  # (site,) log-odds of cloud above the mean
    orbits: np.ndarray  # (site, 2) seen by the ascending, the descending radar orbit


def stream(seed: int, *key: int) -> np.random.Generator:
    """A stream of its own for each thing drawn: one more site or year leaves the others as they were."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))


def noise(rng: np.random.Generator, shape: tuple[int, int, int], scale: float) -> np.ndarray:
    """Smooth noise of mean 0 and spread 1 in each site; `scale` in pixels. float32 (site, y, x)."""
    sites, *sides = shape
    step = 3 if scale >= 5 else 1  # wide blobs are drawn coarsely: a fifth of the time
    coarse = rng.standard_normal((sites, *(math.ceil(side / step) for side in sides)), np.float32)
    blobs = gaussian_filter(coarse, (0, scale / step, scale / step))
    if step > 1:
        blobs = zoom(blobs, (1, step, step), order=1, mode="nearest", grid_mode=True)[:, : sides[0], : sides[1]]
    blobs -= blobs.mean((1, 2), keepdims=True)
    return blobs / blobs.std((1, 2), keepdims=True)


def _cells(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, spacing: float) -> np.ndarray:
    """Voronoi cells of a jittered lattice in the coordinates (u, v); any shape in, cell numbers out."""
    reach = float(max(np.abs(u).max(), np.abs(v).max())) + spacing
    line = np.arange(-reach, reach + spacing, spacing)
    seeds = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    seeds += rng.uniform(-0.38, 0.38, seeds.shape) * spacing
    return cKDTree(seeds).query(np.stack([u, v], -1))[1]


def _site_land(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One site: parcel numbers (y, x), what each parcel is (a kind, or FIELD), elevation (y, x)."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    turn = rng.uniform(0, np.pi)
    u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    height, wild, bend, sway = (noise(rng, (1, size, size), scale)[0] for scale in (10, 7, 4, 4))
    ids = _cells(rng, u, v / rng.uniform(1.2, 2.2), rng.uniform(9, 12))
    natural = wild > np.quantile(wild, rng.uniform(0.62, 0.82))
    ids[natural] = _NATURAL + _cells(rng, x + 3 * bend, y + 3 * sway, 15)[natural]
    if rng.random() < 0.8:
        ids[height < np.quantile(height, rng.uniform(0.04, 0.13))] = -WATER
    if rng.random() < 0.8:
        at, half = rng.uniform(-size / 4, size / 4, 2), rng.uniform(5, 9, 2)
        ids[(np.abs(u - at[0]) < half[0]) & (np.abs(v - at[1]) < half[1])] = -TOWN
    for axis, place in ((u, rng.uniform(-size / 3, size / 3)), (v, rng.uniform(-size / 3, size / 3))):
        ids[np.abs(axis - place) < 0.5] = -ROAD
    names, parcel = np.unique(ids, return_inverse=True)
    return parcel.reshape(size, size), _uses(rng, names), height


def _uses(rng: np.random.Generator, names: np.ndarray) -> np.ndarray:
    """What each parcel of a site is for good: fields are FIELD, natural patches woods or meadows."""
    fields = rng.choice([FIELD, MEADOW, BARE], names.size, p=[0.78, 0.10, 0.12])
    patches = rng.choice([DECIDUOUS, EVERGREEN, MEADOW], names.size, p=[0.4, 0.4, 0.2])
    # water, town and road are named by their kind, negated
    return np.where(names < 0, -names, np.where(names < _NATURAL, fields, patches))


def _rotation(rng: np.random.Generator, uses: np.ndarray, years: int) -> np.ndarray:
    """Kinds (year, p) of one site: three to five crops, and a new one in every field each year."""
    crops = rng.permutation(CROPS)[: rng.integers(3, 6)]
    turn = rng.permutation(uses.size)
    kinds = []
    for _ in range(years):
        kinds.append(np.where(uses == FIELD, crops[turn % crops.size], uses))
        turn = turn + rng.integers(1, crops.size, uses.size)
    return np.stack(kinds)


def _cut_days(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Two to four cuts of each meadow, (year, p, 4); the ones left out are infinitely late."""
    days = np.array([138, 182, 228, 270]) + rng.normal(0, 7, (*shape, 4))
    return np.where(np.arange(4) < rng.integers(2, 5, (*shape, 1)), days, np.inf)


def draw_land(seed: int, grid: Grid, years: int) -> Land:
    """Draw the land of every site; `years` counts one more than those asked for."""
    parcels, sites, kinds, heights, first = [], [], [], [], 0
    for site in range(grid.sites):
        rng = stream(seed, 1, site)
        parcel, uses, height = _site_land(rng, grid.size)
        parcels.append(parcel + first)
        heights.append(height)
        sites.append(np.full(uses.size, site))
        kinds.append(_rotation(rng, uses, years))
        first += uses.size
    rng, parcel, kind = stream(seed, 2), np.stack(parcels), np.concatenate(kinds, 1)
    vigour = np.clip(rng.normal(1, 0.08, kind.shape), 0.7, 1.1)
    ground = rng.normal(1, 0.14, grid.sites)[np.concatenate(sites)]  # soils differ more between sites than within
    return Land(
        parcel=parcel,
        site=np.concatenate(sites),
        kind=kind,
        jitter=rng.normal(0, np.where(kind < CROPS, 4.0, 2.0)),
        vigour=np.where(kind < CROPS, vigour, vigour[0]),  # a wood does not jump at New Year
        stems=10 ** rng.normal(0, 0.08, kind.shape),
        cuts=_cut_days(rng, kind.shape),
        soil=np.clip(ground * rng.normal(1, 0.08, first), 0.6, 1.5),
        rough=10 ** rng.normal(0, 0.12, first),
        texture=1 + 0.06 * noise(rng, parcel.shape, 3),
        grain=np.exp(table("grain")[kind[0]][parcel] * rng.standard_normal(parcel.shape)).astype(np.float32),
        slope=np.gradient(np.stack(heights), axis=2).astype(np.float32) * 5,
    )


def _weather(rng: np.random.Generator, sites: int) -> tuple[np.ndarray, np.ndarray]:
    """Soil moisture 0..1 from a bucket that rain fills, and AR(1) temperature in kelvin; each (site, 366)."""
    rain = (rng.random((sites, 366)) < 0.22) * rng.gamma(1.5, 0.2, (sites, 366))
    shocks = rng.normal(0, 1.6, (sites, 366))
    wet, heat = np.full((sites, 366), 0.4), np.zeros((sites, 366))
    for day in range(1, 366):
        drying = 0.93 - 0.05 * math.sin(math.pi * day / 365)
        wet[:, day] = np.minimum(wet[:, day - 1] * drying + rain[:, day], 1)
        heat[:, day] = 0.8 * heat[:, day - 1] + shocks[:, day]
    return wet, heat


def draw_climate(seed: int, sites: int, years: int) -> Climate:
    """Draw each site's latitude, and from it when its seasons come and how warm it is."""
    rng = stream(seed, 3)
    north = rng.uniform(-1, 1, sites)  # -1 at 35 degrees, 1 at 60 degrees
    weather = [_weather(stream(seed, 4, year), sites) for year in range(years)]
    seen = rng.random(sites)
    return Climate(
        offset=np.clip(15 * north + rng.normal(0, 2, sites) + rng.normal(0, 3, (years, sites)), -20, 20),
        stretch=1 + 0.04 * north,
        wet=np.stack([wet for wet, _ in weather]),
        weather=np.stack([heat for _, heat in weather]),
        warmth=np.stack([11 - 5 * north, 10 + 2 * north], -1),
        gloom=rng.normal(0, 0.3, sites),
        orbits=np.stack([seen >= 0.2, seen <= 0.8], -1),
    )
