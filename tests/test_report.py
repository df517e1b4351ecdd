"""The picture of a cube: what lies where, that it follows the data and is the same twice, and what is refused."""

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
from toys import YEAR, made_up_cube

from aefcli import report
from aefcli.cube import open_cube, write_cube
from aefcli.extent import Tile
from aefcli.field import create, finish, quantise, write
from aefcli.report import cube as drawing


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
        ((), "there is no cube.zarr"),
        (("folder",), "neither a cube nor an embedding field"),
        (("file.txt",), "neither a cube nor an embedding field"),
        (("other.zarr",), "neither a cube nor an embedding field"),
        (("torn.zarr",), "neither a cube nor an embedding field"),
        (("building.zarr",), "not finished"),
        (("building.zarr", "--out", "x.jpg"), "x.jpg is no .png file"),
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
