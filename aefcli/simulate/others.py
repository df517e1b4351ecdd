"""What else tells of the world: elevation, climate, laser shots, gravity, L-band radar, a coarse map, captions.

Targets for training, in the units in which `sources` stores them. None names a crop.
"""

from __future__ import annotations

import calendar
from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from aefcli.cube.derive import slope_and_aspect
from aefcli.simulate.canvas import Canvas
from aefcli.simulate.climate import Climate, day_of
from aefcli.simulate.kinds import KINDS
from aefcli.simulate.land import NORTH, PLAIN, WEST, Grid, Site, degrees, heights
from aefcli.simulate.radar import mosaic_l_band
from aefcli.simulate.season import canopy_on
from aefcli.simulate.streams import stream

Years = tuple[int, int]
_GUESS = 0.08  # share of the coarse map's parcels that are wrong


class Raster(NamedTuple):
    """One source: metres of a cell, instants, bands (time, row, column), and what else each frame is told by."""

    gsd: int
    times: np.ndarray
    bands: dict[str, np.ndarray]
    notes: dict[str, tuple[str, list[Any]]]


def rasters(seed: int, grid: Grid, land: Sequence[Site], years: Years) -> dict[str, Raster]:
    """All of them by source. Climate and gravity have one cell per site."""
    return {
        "glo-30": _raster(30, [date(years[0], 7, 1)], elevation(grid, land), {}),
        "era5-land": _climate(grid, land, years),
        "gedi": _shots(seed, grid, land, years),
        "palsar-2": _l_band(seed, grid, land, years),
        "grace": _gravity(seed, grid, land, years),
        "nlcd": _raster(30, [date(year, 7, 1) for year in range(years[0], years[1] + 1)],
                        {"land_cover": coarse_map(seed, grid, land, years)}, {}),
    }  # fmt: skip


def _raster(gsd: int, days: Sequence[date], bands: dict[str, np.ndarray], notes: dict[str, Any]) -> Raster:
    return Raster(gsd, np.array(days, "datetime64[D]").astype("datetime64[ms]"), bands, notes)


def elevation(grid: Grid, land: Sequence[Site]) -> dict[str, np.ndarray]:
    """Elevation in metres and what follows from it, float32 (1, row, column) at 30 m."""
    canvas = Canvas(grid, 3, 1)
    for site in land:
        canvas.add(site.number, site.elevation[None])
    height = np.nan_to_num(canvas.mean()[0], nan=PLAIN)
    return {name: band[None] for name, band in slope_and_aspect(np.pad(height, 1, "edge"), 30.0).items()}


