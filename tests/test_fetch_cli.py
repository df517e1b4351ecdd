"""`aef fetch`, `verify` and `repair` as users meet them."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
from archives import ORIGIN, TOY_BOX, Toy, corners
from conftest import Aef
from odc.geo import CRS
from odc.geo.geobox import GeoBox
from rasterio import Affine
from servers import file_server
from shapely.geometry import Polygon, box

import aefcli.cube.write as writing
from aefcli.cube import areas, grid_of, open_cube, outline
from aefcli.extent import BBox

BOX = ",".join(map(repr, (TOY_BOX.west, TOY_BOX.south, TOY_BOX.east, TOY_BOX.north)))


def words(toy: Toy | Path, *more: str, where: tuple[str, ...] = ("--bbox", BOX), period: str = "2023-08") -> list[str]:
    catalog = str(toy.catalog if isinstance(toy, Toy) else toy)
    return ["fetch", "--stac", catalog, *where, "--period", period, "--gsd", "60", "--source", "sentinel-2", *more]


def polygons(path: Path, shapes: dict[str, Any], **options: Any) -> Path:
    geopandas.GeoDataFrame({"id": list(shapes)}, geometry=list(shapes.values()), crs=4326).to_file(path, **options)
    return path


def part(left: float, width: float) -> Polygon:
    """A square of the toy archive, `left` and `width` in metres from its corner."""
    around = corners(ORIGIN[0] + left, ORIGIN[1] - 400, width, width)
    return box(around.west, around.south, around.east, around.north)


# --- where ------------------------------------------------------------------------------------------------------------


def test_a_polygon_of_which_the_catalog_has_nothing_keeps_no_other_back(toy: Toy, aef: Aef, tmp_path: Path) -> None:
    path = polygons(tmp_path / "farms.gpkg", {"far": box(40, 10, 40.01, 10.01), "near": part(400, 900)})
    for more in (("--dry-run",), ("--max-bytes", "1GB")):
        code, out, err = aef(*words(toy, "--json", *more, where=("--area", str(path))))
        assert code == 2
        assert "1 of 2 cubes cannot be made: cubes/far.zarr: nothing to fetch" in err
        assert list(json.loads(out)["cubes"]) == ["cubes/near.zarr"]
        assert (tmp_path / "cubes/near.zarr").exists() == ("--dry-run" not in more)
    assert open_cube(tmp_path / "cubes/near.zarr").sources
    assert sorted(tmp_path.glob("cubes/far*")) == []


@pytest.mark.parametrize("suffix", ["geojson", "gpkg"])
def test_several_polygons_are_a_cube_each(toy: Toy, aef: Aef, tmp_path: Path, suffix: str) -> None:
    path = polygons(tmp_path / f"farms.{suffix}", {"north": part(400, 900), "south-2": part(2500, 1200)})
    code, out, err = aef(*words(toy, where=("--area", str(path))))
    assert (code, out) == (0, "cubes/north.zarr\ncubes/south-2.zarr\n"), err
    for name, shape in (("north", part(400, 900)), ("south-2", part(2500, 1200))):
        cube = open_cube(tmp_path / "cubes" / f"{name}.zarr")
        around = outline(cube.grid)
        assert box(around.west, around.south, around.east, around.north).contains(shape)
        assert around.east - around.west < 1.5 * (shape.bounds[2] - shape.bounds[0]) + 0.002
    assert aef(*words(toy, where=("--area", str(path))))[0] == 0, "again: nothing to do"


def test_one_polygon_is_one_cube_of_the_items_that_touch_it(toy: Toy, aef: Aef, tmp_path: Path) -> None:
    path = polygons(tmp_path / "one.geojson", {"1": part(400, 900)}, driver="GeoJSON")
    code, out, err = aef(*words(toy, "--json", where=("--area", str(path))))
    assert code == 0, err
    assert json.loads(out)["outputs"] == ["cube.zarr"]
    assert json.loads(out)["items"] == 3, "the eastern tiles do not touch it"


@pytest.mark.parametrize(
    ("longitude", "latitude"), [(-179.9, 1), (179.9, -79), (5, 60), (8, 78), (15.01, 46), (0.1, -0.1), (-70.2, -33)]
)
def test_the_zone_is_the_one_that_projs_database_gives(longitude: float, latitude: float) -> None:
    place = BBox(longitude - 0.01, latitude - 0.01, longitude + 0.01, latitude + 0.01)
    assert grid_of(place, 10).crs == CRS.utm(longitude, latitude)


def test_the_grid_of_a_raster_or_of_a_cube_is_shared(toy: Toy, aef: Aef, tmp_path: Path) -> None:
    """Off the 30 m to which boxes are snapped, and with sides that are no multiples of anything."""
    grid = GeoBox((37, 41), Affine(60, 0, ORIGIN[0] + 613, 0, -60, ORIGIN[1] - 587), "EPSG:32633")
    profile = {"driver": "GTiff", "height": 37, "width": 41, "count": 1, "dtype": "uint8", "crs": "EPSG:32633"}
    with rasterio.open(tmp_path / "like.tif", "w", transform=grid.transform, **profile) as file:
        file.write(np.ones((1, 37, 41), "uint8"))
    for like, out in (("like.tif", "a.zarr"), ("a.zarr", "b.zarr")):
        code, _, err = aef(*words(toy, "--out", out, where=("--like", like)))
        assert code == 0, err
        assert open_cube(tmp_path / out).grid == grid
    for said in (("--gsd", "20"), ("--crs", "EPSG:3035")):
        code, _, err = aef(*words(toy, "--out", "c.zarr", *said, where=("--like", "like.tif")))
        assert (code, err.count("\n")) == (2, 1)
        assert "--like like.tif brings its own grid, of 60 m (leave --gsd and --crs out)" in err
    one, other = (open_cube(tmp_path / name).sources["sentinel-2"].arrays["B04"][:] for name in ("a.zarr", "b.zarr"))
    np.testing.assert_array_equal(one, other)
    assert one.any()


def test_boxes_around_grids_and_areas_across_180_degrees(tmp_path: Path) -> None:
    grid = GeoBox((100, 100), Affine(10, 0, 177_000, 0, -10, 8_100_000), "EPSG:32701")
    around = outline(grid)
    assert around.west < 180 < around.west + 0.1 or around.east > -180
    west, east = Polygon([(179.9, -17), (180, -17), (180, -16.9), (179.9, -16.9)]), box(-180, -17, -179.8, -16.9)
    path = polygons(tmp_path / "fiji.geojson", {"taveuni": west.union(east)}, driver="GeoJSON")
    assert areas(path)["taveuni"][0] == BBox(179.9, -17, -179.8, -16.9)


# --- what -------------------------------------------------------------------------------------------------------------


def test_bands_and_cloud_limit_what_is_fetched(toy: Toy, aef: Aef, tmp_path: Path) -> None:
    items = json.loads(json.dumps(toy.items))
    for number, item in enumerate(items):
        item["properties"]["eo:cloud_cover"] = 20.0 * number
    catalog = toy.saved(items, "clouded.json")
    code, out, err = aef(*words(catalog, "--band", "B04", "--band", "B08", "--max-cloud", "50", "--json"))
    assert code == 0, err
    assert json.loads(out)["items"] == 3
    assert open_cube(tmp_path / "cube.zarr").sources["sentinel-2"].bands == ("B04", "B08")
    code, _, err = aef(*words(catalog, "--max-cloud", "0", "--out", "other.zarr", period="2023-08-12:2023-08-31"))
    assert code == 2
    assert "cloud" in err, "the filter that removed them is named"


def test_a_file_that_is_gone_is_masked_if_asked(toy: Toy, aef: Aef, tmp_path: Path) -> None:
    with file_server(toy.folder) as web:
        (toy.folder / "masked.json").write_text(
            json.dumps({"type": "FeatureCollection", "features": toy.over(web.url)})
        )
        catalog, lost = f"{web.url}/masked.json", toy.items[0]["id"]
        web.gone.add(f"{lost}/B04.tif")
        code, _, err = aef(*[word.replace(str(toy.catalog), catalog) for word in words(toy)])
        assert code == 3
        assert lost in err
        assert "--on-missing mask" in err, "and goes on with what is there already"
        arguments = [word.replace(str(toy.catalog), catalog) for word in words(toy, "--on-missing", "mask", "--json")]
        code, out, err = aef(*arguments)
        assert code == 0, err
        assert json.loads(out)["missing"] == [f"{lost}/red"]
        assert "masked, as not there: 1 asset, " in err
        code, out, err = aef(*arguments)
        assert code == 0, err
        assert (json.loads(out)["units_written"], json.loads(out)["missing"]) == (0, [f"{lost}/red"])
        cube = open_cube(tmp_path / "cube.zarr")
        assert cube.attrs["aef:missing"] == [f"{lost}/red"]
        source = cube.sources["sentinel-2"]
        blank = np.asarray(source.arrays["B04"][0] == 0) & np.asarray(source.arrays["B08"][0] > 0)
        assert blank.any()
        assert not np.asarray(source.arrays["weight"][0])[blank].any()
        web.gone.clear()
        code, out, err = aef(*arguments, "--refresh")
        assert code == 0, err
    assert json.loads(out)["missing"] == []
    found = open_cube(tmp_path / "cube.zarr").sources["sentinel-2"].arrays["B04"][0]
    assert found[blank].any(), "it was looked for again"


def test_a_band_that_only_other_sources_have_is_refused(toy: Toy, aef: Aef, tmp_path: Path) -> None:
    code, _, err = aef(*words(toy, "--band", "B2"))
    assert code == 2
    assert "did you mean B02" in err
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_what_is_there_tells_what_is_new(toy: Toy, aef: Aef) -> None:
    def told(*more: str, period: str = "2023-08") -> dict[str, Any]:
        code, out, err = aef(*words(toy, "--dry-run", "--json", *more, period=period))
        assert code == 0, err
        return {key: json.loads(out)[key] for key in ("frames", "bytes_read", "bytes_written")}

    short = "2023-08-01:2023-08-14"
    whole, nothing = told(), {"bytes_read": 0, "bytes_written": 0}
    aef(*words(toy, period=short))
    assert told(period=short) == {"frames": {"sentinel-2": 2}, **nothing}
    assert 0 < told()["bytes_read"] == pytest.approx(whole["bytes_read"] / 3, rel=0.1)
    assert told("--overwrite") == whole
    aef(*words(toy))
    for more in ((), ("--refresh",)):
        assert told(*more) == {"frames": {"sentinel-2": 3}, **nothing}


def test_a_dry_run_of_what_was_cut_off_tells_what_is_left(
    toy: Toy, aef: Aef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "CHUNK", (1, 32, 32))
    whole = json.loads(aef(*words(toy, "--dry-run", "--json"))[1])
    assert aef(*words(toy))[0] == 0
    ledger = tmp_path / "cube.zarr.build/ledger.jsonl"
    units = [line for line in ledger.read_text().splitlines(keepends=True) if '"unit"' in line]
    ledger.write_text("".join(units[: len(units) // 3]))  # as if it had been stopped there
    left = json.loads(aef(*words(toy, "--dry-run", "--json"))[1])
    for name in ("bytes_read", "bytes_written"):
        assert left[name] == pytest.approx(whole[name] * 2 / 3, rel=0.02)


def test_a_dry_run_refuses_what_a_fetch_would_refuse(toy: Toy, aef: Aef, tmp_path: Path) -> None:
    (tmp_path / "mine.zarr").mkdir()
    assert aef(*words(toy, period="2023-08-01:2023-08-14"))[0] == 0
    for more in (("--out", "mine.zarr"), ("--period", "2023-08-12")):
        told = [aef(*words(toy, *more, *dry)) for dry in ((), ("--dry-run",))]
        assert told[0] == told[1]
        assert told[0][0] == 2


def test_a_dry_run_tells_and_writes_nothing(toy: Toy, aef: Aef, tmp_path: Path) -> None:
    code, out, err = aef(*words(toy, "--dry-run", "--json"))
    assert code == 0, err
    told = json.loads(out)
    assert (told["items"], told["frames"]) == (6, {"sentinel-2": 3})
    assert all(told[name] > 0 for name in ("bytes_read", "bytes_written", "bytes_free", "seconds"))
    code, out, err = aef(*words(toy, "--dry-run"))
    assert code == 0, err
    assert "sentinel-2 3" in out
    assert list(tmp_path.iterdir()) == []
    code, _, err = aef(*words(toy, "--max-bytes", "10KB"))
    assert (code, err.count("\n")) == (2, 1)
    assert "--max-bytes 10KB" in err
    assert list(tmp_path.iterdir()) == []
    assert aef(*words(toy, "--max-bytes", "1GB"))[0] == 0


def test_what_a_catalog_offers(toy: Toy, aef: Aef) -> None:
    code, out, err = aef("fetch", "--stac", str(toy.catalog), "--list", "--json")
    assert code == 0, err
    found = {row["source"]: row for row in json.loads(out)["sources"]}
    assert found["sentinel-2"]["default"] == "sentinel-2-l2a"
    assert found["landsat"]["default"] == ""
    assert found["gedi"]["note"]
    code, out, err = aef("fetch", "--stac", str(toy.catalog), "--list")
    assert code == 0, err
    assert "sentinel-2-l2a" in out


# --- verify and repair ------------------------------------------------------------------------------------------------


def test_verify_names_what_is_wrong_and_repair_mends_it(toy: Toy, aef: Aef, tmp_path: Path) -> None:
    assert aef(*words(toy))[0] == 0
    code, out, _ = aef("verify", "cube.zarr")
    assert code == 0
    assert "as they were written" in out
    chunk = tmp_path / "cube.zarr/sentinel-2/B04/c/0/0/0"
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:-1] + b"x")
    code, _, err = aef("verify", "cube.zarr")
    assert code == 4
    assert "damaged: sentinel-2/B04/c/0/0/0" in err
    assert "aef repair cube.zarr" in err
    (tmp_path / "cube.zarr/sentinel-2/B08/c/0/0/0").unlink()
    code, out, _ = aef("verify", "cube.zarr", "--json")
    assert (code, json.loads(out)["status"], json.loads(out)["error"]["code"]) == (4, "error", 4)
    assert sorted(json.loads(out)["damaged"]) == ["sentinel-2/B04/c/0/0/0", "sentinel-2/B08/c/0/0/0"]
    assert aef("repair", "cube.zarr")[0] == 0
    assert chunk.read_bytes() == whole
    code, out, _ = aef("verify", "cube.zarr", "--json")
    assert (code, json.loads(out)["damaged"]) == (0, [])


def test_a_finished_cube_without_its_root_is_no_finished_one(toy: Toy, aef: Aef, tmp_path: Path) -> None:
    assert aef(*words(toy))[0] == 0
    root = tmp_path / "cube.zarr/zarr.json"
    whole = root.read_bytes()
    for harmed in ("", "null", "{}"):
        root.write_text(harmed)
        for command in (words(toy), words(toy, period="2023"), ("embed", "--period", "2023"), ("info", "cube.zarr")):
            code, out, err = aef(*command)
            assert (code, out, err.count("\n"), "aef repair cube.zarr mends it" in err) == (4, "", 1, True), err
        assert root.read_text() == harmed
    root.unlink()
    assert aef("repair", "cube.zarr", "-q")[0] == 0
    assert root.read_bytes() == whole
    code, _, err = aef(*words(toy))
    assert (code, "already complete" in err) == (0, True)


# --- bad input --------------------------------------------------------------------------------------------------------


def crossing(folder: Path) -> str:
    bow = Polygon([(15, 46), (15.1, 46.1), (15.1, 46), (15, 46.1)])
    return str(polygons(folder / "bow.geojson", {"bow": bow}, driver="GeoJSON"))


def hostile(folder: Path) -> str:
    return str(polygons(folder / "evil.geojson", {"../evil": part(400, 900)}, driver="GeoJSON"))


def twins(folder: Path) -> str:
    table = geopandas.GeoDataFrame({"id": ["a", "a"]}, geometry=[part(400, 900), part(2500, 900)], crs=4326)
    table.to_file(folder / "twins.geojson", driver="GeoJSON")
    return str(folder / "twins.geojson")


def a_line(folder: Path) -> str:
    return str(polygons(folder / "line.geojson", {"a": part(400, 900).exterior}, driver="GeoJSON"))


def beyond(folder: Path) -> str:
    return str(polygons(folder / "far.geojson", {"far": box(181, -17, 182, -16)}, driver="GeoJSON"))


def degrees(folder: Path) -> str:
    profile = {"driver": "GTiff", "height": 9, "width": 9, "count": 1, "dtype": "uint8", "crs": "EPSG:4326"}
    with rasterio.open(folder / "degrees.tif", "w", transform=Affine(0.1, 0, 15, 0, -0.1, 46), **profile) as file:
        file.write(np.ones((1, 9, 9), "uint8"))
    return str(folder / "degrees.tif")


def nowhere(folder: Path) -> str:
    profile = {"driver": "GTiff", "height": 9, "width": 9, "count": 1, "dtype": "uint8", "crs": "EPSG:32633"}
    with rasterio.open(folder / "n.tif", "w", transform=Affine(60, 0, np.nan, 0, -60, 0), **profile) as file:
        file.write(np.ones((1, 9, 9), "uint8"))
    return str(folder / "n.tif")


def deep(folder: Path) -> str:
    (folder / "a.geojson").write_text("[" * 100_000)
    return str(folder / "a.geojson")


def no_geojson(folder: Path) -> str:
    (folder / "a.geojson").write_text("west, south")
    return str(folder / "a.geojson")


@pytest.mark.parametrize(
    ("make", "option", "says"),
    [
        (crossing, "--area", "crosses itself"),
        (hostile, "--area", "no name for a cube"),
        (twins, "--area", "twice"),
        (a_line, "--area", "no polygon"),
        (beyond, "--area", "far has longitudes 181 to 182, latitudes -17 to -16 (longitudes go from -180 to 180"),
        (beyond, "--area", "antimeridian is a MultiPolygon of two parts"),
        (no_geojson, "--area", "GeoJSON"),
        (deep, "--area", "GeoJSON"),
        (nowhere, "--like", "lies nowhere"),
        (lambda folder: "none.gpkg", "--area", "none.gpkg"),
        (degrees, "--like", "metres"),
        (no_geojson, "--like", "no raster"),
        (lambda folder: "none.tif", "--like", "none.tif"),
    ],
)
def test_places_that_are_none(toy: Toy, aef: Aef, tmp_path: Path, make: Any, option: str, says: str) -> None:
    path = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = aef(*words(toy, where=(option, path)))
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert says in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["x" * 300, "a/b", "../up", "..", ".hidden", "", "a b", "é" * 150])
def test_ids_that_are_no_names_of_cubes(toy: Toy, aef: Aef, tmp_path: Path, name: str) -> None:
    path = polygons(tmp_path / "fields.geojson", {"one": part(400, 900), name: part(2500, 900)}, driver="GeoJSON")
    code, out, err = aef(*words(toy, where=("--area", str(path))))
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert "is no name for a cube" in err
    assert len(err) < 400
    assert list(tmp_path.iterdir()) == [path]


def test_an_id_as_long_as_may_be(toy: Toy, aef: Aef, tmp_path: Path) -> None:
    shapes = {"x" * 200: part(400, 900), "y": part(2500, 900)}
    path = polygons(tmp_path / "fields.geojson", shapes, driver="GeoJSON")
    assert aef(*words(toy, where=("--area", str(path))))[0] == 0


PLACES = ("--bbox", BOX)
PATHS: dict[str, tuple[str, ...]] = {
    "--area": ("fetch", "--stac", "s.json", "--period", "2023", "--area"),
    "--like": ("fetch", "--stac", "s.json", "--period", "2023", "--like"),
    "--stac": ("fetch", *PLACES, "--period", "2023", "--stac"),
    "fetch --out": ("fetch", "--stac", "s.json", *PLACES, "--period", "2023", "--out"),
    "plot --out": ("plot", "cube.zarr", "--out"),
    "OUT": ("simulate",),
    "attach CUBE": ("attach", "--source", "nlcd", "--", "{}", "a.tif"),
    "FILE": ("attach", "--source", "nlcd", "--", "cube.zarr", "a.tif"),
    "verify CUBE|FIELD": ("verify",),
    "repair CUBE|FIELD": ("repair",),
    "plot CUBE|FIELD|RUN": ("plot",),
    "CUBE|FIELD|RUN|RECIPE": ("info",),
}


@pytest.mark.parametrize("what", PATHS)
@pytest.mark.parametrize("word", ["", " ", "x" * 300, "x/" * 3000, "\udcff", "loop/x.png"])
def test_words_that_no_path_has(aef: Aef, tmp_path: Path, what: str, word: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    line = PATHS[what]
    line = tuple(word if part == "{}" else part for part in line) if "{}" in line else (*line, word)
    code, out, err = aef(*line)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert len(err) < 400
    if not word.strip():
        assert f"{what.split()[-1]} is empty" in err
    assert [path.name for path in tmp_path.iterdir()] == ["loop"]


def test_a_tilde_is_the_home_wherever_a_path_stands(
    toy: Toy, aef: Aef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As no shell sees to in --out=~/x."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    shutil.copy(toy.catalog, toy.folder / "home.json")
    (tmp_path / "home" / "archive").symlink_to(toy.folder)
    code, out, err = aef(*words(Path("~/archive/home.json"), "--out=~/cube.zarr"))
    assert (code, out) == (0, f"{tmp_path}/home/cube.zarr\n"), err
    for command in ("info", "verify", "plot", "repair"):
        code, _, err = aef(command, "~/cube.zarr")
        assert code == 0, err
    assert {path.name for path in tmp_path.iterdir()} == {"home"}


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--crs", ""), "--crs is empty"),
        (("--resampling", ""), "--resampling is empty"),
        (("--source", ""), "--source is empty"),
        (("--band", "B04", "--band", ""), "--band is empty"),
        (("--area", "x.geojson"), "exactly one"),
        (("--collection", "sentinel-2"), "SOURCE=ID"),
        (("--collection", "sentinel-2=sentinel-2-l2b"), "sentinel-2-l2a"),
        (("--collection", "sentinel-3=x"), "sentinel-2"),
        (("--source", "sentinel2"), "sentinel-2"),
        (("--source", "gedi"), "aef attach"),
        (("--band", "B4x"), "B4"),
        (("--max-cloud", "101"), "100"),
        (("--max-bytes", "much"), "20GB"),
        (("--loader", "gdal"), "stackstac"),
        (("--on-missing", "ignore"), "mask"),
        (("--resampling", "cubic"), "bilinear"),
        (("--out", "s3://bucket/cube.zarr"), "no path on disk"),
        (("--dask", "tcp://127.0.0.1:9"), "no dask scheduler"),
        (("--gsd", "0"), "metres"),
        (("--gsd", "0.0001"), "degrees"),
    ],
)
def test_bad_options_get_one_line_and_make_nothing(
    toy: Toy, aef: Aef, tmp_path: Path, more: tuple[str, ...], says: str
) -> None:
    code, out, err = aef(*words(toy, *more))
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert says in err
    assert [path for path in tmp_path.rglob("*") if path.name.endswith(".zarr")] == []


def test_nowhere_and_never(toy: Toy, aef: Aef) -> None:
    code, _, err = aef("fetch", "--stac", str(toy.catalog), "--period", "2023")
    assert (code, "--bbox, --area and --like" in err) == (2, True)
    code, _, err = aef("fetch", "--stac", str(toy.catalog), "--bbox", BOX)
    assert (code, "--period is missing" in err) == (2, True)


def test_stackstac_makes_the_same_cube(toy: Toy, aef: Aef, tmp_path: Path) -> None:
    for loader in ("odc", "stackstac"):
        code, _, err = aef(*words(toy, "--loader", loader, "--out", f"{loader}.zarr"))
        assert code == 0, err
    one, other = (open_cube(tmp_path / f"{loader}.zarr").sources["sentinel-2"] for loader in ("odc", "stackstac"))
    for band in (*one.bands, "weight"):
        np.testing.assert_array_equal(one.arrays[band][:], other.arrays[band][:])


def test_a_fetch_is_left_within_seconds_of_sigterm(toy: Toy, tmp_path: Path) -> None:
    """While threads wait for an archive that does not answer."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent, file_server(toy.folder) as web:
        items = toy.over(f"http://127.0.0.1:{silent.getsockname()[1]}")
        (toy.folder / "silent.json").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
        line = [word.replace(str(toy.catalog), f"{web.url}/silent.json") for word in words(toy)]
        program = [sys.executable, "-c", "from aefcli.cli import main; main()", *line]
        with (tmp_path / "stderr").open("w") as told:
            process = subprocess.Popen(program, cwd=tmp_path, stderr=told)
        for _ in range(600):
            if (tmp_path / "cube.zarr").exists():
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 143, (tmp_path / "stderr").read_text()
