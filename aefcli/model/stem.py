"""The source encoders: a frame of one source to the encoder's grid, and what goes round the encoder (section 2)."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

_BENT = 1.5  # spread of what the bent features of a pixel are made of, in that of a band
_CLEAR = 16  # width of the stem's guess at what is clear
_STEM_NOISE = 0.3  # share of the usual random weights that a stem begins with beside the blur


class SourceEncoder(nn.Module):
    """One frame of one source, c x L x L, to D_P x L/2 x L/2: a strided convolution plus a learned source vector.

    Absent pixels and bands enter as 0, with a channel of presence per band beside them. What single pixels show goes
    round the encoder, kept by cell: their bands turned, and bent features of them (what reflectances say of the ground
    is mostly in their ratios); and a guess at whether they are clear. What goes round is our choice, and so is what the
    weights begin as.
    """

    def __init__(self, bands: int, width: int, detail: int) -> None:
        super().__init__()
        straight = detail // 3
        self.fine = nn.Conv2d(bands, straight, 1, bias=False)
        nn.init.orthogonal_(self.fine.weight.view(straight, bands))
        self.bent = nn.Conv2d(bands, detail - straight, 1)
        nn.init.normal_(self.bent.weight, std=_BENT / math.sqrt(bands))
        nn.init.normal_(cast(Tensor, self.bent.bias), std=0.5)
        self.clear = nn.Sequential(nn.Conv2d(bands, _CLEAR, 1), nn.GELU(), nn.Conv2d(_CLEAR, 1, 1))
        self.project = nn.Conv2d(2 * bands, width, 4, stride=2, padding=1)
        self.source = nn.Parameter(torch.zeros(width))
        self._blur(bands, width)

    @torch.no_grad()
    def _blur(self, bands: int, width: int) -> None:
        """Begin as a blur of the bands along random orthonormal directions. Of purely random weights over 4x4 pixels
        most of the variance is texture, and ten bands no longer come through.
        """
        tap = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        directions = nn.init.orthogonal_(torch.empty(width, bands)) * math.sqrt(width / bands) / 2
        self.project.weight.mul_(_STEM_NOISE)
        self.project.weight[:, :bands] += directions[..., None, None] * tap[:, None] * tap

    def forward(
        self, pixels: Float[Tensor, "n c h w"], there: Bool[Tensor, "n c h w"]
    ) -> tuple[
        Float[Tensor, "n d h2 w2"], Float[Tensor, "n e4 h2 w2"], Bool[Tensor, "n 4 h2 w2"], Float[Tensor, "n h2 w2"]
    ]:
        """States, and of the pixels: detail, which have any, and how clear the cell looks."""
        # where, not a product: what is not present must not reach the network even if it is NaN.
        values = torch.where(there, pixels, 0.0)
        x = self.project(torch.cat([values, there.to(values.dtype)], 1))
        states = x + self.source.to(x.dtype)[:, None, None]  # under autocast they stay in bfloat16
        any_band = there.any(1, keepdim=True)
        detail = torch.cat([self.fine(values), F.gelu(self.bent(values))], dim=1).masked_fill(~any_band, 0.0)
        guess = F.logsigmoid(self.clear(values)).masked_fill(~any_band, 0.0)
        clear = F.avg_pool2d(guess, 2) / F.avg_pool2d(any_band.to(guess.dtype), 2).clamp(min=0.25)
        return states, by_cell(detail), by_cell(any_band), clear[:, 0]


def by_cell(pixels: Shaped[Tensor, "n e h w"]) -> Shaped[Tensor, "n e4 h2 w2"]:
    """What the four pixels of each 2x2 cell have, pixel by pixel."""
    cells = pixels.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2))  # n e h2 2 w2 2
    return cells.permute(0, 3, 5, 1, 2, 4).flatten(1, 3)
