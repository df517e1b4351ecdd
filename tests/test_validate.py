"""`aef validate` passes what is right, and names what is wrong with a store that was changed by hand, and no more."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import xarray as xr
import zarr
from affine import Affine
from conftest import Aef
from odc.geo.geobox import GeoBox
from test_published import ALONG, AS_LAST, CONVENTIONS, HOSTILE, write_tiff, write_zarr
from test_published import H as ROWS
from test_published import W as COLUMNS

from aefcli import field, item, ledger
from aefcli.errors import BadInput
from aefcli.extent import Period, tiles
from aefcli.validate import Validated, validate

GRID = GeoBox((75, 70), Affine(10, 0, 500120, 0, -10, 5400330), "EPSG:32631")
PERIODS = [Period.parse("2023"), Period.parse("2023-06"), Period.parse("2030")]
NOT_THERE = {"extrapolated", "ledger", "STAC item", "uncertainty"}  # of a bare field of ours
CHUNK = 64


def unit_codes(shape: tuple[int, ...], seed: int = 0, d: int = 64) -> np.ndarray:
    """Codes (d, ...) of random unit vectors."""
    vectors = np.random.default_rng(seed).normal(size=(d, *shape))
    return field.quantise(vectors / np.linalg.norm(vectors, axis=0), axis=0)


def make_field(path: Path, dtype: str = "int8", *, more: bool = False) -> None:
    """A field of three periods with its records; the last is extrapolated, a corner and a whole chunk are nodata.

    With `more` it says how many frames are inside its periods, and has an uncertainty.
    """
    codes = np.moveaxis(unit_codes((len(PERIODS), *GRID.shape)), 0, 1)
    codes[:, :, :3, :2] = field.NODATA
    codes[:, :, 64:, 64:] = field.NODATA
    empty = codes[:, 0] == field.NODATA
    seen = np.random.default_rng(1).integers(0, 6, empty.shape)
    seen[2] = 0
    seen[empty] = 0
    spread = np.where(empty, np.nan, 3.0).astype("float32") if more else None
    numbers = codes if dtype == "int8" else field.dequantise(codes, axis=1).astype(dtype)
    inside, key = ([(9, 9), (6, 9), (0, 9)] if more else None), {"aef:key": "ab" * 32}

    def template(store: Path) -> None:
        options = {"dtype": dtype, "inside": inside, "uncertainty": more, "chunk": CHUNK}
        field.create(store, GRID, PERIODS, sources=["sentinel-2"], attrs=key, **options)

    with ledger.build(path, {"of": "a test"}, dict) as build:
        build.template(template)
        for tile in tiles(GRID.shape, CHUNK):
            at = (..., *tile.slices)
            angles = None if spread is None else spread[at]
            files = field.write(path, tile, numbers[at], {"sentinel-2": seen[at]}, uncertainty=angles)
            build.record(f"{tile.top}/{tile.left}", files)
        build.finish(field.finish)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good field. Not to be changed."""
    path = tmp_path_factory.mktemp("made") / "f.zarr"
    make_field(path)
    return path


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    """A copy without its records, to be changed."""
    return shutil.copytree(made, tmp_path / "f.zarr")


def failed(found: Validated) -> set[str]:
    assert len({check.name for check in found.checks}) == len(found.checks), "each check has a name of its own"
    return {check.name for check in found.checks if check.state == "failed"}


def said(found: Validated, name: str) -> str:
    return next(check.found for check in found.checks if check.name == name)


