"""Fetching beside odc-stac and rasterio alone: `python -m bench.fetch [--json] [--quick] [--repeats N] [--latency MS]`.

An archive like Sentinel-2's, written here, is served over HTTP by a process of its own: 32 dates of two overlapping
tiles, COGs with blocks of 512, deflate and overviews, bands of 10 m and 20 m, a scene classification. Every run is a
process of its own, with four threads and a new folder; imports are not timed, and are in the peak of memory. The
server answers at once; with --latency it waits before each answer, as archives on the web do for 20 ms and more.

    ours      aefcli.cube.fetch, every slab hashed and in the ledger
    odc       odc.stac.load(groupby="solar_day") and to_zarr, with the same grid, bands, units, chunks and codecs
    rasterio  the windows that the slabs take of each file, one by one, as ours reads them; nothing resampled or written
    area      ours again, of the first eight dates: an eighth of the ground (`1x`), and all of it (`8x`)

Ratios: `time` and `memory` are ours over odc's, `rasterio` is ours over its time, `area` is the peak at `8x` over
`1x`. Correct: every stored value of ours and odc's is equal; what both tiles saw is equal in both.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the processes that are measured import this module, and are to hold what they need alone
    from multiprocessing.connection import Connection

    import numpy as np
    from odc.geo.geobox import GeoBox
    from rasterio.io import DatasetReader
    from rasterio.windows import Window

    from aefcli.cube import Request
    from bench.measure import Result

REPEATS = 3
THREADS = 4  # what `aef fetch` takes by default
EPSG, WEST, NORTH = 32633, 499_980, 5_100_000  # on the middle of the zone, where a box in degrees is one in metres too
BANDS = {"blue": 10, "green": 10, "red": 10, "nir": 10, "swir16": 20, "scl": 20}  # assets and their spacing in metres
NAMES = {"blue": "B02", "green": "B03", "red": "B04", "nir": "B08", "swir16": "B11", "scl": "scl"}  # in our cubes
COLLECTION = "sentinel-2-c1-l2a"
FIRST = datetime(2023, 5, 1, 10, 0, 31)
EVERY = 5  # days
KINDS = ("ours", "odc", "rasterio")


@dataclass(frozen=True)
class Size:
    """How large an archive and what is asked of it, in pixels of 10 m."""

    tile: int = 2304
    overlap: int = 304
    dates: int = 32
    drawn: int = 4  # dates whose pixels are made; the others are these again, under other addresses
    box: tuple[int, int] = (1200, 1200)  # rows, columns
    large: tuple[int, int] = (2048, 4096)
    eighth: tuple[int, int] = (1024, 1024)
    few: int = 8  # dates of the area runs

    @property
    def ground(self) -> tuple[int, int]:
        return self.tile, 2 * self.tile - self.overlap


QUICK = Size(512, 64, 3, 2, (300, 300), (448, 896), (224, 224), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--quick", action="store_true", help="small archive, one repeat: only to see it run")
    parser.add_argument("--latency", type=float, default=0, help="milliseconds before each answer of the server (0)")
    parser.add_argument("--repeats", type=int, default=REPEATS, help=f"of which the median is taken ({REPEATS})")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        repeats = 1 if chosen.quick else chosen.repeats
        run(Path(folder), QUICK if chosen.quick else Size(), repeats, chosen.latency / 1000).show(chosen.json)


def run(folder: Path, size: Size, repeats: int, latency: float = 0) -> Result:
    """`latency`: seconds before each answer."""
    from bench.measure import Check, Result

    (folder / "archive").mkdir()
    write_archive(folder / "archive", size)
    with server(folder / "archive", latency) as url:
        asked = {
            **{kind: (kind, size.box, size.dates) for kind in KINDS},
            "1x": ("ours", size.eighth, size.few),
            "8x": ("ours", size.large, size.few),
        }
        runs: dict[str, list[Run]] = {name: [] for name in asked}
        for turn in range(repeats):
            for name, (kind, box, dates) in asked.items():
                runs[name].append(apart(kind, url, box, dates, folder / f"{name}-{turn}"))
    middle = {name: middling(each) for name, each in runs.items()}
    correct = {"ours": Check(differing(folder / "ours-0", folder / "odc-0"), 0)}
    ours = middle["ours"]
    ratios = {
        "time": ours.seconds / middle["odc"].seconds,
        "memory": ours.peak / middle["odc"].peak,
        "rasterio": ours.seconds / middle["rasterio"].seconds,
        "area": middle["8x"].peak / middle["1x"].peak,
    }
    rows = [(kind, *each.cells(), kind if kind in correct else "") for kind, each in middle.items()]
    title = f"{size.dates} dates x 2 tiles, 6 assets, box of {size.box[0]} px, {1000 * latency:g} ms to an answer"
    title += f", median of {repeats}, {THREADS} threads"
    notes = {"runs": {kind: asdict(each) for kind, each in middle.items()}}
    return Result(
        "fetch", title, ("seconds", "CPU s", "peak MiB", "MiB served", "requests"), rows, ratios, correct, notes
    )


# --- one run, in a process of its own ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """What one run took."""

    seconds: float
    cpu: float  # seconds of processor, all threads
    peak: int  # bytes of memory, the interpreter and its libraries among them
    served: int  # bytes
    requests: int

    def cells(self) -> tuple[str, ...]:
        sizes = (f"{amount / 2**20:,.0f}" for amount in (self.peak, self.served))
        return (f"{self.seconds:.2f}", f"{self.cpu:.2f}", *sizes, f"{self.requests:,.0f}")


def middling(runs: list[Run]) -> Run:
    """The median of each figure."""
    return Run(*(statistics.median(values) for values in zip(*map(astuple, runs), strict=True)))


def apart(kind: str, url: str, box: tuple[int, int], dates: int, out: Path) -> Run:
    """Run one of the three in a new process. None is to pay for what the one before it left for the disk to write."""
    os.sync()
    before = counts(url)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        seconds, cpu, peak = pool.submit(measured, kind, url, box, dates, out).result()
    requests, served = (after - first for after, first in zip(counts(url), before, strict=True))
    return Run(seconds, cpu, peak, served, requests)


def measured(kind: str, url: str, box: tuple[int, int], dates: int, out: Path) -> tuple[float, float, int]:
    """Seconds, seconds of processor and bytes at the peak, of this process."""
    import odc.stac  # noqa: F401 - imported by all of them, before the clock starts
    import xarray  # noqa: F401
    import zarr.codecs  # noqa: F401

    import aefcli.cube
    import aefcli.stac  # noqa: F401

    if kind == "odc":
        import distributed  # noqa: F401 - which dask imports while it computes
    request = request_of(url, box, dates)
    works = {"ours": ours, "odc": odc_alone, "rasterio": rasterio_alone}
    began, cpu = time.perf_counter(), time.process_time()
    works[kind](request, out)
    return time.perf_counter() - began, time.process_time() - cpu, peak()


def peak() -> int:
    """The most bytes that this process held. `ru_maxrss` would begin at what the parent held when it forked."""
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def request_of(url: str, box: tuple[int, int], dates: int) -> Request:
    """A box around the middle of the ground, off the blocks and with both tiles in it, in the first dates."""
    from rasterio.warp import transform_bounds

    from aefcli.cube import Request
    from aefcli.extent import BBox, Period, to_ms

    tile, overlap = (json.loads(get(f"{url}/size.json"))[key] for key in ("tile", "overlap"))
    rows, columns = box
    left, top = WEST + (2 * tile - overlap - columns) // 2 * 10 + 75, NORTH - (tile - rows) // 2 * 10 - 75
    bounds = transform_bounds(EPSG, 4326, left, top - 10 * rows, left + 10 * columns, top)
    period = Period(to_ms(FIRST) - 3_600_000, to_ms(FIRST + timedelta(days=EVERY * dates - 1)))
    return Request(f"{url}/items.json", BBox(*bounds), period, ("sentinel-2",))


def ours(request: Request, out: Path) -> None:
    from aefcli.cube import Work, fetch

    fetch(request, out, work=Work(threads=THREADS))


def odc_alone(request: Request, out: Path) -> None:
    """What a user of odc-stac would write who knows the grid, the chunks and the codecs."""
    import dask
    import odc.stac

    from aefcli.cube import grid_of
    from aefcli.cube.write import CHUNK, codecs, slabs

    grid = grid_of(request.bbox, request.gsd)
    rows, columns = next(iter(slabs(grid))).shape
    data = odc.stac.load(
        found(request),
        bands=list(BANDS),
        geobox=grid,
        groupby="solar_day",
        chunks={"time": CHUNK[0], "y": rows, "x": columns},
        resampling={"*": "bilinear", "scl": "nearest"},
    )
    chunks = tuple(min(size, whole) for size, whole in zip(CHUNK, data["blue"].shape, strict=True))
    encoding = {band: {"chunks": chunks, "compressors": codecs(str(data[band].dtype))} for band in BANDS}
    with dask.config.set(scheduler="threads", num_workers=THREADS):
        data.to_zarr(out, zarr_format=3, consolidated=False, encoding=encoding)


def found(request: Request) -> list[Any]:
    """The items of the request, by pystac."""
    import pystac

    document = json.loads(get(request.catalog))
    items = [pystac.Item.from_dict(item) for item in document["features"]]
    start, end = request.period.dates()
    return [item for item in items if item.datetime and start <= item.datetime < end]


def rasterio_alone(request: Request, out: Path) -> None:
    """The windows of all slabs, one slab after the other; its files in parallel, each opened for its window."""
    from aefcli.cube import grid_of
    from aefcli.cube.write import slabs

    grid = grid_of(request.bbox, request.gsd)
    _read(request, [grid[tile.slices] for tile in slabs(grid)])


def _read(request: Request, grids: Sequence[GeoBox]) -> None:
    import rasterio
    from odc.loader._rio import GDAL_CLOUD_DEFAULTS

    files = [asset.href for item in found(request) for asset in item.assets.values()]

    def read(href: str, grid: GeoBox) -> None:
        with rasterio.Env(**GDAL_CLOUD_DEFAULTS), rasterio.open(href) as file:
            if window := window_of(grid, file):
                file.read(1, window=window)

    with ThreadPoolExecutor(THREADS) as pool:
        for grid in grids:
            list(pool.map(read, files, [grid] * len(files)))


def window_of(grid: GeoBox, file: DatasetReader) -> Window | None:
    """The part of a file that a grid in its CRS covers, in whole cells."""
    from rasterio.windows import Window, from_bounds

    window, whole = from_bounds(*grid.boundingbox.bbox, file.transform), Window(0, 0, file.width, file.height)
    (top, bottom), (left, right) = window.toranges()
    if top >= whole.height or left >= whole.width or bottom <= 0 or right <= 0:
        return None
    return window.round_offsets().round_lengths().intersection(whole)


def differing(cube: Path, other: Path) -> int:
    """How many stored values differ between a cube of ours and odc's store."""
    import numpy as np
    import zarr

    pairs = [(zarr.open_array(cube / "sentinel-2" / name), zarr.open_array(other / key)) for key, name in NAMES.items()]
    return sum(int(np.not_equal(mine[:], theirs[:]).sum()) for mine, theirs in pairs)


