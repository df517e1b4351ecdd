"""The terms of the objective [paper eq. 3], on tensors and plain numbers alone.

Owns reconstruction, batch uniformity and teacher-student consistency, each a mean over what is valid, and their sum.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from aefcli.recipe import Loss


def reconstruction(
    predicted: Float[Tensor, "b c h w"],
    target: Float[Tensor, "b c h w"],
    bands: Bool[Tensor, "b c"],
    weight: Float[Tensor, "b h w"],
) -> Float[Tensor, ""]:
    """L1 over the bands that the scene has and the pixels that weigh; 0 where nothing does. Unit: sigmas of a band."""
    weights = (weight[:, None] * bands[:, :, None, None]).expand_as(target)
    error = torch.where(weights > 0, (predicted - target).abs(), 0.0)
    return (error * weights).sum() / weights.sum().clamp(min=1.0)


def uniformity(u: Float[Tensor, "b d h w"], seen: Bool[Tensor, "b h w"]) -> Float[Tensor, ""]:
    """Mean |<u_b, u_b+1>| at the same pixel: vectors of independent places, rotated by one along the batch axis.

    Pixels are never mixed: rolling over flattened pixels would push neighbours apart. 0.100 for uniform vectors on
    S^63, 1 on collapse.
    """
    both = seen & seen.roll(1, dims=0)
    cosine = (u * u.roll(1, dims=0)).sum(1).abs()
    return torch.where(both, cosine, 0.0).sum() / both.sum().clamp(min=1)


def consistency(
    teacher: Float[Tensor, "b d h w"], student: Float[Tensor, "b d h w"], seen: Bool[Tensor, "b h w"]
) -> Float[Tensor, ""]:
    """Mean (1 - <teacher, student>) / 2 where both saw something. No stop-gradient: both are the same parameters."""
    distance = (1 - (teacher * student).sum(1)) / 2
    return torch.where(seen, distance, 0.0).sum() / seen.sum().clamp(min=1)


def total(
    errors: Mapping[str, Tensor], weights: Mapping[str, float], uniform: Tensor, consistent: Tensor, loss: Loss
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum, and its parts by name, unweighted: one per source, `uniformity`, `consistency`."""
    mean = torch.stack([weights[name] * error for name, error in errors.items()]).mean() if errors else uniform * 0
    whole = loss.reconstruction * mean + loss.uniformity * uniform + loss.consistency * consistent
    return whole, {**errors, "uniformity": uniform, "consistency": consistent}
