"""What a finished cube holds: its grid, its size, and per source how often and how clearly the ground was seen.

Reads the weights of all frames and no band. Source: `stores.md`.
"""

from __future__ import annotations

import itertools
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from aefcli.cube.grid import crs_of
from aefcli.cube.store import Cube, CubeSource, whole
from aefcli.extent import Period, Tile

if TYPE_CHECKING:
    import zarr
    from odc.geo.geobox import GeoBox

CLEAR_LOOK = 0.1  # share of a frame's pixels that must be clear for it to count as a look at the ground
GAP_DAYS = 31  # stretches longer than this are gaps: a monthly source that is whole has none
_BLOCK = 1 << 24  # weights read at a time by one thread: 16 MiB
_DAY = 86_400_000


@dataclass(frozen=True)
class Grid:
    """Where the cells lie. `corner`: x and y of the north-west one's outer corner, in units of the CRS."""

    crs: str  # EPSG:32633; WKT where there is no code
    name: str
    gsd: float
    rows: int
    columns: int
    corner: tuple[float, float]
    bbox: tuple[float, float, float, float]  # degrees, W S E N; west above east across the antimeridian
    area_km2: float  # of the cells, as the CRS measures them


@dataclass(frozen=True)
class SourceAbout:
    """One source, as `about` found it. Shares are means of the weight over all pixels of the source, 0 to 1."""

    name: str
    static: bool
    bands: tuple[str, ...]
    cell: float  # metres
    times: tuple[int, ...]  # ms since 1970 UTC, a frame each
    shares: tuple[float, ...]  # the clear share of each frame
    months: Mapping[str, int]  # frames in each calendar month of the period, "2023-01" first
    gaps: tuple[Period, ...]  # stretches without a clear look of more than GAP_DAYS days
    longest: float | None  # days of the longest stretch without a clear look; None for a static source
    platforms: Mapping[str, int]  # frames of each; "" where it is not known
    orbits: Mapping[str, int]  # frames of each direction, where the source has one
    offsets: Mapping[str, int] | None  # Sentinel-2: frames by the reflectance added, -0.1 or 0
    masked: tuple[str, ...]  # "item/asset" taken for nodata, because they could not be read and that was asked for
    stored: int  # bytes on disk
    decoded: int  # bytes

    @property
    def clear(self) -> float:
        return float(np.mean(self.shares)) if self.shares else 0.0

    @property
    def span(self) -> tuple[str, str] | tuple[None, None]:
        """The first and the last instant, ISO 8601."""
        ends = _instants((self.times[0], self.times[-1])) if self.times else []
        return (ends[0], ends[1]) if ends else (None, None)

    def as_dict(self) -> dict[str, Any]:
        when, (first, last) = _instants(self.times), self.span
        return {
            "frames": len(self.times),
            "first": first,
            "last": last,
            "static": self.static,
            "bands": list(self.bands),
            "cell_m": self.cell,
            "clear": round(self.clear, 6),
            "months": dict(self.months),
            "longest_gap_days": None if self.longest is None else round(self.longest, 1),
            "gaps": [_span(gap) for gap in self.gaps],
            "platforms": dict(self.platforms),
            "orbits": dict(self.orbits),
            "offsets": None if self.offsets is None else dict(self.offsets),
            "masked": list(self.masked),
            "bytes": {"stored": self.stored, "decoded": self.decoded},
            "per_frame": [{"time": at, "clear": round(share, 6)} for at, share in zip(when, self.shares, strict=True)],
        }


