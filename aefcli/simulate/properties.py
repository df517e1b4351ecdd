"""What each item says of itself: its name and properties, as the real catalogs have them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from aefcli.simulate.optics import sun
from aefcli.simulate.passes import LANDSAT, S1, S2, Pass
from aefcli.simulate.radar import ANGLES, LOOKS

Told = tuple[str, dict[str, Any]]


def _sentinel_2(at: Pass, pixels: Mapping[str, np.ndarray]) -> Told:
    scl, platform = pixels["scl"], "ab"[at.turn // 2 % 2]
    valid = max(int((scl > 0).sum()), 1)
    percent = {value: round(100 * float((scl == value).sum()) / valid, 4) for value in range(1, 12)}
    orbit, stamp = (122, 79)[at.orbit], f"{at.when - timedelta(minutes=8):%Y%m%dT%H%M%S}"
    number = 40_000 + (at.when - datetime(2015, 1, 1, tzinfo=UTC)).days % 5000 * 4 + at.orbit
    return f"S2{platform.upper()}_T33TWL_{at.when:%Y%m%dT%H%M%S}_L2A", {
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
        "view:sun_elevation": round(float(sun(at.day)), 4),
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


def _sentinel_1(at: Pass, pixels: Mapping[str, np.ndarray]) -> Told:
    state, orbit = (("ascending", 44), ("descending", 22))[at.orbit]
    return f"S1A_IW_GRDH_1SDV_{at.when:%Y%m%dT%H%M%S}_{orbit:03d}_rtc", {
        "platform": "sentinel-1a",
        "constellation": "sentinel-1",
        "instruments": ["c-sar"],
        "gsd": 10,
        "sar:frequency_band": "C",
        "sar:instrument_mode": "IW",
        "sar:polarizations": ["VV", "VH"],
        "sar:product_type": "RTC",
        "sar:looks_equivalent_number": int(LOOKS),
        "view:incidence_angle": ANGLES[at.orbit],
        "sat:orbit_state": state,
        "sat:relative_orbit": orbit,
    }


def _landsat(at: Pass, pixels: Mapping[str, np.ndarray]) -> Told:
    quality, number = pixels["qa_pixel"], "89"[at.turn % 2]
    cover = round(100 * float(((quality >> 3) & 1)[(quality & 1) == 0].mean()), 2)
    return f"LC0{number}_L2SP_190028_{at.when:%Y%m%d}_02_T1", {
        "platform": f"landsat-{number}",
        "instruments": ["oli", "tirs"],
        "eo:cloud_cover": cover,
        "gsd": 30,
        "view:off_nadir": 0,
        "view:sun_azimuth": 152.0,
        "view:sun_elevation": round(float(sun(at.day)), 4),
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


PROPERTIES = {S2: _sentinel_2, S1: _sentinel_1, LANDSAT: _landsat}
