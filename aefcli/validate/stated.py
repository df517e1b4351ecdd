"""What a Zarr store says of its periods, labels, numbers and conventions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from aefcli import field as fields
from aefcli import ledger
from aefcli.validate.check import COLUMNS, ROWS, UNSAID, Check, bad, few, hold, none, ok
from aefcli.validate.where import affines, crs_of, same_crs

if TYPE_CHECKING:
    from pyproj import CRS

    from aefcli.validate.store import Store

_FORMULA = "sign(q)*(|q|/127.5)^2"
_CONVENTIONS = {
    "proj:": "f17cb550-5864-4468-aeb7-f3180cfb622f",
    "spatial:": "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4",
    "geoemb:": "61c12cc5-0e28-4056-999a-480cf3fb7e4c",
    "multiscales": "d35379db-88df-4056-af3a-620245f8e347",
}


def periods(store: Store) -> Iterator[Check]:
    time = next((name for name in store.names if name.lower() in ("time", "t", "year")), "time")
    if "time_bnds" not in store.root:
        if store.ours:
            yield bad("periods", "there is no time_bnds")
        elif store.opened[0] is None:
            yield none("periods", "there is no time_bnds, and no reader that says which it takes")
        else:
            when = store.opened[0].periods
            if when[0] == UNSAID:
                yield bad("periods", "neither time_bnds nor a coordinate of years nor a name says when; --period does")
                return
            yield none("periods", f"there is no time_bnds; read as {', '.join(map(str, when[:3]))}")
            store.notes.append("periods are taken from its years or its name: time_bnds would say them")
        return
    bounds = store.decoded["time_bnds"].to_numpy().astype("datetime64[ms]")
    starts = np.atleast_1d(store.decoded[time].to_numpy()).astype("datetime64[ms]")
    if bounds.shape != (len(starts), 2):
        yield bad("periods", f"time_bnds is {bounds.shape}, time has {len(starts)} values")
        return
    shown = [f"{str(start)[:10]} to {str(end)[:10]}" for start, end in bounds]
    if len(wrong := np.nonzero(bounds[:, 0] >= bounds[:, 1])[0]):
        yield bad("periods", f"time_bnds[{wrong[0]}] runs from {shown[wrong[0]]}: its end is not after its start")
    elif len(wrong := np.nonzero(starts != bounds[:, 0])[0]):
        yield bad("periods", f"{time}[{wrong[0]}] is {starts[wrong[0]]}, time_bnds starts {bounds[wrong[0], 0]}")
    elif len({tuple(pair) for pair in bounds.tolist()}) < len(bounds):
        twice = next(text for text in shown if shown.count(text) > 1)
        yield bad("periods", f"{twice} is there twice")
    else:
        yield ok("periods", f"{len(shown)}: {few(shown)}; ends not included")


def extrapolated(store: Store) -> Iterator[Check]:
    frames, flags = (store.part(name) for name in ("frames_inside", "extrapolated"))
    if frames is None or flags is None:
        yield none("extrapolated", "it does not say how many frames lie inside its periods")
        return
    count, said = np.asarray(frames[...]), np.asarray(flags[...]).astype(bool)
    kept = store.part("share_inside")
    share = np.where(said, 0.0, 1.0) if kept is None else np.asarray(kept[...])
    same = count.shape == said.shape == share.shape == (store.array.shape[0],)
    wrong = [] if not same else np.nonzero((count < 0) | ((count == 0) != said))[0].tolist()
    if not same or wrong:
        shown = f"is {said.shape}, frames_inside {count.shape}"
        if wrong:
            shown = f"[{wrong[0]}] is {said[wrong[0]]}, frames_inside {count[wrong[0]]}"
        yield bad("extrapolated", f"extrapolated {shown}: a period without frames is, others are not")
    elif len(odd := np.nonzero((share < 0) | (share > 1) | ((share == 0) != said))[0]):
        yield bad("extrapolated", f"share_inside[{odd[0]}] is {share[odd[0]]:g}, frames_inside {count[odd[0]]}")
    else:
        yield ok("extrapolated", f"{int(said.sum())} of {len(said)} periods; frames inside {few(count.tolist())}")


def labels(store: Store) -> Iterator[Check]:
    found = store.part("embedding")
    if found is None and not store.ours:
        yield none("labels", "there is no coordinate embedding")
        store.notes.append(f"dimensions have no labels {fields.LABELS[0]} ...: they are taken in their order")
        return
    if found is None:
        yield bad("labels", "there is no coordinate embedding")
        return
    labels = [str(label) for label in np.asarray(found[...]).tolist()]
    kind = found.dtype.kind
    good = tuple(labels) == fields.LABELS and kind in "OT"
    shown = f"{len(labels)} of dtype {found.dtype}: {labels[0]} ... {labels[-1]}"
    yield hold("labels", good, shown if good else f"{shown}; to be strings of any length, A00 ... A63")


def numbers(store: Store) -> Iterator[Check]:
    dtype, fill, said = store.array.dtype, store.array.fill_value, store.values.get("_FillValue")
    text = f"{dtype}, fill_value {fill}, _FillValue {said}"
    if store.coded:
        good = fill == fields.NODATA and (said == fields.NODATA or (said is None and not store.ours))
        yield hold("type and nodata", good, text if good else f"{text}; to be {fields.NODATA} both")
    elif store.ours:
        good = dtype in ("float16", "float32") and np.isnan(fill) and (said is None or bool(np.isnan(float(said))))
        yield hold("type and nodata", good, text if good else f"{text}; to be int8, or floats whose nodata is NaN")
    else:
        yield ok("type and nodata", text)
    linear = sorted({"scale_factor", "add_offset"} & (set(store.values) | set(store.attrs)))
    shown = ", ".join(f"{key} {store.said[key]}" for key in linear)
    shown = f"{shown}: the code is not affine" if linear else "none, and no add_offset"
    yield hold("no scale_factor", not linear, shown)


def quantisation(store: Store) -> Iterator[Check]:
    method = store.said.get("geoemb:quantization")
    method = method if isinstance(method, Mapping) else {}
    text = str(store.values.get("quantisation", store.attrs.get("quantisation", "")))
    if not store.coded:
        if store.ours:
            good = not method and "quantisation" not in store.values
            shown = f"{store.array.dtype}, and {'no' if good else 'a'} quantiser is named"
            yield hold("quantisation", good, shown)
        else:
            vectors = store.opened[0]
            yield none("quantisation", vectors.decoding if vectors else f"{store.array.dtype} of another's making")
        return
    told = f"geoemb:quantization {method.get('method', 'none')}"
    if not store.ours:
        good = not method or method.get("method") in ("signed_power", "signed_square")
        good = good or "127.5" in str(method.get("formula"))
        yield hold("quantisation", good, f"{told}, to be signed_power")
        if not method:
            store.notes.append("it does not say how codes become values: they are taken for AEF's")
        return
    right = all(_FORMULA in str(each).replace(" ", "") for each in (text, store.attrs.get("quantisation", text)))
    good = right and method.get("method") == "signed_power" and "scale" not in method
    good = good and method.get("quantized_dtype") == str(store.array.dtype)
    extra = ", with a scale" if "scale" in method else ""
    shown = f"{told}{extra}; the attribute quantisation says {'' if right else repr(text[:60]) + ', to be '}{_FORMULA}"
    yield hold("quantisation", good, shown)


def attributes(store: Store) -> Iterator[Check]:
    """What a field of ours says in more than one place, or in one way alone, as whoever opens it goes by any of it."""
    if not store.ours:
        yield none("attributes", "it is another's field")
        return
    wrong = [
        f"{key} {store.attrs.get(key)}, to be {value}"
        for key, value in {"spatial:dimensions": ["y", "x"], "spatial:transform_type": "affine"}.items()
        if store.attrs.get(key) != value
    ]
    if not str(store.attrs.get("Conventions", "")).startswith("CF-"):
        wrong.append(f"Conventions {store.attrs.get('Conventions')}, to be CF")
    if found := crs_of(store.mapping, ("crs_wkt", "spatial_ref")):
        wrong += _mapped_otherwise(store, found[1])
    wrong += _made_otherwise(store)
    yield hold("attributes", not wrong, few(wrong) if wrong else "agree with each other")


def _mapped_otherwise(store: Store, crs: CRS) -> Iterator[str]:
    """Where parameters of the grid mapping, or what x and y say of themselves, are not those of its CRS."""
    for key, value in crs.to_cf().items():
        said = store.mapping.get(key)
        if isinstance(value, float | int) and not (said is not None and math.isclose(float(said), value, rel_tol=1e-9)):
            yield f"{key} of the grid mapping {said}, by its CRS {value}"
    again = crs_of(store.mapping, ("spatial_ref",))
    if again and not same_crs(crs, again[1]):
        yield f"spatial_ref of the grid mapping is {again[1].name}, crs_wkt {crs.name}"
    for axis in crs.cs_to_cf():
        name = str(axis["axis"]).lower()
        line = store.part(name)
        said = {} if line is None else dict(line.attrs)
        yield from (
            f"{key} of {name} {said.get(key)}, by its CRS {axis[key]}"
            for key in ("standard_name", "units")
            if line is not None and said.get(key) != axis[key]
        )


def _made_otherwise(store: Store) -> Iterator[str]:
    """Where the field's key, periods, model or sources are not those of the request that it says it was made by."""
    seen = {name.removeprefix("observations_") for name in store.root.array_keys() if name.startswith("observations_")}
    if (told := store.attrs.get("geoemb:source_data")) is not None and set(told) != seen:
        yield f"geoemb:source_data {told}, observations are of {sorted(seen)}"
    request = store.attrs.get("aef:request")
    if not isinstance(request, Mapping):
        return
    if store.attrs.get("aef:key") != ledger.digest(request):
        yield "aef:key is not that of aef:request"
    if "model" in request and store.attrs.get("aef:model") != request["model"]:
        yield f"aef:model {store.attrs.get('aef:model')}, in aef:request {request['model']}"
    bounds = store.part("time_bnds")
    if "periods" in request and bounds is not None:
        held = [[int(instant) for instant in pair] for pair in np.asarray(bounds[...]).tolist()]
        if [list(each[:2]) for each in request["periods"]] != held:
            yield f"aef:request has {len(request['periods'])} periods, which are not the {len(held)} of time_bnds"


