"""The embedding field: one int8 vector per pixel and valid period, in a Zarr v3 store that others can open.

    embeddings (time, embedding, y, x)    int8 codes of unit vectors, A00 ... A63; -128 in all 64: no data
                                          (or float16, float32: the vectors themselves, NaN in all 64: no data)
    observations_<source> (time, y, x)    uint16, how many frames saw the pixel clearly
    uncertainty (time, y, x)              float32, degrees, where it was asked for; NaN: no data
    time, time_bnds                       the valid periods, half open, UTC
    frames_inside, share_inside (time)    frames of the cube in each valid period, and their share of those read for it
    extrapolated (time)                   whether a valid period holds no frame
    y, x, spatial_ref                     pixel centres and CRS (CF); again as `proj:`, `spatial:` at the root

Owns the quantiser, the layout of the store, its metadata, and the reading of vectors at points. Knows nothing
of models, and keeps no record of what is done: that is the ledger's. A chunk that is absent was not written;
a chunk of pure nodata is a file like any other. Source: stores.md "The embedding field", method.md section 10.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aefcli.errors import BadInput
from aefcli.extent import Period, Tile
from aefcli.ledger import FORMAT_KEY, check_root, write_atomically

if TYPE_CHECKING:
    import xarray as xr
    import zarr
    from odc.geo.geobox import GeoBox
    from pyproj import CRS

DIMENSIONS = 64
LABELS = tuple(f"A{index:02d}" for index in range(DIMENSIONS))
NODATA = -128  # the one code the quantiser never gives a value
CHUNK = 256  # pixels along y and x: 4 MiB of codes
DTYPES = ("int8", "float16", "float32")

SEVERAL = "embedding-fields"  # what a group of fields calls itself

_FAMILY, _VERSION = "embedding-field", 1
FORMAT = f"{_FAMILY}/{_VERSION}"
_AXES = ("time", "embedding", "y", "x")
_STEPS = 127.5
_PAPER = "https://arxiv.org/abs/2507.22291"  # the quantiser: supplement S8
_DECODING = (
    "x = sign(q) * (|q| / 127.5)^2 for each of the 64 codes q of a pixel, then divide the 64 values by their "
    "Euclidean length. -128 in all 64 means no data. The code is a signed square root, not affine: reading q "
    "as if it were proportional to x gives wrong vectors. Decode before averaging."
)
_QUANTISED = {
    "method": "signed_power",
    "original_dtype": "float32",
    "quantized_dtype": "int8",
    "link": _PAPER,
}
_SPREAD = "mean angle between the embedding and those of the same place with a third of the frames dropped"
_CONVENTIONS = (
    {
        "uuid": "f17cb550-5864-4468-aeb7-f3180cfb622f",
        "name": "proj:",
        "description": "Coordinate reference system information for geospatial data",
    },
    {
        "uuid": "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4",
        "name": "spatial:",
        "description": "Spatial coordinate information",
    },
    {
        "uuid": "61c12cc5-0e28-4056-999a-480cf3fb7e4c",
        "name": "geoemb:",
        "description": "Geoembeddings convention for geospatial embedding arrays with model provenance",
    },
)


# ---- quantiser


def quantise(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """Unit vectors along `axis` (any float dtype) -> int8 codes of the same shape.

    q = clip(round(sign(x) * sqrt(|x|) * 127.5), -127, 127); a vector that holds a NaN or an infinity becomes
    -128 throughout. Source: method.md section 10 [S8].
    """
    finite = np.isfinite(x)
    values = np.where(finite, x, 0)
    codes = np.rint(np.sign(values) * np.sqrt(np.abs(values)) * _STEPS)
    codes = np.clip(codes, -127, 127).astype(np.int8)
    return np.where(finite.all(axis=axis, keepdims=True), codes, np.int8(NODATA))


def dequantise(q: np.ndarray, axis: int = -1, *, renormalise: bool = True) -> np.ndarray:
    """int8 codes, vectors along `axis` -> float32 of the same shape; a vector with nodata is NaN throughout.

    Decoded lengths are 1 +- 0.008; `renormalise` brings them to 1 (method.md section 10). A vector of zeros
    has no direction and then becomes NaN too; the quantiser makes none out of unit vectors.
    """
    assert q.dtype == np.int8, f"codes are int8, not {q.dtype}"
    values = _decoded()[q.view(np.uint8)]
    length = np.sqrt(np.square(values).sum(axis=axis, keepdims=True))  # NaN where any of the vector's codes is nodata
    if not renormalise:
        return np.where(np.isnan(length), np.float32(np.nan), values)
    return values / np.where(length > 0, length, np.float32(np.nan))


def decode(values: np.ndarray, axis: int = -1, *, codes: bool) -> np.ndarray:
    """What `embeddings` hold in an open field -> float32 unit vectors along `axis`, NaN throughout where nodata.

    int8 are codes. Floats are the vectors of a field that is stored so, or with `codes` what an open that masks nodata
    makes of int8: the codes as floats, NaN for -128. Raises BadInput for what can be neither: means of codes, and codes
    that have lost the attribute that says so.
    """
    if values.dtype == np.int8:
        return dequantise(values, axis)
    there = values[np.isfinite(values)]
    if codes:
        if (there != np.rint(there)).any():
            raise BadInput("the codes of the embeddings were averaged", "decode first: means of codes mean nothing")
        return dequantise(np.where(np.isnan(values), NODATA, values).astype(np.int8), axis)
    if np.abs(there).max(initial=0) > 1 and (there == np.rint(there)).all():
        raise BadInput("the embeddings are codes whose attributes are gone", "keep attributes, or decode first")
    vectors = values.astype(np.float32)
    length = np.sqrt(np.square(vectors).sum(axis=axis, keepdims=True))
    return vectors / np.where(np.isfinite(length) & (length > 0), length, np.float32(np.nan))


def coded(embeddings: xr.DataArray) -> bool:
    """Whether an open field's `embeddings` are codes, masked or not, rather than vectors: their attributes say it."""
    return embeddings.dtype == np.int8 or "quantisation" in embeddings.attrs


