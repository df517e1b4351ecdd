"""Looks at a model in training: measures and pictures on batches that do not change.

Owns what a look measures, and when it warns of a collapse. It draws nothing but by generators of its own, so that
training goes on as if nobody had looked, and it reaches across no processes. Source: method.md sections 5, 6 and 8.

    l1/<source>      error of held-out frames in sigmas, decoded from mean directions; cross-entropy/<source> of classes
    median/<source>  the same, at the same pixels, of the pixel's median over the clear frames of the inputs
    uniformity       mean |cosine| of whole supports at places apart, at the same pixel; 1: collapsed
    rank             effective rank of the embeddings of whole supports
    phase            share of their variance by the place in the 2x2 cell
    r2/composite     how much of the pixel's seasonal medians of Sentinel-2 a linear probe of the embedding tells
    r2/harmonics     how much of the coefficients of its first three annual harmonics

Errors are plain: without the shifts and averages that training forgives, which would flatter the median as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from aefcli import guards
from aefcli.baselines import season
from aefcli.baselines.series import Series
from aefcli.batch import Batch, Frames
from aefcli.extent import Period
from aefcli.probe.fit import ridge
from aefcli.sources import SOURCES

if TYPE_CHECKING:
    from aefcli.model import Model
    from aefcli.recipe import Recipe

# Uniformity and rank of a nano run on 36 made-up sites: .11 and 38 before the first step, as its weights were fitted,
# and .11 and 39 at step 140. Without the term that spreads it, and consistency at 1: .48 and 26 at step 60, .92 and
# 16 at 80. An earlier nano, from random weights: .86 and 19 before the first step, .55 and 7.1 at 20, .56 and 4.4 at
# 40, .36 and 8.2 at 140; without the term 1.00 and 3.1 at step 20.
CROWDED, FLAT = 0.5, 3.0  # uniformity above, and effective rank below, which may be a collapse
_BACK, _STUCK = 0.1, 0.9  # uniformity that far above its best, or there at two looks

_MOST, _ROWS = 64, 8  # samples that are looked at, at once
_SHOWN = 4  # of them in the pictures
_SPREAD = 16  # of them whose rank and phase are taken
_VECTORS = 4096  # of which the rank is taken
_PIXELS = 16  # along each side of a patch, whose series the probes learn from
_PROBED = "sentinel-2"
_SEASONS = 4
_CENTRE = 1_688_169_600_000  # ms since 1970: 2023-07-01, from which whole years are counted


@dataclass(frozen=True, eq=False)
class Picture:
    """Held-out frames of one source beside what the model makes of them, at a few places; NaN where there is nothing.

    Values are normalised; of a categorical source they are the places of its classes in its row of the table.
    """

    source: str
    times: tuple[int, ...]  # ms since 1970 UTC, one per place
    target: np.ndarray  # float32 (n, h, w, c); where it was clear
    made: np.ndarray  # float32 (n, h, w, c)


@dataclass(frozen=True, eq=False)
class Look:
    """What was measured, by the names of this module, and what was seen."""

    numbers: dict[str, float]
    pictures: tuple[Picture, ...]
    embeddings: np.ndarray  # float32 (n, h, w, d) of the whole supports of the places pictured; NaN where none


@torch.no_grad()
def look(model: Model, batches: Sequence[Batch], recipe: Recipe, device: torch.device) -> Look:
    """Look at a model, at least at one batch and at no more than 64 samples, a few at a time; in eval mode, and it is
    left in the mode that it had.
    """
    parts = list(_parts(batches))
    training = model.training
    model.eval()
    try:
        seen = [_see(model, part.to(device), recipe, device) for part in parts]
    finally:
        model.train(training)
    embeddings = np.concatenate([one.embeddings for one in seen])
    numbers = {**_uniformity(batches, embeddings), **_means(seen), **_spread(embeddings), **probes(parts, embeddings)}
    pictures = tuple(_picture(name, parts[0], made) for name, made in seen[0].made.items())
    return Look(numbers, pictures, embeddings[: min(_SHOWN, len(seen[0].embeddings))])


def _parts(batches: Sequence[Batch]) -> Iterator[Batch]:
    """The first samples of some batches, `_ROWS` and fewer at a time; without texts."""
    left = _MOST
    for batch in batches:
        for first in range(0, min(left, len(batch.apart)), _ROWS):
            rows = slice(first, min(first + _ROWS, left))
            yield replace(
                batch,
                inputs={name: frames.at(rows) for name, frames in batch.inputs.items()},
                targets={name: frames.at(rows) for name, frames in batch.targets.items()},
                valid={name: valid[rows] for name, valid in batch.valid.items()},
                support=batch.support[rows],
                apart=batch.apart[rows],
                text=None,
            )
        left = max(0, left - len(batch.apart))


def collapse(looks: Sequence[Mapping[str, float]]) -> str | None:
    """A line of warning where the last of the looks so far, oldest first, tells of a collapse; else None.

    A model of random weights points the same way nearly everywhere, and its rank is that of noise: what counts is
    uniformity that comes back after it had fallen, or does not fall at all, and a rank that is next to nothing and not
    on its way up.
    """
    crowds, ranks = ([numbers[name] for numbers in looks if name in numbers] for name in ("uniformity", "rank"))
    told = []
    if crowds and crowds[-1] > CROWDED and crowds[-1] > min(crowds) + _BACK:
        told.append(f"uniformity is back at {crowds[-1]:.2f} from {min(crowds):.2f}")
    elif len(crowds) > 1 and min(crowds[-2:]) > _STUCK:
        told.append(f"uniformity stays at {crowds[-1]:.2f}")
    if len(ranks) > 1 and ranks[-1] < FLAT and ranks[-1] <= ranks[-2]:
        told.append(f"the effective rank is {ranks[-1]:.1f}")
    remedy = "raise loss.uniformity, lower train.encoder_lr, or add places that differ"
    return f"embeddings collapse: {' and '.join(told)} ({remedy})" if told else None


# --- what the model makes of a batch ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Seen:
    """Of one batch. `sums`: name -> (sum, count); `made` are the reconstructions of the first targets."""

    embeddings: np.ndarray  # float32 (b, h, w, d); NaN where no frame showed anything
    sums: dict[str, tuple[float, int]]
    made: dict[str, np.ndarray]  # float32 (b, h, w, c); NaN likewise


def _see(model: Model, batch: Batch, recipe: Recipe, device: torch.device) -> _Seen:
    with torch.autocast(device.type, torch.bfloat16, enabled=recipe.train.dtype == "bfloat16"):
        encoded = model.encode(batch.inputs)
        fields = model.summarise(encoded, torch.stack([batch.support, *batch.valid.values()], dim=1)).unbind(1)
        made = {name: _decoded(model, name, field, batch) for name, field in zip(batch.valid, fields[1:], strict=True)}
    seen = encoded.seen.cpu().numpy()
    whole = np.moveaxis(fields[0].float().cpu().numpy(), 1, -1)
    sums: dict[str, tuple[float, int]] = {}
    for name, one in made.items():
        sums |= _error(name, one, batch, seen)
    shown = {name: np.where(seen[..., None], _answer(name, one[:, 0]), np.nan) for name, one in made.items()}
    return _Seen(np.where(seen[..., None], whole, np.nan).astype("float32"), sums, shown)


def _decoded(model: Model, name: str, field: Float[Tensor, "b d h w"], batch: Batch) -> np.ndarray:
    """What the decoder makes of mean directions at the first target, float32 (b, 1, h, w, c); one by one."""
    target, valid = batch.targets[name], batch.valid[name]
    rows = [
        model.decode(name, one.flatten(1).T[None], target.time[b, 0][None], valid[b][None], target.meta[b, 0][None])
        for b, one in enumerate(field)
    ]
    made = torch.cat([row.float().cpu() for row in rows])
    return made.reshape(len(field), 1, *field.shape[-2:], -1).numpy()


def _answer(name: str, made: np.ndarray) -> np.ndarray:
    """The values, or the likeliest class (..., 1)."""
    return made.argmax(-1)[..., None].astype("float32") if SOURCES[name].kind == "categorical" else made


def _first(frames: Frames) -> Frames:
    return Frames(*(getattr(frames, each.name)[:, :1] for each in fields(Frames)))


def _error(name: str, made: np.ndarray, batch: Batch, seen: np.ndarray) -> dict[str, tuple[float, int]]:
    """Sum and count of the errors at clear pixels, and of the median's; of inputs only where there is a median."""
    target = _first(batch.targets[name])
    clear = target.weight.cpu().numpy() > 0
    if SOURCES[name].kind == "categorical":
        classes = target.pixels[:, :, 0].cpu().long()
        entropy = F.cross_entropy(torch.from_numpy(made).movedim(-1, 1), classes, reduction="none").numpy()
        counts = clear & seen[:, None]
        return {f"cross-entropy/{name}": (float(entropy[counts].sum()), int(counts.sum()))}
    values, has = np.moveaxis(target.pixels.cpu().numpy(), 2, -1), target.bands.cpu().numpy()
    counts = (clear & seen[:, None])[..., None] & has[:, :, None, None]  # b k h w c
    found = {}
    if name in batch.inputs:
        median = np.stack([_median(batch.inputs[name], row) for row in range(len(seen))])[:, None]
        counts = counts & np.isfinite(median)
        found[f"median/{name}"] = (float(np.abs(np.where(counts, values - median, 0)).sum()), int(counts.sum()))
    return {f"l1/{name}": (float(np.abs(np.where(counts, values - made, 0)).sum()), int(counts.sum())), **found}


