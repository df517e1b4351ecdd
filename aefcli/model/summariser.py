"""The summariser: frames of a support period to one unit vector per pixel and valid period (section 5)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from aefcli.model.neighbours import Neighbours
from aefcli.model.packing import Encoded, Layout
from aefcli.model.parts import Perceptron, joined, silent, unit
from aefcli.model.timecodes import PERIOD, TIMECODE, YEAR, describe, relative, timecode
from aefcli.recipe import Model as Sizes

_ABSENT = -1e30  # a logit that leaves nothing after softmax, and yet is finite where all frames have it
# Numbers that rows of one sample are pooled to, of each source. A CPU keeps those in its cache; the way back through a
# checkpoint holds a few times as many, of all sources.
_POOLED, _POOLED_GPU = 2**22, 2**26
_SAMPLES = 8  # times as many, that rows of several samples are
_EXPANDED, _EXPANDED_GPU = 2**14, 2**22  # px that are expanded to and compared with their neighbours at a time
_NARROW = 2.5  # times that a head's bell begins narrower than the distance of two; widths hardly move in a short run
_REACHED = 0.25  # of a period: frames that reach so far into it are those that it is summarised by


@dataclass(frozen=True)
class Asked:
    """What is asked of one source's frames. The key's projection is folded into what is wanted of them: no map of keys
    is made per frame.
    """

    cells: Float[Tensor, "b h2 w2 t c"]  # four pixels' detail, which of them show, features, how clear if there
    wanted: Float[Tensor, "b e1 pk"]  # of features and clearness, by each head in each period
    bias: Float[Tensor, "b t pk"]  # what a head favours the frame by for its instant

    def samples(self, number: int) -> Iterator[Asked]:
        """A few of the batch at a time."""
        return map(Asked, *(part.split(number) for part in (self.cells, self.wanted, self.bias)))

    def rows(self, number: int) -> Iterator[Asked]:
        """A few rows of cells at a time."""
        return (replace(self, cells=cells) for cells in self.cells.split(number, dim=1))


class Shown(NamedTuple):
    """One pixel of each cell in the frames of one source."""

    detail: Float[Tensor, "bhw t d"]
    # Of each head's weights on frames that showed it. None where that is all: each frame shows a whole cell or is not
    # there, which is not looked at with gradients.
    share: Float[Tensor, "bhw pk"] | None


def _portion(asked: Asked) -> tuple[int, int]:
    """How many samples, and rows of their cells, are pooled at a time: what all heads pool of all cells would be many
    times what the encoder made of them.
    """
    most = _POOLED_GPU if asked.cells.is_cuda else _POOLED
    row = asked.wanted.shape[-1] * asked.cells.shape[2] * asked.cells.shape[-1]
    rows = min(max(1, most // row), asked.cells.shape[1])
    return max(1, _SAMPLES * most // (row * rows)), rows


class Pool(nn.Module):
    """The heads of the summariser that read one source: attention pooling of its frames in each L/2 cell.

    A head weighs a frame by where it lies in the valid period (each has a centre and a width there, spread evenly at
    the start), by how clear the cell looks, and by content (query of the period against a key of the frame). With no
    frame near its centre a head takes those around, which is what interpolation needs; to extrapolate, heads spread
    over the year that ends with the last frame.

    It pools what the encoder made of the cell, and beside it the pixels' own detail by the same weights, for each pixel
    of the frames that showed it. Where another source showed nothing, it says what that would have added: what is usual
    alone tells less than radar does of a colour, or an image of a backscatter.

    The paper pools all frames together by one learned query, from the timecodes of the period's ends. Our choice are
    heads for each source, where they lie in the period, the guess at what is clear, the pixels' detail and what stands
    in for a source that lacks.
    """

    def __init__(self, sizes: Sizes, others: Sequence[str] = ()) -> None:
        super().__init__()
        heads, width, deep = sizes.pool_heads, sizes.pool_width, sizes.precision
        self.heads, self.detail = heads, sizes.pool_detail
        self.query = Perceptron(PERIOD, 2 * deep, heads * width)
        silent(self.query[2])  # time alone weighs at first: random content would be noise on it
        self.key = nn.Parameter(torch.randn(heads, deep, width) / math.sqrt(deep * width))
        self.key_time = nn.Linear(TIMECODE, heads * width, bias=False)
        self.value = nn.Parameter(torch.randn(heads, deep, sizes.pool_value) / math.sqrt(deep))
        self.centre = nn.Parameter((torch.arange(heads) + 0.5) / heads)
        self.log_width = nn.Parameter(torch.full((heads,), -math.log(_NARROW * heads)))
        self.usual = nn.Parameter(torch.zeros(sizes.embedding))  # what a pixel adds that no frame of this source showed
        self.coarse = nn.Linear(heads * sizes.pool_value, sizes.embedding, bias=False)
        self.fine = nn.Linear(heads * sizes.pool_detail, sizes.embedding, bias=False)
        # What a pixel adds, beyond what is usual, in place of another source of which no frame showed it.
        stand_ins = {name: silent(nn.Linear(heads * sizes.pool_detail, sizes.embedding)) for name in others}
        self.instead = nn.ModuleDict(stand_ins)

    def forward(
        self, asked: Asked, pixels: Sequence[Float[Tensor, "bhwp f"]], lacking: Mapping[str, Bool[Tensor, "b h2 w2 4"]]
    ) -> tuple[Float[Tensor, "bhwp f"], list[Float[Tensor, "bhwp f"]]]:
        """What each cell adds to the embedding, and what each of its four `pixels` holds with what it adds there.

        `lacking` are, for other sources, the pixels that this one showed and they did not.
        """
        weights, periods = self.weigh(asked), asked.wanted.shape[-1] // self.heads
        shown = self.shown(weights, asked)
        # What stands in for others needs the pooled detail itself.
        if not lacking and _project_first(weights.shape[1], periods, self.detail, self.fine.out_features):
            return self.coarse(self.values(weights, asked)), self.projected(pixels, weights, shown)
        added = []
        for which, (onto, each) in enumerate(zip(pixels, shown, strict=True)):
            detail = self.pooled(weights, each)
            fine = torch.addmm(onto, detail, self.fine.weight.t())
            for other, lacks in lacking.items():
                stand_in = self.instead[other]
                (at,) = lacks[..., which, None].expand(-1, -1, -1, periods).flatten().nonzero(as_tuple=True)
                fine.index_add_(0, at, stand_in(detail[at]))
            added.append(fine)
        return self.coarse(self.values(weights, asked)), added

    def cells(self, encoded: Encoded) -> Float[Tensor, "b h2 w2 t c"]:
        """What the frames of this source show, whatever the period."""
        absent = ~encoded.present[:, None]
        # What is known of a frame apart from its content: how clear it looks, and whether it is there at all.
        known = torch.where(absent, _ABSENT, encoded.clear[:, None].to(encoded.features.dtype))
        detail, shown = (part.to(encoded.features.dtype) for part in (encoded.detail, encoded.shown))
        told = torch.cat([part.movedim(1, -1) for part in (detail, shown, encoded.features, known)], dim=-1)
        told[..., :-1].masked_fill_(absent.movedim(1, -1), 0.0)
        return encoded.layout.spread(told).movedim(1, -2).contiguous()

    def asked(self, encoded: Encoded, cells: Float[Tensor, "b h2 w2 t c"], valid: Int[Tensor, "b p 2"]) -> Asked:
        """What is asked of the frames of this source for the valid periods."""
        query = self.query(describe(valid).to(self.key.dtype)).unflatten(-1, (self.heads, -1))
        wanted = F.pad(torch.einsum("bpke,kce->bpkc", query, self.key), (0, 1), value=1.0).flatten(1, 2)
        return Asked(cells, wanted.transpose(1, 2), self.bias(encoded.layout, valid, query))

    def weigh(self, asked: Asked) -> Float[Tensor, "bhw t pk"]:
        """Softmax over the frames of each cell, per period and head."""
        content = asked.cells[..., 4 * (self.detail + 1) :].flatten(1, 3) @ asked.wanted
        logits = content.unflatten(1, asked.cells.shape[1:4]) + asked.bias[:, None, None]
        # Over frames that lie apart in memory: few of them side by side take a CPU many times as long.
        return logits.softmax(-2).to(asked.cells.dtype).flatten(0, 2)

    def shown(self, weights: Float[Tensor, "bhw t pk"], asked: Asked) -> Iterator[Shown]:
        """The detail of each of the four pixels of the cells."""
        cells = asked.cells.flatten(0, 2)
        *details, shown = cells[..., : 4 * (self.detail + 1)].split([*4 * [self.detail], 4], dim=-1)
        # Without gradients alone: a GPU that trains would have to wait to be asked.
        if not torch.is_grad_enabled():
            there = cells[..., -1:] > _ABSENT / 2
            if torch.equal(shown > 0, there.expand_as(shown)):  # no weight lies on what a frame did not show
                return (Shown(detail, None) for detail in details)
        shares = (shown.transpose(1, 2) @ weights).clamp(min=1e-6).unbind(1)
        return map(Shown, details, shares)

    def pooled(self, weights: Float[Tensor, "bhw t pk"], shown: Shown) -> Float[Tensor, "bhwp kd"]:
        """The pooled detail of one of the pixels of the cells, from the frames that showed it."""
        if shown.share is None:
            pooled = weights.transpose(1, 2) @ shown.detail
        elif weights.shape[1] < self.detail:  # of the two what is less is divided
            pooled = (weights / shown.share[:, None]).transpose(1, 2) @ shown.detail
        else:
            pooled = (weights.transpose(1, 2) @ shown.detail) / shown.share[..., None]
        return pooled.view(-1, self.heads * self.detail)

    def projected(
        self, pixels: Sequence[Float[Tensor, "bhwp f"]], weights: Float[Tensor, "bhw t pk"], shown: Iterable[Shown]
    ) -> list[Float[Tensor, "bhwp f"]]:
        """What the pixels hold with what they add, their detail projected before it is pooled."""
        fine = self.fine.weight.t().unflatten(0, (self.heads, self.detail)).transpose(0, 1).flatten(1)
        weights = weights.unflatten(-1, (-1, self.heads)).transpose(1, 2).contiguous()
        added = []
        for onto, (detail, share) in zip(pixels, shown, strict=True):
            own = weights if share is None else weights / share.unflatten(-1, (-1, self.heads))[:, :, None]
            projected = (detail @ fine).unflatten(-1, (self.heads, -1)).flatten(1, 2)
            added.append(torch.baddbmm(onto.view(*own.shape[:2], -1), own.flatten(2), projected).flatten(0, 1))
        return added

    def features(self, asked: Asked) -> Float[Tensor, "bhw t e"]:
        """What the encoder made of each cell in the frames."""
        return asked.cells[..., 4 * (self.detail + 1) : -1].flatten(0, 2)

    def values(self, weights: Float[Tensor, "bhw t pk"], asked: Asked) -> Float[Tensor, "bhwp kv"]:
        """What each head pools of what it takes from the features of each cell."""
        features = self.features(asked)
        frames, deep = features.shape[1:]
        if _project_first(frames, weights.shape[2] // self.heads, deep, self.value.shape[-1]):
            values = (features @ self.value.transpose(0, 1).flatten(1)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            own = weights.unflatten(-1, (-1, self.heads)).permute(0, 3, 2, 1)
            return (own @ values).transpose(1, 2).flatten(2).flatten(0, 1)
        pooled = (weights.transpose(1, 2) @ features).view(-1, self.heads, deep)
        return torch.bmm(pooled.transpose(0, 1), self.value).transpose(0, 1).flatten(1)

    def bias(
        self, layout: Layout, valid: Int[Tensor, "b p 2"], query: Float[Tensor, "b p k e"]
    ) -> Float[Tensor, "b t pk"]:
        """What a frame's instant adds to its logits, whatever it shows; slots without a frame are out."""
        keys = self.key_time(timecode(layout.time).to(self.key.dtype)).unflatten(-1, (self.heads, -1))
        timely = torch.einsum("nke,npke->npk", keys, query[layout.site]) / math.sqrt(keys.shape[-1])
        bias = layout.spread(timely + self.nearness(layout, valid))
        return bias.masked_fill(~layout.filled[..., None, None], _ABSENT).flatten(2)

    def nearness(self, layout: Layout, valid: Int[Tensor, "b p 2"]) -> Float[Tensor, "n p k"]:
        """How much each head favours a frame for where it lies in the valid period, or in the year that stands for it.

        A bell at the centre with a heavy tail: in a period without frames a Gaussian would copy the one nearest frame,
        cloud or not, where the frames around the gap should be weighed by what they show.
        """
        start, end = _within_reach(layout, valid)[layout.site].unbind(-1)
        place = relative(layout.time[:, None], start, end).to(self.centre.dtype)
        away = (place[..., None] - self.centre) / self.log_width.exp()
        return -2 * torch.log1p(away.square() / 4)


