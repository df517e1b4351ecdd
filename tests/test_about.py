"""What a cube holds, against numpy by hand: shares, months, gaps, sizes; and what `aef info` prints of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from conftest import Aef
from toys import YEAR, made_up_cube

from aefcli.cube import Cube, open_cube, write_cube
from aefcli.cube import about as about_module
from aefcli.cube.about import CLEAR_LOOK, GAP_DAYS, about, clear_shares
from aefcli.extent import Period
from aefcli.sources import SOURCES

START = np.datetime64("2023-01-01", "ms")


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> Cube:
    return made_up_cube(tmp_path_factory.mktemp("about") / "cube.zarr")


def dataset(name: str, days: list[float], shares: list[float], side: int = 10, gsd: int = 10) -> xr.Dataset:
    """Frames `days` after the new year of 2023, of which the first rows are clear: shares in tenths."""
    import rioxarray  # noqa: F401 - adds .rio

    y, x = 5_000_000 - gsd * (np.arange(side) + 0.5), 500_000 + gsd * (np.arange(side) + 0.5)
    shape = (len(days), side, side)
    weight = np.zeros(shape, "uint8")
    for frame, share in enumerate(shares):
        weight[frame, : round(share * side)] = 1
    variables = {
        band.name: (("time", "y", "x"), np.full(shape, 11, SOURCES[name].dtype)) for band in SOURCES[name].bands
    }
    times = START + (np.array(days) * 86_400_000).astype("timedelta64[ms]")
    coords = {"time": times, "y": y, "x": x}
    return xr.Dataset({**variables, "weight": (("time", "y", "x"), weight)}, coords).rio.write_crs("EPSG:32633")


def test_grid_and_size(cube: Cube) -> None:
    found = about(cube)
    grid = found.grid
    assert (grid.crs, grid.name, grid.gsd) == ("EPSG:32633", "WGS 84 / UTM zone 33N", 10)
    assert (grid.rows, grid.columns, grid.corner) == (96, 96, (500_000, 5_000_000))
    assert grid.area_km2 == pytest.approx(0.96**2)
    west, south, east, north = grid.bbox
    assert west == pytest.approx(15, abs=1e-6)  # the zone's middle
    # A degree of latitude is 111.15 km here, one of longitude 78.6 km.
    assert (north - south) * 111.15 == pytest.approx(0.96, rel=0.01)
    assert (east - west) * 78.6 == pytest.approx(0.96, rel=0.01)
    files = [path for path in cube.path.rglob("*") if path.is_file()]
    assert found.stored == sum(path.stat().st_size for path in files)
    optical = [path for path in files if path.relative_to(cube.path).parts[0] == "sentinel-2"]
    assert found.sources["sentinel-2"].stored == sum(path.stat().st_size for path in optical)
    assert found.sources["sentinel-2"].decoded == 30 * 96 * 96 * (5 * 2 + 2)  # five bands of uint16, scl and weight
    assert found.sources["sentinel-1"].decoded == 15 * 96 * 96 * (2 * 4 + 1)
    assert found.decoded == sum(source.decoded for source in found.sources.values())


def test_frames_shares_and_months(cube: Cube) -> None:
    optical = about(cube).sources["sentinel-2"]
    days = np.datetime64("2023-01-05") + np.arange(0, 355, 12)
    assert optical.clear == pytest.approx(1 - 144 / 9216, abs=1e-12)
    assert optical.shares == pytest.approx([1 - 144 / 9216] * 30)
    assert optical.span == ("2023-01-05T00:00:00Z", "2023-12-19T00:00:00Z")
    by_hand = {f"2023-{month:02d}": sum(str(day)[5:7] == f"{month:02d}" for day in days) for month in range(1, 13)}
    assert optical.months == by_hand
    assert list(optical.months) == sorted(by_hand)
    assert sum(optical.months.values()) == len(optical.times) == 30
    assert optical.longest == 13  # from 19 December to the end of the year
    assert optical.gaps == ()
    assert optical.bands == ("B02", "B03", "B04", "B08", "B11")
    assert optical.offsets == {"0": 30}
    assert about(cube).sources["sentinel-1"].offsets is None
    assert about(cube).sources["sentinel-1"].longest == 25  # from 7 December


@pytest.mark.parametrize("block", [1, 3 * 32 * 128 * 128])
def test_shares_do_not_depend_on_blocks_or_workers(block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight of noise in several chunks of time and space, against numpy's mean."""
    import zarr

    noise = (np.random.default_rng(0).random((40, 150, 300)) < np.linspace(0, 1, 40)[:, None, None]).astype("uint8")
    array = zarr.create_array(tmp_path / "w.zarr", shape=noise.shape, chunks=(32, 128, 128), dtype="uint8")
    array[...] = noise
    source = made_up_cube(tmp_path / "cube.zarr", side=48).sources["sentinel-2"]
    monkeypatch.setattr(about_module, "_BLOCK", block)
    for weight, workers in ((array, 1), (array, 3), (noise, 2)):
        shares = clear_shares(replace(source, arrays={"weight": weight}), workers)
        np.testing.assert_allclose(shares, noise.mean(axis=(1, 2)), rtol=1e-12)