# --- the archive ------------------------------------------------------------------------------------------------------


def write_archive(folder: Path, size: Size) -> None:
    """COGs, the item collection `items.json`, and `size.json`."""
    scenes = [(date, side) for date in range(size.drawn) for side in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda scene: _write_scene(folder, size, *scene), scenes))
    for date in range(size.drawn, size.dates):
        for side in (0, 1):
            home = folder / _id(date, side)
            home.mkdir()
            for key in BANDS:
                os.link(folder / _id(date % size.drawn, side) / f"{key}.tif", home / f"{key}.tif")
    items = [_item(size, date, side) for date in range(size.dates) for side in (0, 1)]
    (folder / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    (folder / "size.json").write_text(json.dumps(asdict(size)))


def _id(date: int, side: int) -> str:
    return f"S2A_33T{'VW'[side]}M_{FIRST + timedelta(days=EVERY * date):%Y%m%d}_0_L2A"


def _write_scene(folder: Path, size: Size, date: int, side: int) -> None:
    import numpy as np
    import rasterio
    from rasterio import Affine

    home = folder / _id(date, side)
    home.mkdir()
    left = side * (size.tile - size.overlap)
    for number, (key, gsd) in enumerate(BANDS.items()):
        rng = np.random.default_rng((date, number))  # the same for both tiles: what both saw is equal
        ground = _ground(rng, size, number, key == "scl")[:: gsd // 10, :: gsd // 10]
        pixels = np.ascontiguousarray(ground[:, left * 10 // gsd : (left + size.tile) * 10 // gsd])
        profile = {"driver": "COG", "compress": "deflate", "level": 4, "predictor": "standard", "blocksize": 512}
        place = {"crs": EPSG, "transform": Affine(gsd, 0, WEST + 10 * left, 0, -gsd, NORTH), "nodata": 0}
        shape = {"height": pixels.shape[0], "width": pixels.shape[1], "count": 1, "dtype": pixels.dtype}
        with rasterio.open(home / f"{key}.tif", "w", **profile, **place, **shape) as file:
            file.write(pixels, 1)


def _ground(rng: np.random.Generator, size: Size, number: int, classes: bool) -> np.ndarray:
    """Fields of 23 px, slow changes, noise, and a wedge beyond the swath (0): uint16, or classes in uint8."""
    import numpy as np

    rows, columns = size.ground
    y, x = np.mgrid[0:rows, 0:columns].astype("float32")
    fields = rng.uniform(0, 1, (rows // 23 + 1, columns // 23 + 1)).astype("float32")
    land = fields.repeat(23, 0)[:rows].repeat(23, 1)[:, :columns]
    slow = np.sin(x / 311 + number) * np.cos(y / 257 - number)
    beyond = 4 * (x - columns / 2) + (y - rows / 2) > 2 * size.box[1]  # cuts a corner of the box
    if classes:
        values = np.where(slow > 0.6, 9, np.where(land > 0.5, 4, 5)).astype("uint8")
    else:
        noise = rng.normal(0, 20, (rows, columns)).astype("float32")
        values = (1500 + 300 * number + 900 * land + 300 * slow + noise).astype("uint16")
    values[beyond] = 0
    return values


def _item(size: Size, date: int, side: int) -> dict[str, Any]:
    """An item as earth-search lays it out. The second tile is seen ten seconds later, and comes second by id."""
    from rasterio.warp import transform_bounds

    left, span = WEST + 10 * side * (size.tile - size.overlap), 10 * size.tile
    west, south, east, north = transform_bounds(EPSG, 4326, left, NORTH - span, left + span, NORTH)
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    when = FIRST + timedelta(days=EVERY * date, seconds=10 * side)
    extensions = ("projection/v2.0.0", "raster/v1.1.0", "eo/v1.1.0", "grid/v1.1.0")
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [f"https://stac-extensions.github.io/{name}/schema.json" for name in extensions],
        "id": _id(date, side),
        "collection": COLLECTION,
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": [west, south, east, north],
        "properties": {
            "datetime": f"{when:%Y-%m-%dT%H:%M:%SZ}",
            "platform": "sentinel-2a",
            "sat:relative_orbit": 122,
            "s2:processing_baseline": "05.09",
            "grid:code": f"MGRS-33T{'VW'[side]}M",
            "proj:code": f"EPSG:{EPSG}",
        },
        "links": [],
        "assets": {key: _asset(size, _id(date, side), key, gsd, left) for key, gsd in BANDS.items()},
    }


def _asset(size: Size, name: str, key: str, gsd: int, left: int) -> dict[str, Any]:
    kind = "uint8" if key == "scl" else "uint16"
    return {
        "href": f"HOME/{name}/{key}.tif",
        "type": "image/tiff; application=geotiff; profile=cloud-optimized",
        "proj:shape": [size.tile * 10 // gsd] * 2,
        "proj:transform": [gsd, 0, left, 0, -gsd, NORTH],
        "raster:bands": [{"nodata": 0, "data_type": kind, "spatial_resolution": gsd}],
        "roles": ["data"],
    }


# --- the server -------------------------------------------------------------------------------------------------------


@contextmanager
def server(folder: Path, latency: float = 0) -> Iterator[str]:
    """Its address. It runs in a process of its own until the block ends."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(folder, latency, there), daemon=True)
    process.start()
    try:
        url = here.recv()
        catalog = folder / "items.json"
        catalog.write_text(catalog.read_text().replace("HOME/", f"{url}/"))
        yield url
    finally:
        process.terminate()
        process.join()


def get(url: str) -> str:
    import requests

    answer = requests.get(url, timeout=60)
    answer.raise_for_status()
    return answer.text


def counts(url: str) -> tuple[int, int]:
    """Requests for files answered so far, and the bytes of their bodies."""
    requests, served = json.loads(get(f"{url}/counts"))
    return requests, served


def serve(folder: Path, latency: float, ready: Connection) -> None:
    """Files with ranges, and `/counts`, over HTTP/1.1 on loopback; a thread per connection."""
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    lock, total = threading.Lock(), [0, 0]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or some answers would wait 40 ms for an acknowledgement
        wbufsize = -1  # one packet for all headers

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            if self.path == "/counts":
                self.send(200, {}, json.dumps(total).encode())
            else:
                self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            path = folder / self.path.lstrip("/")
            if not path.is_file():
                self.send(404, {}, b"")
                return
            whole, asked = path.stat().st_size, re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            start = int(asked[1]) if asked else 0
            stop = min(int(asked[2]) + 1, whole) if asked and asked[2] else whole
            time.sleep(latency)
            with path.open("rb") as file:
                data = os.pread(file.fileno(), stop - start, start) if body else b""
            with lock:
                total[0] += 1
                total[1] += len(data)
            headers = {"Accept-Ranges": "bytes", "Content-Length": str(stop - start)}
            if asked:
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{whole}"
            self.send(206 if asked else 200, headers, data)

        def send(self, status: int, headers: Mapping[str, str], data: bytes) -> None:
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(data))} | dict(headers)).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
            self.wfile.flush()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    ready.send(f"http://127.0.0.1:{listening.server_port}")
    listening.serve_forever()


if __name__ == "__main__":
    main()
