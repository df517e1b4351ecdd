"""Sentinel-2 and Landsat: the light that the land sends, the sky before it, and what the products make of both.

Land and sky are `(site, y, x)` at 10 m; what a sensor records is a mean of them on its own grid, NaN beyond the sites.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from scipy.ndimage import binary_dilation, gaussian_filter

from aefcli.simulate.kinds import TOWN, WATER, table
from aefcli.simulate.land import Climate, Grid, Land, noise
from aefcli.simulate.passes import LANDSAT, LAYERS, S2, Layer, Pass, Scene
from aefcli.simulate.season import canopy_on

SITE_LATITUDE = 46.0  # where the map puts the world; it lights the scenes and does nothing else
SOIL, STRAW = np.array([0.090, 0.120, 0.160, 0.240, 0.310]), np.array([0.100, 0.140, 0.190, 0.300, 0.340])
FLOWER = np.array([0.055, 0.175, 0.190, 0.430, 0.220])
CLOUD = np.array([0.56, 0.56, 0.57, 0.60, 0.42])
HAZE = np.array([1.0, 0.80, 0.62, 0.35, 0.12])  # how much of a haze each band sees


def sun(day: int) -> float:
    """Elevation in degrees at about 10 in the morning."""
    decline = math.radians(23.44) * math.sin(2 * math.pi * (day - 80) / 365)
    place = math.radians(SITE_LATITUDE)
    high = math.sin(place) * math.sin(decline) + math.cos(place) * math.cos(decline) * math.cos(math.radians(25))
    return math.degrees(math.asin(high))


def reflectance(land: Land, climate: Climate, year: int, day: int) -> np.ndarray:
    """Surface reflectance without sky or noise, float32 (band, site, y, x), bands B02 B03 B04 B08 B11."""
    now, kind = canopy_on(land, climate, year, day), land.kind[year]
    bright = land.soil * (1 - 0.45 * climate.wet[year, land.site, day])
    leaf = table("leaf")[kind] * (now.green - now.flower)[:, None]
    ground = table("ground")[kind]
    ground = np.where(ground.any(1, keepdims=True), ground, SOIL * bright[:, None])
    rest = np.clip(1 - now.green - now.straw, 0, 1)[:, None] * ground
    rest += now.straw[:, None] * STRAW * (0.7 + 0.3 * bright[:, None]) + now.flower[:, None] * FLOWER
    light = (0.94 + 0.06 * sun(day) / 67) * (1 + 0.05 * land.slope * (1 - sun(day) / 90)) * land.grain
    seen = np.empty((5, *land.parcel.shape), np.float32)
    for band in range(5):
        green, still = leaf[:, band].astype(np.float32), rest[:, band].astype(np.float32)
        pixels = (green[land.parcel] * land.texture + still[land.parcel]) * light
        seen[band] = gaussian_filter(pixels, (0, 0.5, 0.5), mode="nearest", truncate=3.0)
    return seen


@dataclass(frozen=True)
class Sky:
    """One pass: how much of each pixel is cloud, shadow, haze, 0..1 (site, y, x); what its mask gets wrong (site,)."""

    cloud: np.ndarray
    shadow: np.ndarray
    haze: np.ndarray
    noticed: np.ndarray  # whether the mask has the haze
    slip: np.ndarray  # pixels by which the mask is misplaced, mostly 0
    glow: float  # brightness of the day's clouds, about 1


def _sky(rng: np.random.Generator, gloom: np.ndarray, size: int) -> Sky:
    """Clouds as blobs above a threshold: one weather for the day, more or less of it at each site."""
    sites = gloom.size
    odds = 1.7 * (rng.normal(-0.95, 1.0) + gloom + rng.normal(0, 0.7, sites))
    share = 1 / (1 + np.exp(-odds))
    shape = (sites, size, size)
    blobs = noise(rng, shape, 8) + 0.3 * noise(rng, shape, 2)
    ranked = np.sort(blobs.reshape(sites, -1), 1)
    cut = ranked[np.arange(sites), ((1 - share) * (size * size - 1)).astype(int)]
    cloud = np.clip((blobs - cut[:, None, None]) / 0.45 + 0.25, 0, 1)
    down, right = rng.integers((3, 2), (10, 7))
    shadow = np.zeros_like(cloud)
    shadow[:, :-down, :-right] = cloud[:, down:, right:]  # the sun stands in the south-east
    strength = np.where(rng.random(sites) < 0.35, rng.uniform(0.05, 0.25, sites), 0)
    haze = strength[:, None, None] * np.clip(0.7 + 0.4 * noise(rng, shape, 10), 0, 1)
    return Sky(
        cloud=cloud,
        shadow=shadow,
        haze=haze.astype(np.float32),
        noticed=rng.random(sites) < 2 / 3,
        slip=np.where(rng.random(sites) < 0.04, rng.integers(4, 10, sites), 0),
        glow=rng.uniform(0.85, 1.15),
    )


def _look(
    rng: np.random.Generator, truth: np.ndarray, sky: Sky, grid: Grid, layers: tuple[Layer, ...]
) -> dict[str, np.ndarray]:
    """What a sensor records of the truth (band, site, y, x): shadow, haze, cloud, then its own grid and faults."""
    seen = {}
    for layer, pixels, hazy, white in zip(layers, truth, HAZE, CLOUD, strict=False):
        air = rng.normal(1, 0.02, len(pixels)).astype(np.float32)  # what the correction of the air left
        veil = sky.haze * np.float32(hazy)
        clear = pixels * air[:, None, None] * (1 - 0.55 * sky.shadow) * (1 - veil) + 0.5 * veil
        band = grid.means(clear + (np.float32(white * sky.glow) - clear) * sky.cloud, layer.gsd // 10)
        seen[layer.key] = band + (0.0015 + 0.012 * band) * rng.standard_normal(band.shape, np.float32)
    return seen


def _flags(sky: Sky, grid: Grid, factor: int) -> dict[str, np.ndarray]:
    """The product's mask, right or wrong: bool (row, column) of `cloud`, `thin`, `shadow`, `haze`; none overlap."""
    told = [sky.cloud.copy(), sky.shadow.copy(), sky.haze * sky.noticed[:, None, None]]
    for site in np.flatnonzero(sky.slip):
        for layer in told:
            layer[site] = np.roll(layer[site], sky.slip[site], axis=(0, 1))
    cloud, shadow, haze = (grid.means(layer, factor) for layer in told)
    return {
        "cloud": cloud > 0.55,
        "thin": (cloud > 0.2) & (cloud <= 0.55),
        "shadow": (shadow > 0.25) & (cloud <= 0.2),
        "haze": (haze > 0.04) & (cloud <= 0.2) & (shadow <= 0.25),
    }


