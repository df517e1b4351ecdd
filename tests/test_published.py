"""Fields of others open as they are meant, lie where they lie, and what they leave open is asked for in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import zarr
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from rasterio import Affine

from aefcli import field
from aefcli.errors import BadInput, Damaged
from aefcli.extent import Period, Tile, tiles
from aefcli.published import Vectors, open_vectors

H, W = 9, 7
NORTH_UP = Affine(10, 0, 500_000, 0, -10, 5_100_000)
SOUTH_UP = Affine(10, 0, 500_000, 0, 10, 5_100_000 - 10 * H)
EVERYWHERE = Tile(0, 0, H, W)
YEAR = Period.parse("2023")


def codes(seed: int = 0, d: int = 64) -> np.ndarray:
    """int8 (d, H, W) north up; the first pixel is nodata."""
    found = np.random.default_rng(seed).integers(-127, 128, (d, H, W)).astype(np.int8)
    found[:, 0, 0] = -128
    return found


def centres(rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Longitude and latitude of pixels of the north-up grid."""
    to_degrees = Transformer.from_crs("EPSG:32633", "EPSG:4326", always_xy=True)
    return to_degrees.transform(500_000 + 10 * (columns + 0.5), 5_100_000 - 10 * (rows + 0.5))


ROWS, COLUMNS = (axis.ravel() for axis in np.mgrid[:H, :W])
LON, LAT = centres(ROWS, COLUMNS)


def write_tiff(path: Path, values: np.ndarray, transform: Affine = NORTH_UP, **options: Any) -> Path:
    options = {"nodata": -128, "crs": "EPSG:32633", **options}
    count, height, width = values.shape
    shape = {"count": count, "height": height, "width": width, "dtype": values.dtype}
    with rasterio.open(path, "w", driver="GTiff", transform=transform, **shape, **options) as file:
        file.write(values)
    return path


def check_pixels(vectors: Vectors, expected: np.ndarray) -> None:
    """Every pixel of the north-up grid has the expected vector (d, H, W), by points; the same in windows."""
    order = np.random.default_rng(1).permutation(H * W)
    found, inside = vectors.sample(LON[order], LAT[order])
    assert inside.all()
    np.testing.assert_allclose(found, expected[:, ROWS[order], COLUMNS[order]].T, atol=1e-6)
    whole = vectors.window(EVERYWHERE)
    south_up = vectors.grid.transform.e > 0
    np.testing.assert_allclose(whole[:, ::-1] if south_up else whole, expected, atol=1e-6)
    assert found.dtype == whole.dtype == np.float32
    away, inside = vectors.sample(np.array([LON[0] + 1, 200.0]), np.array([LAT[0], 95.0]))
    assert np.isnan(away).all()
    assert not inside.any()


# --- ours -----------------------------------------------------------------------------------------------------------


def test_our_own_field_answers_as_field_does(tmp_path: Path) -> None:
    path, periods = tmp_path / "own.zarr", [Period.parse("2022"), YEAR]
    stack = np.stack([codes(0), codes(1)])
    field.create(path, GeoBox((H, W), NORTH_UP, "EPSG:32633"), periods, sources=[], attrs={}, chunk=4)
    for tile in tiles((H, W), 4):
        field.write(path, tile, stack[(..., *tile.slices)], {})
    field.finish(path)
    own = open_vectors(path)
    assert (own.name, own.periods, own.dimensions, own.block) == ("own", tuple(periods), 64, (4, 4))
    lon, lat = np.append(LON, 0.0), np.append(LAT, 0.0)
    for index in (0, 1):
        expected, inside = field.sample(field.open_field(path), lon, lat, index)
        found, found_inside = own.sample(lon, lat, index)
        np.testing.assert_array_equal(found, expected[:, 0])
        np.testing.assert_array_equal(found_inside, inside)
        np.testing.assert_array_equal(own.codes(EVERYWHERE, index), stack[index])
        np.testing.assert_array_equal(own.window(Tile(1, 2, 6, 5), index), own.window(EVERYWHERE, index)[:, 1:6, 2:5])
    check_pixels(own, field.dequantise(stack[0], axis=0))


