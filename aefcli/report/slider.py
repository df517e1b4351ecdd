"""The page of a field: one HTML file with a slider over its periods, which asks the network for nothing.

Owns how much of a field the page carries, and its words. Beside it lie the template `field.html`, which escapes all
that it is given, its style `field.css` and its script `field.js`. A page holds a picture of each period, and a thinned
copy of the vectors, by which it shows what is like a place: of each vector the components along as few directions as
hold 95 % of all vectors' squared length, as int8.
"""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aefcli import colours
from aefcli.errors import BadInput
from aefcli.extent import Period
from aefcli.published import open_vectors
from aefcli.report.about import about, frames, place
from aefcli.report.page import as_uri, hashed, saving, templates
from aefcli.report.thin import Thinned, position, time_of, title, unit, vectors_at

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

    from aefcli.published import Vectors
    from aefcli.report.about import FieldAbout, PeriodAbout

_PICTURES = 1_000_000  # pixels of all periods' pictures together, up to 3 bytes each
_LONGEST = 1024  # pixels along a picture's longer side
_COPY = 3_000_000  # bytes of the copy of the vectors
_HELD = 0.95  # of the vectors' squared length, by the directions kept
_NODES = 9  # along each side, of the lattice by which the page tells longitude and latitude
_RAMPS = {"similarity": "viridis", "change": "magma"}


@dataclass(frozen=True, eq=False)
class Copy:
    """Vectors along few directions. codes: int8 (t, y, x, k), 127 for 1, -128 in all k where nodata."""

    thin: Thinned
    codes: np.ndarray
    share: float  # of the vectors' squared length that the directions hold


@dataclass(frozen=True)
class Start:
    """What a page shows at first: without these the colours of the first period."""

    at: tuple[float, float] | None = None  # longitude and latitude of the place whose like is shown
    between: tuple[int, int] | None = None  # times between which change is shown


def field_page(
    field: Path,
    out: Path,
    *,
    at: tuple[float, float] | None = None,
    change: tuple[Period, Period] | None = None,
    told: Period | None = None,
) -> Path:
    """Write the page of anybody's field; returns `out`.

    At first it shows what is like `at`, a longitude and latitude, or the `change` between two valid periods, or else
    colours. Fields of any size: pictures and vectors are thinned, so that a page stays within some 8 MB. BadInput where
    `open_vectors` has it, where `at` is outside or without data, the field has not these periods, or `out` is a folder;
    NoResources where it cannot be written.
    """
    if out.is_dir():
        raise BadInput(f"{out} is a folder", "name an .html file")
    vectors = open_vectors(field, told)
    if at is not None:
        vectors_at(vectors, *at)
    between = (time_of(vectors, change[0]), time_of(vectors, change[1])) if change else None
    text = _html(vectors, Start(at, between))
    with saving(out):
        out.write_text(text, encoding="utf-8")
    return out