def test_gaps_lie_between_clear_looks_and_the_ends_of_the_period(tmp_path: Path) -> None:
    days, shares = [40.5, 60, 80, 100, 131, 200, 300, 340], [0.1, 0.0, 0.0, 0.5, 1, 1, 0.9, 1]
    path = write_cube(tmp_path / "c.zarr", {"sentinel-2": dataset("sentinel-2", days, shares)}, YEAR)
    found = about(open_cube(path)).sources["sentinel-2"]
    assert (CLEAR_LOOK, GAP_DAYS) == (0.1, 31)
    assert found.shares == pytest.approx(shares)
    starts_and_days = [((gap.start - YEAR.start) / 86_400_000, gap.days) for gap in found.gaps]
    # The frame of a tenth is a look, those of nothing are none; from 100 to 131 are 31 days, no gap yet.
    assert starts_and_days == [(0, 40.5), (40.5, 59.5), (131, 69), (200, 100), (300, 40)]
    assert found.longest == 100
    assert found.as_dict()["gaps"][0] == {"start": "2023-01-01T00:00:00Z", "end": "2023-02-10T12:00:00Z", "days": 40.5}


def test_a_cube_never_seen_clearly_is_one_gap(tmp_path: Path) -> None:
    path = write_cube(tmp_path / "c.zarr", {"sentinel-2": dataset("sentinel-2", [10, 50], [0, 0])}, YEAR)
    found = about(open_cube(path)).sources["sentinel-2"]
    assert found.gaps == (YEAR,)
    assert (found.clear, found.longest) == (0, 365)


def test_static_sources_coarser_cells_offsets_and_frames_outside(tmp_path: Path) -> None:
    optical = dataset("sentinel-2", [5, 15, 25, 40], [1, 1, 1, 1], side=30)
    names = [band.name for band in SOURCES["sentinel-2"].bands]
    optical["offset"] = (("time", "band"), np.repeat([[-0.1], [0.0], [-0.1], [-0.1]], 5, axis=1))
    optical = optical.assign_coords(band=np.array(names, dtype=object))
    height = dataset("glo-30", [-700], [0.5], side=10, gsd=30)
    classes = dataset("nlcd", [-200, 181], [1, 1], side=10, gsd=30)
    when = Period.parse("2023-01")
    path = write_cube(tmp_path / "c.zarr", {"sentinel-2": optical, "glo-30": height, "nlcd": classes}, when)
    found = about(open_cube(path))
    assert found.sources["sentinel-2"].offsets == {"-0.1": 3, "0": 1}
    assert found.sources["sentinel-2"].months == {"2023-01": 3}  # the fourth lies in February
    height_found = found.sources["glo-30"]
    assert (height_found.static, height_found.longest, height_found.gaps) == (True, None, ())
    assert (height_found.cell, height_found.clear, height_found.months) == (30, 0.5, {"2023-01": 0})
    assert len(found.sources["nlcd"].times) == 2
    assert json.loads(json.dumps(found.as_dict())) == found.as_dict()