def conventions(store: Store) -> Iterator[Check]:
    entries = store.attrs.get("zarr_conventions")
    used = [name for name in _CONVENTIONS if name.endswith(":") and any(key.startswith(name) for key in store.attrs)]
    if not entries:
        yield (bad if store.ours else none)("conventions", f"zarr_conventions is missing; used are {', '.join(used)}")
        return
    wrong = []
    for entry in entries:
        lacks = [key for key in ("uuid", "name", "description") if not entry.get(key)]
        known = _CONVENTIONS.get(str(entry.get("name", "")))
        if lacks:
            wrong.append(f"{entry.get('name', entry)} lacks {', '.join(lacks)}")
        if known not in (None, entry.get("uuid")):
            wrong.append(f"{entry['name']} has uuid {entry.get('uuid')}, to be {known}")
    named = [str(entry.get("name")) for entry in entries]
    wrong += [f"{name} is used and not listed" for name in used if name not in named and store.ours]
    yield hold("conventions", not wrong, "; ".join(wrong) or ", ".join(named))


def geoemb(store: Store) -> Iterator[Check]:
    said = {key.removeprefix("geoemb:"): value for key, value in store.said.items() if key.startswith("geoemb:")}
    if not said:
        yield (bad if store.ours else none)("geoemb", "there are no geoemb: attributes")
        return
    other = ("time", "t", "year", *ROWS, *COLUMNS)
    sizes = zip(store.names, store.array.shape, strict=True)
    depth = next(size for name, size in sizes if name.lower() not in other)
    wanted: dict[str, Any] = {"type": "pixel", "dimensions": depth, "data_type": str(store.array.dtype)}
    affine, crs = next(iter(affines(store).values()), None), crs_of(store.said, ("proj:code", "proj:wkt2"))
    if affine and crs and crs[1].is_projected and "gsd" in said:
        wanted["gsd"] = affine[0]
    held = [key for key in wanted if store.ours or key in said]
    wrong = [f"{key} {said.get(key)}, to be {wanted[key]}" for key in held if said.get(key) != wanted[key]]
    good = f"{said.get('type')}, {said.get('dimensions')} dimensions of {said.get('data_type')}"
    yield hold("geoemb", not wrong, "; ".join(wrong) or good)
    if absent := [key for key in ("type", "dimensions", "data_type", "model", "source_data") if key not in said]:
        store.notes.append(f"geoemb:{' and geoemb:'.join(absent)} not given: the convention asks for it")
