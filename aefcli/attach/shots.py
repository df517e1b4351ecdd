"""GEDI L2A: shots as monthly rasters, the mean of a cell's good shots.

Shots come as the provider's HDF5 or as a table (Parquet, CSV) with columns named like its datasets; rasters that
somebody made of them already as GeoTIFF, NetCDF or Zarr with the bands rh0 ... rh100. Degraded shots and those of bad
quality are dropped [paper S1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.enums import Resampling

from aefcli.attach.files import DRIVERS, GRIDS, Told, kind_of, middle, middle_of_month, open_grids
from aefcli.attach.place import Found, Place, left_out, nothing, over, plain, spread
from aefcli.attach.rasters import Raster, mosaic, open_rasters
from aefcli.errors import BadInput
from aefcli.extent import Tile
from aefcli.field import locate

_EPOCH = np.datetime64("2018-01-01", "ms").astype("int64")  # of delta_time
_HEIGHTS = [f"rh{percent}" for percent in range(101)]
_LAT, _LON = ("lat_lowestmode", "lat", "latitude"), ("lon_lowestmode", "lon", "longitude")
_WHEN = ("delta_time", "time", "datetime", "date")
_FLAGS = ("quality_flag", "degrade_flag")


@dataclass(frozen=True)
class Shots:
    """Good shots on the cells, in the cube's period."""

    month: np.ndarray  # datetime64[M] (n)
    row: np.ndarray  # int64 (n)
    column: np.ndarray
    heights: np.ndarray  # float32 (n, 101), metres


def gedi(place: Place, files: Sequence[Path], told: Told) -> Found:
    """Shots or rasters of them, not both: `RH0` ... `RH100` by calendar month."""
    kinds = {file: kind_of(file, (*GRIDS, "parquet", "csv")) for file in files}
    tables = [file for file in files if kinds[file] in ("parquet", "csv") or _is_granule(file, kinds[file])]
    if tables and len(tables) < len(files):
        other = next(file for file in files if file not in tables)
        raise BadInput(f"{tables[0]} holds shots, {other} a raster", "attach the one or the other")
    if tables and told.dates:
        raise BadInput(f"{tables[0]} states the time of each shot itself", "leave --date out")
    return _from_shots(place, files, kinds) if tables else _from_rasters(place, files, kinds, told)


def _is_granule(file: Path, kind: str) -> bool:
    import h5py

    if kind != "hdf5":
        return False
    try:
        with h5py.File(file) as granule:
            return any(name.startswith("BEAM") for name in granule)
    except OSError as error:
        raise BadInput(f"cannot read {file}: {error}", "it may be cut off") from error


# --- shots ----------------------------------------------------------------------------------------------------------


def _from_shots(place: Place, files: Sequence[Path], kinds: dict[Path, str]) -> Found:
    parts, outside, bad = [], 0, 0
    for file in files:
        tables = _granule(file) if kinds[file] == "hdf5" else [_table(file, kinds[file])]
        near = [_near(table, place, file) for table in tables]
        good = [_good(table, index) for table, index in zip(tables, near, strict=True)]
        bad += sum(int((~keep).sum()) for keep in good)
        outside += not sum(map(len, near))
        parts += [
            _shots(table, index[keep], place)
            for table, index, keep in zip(tables, near, good, strict=True)
            if keep.any()
        ]
    notes = left_out(outside, len(files)) + ([f"{bad} shots left out: degraded or of bad quality"] if bad else [])
    if not parts:
        raise nothing(place, files, "; ".join(notes))
    shots = Shots(*(np.concatenate([getattr(part, name) for part in parts]) for name in Shots.__dataclass_fields__))
    months, cells, heights = _means(shots, place.cells.shape[1])
    notes.append(f"{len(shots.row)} shots in {len(cells)} cells of {len(months)} months")
    every = np.unique(months)

    def band(percent: int) -> Any:
        def read(frame: int, tile: Tile) -> np.ndarray:
            row, column = np.divmod(cells, place.cells.shape[1])
            here = (months == every[frame]) & (row >= tile.top) & (row < tile.bottom)
            here &= (column >= tile.left) & (column < tile.right)
            out = np.full(tile.shape, np.nan, dtype="float32")
            out[row[here] - tile.top, column[here] - tile.left] = heights[here, percent]
            return out

        return place.lazily(len(every), read)

    times = [middle_of_month(month) for month in every]
    return Found(place.dataset(times, {f"RH{percent}": band(percent) for percent in range(101)}), notes)


