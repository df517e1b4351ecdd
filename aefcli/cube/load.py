"""Loading: one asset of some frames' items onto a grid, through odc-stac's loader or stackstac.

Both read through `read`, so that neither decides what is opened, signed, repeated or taken for nodata.
Source: `sources.md`, "Loading".
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
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
    """How assets are loaded. Threads are best kept for many of them: each opens PROJ's database for itself."""

    loader: str = "odc"  # or stackstac
    mask: bool | Container[str] = False  # what is nodata if it is not there: nothing, all, or these "item/asset"
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(4))  # a window read by each thread


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
    mask = loading.mask
    allowed = {
        uri for uri, ids in names.items() if mask is True or (mask and any(f"{id_}/{key}" in mask for id_ in ids))
    }
    reads = Reads(allowed)
    try:
        found = loaders[loading.loader](_Layers(layers, key, dtype, nodata, how, grid), reads, loading.pool)
    except Unreadable as error:
        hint = "run the same command again" + "; aef fetch --on-missing mask takes it for nodata" * error.gone
        raise RemoteFailed(f"cannot read {key} of {', '.join(names[error.uri])}: {error}", hint) from error
    finally:
        reads.stop.set()  # whoever still waits for an answer has nobody to give it to
    if len(having) < len(frames):
        some, found = found, np.full((len(frames), *grid.shape), nodata, dtype=dtype)
        found[having] = some
    return found, sorted(f"{name}/{key}" for uri in reads.gone for name in names[uri])


def _odc(layers: _Layers, reads: Reads, pool: ThreadPoolExecutor) -> np.ndarray:
    """An array (layers, y, x), read and fused by odc-loader, which is what odc-stac reads through.

    What `odc.stac.load` does before that, for each slab and band anew, is known here: which items make a frame, which
    of their files, and that these lie on the grid.
    """
    from odc.loader import RasterLoadParams
    from odc.loader._fuser import nodata_fuser

    from aefcli.cube.read import pixels

    cfg = RasterLoadParams(layers.dtype, layers.nodata, resampling=layers.how)
    out = np.empty((len(layers.items), *layers.grid.shape), layers.dtype)

    def read(at: int) -> None:
        out[at], empty = layers.nodata, True
        for item in layers.items[at]:
            found = pixels(reads, item.assets[layers.key].href, cfg, layers.grid)
            if found is not None and empty:
                out[at][found[0]] = found[1]
            elif found is not None:
                nodata_fuser(out[at][found[0]], found[1], layers.nodata)
            empty &= found is None

    running = [pool.submit(read, at) for at in range(len(out))]
    try:
        for each in running:
            each.result()
    finally:
        for each in running:
            each.cancel()
    return out


def _stackstac(layers: _Layers, reads: Reads, pool: ThreadPoolExecutor) -> np.ndarray:
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
    return np.asarray(lazy.compute(scheduler="threads", pool=pool))


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
