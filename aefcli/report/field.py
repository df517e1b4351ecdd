"""The pictures of an embedding field: its colours, what is like a place, and what changed between two periods."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aefcli.colours import Colours
from aefcli.extent import Period
from aefcli.field import degrees
from aefcli.published import open_vectors
from aefcli.report.page import DPI, destination, save
from aefcli.report.thin import Thinned, cosines, painter_of, position, time_of, title, vectors_at

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from odc.geo.geobox import GeoBox

    from aefcli.judge import View
    from aefcli.published import Vectors

_LONGEST = 1024  # pixels along a lone panel's longer side; more are skipped over
_FITTED = 50_000  # vectors the components of a view are fitted on
_VIEW = 600  # pixels along a view's longer side
_BLANK = 236  # grey where a view has no data
_WIDTH = 640  # of the picture in pixels, at least
_BAR = 92  # beside the panels, for the colour bar


@dataclass(frozen=True)
class Scale:
    """What the colours of a picture of numbers mean: from `low` to `high`, which values go beyond as `extend` says."""

    label: str
    low: float
    high: float
    colours: str  # matplotlib's name
    extend: str = "neither"


def preview(field: Path, out: Path | None = None, told: Period | None = None) -> Path:
    """Draw a field as colours: its first three principal components as red, green and blue; returns the PNG.

    One fit over all valid periods, so that a colour means the same in every panel; each component is stretched from
    its 2nd to its 98th percentile. Pixels without data stay transparent. North is up, and every pixel read is drawn as
    a square; fields longer than 1024 px are thinned out, not averaged. The file lies beside the store
    unless `out` says otherwise. `told` is the period of a published field that does not say it. Raises BadInput where
    `open_vectors` does.
    """
    target = destination(field, out)
    vectors = open_vectors(field, told)
    thin, painter = _panelled(vectors, len(vectors.periods)), painter_of(vectors)
    images = [thin.painted(time, painter) for time in range(len(vectors.periods))]
    _draw(thin, [title(period) for period in vectors.periods], images, target)
    return target


def similar(field: Path, at: tuple[float, float], out: Path | None = None, told: Period | None = None) -> Path:
    """Draw how alike all pixels are to the one at a place, `at` its longitude and latitude: a panel per period.

    The cosine of each vector with that of the place in the same period. Raises BadInput where the place is outside or
    without data; a period in which it has none stays blank.
    """
    target = destination(field, out)
    vectors = open_vectors(field, told)
    thin, there = _panelled(vectors, len(vectors.periods)), vectors_at(vectors, *at)
    images, titles = [], []
    for time, (period, place) in enumerate(zip(vectors.periods, there, strict=True)):
        titles.append(title(period) + ("" if np.isfinite(place).all() else ": no data there"))
        images.append(thin.picture([time], lambda each, place=place: cosines(each, place), np.float32))
    values = np.concatenate([image[np.isfinite(image)] for image in images])
    low = min(math.floor(float(np.percentile(values, 2)) * 10) / 10, 0.9)
    extend = "min" if values.min() < low else "neither"
    scale = Scale(f"cosine similarity to {at[0]:g}, {at[1]:g}", low, 1.0, "viridis", extend)
    _draw(thin, titles, images, target, scale, position(thin, *at))
    return target


def changed(field: Path, periods: tuple[Period, Period], out: Path | None = None, told: Period | None = None) -> Path:
    """Draw how far each pixel's vector turned from one valid period of a field to another: the angle, in degrees.

    Raises BadInput where the field does not have these periods.
    """
    target = destination(field, out)
    vectors = open_vectors(field, told)
    times = [time_of(vectors, period) for period in periods]
    thin = _panelled(vectors, 1)
    angles = thin.picture(times, lambda a, b: np.degrees(np.arccos(cosines(a, b))), np.float32)
    values = angles[np.isfinite(angles)]
    high = max(math.ceil(float(np.percentile(values, 98)) / 5) * 5, 5) if values.size else 5
    before, after = (title(period) for period in periods)
    told_of = f"{before} to {after}" + (f": median {np.median(values):.1f}°" if values.size else "")
    extend = "max" if values.size and values.max() > high else "neither"
    _draw(thin, [told_of], [angles], target, Scale("angle between the vectors (degrees)", 0, high, "magma", extend))
    return target


def painted(vectors: np.ndarray) -> np.ndarray:
    """RGBA uint8 (n, 4) of vectors (n, d), NaN where nodata: three components of their own, stretched."""
    valid = np.flatnonzero(np.isfinite(vectors).all(axis=1))
    return Colours.fit(vectors[np.random.default_rng(0).permutation(valid)[:_FITTED]]).paint(vectors)


def view(vectors: Vectors, time: int = 0) -> View:
    """One period of anybody's field as colours of its own, thinned to 600 px along its longer side, north up.

    Reads all of it, block by block.
    """
    from aefcli.judge import View

    grid, thin = vectors.grid, Thinned.to(vectors, _VIEW)
    values = thin.picture([time], lambda each: each, np.float32, (vectors.dimensions,))
    rgba = painted(values.reshape(-1, vectors.dimensions)).reshape(*thin.shape, 4)
    return View(
        title=f"{vectors.name}, {title(vectors.periods[time])}",
        rgb=np.where(rgba[..., 3:] > 0, rgba[..., :3], np.uint8(_BLANK)),
        bounds=grid.boundingbox.bbox,
        crs=str(grid.crs),
        lonlat=degrees(grid),
    )


# ---- drawing


def _panelled(vectors: Vectors, panels: int) -> Thinned:
    return Thinned.to(vectors, _LONGEST / _columns(panels))


def _columns(panels: int) -> int:
    return math.ceil(math.sqrt(panels))


def _draw(
    thin: Thinned,
    titles: Sequence[str],
    images: Sequence[np.ndarray],
    target: Path,
    scale: Scale | None = None,
    mark: tuple[float, float] | None = None,
) -> None:
    """Lay out one panel per image, RGBA or numbers of a scale, and save.

    Sizes are in pixels of the picture, so each pixel is a whole square.
    """
    from matplotlib.figure import Figure

    height, width = thin.shape
    columns = _columns(len(images))
    rows = math.ceil(len(images) / columns)
    lone = len(images) == 1
    left, right, below, above = (88, 20, 50, 30) if lone else (10, 10, 10, 24)
    zoom = max(1, min(math.ceil(_WIDTH / (columns * width)), math.ceil(1600 / (rows * height))))
    cell = (max(width * zoom, 90) + left + right, height * zoom + below + above)
    beside = _BAR if scale else 0
    size = (max(columns * cell[0], _WIDTH) + beside, rows * cell[1])
    figure = Figure(figsize=(size[0] / DPI, size[1] / DPI), dpi=DPI)
    margin = (size[0] - beside - columns * cell[0]) // 2
    for index, (told, image) in enumerate(zip(titles, images, strict=True)):
        row, column = divmod(index, columns)
        x, y = margin + column * cell[0] + left, size[1] - (row + 1) * cell[1] + below
        area = (x / size[0], y / size[1], width * zoom / size[0], height * zoom / size[1])
        axes = figure.add_axes(area)
        look = {"cmap": scale.colours, "vmin": scale.low, "vmax": scale.high} if scale else {}
        axes.imshow(image, interpolation="nearest", aspect="auto", extent=_extent(thin.grid), **look)  # type: ignore[arg-type]
        axes.set_title(told, fontsize=9)
        if mark:
            _mark(axes, thin.grid, mark)
        (_label if lone else _bare)(axes, thin.grid)
    if scale:
        _bar(figure, scale, size)
    save(figure, target)


def _bar(figure: Figure, scale: Scale, size: tuple[int, int]) -> None:
    """The colour bar, at the right of all panels."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    tall = min(size[1] - 80, 420)
    area = ((size[0] - _BAR + 14) / size[0], (size[1] - tall) / 2 / size[1], 16 / size[0], tall / size[1])
    shades = ScalarMappable(Normalize(scale.low, scale.high), scale.colours)
    bar = figure.colorbar(shades, cax=figure.add_axes(area), extend=scale.extend)
    bar.ax.tick_params(labelsize=8)
    bar.set_label(scale.label, fontsize=8)