def test_lineage_masked_assets_and_points_are_told(tmp_path: Path) -> None:
    """Written into the store by hand, as fetch and attach leave them."""
    import zarr

    cube = made_up_cube(tmp_path / "cube.zarr", side=48)
    root = zarr.open_group(cube.path, mode="r+", use_consolidated=False)
    root["sentinel-2/platform"][:] = np.array(["sentinel-2a"] * 20 + ["sentinel-2b"] * 10, dtype=object)
    root["sentinel-2/items"][:] = np.array([f"S2_{frame},S2_{frame}_south" for frame in range(30)], dtype=object)
    root["sentinel-1/orbit"][:] = np.array(["ascending"] * 6 + ["descending"] * 9, dtype=object)
    root.create_group("text").create_array("vector", shape=(7, 384), dtype="float32")
    root.attrs.update({"aef:missing": ["S2_3_south/red", "LC08_1/qa_pixel"], "aef:points": ["text"]})
    attrs = {**cube.attrs, **dict(root.attrs)}
    zarr.consolidate_metadata(cube.path)
    found = about(replace(cube, attrs=attrs))
    assert found.sources["sentinel-2"].platforms == {"sentinel-2a": 20, "sentinel-2b": 10}
    assert found.sources["sentinel-2"].masked == ("S2_3_south/red",)
    assert found.sources["sentinel-1"].masked == ()
    assert found.sources["sentinel-1"].orbits == {"ascending": 6, "descending": 9}
    assert found.points == {"text": 7}


def test_info_as_json_has_every_figure(aef: Aef, tmp_path: Path) -> None:
    cube = made_up_cube(tmp_path / "cube.zarr", side=48)
    code, out, err = aef("info", "cube.zarr", "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert (document["command"], document["status"], document["outputs"]) == ("info", "ok", [])
    assert {"path", "format", "key", "grid", "period", "bytes", "request", "sources", "points"} <= set(document)
    assert document["key"] == cube.key
    assert document["period"] == {"start": "2023-01-01T00:00:00Z", "end": "2024-01-01T00:00:00Z", "days": 365}
    assert set(document["grid"]) == {"crs", "name", "gsd", "rows", "columns", "corner", "bbox", "area_km2"}
    optical = document["sources"]["sentinel-2"]
    assert {
        "frames",
        "first",
        "last",
        "static",
        "bands",
        "cell_m",
        "clear",
        "months",
        "longest_gap_days",
        "gaps",
    } <= set(optical)
    assert {"platforms", "orbits", "offsets", "masked", "bytes", "per_frame"} <= set(optical)
    assert optical["frames"] == len(optical["per_frame"]) == 30
    assert optical["per_frame"][1] == {"time": "2023-01-17T00:00:00Z", "clear": round(1 - 144 / 48**2, 6)}


def test_info_prints_a_row_per_source_and_the_gaps(aef: Aef, tmp_path: Path) -> None:
    days, shares = [10, 150, 160], [1, 0.5, 0]
    write_cube(tmp_path / "c.zarr", {"sentinel-2": dataset("sentinel-2", days, shares)}, YEAR)
    code, out, err = aef("info", "c.zarr")
    assert (code, err) == (0, "")
    (row,) = [line for line in out.splitlines() if line.startswith("│ sentinel-2")]
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells[:7] == ["sentinel-2", "3", "2023-01-11", "2023-06-10", "10 m", "50.0%", "215 days"]
    assert "sentinel-2: no clear look 2023-01-11:2023-05-30, 140 days" in out
    assert "sentinel-2 2023   1   0   0   0   1   1   0   0   0   0   0   0" in out
    assert "10 rows x 10 columns of 10 m, 0.01 km2, WGS 84 / UTM zone 33N (EPSG:32633)" in out
    assert max(map(len, out.splitlines())) <= 120


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("info", "none.zarr"), "there is no cube none.zarr"),
        (("info", "cube.zarr", "--frames", "3"), "--frames 3"),
        (("info", "empty"), "no datacube"),
    ],
)
def test_info_refuses_in_one_line(words: tuple[str, ...], says: str, aef: Aef, tmp_path: Path) -> None:
    import zarr

    made_up_cube(tmp_path / "cube.zarr", side=48)
    zarr.create_group(tmp_path / "empty")
    code, out, err = aef(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err


def test_info_of_a_recipe_named_like_nothing_on_disk_still_counts(aef: Aef) -> None:
    code, out, _ = aef("info", "nano", "--json")
    assert code == 0
    assert "parameters" in json.loads(out)
