"""The paper's network as a first reader would write it (method.md sections 2-7).

Axes: b site, t slot (the frames of all sources one after the other, empty ones too), c band, h w pixels, d width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from aefcli.batch import Frames
from aefcli.recipe import Model as Sizes
from aefcli.sources import SOURCES

DAY = 86_400_000  # ms
YEAR = 365.2425  # days
EPOCH = 1_577_836_800_000  # 2020-01-01
PERIODS = [YEAR * 2.0**k for k in range(4, -8, -1)]  # days
TIMECODE = 2 * len(PERIODS)
POSITIONS = 8
PATHS = ("precision", "time", "space")
SIDE = {"precision": 2, "time": 8, "space": 16}  # pixels per cell


def timecode(time: Int[Tensor, "*s"]) -> Float[Tensor, "*s f"]:
    """Sines and cosines of an instant, at periods from 16 years to 3 days."""
    days = (time - EPOCH).double() / DAY
    angle = 2 * math.pi * days[..., None] / torch.tensor(PERIODS, dtype=torch.float64, device=time.device)
    return torch.cat([angle.sin(), angle.cos()], dim=-1).float()


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Softmax attention as in the textbook: (m heads s e), mask (m s) True where there is something to attend to."""
    logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if bias is not None:
        logits = logits + bias
    if mask is not None:
        logits = logits.masked_fill(~mask[:, None, None, :], -1e30)
    return torch.softmax(logits, dim=-1) @ v


def turned(x: Float[Tensor, "m k s e"], angle: Float[Tensor, "s half"]) -> Float[Tensor, "m k s e"]:
    """Rotary positions."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], dim=-1)


def angles(height: int, width: int, head: int, device: torch.device) -> Float[Tensor, "s half"]:
    """One angle per cell and pair of features: half of the pairs turn with the row, half with the column."""
    speed = 100.0 ** (-torch.arange(head // 4, device=device) / (head // 4))
    row, column = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    return torch.cat([row.flatten()[:, None] * speed, column.flatten()[:, None] * speed], dim=1)


class Attention(nn.Module):
    def __init__(self, width: int, head: int) -> None:
        super().__init__()
        self.head = head
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "m s d"], mask: Tensor | None = None, angle: Tensor | None = None) -> Tensor:
        m, s, d = x.shape
        q, k, v = (part.view(m, s, -1, self.head).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        if angle is not None:
            q, k = turned(q, angle), turned(k, angle)
        return self.out(attend(q, k, v, mask).transpose(1, 2).reshape(m, s, d))


def perceptron(width: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out))


class Space(nn.Module):
    """Self-attention over the cells of every slot."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.head = sizes.head
        self.norms = nn.ModuleList(nn.LayerNorm(sizes.space) for _ in range(2))
        self.attention = Attention(sizes.space, sizes.head)
        self.mlp = perceptron(sizes.space, sizes.mlp_ratio * sizes.space, sizes.space)

    def forward(self, x: Float[Tensor, "b t d h w"]) -> Float[Tensor, "b t d h w"]:
        b, t, d, h, w = x.shape
        cells = x.reshape(b * t, d, h * w).transpose(1, 2)
        cells = cells + self.attention(self.norms[0](cells), angle=angles(h, w, self.head, x.device))
        cells = cells + self.mlp(self.norms[1](cells))
        return cells.transpose(1, 2).reshape(b, t, d, h, w)


