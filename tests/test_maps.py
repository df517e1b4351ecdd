"""A map says of every pixel what the probe says, lies where its field lies, and carries its colours and names."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rasterio
from conftest import Aef
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from rasterio import Affine
from rasterio.enums import ColorInterp
from rasterio.shutil import copy

from aefcli import field, geotiff, maps, probe
from aefcli.errors import BadInput, Damaged, NoResources
from aefcli.extent import Period, tiles
from aefcli.maps import draw_map
from aefcli.published import open_vectors

SHAPE = H, W = (140, 700)
NORTH_UP = Affine(10, 0, 500_000, 0, -10, 5_100_000)
NAMES = ("water & ice", "maize", "town")
PERIODS = (Period.parse("2022"), Period.parse("2023"))
ROWS, COLUMNS = np.mgrid[:H, :W]
COVER = (ROWS // 30 + COLUMNS // 25) % 3
HOLE = np.s_[:20, :40]


def vectors_of(cover: np.ndarray, seed: int, turn: int = 0) -> np.ndarray:
    """float32 (64, h, w): a direction per cover under noise, nodata in the hole."""
    rng = np.random.default_rng(seed)
    centre = np.roll(np.random.default_rng(7).normal(size=(64, 3)).astype("float32"), turn, axis=0)
    found = centre[:, cover] + rng.standard_normal((64, *cover.shape), dtype="float32") * 1.5
    found /= np.linalg.norm(found, axis=0)
    found[:, *HOLE] = np.nan
    return found


def table(path: Path, count: int = 300, seed: int = 0, **columns: Any) -> Path:
    """Labels at random pixels, some of them in the hole; named classes, unless `columns` say otherwise."""
    rng = np.random.default_rng(seed)
    row, column = rng.integers(H, size=count), rng.integers(W, size=count)
    row[:3], column[:3] = 5, 5
    lon, lat = Transformer.from_crs("EPSG:32633", "EPSG:4326", always_xy=True).transform(
        500_000 + 10 * (column + 0.5), 5_100_000 - 10 * (row + 0.5)
    )
    cover = COVER[row, column]
    rows = {"x": lon, "y": lat, "label": 10 * (cover + 1), "label_name": [NAMES[code] for code in cover]}
    frame = pd.DataFrame({**rows, **{key: value(cover) for key, value in columns.items()}})
    frame.dropna(axis=1).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """two.zarr with both periods, its directions turned in the second; aef_2023.tif and south_2023.tif; labels.csv."""
    folder = tmp_path_factory.mktemp("world")
    stack = np.stack([field.quantise(vectors_of(COVER, index, 5 * index), axis=0) for index in (0, 1)])
    field.create(folder / "two.zarr", GeoBox(SHAPE, NORTH_UP, "EPSG:32633"), PERIODS, sources=[], attrs={}, chunk=128)
    for tile in tiles(SHAPE, 128):
        field.write(folder / "two.zarr", tile, stack[(..., *tile.slices)], {})
    field.finish(folder / "two.zarr")
    profile = {"driver": "GTiff", "count": 64, "height": H, "width": W, "dtype": "int8", "nodata": -128}
    for name, values, affine in (
        ("aef_2023.tif", stack[1], NORTH_UP),
        ("south_2023.tif", stack[1, :, ::-1], NORTH_UP * Affine(1, 0, 0, 0, -1, H)),
    ):
        with rasterio.open(
            folder / name, "w", transform=affine, crs="EPSG:32633", blockysize=16, interleave="pixel", **profile
        ) as file:
            file.write(values)
    table(folder / "labels.csv")
    return folder


def direct(world: Path, kind: str, labels: probe.Labels, index: int = 1) -> tuple[np.ndarray, probe.fit.Taught]:
    """Vectors of all pixels (h, w, 64), and the probe taught on the labels with data, by hand."""
    codes = field.open_field(world / "two.zarr")["embeddings"].to_numpy()[index]
    every = np.moveaxis(field.dequantise(codes, axis=0), 0, -1)
    x = field.sample(field.open_field(world / "two.zarr"), labels.lon, labels.lat, index)[0][:, 0]
    good = np.isfinite(x).all(axis=1)
    return every, probe.fit.teach(kind, x[good].astype(float), labels.value[good], labels.kind, len(labels.names))


@pytest.mark.parametrize("kind", ["linear", "ridge", "knn"])
def test_every_pixel_is_what_the_probe_says_of_it(world: Path, tmp_path: Path, kind: str) -> None:
    labels = probe.read_labels(world / "labels.csv")
    done = draw_map(world / "two.zarr", world / "labels.csv", tmp_path / "map.tif", kind=kind, period=PERIODS[1])
    every, taught = direct(world, maps.PROBES[kind], labels)
    with rasterio.open(tmp_path / "map.tif") as file:
        said, sure = file.read()
    there = np.isfinite(every).all(axis=-1)
    scores = taught.scores(every[there])
    assert (said[~there] == 255).all()
    assert (sure[~there] == 255).all()
    assert (~there).sum() == 20 * 40
    # A tie of two votes of three cannot be; a tie of decision values is a matter of the last digit
    assert (said[there] == scores.argmax(axis=1)).mean() > 0.9999
    lead = np.sort(scores, axis=1)
    expected = lead[:, -1] if kind == "knn" else np.clip((lead[:, -1] - lead[:, -2]) / 2, 0, 1)
    np.testing.assert_allclose(sure[there] / 100, expected, atol=0.00501)
    assert (said[there] == COVER[there]).mean() > 0.8
    assert done.nodata == pytest.approx(800 / (H * W))
    assert done.classes == {name: (said == code).sum() / there.sum() for code, name in enumerate(labels.names)}
    score = {each.metric: each.mean for each in done.scores}
    assert score["balanced_accuracy"] == pytest.approx((said[there] == COVER[there]).mean(), abs=0.1)


def test_the_file_is_whole_by_itself(world: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "map.tif"
    draw_map(world / "two.zarr", world / "labels.csv", path, kind="linear", period=PERIODS[1])
    assert sorted(each.name for each in path.parent.iterdir()) == ["map.tif", "map.tif.aux.xml"]
    copy(path, tmp_path / "look.vrt", driver="VRT")  # GDAL's own words for what it sees
    seen = (tmp_path / "look.vrt").read_text()
    assert "<Category>water &amp; ice</Category>" in seen
    path.with_name("map.tif.aux.xml").unlink()
    with rasterio.open(path) as file:
        assert (file.crs, file.transform, file.shape) == (rasterio.CRS.from_epsg(32633), NORTH_UP, SHAPE)
        assert (file.count, file.dtypes[0], file.nodata) == (2, "uint8", 255)
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.overviews(1) == [2]
        assert file.descriptions == ("class", "confidence")
        assert file.scales[1] == 0.01
        assert file.tags(1) == {"class_0": "water & ice", "class_1": "maize", "class_2": "town"}
        assert file.tags()["period"] == "2023-01-01:2023-12-31"
        assert "split by block" in file.tags()["balanced_accuracy"]
        assert file.colorinterp[0] == ColorInterp.palette
        assert file.colorinterp[1] != ColorInterp.alpha  # or what is uncertain would be drawn transparent
        colours = file.colormap(1)
        assert len({colours[code] for code in range(3)}) == 3
        assert all(colours[code][3] == 255 for code in range(3))
        assert colours[255][3] == 0
        whole = file.read()
    with rasterio.open(path, overview_level=0) as file:
        assert file.colorinterp[1] != ColorInterp.alpha
        assert set(np.unique(file.read(1))) <= {0, 1, 2, 255}  # classes are not averaged
    draw_map(world / "two.zarr", world / "labels.csv", tmp_path / "b.tif", kind="linear", period=PERIODS[1], workers=3)
    with rasterio.open(tmp_path / "b.tif") as file:
        np.testing.assert_array_equal(file.read(), whole)


def test_a_south_up_field_gives_a_north_up_map(world: Path, tmp_path: Path) -> None:
    found = []
    for name in ("aef_2023.tif", "south_2023.tif"):
        draw_map(world / name, world / "labels.csv", tmp_path / name, kind="linear", seed=None)
        with rasterio.open(tmp_path / name) as file:
            assert file.transform == NORTH_UP
            found.append(file.read())
    np.testing.assert_array_equal(*found)
    assert (found[0][0] == COVER).mean() > 0.8


def test_values_are_mapped_as_values(world: Path, tmp_path: Path) -> None:
    path = table(tmp_path / "values.csv", label=lambda cover: 0.5 + 2.0 * cover, label_name=lambda cover: np.nan)
    done = draw_map(world / "two.zarr", path, tmp_path / "map.tif", kind="ridge", period=PERIODS[1])
    every, taught = direct(world, "ridge", probe.read_labels(path))
    there = np.isfinite(every).all(axis=-1)
    with rasterio.open(tmp_path / "map.tif") as file:
        assert (file.count, file.dtypes[0], file.descriptions) == (1, "float32", ("value",))
        assert np.isnan(file.nodata)
        values = file.read(1)
    np.testing.assert_allclose(values[there], taught.predict(every[there]), atol=1e-5)
    assert np.isnan(values[~there]).all()
    assert done.classes == {}
    assert {score.metric for score in done.scores} == {"r2", "mae"}
    assert not (tmp_path / "map.tif.aux.xml").exists()


def test_labels_teach_with_the_vectors_of_their_own_period(world: Path, tmp_path: Path) -> None:
    """In the other period each cover has another direction: labels of the one say nothing of the other."""

    def dated(path: Path, *periods: Period) -> Path:
        start, end = ([getattr(period, side) for period in periods] for side in ("start", "end"))
        return table(
            path,
            valid_time_start_ms=lambda cover: np.resize(start, len(cover)),
            valid_time_end_ms=lambda cover: np.resize(end, len(cover)),
        )

    def agreement(path: Path, out: str, index: int) -> tuple[float, tuple[str, ...]]:
        done = draw_map(world / "two.zarr", path, tmp_path / out, kind="linear", period=PERIODS[index], seed=None)
        with rasterio.open(done.path) as file:
            return float((file.read(1) == COVER).mean()), done.notes

    first = dated(tmp_path / "first.csv", PERIODS[0])
    assert agreement(first, "a.tif", 0)[0] > 0.8
    share, notes = agreement(first, "b.tif", 1)
    assert share < 0.6
    assert any("296 labels teach with the vectors of other periods" in note for note in notes)
    share, notes = agreement(dated(tmp_path / "both.csv", *PERIODS, Period.parse("2019")), "c.tif", 1)
    assert any("102 of 300 labels lie outside, without data or in other periods" in note for note in notes)
    other = dated(tmp_path / "other.csv", Period.parse("2019"))
    with pytest.raises(
        BadInput, match=r"no label is of a period that two holds.*first is of 2019.*aef embed --period 2019"
    ):
        agreement(other, "d.tif", 1)


def test_many_classes_take_two_bytes(tmp_path: Path) -> None:
    side, count = 64, 300
    values = np.random.default_rng(0).normal(size=(8, side, side)).astype("float32")
    place = {"transform": NORTH_UP, "crs": "EPSG:32633"}
    with rasterio.open(
        tmp_path / "f_2023.tif", "w", driver="GTiff", count=8, height=side, width=side, dtype="float32", **place
    ) as file:
        file.write(values)
    row, column = np.divmod(np.arange(count), side)
    lon, lat = Transformer.from_crs("EPSG:32633", "EPSG:4326", always_xy=True).transform(
        500_000 + 10 * (column + 0.5), 5_100_000 - 10 * (row + 0.5)
    )
    pd.DataFrame({"x": lon, "y": lat, "label": np.arange(count)}).to_csv(tmp_path / "l.csv", index=False)
    done = draw_map(tmp_path / "f_2023.tif", tmp_path / "l.csv", tmp_path / "map.tif", kind="knn1")
    assert any("not scored" in note for note in done.notes)
    with rasterio.open(tmp_path / "map.tif") as file:
        said, sure = file.read()
        assert (file.dtypes[0], file.nodata, len(set(file.colormap(1).values()))) == ("uint16", 65535, count + 2)
    np.testing.assert_array_equal(said[row, column], np.arange(count))
    assert (sure == 100).all()


def test_a_field_that_breaks_midway_leaves_the_old_map(world: Path, tmp_path: Path) -> None:
    broken = tmp_path / "aef_2023.tif"
    content = (world / "aef_2023.tif").read_bytes()
    broken.write_bytes(content)
    out = tmp_path / "map.tif"
    draw_map(broken, world / "labels.csv", out, kind="linear", seed=None)
    before = out.read_bytes()
    assert open_vectors(broken).block == (16, W)
    broken.write_bytes(content[: len(content) // 2])
    labels = table(tmp_path / "few.csv", count=40)
    frame = pd.read_csv(labels)
    frame[frame["y"] > frame["y"].median()].to_csv(labels, index=False)
    with pytest.raises(Damaged, match="aef_2023"):
        draw_map(broken, labels, out, kind="linear", seed=None, overwrite=True)
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "aef_2023.tif",
        "few.csv",
        "map.tif",
        "map.tif.aux.xml",
    ]


@pytest.mark.parametrize(
    ("shape", "block", "most"),
    [
        ((1300, 1100), (256, 256), 512 * 512),
        ((1300, 1100), (300, 32), 512 * 512),
        ((900, 100_000), (1, 100_000), 512 * 512),
        ((100_000, 90), (100_000, 9), 100_000 * 90),
        ((5000, 5000), (4096, 4096), 4096 * 4096),
    ],
)
def test_tiles_are_whole_blocks_of_bounded_size(shape: tuple[int, int], block: tuple[int, int], most: int) -> None:
    """A block that is cut would be decoded again and again, and tiles as wide as strips would fill the memory."""
    cut = list(geotiff.parts(shape, block))
    assert sum(tile.shape[0] * tile.shape[1] for tile in cut) == shape[0] * shape[1]
    assert len({(tile.top, tile.left) for tile in cut}) == len(cut)
    for tile in cut:
        assert tile.shape[0] * tile.shape[1] <= most
        assert tile.top % block[0] == tile.left % block[1] == 0
        assert tile.bottom % block[0] == 0 or tile.bottom == shape[0]
        assert tile.right % block[1] == 0 or tile.right == shape[1]


def test_a_full_disk_is_one_line_and_leaves_nothing(world: Path, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(NoResources, match="cannot write"):
            draw_map(world / "aef_2023.tif", world / "labels.csv", tmp_path / "map.tif", kind="linear", seed=None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_knows_the_probes_that_maps_are_drawn_with() -> None:
    from aefcli.cli import maps as command

    assert set(command._PROBES) == set(maps.PROBES)
    assert set(maps.PROBES.values()) == set(probe.PROBES)


def test_the_command_prints_a_table_or_json(world: Path, aef: Aef) -> None:
    code, out, err = aef("map", str(world / "two.zarr"), "--period", "2023", "--probe", "linear", "--block", "1280")
    assert code == 0, err
    assert out.splitlines()[-1] == "map.tif"
    assert "balanced accuracy" in out
    assert "split by block" in out
    assert "water & ice" in out
    assert "296 labels of" in err
    again = ("map", str(world / "two.zarr"), "--period", "2023", "--no-score")
    code, _, err = aef(*again)
    assert code == 2
    assert "--overwrite" in err
    pd.read_csv(world / "labels.csv").rename(columns={"label_name": "crop"}).to_csv("crops.csv", index=False)
    code, out, err = aef(*again, "--overwrite", "--json", "--labels", "crops.csv", "--label", "crop")
    found = json.loads(out)
    assert (found["status"], found["outputs"], found["results"], found["probe"]) == ("ok", ["map.tif"], [], "ridge")
    assert set(found["classes"]) == set(NAMES)
    assert sum(found["classes"].values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--probe", "svm"), "svm"),
        (("--period", "2021"), "2021"),
        (("--period", "soon"), "soon"),
        ((), "choose one, as in --period 2022"),
        (("--period", "2023", "--out", "map.png"), ".tif"),
        (("--period", "2023", "--out", "s3://bucket/map.tif"), "no path on disk"),
        (("--period", "2023", "--labels", "none.csv"), "none.csv"),
        (("--period", "2023", "--labels", "far.csv"), "all 300 labels lie outside of two"),
        (("--period", "2023", "--labels", "hole.csv"), "two is nodata at all 3 labels"),
        (
            ("--period", "2023", "--label", "crop"),
            "no column 'crop'; its columns: x, y, label, label_name (--label names",
        ),
        (("--period", "2023", "--labels", "same.csv"), "all 300 labels are 20"),
        (("--period", "2023", "--labels", "left.csv"), "all 296 labels with data in two are maize"),
        (("--period", "2023", "--block", "0"), "--block 0"),
        (("--period", "2023", "--block", "nan"), "--block nan"),
    ],
)
def test_what_cannot_be_mapped_is_one_line(
    world: Path, tmp_path: Path, aef: Aef, words: tuple[str, ...], message: str
) -> None:
    frame = pd.read_csv(world / "labels.csv")
    frame.assign(x=frame["x"] + 3).to_csv(tmp_path / "far.csv", index=False)
    frame[:3].assign(label=[1, 2, 3], label_name=["a", "b", "c"]).to_csv(tmp_path / "hole.csv", index=False)
    frame.assign(label=20, label_name="maize").to_csv(tmp_path / "same.csv", index=False)
    left = frame.assign(label=20, label_name="maize")
    left.loc[:2, ["label", "label_name"]] = [30, "town"]
    left.to_csv(tmp_path / "left.csv", index=False)
    code, _, err = aef("map", str(world / "two.zarr"), *words)
    assert code == 2, err
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "map.tif").exists()
