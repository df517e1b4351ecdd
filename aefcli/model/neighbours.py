"""Neighbours that look alike, averaged: what speckle, haze and noise leave in a single pixel (our choice)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from aefcli.model.parts import unit

_SHARPNESS = 12.0  # to begin with
_BLOCK = 8  # px along the sides of the squares whose pixels are compared together with all around them
_AT_ONCE, _AT_ONCE_GPU = 2**14, 2**22  # px that are compared at a time; a CPU keeps those in its cache


class Neighbours(nn.Module):
    """Each pixel's vector as the mean of its own and of those up to `reach` px away in rows and in columns, each
    weighed by exp(sharpness (cosine - 1)): attention whose queries, keys and values are the vectors themselves, with
    one number to learn.

    What lies across the border of a parcel is unlike, and stays out: a plain blur of the same reach costs accuracy
    where this gains it. Known for grey values as non-local means (Buades et al. 2005).
    """

    near: Bool[Tensor, "q k"]

    def __init__(self, reach: int) -> None:
        super().__init__()
        self.reach = reach
        self.log_sharpness = nn.Parameter(torch.tensor([math.log(_SHARPNESS)]))  # FSDP takes no scalars
        query, key = torch.arange(_BLOCK) + reach, torch.arange(_BLOCK + 2 * reach)
        line = (query[:, None] - key).abs() <= reach
        near = (line[:, None, :, None] & line[None, :, None, :]).flatten(0, 1).flatten(1)
        self.register_buffer("near", near, persistent=False)

    def forward(self, vectors: Float[Tensor, "n d h w"], seen: Bool[Tensor, "n h w"]) -> Float[Tensor, "n d h w"]:
        """Unit vectors in, unit vectors out. A pixel that no frame saw serves no other."""
        samples = max(1, (_AT_ONCE_GPU if vectors.is_cuda else _AT_ONCE) // seen[0].numel())
        pairs = zip(vectors.split(samples), seen[:, None].split(samples), strict=True)
        return torch.cat([self.mean(*some) for some in pairs])

    def mean(self, vectors: Float[Tensor, "n d h w"], seen: Bool[Tensor, "n 1 h w"]) -> Float[Tensor, "n d h w"]:
        """That of a few samples, square by square."""
        height, width = vectors.shape[-2:]
        right, below, reach = -width % _BLOCK, -height % _BLOCK, self.reach
        beyond, around = (0, right, 0, below), (reach, right + reach, reach, below + reach)
        own, others = squares(F.pad(vectors, beyond), 0), squares(F.pad(vectors, around), reach)
        alone, there = ~squares(F.pad(seen, beyond), 0), squares(F.pad(seen, around), reach)
        with torch.autocast(vectors.device.type, enabled=False):  # bfloat16 cannot tell what is alike from what is same
            alike = torch.exp(self.log_sharpness.exp() * (own @ others.transpose(-1, -2) - 1))
            total = (alike * (there.transpose(-1, -2) & self.near)) @ others + own * alone
        whole = total.unflatten(-2, (_BLOCK, _BLOCK)).permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
        return unit(whole[..., :height, :width], dim=1)


def squares(maps: Shaped[Tensor, "n d h w"], reach: int) -> Shaped[Tensor, "n h8 w8 q d"]:
    """Maps as squares of 8x8 px, each with `reach` px around it."""
    size = _BLOCK + 2 * reach
    return maps.unfold(2, size, _BLOCK).unfold(3, size, _BLOCK).permute(0, 2, 3, 4, 5, 1).flatten(3, 4)
