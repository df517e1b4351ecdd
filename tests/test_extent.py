"""Periods and boxes as typed, and tiles of a grid."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aefcli.errors import AefError, BadInput
from aefcli.extent import BBox, Period, Tile, tiles, to_ms

DAY = 86_400_000
days = st.dates(date(1000, 1, 1), date(9998, 12, 31))


def ms(year: int, month: int = 1, day: int = 1) -> int:
    return (date(year, month, day) - date(1970, 1, 1)).days * DAY


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("2023", ms(2023), ms(2024)),
        ("2024-02", ms(2024, 2), ms(2024, 3)),
        ("2023-02", ms(2023, 2), ms(2023, 3)),
        ("2023-12", ms(2023, 12), ms(2024)),
        ("2024-02-29", ms(2024, 2, 29), ms(2024, 3)),
        ("2023-01:2023-12", ms(2023), ms(2024)),
        ("2022:2023-06", ms(2022), ms(2023, 7)),
        ("2023-12-31:2024", ms(2023, 12, 31), ms(2025)),
        (" 2023-01-05 : 2023-02-10 ", ms(2023, 1, 5), ms(2023, 2, 11)),
        ("1969-12", ms(1969, 12), 0),
    ],
)
def test_period_includes_both_ends_named(text: str, start: int, end: int) -> None:
    assert Period.parse(text) == Period(start, end)


@pytest.mark.parametrize(
    "text",
    ["", ":", "2023:", ":2023", "23", "2023-1", "2023-13", "2023-02-29", "2023-02-30", "2023/01", "0000",
     "2023:2024:2025", "2024:2023", "2023-02:2023-01", "2023-01-02:2023-01-01", "now", "2023-01-01T00:00", "２０２３x"],
)  # fmt: skip
def test_other_periods_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(BadInput) as caught:
        Period.parse(text)
    assert repr(text) in caught.value.what
    assert "\n" not in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("text", ["2023-00", "2023-00-05", "2023-01-00"])
def test_month_and_day_zero_are_refused(text: str) -> None:
    with pytest.raises(BadInput):
        Period.parse(text)


@given(st.tuples(days, days).map(sorted))
def test_period_of_two_dates(ends: list[date]) -> None:
    period = Period.parse(f"{ends[0]:%Y-%m-%d}:{ends[1]:%Y-%m-%d}".replace(" ", "0"))
    assert period.days == (ends[1] - ends[0]).days + 1
    assert period.dates()[0].date() == ends[0]
    assert period.dates()[1].date() == ends[1] + timedelta(days=1)
    assert Period.parse(str(period)) == period


@given(days)
def test_year_month_and_day_are_nested(when: date) -> None:
    text = when.isoformat()
    day, month, year = (Period.parse(text[:length]) for length in (10, 7, 4))
    assert year.start <= month.start <= day.start < day.end <= month.end <= year.end
    assert day.days == 1
    assert 28 <= month.days <= 31
    assert year.days in (365, 366)


@pytest.mark.parametrize(("start", "end"), [(5, 5), (5, 4)])
def test_empty_period_is_refused(start: int, end: int) -> None:
    with pytest.raises(BadInput):
        Period(start, end)


@given(st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.none()), st.integers(-720, 720))
def test_to_ms_is_utc(when: datetime, offset: int) -> None:
    from datetime import timezone

    assert to_ms(when) == to_ms(when.replace(tzinfo=UTC))
    elsewhere = when.replace(tzinfo=UTC).astimezone(timezone(timedelta(minutes=offset)))
    assert to_ms(elsewhere) == to_ms(when)
    assert datetime(1970, 1, 1) + timedelta(milliseconds=to_ms(when)) <= when


longitudes = st.floats(-180, 180, allow_nan=False)
latitudes = st.floats(-90, 90, allow_nan=False)


@given(longitudes, latitudes, longitudes, latitudes)
def test_box_is_taken_or_refused_by_the_rule(west: float, south: float, east: float, north: float) -> None:
    width = east - west if east > west else east - west + 360
    fits = north > south and (east > west or (east < west and width < 180))
    for text in (f"{west!r},{south!r},{east!r},{north!r}", f" {west!r} {south!r},  {east!r} {north!r} "):
        if fits:
            box = BBox.parse(text)
            assert (box.west, box.south, box.east, box.north) == (west, south, east, north)
        else:
            with pytest.raises(BadInput):
                BBox.parse(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "four numbers"),
        ("1,2,3", "four numbers"),
        ("1,2,3,4,5", "four numbers"),
        ("a,b,c,d", "four numbers"),
        ("1;2;3;4", "four numbers"),
        ("nan,1,2,3", "finite"),
        ("1,2,inf,4", "finite"),
        ("181,0,182,1", "globe"),
        ("0,-91,1,0", "globe"),
        ("0,80,1,91", "globe"),
        ("46,15,47,200", "globe"),
        ("500000,5100000,510000,5110000", "globe"),
        ("1,2,1,4", "west >= east"),
        ("10,0,5,1", "west >= east"),
        ("1,4,2,3", "south"),
        ("1,3,2,3", "south"),
    ],
)
def test_other_boxes_are_refused_in_one_line(text: str, says: str) -> None:
    with pytest.raises(AefError, match=says) as caught:
        BBox.parse(text)
    assert caught.value.code == 2
    assert "\n" not in str(caught.value)


def test_box_across_the_antimeridian() -> None:
    assert BBox.parse("179.5,-17,-179.5,-16").east == -179.5


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 50))
def test_tiles_cover_each_pixel_once(height: int, width: int, size: int) -> None:
    seen = np.zeros((height, width), int)
    made = list(tiles((height, width), size))
    for tile in made:
        assert max(tile.shape) <= size
        assert tile.top % size == tile.left % size == 0
        assert seen[tile.slices].shape == tile.shape
        seen[tile.slices] += 1
    assert (seen == 1).all()
    assert len(made) == math.ceil(height / size) * math.ceil(width / size)
    assert made == sorted(made, key=lambda tile: (tile.top, tile.left))


@given(st.integers(1, 90), st.integers(1, 30), st.integers(1, 30))
def test_slivers_at_the_far_edges_go_to_their_neighbours(extent: int, size: int, least: int) -> None:
    least = min(least, size)
    made = list(tiles((extent, 1), size, least))
    assert [tile.top for tile in made] == [0, *(tile.bottom for tile in made[:-1])]
    assert made[-1].bottom == extent
    assert all(tile.shape[0] == size for tile in made[:-1])
    assert extent < least or least <= made[-1].shape[0] < size + least


def test_tile_of_nothing() -> None:
    assert list(tiles((0, 5), 4)) == []
    assert Tile(1, 2, 4, 8).shape == (3, 6)
