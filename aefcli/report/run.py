"""Pictures of a run: what a look saw, and the curves of its log."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aefcli.errors import BadInput
from aefcli.report.field import painted
from aefcli.report.page import DPI, save
from aefcli.sources import SOURCES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from aefcli.checkpoint import Run
    from aefcli.watch import Look, Picture

_SIDE, _GAP = 150, 12  # pixels: of a panel, between sources
_WIDTH = 640  # of the picture, at least
_LEFT, _TOP, _ROW, _FOOT = 14, 70, 22, 18
_COLOURS = {"sentinel-2": ("B04", "B03", "B02"), "landsat": ("B4", "B3", "B2")}  # red, green, blue
_PAIRS = {"sentinel-1": ("VV", "VH"), "palsar-2": ("HH", "HV")}  # and their difference for blue
_GREY = "#e4e4e4"  # where there is nothing
_SMOOTH = 50  # parts of a curve that its mean runs over
_ACROSS, _PANEL = 3, (400, 270)  # panels of curves in a row, pixels of one with its margins


# --- a look -----------------------------------------------------------------------------------------------------------


def look_png(look: Look, path: Path) -> Path:
    """Draw a look: per place a row, per source what was held out beside what was made of it, and the embeddings.

    Both sides of a source have one stretch, from the 2nd to the 98th percentile of what was held out: red, green and
    blue for the optical ones, two polarisations and their difference for radar, else the first band. The embeddings'
    colours are three principal components. Grey: clouded, or never seen.
    """
    from matplotlib.figure import Figure

    rows, columns = len(look.embeddings), 2 * len(look.pictures) + 1
    notes = _notes(look.numbers)
    width = 2 * _LEFT + columns * (_SIDE + 2) + len(look.pictures) * _GAP
    width = max(width, _WIDTH)
    height = _TOP + rows * (_SIDE + _ROW) + _FOOT * len(notes) + 20
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)

    def panel(row: int, column: int) -> Axes:
        x = _LEFT + column * (_SIDE + 2) + column // 2 * _GAP
        y = height - _TOP - (row + 1) * (_SIDE + _ROW)
        axes = figure.add_axes((x / width, y / height, _SIDE / width, _SIDE / height))
        axes.set(xticks=[], yticks=[], facecolor=_GREY)
        return axes

    def head(column: int, text: str, below: str) -> None:
        x = _LEFT + column * (_SIDE + 2) + column // 2 * _GAP
        figure.text(x / width, 1 - 40 / height, text, fontsize=10, fontweight="bold", va="center")
        figure.text(x / width, 1 - 58 / height, below, fontsize=8.5, va="center")

    step = f", step {int(path.stem)}" if path.stem.isdecimal() else ""
    figure.text(
        _LEFT / width,
        1 - 16 / height,
        f"Frames held out from the model{step}; grey: cloud, or no data",
        fontsize=11,
        va="center",
    )
    for index, picture in enumerate(look.pictures):
        head(2 * index, picture.source, "held out")
        head(2 * index + 1, "", "reconstructed")
        target, made = _coloured(picture)
        for row in range(rows):
            left = panel(row, 2 * index)
            left.imshow(target[row], interpolation="nearest")
            left.set_title(_day(picture, row), fontsize=8, pad=3, loc="left")
            panel(row, 2 * index + 1).imshow(made[row], interpolation="nearest")
    head(columns - 1, "embeddings", "of the whole support")
    flat = look.embeddings.reshape(-1, look.embeddings.shape[-1])
    colours = painted(flat)
    for row, image in enumerate(colours.reshape(*look.embeddings.shape[:-1], 4)):
        panel(row, columns - 1).imshow(image, interpolation="nearest")
    for number, line in enumerate(reversed(notes)):
        figure.text(_LEFT / width, (12 + _FOOT * number) / height, line, fontsize=8.5, va="center")
    save(figure, path)
    return path


def _day(picture: Picture, row: int) -> str:
    if not np.isfinite(picture.target[row]).any():
        return "none"
    return str(np.datetime64(picture.times[row], "ms").astype("datetime64[D]"))


def _coloured(picture: Picture) -> tuple[np.ndarray, np.ndarray]:
    """Held out and made, as RGBA (n, h, w, 4) of one stretch; alpha 0 where there is nothing."""
    from matplotlib import colormaps

    source, both = SOURCES[picture.source], (picture.target, picture.made)
    there = [np.isfinite(side).all(axis=-1) if source.classes else np.isfinite(side).any(axis=-1) for side in both]
    if source.classes:
        seats = [np.nan_to_num(side[..., 0]).astype(int) % 20 for side in both]
        images = [colormaps["tab20"](seat) for seat in seats]
    else:
        chosen = [_chosen(picture.source, side) for side in both]
        known = chosen[0][np.isfinite(chosen[0]).all(axis=-1)]
        known = known if len(known) else chosen[1][np.isfinite(chosen[1]).all(axis=-1)]
        low, high = np.percentile(known, (2, 98), axis=0) if len(known) else (0.0, 1.0)
        span = np.where(np.subtract(high, low) > 1e-6, np.subtract(high, low), np.inf)
        shares = [np.nan_to_num(np.clip((side - low) / span, 0, 1)) for side in chosen]
        images = [
            colormaps["viridis"](share[..., 0])
            if share.shape[-1] == 1
            else np.concatenate([share, np.ones((*share.shape[:-1], 1))], axis=-1)
            for share in shares
        ]
    for image, known in zip(images, there, strict=True):
        image[..., 3] = known
    return images[0], images[1]


def _chosen(name: str, values: np.ndarray) -> np.ndarray:
    """Three numbers per pixel for red, green and blue, or one."""
    bands = [band.name for band in SOURCES[name].bands]
    if name in _COLOURS:
        return values[..., [bands.index(band) for band in _COLOURS[name]]]
    if name in _PAIRS:
        first, second = (values[..., bands.index(band)] for band in _PAIRS[name])
        return np.stack([first, second, first - second], axis=-1)
    return values[..., :1]


def _notes(numbers: Mapping[str, float]) -> list[str]:
    """The measures of a look, as lines to stand below it."""
    errors = []
    for name, value in numbers.items():
        kind, _, source = name.partition("/")
        if kind == "l1":
            median = numbers.get(f"median/{source}")
            errors.append(f"{source} {value:.3f}" + ("" if median is None else f" (the pixel's median {median:.3f})"))
        elif kind == "cross-entropy":
            errors.append(f"{source} {value:.3f} nats")
    others = [f"{name.replace('/', ' ')} {value:.3g}" for name, value in numbers.items() if name in _SPREAD + _TOLD]
    lines = [", ".join(errors[start : start + 2]) for start in range(0, len(errors), 2)]
    lines = [f"L1 in sigmas: {line}" if number == 0 else line for number, line in enumerate(lines)]
    return [*lines, ", ".join(others)] if others else lines


_SPREAD = ("uniformity", "rank", "phase")
_TOLD = ("r2/composite", "r2/harmonics")


# --- the curves -------------------------------------------------------------------------------------------------------

Curve = tuple[str, np.ndarray, np.ndarray, str]  # label, steps, values, line style


def curves_png(run: Run, path: Path) -> Path:
    """Draw the log of a run: loss, reconstruction, what looks measured, rate and speed, against the step.

    A curve is the running mean, with the steps themselves faint behind it; it breaks where steps are missing.
    """
    from matplotlib.figure import Figure

    from aefcli.checkpoint import records

    log = records(run)
    if not log:
        raise BadInput(f"{run.path} has no step in its log yet", "wait for aef train, or go on with --resume")
    panels = [panel for panel in _panels(log) if panel[2]]
    rows, (width, height) = -(-len(panels) // _ACROSS), _PANEL
    size = (_ACROSS * width, rows * height + 36)
    figure = Figure(figsize=(size[0] / DPI, size[1] / DPI), dpi=DPI)
    figure.text(14 / size[0], 1 - 18 / size[1], f"{run.path.resolve().name}: {log[-1]['step']} steps", fontsize=11)
    for index, (title, unit, curves) in enumerate(panels):
        row, column = divmod(index, _ACROSS)
        x, y = column * width + 62, (rows - 1 - row) * height + 42
        axes = figure.add_axes((x / size[0], y / size[1], (width - 80) / size[0], (height - 72) / size[1]))
        axes.set_xlim(0, log[-1]["step"] + 1)
        _draw(axes, title, unit, curves)
    save(figure, path)
    return path


def _panels(log: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, list[Curve]]]:
    """Title, unit and curves of every panel."""
    parts = list(dict.fromkeys(name for line in log for name in line["parts"]))
    looks = [line for line in log if line.get("look")]
    sources = [name for name in parts if name in SOURCES and name != "text"]

    def of(key: str) -> list[Curve]:
        return _curve(key, log, lambda line: line.get(key))

    def part(name: str) -> list[Curve]:
        return _curve(name, log, lambda line: line["parts"].get(name))

    def measured(name: str, label: str, style: str = "o-") -> list[Curve]:
        return _curve(label, looks, lambda line: line["look"].get(name), style)

    both = (("l1", "{}", "o-"), ("median", "_{}", ":"))  # an underscore keeps a name out of the legend
    held = [
        curve
        for source in sources
        for kind, label, style in both
        for curve in measured(f"{kind}/{source}", label.format(source), style)
    ]
    return [
        ("loss", "weighted sum", of("loss")),
        ("its other terms", "", [curve for name in parts if name not in sources for curve in part(name)]),
        ("reconstruction in training", "sigmas; classes: nats", [curve for name in sources for curve in part(name)]),
        ("held-out frames (dotted: the pixel's median)", "L1, sigmas", held),
        ("uniformity at looks", "mean |cosine|", measured("uniformity", "uniformity")),
        ("effective rank", "of 64", measured("rank", "rank")),
        ("linear probes", "R2", [curve for name in _TOLD for curve in measured(name, name[3:])]),
        ("learning rate", "", _curve("rate", log, lambda line: line.get("lr"), "solid")),
        ("norm of the gradient", "", of("norm")),
        ("frames read", "per second", of("frames")),
        ("waiting for data", "share of a step", of("wait")),
    ]


def _curve(
    label: str,
    lines: Sequence[Mapping[str, Any]],
    value: Callable[[Mapping[str, Any]], float | None],
    style: str = "-",
) -> list[Curve]:
    """Of those lines of a log that have the value; none where no line has it."""
    pairs = [(line["step"], found) for line in lines if (found := value(line)) is not None]
    if not pairs or not np.isfinite([found for _, found in pairs]).any():
        return []
    steps, values = np.array(pairs, dtype="float64").T
    return [(label, *_broken(steps, values), style)]


def _broken(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """With a NaN wherever steps are missing: where they lie farther apart than twice the usual distance."""
    apart = np.diff(steps)
    gaps = np.flatnonzero(apart > 2 * np.median(apart)) + 1 if len(apart) else np.array([], dtype=int)
    return np.insert(steps, gaps, steps[gaps]), np.insert(values, gaps, np.nan)


def _draw(axes: Axes, title: str, unit: str, curves: Sequence[Curve]) -> None:
    names = list(dict.fromkeys(label.removeprefix("_") for label, *_ in curves))
    for label, steps, values, style in curves:
        colour = f"C{names.index(label.removeprefix('_'))}"
        if style == "-":
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.7)
            values = _smoothed(values)
        line, marker = ("-", "o") if style == "o-" else (style, None)
        axes.plot(steps, values, linestyle=line, marker=marker, color=colour, linewidth=1.4, markersize=3, label=label)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0), high + 0.15 * (high - min(low, 0)) * (len(curves) > 1))  # room for the names
    axes.set_title(title, fontsize=9.5, loc="left")
    axes.set_ylabel(unit, fontsize=8)
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3, linewidth=0.5)
    if len(curves) > 1:
        axes.legend(fontsize=7.5, frameon=False, ncols=2, loc="upper right")


def _smoothed(values: np.ndarray) -> np.ndarray:
    """The mean over a stretch around each value, of what is not NaN; NaN stays."""
    reach = max(1, len(values) // _SMOOTH)
    kernel, known = np.ones(2 * reach + 1), np.isfinite(values)
    total, count = (
        np.convolve(one, kernel, "full")[reach : reach + len(values)] for one in (np.where(known, values, 0), known)
    )
    return np.where(known, total / np.maximum(count, 1), np.nan)
