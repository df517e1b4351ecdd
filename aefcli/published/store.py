"""Zarr stores of embeddings: our own fields, and other people's by what their metadata say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aefcli import field
from aefcli.errors import BadInput
from aefcli.extent import Period, Tile
from aefcli.ledger import FORMAT_KEY
from aefcli.published.vectors import (
    FLOATS,
    KINDS,
    POWER,
    SCALES,
    UNIT,
    Decode,
    Stored,
    Vectors,
    check_affine,
    check_block,
    check_size,
    floats,
    period_of,
    power,
    scaled,
    unit,
)

if TYPE_CHECKING:
    import zarr
    from affine import Affine
    from odc.geo.geobox import GeoBox
    from pyproj import CRS

_AXES = {  # what others call them
    "time": ("time", "year", "t"),
    "band": ("band", "bands", "embedding", "embeddings", "channel", "channels", "dim", "feature", "features"),
    "y": ("y", "lat", "latitude", "northing"),
    "x": ("x", "lon", "longitude", "easting"),
}
_LONGEST_AXIS = 1 << 25  # coordinates, 256 MiB


def open_store(path: Path, told: Period | None) -> Vectors:
    """A field of ours, or another's group with an array of embeddings in it."""
    import zarr
    from zarr.errors import GroupNotFoundError

    try:
        root = zarr.open_group(path, mode="r", use_consolidated=False)
    except (GroupNotFoundError, FileNotFoundError) as error:
        raise BadInput(f"{path} is not an embedding field: it is no Zarr group", f"name {KINDS}") from error
    if FORMAT_KEY in root.attrs:
        return _ours(path)
    array = _embeddings(path, root)
    axes = _axes_of(path, array, ("band", "y", "x"))
    size = {axis: length for axis, length in zip(axes, array.shape, strict=True) if axis}
    check_size(path, size["band"], size["y"], size["x"], size.get("time", 1))
    attrs = {**_above(path), **dict(root.attrs), **dict(array.attrs)}
    scales = _scales(path, root, attrs, size)
    decode, decoding = _how(path, array, attrs, size["band"], by_pixel=scales is not None)
    grid, notes = _place(path, root, array, attrs)

    def read(tile: Tile, time_index: int) -> Stored:
        codes = _cut(array, axes, tile, time_index)
        return codes, None if scales is None else _cut(*scales, tile, time_index)

    chunks = dict(zip(axes, array.chunks, strict=True))
    return Vectors(
        path=path,
        name=path.name.removesuffix(".zarr"),
        periods=_periods(path, root, array, attrs, told),
        dimensions=size["band"],
        grid=grid,
        attrs=attrs,
        decoding=decoding,
        block=(min(chunks["y"], size["y"]), min(chunks["x"], size["x"])),
        read=read,
        decode=decode,
        notes=notes,
    )


def _ours(path: Path) -> Vectors:
    store = field.open_field(path)
    codes = store["embeddings"].transpose("time", "embedding", "y", "x")
    bounds = store["time_bnds"].to_numpy().astype("datetime64[ms]").astype("int64")
    rows, columns = codes.encoding["chunks"][-2:]
    decode, decoding = (power, POWER) if field.coded(codes) else (unit, UNIT)

    def read(tile: Tile, time_index: int) -> Stored:
        return codes[(time_index, slice(None), *tile.slices)].to_numpy(), None

    return Vectors(
        path=path,
        name=path.name.removesuffix(".zarr"),
        periods=tuple(Period(int(start), int(end)) for start, end in bounds),
        dimensions=codes.sizes["embedding"],
        grid=field.geobox(store),
        attrs=dict(store.attrs),
        decoding=decoding,
        block=(min(rows, codes.sizes["y"]), min(columns, codes.sizes["x"])),
        read=read,
        decode=decode,
    )


# --- arrays and their axes ------------------------------------------------------------------------------------------


def _array(path: Path, root: zarr.Group, name: str) -> zarr.Array | None:
    """The array of that name, if there is one; its chunks are of a size that can be read."""
    import zarr

    found = root.get(name)
    if not isinstance(found, zarr.Array):
        return None
    check_block(path / name, int(np.prod(found.chunks, dtype=object)) * found.dtype.itemsize)
    return found


