"""The network: frames of all sources on one time axis, in; unit vectors per pixel and valid period, out.

One file that reads like the paper (method.md sections 2-7). Owns timecodes, source encoders, the space-time-precision
(STP) encoder, the summariser, the von Mises-Fisher bottleneck, the decoders and the text head. Knows nothing of files,
losses, teachers or students, and never sees coordinates.

Frames travel packed: all frames of the batch that have anything present in one axis n, each with its site (its row of
the batch) and its place among that site's frames. Space and precision work on frames one by one; only the time
operator and the summariser look across frames, and they alone spread them out into (b, t) with a mask.

Sizes: L is the patch side. Precision runs at L/2 with width D_P, time at L/8 with D_T, space at L/16 with D_S.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from aefcli.batch import DAY, Frames
from aefcli.parallel import own
from aefcli.recipe import Model as Sizes
from aefcli.sources import SOURCES, Source

_YEAR_DAYS = 365.2425
_EPOCH = 1_577_836_800_000  # 2020-01-01 in ms since 1970; int64 differences to it stay small
_PERIODS = tuple(_YEAR_DAYS * 2.0**k for k in range(4, -8, -1))  # days: 16 years ... 2.9 days, the year among them
_TIMECODE = 2 * len(_PERIODS)
_PERIOD = 2 * _TIMECODE + 1  # numbers that describe a valid period
_ABSENT = -1e30  # a logit that leaves nothing after softmax, and yet is finite where all frames have it
_POOLED, _POOLED_GPU = 2**22, 2**28  # numbers that the summariser pools at once; a CPU keeps those in its cache
_NARROW = 2.5  # times that a head's bell begins narrower than the distance of two; widths hardly move in a short run
_BENT = 1.5  # spread of what the bent features of a pixel are made of, in that of a band
_CLEAR = 16  # width of the stem's guess at what is clear
_STEM_NOISE = 0.3  # share of the usual random weights that a stem begins with beside the blur
_POSITIONS = 8  # half-waves across a valid period that decoders can tell apart

# --- timecodes (section 4) ------------------------------------------------------------------------------------------


def timecode(time: Int[Tensor, "*s"]) -> Float[Tensor, "*s f"]:
    """Sines and cosines of an instant at periods from 16 years to about 3 days.

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
    angle = math.pi * place[..., None] * torch.arange(1, _POSITIONS + 1, device=place.device)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


# --- packing --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """Where each packed frame belongs."""

    site: Int[Tensor, " n"]  # its row of the batch
    slot: Int[Tensor, " n"]  # its place among the frames of that row
    time: Int[Tensor, " n"]  # ms since 1970 UTC
    source: Int[Tensor, " n"]  # index into the model's sources
    shape: tuple[int, int]  # (b, most frames of any row)

    def spread(self, packed: Tensor) -> Tensor:
        """(n, ...) -> (b, t, ...), zeros where a row has fewer frames."""
        out = packed.new_zeros(*self.shape, *packed.shape[1:])
        return out.index_put((self.site, self.slot), packed)

    def gather(self, spread: Tensor) -> Tensor:
        """(b, t, ...) -> (n, ...): the inverse."""
        return spread[self.site, self.slot]

    def of(self, source: int) -> tuple[Layout, Int[Tensor, " m"]]:
        """The frames of one source by themselves, and which of all they are."""
        which = (self.source == source).nonzero()[:, 0]
        site = self.site[which]
        slot, longest = slots(site, self.shape[0])
        return Layout(site, slot, self.time[which], self.source[which], (self.shape[0], longest)), which

    @property
    def filled(self) -> Bool[Tensor, "b t"]:
        return self.spread(torch.ones_like(self.site, dtype=torch.bool))

    @property
    def even(self) -> bool:
        """Whether every row has as many frames as any other, so that no slot is empty."""
        return len(self.site) == self.shape[0] * self.shape[1]


def slots(site: Int[Tensor, " n"], rows: int) -> tuple[Int[Tensor, " n"], int]:
    """The place of each frame among those of its row, and the most frames of any row; rows in order."""
    counts = torch.bincount(site, minlength=rows)
    return torch.arange(len(site), device=site.device) - (counts.cumsum(0) - counts)[site], int(counts.max())


