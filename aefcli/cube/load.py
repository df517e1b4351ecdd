"""Loading: one asset of some frames' items onto a grid.

Source: `sources.md`, "Loading".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from aefcli.cube.frames import Frame
from aefcli.errors import RemoteFailed

if TYPE_CHECKING:
    import pystac
    from odc.geo.geobox import GeoBox


@dataclass(frozen=True)
class Loading:
    """How assets are loaded."""

    loader: str = "odc"  # or stackstac
    mask: bool = False  # take an asset that is not there for nodata instead of raising


def load(
    frames: Sequence[Frame], key: str, dtype: str, nodata: float, how: str, grid: GeoBox, loading: Loading
) -> tuple[np.ndarray, list[str]]:
    """One asset as (frames, y, x), computed on dask's current scheduler; and the "item/asset" that were masked.

    Each item's file is resampled onto the grid by itself; in a frame the first valid pixel wins, in the order of its
    items. Raises RemoteFailed, naming the item, where a file cannot be read.
    """
    import odc.stac
    from rasterio.errors import RasterioError

    from aefcli.cube.read import Driver, without_query

    out = np.full((len(frames), *grid.shape), nodata, dtype=dtype)
    position = {item.id: at for at, frame in enumerate(frames) for item in frame.items if key in item.assets}
    items = [item for frame in frames for item in frame.items if key in item.assets]
    try:
        lazy = odc.stac.load(
            items,
            bands=[key],
            geobox=grid,
            chunks={},
            groupby=lambda item, parsed, index: position[item.id],
            preserve_original_order=True,  # the first valid pixel wins, in the order of the frame's items
            resampling=how,
            dtype=dtype,
            nodata=nodata,
            patch_url=_signed,
            driver=Driver(),
        )
        filled = lazy[key].data.compute()
    except (RasterioError, OSError) as error:
        raise RemoteFailed(
            f"cannot read {key} of {_named(error, items)}: {without_query(str(error))}", "run the same command again"
        ) from error
    out[sorted(set(position.values()))] = filled
    return out, []


def _named(error: BaseException, items: Sequence[pystac.Item]) -> str:
    """The item whose file the error speaks of, else all of them."""
    from aefcli.cube.read import without_query

    text = str(error)
    guilty = [item.id for item in items if any(without_query(asset.href) in text for asset in item.assets.values())]
    return ", ".join(guilty or [item.id for item in items])


def _signed(href: str) -> str:
    """Planetary Computer's blobs want a token in the address; it lives 45 minutes, and a slab takes seconds."""
    if ".blob.core.windows.net/" not in href:
        return href
    import planetary_computer

    return planetary_computer.sign(href)