class Time(nn.Module):
    """Self-attention along the slots of every cell, empty slots masked out."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(sizes.time) for _ in range(2))
        self.when = nn.Linear(TIMECODE, sizes.time)
        self.attention = Attention(sizes.time, sizes.head)
        self.mlp = perceptron(sizes.time, sizes.mlp_ratio * sizes.time, sizes.time)

    def forward(
        self, x: Float[Tensor, "b t d h w"], time: Int[Tensor, "b t"], filled: Bool[Tensor, "b t"]
    ) -> Float[Tensor, "b t d h w"]:
        b, t, d, h, w = x.shape
        series = x.permute(0, 3, 4, 1, 2).reshape(b * h * w, t, d)
        when = self.when(timecode(time)).repeat_interleave(h * w, dim=0)
        mask = filled.repeat_interleave(h * w, dim=0)
        series = series + self.attention(self.norms[0](series) + when, mask=mask)
        series = series + self.mlp(self.norms[1](series))
        return series.reshape(b, h, w, t, d).permute(0, 3, 4, 1, 2)


class Precision(nn.Module):
    """Convolutions on every slot."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        hidden = sizes.precision_expansion * sizes.precision
        self.norm = nn.GroupNorm(max(1, sizes.precision // 16), sizes.precision)
        kernel = sizes.precision_kernel
        self.widen = nn.Conv2d(sizes.precision, hidden, kernel, padding=kernel // 2)
        self.narrow = nn.Conv2d(hidden, sizes.precision, kernel, padding=kernel // 2)

    def forward(self, x: Float[Tensor, "b t d h w"]) -> Float[Tensor, "b t d h w"]:
        frames = x.flatten(0, 1)
        return x + self.narrow(F.gelu(self.widen(self.norm(frames)))).view(x.shape)


class Resample(nn.Module):
    """Down: average, then convolve. Up: convolve, then expand bilinearly."""

    def __init__(self, width: int, out: int, factor: float, kernel: int) -> None:
        super().__init__()
        self.factor = factor
        self.project = nn.Conv2d(width, out, kernel, padding=kernel // 2)

    def forward(self, x: Float[Tensor, "b t d h w"]) -> Float[Tensor, "b t e h2 w2"]:
        frames = x.flatten(0, 1)
        if self.factor < 1:
            frames = self.project(F.avg_pool2d(frames, round(1 / self.factor)))
        else:
            frames = F.interpolate(self.project(frames), scale_factor=self.factor, mode="bilinear")
        return frames.unflatten(0, x.shape[:2])


class Block(nn.Module):
    """The operators side by side, then every path hands its state to every other, and the contributions are summed."""

    def __init__(self, sizes: Sizes, before: tuple[str, ...], after: tuple[str, ...]) -> None:
        super().__init__()
        self.after = after
        kinds: dict[str, type[nn.Module]] = {"precision": Precision, "time": Time, "space": Space}
        self.operators = nn.ModuleDict({path: kinds[path](sizes) for path in before})
        self.exchange = nn.ModuleDict()
        for giver in before:
            for taker in after:
                if giver != taker:
                    self.exchange[f"{giver}_{taker}"] = Resample(
                        getattr(sizes, giver), getattr(sizes, taker), SIDE[giver] / SIDE[taker], sizes.exchange_kernel
                    )

    def forward(self, states: dict[str, Tensor], time: Tensor, filled: Tensor) -> dict[str, Tensor]:
        worked = {}
        for path, operator in self.operators.items():
            worked[path] = operator(states[path], time, filled) if path == "time" else operator(states[path])
        mixed = {}
        for taker in self.after:
            parts = [self.exchange[f"{giver}_{taker}"](worked[giver]) for giver in worked if giver != taker]
            if taker in worked:
                parts.append(worked[taker])
            mixed[taker] = sum(parts[1:], start=parts[0])
        return mixed


class SourceEncoder(nn.Module):
    """A strided convolution of values and presence, and a vector of the source."""

    def __init__(self, bands: int, width: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(2 * bands, width, 4, stride=2, padding=1)
        self.source = nn.Parameter(torch.zeros(width))

    def forward(self, frames: Frames) -> Float[Tensor, "b t d h2 w2"]:
        there = frames.present[:, :, None] & frames.bands[..., None, None]
        values = torch.where(there, frames.pixels, 0.0)
        both = torch.cat([values, there.float()], dim=2)
        return self.project(both.flatten(0, 1)).unflatten(0, both.shape[:2]) + self.source[:, None, None]


@dataclass(frozen=True)
class Encoded:
    features: Float[Tensor, "b t p h2 w2"]
    present: Bool[Tensor, "b t h w"]
    time: Int[Tensor, "b t"]
    source: Int[Tensor, " t"]


class Summariser(nn.Module):
    """Up-sample every frame to L, attend over the frames of every pixel with a query of the period, project."""

    def __init__(self, sizes: Sizes, sources: int) -> None:
        super().__init__()
        heads = sources * sizes.pool_heads  # as many as ours has for all sources together
        inner = heads * sizes.pool_width
        self.heads = heads
        self.query = perceptron(2 * TIMECODE + 1, 2 * sizes.precision, inner)
        self.key = nn.Linear(sizes.precision, inner)
        self.key_time = nn.Linear(TIMECODE, inner)
        self.value = nn.Linear(sizes.precision, heads * sizes.pool_value)
        each = -(-heads // sources)
        self.centre = nn.Parameter((torch.arange(heads) // sources + 0.5) / each)
        self.log_width = nn.Parameter(torch.full((heads,), math.log(1.0 / each)))
        self.lean = nn.Parameter(3.0 * (torch.arange(sources)[:, None] == torch.arange(heads) % sources).float())
        self.hidden = nn.Conv2d(heads * sizes.pool_value, 2 * sizes.embedding, 1)
        self.out = nn.Conv2d(2 * sizes.embedding, sizes.embedding, 1)

    def forward(self, encoded: Encoded, valid: Int[Tensor, "b 2"]) -> Float[Tensor, "b d h w"]:
        b, t, h, w = encoded.present.shape
        frames = F.interpolate(encoded.features.flatten(0, 1), scale_factor=2, mode="bilinear")
        series = frames.view(b, t, -1, h * w).permute(0, 3, 1, 2).reshape(b * h * w, t, -1)
        when = self.key_time(timecode(encoded.time)).repeat_interleave(h * w, dim=0)
        query = self.query(self.describe(valid)).repeat_interleave(h * w, dim=0)[:, None]
        mask = encoded.present.permute(0, 2, 3, 1).reshape(b * h * w, t)
        near = self.nearness(encoded, valid).transpose(1, 2).repeat_interleave(h * w, dim=0)[:, :, None]
        key, value = self.key(series) + when, self.value(series)
        q, k, v = (self.split(x) for x in (query, key, value))
        pooled = attend(q, k, v, mask, near)  # (b h w) k 1 e
        pooled = pooled.reshape(b, h, w, -1).permute(0, 3, 1, 2).contiguous()
        return F.normalize(self.out(F.gelu(self.hidden(pooled))), dim=1)

    def split(self, x: Float[Tensor, "m s e"]) -> Float[Tensor, "m k s e2"]:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def describe(self, valid: Int[Tensor, "b 2"]) -> Float[Tensor, "b f"]:
        years = (valid[:, 1] - valid[:, 0]).double() / (DAY * YEAR)
        return torch.cat([timecode(valid).flatten(1), years.log().float()[:, None]], dim=1)

    def nearness(self, encoded: Encoded, valid: Int[Tensor, "b 2"]) -> Float[Tensor, "b t k"]:
        """How much each head favours a frame for its place in the valid period and for its source."""
        start, end = valid[:, :1], valid[:, 1:]
        place = ((encoded.time - start).double() / (end - start).double()).float()
        away = (place[..., None] - self.centre) / self.log_width.exp()
        return self.lean[encoded.source] - 2 * torch.log1p(away.square() / 4)


class Decoder(nn.Module):
    """An MLP with two hidden layers on every pixel: [sample, position in the period, geometry] -> values."""

    def __init__(self, sizes: Sizes, meta: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(sizes.embedding + 2 * POSITIONS + meta, sizes.decoder)
        self.second = nn.Linear(sizes.decoder, sizes.decoder)
        self.out = nn.Linear(sizes.decoder, outputs)

    def forward(
        self, sample: Float[Tensor, "b d h w"], place: Float[Tensor, " b"], meta: Float[Tensor, "b m"]
    ) -> Float[Tensor, "b c h w"]:
        angle = math.pi * place[:, None] * torch.arange(1, POSITIONS + 1, device=place.device)
        about = torch.cat([angle.sin(), angle.cos(), meta], dim=1)
        pixels = sample.permute(0, 2, 3, 1) * math.sqrt(sample.shape[1])
        x = torch.cat([pixels, about[:, None, None].expand(*pixels.shape[:3], -1)], dim=-1)
        return self.out(F.gelu(self.second(F.gelu(self.first(x))))).permute(0, 3, 1, 2)


class Naive(nn.Module):
    """The network."""

    def __init__(self, sizes: Sizes, sources: tuple[str, ...]) -> None:
        super().__init__()
        self.sources = sources
        self.stem = nn.ModuleDict({name: SourceEncoder(len(SOURCES[name].bands), sizes.precision) for name in sources})
        running = [PATHS[: min(number, 3)] for number in range(1, sizes.blocks + 1)]
        takers = [*running[1:], PATHS[:1]]
        self.blocks = nn.ModuleList(Block(sizes, *paths) for paths in zip(running, takers, strict=True))
        self.summariser = Summariser(sizes, len(sources))
        self.decoders = nn.ModuleDict(
            {name: Decoder(sizes, len(SOURCES[name].meta), SOURCES[name].outputs) for name in sources}
        )

    def encode(self, inputs: Mapping[str, Frames]) -> Encoded:
        """All slots of all sources on one time axis, the empty ones too."""
        names = [name for name in self.sources if name in inputs]
        states = {"precision": torch.cat([self.stem[name](inputs[name]) for name in names], dim=1)}
        present = torch.cat([inputs[name].present for name in names], dim=1)
        time = torch.cat([inputs[name].time for name in names], dim=1)
        kinds = [torch.full((inputs[name].time.shape[1],), self.sources.index(name)) for name in names]
        for block in self.blocks:
            states = block(states, time, present.flatten(2).any(-1))
        return Encoded(states["precision"], present, time, torch.cat(kinds).to(time.device))

    def summarise(self, encoded: Encoded, valid: Int[Tensor, "b p 2"]) -> Float[Tensor, "b p d h w"]:
        """Unit vectors, one period after the other."""
        return torch.stack([self.summariser(encoded, period) for period in valid.unbind(1)], dim=1)

    def decode(
        self,
        source: str,
        sample: Float[Tensor, "b d h w"],
        time: Int[Tensor, " b"],
        valid: Int[Tensor, "b 2"],
        meta: Float[Tensor, "b m"],
    ) -> Float[Tensor, "b c h w"]:
        """What `source` would have measured at an instant of the valid period, at every pixel."""
        place = (time - valid[:, 0]).double() / (valid[:, 1] - valid[:, 0]).double()
        return self.decoders[source](sample, place.float(), meta)


def reconstruction(
    predicted: Float[Tensor, "b c h w"],
    target: Float[Tensor, "b c h w"],
    bands: Bool[Tensor, "b c"],
    weight: Float[Tensor, "b h w"],
) -> Float[Tensor, ""]:
    """L1 over every pixel that weighs and every band that the scene has."""
    weights = (weight[:, None] * bands[:, :, None, None]).expand_as(target)
    return ((predicted - target).abs() * weights).sum() / weights.sum()
