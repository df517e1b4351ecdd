"""What weights begin as: fitted in closed form on some batches before the first step, without any label.

Three fits, of what a random start would take hours of steps to find. The stems' guess at what is clear is fitted to the
products' own masks, which serve training and are not asked for afterwards. The projection to the embedding takes the
axes on which two halves of a pixel's frames agree most: what repeats is the place, what does not is weather and
speckle. Those axes are the canonical correlations of one half with the other. By the same moments a source that showed
nothing of a pixel is told from the others (the regression of its detail on theirs). All of it is our choice: the paper
says nothing of how its weights began.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from aefcli.batch import Batch, Frames
from aefcli.model import Model, SourceEncoder

_KEPT = 12  # batches that are held in memory, on which the guess at what is clear is fitted
WINDOW = 16  # px of a window that it asks for; larger ones hold little that is new
_SHRUNK = 0.01  # of the mean variance, that is added to each before the halves are compared
_PIXELS = 20_000  # of each source, that the guess at what is clear is fitted on
_STEPS = 60  # of L-BFGS for it
_DECAY = 1e-4

_Look = tuple[dict[str, Frames], Int[Tensor, "b 1 2"]]  # what a batch shows, and in which support
_Halves = tuple[Float[Tensor, "2 s n e"], Bool[Tensor, "2 s n 1"]]  # what of it, and whether the half showed it

_Item = TypeVar("_Item")


class _Stopped(Exception):
    pass


def begin(
    model: Model, batches: Iterable[Batch], noise: torch.Generator, stop: Callable[[], bool] = lambda: False
) -> bool:
    """Fit the weights of a fresh model in place, on the device of `noise`; those that nothing can be told of stay.

    False once `stop` has answered yes, which is asked between batches: the weights are then of no use.
    """
    try:
        _fit(model, batches, noise, stop)
    except _Stopped:
        return False
    return True


def _fit(model: Model, batches: Iterable[Batch], noise: torch.Generator, stop: Callable[[], bool]) -> None:
    looks = _until(stop, (_look(batch, noise.device) for batch in batches))
    first = [*islice(looks, _KEPT)]
    for name in _until(stop, model.sources):
        seen = [frames[name] for frames, _ in first if name in frames]
        if seen:
            _tell_clear(cast(SourceEncoder, model.stem[name]), seen, noise)
    views = Views()
    for inputs, period in chain(_until(stop, first), looks):
        detail, there = _halves(model, inputs, period, noise)
        views.add(*torch.cat([torch.where(there, detail, 0.0), there], dim=-1).transpose(1, 2).flatten(2))
    usual, filling = _filling(views, len(model.sources))
    views = views.through(filling)
    if views.differ:  # else nothing was seen twice
        weight, mean = views.agreeing(len(model.summariser.level))
        model.summariser.begin(weight, mean + usual, views.told(len(model.sources)))


def _until(stop: Callable[[], bool], items: Iterable[_Item]) -> Iterator[_Item]:
    for item in items:
        if stop():
            raise _Stopped
        yield item


def _look(batch: Batch, device: torch.device) -> _Look:
    """Copied: a view would keep the whole batch."""
    frames = {
        name: Frames(**{part: tensor.clone() for part, tensor in vars(frames).items()}).to(device)
        for name, frames in batch.inputs.items()
    }
    return frames, batch.support[:, None].clone().to(device)


def _tell_clear(stem: SourceEncoder, seen: Sequence[Frames], noise: torch.Generator) -> None:
    """Fit the stem's guess at what is clear, by cross-entropy against the products' masks."""
    share, shown, clear = -(-_PIXELS // len(seen)), [], []
    for frames in seen:
        there = frames.present.flatten().nonzero()[:, 0]
        some = there[torch.randperm(len(there), generator=noise, device=noise.device)[:share]]
        values = torch.where(frames.bands[..., None, None], frames.pixels, 0.0).movedim(2, -1)
        shown.append(values.flatten(0, -2)[some])
        clear.append(frames.weight.flatten()[some])
    pixels, target = torch.cat(shown), torch.cat(clear)
    if not len(pixels):
        return
    weights = [*stem.clear.parameters()]
    optimiser = torch.optim.LBFGS(weights, max_iter=_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        answer = stem.clear(pixels.T[None, :, :, None])[0, 0, :, 0]
        away = F.binary_cross_entropy_with_logits(answer, target)
        total = away + _DECAY * torch.stack([weight.square().sum() for weight in weights]).sum()
        total.backward()
        return total

    optimiser.step(loss)
    optimiser.zero_grad()


@torch.no_grad()
def _halves(model: Model, inputs: dict[str, Frames], period: Int[Tensor, "b 1 2"], noise: torch.Generator) -> _Halves:
    """The pooled detail of one pixel of each cell, by one random half of the frames and by the other; and whether the
    half showed it. Of the pixels that some source shows in both.

    Each cell has halves of its own, or all cells of a window would tell of the same few draws.
    """
    cells = {name: (*f.time.shape, *(side // 2 for side in f.present.shape[2:])) for name, f in inputs.items()}
    drawn = {name: torch.rand(shape, generator=noise, device=noise.device) < 0.5 for name, shape in cells.items()}
    half_of = {name: half.repeat_interleave(2, -1).repeat_interleave(2, -2) for name, half in drawn.items()}
    halves = []
    for side in (False, True):
        kept = {n: replace(f, present=f.present & (half_of[n] == side)) for n, f in inputs.items()}
        halves.append(model.summariser.pooled_detail(model.stems(kept), period))
    detail, there = (torch.stack(parts) for parts in zip(*halves, strict=True))
    both = there.any(1).all(0)
    return detail[:, :, both], there[:, :, both, None]


def _filling(views: Views, sources: int) -> tuple[Float[Tensor, " e"], Float[Tensor, "e es"]]:
    """What is usual of all sources, and what makes of their detail and whether it was there how far it is from that.

    A source that showed nothing in a half is taken to show what is usual, or its presence would be an axis.
    """
    total, count = views.total.view(sources, -1).split([len(views.total) // sources - 1, 1], dim=1)
    usual = total / count.clamp(min=1)
    keep = torch.eye(usual.shape[1]).to(usual)
    return usual.flatten().float(), torch.block_diag(*(torch.cat([keep, -each[:, None]], dim=1) for each in usual))


class Views:
    """Two views of the same things, which may come in any number of parts: only their moments are kept."""

    def __init__(self, count: int = 0, sums: tuple[Tensor, ...] = ()) -> None:
        self._count = count
        self._sums = sums  # of both views, of their products within each and between the two

    def add(self, one: Float[Tensor, "n e"], other: Float[Tensor, "n e"]) -> None:
        one, other = one.double(), other.double()
        cross = one.T @ other
        more = one.sum(0) + other.sum(0), one.T @ one + other.T @ other, cross + cross.T
        self._sums = tuple(map(torch.add, self._sums, more)) if self._sums else more
        self._count += 2 * len(one)

    @property
    def total(self) -> Float[Tensor, " e"]:
        """The sum of both."""
        return self._sums[0]

    def through(self, matrix: Float[Tensor, "d e"]) -> Views:
        """The views of matrix @ x."""
        total, *products = self._sums
        return Views(self._count, (matrix @ total, *(matrix @ each @ matrix.T for each in products)))

    def _moments(self) -> tuple[Float[Tensor, " e"], Float[Tensor, "e e"], Float[Tensor, "e e"]]:
        mean, within, between = (total / max(1, self._count) for total in self._sums)
        usual = mean.outer(mean)
        return mean, within - usual, between - usual

    @property
    def differ(self) -> bool:
        """Whether there is anything to tell apart."""
        return self._count > 2 and bool(self._moments()[1].trace() > 1e-12)

    def told(self, parts: int) -> Float[Tensor, "e e"]:
        """What to expect of each of so many equal parts by the others: of the mean of both views, told @ (x - mean)."""
        _, within, between = self._moments()
        whole = (within + between) / 2
        whole = whole + _SHRUNK * whole.diagonal().mean() * torch.eye(len(whole)).to(whole)
        out = torch.zeros_like(whole)
        for part in torch.arange(len(whole), device=whole.device).chunk(parts):
            rest = torch.ones(len(whole), dtype=torch.bool, device=whole.device).index_fill(0, part, False)
            out[part[:, None], rest.nonzero()[:, 0]] = torch.linalg.solve(whole[rest][:, rest], whole[rest][:, part]).T
        return out.float()

    def agreeing(self, count: int) -> tuple[Float[Tensor, "d e"], Float[Tensor, " e"]]:
        """The axes on which the views agree most, each weighed by how far they do: (weight, mean), such that
        weight @ (x - mean) has numbers of unit mean square.
        """
        mean, within, between = self._moments()
        shrunk = within + _SHRUNK * within.diagonal().mean() * torch.eye(len(within)).to(within)
        whiten = torch.linalg.inv(torch.linalg.cholesky(shrunk))
        agreement, axes = torch.linalg.eigh(whiten @ between @ whiten.T)
        weight = axes.flip(1)[:, :count].T @ whiten * agreement.flip(0)[:count].clamp(min=1e-3)[:, None]
        square = (weight @ within @ weight.T).trace() / count
        return (F.pad(weight, (0, 0, 0, count - len(weight))) / square.sqrt()).float(), mean.float()