# --------------------------------------------------------------------------------------------------------- sentinel-2


def sentinel_2(rng: np.random.Generator, grid: Grid, land: Land, climate: Climate, at: Pass) -> Scene:
    """Five bands and SCL. Every other pass belongs to an orbit whose swath ends inside the box."""
    sky, truth = _sky(rng, climate.gloom, grid.size), reflectance(land, climate, at.year, at.day)
    seen = _look(rng, truth, sky, grid, LAYERS[S2])
    seen["scl"] = _scene_classes(rng, grid, land, canopy_on(land, climate, at.year, at.day).green, at.year)
    for name, flagged in _flags(sky, grid, 2).items():
        seen["scl"][flagged] = {"cloud": 9, "thin": 8, "shadow": 3, "haze": 10}[name]
    edge = (rng.uniform(0.66, 0.72), rng.uniform(0.52, 0.58)) if at.orbit else (1.0, 1.0)
    (height, width), (rows, cols) = grid.span, (2 * np.arange(count) + 1 for count in grid.shape(20))
    beyond = cols > width * (edge[0] + (edge[1] - edge[0]) * rows[:, None] / height)
    for layer in LAYERS[S2]:
        seen[layer.key][beyond if layer.gsd == 20 else beyond.repeat(2, 0).repeat(2, 1)] = np.nan
    pixels = {layer.key: layer.stored(seen[layer.key]) for layer in LAYERS[S2]}
    platform = "ab"[at.turn // 2 % 2]
    name = f"S2{platform.upper()}_T33TWL_{at.when:%Y%m%dT%H%M%S}_L2A"
    return Scene(name, at, pixels, _s2_properties(at, platform, pixels["scl"]), edge)


def _scene_classes(rng: np.random.Generator, grid: Grid, land: Land, green: np.ndarray, year: int) -> np.ndarray:
    """SCL under a clear sky, float32 (row, column) at 20 m. Now and then a bright town passes for cloud."""
    kind, fooled = land.kind[year], rng.random(grid.sites) < 0.08
    leafy, wet, white = (
        grid.means(part[land.parcel], 2) for part in (green, kind == WATER, (kind == TOWN) & fooled[land.site])
    )
    scl = np.select([white > 0.5, wet > 0.5, leafy > 0.35], [8, 6, 4], 5)
    return np.where(np.isnan(leafy), np.nan, scl).astype(np.float32)


def _s2_properties(at: Pass, platform: str, scl: np.ndarray) -> dict[str, Any]:
    valid = max(int((scl > 0).sum()), 1)
    percent = {value: round(100 * float((scl == value).sum()) / valid, 4) for value in range(1, 12)}
    orbit, stamp = (122, 79)[at.orbit], f"{at.when - timedelta(minutes=8):%Y%m%dT%H%M%S}"
    number = 40_000 + (at.when - datetime(2015, 1, 1, tzinfo=UTC)).days % 5000 * 4 + at.orbit
    return {
        "platform": f"sentinel-2{platform}",
        "constellation": "sentinel-2",
        "instruments": ["msi"],
        "eo:cloud_cover": round(percent[8] + percent[9] + percent[10], 4),
        "gsd": 10,
        "mgrs:utm_zone": 33,
        "mgrs:latitude_band": "T",
        "mgrs:grid_square": "WL",
        "grid:code": "MGRS-33TWL",
        "view:sun_azimuth": 155.0,
        "view:sun_elevation": round(sun(at.day), 4),
        "sat:orbit_state": "descending",
        "sat:relative_orbit": orbit,
        "s2:cloud_shadow_percentage": percent[3],
        "s2:vegetation_percentage": percent[4],
        "s2:not_vegetated_percentage": percent[5],
        "s2:water_percentage": percent[6],
        "s2:medium_proba_clouds_percentage": percent[8],
        "s2:high_proba_clouds_percentage": percent[9],
        "s2:thin_cirrus_percentage": percent[10],
        "s2:nodata_pixel_percentage": round(100 * float((scl == 0).mean()), 4),
        "s2:processing_baseline": "05.09",
        "s2:product_type": "S2MSI2A",
        "s2:datatake_id": f"GS2{platform.upper()}_{stamp}_{number:06d}_N05.09",
        "earthsearch:boa_offset_applied": False,
    }


# ------------------------------------------------------------------------------------------------------------ landsat


def landsat(rng: np.random.Generator, grid: Grid, land: Land, climate: Climate, at: Pass) -> Scene:
    """Five bands as 3x3 means, which may lie across two sites, surface temperature and QA_PIXEL."""
    sky = _sky(rng, climate.gloom, grid.size)
    seen = _look(rng, reflectance(land, climate, at.year, at.day), sky, grid, LAYERS[LANDSAT])
    seen["lwir11"] = _surface_kelvin(rng, land, climate, at, sky, grid)
    seen["qa_pixel"] = _qa_pixel(_flags(sky, grid, 3), grid.means((land.kind[at.year] == WATER)[land.parcel], 3))
    pixels = {layer.key: layer.stored(seen[layer.key]) for layer in LAYERS[LANDSAT]}
    number = "89"[at.turn % 2]
    name = f"LC0{number}_L2SP_190028_{at.when:%Y%m%d}_02_T1"
    return Scene(name, at, pixels, _landsat_properties(at, number, pixels["qa_pixel"]))


def _surface_kelvin(
    rng: np.random.Generator, land: Land, climate: Climate, at: Pass, sky: Sky, grid: Grid
) -> np.ndarray:
    """Float32 (row, column) at 30 m: season and weather, cooled by green leaves, water and clouds, warmed by roofs."""
    kind, green = land.kind[at.year], canopy_on(land, climate, at.year, at.day).green
    mean, swing = climate.warmth.T
    sunny = sun(at.day) / 67
    air = mean - swing * math.cos(2 * math.pi * (at.day - 15) / 365) + climate.weather[at.year, :, at.day]
    skin = air[land.site] + sunny * (9 * (1 - green) + 3 * (kind == TOWN)) * (kind != WATER)
    skin = np.where(kind == WATER, 0.6 * skin + 0.4 * mean[land.site], skin) + 273.15
    seen = grid.means(skin.astype(np.float32)[land.parcel] - 28 * sky.cloud, 3)
    return seen + 0.4 * rng.standard_normal(seen.shape, np.float32)


def _qa_pixel(flags: dict[str, np.ndarray], water: np.ndarray) -> np.ndarray:
    """QA_PIXEL, float32 (row, column), composed to the values that Collection 2 uses: 21824 is clear land.

    `water`: the share of it in each pixel, NaN where no site lies.
    """
    cloud = flags["cloud"]
    near = (binary_dilation(cloud, np.ones((3, 3), bool)) | flags["thin"]) & ~cloud
    value = np.full(cloud.shape, 21824)
    value[water > 0.5] |= 1 << 7
    value[near] |= 1 << 1
    value[flags["haze"]] |= (1 << 2) | (1 << 15)
    value[flags["shadow"]] |= (1 << 4) | (1 << 11)
    value[cloud] = 21824 - (1 << 6) + (1 << 3) + (1 << 9)
    return np.where(np.isnan(water), np.nan, value).astype(np.float32)


def _landsat_properties(at: Pass, number: str, quality: np.ndarray) -> dict[str, Any]:
    valid = (quality & 1) == 0
    cover = round(100 * float(((quality >> 3) & 1)[valid].mean()), 2)
    return {
        "platform": f"landsat-{number}",
        "instruments": ["oli", "tirs"],
        "eo:cloud_cover": cover,
        "gsd": 30,
        "view:off_nadir": 0,
        "view:sun_azimuth": 152.0,
        "view:sun_elevation": round(sun(at.day), 4),
        "sat:orbit_state": "descending",
        "landsat:wrs_type": "2",
        "landsat:wrs_path": "190",
        "landsat:wrs_row": "028",
        "landsat:cloud_cover_land": cover,
        "landsat:correction": "L2SP",
        "landsat:collection_category": "T1",
        "landsat:collection_number": "02",
        "landsat:scene_id": f"LC{number}190028{at.when:%Y%j}LGN00",
    }
