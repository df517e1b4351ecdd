"""The picture of a cube: a calendar of its frames above quick-looks of the ground.

Owns what is drawn and where. Reads the weights of all frames, and of the few that are shown every n-th pixel of
three bands.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aefcli.cube.about import CLEAR_LOOK, GAP_DAYS, About, SourceAbout, about, cells
from aefcli.cube.store import whole
from aefcli.extent import Period, Tile
from aefcli.report.page import DPI, destination, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    from aefcli.cube import Cube, CubeSource

_LONGEST = 512  # pixels read along the longer side of a quick-look; more are skipped over
_PANELS = 8  # quick-looks, that of the radar among them
_COLUMNS = {1: 3, 2: 3, 3: 3, 5: 5, 6: 3}  # of so many quick-looks; else 4
_PASSES = 8  # of the radar, averaged against its speckle
_COLOURS = {"sentinel-2": ("B04", "B03", "B02"), "landsat": ("B4", "B3", "B2")}  # red, green, blue
_GAMMA = 1.4  # lifts the dark half, where forest and water are
_RADAR = (("VV", "VH"), ("HH", "HV"))

# The page, in its pixels.
_WIDTH, _LEFT, _RIGHT = 1200, 104, 150
_HEAD, _ROW, _AXIS = 74, 46, 52
_MARGIN, _SPACE = 20, 14
_CAPTION, _TITLE, _TALLEST = 17, 30, 480
_CLOUDED, _CLEAR = "#d4d4d4", ("#8fbcdb", "#08407a")  # marks from no clear pixel to all of them
_LEGEND = f"short marks: under {CLEAR_LOOK * 100:.0f} % clear; shaded: over {GAP_DAYS} days without a clearer frame"
_GAP, _ALARM, _QUIET = "#f9d9d1", "#8a2d18", "#555555"


@dataclass(frozen=True)
class Look:
    """One quick-look: RGBA uint8 (y, x, 4), alpha 0 where there is no data; and its title."""

    rgba: np.ndarray
    title: str


def picture(cube: Cube, out: Path | None = None, workers: int = 4) -> Path:
    """Draw a cube: when each source saw the ground and how clearly, and what it saw; returns the PNG.

    Above, a row per source over the period with a mark per frame, coloured by its clear share; gaps as `about` has
    them are shaded. Below, the clearest optical frames spread over the period in true colour, one stretch for all of
    them, and the radar's mean of a few passes of one direction as VV, VH and their ratio. Pixels without data are
    hatched. Quick-looks longer than 512 px are thinned out, not averaged. The file lies beside the cube unless `out`
    says otherwise.
    """
    from matplotlib.figure import Figure

    target = destination(cube.path, out)
    found = about(cube, workers)
    optical, captions = _optical(cube, found)
    radar = _radar(cube, found)
    looks = [*optical, *(look for look, _ in radar)]
    captions = [_LEGEND, *captions, *(caption for _, caption in radar)]
    width, height, across = _fit(len(looks), cube.shape)
    calendar = _HEAD + _ROW * len(found.sources) + _AXIS
    told = calendar + _CAPTION * len(captions)
    total = math.ceil(told + math.ceil(len(looks) / across) * (height + _TITLE) + _SPACE)
    page = _Page(Figure(figsize=(_WIDTH / DPI, total / DPI), dpi=DPI, facecolor="white"), total)
    _head(page, found)
    _calendar(page, found)
    for index, caption in enumerate(captions):
        page.write(_MARGIN, calendar + _CAPTION * index, caption, 8.5)
    for index, look in enumerate(looks):
        row, column = divmod(index, across)
        place = _MARGIN + column * (width + _SPACE), told + row * (height + _TITLE) + _TITLE
        axes = page.axes(*place, width, height)
        _panel(axes, look)
        if index == 0:
            _scale_bar(axes, found.grid.columns * found.grid.gsd)
    save(page.figure, target)
    return target


def _fit(count: int, shape: tuple[int, int]) -> tuple[float, float, int]:
    """Width and height of a quick-look of a cube of `shape`, in pixels of the page, and how many stand in a row."""
    ratio = shape[0] / shape[1]
    across = 2 if ratio < 0.4 else _COLUMNS.get(count, 4)
    width = (_WIDTH - 2 * _MARGIN - (across - 1) * _SPACE) / across
    return min(width, _TALLEST / ratio), min(width * ratio, _TALLEST), across


@dataclass(frozen=True)
class _Page:
    """A figure addressed in pixels from its top left corner."""

    figure: Figure
    height: int

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        bottom = self.height - top - height
        return self.figure.add_axes(
            (left / _WIDTH, bottom / self.height, width / _WIDTH, height / self.height),
        )

    def write(
        self, left: float, top: float, text: str, size: float, colour: str = "black", weight: str = "normal"
    ) -> None:
        self.figure.text(
            left / _WIDTH, 1 - top / self.height, text, size=size, color=colour, weight=weight, va="top", ha="left"
        )


# ---- the calendar


def _head(page: _Page, found: About) -> None:
    """The title, what and where, and what the colours mean."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    grid = found.grid
    size = f"{grid.columns * grid.gsd / 1000:.3g} x {grid.rows * grid.gsd / 1000:.3g} km"
    west, south, east, north = grid.bbox
    page.write(_MARGIN, 12, Path(found.path).resolve().name, 13, weight="bold")
    place = f"{size} at {grid.gsd:g} m, {grid.name}, {west:.4f},{south:.4f},{east:.4f},{north:.4f}"
    page.write(_MARGIN, 38, f"{str(found.period).replace(':', ' to ')}, {place}", 9, _QUIET)
    bar = page.axes(_WIDTH - _MARGIN - 230, 18, 210, 10)
    page.figure.colorbar(
        ScalarMappable(Normalize(0, 100), _shades()), cax=bar, orientation="horizontal", ticks=[0, 50, 100]
    )
    bar.set_xticklabels(["0 %", "clear share of a frame", "100 %"], fontsize=8)
    bar.tick_params(length=2, pad=2)


