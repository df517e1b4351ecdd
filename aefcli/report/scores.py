"""The page of scores: one HTML file that holds all it shows and asks the network for nothing.

Owns which figures of a judgement are shown, their words and their drawings. Beside it lie the template `scores.html`,
which escapes all that it is given, and its style `scores.css`. Computes no score.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aefcli.errors import BadInput
from aefcli.probe import METRICS, best, compare
from aefcli.report.page import as_uri, hashed, saving, templates

if TYPE_CHECKING:
    from aefcli.guards import Guard
    from aefcli.judge import Judgement, View
    from aefcli.probe import Comparison, Evaluation, Labels, Score

_WORDS = {"balanced_accuracy": "balanced accuracy", "macro_f1": "macro-F1", "r2": "R²", "mae": "MAE"}
_PROBES = {"knn1": "kNN\N{NO-BREAK SPACE}1", "knn3": "kNN\N{NO-BREAK SPACE}3"}
_SPAN = (2.5, 97.5)  # percentiles: what 95 % of the replicates lie between

# Colours that the common kinds of colour blindness leave apart: Okabe and Ito's without yellow and black for lines;
# Tol's "muted" for up to nine classes, and for more his discrete rainbow with similar colours far apart.
_LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#7f7f7f")
_DASHES = ("", "7 3", "2 3")
_FEW = ("#cc6677", "#332288", "#ddcc77", "#117733", "#88ccee", "#882255", "#44aa99", "#999933", "#aa4499")
_MANY = (
    "#d1bbd7", "#f7f056", "#1965b0", "#e8601c", "#ae76a3", "#f6c141", "#437dbf", "#dc050c",
    "#882e72", "#f1932d", "#7bafde", "#a5170e", "#4eb265", "#72190e", "#90c987", "#42150a",
    "#cae0ab", "#994f88", "#f4a736", "#6195cf", "#ee8026", "#ba8db4",
)  # fmt: skip
_RAMP = ("#4c02a1", "#7e03a8", "#aa2395", "#cc4778", "#e66c5c", "#f89540", "#fdc527")  # from low to high values
_OTHER = "#8a9099"
_SHADES = 20  # of a confusion matrix, from none to all of a row
_WIDEST_VIEW = 900  # pixels along the longer side; more are skipped over

# The chart of shots and the map of points, in units of their view boxes.
_CHART = (640, 380)
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 16, 14, 62
_MAP, _MAP_OF_SEVERAL, _EDGE = (560, 440), (370, 330), 84
_CELLS, _APART, _PLACES = 24, 3, 6  # places with 2 * 3 of 24 cells between them lie apart; more than 6 share a map
_LEAST_DEGREES = 0.002  # that the map of points spans, about 200 m


def page(judgement: Judgement, out: Path) -> Path:
    """Write a judgement as one self-contained HTML file; returns `out`.

    It has no scripts, its images are data URIs, and a content security policy allows nothing else. `BadInput` where
    `out` is a folder, `NoResources` where it cannot be written.
    """
    if out.is_dir():
        raise BadInput(f"{out} is a folder", "name an .html file")
    text = _html(judgement)
    with saving(out, "name another file"):
        out.write_text(text, encoding="utf-8")
    return out


def _html(judgement: Judgement) -> str:
    room = templates()
    evaluation, colours = judgement.evaluation, _class_colours(judgement.labels)
    style = room.get_template("scores.css").render(
        lines=_LINES, classes=[*colours, _OTHER], shades=[round(100 * i / _SHADES) for i in range(_SHADES + 1)]
    )
    return room.get_template("scores.html").render(
        style=style,
        allowed=hashed(style),
        task=judgement.task,
        sentence=_sentence(evaluation, judgement.task),
        facts=_facts(judgement),
        notes=judgement.notes,
        table=_table(evaluation),
        chart=_chart(evaluation),
        pairs=_pairs(judgement.comparisons, evaluation),
        detected=[_detected(score) for score in judgement.detected],
        matrices=list(_matrices(evaluation)),
        matrix_shots=_said_shots(_most(evaluation)) if evaluation.scores else "",
        places=_places(judgement.labels, len(colours)),
        groups=_counted(judgement.labels, len(colours)),
        views=[_view(view) for view in judgement.views],
        guards=[_guard(guard) for guard in judgement.guards],
        quantised=_quantised(judgement.quantisation),
        protocol=_told(evaluation.about),
        provenance=judgement.provenance,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


# ---- words and numbers


def _number(value: float, digits: int = 3) -> str:
    """A figure with so many decimals; a dash for what is not finite."""
    return f"{value:.{digits}f}".replace("-", "−") if math.isfinite(value) else "–"


def _rough(value: float) -> str:
    """A figure of any size and unit."""
    return f"{value:,.4g}".replace("-", "−")


def _digits(evaluation: Evaluation, metric: str) -> int:
    """Decimals of a metric, one number for all its scores: three, of errors in the labels' unit as the least needs."""
    if metric != "mae":
        return 3
    least = min((score.mean for score in evaluation.scores if score.metric == metric and score.mean > 0), default=1.0)
    return min(max(2 - math.floor(math.log10(least)), 0), 9)


