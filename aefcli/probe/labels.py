"""The label table: points with a class, a value or a change, and what features the table brings with them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from aefcli.errors import BadInput, unknown
from aefcli.table import PLACES, check_globe, coordinates, listed, named, numbers, open_table

_DAY = 86_400_000
_FARTHEST = 60_000_000_000_000  # ms from 1970, so the years 69 to 3871: what lies beyond was counted in another unit
_NEAREST = 365 * _DAY  # ms from 1970 that no satellite saw: what lies within was counted in seconds, in days, in years
_YEAR = 366 * _DAY  # a year of support may be a leap year
_PERIODS = ("valid_start", "valid_end", "before_start", "before_end")
_SUPPORTS = ("support_start", "support_end", "before_support_start", "before_support_end")
_COLUMNS = ("lon", "lat", "value", "site", "split", *_PERIODS, *_SUPPORTS)
_CHANGE = ("no change", "change")


@dataclass(frozen=True, eq=False)
class Labels:
    """Labelled points, row by row.

    lon, lat                    float64 (n,), degrees, WGS 84
    value                       (n,): int64 codes into `names` for classes, float64 measurements for values
    names                       class names by code; empty for values
    valid_start, valid_end      int64 (n,), ms since 1970 UTC, half open; None where the table has none
    site                        (n,), object or int64; None where the table has none
    split                       (n,), "train" or "test"; None where the table has none
    before_start, before_end    of change pairs: the valid period before, valid_start and valid_end being the one after
    support_start, support_end  int64 (n,), ms since 1970 UTC, half open, at most a year: which inputs may be read;
                                None where the table has none. Of change pairs for the period after, and
                                before_support_start, before_support_end for the one before
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
    before_start: np.ndarray | None = None
    before_end: np.ndarray | None = None
    support_start: np.ndarray | None = None
    support_end: np.ndarray | None = None
    before_support_start: np.ndarray | None = None
    before_support_end: np.ndarray | None = None

    def __post_init__(self) -> None:
        assert all(column.shape == (len(self),) for column in self._columns().values()), "ragged labels"

    def __len__(self) -> int:
        return len(self.lon)

    @property
    def change(self) -> bool:
        """Whether these are pairs of periods: "change" or "no change" between them."""
        return self.before_start is not None

    def subset(self, mask: np.ndarray) -> Labels:
        """The rows that `mask` (bool (n,), or row numbers) picks. Codes and names stay as they are."""
        picked: dict[str, Any] = {name: column[mask] for name, column in self._columns().items()}
        return replace(self, **picked)

    def _columns(self) -> dict[str, np.ndarray]:
        return {name: getattr(self, name) for name in _COLUMNS if getattr(self, name) is not None}


def find_labels(folder: Path) -> Path | None:
    """The label table of a folder, by its usual names; None where there is none."""
    names = ("labels.parquet", "labels.geojson", "labels.gpkg", "labels.csv")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def read_labels(path: Path, label: str = "label") -> Labels:
    """Read a table of labelled points: CSV, Parquet, GeoParquet, GeoJSON or GeoPackage.

    Needs the column `label`, or another that is named (integers, text or booleans are classes, floats are values) and
    the places: `x`, `y` or `longitude`, `latitude` in degrees, or point geometries in any CRS. May have `label_name`,
    `site`, `split` and `valid_time_start_ms`, `valid_time_end_ms`; an instant is widened to 4 days around it, the least
    that training sees (our choice). A support period, `support_time_start_ms` and `support_time_end_ms`, spans at most
    a year.

    Pairs of periods have `label_before` and `label_after` instead, and every time twice, as in
    `valid_time_start_before_ms` and `valid_time_start_after_ms`: a pair whose labels differ is "change".

    A table that cannot be used as a whole raises `BadInput`; no row is dropped in silence.
    """
    table = open_table(path, "label table")
    with named(path):
        return labels_of(table, label)


@dataclass(frozen=True, eq=False)
class Places:
    """Points of a table, row by row, whatever else it says of them.

    table                   its columns (pandas); geometries have become `longitude` and `latitude`
    lon, lat                float64 (n,), degrees, WGS 84
    valid_start, valid_end  int64 (n,), ms since 1970 UTC, half open; None where the table has none
    """

    table: Any
    lon: np.ndarray
    lat: np.ndarray
    valid_start: np.ndarray | None = None
    valid_end: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.lon)


def read_places(path: Path, *, as_text: bool = False) -> Places:
    """Read a table of points that need no label: places and valid times as in `read_labels`.

    With `as_text` the cells of a CSV stay as they were written. Raises BadInput as `read_labels` does.
    """
    table = open_table(path, "table of points", as_text=as_text).reset_index(drop=True)
    with named(path):
        if not len(table):
            raise BadInput("no rows", "add points")
        lon, lat = coordinates(table, "labels")
        _check_complete(np.isnan(lon) | np.isnan(lat), "coordinates", "fill these rows in, or remove them")
        check_globe(lon, lat)
        return Places(_plain(table, lon, lat), lon, lat, **_bounds(table, "valid", "", "valid"))


