"""Sentinel-2 and Landsat over one site: the light that the land sends, and what the sky leaves of it.

Everything is (frame, y, x) at 10 m; what a product makes of it on its own grid is `world`'s work.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from aefcli.simulate.kinds import TOWN, WATER, table
from aefcli.simulate.land import Site
from aefcli.simulate.passes import S2, Pass
from aefcli.simulate.season import canopy_on
from aefcli.simulate.sky import Sky, sky_of
from aefcli.simulate.streams import stream

SITE_LATITUDE = 46.0  # where the map puts the world; it lights the scenes and does nothing else
SOIL, STRAW = np.array([0.090, 0.120, 0.160, 0.240, 0.310]), np.array([0.100, 0.140, 0.190, 0.300, 0.340])
FLOWER = np.array([0.055, 0.175, 0.190, 0.430, 0.220])
POOL, CHAR = np.array([0.050, 0.062, 0.055, 0.050, 0.025]), np.array([0.035, 0.040, 0.045, 0.070, 0.130])
CLOUD = np.array([0.56, 0.56, 0.57, 0.60, 0.42], np.float32)
HAZE = np.array([1.0, 0.80, 0.62, 0.35, 0.12], np.float32)  # how much of a haze each band sees


def sun(day: np.ndarray | int) -> np.ndarray:
    """Elevation in degrees at about 10 in the morning."""
    decline = math.radians(23.44) * np.sin(2 * math.pi * (np.asarray(day) - 80) / 365.25)
    place = math.radians(SITE_LATITUDE)
    high = math.sin(place) * np.sin(decline) + math.cos(place) * np.cos(decline) * math.cos(math.radians(25))
    return np.degrees(np.arcsin(high))


def reflectance(site: Site, days: np.ndarray) -> np.ndarray:
    """Surface reflectance without sky or noise, float32 (band, frame, y, x), bands B02 B03 B04 B08 B11."""
    leaf, rest = _mixture(site, days)
    high = (sun(days) / 67).astype(np.float32)[:, None, None]
    light = (0.94 + 0.06 * high) * (1 + 0.08 * site.slope * (1.2 - high)) * site.grain
    texture, parcel = site.texture.astype(np.float32), site.parcel
    seen = np.empty((5, len(days), *parcel.shape), np.float32)
    for band in range(5):
        pixels = leaf[band][:, parcel]
        pixels *= texture
        pixels += rest[band][:, parcel]
        pixels *= light
        seen[band] = _blurred(pixels)
    return seen


def _mixture(site: Site, days: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reflectance of each parcel: of its leaves, and of all the rest; float32 (band, frame, p)."""
    now, climate = canopy_on(site, days), site.climate
    bright = site.soil[:, None] * (1 - 0.45 * climate.at(climate.wet, days))
    kind = kind_on(site, days)
    open_ground = np.clip(1 - now.green - now.straw, 0, 1)
    pool, char = now.water * open_ground, now.char * open_ground
    dry = np.clip(open_ground - pool - char, 0, 1)
    season = site.climate.season_of(days)
    leaf, rest = np.empty((2, 5, len(days), site.soil.size), np.float32)
    for band in range(5):
        ground = table("ground")[:, band][kind]
        ground = np.where(ground > 0, ground, SOIL[band] * bright)
        tone = table("leaf")[:, band][kind] * site.leafy[season, :, band].T
        still = dry * ground + pool * POOL[band] + char * CHAR[band] + now.flower * FLOWER[band]
        leaf[band] = (tone * (now.green - now.flower)).T
        rest[band] = (still + now.straw * STRAW[band] * (0.7 + 0.3 * bright)).T
    return leaf, rest


def kind_on(site: Site, days: np.ndarray) -> np.ndarray:
    """Whose leaves and ground are seen, (p, frame): of what an event changes, from its middle on the new."""
    grown, events = site.grown[site.climate.season_of(days)].T, site.events
    after = events.done(days) >= 0.5
    switched = (events.old != events.new)[:, None]
    return np.where(switched, np.where(after, events.new[:, None], events.old[:, None]), grown)


def _blurred(pixels: np.ndarray) -> np.ndarray:
    """A blur of half a pixel: three taps along each side, borders repeated."""
    middle, side = np.float32(0.7866), np.float32(0.1067)
    for axis in (1, 2):
        out = pixels * middle
        one, other, first, last = (
            _along(axis, part) for part in (slice(1, None), slice(None, -1), slice(0, 1), slice(-1, None))
        )
        out[one] += side * pixels[other]
        out[other] += side * pixels[one]
        out[first] += side * pixels[first]
        out[last] += side * pixels[last]
        pixels = out
    return pixels


def _along(axis: int, part: slice) -> tuple[slice, ...]:
    return tuple(part if each == axis else slice(None) for each in range(3))


def recorded(seed: int, site: Site, plan: Sequence[Pass]) -> tuple[np.ndarray, Sky]:
    """What a sensor records on some passes of one collection, float32 (band, frame, y, x), and the sky that it saw.

    Landsat's has a sixth band: surface temperature in kelvin. Its noise is that of 10 m pixels of a 30 m mean.
    """
    size, fine = len(site.parcel), plan[0].collection == S2
    days = np.array([one.day for one in plan])
    rngs = [stream(seed, 8, site.number, *one.key) for one in plan]
    sky = sky_of(rngs, plan, site.gloom, size)
    truth = reflectance(site, days)
    bands = 5 if fine else 6
    noise = np.empty((bands, len(plan), size, size), np.float32)
    air = np.empty((5, len(plan), 1, 1), np.float32)
    for frame, rng in enumerate(rngs):
        air[:, frame, 0, 0] = 1 + 0.03 * rng.standard_normal(5, np.float32)  # what the correction of the air left
        noise[:, frame] = rng.standard_normal((bands, size, size), np.float32)
    dim = 1 - np.float32(0.55) * sky.shadow
    for band in range(5):
        veil = sky.haze * HAZE[band]
        seen = truth[band]
        seen *= air[band]
        seen *= dim
        seen += (np.float32(0.5) - seen) * veil
        seen += (CLOUD[band] * sky.glow[:, None, None] - seen) * sky.cloud
        coarse = np.float32(2.0 if fine and band == 4 else 1.0 if fine else 3.0)
        seen += coarse * (np.float32(0.002) + np.float32(0.014) * seen) * noise[band]
    if not fine:
        truth = np.concatenate([truth, (_kelvin(site, days, sky) + np.float32(1.2) * noise[5])[None]])
    return truth, sky


def _kelvin(site: Site, days: np.ndarray, sky: Sky) -> np.ndarray:
    """Surface temperature, float32 (frame, y, x): season and weather; leaves, water and clouds cool, roofs warm."""
    green, climate, kind = canopy_on(site, days).green, site.climate, kind_on(site, days)
    air = climate.at(climate.celsius, days)
    sunny = np.clip(0.6 + air / 40, 0.3, 1.2)
    skin = air + sunny * (9 * (1 - green) + 3 * (kind == TOWN)) * (kind != WATER)
    skin = np.where(kind == WATER, 0.6 * skin + 0.4 * climate.mean, skin) + 273.15
    return skin.T.astype(np.float32)[:, site.parcel] - 28 * sky.cloud


def ground_classes(site: Site, days: np.ndarray) -> np.ndarray:
    """What the scene classification calls the ground, uint8 (frame, p): 4 vegetation, 5 bare, 6 water."""
    green = canopy_on(site, days).green
    seen = np.where(green > 0.35, 4, 5)
    return np.where(kind_on(site, days) == WATER, 6, seen).T.astype(np.uint8)
