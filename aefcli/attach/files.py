"""What a file is, the grids that it holds, and when its values hold.

A file is known by its first bytes, not by its name. NetCDF is read by h5netcdf (netCDF4 and rasterio in one process
have aborted), its old form by scipy; GRIB by cfgrib, GeoTIFF by rioxarray, Zarr by xarray.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aefcli.errors import BadInput
from aefcli.extent import Period

if TYPE_CHECKING:
    import numpy as np
    import rasterio
    import xarray as xr

_MAGIC = {
    b"\x89HDF": "hdf5",
    b"CDF\x01": "netcdf3",
    b"CDF\x02": "netcdf3",
    b"CDF\x05": "netcdf3",
    b"GRIB": "grib",
    b"II*\0": "geotiff",
    b"MM\0*": "geotiff",
    b"II+\0": "geotiff",
    b"MM\0+": "geotiff",
    b"EHFA": "imagine",  # NLCD's own
    b"PAR1": "parquet",
    b"PK\x03\x04": "zip",
}
DRIVERS = {"geotiff": "GTiff", "imagine": "HFA"}  # a VRT that is named .tif opens nothing
GRIDS = ("hdf5", "netcdf3", "grib", "geotiff", "imagine", "zarr")
_WORDS = {
    "hdf5": "HDF5 or NetCDF",
    "netcdf3": "NetCDF",
    "grib": "GRIB",
    "geotiff": "GeoTIFF",
    "imagine": "Imagine raster",
    "zarr": "Zarr",
    "parquet": "Parquet",
    "csv": "CSV",
}
# Tags that say when a raster's values hold. TIFF's own DateTime is not among them: it is when the file was made.
_TAGS = ("date", "datetime", "acquisition_date", "time", "time_coverage_start", "year")
_DATE = re.compile(r"(?<!\d)((?:19|20)\d\d)(?:[-_]?(0[1-9]|1[0-2])(?:[-_]?(0[1-9]|[12]\d|3[01]))?)?(?!\d)")


@dataclass(frozen=True)
class Told:
    """What the user says of files that do not say it: when they hold (one for all, or one each), how radar looked."""

    dates: tuple[Period, ...] = ()
    heading: str | None = None  # pass: ascending or descending
    look: str | None = None  # right or left

    def as_dict(self) -> dict[str, Any]:
        told = {"date": [str(date) for date in self.dates], "pass": self.heading, "look": self.look}
        return {name: value for name, value in told.items() if value}

    def date(self, files: Sequence[Path], file: Path) -> Period | None:
        if len(self.dates) not in (0, 1, len(files)):
            raise BadInput(f"{len(self.dates)} --date for {len(files)} files", "give one for all, or one for each")
        if not self.dates:
            return None
        return self.dates[0] if len(self.dates) == 1 else self.dates[list(files).index(file)]


@dataclass(frozen=True)
class Grids:
    """A file's variables on one grid; the period of a file that names no times."""

    dataset: xr.Dataset
    period: Period | None


def kind_of(file: Path, allowed: Sequence[str]) -> str:
    """hdf5, netcdf3, grib, geotiff, imagine, zarr, parquet or csv; what is not allowed is refused."""
    if file.is_dir():
        kind = "zarr" if any((file / name).exists() for name in ("zarr.json", ".zgroup", ".zmetadata")) else "folder"
    else:
        with file.open("rb") as handle:
            kind = _MAGIC.get(handle.read(4), "csv" if file.suffix.lower() == ".csv" else "unknown")
    if kind == "zip":
        raise BadInput(f"{file} is a zip archive", "unzip it, and name the files")
    if kind not in allowed:
        what = _WORDS.get(kind, "a folder" if kind == "folder" else "of an unknown kind")
        raise BadInput(f"{file} is {what}", f"give {', '.join(dict.fromkeys(_WORDS[name] for name in allowed))}")
    return kind


def open_grids(file: Path, told: Period | None) -> list[Grids]:
    """The rasters of a file as lazy datasets with decoded times; NaN where nothing was delivered."""
    import xarray as xr

    kind = kind_of(file, GRIDS)
    try:
        if kind in DRIVERS:
            return [Grids(*_geotiff(file, kind, told))]
        if kind == "grib":
            return [Grids(dataset, told) for dataset in _grib(file)]
        if kind == "zarr":
            return [Grids(xr.open_zarr(file, chunks=None, consolidated=False, decode_coords="all"), told)]
        engine: Any = "scipy" if kind == "netcdf3" else "h5netcdf"
        return [Grids(xr.open_dataset(file, engine=engine, decode_coords="all", decode_timedelta=False), told)]
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"cannot read {file}: {error}", "it may be cut off, or not what it seems") from error


def _grib(file: Path) -> list[xr.Dataset]:
    """A GRIB file as datasets of the same steps."""
    try:
        import cfgrib
        import eccodes
    except ImportError as error:
        raise BadInput(f"reading {file} needs cfgrib: {error}", "pip install 'aefcli[files]'") from error
    try:
        # No index file beside the user's; a message that cannot be read is no message to pass over.
        return list(cfgrib.open_datasets(str(file), backend_kwargs={"indexpath": "", "errors": "raise"}))
    except (cfgrib.DatasetBuildError, eccodes.CodesInternalError, EOFError) as error:
        raise BadInput(f"cannot read {file} as GRIB: {error}", "it may be cut off") from error


def _geotiff(file: Path, kind: str, told: Period | None) -> tuple[xr.Dataset, Period | None]:
    """A raster's bands by their descriptions, as variables, with its CRS."""
    import rasterio
    import rioxarray
    import xarray as xr

    with rasterio.open(file, driver=DRIVERS[kind]) as raster:
        check_georeference(file, raster)
        names = [name or f"band_{index}" for index, name in zip(raster.indexes, raster.descriptions, strict=True)]
        units, period = raster.units, date_of(file, raster, told)
    array: Any = rioxarray.open_rasterio(file, masked=True, driver=DRIVERS[kind])
    bands = {
        name: array.isel(band=index, drop=True).assign_attrs(units=unit)
        for index, (name, unit) in enumerate(zip(names, units, strict=True))
    }
    return xr.Dataset(bands), period


def check_georeference(file: Path, raster: rasterio.DatasetReader) -> None:
    if raster.crs is None:
        raise BadInput(f"{file} has no CRS", "rio edit-info --crs ... gives it one")
    if raster.transform.is_identity or raster.transform.b or raster.transform.d:
        raise BadInput(f"{file} is rotated or has no place", "warp it to rows and columns along its axes")


def date_of(file: Path, raster: rasterio.DatasetReader, told: Period | None) -> Period | None:
    """When a raster's values hold: a tag says it, or what the user told, or its name."""
    tags: Mapping[str, str] = {name.lower(): value for name, value in raster.tags().items()}
    for name in _TAGS:
        if (match := _DATE.match(tags.get(name, "").strip())) and not told:
            return _period(match)
    return told or _in_name(file)


def _in_name(file: Path) -> Period | None:
    """The first date in a file's name: 2019-04-18, 201904 or 2019. (Later ones say when the file was made.)"""
    found = _DATE.search(file.stem)
    return _period(found) if found else None


def _period(match: re.Match[str]) -> Period:
    return Period.parse("-".join(part for part in match.groups() if part))


def middle(period: Period) -> int:
    return (period.start + period.end) // 2


def middle_of_month(month: np.datetime64) -> int:
    """The instant in the middle of the calendar month that holds this one, ms."""
    first = month.astype("datetime64[M]")
    start, end = (edge.astype("datetime64[ms]").astype("int64") for edge in (first, first + 1))
    return int(start + end) // 2