def edit(path: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the metadata of the root ("") or of an array, where it stands and where it is consolidated."""
    root = json.loads((path / "zarr.json").read_text())
    if name:
        own = json.loads((path / name / "zarr.json").read_text())
        change(own)
        (path / name / "zarr.json").write_text(json.dumps(own))
        root["consolidated_metadata"]["metadata"][name] = own
    else:
        change(root)
    (path / "zarr.json").write_text(json.dumps(root))


def put(path: Path, name: str, where: Any, values: Any) -> None:
    """Change values of an array."""
    zarr.open_group(path, mode="r+", use_consolidated=False)[name].with_config({"write_empty_chunks": True})[where] = (
        values
    )


def attributes(name: str, **values: Any) -> Callable[[Path], None]:
    """Set attributes, whose names may hold __ for a colon."""
    told = {key.replace("__", ":"): value for key, value in values.items()}
    return lambda path: edit(path, name, lambda meta: meta["attributes"].update(told))


def meta(name: str, **values: Any) -> Callable[[Path], None]:
    return lambda path: edit(path, name, lambda found: found.update(values))


def of_attributes(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    return lambda path: edit(path, name, lambda found: change(found["attributes"]))


def values(name: str, where: Any, new: Any) -> Callable[[Path], None]:
    return lambda path: put(path, name, where, new)


def swapped(path: Path) -> None:
    bounds = zarr.open_group(path, mode="r")["time_bnds"][:]
    put(path, "time_bnds", slice(1, 2), bounds[1:2, ::-1])


def twice(path: Path) -> None:
    put(path, "time", 1, PERIODS[0].start)
    put(path, "time_bnds", 1, [PERIODS[0].start, PERIODS[0].end])


def moved(name: str, by: float) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        put(path, name, slice(None), zarr.open_group(path, mode="r")[name][:] + by)

    return change


def no_checksum(found: dict[str, Any]) -> None:
    for codec in found["codecs"]:
        codec.get("configuration", {}).pop("checksum", None)


def broken(path: Path) -> None:
    file = path / "embeddings/c/1/0/1/0"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def wrong_uuid(found: dict[str, Any]) -> None:
    found["zarr_conventions"][0]["uuid"] = "0"


def no_description(found: dict[str, Any]) -> None:
    del found["zarr_conventions"][2]["description"]


def with_scale(found: dict[str, Any]) -> None:
    found["geoemb:quantization"]["scale"] = 0.0078


def with_type(found: dict[str, Any]) -> None:
    found["geoemb:quantization"]["quantized_dtype"] = "uint8"


# What was done to the store, the checks that fail, and what the first of them has to say.
CHANGES: dict[str, tuple[Callable[[Path], object], set[str], str]] = {
    "x by half a pixel": (
        moved("x", 5.0), {"coordinates"}, "x[0] is 500130, by spatial:transform 500125, 0.5 pixels off: half a pixel",
    ),
    "y in its last digit": (moved("y", 1e-8), {"coordinates"}, "pixels off"),
    "y irregular": (values("y", 4, 5_400_286.0), {"coordinates"}, "it is not regular"),
    "GeoTransform at the centre": (
        attributes("spatial_ref", GeoTransform="500125.0 10.0 0.0 5400325.0 0.0 -10.0"), {"transform"}, "half a pixel",
    ),
    "bbox of the centres": (
        attributes("", spatial__bbox=[500125, 5399585, 500815, 5400325]), {"bbox"}, "500120 5399580 500820 5400330",
    ),
    "another shape": (attributes("", spatial__shape=[70, 75]), {"shape"}, "[70, 75], embeddings 75 x 70"),
    "registration": (attributes("", spatial__registration="node"), {"registration"}, "node"),
    "another zone": (attributes("", proj__code="EPSG:32632"), {"CRS"}, "zone 31N, proj:code WGS 84 / UTM zone 32N"),
    "no grid mapping": (
        of_attributes("spatial_ref", lambda found: found.clear()), {"CRS", "transform", "rioxarray"}, "to say it",
    ),
    "time_bnds swapped": (swapped, {"periods", "opens"}, "time_bnds[1] runs from 2023-07-01 to 2023-06-01"),
    "time at another place": (values("time", 0, 0), {"periods"}, "time[0] is 1970-01-01"),
    "a period twice": (twice, {"periods"}, "2023-01-01 to 2024-01-01 is there twice"),
    "labels": (values("embedding", 3, "B03"), {"labels"}, "A00 ... A63"),
    "fill_value": (meta("embeddings", fill_value=0), {"type and nodata"}, "fill_value 0, _FillValue -128; to be -128"),
    "_FillValue": (attributes("embeddings", _FillValue=0), {"type and nodata", "nodata as NaN"}, "0"),
    "scale_factor": (
        attributes("embeddings", scale_factor=0.0078), {"no scale_factor"}, "scale_factor 0.0078: the code is not",
    ),
    "another formula": (
        attributes("embeddings", quantisation="x = q / 127"), {"quantisation"}, "'x = q / 127', to be sign(q)*(|q|",
    ),
    "a linear scale": (of_attributes("", with_scale), {"quantisation"}, "signed_power, with a scale"),
    "a convention's uuid": (of_attributes("", wrong_uuid), {"conventions"}, "proj: has uuid 0, to be f17cb550"),
    "a convention's words": (of_attributes("", no_description), {"conventions"}, "geoemb: lacks description"),
    "dimensions": (attributes("", spatial__dimensions=["x", "y"]), {"attributes"}, "spatial:dimensions ['x', 'y']"),
    "no conventions": (of_attributes("", lambda found: found.pop("Conventions")), {"attributes"}, "Conventions None"),
    "a parameter of the projection": (
        attributes("spatial_ref", longitude_of_central_meridian=21.0), {"attributes"}, "of the grid mapping 21.0",
    ),
    "the other name of the CRS": (
        attributes("spatial_ref", spatial_ref="EPSG:32634"), {"attributes"}, "zone 34N, crs_wkt WGS 84 / UTM zone 31N",
    ),
    "units of x": (attributes("x", units="km"), {"attributes"}, "units of x km, by its CRS"),
    "another formula of the root": (attributes("", quantisation="x = q / 127"), {"quantisation"}, "to be sign(q)*(|q|"),
    "another type of codes": (of_attributes("", with_type), {"quantisation"}, "signed_power"),
    "sources": (attributes("", geoemb__source_data=["landsat"]), {"attributes"}, "source_data ['landsat']"),
    "another request": (
        attributes("", **{"aef:request": {"periods": [[0, 1]]}, "aef:key": "0"}), {"attributes"}, "aef:key is not that",
    ),
    "geoemb": (attributes("", geoemb__dimensions=128), {"geoemb"}, "dimensions 128, to be 64"),
    "not consolidated": (meta("", consolidated_metadata=None), {"metadata", "plain open", "opens"}, "warn"),
    "consolidated differently": (
        lambda path: (path / "x/zarr.json").write_text((path / "x/zarr.json").read_text().replace("projection_x", "x")),
        {"metadata", "attributes"}, "x not as consolidated",
    ),
    "building": (attributes("", state="building"), {"state", "opens"}, "building, to be complete"),
    "no checksum": (lambda path: edit(path, "embeddings", no_checksum), {"checksums"}, "none in embeddings"),
    "a chunk is missing": (
        lambda path: (path / "embeddings/c/1/0/1/0").unlink(), {"chunks", "observations"}, "first embeddings/c/1/0/1/0",
    ),
    "a chunk of counts is missing": (
        lambda path: (path / "observations_sentinel-2/c/2/0/0").unlink(), {"chunks"}, "observations_sentinel-2/c/2/0/0",
    ),
    "a bit is flipped": (broken, {"blocks"}, "1 do not read, first rows 0:75, columns 0:70 of time 1"),
    "a code makes a part nodata": (
        values("embeddings", (1, 7, 40, 5), -128), {"nodata whole"},
        "1 pixels lack some of 64 numbers and not all, first at time 1, row 40, column 5",
    ),
    "a code makes a vector long": (
        values("embeddings", (1, 7, 40, 6), 120), {"lengths"},
        "1 are not within 0.008 of 1, or as rounding leaves unit vectors, first at time 1, row 40, column 6",
    ),
    "a vector of zeros": (
        values("embeddings", (0, slice(None), 74, 9), 0), {"zero vectors"}, "time 0, row 74, column 9",
    ),
    "seen without a vector": (
        values("observations_sentinel-2", (0, 1, 1), 2), {"observations"}, "1 pixels were seen and have no vector",
    ),
}  # fmt: skip


def test_a_good_field_passes_every_check(made: Path) -> None:
    found = validate(made, workers=2)
    assert failed(found) == set()
    assert {check.name for check in found.checks if check.state == "not applicable"} == NOT_THERE - {"ledger"}
    assert found.blocks == (3, 3), "one read takes several small chunks"
    assert "files are as they were written" in said(found, "ledger")


@pytest.mark.parametrize("name", CHANGES)
def test_what_was_changed_is_found_and_nothing_else(store: Path, name: str) -> None:
    change, expected, text = CHANGES[name]
    change(store)
    found = validate(store, workers=2)
    wrong = {check.name: check.found for check in found.checks if check.state == "failed"}
    assert set(wrong) == expected, wrong
    assert any(text in shown for shown in wrong.values()), wrong
    assert all("\n" not in check.found for check in found.checks)


@pytest.mark.parametrize("dtype", field.DTYPES)
def test_optional_parts_pass_where_they_are_right(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "f.zarr"
    make_field(path, dtype, more=True)
    item.write(path)
    found = validate(path)
    assert failed(found) == set()
    coded = {"nodata as NaN"} if dtype != "int8" else set()
    assert {check.name for check in found.checks if check.state == "not applicable"} == coded


MORE: dict[str, tuple[Callable[[Path], object], set[str], str]] = {
    "extrapolated": (values("extrapolated", 0, True), {"extrapolated", "observations"}, "[0] is True, frames_inside 9"),
    "frames_inside": (values("frames_inside", 2, 3), {"extrapolated"}, "[2] is True, frames_inside 3"),
    "share_inside": (values("share_inside", 1, 1.5), {"extrapolated"}, "share_inside[1] is 1.5"),
    "seen while extrapolated": (
        values("observations_sentinel-2", (2, 40, 9), 1), {"observations"}, "seen in a period that holds no",
    ),
    "more seen than frames": (
        values("observations_sentinel-2", (1, 40, 9), 7), {"observations"}, "more observations than",
    ),
    "uncertainty without a vector": (values("uncertainty", (0, 1, 1), 2.0), {"uncertainty"}, "time 0, row 1, column 1"),
    "a vector without uncertainty": (values("uncertainty", (1, 40, 9), np.nan), {"uncertainty"}, "row 40, column 9"),
    "uncertainty below 0": (values("uncertainty", (1, 40, 9), -1.0), {"uncertainty"}, "row 40, column 9"),
}  # fmt: skip


@pytest.fixture(scope="module")
def fuller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good field with all that is optional. Not to be changed."""
    path = tmp_path_factory.mktemp("fuller") / "f.zarr"
    make_field(path, more=True)
    return path


@pytest.mark.parametrize("name", MORE)
def test_what_was_changed_in_optional_parts_is_found(fuller: Path, tmp_path: Path, name: str) -> None:
    change, expected, text = MORE[name]
    path = shutil.copytree(fuller, tmp_path / "f.zarr")
    change(path)
    found = validate(path)
    wrong = {check.name: check.found for check in found.checks if check.state == "failed"}
    assert set(wrong) == expected, wrong
    assert any(text in shown for shown in wrong.values()), wrong


def test_vectors_without_observations_are_no_fault(store: Path) -> None:
    """A month without a clear look, of a year that had some: nothing can be said against it."""
    put(store, "observations_sentinel-2", 1, 0)
    assert failed(validate(store)) == set()


def test_the_ledger_is_held_to(made: Path, store: Path) -> None:
    shutil.copytree(ledger.records_of(made), ledger.records_of(store))
    put(store, "embeddings", (0, slice(None), 50, 10), unit_codes((), 9))
    found = validate(store)
    assert failed(found) == {"ledger"}
    assert "embeddings/c/0/0/0/0 damaged" in said(found, "ledger")
    assert failed(validate(store, quick=0)) == set()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda document: document["properties"].update({"proj:bbox": [0, 0, 1, 1]}), "properties.proj:bbox [0, 0"),
        (lambda document: document["bbox"].__setitem__(0, 3.1), "bbox 3.1"),
        (lambda document: document["properties"].update(start_datetime="2022-01-01T00:00:00Z"), "start_datetime 2022"),
        (lambda document: document["assets"].pop("embeddings"), "assets.embeddings None"),
        (lambda document: document.pop("links"), "'collection' is a required"),
        (lambda document: document["properties"].pop("datetime"), "$.properties"),
        (lambda document: document.update(type="Collection"), "not represent"),
    ],
)  # fmt: skip
def test_the_item_beside_it_has_to_agree(store: Path, change: Callable[[Any], object], text: str) -> None:
    path = item.write(store)
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    found = validate(store, quick=0)
    assert failed(found) == {"STAC item"}
    assert text in said(found, "STAC item")