def _signed(value: float) -> str:
    return _number(value) if not value > 0 or not math.isfinite(value) else f"+{_number(value)}"


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _said_shots(shots: int | str) -> str:
    return "max" if shots == "max" else _plural(int(shots), "shot")


def _said_probe(probe: str) -> str:
    return _PROBES.get(probe, probe)


def _listed(words: Sequence[str], last: str = "and") -> str:
    return f" {last} ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _sentence(evaluation: Evaluation, task: str) -> str:
    """What was measured, in one sentence."""
    noun = "the classes" if evaluation.kind == "class" else "the values"
    levels, probes = _distinct(evaluation, "shots"), [_said_probe(each) for each in _distinct(evaluation, "probe")]
    bin_or_class = "class" if evaluation.kind == "class" else "bin of values"
    few = [str(level) for level in levels if level != "max"]
    taught = [f"{_listed(few, 'or')} {'point' if few == ['1'] else 'points'} per {bin_or_class}"] if few else []
    taught += [f"a balanced set of at most 300 per {bin_or_class} (max)"] if "max" in levels else []
    where = {"site": "on points of other sites", "block": "on points of other blocks of ground"}
    tested = where.get(str(evaluation.about.get("split")), "on the test points of the given split")
    return (
        f"How well {noun} of {task} can be told from each field's vectors alone, by probes ({', '.join(probes)}) "
        f"taught with {_listed(taught, 'or with')} and tested {tested}."
    )


def _facts(judgement: Judgement) -> list[tuple[str, str]]:
    """What stands under the title: label and text."""
    evaluation, labels = judgement.evaluation, judgement.labels
    about, of_classes = evaluation.about, evaluation.kind == "class"
    facts = [("points", f"{int(about.get('points', len(labels))):,}")]
    if of_classes:
        facts.append(("classes", str(len(evaluation.names))))
    else:
        low, high = (_rough(float(value)) for value in (labels.value.min(), labels.value.max()))
        facts.append(("values", f"{low} to {high}"))
    facts.append(("split", _split(about)))
    if "seed" in about:
        facts.append(("seed", str(about["seed"])))
    if labels.valid_start is not None and labels.valid_end is not None:
        days = np.array([labels.valid_start.min(), labels.valid_end.max()], "datetime64[ms]").astype("datetime64[D]")
        facts.append(("valid periods", f"{days[0]} to {days[1]}"))
    return facts


def _split(about: Mapping[str, Any]) -> str:
    """How the points were split, and into how many groups."""
    how = str(about.get("split", "given"))
    if how == "given":
        return "as given"
    block = f" of {float(about['block']):g} m" if "block" in about else ""
    return f"by {how}: {_plural(int(about['groups']), how)}{block}"


def _told(about: Mapping[str, Any]) -> str:
    return "\n".join(f"{name}: {value}" for name, value in about.items())


# ---- the table


def _distinct(evaluation: Evaluation, what: str) -> list[Any]:
    """The fields, probes or shots of an evaluation, in the order of its scores."""
    return list(dict.fromkeys(getattr(score, what) for score in evaluation.scores))


def _most(evaluation: Evaluation) -> int | str:
    """`max`, or the most shots where that was not asked for."""
    levels = _distinct(evaluation, "shots")
    return "max" if "max" in levels else max(levels)


@dataclass(frozen=True)
class Cell:
    """A score as shown. first: the best of its column; own: of its field's probes the one that counts there."""

    mean: str
    std: str
    title: str
    first: bool
    own: bool


