"""ERA5-Land as calendar months, and GRACE: coarse grids, smoothed bilinearly between their cells.

ERA5-Land comes as hours, days or months. Of hours and days only whole months are kept. Traps, as ECMWF documents them:
`tp` of hours is what fell since midnight, and a day's total stands at 00 UTC of the next day (where it falls within a
day, as in ERA5, each hour's own is meant); `tp` of months is the mean of a day. Earth Engine's `_sum`, `_min` and
`_max` mean what they say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from aefcli.attach.files import Grids, Told, middle, middle_of_month, open_grids
from aefcli.attach.place import Found, Place, left_out, nothing, over, plain, spread
from aefcli.errors import BadInput
from aefcli.extent import Period

if TYPE_CHECKING:
    import xarray as xr

Cadence = Literal["hours", "days", "months"]


@dataclass(frozen=True)
class Quantity:
    """What is measured: its names, its units as (factor, offset) to the table's, and what no place on Earth exceeds."""

    names: tuple[str, ...]
    units: Mapping[str, tuple[float, float]]
    least: float
    most: float


_KELVIN = dict.fromkeys(("K", "kelvin", "degK"), (1.0, 0.0)) | dict.fromkeys(
    ("degC", "°C", "C", "celsius", "Celsius", "degrees_celsius", "degree_Celsius"), (1.0, 273.15)
)
_PASCAL = {"Pa": (1.0, 0.0), "hPa": (100.0, 0.0), "mbar": (100.0, 0.0), "millibars": (100.0, 0.0), "kPa": (1e3, 0.0)}
_METRES = {
    **dict.fromkeys(("m", "metres", "m of water equivalent", "m day-1", "m/day"), (1.0, 0.0)),
    **dict.fromkeys(("mm", "mm/day", "mm day-1", "kg m-2", "kg m**-2", "kg/m^2"), (1e-3, 0.0)),
    "cm": (1e-2, 0.0),
}
_QUANTITIES = {
    "temperature_2m": Quantity(("t2m", "2t", "temperature_2m", "2m_temperature"), _KELVIN, 170, 345),
    "dewpoint_temperature_2m": Quantity(
        ("d2m", "2d", "dewpoint_temperature_2m", "2m_dewpoint_temperature"), _KELVIN, 120, 320
    ),
    "surface_pressure": Quantity(("sp", "surface_pressure"), _PASCAL, 30_000, 115_000),
    "total_precipitation": Quantity(("tp", "total_precipitation", "total_precipitation_hourly"), _METRES, -0.001, 30),
}
_WATER = Quantity(("lwe_thickness",), {name: (f * 100, 0.0) for name, (f, _) in _METRES.items()}, -5000, 5000)
_FULL = 0.95  # of a month's hours or days make it whole; of precipitation all days
_ROUNDING = 1e-5  # metres: what packing adds or takes from what fell since midnight

Months = dict[np.datetime64, np.ndarray]  # first day of a month -> (lat, lon)


def grace(place: Place, files: Sequence[Path], told: Told) -> Found:
    """Mascons: `lwe_thickness` (time, lat, lon), at the middles of their `time_bounds`."""
    parts, outside = [], 0
    for file in files:
        frames: list[Any] = []
        for grids in open_grids(file, told.date(files, file)):
            names = [name for name in grids.dataset.data_vars if str(name).lower() in _WATER.names]
            if not names:
                raise _unnamed(file, grids, _WATER.names)
            near = over(grids.dataset, place, file)
            if near is None:
                continue
            timed = _with_time(near, grids.period, file)
            times = _instants(timed, grids.period, file)
            kept = [index for index, time in enumerate(times) if place.has(int(time))]
            if not kept:
                continue
            array = plain(timed[names[0]], file).isel(time=kept).load()
            values = spread(_converted(array, _WATER, file), place, near.attrs["crs"])
            frames += zip(times[kept].tolist(), values, strict=True)
        outside += not frames
        parts += frames
    chosen = {time: values for time, values in reversed(parts) if np.isfinite(values).any()}  # the first named wins
    if not chosen:
        raise nothing(place, files)
    ordered = sorted(chosen)
    dataset = place.dataset(ordered, {"lwe_thickness": np.stack([chosen[time] for time in ordered])})
    return Found(dataset, left_out(outside, len(files)))


