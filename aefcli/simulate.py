"""A made-up world: a small archive of satellite images with known truth, for tests, demonstrations and CI.

Owns the land, its climate and seasons, three sensors that look at it, and the writing of it all as a static STAC
catalog of COGs plus a table of labels. Nothing here is read by the rest of the toolkit except through those files.
A score on this world says whether time, sources and space were used; it says nothing of any real place.

K sites adjoin as squares of one UTM zone; each has its own land and climate. The latitude behind a climate is drawn,
never read off the map, so coordinates tell nothing. Arrays of pixels are `(site, y, x)` until they are written.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aefcli.errors import BadInput, NoResources
from aefcli.extent import Period

if TYPE_CHECKING:
    import pandas as pd

S2, S1, LANDSAT = "sentinel-2-c1-l2a", "sentinel-1-rtc", "landsat-c2-l2"
EPSG, WEST, NORTH = 32633, 501_000, 5_099_010  # metres, multiples of 30; inside MGRS tile 33TWL
SITE_LATITUDE = 46.0  # where the map puts the world; it lights the scenes and does nothing else
SMALLEST, MOST_PIXELS = 36, 16_000_000  # a pass holds about 30 float32 numbers per pixel: 2 GB at the most
FIRST_YEAR, LAST_YEAR = 2015, 2035
CEREAL_GAP = 21.0  # days between the two cereals

Spectrum = tuple[float, float, float, float, float]  # reflectance in B02 B03 B04 B08 B11


@dataclass(frozen=True)
class World:
    """What was written. `bbox`: W, S, E, N in degrees, rounded outward; `points`: rows of the labels table."""

    catalog: Path
    labels: Path
    bbox: tuple[float, float, float, float]
    items: int
    points: int


# ---------------------------------------------------------------------------------------------------------- classes


@dataclass(frozen=True)
class Kind:
    """One class of land. Days count from 1 January in the mean climate; covers are fractions of a pixel."""

    name: str
    leaf: Spectrum = (0.0, 0.0, 0.0, 0.0, 0.0)
    up: float = 0.0  # day of half green-up, and the logistic's width in days
    rise: float = 9.0
    down: float = 999.0  # day of half senescence
    fall: float = 7.0
    harvest: float = 999.0
    winter: float = 0.0  # cover since an emergence in the autumn before
    peak: float = 0.0
    floor: float = 0.0  # green cover that never goes
    straw: float = 0.0  # cover of dead matter between senescence and harvest
    late: float = 0.0  # days by which the whole curve is late
    flower: float = 0.0
    cut: bool = False
    ground: Spectrum | None = None  # what lies beneath; None: soil
    volume: tuple[float, float] = (0.0, 0.0)  # VV, VH power of a closed canopy
    depth: float = 0.0  # one-way optical depth of it for radar
    wood: float = 0.0  # structure that never goes
    bounce: float = 0.0  # VV power of stem-ground and wall-ground reflection
    surface: tuple[float, float] | None = None  # VV, VH power of the ground; None: soil
    grain: float = 0.03  # relative spread from pixel to pixel


_CEREAL: dict[str, Any] = {
    "leaf": (0.030, 0.060, 0.035, 0.43, 0.19), "up": 88.0, "rise": 10.0, "down": 163.0, "harvest": 186.0,
    "winter": 0.22, "peak": 0.92, "straw": 0.75, "volume": (0.045, 0.011), "depth": 0.55,
}  # fmt: skip
_SUMMER: dict[str, Any] = {
    "leaf": (0.030, 0.064, 0.037, 0.44, 0.20), "up": 172.0, "down": 256.0, "harvest": 273.0, "peak": 0.88,
    "straw": 0.45, "depth": 0.6,
}  # fmt: skip
KINDS = (
    Kind("winter_cereal_a", **_CEREAL),
    Kind("winter_cereal_b", late=CEREAL_GAP, **_CEREAL),
    Kind("maize", (0.028, 0.058, 0.032, 0.40, 0.21), 163, 8, 248, 9, 268, peak=0.93, straw=0.6,
         volume=(0.10, 0.030), depth=0.8),
    Kind("rapeseed", (0.033, 0.068, 0.038, 0.45, 0.18), 84, 10, 170, 8, 193, winter=0.38, peak=0.93,
         straw=0.65, flower=0.5, volume=(0.12, 0.040), depth=0.7),
    # Equal to the eye at every date: flooded stems against broad leaves on dry ground.
    Kind("summer_crop_wet", volume=(0.085, 0.024), bounce=0.06, **_SUMMER),
    Kind("summer_crop_dry", volume=(0.085, 0.014), bounce=0.0, **_SUMMER),
    Kind("meadow", (0.032, 0.068, 0.042, 0.40, 0.22), 92, 12, 292, 14, peak=0.92, floor=0.42, straw=0.2, cut=True,
         volume=(0.055, 0.012), depth=0.35, wood=0.15),
    Kind("deciduous_forest", (0.022, 0.046, 0.025, 0.40, 0.16), 112, 6, 288, 9, peak=0.93, floor=0.12, straw=0.4,
         volume=(0.15, 0.042), depth=1.1, wood=0.75, grain=0.09),
    Kind("evergreen_forest", (0.017, 0.032, 0.019, 0.25, 0.10), 118, 15, 280, 15, peak=0.93, floor=0.80,
         volume=(0.17, 0.048), depth=1.2, wood=0.9, grain=0.09),
    Kind("water", ground=(0.045, 0.050, 0.030, 0.016, 0.008), surface=(0.008, 0.0024), grain=0.04),
    Kind("town", (0.032, 0.066, 0.040, 0.40, 0.21), 100, 12, 285, 14, peak=0.32, floor=0.16,
         ground=(0.110, 0.125, 0.140, 0.200, 0.225), surface=(0.07, 0.03), bounce=0.35, wood=1.0, grain=0.22),
    Kind("bare"),
    Kind("road", ground=(0.090, 0.100, 0.110, 0.150, 0.180), surface=(0.02, 0.003), grain=0.06),
)  # fmt: skip
CLASSES = tuple(kind.name for kind in KINDS[:-1])  # roads are one pixel wide: seen, never labelled
CROPS, FIELD = 6, -1  # the first kinds rotate; FIELD marks a parcel whose crop is yet to be drawn
MEADOW, DECIDUOUS, EVERGREEN, WATER, TOWN, BARE, ROAD = range(6, 13)

SOIL, STRAW = np.array([0.090, 0.120, 0.160, 0.240, 0.310]), np.array([0.100, 0.140, 0.190, 0.300, 0.340])
FLOWER = np.array([0.055, 0.175, 0.190, 0.430, 0.220])
CLOUD = np.array([0.56, 0.56, 0.57, 0.60, 0.42])
HAZE = np.array([1.0, 0.80, 0.62, 0.35, 0.12])  # how much of a haze each band sees


def _table(attribute: str) -> np.ndarray:
    """One attribute of all kinds, (kind, ...); what is None becomes zeros."""
    width = {"ground": 5, "surface": 2}.get(attribute, 0)
    values = [getattr(kind, attribute) for kind in KINDS]
    return np.array([(0.0,) * width if value is None else value for value in values])


# ------------------------------------------------------------------------------------------------------ land, climate


@dataclass(frozen=True)
class Grid:
    """`sites` squares of `size` 10 m pixels, row by row from the north-west; the last row may have gaps."""

    sites: int
    size: int

    @property
    def cols(self) -> int:
        return math.ceil(math.sqrt(self.sites))

    @property
    def rows(self) -> int:
        return math.ceil(self.sites / self.cols)

    def shape(self, gsd: int) -> tuple[int, int]:
        return self.rows * self.size * 10 // gsd, self.cols * self.size * 10 // gsd

    def transform(self, gsd: int) -> list[int]:
        return [gsd, 0, WEST, 0, -gsd, NORTH]

    def mosaic(self, stack: np.ndarray, fill: float) -> np.ndarray:
        """(site, y, x) to the one rectangle (rows, columns), gaps filled."""
        side = stack.shape[-1]
        full = np.full((self.rows * self.cols, side, side), fill, stack.dtype)
        full[: self.sites] = stack
        squares = full.reshape(self.rows, self.cols, side, side).swapaxes(1, 2)
        return squares.reshape(self.rows * side, self.cols * side)


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


@dataclass(frozen=True)
class Canopy:
    """Covers 0..1 per parcel; `standing` is the structure that radar sees, green or not."""

    green: np.ndarray
    straw: np.ndarray
    flower: np.ndarray
    standing: np.ndarray


def _rng(seed: int, *key: int) -> np.random.Generator:
    """A stream of its own for each thing drawn: one more site or year leaves the others as they were."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))