def _shades() -> LinearSegmentedColormap:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("clear", [_CLOUDED, *_CLEAR])


def _calendar(page: _Page, found: About) -> None:
    """A row per source, the period from left to right."""
    from matplotlib.dates import AutoDateLocator
    from matplotlib.ticker import FuncFormatter

    count, width = len(found.sources), _WIDTH - _LEFT - _RIGHT
    axes = page.axes(_LEFT, _HEAD, width, _ROW * count)
    axes.set_xlim(_days(found.period.start), _days(found.period.end))
    axes.set_ylim(count - 0.5, -0.5)
    for row, source in enumerate(found.sources.values()):
        _row(axes, row, source, found.period, width)
        frames = "1 frame" if len(source.times) == 1 else f"{len(source.times)} frames"
        text = f"{frames}\n{source.clear:.0%} clear".replace("%", " %")
        axes.annotate(text, (1, row), (10, 0), ("axes fraction", "data"), "offset pixels", va="center", fontsize=8.5)
    axes.xaxis.set_major_locator(AutoDateLocator(minticks=4, maxticks=14))
    axes.xaxis.set_major_formatter(FuncFormatter(_by_day if found.period.days < 62 else _by_month))
    axes.set_yticks(range(count), list(found.sources))
    axes.tick_params(axis="y", length=0, labelsize=9.5)
    axes.tick_params(axis="x", labelsize=9)
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _row(axes: Axes, row: int, source: SourceAbout, period: Period, width: int) -> None:
    """The frames of one source as marks, short where hardly anything is clear; the clearer ones lie on top."""
    from matplotlib.collections import LineCollection

    shades, start = _shades(), _days(period.start)
    if source.static:
        years = sorted({str(year) for year in np.array(source.times, "datetime64[ms]").astype("datetime64[Y]")})
        axes.barh(row, period.days, 0.4, start, color=shades(source.clear))
        at = start + period.days / 2
        axes.text(at, row, f"static, of {', '.join(years)}", ha="center", va="center", fontsize=8, color="white")
        return
    for gap in source.gaps:
        axes.barh(row, gap.days, 0.92, _days(gap.start), color=_GAP, linewidth=0)
        if gap.days / period.days * width > 56:
            at = _days(gap.start) + gap.days / 2
            label = axes.text(at, row, f"{gap.days:.0f} days", ha="center", va="center", fontsize=8, color=_ALARM)
            label.set(bbox={"facecolor": _GAP, "edgecolor": "none", "pad": 1}, zorder=5)
    order = np.argsort(source.shares, kind="stable")
    places, shares = np.array([_days(time) for time in source.times])[order], np.array(source.shares)[order]
    half = np.where(shares < CLEAR_LOOK, 0.16, 0.36)
    axes.add_collection(
        LineCollection(
            [[(at, row - reach), (at, row + reach)] for at, reach in zip(places, half, strict=True)],
            colors=shades(shares),
            linewidths=min(6.0, max(1.5, width / max(1, len(places)) * 0.6)) * 72 / DPI,
            capstyle="butt",
            zorder=3,
        )
    )


def _by_day(days: float, place: int | None) -> str:
    """The label of a tick: 5 Aug, with the year below the first."""
    from matplotlib.dates import num2date

    when = num2date(days)
    return f"{when.day} {when:%b}\n" + (f"{when:%Y}" if place == 0 else " ")


