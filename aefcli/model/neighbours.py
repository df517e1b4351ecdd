"""Neighbours that look alike, averaged: what speckle, haze and noise leave in a single pixel (our choice)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from aefcli.model.parts import unit

_SHARPNESS = 12.0  # to begin with


class Neighbours(nn.Module):
    """Each pixel's vector as the mean of its own and of those up to `reach` px away in rows and in columns, each
    weighed by exp(sharpness (cosine - 1)): attention whose queries, keys and values are the vectors themselves, with
    one number to learn.

    What lies across the border of a parcel is unlike, and stays out: a plain blur of the same reach costs accuracy
    where this gains it. Known for grey values as non-local means (Buades et al. 2005).
    """

    def __init__(self, reach: int) -> None:
        super().__init__()
        self.reach = reach
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(_SHARPNESS)))

    def forward(self, vectors: Float[Tensor, "n d h w"], seen: Bool[Tensor, "n h w"]) -> Float[Tensor, "n d h w"]:
        """Unit vectors in, unit vectors out. A pixel that no frame saw serves no other."""
        # A sample at a time: the vectors of one stay in a CPU's cache.
        return torch.cat([self.mean(*of) for of in zip(vectors.split(1), seen[:, None].split(1), strict=True)])

    def mean(self, own: Float[Tensor, "n d h w"], seen: Bool[Tensor, "n 1 h w"]) -> Float[Tensor, "n d h w"]:
        """How alike two pixels are is asked once, for both."""
        height, width = own.shape[-2:]
        total, there, sharpness = own.clone(), seen.to(own.dtype), self.log_sharpness.exp()
        for down in range(min(self.reach + 1, height)):
            for right in range(-self.reach if down else 1, self.reach + 1):
                if abs(right) >= width:
                    continue
                one = (..., slice(height - down), slice(max(0, -right), width - max(0, right)))
                other = (..., slice(down, height), slice(max(0, right), width - max(0, -right)))
                alike = torch.exp(sharpness * ((own[one] * own[other]).sum(1, keepdim=True) - 1))
                total[one].addcmul_(alike * there[other], own[other])
                total[other].addcmul_(alike * there[one], own[one])
        return unit(total, dim=1)
