"""The summariser: frames of a support period to one unit vector per pixel and valid period (section 5)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial, reduce
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from aefcli.model.neighbours import Neighbours
from aefcli.model.packing import Encoded, Layout
from aefcli.model.parts import Perceptron, silent, unit
from aefcli.model.timecodes import PERIOD, TIMECODE, YEAR, describe, relative, timecode
from aefcli.recipe import Model as Sizes

_ABSENT = -1e30  # a logit that leaves nothing after softmax, and yet is finite where all frames have it
_POOLED, _POOLED_GPU = 2**22, 2**28  # numbers that rows of one sample are pooled to; a CPU keeps those in its cache
_SAMPLES = 8  # times as many, that rows of several samples are
_NARROW = 2.5  # times that a head's bell begins narrower than the distance of two; widths hardly move in a short run
_REACHED = 0.25  # of a period: frames that reach so far into it are those that it is summarised by


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
        hidden = 2 * sizes.embedding
        self.heads, self.detail = heads, sizes.pool_detail
        self.query = Perceptron(PERIOD, 2 * deep, heads * width)
        silent(self.query[2])  # time alone weighs at first: random content would be noise on it
        self.key = nn.Parameter(torch.randn(heads, deep, width) / math.sqrt(deep * width))
        self.key_time = nn.Linear(TIMECODE, heads * width, bias=False)
        self.value = nn.Parameter(torch.randn(heads, deep, sizes.pool_value) / math.sqrt(deep))
        self.centre = nn.Parameter((torch.arange(heads) + 0.5) / heads)
        self.log_width = nn.Parameter(torch.full((heads,), -math.log(_NARROW * heads)))
        self.usual = nn.Parameter(torch.zeros(hidden))  # what a pixel adds that no frame of this source showed
        self.hidden = nn.Linear(heads * sizes.pool_value, hidden, bias=False)
        self.fine = nn.Linear(heads * sizes.pool_detail, hidden, bias=False)
        # What a pixel adds, beyond what is usual, in place of another source of which no frame showed it.
        stand_ins = {name: silent(nn.Linear(heads * sizes.pool_detail, hidden)) for name in others}
        self.instead = nn.ModuleDict(stand_ins)

    def forward(
        self,
        encoded: Encoded,
        valid: Int[Tensor, "b p 2"],
        showed: Bool[Tensor, "b h2 w2 4"],
        others: Mapping[str, Bool[Tensor, "b h2 w2 4"]],
        checkpointing: bool = False,
    ) -> Float[Tensor, "b h2 w2 p 5 f"]:
        """Of the frames of this source, what each cell adds to the hidden layer, and what each of its four pixels does.
        It and `others`, by source: which pixels any frame showed.

        A few rows at a time, and of a large batch some samples: each head's features of all cells at once would be many
        times the encoder's.
        """
        cells, asked, bias = self.prepared(encoded, valid)
        lacking = torch.stack([showed, *(showed & ~others[name] for name in self.instead)], dim=-1)[..., 1:]
        at_once = _POOLED_GPU if cells.is_cuda else _POOLED
        row = asked.shape[1] * cells.shape[2] * cells.shape[-1]  # numbers that one of one sample is pooled to
        rows = max(1, at_once // row)
        samples = max(1, _SAMPLES * at_once // (row * min(rows, cells.shape[1])))
        mix = partial(checkpoint, self.mix, use_reentrant=False) if checkpointing else self.mix
        split = zip(*(each.split(samples) for each in (cells, lacking, asked, bias)), strict=True)
        parts = [
            torch.cat([mix(*each, *of) for each in zip(some.split(rows, 1), lacks.split(rows, 1), strict=True)], dim=1)
            for some, lacks, *of in split
        ]
        added = torch.cat(parts)
        usual = F.pad(~showed[..., None, :, None] * self.usual.to(added.dtype), (0, 0, 1, 0))
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
        self,
        cells: Float[Tensor, "b h w t c"],
        lacking: Bool[Tensor, "b h w 4 o"],
        asked: Float[Tensor, "b pk c1"],
        bias: Float[Tensor, "b pk t"],
    ) -> Float[Tensor, "b h w pf"]:
        """What cells and pixels add to the hidden layer; nothing where there was no frame.

        The key's projection is folded into what is asked and the value's follows the pooling, which is the same sum:
        no map of keys or values is made per frame.
        """
        detail, features = self.attend(cells, asked, bias)
        values = torch.bmm(features.transpose(0, 1), self.value).transpose(0, 1).flatten(1)
        fine = self.fine(detail)
        pixels, periods = detail.flatten(0, 1), asked.shape[1] // self.heads
        for stand_in, where in zip(self.instead.values(), lacking.unbind(-1), strict=True):
            (at,) = where[..., None, :].expand(-1, -1, -1, periods, -1).flatten().nonzero(as_tuple=True)
            # Where there is none of them, too: every weight has to have a gradient in every process.
            fine.view(-1, fine.shape[-1]).index_add_(0, at, stand_in(pixels[at]))
        return torch.cat([self.hidden(values)[:, None], fine], dim=1).view(*cells.shape[:3], -1)

    def attend(
        self, cells: Float[Tensor, "b h w t c"], asked: Float[Tensor, "b pk c1"], bias: Float[Tensor, "b pk t"]
    ) -> tuple[Float[Tensor, "bhwp 4 ke"], Float[Tensor, "bhwp k d"]]:
        """Softmax over the frames of each cell, per period and head: the detail of its pixels, and its features."""
        fine = 4 * self.detail
        logits = asked[:, None, None] @ cells[..., fine + 4 :].transpose(-1, -2) + bias[:, None, None]
        pooled = (logits.softmax(-1) @ cells[..., :-1]).reshape(-1, self.heads, cells.shape[-1] - 1)
        detail, weight, features = pooled.split([fine, 4, pooled.shape[-1] - fine - 4], dim=-1)
        # As many numbers as the detail, though four would do: a division by rows of 18 takes three times as long.
        share = weight.clamp(min=1e-6).reciprocal().repeat_interleave(self.detail, dim=-1)
        return (detail * share).unflatten(-1, (4, -1)).transpose(1, 2).flatten(2), features

    def bias(
        self, layout: Layout, valid: Int[Tensor, "b p 2"], query: Float[Tensor, "b p k e"]
    ) -> Float[Tensor, "b pk t"]:
        """What a frame's instant adds to its logits, whatever it shows; slots without a frame are out."""
        keys = self.key_time(timecode(layout.time).to(self.key.dtype)).unflatten(-1, (self.heads, -1))
        timely = torch.einsum("nke,npke->npk", keys, query[layout.site]) / math.sqrt(keys.shape[-1])
        bias = layout.spread(timely + self.nearness(layout, valid))
        return bias.masked_fill(~layout.filled[..., None, None], _ABSENT).flatten(2).transpose(1, 2)

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