def _by_month(days: float, place: int | None) -> str:
    """The label of a tick: Aug, with the year below the first and every January."""
    from matplotlib.dates import num2date

    when = num2date(days)
    return f"{when:%b}\n" + (f"{when:%Y}" if place == 0 or when.month == 1 else " ")


def _days(time: int) -> float:
    """ms since 1970 as matplotlib counts: days since 1970."""
    return time / 86_400_000


# ---- the quick-looks


def _optical(cube: Cube, found: About) -> tuple[list[Look], list[str]]:
    """The clearest frames of the first optical source that has the colours, with the line that explains them."""
    name = next((name for name, bands in _COLOURS.items() if name in cube.sources and _has(cube, name, bands)), None)
    if name is None:
        return [], []
    source, about_it = cube.sources[name], found.sources[name]
    most = _PANELS - bool(_pair(cube))
    delivered = source.delivered[:, [source.bands.index(band) for band in _COLOURS[name]]].all(axis=1)
    frames = _spread(about_it, np.flatnonzero(delivered), cube.period, most)
    if not len(frames):
        return [], [f"{name}: no frame of which {CLEAR_LOOK:.0%} is clear".replace("%", " %")]
    values, there = _physical(source, _COLOURS[name], frames)
    there &= _known(cube, name, frames)
    clear = there & (_thinned(source, "weight", frames) > 0)
    low, high = _limits(values, clear)
    days = np.array(source.times, dtype="datetime64[ms]").astype("datetime64[D]")
    looks = [
        Look(
            _rgba(values[index], there[index], low, high, _GAMMA), f"{days[frame]}   {about_it.shares[frame]:.0%} clear"
        )
        for index, frame in enumerate(frames)
    ]
    ranges = ", ".join(f"{band} {a:.2f} to {b:.2f}" for band, a, b in zip(_COLOURS[name], low, high, strict=True))
    caption = f"{name}: red, green, blue are reflectances of {ranges}, gamma {_GAMMA}; hatched: no data"
    return [Look(look.rgba, look.title.replace("%", " %")) for look in looks], [caption]


def _has(cube: Cube, name: str, bands: Sequence[str]) -> bool:
    return set(bands) <= set(cube.sources[name].bands)


def _spread(found: SourceAbout, frames: np.ndarray, period: Period, most: int) -> np.ndarray:
    """Up to `most` of the frames: the clearest of each of as many equal parts of the period; all if they are few."""
    looks = [int(frame) for frame in frames if found.shares[frame] >= CLEAR_LOOK]
    if len(looks) <= most:
        return np.array(looks, dtype=int)
    parts: dict[int, list[int]] = {}
    for frame in looks:
        share = (found.times[frame] - period.start) / (period.end - period.start)
        parts.setdefault(min(max(int(share * most), 0), most - 1), []).append(frame)
    return np.array([max(each, key=lambda frame: (found.shares[frame], -frame)) for _, each in sorted(parts.items())])


def _radar(cube: Cube, found: About) -> list[tuple[Look, str]]:
    """The mean of a few passes of the commoner direction, and the line that explains it; nothing without radar."""
    pair = _pair(cube)
    if pair is None:
        return []
    source = cube.sources["sentinel-1"]
    frames, direction = _passes(source, pair, found.sources["sentinel-1"].shares)
    if not len(frames):
        return []
    power, there = _physical(source, pair, frames)
    there = there & (power > 0).all(axis=-1)
    seen: np.ndarray = np.asarray(there.any(axis=0))
    total = np.where(there[..., None], power, 0).sum(axis=0) / np.maximum(there.sum(axis=0), 1)[..., None]
    decibels = 10 * np.log10(np.where(seen[..., None], total, 1.0))
    values = np.concatenate([decibels, decibels[..., :1] - decibels[..., 1:]], axis=-1)
    low, high = _limits(values, seen)
    names = (*pair, "/".join(pair))
    ranges = ", ".join(f"{band} {a:.0f} to {b:.0f}" for band, a, b in zip(names, low, high, strict=True))
    words = ("the mean of", str(len(frames)), direction, "pass" if len(frames) == 1 else "passes")
    caption = f"sentinel-1: red, green, blue are dB of {ranges}; {' '.join(filter(None, words))}"
    return [(Look(_rgba(values, seen, low, high), "sentinel-1, mean"), caption)]


