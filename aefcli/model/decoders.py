"""What serves training alone: implicit decoders, and the head of texts (sections 7 and 8)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from aefcli.model.parts import Perceptron, unit
from aefcli.model.timecodes import PERIOD, POSITIONS, describe, position
from aefcli.recipe import Model as Sizes
from aefcli.sources import Source


class Decoder(nn.Module):
    """[sample, place of the instant in its valid period, acquisition geometry] -> bands or class logits (section 7).

    Pixel by pixel: `s` are those asked for.
    """

    def __init__(self, sizes: Sizes, source: Source) -> None:
        super().__init__()
        self.first = nn.Linear(sizes.embedding + 2 * POSITIONS + len(source.meta), sizes.decoder)
        self.second = nn.Linear(sizes.decoder, sizes.decoder)
        self.out = nn.Linear(sizes.decoder, source.outputs)

    def forward(
        self, sample: Float[Tensor, "b s d"], place: Float[Tensor, " b"], meta: Float[Tensor, "b m"]
    ) -> Float[Tensor, "b s c"]:
        about = torch.cat([position(place), meta], dim=1).to(sample.dtype)
        # A unit vector's numbers are about 1/8: brought to the scale of the others, or decoders begin by ignoring it.
        # Our choice, as are the half-waves that tell the place.
        pixels = sample * math.sqrt(sample.shape[-1])
        x = torch.cat([pixels, about[:, None].expand(-1, pixels.shape[1], -1)], dim=-1)
        return self.out(F.gelu(self.second(F.gelu(self.first(x)))))


class TextHead(nn.Module):
    """[vector of a frozen language model, description of its valid period] -> a unit vector beside the embeddings.

    `log_scale` is the logarithm of CLIP's learned inverse temperature, from 1/0.07 and at most 100.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.mlp = Perceptron(sizes.text + PERIOD, sizes.decoder, sizes.embedding)
        self.log_scale = nn.Parameter(torch.full((1,), math.log(1 / 0.07)))  # FSDP shares out no scalars

    def forward(self, vector: Float[Tensor, "b v"], valid: Int[Tensor, "b 2"]) -> Float[Tensor, "b d"]:
        # A language model's unit vector has numbers of 1/sqrt(v): to the scale of the timecodes, as in the decoders.
        x = torch.cat([vector * math.sqrt(vector.shape[1]), describe(valid).to(vector.dtype)], dim=1)
        return unit(self.mlp(x), dim=1)

    @property
    def scale(self) -> Float[Tensor, ""]:
        return self.log_scale.exp()[0]

    @torch.no_grad()
    def bound(self) -> None:
        """To be called after each step: a clamp in `scale` would leave no gradient to come back by."""
        self.log_scale.clamp_(max=math.log(100))
