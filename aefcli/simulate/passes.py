"""What the sensors offer and when they come by: assets, the plan of a year's passes, one pass as a scene."""

from __future__ import annotations

import calendar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from aefcli.simulate.land import stream

S2, S1, LANDSAT = "sentinel-2-c1-l2a", "sentinel-1-rtc", "landsat-c2-l2"


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

    def stored(self, band: np.ndarray) -> np.ndarray:
        """Physical values as the file keeps them; NaN becomes nodata."""
        if self.scale is not None and self.offset is not None:
            band = np.clip(np.rint((band - self.offset) / self.scale), 1, 65535)
        return np.where(np.isnan(band), self.nodata, band).astype(self.dtype)


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
    """One item: its pixels as stored, by asset key, each the whole rectangle; `edge`: where an orbit's swath ends."""

    id: str
    at: Pass
    pixels: dict[str, np.ndarray]
    properties: dict[str, Any]
    edge: tuple[float, float] = (1.0, 1.0)  # fractions of the width, at the northern and the southern border


def passes(seed: int, first: int, last: int) -> list[Pass]:
    """The plan of all acquisitions, by collection, then in order of time."""
    plan = []
    for year in range(first, last + 1):
        rng, length = stream(seed, 6, year), 365 + calendar.isleap(year)
        found = []
        for collection, every, missed, clock in ((S2, 5, 0.13, (9, 58)), (LANDSAT, 8, 0.06, (9, 52))):
            for turn, day in enumerate(range(int(rng.integers(every)), length, every)):
                if rng.random() >= missed:
                    found.append((collection, day, turn, turn % 2, clock))
        for orbit, clock in enumerate(((16, 51), (5, 10))):
            days = rng.integers(6) + np.cumsum([0, *np.where(rng.random(length // 6) < 0.35, 6, 12)])
            found += [(S1, int(day), turn, orbit, clock) for turn, day in enumerate(days[days < length])]
        for collection, day, turn, orbit, clock in found:
            when = datetime(year, 1, 1, *clock, tzinfo=UTC)
            when += timedelta(days=day, milliseconds=int(rng.integers(60_000)))
            plan.append(Pass(collection, year - first, day, turn, orbit, when))
    return sorted(plan, key=lambda one: (list(LAYERS).index(one.collection), one.when))