@dataclass(frozen=True)
class About:
    """A cube, described."""

    path: str
    format: str
    key: str
    grid: Grid
    period: Period
    request: Mapping[str, Any]  # what was asked for, as stored
    stored: int  # bytes on disk
    decoded: int  # bytes
    sources: Mapping[str, SourceAbout]
    points: Mapping[str, int]  # rows of each table of points, such as texts

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON; instants as ISO 8601 in UTC, ends of periods not included."""
        return {
            "path": self.path,
            "format": self.format,
            "key": self.key,
            "grid": {**asdict(self.grid), "corner": list(self.grid.corner), "bbox": list(self.grid.bbox)},
            "period": _span(self.period),
            "bytes": {"stored": self.stored, "decoded": self.decoded},
            "request": dict(self.request),
            "sources": {name: source.as_dict() for name, source in self.sources.items()},
            "points": dict(self.points),
        }


def about(cube: Cube, workers: int = 4) -> About:
    """Describe a cube.

    The clear share is the mean of the weight over all pixels of a source, and of each frame. A look is a frame of
    which at least CLEAR_LOOK, 10 %, is clear. A gap is a stretch of the period longer than GAP_DAYS, 31 days, without
    a look; the ends of the period bound it like looks. Static sources have neither. Weights are read block by
    block, `workers` at a time, so that memory does not grow with the cube.
    """
    import zarr

    from aefcli.cube.chunks import CubeStore

    with whole(cube.path):
        root = zarr.open_group(CubeStore(cube.path, read_only=True), mode="r", zarr_format=3)
        sources = {name: _source(cube, name, root, workers) for name in cube.sources}
        rows = {str(name): _rows(root, str(name)) for name in cube.attrs.get("aef:points", ())}
        request = dict(cube.attrs.get("aef:request", {}))
    return About(
        path=str(cube.path),
        format=str(cube.attrs["aef:format"]),
        key=cube.key,
        grid=_grid(cube.grid),
        period=cube.period,
        request=request,
        stored=_on_disk(str(cube.path)),
        decoded=sum(source.decoded for source in sources.values()),
        sources=sources,
        points=rows,
    )


def _grid(grid: GeoBox) -> Grid:
    from pyproj import Transformer

    crs, box, code = crs_of(grid), grid.extent.boundingbox, crs_of(grid).to_epsg()
    degrees = Transformer.from_crs(crs.proj, "EPSG:4326", always_xy=True).transform_bounds(*box.bbox)
    rows, columns = (int(n) for n in grid.shape)
    gsd = float(grid.resolution.x)
    return Grid(
        crs=f"EPSG:{code}" if code else crs.to_wkt(),
        name=crs.proj.name,
        gsd=gsd,
        rows=rows,
        columns=columns,
        corner=(float(box.left), float(box.top)),
        bbox=(round(degrees[0], 6), round(degrees[1], 6), round(degrees[2], 6), round(degrees[3], 6)),
        area_km2=rows * columns * gsd**2 / 1e6,
    )


def _source(cube: Cube, name: str, root: zarr.Group, workers: int) -> SourceAbout:
    found = cube.sources[name]
    times = tuple(int(time) for time in found.times)
    shares = clear_shares(found, workers)
    looks = [time for time, share in zip(times, shares, strict=True) if share >= CLEAR_LOOK]
    stretches = [] if found.source.static else _between(looks, cube.period)
    items = {item for text in _words(root, name, "items") for item in text.split(",")}
    orbits = Counter(_words(root, name, "orbit")) if "orbit" in found.source.meta else {}
    cubic = [array for _, array in _group(root, name).arrays() if array.ndim == 3]
    return SourceAbout(
        name=name,
        static=found.source.static,
        bands=found.bands,
        cell=found.factor * float(cube.grid.resolution.x),
        times=times,
        shares=tuple(shares),
        months=_months(times, cube.period),
        gaps=tuple(stretch for stretch in stretches if stretch.days > GAP_DAYS),
        longest=None if found.source.static else max((stretch.days for stretch in stretches), default=0.0),
        platforms=dict(sorted(Counter(_words(root, name, "platform")).items())),
        orbits=dict(sorted(orbits.items())),
        offsets=_offsets(found) if name == "sentinel-2" else None,
        masked=tuple(lost for lost in cube.attrs.get("aef:missing", ()) if str(lost).rpartition("/")[0] in items),
        stored=_on_disk(f"{cube.path}/{name}"),
        decoded=sum(int(array.nbytes) for array in cubic),
    )


def clear_shares(source: CubeSource, workers: int = 4) -> list[float]:
    """Mean weight of each frame over all pixels of the source, 0 to 1 (t)."""
    weight = source.arrays["weight"]
    counts = np.zeros(weight.shape[0], dtype=np.int64)

    def count(block: tuple[slice, Tile]) -> tuple[slice, np.ndarray]:
        when, tile = block
        return when, cells(weight, np.arange(when.start, when.stop), tile).sum(axis=(1, 2), dtype=np.int64)

    with ThreadPoolExecutor(max(1, workers)) as pool:
        for when, clear in pool.map(count, _blocks(weight)):
            counts[when] += clear
    return [float(share) for share in counts / max(1, weight.shape[1] * weight.shape[2])]


def cells(array: Any, frames: np.ndarray, tile: Tile) -> np.ndarray:
    """Some frames (t, y, x) of a window of one of a source's arrays, on the source's own cells.

    Raises Damaged where a chunk on disk is missing or is not what it claims to be.
    """
    from aefcli.cube import chunks

    if isinstance(array, np.ndarray):
        return array[(frames, *tile.slices)]
    files = chunks.Chunks.of(array)
    if files is None:
        return np.asarray(array.oindex[(frames, *tile.slices)])
    out = np.empty((len(frames), *tile.shape), array.dtype)
    chunks.read([files], frames, tile, [out])
    return out


def _blocks(array: Any) -> Iterator[tuple[slice, Tile]]:
    """Cut an array (t, y, x) into blocks of whole chunks, of at most _BLOCK cells or one chunk."""
    times, height, width = array.shape
    whole: tuple[int, int, int] = getattr(array, "chunks", (32, 128, 128))  # an array in memory has none
    across = max(1, _BLOCK // math.prod(whole)) * whole[2]
    for start, top, left in itertools.product(
        range(0, times, whole[0]), range(0, height, whole[1]), range(0, width, across)
    ):
        tile = Tile(top, left, min(top + whole[1], height), min(left + across, width))
        yield slice(start, min(start + whole[0], times)), tile


def _between(looks: Sequence[int], period: Period) -> list[Period]:
    """The stretches of the period from its start to the first look, from look to look, and on to its end."""
    inside = sorted({period.start, *(look for look in looks if period.start < look < period.end), period.end})
    return [Period(start, end) for start, end in itertools.pairwise(inside)]


def _months(times: Sequence[int], period: Period) -> dict[str, int]:
    """Frames in each calendar month that the period touches; those outside the period are not counted."""
    of = np.array([time for time in times if period.start <= time < period.end], dtype="datetime64[ms]")
    first, last = np.array([period.start, period.end - 1], dtype="datetime64[ms]").astype("datetime64[M]")
    counts = Counter(str(month) for month in of.astype("datetime64[M]"))
    return {str(month): counts[str(month)] for month in np.arange(first, last + 1)}


def _offsets(source: CubeSource) -> dict[str, int]:
    """Frames by the offset of the bands that they have; "-0.1,0" where those of one frame differ."""
    each = (
        sorted(set(offsets[there].tolist())) for offsets, there in zip(source.offset, source.delivered, strict=True)
    )
    return dict(sorted(Counter(",".join(f"{value:g}" for value in found) for found in each).items()))


def _words(root: zarr.Group, name: str, what: str) -> list[str]:
    """Lineage (t) of a source; nothing where it has none."""
    from aefcli.cube.chunks import small

    group = _group(root, name)
    return [str(word) for word in small(group[what])] if what in group else []


def _group(root: zarr.Group, name: str) -> Any:
    return root[name]


def _rows(root: zarr.Group, name: str) -> int:
    """Rows of a table of points."""
    return max((int(array.shape[0]) for _, array in _group(root, name).arrays() if array.ndim), default=0)


def _on_disk(path: str) -> int:
    """Bytes of all files under a folder."""
    total = 0
    for entry in os.scandir(path):
        total += _on_disk(entry.path) if entry.is_dir(follow_symlinks=False) else entry.stat().st_size
    return total


def _span(period: Period) -> dict[str, Any]:
    start, end = _instants((period.start, period.end))
    return {"start": start, "end": end, "days": round(period.days, 1)}


def _instants(times: Sequence[int]) -> list[str]:
    """ISO 8601 in UTC, to the second."""
    return [f"{time}Z" for time in np.array(times, dtype="datetime64[ms]").astype("datetime64[s]").astype(str)]