def _within_reach(layout: Layout, valid: Int[Tensor, "b p 2"]) -> Int[Tensor, "b p 2"]:
    """The valid periods; of those that lie after all frames of their site the year up to the last of them, and of those
    before all the year from the first (our choice).

    What comes is foretold by how the year went. With their bells in the period itself all heads would see the one or
    two frames that lie nearest, and nothing of what led there (bench/RESULTS.md has both). A period that
    frames hardly reach into lies in between: patches whose last frames are of either side of its start go on alike.
    """
    (start, end), far = valid.double().unbind(-1), 2.0**60
    ends = start.new_tensor([far, -far])[:, None].repeat(1, len(valid))
    first = ends[0].scatter_reduce(0, layout.site, layout.time.double(), "amin")[:, None]
    last = ends[1].scatter_reduce(0, layout.site, layout.time.double(), "amax")[:, None]
    late = (1 - (last - start) / (_REACHED * (end - start))).clamp(0, 1)
    early = (1 - (end - first) / (_REACHED * (end - start))).clamp(0, 1)
    start = start + late * (last - YEAR - start) + early * (first - start)
    end = end + late * (last - end) + early * (first + YEAR - end)
    return torch.stack([start, end], dim=-1).round().long()


def _project_first(frames: int, periods: int, into: int, out: int) -> bool:
    """Whether it takes fewer multiplications to project what each frame shows before heads pool it than after. The sum
    is the same; before is better for many periods of few frames.
    """
    return frames * out * (into + periods) < periods * into * (frames + out)


