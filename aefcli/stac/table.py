"""Items in a stac-geoparquet file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pystac

from aefcli.errors import BadInput
from aefcli.extent import BBox, Period

_MOST_ROWS = 8 << 30  # bytes that one says it unpacks to


class Table:
    """A stac-geoparquet file: rows are read when they are searched for, through the statistics of its row groups."""

    def __init__(self, file: str | bytes) -> None:
        from pyarrow import ArrowInvalid, BufferReader, parquet

        self.open: Callable[[], Any] = (lambda: file) if isinstance(file, str) else (lambda: BufferReader(file))
        try:
            about = parquet.ParquetFile(self.open())
        except ArrowInvalid as error:
            raise BadInput(f"--stac is no Parquet file: {error}") from error
        meta = about.metadata
        unpacked = sum(meta.row_group(number).total_byte_size for number in range(meta.num_row_groups))
        if unpacked > _MOST_ROWS:
            raise BadInput(f"--stac says that it unpacks to {unpacked >> 20} MiB", "name a part of it")
        self.schema = about.schema_arrow
        if missing := {"id", "geometry", "assets"} - set(self.schema.names):
            raise BadInput(f"--stac is no stac-geoparquet: it lacks {', '.join(sorted(missing))}")

    def collections(self) -> frozenset[str]:
        if "collection" not in self.schema.names:
            return frozenset({""})
        column = self._read(columns=["collection"])["collection"]
        return frozenset(name or "" for name in column.unique().to_pylist())

    def items(self, collection: str, bbox: BBox, period: Period | None) -> Iterator[pystac.Item]:
        """Those of the collection whose box touches the given one, and whose datetime lies in the period, if they have
        a box and a datetime.
        """
        from stac_geoparquet.arrow import stac_table_to_items

        for feature in stac_table_to_items(self._read(filters=self._filter(collection, bbox, period))):
            yield pystac.Item.from_dict(feature)

    def _read(self, **options: Any) -> Any:
        from pyarrow import parquet

        return parquet.read_table(self.open(), **options)

    def _filter(self, collection: str, bbox: BBox, period: Period | None) -> Any:
        import pyarrow as pa
        import pyarrow.compute as pc

        rows = pc.scalar(True)
        if "collection" in self.schema.names:
            name = pc.field("collection")
            rows = name == collection if collection else name.is_null()
        edges = self.schema.field("bbox").type if "bbox" in self.schema.names else None
        if edges and pa.types.is_struct(edges) and {"xmin", "ymin", "xmax", "ymax"} <= {edge.name for edge in edges}:
            west, south, east, north = (pc.field("bbox", name) for name in ("xmin", "ymin", "xmax", "ymax"))
            across = (south <= bbox.north) & (north >= bbox.south)
            along = west > east  # an item across the antimeridian: `_touches` looks closer
            for left, _, right, _ in boxes(bbox):
                along = along | ((west <= right) & (east >= left))
            rows = rows & ((across & along) | pc.field("bbox").is_null())
        if period and "datetime" in self.schema.names and pa.types.is_timestamp(self.schema.field("datetime").type):
            when, kind = pc.field("datetime"), self.schema.field("datetime").type
            start, end = (pa.scalar(date, pa.timestamp("us", "UTC")).cast(kind) for date in period.dates())
            rows = rows & (((when >= start) & (when < end)) | when.is_null())
        return rows


def boxes(bbox: BBox) -> list[list[float]]:
    """The box as one, or two across the antimeridian."""
    if bbox.west < bbox.east:
        return [[bbox.west, bbox.south, bbox.east, bbox.north]]
    return [[bbox.west, bbox.south, 180.0, bbox.north], [-180.0, bbox.south, bbox.east, bbox.north]]