def _plain(table: Any, lon: np.ndarray, lat: np.ndarray) -> Any:
    """The table without geometries, its places in columns."""
    import pandas as pd

    shapes = [name for name in table.columns if str(table[name].dtype) == "geometry"]
    plain = pd.DataFrame(table.drop(columns=shapes))
    if any({x, y} <= set(plain.columns) for x, y in PLACES):
        return plain
    return plain.assign(longitude=lon, latitude=lat)


def read_points(path: Path, features: str, label: str = "label") -> tuple[Labels, np.ndarray]:
    """Read a table of labelled points that brings its features with it: `Labels`, and float64 (n, d) beside them.

    features  columns and ranges of columns, as in "A00:A63" or "elevation,B1:B9". A range of one name with numbers
              counts them, wherever they stand; any other is by the order of the table
    label     the column of the labels; `<label>_name` may name the classes

    The rest is as for `read_labels`. A cell without a number is nan, and for the caller to leave out; a word is
    refused, as is all else that cannot be used (`BadInput`).
    """
    table = open_table(path, "table of points")
    with named(path):
        matrix = _matrix(table, features, label)
        return labels_of(table, label), matrix


def check_several(distinct: Sequence[Any] | np.ndarray, rows: int, noun: str) -> None:
    """Refuse labels that are all the same; `noun` says what they have too few of."""
    if len(distinct) < 2:
        raise BadInput(f"all {rows} labels are {distinct[0]}", f"a probe needs at least two {noun}")


def labels_of(table: Any, label: str = "label") -> Labels:
    """The labels of a (geo)pandas table, as `read_labels` and `read_points` read them. Raises BadInput as they do."""
    pairs = label == "label" and {"label_before", "label_after"} <= set(table.columns)
    columns = ["label_before", "label_after"] if pairs else [label]
    if columns[0] not in table.columns:
        raise BadInput(
            f"no column {label!r}; its columns: {listed(table)}", "--label names the one that holds the labels"
        )
    if not len(table):
        raise BadInput("no rows", "add labelled points")
    lon, lat = coordinates(table, "labels")
    absent = np.isnan(lon) | np.isnan(lat) | np.logical_or.reduce([_blank(table[name]) for name in columns])
    _check_complete(absent, f"{' or no '.join(columns)} or no coordinates", "fill these rows in, or remove them")
    check_globe(lon, lat)
    value, names = _changes(table) if pairs else _values(table, label)
    kind: Literal["class", "value"] = "class" if names else "value"
    return Labels(lon, lat, value, names, kind, site=_sites(table), split=_split(table), **_times(table, pairs))


def _check_complete(absent: np.ndarray, what: str, hint: str) -> None:
    if absent.any():
        raise BadInput(f"{absent.sum()} of {len(absent)} rows have no {what}", hint)


# --- labels ---------------------------------------------------------------------------------------------------


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


