"""What fields and baselines answer at the labels, and why they do not."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aefcli import baselines, checkpoint, embed, field, recipe
from aefcli.checkpoint import Run
from aefcli.cube import Cube
from aefcli.errors import BadInput
from aefcli.extent import Period
from aefcli.judge.asked import Side, distinct, holds, same, supported
from aefcli.judge.fields import Field, own_plan
from aefcli.probe import Labels
from aefcli.several import outside

if TYPE_CHECKING:
    import torch


def of_fields(
    opened: Sequence[Field],
    cube: Cube | None,
    labels: Labels,
    sides: Sequence[Side],
    device: torch.device,
    *,
    needed: bool,
) -> tuple[dict[str, np.ndarray], np.ndarray, list[str]]:
    """Vectors (n, d) of each field at the labels; whether all hold, or can make, the periods asked for (n,); notes.

    `needed` says that runs are, beyond that. One that cannot be read is told of where it is.
    """
    features, tried = {}, np.ones(len(labels), dtype=bool)
    notes = [f"{one.name}: {note}" for one in opened for note in one.vectors.notes]
    notes += [
        f"warning: {one.name} was made by the shipped {one.run.name}, which learned from simulated landscapes"
        for one in opened
        if one.run and one.run.shipped
    ]
    for one in opened:
        features[one.name], asked, said = _of_field(one, cube, labels, sides, device)
        notes += said
        if not answered(features[one.name]).any():
            raise _unanswered(one, cube, labels, sides)
        if one.unread and (needed or not asked.all()):
            notes.append(f"the run that made {one.name} cannot be read: {one.unread}")
        tried &= asked
    return features, tried, notes


def _of_field(
    one: Field, cube: Cube | None, labels: Labels, sides: Sequence[Side], device: torch.device
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Vectors (n, d) of a field at the labels, NaN where it has none; whether it was asked for them (n,); and notes.

    A period that it does not hold is embedded, if its run and its cube are at hand and the cube reaches into it. A
    field that we did not make answers with the one of its periods that holds the label's.
    """
    out, embedded, wider, tried = [], 0, 0, np.ones(len(labels), dtype=bool)
    for side in sides:
        found = np.full((len(labels), one.vectors.dimensions), np.nan, dtype="float32")
        for period, here in distinct(side.asked):
            held = enumerate(one.vectors.periods)
            holding = [at for at, own in held if own == period or (not one.ours and holds(own, period))]
            if len(holding) == 1:
                wider += int(here.sum()) * (one.vectors.periods[holding[0]] != period)
                found[here] = one.vectors.sample(labels.lon[here], labels.lat[here], holding[0])[0]
            elif one.run and cube and period.start < cube.period.end and period.end > cube.period.start:
                made = _embed(one.run, cube, labels.subset(here), period, side, here, device)
                found[here] = _as_stored(made, str(one.vectors.attrs.get("geoemb:data_type", "int8")))
                embedded += int(answered(found[here]).sum())
            else:
                tried &= ~here
        out.append(found)
    ask, are = "label asks" if embedded == 1 else "labels ask", "label is" if wider == 1 else "labels are"
    notes = [f"{embedded} {ask} {one.name} for periods it does not hold: embedded here"] if embedded else []
    notes += [f"{wider} {are} answered by the period of {one.name} that holds theirs"] if wider else []
    return np.concatenate(out, axis=1), tried, notes


def _embed(
    run: Run, cube: Cube, labels: Labels, period: Period, side: Side, here: np.ndarray, device: torch.device
) -> np.ndarray:
    """What a run makes for a period of some labels (n, 64), each from the inputs of its support."""
    rows, columns, inside = field.locate(cube.grid, labels.lon, labels.lat)
    model = checkpoint.load(run).to(device)
    out = np.full((len(labels), field.DIMENSIONS), np.nan, dtype="float32")
    support = None if side.support is None else side.support[here]
    for part, mine in supported(cube, support, len(labels)):
        some = mine & inside
        out[some] = embed.at_points(model, run.recipe, part, rows[some], columns[some], [period], device)[:, 0]
    return out


def _as_stored(vectors: np.ndarray, dtype: str) -> np.ndarray:
    """Vectors (n, 64) as a field of that type would hold them."""
    return field.dequantise(field.quantise(vectors)) if dtype == "int8" else vectors.astype(dtype).astype("float32")


