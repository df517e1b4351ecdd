"""What every candidate is asked for: the valid period of each label, and the inputs that may be read for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from aefcli.batch import DAY
from aefcli.cube import Cube, without
from aefcli.errors import BadInput
from aefcli.extent import Period
from aefcli.judge.fields import Field
from aefcli.probe import Labels


@dataclass(frozen=True, eq=False)
class Side:
    """What is asked of every label: a valid period, and the inputs that may be read. int64 (n, 2) each, ms."""

    asked: np.ndarray
    support: np.ndarray | None


def sides_of(labels: Labels, opened: Sequence[Field], chosen: Period | None) -> list[Side]:
    """One, or for change the one before and the one after; labels without a period take the only one, or `chosen`."""
    after = _spans(labels.support_start, labels.support_end)
    if labels.change:
        before = _asked(labels.before_start, labels.before_end, opened)
        then = _spans(labels.before_support_start, labels.before_support_end)
        return [Side(before, then), Side(_asked(labels.valid_start, labels.valid_end, opened), after)]
    if labels.valid_start is not None:
        return [Side(_asked(labels.valid_start, labels.valid_end, opened), after)]
    periods = {period for one in opened for period in one.vectors.periods}
    if len(periods) > 1 and chosen is None:
        raise BadInput(
            f"the labels name no valid period and the fields hold {len(periods)}",
            "choose one with --period, or give the labels valid_time_start_ms and valid_time_end_ms",
        )
    only = chosen or next(iter(periods))
    return [Side(np.tile(np.array([only.start, only.end], dtype="int64"), (len(labels), 1)), after)]


def _spans(start: np.ndarray | None, end: np.ndarray | None) -> np.ndarray | None:
    return None if start is None or end is None else np.stack([start, end], axis=1)


def supported(cube: Cube, support: np.ndarray | None, count: int) -> Iterator[tuple[Cube, np.ndarray]]:
    """The cube as the labels of each support period may read it, and which labels those are: bool (count,)."""
    if support is None:
        yield cube, np.ones(count, dtype=bool)
        return
    for period, here in distinct(support):
        gone = {n: (s.times < period.start) | (s.times >= period.end) for n, s in cube.sources.items()}
        yield without(cube, gone), here


def _asked(start: np.ndarray | None, end: np.ndarray | None, opened: Sequence[Field]) -> np.ndarray:
    """Periods of labels. One that no field holds is widened to whole days of UTC, in which fields are asked for."""
    assert start is not None
    assert end is not None
    asked = np.stack([start, end], axis=1)
    held = np.logical_or.reduce([same(asked, period) for one in opened for period in one.vectors.periods])
    days = np.stack([asked[:, 0] // DAY * DAY, -(-asked[:, 1] // DAY) * DAY], axis=1)
    return np.where(held[:, None], asked, days)


def same(asked: np.ndarray, period: Period) -> np.ndarray:
    return (asked == [period.start, period.end]).all(axis=1)


def holds(own: Period, period: Period) -> bool:
    return own.start <= period.start < period.end <= own.end


def distinct(asked: np.ndarray) -> Iterator[tuple[Period, np.ndarray]]:
    """The periods asked for, in order, and which labels ask for each: bool (n,)."""
    for start, end in np.unique(asked, axis=0):
        yield Period(int(start), int(end)), (asked == [start, end]).all(axis=1)