def _table(evaluation: Evaluation) -> dict[str, Any]:
    """Columns by shots and metric; rows by field and probe, [(field, [(probe, cells)])]."""
    found = {(score.field, score.probe, score.shots, score.metric): score for score in evaluation.scores}
    fields, probes, levels = (_distinct(evaluation, what) for what in ("field", "probe", "shots"))
    metrics = METRICS[evaluation.kind]
    columns = [(level, metric) for level in levels for metric in metrics]
    firsts = {column: _first(column, evaluation.scores) for column in columns}
    own = {(field, level): best(evaluation, field, level)[0] for field in fields for level in levels}
    rows = [
        (
            field,
            [
                (
                    _said_probe(probe),
                    [
                        _cell(evaluation, score, score.mean == firsts[column], own[field, column[0]] == probe)
                        if (score := found.get((field, probe, *column)))
                        else None
                        for column in columns
                    ],
                )
                for probe in probes
                if any((field, probe, *column) in found for column in columns)
            ],
        )
        for field in fields
    ]
    heads = [(_said_shots(level), _sizes(evaluation, level)) for level in levels]
    return {"columns": heads, "metrics": [_WORDS[metric] for metric in metrics], "fields": rows}


def _first(column: tuple[int | str, str], scores: Sequence[Score]) -> float:
    """The best mean of a column."""
    means = [score.mean for score in scores if (score.shots, score.metric) == column]
    return min(means) if column[1] == "mae" else max(means)


def _cell(evaluation: Evaluation, score: Score, first: bool, own: bool) -> Cell:
    digits = _digits(evaluation, score.metric)
    low, high = (_number(value, digits) for value in _interval(evaluation, score))
    what = f"{score.field}, {_said_probe(score.probe)}, {_said_shots(score.shots)}: {_WORDS[score.metric]}"
    title = f"{what}, 95\N{NO-BREAK SPACE}% of the replicates between {low} and {high}"
    return Cell(_number(score.mean, digits), _number(score.std, digits), title, first, own)


def _interval(evaluation: Evaluation, score: Score) -> tuple[float, float]:
    """What 95 % of the replicates of a score lie between."""
    draws = evaluation.draws[score.field, score.probe, score.shots]
    low, high = np.percentile(draws[:, METRICS[evaluation.kind].index(score.metric)], _SPAN)
    return float(low), float(high)


def _sizes(evaluation: Evaluation, shots: int | str) -> str:
    """Points to train and to test, and folds."""
    score = next(score for score in evaluation.scores if score.shots == shots)
    folds = (evaluation.about.get("folds") or {}).get(shots)
    counted = f", {_plural(int(folds), 'fold')}" if folds else ""
    return f"{score.n_train:,} to train, {score.n_test:,} to test{counted}"


