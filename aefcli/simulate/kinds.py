"""The classes of land: what grows when, and what each looks like to the eye and to radar. Numbers alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Spectrum = tuple[float, float, float, float, float]  # reflectance in B02 B03 B04 B08 B11

TWIN_GAP = 0.05  # of a year's degree-days, between the two cereals
GROUPS = ("crop", "grass", "forest", "open trees", "water", "bare", "built")


@dataclass(frozen=True)
class Kind:
    """One class of land. Seasons are in thermal time: fractions of a place's usual yearly sum of degree-days.

    Covers are fractions of a pixel; backscatter is linear power.
    """

    name: str
    group: str
    leaf: Spectrum = (0.030, 0.062, 0.036, 0.42, 0.20)
    up: float = 0.0  # half green-up, and the logistic's width
    rise: float = 0.025
    down: float = 9.0  # half senescence
    fall: float = 0.025
    harvest: float = 9.0
    winter: float = 0.0  # cover since an emergence in the autumn before
    peak: float = 0.0
    floor: float = 0.0  # green cover that never goes
    straw: float = 0.0  # cover of dead matter between senescence and harvest
    flower: float = 0.0
    second: tuple[float, float, float] = (9.0, 9.0, 0.0)  # green-up, senescence and cover of a second crop
    flood: tuple[float, float, float] = (9.0, 9.0, 0.0)  # water stands from, to, and on how much of the ground
    swamp: float = 0.0  # how much of the ground stands under water when the soil is full
    cuts: int = 0  # at most so many a year
    bite: float = 0.0  # share of the green that a cut takes
    ground: Spectrum = (0.0, 0.0, 0.0, 0.0, 0.0)  # what lies beneath; zeros: soil
    volume: tuple[float, float] = (0.0, 0.0)  # VV, VH of a closed canopy
    depth: float = 0.0  # one-way optical depth of it for radar
    wood: float = 0.0  # structure that never goes
    bounce: float = 0.0  # VV of stem-ground and wall-ground reflection
    surface: tuple[float, float] = (0.0, 0.0)  # VV, VH of the ground; zeros: soil
    grain: float = 0.04  # relative spread from pixel to pixel
    tall: float = 0.0  # metres
    grade: float = 0.0  # what a season's growth is worth: tonnes per hectare of a full one
    map: int = 82  # the code of a coarse national map, which knows no crops


_CEREAL: dict[str, Any] = {
    "up": 0.09, "rise": 0.022, "down": 0.36, "fall": 0.018, "harvest": 0.45, "winter": 0.22, "peak": 0.92,
    "straw": 0.70, "volume": (0.045, 0.011), "depth": 0.55, "tall": 0.9, "grade": 8.0,
}  # fmt: skip
_SUMMER: dict[str, Any] = {
    "up": 0.37, "rise": 0.024, "down": 0.78, "harvest": 0.86, "peak": 0.90, "straw": 0.45, "depth": 0.6, "tall": 1.2,
}  # fmt: skip
_LEAFY: dict[str, Any] = {
    "leaf": (0.022, 0.046, 0.025, 0.38, 0.16), "up": 0.15, "rise": 0.018, "down": 0.88, "fall": 0.025, "peak": 0.93,
    "floor": 0.12, "straw": 0.4, "depth": 1.1, "wood": 0.75, "grain": 0.09, "map": 41,
}  # fmt: skip
_GRASS: dict[str, Any] = {
    "leaf": (0.032, 0.068, 0.042, 0.40, 0.22), "up": 0.11, "rise": 0.035, "down": 0.80, "fall": 0.06, "peak": 0.84,
    "floor": 0.30, "straw": 0.25, "volume": (0.050, 0.011), "depth": 0.35, "wood": 0.15, "tall": 0.4, "map": 71,
}  # fmt: skip
_TREES: dict[str, Any] = {
    "leaf": (0.028, 0.056, 0.035, 0.36, 0.19), "up": 0.15, "rise": 0.035, "down": 0.76, "fall": 0.05, "peak": 0.72,
    "floor": 0.28, "straw": 0.25, "volume": (0.095, 0.025), "depth": 0.6, "wood": 0.45, "grain": 0.12, "map": 52,
}  # fmt: skip
KINDS = (
    Kind("wheat", "crop", **_CEREAL),
    Kind("barley", "crop", **_CEREAL | {"up": 0.09 - TWIN_GAP, "down": 0.36 - TWIN_GAP, "harvest": 0.45 - TWIN_GAP}),
    Kind("rapeseed", "crop", (0.033, 0.068, 0.038, 0.43, 0.19), 0.08, 0.025, 0.40, 0.025, 0.47, 0.30, 0.92,
         straw=0.6, flower=0.42, volume=(0.085, 0.026), depth=0.65, tall=1.4, grade=4.0),
    Kind("maize", "crop", (0.029, 0.060, 0.034, 0.41, 0.205), 0.33, 0.024, 0.76, 0.03, 0.87, peak=0.92, straw=0.5,
         volume=(0.095, 0.026), depth=0.75, tall=2.4, grade=11.0),
    # Equal to the eye at every date: broad leaves on stems that bounce, and without.
    Kind("soy", "crop", volume=(0.070, 0.0145), bounce=0.0, grade=3.5, **_SUMMER),
    Kind("sunflower", "crop", volume=(0.085, 0.021), bounce=0.016, grade=3.0, **_SUMMER),
    Kind("rice", "crop", (0.030, 0.062, 0.036, 0.41, 0.19), 0.36, 0.03, 0.73, 0.025, 0.82, peak=0.88, straw=0.5,
         flood=(0.24, 0.66, 0.8), volume=(0.06, 0.014), depth=0.6, bounce=0.02, tall=0.9, grade=7.0),
    Kind("potato", "crop", (0.030, 0.063, 0.036, 0.43, 0.20), 0.29, 0.024, 0.66, 0.03, 0.74, peak=0.90, straw=0.3,
         volume=(0.075, 0.017), depth=0.55, tall=0.6, grade=40.0),
    Kind("beet", "crop", (0.029, 0.062, 0.035, 0.44, 0.19), 0.27, 0.028, 0.92, 0.04, 0.90, peak=0.93,
         volume=(0.080, 0.019), depth=0.6, tall=0.5, grade=60.0),
    Kind("double_crop", "crop", **_CEREAL | {"up": 0.08, "down": 0.32, "harvest": 0.38, "second": (0.50, 0.82, 0.80),
         "grade": 10.0}),
    Kind("grassland", "grass", **_GRASS),
    Kind("pasture", "grass", cuts=6, bite=0.30, **_GRASS | {"map": 81}),
    Kind("meadow", "grass", (0.032, 0.068, 0.042, 0.40, 0.22), 0.11, 0.035, 0.93, 0.03, peak=0.92, floor=0.40,
         straw=0.15, cuts=4, bite=0.6, volume=(0.055, 0.012), depth=0.35, wood=0.15, tall=0.5, map=81),
    # Two woods alike to the eye: stems in rows reflect with the ground.
    Kind("broadleaf", "forest", volume=(0.150, 0.045), bounce=0.0, tall=19.0, **_LEAFY),
    Kind("plantation", "forest", volume=(0.135, 0.034), bounce=0.02, tall=19.0, **_LEAFY),
    Kind("conifer", "forest", (0.017, 0.032, 0.019, 0.25, 0.10), 0.16, 0.04, 0.88, 0.04, peak=0.93, floor=0.80,
         volume=(0.16, 0.046), depth=1.2, wood=0.9, grain=0.09, tall=23.0, map=42),
    Kind("orchard", "open trees", tall=5.0, **_TREES | {"map": 82}),
    Kind("savanna", "open trees", tall=7.0, **_TREES | {"up": 0.17, "down": 0.72, "floor": 0.24, "grain": 0.16}),
    Kind("wetland", "water", (0.030, 0.058, 0.036, 0.36, 0.17), 0.18, 0.035, 0.84, 0.04, peak=0.80, floor=0.15,
         straw=0.4, swamp=0.7, volume=(0.075, 0.016), depth=0.45, wood=0.35, bounce=0.03, grain=0.10, tall=1.5, map=95),
    Kind("water", "water", ground=(0.045, 0.050, 0.030, 0.016, 0.008), surface=(0.008, 0.0024), map=11),
    Kind("bare", "bare", map=31),
    Kind("town", "built", (0.032, 0.066, 0.040, 0.40, 0.21), 0.12, 0.04, 0.86, 0.04, peak=0.32, floor=0.16,
         ground=(0.110, 0.125, 0.140, 0.200, 0.225), surface=(0.07, 0.03), bounce=0.30, wood=1.0, grain=0.22, tall=8.0,
         map=23),
    Kind("road", "built", ground=(0.090, 0.100, 0.110, 0.150, 0.180), surface=(0.02, 0.003), grain=0.06, map=22),
)  # fmt: skip
CLASSES = tuple(kind.name for kind in KINDS[:-1])  # roads are one pixel wide: seen, never labelled
CROPS, FIELD = 10, -1  # the first kinds rotate; FIELD marks a parcel whose crop is yet to be drawn
CODE = {kind.name: code for code, kind in enumerate(KINDS)}
WATER, BARE, TOWN, ROAD = (CODE[name] for name in ("water", "bare", "town", "road"))
GRASSES = tuple(CODE[name] for name in ("grassland", "pasture", "meadow"))
FORESTS = tuple(CODE[name] for name in ("broadleaf", "plantation", "conifer"))
TWINS = (("wheat", "barley"), ("grassland", "pasture"), ("orchard", "savanna"))
RADAR_TWINS = (("soy", "sunflower"), ("broadleaf", "plantation"))
GROUP = np.array([GROUPS.index(kind.group) for kind in KINDS])


def table(attribute: str) -> np.ndarray:
    """One attribute of all kinds, (kind, ...)."""
    return np.array([getattr(kind, attribute) for kind in KINDS])