# --- AEF's GeoTIFFs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interleave", ["band", "pixel"])
@pytest.mark.parametrize("transform", [NORTH_UP, SOUTH_UP], ids=["north up", "south up"])
def test_a_geotiff_lies_where_its_affine_says(tmp_path: Path, transform: Affine, interleave: str) -> None:
    values = codes()
    stored = values[:, ::-1] if transform is SOUTH_UP else values
    path = write_tiff(tmp_path / "aef_2024_x.tif", stored, transform, interleave=interleave, blockysize=2)
    aef = open_vectors(path)
    assert aef.periods == (Period.parse("2024"),)
    assert aef.grid.transform == transform
    assert np.isnan(aef.window(EVERYWHERE)).any(axis=0).sum() == 1
    check_pixels(aef, field.dequantise(values, axis=0))


def test_the_published_file_of_wisconsin(real: Path, tmp_path: Path) -> None:
    path = real / "aef/aef_2024_wisconsin_utm16n_10m_int8.tif"
    aef = open_vectors(path)
    whole = Tile(0, 0, *aef.grid.shape)
    assert (aef.periods, aef.dimensions) == ((Period.parse("2024"),), 64)
    lengths = np.linalg.norm(field.dequantise(aef.codes(whole), axis=0, renormalise=False), axis=0)
    assert np.isfinite(lengths).mean() > 0.9
    assert 0.993 <= np.nanmin(lengths) <= np.nanmax(lengths) <= 1.008
    np.testing.assert_allclose(np.linalg.norm(aef.window(whole), axis=0)[np.isfinite(lengths)], 1, atol=1e-6)
    # Centres of the corner pixels by Krueger's series, not by PROJ: 358385 E 4906625 N, 359405 E 4905605 N of zone 16
    lon, lat = np.array([-88.7752781, -88.7622229]), np.array([44.2990857, 44.2901049])
    rows, columns, inside = field.locate(aef.grid, lon, lat)
    assert inside.all()
    assert rows.tolist() == columns.tolist() == [0, 102]
    flipped = write_tiff(
        tmp_path / "south_2024.tif",
        aef.codes(whole)[:, ::-1],
        aef.grid.transform * Affine(1, 0, 0, 0, -1, 103),
        crs="EPSG:32616",
    )
    rng = np.random.default_rng(0)
    lon, lat = rng.uniform(lon[0], lon[1], 300), rng.uniform(lat[1], lat[0], 300)
    found, inside = open_vectors(flipped).sample(lon, lat)
    assert inside.mean() > 0.9
    np.testing.assert_array_equal(found, aef.sample(lon, lat)[0])


def test_floats_are_taken_as_they_stand(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(5, H, W)).astype("float32")
    values[3, 2, 2] = -9999
    path = write_tiff(tmp_path / "x_2021.tif", values, nodata=-9999)
    expected = values.copy()
    expected[:, 2, 2] = np.nan
    check_pixels(open_vectors(path), expected)


@pytest.mark.parametrize(
    ("name", "tags", "year"),
    [
        ("a.tif", {"YEAR": "2019"}, "2019"),
        ("2024/16N/x8qqw2019a-0000008192-0000000000.tiff", {}, "2024"),
        ("aef_2017_10m.tif", {}, "2017"),
        ("from_2017_to_2018.tif", {}, None),
    ],
)
def test_the_year_is_in_a_tag_or_the_name_or_is_asked_for(
    tmp_path: Path, name: str, tags: dict[str, str], year: str | None
) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tiff(path, codes())
    with rasterio.open(path, "r+") as file:
        file.update_tags(**tags)
    if year is None:
        with pytest.raises(BadInput, match="--period"):
            open_vectors(path)
    assert open_vectors(path, YEAR).periods == (Period.parse(year or "2023"),)


