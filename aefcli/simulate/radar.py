"""Sentinel-1: backscatter of canopy and ground, its speckle, and which sites an orbit sees."""

from __future__ import annotations

import math

import numpy as np

from aefcli.simulate.kinds import WATER, table
from aefcli.simulate.land import Climate, Grid, Land
from aefcli.simulate.passes import LAYERS, S1, Pass, Scene
from aefcli.simulate.season import canopy_on


def backscatter(land: Land, climate: Climate, year: int, day: int, orbit: int) -> np.ndarray:
    """Gamma nought without speckle, linear power (2, site, y, x) of VV and VH; orbit 0 ascending, 1 descending.

    A water cloud over soil [Attema and Ulaby 1978], plus double bounce in VV.
    """
    now, kind = canopy_on(land, climate, year, day), land.kind[year]
    slant = 1 / math.cos(math.radians((39.0, 35.0)[orbit]))
    through = np.exp(-2 * table("depth")[kind] * now.standing * slant)
    surface = table("surface")[kind]
    moist = 10 ** (-1.55 + 0.75 * climate.wet[year, land.site, day]) * land.rough * (0.93, 1.07)[orbit]
    power = np.empty((2, *land.parcel.shape), np.float32)
    for channel, share in enumerate((1.0, 0.09)):
        ground = np.where(surface.any(1), surface[:, channel], moist * share)
        total = table("volume")[kind][:, channel] * land.stems[year] * (1 - through) + through * ground
        total += table("bounce")[kind] * now.standing * (1.0, 0.12)[channel]
        power[channel] = total.astype(np.float32)[land.parcel] * land.grain * land.texture
    return power


def sentinel_1(rng: np.random.Generator, grid: Grid, land: Land, climate: Climate, at: Pass) -> Scene:
    """VV and VH with speckle of five looks; nodata where a site lies outside the orbit's swath."""
    truth = backscatter(land, climate, at.year, at.day, at.orbit)
    waves = rng.lognormal(0, 0.35, (grid.sites, 1, 1))  # wind on water differs from day to day
    truth *= np.where(land.kind[at.year][land.parcel] == WATER, waves, 1)
    seen = truth * rng.standard_gamma(5.0, truth.shape, np.float32) / np.float32(5)
    seen[:, ~climate.orbits[:, at.orbit]] = np.nan
    pixels = {layer.key: layer.stored(grid.means(band, 1)) for layer, band in zip(LAYERS[S1], seen, strict=True)}
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
