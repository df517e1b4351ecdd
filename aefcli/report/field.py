"""The preview of an embedding field."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aefcli.extent import Period, tiles
from aefcli.field import NODATA, dequantise, geobox, open_field
from aefcli.report.page import DPI, destination, save

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

    from aefcli.judge import View
    from aefcli.published import Vectors

_LONGEST = 1024  # pixels along a lone panel's longer side; more are skipped over, so 64 MiB of codes at most
_FITTED = 50_000  # vectors the components are fitted on
_VIEW = 600  # pixels along a view's longer side
_BLANK = 236  # grey where a view has no data
_WIDTH = 640  # of the picture in pixels, at least


def preview(field_path: Path, out: Path | None = None) -> Path:
    """Draw a field as colours: its first three principal components as red, green and blue; returns the PNG.

    One fit over all valid periods, so that a colour means the same in every panel; each component is stretched from
    its 2nd to its 98th percentile. Pixels without data stay transparent. North is up, and every pixel read is drawn as
    a square; fields longer than 1024 px are thinned out, not averaged. The file lies beside the store
    unless `out` says otherwise. Raises BadInput where `open_field` does.
    """
    target = destination(field_path, out)
    field = open_field(field_path)
    columns = math.ceil(math.sqrt(field.sizes["time"]))
    step = math.ceil(max(field.sizes["y"], field.sizes["x"]) * columns / _LONGEST)
    codes = np.stack([_thinned(field, time, step) for time in range(field.sizes["time"])])
    _draw(field, _colours(codes), columns, step, target)
    return target


def _thinned(field: xr.Dataset, time: int, step: int) -> np.ndarray:
    """int8 codes (embedding, y, x) of one period, every `step`-th pixel."""
    every = slice(None, None, step)
    return field["embeddings"].isel(time=time, y=every, x=every).transpose("embedding", "y", "x").values


def _colours(codes: np.ndarray) -> np.ndarray:
    """int8 codes (time, 64, y, x) -> RGBA uint8 (time, y, x, 4); alpha 0 where there is no data."""
    moved = np.moveaxis(codes, 1, -1)
    vectors = moved.reshape(-1, moved.shape[-1])
    valid = np.flatnonzero((vectors != NODATA).all(axis=1) & vectors.any(axis=1))
    # By blocks: decoded vectors take four times the room of their codes.
    return painted(len(vectors), valid, lambda at: dequantise(vectors[at])).reshape(*moved.shape[:-1], 4)


def painted(count: int, valid: np.ndarray, vectors: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """RGBA uint8 (count, 4): three components of the `vectors` at `valid`, stretched; alpha 0 elsewhere."""
    from sklearn.decomposition import PCA

    rgba = np.zeros((count, 4), dtype=np.uint8)
    if len(valid) >= 3:  # fewer vectors do not have three components: the picture stays blank
        chosen = vectors(np.random.default_rng(0).permutation(valid)[:_FITTED])
        fit = PCA(3, svd_solver="full").fit(chosen)
        low, high = np.percentile(fit.transform(chosen), (2, 98), axis=0)
        span = np.where(high - low > 1e-6, high - low, np.inf)
        for block in np.array_split(valid, math.ceil(len(valid) / 200_000)):
            shares = (fit.transform(vectors(block)) - low) / span
            rgba[block, :3] = np.rint(np.clip(shares, 0, 1) * 255)
        rgba[valid, 3] = 255
    return rgba


def view(vectors: Vectors, time: int = 0) -> View:
    """One period of anybody's field as the colours of `preview`, thinned to 600 px along its longer side, north up.

    Reads all of it, block by block.
    """
    from aefcli.judge import View

    grid = vectors.grid
    shape = (grid.shape[0], grid.shape[1])
    step = math.ceil(max(shape) / _VIEW)
    values = np.full((-(-shape[0] // step), -(-shape[1] // step), vectors.dimensions), np.nan, dtype="float32")
    for tile in tiles(shape, max(vectors.block)):
        top, left = -(-tile.top // step), -(-tile.left // step)
        found = vectors.window(tile, time)[:, top * step - tile.top :: step, left * step - tile.left :: step]
        values[top : top + found.shape[1], left : left + found.shape[2]] = np.moveaxis(found, 0, -1)
    flat = values.reshape(-1, vectors.dimensions)
    rgba = painted(len(flat), np.flatnonzero(np.isfinite(flat).all(axis=1)), lambda at: flat[at])
    rgb = np.where(rgba[:, 3:] > 0, rgba[:, :3], np.uint8(_BLANK)).reshape(*values.shape[:2], 3)
    return View(
        title=f"{vectors.name}, {_title(vectors.periods[time])}",
        rgb=rgb[::-1] if grid.transform.e > 0 else rgb,
        bounds=grid.boundingbox.bbox,
        crs=str(grid.crs),
        lonlat=grid.geographic_extent.boundingbox.bbox,
    )


def _draw(field: xr.Dataset, rgba: np.ndarray, columns: int, step: int, target: Path) -> None:
    """Lay out one panel per period and save. Sizes are in pixels of the picture, so each pixel is a whole square."""
    from matplotlib.figure import Figure

    times, height, width, _ = rgba.shape
    rows = math.ceil(times / columns)
    lone = times == 1
    left, right, below, above = (88, 20, 50, 30) if lone else (10, 10, 10, 24)
    zoom = max(1, min(math.ceil(_WIDTH / (columns * width)), math.ceil(1600 / (rows * height))))
    cell = (max(width * zoom, 90) + left + right, height * zoom + below + above)
    size = (max(columns * cell[0], _WIDTH), rows * cell[1])
    figure = Figure(figsize=(size[0] / DPI, size[1] / DPI), dpi=DPI)
    margin = (size[0] - columns * cell[0]) // 2
    for index, period in enumerate(_periods(field)):
        row, column = divmod(index, columns)
        x, y = margin + column * cell[0] + left, size[1] - (row + 1) * cell[1] + below
        area = (x / size[0], y / size[1], width * zoom / size[0], height * zoom / size[1])
        axes = figure.add_axes(area)
        axes.imshow(rgba[index], interpolation="nearest", aspect="auto", extent=_extent(field, rgba.shape, step))
        axes.set_title(period, fontsize=9)
        (_label if lone else _bare)(axes, field)
    save(figure, target)


def _periods(field: xr.Dataset) -> list[str]:
    """The valid periods as titles: the year alone where it is a whole one."""
    bounds = field["time_bnds"].values.astype("datetime64[ms]").astype(np.int64)
    periods = [Period(int(start), int(end)) for start, end in bounds]
    return [_title(period) for period in periods]


def _title(period: Period) -> str:
    year = f"{period.dates()[0].year:04d}"
    return year if Period.parse(year) == period else str(period)


def _extent(field: xr.Dataset, shape: tuple[int, ...], step: int) -> tuple[float, float, float, float]:
    """West, east, south, north of the pixels drawn: kilometres, or degrees where the CRS has them."""
    grid = geobox(field)
    unit = _unit(field)[0]
    affine = grid.transform
    west, north = affine.c / unit, affine.f / unit
    return west, west + affine.a * step * shape[2] / unit, north + affine.e * step * shape[1] / unit, north


def _unit(field: xr.Dataset) -> tuple[float, str]:
    """What the axes are divided by, and what they are then in."""
    units = field["x"].attrs.get("units", "")
    return (1000.0, "km") if units == "metre" else (1.0, "degrees" if units.startswith("degree") else units)


def _label(axes: Axes, field: xr.Dataset) -> None:
    from matplotlib.ticker import MaxNLocator, ScalarFormatter

    unit = _unit(field)[1]
    for axis, name in ((axes.xaxis, "x"), (axes.yaxis, "y")):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(ScalarFormatter(useOffset=False))
        axis.set_label_text(f"{field[name].attrs.get('long_name', name)} ({unit})", fontsize=8)
    axes.tick_params(labelsize=8)
    name = field["spatial_ref"].attrs.get("projected_crs_name") or field["spatial_ref"].attrs["geographic_crs_name"]
    axes.annotate(name, (1, 0), (0, -42), "axes fraction", "offset pixels", ha="right", va="center", fontsize=7)


def _bare(axes: Axes, field: xr.Dataset) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
