"""The vectors of a store, block by block: nodata, lengths, observations."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np

from aefcli import field as fields
from aefcli.errors import AefError
from aefcli.extent import Tile
from aefcli.published.vectors import BROKEN, POWER, Vectors
from aefcli.validate.check import Check, bad, hold, none

Progress = Callable[[int, int], None]

SAMPLE = 16  # blocks that a quick look reads
LENGTH = 0.008  # by which int8 mostly changes the length of a unit vector: method.md section 10
_SLACK = 1e-3  # of the square of a length, before it was rounded
_SIDE = 256  # pixels, at least, that are read at a time along either axis
_MOST = 1 << 24  # numbers that one thread reads at a time, where the stored blocks allow it


@dataclass
class Content:
    """The vectors of a store, to be read tile by tile.

    `read` gives codes or values (d, h, w), what they decode to where that is not told by them alone (d, h, w), and
    counts (h, w) by source.
    """

    shape: tuple[int, int]
    times: int
    tile: tuple[int, int]  # rows and columns that are read at a time
    dimensions: int
    coded: bool  # int8 of the signed square root
    ours: bool
    tolerance: float | None  # of lengths; none is asked where None
    read: Callable[[Tile, int], Block]
    empty_periods: tuple[bool, ...] | None = None  # hold no frame of the cube
    frames: tuple[int, ...] | None = None  # of the cube, inside each period
    sources: tuple[str, ...] = ()
    uncertain: bool = False

    def __len__(self) -> int:
        (rows, columns), (high, wide) = self.shape, self.tile
        return self.times * -(-rows // high) * -(-columns // wide)

    def block(self, number: int) -> tuple[int, Tile]:
        """Time and tile of a block, counted row by row, all of one time first."""
        (rows, columns), (high, wide) = self.shape, self.tile
        across = -(-columns // wide)
        time, place = divmod(number, -(-rows // high) * across)
        top, left = place // across * high, place % across * wide
        return time, Tile(top, left, min(top + high, rows), min(left + wide, columns))


@dataclass
class Block:
    values: np.ndarray  # codes or floats (d, h, w)
    decoded: np.ndarray | None = None  # float32 (d, h, w), NaN where nodata; None where the codes say it all
    counts: Mapping[str, np.ndarray] = field(default_factory=dict)  # (h, w) by source
    uncertainty: np.ndarray | None = None  # (h, w)


def tile_of(shape: tuple[int, int], block: tuple[int, int], dimensions: int) -> tuple[int, int]:
    """Whole stored blocks of at least _SIDE px a side, fewer rows where that were too many numbers."""
    high, wide = (min(extent, -(-_SIDE // size) * size) for extent, size in zip(shape, block, strict=True))
    most = _MOST // (dimensions * wide) // block[0] * block[0]
    return max(block[0], min(high, most)), wide


def foreign(vectors: Vectors) -> Content:
    """Somebody else's vectors, through the reader that knows them."""

    def read(tile: Tile, time: int) -> Block:
        codes, scales = vectors.stored(tile, time)
        return Block(codes, None if coded else vectors.decode(codes, scales))

    coded = vectors.decoding == POWER
    shape = (int(vectors.grid.shape[0]), int(vectors.grid.shape[1]))
    return Content(
        shape=shape,
        times=len(vectors.periods),
        tile=tile_of(shape, vectors.block, vectors.dimensions),
        dimensions=vectors.dimensions,
        coded=coded,
        ours=False,
        tolerance=LENGTH if coded else None,
        read=read,
    )


Place = tuple[int, int, int]  # time, row, column


@dataclass
class Tally:
    """What was found in the blocks of one thread. Places are the first in order of time, row and column."""

    pixels: int = 0
    empty: int = 0
    partial: int = 0
    zero: int = 0
    off: int = 0  # lengths beyond the tolerance
    seen: int = 0  # pixels without a vector and with observations
    outside: int = 0  # pixels with observations in a period that holds no frame
    many: int = 0  # pixels with more observations than frames
    negative: int = 0
    uncertain: int = 0  # pixels of which uncertainty and vector are not there together, or uncertainty is below 0
    shortest: float = np.inf
    longest: float = -np.inf
    first: dict[str, Place] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def count(self, what: str, here: np.ndarray, time: int, tile: Tile) -> None:
        """Add the pixels (h, w) of one kind."""
        if number := int(np.count_nonzero(here)):
            setattr(self, what, getattr(self, what) + number)
            row, column = np.argwhere(here)[0].tolist()
            place = (time, tile.top + row, tile.left + column)
            self.first[what] = min(place, self.first.get(what, place))

    def add(self, other: Tally) -> None:
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.shortest, self.longest = min(self.shortest, other.shortest), max(self.longest, other.longest)
        self.first = {
            name: min(place for place in (self.first.get(name), other.first.get(name)) if place is not None)
            for name in {*self.first, *other.first}
        }
        self.broken += other.broken


