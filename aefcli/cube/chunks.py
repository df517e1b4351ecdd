"""Reading windows of a cube's arrays straight from their chunk files.

zarr-python hands every chunk from thread to thread three times, which costs as much as decoding it: a patch through a
year took about twice tensorstore's time, this takes about as long (`python -m bench.reader`). A chunk that is not there
is damage here, not nodata: cubes hold those of nodata too. So is one that claims another size than the array's chunks
have, before memory is taken for it.

Reads the one layout that `write` gives cubes; arrays of another are left to Zarr.

The small arrays beside the pixels (instants, names of bands, lineage) are read by Zarr, once their files are seen to
claim no more than their metadata declare: a file of 33 KB can ask for 1 GiB.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import sys
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numcodecs import Blosc, blosc, zstd
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, VLenUTF8Codec, ZstdCodec
from zarr.core.chunk_key_encodings import DefaultChunkKeyEncoding
from zarr.core.metadata.v3 import RegularChunkGrid
from zarr.storage import LocalStore

from aefcli.errors import Damaged
from aefcli.extent import Tile

_CHECKSUM = 4  # bytes at the end of a chunk file
_HEADER = 16  # bytes that Blosc begins with; the size of what it holds is in bytes 4 to 8
_SHUFFLES = {"noshuffle": Blosc.NOSHUFFLE, "shuffle": Blosc.SHUFFLE, "bitshuffle": Blosc.BITSHUFFLE}
_MOST = 1 << 28  # bytes that one chunk may unpack to; ours hold 2 MiB at most, texts of lineage some more
_MOST_NUMBERS, _MOST_FILES = 1 << 26, 10_000  # of one small array: 170,000 texts in vectors of 384 numbers


class CubeStore(LocalStore):
    """A cube on disk, for Zarr: a chunk of pixels, instants or names of bands that is not there raises Damaged.

    So does a chunk of pixels that claims to hold more than any does.
    """

    async def get(self, key: str, *args: Any, **kwargs: Any) -> Any:
        found = await super().get(key, *args, **kwargs)
        pixels = re.search(r"(^|/)c/\d+/\d+/\d+$", key)
        if found is None and (pixels or re.search(r"(^|/)(time|band)/c/0$", key)):
            raise _damaged(self.root, self.root / key, "is missing")
        if pixels and found and int.from_bytes(found.to_bytes()[4:8], "little") > _MOST:
            raise _damaged(self.root, self.root / key, "is of another size")
        return found


def pixels(array: zarr.Array) -> zarr.Array:
    """An array (t, y, x), if all that it is packed by says how much it holds. Raises Damaged."""
    codecs = getattr(array.metadata, "codecs", ())  # none in Zarr 2
    if len(array.shape) != 3 or tuple(map(type, codecs))[:2] != (BytesCodec, BloscCodec):
        raise _declared(array, "is no array of pixels as cubes have them")
    if math.prod(array.chunks) * array.dtype.itemsize > _MOST:
        raise _declared(array, f"declares chunks of {' x '.join(map(str, array.chunks))}")
    return array


def small(array: zarr.Array) -> np.ndarray:
    """All of a small array: coordinates, lineage, a column of a table.

    Raises Damaged before memory is taken for one that is not small, or for a file of it that claims another size than
    its metadata declare.
    """
    size = math.prod(array.chunks)
    if len(array.shape) > 2 or max(math.prod(array.shape), size) > _MOST_NUMBERS:
        raise _declared(array, f"declares {' x '.join(map(str, array.shape))} numbers")
    if math.prod(counts := [-(-n // step) for n, step in zip(array.shape, array.chunks, strict=True)]) > _MOST_FILES:
        raise _declared(array, f"declares {math.prod(counts)} files")
    first, *rest = getattr(array.metadata, "codecs", (None,))
    texts = isinstance(first, VLenUTF8Codec)
    if not (texts or isinstance(first, BytesCodec)) or list(map(type, rest)) not in ([], [ZstdCodec]):
        raise _declared(array, "is packed in a way that cubes are not")
    for index in itertools.product(*map(range, counts)):
        path = _folder(array).joinpath("c", *map(str, index))
        if rest and path.exists():
            _check(_root(array), path, texts, size if texts else size * array.dtype.itemsize)
    return np.asarray(array[...])


def _check(store: Path, path: Path, texts: bool, declared: int) -> None:
    """Refuse a Zstandard file that does not hold so many texts, or so many bytes."""
    claimed = _claimed(path.read_bytes()) if path.stat().st_size <= _MOST else None
    if claimed is None or claimed > _MOST or not (texts or claimed == declared):
        raise _damaged(store, path, "is of another size")
    if texts:  # the codec takes memory for as many as their first bytes say
        try:
            count = int.from_bytes(zstd.decompress(path.read_bytes())[:4], "little")
        except RuntimeError:
            raise _damaged(store, path, "is damaged") from None
        if count != declared:
            raise _damaged(store, path, "is of another size")


def _claimed(raw: bytes) -> int | None:
    """Bytes that a Zstandard frame says it unpacks to (RFC 8878, 3.1.1.1); None where it does not say."""
    if len(raw) < 5 or raw[:4] != b"\x28\xb5\x2f\xfd":
        return None
    single, kind = raw[4] >> 5 & 1, raw[4] >> 6
    width = (single, 2, 4, 8)[kind]
    start = 5 + (1 - single) + (0, 1, 2, 4)[raw[4] & 3]
    return int.from_bytes(raw[start : start + width], "little") + 256 * (width == 2) if width else None


def _root(array: zarr.Array) -> Path:
    assert isinstance(array.store_path.store, LocalStore)
    return array.store_path.store.root


def _folder(array: zarr.Array) -> Path:
    return _root(array) / array.path


def _declared(array: zarr.Array, what: str) -> Damaged:
    return _damaged(_root(array), _folder(array) / "zarr.json", what)


@dataclass(frozen=True)
class Chunks:
    """The chunk files of one array (t, y, x)."""

    store: Path
    folder: Path
    shape: tuple[int, ...]
    size: tuple[int, int, int]  # of a chunk: frames, rows, columns
    dtype: np.dtype
    fill: float
    codec: Blosc

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
        size, packed, folder = (frames, rows, columns), metadata.codecs[1], store.root / array.path
        assert isinstance(packed, BloscCodec)
        codec = Blosc(packed.cname.value, packed.clevel, _SHUFFLES[packed.shuffle.value], packed.blocksize)
        return cls(store.root, folder, array.shape, size, array.dtype, array.fill_value, codec)

    def chunk(self, index: tuple[int, int, int]) -> np.ndarray:
        """One chunk, decoded. Raises Damaged."""
        path = self.folder.joinpath("c", *map(str, index))
        try:
            raw = np.frombuffer(path.read_bytes(), "uint8")
        except FileNotFoundError:
            raise _damaged(self.store, path, "is missing") from None
        packed, checksum = raw[:-_CHECKSUM], raw[-_CHECKSUM:]
        if len(packed) < _HEADER or google_crc32c.value(packed) != int.from_bytes(checksum, "little"):
            raise _damaged(self.store, path, "is damaged")
        if int.from_bytes(packed[4:8], "little") != math.prod(self.size) * self.dtype.itemsize:
            raise _damaged(self.store, path, "is of another size")
        out = np.empty(self.size, self.dtype)
        blosc.decompress(packed, out)
        return out

    def put(self, index: tuple[int, int, int], values: np.ndarray) -> Path:
        """Write one chunk, whose `values` may end where the array does; its file."""
        chunk = (
            np.full(self.size, self.fill, self.dtype) if values.shape != self.size else np.empty(self.size, self.dtype)
        )
        chunk[tuple(map(slice, values.shape))] = values
        packed = self.codec.encode(chunk)
        path = self.folder.joinpath("c", *map(str, index))
        aside = path.with_suffix(".part")  # a file that was there may be another cube's too
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as out:
            out.write(packed)
            out.write(google_crc32c.value(packed).to_bytes(_CHECKSUM, "little"))
            out.flush()
            if sys.platform == "linux":  # begins to write it out, for which the ledger's flush would wait at the end
                os.posix_fadvise(out.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        aside.replace(path)
        return path

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


def write(array: Chunks, when: slice, tile: Tile, values: np.ndarray, pool: Executor) -> list[Future[Path]]:
    """Have a pool write a region of whole chunks, which the array's end may cut: (t y x) values; the files."""
    region = (when, *tile.slices)
    assert all(part.start % size == 0 for part, size in zip(region, array.size, strict=True))
    counts = [range(part.start // size, -(-part.stop // size)) for part, size in zip(region, array.size, strict=True)]

    def part(index: Sequence[int]) -> np.ndarray:
        starts = [at * size - whole.start for at, size, whole in zip(index, array.size, region, strict=True)]
        return values[tuple(slice(start, start + size) for start, size in zip(starts, array.size, strict=True))]

    late, down, across = counts
    return [pool.submit(array.put, index, part(index)) for index in itertools.product(late, down, across)]


def _plain(numbers: np.ndarray) -> slice | np.ndarray:
    """A run of numbers as a slice, by which NumPy copies nothing on the way."""
    first, count = int(numbers[0]), len(numbers)
    return slice(first, first + count) if (numbers == np.arange(first, first + count)).all() else numbers


def _moved(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)


def _damaged(store: Path, path: Path, what: str) -> Damaged:
    return Damaged(
        f"{path} {what}", f"aef verify {store} finds all such files, aef repair {store} mends them or says how"
    )