def _passes(source: CubeSource, pair: Sequence[str], shares: Sequence[float]) -> tuple[np.ndarray, str]:
    """Up to _PASSES frames with both polarisations, evenly over those of the commoner direction; and its name."""
    usable = source.delivered[:, [source.bands.index(band) for band in pair]].all(axis=1)
    usable &= np.array(shares) >= CLEAR_LOOK
    directions = source.meta[:, source.source.meta.index("orbit")]
    kinds, counts = np.unique(directions[usable], return_counts=True)
    if not len(kinds):
        return np.array([], dtype=int), ""
    kind = kinds[np.argmax(counts)]
    frames = np.flatnonzero(usable & (directions == kind))
    chosen = np.linspace(0, len(frames) - 1, min(_PASSES, len(frames))).round().astype(int)
    return frames[chosen], {1.0: "ascending", -1.0: "descending"}.get(float(kind), "")


def _pair(cube: Cube) -> tuple[str, str] | None:
    """The polarisations that the radar quick-look is made of."""
    return next((pair for pair in _RADAR if "sentinel-1" in cube.sources and _has(cube, "sentinel-1", pair)), None)


def _physical(source: CubeSource, bands: Sequence[str], frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Physical values float32 (t, y, x, band) of every n-th pixel, and whether all were delivered (t, y, x)."""
    from aefcli.sources import valid

    values, there = [], []
    for band in bands:
        stored, index = _thinned(source, band, frames), source.bands.index(band)
        scale, offset = (each[frames, index, None, None].astype("float32") for each in (source.scale, source.offset))
        there.append(valid(stored, source.source.nodata))
        values.append(np.where(there[-1], stored, 0).astype("float32") * scale + offset)
    return np.stack(values, axis=-1), np.asarray(np.stack(there).all(axis=0))


def _known(cube: Cube, name: str, frames: np.ndarray) -> np.ndarray:
    """Where the quality layer has a value (t, y, x): lossy files have stray numbers beyond a swath's edge."""
    import zarr

    with whole(cube.path):
        quality, group = cube.sources[name].source.quality, zarr.open_group(cube.path / name, mode="r")
    if quality is None or quality.name not in group:
        return np.ones(1, dtype=bool)
    return _every(group[quality.name], frames) != quality.nodata


def _thinned(source: CubeSource, name: str, frames: np.ndarray) -> np.ndarray:
    """Some frames (t, y, x) of one variable, every n-th pixel."""
    return _every(source.arrays[name], frames)


def _every(array: Any, frames: np.ndarray) -> np.ndarray:
    """Every n-th pixel, read in strips of a chunk's height so that memory does not grow with the cube."""
    height, width = array.shape[1:]
    step, tall = math.ceil(max(height, width) / _LONGEST), getattr(array, "chunks", (0, 128, 0))[1]
    strips = (Tile(top, 0, min(top + tall, height), width) for top in range(0, height, tall))
    return np.concatenate([cells(array, frames, strip)[:, -strip.top % step :: step, ::step] for strip in strips], 1)


def _limits(values: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 2nd and 98th percentile of each band over the chosen pixels."""
    if not chosen.any():
        return np.zeros(values.shape[-1]), np.ones(values.shape[-1])
    low, high = np.percentile(values[chosen], (2, 98), axis=0)
    return low, high


def _rgba(values: np.ndarray, there: np.ndarray, low: np.ndarray, high: np.ndarray, gamma: float = 1.0) -> np.ndarray:
    """Values (y, x, 3) between the limits as colours, uint8 (y, x, 4)."""
    span = np.where(high - low > 1e-9, high - low, np.inf)
    rgba = np.zeros((*there.shape, 4), dtype=np.uint8)
    rgba[..., :3] = np.rint(np.clip((values - low) / span, 0, 1) ** (1 / gamma) * 255)
    rgba[..., 3] = np.where(there, 255, 0)
    return rgba


def _panel(axes: Axes, look: Look) -> None:
    axes.patch.set(hatch="////", facecolor="white", edgecolor="#c8c8c8", linewidth=0)
    axes.imshow(look.rgba, interpolation="auto", aspect="auto")
    axes.set_title(look.title, fontsize=9.5, pad=4)
    axes.set_xticks([])
    axes.set_yticks([])


def _scale_bar(axes: Axes, metres: float) -> None:
    """A round length of about a quarter of the width, lower left."""
    from matplotlib.patheffects import withStroke

    wanted = metres / 4
    power = 10 ** math.floor(math.log10(wanted))
    length = max(step * power for step in (1, 2, 5) if step * power <= wanted)
    text = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
    left, right = axes.bbox.width * 0.04, axes.bbox.width * (0.04 + length / metres)
    for width, colour in ((5, "black"), (3, "white")):
        axes.annotate(
            "",
            (left, 10),
            (right, 10),
            "axes pixels",
            "axes pixels",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": width, "shrinkA": 0, "shrinkB": 0},
        )
    outline = [withStroke(linewidth=3, foreground="black")]
    middle = ((left + right) / 2, 15)
    axes.annotate(text, middle, xycoords="axes pixels", color="white", size=9, ha="center", path_effects=outline)
