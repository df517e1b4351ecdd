"""Files of sources that no catalog has, into a finished cube: ERA5-Land, GEDI, GRACE, PALSAR-2, maps, texts.

Owns the reading of what the providers deliver (NetCDF, GRIB, HDF5, GeoTIFF, Zarr, Parquet, CSV), their names, units
and CRS, and the way of their values onto the cube's cells and into its period. `cube` writes them, `sample` normalises
them.

One rule for time: a frame's instant is the middle of what its values tell of: a month, a day, a mapped year. A source
that stands for all times (`static` in the table) has frames outside the cube's period too.

    files     what a file is, its grids, its dates
    place     where values go: the source's cells over a cube; smoothing between coarse cells
    rasters   GeoTIFFs as lazy frames: class maps, elevation, radar
    climate   ERA5-Land by calendar months, GRACE
    shots     GEDI's shots as monthly rasters
    points    vectors of texts

Sources: `sources.md`; the providers' product pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aefcli.attach import climate, points, rasters, shots
from aefcli.attach.files import Told
from aefcli.attach.place import Found, Place
from aefcli.cube import add_source, open_cube
from aefcli.errors import BadInput
from aefcli.sources import SOURCES, source

__all__ = ["READERS", "Attached", "Told", "attach"]

READERS = {
    "palsar-2": rasters.palsar,
    "era5-land": climate.era5_land,
    "gedi": shots.gedi,
    "grace": climate.grace,
    "glo-30": rasters.elevation,
    **{name: rasters.class_map for name, row in SOURCES.items() if row.kind == "categorical"},
    "text": points.texts,
}


@dataclass(frozen=True)
class Attached:
    """What `attach` did: frames (or texts) by now in the cube, what the files left out, and whether it wrote."""

    path: Path
    count: int
    notes: tuple[str, ...]
    written: bool


def attach(path: Path, name: str, files: Sequence[Path], told: Told, *, overwrite: bool = False) -> Attached:
    """Read files of a source and put what they have of a finished cube's ground and period into it.

    Raises BadInput, the cube untouched, for files that are not what the source's table row or its provider says, and
    where none has anything of the cube.
    """
    row = source(name)
    if name not in READERS:
        raise BadInput(f"{name} comes from a catalog, not from files", "aef fetch brings it")
    if told.dates and name in ("glo-30", "text"):
        raise BadInput(f"--date does not go with {name}", "leave it out")
    if (told.heading or told.look) and not row.meta:
        raise BadInput(f"--pass and --look go with radar, not with {name}", "leave them out")
    for file in files:
        if not file.exists():
            raise BadInput(f"there is no file {file}", "check the path")
    cube = open_cube(path, without=name)  # which may be what is damaged
    found: Found = READERS[name](Place.of(cube, row), list(files), told)
    about = {"files": {file.name: size(file) for file in files}, **told.as_dict()}
    written = add_source(path, name, found.dataset, about, overwrite=overwrite)
    count = found.dataset.sizes["point" if row.kind == "text" else "time"]
    return Attached(path, count, tuple(found.notes), written)


def size(file: Path) -> int:
    """Bytes of a file, or of all files of a folder (a Zarr store)."""
    return sum(part.stat().st_size for part in file.rglob("*") if part.is_file()) or file.stat().st_size
