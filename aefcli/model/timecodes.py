"""Instants and periods as numbers that a network can tell apart (section 4)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from aefcli.batch import DAY

_YEAR_DAYS = 365.2425
YEAR = round(_YEAR_DAYS * DAY)  # ms
_EPOCH = 1_577_836_800_000  # 2020-01-01 in ms since 1970; int64 differences to it stay small
_PERIODS = tuple(_YEAR_DAYS * 2.0**k for k in range(4, -8, -1))  # days: 16 years ... 2.9 days, the year among them
TIMECODE = 2 * len(_PERIODS)  # numbers of a timecode
PERIOD = 2 * TIMECODE + 1  # numbers that describe a valid period
POSITIONS = 8  # half-waves across a valid period that decoders can tell apart


def timecode(time: Int[Tensor, "*s"]) -> Float[Tensor, "*s f"]:
    """Sines and cosines of an instant at periods from 16 years to about 3 days; which is our choice.

    The phase is taken in int64 and float64: float32 milliseconds since 1970 resolve two minutes only.
    """
    days = (time - _EPOCH).double() / DAY
    turns = days[..., None] / torch.tensor(_PERIODS, dtype=torch.float64, device=time.device)
    angle = (2 * math.pi * (turns - turns.floor())).float()
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def relative(time: Int[Tensor, "*#s"], start: Int[Tensor, "*#s"], end: Int[Tensor, "*#s"]) -> Float[Tensor, "*#s"]:
    """Where an instant lies in a period: 0 at its start, 1 at its end, beyond outside of it."""
    return ((time - start).double() / (end - start).double()).float()


def describe(valid: Int[Tensor, "*s 2"]) -> Float[Tensor, "*s f"]:
    """A valid period: the timecodes of both ends, and the logarithm of its duration in years."""
    years = (valid[..., 1] - valid[..., 0]).double() / (DAY * _YEAR_DAYS)
    return torch.cat([timecode(valid).flatten(-2), years.log().float()[..., None]], dim=-1)


def position(place: Float[Tensor, "*s"]) -> Float[Tensor, "*s f"]:
    """The timecode of a place in [0, 1) of a valid period, for decoders."""
    angle = math.pi * place[..., None] * torch.arange(1, POSITIONS + 1, device=place.device)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
