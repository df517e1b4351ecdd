"""What the sensors offer and when they come by: assets, and the plan of all passes."""

from __future__ import annotations

import calendar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np

from aefcli.simulate.climate import day_of
from aefcli.simulate.streams import stream

S2, S1, LANDSAT, DEM = "sentinel-2-c1-l2a", "sentinel-1-rtc", "landsat-c2-l2", "cop-dem-glo-30"


@dataclass(frozen=True)
class Layer:
    """One asset as it is announced: key, title, spacing in metres, how its numbers are stored."""

    key: str
    title: str
    gsd: int
    dtype: str
    nodata: float
    scale: float | None = None
    offset: float | None = None
    name: str = ""  # the sensor's band; empty for masks

    def stored(self, band: np.ndarray) -> np.ndarray:
        """Physical values as the file keeps them; NaN becomes nodata."""
        lost = np.isnan(band)
        if self.scale is not None and self.offset is not None:
            band = np.clip(np.rint((band - self.offset) / self.scale), 1, 65535)
        return np.where(lost, np.float32(self.nodata), band).astype(self.dtype)


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
    day: int  # from 1 January of the world's first year
    turn: int
    orbit: int  # of radar 0 ascending, 1 descending
    when: datetime
    gloom: float = 0.0  # log-odds of cloud on that day

    @property
    def key(self) -> tuple[int, ...]:
        """What its stream of random numbers is known by."""
        return list(LAYERS).index(self.collection), self.when.year, self.turn, self.orbit


def passes(seed: int, first: int, last: int) -> list[Pass]:
    """The plan of all acquisitions, by collection, then in order of time."""
    plan = []
    for year in range(first, last + 1):
        rng, length, start = stream(seed, 7, year), 365 + calendar.isleap(year), day_of(year, first)
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
            gloom = 0.0 if collection == S1 else float(rng.normal())
            plan.append(Pass(collection, start + day, turn, orbit, when, gloom))
    return sorted(plan, key=lambda one: (list(LAYERS).index(one.collection), one.when))