@dataclass(frozen=True)
class Encoded:
    """What the encoder hands to the summariser: it does not know the valid period."""

    features: Float[Tensor, "n p h2 w2"]
    detail: Float[Tensor, "n e4 h2 w2"]  # e numbers of each pixel of the 2x2 cell, as the frame showed it
    shown: Bool[Tensor, "n 4 h2 w2"]  # which of the pixels have any
    clear: Float[Tensor, "n h2 w2"]  # logarithm of how likely the stem takes the cell to be clear
    present: Bool[Tensor, "n h2 w2"]  # any pixel of the 2x2 cell delivered
    layout: Layout
    seen: Bool[Tensor, "b h w"]  # any frame delivered the pixel

    def of(self, source: int) -> Encoded:
        """The frames of one source."""
        layout, which = self.layout.of(source)
        parts = (self.features, self.detail, self.shown, self.clear, self.present)
        features, detail, shown, clear, present = (part[which] for part in parts)
        return Encoded(features, detail, shown, clear, present, layout, self.seen)


# --- operators (section 3) ------------------------------------------------------------------------------------------


Part = TypeVar("Part", bound=nn.Module)


def silent(part: Part) -> Part:
    """The same part with zero weights: a residual branch ends in one, so that the network begins as what it adds to.

    Begun at full strength, the branches and exchanges of all blocks drown the pixel that a frame showed, and training
    has to find it again.
    """
    for parameter in part.parameters():
        nn.init.zeros_(parameter)
    return part


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


class Perceptron(nn.Sequential):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out))


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

    A frame that has anything present is there for every cell; what it lacks, the channels of presence have told.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(sizes.time) for _ in range(2))
        self.when = nn.Linear(_TIMECODE, sizes.time)
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
    projection on the coarse grid, then bilinear expansion. Both are exact in shape and convolve on the coarse grid.
    """

    def __init__(self, width: int, out: int, factor: float, kernel: int) -> None:
        super().__init__()
        self.factor = factor  # below 1 down, above 1 up
        self.project = nn.Conv2d(width, out, kernel, padding=kernel // 2)

    def forward(self, x: Float[Tensor, "n d h w"]) -> Float[Tensor, "n e h2 w2"]:
        if self.factor < 1:
            return self.project(F.avg_pool2d(x, round(1 / self.factor)))
        return F.interpolate(self.project(x), scale_factor=self.factor, mode="bilinear", align_corners=False)


_PATHS = ("precision", "time", "space")
_SIDE = {"precision": 2, "time": 8, "space": 16}  # pixels per cell


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
    running = [_PATHS[: min(number, 3)] for number in range(1, blocks + 1)]
    return list(zip(running, [*running[1:], _PATHS[:1]], strict=True))


class SourceEncoder(nn.Module):
    """One frame of one source, c x L x L, to D_P x L/2 x L/2: a strided convolution plus a learned source vector.

    Absent pixels and bands enter as 0, with a channel of presence per band beside them. What single pixels show goes
    round the encoder, kept by cell: their bands turned, and bent features of them (what reflectances say of the ground
    is mostly in their ratios); and a guess at whether they are clear. What goes round is our choice.
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


