"""Guards: figures that say whether something is broken, and what storing vectors as int8 costs.

A guard tells of a collapsed field, of seams, of a model that leans on one source or does not look at the dates. It does
not tell whether vectors are good: principal components have the roundest of all and score worse. That is for scores.
Sources: evaluation.md "Intrinsic measures", method.md section 10.

    vectors             uniformity, effective_rank
    a field of ours     seam
    vectors and labels  boundary; quantisation: float32, int16, int8 and the first dimensions, on the same trials
    a model and a cube  robustness: sources or frames missing, the season shifted
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aefcli import field, recipe
from aefcli.errors import BadInput
from aefcli.extent import Period, Tile, tiles
from aefcli.probe import Evaluation, Labels, evaluate, teach
from aefcli.probe.split import BLOCK, plan_split
from aefcli.table import open_table

if TYPE_CHECKING:
    import torch
    import xarray as xr

    from aefcli.batch import Frames
    from aefcli.checkpoint import Run
    from aefcli.cube import Cube
    from aefcli.model import Model
    from aefcli.recipe import Recipe

NEAR = 2.0  # px: a point this near to a boundary, or nearer, counts as near [evaluation.md]
PREFIXES = (32, 16, 8)  # of the dimensions
PATCHES = 4  # of a cube, of which a model is asked six times or so
SHIFTED = "season shifted by half a year"
STORED = "quantisation: the vectors were stored as int8, nothing finer is at hand to compare them with"

_PAIRS = 20_000
_ALIKE = 1e-6  # variance of unit vectors, all dimensions together, below which they are one vector
_WINDOWS = 16  # chunks of a field whose seams are looked at, one after the other
_TRIES = 100  # places tried for patches, where most hold no data
_FOLDS = 10
_FEW = 20  # tests on either side of NEAR, over all folds, below which no accuracy is told
_INT16 = 32767.5
_HALF_YEAR = 183 * 86_400_000  # ms

Found = Iterator["Guard | str"]  # guards, and a line for each that was left out


@dataclass(frozen=True)
class Guard:
    """One figure, and in words the figure that something unbroken has."""

    name: str
    value: float
    ideal: str
    what: str


def guards(
    vectors: Mapping[str, np.ndarray],
    *,
    labels: Labels | None = None,
    edge: np.ndarray | None = None,
    place: np.ndarray | None = None,
    fields: Mapping[str, Path] | None = None,
    cube: Cube | None = None,
    run: Run | None = None,
    period: Period | None = None,
    device: torch.device | None = None,
    block: float = BLOCK,
    seed: int = 0,
) -> tuple[list[Guard], list[str]]:
    """Every guard of what there is, in the order of this module, and a line for whatever was left out.

    vectors    name of a field -> floats (n, d), NaN where it has none; with `labels` its rows are theirs
    edge       pixels from every label to the nearest boundary, (n,), NaN where not known: see `edges`
    place      the pixel of every label, (n,), and `block`: as for `probe.evaluate`
    fields     name of a field -> its store, for the seams
    cube, run  the inputs and the model, for what happens when some are missing; `period` is the valid one asked for,
               by default the cube's
    """
    told = [item for name, matrix in vectors.items() for item in _of_vectors(name, matrix, seed)]
    told += _of_fields(vectors, fields or {}, seed)
    told += _of_labels(vectors, labels, edge, place, block, seed)
    told += _of_run(run, cube, period, device, seed)
    found = [item for item in told if isinstance(item, Guard)]
    return found, [item for item in told if isinstance(item, str)]


# ---- vectors


def uniformity(vectors: np.ndarray, seed: int = 0) -> float:
    """Mean |cosine| over random pairs of two different rows of finite floats (n, d).

    1 where all are one vector or its opposite; for a perfect spread see `spread`. [paper S2, method.md section 8]
    """
    unit = _unit(vectors)
    rng = np.random.default_rng(seed)
    first = rng.integers(len(unit), size=_PAIRS)
    second = (first + rng.integers(1, len(unit), size=_PAIRS)) % len(unit)
    return float(np.abs(np.einsum("nd,nd->n", unit[first], unit[second])).mean())


def spread(dimensions: int) -> float:
    """The uniformity of directions that are spread evenly over the sphere: 0.100 in 64 dimensions."""
    return math.exp(math.lgamma(dimensions / 2) - math.lgamma((dimensions + 1) / 2)) / math.sqrt(math.pi)


def effective_rank(vectors: np.ndarray) -> float:
    """exp(-sum p log p), p the eigenvalues of the covariance of the directions of (n, d), as shares of their sum.

    d where all axes vary alike; 1 where one alone varies or none does. (Roy and Vetterli 2007, who take singular
    values, which are the roots of these.)
    """
    values = np.linalg.eigvalsh(np.cov(_unit(vectors), rowvar=False)).clip(min=0)
    if values.sum() < _ALIKE:
        return 1.0
    share = values[values > 0] / values.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def _unit(vectors: np.ndarray) -> np.ndarray:
    """float64 of length 1 along the last axis; a vector of zeros stays one."""
    wide = vectors.astype("float64")
    length = np.linalg.norm(wide, axis=-1, keepdims=True)
    return wide / np.where(length == 0, 1, length)


def _of_vectors(name: str, matrix: np.ndarray, seed: int) -> Found:
    finite = matrix[np.isfinite(matrix).all(axis=1)]
    count, dimensions = finite.shape
    if count < 2:
        yield f"{name}: uniformity and effective rank left out: {count} vectors"
        return
    # The ideals are of places all over the Earth. Measured at 720 points of one region each (tests/test_guards.py):
    yield Guard(
        f"{name}: uniformity",
        uniformity(finite, seed),
        f"{spread(dimensions):.3f}",
        f"mean |cosine| over pairs of {count} places; 1: collapsed; AlphaEarth's own have .59 and .42 in two regions",
    )
    if count <= 2 * dimensions:
        yield f"{name}: effective rank left out: {count} places are too few for {dimensions} dimensions"
        return
    yield Guard(
        f"{name}: effective rank",
        effective_rank(finite),
        str(dimensions),
        "exp of the entropy of the covariance's eigenvalues; 1: collapsed; AlphaEarth's own have 16 and 15 there",
    )


# ---- a field


def seam(store: xr.Dataset, seed: int = 0) -> float | None:
    """Mean cosine of neighbouring pixels across the edges of what was computed at once, over that inside.

    `store` is a field of ours. Its model was laid over every tile afresh, in patches where its recipe says so. Random
    chunks are read, one at a time (about 100 MiB). None where no edge, or nothing but nodata, was found.
    """
    codes = store["embeddings"]
    chunk = codes.encoding["chunks"][-1]
    (step, side), shape = _steps(store, chunk), (codes.sizes["y"], codes.sizes["x"])
    places = [(time, tile) for time in range(codes.sizes["time"]) for tile in tiles(shape, chunk)]
    chosen = np.random.default_rng(seed).permutation(len(places))[:_WINDOWS]
    total, count = np.zeros(2), np.zeros(2)  # inside, across
    for time, tile in (places[index] for index in chosen):
        window = codes.isel(time=time, y=slice(tile.top, tile.bottom + 1), x=slice(tile.left, tile.right + 1))
        vectors = field.decode(window.values, axis=0, codes=field.coded(codes))
        for corner, turned in ((tile.left, vectors), (tile.top, vectors.transpose(0, 2, 1))):
            cosine = np.einsum("dyx,dyx->yx", turned[:, :, :-1], turned[:, :, 1:])
            at = corner + 1 + np.arange(cosine.shape[1])  # of the right one of two neighbours
            for kind, columns in enumerate((at % side % step != 0, at % side % step == 0)):
                total[kind] += np.nansum(cosine[:, columns], dtype="float64")
                count[kind] += np.isfinite(cosine[:, columns]).sum()
    return float(total[1] / count[1] / (total[0] / count[0])) if count.all() and total[0] > 0 else None


def _steps(store: xr.Dataset, chunk: int) -> tuple[int, int]:
    """Pixels from one edge of a patch to the next, and of a tile, by the recipe in the field; else of its chunks."""
    from aefcli.embed.tiling import step_of, tile_side

    text, laid = store.attrs.get("aef:recipe"), (store.attrs.get("aef:request") or {}).get("patches")
    if text is None:
        return chunk, chunk
    if laid is None:  # of an earlier version, whose tiles were chunks
        return step_of(recipe.parse(str(text), "the recipe in the field").embed), chunk
    return step_of(recipe.Embed(**laid)), tile_side(recipe.Embed(**laid), chunk)


def _of_fields(vectors: Mapping[str, np.ndarray], fields: Mapping[str, Path], seed: int) -> Found:
    for name in vectors:
        if name not in fields:
            yield f"{name}: seam left out: only a field of ours says where its patches meet"
    for name, path in fields.items():
        try:
            value = seam(field.open_field(path), seed)
        except BadInput as error:
            yield f"{name}: seam left out, where its tiles meet is not known: {error.what}"
            continue
        if value is None:
            yield f"{name}: seam left out: {path} holds no two patches side by side"
            continue
        what = "mean cosine of neighbouring pixels across the edges of patches, over that inside; below 1 is a seam"
        yield Guard(f"{name}: seam", value, "1", what)


# ---- vectors and labels


def edges(path: Path) -> np.ndarray | None:
    """The column `edge` of a label table: pixels from each point to the nearest pixel of another class, float64 (n,).

    NaN in rows that have none. None where there is no such column: points alone do not say where a class ends.
    """
    import pandas as pd

    table = open_table(path, "label table")
    if "edge" not in table.columns:
        return None
    numbers = pd.to_numeric(table["edge"], errors="coerce").to_numpy(dtype="float64", na_value=np.nan)
    if np.isnan(numbers).all() or (numbers < 0).any():
        raise BadInput(f"{path}: the column 'edge' is no number of pixels", "give distances from 0, or remove it")
    return numbers


def boundary(
    vectors: np.ndarray,
    labels: Labels,
    edge: np.ndarray,
    *,
    block: float = BLOCK,
    place: np.ndarray | None = None,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Balanced accuracy of points within 2 px of a boundary, and of those farther inside; labels are classes.

    vectors (n, d) finite, edge (n,). Both are told by one ridge probe, on the test sets of the max trial of ten folds
    together, over the classes that lie on both sides; `block` and `place` as for `probe.evaluate`. None where either
    side has fewer than 20 tests or two classes. Raises BadInput where the labels cannot be split.
    """
    plan, wide = plan_split(labels, block, place), vectors.astype("float64")
    count, hits = np.zeros((2, len(plan.names))), np.zeros((2, len(plan.names)))
    for fold in range(_FOLDS):
        train, test = plan.draw("max", np.random.default_rng([seed, 0, fold]))
        test = test[np.isfinite(edge[test])]
        if not len(test):
            return None
        truth = plan.stratum[test]
        guess = teach("ridge", wide[train], plan.stratum[train], "class", len(plan.names)).predict(wide[test])
        side = (edge[test] > NEAR).astype(int)
        np.add.at(count, (side, truth), 1)
        np.add.at(hits, (side, truth), guess == truth)
    both = (count > 0).all(axis=0)
    if both.sum() < 2 or count[:, both].sum(axis=1).min() < _FEW:
        return None
    near, inside = (hits[:, both] / count[:, both]).mean(axis=1)
    return float(near), float(inside)


