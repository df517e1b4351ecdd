"""Reading windows of a cube's arrays straight from their chunk files.

zarr-python hands every chunk from thread to thread three times, which costs as much as decoding it: a patch through a
year took about twice tensorstore's time, this takes about as long (`python -m bench.reader`). A chunk that is not there
is damage here, not nodata: cubes hold those of nodata too. So is one that claims another size than the array's chunks
have, before memory is taken for it.

Reads the one layout that `write` gives cubes; arrays of another are left to Zarr.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numcodecs import blosc
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec
from zarr.core.chunk_key_encodings import DefaultChunkKeyEncoding
from zarr.core.metadata.v3 import RegularChunkGrid
from zarr.storage import LocalStore

from aefcli.errors import Damaged
from aefcli.extent import Tile

_CHECKSUM = 4  # bytes at the end of a chunk file
_HEADER = 16  # bytes that Blosc begins with; the size of what it holds is in bytes 4 to 8


class CubeStore(LocalStore):
    """A cube on disk, for Zarr: a chunk of pixels, instants or names of bands that is not there raises Damaged."""

    async def get(self, key: str, *args: Any, **kwargs: Any) -> Any:
        found = await super().get(key, *args, **kwargs)
        if found is None and re.search(r"/c/\d+/\d+/\d+$|/(time|band)/c/0$", key):
            raise _damaged(self.root, self.root / key, "is missing")
        return found


@dataclass(frozen=True)
class Chunks:
    """The chunk files of one array (t, y, x)."""

    store: Path
    folder: Path
    shape: tuple[int, ...]
    size: tuple[int, int, int]  # of a chunk: frames, rows, columns
    dtype: np.dtype

    @classmethod
    def of(cls, array: zarr.Array) -> Chunks | None:
        """None where the array is not in the layout of cubes, or not on disk."""
        store, metadata = array.store_path.store, array.metadata
        if not (
            isinstance(store, LocalStore)
            and metadata.zarr_format == 3
            and tuple(map(type, metadata.codecs)) == (BytesCodec, BloscCodec, Crc32cCodec)
            and isinstance(metadata.chunk_grid, RegularChunkGrid)
            and metadata.chunk_key_encoding == DefaultChunkKeyEncoding(separator="/")
            and array.dtype.isnative
            and len(array.shape) == 3
        ):
            return None
        frames, rows, columns = metadata.chunk_grid.chunk_shape
        return cls(store.root, store.root / array.path, array.shape, (frames, rows, columns), array.dtype)

    def chunk(self, index: tuple[int, int, int]) -> np.ndarray:
        """One chunk, decoded. Raises Damaged."""
        path = self.folder.joinpath("c", *map(str, index))
        try:
            raw = np.frombuffer(path.read_bytes(), "uint8")
        except FileNotFoundError:
            raise _damaged(self.store, path, "is missing") from None
        packed, checksum = raw[:-_CHECKSUM], raw[-_CHECKSUM:]
        out = np.empty(self.size, self.dtype)
        if len(packed) < _HEADER or google_crc32c.value(packed) != int.from_bytes(checksum, "little"):
            raise _damaged(self.store, path, "is damaged")
        if int.from_bytes(packed[4:8], "little") != out.nbytes:
            raise _damaged(self.store, path, "is of another size")
        blosc.decompress(packed, out)
        return out

    def copy(self, index: tuple[int, int, int], frames: np.ndarray, tile: Tile, out: np.ndarray) -> None:
        """What one chunk holds of some frames over a tile, into its place in `out` (t h w)."""
        depth, height, width = self.size
        late, down, across = index
        rows = slice(max(tile.top, down * height), min(tile.bottom, (down + 1) * height))
        columns = slice(max(tile.left, across * width), min(tile.right, (across + 1) * width))
        there = np.flatnonzero(frames // depth == late)
        found = self.chunk(index)[:, _moved(rows, -down * height), _moved(columns, -across * width)]
        place = out[:, _moved(rows, -tile.top), _moved(columns, -tile.left)]
        place[_plain(there)] = found[_plain(frames[there] - late * depth)]


def read(arrays: Sequence[Chunks], frames: np.ndarray, tile: Tile, outs: Sequence[np.ndarray]) -> None:
    """Some frames of a tile from each array into its `out` (t h w), by threads. Raises Damaged."""
    for array in arrays:
        assert tile.bottom <= array.shape[1]
        assert tile.right <= array.shape[2]
        assert not len(frames) or 0 <= frames.min() <= frames.max() < array.shape[0]
    jobs = [
        (array, index, out)
        for array, out in zip(arrays, outs, strict=True)
        for index in itertools.product(
            np.unique(frames // array.size[0]).tolist(),
            range(tile.top // array.size[1], -(-tile.bottom // array.size[1])),
            range(tile.left // array.size[2], -(-tile.right // array.size[2])),
        )
    ]
    # Threads of this call alone: those of a pool would be gone in a process that was forked.
    with ThreadPoolExecutor(max(1, min(8, os.cpu_count() or 1, len(jobs)))) as pool:
        for _ in pool.map(lambda job: job[0].copy(job[1], frames, tile, job[2]), jobs):
            pass


def _plain(numbers: np.ndarray) -> slice | np.ndarray:
    """A run of numbers as a slice, by which NumPy copies nothing on the way."""
    first, count = int(numbers[0]), len(numbers)
    return slice(first, first + count) if (numbers == np.arange(first, first + count)).all() else numbers


def _moved(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)


def _damaged(store: Path, path: Path, what: str) -> Damaged:
    return Damaged(f"{path} {what}", f"aef verify {store} finds all such files, aef repair {store} fetches them again")