def _decoded() -> np.ndarray:
    """float32 [256]: the value of every code, indexed by the code's bits read as uint8."""
    codes = np.arange(256, dtype=np.uint8).view(np.int8).astype(np.float64)
    values = np.sign(codes) * (np.abs(codes) / _STEPS) ** 2
    return np.where(codes == NODATA, np.nan, values).astype(np.float32)


# ---- writing


def create(
    path: Path,
    grid: GeoBox,
    periods: Sequence[Period],
    *,
    sources: Sequence[str],
    attrs: Mapping[str, object],
    chunk: int = CHUNK,
    dtype: str = "int8",
    inside: Sequence[tuple[int, int]] | None = None,
    uncertainty: bool = False,
) -> None:
    """Write an empty field at `path`, which must not exist: metadata and coordinates, no chunk of data.

    `grid` is north up and aligned with its axes. `attrs` (JSON: model, recipe, cube, licence) join the root
    attributes and win over the defaults here; `geoemb:model`, the encoder's URL, is the caller's to give. `inside`:
    for each period the frames in it, and those read for it. The state is "building" until `finish`.
    """
    import zarr

    assert not path.exists(), f"{path} exists"
    assert periods, "a field needs a period"
    affine = grid.transform
    assert affine.b == affine.d == 0 < affine.a, f"the grid must be aligned with its axes: {affine!r}"
    assert affine.e < 0, f"the grid must be north up: {affine!r}"
    height, width = grid.shape
    assert dtype in DTYPES, dtype
    defaults = _root_attributes(grid, sources, dtype)
    root = zarr.create_group(path, zarr_format=3, attributes={**defaults, **attrs, "state": "building"})
    _write_coordinates(root, grid, periods)
    if inside is not None:
        _write_inside(root, inside)
    shape, chunks = (len(periods), DIMENSIONS, height, width), (1, DIMENSIONS, chunk, chunk)
    _add(
        root,
        "embeddings",
        _AXES,
        _embedding_attributes(dtype),
        shape=shape,
        chunks=chunks,
        dtype=dtype,
        fill=NODATA if dtype == "int8" else math.nan,
    )
    for source in sources:
        _add(
            root,
            f"observations_{source}",
            ("time", "y", "x"),
            {
                "long_name": f"number of {source} frames that saw the pixel clearly",
                "units": "1",
                "grid_mapping": "spatial_ref",
            },
            shape=(len(periods), height, width),
            chunks=(1, chunk, chunk),
            dtype="uint16",
        )
    if uncertainty:
        _add(
            root,
            "uncertainty",
            ("time", "y", "x"),
            {"long_name": _SPREAD, "units": "degree", "grid_mapping": "spatial_ref"},
            shape=(len(periods), height, width),
            chunks=(1, chunk, chunk),
            dtype="float32",
            fill=math.nan,
        )


