"""The preview of a field that a GIS opens: its colours as a GeoTIFF with overviews."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from aefcli import geotiff
from aefcli.extent import Period, Tile
from aefcli.published import open_vectors
from aefcli.report.page import destination
from aefcli.report.thin import Thinned, painter_of, title
from aefcli.several import outside

if TYPE_CHECKING:
    from aefcli.colours import Colours

_LONGEST = 8192  # pixels along the longer side; more are skipped over


def preview_tif(field: Path, out: Path | None = None, told: Period | None = None) -> Path:
    """Write one period of a field as colours: an RGBA COG (uint8, averaged overviews, alpha 0 where nodata).

    The longest valid period is drawn, the first of those: of a year and its months the year. Colours are those of
    `preview`. It lies beside the store as `<name>.preview.tif` unless `out` says otherwise, and replaces what is there
    when it is whole. Fields longer than 8192 px are thinned out. Read and written block by block. Raises BadInput where
    `open_vectors` does or `out` lies in no folder, NoResources where it cannot be written, Locked where another writes.
    """
    beside = outside(field)
    target = destination(field, out or beside.parent / f"{beside.resolve().stem}.preview.tif")
    vectors = open_vectors(field, told)
    time = max(range(len(vectors.periods)), key=lambda index: (vectors.periods[index].days, -index))
    thin, painter = Thinned.to(vectors, _LONGEST), painter_of(vectors)
    raster = geotiff.Raster(
        grid=thin.grid,
        count=4,
        dtype="uint8",
        nodata=None,
        there=lambda rgba: rgba[3] > 0,
        describe=lambda file: file.update_tags(
            period=title(vectors.periods[time]), colours="the first three principal components"
        ),
        options={"photometric": "RGB", "alpha": "yes"},
        packing={"predictor": "yes"},
    )
    geotiff.write(target, raster, _painted(thin, time, painter), "average")
    return target


def _painted(thin: Thinned, time: int, painter: Colours) -> geotiff.Parts:
    """The colours, RGBA (4, h, w)."""
    for (rows, columns), values in thin.parts([time]):
        _, dimensions, high, wide = values.shape
        rgba = painter.paint(values[0].reshape(dimensions, -1).T).reshape(high, wide, 4)
        yield Tile(rows.start, columns.start, rows.stop, columns.stop), rgba.transpose(2, 0, 1)