_COUNTS = ("pixels", "empty", "partial", "zero", "off", "seen", "outside", "many", "negative", "uncertain")


def read_all(
    content: Content, quick: int | None, workers: int, progress: Progress | None
) -> tuple[tuple[int, int], Tally]:
    """Look at every block, or at some; how many, of how many, and what was found."""
    total = len(content)
    chosen: Sequence[int] = range(total)
    if quick is not None and total > SAMPLE:
        chosen = sorted(random.Random(quick).sample(range(total), SAMPLE))
    queue, lock, done = iter(chosen), threading.Lock(), itertools.count(1)

    def work() -> Tally:
        own = Tally()
        while True:
            with lock:
                number = next(queue, None)
            if number is None:
                return own
            _look(content, *content.block(number), own)
            with lock:
                finished = next(done)
            if progress:
                progress(finished, len(chosen))

    with ThreadPoolExecutor(max(1, workers)) as pool:
        parts = [future.result() for future in [pool.submit(work) for _ in range(max(1, workers))]]
    whole = Tally()
    for part in parts:
        whole.add(part)
    return (len(chosen), total), replace(whole, broken=sorted(whole.broken))


def _look(content: Content, time: int, tile: Tile, own: Tally) -> None:
    try:
        block = content.read(tile, time)
    except (AefError, *BROKEN) as error:
        where = f"rows {tile.top}:{tile.bottom}, columns {tile.left}:{tile.right} of time {time}"
        own.broken.append(f"{where}: {type(error).__name__} {str(error)[:120]}")
        return
    lacking, whole, squares = _lengths(content, block)
    there = ~(lacking | whole)
    own.pixels += whole.size
    own.empty += int(np.count_nonzero(whole))
    own.count("partial", lacking & ~whole, time, tile)
    own.count("zero", there & (squares == 0), time, tile)
    lengths = np.sqrt(squares[there & (squares > 0)])
    if lengths.size:
        own.shortest, own.longest = min(own.shortest, float(lengths.min())), max(own.longest, float(lengths.max()))
        if content.tolerance is not None:
            off = there & (squares > 0) & (np.abs(np.sqrt(squares) - 1) > content.tolerance)
            if content.coded and off.any():
                off[off] = ~_rounded(block.values[:, off])
            own.count("off", off, time, tile)
    _look_at_counts(content, block, whole, time, tile, own)