def write(
    path: Path,
    tile: Tile,
    codes: np.ndarray,
    observations: Mapping[str, np.ndarray],
    *,
    uncertainty: np.ndarray | None = None,
    times: Sequence[int] | None = None,
) -> list[Path]:
    """Write one tile of whole chunks; returns the files that hold it, for the ledger.

    codes: (time, 64, h, w) of the field's dtype; observations: {source: integers >= 0 (time, h, w)} for every source
    of the field, counts above 65535 being stored as 65535; uncertainty: float32 (time, h, w), where the field has it.
    `times` says which ones; by default all. Tiles share no chunk, so any number of workers may write.
    """
    import zarr

    root = zarr.open_group(path, mode="r+", use_consolidated=False)
    arrays = {
        "embeddings": codes,
        **{f"observations_{name}": counts for name, counts in observations.items()},
        **({} if uncertainty is None else {"uncertainty": uncertainty}),
    }
    expected = {name for name in root.array_keys() if name.startswith(("embeddings", "observations_", "uncertainty"))}
    assert set(arrays) == expected, f"a tile holds {sorted(expected)}, not {sorted(arrays)}"
    assert codes.dtype == _array(root, "embeddings").dtype, f"vectors of {codes.dtype} are not as the field's"
    which = range(len(codes)) if times is None else times
    return [
        file
        for name, values in arrays.items()
        for one, time in zip(values, which, strict=True)
        for file in _write_array(path, root, name, tile, one, time)
    ]


def finish(path: Path) -> None:
    """Consolidate the metadata, then set the state to "complete" by replacing the root's metadata whole.

    Doing it again changes nothing. Whether every chunk is there is for the ledger to say.
    """
    import zarr

    zarr.consolidate_metadata(path, zarr_format=3)
    document = json.loads((path / "zarr.json").read_text())
    document["attributes"]["state"] = "complete"
    write_atomically(path / "zarr.json", json.dumps(document, indent=2).encode())


def _write_array(path: Path, root: zarr.Group, name: str, tile: Tile, values: np.ndarray, time: int) -> list[Path]:
    """Write `values` (..., h, w) of one time into the tile's chunks of one array; returns their files."""
    # Whether empty chunks are written is a setting of the writer, stored nowhere; zarr leaves them out by default.
    stored = _array(root, name).with_config({"write_empty_chunks": True})
    assert values.shape == (*stored.shape[1:-2], *tile.shape), f"{name}: {values.shape} is not the shape of {tile}"
    assert 0 <= time < stored.shape[0], f"{name}: time {time} of {stored.shape[0]}"
    if values.dtype != stored.dtype:
        assert np.issubdtype(values.dtype, np.integer), f"{name}: counts are integers, not {values.dtype}"
        assert values.min() >= 0, f"{name}: counts are not negative, as {values.min()} is"
        values = np.minimum(values, 65535).astype(np.uint16)
    files = [path.joinpath(name, "c", str(time), *key) for key in _chunk_keys(tile, stored)]
    stored[(time, ..., *tile.slices)] = values
    assert all(file.is_file() for file in files), f"{name}: a chunk of {tile} was not written"
    return files