def test_a_quick_look_reads_a_sample_and_says_so(tmp_path: Path) -> None:
    path, grid = tmp_path / "f.zarr", GeoBox((9, 1300), Affine(10, 0, 500120, 0, -10, 5400330), "EPSG:32631")
    years = [Period.parse(str(year)) for year in range(2017, 2021)]
    field.create(path, grid, years, sources=["landsat"], attrs={})
    for tile in tiles(grid.shape, field.CHUNK):
        codes = np.moveaxis(unit_codes((4, *tile.shape), tile.left), 0, 1)
        field.write(path, tile, codes, {"landsat": np.ones((4, *tile.shape), int)})
    field.finish(path)
    put(path, "embeddings", (2, 5, 4, 600), -128)
    whole = validate(path)
    assert (whole.blocks, failed(whole)) == ((24, 24), {"nodata whole"})
    looks = [validate(path, quick=seed) for seed in range(5)]
    assert {look.blocks for look in looks} == {(16, 24)}
    assert "drawn with seed 3" in said(looks[3], "blocks")
    assert looks[3].as_dict() == validate(path, quick=3, workers=1).as_dict()
    assert {bool(failed(look)) for look in looks} == {True, False}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_floats_are_held_to_floats(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "f.zarr"
    make_field(path, dtype)
    shutil.rmtree(ledger.records_of(path))
    put(path, "embeddings", (0, 3, 70, 20), np.nan)
    put(path, "embeddings", (0, slice(None), 71, 20), 0.3)
    meta("embeddings", fill_value=0.0)(path)
    attributes("", geoemb__quantization={"method": "signed_power"})(path)
    found = validate(path)
    assert failed(found) == {"nodata whole", "lengths", "type and nodata", "quantisation"}
    assert "row 71, column 20" in said(found, "lengths")


# --- of others ------------------------------------------------------------------------------------------------------


def others() -> np.ndarray:
    codes = unit_codes((ROWS, COLUMNS), 5)
    codes[:, 0, 0] = field.NODATA
    return codes


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("dims", [("time", "band", "y", "x"), AS_LAST])
def test_mosaics_of_others_pass_with_notes(tmp_path: Path, dims: tuple[str, ...], version: int) -> None:
    path = write_zarr(tmp_path / "aef.zarr", others(), dims, coords=ALONG, version=version, fill_value=-128)
    with pytest.warns(UserWarning, match="Consolidated") if version == 3 else nullcontext():
        zarr.consolidate_metadata(path)
    found = validate(path)
    assert failed(found) == set()
    told = " ".join(found.notes)
    assert "its dimensions are" in told
    assert "_FillValue is missing" in told
    assert "taken for AEF's" in told
    at = {"time": 0, "band": 3, "y": 5, "x": 4}
    put(path, "embeddings", tuple(at[name] for name in dims), -128)
    assert failed(validate(path)) == {"nodata whole"}


@pytest.mark.parametrize(
    ("options", "expected", "text"),
    [
        ({"coords": {**ALONG, "x": (ALONG["x"][0] - 5, {})}}, {"coordinates"}, "half a pixel"),
        ({"own": {"scale_factor": 0.0078}}, {"no scale_factor", "opens"}, "scale_factor"),
        ({"attrs": {**CONVENTIONS, "spatial:bbox": [500_005, 0, 1, 1]}}, {"bbox"}, "500005"),
        ({"fill_value": 0}, {"type and nodata"}, "fill_value 0"),
        ({"attrs": {**CONVENTIONS, "geoemb:dimensions": 128}}, {"geoemb"}, "dimensions 128, to be 64"),
        ({"attrs": {**CONVENTIONS, "geoemb:quantization": {"method": "linear"}}}, {"opens", "quantisation"}, "linear"),
        ({"attrs": {"spatial:transform": CONVENTIONS["spatial:transform"]}}, {"CRS", "opens"}, "CRS"),
        ({"coords": {"y": ALONG["y"], "x": ALONG["x"]}}, {"periods"}, "--period"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_fails_of_others_too(
    tmp_path: Path, options: dict[str, Any], expected: set[str], text: str
) -> None:
    path = write_zarr(tmp_path / "a.zarr", others(), **{"coords": ALONG, "fill_value": -128, "version": 2, **options})
    zarr.consolidate_metadata(path)
    found = validate(path)
    wrong = {check.name: check.found for check in found.checks if check.state == "failed"}
    assert set(wrong) == expected, wrong
    assert text in " ".join(wrong.values())
    if expected == {"periods"}:
        assert failed(validate(path, period=PERIODS[0])) == set()


def test_scales_of_others_are_not_held_to_unit_length(tmp_path: Path) -> None:
    scales = np.full((ROWS, COLUMNS), 0.01, "float32")
    scales[2, 2] = np.nan
    path = write_zarr(
        tmp_path / "tessera_2024.zarr", unit_codes((ROWS, COLUMNS), d=128), coords=ALONG, version=2,
        arrays={"scales": (("y", "x"), scales)},
    )  # fmt: skip
    zarr.consolidate_metadata(path)
    found = validate(path)
    assert failed(found) == set()
    assert "1.59% nodata" in said(found, "blocks")
    assert "others leave them as they are" in said(found, "lengths")


def test_geotiffs(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "aef_2024.tif", others())
    found = validate(path)
    assert (found.kind, failed(found)) == ("GeoTIFF", set())
    south = write_tiff(tmp_path / "south_2024.tif", others()[:, ::-1], Affine(10, 0, 500_000, 0, 10, 5_099_910))
    found = validate(south)
    assert failed(found) == set()
    assert "south to north" in " ".join(found.notes)
    with rasterio.open(path, "r+") as file:
        values = file.read(8)
        values[3, 3] = -128
        file.write(values, 8)
        file.descriptions = (*field.LABELS[:-1], "B63")
    found = validate(path)
    assert failed(found) == {"nodata whole", "labels"}
    assert "row 3, column 3" in said(found, "nodata whole")
    unsaid = write_tiff(tmp_path / "unsaid.tif", others())
    assert failed(validate(unsaid)) == {"periods"}
    assert failed(validate(unsaid, period=PERIODS[0])) == set()


def test_overviews_hold_means_of_vectors_and_not_of_codes(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "aef_2024.tif", others())
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2], rasterio.enums.Resampling.nearest)
    assert failed(validate(path)) == set()
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2], rasterio.enums.Resampling.average)
    found = validate(path)
    assert failed(found) == {"overviews"}


