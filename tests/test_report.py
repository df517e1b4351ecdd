"""Pictures of cubes and fields: what lies where, that they follow the data, and what is refused; what a field tells."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Aef
from PIL import Image
from test_about import dataset
from test_field_page import GRID, MONTHS, SPLIT, ground
from toys import YEAR, made_up_cube

from aefcli import report
from aefcli.cube import open_cube, write_cube
from aefcli.errors import BadInput
from aefcli.extent import Period, Tile
from aefcli.field import create, finish, quantise, write
from aefcli.published import open_vectors
from aefcli.report import cube as drawing
from aefcli.report import overview
from aefcli.report.thin import Thinned, painter_of, title


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def calendar_row(image: np.ndarray, row: int) -> np.ndarray:
    """The middle of a source's row, over the period's pixels, off the year's grid lines' ends."""
    return image[drawing._HEAD + drawing._ROW * row + 20, drawing._LEFT + 1 : drawing._WIDTH - drawing._RIGHT - 1]


def runs(marked: np.ndarray) -> int:
    """How many stretches of True."""
    return int(np.count_nonzero(np.diff(np.concatenate([[0], marked.astype(int)])) == 1))


def test_size_and_same_bytes(tmp_path: Path) -> None:
    cube = made_up_cube(tmp_path / "cube.zarr")
    out = report.picture(cube)
    assert out == tmp_path / "cube.png"
    height, width, _ = pixels(out).shape
    side = (1200 - 40 - 3 * 14) / 4  # eight quick-looks, four in a row: seven optical, one of radar
    assert (width, height) == (1200, np.ceil(74 + 2 * 46 + 52 + 3 * 17 + 2 * (side + 30) + 14))
    assert report.picture(cube, tmp_path / "new/again.png", workers=1).read_bytes() == out.read_bytes()


def test_other_data_gives_another_picture(tmp_path: Path) -> None:
    one, two = (made_up_cube(tmp_path / f"{seed}/cube.zarr", seed=seed) for seed in (0, 1))
    first, second = pixels(report.picture(one)), pixels(report.picture(two))
    assert first.shape == second.shape
    above = drawing._HEAD + 2 * drawing._ROW + drawing._AXIS
    assert np.array_equal(first[:above], second[:above])  # the same dates and shares
    assert (first[above + 60 :] != second[above + 60 :]).mean() > 0.05


def test_calendar_has_a_mark_per_frame_darker_where_clearer_and_shades_gaps(tmp_path: Path) -> None:
    days, shares = [20, 40, 60, 80, 250, 270, 330, 345], [1.0, 0.8, 0.6, 0.4, 0.3, 0.2, 0.9, 0.5]
    path = write_cube(tmp_path / "c.zarr", {"sentinel-2": dataset("sentinel-2", days, shares)}, YEAR)
    row = calendar_row(pixels(report.picture(open_cube(path))), 0)
    at = [round(day / 365 * (drawing._WIDTH - drawing._LEFT - drawing._RIGHT)) for day in days]
    brightness = {share: row[place - 1].sum() for place, share in zip(at, shares, strict=True)}
    assert [brightness[share] for share in sorted(shares, reverse=True)] == sorted(brightness.values())
    blue = row[:, 2] > row[:, 0] + 8  # the marks; the shade of gaps is red
    assert runs(blue) == len(days)
    red = row[:, 0] > row[:, 2] + 20
    assert red[at[3] + 20 : at[3] + 60].all()  # days 80 to 250 without a frame
    assert red[at[5] + 20 : at[6] - 20].any()
    assert not red[: at[3] - 5].any()


def test_frames_of_cloud_are_short_marks(tmp_path: Path) -> None:
    path = write_cube(tmp_path / "c.zarr", {"sentinel-2": dataset("sentinel-2", [50, 70], [0.0, 1.0])}, YEAR)
    image = pixels(report.picture(open_cube(path)))
    scale = (drawing._WIDTH - drawing._LEFT - drawing._RIGHT) / 365
    row = slice(drawing._HEAD, drawing._HEAD + drawing._ROW)
    cloud, clear = (image[row, drawing._LEFT + round(day * scale)] for day in (50, 70))
    grey = (np.abs(cloud - (212, 212, 212)).max(axis=1) < 3).sum()
    dark = (clear.sum(axis=1) < 250).sum()
    assert 12 <= grey <= 17  # 0.32 of 46 px
    assert 31 <= dark <= 35  # 0.72


def test_quick_looks_are_north_up_stretched_together_and_hatched_without_data(tmp_path: Path) -> None:
    """A bright north, a dark south, a west without data, and a second frame half as bright."""
    data = dataset("sentinel-2", [50, 250], [1, 1], side=40)
    for name in ("B02", "B03", "B04", "B08", "B11"):
        values = np.full((2, 40, 40), 1000, "uint16")
        values[:, :20] = 3000
        values[1] //= 2
        values[:, :, :10] = 0
        data[name] = (("time", "y", "x"), values)
    path = write_cube(tmp_path / "c.zarr", {"sentinel-2": data}, YEAR)
    image = pixels(report.picture(open_cube(path)))
    side = (1200 - 40 - 2 * 14) / 3
    top, first = (74 + 46 + 52 + 2 * 17 + 30), 20

    def at(panel: int, down: float, right: float) -> np.ndarray:
        y, x = round(top + side * down), round(first + panel * (side + 14) + side * right)
        return image[y - 8 : y + 8, x - 8 : x + 8]

    # Reflectances 0.3, 0.1, 0.15 and 0.05: the stretch runs from 0.05 to 0.3, the colours to the power of 1 / 1.4.
    for panel, down, value in ((0, 0.25, 1.0), (0, 0.75, 0.2), (1, 0.25, 0.4), (1, 0.75, 0.0)):
        assert np.abs(at(panel, down, 0.6) - 255 * value ** (1 / 1.4)).max() <= 2
    hatch = at(0, 0.25, 0.1)
    assert (hatch == 255).any()
    assert (hatch < 240).any()
    assert (hatch > 180).all()


def test_the_clearest_frames_are_drawn_spread_over_the_period(tmp_path: Path) -> None:
    from aefcli.cube.about import about

    days = list(range(0, 364, 4))
    shares = [0.9 if day % 52 == 24 else 0.3 for day in days]
    path = write_cube(tmp_path / "c.zarr", {"sentinel-2": dataset("sentinel-2", days, shares)}, YEAR)
    found = about(open_cube(path)).sources["sentinel-2"]
    chosen = drawing._spread(found, np.arange(len(days)), YEAR, 7)
    assert [days[frame] for frame in chosen] == [24 + 52 * part for part in range(7)]
    assert list(drawing._spread(found, np.array([3, 9]), YEAR, 7)) == [3, 9]
    assert list(drawing._spread(found, np.array([], dtype=int), YEAR, 7)) == []


def test_large_cubes_are_thinned_out(tmp_path: Path) -> None:
    data = dataset("sentinel-2", [50], [1], side=1100)
    source = open_cube(write_cube(tmp_path / "c.zarr", {"sentinel-2": data}, YEAR)).sources["sentinel-2"]
    ramp = np.arange(1100 * 1100, dtype="uint32").reshape(1, 1100, 1100)
    thin = drawing._every(ramp, np.array([0]))
    assert thin.shape == (1, 367, 367)  # every third
    np.testing.assert_array_equal(thin[0, 1, :3], ramp[0, 3, [0, 3, 6]])
    values, there = drawing._physical(source, ("B04", "B03", "B02"), np.array([0]))
    assert values.shape == (1, 367, 367, 3)
    np.testing.assert_allclose(values, 11e-4, rtol=1e-6)
    assert there.all()


def test_cubes_without_colours_radar_or_clear_frames_are_drawn(tmp_path: Path) -> None:
    """A calendar alone; static sources have a row and no marks."""
    for name, sources in {
        "height": {"glo-30": dataset("glo-30", [-300], [1])},
        "cloud": {"sentinel-2": dataset("sentinel-2", [5], [0])},
        "landsat": {"landsat": dataset("landsat", [5], [1], gsd=30), "nlcd": dataset("nlcd", [5], [1], gsd=30)},
    }.items():
        path = write_cube(tmp_path / f"{name}.zarr", sources, YEAR)
        image = pixels(report.picture(open_cube(path)))
        quick_look = name == "landsat"
        rows = len(sources)
        lines = {"height": 1, "cloud": 2, "landsat": 2}[name]
        side = (1200 - 40 - 2 * 14) / 3
        assert image.shape[0] == np.ceil(74 + 46 * rows + 52 + 17 * lines + quick_look * (side + 30) + 14)
    static = calendar_row(pixels(tmp_path / "height.png"), 0)
    assert (np.abs(static[50:300] - (8, 64, 122)).max(axis=1) < 3).all()


def test_the_real_cube_of_austria(real: Path, tmp_path: Path) -> None:
    from aefcli.cube import Request, fetch
    from aefcli.extent import BBox, Period

    catalog = real / "earth-search-33T" / "catalog.json"
    request = Request(str(catalog), BBox(15.00, 45.95, 15.40, 46.15), Period.parse("2023-08"), gsd=60)
    fetch(request, tmp_path / "cube.zarr")
    image = pixels(report.picture(open_cube(tmp_path / "cube.zarr")))
    side = (1200 - 40 - 4 * 14) / 5  # all five dates, beside each other
    rows, columns = open_cube(tmp_path / "cube.zarr").shape
    assert image.shape[0] == np.ceil(74 + 46 + 52 + 2 * 17 + side * rows / columns + 30 + 14)
    top = 74 + 46 + 52 + 2 * 17 + 30
    cloudy, clear = (
        image[top + 5 : -20, round(20 + panel * (side + 14)) + 40 : round(20 + panel * (side + 14) + side) - 3]
        for panel in (0, 1)
    )
    assert (cloudy.min(axis=-1) > 250).mean() > 0.4
    assert (clear.min(axis=-1) > 250).mean() < 0.05
    green = clear.reshape(-1, 3).mean(axis=0)
    assert green[1] > green[0]  # woods in August
    assert green[1] > green[2]


# ---------------------------------------------------------------- a field

ALIKE, UNLIKE = np.array([253, 231, 37]), np.array([72, 29, 111])  # of viridis from -0.1 to 1: 1, and 0
WEST, EAST = "15.0014,46.0517", "15.008,46.0517"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three months of `ground`: two kinds of it, one, and one beside nothing. Not to be changed."""
    path = tmp_path_factory.mktemp("field") / "months.zarr"
    attrs = {"aef:recipe": 'name = "toy"', "aef:model": {"run": "toy-001", "weights": "ab12"}, "aef:cube": "c.zarr"}
    inside = [(6, 11), (5, 11), (0, 11)]
    create(path, GRID, MONTHS, sources=["sentinel-2"], attrs=attrs, inside=inside, uncertainty=True)
    seen = np.arange(3, dtype="uint16")[:, None, None] * np.ones((3, 60, 80), "uint16")
    unsure = np.where(np.isnan(ground()[:, 0]), np.nan, np.float32(4.25))
    write(path, Tile(0, 0, 60, 80), quantise(ground(), 1), {"sentinel-2": seen}, uncertainty=unsure)
    finish(path)
    return path


