"""Radar over one site: Sentinel-1's backscatter of canopy and ground with its speckle, and PALSAR-2's yearly mosaic."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from aefcli.simulate.kinds import WATER, table
from aefcli.simulate.land import Site, heights
from aefcli.simulate.optics import kind_on
from aefcli.simulate.passes import Pass
from aefcli.simulate.season import canopy_on
from aefcli.simulate.streams import stream

LOOKS = 5.0
ANGLES = (39.0, 35.0)  # degrees of incidence, ascending and descending
POOL = (0.012, 0.0025)  # VV, VH of calm water between plants


def backscatter(site: Site, days: np.ndarray, orbits: np.ndarray) -> np.ndarray:
    """Gamma nought without speckle, float32 linear power (2, frame, y, x) of VV and VH; orbit 0 ascending.

    A water cloud over soil [Attema and Ulaby 1978], plus double bounce, which standing water makes stronger.
    """
    now, climate, kind = canopy_on(site, days), site.climate, kind_on(site, days)
    season = climate.season_of(days)
    slant = 1 / np.cos(np.radians(np.array(ANGLES)[orbits]))
    through = np.exp(-2 * table("depth")[kind] * now.standing * slant)
    damp = 10 ** (-1.60 + 0.75 * climate.at(climate.wet, days)) * np.array([0.90, 1.10])[orbits]
    power = np.empty((2, len(days), *site.parcel.shape), np.float32)
    for channel, share in enumerate((1.0, 0.09)):
        surface = table("surface")[:, channel][kind]
        ground = np.where(surface > 0, surface, site.rough[:, None] * damp * share)
        ground += (POOL[channel] - ground) * now.water * (1 - 0.5 * now.standing)
        volume = table("volume")[:, channel][kind] * site.stems[season].T
        bounce = table("bounce")[kind] * site.bounce[season].T * now.standing * (1 + 2 * now.water * now.standing)
        total = volume * (1 - through) + through * ground + bounce * (1.0, 0.12)[channel]
        power[channel] = total.T.astype(np.float32)[:, site.parcel] * (site.grain * site.texture).astype(np.float32)
    return power


def speckled(seed: int, site: Site, plan: Sequence[Pass]) -> np.ndarray:
    """VV and VH as Sentinel-1 records them, float32 (2, frame, y, x); NaN where the orbit does not see the site."""
    days, orbits = (np.array([getattr(one, name) for one in plan]) for name in ("day", "orbit"))
    seen = np.full((2, len(plan), *site.parcel.shape), np.nan, np.float32)
    there = np.flatnonzero(np.array(site.orbits)[orbits])
    if not there.size:
        return seen
    truth = backscatter(site, days[there], orbits[there])
    water = site.kind[0][site.parcel] == WATER
    for index, frame in enumerate(there.tolist()):
        rng = stream(seed, 8, site.number, *plan[frame].key)
        waves = math.exp(0.35 * rng.normal())  # wind on water differs from day to day
        clean = truth[:, index] * np.where(water, np.float32(waves), np.float32(1))
        seen[:, frame] = clean * rng.standard_gamma(LOOKS, clean.shape, np.float32) / np.float32(LOOKS)
    return seen


def mosaic_l_band(seed: int, site: Site, year: int, middle: int) -> np.ndarray:
    """PALSAR-2 of a year: HH and HV in linear power, incidence angle in radians; float32 (3, y, x) at 10 m."""
    rng = stream(seed, 9, site.number, year)
    tall, kind = heights(site, year), site.kind[year]
    stand = canopy_on(site, np.array([middle])).standing[:, 0]
    wood = table("wood")[kind] * (1 - np.exp(-tall / 9)) * site.events.left(year)
    wet = float(site.climate.at(site.climate.wet, np.array([middle]))[0])
    out = []
    for share, ground, town in ((1.0, 0.028, 0.25), (0.28, 0.0035, 0.03)):
        power = 0.16 * share * wood + 0.02 * share * stand + ground * site.rough * (0.6 + 0.8 * wet)
        power = np.where(kind == WATER, 0.003 * share, power + town * (table("bounce")[kind] > 0.2))
        out.append(power.astype(np.float32)[site.parcel] * site.grain)
    speckle = rng.standard_gamma(16.0, (2, *site.parcel.shape), np.float32) / np.float32(16)
    angle = np.float32(0.63) - 0.03 * site.slope
    return np.stack([*(np.stack(out) * speckle), angle])