# --- Zarr of others -------------------------------------------------------------------------------------------------

CONVENTIONS = {"proj:code": "EPSG:32633", "spatial:transform": [*NORTH_UP][:6]}
AS_AEF = ("time", "band", "y", "x")
AS_LAST = ("time", "y", "x", "band")


def write_zarr(
    path: Path,
    values: np.ndarray,
    dims: tuple[str, ...] = AS_AEF,
    *,
    attrs: dict[str, Any] | None = None,
    own: dict[str, Any] | None = None,
    coords: dict[str, tuple[np.ndarray, dict[str, Any]]] | None = None,
    arrays: dict[str, tuple[tuple[str, ...], np.ndarray]] | None = None,
    version: int = 3,
    name: str = "embeddings",
    **options: Any,
) -> Path:
    """A store of (d, H, W) north up as `dims` has it; `own` are the array's attributes."""
    axes = {"band": 0, "embedding": 0, "y": 1, "x": 2, "lat": 1, "lon": 2}
    named = [dim for dim in dims if dim in axes]
    shaped = values.transpose([axes[dim] for dim in named]).reshape(
        [values.shape[axes[d]] if d in axes else 1 for d in dims]
    )
    root = zarr.create_group(path, zarr_format=version, attributes=CONVENTIONS if attrs is None else attrs)

    def add(key: str, over: tuple[str, ...], array: np.ndarray, about: dict[str, Any], **more: Any) -> None:
        spelt = {"dimension_names": over} if version == 3 else {}
        about = about if version == 3 else {**about, "_ARRAY_DIMENSIONS": list(over)}
        made = root.create_array(key, shape=array.shape, dtype=array.dtype, attributes=about, **spelt, **more)
        made[...] = array

    add(name, dims, shaped, own or {}, **options)
    for key, (array, about) in ({"time": (np.array([2023]), {})} if coords is None else coords).items():
        add(key, (key,), array, about)
    for key, (over, array) in (arrays or {}).items():
        add(key, over, array, {})
    return path


Y = 5_100_000 - 10 * (np.arange(H) + 0.5)
X = 500_000 + 10 * (np.arange(W) + 0.5)
ALONG = {"time": (np.array([2023]), {}), "y": (Y, {}), "x": (X, {})}


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("dims", [AS_AEF, AS_LAST, ("embedding", "y", "x"), ("y", "x", "band")])
def test_axes_are_found_by_name(tmp_path: Path, dims: tuple[str, ...], version: int) -> None:
    path = write_zarr(tmp_path / "aef_2023.zarr", codes(), dims, version=version)
    aef = open_vectors(path)
    assert (aef.periods, aef.dimensions, aef.notes) == ((YEAR,), 64, ())
    np.testing.assert_array_equal(aef.codes(EVERYWHERE), codes())
    check_pixels(aef, field.dequantise(codes(), axis=0))


@pytest.mark.parametrize("sharded", [False, True])
def test_the_place_is_a_transform_a_mapping_or_coordinates(tmp_path: Path, sharded: bool) -> None:
    blocks = {"chunks": (1, 64, 4, 4), "shards": (1, 64, 12, 8)} if sharded else {"chunks": (1, 64, 4, 4)}
    gdal = {"crs_wkt": "EPSG:32633", "GeoTransform": "500000 10 0 5100000 0 -10"}
    south = codes()[:, ::-1]
    stores = {
        "transform": write_zarr(tmp_path / "a.zarr", codes(), **blocks),
        "coordinates": write_zarr(tmp_path / "b.zarr", codes(), attrs={"crs": "EPSG:32633"}, coords=ALONG, **blocks),
        "both": write_zarr(tmp_path / "c.zarr", codes(), coords=ALONG, **blocks),
        "mapping": write_zarr(tmp_path / "d.zarr", codes(), attrs={}, own={"grid_mapping": "spatial_ref"}, **blocks),
        "south up": write_zarr(
            tmp_path / "e.zarr", south, coords={**ALONG, "y": (Y[::-1].copy(), {})}, attrs={"proj:code": "EPSG:32633"}
        ),
    }
    zarr.open_group(stores["mapping"]).create_array("spatial_ref", shape=(), dtype="int64", attributes=gdal)
    for path in stores.values():
        opened = open_vectors(path)
        assert opened.notes == ()
        check_pixels(opened, field.dequantise(codes(), axis=0))
        if path not in (stores["south up"],):
            assert opened.block == (4, 4)


