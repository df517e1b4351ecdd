"""The space-time-precision (STP) encoder: three paths side by side, and what they hand each other (section 3).

Precision runs at L/2 with width D_P, time at L/8 with D_T, space at L/16 with D_S.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from aefcli.model.packing import Layout
from aefcli.model.parts import Perceptron, silent
from aefcli.model.timecodes import TIMECODE, timecode
from aefcli.recipe import Model as Sizes

PATHS = ("precision", "time", "space")
_SIDE = {"precision": 2, "time": 8, "space": 16}  # pixels per cell


class Attention(nn.Module):
    """Multi-head self-attention with a rotation or a mask handed in."""

    def __init__(self, width: int, head: int) -> None:
        super().__init__()
        self.heads = width // head
        self.qkv = nn.Linear(width, 3 * width)
        self.out = silent(nn.Linear(width, width))

    def forward(
        self, x: Float[Tensor, "m s d"], mask: Bool[Tensor, "m s"] | None = None, turn: Tensor | None = None
    ) -> Float[Tensor, "m s d"]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if turn is not None:
            q, k = rotate(q, turn), rotate(k, turn)
        among = None if mask is None else mask[:, None, None, :]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=among)
        return self.out(mixed.transpose(1, 2).flatten(-2))


def rotate(x: Float[Tensor, "m k s e"], turn: Float[Tensor, "s half"]) -> Float[Tensor, "m k s e"]:
    """Rotary positions: each pair of features turned by its angle."""
    a, b = x.chunk(2, dim=-1)
    sin, cos = turn.sin(), turn.cos()
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def cell_angles(height: int, width: int, head: int, device: torch.device) -> Float[Tensor, "s half"]:
    """Angles of the cells of a grid, rows in one half of the features and columns in the other, any grid size."""
    quarter = head // 4
    speed = 100.0 ** (-torch.arange(quarter, device=device) / quarter)
    rows = torch.arange(height, device=device)[:, None] * speed
    columns = torch.arange(width, device=device)[:, None] * speed
    return torch.cat([rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)], dim=-1).flatten(0, 1)


class Space(nn.Module):
    """Self-attention over the cells of each frame, pre-norm, with residuals."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.head = sizes.head
        self.norms = nn.ModuleList(nn.LayerNorm(sizes.space) for _ in range(2))
        self.attention = Attention(sizes.space, sizes.head)
        self.mlp = Perceptron(sizes.space, sizes.mlp_ratio * sizes.space, sizes.space)
        silent(self.mlp[2])

    def forward(self, x: Float[Tensor, "n d h w"]) -> Float[Tensor, "n d h w"]:
        height, width = x.shape[-2:]
        turn = cell_angles(height, width, self.head, x.device)
        cells = x.flatten(2).transpose(1, 2)
        cells = cells + self.attention(self.norms[0](cells), turn=turn)
        cells = cells + self.mlp(self.norms[1](cells))
        return cells.transpose(1, 2).unflatten(2, (height, width))


