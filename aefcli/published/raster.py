"""GeoTIFFs with a band for each dimension, and TESSERA's tiles, which lie where a raster says."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from aefcli import field
from aefcli.errors import BadInput
from aefcli.extent import Period, Tile
from aefcli.published.vectors import (
    FLOATS,
    POWER,
    SCALES,
    Stored,
    Vectors,
    check_affine,
    check_block,
    check_size,
    floats,
    period_of,
    power,
    scaled,
)


def open_raster(path: Path, told: Period | None) -> Vectors:
    """A GeoTIFF of AEF's 64 bands of int8, or of bands of floats; overviews are not read."""
    import rasterio
    from odc.geo.geobox import GeoBox

    # By its driver: a file that calls itself a raster may be a recipe that opens others.
    with rasterio.open(path, driver="GTiff") as file:
        count, nodata, shape, affine, crs = file.count, file.nodata, file.shape, file.transform, file.crs
        dtypes, attrs, block = sorted(set(file.dtypes)), dict(file.tags()), file.block_shapes[0]
        together = count if file.profile.get("interleave") == "pixel" else 1
    if crs is None:
        raise BadInput(f"{path} has no CRS", "rio edit-info --crs ... gives it one")
    if affine.is_identity:
        raise BadInput(f"{path} does not say where its pixels lie", "rio edit-info --transform ... gives it a place")
    check_affine(path, affine)
    check_size(path, count, *shape)
    check_block(path, block[0] * block[1] * together * np.dtype(dtypes[0]).itemsize)
    codes = dtypes == ["int8"] and count == field.DIMENSIONS
    if not codes and not (len(dtypes) == 1 and np.dtype(dtypes[0]).kind == "f" and count > 1):
        raise BadInput(
            f"{path} has {count} bands of {', '.join(dtypes)}",
            f"{field.DIMENSIONS} bands of int8 are AEF's codes; bands of floats are taken as they are",
        )
    if codes and nodata not in (None, float(field.NODATA)):
        raise BadInput(f"{path}: its nodata is {nodata:g}", f"in AEF's codes it is {field.NODATA}")

    def read(tile: Tile, time_index: int) -> Stored:
        with rasterio.open(path, driver="GTiff", sharing=False) as file:
            return file.read(window=((tile.top, tile.bottom), (tile.left, tile.right))), None

    decode, decoding = (power, POWER) if codes else (floats(nodata), FLOATS)
    return Vectors(
        path=path,
        name=path.stem,
        periods=(period_of(path, attrs, told),),
        dimensions=count,
        grid=GeoBox(shape, affine, crs.to_wkt()),
        attrs=attrs,
        decoding=decoding,
        block=(min(block[0], shape[0]), min(block[1], shape[1])),
        read=read,
        decode=decode,
    )


def open_tile(path: Path, told: Period | None) -> Vectors:
    """An array (y, x, d) with its scales beside it, on the grid of a raster: <name>.tif beside it, or the landmask.

    The landmask lends its grid alone: water is not masked by it, as in geotessera.
    """
    import rasterio
    from odc.geo.geobox import GeoBox

    if path.stem.endswith("_scales"):
        raise BadInput(f"{path} holds the scales of a tile", f"name {path.stem.removesuffix('_scales')}.npy")
    codes = _mapped(path, (3,))
    check_size(path, codes.shape[2], *codes.shape[:2])
    scales = _scales_of(path, codes)
    with rasterio.open(like := _lattice(path), driver="GTiff") as file:
        shape, affine, crs = file.shape, file.transform, file.crs
    if crs is None or shape != codes.shape[:2]:
        what = f"{like} is {shape} with CRS {crs}, {path.name} is {codes.shape}"
        raise BadInput(what, "it has to be the raster of that tile")
    check_affine(like, affine)

    def read(tile: Tile, time_index: int) -> Stored:
        found = np.moveaxis(np.asarray(codes[tile.slices]), -1, 0)
        if scales is None:
            return found, None
        part = np.asarray(scales[tile.slices])
        return found, part if part.ndim == 2 else np.moveaxis(part, -1, 0)

    decode, decoding = (floats(None), FLOATS) if scales is None else (scaled, SCALES)
    return Vectors(
        path=path,
        name=path.stem,
        periods=(period_of(path, {}, told),),
        dimensions=codes.shape[2],
        grid=GeoBox(shape, affine, crs.to_wkt()),
        attrs={"grid of": str(like)},
        decoding=decoding,
        block=(min(256, shape[0]), min(256, shape[1])),
        read=read,
        decode=decode,
    )


def _scales_of(path: Path, codes: np.ndarray) -> np.ndarray | None:
    """The scales beside a tile of codes, (y, x) or (y, x, d); None beside a tile of floats."""
    if codes.dtype.kind == "f":
        return None
    beside = path.with_name(f"{path.stem}_scales.npy")
    if codes.dtype != np.int8:
        raise BadInput(f"{path} holds {codes.dtype}", "tiles are int8 codes, or floats")
    if not beside.is_file():
        raise BadInput(f"there is no {beside}, which the codes of {path.name} are to be multiplied by", "fetch it too")
    scales = _mapped(beside, (2, 3))
    if scales.dtype.kind != "f" or scales.shape not in (codes.shape, codes.shape[:2]):
        what = f"{beside} is {scales.dtype} {scales.shape}, the codes are {codes.shape}"
        raise BadInput(what, "scales are floats, one for each pixel: fetch them again")
    return scales


def _mapped(path: Path, ranks: tuple[int, ...]) -> np.ndarray:
    """An .npy as a memory map: no pickle is read, and a file shorter than it says is refused."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray) or array.ndim not in ranks or array.dtype.kind not in "if":
        raise BadInput(f"{path} is no array of (y, x, d): {getattr(array, 'shape', None)}", "give the tile as it came")
    return array


def _lattice(path: Path) -> Path:
    """The raster that says where a tile lies: beside it, or where geotessera and its repository put landmasks."""
    names = [f"{path.stem}.tif", f"{path.stem}.tiff"]
    found = [path.with_name(name) for name in (*names, "landmask.tif", "landmask.tiff")]
    for above in path.resolve().parents[:5]:
        found += [above / "global_0.1_degree_tiff_all" / name for name in names]
        masks = [mask for name in names for mask in sorted(above.glob(f"landmasks/*/{name}"))]
        found += masks if len(masks) == 1 else []
    if like := next((each for each in found if each.is_file()), None):
        return like
    raise BadInput(
        f"{path} does not say where it lies: there is no {path.stem}.tif beside it, and no landmask",
        "put the GeoTIFF of its grid there: geotessera's landmasks are such",
    )
