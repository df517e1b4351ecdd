"""What the model is fed: frames of each source, ragged in time by presence, and what is done to them.

Owns `Frames`, `Text`, `Student` and `Batch`, joining samples with padding in time, holding targets out, drawing valid
periods, the gap in radar frames, and the perturbation that makes a student's inputs out of a teacher's. Knows neither
files nor the network.
Source: method.md sections 2 and 8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

DAY = 86_400_000  # ms
_SHORTEST = 4 * DAY  # a valid period is longer than this
# Of all rows of a batch, or of each row its own, so that what a row draws does not hang on which rows are beside it.
Generators = torch.Generator | Sequence[torch.Generator]
_ALIGNED = 64  # bytes; where tensors begin in a block of several


@dataclass(frozen=True)
class Frames:
    """One source in one batch."""

    pixels: Float[Tensor, "b t c h w"]  # normalised; 0 where not present; clouded pixels keep their values
    present: Bool[Tensor, "b t h w"]  # a value was delivered; False: nodata, padded, dropped, held out
    bands: Bool[Tensor, "b t c"]  # the scene has this band
    weight: Float[Tensor, "b t h w"]  # 1 clear, 0 clouded or not present; never seen by the encoder
    time: Int[Tensor, "b t"]  # ms since 1970 UTC
    meta: Float[Tensor, "b t m"]  # acquisition geometry, for decoders only

    def without(self, dropped: Bool[Tensor, "b t"]) -> Frames:
        """The same with some frames gone: not present, without weight."""
        gone = dropped[:, :, None, None]
        return replace(self, present=self.present & ~gone, weight=self.weight.masked_fill(gone, 0.0))

    def rows(self) -> Frames:
        """Every frame as a sample of its own: (b, t, ...) to (b t, 1, ...)."""
        return _changed(self, lambda tensor: tensor.flatten(0, 1)[:, None])

    def at(self, rows: slice) -> Frames:
        """Some samples."""
        return _changed(self, lambda tensor: tensor[rows])

    def to(self, device: torch.device) -> Frames:
        return _changed(self, lambda tensor: tensor.to(device))


@dataclass(frozen=True)
class Text:
    """At most one text per sample: its vector by a frozen language model, where it lies, what period it tells of."""

    vector: Float[Tensor, "b v"]  # 0 where there is none
    pixel: Int[Tensor, "b 2"]  # row, column
    valid: Int[Tensor, "b 2"]  # ms since 1970 UTC, half open
    there: Bool[Tensor, " b"]


@dataclass(frozen=True)
class Student:
    """What a student is given less than its teacher, and the period at which the two meet."""

    drops: Mapping[str, Bool[Tensor, "b t"]]  # by input: its frames that are gone
    valid: Int[Tensor, "b 2"]  # ms since 1970 UTC, half open


@dataclass(frozen=True)
class Batch:
    """Inputs of every source (ragged t), k target frames of each, and a valid period around the first of them.

    k is the recipe's `loss.targets` for inputs, 1 for a source that is decoded alone.
    """

    inputs: Mapping[str, Frames]
    targets: Mapping[str, Frames]
    valid: Mapping[str, Int[Tensor, "b 2"]]  # ms since 1970 UTC, half open
    support: Int[Tensor, "b 2"]
    apart: Bool[Tensor, " b"]  # no ground in common with the sample before; of the first, with the last
    text: Text | None = None
    gsd: float = 10.0  # metres per pixel
    student: Student = field(kw_only=True)

    def __post_init__(self) -> None:
        frames = [*self.inputs.values(), *self.targets.values()]
        sizes = {(each.pixels.shape[0], *each.pixels.shape[-2:]) for each in frames}
        if len(sizes) != 1:
            raise ValueError(f"sources disagree on (b, h, w): {sorted(sizes)}")

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Batch:
        return _changed(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin(self) -> Batch:
        """The batch in memory that a GPU reads by itself, so that `to` need not wait."""
        return _changed(self, lambda tensor: tensor.pin_memory())

    def share(self) -> Batch:
        """The batch in one block of memory that other processes can open: one file to hand over, not one a tensor."""
        rooms = [-(-tensor.nbytes // _ALIGNED) * _ALIGNED for tensor in _tensors(self)]
        block = torch.empty(sum(rooms), dtype=torch.uint8).share_memory_()
        parts = iter(block.split(rooms))

        def moved(tensor: Tensor) -> Tensor:
            return next(parts)[: tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)

        return _changed(self, moved)


def _tensors(value: Any) -> list[Tensor]:
    """Every tensor in it, in the order in which `_changed` meets them."""
    found: list[Tensor] = []

    def noted(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    _changed(value, noted)
    return found


def _changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same with every tensor in it changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _changed(each, change) for key, each in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{each.name: _changed(getattr(value, each.name), change) for each in fields(value)})
    return value


def stack(samples: Sequence[Frames], longest: int = 0) -> Frames:
    """Join samples of one source along b, padding time with frames that are not present, to at least `longest`."""
    longest = max(longest, *(sample.time.shape[1] for sample in samples))
    return Frames(*(_joined([getattr(s, each.name) for s in samples], longest) for each in fields(Frames)))


def _joined(parts: Sequence[Tensor], longest: int) -> Tensor:
    """Tensors (b, t, ...) of different t as one, padded with zeros."""
    if all(part.shape[1] == longest for part in parts):
        return torch.cat(list(parts))
    shape = (sum(len(part) for part in parts), longest, *parts[0].shape[2:])
    out, row = parts[0].new_zeros(shape), 0
    for part in parts:
        out[row : row + len(part), : part.shape[1]] = part
        row += len(part)
    return out


def make_batch(
    frames: Mapping[str, Frames],
    alone: Mapping[str, Frames],
    support: Int[Tensor, "b 2"],
    whole_support: float,
    generator: Generators,
    targets: int = 1,
) -> Batch:
    """Hold `targets` frames of each input out, draw a valid period around the first [paper eq. 3], and the student.

    `alone` holds the one frame of each source that is a target and no input. All samples count as apart.
    """
    inputs, held = {}, {}
    for name, source in frames.items():
        inputs[name], held[name] = hold_out(source, targets, generator)
    held |= alone
    around = {name: target.time[:, 0, None] for name, target in held.items()}
    valid = {name: draw_valid(support, instant, whole_support, generator)[:, 0] for name, instant in around.items()}
    if "sentinel-1" in inputs:
        inputs["sentinel-1"] = with_gap(inputs["sentinel-1"], generator)
    apart = torch.ones(len(support), dtype=torch.bool)
    return Batch(inputs, held, valid, support, apart, student=perturb(inputs, support, generator))


def _uniform(generator: Generators, *shape: int) -> Float[Tensor, "*shape"]:
    """Numbers in [0, 1), float64; the first of the shape is that of the rows."""
    if isinstance(generator, torch.Generator):
        return torch.rand(shape, generator=generator, dtype=torch.float64)
    assert len(generator) == shape[0]
    return torch.stack([torch.rand(shape[1:], generator=own, dtype=torch.float64) for own in generator])


def with_gap(frames: Frames, generator: Generators) -> Frames:
    """One line per sample blanked in all its frames, for the reconstruction to fill [paper S2]: the pixels whose centre
    it covers. Anywhere, at any angle, 0.5 to 2 px wide. Where no other source saw them, they stay unseen.
    """
    b, h, w = len(frames.time), *frames.pixels.shape[-2:]
    draw = _uniform(generator, b, 4, 1, 1).float().unbind(1)
    angle, width = math.pi * draw[0], 0.5 + 1.5 * draw[1]
    down, right = torch.arange(h)[:, None] + 0.5 - h * draw[2], torch.arange(w) + 0.5 - w * draw[3]
    gap = (down * angle.cos() - right * angle.sin()).abs() < width / 2
    return replace(frames, present=frames.present & ~gap[:, None], weight=frames.weight.masked_fill(gap[:, None], 0.0))


def hold_out(frames: Frames, count: int, generator: Generators) -> tuple[Frames, Frames]:
    """Per sample, `count` frames with something clear in them, at random: (inputs without them, these frames alone).

    Of a sample that has fewer, the other targets are not present and weigh nothing. Where a sample has two frames, one
    stays in the inputs.
    """
    there, clear = frames.present.flatten(2).any(-1), frames.weight.flatten(2).sum(-1) > 0
    score = _uniform(generator, *clear.shape).masked_fill(~clear, -1.0)
    index = score.argsort(dim=1, descending=True)[:, :count]
    most = torch.minimum(clear.sum(1), (there.sum(1) - 1).clamp(min=1))
    held = torch.arange(index.shape[1]) < most[:, None]
    rows = torch.arange(len(index))[:, None]
    targets = Frames(*(getattr(frames, each.name)[rows, index] for each in fields(frames))).without(~held)
    return frames.without(torch.zeros_like(clear).scatter(1, index, held)), stack([targets], count)


def draw_valid(
    support: Int[Tensor, "b 2"], instant: Int[Tensor, "b k"], whole: float, generator: Generators
) -> Int[Tensor, "b k 2"]:
    """For each instant a period inside the sample's support, longer than four days, that holds it.

    A share `whole` of them is the support itself, which is what users ask for most. An instant outside the support
    (the zero of a sample without a target) is moved to its start.
    """
    first, last = (edge[:, None].expand_as(instant) for edge in support.unbind(1))
    instant = torch.minimum(torch.maximum(instant, first), last - 1)
    draw = _uniform(generator, len(instant), 3, *instant.shape[1:]).unbind(1)
    start = first + (draw[0] * (instant - first + 1).double()).long()
    earliest_end = torch.minimum(torch.maximum(instant + 1, start + _SHORTEST + 1), last)
    end = earliest_end + (draw[1] * (last - earliest_end + 1).double()).long()
    start = torch.maximum(torch.minimum(start, end - _SHORTEST - 1), first)
    all_of_it = draw[2] < whole
    return torch.stack([torch.where(all_of_it, first, start), torch.where(all_of_it, last, end)], dim=-1)


def perturb(inputs: Mapping[str, Frames], support: Int[Tensor, "b 2"], generator: Generators) -> Student:
    """The frames that a student loses, and the valid period at which it meets its teacher; drawn per sample [paper S2].

    All of Landsat and all of Sentinel-1 go with probability 0.3 each. Then one of: 30% of Landsat, 30% of Sentinel-1
    and 50% of Sentinel-2 frames go, and the period is random; the later half of everything goes, and the period is that
    half; the same with the earlier half. The scattered drop never takes the last Sentinel-2 frame.
    """
    first, last = support.unbind(1)
    count = len(first)
    draw = _uniform(generator, count, 2)
    kind = (3 * draw[:, 0]).long()
    middle = first + (last - first) // 2
    anywhere = first + (draw[:, 1] * (last - first).double()).long()
    valid = draw_valid(support, anywhere[:, None], 0.0, generator)[:, 0]
    valid = torch.where((kind == 1)[:, None], torch.stack([middle, last], 1), valid)
    valid = torch.where((kind == 2)[:, None], torch.stack([first, middle], 1), valid)
    drops = {}
    for name, frames in inputs.items():
        share = 0.5 if name == "sentinel-2" else 0.3
        scattered = _uniform(generator, *frames.time.shape) < share
        if name == "sentinel-2":
            scattered &= ~_spared(frames, scattered, generator)
        later = frames.time >= middle[:, None]
        drops[name] = torch.where((kind == 0)[:, None], scattered, torch.where((kind == 1)[:, None], later, ~later))
        if name in ("landsat", "sentinel-1"):
            drops[name] |= _uniform(generator, count, 1) < 0.3
    return Student(drops, valid)


def _spared(frames: Frames, dropped: Bool[Tensor, "b t"], generator: Generators) -> Bool[Tensor, "b t"]:
    """Where a sample would lose all its frames, one of them at random that stays."""
    there = frames.present.flatten(2).any(-1)
    score = _uniform(generator, *there.shape).masked_fill(~there, -1.0)
    one = torch.zeros_like(there).scatter_(1, score.argmax(1, keepdim=True), True)
    return one & (dropped | ~there).all(1, keepdim=True)