def _anywhere(encoded: Encoded) -> Bool[Tensor, "b h2 w2 4"]:
    """Whether any frame showed the pixel."""
    return encoded.layout.spread(encoded.shown).any(1).permute(0, 2, 3, 1)


class Summariser(nn.Module):
    """For a valid period: attention pooling of each source's frames, projection, up-sampling to L, unit length, and
    the mean of the neighbours that look alike.

    Up-sampling expands what the cells add bilinearly and adds to each pixel what it showed itself, projected alike for
    all pixels. (Separate weights per sub-pixel would let the four pixels of a cell use four codes, and no loss would
    see it.) Without the pixels' own part all that a field tells is blurred over a cell: two designed baselines lose .05
    of balanced accuracy when they are. All of this is our choice: the paper says that up-sampling is learned. All is
    linear from pooling to the unit vector: a hidden layer between them told nothing more (bench/RESULTS.md).
    """

    def __init__(self, sizes: Sizes, sources: tuple[str, ...]) -> None:
        super().__init__()
        pools = {name: Pool(sizes, [other for other in sources if other != name]) for name in sources}
        self.pools = nn.ModuleDict(pools)
        self.level = nn.Parameter(torch.zeros(sizes.embedding))
        self.neighbours = Neighbours(sizes.neighbours) if sizes.neighbours else None

    def forward(
        self,
        encoded: Encoded,
        valid: Int[Tensor, "b p 2"],
        checkpointing: bool = False,
        at_once: int | None = None,
    ) -> Float[Tensor, "b p d h w"]:
        """`at_once` is how many periods are summarised together, by default all: memory grows with it."""
        parts = {cast(Pool, pool): encoded.of(kind) for kind, pool in enumerate(self.pools.values())}
        cells = [pool.cells(part) for pool, part in parts.items()]
        showed = torch.stack([_anywhere(part) for part in parts.values()], dim=-1)
        some = encoded.layout.spread(encoded.present).any(1)
        fields = []
        for few in valid.split(at_once or valid.shape[1], dim=1):
            asked = [pool.asked(part, own, few) for (pool, part), own in zip(parts.items(), cells, strict=True)]
            samples, rows = _portion(asked[0])
            batches = zip(
                zip(*(each.samples(samples) for each in asked), strict=True),
                *(each.split(samples) for each in (showed, some, encoded.seen)),
                strict=True,
            )
            vectors = [self.vectors(*batch, rows=rows, checkpointing=checkpointing) for batch in batches]
            fields.append(joined(vectors, 0))
        return joined(fields, 1)

    def vectors(
        self,
        asked: Sequence[Asked],
        showed: Bool[Tensor, "b h2 w2 4 s"],
        some: Bool[Tensor, "b h2 w2"],
        seen: Bool[Tensor, "b h w"],
        *,
        rows: int,
        checkpointing: bool,
    ) -> Float[Tensor, "b p d h w"]:
        """Those of a few samples. `some` are the cells that any frame saw, `seen` the pixels."""
        mix = partial(checkpoint, self.mix, use_reentrant=False) if checkpointing else self.mix
        strips = zip(zip(*(each.rows(rows) for each in asked), strict=True), showed.split(rows, 1), strict=True)
        mixed = zip(*(mix(*strip) for strip in strips), strict=True)
        # Channels last in memory, as they come.
        cells, pixels = (torch.cat(parts, dim=2).flatten(0, 1) for parts in mixed)
        cells, pixels = cells.movedim(-1, 1), pixels.flatten(3, 4).flatten(1, 2).movedim(-1, 1)
        periods = len(cells) // len(seen)
        some, seen = (each.repeat_interleave(periods, 0) for each in (some, seen))
        maps = max(1, (_EXPANDED_GPU if cells.is_cuda else _EXPANDED) // seen[0].numel())
        fields = zip(*(each.split(maps) for each in (cells, pixels, some, seen)), strict=True)
        return torch.cat([self.expanded(*each) for each in fields]).unflatten(0, (-1, periods))

    def expanded(
        self,
        cells: Float[Tensor, "n f h2 w2"],
        pixels: Float[Tensor, "n f h w"],
        some: Bool[Tensor, "n h2 w2"],
        seen: Bool[Tensor, "n h w"],
    ) -> Float[Tensor, "n d h w"]:
        """What was added up to vectors. Cells that no frame saw hold nothing to expand into their neighbours."""
        expand = partial(F.interpolate, scale_factor=2, mode="bilinear", align_corners=False)
        share = expand(some[:, None].to(cells.dtype)).clamp(min=0.1)
        vectors = unit(torch.addcdiv(pixels, expand(cells * some[:, None]), share), dim=1)
        return vectors if self.neighbours is None else self.neighbours(vectors, seen)

    def mix(
        self, asked: Sequence[Asked], showed: Bool[Tensor, "b h2 w2 4 s"]
    ) -> tuple[Float[Tensor, "b p h2 w2 f"], Float[Tensor, "b p h2 2 w2 2 f"]]:
        """What all sources add to the cells of a few rows, and what to their pixels."""
        pools = {name: cast(Pool, pool) for name, pool in self.pools.items()}
        found = dict(zip(pools, showed.unbind(-1), strict=True))
        shape = (*showed.shape[:3], asked[0].wanted.shape[-1] // next(iter(pools.values())).heads, -1)
        usual = sum((~found[name][..., None] * pool.usual for name, pool in pools.items()), self.level)
        pixels = [each[..., None, :].expand(shape).flatten(0, 3) for each in usual.unbind(3)]
        # With gradients always: every weight has to have one in every process.
        some_lack = torch.is_grad_enabled() or not torch.equal(showed.any(-1), showed.all(-1))
        cells = []
        for (name, pool), part in zip(pools.items(), asked, strict=True):
            lacking = {other: found[name] & ~found[other] for other in pool.instead} if some_lack else {}
            added, pixels = pool(part, pixels, lacking)
            cells.append(added.view(shape))
        squares = torch.stack(pixels).view(2, 2, *shape).permute(2, 5, 3, 0, 4, 1, 6)
        return sum(cells).permute(0, 3, 1, 2, 4), squares

    def pooled_detail(
        self, encoded: Encoded, valid: Int[Tensor, "b 1 2"]
    ) -> tuple[Float[Tensor, "s bhw e"], Bool[Tensor, "s bhw"]]:
        """Of each source the pooled detail of one pixel of each cell, and whether it showed that pixel; for `begin`."""
        details, theres = [], []
        for kind, each in enumerate(self.pools.values()):
            pool, shown = cast(Pool, each), encoded.of(kind)
            asked = pool.asked(shown, pool.cells(shown), valid)
            weights = pool.weigh(asked)
            details.append(pool.pooled(weights, next(pool.shown(weights, asked))))
            theres.append(_anywhere(shown)[..., 0].flatten())
        return torch.stack(details), torch.stack(theres)

    @torch.no_grad()
    def begin(self, weight: Float[Tensor, "d e"], mean: Float[Tensor, " e"], told: Float[Tensor, "e e"]) -> None:
        """Begin as a projection of the pixels' pooled detail, of all sources one after the other, less its mean.

        What the encoder adds starts at zero. `told` says what to expect of one source's detail by the others'.
        """
        self.level.copy_(-weight @ mean)
        pools = {name: cast(Pool, pool) for name, pool in self.pools.items()}
        widths = [pool.fine.in_features for pool in pools.values()]
        means = dict(zip(pools, mean.split(widths), strict=True))
        for name, part, rows in zip(pools, weight.split(widths, dim=1), told.split(widths), strict=True):
            silent(pools[name].coarse)
            pools[name].fine.weight.copy_(part)
            pools[name].usual.copy_(part @ means[name])
            for other, block in zip(pools, rows.split(widths, dim=1), strict=True):
                if other != name:
                    stand_in = cast(nn.Linear, pools[other].instead[name])
                    stand_in.weight.copy_(part @ block)
                    stand_in.bias.copy_(-part @ block @ means[other])
