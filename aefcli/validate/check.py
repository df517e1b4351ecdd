"""A check and its outcome, and the checks that all kinds of store share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from aefcli.errors import AefError
from aefcli.extent import Period
from aefcli.published.vectors import BROKEN

if TYPE_CHECKING:
    from affine import Affine

State = Literal["ok", "failed", "not applicable"]
UNSAID = Period(0, 1)  # stands for a period that a file does not say
CLOSE = 0.01  # pixels by which the coordinates of others may miss their transform
ROWS, COLUMNS = ("y", "lat", "latitude", "northing"), ("x", "lon", "longitude", "easting")  # what axes are called


@dataclass(frozen=True)
class Check:
    """One thing that was looked at; `found` is a line with the values that were held against each other."""

    name: str
    state: State
    found: str


def ok(name: str, found: str) -> Check:
    return Check(name, "ok", found)


def bad(name: str, found: str) -> Check:
    return Check(name, "failed", " ".join(found.split()))


def none(name: str, found: str) -> Check:
    return Check(name, "not applicable", found)


def hold(name: str, good: bool, found: str) -> Check:
    return ok(name, found) if good else bad(name, found)


def numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.12g}" for value in values)


def north(affine: Affine, ours: bool, notes: list[str]) -> Check:
    if affine.e < 0:
        return ok("north up", "rows run north to south")
    if ours:
        return bad("north up", f"rows run south to north: {affine.e:g} along y, to be below 0")
    notes.append("rows run south to north: readers take that from the transform")
    return none("north up", "rows run south to north")


def few(values: Sequence[Any]) -> str:
    return f"{', '.join(map(str, values[:4]))}{' ...' if len(values) > 4 else ''}"


def agrees(path: Path, expected: Callable[[], Mapping[str, Any]]) -> Check:
    """The item at `path` is valid STAC, and agrees with what the store would say."""
    import pystac
    from pystac.validation.stac_validator import JsonSchemaSTACValidator

    if not path.is_file():
        return none("STAC item", f"there is no {path.name}")
    try:
        document = json.loads(path.read_text())
        pystac.Item.from_dict(document)
        if document["stac_version"] == "1.1.0":  # the version whose schemas pystac carries
            JsonSchemaSTACValidator().validate_core(document, pystac.STACObjectType.ITEM, "1.1.0")
        odd = next(_differences(document, expected()), "")
    except pystac.STACValidationError as error:
        cause: Any = error.__cause__
        return bad("STAC item", f"{path.name}: {cause.json_path} {_short(cause.message)}")
    except (pystac.STACError, pystac.STACTypeError, AefError, *BROKEN) as error:
        return bad("STAC item", f"{path.name}: {_short(str(error))}")
    return hold("STAC item", not odd, f"{path.name}: {odd}" if odd else f"{path.name} is valid, and says the same")


def _short(text: str) -> str:
    return text if len(text) <= 160 else f"{text[:70]} ... {text[-80:]}"


def _differences(said: Any, expected: Any, at: str = "") -> Iterator[str]:
    """Where an item says something else than expected; more may be said, links are not held to anything."""
    if isinstance(expected, Mapping) and isinstance(said, Mapping):
        for key in (key for key in expected if key != "links"):
            yield from _differences(said.get(key), expected[key], f"{at}.{key}" if at else str(key))
    elif at == "bbox" and said is not None and len(said) == len(expected):
        if not np.allclose(said, expected, rtol=0, atol=1e-6):
            yield f"bbox {numbers(said)}, the store's is {numbers(expected)}"
    elif said != expected:
        yield f"{at} {str(said)[:80]}, the store says {str(expected)[:80]}"