def _instants(dataset: xr.Dataset, period: Period | None, file: Path) -> np.ndarray:
    """int64 ms: the middles of the bounds, where a file has them, else its times."""
    name = next((name for name in ("time_bounds", "time_bnds") if name in dataset.variables), None)
    if period is not None:
        return np.array([middle(period)])
    if name is None:
        return _datetimes(dataset, file).astype("int64")
    edges = dataset[name].to_numpy()
    if edges.dtype.kind != "M":  # of CSR's files, whose unit is spelt `Units`
        edges = _days_since(edges, dataset["time"], file)
    return edges.astype("datetime64[ms]").astype("int64").mean(axis=1).astype("int64")


def era5_land(place: Place, files: Sequence[Path], told: Told) -> Found:
    """Months of temperature, dew point, pressure and precipitation; what the files cannot give stays absent."""
    series: dict[tuple[str, str], xr.DataArray] = {}
    outside, crs = 0, None
    for file in files:
        found = False
        for grids in open_grids(file, told.date(files, file)):
            names, near = _named(grids, file), over(grids.dataset, place, file)
            if near is None:
                continue
            for name, key in names.items():
                timed = plain(_with_time(near[[name]], grids.period, file)[name], file).load()
                # A forecast's days and steps make a rectangle, of which files deliver a part.
                timed = timed.assign_coords(time=_datetimes(timed, file)).dropna("time", how="all")
                if not timed.sizes["time"]:
                    continue
                array = _converted(timed, _QUANTITIES[key[0]], file)
                array = array.drop_duplicates("time")
                array.attrs["cadence"] = _hint(near[name], grids.period)
                series[key] = _joined(series[key], array) if key in series else array
                found, crs = True, near.attrs["crs"]
        outside += not found
    if not series:
        raise nothing(place, files)
    months: dict[str, Months] = {}
    for (quantity, statistic), array in series.items():
        months |= _monthly(quantity, statistic, array, _cadence(array, files))
    return _gathered(place, files, months, series, crs, outside)


def _gathered(
    place: Place,
    files: Sequence[Path],
    months: dict[str, Months],
    series: Mapping[Any, xr.DataArray],
    crs: Any,
    outside: int,
) -> Found:
    """The months that have all bands, at the cells."""
    every = sorted({month for values in months.values() for month in values})
    inside = [month for month in every if place.has(middle_of_month(month))]
    whole = [month for month in inside if all(month in values for values in months.values())]
    if not whole:
        why = f"whole months are wanted, and they have {', '.join(map(str, every[:6])) or 'parts of months alone'}"
        raise nothing(place, files, why)
    any_array = next(iter(series.values()))
    variables = {}
    for band in (band.name for band in place.source.bands if band.name in months):
        grid = any_array.isel(time=[0] * len(whole)).copy(data=np.stack([months[band][month] for month in whole]))
        variables[band] = spread(grid, place, crs)
    notes = left_out(outside, len(files))
    if absent := [band.name for band in place.source.bands if band.name not in months]:
        notes.append(f"not in the files, so not delivered: {', '.join(absent)}")
    if len(inside) > len(whole):
        notes.append(f"{len(inside) - len(whole)} of {len(inside)} months lack a band that others have: left out")
    if not any(np.isfinite(values).any() for values in variables.values()):
        raise nothing(place, files, "no value there")
    return Found(place.dataset([middle_of_month(month) for month in whole], variables), notes)


def _named(grids: Grids, file: Path) -> dict[str, tuple[str, str]]:
    """The file's variables that are known, as (quantity, statistic)."""
    found = {}
    for variable in map(str, grids.dataset.data_vars):
        stem, _, last = variable.lower().rpartition("_")
        bare, statistic = (stem, last) if last in ("min", "max", "mean", "sum") else (variable.lower(), "")
        for quantity, known in _QUANTITIES.items():
            if bare in known.names:
                found[variable] = (quantity, "" if statistic == "mean" else statistic)
    if not found:
        raise _unnamed(file, grids, [name for known in _QUANTITIES.values() for name in known.names])
    return found


def _unnamed(file: Path, grids: Grids, wanted: Sequence[str]) -> BadInput:
    has = ", ".join(map(str, grids.dataset.data_vars)) or "none"
    return BadInput(f"{file} has no variable that is wanted; it has {has}", f"known: {', '.join(wanted)}")


