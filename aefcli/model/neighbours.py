"""Neighbours that look alike, averaged: what speckle, haze and noise leave in a single pixel (our choice)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from aefcli.model.parts import joined, unit

_SHARPNESS = 12.0  # to begin with
_BLOCK = 4  # px along the sides of the squares whose pixels are compared together with all around them
_STRIP, _STRIP_GPU = 2**11, 2**22  # px that are compared at a time: a CPU keeps what they take in its cache
# What a logit has less beyond the reach. It leaves 4e-18 of the weight, which float32 cannot see. Up to twice the
# sharpness goes off beside it, and less than -87 in all would leave no normal number, which takes a CPU dozens of
# times as long.
_FAR = -40.0


class Neighbours(nn.Module):
    """Each pixel's vector as the mean of its own and of those up to `reach` px away in rows and in columns, each
    weighed by exp(sharpness (cosine - 1)): attention whose queries, keys and values are the vectors themselves, with
    one number to learn.

    What lies across the border of a parcel is unlike, and stays out: a plain blur of the same reach costs accuracy
    where this gains it. Known for grey values as non-local means (Buades et al. 2005).
    """

    far: Float[Tensor, "q k"]

    def __init__(self, reach: int) -> None:
        super().__init__()
        self.reach = reach
        self.log_sharpness = nn.Parameter(torch.tensor([math.log(_SHARPNESS)]))  # FSDP takes no scalars
        query, key = torch.arange(_BLOCK) + reach, torch.arange(_BLOCK + 2 * reach)
        line = (query[:, None] - key).abs() <= reach
        near = (line[:, None, :, None] & line[None, :, None, :]).flatten(0, 1).flatten(1)
        self.register_buffer("far", torch.where(near, 0.0, _FAR), persistent=False)

    def forward(self, vectors: Float[Tensor, "n d h w"], seen: Bool[Tensor, "n h w"]) -> Float[Tensor, "n d h w"]:
        """Unit vectors in, unit vectors out, fastest with channels last in memory. A pixel that no frame saw serves no
        other.
        """
        height, width = vectors.shape[-2:]
        right, below, reach = -width % _BLOCK, -height % _BLOCK, self.reach
        beyond, around = (0, right, 0, below), (reach, right + reach, reach, below + reach)
        serving = vectors * seen[:, None]  # what no frame saw adds nothing, however alike
        own, others = F.pad(vectors, beyond) if any(beyond) else vectors, F.pad(serving, around)
        alone = ~F.pad(seen[:, None], beyond)
        most = _STRIP_GPU if vectors.is_cuda else _STRIP
        rows = max(1, most // max(1, len(vectors) * width * _BLOCK)) * _BLOCK
        strips = [
            self.averaged(own[:, :, top:end], others[:, :, top : end + 2 * reach], alone[:, :, top:end])
            for top, end in ((top, top + rows) for top in range(0, height, rows))
        ]
        return joined(strips, 2)[:, :, :height, :width]

    def averaged(
        self, own: Float[Tensor, "n d h w"], others: Float[Tensor, "n d hr wr"], alone: Bool[Tensor, "n 1 h w"]
    ) -> Float[Tensor, "n d h w"]:
        """A strip of whole squares of 4 px; `others` reach around it."""
        own, others, alone = squares(own, 0), squares(others, self.reach), squares(alone, 0)
        with torch.autocast(own.device.type, enabled=False):  # bfloat16 cannot tell what is alike from what is same
            sharpness = self.log_sharpness.exp().to(own.dtype)
            shape, keys = own.shape[:3], others.flatten(0, 2)
            logits = torch.baddbmm(self.far - sharpness, (sharpness * own).flatten(0, 2), keys.transpose(-1, -2))
            total = torch.bmm(logits.exp_(), keys).unflatten(0, shape).addcmul(own, alone)
        whole = total.unflatten(-2, (_BLOCK, _BLOCK)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return unit(whole.movedim(-1, 1), dim=1)


def squares(maps: Shaped[Tensor, "n d h w"], reach: int) -> Shaped[Tensor, "n h4 w4 q d"]:
    """Maps as squares of 4x4 px, each with `reach` px around it."""
    size = _BLOCK + 2 * reach
    return maps.unfold(2, size, _BLOCK).unfold(3, size, _BLOCK).permute(0, 2, 3, 4, 5, 1).flatten(3, 4)
