"""Items into frames: which items are duplicates, which are one pass, and how their numbers are to be read.

Source: `sources.md`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aefcli.sources import Source

if TYPE_CHECKING:
    import pystac

_OFFSET_SINCE = 4.0  # Sentinel-2 baseline from which L2A numbers carry +1000


@dataclass(frozen=True)
class Frame:
    """One pass of one platform on one solar day: the items that are mosaicked, first valid pixel wins."""

    time: int  # ms since 1970 UTC, of the earliest item
    items: tuple[pystac.Item, ...]
    delivered: tuple[bool, ...]  # per band of the source
    scale: tuple[float, ...]
    offset: tuple[float, ...]
    orbit: str


def frames_of(items: Sequence[pystac.Item], source: Source) -> list[Frame]:
    """Newest of duplicates, grouped by pass, in order of time. Items that number differently never share a frame."""
    groups: dict[tuple[Any, ...], list[pystac.Item]] = {}
    for item in _newest(items):
        groups.setdefault((_pass(item), _numbers(item, source)), []).append(item)
    frames = []
    for (_, (delivered, scale, offset)), members in groups.items():
        members.sort(key=lambda item: (_instant(item), item.id))
        orbit = str(members[0].properties.get("sat:orbit_state", ""))
        frames.append(Frame(_instant(members[0]), tuple(members), delivered, scale, offset, orbit))
    return sorted(frames, key=lambda frame: (frame.time, frame.items[0].id))


def _newest(items: Sequence[pystac.Item]) -> list[pystac.Item]:
    """One item per (platform, datatake or instant, tile): the newest baseline, then the newest processing."""
    best: dict[tuple[Any, ...], pystac.Item] = {}
    for item in items:
        properties = item.properties
        tile = properties.get("grid:code") or properties.get("s2:mgrs_tile") or _tile_in(item.id)
        key = (properties.get("platform"), _datatake(item) or _instant(item), tile)
        if key not in best or _age(item) > _age(best[key]):
            best[key] = item
    return list(best.values())


def _age(item: pystac.Item) -> tuple[Any, ...]:
    """Sorts newer processings of the same data last."""
    properties = item.properties
    made = (properties.get(key) for key in ("s2:generation_time", "landsat:product_generated", "created", "updated"))
    return (_baseline(item) or 0.0, next((when for when in made if when), ""), item.id)


def _tile_in(name: str) -> str:
    """The MGRS tile in a product name; the whole name where there is none, so that nothing is taken for a duplicate."""
    match = re.search(r"_T?(\d{2}[C-X][A-Z]{2})(?=_|$)", name)
    return match.group(1) if match else name


def _datatake(item: pystac.Item) -> str:
    """The sensing start within a Sentinel-2 datatake id (GS2A_20230815T095031_042547_N05.09), else nothing."""
    parts = str(item.properties.get("s2:datatake_id", "")).split("_")
    return parts[1] if len(parts) > 1 else ""


def _pass(item: pystac.Item) -> tuple[Any, ...]:
    """Same platform, same relative orbit or datatake, same solar day."""
    properties = item.properties
    track = properties.get("sat:relative_orbit") or properties.get("landsat:wrs_path") or _datatake(item)
    solar = _instant(item) + _longitude(item) / 15 * 3_600_000
    return properties.get("platform"), str(track), int(solar // 86_400_000)


def _longitude(item: pystac.Item) -> float:
    """Of the item's middle, in degrees; 0 where it has no box."""
    if not item.bbox:
        return 0.0
    west, east = item.bbox[0], item.bbox[len(item.bbox) // 2]  # a box may have heights
    return (west + east + (360 if east < west else 0)) / 2


def _numbers(item: pystac.Item, source: Source) -> tuple[tuple[bool, ...], tuple[float, ...], tuple[float, ...]]:
    """Per band: delivered or not, scale and offset of this item's stored numbers."""
    delivered, scales, offsets = [], [], []
    for band in source.bands:
        asset = next((item.assets[key] for key in band.assets if key in item.assets), None)
        delivered.append(asset is not None)
        announced = ((asset.extra_fields.get("raster:bands") if asset else None) or [{}])[0]
        if source.name == "sentinel-2":
            scales.append(band.scale)
            offsets.append(boa_offset(item))
        else:
            scales.append(float(announced.get("scale", band.scale)))
            offsets.append(float(announced.get("offset", band.offset)))
    return tuple(delivered), tuple(scales), tuple(offsets)


def boa_offset(item: pystac.Item) -> float:
    """Reflectance to add to a Sentinel-2 L2A item's numbers: -0.1 or 0, decided from the item, never from its date.

    Products of baseline 04.00 and later carry +1000. The collection `sentinel-2-c1-l2a` and Planetary Computer keep
    it; earth-search's older `sentinel-2-l2a` has it removed where it says so, whatever its raster:bands announce.
    """
    if (_baseline(item) or 0.0) < _OFFSET_SINCE:
        return 0.0
    removed = item.properties.get("earthsearch:boa_offset_applied", False)
    return 0.0 if removed and item.collection_id != "sentinel-2-c1-l2a" else -0.1


def _baseline(item: pystac.Item) -> float | None:
    """The processing baseline of a Sentinel-2 item, from its properties or the names in them."""
    properties = item.properties
    text = properties.get("s2:processing_baseline") or properties.get("processing:version")
    if text is None:
        names = " ".join(str(properties.get(key, "")) for key in ("s2:product_uri", "s2:datatake_id"))
        match = re.search(r"_N(\d{2})\.?(\d{2})", names)
        text = ".".join(match.groups()) if match else None
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None


def _instant(item: pystac.Item) -> int:
    from aefcli.stac import instant

    return instant(item)