def _lengths(content: Content, block: Block) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels (h, w) that lack any number, that lack all, and the squares of the lengths, float32."""
    values = block.values
    if content.coded:
        missing = (values == fields.NODATA).sum(axis=0)
        squares = _SQUARES[values.view(np.uint8)].sum(axis=0)
        return missing > 0, missing == len(values), squares
    shown = values.astype("float32") if block.decoded is None else block.decoded
    lacking = ~np.isfinite(shown).all(axis=0)
    if block.decoded is None or values.dtype.kind == "f":
        # Whatever stands for nodata, it does so in all numbers of a pixel.
        same = np.isnan(values).all(axis=0) | (values == values[:1]).all(axis=0)
        whole = lacking & same
    else:
        whole = lacking
    return lacking, whole, np.where(lacking, 0, np.square(np.nan_to_num(shown)).sum(axis=0))


def _rounded(codes: np.ndarray) -> np.ndarray:
    """Whether codes (d, n) are those of any unit vector: half a code up or down is what rounding takes (n)."""
    size = np.abs(codes.astype(np.float64))
    low, high = (((size + half).clip(0) / 127.5) ** 4 for half in (-0.5, 0.5))
    return (low.sum(axis=0) < 1 + _SLACK) & (high.sum(axis=0) > 1 - _SLACK)


def _squares() -> np.ndarray:
    """float32 [256]: the square of every code's value, by the code's bits read as uint8; 0 for nodata."""
    codes = np.arange(256, dtype=np.uint8).view(np.int8)
    values = np.where(codes == fields.NODATA, 0.0, (np.abs(codes.astype(np.float64)) / 127.5) ** 2)
    return np.square(values).astype(np.float32)


_SQUARES = _squares()


def _look_at_counts(content: Content, block: Block, empty: np.ndarray, time: int, tile: Tile, own: Tally) -> None:
    if block.counts:
        seen = np.sum([counts.astype(np.int64) for counts in block.counts.values()], axis=0)
        for counts in block.counts.values():
            own.count("negative", counts < 0, time, tile)
        own.count("seen", empty & (seen > 0), time, tile)
        if content.empty_periods is not None and content.empty_periods[time]:
            own.count("outside", seen > 0, time, tile)
        if content.frames is not None:
            own.count("many", seen > content.frames[time], time, tile)
    if block.uncertainty is not None:
        spread = block.uncertainty
        own.count("uncertain", (np.isnan(spread) != empty) | (spread < 0), time, tile)


def content_checks(content: Content, tally: Tally, blocks: tuple[int, int], quick: int | None) -> Iterator[Check]:
    def at(what: str) -> str:
        time, row, column = tally.first[what]
        return f"first at time {time}, row {row}, column {column}"

    drawn = "" if blocks[0] == blocks[1] else f", drawn with seed {quick}: the others were not looked at"
    looked = f"{blocks[0]:,} of {blocks[1]:,} blocks read{drawn}; {tally.empty / max(1, tally.pixels):.2%} nodata"
    broken = f"{len(tally.broken)} do not read, first {tally.broken[0]}" if tally.broken else ""
    yield hold("blocks", not broken, broken or looked)
    d, vectors = content.dimensions, tally.pixels - tally.empty - tally.partial
    shown = f"{tally.partial:,} pixels lack some of {d} numbers and not all, {at('partial')}" if tally.partial else ""
    yield hold("nodata whole", not tally.partial, shown or f"all {d} numbers or none, at {tally.pixels:,} pixels")
    shown = f"{tally.zero:,} vectors are all zero, {at('zero')}" if tally.zero else f"none in {vectors:,}"
    yield hold("zero vectors", not tally.zero, shown)
    lengths = f"{tally.shortest:.4f} to {tally.longest:.4f}" if vectors > tally.zero else "there is no vector"
    if content.tolerance is None:
        yield none("lengths", f"{lengths}; others leave them as they are")
    else:
        wanted = f"within {content.tolerance:g} of 1{', or as rounding leaves unit vectors' if content.coded else ''}"
        shown = f"; {tally.off:,} are not {wanted}, {at('off')}" if tally.off else f", {wanted}"
        yield hold("lengths", not tally.off, lengths + shown)
    yield from _count_checks(content, tally, at)


def overview_check(content: Content, quick: int | None, workers: int) -> Check:
    """Whether an overview holds unit vectors, as means of decoded ones do, and means of codes do not."""
    (read, total), tally = read_all(content, quick, workers, None)
    wrong = tally.off + tally.zero + tally.partial + len(tally.broken)
    lengths = f"{tally.shortest:.4f} to {tally.longest:.4f}" if tally.shortest < np.inf else "there is no vector"
    shown = f"lengths {lengths} in {read:,} of {total:,} blocks of the first"
    return hold("overviews", not wrong, f"{shown}, {wrong:,} of no unit vector{': codes averaged?' * bool(wrong)}")


def _count_checks(content: Content, tally: Tally, at: Callable[[str], str]) -> Iterator[Check]:
    if not content.sources:
        yield (bad if content.ours else none)("observations", "there are none")
    else:
        wrong = {
            "negative": "counts are below 0",
            "seen": "pixels were seen and have no vector",
            "outside": "pixels were seen in a period that holds no frame",
            "many": "pixels have more observations than the period has frames",
        }
        found = [f"{getattr(tally, name):,} {what}, {at(name)}" for name, what in wrong.items() if getattr(tally, name)]
        names = ", ".join(name.removeprefix("observations_") for name in content.sources)
        yield hold("observations", not found, "; ".join(found) or f"{names}: none where there is no vector")
    if content.uncertain:
        shown = "at the pixels that have a vector, and there alone"
        if tally.uncertain:
            shown = f"{tally.uncertain:,} pixels have one of it and a vector, or one below 0, {at('uncertain')}"
        yield hold("uncertainty", not tally.uncertain, shown)
    else:
        yield none("uncertainty", "there is none")
