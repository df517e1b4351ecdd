"""Fields, a cube and labels into scores: gathers the features that `probe` judges.

Owns which labels every candidate can answer (inside, with data, for a period that the field holds), so that all are
scored on the same points. Source: evaluation.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aefcli import baselines, field, probe, recipe
from aefcli.batch import DAY
from aefcli.cube import Cube, open_cube
from aefcli.errors import BadInput
from aefcli.extent import Period
from aefcli.probe import Labels, Score

if TYPE_CHECKING:
    import torch
    import xarray as xr


_PROTOCOL: tuple[int | str, ...] = (1, 10, "max")


@dataclass(frozen=True)
class Judgement:
    """Scores, how the points were split, and what was left out."""

    scores: tuple[Score, ...]
    about: Mapping[str, Any]
    notes: tuple[str, ...]


def judge(
    fields: Sequence[Path],
    labels_file: Path,
    cube_path: Path | None,
    *,
    probes: Sequence[str],
    shots: Sequence[int | str] | None,
    seed: int,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> Judgement:
    """Score fields on labels, beside `composite` and `untrained` where their cube is at hand.

    Without `shots`, the protocol's 1, 10 and max, less those that the smallest class is too small for.
    """
    labels = probe.read_labels(labels_file)
    opened = {name: field.open_field(path) for name, path in _named(fields).items()}
    asked = _asked(labels, opened)
    features, notes = {}, []
    for name, store in opened.items():
        features[name] = _of_field(store, labels, asked)
        if not _answered(features[name]).any():
            raise _unanswered(name, store, labels, asked)
    usable = _shared(features, labels_file)
    cube = _cube(fields, cube_path)
    if cube is None:
        notes.append("no cube at hand: composite and untrained are left out (--cube names one)")
    else:
        features |= _of_cube(cube, opened, labels, asked, usable, device)
        usable = _shared(features, labels_file)
    if not usable.all():
        notes.append(f"{int((~usable).sum())} of {len(labels)} labels lie outside, without data or in other periods")
    judged = labels.subset(usable)
    if shots is None:
        shots = probe.possible(judged, _PROTOCOL)
        if left := [str(count) for count in _PROTOCOL if count not in shots]:
            notes.append(f"{' and '.join(left)} shots left out: the smallest class has too few points")
    scores, about = probe.evaluate(
        {name: matrix[usable] for name, matrix in features.items()},
        judged,
        task=labels_file.stem,
        probes=probes,
        shots=shots,
        seed=seed,
        progress=progress,
    )
    return Judgement(tuple(scores), about, tuple(notes))


def _named(fields: Sequence[Path]) -> dict[str, Path]:
    """The fields by the names of their rows: the store's own, or its path where another row has that name too."""
    own = [path.name.removesuffix(".zarr") for path in fields]
    taken = [*own, "composite", "untrained"]
    return {name if taken.count(name) == 1 else str(path): path for name, path in zip(own, fields, strict=True)}


def find_labels(fields: Sequence[Path], cube_path: Path | None) -> Path:
    """labels.parquet, .geojson or .csv beside the field; else beside the catalog on disk that the cube came from."""
    for path in fields:
        if found := probe.find_labels(path.resolve().parent):
            return found
    cube = _cube(fields, cube_path)
    catalog = Path((cube.attrs.get("aef:request") or {}).get("catalog") or "") if cube else Path()
    if catalog.is_file() and (found := probe.find_labels(catalog.resolve().parent)):
        return found
    raise BadInput(
        f"there are no labels beside {fields[0]} (labels.parquet, labels.geojson or labels.csv)",
        "name a table with --labels; aef simulate makes one",
    )


def _periods(store: xr.Dataset) -> list[Period]:
    """The valid periods of a field, in order."""
    bounds = store["time_bnds"].to_numpy().astype("datetime64[ms]").astype("int64")
    return [Period(int(start), int(end)) for start, end in bounds]


