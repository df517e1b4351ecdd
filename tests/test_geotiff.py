"""A GeoTIFF is the same whatever order its parts come in and whatever it is called, and is never there in part."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from odc.geo.geobox import GeoBox
from rasterio import Affine

from aefcli import aside, geotiff
from aefcli.errors import BadInput, Damaged, Locked, NoResources
from aefcli.extent import Tile, tiles

SHAPE = H, W = (300, 530)
NORTH_UP = Affine(10, 0, 500_000, 0, -10, 5_100_000)
SOUTH_UP = NORTH_UP * Affine(1, 0, 0, 0, -1, H)
VALUES = np.random.default_rng(0).integers(1, 200, (2, H, W)).astype("uint8")
VALUES[:, 40:90, 100:300] = 0


def raster(transform: Affine = NORTH_UP, beside: str = "") -> geotiff.Raster:
    def describe(file: rasterio.io.DatasetWriter) -> None:
        file.update_tags(by="us")
        if beside:
            Path(f"{file.name}.aux.xml").write_text(beside)

    return geotiff.Raster(
        grid=GeoBox(SHAPE, transform, "EPSG:32633"),
        count=2,
        dtype="uint8",
        nodata=0,
        there=lambda bands: bands[0] > 0,
        describe=describe,
    )


def made(order: Iterable[Tile], values: np.ndarray = VALUES) -> geotiff.Parts:
    for tile in order:
        yield tile, values[(..., *tile.slices)]


def test_parts_in_any_order_from_either_end(tmp_path: Path) -> None:
    cut = list(tiles(SHAPE, 128))
    found = []
    for name, transform, order, values in (
        ("a.tif", NORTH_UP, cut, VALUES),
        ("b.tif", NORTH_UP, cut[::-1], VALUES),
        ("c.tif", SOUTH_UP, cut, VALUES[:, ::-1]),
    ):
        out = tmp_path / name
        count = geotiff.write(out, raster(transform), made(order, values), "average", workers=2)
        assert count == (VALUES[0] > 0).sum()
        with rasterio.open(out) as file:
            assert (file.transform, file.overviews(2), file.tags()["by"]) == (NORTH_UP, [2, 4], "us")
            np.testing.assert_array_equal(file.read(), VALUES)
        found.append(out.read_bytes())
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("name", ["plain.tif", "2.tif", "made.tif", "lock.tif"])
def test_a_file_may_have_any_name(tmp_path: Path, name: str) -> None:
    means = geotiff.Means(
        decode=lambda bands: np.where(bands > 0, bands, np.nan).astype("float32"),
        encode=lambda means: np.nan_to_num(means).astype("uint8"),
    )
    geotiff.write(tmp_path / name, raster(), made(tiles(SHAPE, 256)), means)
    with rasterio.open(tmp_path / name, overview_level=0) as file:
        np.testing.assert_array_equal(file.read()[:, 45:], halved(VALUES)[:, 45:])
    assert [path.name for path in tmp_path.iterdir()] == [name]


def halved(values: np.ndarray) -> np.ndarray:
    return (values.reshape(2, H // 2, 2, W // 2, 2).astype("float32").mean(axis=(2, 4))).astype("uint8")


def test_what_lies_beside_a_file_goes_with_it(tmp_path: Path) -> None:
    out, beside = tmp_path / "x.tif", tmp_path / "x.tif.aux.xml"
    names = "<CategoryNames><Category>sea</Category></CategoryNames>"
    pam = f"<PAMDataset><PAMRasterBand band='1'>{names}</PAMRasterBand></PAMDataset>"
    geotiff.write(out, raster(beside=pam), made(tiles(SHAPE, 256)), "nearest")
    assert "<Category>sea</Category>" in beside.read_text()
    geotiff.write(out, raster(), made(tiles(SHAPE, 256)), "nearest")
    assert not beside.exists()


def test_parts_that_do_not_come_leave_what_was_there(tmp_path: Path) -> None:
    def broken() -> geotiff.Parts:
        yield from made(tiles((128, W), 128))
        raise Damaged("the rest does not read")

    out = tmp_path / "new" / "x.tif"
    with pytest.raises(Damaged):
        geotiff.write(out, raster(), broken(), "average")
    assert not list(tmp_path.iterdir())
    out.parent.mkdir()
    out.write_text("mine")
    with pytest.raises(Damaged):
        geotiff.write(out, raster(), broken(), "average")
    assert [path.read_text() for path in out.parent.iterdir()] == ["mine"]


def test_pixels_that_are_not_read_back_are_told(tmp_path: Path) -> None:
    """What was written is counted and held against what is there: here a part is written twice."""
    with pytest.raises(NoResources, match="1936 pixels were lost"):
        geotiff.write(tmp_path / "x.tif", raster(), made([*tiles(SHAPE, 256), Tile(256, 486, 300, 530)]), "average")
    assert not list(tmp_path.iterdir())


def test_one_writer_at_a_time_and_only_into_folders(tmp_path: Path) -> None:
    with aside.making(tmp_path / "x.tif") as first:
        with pytest.raises(Locked), aside.making(tmp_path / "x.tif"):
            pytest.fail("it was entered twice")
        first.write_text("whole")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["whole"]
    with pytest.raises(BadInput, match="no folder"), aside.making(tmp_path / "x.tif" / "y.tif"):
        pytest.fail("a file was taken for a folder")
