"""What the model is fed: frames of each source, ragged in time by presence, and what is done to them.

Owns `Frames`, `Text` and `Batch`, padding in time, holding a target out, drawing valid periods, the gap in radar
frames, and the perturbation that makes a student's inputs out of a teacher's. Knows neither files nor the network.
Source: method.md sections 2 and 8.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

DAY = 86_400_000  # ms
_SHORTEST = 4 * DAY  # a valid period is longer than this


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

    def to(self, device: torch.device) -> Frames:
        return Frames(*(getattr(self, field.name).to(device) for field in fields(self)))


@dataclass(frozen=True)
class Text:
    """At most one text per sample: its vector by a frozen language model, where it lies, what period it tells of."""

    vector: Float[Tensor, "b v"]  # 0 where there is none
    pixel: Int[Tensor, "b 2"]  # row, column
    valid: Int[Tensor, "b 2"]  # ms since 1970 UTC, half open
    there: Bool[Tensor, " b"]

    def to(self, device: torch.device) -> Text:
        return Text(*(getattr(self, field.name).to(device) for field in fields(self)))


@dataclass(frozen=True)
class Batch:
    """Inputs of every source (ragged t), one target frame of each (t = 1), and the valid period of each target."""

    inputs: Mapping[str, Frames]
    targets: Mapping[str, Frames]
    valid: Mapping[str, Int[Tensor, "b 2"]]  # ms since 1970 UTC, half open
    support: Int[Tensor, "b 2"]
    apart: Bool[Tensor, " b"]  # no ground in common with the sample before; of the first, with the last
    text: Text | None = None
    gsd: float = 10.0  # metres per pixel

    def __post_init__(self) -> None:
        frames = [*self.inputs.values(), *self.targets.values()]
        sizes = {(each.pixels.shape[0], *each.pixels.shape[-2:]) for each in frames}
        if len(sizes) != 1:
            raise ValueError(f"sources disagree on (b, h, w): {sorted(sizes)}")

    def to(self, device: torch.device) -> Batch:
        return Batch(
            {name: frames.to(device) for name, frames in self.inputs.items()},
            {name: frames.to(device) for name, frames in self.targets.items()},
            {name: valid.to(device) for name, valid in self.valid.items()},
            self.support.to(device),
            self.apart.to(device),
            self.text and self.text.to(device),
            self.gsd,
        )


def stack(samples: Sequence[Frames]) -> Frames:
    """Join samples of one source along b, padding time with frames that are not present."""
    longest = max(sample.time.shape[1] for sample in samples)

    def padded(name: str) -> Tensor:
        parts = []
        for sample in samples:
            value = getattr(sample, name)
            missing = longest - value.shape[1]
            parts.append(torch.cat([value, value.new_zeros(value.shape[0], missing, *value.shape[2:])], dim=1))
        return torch.cat(parts)

    return Frames(*(padded(field.name) for field in fields(Frames)))


def make_batch(
    frames: Mapping[str, Frames],
    alone: Mapping[str, Frames],
    support: Int[Tensor, "b 2"],
    whole_support: float,
    generator: torch.Generator,
) -> Batch:
    """Hold one frame of each input source out as its target, and draw a valid period around it [paper eq. 3].

    `alone` holds the one frame of each source that is a target and no input. All samples count as apart.
    """
    inputs, targets = {}, {}
    for name, source in frames.items():
        inputs[name], targets[name] = hold_out(source, generator)
    targets |= alone
    valid = {name: draw_valid(support, target.time[:, 0], whole_support, generator) for name, target in targets.items()}
    if "sentinel-1" in inputs:
        inputs["sentinel-1"] = with_gap(inputs["sentinel-1"], generator)
    return Batch(inputs, targets, valid, support, torch.ones(len(support), dtype=torch.bool))


def with_gap(frames: Frames, generator: torch.Generator) -> Frames:
    """One line per sample blanked in all its frames, for the reconstruction to fill [paper S2]: the pixels whose centre
    it covers. Anywhere, at any angle, 0.5 to 2 px wide. Where no other source saw them, they stay unseen.
    """
    b, h, w = len(frames.time), *frames.pixels.shape[-2:]
    draw = torch.rand((4, b, 1, 1), generator=generator)
    angle, width = math.pi * draw[0], 0.5 + 1.5 * draw[1]
    down, right = torch.arange(h)[:, None] + 0.5 - h * draw[2], torch.arange(w) + 0.5 - w * draw[3]
    gap = (down * angle.cos() - right * angle.sin()).abs() < width / 2
    return replace(frames, present=frames.present & ~gap[:, None], weight=frames.weight.masked_fill(gap[:, None], 0.0))


def hold_out(frames: Frames, generator: torch.Generator) -> tuple[Frames, Frames]:
    """Per sample, one frame with something clear in it, at random: (inputs without it, the frame alone).

    A sample without such a frame keeps all its inputs; its target has no weight.
    """
    clear = frames.weight.flatten(2).sum(-1) > 0
    score = torch.rand(clear.shape, generator=generator).masked_fill(~clear, -1.0)
    index = score.argmax(dim=1)
    rows = torch.arange(len(index))
    target = Frames(*(getattr(frames, field.name)[rows, index].unsqueeze(1) for field in fields(frames)))
    chosen = torch.zeros_like(clear)
    chosen[rows, index] = clear.any(dim=1)
    return frames.without(chosen), target


def draw_valid(
    support: Int[Tensor, "b 2"], instant: Int[Tensor, " b"], whole: float, generator: torch.Generator
) -> Int[Tensor, "b 2"]:
    """Per sample a period inside the support, longer than four days, that holds the instant.

    A share `whole` of them is the support itself, which is what users ask for most. An instant outside the support
    (the zero of a sample without a target) is moved to its start.
    """
    first, last = support.unbind(1)
    instant = torch.minimum(torch.maximum(instant, first), last - 1)
    draw = torch.rand((3, len(instant)), generator=generator, dtype=torch.float64)
    start = first + (draw[0] * (instant - first + 1).double()).long()
    earliest_end = torch.minimum(torch.maximum(instant + 1, start + _SHORTEST + 1), last)
    end = earliest_end + (draw[1] * (last - earliest_end + 1).double()).long()
    start = torch.maximum(torch.minimum(start, end - _SHORTEST - 1), first)
    all_of_it = draw[2] < whole
    return torch.stack([torch.where(all_of_it, first, start), torch.where(all_of_it, last, end)], dim=1)


def perturb(batch: Batch, generator: torch.Generator) -> tuple[dict[str, Bool[Tensor, "b t"]], Int[Tensor, "b 2"]]:
    """The frames that a student loses, and the valid period at which it meets its teacher; drawn per sample [paper S2].

    All of Landsat and all of Sentinel-1 go with probability 0.3 each. Then one of: 30% of Landsat, 30% of Sentinel-1
    and 50% of Sentinel-2 frames go, and the period is random; the later half of everything goes, and the period is that
    half; the same with the earlier half. The scattered drop never takes the last Sentinel-2 frame.
    """
    first, last = batch.support.unbind(1)
    count = len(first)
    kind = torch.randint(3, (count,), generator=generator)
    middle = first + (last - first) // 2
    anywhere = first + (torch.rand(count, generator=generator, dtype=torch.float64) * (last - first).double()).long()
    valid = draw_valid(batch.support, anywhere, 0.0, generator)
    valid = torch.where((kind == 1)[:, None], torch.stack([middle, last], 1), valid)
    valid = torch.where((kind == 2)[:, None], torch.stack([first, middle], 1), valid)
    drops = {}
    for name, frames in batch.inputs.items():
        share = 0.5 if name == "sentinel-2" else 0.3
        scattered = torch.rand(frames.time.shape, generator=generator) < share
        if name == "sentinel-2":
            scattered &= ~_spared(frames, scattered, generator)
        later = frames.time >= middle[:, None]
        drops[name] = torch.where((kind == 0)[:, None], scattered, torch.where((kind == 1)[:, None], later, ~later))
        if name in ("landsat", "sentinel-1"):
            drops[name] |= (torch.rand(count, generator=generator) < 0.3)[:, None]
    return drops, valid


def _spared(frames: Frames, dropped: Bool[Tensor, "b t"], generator: torch.Generator) -> Bool[Tensor, "b t"]:
    """Where a sample would lose all its frames, one of them at random that stays."""
    there = frames.present.flatten(2).any(-1)
    score = torch.rand(there.shape, generator=generator).masked_fill(~there, -1.0)
    one = torch.zeros_like(there).scatter_(1, score.argmax(1, keepdim=True), True)
    return one & (dropped | ~there).all(1, keepdim=True)
