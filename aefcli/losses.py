"""The terms of the objective [paper eq. 3], on tensors, plain numbers and a recipe's weights.

Owns which pixels of a target are decoded, the errors of reconstruction (L1, the smallest L1 over shifts, cross-entropy,
each at the spacing that its source asks for), batch uniformity, teacher-student consistency, the text term, and their
sum. Each is a mean over what is valid in the batch of all processes; a process gives its share, and their sum is the
mean.

Decoders need not answer everywhere. A target is cut into cells: single pixels, or, where a source is re-gridded, the
squares that both sides are averaged over. Cells are drawn with replacement in proportion to their clear area, so the
mean error of those drawn is an unbiased estimate of that of all. (The minimum over shifts of an estimate is not: of
few pixels it comes out a little low.) Source: method.md section 8.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from aefcli.parallel import gathered, own, rank, rolled
from aefcli.parallel import total as of_all
from aefcli.recipe import Loss

_TINY = 1e-30  # below every weight, and yet its logarithm is finite


# --- what is decoded ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cells:
    """m cells of k pixels in each sample; a pixel is a cell of one."""

    index: Int[Tensor, "b m k"]  # row * w + column
    part: Float[Tensor, "b m k"]  # share of a pixel in its cell's average: overlap times weight; sums to 1, or to 0
    weight: Float[Tensor, "b m"]  # share of a cell in its sample's mean; sums to 1 where anything is clear
    clear: Float[Tensor, " b"]  # clear area of the whole sample in pixels: its share in the batch's mean

    def mean(self, error: Float[Tensor, "b m c"], bands: Bool[Tensor, "b c"]) -> Float[Tensor, ""]:
        """Of an error per cell and band, over the bands that each scene has and the clear area of all samples."""
        share = self.clear[:, None] * bands
        each = (self.weight[..., None] * torch.where(bands[:, None], error, 0.0)).sum(1)
        return (share * each).sum() / of_all(share.sum()).clamp(min=_TINY)


def at(image: Shaped[Tensor, "b c h w"], index: Int[Tensor, "b m k"]) -> Shaped[Tensor, "b m k c"]:
    """An image's values at some pixels."""
    rows = torch.arange(len(index), device=index.device)[:, None, None]
    return image.flatten(2).transpose(1, 2)[rows, index]


def cells(
    weight: Float[Tensor, "b h w"], generator: torch.Generator, *, side: float = 1.0, pixels: int | None = None
) -> Cells:
    """The cells of a target, `side` pixels wide, on a grid at a random place per sample; from the patch's side on the
    patch is the one cell.

    With `pixels`, as many cells as hold about that number, drawn in proportion to their clear area; a single cell is
    never cut. Without, all of them.
    """
    b, h, w = weight.shape
    rows, tall = _spans(h, side, b, generator)
    columns, wide = _spans(w, side, b, generator)
    index = (rows[:, :, None, :, None] * w + columns[:, None, :, None, :]).flatten(1, 2).flatten(2)
    overlap = (tall[:, :, None, :, None] * wide[:, None, :, None, :]).flatten(1, 2).flatten(2)
    part = overlap * at(weight[:, None], index)[..., 0]
    area = part.sum(-1)
    clear = area.sum(-1)
    drawn = None if pixels is None else max(1, round(pixels / index.shape[-1]))
    if drawn is None or drawn >= area.shape[1]:
        share = area / clear.clamp(min=_TINY)[:, None]
    else:
        # By place in the running sum, so that the numbers drawn do not hang on what is clear.
        place = own(lambda rows: torch.rand(rows, drawn, generator=generator, device=generator.device), b)
        sums = area.double().cumsum(-1)
        chosen = torch.searchsorted(sums, place.double() * sums[:, -1:], right=True).clamp(max=area.shape[1] - 1)
        index, part = (values.gather(1, chosen[..., None].expand(-1, -1, index.shape[-1])) for values in (index, part))
        area, share = area.gather(1, chosen), torch.full_like(chosen, 1, dtype=part.dtype) / drawn
    return Cells(index, part / area.clamp(min=_TINY)[..., None], share, clear)


def _spans(
    length: int, side: float, count: int, generator: torch.Generator
) -> tuple[Int[Tensor, "b n k"], Float[Tensor, "b n k"]]:
    """Cells along one axis: the pixels of each and how much of a pixel lies in it; the first begins at or before 0."""
    device = generator.device
    if side >= length:  # coarser than the patch: its one value is averaged over all of it
        return torch.arange(length, device=device).expand(count, 1, -1), torch.ones(count, 1, length, device=device)
    reach = math.ceil(side)
    offset = own(lambda rows: torch.randint(reach, (rows, 1), generator=generator, device=device), count)
    low = torch.arange(math.ceil((length + reach - 1) / side), device=device) * side - offset
    within = torch.arange(reach + (reach != side), device=device)
    pixel = low.floor().long()[..., None] + within
    overlap = torch.minimum(pixel + 1, low[..., None] + side) - torch.maximum(pixel, low[..., None])
    inside = (pixel >= 0) & (pixel < length)
    return pixel.clamp(0, length - 1), torch.where(inside, overlap.clamp(min=0), 0.0).float()


# --- reconstruction -------------------------------------------------------------------------------------------------


def l1(
    predicted: Float[Tensor, "b m k c"], target: Float[Tensor, "b c h w"], bands: Bool[Tensor, "b c"], over: Cells
) -> Float[Tensor, ""]:
    """L1 between the cells' averages, in sigmas of a band; 0 where nothing weighs."""
    part = over.part[..., None]
    theirs = torch.where(part > 0, at(target, over.index), 0.0)
    return over.mean((part * (predicted - theirs)).sum(2).abs(), bands)


