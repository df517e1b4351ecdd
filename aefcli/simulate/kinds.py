"""The classes of land: what grows when, and what each looks like to the eye and to radar. Numbers alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Spectrum = tuple[float, float, float, float, float]  # reflectance in B02 B03 B04 B08 B11

CEREAL_GAP = 21.0  # days between the two cereals


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
    ground: Spectrum = (0.0, 0.0, 0.0, 0.0, 0.0)  # what lies beneath; zeros: soil
    volume: tuple[float, float] = (0.0, 0.0)  # VV, VH power of a closed canopy
    depth: float = 0.0  # one-way optical depth of it for radar
    wood: float = 0.0  # structure that never goes
    bounce: float = 0.0  # VV power of stem-ground and wall-ground reflection
    surface: tuple[float, float] = (0.0, 0.0)  # VV, VH power of the ground; zeros: soil
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


def table(attribute: str) -> np.ndarray:
    """One attribute of all kinds, (kind, ...)."""
    return np.array([getattr(kind, attribute) for kind in KINDS])
