"""Embedding fields of anybody, on disk: vectors at points and in windows, through one door.

    an embedding field of ours   the Zarr that `field` writes
    a GeoTIFF                    64 bands of AEF's int8 codes, or any bands of floats; north or south up
    a Zarr store of others       `embeddings` with axes by name, codes or floats, per-pixel `scales`; format 2 or 3
    a tile of TESSERA            <name>.npy (y, x, d) int8, <name>_scales.npy, and a raster of the tile's grid

Owns what other people's layouts mean: axes, place, period, and how codes become values; `Vectors.decoding` says
which way was taken. What a file does not say is asked for in one line, never guessed. Nothing is read before it is
asked for, and then window by window. Layouts: geotessera 0.10 (TESSERA), aef-mosaic (AEF as Zarr), the Zarr
conventions `proj:`, `spatial:` and `geoemb:`, CF.

    vectors   an open field: codes, values, vectors at points
    store     Zarr, ours and others'
    raster    GeoTIFFs, and TESSERA's tiles, which lie where a raster says
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from aefcli import field
from aefcli.errors import BadInput
from aefcli.extent import Period
from aefcli.published import raster, store
from aefcli.published.vectors import BROKEN, KINDS, Vectors

__all__ = ["Vectors", "open_vectors"]


def open_vectors(path: Path | str, period: Period | None = None) -> Vectors:
    """Open a field of any of the four kinds; `period` is what one describes that does not say it itself.

    Raises BadInput where it is none, or leaves open what has to be known: its place, period, axes or decoding.
    """
    path = Path(path)
    if not path.exists():
        raise BadInput(f"there is no {path}", f"name {KINDS}")
    try:
        opened = _open(path, period)
        field.locate(opened.grid, np.zeros(1), np.zeros(1))  # refuses a CRS in which degrees have no place
        return opened
    except PermissionError:
        raise
    except BROKEN as error:
        what = f"{path} does not open as an embedding field: {type(error).__name__} {error}"
        raise BadInput(what, "fetch or write it again") from error


def _open(path: Path, period: Period | None) -> Vectors:
    if path.is_dir():
        return store.open_store(path, period)
    if path.suffix.lower() in (".tif", ".tiff"):
        return raster.open_raster(path, period)
    if path.suffix.lower() == ".npy":
        return raster.open_tile(path, period)
    raise BadInput(f"{path} is not an embedding field", f"name {KINDS}")
