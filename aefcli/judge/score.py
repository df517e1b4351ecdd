"""Fields or tables, and labels, into a judgement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aefcli import checkpoint, embed, field, probe
from aefcli import guards as guards_
from aefcli.checkpoint import Run
from aefcli.cube import Cube
from aefcli.errors import BadInput, unknown
from aefcli.extent import Period
from aefcli.judge.answers import answered, of_baselines, of_fields, shared
from aefcli.judge.asked import distinct, sides_of
from aefcli.judge.fields import Field, described, opened_fields, own_cube
from aefcli.judge.outcome import USUAL, Judgement, Progress, Protocol
from aefcli.probe import Evaluation, Labels, Score
from aefcli.probe.split import TRAIN_SHARE

if TYPE_CHECKING:
    import torch

_PROTOCOL: tuple[int | str, ...] = (1, 10, "max")
_FEW = 5  # blocks on one side of a fold, below which a note is due; our choice
_NEAR = 100.0  # metres: within ten pixels a test point knows its neighbour's answer


def judge(
    fields: Sequence[Path],
    labels_file: Path,
    cube_path: Path | None,
    protocol: Protocol,
    *,
    label: str = "label",
    beside: Sequence[str] = USUAL,
    run: Run | None = None,
    period: Period | None = None,
    guards: bool = False,
    quantisation: bool = False,
    device: torch.device,
    progress: Progress | None = None,
) -> Judgement:
    """Score fields on labels, beside the named baselines where their cube is at hand.

    label         the column of the labels
    run           what embeds the periods that a field does not hold; by default the one of `runs` beside it that made
                  it, or the shipped one if that did
    period        what fields of others describe that do not say it themselves
    guards        add what `aefcli.guards` measures, of the fields, and of the first one's cube and run
    quantisation  add the first field as float, int16 and int8, and cut to fewer dimensions
    """
    labels, opened = probe.read_labels(labels_file, label), opened_fields(fields, run, period)
    cube = own_cube(opened[0].vectors, cube_path)
    _check_pairs(protocol, [*(one.name for one in opened), *beside])
    sides = sides_of(labels, opened, period)
    features, tried, notes = of_fields(opened, cube, labels, sides, device, needed=guards or quantisation)
    usable = shared(features, labels_file)
    found, left = of_baselines(cube, beside, opened, labels, sides, usable, device)
    features |= found
    usable = shared(features, labels_file)
    rows, columns, inside = field.locate(cube.grid if cube else opened[0].vectors.grid, labels.lon, labels.lat)
    place = (rows * (1 << 32) + columns)[usable]
    done = _score(
        labels_file.stem,
        {name: matrix[usable] for name, matrix in features.items()},
        labels.subset(usable),
        protocol,
        place,
        notes=[*notes, *left, *_left_out(usable, inside, tried)],
        provenance={
            **{f"field {one.name}": described(one) for one in opened},
            **({"cube": f"{cube.path} ({cube.key})"} if cube else {}),
            "labels": str(labels_file),
        },
        progress=progress,
    )
    done = replace(done, fields=tuple(one.vectors for one in opened))
    if labels.change:
        done = replace(done, detected=_detected(done, opened, protocol, place))
    if guards:
        edge = guards_.edges(labels_file)
        done = _guarded(done, opened, cube, protocol, device, place, None if edge is None else edge[usable])
    if quantisation:
        done = _as_stored(done, opened[0], cube, [side.asked[usable] for side in sides], protocol, device, place)
    return done


def _check_pairs(protocol: Protocol, names: Sequence[str]) -> None:
    for name in (name for pair in protocol.pairs for name in pair):
        if name not in names:
            raise unknown("candidate", name, names, "--baseline adds baselines")


def _left_out(usable: np.ndarray, inside: np.ndarray, tried: np.ndarray) -> list[str]:
    """How many labels are left out, and why."""
    if usable.all():
        return []
    reasons = {
        "outside": ~inside,
        "of periods that a field does not hold": inside & ~tried,
        "without data": inside & tried & ~usable,
    }
    said = [f"{int(which.sum())} {why}" for why, which in reasons.items() if which.any()]
    return [f"{int((~usable).sum())} of {len(usable)} labels are left out: {', '.join(said)}"]


def _detected(done: Judgement, opened: Sequence[Field], protocol: Protocol, place: np.ndarray) -> tuple[Score, ...]:
    """Change told by the angle between the vectors before and after."""
    scores: list[Score] = []
    for one in opened:
        before, after = np.split(done.features[one.name], 2, axis=1)
        scores += probe.changed(
            before,
            after,
            done.labels,
            field=one.name,
            task=done.task,
            seed=protocol.seed,
            block=protocol.block,
            place=place,
        )
    return tuple(scores)


def _guarded(
    done: Judgement,
    opened: Sequence[Field],
    cube: Cube | None,
    protocol: Protocol,
    device: torch.device,
    place: np.ndarray,
    edge: np.ndarray | None,
) -> Judgement:
    """With what `guards` measures; of change pairs, on the vectors after."""
    last = {one.name: done.features[one.name][:, -one.vectors.dimensions :] for one in opened}
    found, left = guards_.guards(
        last,
        labels=None if done.labels.change else done.labels,
        edge=edge,
        place=place,
        fields={one.name: one.vectors.path for one in opened if one.ours},
        cube=cube,
        run=opened[0].run,
        period=opened[0].vectors.periods[0],
        device=device,
        block=protocol.block,
        seed=protocol.seed,
    )
    return replace(done, guards=tuple(found), notes=(*done.notes, *left))


def _as_stored(
    done: Judgement,
    first: Field,
    cube: Cube | None,
    asked: Sequence[np.ndarray],
    protocol: Protocol,
    device: torch.device,
    place: np.ndarray,
) -> Judgement:
    """The first field's vectors as they come out of its model, if that is at hand, and as they may be stored."""
    parts = np.split(done.features[first.name], len(asked), axis=1)
    whole = first.run is not None and cube is not None
    if first.run is not None and cube is not None:
        rows, columns, _ = field.locate(cube.grid, done.labels.lon, done.labels.lat)
        model = checkpoint.load(first.run).to(device)
        for at, side in enumerate(asked):
            parts[at] = np.full(parts[at].shape, np.nan, dtype="float32")
            for period, here in distinct(side):
                made = embed.at_points(model, first.run.recipe, cube, rows[here], columns[here], [period], device)
                parts[at][here] = made[:, 0]
    report = guards_.quantisation(
        done.labels,
        np.stack(parts, axis=1),
        stored=not whole,
        task=done.task,
        probes=protocol.probes,
        shots=list(dict.fromkeys(score.shots for score in done.evaluation.scores)),
        seed=protocol.seed,
        block=protocol.block,
        place=place,
    )
    return replace(done, quantisation=report, notes=(*done.notes, *report.about.get("notes", ())))