def _of_labels(
    vectors: Mapping[str, np.ndarray],
    labels: Labels | None,
    edge: np.ndarray | None,
    place: np.ndarray | None,
    block: float,
    seed: int,
) -> Found:
    if labels is None or edge is None:
        yield "boundary precision left out: it needs labels with a column edge, the pixels to the nearest other class"
        return
    if labels.kind != "class":
        yield "boundary precision left out: it is of classes, and the labels are values"
        return
    for name, matrix in vectors.items():
        there = np.isfinite(matrix).all(axis=1)
        rows, pixels = labels.subset(there), None if place is None else place[there]
        try:
            found = (
                boundary(matrix[there], rows, edge[there], block=block, place=pixels, seed=seed) if len(rows) else None
            )
        except BadInput as error:
            yield f"{name}: boundary precision left out: {error.what}"
            continue
        if found is None:
            yield f"{name}: boundary precision left out: too few labels within {NEAR:g} px of a boundary or beyond"
            continue
        near, inside = found
        what = (
            f"balanced accuracy (ridge, max) of {inside:.3f} inside, less {near:.3f} within {NEAR:g} px of a boundary"
        )
        yield Guard(f"{name}: boundary precision", inside - near, "0", what)


def quantised(vectors: np.ndarray, *, stored: bool = False) -> dict[str, np.ndarray]:
    """Unit vectors (n, d), or (n, p, d) of several periods side by side, as users may hold them: name -> (n, p * d').

    `float32` as given, `int16` and `int8` coded and decoded, and the first dimensions of the int8 ones, brought to
    length 1 again. Vectors that were `stored` as int8 are that already. Source: method.md section 10.
    """
    coarse = vectors if stored else field.dequantise(field.quantise(vectors))
    made = {} if stored else {"float32": vectors, "int16": _through_int16(vectors)}
    made["int8"] = coarse
    for length in PREFIXES:
        if length < vectors.shape[-1]:
            made[f"int8, first {length}"] = _unit(coarse[..., :length]).astype("float32")
    return {name: matrix.reshape(len(matrix), -1) for name, matrix in made.items()}