def unit(x: Tensor, dim: int) -> Tensor:
    """To unit length, in float32 at least: bfloat16 cannot hold it."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=dim, eps=1e-6)


# --- summariser (section 5) -----------------------------------------------------------------------------------------


class Pool(nn.Module):
    """The heads of the summariser that read one source: attention pooling of its frames in each L/2 cell.

    A head weighs a frame by where it lies in the valid period (each has a centre and a width there, spread evenly at
    the start), by how clear the cell looks, and by content (query of the period against a key of the frame). With no
    frame near its centre a head takes those around: that is what interpolation and extrapolation need.

    It pools what the encoder made of the cell, and beside it the pixels' own detail by the same weights, for each pixel
    of the frames that showed it. Heads for each source are our choice: the paper pools all frames together.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        heads, width, deep = sizes.pool_heads, sizes.pool_width, sizes.precision
        hidden = 2 * sizes.embedding
        self.heads, self.detail = heads, sizes.pool_detail
        self.query = Perceptron(_PERIOD, 2 * deep, heads * width)
        silent(self.query[2])  # time alone weighs at first: random content would be noise on it
        self.key = nn.Parameter(torch.randn(heads, deep, width) / math.sqrt(deep * width))
        self.key_time = nn.Linear(_TIMECODE, heads * width, bias=False)
        self.value = nn.Parameter(torch.randn(heads, deep, sizes.pool_value) / math.sqrt(deep))
        self.centre = nn.Parameter((torch.arange(heads) + 0.5) / heads)
        self.log_width = nn.Parameter(torch.full((heads,), -math.log(_NARROW * heads)))
        self.usual = nn.Parameter(torch.zeros(hidden))  # what a pixel adds that no frame of this source showed
        self.hidden = nn.Linear(heads * sizes.pool_value, hidden, bias=False)
        self.fine = nn.Linear(heads * sizes.pool_detail, hidden, bias=False)

    def forward(
        self, encoded: Encoded, valid: Int[Tensor, "b p 2"], checkpointing: bool
    ) -> Float[Tensor, "b h2 w2 p 5 f"]:
        """Of the frames of this source, what each cell adds to the hidden layer, and what each of its four pixels does.

        A few rows at a time: each head's features of all cells at once would be many times the encoder's.
        """
        cells, asked, bias = self.prepared(encoded, valid)
        at_once = _POOLED_GPU if cells.is_cuda else _POOLED
        rows = max(1, at_once // (asked.shape[1] * cells.shape[2] * cells.shape[-1]))
        mix = partial(checkpoint, self.mix, use_reentrant=False) if checkpointing else self.mix
        added = torch.cat([mix(part, asked, bias) for part in cells.split(rows, dim=1)], dim=1)
        none = ~self.somewhere(encoded)[..., None, :, None]
        usual = F.pad(none * self.usual.to(added.dtype), (0, 0, 1, 0))
        return added.unflatten(-1, (valid.shape[1], 5, -1)) + usual

    def somewhere(self, encoded: Encoded) -> Bool[Tensor, "b h2 w2 4"]:
        """Whether any frame showed the pixel."""
        return encoded.layout.spread(encoded.shown).any(1).permute(0, 2, 3, 1)

    def prepared(
        self, encoded: Encoded, valid: Int[Tensor, "b p 2"]
    ) -> tuple[Float[Tensor, "b h2 w2 t c"], Float[Tensor, "b pk c1"], Float[Tensor, "b pk t"]]:
        """What the cells show, what each head asks of it, and what it adds to the logits for the frame's instant."""
        layout, absent = encoded.layout, ~encoded.present[:, None]
        # What is known of a frame apart from its content: how clear it looks, and whether it is there at all.
        known = torch.where(absent, _ABSENT, encoded.clear[:, None].to(encoded.features.dtype))
        detail, shown = (part.to(encoded.features.dtype) for part in (encoded.detail, encoded.shown))
        told = torch.cat([detail, shown, encoded.features], dim=1).masked_fill(absent, 0.0)
        flagged = torch.cat([told, known], dim=1)
        cells = layout.spread(flagged).permute(0, 3, 4, 1, 2).contiguous()
        query = self.query(describe(valid).to(self.key.dtype)).unflatten(-1, (self.heads, -1))
        asked = F.pad(torch.einsum("bpke,kce->bpkc", query, self.key), (0, 1), value=1.0).flatten(1, 2)
        return cells, asked, self.bias(layout, valid, query)

    def mix(
        self, cells: Float[Tensor, "b h w t c"], asked: Float[Tensor, "b pk c1"], bias: Float[Tensor, "b pk t"]
    ) -> Float[Tensor, "b h w pf"]:
        """What cells and pixels add to the hidden layer; nothing where there was no frame.

        The key's projection is folded into what is asked and the value's follows the pooling, which is the same sum:
        no map of keys or values is made per frame.
        """
        detail, features = self.attend(cells, asked, bias)
        values = torch.bmm(features.transpose(0, 1), self.value).transpose(0, 1).flatten(1)
        out = torch.cat([self.hidden(values)[:, None], self.fine(detail)], dim=1)
        return out.view(*cells.shape[:3], -1)

    def attend(
        self, cells: Float[Tensor, "b h w t c"], asked: Float[Tensor, "b pk c1"], bias: Float[Tensor, "b pk t"]
    ) -> tuple[Float[Tensor, "bhwp 4 ke"], Float[Tensor, "bhwp k d"]]:
        """Softmax over the frames of each cell, per period and head: the detail of its pixels, and its features."""
        fine = 4 * self.detail
        logits = asked[:, None, None] @ cells[..., fine + 4 :].transpose(-1, -2) + bias[:, None, None]
        pooled = (logits.softmax(-1) @ cells[..., :-1]).reshape(-1, self.heads, cells.shape[-1] - 1)
        detail, weight, features = pooled.split([fine, 4, pooled.shape[-1] - fine - 4], dim=-1)
        each = detail.unflatten(-1, (4, -1)) / weight[..., None].clamp(min=1e-6)
        return each.transpose(1, 2).flatten(2), features

    def bias(
        self, layout: Layout, valid: Int[Tensor, "b p 2"], query: Float[Tensor, "b p k e"]
    ) -> Float[Tensor, "b pk t"]:
        """What a frame's instant adds to its logits, whatever it shows; slots without a frame are out."""
        keys = self.key_time(timecode(layout.time).to(self.key.dtype)).unflatten(-1, (self.heads, -1))
        timely = torch.einsum("nke,npke->npk", keys, query[layout.site]) / math.sqrt(keys.shape[-1])
        bias = layout.spread(timely + self.nearness(layout, valid))
        return bias.masked_fill(~layout.filled[..., None, None], _ABSENT).flatten(2).transpose(1, 2)

    def nearness(self, layout: Layout, valid: Int[Tensor, "b p 2"]) -> Float[Tensor, "n p k"]:
        """How much each head favours a frame for where it lies in the valid period.

        A bell at the centre with a heavy tail: in a period without frames a Gaussian would copy the one nearest frame,
        cloud or not, where the frames around the gap should be weighed by what they show.
        """
        start, end = valid[layout.site].unbind(-1)
        place = relative(layout.time[:, None], start, end).to(self.centre.dtype)
        away = (place[..., None] - self.centre) / self.log_width.exp()
        return -2 * torch.log1p(away.square() / 4)


class Summariser(nn.Module):
    """For a valid period: attention pooling of each source's frames, up-sampling to L, projection, unit length.

    Up-sampling expands what the cells add to the hidden layer bilinearly and adds to each pixel what it showed itself,
    projected alike for all pixels. (Separate weights per sub-pixel would let the four pixels of a cell use four codes,
    and no loss would see it.) Without the pixels' own part all that a field tells is blurred over a cell: two designed
    baselines lose .05 of balanced accuracy when they are.
    """

    def __init__(self, sizes: Sizes, sources: tuple[str, ...]) -> None:
        super().__init__()
        hidden = 2 * sizes.embedding
        self.pools = nn.ModuleDict({name: Pool(sizes) for name in sources})
        self.level = nn.Parameter(torch.zeros(hidden))
        self.shared = nn.Conv2d(hidden, sizes.embedding, 1)

    def forward(
        self, encoded: Encoded, valid: Int[Tensor, "b p 2"], checkpointing: bool = False
    ) -> Float[Tensor, "b p d h w"]:
        pools = [cast(Pool, pool) for pool in self.pools.values()]
        added = [pool(encoded.of(kind), valid, checkpointing) for kind, pool in enumerate(pools)]
        cells, pixels = sum(added[1:], start=added[0]).split([1, 4], dim=4)  # b h2 w2 p 1 f
        cells = cells.squeeze(4).permute(0, 3, 4, 1, 2).flatten(0, 1)
        pixels = pixels.unflatten(4, (2, 2)).permute(0, 3, 6, 1, 4, 2, 5).flatten(5).flatten(3, 4).flatten(0, 1)
        # Cells that no frame saw hold nothing to expand into their neighbours.
        some = encoded.layout.spread(encoded.present).any(1).repeat_interleave(valid.shape[1], 0)[:, None]
        expand = partial(F.interpolate, scale_factor=2, mode="bilinear", align_corners=False)
        hidden = expand(cells * some) / expand(some.to(cells.dtype)).clamp(min=0.1) + pixels
        hidden = hidden + self.level.to(hidden.dtype)[:, None, None]
        return unit(self.shared(F.gelu(hidden)), dim=1).unflatten(0, valid.shape[:2])

    def pooled_detail(
        self, encoded: Encoded, valid: Int[Tensor, "b 1 2"]
    ) -> tuple[Float[Tensor, "s bhw e"], Bool[Tensor, "s bhw"]]:
        """Of each source the pooled detail of one pixel of each cell, and whether it showed that pixel; for `begin`."""
        details, theres = [], []
        for kind, each in enumerate(self.pools.values()):
            pool, shown = cast(Pool, each), encoded.of(kind)
            detail, _ = pool.attend(*pool.prepared(shown, valid))
            details.append(detail[:, 0])
            theres.append(pool.somewhere(shown)[..., 0].flatten())
        return torch.stack(details), torch.stack(theres)

    @torch.no_grad()
    def begin(self, weight: Float[Tensor, "d e"], mean: Float[Tensor, " e"]) -> None:
        """Begin as a projection of the pixels' pooled detail, of all sources one after the other, less its mean.

        The weights come in pairs of both signs: gelu(x) - gelu(-x) = x, so that the whole is linear at the start. What
        the encoder adds starts at zero.
        """
        self.level.copy_(torch.cat([-weight @ mean, weight @ mean]))
        both = torch.cat([weight, -weight])
        pools = [cast(Pool, pool) for pool in self.pools.values()]
        widths = [pool.fine.in_features for pool in pools]
        for pool, part, usual in zip(pools, both.split(widths, dim=1), mean.split(widths), strict=True):
            silent(pool.hidden)
            pool.fine.weight.copy_(part)
            pool.usual.copy_(part @ usual)
        signs = torch.eye(len(weight), device=weight.device)
        self.shared.weight.copy_(torch.cat([signs, -signs], dim=1)[:, :, None, None])
        nn.init.zeros_(cast(Tensor, self.shared.bias))


# --- bottleneck (section 6) -----------------------------------------------------------------------------------------


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


# --- the whole ------------------------------------------------------------------------------------------------------


class Decoder(nn.Module):
    """[sample, place of the instant in its valid period, acquisition geometry] -> bands or class logits (section 7).

    Pixel by pixel: `s` are those asked for.
    """

    def __init__(self, sizes: Sizes, source: Source) -> None:
        super().__init__()
        self.first = nn.Linear(sizes.embedding + 2 * _POSITIONS + len(source.meta), sizes.decoder)
        self.second = nn.Linear(sizes.decoder, sizes.decoder)
        self.out = nn.Linear(sizes.decoder, source.outputs)

    def forward(
        self, sample: Float[Tensor, "b s d"], place: Float[Tensor, " b"], meta: Float[Tensor, "b m"]
    ) -> Float[Tensor, "b s c"]:
        about = torch.cat([position(place), meta], dim=1).to(sample.dtype)
        # A unit vector's numbers are about 1/8: brought to the scale of the others, or decoders begin by ignoring it.
        pixels = sample * math.sqrt(sample.shape[-1])
        x = torch.cat([pixels, about[:, None].expand(-1, pixels.shape[1], -1)], dim=-1)
        return self.out(F.gelu(self.second(F.gelu(self.first(x)))))


class TextHead(nn.Module):
    """[vector of a frozen language model, description of its valid period] -> a unit vector beside the embeddings.

    `log_scale` is the logarithm of CLIP's learned inverse temperature, from 1/0.07 and at most 100.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.mlp = Perceptron(sizes.text + _PERIOD, sizes.decoder, sizes.embedding)
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


class Model(nn.Module):
    """The network. `encode` once, `summarise` for any valid period, `decode` in training.

    `sources` are read and decoded, `targets` decoded alone. `checkpointing` keeps the states between blocks and the
    summariser's hidden layer alone in training, and computes the rest again on the way back.
    """

    def __init__(self, sizes: Sizes, sources: tuple[str, ...], targets: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.sources = sources
        self.checkpointing = False
        self.stem = nn.ModuleDict(
            {name: SourceEncoder(len(SOURCES[name].bands), sizes.precision, sizes.pool_detail) for name in sources}
        )
        self.blocks = nn.ModuleList(Block(sizes, before, after) for before, after in staggered(sizes.blocks))
        self.summariser = Summariser(sizes, sources)
        measured = [name for name in (*sources, *targets) if SOURCES[name].kind != "text"]
        self.decoders = nn.ModuleDict({name: Decoder(sizes, SOURCES[name]) for name in measured})
        self.text = TextHead(sizes) if "text" in targets else None

    def encode(self, inputs: Mapping[str, Frames]) -> Encoded:
        """All present frames of all sources as one sequence in time, through the STP encoder."""
        shown = self.stems(inputs)
        states = {"precision": shown.features}
        for block in self.blocks:
            if self.checkpointing and self.training:
                states = checkpoint(block, states, shown.layout, use_reentrant=False)
            else:
                states = block(states, shown.layout)
        return replace(shown, features=states["precision"])

    def summarise(self, encoded: Encoded, valid: Int[Tensor, "b p 2"]) -> Float[Tensor, "b p d h w"]:
        """Mean directions for any number of valid periods per site. Meaningless where `encoded.seen` is False."""
        return self.summariser(encoded, valid, self.checkpointing and self.training)

    def decode(
        self,
        source: str,
        sample: Float[Tensor, "b s d"],
        time: Int[Tensor, " b"],
        valid: Int[Tensor, "b 2"],
        meta: Float[Tensor, "b m"],
    ) -> Float[Tensor, "b s c"]:
        """What `source` would have measured at some pixels at an instant of the valid period, normalised as inputs are;
        the logits of its classes if it is categorical.
        """
        return self.decoders[source](sample, relative(time, valid[:, 0], valid[:, 1]), meta)

    def stems(self, inputs: Mapping[str, Frames]) -> Encoded:
        """All present frames packed, as the stems see them."""
        found, present, sites, times, kinds = [], [], [], [], []
        seen = torch.stack([inputs[name].present.any(1) for name in self.sources if name in inputs]).any(0)
        for kind, name in enumerate(self.sources):
            if name not in inputs:
                continue
            frames = inputs[name]
            site, index = frames.present.flatten(2).any(-1).nonzero(as_tuple=True)
            there = frames.present[site, index]
            which = there[:, None] & frames.bands[site, index][:, :, None, None]
            found.append(self.stem[name](frames.pixels[site, index], which))
            present.append(F.max_pool2d(there.float()[:, None], 2)[:, 0] > 0)
            sites.append(site)
            times.append(frames.time[site, index])
            kinds.append(torch.full_like(site, kind))
        order = torch.cat(sites).argsort(stable=True)
        site, when, origin, there = (torch.cat(parts)[order] for parts in (sites, times, kinds, present))
        slot, longest = slots(site, len(seen))
        features, detail, shown, clear = (torch.cat(parts)[order] for parts in zip(*found, strict=True))
        layout = Layout(site, slot, when, origin, (len(seen), longest))
        return Encoded(features, detail, shown, clear, there, layout, seen)

    def compile_operators(self) -> None:
        """Have torch.compile make the operators' kernels; frames come in any number.

        The exchange is left alone: in blocks compiled whole by torch 2.13 on a CPU its way up had zero gradients.
        """
        for block in self.blocks:
            for operator in cast(Block, block).operators.values():
                operator.compile(dynamic=True)

    def parameters_by_part(self) -> dict[str, int]:
        """Numbers of parameters. Decoders, the text head among them, serve training alone."""
        blocks = [cast(Block, block) for block in self.blocks]
        parts: dict[str, list[nn.Module]] = {
            "stem": [self.stem],
            **{path: [b.operators[path] for b in blocks if path in b.operators] for path in reversed(_PATHS)},
            "exchange": [block.exchange for block in blocks],
            "summary": [self.summariser],
            "decoders": [self.decoders, *([self.text] if self.text else [])],
        }
        counts = {name: sum(p.numel() for part in own for p in part.parameters()) for name, own in parts.items()}
        return {"total": sum(counts.values()), **counts}
