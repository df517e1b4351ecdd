"""The one table of sources: what holds of every row, the numbers of the method, and real values on its scales."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from aefcli import cli
from aefcli.cube import Request, fetch
from aefcli.errors import BadInput
from aefcli.extent import BBox, Period
from aefcli.sources import INPUTS, SOURCES, Source, statistics, transform

EVERY = pytest.mark.parametrize("source", SOURCES.values(), ids=list(SOURCES))
RASTERS = [source for source in SOURCES.values() if source.kind != "text"]
# What a source's group in a cube holds beside its bands and its geometry.
GROUP = {"time", "y", "x", "band", "spatial_ref", "scale", "offset", "delivered", "weight", "items", "platform"}


def test_the_kinds_with_the_distances_and_weights_of_the_method() -> None:
    """method.md section 8, row by row: shift and re-gridding in metres, weight, error."""
    method = {
        "sentinel-2": (20, 0, 1, "continuous"),
        "sentinel-1": (20, 0, 1, "continuous"),
        "landsat": (0, 30, 1, "continuous"),
        "palsar-2": (0, 30, 1, "continuous"),
        "era5-land": (0, 0, 1, "continuous"),
        "gedi": (0, 20, 1, "continuous"),
        "grace": (0, 1280, 0.5, "continuous"),
        "glo-30": (0, 30, 1, "continuous"),
        "nlcd": (0, 30, 0.5, "categorical"),
        "cdl": (0, 30, 0.5, "categorical"),  # with NLCD in version 2.1
    }
    maps = {"worldcover": (0, 0, 0.5, "categorical")}  # not the method's
    ours = {source.name: (source.shift, source.regrid, source.weight, source.kind) for source in RASTERS}
    assert ours == method | maps
    assert set(SOURCES) - set(ours) == {"text"}
    assert SOURCES["text"].kind == "text"
    assert INPUTS == ("sentinel-2", "sentinel-1", "landsat")


def test_what_each_decoder_gives() -> None:
    outputs = {name: source.outputs for name, source in SOURCES.items() if source.role == "target"}
    method = {"palsar-2": 3, "era5-land": 12, "gedi": 101, "grace": 1, "glo-30": 4, "nlcd": 20, "cdl": 131, "text": 0}
    assert outputs == method | {"worldcover": 11}
    assert [band.name for band in SOURCES["gedi"].bands] == [f"RH{n}" for n in range(101)]
    assert {name: source.meta for name, source in SOURCES.items() if source.meta} == {
        "sentinel-1": ("orbit",),
        "palsar-2": ("pass", "look"),
    }
    assert [name for name, source in SOURCES.items() if source.static] == ["glo-30", "nlcd", "cdl", "worldcover"]


@EVERY
def test_names_are_unique(source: Source) -> None:
    names = [band.name for band in source.bands] + list(source.meta) + ([source.quality.name] if source.quality else [])
    assert SOURCES[source.name] is source
    assert len(set(names)) == len(names)
    assert not set(names) & GROUP


@EVERY
def test_a_row_is_of_one_kind(source: Source) -> None:
    assert bool(source.classes) == (source.kind == "categorical")
    assert bool(source.bands) == (source.kind != "text")
    assert not (source.shift and source.regrid), "the two errors are alternatives"
    assert (source.role == "target") == (source.name not in INPUTS)
    if source.kind == "categorical":
        assert len(source.bands) == 1
        assert list(source.classes) == sorted(set(source.classes))
        assert source.nodata not in source.classes
        assert np.iinfo(source.dtype).min == 0, "codes index a table"
    if source.quality is not None:
        assert bool(source.quality.clear_values) != bool(source.quality.cloud_bits)


@EVERY
def test_what_no_catalog_has_names_no_asset(source: Source) -> None:
    assert bool(source.collections) or source.role == "target"
    assert bool(source.collections) or not source.knowingly
    assert all(bool(band.assets) == bool(source.collections) for band in source.bands)
    assert not any(band.derived for band in source.bands[:1])


@EVERY
def test_a_row_as_another_collection_has_it_keeps_its_name_and_bands(source: Source) -> None:
    for collection in (*source.collections, *source.knowingly):
        row = source.of(collection)
        assert (row.name, row.gsd, row.role, row.kind, row.dtype) == (
            source.name, source.gsd, source.role, source.kind, source.dtype)  # fmt: skip
        assert [band.name for band in row.bands] == [band.name for band in source.bands]
        assert [band.assets for band in row.bands] == [band.assets for band in source.bands]


def test_of_a_collection_the_numbers_differ() -> None:
    mosaic = SOURCES["palsar-2"].of("alos-palsar-mosaic")
    assert 90 * mosaic.band("LIN").scale == pytest.approx(np.pi / 2)
    assert mosaic.static
    assert mosaic.quality is not None
    np.testing.assert_array_equal(mosaic.quality.clear(np.array([0, 50, 100, 150, 255], "uint8")), [0, 1, 0, 0, 1])
    numbers = np.array([100.0, 300.0, 1000.0])  # of GRD: not one is a power that a model may see
    low, high = SOURCES["sentinel-1"].band("VV").valid or (0, 0)
    assert not ((transform(numbers, "db") >= low) & (transform(numbers, "db") <= high)).any()


@EVERY
def test_statistics_are_usable(source: Source) -> None:
    assert all(np.isfinite([band.mean, band.std, band.scale, band.offset]).all() for band in source.bands)
    assert all(band.std > 0 and band.gsd >= source.gsd > 0 for band in source.bands)
    assert statistics()[source.name] == {band.name: (band.transform, band.mean, band.std) for band in source.bands}


def test_palsar_numbers_become_decibel() -> None:
    numbers = np.array([1.0, 100.0, 7000.0])
    np.testing.assert_allclose(transform(numbers, "amplitude"), 10 * np.log10(numbers**2) - 83)
    angle = SOURCES["palsar-2"].band("LIN")
    assert 9000 * angle.scale == pytest.approx(np.pi / 2)


def sigmas(name: str, band: str, values: np.ndarray) -> np.ndarray:
    row = SOURCES[name].band(band)
    return (transform(values, row.transform) - row.mean) / row.std


def test_a_real_winter_of_europe_lies_within_the_sigmas_of_air_temperature(real: Path) -> None:
    import rasterio

    with rasterio.open(real / "era5" / "era5-single-level-scalar-time.grib") as file:
        kelvin = file.read(1)  # whatever its tag GRIB_UNIT says: 263 to 292
    off = sigmas("era5-land", "temperature_2m", kelvin)
    assert -2 < off.min() < off.mean() < 0, "a noon of January is colder than the year"
    assert off.max() < 2


def test_real_shots_over_a_savanna_lie_within_the_sigmas_of_heights(real: Path) -> None:
    import h5py

    with zipfile.ZipFile(next((real / "gedi").glob("*.zip"))) as archive:
        content = archive.read(archive.namelist()[0])
    with h5py.File(io.BytesIO(content)) as file:
        shots = np.concatenate([group["rh"][:] for name, group in file.items() if name.startswith("BEAM")])
    assert shots.shape[1] == len(SOURCES["gedi"].bands)
    off = np.stack([sigmas("gedi", f"RH{n}", shots[:, n]) for n in range(101)])
    assert np.abs(off).max() < 3
    assert (off.mean(axis=1) < 0.2).all(), "trees of a savanna are lower than those of the land as a whole"


def test_every_code_of_a_real_land_cover_map_is_a_class(real: Path) -> None:
    import rasterio

    with rasterio.open(real / "nlcd" / "augusta_nlcd.tif") as file:
        codes = np.unique(file.read(1))
    assert len(codes) == 15
    assert set(codes.tolist()) <= set(SOURCES["nlcd"].classes)


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    path = tmp_path / "catalog.json"
    about = {"type": "Catalog", "id": "empty", "stac_version": "1.0.0", "description": "nothing", "links": []}
    path.write_text(json.dumps(about))
    return path


TARGETS = [name for name in SOURCES if name not in INPUTS]
FILES = [name for name in TARGETS if not SOURCES[name].collections]


@pytest.mark.parametrize("name", FILES)
def test_fetch_refuses_what_no_catalog_has(
    name: str, catalog: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(catalog.parent)
    words = ["--stac", str(catalog), "--bbox", "15,46,15.01,46.01", "--period", "2023", "--source", name]
    monkeypatch.setattr(sys, "argv", ["aef", "fetch", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capfd.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert err.count("\n") == 1
    assert f"no catalog has {name}: it comes from files" in err
    assert not list(catalog.parent.glob("cube.zarr*"))


@pytest.mark.parametrize("name", [name for name in TARGETS if name not in FILES])
def test_fetch_refuses_what_this_catalog_has_not(name: str, catalog: Path, tmp_path: Path) -> None:
    request = Request(str(catalog), BBox(15, 46, 15.01, 46.01), Period.parse("2023"), (name,))
    with pytest.raises(BadInput, match=f"does not give {name}: the catalog has none of {SOURCES[name].collections[0]}"):
        fetch(request, tmp_path / "cube.zarr")


def test_fetch_speaks_of_no_such_source_unasked(catalog: Path, tmp_path: Path) -> None:
    request = Request(str(catalog), BBox(15, 46, 15.01, 46.01), Period.parse("2023"))
    with pytest.raises(BadInput) as refused:
        fetch(request, tmp_path / "cube.zarr")
    assert all(name in str(refused.value) for name in INPUTS)
    assert not any(name in str(refused.value) for name in TARGETS)
