"""GeoTIFFs as frames that are read tile by tile: PALSAR-2 scenes, GLO-30's elevation, class maps.

Files that make one frame are mosaicked, the first valid pixel wins. Those of one lattice (tiles of one product) are put
together before they are resampled, so that no seam shows.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from rasterio import Affine
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.warp import reproject, transform_bounds

from aefcli.attach.files import DRIVERS, Told, check_georeference, date_of, kind_of, middle
from aefcli.attach.place import Found, Place, left_out, nothing
from aefcli.errors import BadInput
from aefcli.extent import Period, Tile

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

_WARPS = threading.Lock()  # rasterio changes the process's warning filters while it warps
_STATED = 1_619_049_600_000  # 2021-04-22, the date that catalogs give every GLO-30 tile; ms
_SCENE = re.compile(r"ALOS2(?P<orbit>\d{5})\d{4}-(?P<day>\d{6})(?:_|-)WB[DS](?P<look>[RL])2\.2\w{2}(?P<pass>[AD])")
_POLARISATION = re.compile(r"(?:^|[_-])(HH|HV|LIN|MSK)(?=$|[_-])")
_SIGNS = {"A": "ascending", "D": "descending", "R": "right", "L": "left"}
_NO_GROUND = (0, 100, 150)  # of the mask: no data, layover, shadow
_LARGEST = 1 << 28  # pixels of a file that one tile may ask for


@dataclass(frozen=True)
class Raster:
    """One band of a file, by its place on a lattice of pixels."""

    file: Path
    index: int  # of the band, from 1
    driver: str
    crs: CRS
    transform: Affine
    shape: tuple[int, int]
    dtype: str
    nodata: float | None
    name: str  # of the band, if the file says it
    period: Period | None

    @cached_property
    def lattice(self) -> tuple[Any, ...]:
        """Equal for files whose pixels are of one grid."""
        a = self.transform
        phase = ((a.c / a.a) % 1, (a.f / a.e) % 1)
        return (self.crs.to_wkt(), round(a.a, 12), round(a.e, 12), *(round(part, 3) % 1 for part in phase))

    def bounds(self) -> tuple[float, float, float, float]:
        """Left, bottom, right, top."""
        a, (height, width) = self.transform, self.shape
        across, down = sorted((a.c, a.c + a.a * width)), sorted((a.f, a.f + a.e * height))
        return across[0], down[0], across[1], down[1]

    def meets(self, cells: GeoBox) -> bool:
        """Whether any of its ground may lie on the cells."""
        left, bottom, right, top = self.bounds()
        around = _around(cells, self.crs)
        shift = _shift(self, around)
        return left + shift < around[2] and right + shift > around[0] and bottom < around[3] and top > around[1]


def open_rasters(file: Path, told: Period | None) -> list[Raster]:
    """The bands of a GeoTIFF or Imagine file."""
    driver = DRIVERS[kind_of(file, tuple(DRIVERS))]
    try:
        with rasterio.open(file, driver=driver) as raster:
            check_georeference(file, raster)
            period = date_of(file, raster, told)
            parts = zip(raster.indexes, raster.dtypes, raster.nodatavals, raster.descriptions, strict=True)
            return [
                Raster(
                    file, index, driver, raster.crs, raster.transform, raster.shape, dtype, nodata, name or "", period
                )
                for index, dtype, nodata, name in parts
            ]
    except RasterioError as error:
        raise BadInput(f"cannot read {file}: {error}", "it may be cut off") from error


# --- sources --------------------------------------------------------------------------------------------------------


def elevation(place: Place, files: Sequence[Path], told: Told) -> Found:
    """GLO-30's tiles: elevation, slope and aspect, computed on the cells after projection."""
    from aefcli.cube.derive import slope_and_aspect

    rasters = [_only_band(open_rasters(file, None), file) for file in files]
    near = [raster for raster in rasters if raster.meets(place.cells.pad(1))]
    if not near:
        raise nothing(place, files)
    how, spacing = _resampling(near[0], place.cells), place.cells.resolution.x

    def band(name: str) -> Any:
        def read(frame: int, tile: Tile) -> np.ndarray:
            heights = mosaic(near, place.cells[tile.slices].pad(1), how)
            return np.asarray(slope_and_aspect(heights, spacing)[name], dtype="float32")

        return place.lazily(1, read)

    dataset = place.dataset([_STATED], {band_.name: band(band_.name) for band_ in place.source.bands})
    return Found(dataset, left_out(len(files) - len(near), len(files)))