def _asked(labels: Labels, opened: Mapping[str, xr.Dataset]) -> np.ndarray:
    """The valid period of every label, int64 (n, 2); labels without one take the only period of the fields.

    One that no field holds is widened to whole days of UTC, in which fields are asked for.
    """
    periods = {period for store in opened.values() for period in _periods(store)}
    if labels.valid_start is not None and labels.valid_end is not None:
        asked = np.stack([labels.valid_start, labels.valid_end], axis=1)
        held = np.logical_or.reduce([_same(asked, period) for period in periods])
        days = np.stack([asked[:, 0] // DAY * DAY, -(-asked[:, 1] // DAY) * DAY], axis=1)
        return np.where(held[:, None], asked, days)
    if len(periods) > 1:
        raise BadInput(
            f"the labels name no valid period and the fields hold {len(periods)}",
            "give the labels valid_time_start_ms and valid_time_end_ms, or embed one --period",
        )
    only = next(iter(periods))
    return np.tile(np.array([only.start, only.end], dtype="int64"), (len(labels), 1))


def _same(asked: np.ndarray, period: Period) -> np.ndarray:
    return (asked == [period.start, period.end]).all(axis=1)


def _answered(matrix: np.ndarray) -> np.ndarray:
    return np.isfinite(matrix).all(axis=1)


def _shared(features: Mapping[str, np.ndarray], labels_file: Path) -> np.ndarray:
    """The labels that all candidates answer, bool (n,)."""
    usable = np.logical_and.reduce([_answered(matrix) for matrix in features.values()])
    if not usable.any():
        raise BadInput(
            f"no label of {labels_file} has data in every one of {', '.join(features)}",
            "score them one at a time, or embed them for the same periods",
        )
    return usable


def _of_field(store: xr.Dataset, labels: Labels, asked: np.ndarray) -> np.ndarray:
    """Decoded vectors (n, 64) of the field at the labels, NaN where it has none for the label's period."""
    out = np.full((len(labels), field.DIMENSIONS), np.nan, dtype="float32")
    for index, period in enumerate(_periods(store)):
        here = _same(asked, period)
        if here.any():
            out[here] = field.sample(store, labels.lon[here], labels.lat[here], time_index=index)[0][:, 0]
    return out


def _unanswered(name: str, store: xr.Dataset, labels: Labels, asked: np.ndarray) -> BadInput:
    """Why a field has nothing for any label: other periods, another place, or no data there."""
    held = _periods(store)
    wanted = sorted({Period(int(start), int(end)) for start, end in np.unique(asked, axis=0)})
    here = np.logical_or.reduce([_same(asked, period) for period in held])
    if not here.any():
        return BadInput(
            f"the labels ask for {wanted[0]}{' and others' * (len(wanted) > 1)}, {name} holds "
            f"{', '.join(map(str, held))}",
            f"aef embed --period {wanted[0]}",
        )
    _, _, inside = field.locate(field.geobox(store), labels.lon[here], labels.lat[here])
    if not inside.any():
        return BadInput(f"all {len(inside)} labels lie outside of {name}", "give labels of the same area")
    return BadInput(f"{name} is nodata at all {inside.sum()} labels inside of it", "give labels where it has data")


def _cube(fields: Sequence[Path], given: Path | None) -> Cube | None:
    """The cube asked for, else the one that the first field was made of, else cube.zarr beside it, else none."""
    if given is not None:
        return open_cube(given)
    recorded = field.open_field(fields[0]).attrs.get("aef:cube")
    folder = fields[0].resolve().parent
    for path in ([folder / str(recorded)] if recorded else []) + [folder / "cube.zarr"]:
        if path.exists():
            return open_cube(path)
    return None


def _of_cube(
    cube: Cube,
    opened: Mapping[str, xr.Dataset],
    labels: Labels,
    asked: np.ndarray,
    usable: np.ndarray,
    device: torch.device,
) -> dict[str, np.ndarray]:
    """The baselines' features (n, d) at the usable labels; NaN at the others, and outside the cube."""
    rows, columns, inside = field.locate(cube.grid, labels.lon, labels.lat)
    here = inside & usable
    if not here.any():
        raise BadInput(f"all {usable.sum()} labels lie outside of {cube.path}", "name the field's own cube with --cube")
    distinct, which = np.unique(asked[here], axis=0, return_inverse=True)
    periods = [Period(int(start), int(end)) for start, end in distinct]
    made = {"composite": baselines.composite(cube, rows[here], columns[here], periods)}
    text = next((str(store.attrs["aef:recipe"]) for store in opened.values() if "aef:recipe" in store.attrs), None)
    if text is not None:
        plan = recipe.parse(text, "the recipe in the field")
        made["untrained"] = baselines.untrained(plan, cube, rows[here], columns[here], periods, device)
    out = {}
    for name, values in made.items():
        out[name] = np.full((len(labels), values.shape[2]), np.nan, dtype="float32")
        out[name][here] = values[np.arange(len(values)), which.reshape(-1)]
    return out
