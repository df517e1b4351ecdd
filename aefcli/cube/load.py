"""Loading: one asset of some frames' items onto a grid, through odc-stac or stackstac.

Both read through `read`, so that neither decides what is opened, signed, repeated or taken for nodata.
Source: `sources.md`, "Loading".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from aefcli.cube.frames import Frame
from aefcli.errors import BadInput, RemoteFailed, unknown

if TYPE_CHECKING:
    import pystac
    from odc.geo.geobox import GeoBox

    from aefcli.cube.read import Reads


@dataclass(frozen=True)
class Loading:
    """How assets are loaded."""

    loader: str = "odc"  # or stackstac
    mask: bool = False  # take an asset that is not there for nodata instead of raising
    threads: int = 4  # windows read at a time


@dataclass(frozen=True)
class _Layers:
    """What a loader is asked for: an asset of some items. Of those in a layer, the first valid pixel wins."""

    items: Sequence[Sequence[pystac.Item]]
    key: str
    dtype: str
    nodata: float
    how: str
    grid: GeoBox


def load(
    frames: Sequence[Frame], key: str, dtype: str, nodata: float, how: str, grid: GeoBox, loading: Loading
) -> tuple[np.ndarray, list[str]]:
    """One asset as (frames, y, x), read by threads; and the "item/asset" that were masked, sorted.

    Each item's file is resampled onto the grid by itself; in a frame the first valid pixel wins, in the order of its
    items. Raises RemoteFailed, naming item and asset, where a file cannot be read.
    """
    from aefcli.cube.read import Reads
    from aefcli.cube.web import Unreadable

    loaders = {"odc": _odc, "stackstac": _stackstac}
    if loading.loader not in loaders:
        raise unknown("loader", loading.loader, loaders)
    having = [at for at, frame in enumerate(frames) if any(key in item.assets for item in frame.items)]
    if not having:
        return np.full((len(frames), *grid.shape), nodata, dtype=dtype), []
    layers = [[item for item in frames[at].items if key in item.assets] for at in having]
    names: dict[str, list[str]] = {}
    for item in (item for items in layers for item in items):
        names.setdefault(item.assets[key].href, []).append(item.id)
    reads = Reads(loading.mask)
    try:
        found = loaders[loading.loader](_Layers(layers, key, dtype, nodata, how, grid), reads, loading.threads)
    except Unreadable as error:
        hint = "run the same command again" + ", with --on-missing mask to take it for nodata" * error.gone
        raise RemoteFailed(f"cannot read {key} of {', '.join(names[error.uri])}: {error}", hint) from error
    finally:
        reads.stop.set()  # whoever still waits for an answer has nobody to give it to
    if len(having) < len(frames):
        some, found = found, np.full((len(frames), *grid.shape), nodata, dtype=dtype)
        found[having] = some
    return found, sorted(f"{name}/{key}" for uri in reads.gone for name in names[uri])


def _odc(layers: _Layers, reads: Reads, threads: int) -> np.ndarray:
    """An array (layers, y, x)."""
    import odc.stac

    from aefcli.cube.read import Driver

    position = {item.id: at for at, items in enumerate(layers.items) for item in items}
    loaded = odc.stac.load(
        [_with_one(item, layers.key) for items in layers.items for item in items],
        bands=[layers.key],
        geobox=layers.grid,
        pool=threads,
        groupby=lambda item, parsed, index: position[item.id],
        preserve_original_order=True,  # the first valid pixel wins, in the order of the items
        resampling=layers.how,
        dtype=layers.dtype,
        nodata=layers.nodata,
        driver=Driver(reads),
    )
    return np.asarray(loaded[layers.key].data)


def _with_one(item: pystac.Item, key: str) -> pystac.Item:
    """The item with one asset: odc-stac parses all that it finds, for each slab and band.

    It is called an image, as odc-stac does not take what has no type and a signature after its name for one.
    """
    import pystac

    about = (item.geometry, item.bbox, item.datetime, item.properties)
    lean = pystac.Item(item.id, *about, stac_extensions=item.stac_extensions, collection=item.collection_id)
    asset = item.assets[key].clone()
    asset.media_type, asset.roles = "image/tiff", ["data"]
    asset.set_owner(lean)
    lean.assets = {key: asset}
    return lean


def _stackstac(layers: _Layers, reads: Reads, threads: int) -> np.ndarray:
    """The same array. stackstac is told everything: what it would make out by itself comes out wrong (`sources.md`)."""
    import dask.array as da
    import stackstac

    from aefcli.cube.read import Stacked

    grid, dtype = layers.grid, np.dtype(layers.dtype)
    epsg = grid.crs.epsg if grid.crs is not None else None
    if epsg is None:
        raise BadInput("--loader stackstac needs a CRS with an EPSG code", "give --crs EPSG:..., or leave --loader out")
    bounds = grid.boundingbox
    stack = stackstac.stack(
        [_plain(item, layers.key, grid) for items in layers.items for item in items],
        assets=[layers.key],
        epsg=epsg,
        bounds=bounds.bbox,
        resolution=(grid.resolution.x, -grid.resolution.y),
        snap_bounds=False,
        chunksize=(1, 1, *grid.shape),
        dtype=dtype,
        fill_value=dtype.type(layers.nodata),
        rescale=False,
        sortby_date=False,
        xy_coords="center",
        properties=False,
        band_coords=False,
        errors_as_nodata=(),
        reader=partial(Stacked, reads, layers.how),
    )[:, 0]
    ends = np.cumsum([len(items) for items in layers.items])
    parts = [stack[end - len(items) : end].data for items, end in zip(layers.items, ends, strict=True)]
    front = partial(_front, nodata=layers.nodata)
    lazy = da.stack([part.rechunk({0: -1}).map_blocks(front, dtype=dtype, drop_axis=0) for part in parts])
    return np.asarray(lazy.compute(scheduler="threads", num_workers=threads))


def _front(layers: np.ndarray, nodata: float) -> np.ndarray:
    """The first valid pixel of some layers (n, y, x), by odc-loader's rule. stackstac's own takes NaN for valid."""
    from odc.loader._fuser import nodata_fuser

    out = np.full(layers.shape[1:], nodata, layers.dtype)
    for layer in layers:
        nodata_fuser(out, layer, nodata)
    return out


def _plain(item: pystac.Item, key: str, grid: GeoBox) -> dict[str, Any]:
    """An item with the one asset, and as its bounds the grid's: stackstac drops items that state none.

    A file that does not touch the grid costs a look at its beginning.
    """
    return {
        "id": item.id,
        "properties": {"datetime": None, "proj:epsg": grid.crs and grid.crs.epsg, "proj:bbox": list(grid.boundingbox)},
        "bbox": None,
        "assets": {key: {"href": item.assets[key].href}},
    }