def _unanswered(one: Field, cube: Cube | None, labels: Labels, sides: Sequence[Side]) -> BadInput:
    """Why a field has nothing for any label: other periods, another place, or no data there."""
    held = one.vectors.periods
    for side in sides:
        wanted = [period for period, _ in distinct(side.asked)]
        here = np.logical_or.reduce([same(side.asked, period) for period in held])
        if not here.any():
            who = "--period asks" if labels.valid_start is None else "the labels ask"
            unread = f", and the run that made it cannot be read: {one.unread}" if one.unread else ""
            return BadInput(
                f"{who} for {wanted[0]}{' and others' * (len(wanted) > 1)}, {one.name} holds "
                f"{', '.join(map(str, held))}{unread}",
                _remedy(one, cube, wanted),
            )
    _, _, inside = field.locate(one.vectors.grid, labels.lon[here], labels.lat[here])
    if not inside.any():
        return BadInput(f"all {len(inside)} labels lie outside of {one.name}", "give labels of the same area")
    return BadInput(f"{one.name} is nodata at all {inside.sum()} labels inside of it", "give labels where it has data")


def _remedy(one: Field, cube: Cube | None, wanted: Sequence[Period]) -> str:
    """What helps where a field holds no period that is asked for."""
    if not one.ours:
        return "ask for a period that it holds"
    if cube is None:
        return "--cube and --model name what it was made of, and it is embedded here"
    if not any(period.start < cube.period.end and period.end > cube.period.start for period in wanted):
        return f"its cube spans {cube.period}; fetch {wanted[0]} and embed it, or ask for what there is"
    beside = outside(one.vectors.path)
    out = beside.with_name(f"{beside.stem}-{wanted[0].dates()[0]:%Y-%m-%d}.zarr")
    command = shlex.join(["aef", "embed", str(cube.path), "--period", str(wanted[0]), "--out", str(out)])
    return f"--model names the run that made it; or score another field: {command}"


def of_baselines(
    cube: Cube | None,
    beside: Sequence[str],
    opened: Sequence[Field],
    labels: Labels,
    sides: Sequence[Side],
    usable: np.ndarray,
    device: torch.device,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """What stands beside the fields, where their cube is at hand; and a note of what is left out."""
    if not beside:
        return {}, []
    if cube is None:
        return {}, [f"no cube at hand: {' and '.join(beside)} are left out (--cube names one)"]
    plan, notes = own_plan(opened) if "untrained" in beside else (None, [])
    return _of_cube(cube, beside, plan, labels, sides, usable, device), notes


def _of_cube(
    cube: Cube,
    beside: Sequence[str],
    plan: recipe.Recipe | None,
    labels: Labels,
    sides: Sequence[Side],
    usable: np.ndarray,
    device: torch.device,
) -> dict[str, np.ndarray]:
    """The baselines' features (n, d) at the usable labels; NaN at the others, and outside the cube."""
    rows, columns, inside = field.locate(cube.grid, labels.lon, labels.lat)
    here = np.flatnonzero(inside & usable)
    if not here.size:
        raise BadInput(f"all {usable.sum()} labels lie outside of {cube.path}", "name the field's own cube with --cube")
    names = [name for name in beside if name != "untrained"]
    parts: dict[str, list[np.ndarray]] = {}
    for side in sides:
        found: dict[str, np.ndarray] = {}
        support = None if side.support is None else side.support[here]
        for part, mine in supported(cube, support, len(here)):
            where = (rows[here[mine]], columns[here[mine]])
            asked = list(distinct(side.asked[here[mine]]))
            periods = [period for period, _ in asked]
            made = baselines.designed(part, names, *where, periods, like=cube)
            if "untrained" in beside and plan is not None:
                made["untrained"] = baselines.untrained(plan, part, *where, periods, device)
            for name, values in made.items():
                out = found.setdefault(name, np.full((len(labels), values.shape[2]), np.nan, dtype="float32"))
                for at, (_, asking) in enumerate(asked):
                    out[here[mine][asking]] = values[asking, at]
        for name, values in found.items():
            parts.setdefault(name, []).append(values)
    return {name: np.concatenate(both, axis=1) for name, both in parts.items()}


def answered(matrix: np.ndarray) -> np.ndarray:
    return np.isfinite(matrix).all(axis=1)


def shared(features: Mapping[str, np.ndarray], labels_file: Path) -> np.ndarray:
    """The labels that all candidates answer, bool (n,)."""
    usable = np.logical_and.reduce([answered(matrix) for matrix in features.values()])
    if not usable.any():
        raise BadInput(
            f"no label of {labels_file} has data in every one of {', '.join(features)}",
            "score them one at a time, or embed them for the same periods",
        )
    return usable
