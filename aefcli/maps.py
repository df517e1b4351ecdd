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
import struct
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aefcli import probe
from aefcli.errors import BadInput, NoResources, unknown
from aefcli.extent import Period, Tile
from aefcli.probe import Labels, Score, fit
from aefcli.published import Vectors, open_vectors

if TYPE_CHECKING:
    from rasterio.io import DatasetWriter

PROBES = {"linear": "linear", "ridge": "ridge", "knn": "knn3", "knn1": "knn1", "knn3": "knn3"}

_DAY = 86_400_000  # ms
_TILE = 512  # pixels along y and x that are predicted together, if blocks let them
_STRIP = 1 << 16  # pixels that are decoded together: 16 MiB of 64 floats
_HELD = 256 << 20  # bytes of codes that threads may hold at once, where one tile is not more


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
    _check_out(out, overwrite)
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


def _check_out(out: Path, overwrite: bool) -> None:
    if out.suffix.lower() not in (".tif", ".tiff"):
        raise BadInput(f"--out {out} is no .tif file", "name one, such as --out map.tif")
    if out.is_dir():
        raise BadInput(f"--out {out} is a folder", "name a .tif file")
    if out.exists() and not overwrite:
        raise BadInput(f"{out} is there already", "--overwrite replaces it, --out names another")


def _chosen(vectors: Vectors, period: Period | None) -> int:
    """The time index of the period asked for, or of the only one."""
    held = ", ".join(map(str, vectors.periods))
    if period is None and len(vectors.periods) > 1:
        raise BadInput(f"{vectors.path} holds {held}", f"choose one, as in --period {vectors.periods[0]}")
    if period is not None and period not in vectors.periods:
        raise BadInput(f"{vectors.path} holds {held}, not {period}", f"--period {vectors.periods[0]}, or embed it")
    return 0 if period is None else vectors.periods.index(period)


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
    asked = _asked(labels, vectors.periods, time_index)
    x = np.full((len(labels), vectors.dimensions), np.nan, dtype="float32")
    inside = np.zeros(len(labels), bool)
    for index in np.unique(asked[asked >= 0]):
        here = asked == index
        x[here], inside[here] = vectors.sample(labels.lon[here], labels.lat[here], int(index))
    usable = np.isfinite(x).all(axis=1)
    if not usable.any():
        raise _unanswered(vectors, labels, asked, inside)
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


