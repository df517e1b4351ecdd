"""Tables of points that users bring: CSV, Parquet, GeoJSON or GeoPackage, as (geo)pandas frames.

Owns which kinds there are and the one line for what cannot be opened. What the columns mean is for whoever asks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aefcli.errors import BadInput, unknown

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