def test_the_published_file(real: Path) -> None:
    found = validate(real / "aef/aef_2024_wisconsin_utm16n_10m_int8.tif")
    assert failed(found) == set()
    assert "5.93% nodata" in said(found, "blocks")


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_ends_with_what_it_found(made: Path, store: Path, aef: Aef) -> None:
    code, out, _ = aef("validate", str(made))
    assert code == 0
    assert out.count("\n") == len(validate(made).checks) + 1
    assert "all good" in out
    code, out, _ = aef("validate", str(made), "--json", "--quick")
    document = json.loads(out)
    assert (code, document["status"], document["failed"]) == (0, "ok", 0)
    assert {"name": "north up", "state": "ok", "found": "rows run north to south"} in document["checks"]
    assert aef("validate", str(made), "-q")[1] == f"{made}\n"
    put(store, "embeddings", (0, 3, 50, 10), -128)
    code, out, err = aef("validate", str(store))
    assert code == 4
    assert "failed          nodata whole" in out
    assert err.splitlines()[-1].endswith("checks failed: nodata whole (write it again, or mend what they name)")
    code, out, _ = aef("validate", str(store), "--json")
    document = json.loads(out)
    assert (code, document["error"]["code"], document["failed"]) == (4, 4, 1)
    assert [check["name"] for check in document["checks"] if check["state"] == "failed"] == ["nodata whole"]


