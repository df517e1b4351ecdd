"""The label table: points with a class or a value, read from CSV, Parquet, GeoParquet or GeoJSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from aefcli.errors import BadInput
from aefcli.table import open_table

_DAY = 86_400_000
_FARTHEST = 60_000_000_000_000  # ms from 1970, so the years 69 to 3871: what lies beyond was counted in another unit
_COLUMNS = ("lon", "lat", "value", "valid_start", "valid_end", "site", "split")


@dataclass(frozen=True, eq=False)
class Labels:
    """Labelled points, row by row.

    lon, lat                float64 (n,), degrees, WGS 84
    value                   (n,): int64 codes into `names` for classes, float64 measurements for values
    names                   class names by code; empty for values
    valid_start, valid_end  int64 (n,), ms since 1970 UTC, half open; None where the table has none
    site                    (n,), object or int64; None where the table has none
    split                   (n,), "train" or "test"; None where the table has none
    """

    lon: np.ndarray
    lat: np.ndarray
    value: np.ndarray
    names: tuple[str, ...]
    kind: Literal["class", "value"]
    valid_start: np.ndarray | None = None
    valid_end: np.ndarray | None = None
    site: np.ndarray | None = None
    split: np.ndarray | None = None

    def __post_init__(self) -> None:
        assert all(column.shape == (len(self),) for column in self._columns().values()), "ragged labels"

    def __len__(self) -> int:
        return len(self.lon)

    def subset(self, mask: np.ndarray) -> Labels:
        """The rows that `mask` (bool (n,), or row numbers) picks. Codes and names stay as they are."""
        picked: dict[str, Any] = {name: column[mask] for name, column in self._columns().items()}
        return replace(self, **picked)

    def _columns(self) -> dict[str, np.ndarray]:
        return {name: getattr(self, name) for name in _COLUMNS if getattr(self, name) is not None}


def find_labels(folder: Path) -> Path | None:
    """The label table of a folder, by its usual names; None where there is none."""
    names = ("labels.parquet", "labels.geojson", "labels.csv")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def read_labels(path: Path) -> Labels:
    """Read a table of labelled points: CSV, Parquet, GeoParquet or GeoJSON.

    Needs `label` (integers, text or booleans are classes, floats are values) and the places: `x`, `y` or
    `longitude`, `latitude` in degrees, or point geometries in any CRS. May have `label_name`, `site`, `split` and
    `valid_time_start_ms`, `valid_time_end_ms`; an instant is widened to 4 days around it, the least that training
    sees (our choice). A table that cannot be used as a whole raises `BadInput`; no row is dropped in silence.
    """
    table = open_table(path, "label table")
    try:
        return _labels(table)
    except BadInput as error:
        raise BadInput(f"{path}: {error.what}", error.hint) from error


def check_several(distinct: Sequence[Any] | np.ndarray, rows: int, noun: str) -> None:
    """Refuse labels that are all the same; `noun` says what they have too few of."""
    if len(distinct) < 2:
        raise BadInput(f"all {rows} labels are {distinct[0]}", f"a probe needs at least two {noun}")


def _labels(table: Any) -> Labels:
    if "label" not in table.columns:
        raise BadInput(f"no column 'label'; its columns: {_listed(table)}", "rename the column that holds the labels")
    if not len(table):
        raise BadInput("no rows", "add labelled points")
    lon, lat = _coordinates(table)
    absent = _blank(table["label"]) | np.isnan(lon) | np.isnan(lat)
    _check_complete(absent, "label or no coordinates", "fill these rows in, or remove them")
    _check_globe(lon, lat)
    value, names = _values(table)
    start, end = _validity(table)
    kind: Literal["class", "value"] = "class" if names else "value"
    return Labels(lon, lat, value, names, kind, start, end, _sites(table), _split(table))


def _listed(table: Any) -> str:
    return ", ".join(str(name) for name in table.columns) or "none"


def _check_complete(absent: np.ndarray, what: str, hint: str) -> None:
    if absent.any():
        raise BadInput(f"{absent.sum()} of {len(absent)} rows have no {what}", hint)


# --- places ---------------------------------------------------------------------------------------------------


def _coordinates(table: Any) -> tuple[np.ndarray, np.ndarray]:
    """Longitude and latitude, float64 (n,) degrees; NaN where a row has none."""
    for x, y in (("x", "y"), ("longitude", "latitude")):
        if {x, y} <= set(table.columns):
            return _numbers(table[x]), _numbers(table[y])
    if getattr(table, "_geometry_column_name", None) not in table.columns:
        hint = "add x and y, or longitude and latitude, in degrees"
        raise BadInput(f"no coordinates; its columns: {_listed(table)}", hint)
    return _points(table.geometry)


def _points(geometry: Any) -> tuple[np.ndarray, np.ndarray]:
    """Longitude and latitude of point geometries in any CRS; infinite where a projection has no answer."""
    if geometry.crs is None:
        raise BadInput("the geometry has no CRS", "set it (`set_crs` in geopandas), or add x and y in degrees")
    other = set(geometry.geom_type.dropna()) - {"Point"}
    if other:
        raise BadInput(f"it holds {', '.join(sorted(other))}; labels are points", "use their centroids")
    degrees = geometry.to_crs(4326)
    # `.x` refuses missing points, which the caller counts
    there = ~(degrees.isna() | degrees.is_empty).to_numpy()
    lon, lat = np.full(len(degrees), np.nan), np.full(len(degrees), np.nan)
    lon[there], lat[there] = degrees[there].x, degrees[there].y
    return lon, lat


def _check_globe(lon: np.ndarray, lat: np.ndarray) -> None:
    off = np.flatnonzero((np.abs(lon) > 180) | (np.abs(lat) > 90))
    if len(off):
        first = f"{lon[off[0]]:g}, {lat[off[0]]:g} in row {off[0]}"
        raise BadInput(
            f"{len(off)} points lie outside -180..180, -90..90, the first at {first}",
            "x and y are degrees; projected coordinates need a geometry with a CRS",
        )


# --- labels ---------------------------------------------------------------------------------------------------


def _numbers(column: Any) -> np.ndarray:
    """The column as float64; NaN for what is no number."""
    import pandas as pd

    return pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)


def _words(column: Any) -> np.ndarray:
    """The column as text without blanks around it, object (n,)."""
    return np.array([str(cell).strip() for cell in column], dtype=object)


def _blank(column: Any) -> np.ndarray:
    """Where a column holds nothing: missing, blank text, or a float that is not finite."""
    import pandas as pd

    missing = column.isna().to_numpy(dtype=bool)
    if pd.api.types.is_float_dtype(column):
        return missing | ~np.isfinite(column.to_numpy(dtype=np.float64, na_value=np.nan))
    if pd.api.types.is_numeric_dtype(column):
        return missing
    return missing | (_words(column) == "")


def _values(table: Any) -> tuple[np.ndarray, tuple[str, ...]]:
    """Codes and class names, or measurements and (). The table has no row without a label."""
    import pandas as pd

    column = table["label"]
    if pd.api.types.is_float_dtype(column):
        value = column.to_numpy(dtype=np.float64)
        check_several(np.unique(value), len(value), "values")
        return value, ()
    whole = pd.api.types.is_integer_dtype(column)
    found, code = np.unique(column.to_numpy(dtype=np.int64) if whole else _words(column), return_inverse=True)
    check_several(found, len(code), "classes")
    return code.astype(np.int64), _class_names(table, found, code)


def _class_names(table: Any, found: np.ndarray, code: np.ndarray) -> tuple[str, ...]:
    """One name for each code: its `label_name` where there is one, else the label itself."""
    if "label_name" not in table.columns:
        return tuple(str(label) for label in found)
    given, words = ~_blank(table["label_name"]), _words(table["label_name"])
    names = []
    for index, label in enumerate(found):
        said = sorted(set(words[given & (code == index)]))
        if len(said) > 1:
            raise BadInput(f"the label {label} has {len(said)} names: {', '.join(said)}", "give it one label_name")
        names.append(said[0] if said else str(label))
    return tuple(names)


# --- optional columns -----------------------------------------------------------------------------------------


def _optional(table: Any, name: str) -> Any | None:
    """A column that is there in every row, or None where the table has none; half a column is refused."""
    if name not in table.columns:
        return None
    absent = _blank(table[name])
    if absent.all():
        return None
    _check_complete(absent, name, "fill it in for every row, or remove the column")
    return table[name]


def _validity(table: Any) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Valid periods, int64 (n,) ms, half open; an instant becomes the 4 days around it."""
    names = ("valid_time_start_ms", "valid_time_end_ms")
    first, last = (_optional(table, name) for name in names)
    if first is None and last is None:
        return None, None
    if first is None or last is None:
        lacking = names[0] if first is None else names[1]
        raise BadInput(f"one end of the valid time, and no {lacking}", "give both; an instant has them equal")
    start, end = _milliseconds(first), _milliseconds(last)
    wrong = end < start
    if wrong.any():
        raise BadInput(f"{wrong.sum()} of {len(table)} rows end before they start", "swap their valid times")
    widen = np.where(start == end, 2 * _DAY, 0)
    return start - widen, end + widen


def _milliseconds(column: Any) -> np.ndarray:
    import pandas as pd

    # A column of dates must not pass: pandas would turn it into nanoseconds
    dates = pd.api.types.is_datetime64_any_dtype(column)
    time = np.full(len(column), np.nan) if dates else _numbers(column)
    if not (np.abs(time) < _FARTHEST).all():
        raise BadInput(f"{column.name} is no number of milliseconds", "count from 1970 in UTC")
    return time.astype(np.int64)


def _sites(table: Any) -> np.ndarray | None:
    import pandas as pd

    column = _optional(table, "site")
    if column is None:
        return None
    return column.to_numpy(dtype=np.int64) if pd.api.types.is_integer_dtype(column) else _words(column)


def _split(table: Any) -> np.ndarray | None:
    column = _optional(table, "split")
    if column is None:
        return None
    words = _words(column)
    other = sorted(set(words) - {"train", "test"})
    if other:
        raise BadInput(f"the column 'split' says {', '.join(other[:5])}", "its words are train and test")
    return words.astype(str)