def _through_int16(vectors: np.ndarray) -> np.ndarray:
    """What int16 codes of the same signed square root keep, renormalised."""
    codes = np.clip(np.rint(np.sign(vectors) * np.sqrt(np.abs(vectors).astype("float64")) * _INT16), -32767, 32767)
    return _unit(np.sign(codes) * (codes / _INT16) ** 2).astype("float32")


def quantisation(labels: Labels, vectors: np.ndarray, *, stored: bool = False, **trials: Any) -> Evaluation:
    """What int8, int16 and fewer dimensions cost on these labels: `quantised` vectors, scored on the same trials.

    `trials` are what `probe.evaluate` takes (task, probes, shots, seed ...). `probe.compare` gives the differences,
    paired and with intervals. Vectors that were `stored` as int8 have nothing finer beside them, and `about` says so.
    """
    done = evaluate(quantised(vectors, stored=stored), labels, **trials)
    return replace(done, about={**done.about, "notes": [STORED]}) if stored else done


# ---- a model and a cube


def robustness(
    model: Model,
    plan: Recipe,
    cube: Cube,
    period: Period,
    *,
    device: torch.device,
    patches: int = PATCHES,
    seed: int = 0,
) -> dict[str, float]:
    """Mean cosine between vectors of all inputs and of changed ones, by change; over all pixels of random patches.

    Changes are each source missing, half of the frames of every source, the frames of the later half of the support
    period, and `SHIFTED`: every frame at half a year from its date, going round within the support, so that a model
    which looks at the dates answers otherwise. (At half of the support, where that is shorter than a year.) Only pixels
    count that a frame saw clearly before and after; a change that takes nothing from a patch is not asked there.
    """
    from aefcli import embed

    rng = np.random.default_rng(seed)
    names, support = embed.readable(cube, plan), embed.support_of(cube.period, period)
    found: dict[str, list[np.ndarray]] = {}
    for frames, core in islice(_patches(cube, names, support, plan, rng), patches):
        whole = embed.encode_patch(model, frames, [period], device, plan.embed.dtype)[0]
        for name, changed in _changes(frames, support, rng):
            seen = _clear(changed, core)
            if not seen.any():
                continue
            other = embed.encode_patch(model, changed, [period], device, plan.embed.dtype)[0]
            cosine = np.einsum("dyx,dyx->yx", whole.astype("float64"), other.astype("float64"))
            found.setdefault(name, []).append(cosine[core][seen])
    return {name: float(np.concatenate(cosines).mean()) for name, cosines in found.items()}


