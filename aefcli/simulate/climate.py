"""The climate of one site: a latitude that the map does not tell, its weather day by day, and thermal time.

Owns temperature, rain, soil moisture and degree-days. Days are whole numbers counted from 1 January of the world's
first year; a climate begins a year before that day and ends a year and a half after its last year.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

import numpy as np
from scipy.signal import lfilter

from aefcli.simulate.streams import stream

LATITUDES = (30.0, 56.0)  # of either hemisphere
SOUTHERN = 3  # one site of so many lies in the south
BASE = 5.0  # degrees Celsius above which plants count the warmth
_BEFORE, _AFTER = 1, 2  # years of weather around the world's own


@dataclass(frozen=True)
class Climate:
    """What drives the seasons of one site. Arrays by day begin at `origin`, a negative day."""

    south: bool
    mean: float  # degrees Celsius, of a usual year, and its amplitude
    swing: float
    origin: int
    celsius: np.ndarray  # (day) mean air temperature
    rain: np.ndarray  # (day) millimetres
    wet: np.ndarray  # (day) soil moisture 0..1
    usual: float  # degree-days of a usual year
    starts: np.ndarray  # (season) day on which its thermal time is 0: 1 January, in the south 1 July before

    def at(self, series: np.ndarray, days: np.ndarray) -> np.ndarray:
        """A daily series on some days."""
        return series[np.asarray(days) - self.origin]

    def thermal(self, season: int, days: np.ndarray) -> np.ndarray:
        """Thermal time: degree-days since the season's start, as a fraction of a usual year's sum."""
        heat = np.concatenate([[0.0], np.cumsum(np.maximum(self.celsius - BASE, 0.15))])
        return (heat[np.asarray(days) - self.origin] - heat[self.starts[season] - self.origin]) / self.usual

    def season_of(self, days: np.ndarray) -> np.ndarray:
        """The season that each day belongs to."""
        return np.searchsorted(self.starts, days, side="right") - 1


def day_of(year: int, first: int) -> int:
    """The day that 1 January of a year is."""
    return (date(year, 1, 1) - date(first, 1, 1)).days


def draw_climate(seed: int, site: int, first: int, last: int) -> Climate:
    """Draw a site's latitude, and from it its warmth, its weather and its water."""
    rng = stream(seed, 3, site)
    latitude = rng.uniform(*LATITUDES)
    south = bool(stream(seed, 17, site // SOUTHERN).integers(SOUTHERN) == site % SOUTHERN)
    mean, swing = 31.0 - 0.43 * latitude + rng.normal(0, 0.8), 2.5 + 0.19 * latitude
    rainy, season, peak = rng.uniform(0.16, 0.30), rng.uniform(0, 0.7), rng.uniform(0, 365)
    years = range(first - _BEFORE, last + _AFTER + 1)
    drawn = [_year(seed, site, year, first) for year in years]
    day, shock, warmer, wetter, chance, amount = (np.concatenate(part) for part in zip(*drawn, strict=True))
    turn = 2 * np.pi * (day - 15 + (182.6 if south else 0)) / 365.25
    celsius = mean - swing * np.cos(turn) + warmer + lfilter([1.0], [1.0, -0.8], shock)
    odds = rainy * wetter * (1 + season * np.cos(2 * np.pi * (day - peak) / 365.25))
    rain = np.where(chance < odds, amount, 0.0)
    cycle = mean - swing * np.cos(2 * np.pi * np.arange(365) / 365)
    july = 182 * south
    starts = np.array([day_of(year, first) - july for year in range(first, last + 3)])
    return Climate(
        south=south,
        mean=mean,
        swing=swing,
        origin=int(day[0]),
        celsius=celsius,
        rain=rain,
        wet=_bucket(rain, celsius),
        usual=float(np.maximum(cycle - BASE, 0.15).sum()),
        starts=starts,
    )


def _year(seed: int, site: int, year: int, first: int) -> tuple[np.ndarray, ...]:
    """A year's days, and what its weather is made of: a stream of its own, so that more years change none."""
    rng = stream(seed, 4, site, year)
    start, end = day_of(year, first), day_of(year + 1, first)
    dry = rng.random() < 0.2  # a dry year
    warmer, wetter = rng.normal(0, 0.7), rng.uniform(0.35, 0.6) if dry else rng.uniform(0.8, 1.25)
    day, many = np.arange(start, end), end - start
    shock, chance, amount = rng.normal(0, 1.6, many), rng.random(many), rng.gamma(1.3, 7.0, many)
    return day, shock, np.full(many, warmer), np.full(many, wetter), chance, amount


def _bucket(rain: np.ndarray, celsius: np.ndarray) -> np.ndarray:
    """Soil moisture 0..1: rain fills it, warmth empties it."""
    level, found = 0.4, []
    for falls, drying in zip((rain / 42).tolist(), (0.955 - 0.0025 * np.clip(celsius, 0, 30)).tolist(), strict=True):
        level = min(level * drying + falls, 1.0)
        found.append(level)
    return np.array(found)