def test_coordinates_half_a_pixel_off_are_told_and_the_transform_is_taken(tmp_path: Path) -> None:
    off = {**ALONG, "y": (Y + 5, {}), "x": (X - 5, {})}
    opened = open_vectors(write_zarr(tmp_path / "half.zarr", codes(), coords=off))
    assert "0.5 pixels" in opened.notes[0]
    check_pixels(opened, field.dequantise(codes(), axis=0))


def test_times_are_years_or_instants_with_bounds(tmp_path: Path) -> None:
    def store(name: str, time: np.ndarray, about: dict[str, Any], **more: Any) -> Path:
        both = np.concatenate([codes(0)[None], codes(1)[None]])
        path = tmp_path / name
        root = zarr.create_group(path, attributes=CONVENTIONS)
        root.create_array("embeddings", data=both, dimension_names=AS_AEF)
        root.create_array("time", data=time, attributes=about, dimension_names=["time"])
        for key, values in more.items():
            root.create_array(key, data=values, dimension_names=["time", "nv"])
        return path

    years = (Period.parse("2022"), YEAR)
    months = (Period.parse("2022-01"), Period.parse("2022-02"))
    days = {"units": "days since 2022-01-01", "calendar": "standard"}
    assert open_vectors(store("a.zarr", np.array([2022, 2023], "int32"), {})).periods == years
    assert open_vectors(store("b.zarr", np.array([0, 365]), days)).periods == years
    bounds = np.array([[0, 31], [31, 59]])
    about = {**days, "bounds": "edges"}
    assert open_vectors(store("c.zarr", np.array([15, 45]), about, edges=bounds)).periods == months
    found = open_vectors(tmp_path / "c.zarr").sample(LON, LAT, 1)[0]
    np.testing.assert_allclose(found, field.dequantise(codes(1), axis=0)[:, ROWS, COLUMNS].T, atol=1e-6)
    with pytest.raises(BadInput, match=r"2022-01-16.*time_bnds"):
        open_vectors(store("d.zarr", np.array([15, 45]), days))
    with pytest.raises(BadInput, match="no units"):
        open_vectors(store("e.zarr", np.array([0.5, 1.5]), {}))


def test_tessera_zarr_has_a_scale_for_each_pixel(tmp_path: Path) -> None:
    """Zone groups under a root that alone says how values are decoded; NaN is water, infinity not made yet."""
    values, scales = codes(d=128), np.random.default_rng(2).uniform(0.01, 0.1, (H, W)).astype("float32")
    scales[0, 1], scales[0, 2], scales[0, 3] = np.nan, np.inf, 0
    root = tmp_path / "tessera.zarr"
    quantisation = {"method": "per_pixel_scale", "scale": {"type": "array", "array_name": "scales", "nodata": "NaN"}}
    zarr.create_group(root, attributes={"geoemb:dimensions": 128, "geoemb:quantization": quantisation})
    write_zarr(root / "utm33", values, arrays={"scales": (("time", "y", "x"), scales[None])})
    expected = values * np.where(np.isfinite(scales) & (scales != 0), scales, np.nan)
    zone = open_vectors(root / "utm33")
    assert zone.dimensions == 128
    check_pixels(zone, expected)
    with pytest.raises(BadInput, match=r"name a group in it, such as .*utm33"):
        open_vectors(root)
    zarr.open_group(root / "utm33").create_array("embedding", shape=(3, 3), dtype="int8")  # the other is meant
    assert open_vectors(root / "utm33").dimensions == 128
    del zarr.open_group(root / "utm33")["scales"]
    with pytest.raises(BadInput, match="no array scales"):
        open_vectors(root / "utm33")