class Summariser(nn.Module):
    """For a valid period: attention pooling of each source's frames, up-sampling to L, projection, unit length, and
    the mean of the neighbours that look alike.

    Up-sampling expands what the cells add to the hidden layer bilinearly and adds to each pixel what it showed itself,
    projected alike for all pixels. (Separate weights per sub-pixel would let the four pixels of a cell use four codes,
    and no loss would see it.) Without the pixels' own part all that a field tells is blurred over a cell: two designed
    baselines lose .05 of balanced accuracy when they are. All of this is our choice: the paper says that up-sampling is
    learned, and nothing of a hidden layer before the 64 numbers.
    """

    def __init__(self, sizes: Sizes, sources: tuple[str, ...]) -> None:
        super().__init__()
        hidden = 2 * sizes.embedding
        pools = {name: Pool(sizes, [other for other in sources if other != name]) for name in sources}
        self.pools = nn.ModuleDict(pools)
        self.level = nn.Parameter(torch.zeros(hidden))
        self.shared = nn.Conv2d(hidden, sizes.embedding, 1)
        self.neighbours = Neighbours(sizes.neighbours) if sizes.neighbours else None

    def forward(
        self, encoded: Encoded, valid: Int[Tensor, "b p 2"], checkpointing: bool = False
    ) -> Float[Tensor, "b p d h w"]:
        pools = {name: cast(Pool, pool) for name, pool in self.pools.items()}
        parts = dict(zip(pools, map(encoded.of, range(len(pools))), strict=True))
        showed = {name: pool.somewhere(parts[name]) for name, pool in pools.items()}
        added = (pool(parts[name], valid, showed[name], showed, checkpointing) for name, pool in pools.items())
        cells, pixels = reduce(torch.add, added).split([1, 4], dim=4)  # b h2 w2 p 1 f
        cells = cells.squeeze(4).permute(0, 3, 4, 1, 2).flatten(0, 1)
        pixels = pixels.unflatten(4, (2, 2)).permute(0, 3, 6, 1, 4, 2, 5).flatten(5).flatten(3, 4).flatten(0, 1)
        # Cells that no frame saw hold nothing to expand into their neighbours.
        some = encoded.layout.spread(encoded.present).any(1).repeat_interleave(valid.shape[1], 0)[:, None]
        expand = partial(F.interpolate, scale_factor=2, mode="bilinear", align_corners=False)
        hidden = expand(cells * some) / expand(some.to(cells.dtype)).clamp(min=0.1) + pixels
        hidden = hidden + self.level.to(hidden.dtype)[:, None, None]
        vectors = unit(self.shared(F.gelu(hidden)), dim=1)
        if self.neighbours is not None:
            vectors = self.neighbours(vectors, encoded.seen.repeat_interleave(valid.shape[1], 0))
        return vectors.unflatten(0, valid.shape[:2])

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
    def begin(self, weight: Float[Tensor, "d e"], mean: Float[Tensor, " e"], told: Float[Tensor, "e e"]) -> None:
        """Begin as a projection of the pixels' pooled detail, of all sources one after the other, less its mean.

        The weights come in pairs of both signs: gelu(x) - gelu(-x) = x, so that the whole is linear at the start. What
        the encoder adds starts at zero. `told` says what to expect of one source's detail by the others'.
        """
        self.level.copy_(torch.cat([-weight @ mean, weight @ mean]))
        both = torch.cat([weight, -weight])
        pools = {name: cast(Pool, pool) for name, pool in self.pools.items()}
        widths = [pool.fine.in_features for pool in pools.values()]
        means = dict(zip(pools, mean.split(widths), strict=True))
        for name, part, rows in zip(pools, both.split(widths, dim=1), told.split(widths), strict=True):
            silent(pools[name].hidden)
            pools[name].fine.weight.copy_(part)
            pools[name].usual.copy_(part @ means[name])
            for other, block in zip(pools, rows.split(widths, dim=1), strict=True):
                if other != name:
                    stand_in = cast(nn.Linear, pools[other].instead[name])
                    stand_in.weight.copy_(part @ block)
                    stand_in.bias.copy_(-part @ block @ means[other])
        signs = torch.eye(len(weight), device=weight.device)
        self.shared.weight.copy_(torch.cat([signs, -signs], dim=1)[:, :, None, None])
        nn.init.zeros_(cast(Tensor, self.shared.bias))