def _embeddings(path: Path, root: zarr.Group) -> zarr.Array:
    """The array of embeddings: by its name, else the only one that names three dimensions."""
    metadata = ("zarr.json", ".zarray", ".zgroup")
    inside = sorted(each.name for each in path.iterdir() if any((each / name).is_file() for name in metadata))
    found = {name: array for name in inside if (array := _array(path, root, name)) is not None}
    if named := next((name for name in ("embeddings", "embedding") if name in found), None):
        return found[named]
    likely = [name for name, array in found.items() if len(_names(array)) > 2]
    if len(likely) == 1:
        return found[likely[0]]
    if likely:
        raise BadInput(f"{path} holds {', '.join(likely)}", "name the one that is meant embeddings")
    groups = [name for name in inside if name not in found]
    hint = f"name a group in it, such as {path / groups[0]}" if groups else f"name {KINDS}"
    raise BadInput(f"{path} is not an embedding field: it has no array named embeddings", hint)


def _names(array: zarr.Array) -> tuple[str, ...]:
    """The array's own names of its dimensions; () where it has none."""
    names: Any = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS") or ()
    return tuple(str(name) for name in names)


def _axes_of(path: Path, array: zarr.Array, need: Sequence[str]) -> tuple[str, ...]:
    """What each dimension is: time, band, y or x; "" for another one of length 1."""
    names = _names(array)
    if len(names) != len(array.shape):
        raise BadInput(
            f"{path}: {array.basename} has {len(array.shape)} dimensions and names {len(names)} of them",
            "dimension_names (format 3) or _ARRAY_DIMENSIONS (format 2) name them",
        )
    axes = [next((axis for axis, others in _AXES.items() if name.lower() in others), "") for name in names]
    stray = any(not axis and size != 1 for axis, size in zip(axes, array.shape, strict=True))
    if stray or any(axes.count(axis) != 1 for axis in need) or axes.count("time") > 1:
        raise BadInput(
            f"{path}: the dimensions of {array.basename} are {', '.join(names)}",
            f"{', '.join(need)} have to be among them, each once, and nothing else but time",
        )
    return tuple(axes)


def _cut(array: zarr.Array, axes: tuple[str, ...], tile: Tile, time_index: int) -> np.ndarray:
    """One time of a tile: (d, h, w), or (h, w) of an array without bands."""
    rows, columns = tile.slices
    picks = {"time": slice(time_index, time_index + 1), "y": rows, "x": columns}
    values = np.asarray(array[tuple(picks.get(axis, slice(None)) for axis in axes)])
    order = [axes.index(axis) for axis in ("band", "y", "x") if axis in axes]
    rest = [index for index in range(len(axes)) if index not in order]
    return values.transpose(*rest, *order).reshape([values.shape[index] for index in order])


def _above(path: Path) -> dict[str, Any]:
    """What the store says of embeddings that a group lies in: TESSERA's zones leave it to their root."""
    import zarr

    parent = path.resolve().parent
    if not ((parent / "zarr.json").is_file() or (parent / ".zgroup").is_file()):
        return {}
    attrs = zarr.open_group(parent, mode="r", use_consolidated=False).attrs
    return {key: value for key, value in dict(attrs).items() if key.startswith("geoemb:")}


# --- decoding -------------------------------------------------------------------------------------------------------


def _quantisation(attrs: Mapping[str, Any]) -> Mapping[str, Any]:
    found = attrs.get("geoemb:quantization")
    return found if isinstance(found, Mapping) else {}


def _scales(
    path: Path, root: zarr.Group, attrs: Mapping[str, Any], size: Mapping[str, int]
) -> tuple[zarr.Array, tuple[str, ...]] | None:
    """The array of per-pixel scales and its axes, where there is one."""
    stated = _quantisation(attrs).get("scale")
    stated = stated if isinstance(stated, Mapping) and stated.get("type") == "array" else {}
    name = str(stated.get("array_name", "scales"))
    array = _array(path, root, name)
    if array is None:
        if stated:
            raise BadInput(f"{path} has no array {name}, which its codes are to be multiplied by", "fetch it again")
        return None
    axes = _axes_of(path, array, ("y", "x"))
    found = {axis: length for axis, length in zip(axes, array.shape, strict=True) if axis}
    if any(length != size.get(axis) for axis, length in found.items()) or size.get("time", 1) != found.get("time", 1):
        raise BadInput(f"{path}: {name} has {found}, its embeddings {dict(size)}", "fetch it again")
    return array, axes