# ---- the chart


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers that cover low to high."""
    from matplotlib.ticker import MaxNLocator

    return [float(value) for value in MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]


def _decimals(ticks: Sequence[float]) -> int:
    """Decimals that tell the ticks apart."""
    step = ticks[1] - ticks[0]
    return next(digits for digits in range(8) if abs(round(step, digits) - step) < 1e-6 * step)


def _chart(evaluation: Evaluation) -> dict[str, Any] | None:
    """The primary metric against shots, a line per field at its best probe."""
    fields, levels, metric = _distinct(evaluation, "field"), _distinct(evaluation, "shots"), METRICS[evaluation.kind][0]
    if not fields:
        return None
    found = {(score.field, score.probe, score.shots): score for score in evaluation.scores if score.metric == metric}
    chosen = {field: [found[field, best(evaluation, field, level)[0], level] for level in levels] for field in fields}
    spans = {score: _interval(evaluation, score) for scores in chosen.values() for score in scores}
    by_chance = 1 / len(evaluation.names) if evaluation.kind == "class" else 0.0
    low = min(by_chance, *(span[0] for span in spans.values()))
    low, high = max(low, by_chance - 1), max(span[1] for span in spans.values())
    ticks = _ticks(low, max(high, low + 0.05), 6)
    ticks = [tick for tick in ticks if tick <= 1 + 1e-9]
    width, height = _CHART[0] - _LEFT - _RIGHT, _CHART[1] - _TOP - _BOTTOM

    def down(value: float) -> float:
        share = (min(max(value, ticks[0]), ticks[-1]) - ticks[0]) / (ticks[-1] - ticks[0])
        return round(_TOP + height * (1 - share), 1)

    # Side by side within half of a column, so that no interval hides another
    step = min(9.0, width / len(levels) * 0.5 / len(fields))
    series = []
    for index, (field, scores) in enumerate(chosen.items()):
        shift = (index - (len(fields) - 1) / 2) * step
        marks, line = [], []
        for place, score in enumerate(scores):
            x = round(_LEFT + width * (place + 0.5) / len(levels) + shift, 1)
            words = f"{field}, {_said_shots(score.shots)}, {_said_probe(score.probe)}: {_number(score.mean)} "
            words += "({} to {})".format(*(_number(value) for value in spans[score]))
            top, bottom, y = down(spans[score][1]), down(spans[score][0]), down(score.mean)
            marks.append({"words": words, "span": f"M{x} {bottom}V{top}", "shape": _shape(index, x, y)})
            line.append(f"{x},{y}")
        look = {"colour": index % len(_LINES), "dash": _DASHES[index // len(_LINES) % len(_DASHES)]}
        look |= {"key": _shape(index, 16, 7)}
        series.append(look | {"name": field, "marks": marks, "line": " ".join(line), "last": scores[-1].mean})
    digits = _decimals(ticks)
    return {
        "size": _CHART,
        "box": (_LEFT, _TOP, width, height),
        "ticks": [(down(tick), f"{tick:.{digits}f}".replace("-", "−")) for tick in ticks],
        "levels": [(round(_LEFT + width * (i + 0.5) / len(levels), 1), str(level)) for i, level in enumerate(levels)],
        "chance": (down(by_chance), "chance" if evaluation.kind == "class" else "the mean"),
        "metric": _WORDS[metric],
        "series": series,
        "legend": sorted(series, key=lambda each: -each["last"]),
        "cut": low > min(span[0] for span in spans.values()),
    }


def _shape(index: int, x: float, y: float) -> str:
    """The outline of a series' marker as an SVG path: circle, square, triangle, diamond, triangle on its tip."""
    kinds = (
        "m-4.2 0a4.2 4.2 0 1 0 8.4 0a4.2 4.2 0 1 0 -8.4 0z",
        "m-3.8 -3.8h7.6v7.6h-7.6z",
        "m0 -5l4.8 8.4h-9.6z",
        "m0 -5.4l5.4 5.4l-5.4 5.4l-5.4 -5.4z",
        "m0 5l4.8 -8.4h-9.6z",
    )
    return f"M{x:g} {y:g}{kinds[index % len(kinds)]}"


# ---- comparisons


def _pairs(comparisons: Sequence[Comparison], evaluation: Evaluation) -> list[dict[str, Any]]:
    """The comparisons by pair of fields."""
    kinds = dict.fromkeys((each.a, each.b) for each in comparisons)
    return [
        {"a": a, "b": b, "rows": [_compared(each, evaluation) for each in comparisons if (each.a, each.b) == (a, b)]}
        for a, b in kinds
    ]


def _compared(found: Comparison, evaluation: Evaluation) -> dict[str, Any]:
    own, other = (best(evaluation, field, found.shots) for field in (found.a, found.b))
    return {
        "words": _said(found, METRICS[evaluation.kind][1]),
        "shots": str(found.shots),
        "a": (_number(own[1]), _said_probe(found.a_probe)),
        "b": (_number(other[1]), _said_probe(found.b_probe)),
        "difference": _signed(found.difference),
        "interval": f"{_signed(found.low)} to {_signed(found.high)}",
        "ratio": _number(found.error_ratio),
        "reduction": _percent(found.error_reduction),
        "agrees": "yes" if found.confirmed else "no",
        "second": _WORDS[METRICS[evaluation.kind][1]],
    }


def _percent(share: float) -> str:
    return "–" if not math.isfinite(share) else f"{100 * share:+.1f}\N{NO-BREAK SPACE}%".replace("-", "−")


def _said(found: Comparison, second: str) -> str:
    """A comparison in words: whose error is lower, whether its interval says so, whether the second metric agrees."""
    at = "at max" if found.shots == "max" else f"at {_said_shots(found.shots)}"
    share = found.error_reduction
    if not math.isfinite(share):
        start = f"{at}, {found.a} and {found.b} differ by {_signed(found.difference)}"
    elif abs(share) < 0.0005:
        start = f"{at}, {found.a}'s error equals {found.b}'s"
    else:
        start = f"{at}, {found.a}'s error is {abs(share):.1%} {'lower' if share > 0 else 'higher'} than {found.b}'s"
    start = (start[0].upper() + start[1:]).replace("%", "\N{NO-BREAK SPACE}%")
    if found.low <= 0 <= found.high:
        return f"{start}; the interval of the difference includes 0, so neither is shown to be better."
    agrees = f"and {_WORDS[second]} agrees" if found.confirmed else f"but {_WORDS[second]} does not agree: no win"
    return f"{start}; the interval of the difference excludes 0, {agrees}."


