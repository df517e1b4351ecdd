"""The seasons: what covers each parcel on a day. Curves in days of the mean climate, shifted by the site's own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aefcli.simulate.kinds import CROPS, table
from aefcli.simulate.land import Climate, Land


@dataclass(frozen=True)
class Canopy:
    """Covers 0..1 per parcel; `standing` is the structure that radar sees, green or not."""

    green: np.ndarray
    straw: np.ndarray
    flower: np.ndarray
    standing: np.ndarray


def _step(days: np.ndarray, width: np.ndarray | float) -> np.ndarray:
    """The logistic: 0 long before, a half at 0, 1 long after."""
    return 1 / (1 + np.exp(-np.clip(days / width, -30, 30)))


def canopy(kind: np.ndarray, day: np.ndarray, vigour: np.ndarray, cuts: np.ndarray) -> Canopy:
    """Covers of parcels (p,) on a local day of the mean climate (p,); `cuts` (p, 4). Double logistic curves."""
    late = {name: table(name)[kind] for name in ("up", "rise", "down", "fall", "harvest", "winter", "peak")}
    floor, day = table("floor")[kind], day - table("late")[kind]
    grown = _step(day - late["up"], late["rise"])
    alive = 1 - _step(day - late["down"], late["fall"])
    left = 1 - _step(day - late["harvest"], 2.0)  # a harvest takes days, not weeks
    sown = late["winter"] * _step(day + 62, 9.0)  # emerged in early November
    green = floor + (sown + (late["peak"] - floor - late["winter"]) * grown) * alive * left
    since = day[..., None] - cuts
    regrow = np.where(since > 0, np.exp(-np.maximum(since, 0) / 15), 0).max(-1)
    kept = np.where(table("cut")[kind], 1 - 0.6 * regrow, 1)
    green = np.clip(green * vigour * kept, 0, 0.97)
    flower = table("flower")[kind] * np.exp(-0.5 * ((day - late["up"] - 30) / 7) ** 2)
    stubble = 0.45 * (1 - left) * np.exp(-np.clip(day - late["harvest"], 0, None) / 30)
    straw = table("straw")[kind] * ((1 - alive) * left * (grown > 0.5) + stubble)
    wood = table("wood")[kind]
    upright = np.where(late["harvest"] < 999, left, alive * kept)  # dead stems of a crop stand until the harvest
    standing = wood + (1 - wood) * np.clip(0.5 * sown + (1 - 0.5 * late["winter"]) * grown, 0, 1) * upright * vigour
    return Canopy(green, np.minimum(straw, 1 - green), np.minimum(flower, green), standing)


def canopy_on(land: Land, climate: Climate, year: int, day: int) -> Canopy:
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