def _chunk_keys(tile: Tile, stored: zarr.Array) -> list[tuple[str, ...]]:
    """The keys of the chunks, after that of time, that make up the tile; it must consist of whole ones."""
    ranges = [range(1) for _ in stored.shape[1:-2]]
    spans = ((tile.top, tile.bottom), (tile.left, tile.right))
    for (start, stop), size, step in zip(spans, stored.shape[-2:], stored.chunks[-2:], strict=True):
        assert 0 <= start < stop <= size, f"{tile} is not inside a field of {stored.shape}"
        whole = start % step == 0 and (stop % step == 0 or stop == size)
        assert whole, f"{tile} cuts chunks of {stored.chunks} in a field of {stored.shape}"
        ranges.append(range(start // step, -(-stop // step)))
    return [tuple(map(str, key)) for key in itertools.product(*ranges)]


def _array(root: zarr.Group, name: str) -> zarr.Array:
    import zarr

    found = root[name]
    assert isinstance(found, zarr.Array), f"{name} is a group"
    return found


def _add(
    root: zarr.Group,
    name: str,
    dims: Sequence[str],
    attrs: Mapping[str, Any],
    *,
    shape: tuple[int, ...],
    dtype: Any,
    chunks: tuple[int, ...] | None = None,
    fill: Any = None,
) -> zarr.Array:
    """Create an array as all of a field's are: zstd 3, with the checksum that finds flipped bits."""
    from zarr.codecs import ZstdCodec

    return root.create_array(
        name,
        shape=shape,
        chunks=chunks or shape,
        dtype=dtype,
        compressors=ZstdCodec(level=3, checksum=True),
        attributes=dict(attrs),
        dimension_names=list(dims),
        **({} if fill is None else {"fill_value": fill}),
    )


def _write_coordinates(root: zarr.Group, grid: GeoBox, periods: Sequence[Period]) -> None:
    """time, time_bnds, embedding, y, x and spatial_ref, with their values."""
    bounds = np.array([(period.start, period.end) for period in periods], dtype=np.int64)
    clock = {"units": "milliseconds since 1970-01-01", "calendar": "proleptic_gregorian"}
    centres = _centres(grid)
    axes = _axis_attributes(grid)
    coordinates: list[tuple[str, tuple[str, ...], np.ndarray, dict[str, Any]]] = [
        (
            "time",
            ("time",),
            bounds[:, 0],
            {"standard_name": "time", "bounds": "time_bnds", "axis": "T", **clock},
        ),
        ("time_bnds", ("time", "nv"), bounds, clock),
        ("embedding", ("embedding",), np.array(LABELS, dtype=object), {"long_name": "axis of the embedding"}),
        ("y", ("y",), centres[0], axes["Y"]),
        ("x", ("x",), centres[1], axes["X"]),
        ("spatial_ref", (), np.array(0, dtype=np.int64), _grid_mapping(grid)),
    ]
    for name, dims, values, attrs in coordinates:
        dtype = str if values.dtype == object else values.dtype
        added = _add(root, name, dims, attrs, shape=values.shape, dtype=dtype)
        added.with_config({"write_empty_chunks": True})[...] = values


def _write_inside(root: zarr.Group, inside: Sequence[tuple[int, int]]) -> None:
    """How much of what was read for each valid period lies in it: two counts (frames in it, frames read)."""
    within, read = np.array(inside, dtype=np.int32).T
    for name, values, about in (
        ("frames_inside", within, "frames of the cube in the valid period, all sources"),
        ("share_inside", (within / np.maximum(read, 1)).astype("float32"), "their share of the frames read for it"),
        ("extrapolated", within == 0, "whether the valid period holds no frame"),
    ):
        added = _add(root, name, ("time",), {"long_name": about}, shape=values.shape, dtype=values.dtype)
        added.with_config({"write_empty_chunks": True})[...] = values
    root.attrs["coordinates"] = f"{root.attrs['coordinates']} frames_inside share_inside extrapolated"


# ---- metadata


def _root_attributes(grid: GeoBox, sources: Sequence[str], dtype: str = "int8") -> dict[str, Any]:
    """Format, `proj:`, `spatial:` and `geoemb:`; all corners are outer ones, in the grid's CRS."""
    crs = _crs(grid)
    (height, width), affine = grid.shape, grid.transform
    west, north = float(affine.c), float(affine.f)
    authority = crs.to_authority()
    return {
        FORMAT_KEY: f"{_FAMILY}/{_VERSION}",
        "Conventions": "CF-1.11",
        "coordinates": "spatial_ref time_bnds",  # a plain open then has them as coordinates of every variable
        **({"quantisation": _DECODING} if dtype == "int8" else {}),
        "zarr_conventions": list(_CONVENTIONS),
        **({"proj:code": ":".join(authority)} if authority else {}),
        "proj:wkt2": crs.to_wkt(),
        "spatial:dimensions": ["y", "x"],
        "spatial:bbox": [west, float(north + affine.e * height), float(west + affine.a * width), north],
        "spatial:transform_type": "affine",
        "spatial:transform": [float(value) for value in tuple(affine)[:6]],
        "spatial:shape": [int(height), int(width)],
        "spatial:registration": "pixel",
        "geoemb:type": "pixel",
        "geoemb:dimensions": DIMENSIONS,
        "geoemb:data_type": dtype,
        "geoemb:source_data": list(sources),
        **({} if crs.is_geographic else {"geoemb:gsd": float(affine.a)}),
        **({"geoemb:quantization": _QUANTISED} if dtype == "int8" else {}),
    }


def _embedding_attributes(dtype: str) -> dict[str, Any]:
    if dtype != "int8":
        return {"long_name": "embedding, of unit length", "grid_mapping": "spatial_ref"}
    return {
        "long_name": "embedding, quantised",
        "quantisation": _DECODING,
        "grid_mapping": "spatial_ref",
        "_FillValue": NODATA,  # beside the array's fill_value: this one makes a plain open show NaN
    }


def _grid_mapping(grid: GeoBox) -> dict[str, Any]:
    """CF grid mapping with crs_wkt; GeoTransform (GDAL's order, outer corner) is what rioxarray reads."""
    affine = grid.transform
    order = (affine.c, affine.a, affine.b, affine.f, affine.d, affine.e)
    mapping = _crs(grid).to_cf()
    return {
        **mapping,
        "spatial_ref": mapping["crs_wkt"],
        "GeoTransform": " ".join(repr(float(value)) for value in order),
    }


def _axis_attributes(grid: GeoBox) -> dict[str, dict[str, Any]]:
    """CF attributes (standard_name, long_name, units, axis) of the coordinates, by axis letter."""
    return {axis["axis"]: axis for axis in _crs(grid).cs_to_cf()}


def _crs(grid: GeoBox) -> CRS:
    assert grid.crs is not None, "a field's grid has a CRS"
    return grid.crs.proj


def _centres(grid: GeoBox) -> tuple[np.ndarray, np.ndarray]:
    """float64 coordinates of the pixel centres in the grid's CRS: y (north to south), x."""
    (height, width), affine = grid.shape, grid.transform
    return affine.f + affine.e * (np.arange(height) + 0.5), affine.c + affine.a * (np.arange(width) + 0.5)


# ---- reading


def open_field(path: Path) -> xr.Dataset:
    """Open a finished field lazily: int8 codes as stored (nodata -128), `time` as datetime64[ms].

    Raises BadInput where there is nothing, something else, a newer format, or a field still being built; Damaged where
    a finished one has lost the metadata of its root.
    """
    import xarray as xr

    _check(Path(path))
    return xr.open_zarr(
        path,
        chunks=None,
        consolidated=True,
        mask_and_scale=False,
        decode_coords="all",
        decode_times=xr.coders.CFDatetimeCoder(time_unit="ms"),
    )


def geobox(field: xr.Dataset) -> GeoBox:
    """The field's grid, to the last digit; of a window or a thinned copy of a field, the grid of that."""
    from affine import Affine
    from odc.geo.geobox import GeoBox

    a, b, c, d, e, f = field.attrs["spatial:transform"]
    shape = (field.sizes["y"], field.sizes["x"])
    turned = abs(field["y"].values[0] - f - e / 2) > abs(e) / 2 or abs(field["x"].values[0] - c - a / 2) > a / 2
    if list(shape) != field.attrs["spatial:shape"] or turned:
        # Pixels of a thinned copy are taken as wider ones around the same centres, as every reader of x and y does.
        (a, c), (e, f) = _axis(field["x"].values, a), _axis(field["y"].values, e)
    return GeoBox(shape, Affine(a, b, c, d, e, f), field.attrs.get("proj:code", field.attrs["proj:wkt2"]))


def _axis(centres: np.ndarray, size: float) -> tuple[float, float]:
    """Pixel size (a whole multiple of the stored `size`) and outer corner of the axis with these centres."""
    steps = np.diff(centres) / size
    every = round(float(steps[0])) if len(steps) else 1
    if np.abs(steps - every).max(initial=0) > 0.1 or every == 0:
        raise BadInput("the pixels left of the field are not evenly spaced", "take windows, as slices of y and x")
    return size * every, float(centres[0]) - size * every / 2


def sample(
    field: xr.Dataset, lon: np.ndarray, lat: np.ndarray, time_index: int | Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors at points in any order: float32 (n, time, 64) of unit length, and bool (n,), inside the grid.

    lon, lat: (n,) in degrees (WGS 84). A point takes the pixel it lies in. Pixels own their north and west
    edges, so a point on the grid's south or east edge is outside. NaN where outside or nodata. Reads the chunks
    that hold points, each once, one after the other. `time_index` picks periods; all by default.
    """
    stored = field["embeddings"].transpose(*_AXES)
    rows, columns, inside = locate(geobox(field), np.asarray(lon, float), np.asarray(lat, float))
    times = np.atleast_1d(np.arange(stored.sizes["time"])[slice(None) if time_index is None else time_index])
    found = np.full((len(inside), len(times), DIMENSIONS), np.nan, dtype="float32")
    for points in _by_chunk(rows, columns, inside, _chunk_shape(stored)):
        row, column = rows[points], columns[points]
        top, left = row.min(), column.min()
        window = stored.isel(time=times, y=slice(top, row.max() + 1), x=slice(left, column.max() + 1)).values
        found[points] = decode(np.moveaxis(window[:, :, row - top, column - left], -1, 0), codes=coded(stored))
    return found, inside


def locate(grid: GeoBox, lon: np.ndarray, lat: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, column (int64; 0 where outside) and whether inside, of points in degrees."""
    from pyproj import Transformer

    assert lon.shape == lat.shape == (lon.size,), f"lon {lon.shape} and lat {lat.shape} are not two lists"
    to_grid = Transformer.from_crs("EPSG:4326", _crs(grid), always_xy=True)
    x, y = to_grid.transform(lon, lat)  # inf where the projection has no answer
    (height, width), affine = grid.shape, grid.transform
    row, column = np.floor((y - affine.f) / affine.e), np.floor((x - affine.c) / affine.a)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return np.where(inside, row, 0).astype(int), np.where(inside, column, 0).astype(int), inside


def degrees(grid: GeoBox) -> tuple[float, float, float, float]:
    """West, south, east, north of a grid in degrees (WGS 84); west above east across the antimeridian."""
    from pyproj import Transformer

    to_degrees = Transformer.from_crs(_crs(grid), "EPSG:4326", always_xy=True)
    west, south, east, north = to_degrees.transform_bounds(*grid.boundingbox.bbox)
    return float(west), float(south), float(east), float(north)


def _by_chunk(
    rows: np.ndarray, columns: np.ndarray, inside: np.ndarray, chunk: tuple[int, int]
) -> Iterator[np.ndarray]:
    """Indices of the points that are inside, chunk by chunk."""
    points = np.flatnonzero(inside)
    keys = np.stack([rows[points] // chunk[0], columns[points] // chunk[1]])
    order = np.lexsort(keys)
    steps = np.flatnonzero((np.diff(keys[:, order], axis=1) != 0).any(axis=0)) + 1
    return (group for group in np.split(points[order], steps) if len(group))


def _chunk_shape(codes: xr.DataArray) -> tuple[int, int]:
    """Pixels (y, x) of a stored chunk; the usual where the array came from elsewhere."""
    stored = codes.encoding.get("chunks") or (1, DIMENSIONS, CHUNK, CHUNK)
    return stored[-2], stored[-1]


def _check(path: Path) -> None:
    """Refuse, in one line, whatever cannot be read as a finished field of this version."""
    document = _root(path)
    if not document:
        check_root(path)  # a field of which this alone is lost can be mended
    family, _, version = str(document.get("attributes", {}).get(FORMAT_KEY, "")).partition("/")
    if family == SEVERAL and (names := list(document["attributes"].get("aef:fields", ()))):
        raise BadInput(f"{path} holds the fields {', '.join(names)}", f"name one, such as {path / names[0]}")
    if family not in (_FAMILY, SEVERAL) or not version.isdigit():
        raise BadInput(f"{path} is not an embedding field", "aef embed writes one from a cube and a model")
    if int(version) > _VERSION:
        raise BadInput(f"{path} is of format {_FAMILY}/{version}, newer than {_FAMILY}/{_VERSION}", "upgrade aefcli")
    state = document["attributes"].get("state")
    if state != "complete":
        raise BadInput(f"{path} is incomplete, its state is {state!r}", "run aef embed again")


def _root(path: Path) -> dict[str, Any]:
    """The root's metadata; {} where the folder is no Zarr v3 group."""
    if not path.exists():
        raise BadInput(f"{path} does not exist", "aef embed writes an embedding field")
    try:
        document = json.loads((path / "zarr.json").read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return document if isinstance(document, dict) and document.get("node_type") == "group" else {}
