"""A map from a handful of labels: a probe, taught on all of them, says what every pixel of a field is.

Owns which labels teach, the prediction block by block, and the GeoTIFF that results:

    band 1   the class, by its place in `names` (uint8; uint16 above 255 classes), with colours and names; or the value
    band 2   of classes alone: confidence in percent (its scale, 0.01, makes 0 ... 1 of it)

The greatest code is nodata, of values NaN. Confidence is, for linear and ridge, half of the lead that the best class's
score has over the second's, kept within 0 ... 1 (targets are -1 and +1, so a perfect fit is 1); for kNN, the share of
the votes. It ranks pixels; it is no probability. North is up whichever way the field lies.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aefcli import aside, geotiff, probe
from aefcli.errors import BadInput, unknown
from aefcli.extent import Period, Tile
from aefcli.probe import Labels, Score, fit
from aefcli.published import Vectors, open_vectors

if TYPE_CHECKING:
    from rasterio.io import DatasetWriter

PROBES = {"linear": "linear", "ridge": "ridge", "knn": "knn3", "knn1": "knn1", "knn3": "knn3"}

_STRIP = 1 << 16  # pixels that are decoded together: 16 MiB of 64 floats


@dataclass(frozen=True)
class Map:
    """What was drawn.

    classes     name -> share of the pixels with data; empty for values
    nodata      share of all pixels
    trained     labels that taught the probe
    scores      of the same probe and labels under cross-validation; empty where there are none
    about       how the points were split
    """

    path: Path
    field: str
    period: Period
    probe: str
    trained: int
    classes: Mapping[str, float]
    nodata: float
    scores: tuple[Score, ...]
    about: Mapping[str, Any]
    notes: tuple[str, ...]


def draw_map(
    field_path: Path,
    labels_file: Path,
    out: Path,
    *,
    kind: str,
    label: str = "label",
    period: Period | None = None,
    seed: int | None = 0,
    block: float = probe.split.BLOCK,
    workers: int = 1,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Map:
    """Draw the map of one valid period with the probe `kind` into `out`, written aside and renamed.

    `label` is the column of the labels. Without a `seed` it is not scored. Labels that name a valid period teach with
    the vectors of theirs, if the field holds it; the others with those of the period drawn. BadInput where no two
    classes or values are left to learn.
    """
    if kind not in PROBES:
        raise unknown("--probe", kind, PROBES)
    aside.check(out, ".tif file", (".tif", ".tiff"), overwrite)
    vectors = open_vectors(field_path, period)
    time_index = _chosen(vectors, period)
    labels = probe.read_labels(labels_file, label)
    lesson, notes = _lesson(vectors, labels, time_index)
    scores, about, unscored = _scored(lesson, vectors.name, PROBES[kind], labels_file.stem, seed, block)
    taught = fit.teach(PROBES[kind], lesson.x, lesson.y, labels.kind, len(lesson.names))
    plan = _Plan(vectors, time_index, lesson.names, taught, PROBES[kind])
    tags = {
        "field": vectors.name,
        "period": str(vectors.periods[time_index]),
        "probe": PROBES[kind],
        "labels": f"{len(lesson.y)} of {labels_file.name}",
        **{score.metric: f"{score.mean:.3f} +- {score.std:.3f}, split by {about['split']}" for score in scores},
    }
    counts = _write(plan, out, tags, workers, progress)
    valid = max(int(counts[:-1].sum()), 1)
    return Map(
        path=out,
        field=vectors.name,
        period=vectors.periods[time_index],
        probe=PROBES[kind],
        trained=len(lesson.y),
        classes={name: int(count) / valid for name, count in zip(lesson.names, counts[:-1], strict=False)},
        nodata=int(counts[-1]) / int(counts.sum()),
        scores=scores,
        about=about,
        notes=(*vectors.notes, *notes, *unscored),
    )


def _chosen(vectors: Vectors, period: Period | None) -> int:
    """The time index of the period asked for, or of the only one."""
    if period is None and len(vectors.periods) > 1:
        held = ", ".join(map(str, vectors.periods))
        raise BadInput(f"{vectors.path} holds {held}", f"choose one, as in --period {vectors.periods[0]}")
    return vectors.held([period] if period else [])[0]


# --- what teaches ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Lesson:
    """The labels that teach, their vectors float64 (n, d), and what the probe is taught: codes or values (n,)."""

    labels: Labels
    x: np.ndarray
    y: np.ndarray
    names: tuple[str, ...]  # of the classes that are left; empty for values


def _lesson(vectors: Vectors, labels: Labels, time_index: int) -> tuple[_Lesson, list[str]]:
    """All labels that the field answers, and what was left out."""
    if labels.change:
        raise BadInput("the labels tell of changes between two periods", "a map needs labels of one: a column 'label'")
    asked = np.full(len(labels), time_index)
    if labels.valid_start is not None and labels.valid_end is not None:
        asked = vectors.times_of(labels.valid_start, labels.valid_end)
    x, inside = vectors.sample(labels.lon, labels.lat, asked)
    usable = np.isfinite(x).all(axis=1)
    if not usable.any():
        raise _unanswered(vectors, labels, asked, inside & (asked >= 0))
    found, code = np.unique(labels.value[usable], return_inverse=True)
    if len(found) < 2:
        only = labels.names[int(found[0])] if labels.names else found[0]
        raise BadInput(
            f"all {usable.sum()} labels with data in {vectors.name} are {only}", "a probe needs at least two different"
        )
    notes = []
    if not usable.all():
        notes.append(f"{(~usable).sum()} of {len(labels)} labels lie outside, without data or in other periods")
    if other := int((usable & (asked != time_index)).sum()):
        notes.append(f"{other} labels teach with the vectors of other periods of {vectors.name}")
    if gone := [name for each, name in enumerate(labels.names) if each not in found]:
        notes.append(f"no label with data is left of {', '.join(gone)}: not in the map")
    names = tuple(labels.names[each] for each in found) if labels.names else ()
    y = code.reshape(-1).astype(np.int64) if names else labels.value[usable].astype(np.float64)
    return _Lesson(labels.subset(usable), x[usable].astype(np.float64), y, names), notes


def _unanswered(vectors: Vectors, labels: Labels, asked: np.ndarray, inside: np.ndarray) -> BadInput:
    """Why a field has nothing for any label: other periods, another place, or no data there."""
    if labels.valid_start is not None and labels.valid_end is not None and (asked < 0).all():
        held = ", ".join(map(str, vectors.periods))
        first = Period(int(labels.valid_start[0]), int(labels.valid_end[0]))
        return BadInput(
            f"no label is of a period that {vectors.name} holds: {held}; the first is of {first}",
            f"aef embed --period {first}, or relabel",
        )
    if not inside.any():
        count = int((asked >= 0).sum())
        return BadInput(f"all {count} labels lie outside of {vectors.name}", "give labels of the same area")
    return BadInput(f"{vectors.name} is nodata at all {inside.sum()} labels in it", "give labels where it has data")


def _scored(
    lesson: _Lesson, name: str, kind: str, task: str, seed: int | None, block: float
) -> tuple[tuple[Score, ...], Mapping[str, Any], tuple[str, ...]]:
    """The probe under cross-validation at `max`, as eval has it; or why these labels cannot be split."""
    if seed is None:
        return (), {}, ()
    try:
        done = probe.evaluate(
            {name: lesson.x}, lesson.labels, task=task, probes=(kind,), shots=("max",), seed=seed, block=block
        )
    except BadInput as error:
        return (), {}, (f"not scored: {error}",)
    return tuple(done.scores), done.about, ()


# --- what it says of every pixel ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Plan:
    """What is said of each pixel, and how it is stored."""

    vectors: Vectors
    time_index: int
    names: tuple[str, ...]
    taught: fit.Taught
    probe: str

    @property
    def dtype(self) -> str:
        return "float32" if not self.names else "uint8" if len(self.names) <= 255 else "uint16"

    @property
    def nodata(self) -> float:
        return float(np.iinfo(self.dtype).max) if self.names else float("nan")

    def there(self, bands: np.ndarray) -> np.ndarray:
        """Where the map (b, h, w) says anything: bool (h, w)."""
        return np.asarray(bands[0] != self.nodata if self.names else np.isfinite(bands[0]))

    def predict(self, tile: Tile) -> np.ndarray:
        """The map's bands (b, h, w) of one tile of the field."""
        codes, scales = self.vectors.stored(tile, self.time_index)
        height, width = tile.shape
        out = np.full((2 if self.names else 1, height, width), self.nodata, dtype=self.dtype)
        rows = max(1, _STRIP // width)
        for top in range(0, height, rows):
            strip = np.s_[..., top : top + rows, :]
            part = self.vectors.decode(codes[strip], None if scales is None else scales[strip])
            there = np.isfinite(part).all(axis=0)
            if there.any():
                out[strip][:, there] = self._say(part[:, there].T)
        return out

    def _say(self, z: np.ndarray) -> np.ndarray:
        """float (m, d) -> (b, m): classes and percent, or values."""
        if not self.names:
            return self.taught.predict(z)[None]
        scores = self.taught.scores(z)
        second, best = np.partition(scores, -2, axis=1)[:, -2:].T
        # Votes are shares already; scores are fitted to -1 and +1, two apart
        sure = best if self.probe.startswith("knn") else (best - second) / 2
        return np.stack([scores.argmax(axis=1), np.rint(100 * np.clip(sure, 0, 1))])


def _write(
    plan: _Plan, out: Path, tags: Mapping[str, str], workers: int, progress: Callable[[int, int], None] | None
) -> np.ndarray:
    """Predict every tile and write the map; the pixels of each class, and last those without data."""
    from threadpoolctl import threadpool_limits

    raster = geotiff.Raster(
        grid=plan.vectors.grid,
        count=2 if plan.names else 1,
        dtype=plan.dtype,
        nodata=plan.nodata,
        there=plan.there,
        describe=partial(_describe, plan, tags),
        block=512,
        options={"photometric": "palette"} if plan.names else {},
    )
    tiles = list(geotiff.parts(raster.shape, plan.vectors.block))
    counts = np.zeros(max(len(plan.names), 1) + 1, np.int64)

    def counted() -> geotiff.Parts:
        size = tiles[0].shape[0] * tiles[0].shape[1] * plan.vectors.dimensions
        with closing(geotiff.ahead(plan.predict, tiles, workers, size)) as predicted:
            for done, (tile, bands) in enumerate(predicted, start=1):
                counts[:] += _counted(bands[0], plan)
                yield tile, bands
                if progress:
                    progress(done, len(tiles))

    # One thread of BLAS in each of ours: theirs and ours would wait for each other
    with threadpool_limits(1, user_api="blas"):
        geotiff.write(out, raster, counted(), "nearest" if plan.names else "average", workers=workers)
    return counts


def _counted(band: np.ndarray, plan: _Plan) -> np.ndarray:
    if not plan.names:
        missing = int(np.isnan(band).sum())
        return np.array([band.size - missing, missing])
    found = np.bincount(band.ravel(), minlength=int(plan.nodata) + 1)
    return np.append(found[: len(plan.names)], found[-1])


# --- the file -------------------------------------------------------------------------------------------------------


def _describe(plan: _Plan, tags: Mapping[str, str], file: DatasetWriter) -> None:
    """Say in an open file what its bands are.

    GeoTIFF has no room for names of classes: they go into its metadata, class_0 and so on, and into GDAL's .aux.xml
    beside it, where GIS look for them.
    """
    file.update_tags(**tags)
    if not plan.names:
        file.set_band_description(1, "value")
        return
    file.write_colormap(1, {**_colours(len(plan.names)), int(plan.nodata): (0, 0, 0, 0)})
    file.descriptions, file.scales = ("class", "confidence"), (1.0, 0.01)
    file.update_tags(1, **{f"class_{code}": name for code, name in enumerate(plan.names)})
    _write_names(Path(f"{file.name}.aux.xml"), plan.names)


def _write_names(path: Path, names: Sequence[str]) -> None:
    """GDAL's category names, as its PAM writes them."""
    from xml.etree import ElementTree as xml

    root = xml.Element("PAMDataset")
    listed = xml.SubElement(xml.SubElement(root, "PAMRasterBand", band="1"), "CategoryNames")
    for name in names:
        xml.SubElement(listed, "Category").text = name
    xml.ElementTree(root).write(path, encoding="utf-8")


def _colours(count: int) -> dict[int, tuple[int, int, int, int]]:
    """One colour per class, far apart: matplotlib's twenty, then hues a golden section on from each other."""
    from matplotlib import colormaps

    twenty = [colormaps["tab20"](index) for index in (*range(0, 20, 2), *range(1, 20, 2))]
    more = [colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.65, 0.55 + 0.4 * (index % 2)) for index in range(20, count)]
    parts = [[round(255 * part) for part in colour[:3]] for colour in (*twenty, *more)[:count]]
    return {code: (red, green, blue, 255) for code, (red, green, blue) in enumerate(parts)}