Told = dict[str, Any]


@pytest.mark.parametrize(
    ("store", "message"),
    [
        ({"attrs": {"spatial:transform": [*NORTH_UP][:6]}}, "has no CRS.*proj:code"),
        ({"attrs": {"proj:code": "EPSG:32633"}}, "where its pixels lie"),
        ({"attrs": {**CONVENTIONS, "proj:code": "EPSG:0"}}, "proj:code is no CRS"),
        ({"attrs": {**CONVENTIONS, "spatial:transform": [10, 1, 0, 0, -10, 0]}}, "rotated"),
        ({"attrs": {**CONVENTIONS, "spatial:transform": "somewhere"}}, "does not open"),
        ({"attrs": {**CONVENTIONS, "spatial:transform": [10]}}, "does not open"),
        ({"attrs": {**CONVENTIONS, "spatial:registration": "node"}}, "node"),
        ({"attrs": {**CONVENTIONS, "spatial:shape": [H + 1, W]}}, "spatial:shape"),
        ({"coords": {**ALONG, "x": (X + 20, {})}}, "not those of its transform"),
        (
            {"attrs": {"proj:code": "EPSG:32633"}, "coords": {**ALONG, "x": (X + 4 * (X[3] == X), {})}},
            "not evenly spaced",
        ),
        ({"attrs": {"proj:code": "EPSG:32633"}, "coords": {**ALONG, "x": (X[::-1].copy(), {})}}, "mirrored"),
        ({"own": {"scale_factor": 0.01}}, "scale_factor"),
        ({"values": codes(d=32)}, "how its int8 codes of 32 dimensions"),
        ({"values": codes().astype("int16")}, "how its int16 codes"),
        ({"attrs": {**CONVENTIONS, "geoemb:quantization": {"method": "magic"}}}, "how its int8 codes"),
        ({"dims": ("time", "depth", "y", "x")}, "depth"),
        ({"dims": ("time", "band", "lat", "y")}, "time, band, lat, y"),
        ({"name": "vectors", "dims": ("a", "b", "c", "d")}, "a, b, c, d"),
        ({"coords": {}}, "--period"),
        ({"arrays": {"scales": (("y", "x"), np.ones((H, W + 1)))}}, "scales has"),
    ],
)
def test_what_a_store_leaves_open_is_one_line(tmp_path: Path, store: Told, message: str) -> None:
    store = {"values": codes(), **store}
    if "dims" in store:
        path = tmp_path / "store.zarr"
        zarr.create_group(path, attributes=CONVENTIONS).create_array(
            store.get("name", "embeddings"), data=codes()[None], dimension_names=store["dims"]
        )
    else:
        path = write_zarr(tmp_path / "store.zarr", store.pop("values"), **store)
    with pytest.raises(BadInput, match=message) as told:
        open_vectors(path)
    assert "\n" not in str(told.value)


# --- TESSERA's tiles ------------------------------------------------------------------------------------------------


def write_tile(folder: Path, landmask: Path, scales: np.ndarray | None = None, name: str = "grid_14.95_46.05") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    landmask.parent.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{name}.npy", np.moveaxis(codes(d=128), 0, -1))
    if scales is not None:
        np.save(folder / f"{name}_scales.npy", scales)
    write_tiff(landmask, np.ones((1, H, W), "uint8"), nodata=None)
    return folder / f"{name}.npy"


