"""Whether a cube fits on its disk at all: a bound that costs nothing, held before a catalog is asked.

A sample of what it holds says more (`estimate`), but has to read some of it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path

from aefcli import ledger
from aefcli.cube.write import CHUNK, Stack
from aefcli.errors import NoResources

_BLOCK = 4096  # bytes: what a file takes of most disks, however little it holds; some report far larger ones


def free(out: Path) -> int:
    """Bytes free on the disk that a path is on, or would be."""
    about = _disk(out)
    return about.f_bavail * about.f_frsize


def fewest(shape: tuple[int, int], factor: int) -> int:
    """The fewest chunk files of a cube of this shape (rows, columns): a frame's one band and its weight.

    `factor`: how many of its cells make one of the coarsest source that it may be of.
    """
    return 2 * _chunks(1, *(-(-count // factor) for count in shape))


def chunks_in(stacks: Iterable[Stack]) -> int:
    """The chunk files of a cube."""
    return sum(_chunks(len(stack.times), *stack.grid.shape) * len(stack.layers) for stack in stacks)


def _chunks(*shape: int) -> int:
    return math.prod(-(-count // size) for count, size in zip(shape, CHUNK, strict=True))


def check_room(out: Path, files: int) -> None:
    """Refuse a cube of so many chunk files, if its disk cannot have it. Raises NoResources.

    Every chunk is a file, also one of nodata, and takes a block; more is not certain, for cloud, sea and the edges of
    swaths pack into nothing. What was begun may have taken some of the disk already, so that it is held to all of it.
    """
    about, begun = _disk(out), out.exists() or ledger.records_of(out).exists()
    left, blocks = ("", about.f_blocks) if begun else (" free", about.f_bavail)
    room, need = blocks * about.f_frsize, files * min(about.f_frsize, _BLOCK)
    if need > room:
        raise NoResources(
            f"{out} would take {_size(need)} or more, and its disk has {_size(room)}{left}",
            "ask for a smaller box, a coarser --gsd or less --band, or name another disk with --out",
        )
    names = about.f_files if begun else about.f_favail
    if about.f_files and files > names:  # some disks do not count
        raise NoResources(
            f"{out} would be {files:,} files or more, and its disk has room for {names:,}{left and ' more'}",
            "ask for a smaller box, a coarser --gsd or less --band, or name another disk with --out",
        )


def _size(count: int) -> str:
    return f"{count / 1e9:,.3g} GB" if count >= 1e9 else f"{count / 1e6:,.3g} MB"


def _disk(out: Path) -> os.statvfs_result:
    return os.statvfs(next(folder for folder in (out, *out.absolute().parents) if folder.exists()))
