"""Items into frames: which items are taken, which are duplicates, which are one pass, and how their numbers are read.

Source: `sources.md`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from aefcli.sources import Source

if TYPE_CHECKING:
    import pystac

    from aefcli.extent import Period

_OFFSET_SINCE = 4.0  # Sentinel-2 baseline from which numbers of L1C and L2A carry +1000
_PASS = 30 * 60_000  # ms: an orbit takes 100 minutes, and nothing is seen twice on one side of it
_YEAR = 365.25 * 86_400_000
_PART = 0.02  # share of an item's outline that a newer processing of the same data may lack


DECIDED = "aef:offset"  # property of a planned item: the offset that its pixels told


@dataclass(frozen=True)
class Frame:
    """One pass of one platform on one solar day, or one mapped year: the items that are mosaicked, first valid pixel
    wins.
    """

    time: int  # ms since 1970 UTC, of the earliest item; the middle of a mapped year
    items: tuple[pystac.Item, ...]
    delivered: tuple[bool, ...]  # per band of the source
    scale: tuple[float, ...]
    offset: tuple[float, ...]
    orbit: str


def keep(
    items: Iterable[pystac.Item], source: Source, period: Period, max_cloud: float | None = None
) -> tuple[list[pystac.Item], dict[str, int]]:
    """The items that can serve the source, and how many could not, by reason.

    `source` is the row as the collection has it (`Source.of`). Of a static source the years nearest to those of the
    period are kept. `max_cloud` is in percent; an item that does not state its cloud cover stays.
    """
    kept, dropped = [], Counter[str]()
    for item in items:
        if reason := _unfit(item, source, max_cloud):
            dropped[reason] += 1
        else:
            kept.append(item)
    if source.static:
        near = _nearest(kept, period)
        dropped["of other years"] += len(kept) - len(near)
        kept = near
    return kept, {reason: count for reason, count in dropped.items() if count}


def _unfit(item: pystac.Item, source: Source, max_cloud: float | None) -> str:
    """Why the item cannot serve the source, or nothing."""
    properties = item.properties
    if source.platforms and _platform(item) not in source.platforms:
        return "of other platforms"
    for key, values in source.takes:
        if properties.get(key, values[0]) not in values:
            return f"whose {key} is not {' or '.join(values)}"
    sun = _number(properties.get("view:sun_elevation"), 90.0)
    if sun < 0 and any(band.transform == "log" for band in source.bands):
        return "taken at night"
    if max_cloud is not None and _number(properties.get("eo:cloud_cover"), 0.0) > max_cloud:
        return f"of more than {max_cloud:g}% cloud"
    if not any(key in item.assets for band in source.bands for key in band.assets):
        return f"without a band of {source.name}"
    if source.quality is not None and not any(key in item.assets for key in source.quality.assets):
        return "without a layer that says what is clear"
    if source.name == "sentinel-2" and _baseline(item) is None and not _announces(item, source):
        return "without a processing baseline, so that their numbers cannot be read"
    return ""


def _nearest(items: Sequence[pystac.Item], period: Period) -> list[pystac.Item]:
    """Of each tile the years nearest to the years of the period; of two as near the later."""
    tiles: dict[tuple[float, ...], list[pystac.Item]] = {}
    for item in items:
        tiles.setdefault(tuple(round(edge, 3) for edge in item.bbox or ()), []).append(item)
    count = max(1, round((period.end - period.start) / _YEAR))
    step = (period.end - period.start) / count
    middles = [period.start + (number + 0.5) * step for number in range(count)]
    wanted: dict[str, pystac.Item] = {}
    for members in tiles.values():
        times = {_moment(item, static=True) for item in members}
        near = {min(times, key=lambda time: (abs(time - middle), -time)) for middle in middles}
        wanted |= {item.id: item for item in members if _moment(item, static=True) in near}
    return list(wanted.values())


def frames_of(items: Sequence[pystac.Item], source: Source) -> list[Frame]:
    """Newest of duplicates, grouped by pass, in order of time. Items that number differently never share a frame."""
    groups: dict[tuple[Any, ...], list[list[pystac.Item]]] = {}
    for item in sorted(_newest(items), key=lambda item: (_instant(item), item.id)):
        passes = groups.setdefault((_pass(item, source), _numbers(item, source)), [[]])
        if passes[-1] and _instant(item) - _instant(passes[-1][-1]) > _PASS:
            passes.append([])
        passes[-1].append(item)
    frames = []
    for (_, (delivered, scale, offset)), passes in groups.items():
        for members in passes:
            orbit = str(members[0].properties.get("sat:orbit_state", ""))
            time = _moment(members[0], static=source.static)
            frames.append(Frame(time, tuple(_best_first(members)), delivered, scale, offset, orbit))
    return sorted(frames, key=lambda frame: (frame.time, frame.items[0].id))


def _newest(items: Sequence[pystac.Item]) -> list[pystac.Item]:
    """Without what a newer processing of the same data has: of the same platform, datatake or instant, and tile."""
    same: dict[tuple[Any, ...], list[pystac.Item]] = {}
    for item in sorted(items, key=_age, reverse=True):
        others = same.setdefault((_platform(item), *_acquisition(item)), [])
        if not any(_replaces(newer, item) for newer in others):
            others.append(item)
    return [item for others in same.values() for item in others]


def _replaces(newer: pystac.Item, older: pystac.Item) -> bool:
    """Whether the newer of two processings of a tile has what the older has.

    Where the reception of a pass changed within a tile, its two parts are two products of one baseline.
    """
    from shapely.geometry import shape

    strips = {_strip(newer), _strip(older)}
    if len(strips) == 2 and "" not in strips and _baseline(newer) == _baseline(older):
        return False
    if newer.geometry is None or older.geometry is None:
        return True
    new, old = shape(newer.geometry).buffer(0), shape(older.geometry).buffer(0)
    return old.difference(new).area <= _PART * old.area


def _best_first(members: list[pystac.Item]) -> list[pystac.Item]:
    """In order of time, then of id; of those of one tile the newest baseline takes the first place."""
    ordered = list(members)
    tiles = [_acquisition(item)[-1] for item in members]
    for tile in set(tiles):
        places = [place for place, other in enumerate(tiles) if other == tile]
        newest = sorted((members[place] for place in places), key=lambda item: -(_baseline(item) or 0.0))
        for place, item in zip(places, newest, strict=True):
            ordered[place] = item
    return ordered


def _age(item: pystac.Item) -> tuple[Any, ...]:
    """Sorts newer processings of the same data last."""
    properties = item.properties
    made = (properties.get(key) for key in ("s2:generation_time", "landsat:product_generated", "created", "updated"))
    return (_baseline(item) or 0.0, next((str(when) for when in made if when), ""), item.id)


def _acquisition(item: pystac.Item) -> tuple[str, str]:
    """What two processings of the same data share: the datatake or the instant, and the tile.

    The whole name stands for the tile where there is none, so that nothing is taken for a duplicate. Sentinel-1 names
    end in a checksum of the product.
    """
    properties, name = item.properties, item.id
    if path := properties.get("landsat:wrs_path"):
        return str(_instant(item) // 86_400_000), f"{path}/{properties.get('landsat:wrs_row')}"
    tile = str(properties.get("grid:code") or properties.get("s2:mgrs_tile") or "").removeprefix("MGRS-")
    match = re.search(r"_T?(\d{1,2}[C-X][A-Z]{2})(?=_|$)", name)
    tile = (tile or (match.group(1) if match else "")).rjust(5, "0") if tile or match else ""
    name = re.sub(r"^(S1._.._...._...._\d{8}T\d{6}_\d{8}T\d{6}_\d{6}_[0-9A-F]{6})_[0-9A-F]{4}(?=_|$)", r"\1", name)
    return _datatake(item) or str(_instant(item)), tile or name


def _names(item: pystac.Item) -> str:
    """The names of its product that a Sentinel-2 item holds."""
    keys = ("s2:product_uri", "sentinel:product_id", "s2:datatake_id", "s2:granule_id")
    return " ".join(str(item.properties.get(key, "")) for key in keys)


def _datatake(item: pystac.Item) -> str:
    """The sensing start in the name of a Sentinel-2 datatake or product, else nothing."""
    match = re.search(r"GS2._(\d{8}T\d{6})_|MSIL[12][AC]_(\d{8}T\d{6})_", _names(item))
    return match.group(1) or match.group(2) if match else ""


def _strip(item: pystac.Item) -> str:
    """The sensing start in the name of a Sentinel-2 data strip, else nothing."""
    match = re.search(r"_S(\d{8}T\d{6})_", str(item.properties.get("s2:datastrip_id", "")))
    return match.group(1) if match else ""


def _pass(item: pystac.Item, source: Source) -> tuple[Any, ...]:
    """Same platform, same relative orbit or datatake, same solar day; or the same mapped year."""
    properties = item.properties
    if source.static:
        return (_moment(item, static=True),)
    track = properties.get("sat:relative_orbit") or properties.get("landsat:wrs_path") or _datatake(item)
    solar = _instant(item) + _longitude(item) / 15 * 3_600_000
    return _platform(item), str(track), properties.get("sat:orbit_state"), int(solar // 86_400_000)


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
        announced = _announced(asset)
        scale, offset = announced.get("scale", band.scale), announced.get("offset", band.offset)
        if source.name == "sentinel-2":
            scale = band.scale
            if _baseline(item) is not None:
                offset = boa_offset(item) and (offset if offset and not _unreliable(item) else boa_offset(item))
        delivered.append(asset is not None)
        scales.append(scale)
        offsets.append(offset)
    return tuple(delivered), tuple(scales), tuple(offsets)


def _announced(asset: pystac.Asset | None) -> dict[str, float]:
    """Scale and offset that an asset states for its only band: in `raster:bands`, or as STAC 1.1 has them.

    What is no finite number is as if it were not there.
    """
    fields = asset.extra_fields if asset else {}
    stated: dict[str, float] = {}
    for key in ("scale", "offset"):
        places: list[Any] = [fields.get(f"raster:{key}")]
        for bands in (fields.get("raster:bands"), fields.get("bands")):
            first = bands[0] if isinstance(bands, list) and bands else bands
            places += [first.get(key), first.get(f"raster:{key}")] if isinstance(first, dict) else []
        numbers = [_number(place, np.nan) for place in places]
        if finite := [number for number in numbers if np.isfinite(number)]:
            stated[key] = finite[0]
    return stated if stated.get("scale") != 0 else {}


def _number(value: Any, otherwise: float) -> float:
    """The value where it is a number, or a list of one."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else otherwise