def judge_table(
    path: Path, columns: Sequence[str], label: str, protocol: Protocol, progress: Progress | None = None
) -> Judgement:
    """Score columns of a table of points as features: each of `columns` is a candidate, as A00:A63 or red,nir.

    `xy` stands beside them, as a control.
    """
    features: dict[str, np.ndarray] = {}
    for text in columns:
        labels, features[text] = probe.read_points(path, text, label)
    if "xy" in features:
        raise BadInput("xy is the name of the control", "name its columns x,y")
    usable = np.logical_and.reduce([answered(matrix) for matrix in features.values()])
    notes = [f"{int((~usable).sum())} of {len(usable)} rows lack a feature"] if not usable.all() else []
    features["xy"] = _places(labels)
    provenance = {"points": str(path), "features": ", ".join(columns), "label": label}
    return _score(
        path.stem,
        {name: matrix[usable] for name, matrix in features.items()},
        labels.subset(usable),
        protocol,
        None,
        notes=notes,
        provenance=provenance,
        progress=progress,
    )


def _places(labels: Labels) -> np.ndarray:
    """Sine and cosine of longitude and latitude, standardised, (n, 4): what a place alone tells."""
    lon, lat = np.radians(labels.lon), np.radians(labels.lat)
    where = np.column_stack([np.sin(lon), np.cos(lon), np.sin(lat), np.cos(lat)])
    return (where - where.mean(axis=0)) / np.maximum(where.std(axis=0), 1e-12)


def _score(
    task: str,
    features: Mapping[str, np.ndarray],
    labels: Labels,
    protocol: Protocol,
    place: np.ndarray | None,
    *,
    notes: Sequence[str],
    provenance: Mapping[str, str],
    progress: Progress | None,
) -> Judgement:
    _check_pairs(protocol, list(features))
    shots, left = protocol.shots, []
    if shots is None:
        shots = probe.possible(labels, _PROTOCOL, protocol.block, place)
        if missed := [str(count) for count in _PROTOCOL if count not in shots]:
            left = [f"{' and '.join(missed)} shots left out: the smallest class has too few points"]
    evaluation = probe.evaluate(
        features,
        labels,
        task=task,
        probes=protocol.probes,
        shots=shots,
        seed=protocol.seed,
        block=protocol.block,
        place=place,
        progress=progress,
    )
    return Judgement(
        task=task,
        evaluation=evaluation,
        labels=labels,
        features=features,
        comparisons=tuple(one for a, b in protocol.pairs for one in probe.compare(evaluation, a, b)),
        notes=(*notes, *left, *_neighbours(labels), *_few_blocks(evaluation)),
        provenance={**provenance, "aefcli": version("aefcli"), "seed": str(protocol.seed)},
    )


def _neighbours(labels: Labels) -> list[str]:
    """How many test points of a given split lie beside training points; ours never divide a site or a block."""
    from scipy.spatial import KDTree

    if labels.split is None:
        return []
    lon, lat = np.radians(labels.lon), np.radians(labels.lat)
    metres = 6_371_008.8 * np.column_stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])
    test = labels.split == "test"
    away, _ = KDTree(metres[~test]).query(metres[test], distance_upper_bound=_NEAR)
    near = int(np.isfinite(away).sum())
    said = f"{near} of {test.sum()} test points of the split given lie within {_NEAR:g} m of a training point"
    return [f"{said}: such neighbours flatter every field"] if near else []


def _few_blocks(evaluation: Evaluation) -> list[str]:
    """Whether splits by blocks leave either side of a fold so few that its scores hang on which they are."""
    about = evaluation.about
    if about["split"] != "block" or (tested := max(1, round((1 - TRAIN_SHARE) * about["groups"]))) >= _FEW:
        return []
    told = f"the labels lie in {about['groups']} blocks of {about['block']:g} m, about {tested} of which test a fold"
    return [f"{told}: too few to stand for other ground (--block {about['block'] / 2:g} makes more of them)"]