def class_map(place: Place, files: Sequence[Path], told: Told) -> Found:
    """Maps of classes, nearest; a frame per mapped year."""
    row = place.source
    maps: dict[int, list[Raster]] = {}
    outside = 0
    for file in files:
        raster = _only_band(open_rasters(file, told.date(files, file)), file)
        if raster.period is None:
            raise BadInput(f"{file} does not say which year it maps", "--date 2019 says it")
        if np.dtype(raster.dtype).kind not in "iu":
            raise BadInput(f"{file} holds {raster.dtype}", f"classes of {row.name} are whole numbers")
        if not raster.meets(place.cells):
            outside += 1
            continue
        _check_classes(raster, place)
        maps.setdefault(middle(_year(raster.period)), []).append(raster)
    if not maps:
        raise nothing(place, files)
    times = sorted(maps)

    def read(frame: int, tile: Tile) -> np.ndarray:
        codes = mosaic(maps[times[frame]], place.cells[tile.slices], Resampling.nearest)
        known = np.isfinite(codes) & (codes >= 0) & (codes <= np.iinfo(row.dtype).max)
        return np.where(known, codes, row.nodata).astype(row.dtype)

    return Found(
        place.dataset(times, {row.bands[0].name: place.lazily(len(times), read)}), left_out(outside, len(files))
    )


def _year(period: Period) -> Period:
    """The calendar year of a period: a name such as CDL_2022_12 ends with a state."""
    return Period.parse(f"{period.dates()[0]:%Y}")