def _asked(labels: Labels, periods: Sequence[Period], time_index: int) -> np.ndarray:
    """The time index of each label's valid period, exact or in whole days, int64 (n,); -1 for none."""
    if labels.valid_start is None or labels.valid_end is None:
        return np.full(len(labels), time_index)
    asked = np.full(len(labels), -1)
    start, end = labels.valid_start, labels.valid_end
    for index, period in enumerate(periods):
        exact = (start == period.start) & (end == period.end)
        days = (start // _DAY * _DAY == period.start) & (-(-end // _DAY) * _DAY == period.end)
        asked[exact | days] = index
    return asked


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
    grid, block = plan.vectors.grid, plan.vectors.block
    height, width = int(grid.shape[0]), int(grid.shape[1])
    tiles = list(_tiles((height, width), block))
    counts = np.zeros(max(len(plan.names), 1) + 1, np.int64)
    with _aside(out) as work:
        with _raster(plan, work / "work.tif", tags) as file:
            for done, (tile, bands) in enumerate(_predicted(plan, tiles, workers), start=1):
                south_up = grid.transform.e > 0
                top = height - tile.bottom if south_up else tile.top
                bands = bands[:, ::-1] if south_up else bands
                window = ((top, top + tile.shape[0]), (tile.left, tile.right))
                file.write(np.ascontiguousarray(bands), window=window)
                counts += _counted(bands[0], plan)
                if progress:
                    progress(done, len(tiles))
        _as_cog(work, out, bool(plan.names))
    return counts


def _tiles(shape: tuple[int, int], block: tuple[int, int]) -> Iterator[Tile]:
    """Tiles of whole blocks, row by row: `_TILE` along each side, or as many pixels where blocks are long ones."""
    columns = block[1] * max(1, _TILE // block[1])
    rows = block[0] * max(1, _TILE**2 // max(columns, _TILE) // block[0])
    for top in range(0, shape[0], rows):
        for left in range(0, shape[1], columns):
            yield Tile(top, left, min(top + rows, shape[0]), min(left + columns, shape[1]))


def _predicted(plan: _Plan, tiles: Sequence[Tile], workers: int) -> Iterator[tuple[Tile, np.ndarray]]:
    """The tiles in order, each read, decoded and predicted by one of the threads while others are written.

    As many wait as memory has room for. BLAS has one thread in each: theirs and ours would wait for each other.
    """
    from threadpoolctl import threadpool_limits

    size = tiles[0].shape[0] * tiles[0].shape[1] * plan.vectors.dimensions
    workers = max(1, min(workers, _HELD // size))
    waiting: deque[tuple[Tile, Future[np.ndarray]]] = deque()
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(workers) as threads:
        try:
            for tile in tiles:
                waiting.append((tile, threads.submit(plan.predict, tile)))
                if len(waiting) > workers + 1:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def _counted(band: np.ndarray, plan: _Plan) -> np.ndarray:
    if not plan.names:
        missing = int(np.isnan(band).sum())
        return np.array([band.size - missing, missing])
    found = np.bincount(band.ravel(), minlength=int(plan.nodata) + 1)
    return np.append(found[: len(plan.names)], found[-1])


# --- the file -------------------------------------------------------------------------------------------------------


@contextmanager
def _aside(out: Path) -> Iterator[Path]:
    """A folder beside `out`, gone afterwards; what GDAL cannot write there is one line."""
    from rasterio._err import CPLE_BaseError
    from rasterio.errors import RasterioError

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise BadInput(f"--out {out} lies in what is no folder", "name another") from error
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        try:
            yield Path(folder)
        except (RasterioError, CPLE_BaseError) as error:
            raise NoResources(f"cannot write {out}: {error}", "make room, or name another --out") from error


def _raster(plan: _Plan, path: Path, tags: Mapping[str, str]) -> DatasetWriter:
    """An open, plain GeoTIFF, written window by window in any order; uncompressed, so that no window is written twice.

    GeoTIFF has no room for names of classes: they go into its metadata, class_0 and so on, and into GDAL's .aux.xml
    beside it, where GIS look for them.
    """
    import rasterio

    grid = plan.vectors.grid
    (height, width), affine = grid.shape, grid.transform
    if affine.e > 0:
        affine = affine * type(affine)(1, 0, 0, 0, -1, height)
    count = 2 if plan.names else 1
    shape = {"height": height, "width": width, "count": count, "dtype": plan.dtype, "nodata": plan.nodata}
    layout = {"tiled": True, "blockxsize": 256, "blockysize": 256, "bigtiff": "if_safer", "interleave": "band"}
    palette = {"photometric": "palette"} if plan.names else {}
    place = {"crs": grid.crs.to_wkt() if grid.crs else None, "transform": affine}
    file = rasterio.open(path, "w", driver="GTiff", **shape, **layout, **palette, **place)
    file.update_tags(**tags)
    if not plan.names:
        file.set_band_description(1, "value")
        return file
    file.write_colormap(1, {**_colours(len(plan.names)), int(plan.nodata): (0, 0, 0, 0)})
    file.descriptions, file.scales = ("class", "confidence"), (1.0, 0.01)
    file.update_tags(1, **{f"class_{code}": name for code, name in enumerate(plan.names)})
    _write_names(path.with_name(f"{path.name}.aux.xml"), plan.names)
    return file


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


def _as_cog(work: Path, out: Path, classes: bool) -> None:
    """Copy the plain file as a cloud-optimised one with overviews, and put it and its names in place."""
    from rasterio.shutil import copy

    made = work / out.name
    how = {"overview_resampling": "nearest" if classes else "average", "blocksize": 512, "compress": "deflate"}
    copy(work / "work.tif", made, driver="COG", num_threads="all_cpus", bigtiff="if_safer", **how)
    if classes:
        _clear_alpha(made)
    beside, named = made.with_name(f"{made.name}.aux.xml"), out.with_name(f"{out.name}.aux.xml")
    if beside.is_file():
        beside.replace(named)
    else:
        named.unlink(missing_ok=True)
    made.replace(out)


def _clear_alpha(path: Path) -> None:
    """Have a TIFF say that its second band is no alpha: GDAL's copy says so of any that follows a palette.

    A GIS would draw what is uncertain as transparent. The tag (ExtraSamples, 338) is changed where it stands, in each
    directory, so that the layout stays a COG's.
    """
    with path.open("r+b") as file:
        head = file.read(16)
        order = "<" if head[:2] == b"II" else ">"
        big = struct.unpack(f"{order}H", head[2:4])[0] == 43
        count, entry, offset = ("Q", "HHQ", "Q") if big else ("H", "HHL", "L")
        (at,) = struct.unpack_from(order + offset, head, 8 if big else 4)
        while at:
            file.seek(at)
            (entries,) = struct.unpack(order + count, file.read(struct.calcsize(order + count)))
            for _ in range(entries):
                tag, _, _ = struct.unpack(order + entry, file.read(struct.calcsize(order + entry)))
                if tag == 338:
                    file.write(bytes(struct.calcsize(order + offset)))
                else:
                    file.seek(struct.calcsize(order + offset), 1)
            (at,) = struct.unpack(order + offset, file.read(struct.calcsize(order + offset)))