@pytest.mark.parametrize("by_band", [False, True])
@pytest.mark.parametrize(
    ("folder", "mask"),
    [
        ("global_0.1_degree_representation/2023/grid_14.95_46.05", "global_0.1_degree_tiff_all/grid_14.95_46.05.tiff"),
        ("npy/v1/2023/grid_14.95_46.05", "landmasks/v1/grid_14.95_46.05.tiff"),
        ("2023", "2023/grid_14.95_46.05.tif"),
    ],
)
def test_a_tile_of_tessera_lies_where_its_landmask_says(tmp_path: Path, folder: str, mask: str, by_band: bool) -> None:
    scales = np.random.default_rng(3).uniform(0.01, 0.1, (H, W, 128) if by_band else (H, W)).astype("float32")
    scales[4, 4] = np.nan
    scales[5, 4] = 0
    tile = open_vectors(write_tile(tmp_path / folder, tmp_path / mask, scales))
    assert (tile.periods, tile.dimensions) == ((YEAR,), 128)
    expected = codes(d=128) * (np.moveaxis(scales, -1, 0) if by_band else scales)
    expected[:, 4:6, 4] = np.nan
    check_pixels(tile, expected)
    assert np.linalg.norm(np.nan_to_num(tile.window(EVERYWHERE)), axis=0).max() > 2  # no length is imposed


def test_what_a_tile_lacks_is_named(tmp_path: Path) -> None:
    good = np.ones((H, W), "float32")
    path = write_tile(tmp_path / "2023", tmp_path / "2023/landmask.tif")
    with pytest.raises(BadInput, match=r"there is no .*grid_14\.95_46\.05_scales\.npy"):
        open_vectors(path)
    scales = path.with_name("grid_14.95_46.05_scales.npy")
    for wrong in (good[:-1], good.astype("int32"), np.array([[{}]], dtype=object)):
        np.save(scales, wrong)
        with pytest.raises(BadInput):
            open_vectors(path)
    np.save(scales, good)
    assert open_vectors(path).periods == (YEAR,)
    with pytest.raises(BadInput, match=r"holds the scales.*46\.05\.npy"):
        open_vectors(scales)
    write_tiff(tmp_path / "2023/landmask.tif", np.ones((1, H, W + 1), "uint8"), nodata=None)
    with pytest.raises(BadInput, match="raster of that tile"):
        open_vectors(path)
    (tmp_path / "2023/landmask.tif").unlink()
    with pytest.raises(BadInput, match="where it lies"):
        open_vectors(path)


# --- hostile and broken files ---------------------------------------------------------------------------------------