class Time(nn.Module):
    """Self-attention along time at each cell, conditioned on the timecode of each frame, pre-norm, with residuals.

    A frame that has anything present is there for every cell; what it lacks, the channels of presence have told. Our
    choice, as is that timecodes are added to what the attention reads.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(sizes.time) for _ in range(2))
        self.when = nn.Linear(TIMECODE, sizes.time)
        self.attention = Attention(sizes.time, sizes.head)
        self.mlp = Perceptron(sizes.time, sizes.mlp_ratio * sizes.time, sizes.time)
        silent(self.mlp[2])

    def forward(self, x: Float[Tensor, "n d h w"], layout: Layout) -> Float[Tensor, "n d h w"]:
        height, width = x.shape[-2:]
        cells = x.flatten(2).transpose(1, 2)
        code = timecode(layout.time).to(self.when.weight.dtype)
        series = layout.spread(self.norms[0](cells) + self.when(code)[:, None])
        series = series.transpose(1, 2).contiguous()  # b cells t d; a linear layer copies its weights for strided input
        # Attention without a mask is the quicker kernel.
        mask = None
        if not layout.even:
            filled = layout.filled
            filled = filled | ~filled.any(1, keepdim=True)  # a row with nothing to attend to may end in NaN gradients
            mask = filled[:, None].expand(-1, series.shape[1], -1).flatten(0, 1)
        mixed = self.attention(series.flatten(0, 1), mask=mask).unflatten(0, series.shape[:2])
        cells = cells + layout.gather(mixed.transpose(1, 2))
        cells = cells + self.mlp(self.norms[1](cells))
        return cells.transpose(1, 2).unflatten(2, (height, width))


class Precision(nn.Module):
    """GroupNorm, convolution, GELU, convolution, residual; the paper's kernels are 3x3."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        hidden = sizes.precision_expansion * sizes.precision
        self.norm = nn.GroupNorm(max(1, sizes.precision // 16), sizes.precision)
        kernel = sizes.precision_kernel
        self.widen = nn.Conv2d(sizes.precision, hidden, kernel, padding=kernel // 2)
        self.narrow = silent(nn.Conv2d(hidden, sizes.precision, kernel, padding=kernel // 2))

    def forward(self, x: Float[Tensor, "n d h w"]) -> Float[Tensor, "n d h w"]:
        return x + self.narrow(F.gelu(self.widen(self.norm(x))))


class Resample(nn.Module):
    """One edge of the exchange: reduce or expand as in a Laplacian pyramid, with a learned projection.

    Down: average over the factor, the pyramid's low pass, then the projection; the band pass stays where it is. Up: the
    projection on the coarse grid, then bilinear expansion. Both are exact in shape and convolve on the coarse grid. The
    paper says no more than that the resampling is learned: how is our choice.
    """

    def __init__(self, width: int, out: int, factor: float, kernel: int) -> None:
        super().__init__()
        self.factor = factor  # below 1 down, above 1 up
        self.project = nn.Conv2d(width, out, kernel, padding=kernel // 2)

    def forward(self, x: Float[Tensor, "n d h w"]) -> Float[Tensor, "n e h2 w2"]:
        if self.factor < 1:
            return self.project(F.avg_pool2d(x, round(1 / self.factor)))
        return F.interpolate(self.project(x), scale_factor=self.factor, mode="bilinear", align_corners=False)


class Block(nn.Module):
    """The operators of the active paths side by side, then the exchange: every path hands its state to every other.

    `before` are the paths that run; `after` those that get a state. A path that starts here is fed by all that ran.
    """

    def __init__(self, sizes: Sizes, before: tuple[str, ...], after: tuple[str, ...]) -> None:
        super().__init__()
        kinds: dict[str, type[nn.Module]] = {"precision": Precision, "time": Time, "space": Space}
        self.operators = nn.ModuleDict({path: kinds[path](sizes) for path in before})
        self.exchange = nn.ModuleDict(
            {
                f"{giver}_{taker}": Resample(
                    getattr(sizes, giver), getattr(sizes, taker), _SIDE[giver] / _SIDE[taker], sizes.exchange_kernel
                )
                for giver in before
                for taker in after
                if giver != taker
            }
        )
        self.after = after
        for edge, resample in self.exchange.items():
            if edge.split("_")[1] in before:  # adds to a state; a path that starts here has nothing else
                silent(resample)

    def forward(self, states: dict[str, Tensor], layout: Layout) -> dict[str, Tensor]:
        worked = {
            path: operator(states[path], layout) if path == "time" else operator(states[path])
            for path, operator in self.operators.items()
        }
        mixed = {}
        for taker in self.after:
            given = [self.exchange[f"{giver}_{taker}"](state) for giver, state in worked.items() if giver != taker]
            mixed[taker] = sum(given, start=worked[taker]) if taker in worked else sum(given[1:], start=given[0])
        return mixed


def staggered(blocks: int) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Which paths run in each block, and which get a state after it [Fig. 2D].

    Precision alone, then time, then space; full exchange from there; after the last all are summed at L/2.
    """
    running = [PATHS[: min(number, 3)] for number in range(1, blocks + 1)]
    return list(zip(running, [*running[1:], PATHS[:1]], strict=True))