def _noise(rng: np.random.Generator, shape: tuple[int, int, int], scale: float) -> np.ndarray:
    """Smooth noise of mean 0 and spread 1 in each site; `scale` in pixels. float32 (site, y, x)."""
    from scipy.ndimage import gaussian_filter, zoom

    step = 3 if scale >= 5 else 1  # wide blobs are drawn coarsely: a fifth of the time
    coarse = rng.standard_normal((shape[0], shape[1] // step, shape[2] // step), np.float32)
    blobs = gaussian_filter(coarse, (0, scale / step, scale / step))
    if step > 1:
        blobs = zoom(blobs, (1, step, step), order=1, mode="nearest", grid_mode=True)
    blobs -= blobs.mean((1, 2), keepdims=True)
    return blobs / blobs.std((1, 2), keepdims=True)


def _cells(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, spacing: float) -> np.ndarray:
    """Voronoi cells of a jittered lattice in the coordinates (u, v); any shape in, cell numbers out."""
    from scipy.spatial import cKDTree

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
    height, wild, bend, sway = (_noise(rng, (1, size, size), scale)[0] for scale in (10, 7, 4, 4))
    ids = _cells(rng, u, v / rng.uniform(1.2, 2.2), rng.uniform(9, 12))
    natural = wild > np.quantile(wild, rng.uniform(0.62, 0.82))
    ids[natural] = 10_000 + _cells(rng, x + 3 * bend, y + 3 * sway, 15)[natural]
    if rng.random() < 0.8:
        ids[height < np.quantile(height, rng.uniform(0.04, 0.13))] = 20_000
    if rng.random() < 0.8:
        at, half = rng.uniform(-size / 4, size / 4, 2), rng.uniform(5, 9, 2)
        ids[(np.abs(u - at[0]) < half[0]) & (np.abs(v - at[1]) < half[1])] = 20_001
    for axis, place in ((u, rng.uniform(-size / 3, size / 3)), (v, rng.uniform(-size / 3, size / 3))):
        ids[np.abs(axis - place) < 0.5] = 20_002
    names, parcel = np.unique(ids, return_inverse=True)
    return parcel.reshape(size, size), _uses(rng, names), height


def _uses(rng: np.random.Generator, names: np.ndarray) -> np.ndarray:
    """What each parcel of a site is for good: fields are FIELD, natural patches woods or meadows."""
    fields = rng.choice([FIELD, MEADOW, BARE], names.size, p=[0.78, 0.10, 0.12])
    patches = rng.choice([DECIDUOUS, EVERGREEN, MEADOW], names.size, p=[0.4, 0.4, 0.2])
    uses = np.where(names < 10_000, fields, patches)
    for name, kind in ((20_000, WATER), (20_001, TOWN), (20_002, ROAD)):
        uses[names == name] = kind
    return uses


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


def _land(seed: int, grid: Grid, years: int) -> Land:
    """Draw the land of every site; `years` counts one more than those asked for."""
    parcels, sites, kinds, heights, first = [], [], [], [], 0
    for site in range(grid.sites):
        rng = _rng(seed, 1, site)
        parcel, uses, height = _site_land(rng, grid.size)
        parcels.append(parcel + first)
        heights.append(height)
        sites.append(np.full(uses.size, site))
        kinds.append(_rotation(rng, uses, years))
        first += uses.size
    rng, parcel, kind = _rng(seed, 2), np.stack(parcels), np.concatenate(kinds, 1)
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
        texture=1 + 0.06 * _noise(rng, parcel.shape, 3),
        grain=np.exp(_table("grain")[kind[0]][parcel] * rng.standard_normal(parcel.shape)).astype(np.float32),
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


def _climate(seed: int, sites: int, years: int) -> Climate:
    """Draw each site's latitude, and from it when its seasons come and how warm it is."""
    rng = _rng(seed, 3)
    north = rng.uniform(-1, 1, sites)  # -1 at 35 degrees, 1 at 60 degrees
    weather = [_weather(_rng(seed, 4, year), sites) for year in range(years)]
    orbits = np.ones((sites, 2), bool)
    seen = rng.random(sites)
    orbits[seen < 0.2, 0] = False
    orbits[seen > 0.8, 1] = False
    return Climate(
        offset=np.clip(15 * north + rng.normal(0, 2, sites) + rng.normal(0, 3, (years, sites)), -20, 20),
        stretch=1 + 0.04 * north,
        wet=np.stack([wet for wet, _ in weather]),
        weather=np.stack([heat for _, heat in weather]),
        warmth=np.stack([11 - 5 * north, 10 + 2 * north], -1),
        gloom=rng.normal(0, 0.3, sites),
        orbits=orbits,
    )


# ------------------------------------------------------------------------------------------------------------ seasons


def _step(days: np.ndarray, width: np.ndarray | float) -> np.ndarray:
    """The logistic: 0 long before, a half at 0, 1 long after."""
    return 1 / (1 + np.exp(-np.clip(days / width, -30, 30)))


def canopy(kind: np.ndarray, day: np.ndarray, vigour: np.ndarray, cuts: np.ndarray) -> Canopy:
    """Covers of parcels (p,) on a local day of the mean climate (p,); `cuts` (p, 4). Double logistic curves."""
    late = {name: _table(name)[kind] for name in ("up", "rise", "down", "fall", "harvest", "winter", "peak")}
    floor, day = _table("floor")[kind], day - _table("late")[kind]
    grown = _step(day - late["up"], late["rise"])
    alive = 1 - _step(day - late["down"], late["fall"])
    left = 1 - _step(day - late["harvest"], 2.0)  # a harvest takes days, not weeks
    sown = late["winter"] * _step(day + 62, 9.0)  # emerged in early November
    green = floor + (sown + (late["peak"] - floor - late["winter"]) * grown) * alive * left
    since = day[..., None] - cuts
    regrow = np.where(since > 0, np.exp(-np.maximum(since, 0) / 15), 0).max(-1)
    kept = np.where(_table("cut")[kind], 1 - 0.6 * regrow, 1)
    green = np.clip(green * vigour * kept, 0, 0.97)
    flower = _table("flower")[kind] * np.exp(-0.5 * ((day - late["up"] - 30) / 7) ** 2)
    stubble = 0.45 * (1 - left) * np.exp(-np.clip(day - late["harvest"], 0, None) / 30)
    straw = _table("straw")[kind] * ((1 - alive) * left * (grown > 0.5) + stubble)
    wood = _table("wood")[kind]
    upright = np.where(late["harvest"] < 999, left, alive * kept)  # dead stems of a crop stand until the harvest
    standing = wood + (1 - wood) * np.clip(0.5 * sown + (1 - 0.5 * late["winter"]) * grown, 0, 1) * upright * vigour
    return Canopy(green, np.minimum(straw, 1 - green), np.minimum(flower, green), standing)


def _canopy_on(land: Land, climate: Climate, year: int, day: int) -> Canopy:
    """The parcels on a day of a year. From autumn on, what was sown for the next year shows beside the old."""
    now = _canopy_of(land, climate, year, day)
    if day < 240:
        return now
    sown = _canopy_of(land, climate, year + 1, day - 365)
    field = land.kind[year] < CROPS
    green = np.where(field, np.maximum(now.green, sown.green), now.green)
    straw = np.minimum(now.straw, 1 - green)
    return Canopy(green, straw, now.flower, np.where(field, np.maximum(now.standing, sown.standing), now.standing))


def _canopy_of(land: Land, climate: Climate, year: int, day: int) -> Canopy:
    """What is grown in `year`, on a day counted from its 1 January; late, cold sites run slower."""
    late, stretch = climate.offset[year][land.site], climate.stretch[land.site]
    local = 150 + (day - late - 150) / stretch - land.jitter[year]
    return canopy(land.kind[year], local, land.vigour[year], land.cuts[year])


# ------------------------------------------------------------------------------------------------------------ optical


def _sun(day: int) -> float:
    """Elevation in degrees at about 10 in the morning."""
    decline = math.radians(23.44) * math.sin(2 * math.pi * (day - 80) / 365)
    place = math.radians(SITE_LATITUDE)
    high = math.sin(place) * math.sin(decline) + math.cos(place) * math.cos(decline) * math.cos(math.radians(25))
    return math.degrees(math.asin(high))


def reflectance(land: Land, climate: Climate, year: int, day: int) -> np.ndarray:
    """Surface reflectance without sky or noise, float32 (band, site, y, x), bands B02 B03 B04 B08 B11."""
    from scipy.ndimage import gaussian_filter

    now, kind = _canopy_on(land, climate, year, day), land.kind[year]
    bright = land.soil * (1 - 0.45 * climate.wet[year, land.site, day])
    leaf = _table("leaf")[kind] * (now.green - now.flower)[:, None]
    soil = np.array([one.ground is None for one in KINDS])[kind]
    ground = np.where(soil[:, None], SOIL * bright[:, None], _table("ground")[kind])
    rest = np.clip(1 - now.green - now.straw, 0, 1)[:, None] * ground
    rest += now.straw[:, None] * STRAW * (0.7 + 0.3 * bright[:, None]) + now.flower[:, None] * FLOWER
    light = (0.94 + 0.06 * _sun(day) / 67) * (1 + 0.05 * land.slope * (1 - _sun(day) / 90)) * land.grain
    seen = np.empty((5, *land.parcel.shape), np.float32)
    for band in range(5):
        green, still = leaf[:, band].astype(np.float32), rest[:, band].astype(np.float32)
        pixels = (green[land.parcel] * land.texture + still[land.parcel]) * light
        seen[band] = gaussian_filter(pixels, (0, 0.5, 0.5), mode="nearest", truncate=3.0)
    return seen


@dataclass(frozen=True)
class Sky:
    """One pass: how much of each pixel is cloud, shadow, haze, 0..1 (site, y, x); what its mask gets wrong (site,)."""

    cloud: np.ndarray
    shadow: np.ndarray
    haze: np.ndarray
    noticed: np.ndarray  # whether the mask has the haze
    slip: np.ndarray  # pixels by which the mask is misplaced, mostly 0
    glow: float  # brightness of the day's clouds, about 1


def _sky(rng: np.random.Generator, gloom: np.ndarray, size: int) -> Sky:
    """Clouds as blobs above a threshold: one weather for the day, more or less of it at each site."""
    sites = gloom.size
    odds = 1.7 * (rng.normal(-0.95, 1.0) + gloom + rng.normal(0, 0.7, sites))
    share = 1 / (1 + np.exp(-odds))
    shape = (sites, size, size)
    blobs = _noise(rng, shape, 8) + 0.3 * _noise(rng, shape, 2)
    ranked = np.sort(blobs.reshape(sites, -1), 1)
    cut = ranked[np.arange(sites), ((1 - share) * (size * size - 1)).astype(int)]
    cloud = np.clip((blobs - cut[:, None, None]) / 0.45 + 0.25, 0, 1)
    strength = np.where(rng.random(sites) < 0.35, rng.uniform(0.05, 0.25, sites), 0)
    haze = strength[:, None, None] * np.clip(0.7 + 0.4 * _noise(rng, shape, 10), 0, 1)
    return Sky(
        cloud=cloud,
        shadow=_shifted(cloud, -int(rng.integers(3, 10)), -int(rng.integers(2, 7))),
        haze=haze.astype(np.float32),
        noticed=rng.random(sites) < 2 / 3,
        slip=np.where(rng.random(sites) < 0.04, rng.integers(4, 10, sites), 0),
        glow=rng.uniform(0.85, 1.15),
    )


def _shifted(stack: np.ndarray, down: int, right: int) -> np.ndarray:
    """Moved within each site by whole pixels, both negative (the sun stands in the south-east); zeros flow in."""
    moved = np.zeros_like(stack)
    moved[:, :down, :right] = stack[:, -down:, -right:]
    return moved


def _coarse(stack: np.ndarray, factor: int) -> np.ndarray:
    """Means of factor x factor pixels; (..., y, x)."""
    *lead, height, width = stack.shape
    return stack.reshape(*lead, height // factor, factor, width // factor, factor).mean((-3, -1))


def _look(rng: np.random.Generator, truth: np.ndarray, sky: Sky, factor: int, first: int = 0) -> np.ndarray:
    """What a sensor records of the truth (band, site, y, x) under a sky: shadow, haze, cloud, then its own faults.

    `factor`: its pixel in 10 m pixels; `first`: the number of its first band among B02 B03 B04 B08 B11.
    """
    cloud, shadow, haze = (_coarse(part, factor) for part in (sky.cloud, sky.shadow, sky.haze))
    air = rng.normal(1, 0.02, truth.shape[:2]).astype(np.float32)  # what the correction of the air left
    seen = np.empty_like(truth)
    for band, pixels in enumerate(truth):
        dim = pixels * air[band][:, None, None] * (1 - 0.55 * shadow)
        veil = haze * HAZE[first + band]
        clear = dim * (1 - veil) + 0.5 * veil
        seen[band] = clear * (1 - cloud) + CLOUD[first + band] * sky.glow * cloud
        seen[band] += (0.0015 + 0.012 * seen[band]) * rng.standard_normal(pixels.shape, np.float32)
    return seen


def _flags(sky: Sky, factor: int) -> dict[str, np.ndarray]:
    """The product's mask, right or wrong: bool (site, y, x) of `cloud`, `thin`, `shadow`, `haze`."""
    cloud, shadow, haze = (_coarse(part, factor) for part in (sky.cloud, sky.shadow, sky.haze))
    flags = {
        "cloud": cloud > 0.55,
        "thin": (cloud > 0.2) & (cloud <= 0.55),
        "shadow": (shadow > 0.25) & (cloud <= 0.2),
        "haze": (haze > 0.04) & sky.noticed[:, None, None] & (cloud <= 0.2) & (shadow <= 0.25),
    }
    for site in np.flatnonzero(sky.slip):
        for layer in flags.values():
            layer[site] = np.roll(layer[site], int(sky.slip[site]) // factor + 1, axis=(0, 1))
    return flags


# -------------------------------------------------------------------------------------------------------------- radar


def backscatter(land: Land, climate: Climate, year: int, day: int, orbit: int) -> np.ndarray:
    """Gamma nought without speckle, linear power (2, site, y, x) of VV and VH; orbit 0 ascending, 1 descending.

    A water cloud over soil [Attema and Ulaby 1978], plus double bounce in VV.
    """
    now, kind = _canopy_on(land, climate, year, day), land.kind[year]
    slant = 1 / math.cos(math.radians((39.0, 35.0)[orbit]))
    through = np.exp(-2 * _table("depth")[kind] * now.standing * slant)
    soil = np.array([one.surface is None for one in KINDS])[kind]
    moist = 10 ** (-1.55 + 0.75 * climate.wet[year, land.site, day]) * land.rough * (0.93, 1.07)[orbit]
    power = np.empty((2, *land.parcel.shape), np.float32)
    for channel, share in enumerate((1.0, 0.09)):
        ground = np.where(soil, moist * share, _table("surface")[kind][:, channel])
        total = _table("volume")[kind][:, channel] * land.stems[year] * (1 - through) + through * ground
        total += _table("bounce")[kind] * now.standing * (1.0, 0.12)[channel]
        power[channel] = total.astype(np.float32)[land.parcel] * land.grain * land.texture
    return power


# ------------------------------------------------------------------------------------------------------------- scenes


@dataclass(frozen=True)
class Layer:
    """One asset as it is announced: key, title, spacing in metres, how its numbers are stored."""

    key: str
    title: str
    gsd: int
    dtype: str
    nodata: int
    scale: float | None = None
    offset: float | None = None
    name: str = ""  # the sensor's band; empty for masks


LAYERS = {
    S2: (
        *(
            Layer(key, f"{title} - {gsd}m", gsd, "uint16", 0, 1e-4, -0.1, name)
            for key, title, gsd, name in (
                ("blue", "Blue", 10, "B02"), ("green", "Green", 10, "B03"), ("red", "Red", 10, "B04"),
                ("nir", "NIR 1", 10, "B08"), ("swir16", "SWIR 1.6μm", 20, "B11"),
            )
        ),
        Layer("scl", "Scene classification map (SCL)", 20, "uint8", 0),
    ),
    S1: tuple(Layer(key, f"{key.upper()}: gamma nought", 10, "float32", -32768, name=key.upper())
              for key in ("vv", "vh")),
    LANDSAT: (
        *(
            Layer(key, f"{title} Band", 30, "uint16", 0, 2.75e-5, -0.2, name)
            for key, title, name in (
                ("blue", "Blue", "OLI_B2"), ("green", "Green", "OLI_B3"), ("red", "Red", "OLI_B4"),
                ("nir08", "Near Infrared 0.8", "OLI_B5"), ("swir16", "Short-wave Infrared 1.6", "OLI_B6"),
            )
        ),
        Layer("lwir11", "Surface Temperature Band", 30, "uint16", 0, 0.00341802, 149.0, "TIRS_B10"),
        Layer("qa_pixel", "Pixel Quality Assessment Band", 30, "uint16", 1),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Pass:
    """When a sensor comes by. `turn` numbers a sensor's passes of a year, missed ones too."""

    collection: str
    year: int  # counted from the first
    day: int
    turn: int
    orbit: int
    when: datetime


@dataclass(frozen=True)
class Scene:
    """One item: its pixels by asset key, each the whole rectangle; `edge`: where an orbit's swath ends."""

    id: str
    at: Pass
    pixels: dict[str, np.ndarray]
    properties: dict[str, Any]
    edge: tuple[float, float] = (1.0, 1.0)  # fractions of the width, at the northern and the southern border


def _passes(seed: int, first: int, last: int) -> list[Pass]:
    """The plan of all acquisitions, by collection, then in order of time."""
    plan = []
    for year in range(first, last + 1):
        rng, length = _rng(seed, 6, year), (datetime(year + 1, 1, 1) - datetime(year, 1, 1)).days
        optical = [(S2, 5, 0.13, (9, 58)), (LANDSAT, 8, 0.06, (9, 52))]
        for collection, every, missed, clock in optical:
            for turn, day in enumerate(range(int(rng.integers(every)), length, every)):
                if rng.random() >= missed:
                    plan.append(_pass(rng, collection, (year, first), (day, turn, turn % 2), clock))
        for orbit, clock in enumerate(((16, 51), (5, 10))):
            day, turn = int(rng.integers(6)), 0
            while day < length:
                plan.append(_pass(rng, S1, (year, first), (day, turn, orbit), clock))
                day, turn = day + (6 if rng.random() < 0.35 else 12), turn + 1
    return sorted(plan, key=lambda one: (list(LAYERS).index(one.collection), one.when))


def _pass(
    rng: np.random.Generator,
    collection: str,
    years: tuple[int, int],
    place: tuple[int, int, int],
    clock: tuple[int, int],
) -> Pass:
    """`years`: this one and the first; `place`: day, turn, orbit; `clock`: hour and minute."""
    year, first = years
    day, turn, orbit = place
    seconds = int(rng.integers(60_000)) / 1000
    when = datetime(year, 1, 1, *clock, tzinfo=UTC) + timedelta(days=day, seconds=seconds)
    return Pass(collection, year - first, day, turn, orbit, when)


def _covered(edge: tuple[float, float], shape: tuple[int, int]) -> np.ndarray:
    """True west of the swath's edge, bool (rows, columns)."""
    rows, cols = shape
    limit = edge[0] + (edge[1] - edge[0]) * (np.arange(rows) + 0.5) / rows
    return (np.arange(cols) + 0.5) / cols < limit[:, None]


def _sentinel_2(seed: int, grid: Grid, land: Land, climate: Climate, at: Pass) -> Scene:
    """Five bands and SCL. Every other pass belongs to an orbit whose swath ends inside the box."""
    rng = _rng(seed, 7, at.when.year, at.turn)
    sky, truth = _sky(rng, climate.gloom, grid.size), reflectance(land, climate, at.year, at.day)
    seen = _look(rng, truth[:4], sky, 1)
    swir = _look(rng, _coarse(truth[4:], 2), sky, 2, first=4)
    edge = (rng.uniform(0.66, 0.72), rng.uniform(0.52, 0.58)) if at.orbit else (1.0, 1.0)
    covered = _covered(edge, grid.shape(20))
    pixels = {}
    for layer, band in zip(LAYERS[S2], (*seen, swir[0]), strict=False):
        stored = np.clip(np.rint(band * 1e4 + 1000), 1, 65535).astype(np.uint16)
        inside = covered if layer.gsd == 20 else np.repeat(np.repeat(covered, 2, 0), 2, 1)
        pixels[layer.key] = np.where(inside, grid.mosaic(stored, 0), np.uint16(0))
    scl = _scene_classes(rng, land, _canopy_on(land, climate, at.year, at.day).green, at.year, _flags(sky, 2))
    pixels["scl"] = np.where(covered, grid.mosaic(scl, 0), np.uint8(0))
    platform = "ab"[at.turn // 2 % 2]
    return Scene(
        f"S2{platform.upper()}_T33TWL_{at.when:%Y%m%dT%H%M%S}_L2A",
        at,
        pixels,
        _s2_properties(at, platform, pixels["scl"]),
        edge,
    )


def _scene_classes(
    rng: np.random.Generator, land: Land, green: np.ndarray, year: int, flags: dict[str, np.ndarray]
) -> np.ndarray:
    """SCL, uint8 (site, y, x) at 20 m. Now and then a bright town passes for cloud."""
    parcel = land.parcel[:, ::2, ::2]
    kind = land.kind[year][parcel]
    scl = np.where(green[parcel] > 0.35, 4, 5).astype(np.uint8)
    scl[kind == WATER] = 6
    fooled = rng.random((land.parcel.shape[0], 1, 1)) < 0.08
    scl[(kind == TOWN) & fooled] = 8
    for name, value in (("haze", 10), ("shadow", 3), ("thin", 8), ("cloud", 9)):
        scl[flags[name]] = value
    return scl


def _s2_properties(at: Pass, platform: str, scl: np.ndarray) -> dict[str, Any]:
    valid = max(int((scl > 0).sum()), 1)
    percent = {value: round(100 * float((scl == value).sum()) / valid, 4) for value in range(1, 12)}
    orbit, stamp = (122, 79)[at.orbit], f"{at.when - timedelta(minutes=8):%Y%m%dT%H%M%S}"
    number = 40_000 + (at.when - datetime(2015, 1, 1, tzinfo=UTC)).days % 5000 * 4 + at.orbit
    return {
        "platform": f"sentinel-2{platform}",
        "constellation": "sentinel-2",
        "instruments": ["msi"],
        "eo:cloud_cover": round(percent[8] + percent[9] + percent[10], 4),
        "gsd": 10,
        "mgrs:utm_zone": 33,
        "mgrs:latitude_band": "T",
        "mgrs:grid_square": "WL",
        "grid:code": "MGRS-33TWL",
        "view:sun_azimuth": 155.0,
        "view:sun_elevation": round(_sun(at.day), 4),
        "sat:orbit_state": "descending",
        "sat:relative_orbit": orbit,
        "s2:cloud_shadow_percentage": percent[3],
        "s2:vegetation_percentage": percent[4],
        "s2:not_vegetated_percentage": percent[5],
        "s2:water_percentage": percent[6],
        "s2:medium_proba_clouds_percentage": percent[8],
        "s2:high_proba_clouds_percentage": percent[9],
        "s2:thin_cirrus_percentage": percent[10],
        "s2:nodata_pixel_percentage": round(100 * float((scl == 0).mean()), 4),
        "s2:processing_baseline": "05.09",
        "s2:product_type": "S2MSI2A",
        "s2:datatake_id": f"GS2{platform.upper()}_{stamp}_{number:06d}_N05.09",
        "earthsearch:boa_offset_applied": False,
    }


def _sentinel_1(seed: int, grid: Grid, land: Land, climate: Climate, at: Pass) -> Scene:
    """VV and VH with speckle of five looks; nodata where a site lies outside the orbit's swath."""
    rng = _rng(seed, 8, at.when.year, at.turn, at.orbit)
    truth = backscatter(land, climate, at.year, at.day, at.orbit)
    waves = rng.lognormal(0, 0.35, (grid.sites, 1, 1))  # wind on water differs from day to day
    truth *= np.where(land.kind[at.year][land.parcel] == WATER, waves, 1)
    seen = truth * rng.standard_gamma(5.0, truth.shape, np.float32) / np.float32(5)
    seen[:, ~climate.orbits[:, at.orbit]] = -32768
    pixels = {layer.key: grid.mosaic(band, -32768) for layer, band in zip(LAYERS[S1], seen, strict=True)}
    state, orbit = (("ascending", 44), ("descending", 22))[at.orbit]
    properties = {
        "platform": "sentinel-1a",
        "constellation": "sentinel-1",
        "instruments": ["c-sar"],
        "gsd": 10,
        "sar:frequency_band": "C",
        "sar:instrument_mode": "IW",
        "sar:polarizations": ["VV", "VH"],
        "sar:product_type": "RTC",
        "sar:looks_equivalent_number": 5,
        "view:incidence_angle": (39.0, 35.0)[at.orbit],
        "sat:orbit_state": state,
        "sat:relative_orbit": orbit,
    }
    return Scene(f"S1A_IW_GRDH_1SDV_{at.when:%Y%m%dT%H%M%S}_{orbit:03d}_rtc", at, pixels, properties)


def _landsat(seed: int, grid: Grid, land: Land, climate: Climate, at: Pass) -> Scene:
    """Five bands as 3x3 means, surface temperature and QA_PIXEL."""
    rng = _rng(seed, 9, at.when.year, at.turn)
    sky, truth = _sky(rng, climate.gloom, grid.size), _coarse(reflectance(land, climate, at.year, at.day), 3)
    seen = (_look(rng, truth, sky, 3) + 0.2) / 2.75e-5
    heat = (_surface_kelvin(rng, land, climate, at, sky) - 149) / 0.00341802
    pixels = {}
    for layer, band in zip(LAYERS[LANDSAT], (*seen, heat), strict=False):
        pixels[layer.key] = grid.mosaic(np.clip(np.rint(band), 1, 65535).astype(np.uint16), 0)
    quality = _qa_pixel(_flags(sky, 3), land.kind[at.year][land.parcel[:, 1::3, 1::3]] == WATER)
    pixels["qa_pixel"] = grid.mosaic(quality, 1)
    number = "89"[at.turn % 2]
    return Scene(
        f"LC0{number}_L2SP_190028_{at.when:%Y%m%d}_02_T1",
        at,
        pixels,
        _landsat_properties(at, number, pixels["qa_pixel"]),
    )


def _surface_kelvin(rng: np.random.Generator, land: Land, climate: Climate, at: Pass, sky: Sky) -> np.ndarray:
    """Float32 (site, y, x) at 30 m: season and weather, cooled by green leaves, water and clouds, warmed by roofs."""
    kind, green = land.kind[at.year], _canopy_on(land, climate, at.year, at.day).green
    mean, swing = climate.warmth.T
    sunny = _sun(at.day) / 67
    air = mean - swing * math.cos(2 * math.pi * (at.day - 15) / 365) + climate.weather[at.year, :, at.day]
    skin = air[land.site] + sunny * (9 * (1 - green) + 3 * (kind == TOWN)) * (kind != WATER)
    skin = np.where(kind == WATER, 0.6 * skin + 0.4 * mean[land.site], skin) + 273.15
    seen = _coarse(skin.astype(np.float32)[land.parcel], 3)
    return seen - 28 * _coarse(sky.cloud, 3) + 0.4 * rng.standard_normal(seen.shape, np.float32)


def _qa_pixel(flags: dict[str, np.ndarray], water: np.ndarray) -> np.ndarray:
    """QA_PIXEL, uint16 (site, y, x), composed to the values that Collection 2 uses: 21824 is clear land."""
    from scipy.ndimage import binary_dilation

    cloud = flags["cloud"]
    near = (binary_dilation(cloud, np.ones((1, 3, 3), bool)) | flags["thin"]) & ~cloud
    value = np.full(cloud.shape, 21824, np.int64)
    value[water] |= 1 << 7
    value[near] |= 1 << 1
    value[flags["haze"]] |= (1 << 2) | (1 << 15)
    value[flags["shadow"]] |= (1 << 4) | (1 << 11)
    value[cloud] = 21824 - (1 << 6) + (1 << 3) + (1 << 9)
    return value.astype(np.uint16)


def _landsat_properties(at: Pass, number: str, quality: np.ndarray) -> dict[str, Any]:
    valid = (quality & 1) == 0
    cover = round(100 * float(((quality >> 3) & 1)[valid].mean()), 2)
    return {
        "platform": f"landsat-{number}",
        "instruments": ["oli", "tirs"],
        "eo:cloud_cover": cover,
        "gsd": 30,
        "view:off_nadir": 0,
        "view:sun_azimuth": 152.0,
        "view:sun_elevation": round(_sun(at.day), 4),
        "sat:orbit_state": "descending",
        "landsat:wrs_type": "2",
        "landsat:wrs_path": "190",
        "landsat:wrs_row": "028",
        "landsat:cloud_cover_land": cover,
        "landsat:correction": "L2SP",
        "landsat:collection_category": "T1",
        "landsat:collection_number": "02",
        "landsat:scene_id": f"LC{number}190028{at.when:%Y%j}LGN00",
    }


# ------------------------------------------------------------------------------------------------------------- labels


def _labels(seed: int, grid: Grid, land: Land, first: int, last: int) -> pd.DataFrame:
    """The truth at points of every site. Where crops rotate a point tells of one year, elsewhere of all."""
    import pandas as pd

    rows = []
    for place, told in _points(seed, grid, land, last - first + 1):
        years = range(last - first + 1) if place[3] >= CROPS else (told,)
        rows += [(*place, first + year) for year in years]
    site, row, col, label, year_of = np.array(rows, np.int64).reshape(-1, 5).T
    lon, lat = _degrees(
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


def _points(seed: int, grid: Grid, land: Land, years: int) -> list[tuple[tuple[int, int, int, int], int]]:
    """(Site, row, column, kind) and year of each point; the class that has fewest so far goes first."""
    tally = np.zeros(len(KINDS), np.int64)
    points = []
    for site in range(grid.sites):
        rng = _rng(seed, 10, site)
        told = rng.integers(0, years, land.site.size)  # the year a parcel's points tell of
        parcel = land.parcel[site]
        kind = land.kind[told, np.arange(land.site.size)][parcel]
        free, deep = _candidates(parcel, kind)
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
            points.append(((site, row, col, int(rarest)), int(told[here])))
            tally[rarest] += 1
            used[here] += 1
            free &= ~_disc(free.shape, row, col, 4.0) & (used[parcel] < 4)
    return points


def _candidates(parcel: np.ndarray, kind: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels that may carry a point, and those 2 px inside their parcel; bool (y, x).

    Two pixels at the border of a site stay free, so that points of neighbours keep their distance too.
    """
    from scipy.ndimage import distance_transform_edt

    inner = np.zeros(parcel.shape, bool)
    inner[2:-2, 2:-2] = True
    border = np.zeros(parcel.shape, bool)
    border[1:] |= parcel[1:] != parcel[:-1]
    border[:-1] |= parcel[1:] != parcel[:-1]
    border[:, 1:] |= parcel[:, 1:] != parcel[:, :-1]
    border[:, :-1] |= parcel[:, 1:] != parcel[:, :-1]
    return inner & (kind != ROAD), distance_transform_edt(~border) >= 2


def _disc(shape: tuple[int, int], row: int, col: int, reach: float) -> np.ndarray:
    """True closer than `reach` pixels."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    return (y - row) ** 2 + (x - col) ** 2 < reach**2


# ------------------------------------------------------------------------------------------------------------ writing


def _degrees(east: np.ndarray, north: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """UTM metres to longitude and latitude."""
    from rasterio.warp import transform

    lon, lat = transform(f"EPSG:{EPSG}", "EPSG:4326", np.asarray(east, float), np.asarray(north, float))
    return np.array(lon), np.array(lat)


def _outline(grid: Grid, edge: tuple[float, float]) -> tuple[list[list[float]], list[float]]:
    """The covered quadrilateral as a closed ring (lon, lat), and its W, S, E, N."""
    height, width = (10 * pixels for pixels in grid.shape(10))
    east = np.array([0, edge[0] * width, edge[1] * width, 0, 0]) + WEST
    north = NORTH - np.array([0, 0, height, height, 0])
    lon, lat = _degrees(east, north)
    return np.stack([lon, lat], -1).tolist(), [*map(float, (lon.min(), lat.min(), lon.max(), lat.max()))]


def _bbox(grid: Grid) -> tuple[float, float, float, float]:
    """The whole box in degrees, rounded outward to four decimals (11 m at the most)."""
    from rasterio.warp import transform_bounds

    height, width = (10 * pixels for pixels in grid.shape(10))
    box = (WEST, NORTH - height, WEST + width, NORTH)
    west, south, east, north = (1e4 * degrees for degrees in transform_bounds(f"EPSG:{EPSG}", "EPSG:4326", *box))
    return math.floor(west) / 1e4, math.floor(south) / 1e4, math.ceil(east) / 1e4, math.ceil(north) / 1e4


def _write_cog(path: Path, pixels: np.ndarray, layer: Layer, grid: Grid) -> None:
    import rasterio
    from rasterio.transform import Affine

    height, width = pixels.shape
    profile = {"driver": "COG", "compress": "deflate", "overview_resampling": "nearest", "count": 1}
    place = {"crs": f"EPSG:{EPSG}", "transform": Affine(*grid.transform(layer.gsd)), "nodata": layer.nodata}
    with rasterio.open(path, "w", height=height, width=width, dtype=layer.dtype, **profile, **place) as file:
        file.write(pixels, 1)


def _asset(layer: Layer, grid: Grid) -> dict[str, Any]:
    band: dict[str, Any] = {"nodata": layer.nodata, "data_type": layer.dtype, "spatial_resolution": layer.gsd}
    if layer.scale is not None:
        band |= {"scale": layer.scale, "offset": layer.offset}
    asset = {
        "href": f"./{layer.key}.tif",
        "type": "image/tiff; application=geotiff; profile=cloud-optimized",
        "title": layer.title,
        "gsd": layer.gsd,
        "proj:shape": list(grid.shape(layer.gsd)),
        "proj:transform": grid.transform(layer.gsd),
        "raster:bands": [band],
        "roles": ["data"] if layer.name else ["data", "cloud"],
    }
    if layer.name and layer.dtype == "uint16":
        asset["eo:bands"] = [{"name": layer.name, "common_name": layer.key}]
    return asset


def _link(rel: str, href: str) -> dict[str, str]:
    return {"rel": rel, "href": href, "type": "application/geo+json" if rel == "item" else "application/json"}


def _extension(name: str, version: str) -> str:
    return f"https://stac-extensions.github.io/{name}/v{version}/schema.json"


def _item(scene: Scene, grid: Grid) -> dict[str, Any]:
    """The item beside its assets, as earth-search lays it out."""
    ring, box = _outline(grid, scene.edge)
    collection, done = scene.at.collection, f"{scene.at.when + timedelta(hours=11):%Y-%m-%dT%H:%M:%S.000Z}"
    when = f"{scene.at.when:%Y-%m-%dT%H:%M:%S}.{scene.at.when.microsecond // 1000:03d}Z"
    names = {S2: [("eo", "1.1.0"), ("grid", "1.1.0"), ("mgrs", "1.0.0"), ("sat", "1.0.0"), ("view", "1.0.0")],
             S1: [("sar", "1.0.0"), ("sat", "1.0.0"), ("view", "1.0.0")],
             LANDSAT: [("eo", "1.1.0"), ("landsat", "1.1.1"), ("sat", "1.0.0"), ("view", "1.0.0")]}  # fmt: skip
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [
            _extension(name, version)
            for name, version in (("projection", "2.0.0"), ("raster", "1.1.0"), *names[collection])
        ],
        "id": scene.id,
        "collection": collection,
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": box,
        "properties": {"datetime": when, "created": done, "updated": done, "proj:code": f"EPSG:{EPSG}"}
        | scene.properties,
        "links": [
            _link("root", "../../catalog.json"),
            _link("collection", "../collection.json"),
            _link("parent", "../collection.json"),
        ],
        "assets": {layer.key: _asset(layer, grid) for layer in LAYERS[collection]},
    }


def _collection(name: str, box: tuple[float, float, float, float], span: Period, items: list[str]) -> dict[str, Any]:
    return {
        "type": "Collection",
        "stac_version": "1.0.0",
        "id": name,
        "description": f"A made-up world seen by a sensor like that of {name}.",
        "license": "CC0-1.0",
        "extent": {"spatial": {"bbox": [list(box)]}, "temporal": {"interval": [span.iso().split("/")]}},
        "links": [
            _link("root", "../catalog.json"),
            _link("parent", "../catalog.json"),
            *(_link("item", f"./{item}/{item}.json") for item in items),
        ],
    }


def _dump(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _save(folder: Path, scene: Scene, grid: Grid) -> None:
    """One item's COGs and then its JSON, in a folder of its own."""
    home = folder / scene.at.collection / scene.id
    home.mkdir(parents=True)
    for layer in LAYERS[scene.at.collection]:
        _write_cog(home / f"{layer.key}.tif", scene.pixels[layer.key], layer, grid)
    _dump(home / f"{scene.id}.json", _item(scene, grid))


def _scenes(seed: int, grid: Grid, land: Land, climate: Climate, plan: list[Pass]) -> Iterator[Scene]:
    make = {S2: _sentinel_2, S1: _sentinel_1, LANDSAT: _landsat}
    for at in plan:
        yield make[at.collection](seed, grid, land, climate, at)


def _check(seed: int, sites: int, size: int, years: tuple[int, int]) -> None:
    """Refuse what no world can be made of."""
    if seed < 0:
        raise BadInput(f"--seed {seed} is negative", "use 0 or more")
    if sites < 1:
        raise BadInput(f"--sites {sites} is too few", "use 1 or more")
    if size < SMALLEST or size % 6:
        near = max(SMALLEST, round(size / 6) * 6)
        hint = f"a multiple of 6 from {SMALLEST} on, so that 20 m and 30 m cells nest, such as {near}"
        raise BadInput(f"--size {size} does not fit", hint)
    if sites * size**2 > MOST_PIXELS:
        raise BadInput(f"{sites} sites of {size} x {size} pixels are too many", f"at most {MOST_PIXELS:,} in all")
    first, last = years
    if first > last:
        raise BadInput(f"--years {first}:{last} ends before it begins", "put the earlier year first")
    if first < FIRST_YEAR or last > LAST_YEAR:
        raise BadInput(f"--years {first}:{last} is out of range", f"use years from {FIRST_YEAR} to {LAST_YEAR}")


def _check_free(out: Path) -> None:
    """`out` may be new, empty, or hold other things; never another world."""
    if out.exists() and not out.is_dir():
        raise BadInput(f"{out} is a file", "name a folder")
    for name in ("catalog.json", "labels.parquet", *LAYERS):
        if (out / name).exists():
            raise BadInput(
                f"{out} already holds {name}", f"name another folder, such as {out.with_name(out.name + '-2')}"
            )


def _move(made: Path, out: Path) -> None:
    """Put the finished world in its place; the catalog goes last, so that no kill leaves one that lies."""
    if not out.exists():
        made.rename(out)
        return
    for name in (*LAYERS, "labels.parquet", "catalog.json"):
        (made / name).rename(out / name)


def simulate(
    out: Path,
    *,
    seed: int = 0,
    sites: int = 36,
    size: int = 66,
    years: tuple[int, int] = (2023, 2023),
    progress: Callable[[int, int], None] | None = None,
) -> World:
    """Write a made-up world: a static STAC catalog `out`/catalog.json and its truth, `out`/labels.parquet.

    sites: squares of `size` x `size` 10 m pixels; size: a multiple of 6, at least 36; years: first and last, both
    included; progress(done, total): called after each item. The same arguments give the same pixels and labels.
    BadInput: arguments out of range, or a world in `out` already; NoResources: it cannot be written.
    """
    _check(seed, sites, size, years)
    out = Path(out).resolve()
    _check_free(out)
    # Beside a new folder, inside one that exists: always on the same disk, where a rename is atomic.
    made = (out if out.exists() else out.parent) / f".{out.name}.making"
    try:
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        world = _write(made, seed, Grid(sites, size), years, progress)
        _move(made, out)
    except OSError as error:
        raise NoResources(f"cannot write the world {out}: {error}", "free some space or name another folder") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return World(out / world.catalog.name, out / world.labels.name, world.bbox, world.items, world.points)


def _write(
    folder: Path,
    seed: int,
    grid: Grid,
    years: tuple[int, int],
    progress: Callable[[int, int], None] | None,
) -> World:
    """Everything, into `folder`."""
    import rasterio

    count = years[1] - years[0] + 2
    land, climate = _land(seed, grid, count), _climate(seed, grid.sites, count)
    plan = _passes(seed, *years)
    ids: dict[str, list[str]] = {name: [] for name in LAYERS}
    with rasterio.Env():
        for done, scene in enumerate(_scenes(seed, grid, land, climate, plan), 1):
            _save(folder, scene, grid)
            ids[scene.at.collection].append(scene.id)
            if progress:
                progress(done, len(plan))
        labels = _labels(seed, grid, land, *years)
        box = _bbox(grid)
    labels.to_parquet(folder / "labels.parquet", index=False)
    span = Period.parse(f"{years[0]}:{years[1]}")
    for name, items in ids.items():
        _dump(folder / name / "collection.json", _collection(name, box, span, items))
    _dump(folder / "catalog.json", _catalog(seed))
    return World(folder / "catalog.json", folder / "labels.parquet", box, len(plan), len(labels))


def _catalog(seed: int) -> dict[str, Any]:
    return {
        "type": "Catalog",
        "stac_version": "1.0.0",
        "id": f"made-up-world-{seed}",
        "description": "A made-up world. Scores on it say nothing of any real place.",
        "links": [_link("root", "./catalog.json"), *(_link("child", f"./{name}/collection.json") for name in LAYERS)],
    }