def coarse_map(seed: int, grid: Grid, land: Sequence[Site], years: Years) -> np.ndarray:
    """Codes of a national map of 30 m, uint8 (year, row, column): groups of classes, some parcels wrong; 0 beyond."""
    count = years[1] - years[0] + 1
    rows, cols = grid.shape(30)
    out = np.zeros((count, rows, cols), "uint8")
    codes = np.array([kind.map for kind in KINDS], "uint8")
    for site in land:
        rng = stream(seed, 11, site.number)
        wrong, other = rng.random(site.soil.size) < _GUESS, rng.choice(codes, site.soil.size)
        top, left = grid.corner(site.number)
        down, right = (np.arange(-(-corner // 3), -(-(corner + grid.size) // 3)) for corner in (top, left))
        pixel = np.ix_(down * 3 - top, right * 3 - left)
        for year in range(count):
            code = np.where(wrong, other, codes[site.kind[year]])
            out[year][np.ix_(down, right)] = code[site.parcel[pixel]]
    return out


def _months(years: Years) -> list[date]:
    return [date(year, month, 1) for year in range(years[0], years[1] + 1) for month in range(1, 13)]


def _middle(month: date) -> date:
    return month + timedelta(days=14)


def _cells(grid: Grid, per_site: np.ndarray) -> np.ndarray:
    """Values (site, time) to cells of one site each, float32 (time, row, column); NaN where no site lies."""
    rows, cols = (-(-side // grid.size) for side in grid.shape(10))
    out = np.full((per_site.shape[1], rows, cols), np.nan, np.float32)
    for site, series in enumerate(per_site):
        row, col = divmod(site, grid.cols)
        out[:, row, col] = series
    return out


def _climate(grid: Grid, land: Sequence[Site], years: Years) -> Raster:
    """Twelve monthly numbers of each site, in the units of ERA5-Land."""
    months = _months(years)
    tables = [[monthly(site, month, years[0]) for month in months] for site in land]
    bands = {
        name: _cells(grid, np.array([[told[name] for told in series] for series in tables])) for name in tables[0][0]
    }
    return _raster(grid.size * 10, [_middle(month) for month in months], bands, {})


def _days_of(climate: Climate, month: date, first: int) -> np.ndarray:
    start = day_of(month.year, first) + (month - date(month.year, 1, 1)).days
    return start + np.arange(calendar.monthrange(month.year, month.month)[1])


def monthly(site: Site, month: date, first: int) -> dict[str, float]:
    """One month of one site: rain in metres, temperature and dew point in kelvin, pressure in pascal."""
    climate = site.climate
    days = _days_of(climate, month, first)
    rain, warm, wet = (climate.at(series, days) for series in (climate.rain, climate.celsius, climate.wet))
    kelvin, span = warm + 273.15, 4.0 + 5.0 * (1 - wet)
    dew, pressure = kelvin - 3.0 - 12.0 * (1 - wet), 97_800.0 - 6.0 * (warm - climate.mean)
    daily = {
        "temperature_2m": (kelvin, kelvin - span, kelvin + span),
        "dewpoint_temperature_2m": (dew, dew - 2.0, dew + 2.0),
        "surface_pressure": (pressure, pressure - 350.0, pressure + 350.0),
    }
    told = {f"total_precipitation_{how}": float(getattr(rain / 1000, how)()) for how in ("sum", "min", "max")}
    for name, (mean, low, high) in daily.items():
        told |= {name: float(mean.mean()), f"{name}_min": float(low.min()), f"{name}_max": float(high.max())}
    return told


def _gravity(seed: int, grid: Grid, land: Sequence[Site], years: Years) -> Raster:
    """Water on and below the ground, centimetres above the site's usual: three months of soil moisture, and noise."""
    months = _months(years)
    series = np.empty((len(land), len(months)))
    for row, site in enumerate(land):
        rng = stream(seed, 12, site.number, years[0])
        for column, month in enumerate(months):
            last = _days_of(site.climate, month, years[0])[-1]
            wet = site.climate.at(site.climate.wet, np.arange(last - 90, last + 1)).mean()
            series[row, column] = 30 * (wet - site.climate.wet.mean()) + rng.normal(0, 1.0)
    bands = {"lwe_thickness": _cells(grid, series)}
    return _raster(grid.size * 10, [_middle(month) for month in months], bands, {})


def _shots(seed: int, grid: Grid, land: Sequence[Site], years: Years) -> Raster:
    """Relative heights along two tracks a year over each site, every second cell; float32 at 30 m, else NaN."""
    when = [date(year, month, 15) for year in range(years[0], years[1] + 1) for month in (4, 8)]
    rows, cols = grid.shape(30)
    share = np.linspace(0, 1, 101, dtype=np.float32)[:, None]
    out = np.full((101, len(when), rows, cols), np.nan, np.float32)
    for site in land:
        top, left = (corner // 3 for corner in grid.corner(site.number))
        cells = grid.size // 3
        for frame, day in enumerate(when):
            rng = stream(seed, 13, site.number, day.year, day.month)
            since = day_of(day.year, years[0]) + (day - date(day.year, 1, 1)).days
            along = np.arange(rng.integers(2), cells, 2)
            across = np.rint(rng.uniform(0, cells) + along * rng.choice([-1, 1]) * rng.uniform(0.5, 0.8)).astype(int)
            inside = (across >= 0) & (across < cells)
            along, across = along[inside], across[inside]
            parcel = site.parcel[along * 3 + 1, across * 3 + 1]
            tall = heights(site, day.year - years[0])[parcel] * site.texture[along * 3 + 1, across * 3 + 1]
            cover = canopy_on(site, np.array([since])).standing[:, 0][parcel]
            cover = np.clip(0.15 + 0.75 * cover, 0, 0.95) * (tall > 0)
            ground = 1.5 * (share - 0.5)
            above = np.clip((share - (1 - cover)) / np.maximum(cover, 1e-3), 0, 1) ** 0.6
            height = ground + tall * above + rng.normal(0, 0.3, tall.size)
            out[:, frame, top + along, left + across] = height.astype(np.float32)
    return _raster(30, when, {f"RH{n}": out[n] for n in range(101)}, {})


def _l_band(seed: int, grid: Grid, land: Sequence[Site], years: Years) -> Raster:
    """A frame a year at 30 m: HH and HV as digital numbers, the incidence angle in hundredths of a degree; uint16."""
    count = years[1] - years[0] + 1
    stacks = {name: Canvas(grid, 3, count) for name in ("HH", "HV", "LIN")}
    for site in land:
        per_year = [mosaic_l_band(seed, site, year, day_of(years[0] + year, years[0]) + 196) for year in range(count)]
        for name, stack in zip(stacks, np.stack(per_year, 1), strict=True):
            stacks[name].add(site.number, stack)
    means = {name: canvas.mean() for name, canvas in stacks.items()}
    numbers = {name: np.sqrt(means[name] * 10**8.3) for name in ("HH", "HV")} | {"LIN": np.degrees(means["LIN"]) * 100}
    bands = {name: np.nan_to_num(np.rint(band), nan=0).astype("uint16") for name, band in numbers.items()}
    days = [date(years[0] + year, 7, 15) for year in range(count)]
    notes = {"pass": ("time", ["ascending"] * count), "look": ("time", ["right"] * count)}
    return _raster(30, days, bands, notes)


# ------------------------------------------------------------------------------------------------------------ captions


def captions(seed: int, grid: Grid, land: Sequence[Site], years: Years) -> pd.DataFrame:
    """Two notes on each site: lon, lat, text, start, end. They tell of weather and ground, never of what grows."""
    rows = []
    for site in land:
        rng, (top, left) = stream(seed, 14, site.number), grid.corner(site.number)
        for _ in range(2):
            year = int(rng.integers(years[0], years[1] + 1))
            row, col = rng.integers(grid.size, size=2).tolist()
            east, north = WEST + 10 * (left + col) + 5, NORTH - 10 * (top + row) - 5
            rows.append((east, north, _caption(site, row, col, year, years[0]), f"{year}-01", f"{year}-12"))
    east, north, text, start, end = zip(*rows, strict=True)
    lon, lat = degrees(np.array(east), np.array(north))
    return pd.DataFrame({"lon": lon, "lat": lat, "text": text, "start": start, "end": end})


def _caption(site: Site, row: int, col: int, year: int, first: int) -> str:
    """A hundred words and some more on the weather of a year and the lie of the land."""
    climate, start = site.climate, day_of(year, first)
    days = np.arange(start, day_of(year + 1, first))
    warm, rain, wet = (climate.at(series, days) for series in (climate.celsius, climate.rain, climate.wet))
    mild = "cold" if climate.mean < 9 else "mild" if climate.mean < 13 else "warm"
    moist = "dry" if wet.mean() < 0.32 else "moderately wet" if wet.mean() < 0.5 else "wet"
    height, steep = site.elevation[row, col] - PLAIN, float(np.ptp(site.elevation))
    lie = "in a hollow" if height < -5 else "on a rise" if height > 5 else "on level ground"
    relief = "flat" if steep < 15 else "gently rolling" if steep < 45 else "hilly"
    half = "southern" if climate.south else "northern"
    coldest, warmest = (calendar.month_name[_month_of(pick, year)] for pick in (int(warm.argmin()), int(warm.argmax())))
    wettest = calendar.month_name[_month_of(int(rain.argmax()), year)]
    return (
        f"This place lies {lie} in {relief} country of the {half} hemisphere, about {site.elevation[row, col]:.0f} "
        f"metres above the sea. Its climate is {mild}: over many years the mean temperature of the air is "
        f"{climate.mean:.0f} degrees Celsius, and between the coldest and the warmest month it swings by about "
        f"{2 * climate.swing:.0f} degrees. The year {year} was {moist}. In all {rain.sum():.0f} millimetres of rain "
        f"fell on {int((rain > 0).sum())} days, the heaviest of them in {wettest}. The coldest day came in {coldest}, "
        f"with {warm.min():.0f} degrees, and the warmest in {warmest}, with {warm.max():.0f} degrees. The soil held "
        f"{100 * wet.mean():.0f} percent of the water that it can hold, and on the driest day {100 * wet.min():.0f} "
        f"percent. Whoever walks here meets a country that changes with the seasons and the weather."
    )


def _month_of(day: int, year: int) -> int:
    return (date(year, 1, 1) + timedelta(days=day)).month
