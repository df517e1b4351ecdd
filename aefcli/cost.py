"""What a model of given sizes costs: its parameters, and the arithmetic of one patch, from the recipe's numbers alone.

Owns the count. It reads like the network in `model`, a line per operator, and needs no tensors; tests hold it to the
network's own parameters and to PyTorch's count of its operations.

A FLOP is a multiplication or an addition, so a multiply-add is two. Matrix products, attention's two among them, and
convolutions count; what works on numbers one by one (norms, GELU, softmax, resampling) does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from aefcli.recipe import Model as Sizes
from aefcli.sources import SOURCES

PARTS = ("stem", "space", "time", "precision", "exchange", "summary", "decoders")

_TIMECODE = 24  # numbers that tell the encoder an instant
_PERIOD = 2 * _TIMECODE + 1  # the summariser a valid period
_POSITION = 16  # a decoder the place of an instant in it
_SQUARE = 4  # px along the squares of which the summariser compares pixels with those around
_CLEAR = 16  # width of the stem's guess at what is clear
_CELL = {"precision": 2, "time": 8, "space": 16}  # pixels along the side of a cell of each path


@dataclass(frozen=True)
class Cost:
    """Parameters of an operator, and FLOPs of its work on one patch."""

    parameters: int = 0
    flops: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.parameters + other.parameters, self.flops + other.flops)

    def __rmul__(self, times: int) -> Cost:
        return Cost(times * self.parameters, times * self.flops)


@dataclass(frozen=True)
class Patch:
    """The work: frames of each source, all present, over side x side pixels, for some valid periods."""

    frames: Mapping[str, int]
    side: int = 0
    periods: int = 0

    @property
    def count(self) -> int:
        return sum(self.frames.values())

    def cells(self, path: str) -> int:
        """Cells of one frame on the grid of that path."""
        return (self.side // _CELL[path]) ** 2


def parameters(sizes: Sizes, sources: Sequence[str], targets: Sequence[str] = ()) -> dict[str, int]:
    """Numbers of parameters by part, and in all. `targets` are the sources that are decoded alone."""
    parts = _parts(sizes, Patch(dict.fromkeys(sources, 0)), targets)
    return {"total": sum(parts[name].parameters for name in PARTS), **{name: parts[name].parameters for name in PARTS}}


def flops(
    sizes: Sizes, frames: Mapping[str, int], side: int = 128, periods: int = 1, targets: Sequence[str] = ()
) -> dict[str, int]:
    """FLOPs by part, and in all, of one forward pass over a patch of `side` px, with so many frames of each source.

    `decoders` is one frame of each source and target at every pixel, and one text. They serve training alone, which
    decodes some of the pixels, so they are not in the total.
    """
    parts = _parts(sizes, Patch(frames, side, periods), targets)
    total = sum(parts[name].flops for name in PARTS if name != "decoders")
    return {"total": total, **{name: parts[name].flops for name in PARTS}}


def split(count: int, shares: Mapping[str, int]) -> dict[str, int]:
    """So many frames over sources in proportion to their shares; largest remainders make them sum to it."""
    whole = sum(shares.values())
    counts = {name: count * share // whole for name, share in shares.items()}
    most = sorted(shares, key=lambda name: count * shares[name] % whole, reverse=True)
    return {name: counts[name] + (name in most[: count - sum(counts.values())]) for name in shares}


# --- the network, a line per operator -------------------------------------------------------------------------------


def _parts(sizes: Sizes, patch: Patch, targets: Sequence[str]) -> dict[str, Cost]:
    operators = {"precision": _precision(sizes, patch), "time": _time(sizes, patch), "space": _space(sizes, patch)}
    blocks = _staggered(sizes.blocks)
    measured = [name for name in (*patch.frames, *targets) if SOURCES[name].kind != "text"]
    return {
        "stem": _sum(_stem(sizes, patch, name) for name in patch.frames),
        **{path: _sum(operator for running, _ in blocks if path in running) for path, operator in operators.items()},
        "exchange": _sum(_exchange(sizes, patch, *paths) for paths in blocks),
        "summary": _summariser(sizes, patch),
        "decoders": _sum(_decoder(sizes, patch, name) for name in measured)
        + (_text(sizes) if "text" in targets else Cost()),
    }


def _stem(sizes: Sizes, patch: Patch, source: str) -> Cost:
    """A strided convolution of pixels and their presence, the source's vector, each pixel's own part, and whether it
    is clear.
    """
    at, bands = patch.frames[source] * patch.cells("precision"), len(SOURCES[source].bands)
    straight = sizes.pool_detail // 3
    own = _weights(bands, straight, 4 * at) + _linear(bands, sizes.pool_detail - straight, 4 * at)
    return (
        _linear(2 * bands, sizes.precision, at, kernel=4)
        + Cost(sizes.precision)
        + own
        + _perceptron(bands, _CLEAR, 1, 4 * at)
    )


def _precision(sizes: Sizes, patch: Patch) -> Cost:
    """A norm and two convolutions."""
    at, width, kernel = patch.count * patch.cells("precision"), sizes.precision, sizes.precision_kernel
    return _norm(width) + _perceptron(width, sizes.precision_expansion * width, width, at, kernel)


def _time(sizes: Sizes, patch: Patch) -> Cost:
    """Each frame's timecode, then a transformer layer along time, a sequence per cell."""
    width, cells = sizes.time, patch.cells("time")
    when = _linear(_TIMECODE, width, patch.count)
    return when + _transformer(width, sizes.mlp_ratio, sequences=cells, length=patch.count)


