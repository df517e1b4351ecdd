"""Reading windows of an archive's files: what may be opened, how long to try, and errors that name the file.

A file that calls itself a GeoTIFF may be a recipe (VRT) that reads other files and hosts, so only two drivers open
anything. Source: `sources.md`.
"""

from __future__ import annotations

import logging
import re
import time
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from typing import Any

import rasterio
from odc.loader._rio import RioDriver, RioReader
from rasterio.errors import RasterioError, RasterioIOError

_PATIENCE = 300  # seconds to try one window for
_LOST = re.compile(r"response code: 4(?!08|29)\d\d|No such file|does not exist|not recognized|no georeference")
# odc-loader logs what it raises as well, with the address and any token in it.
logging.getLogger("odc.loader").setLevel(logging.CRITICAL)


class Driver(RioDriver):
    """odc-stac's reading through rasterio, by `_Reader`."""

    def capture_env(self) -> dict[str, Any]:
        timeouts = {
            "GDAL_HTTP_CONNECTTIMEOUT": "10",
            "GDAL_HTTP_LOW_SPEED_TIME": "30",
            "GDAL_HTTP_LOW_SPEED_LIMIT": "1",
        }
        return {**super().capture_env(), **timeouts}

    def open(self, src: Any, ctx: Any) -> RioReader:
        return _Reader(src, ctx)


class _Reader(RioReader):
    """One file. Remote ones are opened anew and tried again for a while; errors name the file."""

    def read(self, cfg: Any, *args: Any, **kwargs: Any) -> Any:
        uri, began = self._src.uri, time.monotonic()
        cfg = replace(cfg, src_nodata_fallback=cfg.fill_value)  # for files that do not state theirs
        for attempt in range(1_000_000):
            try:
                _check(uri)
                return super().read(cfg, *args, **kwargs)
            except RasterioError as error:
                pause = min(0.1 * 2**attempt, 10)
                _forget(uri)
                late = time.monotonic() + pause - began > _PATIENCE
                if late or "://" not in uri or _LOST.search(str(error)):
                    raise RasterioIOError(f"{without_query(uri)}: {without_query(str(error))}") from error
            time.sleep(pause)
        raise AssertionError("unreachable: patience ends first")


@lru_cache(maxsize=65536)
def _check(uri: str) -> None:
    """Once per file: it is a GeoTIFF or JPEG 2000, and lies on a grid. Radar in slant range has control points only."""
    driver = "JP2OpenJPEG" if without_query(uri).lower().endswith(".jp2") else "GTiff"
    with rasterio.open(uri, driver=driver, sharing=False) as file:
        if file.crs is None or file.transform.is_identity:
            raise RasterioIOError("the file has no georeference but control points, if any")


def _forget(uri: str) -> None:
    """Make GDAL drop what it holds of a remote file that failed: it keeps a 404 for the life of the process."""
    if "://" in uri:
        with rasterio.Env(CPL_VSIL_CURL_NON_CACHED="/vsicurl/"), suppress(RasterioError):
            rasterio.open(uri, driver="GTiff", sharing=False).close()


def without_query(text: str) -> str:
    """The text without what follows a `?` in addresses: signatures live there."""
    return re.sub(r"\?[^\s'\"]*", "", text)
