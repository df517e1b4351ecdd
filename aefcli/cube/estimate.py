"""What a fetch would read and write, before it does: from headers of a few files and a sample of slabs."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aefcli import ledger
from aefcli.cube.fetch import Archive, Request, check, grows, planned
from aefcli.cube.grow import FinishedCube
from aefcli.cube.room import free
from aefcli.cube.store import open_cube
from aefcli.cube.write import Stack, Work, packed, quiet_warps, slabs, units_of
from aefcli.errors import RemoteFailed
from aefcli.extent import Tile

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

_FRAMES, _TILES = 8, 48  # of each source: files whose headers are read, and for how many of the slabs that they serve
_SLABS = 24  # of each source that are read and packed
_AGAIN = 0.7  # of the time that a frame takes: that of one that is unpacked and packed again
_HEAD = 16384  # bytes of a file that are read before any of its blocks


@dataclass(frozen=True)
class Estimate:
    """Items and frames of a plan, and what fetching them would take."""

    items: int
    frames: Mapping[str, int]
    bytes_read: int
    bytes_written: int
    bytes_free: int  # on the disk that the cube would be written to
    seconds: float  # from the search to the end; the start of the program is not among them
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "frames": dict(self.frames), "seconds": round(self.seconds, 1)}


def estimate(request: Request, out: Path, work: Work, *, overwrite: bool = False, refresh: bool = False) -> Estimate:
    """Search and plan as a fetch would, and scale up a sample. Writes nothing.

    Of a cube that grows, what is new; of one that was cut off, what is left; of one that is complete, nothing, and
    nothing is searched for.

    The headers of a few frames' files say how large the blocks are under the slabs that a fetch would read; some slabs
    of one frame are read and packed. Raises what `fetch` would raise of the search and of reading.
    """
    began = time.monotonic()
    check(request, out)
    before = None if overwrite else FinishedCube.at(out)
    begun = ledger.read(out) if out.exists() and not (overwrite or before) else None
    asked = request.with_attached(before.attached if before else {})
    same = before is not None and ledger.canonical(before.record.request) == ledger.canonical(asked)
    if before and same and not refresh:
        return _complete(before, out)
    search = cache(lambda: planned(request, out, before.attached if before else ()))
    grown = before if before and grows(before, asked, refresh, lambda: search()[0]) else None
    if before and same and not grown:
        return _complete(before, out)
    ledger.would_write(out, asked, overwrite=overwrite or grown is not None)  # refuses what a fetch would refuse
    plan, stacks = search()
    looking = time.monotonic() - began  # a fetch searches, too
    done = set(begun.units) if begun else set()
    with quiet_warps():
        samples = [_left(stack, _sample(stack, work.threads), grown, done) for stack in stacks]
    return Estimate(
        items=sum(map(len, plan["items"].values())),
        frames={stack.source.name: len(stack.times) for stack in stacks},
        bytes_read=round(sum(sample.read for sample in samples)),
        bytes_written=round(sum(sample.written for sample in samples)),
        bytes_free=free(out),
        seconds=looking + sum(sample.seconds for sample in samples),
        notes=tuple(plan["notes"]),
    )


def _complete(before: FinishedCube, out: Path) -> Estimate:
    items = sum(map(len, before.record.plan["items"].values()))
    frames = {name: len(source.times) for name, source in open_cube(out).sources.items()}
    return Estimate(items, frames, 0, 0, free(out), 0.0, (f"{out} is complete",))


@dataclass(frozen=True)
class _Cost:
    """Of a source, or of a part of it: bytes of blocks read, bytes written, seconds."""

    read: float
    written: float
    seconds: float


def _left(stack: Stack, cost: _Cost, before: FinishedCube | None, done: Collection[str]) -> _Cost:
    """What of a source's cost is yet to bear: not the units that are done, nor those that a cube that grows can keep,
    nor the reading of the frames that it has. These are unpacked and packed again, which takes part of the time.
    """
    joined, lacking = (stack, 1.0) if before is None else (before.joined(stack), before.lacking(stack))
    old, units = before.old() if before else None, units_of([joined])
    cells = {name: (when.stop - when.start) * _area(tile) for name, (_, when, tile) in units.items()}
    made = sum(
        cells[name]
        for name, (_, when, _) in units.items()
        if name not in done and not (old and old.has(name, joined, when))
    )
    share = made / sum(cells.values())
    read = min(share, lacking)
    return _Cost(cost.read * read, cost.written * share, cost.seconds * (read + _AGAIN * (share - read)))


def _sample(stack: Stack, threads: int) -> _Cost:
    """What all of a source would take."""
    assert isinstance(stack.read, Archive)
    every = list(slabs(stack.grid))
    frames, places = _spread(len(stack.times), _FRAMES), [every[index] for index in _spread(len(every), _TILES)]
    under = {(index, tile): 0 for index in frames for tile in places}
    files = 0
    for index in frames:
        frame = stack.read.frames[index]
        for item in frame.items:
            for asset in item.assets.values():
                sizes = _headers(asset.href, stack.grid, places)
                files += bool(sizes) and "://" in asset.href  # on disk no more is read than is asked for
                for tile, size in sizes.items():
                    under[index, tile] += size
    whole = len(stack.times) / len(frames) * sum(map(_area, every)) / sum(map(_area, places))
    blocks = whole * sum(under.values())
    pairs = list(under)
    chosen = [pairs[index] for index in np.random.default_rng(0).permutation(len(pairs))[:_SLABS]]
    found = _packed(stack, chosen, threads)
    seen = sum(under[pair] for pair in chosen)
    # Bytes written go with bytes read: where a file has nothing, both are few.
    share = blocks / seen if seen else whole * len(pairs) / len(chosen)
    seconds = found.seconds * whole * sum(_area(tile) for _, tile in pairs) / sum(_area(tile) for _, tile in chosen)
    return _Cost(blocks + _HEAD * files * len(stack.times) / len(frames), found.written * share, seconds)


def _headers(href: str, grid: GeoBox, places: Sequence[Tile]) -> dict[Tile, int]:
    """Bytes of a file's blocks by tile; none where it is gone. Raises RemoteFailed."""
    from aefcli.cube.read import Reads
    from aefcli.cube.web import Unreadable

    try:
        return Reads(mask=(href,)).window(href, lambda opened: _under(opened, grid, places)) or {}
    except Unreadable as error:
        raise RemoteFailed(f"cannot read {error}", "run the same command again") from error


