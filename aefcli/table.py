"""Tables of points that users bring: CSV, Parquet, GeoJSON or GeoPackage, as (geo)pandas frames.

Owns which kinds there are, where their rows lie, and the one line for what cannot be opened. What other columns mean
is for whoever asks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from aefcli.errors import BadInput, counted, unknown

PLACES = (("x", "y"), ("longitude", "latitude"), ("lon", "lat"))  # columns that say where, the first of them there
_KINDS = (".csv", ".parquet", ".geoparquet", ".geojson", ".json", ".gpkg")


def open_table(path: Path, noun: str, *, as_text: bool = False) -> Any:
    """The table; `noun` is what a message calls it. With `as_text` the cells of a CSV stay text.

    Raises BadInput where it is not there, of another kind, of several layers, or not what its suffix says.
    """
    kind = path.suffix.lower()
    if not path.is_file():
        raise BadInput(f"there is no {noun} {path}", "give a .csv, .parquet, .geojson or .gpkg file")
    if kind not in _KINDS:
        raise unknown(f"kind of {noun}", path.suffix or path.name, _KINDS)
    try:
        return _read(path, kind, as_text)
    except (OSError, ValueError, RuntimeError) as error:  # those of pandas, pyarrow and pyogrio are kinds of these
        raise BadInput(f"cannot read {path}: {error}", "check that its suffix says what it holds") from error


def _read(path: Path, kind: str, as_text: bool) -> Any:
    import pandas as pd

    if kind == ".csv":
        return pd.read_csv(path, dtype=str, keep_default_na=False) if as_text else pd.read_csv(path, low_memory=False)
    import geopandas as gpd
    import pyarrow.parquet as pq

    if kind in (".parquet", ".geoparquet"):
        is_geo = b"geo" in (pq.read_schema(path).metadata or {})
        return (gpd if is_geo else pd).read_parquet(path)
    import pyogrio

    if len(layers := pyogrio.list_layers(path)) > 1:
        raise BadInput(f"{path} holds {len(layers)} layers: {', '.join(layers[:, 0])}", "keep the one that is meant")
    return gpd.read_file(path, engine="pyogrio")


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Messages that begin with the path."""
    try:
        yield
    except BadInput as error:
        raise BadInput(f"{path}: {error.what}", error.hint) from error


def listed(table: Any) -> str:
    """The columns, some of many; of a CSV with other separators that is one."""
    names = [str(name) for name in table.columns]
    if len(names) == 1 and ";" in names[0]:
        return f"{names[0]!r} alone, so save it with commas"
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "") or "none"


def numbers(column: Any) -> np.ndarray:
    """The column as float64; NaN for what is no number."""
    import pandas as pd

    return pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)


def coordinates(table: Any, noun: str, places: Sequence[tuple[str, str]] = PLACES) -> tuple[np.ndarray, np.ndarray]:
    """Longitude and latitude, float64 (n,) degrees; NaN where a row has none, infinite where a projection has no
    answer. `noun` is what a message calls the rows; of the `places` the first that is there counts.
    """
    for x, y in places:
        if {x, y} <= set(table.columns):
            return numbers(table[x]), numbers(table[y])
    if getattr(table, "_geometry_column_name", None) not in table.columns:
        hint = "add x and y, or longitude and latitude, in degrees"
        raise BadInput(f"no coordinates; its columns: {listed(table)}", hint)
    return _points(table.geometry, noun)


def _points(geometry: Any, noun: str) -> tuple[np.ndarray, np.ndarray]:
    """Longitude and latitude of point geometries in any CRS."""
    if geometry.crs is None:
        raise BadInput("the geometry has no CRS", "set it (`set_crs` in geopandas), or add x and y in degrees")
    multiple = (geometry.geom_type == "MultiPoint").to_numpy()
    if multiple.any() and (geometry[multiple].count_coordinates() == 1).all():  # as many programs export points
        geometry = geometry.explode(index_parts=False)
    if other := set(geometry.geom_type.dropna()) - {"Point"}:
        raise BadInput(f"it holds {', '.join(sorted(other))}; {noun} are points", "use their centroids")
    degrees = geometry.to_crs(4326)
    # `.x` refuses missing points, which the caller counts
    there = ~(degrees.isna() | degrees.is_empty).to_numpy()
    lon, lat = np.full(len(degrees), np.nan), np.full(len(degrees), np.nan)
    lon[there], lat[there] = degrees[there].x, degrees[there].y
    return lon, lat


def check_globe(lon: np.ndarray, lat: np.ndarray) -> None:
    """Refuse points that lie nowhere, and say which is the first."""
    off = np.flatnonzero((np.abs(lon) > 180) | (np.abs(lat) > 90))
    if len(off):
        first = f"{lon[off[0]]:g}, {lat[off[0]]:g} in row {off[0]}"
        raise BadInput(
            f"{counted(len(off), 'point')} outside -180..180, -90..90, the first at {first}",
            "x and y are degrees; projected coordinates need a geometry with a CRS",
        )
