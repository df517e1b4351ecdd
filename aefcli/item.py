"""The STAC items that lie beside a field: what it is, where and when, made from which items and by which model.

    embeddings.stac.json         the field: STAC 1.1 with projection 2.0.0 and embeddings 0.0.1
    embeddings.model.stac.json   its model: machine learning model (MLM) 1.5.2

Owns their words. All of them come from what the field, its cube and its run say of themselves, none from a clock, so
that the same field has the same items. Addresses are those of the cube's plan, without queries and users. Field names:
the JSON schemas of the extensions; of MLM those of version 1.3.0, which 1.5 keeps.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aefcli import cost, field, ledger
from aefcli.errors import BadInput
from aefcli.extent import Period, to_ms
from aefcli.several import from_outside, outside
from aefcli.sources import SOURCES

if TYPE_CHECKING:
    import pystac
    import xarray as xr
    from odc.geo.geobox import GeoBox

    from aefcli.checkpoint import Run
    from aefcli.cube import Cube
    from aefcli.recipe import Recipe

PROJECTION = "https://stac-extensions.github.io/projection/v2.0.0/schema.json"
EMBEDDINGS = "https://stac-extensions.github.io/embeddings/v0.0.1/schema.json"
MLM = "https://stac-extensions.github.io/mlm/v1.5.2/schema.json"
FILE = "https://stac-extensions.github.io/file/v2.1.0/schema.json"

_ZARR = "application/vnd.zarr; version=3"
_DIGITS = 7  # of degrees: a centimetre
_BEND = 1e-5  # degrees, a metre: outlines that bend less are told by their corners
_ARCHITECTURE = "AlphaEarth Foundations (Space Time Precision encoder)"
_TASKS = ["similarity-search"]  # of the extension's list, what vectors themselves serve


def beside(store: Path) -> Path:
    """Where the item of a field lies: `embeddings.stac.json` beside `embeddings.zarr`."""
    return outside(store).with_name(f"{_name_of(store)}.stac.json")


def model_beside(store: Path) -> Path:
    """Where the item of its model lies."""
    return outside(store).with_name(f"{_name_of(store)}.model.stac.json")


def is_current(store: Path) -> bool:
    """Whether the item that lies beside a finished field is of what the field holds now."""
    try:
        said = json.loads(beside(store).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(said, dict) and said.get("id") == _id(store, field.open_field(store).attrs)


def _id(store: Path, attrs: Mapping[str, Any]) -> str:
    return "-".join((_name_of(store), *([str(attrs["aef:key"])[:12]] if "aef:key" in attrs else [])))


def _name_of(store: Path) -> str:
    return outside(store).name.removesuffix(".zarr")


def write(store: Path, cube: Path | None = None, run: Run | None = None) -> Path:
    """Write the item of a finished field beside it, over one that is there; its path.

    `cube` is where the field's cube lies, by default where the field says; the items that it was made from are named
    if it is there, and still is the one that was embedded. With `run`, the item of the model is written too. Raises
    BadInput where `store` is no finished field.
    """
    opened = field.open_field(store)
    found = _item(store, opened)
    if run is not None:
        _check_made_by(store, opened.attrs.get("aef:model"), run)
        made = model(store, run)
        ledger.write_atomically(model_beside(store), _json(made))
    for link in _links(store, cube):
        found.add_link(link)
    ledger.write_atomically(beside(store), _json(_plain(found)))
    return beside(store)


def _check_made_by(store: Path, said: Any, run: Run) -> None:
    """Refuse a run whose weights are not those that the field names."""
    from aefcli import checkpoint

    weights = said.get("weights") if isinstance(said, Mapping) else None
    here = checkpoint.identity(run)["weights"]
    if weights and weights != here:
        raise BadInput(f"{store} was not made by {run.name}: its weights are {weights}, not {here}", "name its run")


def document(store: Path) -> dict[str, Any]:
    """The item of a field as plain JSON, without its links. Raises BadInput where `store` is no finished field."""
    return _plain(_item(store, field.open_field(store)))


def _plain(found: pystac.Item) -> dict[str, Any]:
    made: dict[str, Any] = found.to_dict(include_self_link=False, transform_hrefs=False)
    return made


def _json(made: Mapping[str, Any]) -> bytes:
    return (json.dumps(made, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


# --- the field --------------------------------------------------------------------------------------------------------


def _item(store: Path, opened: xr.Dataset) -> pystac.Item:
    import pystac

    attrs, grid, periods = opened.attrs, field.geobox(opened), _periods(opened)
    bbox, geometry = place(grid)
    start, end = span(periods)
    made = pystac.Item(
        id=_id(store, attrs),
        geometry=geometry,
        bbox=bbox,
        datetime=None,
        start_datetime=start,
        end_datetime=end,
        properties=_properties(opened, periods),
        stac_extensions=[PROJECTION, EMBEDDINGS],
    )
    asset = pystac.Asset(
        f"./{from_outside(store)}",
        title="Embeddings",
        media_type=_ZARR,
        roles=["data", "embeddings"],
        extra_fields=_values(opened),
    )
    made.add_asset("embeddings", asset)
    return made


def place(grid: GeoBox) -> tuple[list[float], dict[str, Any]]:
    """Box (west, south, east, north) and outline of a grid in degrees, GeoJSON.

    Across the antimeridian the box has its west above its east, and the outline is cut in two (RFC 7946).
    """
    import shapely
    from shapely.geometry import mapping
    from shapely.geometry.polygon import orient

    from aefcli.cube import outline

    edge = max(grid.extent.boundary.length / 80, 1e-9)
    found = grid.extent.to_crs("EPSG:4326", resolution=edge, wrapdateline=True).geom
    simple = shapely.simplify(found, _BEND)
    rounded = shapely.transform(simple, lambda corners: np.round(corners, _DIGITS))
    parts = [orient(part) for part in getattr(rounded, "geoms", [rounded])]
    around = outline(grid)
    bbox = [round(value, _DIGITS) for value in (around.west, around.south, around.east, around.north)]
    whole = parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)
    return bbox, json.loads(json.dumps(mapping(whole)))


def span(periods: Sequence[Period]) -> tuple[Any, Any]:
    """First and last instant (datetime, UTC) of some periods; their ends are not part of them."""
    last = max(period.end for period in periods) - 1
    return Period(min(period.start for period in periods), last).dates()


def _periods(opened: xr.Dataset) -> list[Period]:
    bounds = opened["time_bnds"].to_numpy().astype("datetime64[ms]").astype("int64")
    return [Period(int(start), int(end)) for start, end in bounds]


def _properties(opened: xr.Dataset, periods: Sequence[Period]) -> dict[str, Any]:
    attrs = opened.attrs
    sources = ", ".join(str(name) for name in attrs.get("geoemb:source_data", ()))
    whole = {
        "title": "Embedding field",
        "description": f"A vector of {field.DIMENSIONS} numbers, of unit length, for each pixel and valid period "
        f"({len(periods)}), made from {sources or 'what its model reads'}.",
        "proj:code": attrs.get("proj:code"),
        **({} if "proj:code" in attrs else {"proj:wkt2": attrs["proj:wkt2"]}),
        "proj:shape": list(attrs["spatial:shape"]),
        "proj:bbox": list(attrs["spatial:bbox"]),
        "proj:transform": list(attrs["spatial:transform"]),
        **({"gsd": attrs["geoemb:gsd"]} if "geoemb:gsd" in attrs else {}),
        **_quantisation(attrs.get("geoemb:quantization")),
        "emb:runtime_parameters": _runtime(opened, periods),
    }
    if "uncertainty" in opened:
        told = str(opened["uncertainty"].attrs.get("long_name", "spread of the vectors of a pixel"))
        whole["emb:uncertainty"] = {"description": told}
    return whole | ({"aef:model": attrs["aef:model"]} if "aef:model" in attrs else {})


def _quantisation(said: Any) -> dict[str, Any]:
    """`emb:quantization`, which has a link where `geoemb:` has an address; nothing of a field of floats."""
    if not isinstance(said, Mapping):
        return {}
    told = {key: said[key] for key in ("method", "original_dtype", "quantized_dtype") if key in said}
    link = {"rel": "about", "href": said.get("link"), "title": "how codes become values"}
    return {"emb:quantization": {**told, **({"link": link} if "link" in said else {})}}


def _runtime(opened: xr.Dataset, periods: Sequence[Period]) -> dict[str, Any]:
    """How the model was applied: patches and their halo, and the valid periods (dates, both ends included)."""
    told: dict[str, Any] = {"valid_periods": [str(period).replace(":", "/") for period in periods]}
    if "extrapolated" in opened.coords:
        told["extrapolated"] = [bool(flag) for flag in opened["extrapolated"].to_numpy()]
    plan = tomllib.loads(str(opened.attrs.get("aef:recipe", "")))  # not parsed: it may be of another version
    sizes = opened.attrs.get("aef:request", {}).get("patches") or plan.get("embed", {})
    return {**sizes, **told}


def _values(opened: xr.Dataset) -> dict[str, Any]:
    """Of the stored numbers: their type and nodata, as STAC 1.1 names them."""
    dtype = str(opened["embeddings"].dtype)
    return {"data_type": dtype, "nodata": field.NODATA if dtype == "int8" else "nan"}


# --- its links --------------------------------------------------------------------------------------------------------


def _links(store: Path, cube: Path | None) -> Iterator[pystac.Link]:
    import pystac

    if model_beside(store).is_file():
        yield pystac.Link("emb:model", f"./{model_beside(store).name}", "application/geo+json", "the model")
    for name, address in _made_from(store, cube):
        for rel in ("derived_from", "emb:source-data"):  # STAC's own word, and the extension's
            yield pystac.Link(rel, address, "application/geo+json", name)


def _made_from(store: Path, given: Path | None) -> list[tuple[str, str]]:
    """Ids and addresses of the items of all frames that the model read, in the order of their ids."""
    from aefcli.cube import open_cube

    opened = field.open_field(store)
    if given is None and "catalog" in opened.attrs.get("aef:request", {}):
        return _streamed(store, opened)
    said = opened.attrs.get("aef:cube")
    path = given or (store.parent / str(said) if said else None)
    record = ledger.read(path) if path and path.exists() else None
    planned = record.plan.get("items") if record and isinstance(record.plan, dict) else None
    if path is None or record is None or not planned:
        return []
    cube, names = open_cube(path), [str(name) for name in opened.attrs.get("geoemb:source_data", ())]
    if not _is_of(opened.attrs.get("aef:request", {}), cube, names):
        return []
    catalog = str(record.request.get("catalog", ""))
    wanted = {name: _read_by(cube, name, _periods(opened)) for name in planned if name in names}
    found = (
        (str(item["id"]), address)
        for name, items in planned.items()
        for item in items
        if item["id"] in wanted.get(name, ()) and (address := _address(catalog, item, store))
    )
    return sorted(set(found))


def _streamed(store: Path, opened: xr.Dataset) -> list[tuple[str, str]]:
    """As `_made_from`, of a field of which no cube was kept: the items are in its own records."""
    import pystac

    from aefcli.embed.periods import support_of
    from aefcli.stac import instant

    record = ledger.read(store)
    if record is None or record.request != opened.attrs["aef:request"]:
        return []
    read = Period(*(to_ms(datetime.fromisoformat(when)) for when in record.request["period"].split("/")))
    supports = {support_of(read, period) for period in _periods(opened)}
    found = (
        (str(item["id"]), address)
        for items in record.plan["items"].values()
        for item in items
        if any(each.start <= instant(pystac.Item.from_dict(item)) < each.end for each in supports)
        and (address := _address(str(record.request["catalog"]), item, store))
    )
    return sorted(set(found))


def _is_of(request: Mapping[str, Any], cube: Cube, names: Sequence[str]) -> bool:
    """Whether a cube still is what a field was made from: the same request, and the same frames for each period."""
    from aefcli.embed.periods import keys_of, print_of

    if request.get("cube") not in (cube.key, *keys_of(cube, names)) or not set(names) <= set(cube.sources):
        return False
    told = [entry for entry in request.get("periods", ()) if len(entry) > 2]  # older fields have no prints
    return all(print_of(cube, names, Period(start, end)) == found for start, end, found in told)


def _read_by(cube: Cube, name: str, periods: Sequence[Period]) -> set[str]:
    """Ids of the items in the frames of one source that serve any of the valid periods."""
    import xarray as xr

    from aefcli.embed.periods import support_of
    from aefcli.sample import in_period

    stored = xr.open_zarr(cube.path, group=name, chunks=None, decode_times=False, consolidated=False)
    if "items" not in stored:
        return set()
    supports = {support_of(cube.period, period) for period in periods}
    frames = {int(frame) for support in supports for frame in in_period(cube.sources[name], support)}
    texts = stored["items"].to_numpy()
    return {item for frame in frames for item in str(texts[frame]).split(",")}


def _address(catalog: str, item: Mapping[str, Any], store: Path) -> str | None:
    """Where a source item is: at its API, or in a catalog on disk; None where only its catalog could say."""
    from aefcli.stac import NAMED, public

    root = public(NAMED.get(catalog, catalog)).rstrip("/")
    if root.startswith(("https://", "http://")):
        if re.search(r"\.(json|geojson|parquet)$", root) or not item.get("collection"):
            return None
        return f"{root}/collections/{_quoted(str(item['collection']))}/items/{_quoted(str(item['id']))}"
    for asset in item.get("assets", {}).values():
        href = str(asset.get("href", ""))
        lies = Path(href).parent / f"{item['id']}.json"
        if "://" not in href and lies.is_file():
            return os.path.relpath(lies.resolve(), outside(store).resolve().parent)
    return None


def _quoted(text: str) -> str:
    """A part of an address, percent-encoded (RFC 3986)."""
    return re.sub(r"[^A-Za-z0-9._~-]", lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), text)


# --- the model --------------------------------------------------------------------------------------------------------


def model(store: Path, run: Run) -> dict[str, Any]:
    """The item of the run that a field was made by, with its weights as the asset, as plain JSON.

    It has no place and holds for all times, as the extension's own examples of models do. The address of weights that
    came with the package is a package URL.
    """
    import pystac

    plan, (start, end) = run.recipe, (to_datetime("1900-01-01"), to_datetime("9999-12-31"))
    made = pystac.Item(
        id=f"{_name(run)}-{plan.hash}",
        geometry=None,
        bbox=None,
        datetime=None,
        start_datetime=start,
        end_datetime=end,
        properties=_of_model(run, plan),
        stac_extensions=[MLM, FILE],
    )
    made.add_asset("model", _weights(run, outside(store).resolve().parent))
    return _plain(made)


def to_datetime(day: str) -> Any:
    """The first instant of a day, in UTC."""
    import datetime

    return datetime.datetime.fromisoformat(f"{day}T00:00:00+00:00")


def _name(run: Run) -> str:
    """A name as MLM has them: letters, digits, spaces, dots, - and _, of which a letter comes first."""
    return "aef-" + (re.sub(r"[^A-Za-z0-9.-]+", "-", run.path.resolve().name).strip("-.") or "run")


def _of_model(run: Run, plan: Recipe) -> dict[str, Any]:
    d, patch = plan.model.embedding, plan.embed.patch
    counts = cost.parameters(plan.model, plan.data.sources, plan.data.targets)
    return {
        "title": _name(run),
        "description": f"Embeds satellite series: {d} numbers of unit length per pixel, for any valid period. "
        "card.md in the run's folder says what it learned from, and what it is good for.",
        "mlm:name": _name(run),
        "mlm:architecture": _ARCHITECTURE,
        "mlm:tasks": _TASKS,
        "mlm:framework": "PyTorch",
        "mlm:total_parameters": counts["total"],
        "mlm:pretrained": True,
        "mlm:input": [_input(name, plan, patch) for name in plan.data.sources],
        "mlm:output": [
            {
                "name": "embeddings",
                "tasks": _TASKS,
                "result": {
                    "shape": [-1, -1, d, patch, patch],
                    "dim_order": ["batch", "period", "embedding", "height", "width"],
                    "data_type": "float32",
                },
                "description": "Unit vectors, one for each pixel and valid period.",
            }
        ],
        "mlm:hyperparameters": plan.model.model_dump(mode="json"),
        "bands": _all_bands(plan),
        "aef:recipe": plan.hash,
    }


def _bands(source: str) -> list[str]:
    return [band.name for band in SOURCES[source].bands]


def _all_bands(plan: Recipe) -> list[dict[str, str]]:
    """The bands of all inputs. MLM wants them in the properties; STAC 1.1 has them there only if an asset does too."""
    return [{"name": name} for name in dict.fromkeys(name for source in plan.data.sources for name in _bands(source))]


def _input(name: str, plan: Recipe, patch: int) -> dict[str, Any]:
    """One source as the model reads it: any number of frames, standardised."""
    bands, moments = SOURCES[name].bands, plan.statistics.get(name)
    means = moments.mean if moments else [band.mean for band in bands]
    stds = moments.std if moments else [band.std for band in bands]
    transforms = ", ".join(dict.fromkeys(band.transform for band in bands))
    return {
        "name": name,
        "bands": _bands(name),
        "input": {
            "shape": [-1, -1, len(bands), patch, patch],
            "dim_order": ["batch", "time", "channel", "height", "width"],
            "data_type": "float32",
        },
        "description": f"Any number of frames, any of the inputs. Values of {SOURCES[name].gsd} m are transformed "
        f"({transforms}) and then standardised band by band, as value_scaling says.",
        "value_scaling": [
            {"type": "z-score", "mean": mean, "stddev": std} for mean, std in zip(means, stds, strict=True)
        ],
    }


def _weights(run: Run, folder: Path) -> pystac.Asset:
    import pystac

    with run.weights.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    return pystac.Asset(
        _shipped(run) if run.shipped else os.path.relpath(run.weights.resolve(), folder),
        title="weights",
        media_type="application/octet-stream",
        roles=["mlm:model", "mlm:weights"],
        extra_fields={
            "bands": _all_bands(run.recipe),
            "mlm:artifact_type": "safetensors.torch.save",
            "file:size": run.weights.stat().st_size,
            "file:checksum": f"1220{digest}",  # a multihash: SHA-256, 32 bytes
        },
    )


def _shipped(run: Run) -> str:
    from importlib.metadata import version

    return f"pkg:pypi/aefcli@{version('aefcli')}#aefcli/shipped/{run.path.name}/{run.weights.name}"
