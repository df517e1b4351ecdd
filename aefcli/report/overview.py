"""The preview of a field that a GIS opens: its colours as a GeoTIFF with overviews."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from aefcli.errors import NoResources
from aefcli.extent import Period
from aefcli.published import open_vectors
from aefcli.report.page import destination
from aefcli.report.thin import Thinned, painter_of, title

if TYPE_CHECKING:
    from aefcli.colours import Colours

_LONGEST = 8192  # pixels along the longer side; more are skipped over
_BLOCK = 256


def preview_tif(field: Path, out: Path | None = None, told: Period | None = None) -> Path:
    """Write one period of a field as colours: an RGBA COG (uint8, averaged overviews, alpha 0 where nodata).

    The longest valid period is drawn, the first of those: of a year and its months the year. Colours are those of
    `preview`. It lies beside the store as `<name>.preview.tif` unless `out` says otherwise, and replaces what is there
    when it is whole. Fields longer than 8192 px are thinned out. Read and written block by block. Raises BadInput where
    `open_vectors` does, NoResources where it cannot be written.
    """
    import rasterio.shutil
    from rasterio.errors import RasterioError

    target = destination(field, out or field.parent / f"{field.resolve().stem}.preview.tif")
    vectors = open_vectors(field, told)
    time = max(range(len(vectors.periods)), key=lambda index: (vectors.periods[index].days, -index))
    thin, painter = Thinned.to(vectors, _LONGEST), painter_of(vectors)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as aside:
            flat, whole = Path(aside) / "flat.tif", Path(aside) / "whole.tif"
            with rasterio.Env(GDAL_CACHEMAX=64):
                _flat(flat, thin, time, painter)
                options = {"compress": "deflate", "predictor": "yes", "blocksize": _BLOCK}
                rasterio.shutil.copy(flat, whole, driver="COG", overview_resampling="average", **options)
            whole.replace(target)
    except (OSError, RasterioError) as error:
        raise NoResources(f"cannot write {target}: {getattr(error, 'strerror', None) or error}", "make room") from error
    return target


def _flat(path: Path, thin: Thinned, time: int, painter: Colours) -> None:
    """The colours without overviews."""
    import rasterio
    from rasterio.windows import Window

    height, width = thin.shape
    grid = thin.grid
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 4, "height": height, "width": width, "photometric": "RGB"}
    tiled = {"tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK, "interleave": "pixel", "bigtiff": "if_safer"}
    placed = {"crs": grid.crs, "transform": grid.transform}
    with rasterio.open(path, "w", alpha="yes", **placed, **profile, **tiled) as file:
        file.update_tags(period=title(thin.vectors.periods[time]), colours="the first three principal components")
        for (rows, columns), values in thin.parts([time]):
            _, dimensions, high, wide = values.shape
            rgba = painter.paint(values[0].reshape(dimensions, -1).T).reshape(high, wide, 4)
            file.write(rgba.transpose(2, 0, 1), window=Window.from_slices(rows, columns))