def _means(shots: Shots, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per month and cell that has a shot: the month, the cell (row by row), the mean heights (k, 101)."""
    key = np.stack([shots.month.astype("int64"), shots.row * width + shots.column])
    each, where, counts = np.unique(key, axis=1, return_inverse=True, return_counts=True)
    sums = np.zeros((each.shape[1], 101))
    np.add.at(sums, where.ravel(), shots.heights.astype("float64"))
    return each[0].astype("datetime64[M]"), each[1], (sums / counts[:, None]).astype("float32")


def _granule(file: Path) -> list[dict[str, Any]]:
    """The beams of an L2A granule: columns by name, heights read only when asked for."""
    import h5py

    wanted, beams = (_LAT[0], _LON[0], _WHEN[0], *_FLAGS), []
    with h5py.File(file) as granule:
        for name in sorted(name for name in granule if name.startswith("BEAM")):
            beam = granule[name]
            if lacking := [column for column in (*wanted, "rh") if column not in beam]:
                raise BadInput(f"{file}: {name} has no {lacking[0]}", f"L2A has {', '.join((*wanted, 'rh'))}")
            if beam["rh"].ndim != 2 or beam["rh"].shape[1] != len(_HEIGHTS):
                raise BadInput(f"{file}: rh of {name} has the shape {beam['rh'].shape}", "L2A has 101 per shot")
            beams.append({column: beam[column][:] for column in wanted} | {"rh": _Heights(file, name)})
    return beams


@dataclass(frozen=True)
class _Heights:
    """The heights of a beam in its file: 101 a shot, of a whole orbit more than need be in memory."""

    file: Path
    beam: str

    def __getitem__(self, shots: slice) -> np.ndarray:
        import h5py

        with h5py.File(self.file) as granule:
            return np.asarray(granule[self.beam]["rh"][shots])


def _table(file: Path, kind: str) -> dict[str, Any]:
    """A table of shots as columns named like a beam's datasets."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    try:
        table = pyarrow.csv.read_csv(file) if kind == "csv" else pyarrow.parquet.read_table(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise BadInput(f"cannot read {file}: {error}", "it may be cut off") from error
    names = {name.lower(): name for name in table.column_names}

    def column(wanted: Sequence[str]) -> tuple[str, Any]:
        for name in wanted:
            if name in names:
                return name, table[names[name]].to_pandas()
        raise BadInput(
            f"{file} has no column {wanted[0]}; it has {', '.join(table.column_names[:12])}",
            "shots have a place, a time, both flags and rh0 ... rh100",
        )

    when, times = column(_WHEN)
    if when == "delta_time" and pd.api.types.is_numeric_dtype(times):
        seconds = times.to_numpy(dtype="float64")
    else:
        try:
            instants = pd.to_datetime(times, utc=True).dt.tz_localize(None).to_numpy().astype("datetime64[ms]")
        except (ValueError, TypeError) as error:
            raise BadInput(f"{file}: {when} cannot be read as times: {error}", "use ISO 8601, or delta_time") from error
        seconds = (instants.astype("int64") - _EPOCH) / 1000
    places = {_LAT[0]: column(_LAT)[1], _LON[0]: column(_LON)[1]}
    flags = {name: column([name])[1] for name in _FLAGS}
    heights = column(["rh"])[1] if "rh" in names and "rh0" not in names else None
    rh = (
        np.stack(heights.to_numpy())
        if heights is not None
        else np.column_stack([column([name])[1].to_numpy(dtype="float64") for name in _HEIGHTS])
    )
    if rh.shape[1] != len(_HEIGHTS):
        raise BadInput(f"{file}: rh holds {rh.shape[1]} heights", "L2A has 101 per shot")
    columns = {name: values.to_numpy(dtype="float64") for name, values in {**places, **flags}.items()}
    return {**columns, _WHEN[0]: seconds, "rh": rh}


def _near(table: dict[str, Any], place: Place, file: Path) -> np.ndarray:
    """Which shots lie on the cells and in the period."""
    lon, lat = (np.asarray(table[name], dtype="float64") for name in (_LON[0], _LAT[0]))
    if (off := (np.abs(lat) > 90) | (np.abs(lon) > 360)).any():
        raise BadInput(f"{file}: {off.sum()} shots lie off the globe", "latitudes and longitudes are degrees")
    there = np.isfinite(lon) & np.isfinite(lat)
    inside = np.zeros(len(lon), dtype=bool)
    inside[there] = locate(place.cells, lon[there], lat[there])[2]
    times = _times(table)
    inside &= (times >= place.period.start) & (times < place.period.end)
    return np.flatnonzero(inside)


def _times(table: dict[str, Any]) -> np.ndarray:
    seconds = np.asarray(table[_WHEN[0]], dtype="float64")
    return np.where(np.isfinite(seconds), seconds * 1000 + _EPOCH, -1).astype("int64")


def _good(table: dict[str, Any], index: np.ndarray) -> np.ndarray:
    return (np.asarray(table["quality_flag"])[index] == 1) & (np.asarray(table["degrade_flag"])[index] == 0)


def _shots(table: dict[str, Any], index: np.ndarray, place: Place) -> Shots:
    lon, lat = (np.asarray(table[name], dtype="float64")[index] for name in (_LON[0], _LAT[0]))
    row, column, _ = locate(place.cells, lon, lat)
    first, last = index[0], index[-1] + 1  # one read of a granule's heights: they are in the order of flight
    heights = np.asarray(table["rh"][first:last], dtype="float32")[index - first]
    whole = np.isfinite(heights).all(axis=1)
    months = _times(table)[index].astype("datetime64[ms]").astype("datetime64[M]")
    return Shots(months[whole], row[whole], column[whole], heights[whole])


# --- rasters of shots -----------------------------------------------------------------------------------------------


def _from_rasters(place: Place, files: Sequence[Path], kinds: dict[Path, str], told: Told) -> Found:
    """Rasters with bands rh0 ... rh100, nearest: a mean of shots tells of its own cell alone."""
    geotiffs = [file for file in files if kinds[file] in DRIVERS]
    if geotiffs and len(geotiffs) < len(files):
        raise BadInput(f"{files[0]} and {files[-1]} are of different kinds", "attach GeoTIFFs, or NetCDFs, at a time")
    return _from_geotiffs(place, files, told) if geotiffs else _from_grids(place, files, told)


def _from_geotiffs(place: Place, files: Sequence[Path], told: Told) -> Found:
    months: dict[int, list[dict[str, Raster]]] = {}
    outside = 0
    for file in files:
        rasters = open_rasters(file, told.date(files, file))
        bands = {raster.name.lower(): raster for raster in rasters}
        _check_heights(bands, file)
        period = rasters[0].period
        if period is None:
            raise BadInput(f"{file} does not say which month it shows", "--date 2019-04 says it")
        if rasters[0].meets(place.cells) and place.has(middle(period)):
            months.setdefault(middle(period), []).append(bands)
        else:
            outside += 1
    if not months:
        raise nothing(place, files)
    times = sorted(months)

    def band(name: str) -> Any:
        def read(frame: int, tile: Tile) -> np.ndarray:
            cells, tables = place.cells[tile.slices], months[times[frame]]

            def flag(which: str, fine: int) -> np.ndarray:
                there = [bands[which] for bands in tables if which in bands]
                return mosaic(there, cells, Resampling.nearest) == fine if there else np.ones(tile.shape, bool)

            values = mosaic([bands[name] for bands in tables], cells, Resampling.nearest)
            return np.where(flag("quality_flag", 1) & flag("degrade_flag", 0), values, np.float32(np.nan))

        return place.lazily(len(times), read)

    variables = {name.upper(): band(name) for name in _HEIGHTS}
    return Found(place.dataset(times, variables), left_out(outside, len(files)))


def _from_grids(place: Place, files: Sequence[Path], told: Told) -> Found:
    months: dict[int, dict[str, np.ndarray]] = {}
    outside = 0
    for file in files:
        found = False
        for grids in open_grids(file, told.date(files, file)):
            names = {str(name).lower(): name for name in grids.dataset.data_vars}
            _check_heights(names, file)
            dataset = grids.dataset
            if "time" not in dataset.dims:
                if grids.period is None and "time" not in dataset.coords:
                    raise BadInput(f"{file} does not say which month it shows", "--date 2019-04 says it")
                if grids.period is not None:
                    start = np.array([grids.period.start]).astype("datetime64[ms]")
                    dataset = dataset.drop_vars("time", errors="ignore").expand_dims(time=start)
                else:
                    dataset = dataset.expand_dims("time")
            near = over(dataset, place, file)
            stamps = [middle_of_month(time) for time in dataset["time"].to_numpy()]
            kept = [index for index, time in enumerate(stamps) if place.has(time)]
            if near is None or not kept:
                continue
            found = True
            near = near.isel(time=kept).transpose("time", "lat", "lon", ...)
            fine = np.ones((len(kept), near.sizes["lat"], near.sizes["lon"]), dtype=bool)
            for flag, value in (("quality_flag", 1), ("degrade_flag", 0)):
                if flag in names:
                    fine &= near[names[flag]].to_numpy() == value
            for band in _HEIGHTS:
                values = spread(plain(near[names[band]], file).where(fine), place, near.attrs["crs"], "nearest")
                for index, frame in zip(kept, values, strict=True):
                    before = months.setdefault(stamps[index], {})
                    before[band] = np.where(np.isnan(before[band]), frame, before[band]) if band in before else frame
        outside += not found
    if not months:
        raise nothing(place, files)
    times = sorted(months)
    variables = {name.upper(): np.stack([months[time][name] for time in times]) for name in _HEIGHTS}
    return Found(place.dataset(times, variables), left_out(outside, len(files)))


def _check_heights(names: Any, file: Path) -> None:
    if lacking := [name for name in _HEIGHTS if name not in names]:
        has = ", ".join(sorted(map(str, names))[:8])
        raise BadInput(f"{file} has no band {lacking[0]}; it has {has}", "a raster of GEDI has rh0 ... rh100")
