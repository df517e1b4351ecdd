"""Frames of all sources on one axis, and where each belongs (section 2).

All frames of the batch that have anything present are packed on one axis n, each with its site (its row of the batch)
and its place among that site's frames. Space and precision work on frames one by one; only the time operator and the
summariser look across frames, and they alone spread them out into (b, t) with a mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Where each packed frame belongs."""

    site: Int[Tensor, " n"]  # its row of the batch
    slot: Int[Tensor, " n"]  # its place among the frames of that row
    time: Int[Tensor, " n"]  # ms since 1970 UTC
    source: Int[Tensor, " n"]  # index into the model's sources
    shape: tuple[int, int]  # (b, most frames of any row)

    def spread(self, packed: Tensor) -> Tensor:
        """(n, ...) -> (b, t, ...), zeros where a row has fewer frames; the same memory where none has."""
        if self.even:
            return packed.unflatten(0, self.shape)
        out = packed.new_zeros(*self.shape, *packed.shape[1:])
        return out.index_put((self.site, self.slot), packed)

    def gather(self, spread: Tensor) -> Tensor:
        """(b, t, ...) -> (n, ...): the inverse, of the same memory likewise."""
        return spread.flatten(0, 1) if self.even else spread[self.site, self.slot]

    def of(self, source: int) -> tuple[Layout, Int[Tensor, " m"]]:
        """The frames of one source by themselves, and which of all they are."""
        which = (self.source == source).nonzero()[:, 0]
        site = self.site[which]
        slot, longest = slots(site, self.shape[0])
        return Layout(site, slot, self.time[which], self.source[which], (self.shape[0], longest)), which

    @property
    def filled(self) -> Bool[Tensor, "b t"]:
        return self.spread(torch.ones_like(self.site, dtype=torch.bool))

    @property
    def even(self) -> bool:
        """Whether every row has as many frames as any other, so that no slot is empty."""
        return len(self.site) == self.shape[0] * self.shape[1]


def slots(site: Int[Tensor, " n"], rows: int) -> tuple[Int[Tensor, " n"], int]:
    """The place of each frame among those of its row, and the most frames of any row; rows in order."""
    counts = torch.bincount(site, minlength=rows)
    return torch.arange(len(site), device=site.device) - (counts.cumsum(0) - counts)[site], int(counts.max())


@dataclass(frozen=True)
class Encoded:
    """What the encoder hands to the summariser: it does not know the valid period."""

    features: Float[Tensor, "n p h2 w2"]
    detail: Float[Tensor, "n e4 h2 w2"]  # e numbers of each pixel of the 2x2 cell, as the frame showed it
    shown: Bool[Tensor, "n 4 h2 w2"]  # which of the pixels have any
    clear: Float[Tensor, "n h2 w2"]  # logarithm of how likely the stem takes the cell to be clear
    present: Bool[Tensor, "n h2 w2"]  # any pixel of the 2x2 cell delivered
    layout: Layout
    seen: Bool[Tensor, "b h w"]  # any frame delivered the pixel

    def of(self, source: int) -> Encoded:
        """The frames of one source."""
        layout, which = self.layout.of(source)
        parts = (self.features, self.detail, self.shown, self.clear, self.present)
        features, detail, shown, clear, present = (part[which] for part in parts)
        return Encoded(features, detail, shown, clear, present, layout, self.seen)