def _announces(item: pystac.Item, source: Source) -> bool:
    """Whether the item states an offset for any of the source's bands."""
    return any("offset" in _announced(item.assets.get(key)) for band in source.bands for key in band.assets)


def boa_offset(item: pystac.Item) -> float:
    """Reflectance to add to a Sentinel-2 item's numbers: -0.1 or 0, decided from the item, never from its date.

    Products of baseline 04.00 and later carry +1000, L1C and L2A alike. The collections `sentinel-2-c1-l2a` and
    `sentinel-2-l1c` and Planetary Computer keep it; earth-search's older collections of L2A have it removed where they
    say so, whatever their raster:bands announce. See `is_doubtful`.
    """
    if (decided := item.properties.get(DECIDED)) is not None:
        return float(decided)
    if (_baseline(item) or 0.0) < _OFFSET_SINCE:
        return 0.0
    return 0.0 if _unreliable(item) and _flag(item) else -0.1


def is_doubtful(item: pystac.Item) -> bool:
    """Whether only the item's pixels tell its offset.

    Where earth-search's older collection says that the offset is still in the numbers, it often is not
    (Element84/earth-search, issues 66 and 71): `offset_of` decides. Where it says that it was removed, it was.
    """
    return (_baseline(item) or 0.0) >= _OFFSET_SINCE and _unreliable(item) and _flag(item) is False