def near(image: np.ndarray, colour: np.ndarray) -> np.ndarray:
    return (np.abs(image - colour).max(axis=-1) < 16).sum()


def test_similarity_is_drawn_for_every_period_on_one_scale(store: Path, tmp_path: Path, aef: Aef) -> None:
    code, out, err = aef("plot", str(store), "--at", WEST, "--out", "west.png")
    assert (code, out, err) == (0, "west.png\n", "")
    image = pixels(tmp_path / "west.png")
    square = 4 * 4  # of the picture's pixels for one of the field's
    expected = square * 60 * (SPLIT + 80 + SPLIT)  # alike: the west, all of it, the west again
    assert near(image, ALIKE) == pytest.approx(expected, rel=0.05)
    assert near(image, UNLIKE) == pytest.approx(square * 60 * (80 - SPLIT), rel=0.08)
    assert aef("plot", str(store), "--at", EAST, "--out", "east.png")[0] == 0
    image = pixels(tmp_path / "east.png")
    expected = square * 60 * (80 - SPLIT + 80)  # and a period without data there stays blank
    assert near(image, ALIKE) == pytest.approx(expected, rel=0.05)
    assert near(image, UNLIKE) == pytest.approx(square * 60 * SPLIT, rel=0.08)


def test_change_is_the_angle_between_two_periods(store: Path, tmp_path: Path, aef: Aef) -> None:
    code, out, err = aef("plot", str(store), "--change", "2023-01", "2023-02", "--json", "--out", "c.png")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"command": "plot", "status": "ok", "outputs": ["c.png"], "drawn": "embedding-field"}
    image = pixels(tmp_path / "c.png")
    area = (8 * 80, 8 * 60)  # of the panel, eight squares a pixel
    panel = image[30 : 30 + area[1], 88 : 88 + area[0]]
    split = 8 * SPLIT
    assert panel[10:-10, 10 : split - 10].mean() > 200  # a right angle: near the light end
    assert panel[10:-10, split + 10 : -10].mean() < 60
    vectors = open_vectors(store)
    thin = Thinned(vectors)
    report.changed(store, (MONTHS[1], MONTHS[2]), tmp_path / "d.png")
    image = pixels(tmp_path / "d.png")[30 : 30 + area[1], 88 : 88 + area[0]]
    assert (image[10:-10, split + 10 : -10] == 255).all()  # no data in the second: blank
    assert thin.shape == (60, 80)