def header(shape: tuple[int, ...], descr: str = "|i1") -> bytes:
    text = str({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def vast(path: Path, shape: tuple[int, ...], chunks: tuple[int, ...]) -> None:
    zarr.create_group(path, attributes=CONVENTIONS).create_array(
        "embeddings", shape=shape, chunks=chunks, dtype="int8", fill_value=-128, dimension_names=AS_AEF
    )


HOSTILE: dict[str, Callable[[Path], object]] = {
    "nothing.zarr": lambda path: path.mkdir(),
    "text.tif": lambda path: path.write_text("no raster"),
    "recipe.tif": lambda path: path.write_text('<VRTDataset rasterXSize="1" rasterYSize="1"/>'),
    "cut.tif": lambda path: path.write_bytes(write_tiff(path, codes()).read_bytes()[:100]),
    "map.tif": lambda path: write_tiff(path, np.ones((1, H, W), "uint8"), nodata=None),
    "three.tif": lambda path: write_tiff(path, codes(d=3)),
    "zero.tif": lambda path: write_tiff(path, codes(), nodata=0),
    "rotated.tif": lambda path: write_tiff(path, codes(), Affine(10, 1, 0, 1, -10, 0)),
    "nowhere.tif": lambda path: write_tiff(path, codes(), crs=None),
    "pickle.npy": lambda path: np.save(path, np.array([[[{}]]], dtype=object)),
    "short.npy": lambda path: path.write_bytes(header((10**6, 10**6, 128))),
    "negative.npy": lambda path: path.write_bytes(header((-1, 5, 128))),
    "empty.npy": lambda path: path.write_bytes(b""),
    "flat.npy": lambda path: np.save(path, np.zeros(5)),
    "code.npy": lambda path: path.write_bytes(header((1,)).replace(b"'|i1'", b"print")),
    "block_2023.zarr": lambda path: vast(path, (1, 64, 10**6, 10**6), (1, 64, 10**6, 10**6)),
    "times.zarr": lambda path: vast(path, (10**9, 64, 9, 7), (1, 64, 9, 7)),
    "wide.zarr": lambda path: vast(path, (1, 10**6, 9, 7), (1, 64, 9, 7)),
    "empty.zarr": lambda path: vast(path, (1, 64, 0, 7), (1, 64, 9, 7)),
    "json.zarr": lambda path: (path.mkdir(), (path / "zarr.json").write_text("{")),
    "deep.zarr": lambda path: (path.mkdir(), (path / "zarr.json").write_text("[" * 100_000)),
    "list.zarr": lambda path: (path.mkdir(), (path / "zarr.json").write_text("[]")),
    "notes.txt": lambda path: path.write_text("hello"),
}


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform", "ignore:.*no geotransform")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_broken_or_hostile_file_is_one_line(tmp_path: Path, name: str) -> None:
    HOSTILE[name](tmp_path / name)
    with pytest.raises(BadInput) as told:
        open_vectors(tmp_path / name, YEAR)
    assert name in str(told.value)
    assert "\n" not in str(told.value)


def test_a_vast_mosaic_opens_and_is_read_in_windows(tmp_path: Path) -> None:
    """AEF's own: nine years, 4.3 PB of codes, nearly all of it never written."""
    path, shape = tmp_path / "aef.zarr", (9, 64, 1_859_584, 4_009_984)
    vast(path, shape, (1, 64, 256, 256))
    root = zarr.open_group(path)
    root.create_array("time", data=np.arange(2017, 2026), dimension_names=["time"])
    step = 360 / shape[3]
    root.attrs.update({"proj:code": "EPSG:4326", "spatial:transform": [step, 0, -180, 0, -step, 83.6]})
    root["embeddings"][7, :, 500_000:500_010, 2_000_000:2_000_010] = codes()[:, 1:2, 1:2]
    aef = open_vectors(path)
    assert len(aef.periods) == 9
    lon, lat = np.array([-180 + 2_000_005 * step, 20.0]), np.array([83.6 - 500_005 * step, 20.0])
    found, inside = aef.sample(lon, lat, 7)
    assert inside.all()
    np.testing.assert_allclose(found[0], field.dequantise(codes(), axis=0)[:, 1, 1], atol=1e-6)
    assert np.isnan(found[1]).all()


def test_what_breaks_after_opening_is_damaged(tmp_path: Path) -> None:
    store = write_zarr(tmp_path / "a.zarr", codes())
    opened = open_vectors(store)
    (store / "embeddings/c/0/0/0/0").write_bytes(b"broken")
    with pytest.raises(Damaged, match="rows 0:9, columns 0:7"):
        opened.window(EVERYWHERE)
    tiff = write_tiff(tmp_path / "a_2023.tif", codes(), compress="deflate")
    opened = open_vectors(tiff)
    whole = tiff.read_bytes()
    tiff.write_bytes(whole[:300] + bytes(len(whole) - 300))
    with pytest.raises(Damaged, match="a_2023"):
        opened.sample(LON, LAT)
    with pytest.raises(BadInput, match="there is no"):
        open_vectors(tmp_path / "none.zarr")


def test_a_cube_and_an_unfinished_field_are_refused(tmp_path: Path) -> None:
    for key, message in (("datacube/1", "not an embedding field"), ("embedding-field/1", "incomplete")):
        path = tmp_path / key.split("/")[0]
        path.mkdir()
        document = {"zarr_format": 3, "node_type": "group", "attributes": {"aef:format": key}}
        (path / "zarr.json").write_text(json.dumps(document))
        with pytest.raises(BadInput, match=message):
            open_vectors(path)