def shifted_l1(
    predicted: Float[Tensor, "b m k c"],
    target: Float[Tensor, "b c h w"],
    weight: Float[Tensor, "b h w"],
    bands: Bool[Tensor, "b c"],
    over: Cells,
    reach: int,
) -> Float[Tensor, ""]:
    """Per frame the smallest L1 over all integer shifts of the target by up to `reach` pixels along each axis.

    A shift counts if at least half as much clear ground overlaps as for the best: the error of a sliver is no error.
    Cells are pixels.
    """
    (h, w), index = weight.shape[1:], over.index[..., 0]
    steps = torch.arange(-reach, reach + 1, device=index.device)
    down, right = (way.flatten() for way in torch.meshgrid(steps, steps, indexing="ij"))
    row, column = (index // w)[..., None] + down, (index % w)[..., None] + right  # b m s
    inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
    moved = row.clamp(0, h - 1) * w + column.clamp(0, w - 1)
    clear = at(weight[:, None], moved)[..., 0] * inside * over.weight[..., None]
    counts = (clear[..., None] > 0) & bands[:, None, None]
    error = torch.where(counts, (predicted - at(target, moved)).abs(), 0.0)
    error = error.sum(-1) / bands.sum(-1).clamp(min=1)[:, None, None]
    overlap = clear.sum(1)
    each = (clear * error).sum(1) / overlap.clamp(min=_TINY)  # b s
    best = each.masked_fill(overlap * 2 < overlap.amax(1, keepdim=True), torch.inf).amin(1)
    share = over.clear * bands.sum(-1)
    return (share * best).sum() / of_all(share.sum()).clamp(min=_TINY)


def cross_entropy(logits: Float[Tensor, "b m k c"], classes: Int[Tensor, "b h w"], over: Cells) -> Float[Tensor, ""]:
    """Cross-entropy between the shares of the classes in a cell: of the map, and by the mean of the probabilities."""
    part = over.part[..., None]
    theirs = (part * F.one_hot(at(classes[:, None], over.index)[..., 0], logits.shape[-1])).sum(2)
    ours = (F.log_softmax(logits, -1) + part.clamp(min=_TINY).log()).logsumexp(2)
    error = -(theirs * ours).sum(-1, keepdim=True)
    return over.mean(error, torch.ones_like(error[:, 0], dtype=torch.bool))


# --- the other terms ------------------------------------------------------------------------------------------------


def uniformity(
    u: Float[Tensor, "b d h w"], seen: Bool[Tensor, "b h w"], apart: Bool[Tensor, " b"]
) -> Float[Tensor, ""]:
    """Mean |<u_b, u_b-1>| at the same pixel: vectors of independent places, rotated by one along the batch axis.

    Pairs that share ground, where `apart` is False, take no part. Pixels are never mixed: rolling over flattened pixels
    would push neighbours apart. 0.100 for uniform vectors on S^63, 1 on collapse.
    """
    both = seen & rolled(seen) & apart[:, None, None]
    cosine = (u * rolled(u)).sum(1).abs()
    return torch.where(both, cosine, 0.0).sum() / of_all(both.sum()).clamp(min=1)


def consistency(
    teacher: Float[Tensor, "b d h w"], student: Float[Tensor, "b d h w"], seen: Bool[Tensor, "b h w"]
) -> Float[Tensor, ""]:
    """Mean (1 - <teacher, student>) / 2 where both saw something. No stop-gradient: both are the same parameters."""
    distance = (1 - (teacher * student).sum(1)) / 2
    return torch.where(seen, distance, 0.0).sum() / of_all(seen.sum()).clamp(min=1)


def contrastive(
    text: Float[Tensor, "b d"], place: Float[Tensor, "b d"], there: Bool[Tensor, " b"], scale: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """CLIP's symmetric cross-entropy between texts and the embeddings at their pixels; rows without text take no part.

    `scale` is the inverse temperature: with logits in [-1, 1] the term would hardly train.
    """
    others, pairs = gathered(there), rank() * len(there) + torch.arange(len(there), device=there.device)
    each = torch.zeros_like(place[:, 0])
    for one, other in ((text, gathered(place)), (place, gathered(text))):
        logits = scale * (one[:, None] * other).sum(-1)  # no matrix product: autocast would round it
        each = each + F.cross_entropy(logits.masked_fill(~others, -1 / _TINY), pairs, reduction="none")
    return torch.where(there, each / 2, 0.0).sum() / of_all(there.sum()).clamp(min=1)


def total(
    errors: Mapping[str, Tensor],
    weights: Mapping[str, float],
    there: Mapping[str, Bool[Tensor, ""]],
    others: Mapping[str, Tensor],
    loss: Loss,
) -> Float[Tensor, ""]:
    """The weighted sum. `others` holds `uniformity`, `consistency` and, with text, `text`.

    |M| is the number of sources that the batch has, those of `errors` that are `there`: our choice. What it lacks has
    no error, and is no perfect reconstruction.
    """
    whole = torch.stack([getattr(loss, name) * term for name, term in others.items()]).sum()
    if errors:
        has = torch.stack([there[name] for name in errors])
        each = torch.stack([weights[name] * error for name, error in errors.items()])
        whole = whole + loss.reconstruction * torch.where(has, each, 0.0).sum() / has.sum().clamp(min=1)
    return whole
