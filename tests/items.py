"""Items of catalogs, made for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pystac

from aefcli import stac
from aefcli.errors import AefError
from aefcli.extent import BBox, Period
from aefcli.sources import SOURCES

WORLD = BBox(-180, -90, 180, 90)
HERE = BBox(15.0, 46.0, 15.2, 46.2)
YEAR = Period.parse("2023")
S1, S2, LANDSAT = (SOURCES[name] for name in ("sentinel-1", "sentinel-2", "landsat"))
TOKEN = "s3ntinel-t0ken"


def feature(name: str = "one", collection: str | None = "sentinel-2-l2a", **changes: Any) -> dict[str, Any]:
    """An item as JSON. `assets`, `bbox`, and properties (`__` for `:`, None removes one) may be changed."""
    properties: dict[str, Any] = {
        "datetime": "2023-08-15T09:57:57.246000Z",
        "platform": "sentinel-2a",
        "grid:code": "MGRS-33TWM",
        "s2:datatake_id": "GS2A_20230815T095031_042547_N05.09",
        "s2:processing_baseline": "05.09",
        "s2:generation_time": "2023-08-15T15:50:57.000000Z",
    }
    assets = changes.pop("assets", ("blue", "green", "red", "nir", "swir16", "scl"))
    box = changes.pop("bbox", [15.0, 46.0, 15.2, 46.2])
    properties |= {key.replace("__", ":"): value for key, value in changes.items()}
    made = assets if isinstance(assets, dict) else {key: {} for key in assets}
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        **({"collection": collection} if collection is not None else {}),
        "properties": {key: value for key, value in properties.items() if value is not None or key == "datetime"},
        "geometry": None if box is None else {"type": "Polygon", "coordinates": [ring(box)]},
        **({} if box is None else {"bbox": box}),
        "links": [],
        "assets": {key: {"href": f"https://example.com/{name}/{key}.tif", **about} for key, about in made.items()},
    }


def ring(box: list[float]) -> list[list[float]]:
    west, south, east, north = box[0], box[1], box[len(box) // 2], box[len(box) // 2 + 1]
    return [[west, south], [east, south], [east, north], [west, north], [west, south]]


def item(name: str = "one", collection: str | None = "sentinel-2-l2a", **changes: Any) -> pystac.Item:
    return pystac.Item.from_dict(feature(name, collection, **changes))


def mapped(name: str, start: int, end: int | None = None, **changes: Any) -> pystac.Item:
    """A map of whole years, as catalogs have them: without an instant."""
    span = {"start_datetime": f"{start}-01-01T00:00:00Z", "end_datetime": f"{end or start}-12-31T23:59:59Z"}
    return item(name, datetime=None, grid__code=None, s2__datatake_id=None, platform=None, **span | changes)


def catalog_of(folder: Path, *features: dict[str, Any], name: str = "items.json") -> stac.Catalog:
    path = folder / name
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return stac.open_catalog(str(path))


def line(error: AefError) -> str:
    assert "\n" not in str(error)
    assert len(str(error)) < 1000
    return str(error)
