"""An embedding field for those who read no Zarr: GeoTIFFs that any GIS opens, and tables of its vectors at points.

Owns the cloud-optimised GeoTIFF of one valid period, and the table:

    <field>_<start>_<end>.tif   both days included; a band per dimension, A00, A01 ...; north up
                                codes as the field has them (int8, nodata -128), or float32 (nodata NaN)
    overviews                   halves, down to one tile: means of the decoded vectors that have data, of length 1
                                where those of the field are, and codes again. Codes are never averaged
    tags                        period, decoding, model, source, and what the field says of itself in words
    table                       the points' own columns; period_start and period_end (half open, UTC); A00 ... float32

Reads fields of anybody, through `published`; writes what is whole or not there, through `geotiff` and `aside`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aefcli import aside, field, geotiff, ledger
from aefcli.errors import BadInput
from aefcli.extent import Period, Tile
from aefcli.probe import Places, read_places
from aefcli.published import Vectors
from aefcli.published.vectors import POWER, UNIT

if TYPE_CHECKING:
    import pandas as pd
    from rasterio.io import DatasetWriter

Progress = Callable[[int, int], None]

_DAY = 86_400_000  # ms
_KEY = "aef_export"  # the tag by which a file is known to be what is asked for; GDAL splits names at a colon
# Measured on AEF's field of Wisconsin, of its plain size: deflate .59, LZW .67, zstd .53, without the predictor .82,
# 1.17 and .83; higher levels of deflate are slower and no smaller. Zstd would be the better one, but a TIFF library
# may be built without it, and none is without deflate.
_PACKING = {"level": 1, "predictor": "yes"}


def names_of(vectors: Vectors) -> list[str]:
    """A00, A01 ...: what bands and columns are called."""
    return [f"A{index:02d}" for index in range(vectors.dimensions)]


# --- GeoTIFFs -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cog:
    """A GeoTIFF of one valid period."""

    path: Path
    period: Period
    nodata: float | None  # share of its pixels; None of a file that was there, made by the same request


def write_cogs(
    vectors: Vectors,
    folder: Path,
    periods: Sequence[Period] = (),
    *,
    dequantised: bool = False,
    workers: int = 1,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[Cog]:
    """Write a GeoTIFF into `folder` for each of some valid periods, by default all; leave finished ones alone.

    Codes stay codes, unless `dequantised` asks for the vectors as float32; whatever else the field holds is float32
    too. Raises BadInput where a file is there already that is not of the same request, or a period is not held.
    """
    codes = vectors.decoding == POWER and not dequantised
    plans = [_Plan(vectors, index, codes) for index in vectors.held(periods)]
    paths = [folder / f"{_safe(vectors.name)}_{_stamp(plan.period)}.tif" for plan in plans]
    made = [not overwrite and _is_made(path, plan) for path, plan in zip(paths, plans, strict=True)]
    total, done = sum(plan.steps for plan, there in zip(plans, made, strict=True) if not there), 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    return [
        Cog(path, plan.period, None if there else plan.write(path, workers, tick))
        for path, plan, there in zip(paths, plans, made, strict=True)
    ]


@dataclass(frozen=True, eq=False)
class _Plan:
    """What a GeoTIFF holds of a field: the codes of one valid period, or its vectors."""

    vectors: Vectors
    index: int
    codes: bool

    @property
    def period(self) -> Period:
        return self.vectors.periods[self.index]

    @cached_property
    def tiles(self) -> list[Tile]:
        return list(geotiff.parts(self.raster.shape, self.vectors.block))

    @cached_property
    def raster(self) -> geotiff.Raster:
        return geotiff.Raster(
            grid=self.vectors.grid,
            count=self.vectors.dimensions,
            dtype="int8" if self.codes else "float32",
            nodata=field.NODATA if self.codes else float("nan"),
            there=self.there,
            describe=self.describe,
            packing=_PACKING,
        )

    @property
    def unit(self) -> bool:
        """Whether its vectors have the length 1, so that their means are to have it too."""
        return self.vectors.decoding in (POWER, UNIT)

    @property
    def steps(self) -> int:
        return len(self.tiles) + len(geotiff.leaves(self.raster))

    @property
    def key(self) -> str:
        """What a finished file is known by; "" where the field does not say what it was made from."""
        request = self.vectors.attrs.get("aef:request")
        if not isinstance(request, Mapping):
            return ""
        field_of = {name: value for name, value in request.items() if name != "periods"}  # it may gain some
        period = [self.period.start, self.period.end]
        about = [list(told) for told in request.get("periods", ()) if list(told[:2]) == period]  # with its print
        made = {"field": field_of, "period": about or period, "chunks": self.chunks, "dtype": self.raster.dtype}
        return ledger.digest(made)

    @property
    def chunks(self) -> dict[str, str]:
        """What the records of a field have of this period's chunks; nothing where it has none."""
        record, head = ledger.read(self.vectors.path), f"embeddings/c/{self.index}/"
        files = (line["files"].items() for line in record.units.values()) if record else ()
        return {name.removeprefix(head): value for each in files for name, value in each if name.startswith(head)}

    def read(self, tile: Tile) -> np.ndarray:
        """What the file holds of a tile, (d, h, w), in rows as the field has them."""
        return self.vectors.codes(tile, self.index) if self.codes else self.vectors.window(tile, self.index)

    def there(self, stored: np.ndarray) -> np.ndarray:
        """Where what the file holds (d, h, w) decodes: bool (h, w). A vector of zeros has no direction."""
        if self.codes:
            return np.asarray((stored != field.NODATA).all(axis=0) & stored.any(axis=0))
        return np.asarray(np.isfinite(stored).all(axis=0))

    def decode(self, stored: np.ndarray) -> np.ndarray:
        """float32 vectors of what the file holds (d, h, w); NaN where nodata."""
        return field.dequantise(stored, axis=0) if self.codes else stored

    def encode(self, means: np.ndarray) -> np.ndarray:
        """What the file holds of means of vectors (d, h, w)."""
        if self.unit:
            length = np.sqrt(np.square(means).sum(axis=0))
            means = means / np.where(length > 0, length, np.float32(np.nan))
        return field.quantise(means, axis=0) if self.codes else means

    def describe(self, file: DatasetWriter) -> None:
        file.update_tags(**_tags(self))
        file.descriptions = names_of(self.vectors)

    def write(self, out: Path, workers: int, tick: Callable[[], None]) -> float:
        """The share of its pixels without data."""
        (rows, columns), means = self.tiles[0].shape, geotiff.Means(self.decode, self.encode)
        size = rows * columns * self.raster.count * np.dtype(self.raster.dtype).itemsize
        read = geotiff.ahead(self.read, self.tiles, workers, size)
        valid = geotiff.write(out, self.raster, read, means, workers=workers, tick=tick)
        return 1 - valid / (self.raster.shape[0] * self.raster.shape[1])


