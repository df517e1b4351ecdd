"""Valid periods: calendar pieces of a period, the support period of each, and how much of that lies inside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise

import numpy as np

from aefcli import ledger
from aefcli.batch import DAY
from aefcli.cube import Cube
from aefcli.errors import unknown
from aefcli.extent import Period, to_ms
from aefcli.sample import in_period

PIECES = {"month": 1, "quarter": 3, "year": 12}  # months
_YEAR = 366 * DAY


def every(period: Period, piece: str) -> list[Period]:
    """The calendar months, quarters or years of a period, in order; the first and the last are cut where it ends."""
    if piece not in PIECES:
        raise unknown("--every", piece, PIECES)
    marks = [mark for mark in _marks(period, PIECES[piece]) if period.start < mark < period.end]
    edges = [period.start, *marks, period.end]
    return [Period(start, end) for start, end in pairwise(edges)]


def _marks(period: Period, months: int) -> Iterator[int]:
    """The starts of the calendar's pieces around a period, in ms."""
    first, last = (date.year for date in period.dates())
    for year in range(first, last + 1):
        for month in range(1, 13, months):
            yield to_ms(datetime(year, month, 1, tzinfo=UTC))


def support_of(cube: Period, valid: Period) -> Period:
    """The support period of a valid one: the year of the cube, counted from its start, that holds it.

    One that lies across two takes the year that starts with it, one outside the cube the nearest; at the cube's end it
    is the last whole year. A cube of at most a year has one; a valid period of more takes all the years it touches.
    """
    first, last = ((instant - cube.start) // _YEAR for instant in (valid.start, valid.end - 1))
    if valid.end - valid.start <= _YEAR < cube.end - cube.start:
        start = cube.start + first * _YEAR if first == last else valid.start
        start = min(max(start, cube.start), cube.end - _YEAR)
        return Period(start, start + _YEAR)
    most = max(1, -(-(cube.end - cube.start) // _YEAR)) - 1
    first, last = (min(max(year, 0), most) for year in (first, last))
    return Period(cube.start + first * _YEAR, min(cube.start + (last + 1) * _YEAR, cube.end))


def inside(cube: Cube, names: Sequence[str], valid: Period) -> tuple[int, int]:
    """Frames of the cube within a valid period, and those of its support, over some sources."""
    support = support_of(cube.period, valid)
    return _count(cube, names, valid), _count(cube, names, support)


def _count(cube: Cube, names: Sequence[str], period: Period) -> int:
    return sum(len(in_period(cube.sources[name], period)) for name in names)


def keys_of(cube: Cube, names: Sequence[str]) -> tuple[str, ...]:
    """What a field that reads some sources of a cube knows it by; then what earlier versions knew it by.

    A hash of what was asked for, without the period, as `print_of` tells the frames, and without what was attached to
    the cube and is not read.
    """
    asked = {key: value for key, value in cube.attrs.get("aef:request", {}).items() if key != "period"}
    if not asked:
        return (cube.key,)
    attached = {name: about for name, about in asked.get("attached", {}).items() if name in names}
    read = {key: value for key, value in asked.items() if key != "attached"}
    return ledger.digest({**read, **({"attached": attached} if attached else {})}), ledger.digest(asked)


def print_of(cube: Cube, names: Sequence[str], valid: Period) -> str:
    """A hash of what is read for a valid period: its support and the frames in it, and what its archive did not give.

    Where a cube has grown it tells the periods that stay as they are from those to be computed again.
    """
    support = support_of(cube.period, valid)
    return ledger.digest([[support.start, support.end], *read_for(cube, names, valid)])[:16]


def read_for(cube: Cube, names: Sequence[str], valid: Period) -> list[object]:
    """What is read for a valid period, as plain JSON: the frames of its support, and what its archive did not give."""
    support = support_of(cube.period, valid)
    held: list[object] = [*cube.attrs.get("aef:missing", ())]
    for name in names:
        source = cube.sources[name]
        frames = in_period(source, support)
        parts = (source.times, source.delivered, source.scale, source.offset)
        held.append([name, *(np.ascontiguousarray(part[frames]).tolist() for part in parts)])
    return held