def _mark(axes: Axes, grid: GeoBox, at: tuple[float, float]) -> None:
    """A ring around a pixel, seen on any colour."""
    west, east, south, north = _extent(grid)
    x = west + (at[1] + 0.5) / grid.shape[1] * (east - west)
    y = north - (at[0] + 0.5) / grid.shape[0] * (north - south)
    for colour, thick in (("black", 3.4), ("white", 1.6)):
        axes.plot([x], [y], "o", markersize=10, markerfacecolor="none", markeredgecolor=colour, markeredgewidth=thick)


def _extent(grid: GeoBox) -> tuple[float, float, float, float]:
    """West, east, south, north of a picture: kilometres, or degrees where the CRS has them."""
    unit = _unit(grid)[0]
    west, south, east, north = grid.boundingbox.bbox
    return west / unit, east / unit, south / unit, north / unit


def _unit(grid: GeoBox) -> tuple[float, str]:
    """What the axes are divided by, and what they are then in."""
    units = _axes_of(grid)["X"].get("units", "")
    return (1000.0, "km") if units == "metre" else (1.0, "degrees" if units.startswith("degree") else units)


def _axes_of(grid: GeoBox) -> dict[str, dict[str, str]]:
    """What CF says of the axes of the grid's CRS, by letter."""
    assert grid.crs is not None, "a field's grid has a CRS"
    return {axis["axis"]: axis for axis in grid.crs.proj.cs_to_cf()}


def _label(axes: Axes, grid: GeoBox) -> None:
    from matplotlib.ticker import MaxNLocator, ScalarFormatter

    unit, said = _unit(grid)[1], _axes_of(grid)
    for axis, name in ((axes.xaxis, "X"), (axes.yaxis, "Y")):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(ScalarFormatter(useOffset=False))
        axis.set_label_text(f"{said[name].get('long_name', name.lower())} ({unit})", fontsize=8)
    axes.tick_params(labelsize=8)
    assert grid.crs is not None
    name = grid.crs.proj.name
    axes.annotate(name, (1, 0), (0, -42), "axes fraction", "offset pixels", ha="right", va="center", fontsize=7)


def _bare(axes: Axes, grid: GeoBox) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