def _space(sizes: Sizes, patch: Patch) -> Cost:
    """A transformer layer over the cells, a sequence per frame."""
    return _transformer(sizes.space, sizes.mlp_ratio, sequences=patch.count, length=patch.cells("space"))


def _exchange(sizes: Sizes, patch: Patch, before: Sequence[str], after: Sequence[str]) -> Cost:
    """A convolution per edge, on the coarser of its two grids."""
    edges = [(giver, taker) for giver in before for taker in after if giver != taker]
    return _sum(
        _linear(
            getattr(sizes, giver),
            getattr(sizes, taker),
            patch.count * min(patch.cells(giver), patch.cells(taker)),
            kernel=sizes.exchange_kernel,
        )
        for giver, taker in edges
    )


def _summariser(sizes: Sizes, patch: Patch) -> Cost:
    """The pools of all sources, what they add to, and the mean of neighbours."""
    pixels = 4 * patch.periods * patch.cells("precision")
    pools = _sum(_pool(sizes, patch, name) for name in patch.frames)
    return pools + Cost(sizes.embedding) + _neighbours(sizes, pixels)


def _neighbours(sizes: Sizes, pixels: int) -> Cost:
    """Each pixel held against those around its square, and their mean; and the sharpness."""
    if not sizes.neighbours:
        return Cost()
    return Cost(1) + 2 * _product(pixels, sizes.embedding, (_SQUARE + 2 * sizes.neighbours) ** 2)


def _pool(sizes: Sizes, patch: Patch, name: str) -> Cost:
    """Attention pooling of a source's frames in each L/2 cell with a query per period, and of their pixels; and what
    stands in for sources without any frame.
    """
    n = patch.frames[name]
    heads, width, p = sizes.pool_heads, sizes.pool_width, patch.periods
    deep, asked, own, out = sizes.precision, heads * width, sizes.pool_value, sizes.embedding
    at, fine = patch.cells("precision"), sizes.pool_detail
    others = [count for other, count in patch.frames.items() if other != name]
    lacking = len({bool(count) for count in patch.frames.values()}) > 1
    query = _perceptron(_PERIOD, 2 * deep, asked, p) + heads * _weights(width, deep, p)
    key_time = _weights(_TIMECODE, asked, n) + heads * _product(p * n, width, 1)
    weigh = heads * _product(p * at, deep + 1, n)  # + 1: by whether the cell is clear too
    value = heads * _pooled(n, p, deep, own, at) + _weights(heads * own, out, p * at)
    detail = heads * _pooled(n, p, fine, out, 4 * at, stands_in=lacking)
    bells = Cost(2 * heads + out)  # centre and width, and what is usual
    instead = _sum(_linear(heads * fine, out, 4 * p * at if n and not count else 0) for count in others)
    return query + key_time + weigh + value + detail + bells + instead


def _pooled(frames: int, periods: int, width: int, out: int, at: int, *, stands_in: bool = False) -> Cost:
    """What a head pools and what that is projected to, in the order that takes less; what stands in for another source
    needs it pooled first.
    """
    after = periods * _product(at, frames, width) + _weights(width, out, periods * at)
    before = _weights(width, out, frames * at) + periods * _product(at, frames, out)
    return after if stands_in else min(after, before, key=lambda cost: cost.flops)


def _decoder(sizes: Sizes, patch: Patch, source: str) -> Cost:
    """Two hidden layers at every pixel."""
    about = sizes.embedding + _POSITION + len(SOURCES[source].meta)
    at = patch.side**2
    return _linear(about, sizes.decoder, at) + _perceptron(sizes.decoder, sizes.decoder, SOURCES[source].outputs, at)


def _text(sizes: Sizes) -> Cost:
    """Two layers for one text, and the temperature."""
    return _perceptron(sizes.text + _PERIOD, sizes.decoder, sizes.embedding, 1) + Cost(1)


def _staggered(blocks: int) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """The paths that run in each block, and those that get a state after it: they start one after another."""
    running = [tuple(_CELL)[:number] for number in range(1, blocks + 1)]
    return list(zip(running, [*running[1:], ("precision",)], strict=True))


# --- what operators are made of -------------------------------------------------------------------------------------


def _sum(costs: Iterable[Cost]) -> Cost:
    return sum(costs, start=Cost())


def _norm(width: int) -> Cost:
    return Cost(2 * width)


def _product(rows: int, inner: int, columns: int) -> Cost:
    """Of two matrices that depend on the input."""
    return Cost(0, 2 * rows * inner * columns)


def _weights(into: int, out: int, at: int) -> Cost:
    """A learned matrix, applied at so many places."""
    return Cost(into * out, 2 * at * into * out)


def _linear(into: int, out: int, at: int, kernel: int = 1) -> Cost:
    """A linear layer or a convolution: a learned matrix of the pixels under the kernel, and a bias."""
    return _weights(kernel**2 * into, out, at) + Cost(out)


def _perceptron(into: int, hidden: int, out: int, at: int, kernel: int = 1) -> Cost:
    return _linear(into, hidden, at, kernel) + _linear(hidden, out, at, kernel)


def _transformer(width: int, ratio: int, *, sequences: int, length: int) -> Cost:
    """Self-attention in each sequence, and an MLP, a norm before each. The width of a head plays no part."""
    at = sequences * length
    project = _linear(width, 3 * width, at) + _linear(width, width, at)
    attend = _product(at, width, length) + _product(at, length, width)
    return _norm(width) + project + attend + _norm(width) + _perceptron(width, ratio * width, width, at)