def _detected(score: Score) -> dict[str, str]:
    """A score of the detector of change that sees no label but to pick its threshold."""
    shown = {"mean": _number(score.mean), "std": _number(score.std)}
    return shown | {"field": score.field, "how": score.probe, "metric": _WORDS[score.metric]}


# ---- confusion matrices


def _matrices(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    """For each field, at the most shots, what its best probe said of the points of each class."""
    for field in _distinct(evaluation, "field") if evaluation.confusion else ():
        probe = best(evaluation, field, _most(evaluation))[0]
        counts = evaluation.confusion[field, probe, _most(evaluation)]
        rows = [_row(truth, counts[index], evaluation.names) for index, truth in enumerate(evaluation.names)]
        yield {"field": field, "probe": _said_probe(probe), "rows": rows, "names": evaluation.names}


def _row(truth: str, counts: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """The shares of a class's points that were said to be each class, in whole percents."""
    total = float(counts.sum())
    cells = []
    for said, count in zip(names, counts, strict=True):
        share = float(count) / total if total else 0.0
        title = f"{truth}, said {said}: {count:,.0f} of {total:,.0f}"
        text = f"{100 * share:.0f}" if total and count else ""
        cells.append({"text": text, "title": title, "shade": round(share * _SHADES), "right": said == truth})
    return {"name": truth, "cells": cells}


# ---- maps


def _class_colours(labels: Labels) -> Sequence[str]:
    """A colour per class, or per step of the values; classes beyond the last share one."""
    if labels.kind == "value":
        return _RAMP
    return _FEW[: len(labels.names)] if len(labels.names) <= len(_FEW) else _MANY[: len(labels.names)]


def _places(labels: Labels, colours: int) -> list[dict[str, Any]]:
    """Where the labelled points lie: a map, or one for each of a few places that lie far apart."""
    from scipy.ndimage import binary_dilation, label

    west, south, east, north = _box(labels)
    column = ((labels.lon - west) / (east - west) * _CELLS).astype(int)
    row = ((labels.lat - south) / (north - south) * _CELLS).astype(int)
    taken = np.zeros((_CELLS, _CELLS), bool)
    taken[row, column] = True
    square = np.ones((3, 3))
    found, count = label(binary_dilation(taken, square, _APART), square)
    if not 1 < count <= _PLACES:
        return [_points(labels, colours, _MAP)]
    return [_points(labels.subset(found[row, column] == one), colours, _MAP_OF_SEVERAL) for one in range(1, count + 1)]


def _points(labels: Labels, colours: int, size: tuple[int, int]) -> dict[str, Any]:
    """An SVG in degrees, a degree of longitude as long as it is in the middle; at most `size`."""
    box = _box(labels)
    shrink = max(0.05, math.cos(math.radians((box[1] + box[3]) / 2)))
    across, up = (box[2] - box[0]) * shrink, box[3] - box[1]
    scale = min((size[0] - _EDGE - 24) / across, (size[1] - 50) / up)
    width, height = round(across * scale, 1), round(up * scale, 1)
    x = np.rint((_EDGE + (labels.lon - box[0]) * shrink * scale) * 2) / 2
    y = np.rint((12 + (box[3] - labels.lat) * scale) * 2) / 2
    step, names = _steps(labels, colours)
    paths = []
    for index in np.argsort(-np.bincount(step, minlength=len(names)), kind="stable"):  # rare ones on top
        # One dot per half unit: thousands of points in one place would only lengthen the file
        dots = np.unique(np.column_stack([x, y])[step == index], axis=0)
        paths.append({"name": names[index], "colour": int(index), "path": "".join(f"M{a:g} {b:g}h0" for a, b in dots)})
    longitudes = [tick for tick in _ticks(box[0], box[2], 3) if box[0] <= tick <= box[2]]
    latitudes = [tick for tick in _ticks(box[1], box[3], 5) if box[1] <= tick <= box[3]]
    return {
        "size": (max(round(_EDGE + width + 24), 300), round(height + 50)),
        "box": (_EDGE, 12, width, height),
        # A name takes about 80 units, and none may run into the next
        "x": [
            (round(_EDGE + (lon - box[0]) * shrink * scale, 1), name)
            for lon, name in list(_degrees(longitudes, "EW"))[:: math.ceil(80 * len(longitudes) / width)]
        ],
        "y": [(round(12 + (box[3] - lat) * scale, 1), name) for lat, name in _degrees(latitudes, "NS")],
        "drawn": [path for path in paths if path["path"]],
        "dot": 6 if len(labels) < 2000 else 4,
    }


def _counted(labels: Labels, colours: int) -> list[dict[str, Any]]:
    """The legend of the maps: what has which colour, and how many points; classes without points are left out."""
    step, names = _steps(labels, colours)
    counts = np.bincount(step, minlength=len(names))
    return [
        {"name": name, "colour": index, "count": int(count)}
        for index, (name, count) in enumerate(zip(names, counts, strict=True))
        if count
    ]


def _box(labels: Labels) -> tuple[float, float, float, float]:
    """West, south, east, north around the points, with a margin; neither side under half of the other."""
    low = np.array([labels.lon.min(), labels.lat.min()], np.float64)
    high = np.array([labels.lon.max(), labels.lat.max()], np.float64)
    spans = high - low
    least = max(_LEAST_DEGREES, float(spans.max()) / 2)
    pads = np.maximum(least - spans, 0) / 2 + 0.04 * np.maximum(spans, least)
    west, south, east, north = *(low - pads), *(high + pads)
    return float(west), float(south), float(east), float(north)


def _degrees(ticks: Sequence[float], signs: str) -> Iterator[tuple[float, str]]:
    """Ticks with their names, 93.6° W."""
    digits = _decimals(ticks) if len(ticks) > 1 else 3
    for tick in ticks:
        yield tick, f"{abs(tick):.{digits}f}°" + ("" if tick == 0 else f" {signs[tick < 0]}")


def _steps(labels: Labels, colours: int) -> tuple[np.ndarray, list[str]]:
    """Which colour a point has, int64 (n,), and the names: classes, what is left over, or steps of the values."""
    if labels.kind == "class":
        names = [*labels.names[:colours], *(["other classes"] if len(labels.names) > colours else [])]
        return np.minimum(labels.value, colours), names
    low, high = np.percentile(labels.value, (2, 98))
    edges = np.linspace(low, high if high > low else low + 1, colours + 1)
    said = [_rough(float(edge)) for edge in edges]
    names = [f"{said[i]} to {said[i + 1]}" for i in range(colours)]
    names[0], names[-1] = f"under {said[1]}", f"over {said[-2]}"
    return np.digitize(labels.value, edges[1:-1]), names


def _view(view: View) -> dict[str, Any]:
    """A picture of a field as a data URI, with where it lies."""
    every = math.ceil(max(view.rgb.shape[:2]) / _WIDEST_VIEW)
    west, south, east, north = view.bounds
    return {
        "title": view.title,
        "uri": as_uri(view.rgb[::every, ::every]),
        "size": view.rgb.shape[1::-1],
        "bounds": f"x {_place(west)} to {_place(east)}, y {_place(south)} to {_place(north)} in {view.crs}",
        "degrees": "W {:.4f}°, S {:.4f}°, E {:.4f}°, N {:.4f}°".format(*view.lonlat).replace("-", "−"),
    }


def _place(coordinate: float) -> str:
    """A bound in its CRS: degrees with their decimals, metres without."""
    return (f"{coordinate:.4f}" if abs(coordinate) <= 360 else f"{coordinate:.0f}").replace("-", "−")


# ---- guards and quantisation


def _guard(guard: Guard) -> dict[str, str]:
    value = f"{guard.value:.3g}".replace("-", "−") if math.isfinite(guard.value) else "–"
    return {"name": guard.name, "value": value, "ideal": guard.ideal, "what": guard.what}


def _quantised(evaluation: Evaluation | None) -> dict[str, Any] | None:
    """The scores of each precision, and how each differs from the first."""
    if evaluation is None or not evaluation.scores:
        return None
    first, *others = _distinct(evaluation, "field")
    found = [each for other in others for each in compare(evaluation, other, first)]
    return {
        "table": _table(evaluation),
        "first": first,
        "rows": [
            {
                "name": each.a,
                "shots": str(each.shots),
                "difference": _signed(each.difference),
                "interval": f"{_signed(each.low)} to {_signed(each.high)}",
                "within": each.low <= 0 <= each.high,
            }
            for each in found
        ],
    }