def _how(
    path: Path, array: zarr.Array, attrs: Mapping[str, Any], dimensions: int, *, by_pixel: bool
) -> tuple[Decode, str]:
    """The decoder and its words, from the type of the values and what the store says of it."""
    if affine := sorted({"scale_factor", "add_offset"} & set(attrs)):
        raise BadInput(f"{path}: its embeddings carry {' and '.join(affine)}", "write their values as floats instead")
    if array.dtype.kind == "f":
        fill = attrs.get("_FillValue", attrs.get("nodata"))
        return floats(float(fill) if isinstance(fill, int | float) else None), FLOATS
    if by_pixel and array.dtype.kind == "i":
        return scaled, SCALES
    said = _quantisation(attrs)
    power_law = said.get("method") in ("signed_power", "signed_square") or "127.5" in str(said.get("formula"))
    if array.dtype == np.int8 and (power_law or (not said and dimensions == field.DIMENSIONS)):
        return power, POWER
    raise BadInput(
        f"{path} does not say how its {array.dtype} codes of {dimensions} dimensions become values",
        "an array `scales` beside them says it, or geoemb:quantization with the method signed_power",
    )


# --- where ----------------------------------------------------------------------------------------------------------

Line = tuple[float, float]  # first pixel centre and spacing of a coordinate; a single one has spacing 0


def _place(path: Path, root: zarr.Group, array: zarr.Array, attrs: Mapping[str, Any]) -> tuple[GeoBox, tuple[str, ...]]:
    """The grid, from a stated transform or else from evenly spaced coordinates; and a note where the two differ."""
    from odc.geo.geobox import GeoBox

    stated = {**_mapping(root, attrs), **attrs}
    crs, affine = _crs(path, stated), _transform(path, stated)
    axes, names = _axes_of(path, array, ("y", "x")), _names(array)
    shape = (array.shape[axes.index("y")], array.shape[axes.index("x")])
    if (said := stated.get("spatial:shape")) is not None and list(said) != list(shape):
        raise BadInput(f"{path}: spatial:shape is {said}, its embeddings are {list(shape)}", "write it again")
    lines = [_line(path, root, names[axes.index(axis)], length) for axis, length in zip("yx", shape, strict=True)]
    if affine is None:
        y, x = lines
        if y is None or x is None:
            hint = "spatial:transform, GeoTransform, or the coordinates y and x do"
            raise BadInput(f"{path} does not say where its pixels lie", hint)
        across, down = x[1] or abs(y[1]), y[1] or -abs(x[1])
        affine = _affine(across, 0, x[0] - across / 2, 0, down, y[0] - down / 2)
    check_affine(path, affine)
    corners = ((affine.f, affine.e), (affine.c, affine.a))
    found = [(line, corner) for line, corner in zip(lines, corners, strict=True) if line is not None]
    off = max((abs(line[0] - corner - step / 2) / abs(step) for line, (corner, step) in found), default=0.0)
    if off > 0.51 or any(line[1] and abs(line[1] / step - 1) > 1e-3 for line, (_, step) in found):
        raise BadInput(f"{path}: its coordinates are not those of its transform", "write one of them again")
    note = f"{path}: its coordinates lie {off:.2g} pixels off its transform; the transform is taken"
    return GeoBox(shape, affine, crs), (note,) if off > 0.01 else ()


