"""Small parts that others are made of."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Part = TypeVar("Part", bound=nn.Module)


def silent(part: Part) -> Part:
    """The same part with zero weights: a residual branch ends in one, so that the network begins as what it adds to.

    Our choice. Begun at full strength, the branches and exchanges of all blocks drown the pixel that a frame showed,
    and training has to find it again.
    """
    for parameter in part.parameters():
        nn.init.zeros_(parameter)
    return part


class Perceptron(nn.Sequential):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out))


def joined(parts: list[Tensor], dim: int) -> Tensor:
    """Parts put together; one alone is not copied."""
    return torch.cat(parts, dim) if len(parts) > 1 else parts[0]


def unit(x: Tensor, dim: int) -> Tensor:
    """To unit length, in float32 at least: bfloat16 cannot hold it."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=dim, eps=1e-6)