def _converted(array: xr.DataArray, known: Quantity, file: Path) -> xr.DataArray:
    """The values in the table's units, held against what is possible."""
    unit = str(array.attrs.get("units") or "").strip()
    if unit not in known.units:
        raise BadInput(
            f"{file}: {array.name} is in {unit or 'no unit'}",
            f"its units attribute says one of {', '.join(known.units)}",
        )
    factor, offset = known.units[unit]
    values = array * factor + offset
    low, high = float(values.min()), float(values.max())
    if not (np.isnan(low) or (known.least <= low and high <= known.most)):
        first, last = (low - offset) / factor, (high - offset) / factor
        raise BadInput(
            f"{file}: {array.name} says {unit} and holds {first:g} to {last:g}", "correct its units attribute"
        )
    return values


def _joined(first: xr.DataArray, second: xr.DataArray) -> xr.DataArray:
    """Both in time and place; where both have a value, that of the file named first."""
    both = first.combine_first(second)
    for name in ("lat", "lon"):
        steps = np.diff(both[name])
        if steps.max() > 1.5 * steps.min():
            raise BadInput(
                f"the files lie on different grids: steps of {steps.min():g} to {steps.max():g} in {name}",
                "attach files of one grid",
            )
    cadence = first.attrs.get("cadence")
    both.attrs["cadence"] = cadence if cadence == second.attrs.get("cadence") else None
    return both


# --- times ----------------------------------------------------------------------------------------------------------


def _with_time(dataset: xr.Dataset, period: Period | None, file: Path) -> xr.Dataset:
    """The dataset with one axis `time`; ECMWF's editions of one time (`expver`) merged. `period` is that of all."""
    dataset = _on_valid_time(dataset)
    if "expver" in dataset.dims:
        editions = [dataset.isel(expver=index, drop=True) for index in range(dataset.sizes["expver"])]
        dataset = reduce(lambda first, second: first.combine_first(second), editions)
    if period is not None:
        if dataset.sizes.get("time", 1) > 1:
            raise BadInput(f"{file} states its {dataset.sizes['time']} times itself", "leave --date out")
        start = np.array([period.start]).astype("datetime64[ms]")
        squeezed = (
            dataset.squeeze("time", drop=True) if "time" in dataset.dims else dataset.drop_vars("time", errors="ignore")
        )
        return squeezed.expand_dims(time=start)
    if "time" not in dataset.dims and "time" in dataset.coords:
        dataset = dataset.expand_dims("time")
    if "time" not in dataset.dims:
        raise BadInput(f"{file} states no time", "--date 2023-06 says which month it tells of")
    return dataset


def _on_valid_time(dataset: xr.Dataset) -> xr.Dataset:
    """GRIB's and the Climate Data Store's times: those at which values hold, not those at which a forecast began."""
    if "valid_time" in dataset.dims:
        return dataset.drop_vars("time", errors="ignore").rename(valid_time="time")
    if "valid_time" not in dataset.coords:
        return dataset
    axes = [name for name in ("time", "step") if name in dataset.dims]
    if not axes:
        return dataset.drop_vars(["time", "step"], errors="ignore").rename(valid_time="time")
    flat = dataset.stack(valid=axes)
    instants = flat["valid_time"].to_numpy()
    bare = flat.drop_vars(["valid", "time", "step", "valid_time"], errors="ignore").rename(valid="time")
    return bare.assign_coords(time=instants).sortby("time")


def _datetimes(dataset: xr.Dataset | xr.DataArray, file: Path) -> np.ndarray:
    """datetime64[ms] (t)."""
    times = dataset["time"].to_numpy()
    if times.dtype.kind != "M":
        times = _days_since(times, dataset["time"], file)
    return times.astype("datetime64[ms]")


def _days_since(numbers: np.ndarray, axis: xr.DataArray, file: Path) -> np.ndarray:
    """Times of a file that spells its attribute `Units`."""
    from xarray.coding.times import decode_cf_datetime

    unit = axis.attrs.get("units", axis.attrs.get("Units"))
    if unit is None or numbers.dtype.kind not in "fiu":
        raise BadInput(f"{file}: its times have no unit", "such as days since 2002-01-01")
    try:
        return np.asarray(decode_cf_datetime(numbers, str(unit), "standard")).astype("datetime64[ms]")
    except (ValueError, OverflowError) as error:
        raise BadInput(f"{file}: times in {unit!r} cannot be read", "such as days since 2002-01-01") from error


def _hint(array: xr.DataArray, period: Period | None) -> Cadence | None:
    """What a file of one time tells of, if it says so."""
    if period is not None:
        days = period.days
        return "months" if 27 < days < 32 else "days" if days == 1 else None
    return "months" if str(array.attrs.get("GRIB_stepType", "")).startswith("avg") else None