def _mapping(root: zarr.Group, attrs: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of the CF grid mapping variable, where there is one."""
    for name in (attrs.get("grid_mapping"), "spatial_ref", "crs"):
        if isinstance(name, str) and name and name in root:
            return dict(root[name].attrs)
    return {}


def _crs(path: Path, attrs: Mapping[str, Any]) -> CRS:
    from pyproj import CRS
    from pyproj.exceptions import CRSError

    for key in ("proj:code", "proj:wkt2", "proj:projjson", "proj:epsg", "crs_wkt", "spatial_ref", "crs", "epsg"):
        if value := attrs.get(key):
            try:
                return CRS.from_user_input(value)
            except (CRSError, TypeError, ValueError) as error:
                what = f"{path}: {key} is no CRS: {str(value)[:80]!r}"
                raise BadInput(what, "proj:code, as in EPSG:32633, gives it one") from error
    raise BadInput(f"{path} has no CRS", "the attribute proj:code, as in EPSG:32633, gives it one")


def _transform(path: Path, attrs: Mapping[str, Any]) -> Affine | None:
    """The stated affine of the outer corner, from spatial:transform or GDAL's GeoTransform."""
    if (found := attrs.get("spatial:transform")) is not None:
        if (way := attrs.get("spatial:registration", "pixel")) != "pixel":
            raise BadInput(f"{path}: spatial:registration is {way!r}", "pixel is read: the outer corner")
        return _affine(*(float(value) for value in found[:6]))
    if (found := attrs.get("GeoTransform")) is not None:
        c, a, b, f, d, e = (float(value) for value in (found.split() if isinstance(found, str) else found))
        return _affine(a, b, c, d, e, f)
    return None


def _affine(*values: float) -> Affine:
    from affine import Affine

    return Affine(*values)


def _line(path: Path, root: zarr.Group, name: str, size: int) -> Line | None:
    """The coordinate of that name; None where there is none."""
    array = _array(path, root, name)
    if array is None or array.shape != (size,):
        return None
    if size > _LONGEST_AXIS:
        raise BadInput(f"{path}: the coordinate {name} has {size} values", f"up to {_LONGEST_AXIS} are read")
    values = np.asarray(array[:], dtype="float64")
    step = (values[-1] - values[0]) / (size - 1) if size > 1 else 0.0
    if not np.isfinite(values).all() or np.abs(values - values[0] - step * np.arange(size)).max() > 0.1 * abs(step):
        raise BadInput(f"{path}: the coordinate {name} is not evenly spaced", "put it on a regular grid")
    return float(values[0]), float(step)


# --- when -----------------------------------------------------------------------------------------------------------


def _periods(
    path: Path, root: zarr.Group, array: zarr.Array, attrs: Mapping[str, Any], told: Period | None
) -> tuple[Period, ...]:
    """The valid periods: bounds, years, or instants that are each the start of a calendar year."""
    axes = _axes_of(path, array, ())
    name, count = (_names(array)[axes.index("time")], array.shape[axes.index("time")]) if "time" in axes else ("", 1)
    time = _array(path, root, name or "time")
    if time is None or time.shape not in ((count,), () if count == 1 else (count,)):
        if count > 1:
            raise BadInput(f"{path} does not say which {count} times it holds", f"a coordinate {name} says it")
        return (period_of(path, attrs, told),)
    clock = dict(time.attrs)
    if (bounds := _array(path, root, str(clock.get("bounds", "")) or "time_bnds")) is not None:
        pairs = _instants(path, np.asarray(bounds[...]).reshape(count, 2), {**clock, **dict(bounds.attrs)})
        return tuple(Period(int(start), int(end)) for start, end in pairs.astype("int64"))
    values = np.atleast_1d(np.asarray(time[...]))
    if values.dtype.kind in "iu" and "units" not in clock and ((values >= 1900) & (values < 2200)).all():
        return tuple(Period.parse(str(year)) for year in values)
    starts = _instants(path, values, clock)
    years = starts.astype("datetime64[Y]")
    if (years == starts).all():
        return tuple(Period.parse(str(year)) for year in years)
    if count == 1 and told:
        return (told,)
    hint = f"time_bnds, the bounds of {name}, say it (CF)"
    raise BadInput(f"{path} names instants such as {starts[0]}, and not how long they hold", hint)


def _instants(path: Path, values: np.ndarray, attrs: Mapping[str, Any]) -> np.ndarray:
    """datetime64[ms] of any shape, from datetimes or CF numbers."""
    import xarray as xr

    if values.dtype.kind == "M":
        return values.astype("datetime64[ms]")
    if values.dtype.kind not in "iuf" or "since" not in str(attrs.get("units", "")):
        raise BadInput(f"{path}: its time has no units", "years as whole numbers, or CF units such as days since 1970")
    clock = {key: attrs[key] for key in ("units", "calendar") if key in attrs}
    raw = xr.Dataset({"t": (tuple(f"n{axis}" for axis in range(values.ndim)), values, clock)})
    decoded = xr.decode_cf(raw, decode_times=xr.coders.CFDatetimeCoder(time_unit="ms"))["t"].to_numpy()
    return decoded.astype("datetime64[ms]")