def _values(table: Any, label: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Codes and class names, or measurements and (). The table has no row without a label."""
    import pandas as pd

    column = table[label]
    if pd.api.types.is_float_dtype(column):
        value = column.to_numpy(dtype=np.float64)
        check_several(np.unique(value), len(value), "values")
        return value, ()
    whole = pd.api.types.is_integer_dtype(column)
    found, code = np.unique(column.to_numpy(dtype=np.int64) if whole else _words(column), return_inverse=True)
    check_several(found, len(code), "classes")
    return code.astype(np.int64), _class_names(table, f"{label}_name", found, code)


def _changes(table: Any) -> tuple[np.ndarray, tuple[str, ...]]:
    """1 where the label after is another than the one before, and the names of 0 and 1."""
    import pandas as pd

    before, after = table["label_before"], table["label_after"]
    numeric = pd.api.types.is_numeric_dtype(before) and pd.api.types.is_numeric_dtype(after)
    other = before.to_numpy() != after.to_numpy() if numeric else _words(before) != _words(after)
    check_several(np.array(_CHANGE)[np.unique(other.astype(np.int64))], len(other), "classes")
    return other.astype(np.int64), _CHANGE


def _class_names(table: Any, column: str, found: np.ndarray, code: np.ndarray) -> tuple[str, ...]:
    """One name for each code: its name in `column` where there is one, else the label itself."""
    if column not in table.columns:
        return tuple(str(label) for label in found)
    given, words = ~_blank(table[column]), _words(table[column])
    names = []
    for index, label in enumerate(found):
        said = sorted(set(words[given & (code == index)]))
        if len(said) > 1:
            raise BadInput(f"the label {label} has {len(said)} names: {', '.join(said)}", f"give it one {column}")
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


def _times(table: Any, pairs: bool) -> dict[str, np.ndarray]:
    """The periods that a table has, by the names that `Labels` has for them."""
    found: dict[str, np.ndarray] = {}
    for part, valid, support in (("after_", "valid", "support"), ("before_", "before", "before_support")):
        if part == "before_" and not pairs:
            continue
        word = part if pairs else ""
        found |= _bounds(table, "valid", word, valid)
        found |= _bounds(table, "support", word, support)
        if pairs and f"{valid}_start" not in found:
            raise BadInput(f"no column valid_time_start_{part}ms", "pairs need the valid times before and after")
    return found


def _bounds(table: Any, word: str, part: str, name: str) -> dict[str, np.ndarray]:
    """`name`_start and `name`_end, int64 (n,) ms, half open; nothing where the table has no such columns.

    An instant of the valid time becomes the 4 days around it; the support is at most a year.
    """
    names = (f"{word}_time_start_{part}ms", f"{word}_time_end_{part}ms")
    first, last = (_optional(table, column) for column in names)
    if first is None and last is None:
        return {}
    if first is None or last is None:
        lacking = names[0] if first is None else names[1]
        instant = "; an instant has them equal" if word == "valid" else ""
        raise BadInput(f"one end of the {word} time, and no {lacking}", f"give both{instant}")
    start, end = _milliseconds(first), _milliseconds(last)
    wrong = end < start if word == "valid" else end <= start
    if wrong.any():
        raise BadInput(f"{wrong.sum()} of {len(table)} rows end before they start", f"swap their {word} times")
    if word == "support":
        _check_year(start, end, names)
        return {f"{name}_start": start, f"{name}_end": end}
    widen = np.where(start == end, 2 * _DAY, 0)
    return {f"{name}_start": start - widen, f"{name}_end": end + widen}


def _check_year(start: np.ndarray, end: np.ndarray, names: tuple[str, str]) -> None:
    long = np.flatnonzero(end - start > _YEAR)
    if len(long):
        days = (end[long[0]] - start[long[0]]) / _DAY
        raise BadInput(
            f"{len(long)} of {len(start)} rows have a support of more than a year, the first of {days:g} days in row "
            f"{long[0]}",
            f"bring {names[0]} and {names[1]} within a year",
        )


def _milliseconds(column: Any) -> np.ndarray:
    import pandas as pd

    # A column of dates must not pass: pandas would turn it into nanoseconds
    dates = pd.api.types.is_datetime64_any_dtype(column)
    time = np.full(len(column), np.nan) if dates else numbers(column)
    if not (np.abs(time) < _FARTHEST).all():
        raise BadInput(f"{column.name} is no number of milliseconds", "count from 1970 in UTC")
    early = np.flatnonzero(np.abs(time) < _NEAREST)
    if len(early):
        raise BadInput(
            f"{column.name} is {time[early[0]]:.0f} in row {early[0]}, which in milliseconds is in "
            f"{1970 if time[early[0]] >= 0 else 1969}",
            "count milliseconds from 1970 in UTC: 1000 times seconds; the year 2023 begins at 1672531200000",
        )
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


# --- features -------------------------------------------------------------------------------------------------


def _matrix(table: Any, features: str, label: str) -> np.ndarray:
    """The columns that `features` names, float64 (n, d), nan where a cell is empty or infinite.

    Those that say what is asked, or when and how it is split, are refused: a range easily runs over them.
    """
    listed = [str(column) for column in table.columns]
    names = [name for part in features.split(",") for name in _range(part.strip(), listed)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BadInput(f"the features name {', '.join(twice[:5])} twice", "name every column once")
    told = re.compile(rf"{re.escape(label)}(_name|_before|_after)?|site|split|(valid|support)_time_\w+")
    if leaks := [name for name in names if told.fullmatch(name)]:
        raise BadInput(f"the features name {leaks[0]}, which tells the answer or the split", "leave it out")
    columns = []
    for name in names:
        column = numbers(table[name])
        words = np.flatnonzero(np.isnan(column) & ~_blank(table[name]))
        if len(words):
            raise BadInput(
                f"{name} is no number in {len(words)} rows, first {table[name].iloc[words[0]]!r}", "leave it out"
            )
        columns.append(np.where(np.isfinite(column), column, np.nan))
    return np.column_stack(columns)


def _range(part: str, listed: Sequence[str]) -> list[str]:
    """The columns that one part of the features names."""
    first, colon, last = (word.strip() for word in part.partition(":"))
    for name in (first, last) if colon else (first,):
        if name not in listed:
            raise unknown("column", name, listed)
    if not colon:
        return [first]
    one, other = (re.fullmatch(r"(.*?)(\d+)", name) for name in (first, last))
    if one and other and one[1] == other[1]:
        low, high = int(one[2]), int(other[2])
        numbered = [
            (int(found[2]), name)
            for name in listed
            if (found := re.fullmatch(r"(.*?)(\d+)", name)) and found[1] == one[1]
        ]
        chosen = [name for number, name in sorted(numbered) if low <= number <= high]
        if 0 < len(chosen) != high - low + 1:
            raise BadInput(f"{part} has {len(chosen)} columns of {high - low + 1}", "list those that there are")
    else:
        chosen = list(listed[listed.index(first) : listed.index(last) + 1])
    if not chosen:
        raise BadInput(f"{part} runs backwards", f"{last}:{first}")
    return chosen