def _cadence(array: xr.DataArray, files: Sequence[Path]) -> Cadence:
    """By the usual step between times."""
    if array.attrs["cadence"]:
        return array.attrs["cadence"]
    if array.sizes["time"] == 1:
        when = str(array["time"].to_numpy()[0].astype("datetime64[m]"))
        raise BadInput(
            f"{files[0]} holds one time, {when}, and does not say if that is an hour, a day or a month",
            f"--date {when[:7]} says that it tells of the month",
        )
    step = _step(array)
    if step <= 0.5:
        return "hours"
    if 0.9 < step < 1.1:
        return "days"
    if 27 < step < 32:
        return "months"
    raise BadInput(f"{files[0]} has a value every {step:g} days", "hours, days or months are read")


def _step(array: xr.DataArray) -> float:
    """Days between times, as a rule."""
    return float(np.median(np.diff(array["time"].to_numpy()) / np.timedelta64(1, "D")))


# --- aggregates -----------------------------------------------------------------------------------------------------


def _monthly(quantity: str, statistic: str, array: xr.DataArray, cadence: Cadence) -> dict[str, Months]:
    """Bands by month of one series (time, lat, lon). `statistic` is what each of its values is."""
    times, values = array["time"].to_numpy().astype("datetime64[ms]"), array.to_numpy()
    if quantity == "total_precipitation":
        return _rain(statistic, times, values, cadence, _step(array) if len(times) > 1 else 1.0)
    if cadence == "months":
        return {f"{quantity}_{statistic}".strip("_"): _as_they_are(times, values)}
    least = _FULL / _step(array) if len(times) > 1 else _FULL
    wanted = ("mean", "min", "max") if not statistic and cadence == "hours" else (statistic or "mean",)
    names = {"mean": quantity, "min": f"{quantity}_min", "max": f"{quantity}_max"}
    return {names[each]: _reduced(times, values, each, least) for each in wanted if each in names}


def _rain(statistic: str, times: np.ndarray, values: np.ndarray, cadence: Cadence, step: float) -> dict[str, Months]:
    """The sum of a month, and its driest and wettest day."""
    if cadence == "months":
        months = _as_they_are(times, values)
        if not statistic:  # the mean of a day
            months = {month: each * _length(month) for month, each in months.items()}
        return {f"total_precipitation_{statistic or 'sum'}": months}
    if cadence == "hours":
        times, values = _days_of_hours(times, values, step)
    elif statistic in ("min", "max"):
        return {}
    return {f"total_precipitation_{each}": _reduced(times, values, each, 1.0) for each in ("sum", "min", "max")}


def _days_of_hours(times: np.ndarray, values: np.ndarray, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Whole days' totals from hours, whose instants are where the hours end."""
    hour = np.timedelta64(1, "h")
    days = (times - np.timedelta64(1, "ms")).astype("datetime64[D]")
    same = days[1:] == days[:-1]
    since_midnight = not (np.diff(values, axis=0)[same] < -_ROUNDING).any()
    kept, totals = [], []
    for day in np.unique(days):
        here = np.flatnonzero(days == day)
        last = (times[here[-1]] - day.astype("datetime64[ms]")) / hour
        if since_midnight and last >= 23:  # a file of a year ends an hour early: what fell in it is lost
            totals.append(values[here[-1]])
        elif not since_midnight and step <= 1 / 23 and len(here) == 24:
            totals.append(values[here].sum(axis=0))
        else:
            continue
        kept.append(day)
    return np.array(kept, dtype="datetime64[ms]"), np.array(totals).reshape(len(kept), *values.shape[1:])


def _as_they_are(times: np.ndarray, values: np.ndarray) -> Months:
    return {time.astype("datetime64[M]"): each for time, each in zip(times, values, strict=True)}


def _reduced(times: np.ndarray, values: np.ndarray, how: str, least: float) -> Months:
    """Per month of which at least `least` values a day are there: their mean, min, max or sum; NaN where one is NaN."""
    months, found = times.astype("datetime64[M]"), {}
    for month in np.unique(months):
        here = np.flatnonzero(months == month)
        if len(here) >= least * _length(month):
            found[month] = getattr(np, how)(values[here], axis=0)
    return found


def _length(month: np.datetime64) -> int:
    """Days of a month."""
    return int(((month + 1).astype("datetime64[D]") - month.astype("datetime64[D]")).astype(int))