def _check_classes(raster: Raster, place: Place) -> None:
    """Refuse a map none of whose codes (on a coarse look at the cube's ground) the table knows."""
    times = max(1, max(place.cells.shape) // 256)
    codes = np.unique(mosaic([raster], place.cells.zoom_out(times), Resampling.nearest))
    found = [int(code) for code in codes if np.isfinite(code) and code != place.source.nodata]
    if found and not set(found) & set(place.source.classes):
        raise BadInput(
            f"{raster.file} holds the codes {found[:8]}, none of them a class of {place.source.name}",
            f"known: {', '.join(map(str, place.source.classes))}",
        )


def palsar(place: Place, files: Sequence[Path], told: Told) -> Found:
    """ScanSAR L2.2: digital numbers of HH and HV, the angle LIN, and the mask MSK as weight; a frame per pass.

    Files are named as JAXA names them (ALOS2437820690-220710_WBDR2.2GUD_HH_SLP.tif); of others the bands' descriptions,
    tags and --date, --pass and --look say the same.
    """
    passes: dict[_Pass, dict[str, list[Raster]]] = {}
    outside = 0
    for file in files:
        rasters = open_rasters(file, told.date(files, file))
        near = [raster for raster in rasters if raster.meets(place.cells)]
        which = _pass_of(file, rasters[0], told)
        if not near or not place.has(which.time):
            outside += 1
            continue
        bands = passes.setdefault(which, {})
        for raster in near:
            bands.setdefault(_polarisation(raster, len(rasters)), []).append(raster)
    if not passes:
        raise nothing(place, files)
    names = [band.name for band in place.source.bands if any(band.name in bands for bands in passes.values())]
    if not names:
        raise BadInput("the files are masks alone", f"give those of {', '.join(b.name for b in place.source.bands)}")
    whole = sorted(which for which, bands in passes.items() if all(name in bands for name in names))
    if not whole:
        raise nothing(place, files, f"no pass has all of {', '.join(names)}")
    notes = left_out(outside, len(files))
    if len(whole) < len(passes):
        notes.append(f"{len(passes) - len(whole)} of {len(passes)} passes lack one of {', '.join(names)}: left out")
    frames = [passes[which] for which in whole]
    variables: dict[str, Any] = {name: _numbers(place, frames, name) for name in names}
    variables["weight"] = _ground(place, frames)
    variables["pass"] = np.array([which.heading for which in whole], dtype=object)
    variables["look"] = np.array([which.look for which in whole], dtype=object)
    return Found(place.dataset([which.time for which in whole], variables), notes)


@dataclass(frozen=True, order=True)
class _Pass:
    """What scenes of one pass share."""

    time: int
    orbit: str
    heading: str
    look: str


def _pass_of(file: Path, raster: Raster, told: Told) -> _Pass:
    """From the name, else from tags and what the user told; a user's word goes before the file's."""
    match = _SCENE.search(file.stem)
    named = match.groupdict() if match else {}
    with rasterio.open(file, driver=raster.driver) as opened:
        tags = {name.lower(): value.strip().lower() for name, value in opened.tags().items()}
    period = raster.period
    if named and not told.dates:
        day = named["day"]
        period = Period.parse(f"20{day[:2]}-{day[2:4]}-{day[4:]}")
    if period is None:
        raise BadInput(f"{file} does not say when it was taken", "--date 2022-07-10 says it")
    sides = {"pass": told.heading, "look": told.look}
    for name in ("pass", "look"):
        said = sides[name] or (_SIGNS[named[name]] if named else tags.get(name, ""))
        if said not in (_SIGNS[sign] for sign in ("AD" if name == "pass" else "RL")):
            raise BadInput(
                f"{file} does not say its {name}{said and f': {said!r}'}",
                f"--{name} {'ascending or descending' if name == 'pass' else 'right or left'} says it",
            )
        sides[name] = said
    return _Pass(middle(period), named.get("orbit", ""), str(sides["pass"]), str(sides["look"]))


def _polarisation(raster: Raster, of: int) -> str:
    """HH, HV, LIN or MSK, by the band's description or the file's name."""
    match = _POLARISATION.search(raster.name.upper()) or (
        _POLARISATION.search(raster.file.stem.upper()) if of == 1 else None
    )
    if not match:
        what = f"band {raster.index} {raster.name!r} of {raster.file}"
        raise BadInput(f"{what} is none of HH, HV, LIN, MSK", "name the file, or describe the band, as one of them")
    if match[1] != "MSK" and raster.dtype != "uint16":
        raise BadInput(f"{raster.file} holds {raster.dtype}", "digital numbers of L2.2 are uint16, not decibels")
    return match[1]


def _numbers(place: Place, frames: Sequence[Mapping[str, Sequence[Raster]]], name: str) -> Any:
    how = _resampling(frames[0][name][0], place.cells)

    def read(frame: int, tile: Tile) -> np.ndarray:
        values = mosaic(frames[frame][name], place.cells[tile.slices], how, nodata=0)
        return np.rint(np.where(np.isfinite(values), values, place.source.nodata)).astype(place.source.dtype)

    return place.lazily(len(frames), read)


def _ground(place: Place, frames: Sequence[Mapping[str, Sequence[Raster]]]) -> Any:
    """1 where the pass's mask, if it has one, knows of ground that the radar saw."""

    def read(frame: int, tile: Tile) -> np.ndarray:
        masks = frames[frame].get("MSK")
        if not masks:
            return np.ones(tile.shape, dtype=place.source.dtype)
        values = mosaic(masks, place.cells[tile.slices], Resampling.nearest)
        return (np.isfinite(values) & ~np.isin(values, _NO_GROUND)).astype(place.source.dtype)

    return place.lazily(len(frames), read).astype("uint8")


def _only_band(rasters: list[Raster], file: Path) -> Raster:
    if len(rasters) != 1:
        raise BadInput(f"{file} has {len(rasters)} bands", "one is wanted")
    return rasters[0]


# --- reading --------------------------------------------------------------------------------------------------------


def mosaic(rasters: Sequence[Raster], cells: GeoBox, how: Resampling, nodata: float | None = None) -> np.ndarray:
    """Rasters on cells, float32 (h w), NaN where none has a value; the first valid pixel wins.

    `nodata` is that of files that state none. Places are reckoned to an eighth of a pixel, as GDAL does.
    """
    out = np.full(cells.shape, np.nan, dtype="float32")
    lattices: dict[Any, list[Raster]] = {}
    for raster in rasters:
        lattices.setdefault(raster.lattice, []).append(raster)
    for some in lattices.values():
        if not np.isnan(out).any():
            break
        joined = _joined(some, cells, nodata)
        if joined is None:
            continue
        values, transform = joined
        fresh = np.full(cells.shape, np.nan, dtype="float32")
        with _WARPS:
            reproject(
                values,
                fresh,
                src_transform=transform,
                src_crs=some[0].crs,
                src_nodata=np.nan,
                dst_transform=cells.transform,
                dst_crs=CRS.from_user_input(str(cells.crs)),
                dst_nodata=np.nan,
                resampling=how,
            )
        out = np.where(np.isnan(out), fresh, out)
    return out


def _joined(rasters: Sequence[Raster], cells: GeoBox, nodata: float | None) -> tuple[np.ndarray, Affine] | None:
    """Files of one lattice as one array around the cells, and where it lies; None where they have nothing there."""
    first = rasters[0]
    around = _around(cells, first.crs)
    a, shift = first.transform, _shift(first, around)
    left, right = sorted((x - a.c - shift) / a.a for x in (around[0], around[2]))
    top, bottom = sorted((y - a.f) / a.e for y in (around[1], around[3]))
    margin = 2 + 2 * _ratio(first, cells)  # pixels that bilinear or average reaches over
    row, column = int(np.floor(top - margin)), int(np.floor(left - margin))
    shape = int(np.ceil(bottom + margin)) - row, int(np.ceil(right + margin)) - column
    if shape[0] * shape[1] > _LARGEST:
        raise BadInput(
            f"{first.file} has {_ratio(first, cells)} pixels across a cell of {cells.resolution.x:g} m",
            "average it to about that spacing first",
        )
    values = np.full(shape, np.nan, dtype="float32")
    for raster in rasters:
        moved = _shift(raster, around) - shift
        down = round((raster.transform.f - a.f) / a.e) - row
        across = round((raster.transform.c + moved - a.c) / a.a) - column
        _put(raster, values, down, across, nodata)
    if np.isnan(values).all():
        return None
    return values, Affine(a.a, 0, a.c + shift + column * a.a, 0, a.e, a.f + row * a.e)


def _put(raster: Raster, values: np.ndarray, down: int, across: int, nodata: float | None) -> None:
    """Read what of a file, whose corner lies at (down, across), falls on `values` into its gaps."""
    rows = max(down, 0), min(down + raster.shape[0], values.shape[0])
    columns = max(across, 0), min(across + raster.shape[1], values.shape[1])
    if rows[0] >= rows[1] or columns[0] >= columns[1]:
        return
    window = ((rows[0] - down, rows[1] - down), (columns[0] - across, columns[1] - across))
    with rasterio.open(raster.file, driver=raster.driver) as file:
        part = file.read(raster.index, window=window).astype("float32")
    empty = raster.nodata if raster.nodata is not None else nodata
    if empty is not None:
        part[part == np.float32(empty)] = np.nan
    place = values[rows[0] : rows[1], columns[0] : columns[1]]
    gaps = np.isnan(place)
    place[gaps] = part[gaps]


def _around(cells: GeoBox, crs: CRS) -> tuple[float, float, float, float]:
    """Left, bottom, right, top of the cells in another CRS; right beyond 180 degrees across the antimeridian."""
    left, bottom, right, top = transform_bounds(
        CRS.from_user_input(str(cells.crs)), crs, *cells.boundingbox.bbox, densify_pts=21
    )
    return left, bottom, right + 360 if crs.is_geographic and right < left else right, top


def _shift(raster: Raster, around: tuple[float, float, float, float]) -> float:
    """Degrees that bring a raster's longitudes to where the cells' are counted; 0 in metres."""
    if not raster.crs.is_geographic:
        return 0.0
    left, _, right, _ = raster.bounds()
    return 360.0 * round(((around[0] + around[2]) - (left + right)) / 2 / 360)


def _ratio(raster: Raster, cells: GeoBox) -> int:
    """Pixels of the raster per cell, at least one."""
    return max(1, round(cells.resolution.x / _native(raster, cells)))


def _native(raster: Raster, cells: GeoBox) -> float:
    """The raster's spacing in the units of the cells' CRS."""
    target = CRS.from_user_input(str(cells.crs))
    if raster.crs == target:
        return abs(raster.transform.a)
    # At the cells, not at the raster's middle, which may lie outside the projection.
    left, bottom, right, top = _around(cells, raster.crs)
    columns, rows = abs((right - left) / raster.transform.a), abs((top - bottom) / raster.transform.e)
    size = cells.boundingbox
    return float(np.sqrt(size.span_x * size.span_y / max(columns * rows, 1e-9)))


def _resampling(raster: Raster, cells: GeoBox) -> Resampling:
    """Average where the raster is at least twice as fine as the cells, else bilinear."""
    return Resampling.average if cells.resolution.x >= 1.9 * _native(raster, cells) else Resampling.bilinear