def _is_made(path: Path, plan: _Plan) -> bool:
    """Whether the file is there, of the same request; another one is refused."""
    import rasterio
    from rasterio.errors import RasterioError

    if not path.exists():
        return False
    with suppress(RasterioError), rasterio.open(path, driver="GTiff") as file:
        if plan.key and file.tags().get(_KEY) == plan.key:
            return True
    raise BadInput(f"{path} is there already", "--overwrite replaces it, --out names another folder")


def _safe(name: str) -> str:
    """A field's name as part of a file's, on any system."""
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "field"


def _stamp(period: Period) -> str:
    """First and last day; of a period that is not of whole days (UTC), its two instants."""
    if period.start % _DAY == period.end % _DAY == 0:
        return str(period).replace(":", "_")
    return "_".join(_instant(when).replace(":", "") for when in period.dates())


def _instant(when: datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%S") + (f".{when.microsecond // 1000:03d}" if when.microsecond else "") + "Z"


def _tags(plan: _Plan) -> dict[str, str]:
    """What the file says of itself: what the field says in words and numbers, and what is known here."""
    vectors, attrs = plan.vectors, plan.vectors.attrs
    start, end = plan.period.dates()
    sensors, cube = attrs.get("geoemb:source_data"), attrs.get("aef:cube")
    from_ = ", ".join(map(str, sensors)) if isinstance(sensors, list | tuple) else ""
    own = {
        "field": vectors.path.name,
        "source": " of ".join(part for part in (from_, str(cube or "")) if part) or vectors.path.name,
        **({"model": str(attrs["aef:model"])} if "aef:model" in attrs else {}),
        "period": str(plan.period),
        "period_start": _instant(start),
        "period_end": _instant(end),
        "decoding": vectors.decoding if plan.codes else "values as they stand",
        "overviews": "means of the decoded vectors" + (", brought to the length 1" if plan.unit else ""),
        **({_KEY: plan.key} if plan.key else {}),
    }
    said = {name: str(value) for name, value in attrs.items() if isinstance(value, str | int | float)}
    about = {name: text for name, text in said.items() if len(text) < 1000 and not _FORMAL.match(name)}
    if "source" in {name.lower() for name in about}:  # whom it is from, by its own words
        own.pop("source")
    taken = {name.lower() for name in own}  # GDAL's names have no case
    return {**{name: text for name, text in about.items() if name.lower() not in taken}, **own}


# What is of a store or of GDAL, and not of the field
_FORMAL = re.compile(
    r"_|aef:|geoemb:|proj:|spatial:|STATISTICS_|TIFFTAG_|AREA_OR_POINT$|Conventions$|coordinates$|crs$|crs_wkt$"
    r"|GeoTransform$|grid of$|grid_mapping$|long_name$|quantisation$|spatial_ref$|state$|units$",
    re.IGNORECASE,
)


# --- tables ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """Vectors at points. Counts are of rows."""

    path: Path
    points: int
    rows: int
    periods: tuple[Period, ...]  # of the field, those that were asked for
    missing: Mapping[str, int]  # rows whose vector is empty, by why: outside, nodata, other periods


def write_table(
    vectors: Vectors, points: Path, out: Path, periods: Sequence[Period] = (), *, overwrite: bool = False
) -> Table:
    """Write a table, .parquet or .csv, of a field's vectors at points: float32, decoded.

    It has a row for each point and each of some valid periods, by default all, period by period; where the points name
    valid periods of their own (`valid_time_start_ms`, `valid_time_end_ms`), a row for each point, with what the field
    has of its period. Rows that the field has nothing for are kept, their vectors empty. Geometries become `longitude`
    and `latitude`. Raises BadInput where all would be empty, or a column has the name of one that is added.
    """
    chosen = vectors.held(periods)
    if out.exists() and points.exists() and out.samefile(points):
        raise BadInput(f"--out {out} is the table of the points", "name another")
    aside.check(out, "table", (".parquet", ".csv"), overwrite)
    kinds = {points.suffix.lower(), out.suffix.lower()}
    places = read_places(points, as_text=kinds == {".csv"})
    added = ["period_start", "period_end", *names_of(vectors)]
    if taken := [name for name in added if name in places.table.columns]:
        raise BadInput(f"{points} has a column {taken[0]!r} of its own", "rename it, or leave it out")
    asked = _asked(vectors, chosen, places)
    inside = field.locate(vectors.grid, places.lon, places.lat)[2]
    _check_some(vectors, points, places, asked, inside)
    missing = dict.fromkeys(("outside", "nodata", "other periods"), 0)
    with aside.making(out) as made:
        with _sink(made) as write:
            for times in asked:
                found = vectors.sample(places.lon, places.lat, times)[0]
                empty = ~np.isfinite(found).all(axis=1)
                missing["other periods"] += int((times < 0).sum())
                missing["outside"] += int((~inside & (times >= 0)).sum())
                missing["nodata"] += int((empty & inside & (times >= 0)).sum())
                write(_frame(vectors, places, times, found))
        if sum(missing.values()) == len(asked) * len(places):
            raise BadInput(f"{vectors.path} is nodata at all points of {points}", "give points where it has data")
    held_periods = tuple(vectors.periods[index] for index in chosen)
    return Table(out, len(places), len(asked) * len(places), held_periods, missing)


def _asked(vectors: Vectors, chosen: Sequence[int], places: Places) -> list[np.ndarray]:
    """Time indices of all points (n,): one for each period of the field, or those of the points' own, -1 for none."""
    if places.valid_start is None or places.valid_end is None:
        return [np.full(len(places), index) for index in chosen]
    return [vectors.times_of(places.valid_start, places.valid_end, chosen)]


def _check_some(
    vectors: Vectors, points: Path, places: Places, asked: Sequence[np.ndarray], inside: np.ndarray
) -> None:
    """Refuse points that the field has nothing for: of other periods, or in another place."""
    if places.valid_start is not None and places.valid_end is not None and (asked[0] < 0).all():
        first = Period(int(places.valid_start[0]), int(places.valid_end[0]))
        listed = ", ".join(map(str, vectors.periods[:12]))
        raise BadInput(f"{points}: no point is of a period of {listed}; the first is of {first}", "embed that period")
    if not inside.any():
        raise BadInput(f"all {len(places)} points of {points} lie outside of {vectors.path}", "give points inside it")


def _frame(vectors: Vectors, places: Places, times: np.ndarray, found: np.ndarray) -> pd.DataFrame:
    """Rows of the table; a point whose period is not held keeps its own."""
    import pandas as pd

    bounds = {}
    for side in ("start", "end"):
        held, own = np.array([getattr(period, side) for period in vectors.periods]), getattr(places, f"valid_{side}")
        bounds[f"period_{side}"] = held[times] if own is None else np.where(times < 0, own, held[times])
    when = pd.DataFrame({name: pd.to_datetime(values, unit="ms", utc=True) for name, values in bounds.items()})
    return pd.concat(
        [places.table, when.astype("datetime64[ms, UTC]"), pd.DataFrame(found, columns=names_of(vectors))], axis=1
    )


@contextmanager
def _sink(path: Path) -> Iterator[Callable[[pd.DataFrame], None]]:
    """What writes frames of the same columns one after the other into a table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    opened: list[Any] = []
    with ExitStack() as stack:

        def as_csv(frame: pd.DataFrame) -> None:
            first = not opened
            if first:
                opened.append(stack.enter_context(path.open("w", newline="", encoding="utf-8")))
            when = {name: frame[name].map(_instant) for name in ("period_start", "period_end")}
            frame.assign(**when).to_csv(opened[0], index=False, header=first)

        def as_parquet(frame: pd.DataFrame) -> None:
            try:
                table = pa.Table.from_pandas(frame, opened[0].schema if opened else None, preserve_index=False)
            except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
                raise BadInput(f"the points do not go into Parquet: {error}", "--out points.csv") from error
            if not opened:
                opened.append(stack.enter_context(pq.ParquetWriter(path, table.schema)))
            opened[0].write_table(table)

        yield as_csv if path.suffix.lower() == ".csv" else as_parquet