def _patches(
    cube: Cube, names: Sequence[str], support: Period, plan: Recipe, rng: np.random.Generator
) -> Iterator[tuple[dict[str, Frames], tuple[slice, slice]]]:
    """Random patches with data: their frames in the support, and which of their pixels a field would keep."""
    from aefcli.sample import in_period, window

    halo, size = plan.embed.halo, plan.embed.patch
    cells = list(tiles(cube.shape, size - 2 * halo))
    for index in rng.permutation(len(cells))[:_TRIES]:
        cell = cells[index]
        around = Tile(cell.top - halo, cell.left - halo, cell.top - halo + size, cell.left - halo + size)
        core = (slice(halo, halo + cell.shape[0]), slice(halo, halo + cell.shape[1]))
        given = plan.statistics
        frames = {name: window(cube, name, around, in_period(cube.sources[name], support), given) for name in names}
        if _clear(frames, core).any():
            yield frames, core


def _changes(
    frames: Mapping[str, Frames], support: Period, rng: np.random.Generator
) -> Iterator[tuple[str, dict[str, Frames]]]:
    """What may be missing, and the frames that are then left."""
    import torch

    length, middle = support.end - support.start, (support.start + support.end) // 2
    half = min(length // 2, _HALF_YEAR)
    there = {name: source.present.flatten(2).any(-1) for name, source in frames.items()}
    for name in frames:
        if there[name].any():
            yield f"without {name}", {other: source for other, source in frames.items() if other != name}
    some = {name: torch.from_numpy(rng.permutation(source.time.shape[1]) % 2 == 1) for name, source in frames.items()}
    later = {name: source.time[0] >= middle for name, source in frames.items()}
    for name, dropped in (("without half of the frames", some), ("without the later half", later)):
        if any((there[source][0] & gone).any() for source, gone in dropped.items()):
            yield name, {source: frames[source].without(gone[None]) for source, gone in dropped.items()}
    shifted = {name: support.start + (source.time - support.start + half) % length for name, source in frames.items()}
    yield SHIFTED, {name: replace(source, time=shifted[name]) for name, source in frames.items()}


def _clear(frames: Mapping[str, Frames], core: tuple[slice, slice]) -> np.ndarray:
    """Where, of a patch's own pixels, some frame saw the ground clearly: bool (h, w)."""
    seen = [source.weight[0].numpy().any(axis=0) for source in frames.values()]
    return np.logical_or.reduce(seen, axis=0)[core] if seen else np.zeros((1, 1), bool)


def _of_run(run: Run | None, cube: Cube | None, period: Period | None, device: torch.device | None, seed: int) -> Found:
    if run is None or cube is None:
        lacking = " and ".join(name for name, given in (("a cube", cube), ("a run", run)) if given is None)
        yield f"consistency and order sensitivity left out: they need {lacking}"
        return
    import torch

    from aefcli import checkpoint

    device = device or torch.device("cpu")
    model = checkpoint.load(run).to(device)
    cosines = robustness(model, run.recipe, cube, period or cube.period, device=device, seed=seed)
    if not cosines:
        yield f"{run.path.name}: consistency and order sensitivity left out: no pixel with data found in {cube.path}"
    for name, value in cosines.items():
        if name == SHIFTED:
            what = "cosine between a place and itself with its season shifted by half a year; 1 ignores the dates"
            yield Guard(f"{run.path.name}: order sensitivity", value, "below 1", what)
        else:
            what = f"cosine between vectors of all inputs and {name}"
            yield Guard(f"{run.path.name}: consistency {name}", value, "1", what)
