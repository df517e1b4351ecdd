"""Vectors of texts, as `aef text` makes them, into a cube."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from aefcli.attach.files import Told
from aefcli.attach.place import Found, Place, nothing
from aefcli.errors import BadInput
from aefcli.field import locate
from aefcli.text import read


def texts(place: Place, files: Sequence[Path], told: Told) -> Found:
    """Those texts that lie on the cube and whose period meets the cube's, in the order of the files."""
    import xarray as xr

    tables = [read(file) for file in files]
    widths = {table.vectors.shape[1] for table in tables}
    if len(widths) > 1:
        raise BadInput(f"the files hold vectors of {sorted(widths)} numbers", "one language model gives one length")
    names = ("lon", "lat", "start", "end", "vectors")
    lon, lat, start, end, vectors = (np.concatenate([getattr(table, name) for table in tables]) for name in names)
    kept = locate(place.cube, lon, lat)[2] & (start < place.period.end) & (end > place.period.start)
    if not kept.any():
        raise nothing(place, files)
    columns = {"lon": lon, "lat": lat, "start": start, "end": end}
    variables = {name: ("point", values[kept]) for name, values in columns.items()}
    dataset = xr.Dataset({**variables, "vector": (("point", "number"), vectors[kept])})
    notes = (
        [f"{len(kept) - kept.sum()} of {len(kept)} texts lie outside the cube or its period"] if not kept.all() else []
    )
    return Found(dataset, notes)
