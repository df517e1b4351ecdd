"""When and where: periods of time, boxes of the globe, tiles of a grid.

Owns `Period` (half open, UTC), the reading of both from text, and `Tile`. Knows nothing of files or sensors,
and loads neither numpy nor xarray, so that a wrong flag is refused before anything heavy starts.
"""

from __future__ import annotations

import calendar
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from aefcli.errors import BadInput

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DATE = re.compile(r"(\d{4})(?:-(\d{2})(?:-(\d{2}))?)?")
_PERIOD_HINT = "use 2023, 2023-08, 2023-01:2023-12 (both ends included) or 2023-01-05:2023-02-10"


@dataclass(frozen=True, order=True)
class Period:
    """The instants t with start <= t < end, in milliseconds since 1970 UTC."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if self.end <= self.start:
            raise BadInput(f"the period {self} is empty", "its end must lie after its start")

    @classmethod
    def parse(cls, text: str) -> Period:
        """Read `2023`, `2023-08`, `2023-01:2023-12` or full dates; both ends named are included."""
        first, colon, last = text.strip().partition(":")
        begin, end = _unit(first, text), _unit(last if colon else first, text)
        if end.end <= begin.start:
            raise BadInput(f"the period {text!r} ends before it begins", "put the earlier date first")
        return cls(begin.start, end.end)

    @property
    def days(self) -> float:
        return (self.end - self.start) / 86_400_000

    def dates(self) -> tuple[datetime, datetime]:
        return _EPOCH + timedelta(milliseconds=self.start), _EPOCH + timedelta(milliseconds=self.end)

    def __str__(self) -> str:
        start, end = (_EPOCH + timedelta(milliseconds=ms) for ms in (self.start, self.end - 1))
        return f"{start:%Y-%m-%d}:{end:%Y-%m-%d}"


def to_ms(when: datetime) -> int:
    """Milliseconds since 1970 UTC; a naive datetime is taken as UTC."""
    aware = when.replace(tzinfo=UTC) if when.tzinfo is None else when
    return (aware - _EPOCH) // timedelta(milliseconds=1)


def _unit(text: str, whole: str) -> Period:
    """One year, month or day as a period; `whole` is what the user typed, for the message."""
    match = _DATE.fullmatch(text.strip())
    if not match:
        raise BadInput(f"cannot read the period {whole!r}", _PERIOD_HINT)
    year, month, day = (int(part) if part else None for part in match.groups())
    try:
        if year == 9999:
            raise ValueError("its end is out of range")
        start = datetime(year or 0, 1 if month is None else month, 1 if day is None else day, tzinfo=UTC)
    except ValueError as error:
        raise BadInput(f"no such date in the period {whole!r}: {error}", _PERIOD_HINT) from error
    if day:
        length = 1
    elif month:
        length = calendar.monthrange(start.year, start.month)[1]
    else:
        length = 366 if calendar.isleap(start.year) else 365
    return Period(to_ms(start), to_ms(start) + length * 86_400_000)


@dataclass(frozen=True)
class BBox:
    """West, south, east, north in degrees (WGS 84). West above east means: across the antimeridian."""

    west: float
    south: float
    east: float
    north: float

    @classmethod
    def parse(cls, text: str) -> BBox:
        parts = [part for part in re.split(r"[,\s]+", text.strip()) if part]
        try:
            west, south, east, north = (float(part) for part in parts)
        except ValueError as error:
            raise BadInput(f"--bbox {text!r} is not four numbers", "give W,S,E,N in degrees") from error
        return cls(west, south, east, north)

    def __post_init__(self) -> None:
        values = (self.west, self.south, self.east, self.north)
        if not all(math.isfinite(value) for value in values):
            raise BadInput(f"--bbox {self} holds a number that is not finite", "give W,S,E,N in degrees")
        if not (-180 <= self.west <= 180 and -180 <= self.east <= 180 and -90 <= self.south <= 90 >= self.north):
            raise BadInput(
                f"--bbox {self} lies outside the globe", "longitudes -180..180 and latitudes -90..90, W,S,E,N"
            )
        if self.north <= self.south:
            raise BadInput(f"--bbox {self} has north <= south", "give W,S,E,N in degrees")
        if self.west == self.east or (self.west > self.east and self.east - self.west + 360 >= 180):
            raise BadInput(f"--bbox {self} has west >= east", "give W,S,E,N in degrees")

    def wider(self, margin: float) -> BBox:
        """The box with a margin in degrees on all sides, within the globe."""
        west, east = self.west - margin, self.east + margin
        west, east = west + 360 * (west < -180), east - 360 * (east > 180)
        return BBox(west, max(self.south - margin, -90.0), east, min(self.north + margin, 90.0)) if margin else self

    def __str__(self) -> str:
        return ",".join(f"{value:g}" for value in (self.west, self.south, self.east, self.north))


@dataclass(frozen=True)
class Tile:
    """A window of a grid in whole pixels: rows [top, bottom), columns [left, right). Written once."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def shape(self) -> tuple[int, int]:
        return self.bottom - self.top, self.right - self.left


def tiles(shape: tuple[int, int], size: int, least: int = 1) -> Iterator[Tile]:
    """Cut a grid of `shape` (rows, columns) into tiles of `size` px, row by row.

    Those at the far edges are smaller; what would be less than `least` px there is left to its neighbour.
    """
    rows, columns = (_cuts(extent, size, least) for extent in shape)
    for top, bottom in rows:
        for left, right in columns:
            yield Tile(top, left, bottom, right)


def _cuts(extent: int, size: int, least: int) -> list[tuple[int, int]]:
    starts = list(range(0, extent, size))
    if len(starts) > 1 and extent - starts[-1] < least:
        starts.pop()
    return list(zip(starts, [*starts[1:], extent], strict=False))
