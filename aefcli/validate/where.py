"""Where the pixels of a Zarr store lie, by each of its statements."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from aefcli.validate.check import CLOSE, COLUMNS, ROWS, Check, bad, hold, none, north, numbers, ok

if TYPE_CHECKING:
    from pyproj import CRS

    from aefcli.validate.store import Store


def crs_of(stated: Mapping[str, Any], keys: Sequence[str]) -> tuple[str, CRS] | None:
    from pyproj import CRS

    key = next((key for key in keys if stated.get(key)), None)
    return None if key is None else (key, CRS.from_user_input(stated[key]))


def crs(store: Store) -> Iterator[Check]:
    cf = crs_of(store.mapping, ("crs_wkt", "spatial_ref"))
    said = [crs_of(store.said, (key,)) for key in ("proj:code", "proj:wkt2", "proj:projjson")]
    found = [each for each in (cf, *said) if each]
    if not found:
        yield bad("CRS", "neither a CF grid mapping nor proj:code, proj:wkt2 or proj:projjson")
        return
    (first, known), *others = found
    odd = next(((key, other) for key, other in others if not same_crs(known, other)), None)
    if odd:
        yield bad("CRS", f"{first} is {known.name}, {odd[0]} {odd[1].name}")
    elif store.ours and not (others and cf):
        yield bad("CRS", f"{known.name}, by {first} alone: CF and proj: are to say it")
    else:
        yield ok("CRS", f"{known.name}, by {', '.join(key for key, _ in found)}")


def same_crs(one: CRS, other: CRS) -> bool:
    """As rasters mean it: the order of the axes and the wording do not count."""
    code = one.to_authority()
    return bool(one.equals(other, ignore_axis_order=True)) or (code is not None and code == other.to_authority())


def affines(store: Store) -> dict[str, tuple[float, ...]]:
    """The stated transforms (a b c d e f, outer corner), by the name of the statement."""
    found = {}
    if (said := store.said.get("spatial:transform")) is not None:
        found["spatial:transform"] = tuple(float(value) for value in said[:6])
    if (said := store.mapping.get("GeoTransform")) is not None:
        c, a, b, f, d, e = (float(value) for value in (said.split() if isinstance(said, str) else said))
        found["GeoTransform"] = (a, b, c, d, e, f)
    return found


def transform(store: Store) -> Iterator[Check]:
    from affine import Affine

    found = affines(store)
    if not found:
        kind = bad if store.ours else none
        yield kind("transform", "neither spatial:transform nor GeoTransform: the coordinates alone say where")
        lines = [store.line(known) for known in (ROWS, COLUMNS)]
        down = lines[0][-1] - lines[0][0] if lines[0] is not None else -1.0
        yield north(Affine(1, 0, 0, 0, float(np.sign(down)) or -1.0, 0), store.ours, store.notes)
        return
    (name, first), *others = found.items()
    odd = next(((key, other) for key, other in others if other != first), None)
    if odd is None:
        good, shown = len(found) > 1 or not store.ours, f"{' and '.join(found)} {numbers(first)}"
        yield hold("transform", good, shown if good else f"{shown} alone: CF and spatial: are to say it")
    else:
        shift = _pixels(odd[1][2] - first[2], first[0]), _pixels(odd[1][5] - first[5], first[4])
        yield bad("transform", f"{name} {numbers(first)}, {odd[0]} {numbers(odd[1])}: {_shift(*shift)}")
    yield north(Affine(*first), store.ours, store.notes)


def _pixels(distance: float, size: float) -> float:
    return distance / size if size else float("nan")


def _shift(across: float, down: float) -> str:
    """How far apart in words, half pixels by their name."""
    half = _half(across) or _half(down)
    return f"{across:g} pixels across and {down:g} down apart{': half a pixel' if half else ''}"


def coordinates(store: Store) -> Iterator[Check]:
    """x and y, regular, and at the pixel centres of the transform: of ours to the last digit."""
    name, affine = next(iter(affines(store).items()), ("", None))
    for axis, known, size in zip("yx", (ROWS, COLUMNS), store.shape, strict=True):
        line = store.line(known)
        if line is None:
            yield (bad if store.ours else none)("coordinates", f"there is no {axis}")
            return
        if line.shape != (size,):
            yield bad("coordinates", f"{axis} has {len(line)} values, the embeddings have {size}")
            return
        if affine is None:
            step = (line[-1] - line[0]) / max(1, size - 1)
            corner = line[0] - step / 2
        else:
            corner, step = (affine[5], affine[4]) if axis == "y" else (affine[2], affine[0])
        exact = corner + step * (np.arange(size) + 0.5)
        most = 4 * np.spacing(np.abs(exact).max()) if store.ours else CLOSE * abs(step)
        if not np.abs(line - exact).max() <= most:
            yield bad("coordinates", _off(axis, line, exact, name or "a regular line"))
            return
    yield ok("coordinates", f"x and y are regular{f', at the pixel centres of {name}' if name else ''}")


def _off(axis: str, line: np.ndarray, exact: np.ndarray, name: str) -> str:
    """By how much, in words, a coordinate misses what it should be; half pixels by their name."""
    worst, step = int(np.argmax(np.abs(line - exact))), float(exact[-1] - exact[0]) / max(1, len(exact) - 1)
    apart = _pixels(float(line[worst] - exact[worst]), step)
    regular = np.ptp(line - exact) <= CLOSE * abs(step)
    kind = ": half a pixel" if regular and _half(apart) else "" if regular else ": it is not regular"
    return f"{axis}[{worst}] is {line[worst]:.12g}, by {name} {exact[worst]:.12g}, {apart:g} pixels off{kind}"


def _half(apart: float) -> bool:
    return abs(abs(apart) - 0.5) < CLOSE


def extent(store: Store) -> Iterator[Check]:
    """bbox, shape and registration of `spatial:`."""
    rows, columns = store.shape
    found, said = affines(store), store.said.get("spatial:bbox")
    lacks = bad if store.ours else none
    if said is None or not found:
        yield lacks("bbox", "there is no spatial:bbox" if said is None else "there is no transform to hold it to")
    else:
        a, _, c, _, e, f = next(iter(found.values()))
        edges = sorted((c, c + a * columns)), sorted((f, f + e * rows))
        exact = [edges[0][0], edges[1][0], edges[0][1], edges[1][1]]
        close = 4 * np.spacing(np.abs(exact).max())
        good = len(said) == 4 and bool(np.abs(np.array(said, float) - exact).max() <= close)
        apart = "" if good else f", by {next(iter(found))} and the shape {numbers(exact)}"
        yield hold("bbox", good, f"spatial:bbox {numbers(said)}{apart}")
    shape = store.said.get("spatial:shape")
    if shape is None:
        yield lacks("shape", f"there is no spatial:shape; the embeddings are {rows} x {columns}")
    else:
        shown = f"spatial:shape {list(shape)}, embeddings {rows} x {columns}"
        yield hold("shape", list(shape) == [rows, columns], shown)
    way = store.said.get("spatial:registration")
    if way is None and not store.ours:
        yield none("registration", "spatial:registration is not given: pixel by default")
    else:
        yield hold("registration", way == "pixel", f"spatial:registration {way}, to be pixel: the outer corner")