def test_titles_say_periods_as_one_would() -> None:
    texts = ["2023", "2023-06", "2023-06-07", "2022-11:2023-10", "2023-01-05:2023-02-10"]
    assert [title(Period.parse(text)) for text in texts] == texts
    assert title(Period.parse("2022:2023")) == "2022-01:2023-12"


def test_a_thinned_field_lies_where_it_lay(tmp_path: Path) -> None:
    """North up and south up, however much is skipped over: pixels are the field's own, at their own places."""
    import rasterio
    from rasterio import Affine

    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, (64, 61, 45)).astype("float32")
    for name, affine in {"north": Affine(10, 0, 5e5, 0, -10, 5e6), "south": Affine(10, 0, 5e5, 0, 10, 5e6)}.items():
        shape = {"count": 64, "height": 61, "width": 45, "dtype": "float32", "crs": "EPSG:32633"}
        with rasterio.open(tmp_path / f"{name}-2023.tif", "w", driver="GTiff", transform=affine, **shape) as file:
            file.write(values)
        vectors = open_vectors(tmp_path / f"{name}-2023.tif")
        for step in (1, 2, 3, 7):
            thin = Thinned(vectors, step)
            picture = thin.picture([0], lambda each: each, np.float32, (64,))
            grid, place = thin.grid.transform, vectors.grid.transform
            assert (grid.a, grid.e) == (10 * step, -10 * step)
            for row, column in ((0, 0), (thin.shape[0] - 1, thin.shape[1] - 1), (thin.shape[0] // 2, 3)):
                x, y = grid.c + grid.a * (column + 0.5), grid.f + grid.e * (row + 0.5)
                at = (y - place.f) / place.e - 0.5, (x - place.c) / place.a - 0.5
                assert at == (round(at[0]), round(at[1]))
                np.testing.assert_array_equal(picture[row, column], values[:, round(at[0]), round(at[1])])
            west, south, east, north = (np.array(thin.grid.boundingbox.bbox) - vectors.grid.boundingbox.bbox) / 10
            assert max(abs(west), abs(south), abs(east), abs(north)) <= step / 2


def test_the_preview_for_a_gis_is_a_cog_of_the_longest_period(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import rasterio
    from odc.geo.geobox import GeoBox

    grid = GeoBox((90, 300), GRID.transform, "EPSG:32633")
    periods = [MONTHS[0], YEAR, MONTHS[1]]
    create(tmp_path / "f.zarr", grid, periods, sources=[], attrs={}, chunk=300)
    vectors = np.random.default_rng(0).normal(0, 1, (3, 64, 90, 300)).astype("float32")
    vectors[1, :, 60:80, :50] = np.nan
    codes = quantise(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), 1)
    write(tmp_path / "f.zarr", Tile(0, 0, 90, 300), codes, {})
    finish(tmp_path / "f.zarr")
    out = report.preview_tif(tmp_path / "f.zarr")
    assert out == tmp_path / "f.preview.tif"
    opened = open_vectors(tmp_path / "f.zarr")
    expected = Thinned(opened).painted(1, painter_of(opened))
    with rasterio.open(out) as file:
        assert (file.crs, file.transform) == ("EPSG:32633", grid.transform)
        assert [each.name for each in file.colorinterp] == ["red", "green", "blue", "alpha"]
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.tags()["period"] == "2023"
        assert file.overviews(1) == [2]
        np.testing.assert_array_equal(file.read().transpose(1, 2, 0), expected)
    assert (expected[60:80, :50, 3] == 0).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.preview.tif", "f.zarr"]
    monkeypatch.setattr(overview, "_LONGEST", 100)
    with rasterio.open(report.preview_tif(tmp_path / "f.zarr", tmp_path / "new/thin.tif")) as file:
        assert file.shape == (30, 100)
        np.testing.assert_array_equal(file.read().transpose(1, 2, 0), expected[1::3, 1::3])
        assert file.bounds == pytest.approx(tuple(grid.boundingbox.bbox))
    with pytest.raises(BadInput, match="no folder"):
        report.preview_tif(tmp_path / "f.zarr", tmp_path / "f.preview.tif/x.tif")


def test_info_tells_what_a_field_holds(store: Path, aef: Aef) -> None:
    code, out, err = aef("info", str(store), "--json")
    found = json.loads(out)
    assert (code, err, found["command"], found["status"]) == (0, "", "info", "ok")
    assert {key: found[key] for key in ("format", "dtype", "dimensions", "crs", "shape", "gsd")} == {
        "format": "embedding-field/1",
        "dtype": "int8",
        "dimensions": 64,
        "crs": "EPSG:32633",
        "shape": [60, 80],
        "gsd": 10.0,
    }
    assert found["bbox"] == pytest.approx([15.0, 46.04804, 15.010335, 46.05348], abs=2e-4)
    assert (found["model"], found["recipe"], found["cube"]) == ("toy-001, weights ab12", "toy", "c.zarr")
    assert found["stored"] == sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    assert [each["period"] for each in found["periods"]] == [str(each) for each in MONTHS]
    assert [each["nodata"] for each in found["periods"]] == [0, 0, 1 - SPLIT / 80]
    assert [each["observations"] for each in found["periods"]] == [{"sentinel-2": value} for value in (0, 1, 2)]
    assert [each["extrapolated"] for each in found["periods"]] == [False, False, True]
    assert [each["frames"] for each in found["periods"]] == [6, 5, 0]
    assert [each["uncertainty"] for each in found["periods"]] == [4.25] * 3
    code, out, err = aef("info", str(store))
    assert (code, err) == (0, "")
    for words in ("0.48 km2", "model toy-001", "recipe toy", "62.5%", "6 (55%)", "2023-03-31 extrapolated", "4.2°"):
        assert words in out


def test_published_fields_are_told_of_and_drawn_too(tmp_path: Path, aef: Aef) -> None:
    import rasterio

    codes = quantise(ground(), 1)[2]
    shape = {"count": 64, "height": 60, "width": 80, "dtype": "int8", "crs": "EPSG:32633", "nodata": -128}
    with rasterio.open(tmp_path / "theirs.tif", "w", driver="GTiff", transform=GRID.transform, **shape) as file:
        file.write(codes)
    code, out, err = aef("info", "theirs.tif")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--period 2024 says it" in err
    code, out, err = aef("info", "theirs.tif", "--period", "2024", "--json")
    found = json.loads(out)
    assert (code, found["format"], found["model"]) == (0, "published", None)
    (period,) = found["periods"]
    assert (period["period"], period["nodata"]) == ("2024-01-01:2024-12-31", 1 - SPLIT / 80)
    assert (period["observations"], period["extrapolated"]) == ({}, None)
    for words in ((), ("--at", WEST), ("--out", "theirs.html")):
        code, out, err = aef("plot", "theirs.tif", "--period", "2024", *words)
        assert (code, err) == (0, "")
        assert (tmp_path / out.strip()).stat().st_size > 5000


def test_the_real_published_field(real: Path, tmp_path: Path) -> None:
    path = real / "aef/aef_2024_wisconsin_utm16n_10m_int8.tif"
    image = pixels(report.preview(path, tmp_path / "w.png"))
    assert image.reshape(-1, 3).std() > 50
    assert report.field_page(path, tmp_path / "w.html").stat().st_size < 1e6


# ---------------------------------------------------------------- the command


def test_plot_draws_cubes_and_fields(aef: Aef, tmp_path: Path) -> None:
    from odc.geo.geobox import GeoBox
    from rasterio import Affine

    cube = made_up_cube(tmp_path / "cube.zarr", side=48)
    code, out, err = aef("plot")
    assert (code, out, err) == (0, "cube.png\n", "")
    assert (tmp_path / "cube.png").read_bytes() == report.picture(cube, tmp_path / "b.png").read_bytes()
    grid = GeoBox((20, 20), Affine(10, 0, 5e5, 0, -10, 5e6), "EPSG:32633")
    create(tmp_path / "f.zarr", grid, [YEAR], sources=[], attrs={})
    vectors = np.random.default_rng(0).standard_normal((1, 64, 20, 20))
    write(tmp_path / "f.zarr", Tile(0, 0, 20, 20), quantise(vectors / np.linalg.norm(vectors, axis=1)[:, None], 1), {})
    finish(tmp_path / "f.zarr")
    code, out, err = aef("plot", "f.zarr", "--out", "deep/field.png", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["outputs"] == ["deep/field.png"]
    assert (tmp_path / "deep/field.png").read_bytes() == report.preview(tmp_path / "f.zarr").read_bytes()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("none.tif",), "there is no none.tif"),
        (("file.tif",), "does not open as an embedding field"),
        (("field.zarr", "--period", "2023-03"), "--period 2023-03 is of fields that do not say theirs"),
        (("field.zarr", "--frames", "3"), "--frames 3 goes with a run or a recipe, not with field.zarr"),
        (("building.zarr", "--period", "2023"), "--period 2023 goes with a published field, not with building.zarr"),
        (("nano", "--period", "2023"), "--period 2023 goes with a published field, not with nano"),
        (("half.zarr",), "half.zarr is incomplete"),
    ],
)
def test_info_refuses_in_one_line(words: tuple[str, ...], says: str, aef: Aef, tmp_path: Path) -> None:
    import zarr

    zarr.create_group(tmp_path / "building.zarr", attributes={"aef:format": "datacube/1", "state": "building"})
    (tmp_path / "file.tif").write_text("no raster")
    for name in ("field", "half"):
        create(tmp_path / f"{name}.zarr", GRID, MONTHS[2:], sources=[], attrs={})
    write(tmp_path / "field.zarr", Tile(0, 0, 60, 80), quantise(ground()[2:], 1), {})
    finish(tmp_path / "field.zarr")
    code, out, err = aef("info", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "there is no cube.zarr"),
        (("folder",), "neither a cube nor an embedding field"),
        (("file.txt",), "neither a cube nor an embedding field"),
        (("other.zarr",), "neither a cube nor an embedding field"),
        (("torn.zarr",), "neither a cube nor an embedding field"),
        (("building.zarr",), "not finished"),
        (("building.zarr", "--out", "x.jpg"), "x.jpg is no .png file"),
        (("building.zarr", "--at", "15,46"), "--at is of an embedding field, and building.zarr is a cube"),
        (("building.zarr", "--change", "2022", "2023"), "--change is of an embedding field"),
        (("building.zarr", "--out", "x.html"), "--out x.html is of an embedding field"),
        (("building.zarr", "--period", "2023"), "--period is of an embedding field"),
        (("run", "--at", "15,46"), "--at is of an embedding field, and run is a run"),
        (("field.zarr", "--period", "2023-03"), "--period 2023-03 is of fields that do not say theirs"),
        (("field.zarr", "--at", "15"), "--at '15' is not two numbers"),
        (("field.zarr", "--at", "15,95"), "--at 15,95 lies outside the globe"),
        (("field.zarr", "--at", "15,nan"), "--at 15,nan lies outside the globe"),
        (("field.zarr", "--at", "3,46"), "--at 3,46 lies outside field.zarr (it covers 15.0000,46.0"),
        (("field.zarr", "--at", EAST, "--out", "x.html"), f"field.zarr has no data at --at {EAST}"),
        (("field.zarr", "--change", "2023-03", "2022"), "field.zarr has no period 2022 (it has 2023-03)"),
        (("field.zarr", "--change", "2023-03", "soon"), "'soon'"),
        (("field.zarr", "--change", "2023-03"), "--change"),
        (("field.zarr", "--change", "2023-03", "2023-03", "--at", WEST), "--change does not go with --at"),
        (("field.zarr", "--out", "folder"), "folder is no .png"),
        (("file.tif",), "does not open as an embedding field"),
    ],
)
def test_plot_refuses_in_one_line_and_makes_nothing(
    words: tuple[str, ...], says: str, aef: Aef, tmp_path: Path
) -> None:
    import zarr

    (tmp_path / "folder").mkdir()
    (tmp_path / "file.txt").write_text("mine")
    zarr.create_group(tmp_path / "other.zarr")
    (tmp_path / "torn.zarr").mkdir()
    (tmp_path / "torn.zarr" / "zarr.json").write_text('{"attributes": null')
    zarr.create_group(tmp_path / "building.zarr", attributes={"aef:format": "datacube/1", "state": "building"})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.toml").write_text("")
    (tmp_path / "file.tif").write_text("no raster")
    create(tmp_path / "field.zarr", GRID, MONTHS[2:], sources=[], attrs={})
    write(tmp_path / "field.zarr", Tile(0, 0, 60, 80), quantise(ground()[2:], 1), {})
    finish(tmp_path / "field.zarr")
    before = sorted(tmp_path.rglob("*"))
    code, out, err = aef("plot", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("aef: ")
    assert says in err
    assert sorted(tmp_path.rglob("*")) == before


def test_help_and_refusals_load_nothing_heavy() -> None:
    probe = (
        "import sys; sys.argv = ['aef', 'plot', *sys.argv[1:]]\n"
        "from aefcli import cli\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'xarray', 'numpy', 'matplotlib'} & set(sys.modules)))"
    )
    for words in (["--help"], ["none.zarr"]):
        ran = subprocess.run([sys.executable, "-c", probe, *words], capture_output=True, text=True, check=True)
        assert ran.stdout.splitlines()[-1] == "[]"


def test_a_folder_that_cannot_be_written_is_told(aef: Aef, tmp_path: Path) -> None:
    made_up_cube(tmp_path / "cube.zarr", side=48)
    (tmp_path / "file").write_text("in the way")
    code, out, err = aef("plot", "--out", "file/x.png")
    assert (code, out, err.count("\n")) == (6, "", 1)
    assert "cannot write file/x.png" in err