def _spread(count: int, most: int) -> list[int]:
    """At most so many of the numbers below `count`, evenly."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()


def _packed(stack: Stack, slabs: Sequence[tuple[int, Tile]], threads: int) -> _Cost:
    """Read and pack slabs of one frame, those of a tile together, as a fetch does."""
    frames: dict[Tile, list[int]] = {}
    for frame, tile in slabs:
        frames.setdefault(tile, []).append(frame)
    began = time.monotonic()
    written = sum(packed(stack, np.array(sorted(some)), tile, threads) for tile, some in frames.items())
    return _Cost(0, written, time.monotonic() - began)


def _area(tile: Tile) -> int:
    return tile.shape[0] * tile.shape[1]


def _under(opened: Any, grid: GeoBox, places: Sequence[Tile]) -> dict[Tile, int]:
    """Bytes of a file's blocks that each tile of the grid would read, at the overview that would serve it."""
    from odc.geo.converters import rio_geobox
    from odc.geo.overlap import compute_reproject_roi
    from odc.loader._reader import pick_overview

    with opened() as file:
        rois = {tile: compute_reproject_roi(rio_geobox(file), grid[tile.slices]) for tile in places}
        shrink, levels = max(1, int(rois[places[0]].read_shrink)), file.overviews(1)
        level = pick_overview(shrink, levels) if shrink > 1 and levels else None
        if level is None:
            return {tile: _sizes(file, roi.roi_src, 1) for tile, roi in rois.items()}
    with opened(overview_level=level) as file:
        return {tile: _sizes(file, roi.roi_src, levels[level]) for tile, roi in rois.items()}


def _sizes(file: Any, region: Any, shrink: int) -> int:
    rows, columns = file.block_shapes[0]
    spans = [
        range(part.start // shrink // size, -(-part.stop // shrink // size) if part.stop > part.start else 0)
        for part, size in zip(region, (rows, columns), strict=True)
    ]
    return sum(_size(file, row, column) for row in spans[0] for column in spans[1])


def _size(file: Any, row: int, column: int) -> int:
    """Bytes of one block as it lies in the file; 0 for one that is not there."""
    found = file.get_tag_item(f"BLOCK_SIZE_{column}_{row}", "TIFF", bidx=1)
    return int(found) if found else 0