def _html(vectors: Vectors, start: Start) -> str:
    room = templates()
    found, times = about(vectors), range(len(vectors.periods))
    shape = (found.shape[0], found.shape[1])
    sample = colours.sample(vectors.window, shape, len(times), vectors.block)
    painter, copy = colours.Colours.fit(sample), _copied(vectors, sample)
    thin = Thinned.to(vectors, min(_LONGEST, _side(shape, _PICTURES / len(times))))
    style, script = (room.get_template(f"field.{kind}").render() for kind in ("css", "js"))
    return room.get_template("field.html").render(
        style=style,
        script=script,
        allowed={"style": hashed(style), "script": hashed(script)},
        name=vectors.name,
        facts=_facts(found),
        size=thin.shape,
        step=thin.step,
        pictures=[as_uri(thin.painted(time, painter)) for time in times],
        periods=[_told(each) for each in found.periods],
        sources=list(dict.fromkeys(name for each in found.periods for name in each.observations)),
        held=f"{copy.share:.1%}",
        kept=copy.codes.shape[-1],
        dimensions=vectors.dimensions,
        provenance=_provenance(found),
        sampled=found.blocks if found.blocks[0] < found.blocks[1] else None,
        data=_data(thin, copy, found, start),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _side(shape: tuple[int, int], pixels: float) -> float:
    """The longer side of a picture of this form with so many pixels."""
    return math.sqrt(pixels * max(shape) / min(shape))


# ---- the copy of the vectors


def _copied(vectors: Vectors, sample: np.ndarray) -> Copy:
    """Thinned as little as the room allows."""
    times, shape = len(vectors.periods), (vectors.grid.shape[0], vectors.grid.shape[1])
    directions, share = _directions(sample)
    kept = (directions.shape[1],)
    thin = Thinned.to(vectors, _side(shape, _COPY / times / kept[0]))

    def code(values: np.ndarray) -> np.ndarray:
        along = unit(values) @ directions
        return np.where(np.isfinite(along), np.rint(np.clip(along, -1, 1) * 127), -128)

    return Copy(thin, np.stack([thin.picture([time], code, np.int8, kept) for time in range(times)]), share)


def _directions(sample: np.ndarray) -> tuple[np.ndarray, float]:
    """float32 (d, k), orthonormal: the fewest that hold enough of the squared length of vectors (n, d); their share."""
    vectors = unit(sample)
    vectors = vectors[np.isfinite(vectors).all(axis=1)].astype("float64")
    squares, directions = np.linalg.eigh(vectors.T @ vectors)
    shares = np.cumsum(squares[::-1]) / max(float(squares.sum()), 1e-9)
    count = min(int(np.searchsorted(shares, _HELD)) + 1, len(shares))
    return directions[:, ::-1][:, :count].astype("float32"), float(shares[count - 1])


# ---- words and numbers


def _data(thin: Thinned, copy: Copy, found: FieldAbout, start: Start) -> dict[str, Any]:
    """What the script reads."""
    grid = copy.thin.grid
    whole, part = thin.grid.boundingbox.bbox, grid.boundingbox.bbox
    across, up = whole[2] - whole[0], whole[3] - whole[1]
    return {
        "periods": [_told(each) for each in found.periods],
        "shape": copy.codes.shape,
        "vectors": base64.b64encode(copy.codes.tobytes()).decode(),
        "ramps": {what: _ramp(name) for what, name in _RAMPS.items()},
        # Where the copy's grid lies in the picture, as shares of it: thinned pixels reach over the edges a little
        "box": [
            (part[0] - whole[0]) / across,
            (whole[3] - part[3]) / up,
            (part[2] - part[0]) / across,
            (part[3] - part[1]) / up,
        ],
        "nodes": _nodes(grid),
        "start": {"place": position(copy.thin, *start.at) if start.at else None, "between": start.between},
        "metres": _metres(thin.grid, found),
    }


def _ramp(name: str) -> list[int]:
    """256 colours, [r, g, b, r, g, b ...]."""
    from matplotlib import colormaps

    return [int(value) for value in (colormaps[name](np.arange(256))[:, :3] * 255).round().ravel()]


def _nodes(grid: GeoBox) -> dict[str, Any]:
    """Longitudes and latitudes of a lattice of places, evenly spread from the first pixel's centre to the last's."""
    from pyproj import Transformer

    assert grid.crs is not None, "a field's grid has a CRS"
    height, width = grid.shape
    rows, columns = (np.linspace(0.5, size - 0.5, _NODES) for size in (height, width))
    affine = grid.transform
    x, y = np.meshgrid(affine.c + affine.a * columns, affine.f + affine.e * rows)
    lon, lat = Transformer.from_crs(grid.crs.proj, "EPSG:4326", always_xy=True).transform(x, y)
    return {"side": _NODES, "lon": np.round(lon, 6).ravel().tolist(), "lat": np.round(lat, 6).ravel().tolist()}


def _metres(grid: GeoBox, found: FieldAbout) -> float | None:
    """How wide the picture is on the ground, in its middle; None where the CRS does not say."""
    west, south, east, north = grid.boundingbox.bbox
    if found.unit == "metre":
        return float(east - west)
    if found.unit == "degree":
        return float((east - west) * 111_320 * math.cos(math.radians((south + north) / 2)))
    return None


def _told(each: PeriodAbout) -> dict[str, Any]:
    start, end = str(each.period).split(":")
    days = round(each.period.days)
    return {
        "name": title(each.period),
        "dates": f"{start} to {end}" if start != end else start,
        "days": f"{days:,} day" + "s" * (days != 1),
        "extrapolated": bool(each.extrapolated),
        "frames": None if each.frames is None else frames(each),
        "nodata": f"{each.nodata:.1%}",
        "observations": {name: f"{value:.1f}" for name, value in each.observations.items()},
        "uncertainty": None if each.uncertainty is None else f"{each.uncertainty:.1f}°",
    }


def _facts(found: FieldAbout) -> list[tuple[str, str]]:
    """What stands under the title: label and text."""
    first, last = min(each.period.start for each in found.periods), max(each.period.end for each in found.periods)
    return [
        ("periods", str(len(found.periods))),
        ("from, to", str(Period(first, last)).replace(":", " to ")),
        ("pixels", place(found).replace("km2", "km²")),
        ("CRS", f"{found.name} ({found.crs})" if found.crs.startswith("EPSG:") else found.name),
        *((name, value) for name, value in (("model", found.model.split(",")[0]), ("recipe", found.recipe)) if value),
    ]


def _provenance(found: FieldAbout) -> list[tuple[str, str]]:
    west, south, east, north = found.bbox
    told = [
        ("field", found.path.name),
        ("format", f"{found.format}, {found.dtype}, {found.dimensions} dimensions, {found.stored / 1e6:,.1f} MB"),
        ("values", found.decoding),
        ("bbox (W, S, E, N)", f"{west:.4f}, {south:.4f}, {east:.4f}, {north:.4f}".replace("-", "−")),
        ("model", found.model),
        ("recipe", found.recipe),
        ("cube", found.cube),
        ("licence", found.licence),
    ]
    return [(name, value) for name, value in told if value]
