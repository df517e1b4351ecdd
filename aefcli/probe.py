"""Labels and what a feature is worth on them: read, split, draw, fit, score.

Owns the label table (`Labels`), the split of its points into a training pool and a test set, the trials drawn
from them and their metrics. Knows of no store, no cube and no model: features arrive as plain matrices whose
rows are aligned with the labels. Protocol: supplement S3-S6 of the paper; every choice of ours says so.

A stratum is a class, or a bin of values where the labels are measurements. A group is a site or a block of
ground that lies on one side of a split as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from aefcli.errors import BadInput, unknown

PROBES = ("knn1", "knn3", "linear")
METRICS = {"class": ("balanced_accuracy", "macro_f1"), "value": ("r2", "mae")}
BOOTSTRAP = 100

_DAY = 86_400_000
_TRAIN_SHARE = 0.6
_MAX_SHOTS = 300
_BINS = 10
_TRIES = 1000  # shuffles of the groups before a split is given up
_PATIENCE = 50  # shuffles after which `max` takes the best split seen
_METRES_PER_DEGREE = math.radians(6_371_008.8)


# --- labels ---------------------------------------------------------------------------------------------------


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
        columns = (self.lat, self.value, self.valid_start, self.valid_end, self.site, self.split)
        assert all(column is None or column.shape == self.lon.shape for column in columns), "ragged labels"

    def __len__(self) -> int:
        return len(self.lon)

    def subset(self, mask: np.ndarray) -> Labels:
        """The rows that `mask` (bool (n,), or row numbers) picks. Codes and names stay as they are."""

        def pick(column: np.ndarray | None) -> np.ndarray | None:
            return None if column is None else column[mask]

        return Labels(
            lon=self.lon[mask],
            lat=self.lat[mask],
            value=self.value[mask],
            names=self.names,
            kind=self.kind,
            valid_start=pick(self.valid_start),
            valid_end=pick(self.valid_end),
            site=pick(self.site),
            split=pick(self.split),
        )


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
    table = _open_table(path)
    if "label" not in table.columns:
        found = ", ".join(str(name) for name in table.columns) or "none"
        raise BadInput(f"{path} has no column 'label'; its columns: {found}", "rename the column that holds the labels")
    lon, lat = _coordinates(table, path)
    absent = _blank(table["label"]) | ~np.isfinite(lon) | ~np.isfinite(lat)
    if absent.any() or not len(table):
        count = f"{absent.sum()} of {len(table)} rows have no label or no coordinates" if len(table) else "no rows"
        raise BadInput(f"{path}: {count}", "fill these rows in, or remove them")
    _check_globe(lon, lat, path)
    value, names = _values(table, path)
    start, end = _validity(table, path)
    return Labels(
        lon=lon,
        lat=lat,
        value=value,
        names=names,
        kind="class" if names else "value",
        valid_start=start,
        valid_end=end,
        site=_sites(table, path),
        split=_split_words(table, path),
    )


def _open_table(path: Path) -> Any:
    """The table as a (geo)pandas frame."""
    readers = {
        ".csv": _open_csv,
        ".parquet": _open_parquet,
        ".geoparquet": _open_parquet,
        ".geojson": _open_geojson,
        ".json": _open_geojson,
    }
    if not path.is_file():
        raise BadInput(f"there is no label table {path}", "give a .csv, .parquet or .geojson file")
    if path.suffix.lower() not in readers:
        raise unknown("kind of label table", path.suffix or path.name, readers)
    try:
        return readers[path.suffix.lower()](path)
    except (
        OSError,
        ValueError,
        RuntimeError,
    ) as error:  # those of pandas, pyarrow and pyogrio are kinds of these
        raise BadInput(f"cannot read {path}: {error}", "check that its suffix says what it holds") from error


def _open_csv(path: Path) -> Any:
    import pandas as pd

    return pd.read_csv(path, low_memory=False)


def _open_parquet(path: Path) -> Any:
    import geopandas as gpd
    import pandas as pd
    import pyarrow.parquet as pq

    is_geo = b"geo" in (pq.read_schema(path).metadata or {})
    return gpd.read_parquet(path) if is_geo else pd.read_parquet(path)


def _open_geojson(path: Path) -> Any:
    import geopandas as gpd

    return gpd.read_file(path, engine="pyogrio")


def _coordinates(table: Any, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Longitude and latitude, float64 (n,) degrees; NaN where a row has none."""
    for x, y in (("x", "y"), ("longitude", "latitude")):
        if {x, y} <= set(table.columns):
            return _numbers(table[x]), _numbers(table[y])
    if getattr(table, "_geometry_column_name", None) not in table.columns:
        found = ", ".join(str(name) for name in table.columns)
        raise BadInput(
            f"{path} has no coordinates; its columns: {found}",
            "add x and y, or longitude and latitude, in degrees",
        )
    return _points(table.geometry, path)