def offset_of(numbers: np.ndarray) -> float:
    """Reflectance to add to stored numbers of a visible band, any shape, 0 where not delivered: -0.1 or 0.

    With +1000 a number below 900 would be a reflectance below -0.01. So where one in a hundred is, it was removed.
    """
    delivered = numbers[numbers > 0]
    return -0.1 if delivered.size == 0 or np.percentile(delivered, 1) >= 900 else 0.0


def _unreliable(item: pystac.Item) -> bool:
    """Whether the item is of a collection of which raster:bands lie: the older ones of earth-search."""
    return _flag(item) is not None and item.collection_id not in ("sentinel-2-c1-l2a", "sentinel-2-l1c")


def _flag(item: pystac.Item) -> bool | None:
    """Whether earth-search says that it removed the offset, if it says anything."""
    for key in ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied"):
        if key in item.properties:
            return bool(item.properties[key])
    return None


def _baseline(item: pystac.Item) -> float | None:
    """The processing baseline of a Sentinel-2 item, from its properties or the names in them."""
    properties = item.properties
    keys = ("s2:processing_baseline", "sentinel:processing_baseline", "processing:version")
    for text in (str(properties.get(key, "")) for key in keys):
        if re.fullmatch(r"\d\d?\.\d\d", text):
            return float(text)
    match = re.search(r"_N(\d{2})\.?(\d{2})(?:_|\b)", _names(item))
    return float(".".join(match.groups())) if match else None


def _platform(item: pystac.Item) -> str:
    """landsat-8 for LANDSAT_8, as catalogs spell it differently."""
    return str(item.properties.get("platform", "")).lower().replace("_", "-")


def _instant(item: pystac.Item) -> int:
    from aefcli.stac import instant

    return instant(item)


def _moment(item: pystac.Item, *, static: bool) -> int:
    """When the item is of: its instant, or the middle of the range that a static source's item states."""
    from aefcli.extent import to_ms

    about = item.common_metadata
    if static and about.start_datetime and about.end_datetime:
        return (to_ms(about.start_datetime) + to_ms(about.end_datetime)) // 2
    return _instant(item)
