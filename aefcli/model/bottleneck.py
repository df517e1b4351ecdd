"""The von Mises-Fisher bottleneck: what decoders get in training is drawn around the embedding (section 6)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from aefcli.parallel import own


def sample_vmf(mean: Float[Tensor, "b *s d"], kappa: float, generator: torch.Generator) -> Float[Tensor, "b *s d"]:
    """Vectors from the von Mises-Fisher distribution around each unit vector `mean`, differentiable in it.

    Exact at any kappa. A cosine to the mean is drawn, and noise whose part across the mean is the direction: neither
    hangs on the mean. (A Gaussian in the tangent is cheaper, and at kappa = 8000 its mean cosine is 2e-5 too high.)
    """
    rows, *rest, d = mean.shape
    cosine = own(lambda b: sample_cosine(b * math.prod(rest), d, kappa, generator).view(b, *rest, 1), rows)
    noise = own(lambda b: torch.randn(b, *rest, d, generator=generator, device=mean.device, dtype=mean.dtype), rows)
    across = F.normalize(noise - (noise * mean).sum(-1, keepdim=True) * mean, dim=-1)
    return cosine.to(mean.dtype) * mean + (1 - cosine.square()).sqrt().to(mean.dtype) * across


def sample_cosine(count: int, d: int, kappa: float, generator: torch.Generator) -> Float[Tensor, " count"]:
    """Cosines between a von Mises-Fisher sample and its mean direction, float64: rejection after Ulrich and Wood.

    The proposal needs a symmetric beta variable of (d - 1) / 2, which is what one coordinate of a uniform unit vector
    in d dimensions follows once it is brought from [-1, 1] to [0, 1].
    """
    b = (d - 1) / (2 * kappa + math.sqrt(4 * kappa**2 + (d - 1) ** 2))
    top = (1 - b) / (1 + b)
    log_top = kappa * top + (d - 1) * math.log1p(-(top**2))
    out = torch.empty(count, dtype=torch.float64, device=generator.device)
    todo = torch.arange(count, device=generator.device)
    while len(todo):
        ball = torch.randn(len(todo), d, generator=generator, device=generator.device, dtype=torch.float64)
        beta = (1 + ball[:, 0] / ball.norm(dim=1)) / 2
        cosine = (1 - (1 + b) * beta) / (1 - (1 - b) * beta)
        chance = torch.rand(len(todo), generator=generator, device=generator.device, dtype=torch.float64)
        taken = kappa * cosine + (d - 1) * torch.log1p(-top * cosine) - log_top >= chance.log()
        out[todo[taken]] = cosine[taken]
        todo = todo[~taken]
    return out
