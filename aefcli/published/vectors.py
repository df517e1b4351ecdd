"""What an open field is, whoever wrote it: codes, values, vectors at points; and what all readers share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aefcli import field, ledger
from aefcli.errors import BadInput, Damaged
from aefcli.extent import Period, Tile, to_ms

if TYPE_CHECKING:
    from affine import Affine
    from odc.geo.geobox import GeoBox

KINDS = "an embedding field of ours, a Zarr store, an AEF GeoTIFF, or a TESSERA .npy with its _scales.npy beside it"
# What reading a broken file raises: GDAL's and the disk's, the codecs', and those of metadata of another shape.
BROKEN = (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError, EOFError)
POWER = "x = sign(q) * (|q| / 127.5)^2, then each vector divided by its length; -128 is no data"
SCALES = "x = code * the pixel's scale; a scale that is 0 or not finite is no data; lengths are left as they are"
FLOATS = "values as they stand; lengths are left as they are"
UNIT = "values as they stand, then each vector divided by its length; NaN is no data"

_DAY = 86_400_000  # ms
_MOST_DIMENSIONS = 4096
_MOST_TIMES = 10_000
_LARGEST_BLOCK = 2 << 30  # bytes that are decoded as one: the mosaics' largest are half of it
_INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")  # as aef export writes them
_YEAR = re.compile(r"(?<![0-9A-Za-z])(?:19|20)\d\d(?![0-9A-Za-z])")

Stored = tuple[np.ndarray, np.ndarray | None]
Decode = Callable[[np.ndarray, np.ndarray | None], np.ndarray]


@dataclass(frozen=True, eq=False)
class Vectors:
    """An open field.

    name      what a table calls it
    periods   the valid periods, by time index
    grid      its pixels; the rows run south to north where the affine says so
    attrs     what the file says of itself
    decoding  how codes become values
    block     rows and columns that are stored together
    notes     what a reader of its scores or maps should know
    """

    path: Path
    name: str
    periods: tuple[Period, ...]
    dimensions: int
    grid: GeoBox
    attrs: Mapping[str, Any]
    decoding: str
    block: tuple[int, int]
    read: Callable[[Tile, int], Stored]
    decode: Decode
    notes: tuple[str, ...] = ()

    def stored(self, tile: Tile, time_index: int = 0) -> Stored:
        """Codes (d, h, w), and scales (h, w) or (d, h, w) where there are any. Damaged where they do not read.

        `decode` makes float32 values of them, or of a part of them along the last axes, NaN where nodata.
        """
        try:
            return self.read(tile, time_index)
        except BROKEN as error:
            raise Damaged(
                f"{self.path} does not read at rows {tile.top}:{tile.bottom}, columns {tile.left}:{tile.right}: "
                f"{type(error).__name__} {error}",
                f"aef repair {self.path} mends it" if ledger.is_recorded(self.path) else "fetch or write it again",
            ) from error

    def codes(self, tile: Tile, time_index: int = 0) -> np.ndarray:
        """As stored, (d, h, w)."""
        return self.stored(tile, time_index)[0]

    def window(self, tile: Tile, time_index: int = 0) -> np.ndarray:
        """float32 (d, h, w); NaN where nodata."""
        return self.decode(*self.stored(tile, time_index))

    def sample(
        self, lon: np.ndarray, lat: np.ndarray, time_index: int | np.ndarray = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Vectors at points in any order: float32 (n, d), and bool (n,), inside the grid.

        lon, lat: (n,) in degrees (WGS 84). A point takes the pixel that it lies in; NaN where outside or nodata.
        time_index: of all, or of each (n,); -1 is none, and NaN. Reads the blocks that hold points, each once, one
        after the other.
        """
        rows, columns, inside = field.locate(self.grid, np.asarray(lon, float), np.asarray(lat, float))
        found = np.full((len(inside), self.dimensions), np.nan, dtype="float32")
        times = np.broadcast_to(time_index, inside.shape)
        for time in np.unique(times[times >= 0]):
            for points in _by_block(rows, columns, inside & (times == time), self.block):
                row, column = rows[points], columns[points]
                top, left = int(row.min()), int(column.min())
                codes, scales = self.stored(Tile(top, left, int(row.max()) + 1, int(column.max()) + 1), int(time))
                at = (..., row - top, column - left)
                found[points] = self.decode(codes[at], None if scales is None else scales[at]).T
        return found, inside

    def held(self, periods: Sequence[Period]) -> list[int]:
        """The time indices of some valid periods, in order; of all by default. BadInput where one is not held once."""
        for period in periods:
            if period not in self.periods:
                listed = ", ".join(map(str, self.periods[:12])) + (" ..." if len(self.periods) > 12 else "")
                what = f"{self.path} holds {listed}, not {period}"
                raise BadInput(what, f"--period {self.periods[0]}, or embed it")
        for period in self.periods:
            if (times := self.periods.count(period)) > 1:
                raise BadInput(f"{self.path} holds {period} {times} times", "write it again")
        return [index for index, period in enumerate(self.periods) if not periods or period in periods]

    def times_of(self, start: np.ndarray, end: np.ndarray, among: Iterable[int] | None = None) -> np.ndarray:
        """The time index of each valid period asked for, exact or in whole days of UTC, int64 (n,); -1 for none.

        start, end: int64 (n,), ms since 1970 UTC, half open. `among`: the time indices that are looked at.
        """
        found = np.full(len(start), -1)
        for index in range(len(self.periods)) if among is None else among:
            period = self.periods[index]
            exact = (start == period.start) & (end == period.end)
            days = (start // _DAY * _DAY == period.start) & (-(-end // _DAY) * _DAY == period.end)
            found[exact | days] = index
        return found


def _by_block(rows: np.ndarray, columns: np.ndarray, inside: np.ndarray, block: tuple[int, int]) -> list[np.ndarray]:
    """Indices of the points that are inside, block by block."""
    points = np.flatnonzero(inside)
    key = rows[points] // block[0] * (int(columns.max(initial=0)) // block[1] + 1) + columns[points] // block[1]
    order = np.argsort(key, kind="stable")
    return np.split(points[order], np.flatnonzero(np.diff(key[order])) + 1) if len(points) else []


# --- decoding -------------------------------------------------------------------------------------------------------


def power(codes: np.ndarray, scales: np.ndarray | None) -> np.ndarray:
    return field.dequantise(codes, axis=0)


def unit(values: np.ndarray, scales: np.ndarray | None) -> np.ndarray:
    return field.decode(values, axis=0, codes=False)


def scaled(codes: np.ndarray, scales: np.ndarray | None) -> np.ndarray:
    assert scales is not None
    there = np.isfinite(scales) & (scales != 0)
    return codes * np.where(there, scales, np.nan).astype("float32")


def floats(nodata: float | None) -> Decode:
    """Values as they are; a vector that holds `nodata` or what is not finite is NaN throughout."""

    def decode(values: np.ndarray, scales: np.ndarray | None) -> np.ndarray:
        there = np.isfinite(values) if nodata is None else np.isfinite(values) & (values != nodata)
        return np.where(there.all(axis=0), values, np.nan).astype("float32")

    return decode


# --- what is refused, and what is asked for -------------------------------------------------------------------------


def check_size(path: Path, dimensions: int, rows: int, columns: int, times: int = 1) -> None:
    if not (0 < dimensions <= _MOST_DIMENSIONS and 0 < times <= _MOST_TIMES and rows > 0 and columns > 0):
        raise BadInput(
            f"{path} says that it has {times} times, {dimensions} dimensions, {rows} x {columns} pixels",
            f"up to {_MOST_TIMES} times and {_MOST_DIMENSIONS} dimensions are read",
        )


def check_block(path: Path, size: int) -> None:
    """Refuse blocks of `size` bytes that nobody means: to read one pixel of them would fill the memory."""
    if size > _LARGEST_BLOCK:
        most = _LARGEST_BLOCK >> 30
        raise BadInput(f"{path} is stored in blocks of {size / 2**30:,.1f} GiB", f"up to {most} GiB are read")


def check_affine(path: Path, affine: Affine) -> None:
    if not np.isfinite(tuple(affine)).all() or affine.b or affine.d or affine.a <= 0 or affine.e == 0:
        raise BadInput(
            f"{path} is rotated, mirrored or has no place: its transform is {tuple(affine)[:6]}",
            "warp it to rows and columns along its axes",
        )


def period_of(path: Path, attrs: Mapping[str, Any], told: Period | None) -> Period:
    """The period of a file without a time axis: our tags, a year in a tag, its name or its folders, or the user's."""
    stated = [str(attrs.get(f"period_{side}", "")) for side in ("start", "end")]
    if all(_INSTANT.fullmatch(text) for text in stated):
        start, end = (to_ms(datetime.fromisoformat(text)) for text in stated)
        return Period(start, end)
    tag = next((str(value) for key, value in attrs.items() if key.lower() == "year"), "")
    for text in (tag, path.name, *(parent.name for parent in path.resolve().parents[:3])):
        years = set(_YEAR.findall(text.replace("_", " ")))
        if len(years) == 1:
            return Period.parse(years.pop())
    if told is None:
        raise BadInput(f"{path} does not say which period it describes", "--period 2024 says it")
    return told