@pytest.mark.parametrize("name", ["none.zarr", "text.txt", "empty", "map.tif", "cube.zarr", "nothing.npy"])
def test_what_is_no_embedding_store_is_refused(tmp_path: Path, name: str, aef: Aef) -> None:
    path = tmp_path / name
    if name == "text.txt":
        path.write_text("hello")
    elif name == "empty":
        path.mkdir()
    elif name == "map.tif":
        write_tiff(path, np.ones((1, 5, 5), "uint8"), nodata=None)
    elif name == "cube.zarr":
        zarr.create_group(path, attributes={"aef:format": "datacube/1"}).create_group("sentinel-2")
    elif name == "nothing.npy":
        np.save(path, np.zeros(3))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BadInput):
        validate(path)
    code, out, err = aef("validate", name)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform", "ignore:.*no geotransform")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_broken_or_hostile_file_is_refused_or_fails(tmp_path: Path, name: str) -> None:
    HOSTILE[name](tmp_path / name)
    if name in ("times.zarr", "wide.zarr", "empty.zarr"):  # stores, of sizes that nobody means
        assert "opens" in failed(validate(tmp_path / name, period=PERIODS[0], quick=0))
        return
    with pytest.raises(BadInput, match=re.escape(name)):
        validate(tmp_path / name, period=PERIODS[0], quick=0)


def test_a_vast_store_is_looked_at_quickly(tmp_path: Path) -> None:
    """Chunks of petabytes that were never written: neither listed nor read."""
    path = tmp_path / "aef_2024.zarr"
    root = zarr.create_group(path, zarr_format=2, attributes=CONVENTIONS)
    root.create_array(
        "embeddings", shape=(64, 1 << 20, 1 << 20), chunks=(64, 256, 256), dtype="int8", fill_value=-128,
        attributes={"_ARRAY_DIMENSIONS": ["band", "y", "x"]},
    )  # fmt: skip
    zarr.consolidate_metadata(path)
    found = validate(path, quick=1)
    assert (found.blocks, failed(found)) == ((16, 1 << 24), set())
    assert "too many to look for" in said(found, "chunks")


def test_a_plain_open_is_what_it_is_held_to(made: Path) -> None:
    """What the checks say of a plain open is so."""
    plain = xr.open_zarr(made)
    assert plain.embeddings.dtype == np.float32
    assert bool(plain.embeddings[0, :, 0, 0].isnull().all())
    assert "no warning" in said(validate(made, quick=0), "plain open")