def _median(frames: Frames, row: int) -> np.ndarray:
    """Of one sample's clear values over time, float32 (h, w, c); NaN where there is none."""
    values = _clear(frames, row)  # t c h w
    flat = values.reshape(*values.shape[:2], -1).transpose(2, 1, 0)
    return season.median(flat).reshape(*values.shape[2:], -1)


def _clear(frames: Frames, row: int, step: int = 1) -> np.ndarray:
    """One sample's values, every `step`-th pixel, float32 (t, c, h, w); NaN where they are not clear."""
    every = (row, ..., slice(step // 2, None, step), slice(step // 2, None, step))
    there = (frames.weight[every] > 0)[:, None] & frames.bands[row][:, :, None, None]
    return torch.where(there, frames.pixels[every], torch.nan).cpu().numpy()


def _means(seen: Sequence[_Seen]) -> dict[str, float]:
    """Over all batches; what none of them has is left out."""
    names = dict.fromkeys(name for one in seen for name in one.sums)
    sums = {name: np.sum([one.sums.get(name, (0, 0)) for one in seen], axis=0) for name in names}
    return {name: float(total / count) for name, (total, count) in sums.items() if count}


def _picture(name: str, batch: Batch, made: np.ndarray) -> Picture:
    target, rows = batch.targets[name], slice(min(_SHOWN, len(made)))
    values = np.moveaxis(target.pixels[rows, 0].cpu().numpy(), 1, -1)
    clear = (target.weight[rows, 0] > 0)[..., None] & target.bands[rows, 0][:, None, None]
    times = tuple(int(time) for time in target.time[rows, 0])
    return Picture(name, times, np.where(clear.cpu().numpy(), values, np.nan).astype("float32"), made[rows])


# --- the embeddings alone ---------------------------------------------------------------------------------------------


def _uniformity(batches: Sequence[Batch], embeddings: np.ndarray) -> dict[str, float]:
    """Between every sample and the one before it in its batch, where the two are apart; as in training."""
    alike, first = [], 0
    for batch in batches:
        own, apart = embeddings[first : first + len(batch.apart)], batch.apart.cpu().numpy()[: len(embeddings) - first]
        apart = apart & ((np.arange(len(apart)) > 0) | (len(own) == len(batch.apart)))  # the last is not always here
        cosine = np.abs(np.einsum("bhwd,bhwd->bhw", own, np.roll(own, 1, axis=0)))[apart]
        alike.append(cosine[np.isfinite(cosine)])
        first += len(own)
    found = np.concatenate(alike)
    return {"uniformity": float(found.mean(dtype="float64"))} if len(found) else {}


def _spread(embeddings: np.ndarray) -> dict[str, float]:
    """Rank and phase of (b, h, w, d), of a few b; of too few vectors nothing."""
    embeddings = embeddings[:: -(-len(embeddings) // _SPREAD)]
    flat = embeddings.reshape(-1, embeddings.shape[-1])
    valid = np.flatnonzero(_finite(flat))
    chosen = valid[np.linspace(0, len(valid) - 1, min(_VECTORS, len(valid)), dtype=int)]
    if len(chosen) <= 2 * flat.shape[1]:
        return {}
    return {"rank": guards.effective_rank(flat[chosen]), "phase": phase(embeddings)}


def _finite(vectors: np.ndarray) -> np.ndarray:
    return np.isfinite(vectors).all(axis=-1)


def phase(embeddings: np.ndarray) -> float:
    """Share of the variance of embeddings (b, h, w, d) that the place in the 2x2 cell explains; over cells without NaN.

    Decoders can read what differs between the four, and no loss sees it. [method.md section 5]
    """
    b, h, w, d = embeddings.shape
    cells = embeddings.astype("float64").reshape(b, h // 2, 2, w // 2, 2, d).swapaxes(2, 3).reshape(-1, 4, d)
    cells = cells[np.isfinite(cells).all(axis=(1, 2))]
    whole = cells.reshape(-1, d).var(axis=0).sum()
    return float(cells.mean(axis=0).var(axis=0).sum() / whole) if whole > 0 else 0.0


# --- what a linear probe tells ----------------------------------------------------------------------------------------


def probes(batches: Sequence[Batch], embeddings: np.ndarray) -> dict[str, float]:
    """R2 of the quick probes of numbers (b, h, w, d) of all samples of some batches; NaN where there are none.

    Taught at every other sample, tested at the rest; of one sample, at its other half. Where several samples
    are of one site, as where few sites are held out, they flatter.
    """
    if not all(_PROBED in batch.inputs for batch in batches):
        return {}
    step = max(1, embeddings.shape[1] // _PIXELS)
    thin = embeddings[:, step // 2 :: step, step // 2 :: step]
    known = [_series(batch.inputs[_PROBED], batch.support, step) for batch in batches]
    rows = [pair for pairs in known for pair in pairs]
    vectors = thin.reshape(len(thin), -1, thin.shape[-1])
    taught = np.zeros(vectors.shape[:2], dtype=bool)
    if len(taught) > 1:
        taught[::2] = True
    else:
        taught[0, : taught.shape[1] // 2] = True
    flat, mine = vectors.reshape(-1, vectors.shape[-1]), taught.ravel()
    found = {}
    for index, name in enumerate(("composite", "harmonics")):
        targets = np.concatenate([pair[index] for pair in rows])
        if (told := _r2(flat, targets, mine)) is not None:
            found[f"r2/{name}"] = told
    return found


def _series(frames: Frames, support: Tensor, step: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Per sample its pixels' seasonal medians, float32 (n, 4, c), and coefficients of three harmonics (n, 6, c).

    Seasons and phases are those of the calendar, whatever the support; NaN where nothing was clear.
    """
    for row in range(len(support)):
        values = _clear(frames, row, step)
        times = frames.time[row].cpu().numpy()
        series = Series(times, values.reshape(*values.shape[:2], -1).transpose(2, 1, 0))
        quarter = np.floor((times - _CENTRE) / season.YEAR % 1 * _SEASONS)
        seasons = [season.median(np.where(quarter == each, series.values, np.nan)) for each in range(_SEASONS)]
        years = round((float(support[row].double().mean()) - _CENTRE) / season.YEAR)
        middle = _CENTRE + round(years * season.YEAR)
        waves = season.harmonics(series, Period(middle - 1, middle + 1))[..., 2:8]
        yield np.stack(seasons, axis=1), waves.swapaxes(1, 2)


def _r2(vectors: np.ndarray, targets: np.ndarray, taught: np.ndarray) -> float | None:
    """Share of the variance of targets (n, g, c) that ridge probes of vectors (n, d) explain at pixels not taught.

    Columns are standardised by those taught and count alike; a group of c shares the rows where all of it is known.
    None where no group has twice as many rows to learn from as there are dimensions, and any to be tested on.
    """
    error, whole = 0.0, 0.0
    for group in targets.swapaxes(0, 1).astype("float64"):
        known = _finite(group) & _finite(vectors)
        fit, test = known & taught, known & ~taught
        if fit.sum() < 2 * vectors.shape[1] or not test.any():
            continue
        middle, spread = group[fit].mean(axis=0), np.maximum(group[fit].std(axis=0), 1e-6)
        aim, truth = (group[fit] - middle) / spread, (group[test] - middle) / spread
        weights, offset = ridge(vectors[fit].astype("float64"), aim)
        error += float(np.square(truth - vectors[test] @ weights - offset).sum())
        whole += float(np.square(truth - truth.mean(axis=0)).sum())
    return 1 - error / whole if whole > 0 else None