def _points(geometry: Any, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Longitude and latitude of point geometries in any CRS."""
    if geometry.crs is None:
        raise BadInput(
            f"the geometry of {path} has no CRS", "set it (`set_crs` in geopandas), or add x and y in degrees"
        )
    other = set(geometry.geom_type.dropna()) - {"Point"}
    if other:
        raise BadInput(f"{path} holds {', '.join(sorted(other))}; labels are points", "use their centroids")
    degrees = geometry.to_crs(4326)
    # `.x` refuses missing points, which the caller counts
    there = ~(degrees.isna() | degrees.is_empty).to_numpy()
    lon, lat = np.full(len(degrees), np.nan), np.full(len(degrees), np.nan)
    lon[there], lat[there] = degrees[there].x, degrees[there].y
    # PROJ answers infinity off the projection's domain: a wrong place, not a missing one
    return np.where(np.isinf(lon), 999.0, lon), np.where(np.isinf(lat), 999.0, lat)


def _check_globe(lon: np.ndarray, lat: np.ndarray, path: Path) -> None:
    off = (np.abs(lon) > 180) | (np.abs(lat) > 90)
    if off.any():
        row = int(np.flatnonzero(off)[0])
        place = f"{lon[row]:g}, {lat[row]:g} in row {row}"
        raise BadInput(
            f"{path}: {off.sum()} points lie outside -180..180, -90..90, the first at {place}",
            "x and y are degrees; projected coordinates need a geometry with a CRS",
        )


def _numbers(column: Any) -> np.ndarray:
    """The column as float64; NaN for what is no number."""
    import pandas as pd

    return pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)


def _blank(column: Any) -> np.ndarray:
    """Where a column holds nothing: missing, blank text, or a float that is not finite."""
    import pandas as pd

    missing = column.isna().to_numpy(dtype=bool)
    if pd.api.types.is_float_dtype(column):
        return missing | ~np.isfinite(column.to_numpy(dtype=np.float64, na_value=np.nan))
    if pd.api.types.is_numeric_dtype(column):
        return missing
    return missing | (column.astype(object).map(lambda cell: str(cell).strip()) == "").to_numpy(dtype=bool)


def _values(table: Any, path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Codes and class names, or measurements and (). The table has no row without a label."""
    import pandas as pd

    column = table["label"]
    if pd.api.types.is_float_dtype(column):
        value = column.to_numpy(dtype=np.float64)
        _check_several(len(np.unique(value)), "value", f"{value[0]:g}", str(path))
        return value, ()
    if pd.api.types.is_integer_dtype(column):
        found, code = np.unique(column.to_numpy(dtype=np.int64), return_inverse=True)
    else:
        found, code = np.unique([str(cell).strip() for cell in column], return_inverse=True)
    _check_several(len(found), "class", str(found[0]), str(path))
    return code.astype(np.int64), _class_names(table, found, code, path)


def _class_names(table: Any, found: np.ndarray, code: np.ndarray, path: Path) -> tuple[str, ...]:
    """One name for each code: its `label_name` where there is one, else the label itself."""
    if "label_name" not in table.columns:
        return tuple(str(label) for label in found)
    given = ~_blank(table["label_name"])
    words = table["label_name"].astype(str).str.strip().to_numpy()
    names = []
    for index, label in enumerate(found):
        said = sorted(set(words[given & (code == index)]))
        if len(said) > 1:
            raise BadInput(
                f"{path}: the label {label} has {len(said)} names: {', '.join(said)}",
                "give it one label_name",
            )
        names.append(said[0] if said else str(label))
    return tuple(names)


def _check_several(count: int, noun: str, only: str, what: str) -> None:
    if count < 2:
        plural = {"class": "classes", "value": "values"}[noun]
        raise BadInput(f"{what}: all labels are {only}", f"a probe needs at least two {plural}")


def _optional(table: Any, name: str, path: Path) -> Any | None:
    """A column that is there in every row, or None where the table has none; half a column is refused."""
    if name not in table.columns:
        return None
    absent = _blank(table[name])
    if absent.all():
        return None
    if absent.any():
        raise BadInput(
            f"{path}: {absent.sum()} of {len(table)} rows have no {name}",
            "fill it in for every row, or remove the column",
        )
    return table[name]


def _validity(table: Any, path: Path) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Valid periods, int64 (n,) ms, half open; an instant becomes the 4 days around it."""
    names = ("valid_time_start_ms", "valid_time_end_ms")
    columns = [_optional(table, name, path) for name in names]
    if all(column is None for column in columns):
        return None, None
    for name, column in zip(names, columns, strict=True):
        if column is None:
            raise BadInput(
                f"{path} has one end of the valid time, and no {name}", "give both; an instant has them equal"
            )
    start, end = (_milliseconds(column, path) for column in columns)
    wrong = end < start
    if wrong.any():
        raise BadInput(f"{path}: {wrong.sum()} of {len(table)} rows end before they start", "swap their valid times")
    widen = np.where(start == end, 2 * _DAY, 0)
    return start - widen, end + widen


def _milliseconds(column: Any, path: Path) -> np.ndarray:
    import pandas as pd

    # A column of dates must not pass: pandas would turn it into nanoseconds
    dates = pd.api.types.is_datetime64_any_dtype(column)
    time = np.full(len(column), np.nan) if dates else _numbers(column)
    # Beyond 2^53 a float64 no longer counts in ones
    if not (np.abs(time) < 2**53).all():
        raise BadInput(f"{path}: {column.name} is no number of milliseconds", "count from 1970 in UTC")
    return time.astype(np.int64)


def _sites(table: Any, path: Path) -> np.ndarray | None:
    import pandas as pd

    column = _optional(table, "site", path)
    if column is None:
        return None
    if pd.api.types.is_integer_dtype(column):
        return column.to_numpy(dtype=np.int64)
    return np.array([str(cell).strip() for cell in column], dtype=object)


def _split_words(table: Any, path: Path) -> np.ndarray | None:
    column = _optional(table, "split", path)
    if column is None:
        return None
    words = np.array([str(cell).strip() for cell in column])
    other = sorted(set(words) - {"train", "test"})
    if other:
        raise BadInput(f"{path}: the column 'split' says {', '.join(other[:5])}", "its words are train and test")
    return words


# --- splits ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Plan:
    """How the points may be split.

    how      "given" (group 0 is the training pool, group 1 the test set), "site" or "block"
    group    int64 (n,), 0 .. groups - 1
    stratum  int64 (n,), 0 .. strata - 1
    names    of the strata
    held     int64 (groups, strata), points
    """

    how: str
    group: np.ndarray
    stratum: np.ndarray
    names: tuple[str, ...]
    held: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        return self.held.sum(axis=0)

    def width(self, shots: int | str) -> int:
        """Training points per stratum asked for: at `max` 300, and at most 60% of the smallest stratum."""
        if shots != "max":
            return int(shots)
        # In whole numbers: 0.6 * 5 is 3.0000000000000004 or 2.9999999999999996 by the weather
        return max(1, min(_MAX_SHOTS, int(self.sizes.min()) * 6 // 10))

    def folds(self, shots: int | str, limit: int | None) -> int:
        """Folds of a trial. At `max` one fold is enough where a bootstrap of the test set tells the spread."""
        sizes = self.sizes
        alone = shots == "max" and (sizes.min() >= 200 or (len(sizes) > 1 and sizes.min() == sizes.max()))
        count = 1 if alone else folds(int(sizes.min()))
        return count if limit is None else min(count, limit)

    def draw(self, shots: int | str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers of one training set, balanced over the strata, and of its whole test set."""
        pool = self._pool(shots, rng)
        order = rng.permutation(np.flatnonzero(pool))
        rows = [order[self.stratum[order] == stratum] for stratum in range(len(self.names))]
        width = min(self.width(shots), *(len(row) for row in rows))
        return np.sort(np.concatenate([row[:width] for row in rows])), np.flatnonzero(~pool)

    def _pool(self, shots: int | str, rng: np.random.Generator) -> np.ndarray:
        """Bool (n,): the training pool. About 60% of the points, in whole groups, every stratum on both sides."""
        if self.how == "given":
            return self.group == 0
        # Half of what `max` asks for is enough: to insist on all of it would hand every split to the rarest class
        enough = -(-self.width(shots) // 2) if shots == "max" else int(shots)
        floor = 1 if shots == "max" else int(shots)
        best, chosen, short = 0, np.empty(0, np.int64), np.zeros(len(self.names), np.int64)
        for attempt in range(_TRIES):
            if best >= enough or (attempt >= _PATIENCE and best >= floor):
                break
            groups = self._shuffled(rng)
            inside = self.held[groups].sum(axis=0)
            outside = self.sizes - inside
            short += (inside < floor) | (outside == 0)
            least = int(inside.min()) if (outside > 0).all() else 0
            if least > best:
                best, chosen = least, groups
        if best < floor:
            self._refuse(int(short.argmax()), floor)
        return np.isin(self.group, chosen)

    def _shuffled(self, rng: np.random.Generator) -> np.ndarray:
        """Some groups in random order: as many as come nearest to 60% of the points, never all of them."""
        order = rng.permutation(len(self.held))
        filled = self.held.sum(axis=1)[order].cumsum()
        return order[: 1 + int(np.abs(filled[:-1] - _TRAIN_SHARE * filled[-1]).argmin())]

    def _refuse(self, stratum: int, shots: int) -> None:
        where = int((self.held[:, stratum] > 0).sum())
        raise BadInput(
            f"no split leaves {self.names[stratum]!r} {shots} points to train on and one to test: its "
            f"{self.sizes[stratum]} points lie in {where} of {len(self.held)} {self.how}s",
            f"add points of {self.names[stratum]!r} in other {self.how}s, ask for fewer shots, or leave it out",
        )

    def check(self, shots: int | str) -> None:
        """Refuse a number of shots that no split can serve."""
        trains = self.held[0] if self.how == "given" else self.sizes - 1
        asked = 1 if shots == "max" else int(shots)
        least = int(trains.argmin())
        if trains[least] >= asked:
            return
        where = " in the train split" if self.how == "given" else " and one has to stay in the test set"
        possible = (
            f"at most {trains[least]} shots are possible" if trains[least] else "there is nothing to learn it from"
        )
        count = int(trains[least] if self.how == "given" else self.sizes[least])
        points = f"{count} point{'s' * (count != 1)}"
        raise BadInput(
            f"{shots} shots: {self.names[least]!r} has {points}{where}; {possible}",
            "ask for fewer shots, add points, or leave it out",
        )


def folds(smallest: int) -> int:
    """Folds of a trial whose smallest class has this many points: 1 -> 1000, 10 -> 500, 75 -> 273 (S4)."""
    return round(1000 / 2 ** math.log10(smallest))


def _plan(labels: Labels, block: float) -> _Plan:
    stratum, names = _strata(labels)
    how, group = _groups(labels, block)
    held = np.zeros((int(group.max()) + 1, len(names)), np.int64)
    np.add.at(held, (group, stratum), 1)
    return _Plan(how, group, stratum, names, held)


def _strata(labels: Labels) -> tuple[np.ndarray, tuple[str, ...]]:
    """Stratum of each point, int64 (n,), and the names; a class without points is none."""
    if labels.kind == "value":
        _check_several(len(np.unique(labels.value)), "value", f"{labels.value[0]:g}", "these points")
        return _bins(labels.value)
    found, stratum = np.unique(labels.value, return_inverse=True)
    names = tuple(labels.names[code] if labels.names else str(code) for code in found)
    _check_several(len(names), "class", names[0], "these points")
    return stratum.astype(np.int64), names


def _bins(value: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Ten equally spaced bins between the least and the largest value; the empty are left out.

    Our choice: a bin thinner than 20 points and 2% of all joins the nearer of its neighbours, of equally near ones
    the smaller. One outlier alone in the last bin would otherwise be the smallest class, and `max` would mean one
    point per bin.
    """
    edges = np.linspace(value.min(), value.max(), _BINS + 1)
    fine = np.digitize(value, edges[1:-1])
    count = np.bincount(fine, minlength=_BINS)
    spans = [(at, at + 1, int(count[at])) for at in range(_BINS) if count[at]]
    thin = max(20, len(value) // 50)
    while len(spans) > 1 and min(span[2] for span in spans) < thin:
        at = min(range(len(spans)), key=lambda index: spans[index][2])
        # Joins are named by their lower half: (empty bins between, points of the neighbour, lower half)
        below = [(spans[at][0] - spans[at - 1][1], spans[at - 1][2], at - 1)] if at else []
        above = [(spans[at + 1][0] - spans[at][1], spans[at + 1][2], at)] if at + 1 < len(spans) else []
        low = min(below + above)[2]
        (first, _, left), (_, last, right) = spans[low], spans[low + 1]
        spans[low : low + 2] = [(first, last, left + right)]
    stratum = np.digitize(fine, [first for first, _, _ in spans[1:]])
    return stratum, tuple(f"{edges[first]:g}..{edges[last]:g}" for first, last, _ in spans)


def _groups(labels: Labels, block: float) -> tuple[str, np.ndarray]:
    """How to split, and the group of each point, int64 (n,)."""
    if labels.split is not None:
        return "given", _given(labels)
    if labels.site is not None:
        how, group = "site", np.unique(labels.site, return_inverse=True)[1].reshape(-1)
        hint = "remove the column 'site' to split by blocks of ground, or add a column 'split'"
    else:
        how, group = "block", blocks(labels.lon, labels.lat, block)
        hint = "add points farther apart, ask for smaller blocks, or add a column 'site' or 'split'"
    if group.max() == 0:
        size = "" if how == "site" else f" of {block:g} m"
        raise BadInput(f"all {len(labels)} points lie in one {how}{size}: none is left to test on", hint)
    return how, group


def _given(labels: Labels) -> np.ndarray:
    """0 for train, 1 for test; a place that both have is refused."""
    assert labels.split is not None
    test = labels.split == "test"
    if test.all() or not test.any():
        raise BadInput(f"all {len(labels)} points are in the {labels.split[0]} split", "mark both train and test")
    # 1e-6 degrees are 11 cm: far below a pixel, and far above what a reprojection leaves
    places = np.round(np.column_stack([labels.lon, labels.lat]) * 1e6).astype(np.int64)
    place = np.unique(places, axis=0, return_inverse=True)[1].reshape(-1)
    shared = np.intersect1d(place[test], place[~test])
    if len(shared):
        row = int(np.flatnonzero(place == shared[0])[0])
        raise BadInput(
            f"the train and test splits share {len(shared)} locations, the first at "
            f"{labels.lon[row]:.6f}, {labels.lat[row]:.6f}",
            "keep every location on one side",
        )
    return test.astype(np.int64)


def blocks(lon: np.ndarray, lat: np.ndarray, size: float) -> np.ndarray:
    """The block of each point, int64 (n,), numbered from 0; blocks are `size` metres high and wide, on a sphere.

    Rows of latitude, each cut along its middle parallel: a block keeps its size from the equator to the poles,
    where one projection for all points would not.
    """
    if not size > 0:
        raise BadInput(f"blocks of {size:g} m", "give a size above 0")
    row = np.floor((lat + 90) * _METRES_PER_DEGREE / size)
    middle = np.radians(np.clip((row + 0.5) * size / _METRES_PER_DEGREE - 90, -90, 90))
    column = np.floor((lon + 180) * _METRES_PER_DEGREE * np.cos(middle) / size)
    cells = np.column_stack([row, column]).astype(np.int64)
    return np.unique(cells, axis=0, return_inverse=True)[1].reshape(-1)


# --- trials ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """One metric of one probe on one field.

    mean, std        over folds; at `max` over folds and the bootstraps of their test sets
    n_train, n_test  points of a fold, the average rounded where folds differ
    """

    field: str
    task: str
    probe: str
    shots: int | str
    metric: str
    mean: float
    std: float
    n_train: int
    n_test: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def evaluate(
    features: Mapping[str, np.ndarray],
    labels: Labels,
    *,
    task: str,
    probes: Sequence[str] = PROBES,
    shots: Sequence[int | str] = (1, 10, "max"),
    seed: int = 0,
    block: float = 1280.0,
    max_folds: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Score], dict[str, Any]]:
    """Score every field with every probe at every number of shots.

    features   field -> finite floats (n, d), rows aligned with `labels`; d may differ by field
    block      metres, where there is neither a split nor a site
    max_folds  an upper limit that saves time; None keeps to the protocol
    progress   called with (folds done, folds in all)

    All fields see the same folds, training draws and test sets, and a score does not depend on which other
    fields, probes or shots were asked for. Answers the scores, and how the split was made. `BadInput` where the
    labels cannot be split, or have too few points for the shots.
    """
    matrices = {name: _matrix(name, feature, len(labels)) for name, feature in features.items()}
    _check_request(probes, shots, seed, max_folds)
    plan = _plan(labels, block)
    for level in shots:
        plan.check(level)
    target = plan.stratum if labels.kind == "class" else labels.value
    trial = _Trial(plan, target, labels.kind, tuple(probes), seed)
    count = {level: plan.folds(level, max_folds) for level in shots}
    scores: list[Score] = []
    done = 0
    for level in shots:
        found = []
        for fold in range(count[level]):
            with _lean():
                found.append(trial.run(matrices, level, fold))
            done += 1
            if progress:
                progress(done, sum(count.values()))
        scores += _scores(found, task, level, METRICS[labels.kind])
    report = {"split": plan.how, "groups": len(plan.held), "folds": count, "max_folds": max_folds}
    report |= {"bootstrap": BOOTSTRAP, "seed": seed, "points": len(labels)}
    report |= {"block": block} if plan.how == "block" else {}
    report |= {"bins": list(plan.names)} if labels.kind == "value" else {}
    order = {(name, probe): rank for rank, (name, probe) in enumerate((n, p) for n in features for p in probes)}
    return sorted(scores, key=lambda score: order[score.field, score.probe]), report


def _matrix(name: str, feature: np.ndarray, rows: int) -> np.ndarray:
    """Float64, contiguous: the least squares of a float32 matrix would lose its null space to rounding."""
    matrix = np.ascontiguousarray(feature, dtype=np.float64)
    assert matrix.ndim == 2, f"{name}: features are (n, d), not {matrix.shape}"
    assert len(matrix) == rows, f"{name}: {len(matrix)} rows of features for {rows} labels"
    assert np.isfinite(matrix).all(), f"{name}: the caller removes rows that are not finite"
    return matrix


@contextmanager
def _lean() -> Iterator[None]:
    """One thread, and no checks of what is checked already, for thousands of small fits.

    Threads gain nothing on matrices of a few hundred rows and spin while they wait: on two busy cores a trial took
    two to four times as long with them. They would also let the last digit depend on the machine.
    """
    import sklearn.linear_model
    import sklearn.neighbors
    from threadpoolctl import threadpool_limits

    # Libraries are limited as they are found, so those of scikit-learn have to be loaded by now
    with threadpool_limits(1), sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        yield


def _check_request(probes: Sequence[str], shots: Sequence[int | str], seed: int, max_folds: int | None) -> None:
    for probe in probes:
        if probe not in PROBES:
            raise unknown("probe", probe, PROBES)
    for level in shots:
        if level != "max" and (not isinstance(level, int) or level < 1):
            raise BadInput(f"{level!r} shots", "give whole numbers from 1, or max")
    if seed < 0:
        raise BadInput(f"the seed {seed} is negative", "give a seed from 0")
    if max_folds is not None and max_folds < 1:
        raise BadInput(f"at most {max_folds} folds", "give a number from 1")


@dataclass(frozen=True)
class _Fold:
    """What one fold found: points on either side, and (replicates, 2) metrics by field and probe."""

    n_train: int
    n_test: int
    found: dict[tuple[str, str], np.ndarray]


@dataclass(frozen=True, eq=False)
class _Trial:
    """Everything that the folds of one evaluation share. `target` (n,): codes from 0, or measurements."""

    plan: _Plan
    target: np.ndarray
    kind: Literal["class", "value"]
    probes: tuple[str, ...]
    seed: int

    def run(self, matrices: Mapping[str, np.ndarray], shots: int | str, fold: int) -> _Fold:
        """One fold. Its generators are keyed by shots and fold alone: every field gets the same draws."""
        key = [self.seed, 0 if shots == "max" else int(shots), fold]
        train, test = self.plan.draw(shots, np.random.default_rng(key))
        found = {}
        for name, matrix in matrices.items():
            for probe, guess in self._guesses(matrix[train], self.target[train], matrix[test]):
                rng = np.random.default_rng([*key, 1]) if shots == "max" else None
                found[name, probe] = _METRIC[self.kind](self.target[test], guess, rng)
        return _Fold(len(train), len(test), found)

    def _guesses(self, x: np.ndarray, y: np.ndarray, test: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """What each probe, taught (x, y), says of the rows of `test`. All k share one neighbour search."""
        nearest = {"knn1": 1, "knn3": 3}
        # Always for three: which of two equally near rows comes first must not hang on the probes asked for
        near = y[neighbours(x, test, 3)] if nearest.keys() & set(self.probes) else y
        for probe in self.probes:
            if probe == "linear":
                yield probe, linear(x, y, test, self.kind)
            else:
                yield probe, _vote(near[:, : nearest[probe]], self.kind)


def _scores(folds: Sequence[_Fold], task: str, shots: int | str, metrics: Sequence[str]) -> list[Score]:
    """Mean and standard deviation over all folds and replicates of one number of shots."""
    n_train = round(float(np.mean([fold.n_train for fold in folds])))
    n_test = round(float(np.mean([fold.n_test for fold in folds])))
    scores = []
    for field, probe in folds[0].found:
        results = np.concatenate([fold.found[field, probe] for fold in folds])
        for metric, mean, std in zip(metrics, results.mean(axis=0), results.std(axis=0), strict=True):
            scores.append(Score(field, task, probe, shots, metric, float(mean), float(std), n_train, n_test))
    return scores


# --- probes ---------------------------------------------------------------------------------------------------


def neighbours(x: np.ndarray, test: np.ndarray, k: int) -> np.ndarray:
    """Rows of `x` nearest to each row of `test` by L2, int64 (m, k), nearest first; fewer where `x` has fewer.

    Rows at exactly the same distance come in no particular order, which may differ by k.
    """
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=min(k, len(x)), algorithm="brute").fit(x)
    return search.kneighbors(test, return_distance=False)


def _vote(near: np.ndarray, kind: str) -> np.ndarray:
    """Majority or mean over the k neighbours' targets (m, k). A tie goes to the lowest code, as in scikit-learn.

    So kNN with k = 3 at one shot, where three neighbours are always three classes, leans to the low codes: that
    is the protocol's figure, and no fault of the field.
    """
    if kind == "value":
        return near.mean(axis=1)
    votes = near[:, :, None] == np.arange(near.max() + 1)
    return votes.sum(axis=1).argmax(axis=1)


def linear(x: np.ndarray, y: np.ndarray, test: np.ndarray, kind: str) -> np.ndarray:
    """Least squares without regularisation: one versus rest on -1/+1 and argmax for classes, plain for values.

    With fewer rows than columns the solution of least norm. scikit-learn drops singular values below 1e-15
    whatever the features' unit, so that at 12 shots of reflectances up to 10,000 the null space is divided by its
    own rounding (measured: 0.95 instead of 0.98 balanced accuracy). One factor for the whole matrix changes no
    prediction, and puts that limit where numpy's `matrix_rank` has it: at eps * max(n, d) of the matrix's norm.
    """
    from sklearn.linear_model import Ridge, RidgeClassifier

    norm = float(np.linalg.norm(x)) or 1.0
    factor = 1e-15 / (np.finfo(np.float64).eps * max(x.shape) * norm)
    # The default solver warns of a singular matrix and answers otherwise; Ridge with alpha 0 is LinearRegression
    # without that one's cutoff at 1e-6 of the largest singular value, which eats columns of small units
    model = (RidgeClassifier if kind == "class" else Ridge)(alpha=0, solver="svd")
    return model.fit(x * factor, y).predict(test * factor)


# --- metrics --------------------------------------------------------------------------------------------------


def _class_metrics(truth: np.ndarray, guess: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
    """Balanced accuracy and macro-F1 over the classes of the test set, (replicates, 2); one row without `rng`.

    To draw a test set again with replacement is a multinomial draw over the cells of its confusion matrix.
    """
    classes = int(max(truth.max(), guess.max())) + 1
    cells, count = np.unique(truth * classes + guess, return_counts=True)
    draws = count[None] if rng is None else rng.multinomial(len(truth), count / len(truth), BOOTSTRAP)
    true, said = np.divmod(cells, classes)
    one = np.eye(classes)
    support, claimed = draws @ one[true], draws @ one[said]
    hit = draws @ (one[true] * (true == said)[:, None])
    there = support > 0
    recall = np.divide(hit, support, out=np.zeros_like(hit), where=there)
    f1 = np.divide(2 * hit, support + claimed, out=np.zeros_like(hit), where=there)
    return np.column_stack([recall.sum(axis=1), f1.sum(axis=1)]) / there.sum(axis=1)[:, None]


def _value_metrics(truth: np.ndarray, guess: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
    """R2 and mean absolute error of the test set, (replicates, 2); one row without `rng`.

    R2 of a test set of one value is 1 if it is hit and else 0, as in scikit-learn.
    """
    n = len(truth)
    weight = np.ones((1, n)) if rng is None else _resamples(n, rng)
    centred, residual = truth - truth.mean(), truth - guess
    squares = weight @ centred**2
    spread = squares - (weight @ centred) ** 2 / n
    error = weight @ residual**2
    # Below this a replicate holds one value, and what is left of it is rounding
    varied = spread > 1e-12 * squares
    r2 = np.where(error > 0, 0.0, 1.0)
    np.subtract(1, np.divide(error, spread, where=varied, out=np.zeros(len(r2))), out=r2, where=varied)
    return np.column_stack([r2, weight @ np.abs(residual) / n])


def _resamples(n: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of n points is drawn when n are drawn with replacement, float64 (BOOTSTRAP, n)."""
    drawn = rng.integers(n, size=(BOOTSTRAP, n)) + n * np.arange(BOOTSTRAP)[:, None]
    return np.bincount(drawn.ravel(), minlength=BOOTSTRAP * n).reshape(BOOTSTRAP, n).astype(np.float64)


_METRIC = {"class": _class_metrics, "value": _value_metrics}
