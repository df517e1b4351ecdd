"""Histograms of neighbouring dates hold the decided offsets to account."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from archives import KEYS, ORIGIN, toy_item, toy_request, write_tif

from aefcli.cube import Request, fetch, open_cube
from aefcli.cube.offsets import doubts
from aefcli.extent import BBox, Period

SIDE = 64
DATES = ("2022-01-10", "2022-01-15", "2022-01-20", "2022-01-27", "2022-02-01", "2022-02-06")
SEASON = Period.parse("2022-01-01:2022-02-28")


def archive(folder: Path, baselines: list[str], carries: list[bool]) -> Path:
    """The same ground on six dates; the numbers of those that carry it are 1,000 higher, whatever their items say."""
    rng = np.random.default_rng(0)
    ground = rng.integers(300, 3000, (SIDE, SIDE))
    items = []
    for date, baseline, higher in zip(DATES, baselines, carries, strict=True):
        item = toy_item(folder, date, 0)
        item["properties"] |= {"s2:processing_baseline": baseline, "s2:datatake_id": f"GS2A_{date}_N{baseline}"}
        (folder / item["id"]).mkdir(parents=True)
        for band in KEYS:
            noisy = ground + rng.integers(-50, 50, ground.shape) + 1000 * higher
            values = np.full(ground.shape, 4) if band == "scl" else noisy
            path = folder / item["id"] / f"{band}.tif"
            write_tif(path, values.astype("uint8" if band == "scl" else "uint16"), left=ORIGIN[0])
        items.append(item)
    (folder / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    return folder / "items.json"


def request(catalog: Path) -> Request:
    return toy_request(catalog, period=SEASON)


def test_the_offset_is_applied_once_on_both_sides_of_the_change(tmp_path: Path) -> None:
    """Baseline 04.00 came on 2022-01-25; one date before it was processed anew, one after it with the old one."""
    catalog = archive(tmp_path / "a", ["03.01", "05.00", "03.01", "04.00", "03.01", "04.00"], [0, 1, 0, 1, 0, 1])
    done = fetch(request(catalog), tmp_path / "c.zarr")
    source = open_cube(tmp_path / "c.zarr").sources["sentinel-2"]
    np.testing.assert_allclose(source.offset[:, 0], [0, -0.1, 0, -0.1, 0, -0.1])
    stored = np.asarray(source.arrays["B02"][:], dtype="float64")
    physical = stored * source.scale[:, 0, None, None] + source.offset[:, 0, None, None]
    levels = [
        np.percentile(frame[numbers > 0], [5, 25, 50, 75, 95]) for frame, numbers in zip(physical, stored, strict=True)
    ]
    np.testing.assert_allclose(levels, np.broadcast_to(levels[0], (6, 5)), atol=0.01)
    assert done.notes == ()


@pytest.mark.parametrize(
    ("baselines", "carries", "wrong", "says"),
    [
        (["03.01"] * 4 + ["04.00"] * 2, [0, 0, 0, 1, 1, 1], 3, "missed"),
        (["04.00"] * 6, [1, 1, 1, 1, 0, 1], 4, "not in the numbers"),
    ],
)
def test_an_item_that_lies_about_its_numbers_is_found(
    tmp_path: Path, baselines: list[str], carries: list[bool], wrong: int, says: str
) -> None:
    done = fetch(request(archive(tmp_path / "a", baselines, carries)), tmp_path / "c.zarr")
    (note,) = done.notes
    assert DATES[wrong] in note
    assert says in note


def test_real_dates_agree(real: Path, tmp_path: Path) -> None:
    """Ten real items, whose announced offset was removed: none is doubted, and all would be if it were applied."""
    box = BBox(15.00, 45.95, 15.40, 46.15)
    catalog = str(real / "earth-search-33T/catalog.json")
    done = fetch(Request(catalog, box, Period.parse("2023-08"), ("sentinel-2",), 60), tmp_path / "c.zarr")
    assert not any("as if its offset" in note for note in done.notes)
    cube = open_cube(tmp_path / "c.zarr")
    source = cube.sources["sentinel-2"]
    source.offset[2] = -0.1
    assert any("2023-08-15" in doubt for doubt in doubts(cube))
