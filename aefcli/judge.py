"""Fields, tables, a cube and labels into scores: gathers the features that `probe` judges.

Owns who the candidates are, which labels every one of them can answer (inside, with data, for a period that it holds or
that its model can still embed), so that all are scored on the same points, and what is said of those left out. Source:
evaluation.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aefcli import baselines, checkpoint, embed, field, probe, recipe
from aefcli import guards as guards_
from aefcli.batch import DAY
from aefcli.checkpoint import Run
from aefcli.cube import Cube, open_cube, without
from aefcli.errors import BadInput, unknown
from aefcli.extent import Period
from aefcli.guards import Guard
from aefcli.probe import Comparison, Evaluation, Labels, Score
from aefcli.probe.split import BLOCK
from aefcli.published import Vectors, open_vectors

if TYPE_CHECKING:
    import torch

_PROTOCOL: tuple[int | str, ...] = (1, 10, "max")
_NEAR = 100.0  # metres: within ten pixels a test point knows its neighbour's answer
BASELINES = (*baselines.DESIGNED, "untrained")
USUAL = ("composite", "untrained")  # what stands beside the fields unless others are asked for

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Protocol:
    """How to score. Without `shots` 1, 10 and max, less those that the smallest class is too small for."""

    probes: Sequence[str] = probe.PROBES
    shots: Sequence[int | str] | None = None
    seed: int = 0
    block: float = BLOCK  # metres, where the labels have neither a split nor a site
    pairs: Sequence[tuple[str, str]] = ()  # candidates to compare


@dataclass(frozen=True, eq=False)
class View:
    """A field as a picture, north up."""

    title: str
    rgb: np.ndarray  # uint8 (h, w, 3)
    bounds: tuple[float, float, float, float]  # west, south, east, north in its CRS
    crs: str
    lonlat: tuple[float, float, float, float]  # the same in degrees


@dataclass(frozen=True, eq=False)
class Judgement:
    """Scores, what they are of, and what was left out."""

    task: str
    evaluation: Evaluation
    labels: Labels  # those judged, n
    features: Mapping[str, np.ndarray]  # candidate -> float (n, d)
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...]
    provenance: Mapping[str, str]
    detected: tuple[Score, ...] = ()  # of change pairs: what the angle between two vectors tells without labels
    guards: tuple[Guard, ...] = ()
    quantisation: Evaluation | None = None
    fields: tuple[Vectors, ...] = ()  # those judged, for whoever draws them
    views: tuple[View, ...] = ()


@dataclass(frozen=True)
class _Field:
    """A field to be judged, and the run that made it, if that is at hand."""

    name: str
    vectors: Vectors
    run: Run | None

    @property
    def ours(self) -> bool:
        return "aef:recipe" in self.vectors.attrs


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
    labels, opened = probe.read_labels(labels_file, label), _opened(fields, run, period)
    cube = _cube(opened[0].vectors, cube_path)
    _check_pairs(protocol, [*(one.name for one in opened), *beside])
    sides, features = _sides(labels, opened, period), {}
    notes = [f"{one.name}: {note}" for one in opened for note in one.vectors.notes]
    notes += [
        f"warning: {one.name} was made by the shipped {one.run.name}, which learned from simulated landscapes"
        for one in opened
        if one.run and one.run.shipped
    ]
    tried = np.ones(len(labels), dtype=bool)  # whether every field holds, or can make, the periods asked for
    for one in opened:
        features[one.name], asked, said = _of_field(one, cube, labels, sides, device)
        notes += said
        if not _answered(features[one.name]).any():
            raise _unanswered(one, cube, labels, sides)
        tried &= asked
    usable = _shared(features, labels_file)
    if cube is None:
        lacking = " and ".join(beside)
        notes += [f"no cube at hand: {lacking} are left out (--cube names one)"] if beside else []
    elif beside:
        features |= _of_cube(cube, beside, _plan(opened), labels, sides, usable, device)
        usable = _shared(features, labels_file)
    grid = cube.grid if cube else opened[0].vectors.grid
    rows, columns, inside = field.locate(grid, labels.lon, labels.lat)
    notes += _left_out(usable, inside, tried)
    place = (rows * (1 << 32) + columns)[usable]
    provenance = {
        **{f"field {one.name}": _described(one) for one in opened},
        **({"cube": f"{cube.path} ({cube.key})"} if cube else {}),
        "labels": str(labels_file),
    }
    done = _score(
        labels_file.stem,
        {name: matrix[usable] for name, matrix in features.items()},
        labels.subset(usable),
        protocol,
        place,
        notes=notes,
        provenance=provenance,
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


def _detected(done: Judgement, opened: Sequence[_Field], protocol: Protocol, place: np.ndarray) -> tuple[Score, ...]:
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
    opened: Sequence[_Field],
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
    first: _Field,
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
            for period, here in _distinct(side):
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
    usable = np.logical_and.reduce([_answered(matrix) for matrix in features.values()])
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
        notes=(*notes, *left, *_neighbours(labels)),
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


# --- who is judged ------------------------------------------------------------------------------------------------


def _opened(fields: Sequence[Path], run: Run | None, period: Period | None) -> list[_Field]:
    """The fields by the names of their rows: the store's own, or its path where another row has that name too."""
    own = [path.name.removesuffix(".zarr").removesuffix(".tif") for path in fields]
    taken = [*own, *BASELINES]
    names = [name if taken.count(name) == 1 else str(path) for name, path in zip(own, fields, strict=True)]
    opened = [(name, path, open_vectors(path, period)) for name, path in zip(names, fields, strict=True)]
    return [_Field(name, vectors, _run_of(path, vectors, run)) for name, path, vectors in opened]


def _run_of(path: Path, vectors: Vectors, given: Run | None) -> Run | None:
    """The run that made a field, by its identity: the one given, one of `runs` beside it, or the shipped one."""
    made_by = vectors.attrs.get("aef:model")
    if made_by is None:
        return None
    beside = [Run(each) for each in sorted((path.resolve().parent / "runs").glob("*"))]
    for run in [given] if given else [*beside, checkpoint.SHIPPED]:
        if run.weights.is_file() and checkpoint.identity(run) == made_by:
            return run
    if given:
        raise BadInput(f"--model {given.path} did not make {path}", "name the run that made it, or leave --model out")
    return None


def _described(one: _Field) -> str:
    attrs = one.vectors.attrs
    plan = f", recipe {recipe.parse(str(attrs['aef:recipe']), 'the field').hash[:12]}" if one.ours else ""
    return f"{one.vectors.path}{plan}, {', '.join(map(str, one.vectors.periods))}"


def find_labels(fields: Sequence[Path], cube_path: Path | None, period: Period | None = None) -> Path:
    """labels.parquet, .geojson, .gpkg or .csv beside the field; else beside the catalog on disk of its cube."""
    for path in fields:
        if found := probe.find_labels(path.resolve().parent):
            return found
    cube = _cube(open_vectors(fields[0], period), cube_path)
    catalog = Path((cube.attrs.get("aef:request") or {}).get("catalog") or "") if cube else Path()
    if catalog.is_file() and (found := probe.find_labels(catalog.resolve().parent)):
        return found
    raise BadInput(
        f"there are no labels beside {fields[0]} (labels.parquet, .geojson, .gpkg or .csv)",
        "name a table with --labels; aef simulate makes one",
    )


def _cube(first: Vectors, given: Path | None) -> Cube | None:
    """The cube asked for, else the one that the first field was made of, else cube.zarr beside it, else none."""
    if given is not None:
        return open_cube(given)
    folder, recorded = first.path.resolve().parent, first.attrs.get("aef:cube")
    for path in ([folder / str(recorded)] if recorded else []) + [folder / "cube.zarr"]:
        if path.exists():
            return open_cube(path)
    return None


def _plan(opened: Sequence[_Field]) -> recipe.Recipe | None:
    """The recipe of the first field that has one."""
    text = next((str(one.vectors.attrs["aef:recipe"]) for one in opened if one.ours), None)
    return recipe.parse(text, "the recipe in the field") if text is not None else None


# --- what they are asked for --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Side:
    """What is asked of every label: a valid period, and the inputs that may be read. int64 (n, 2) each, ms."""

    asked: np.ndarray
    support: np.ndarray | None


def _sides(labels: Labels, opened: Sequence[_Field], chosen: Period | None) -> list[_Side]:
    """One, or for change the one before and the one after; labels without a period take the only one, or `chosen`."""
    after = _spans(labels.support_start, labels.support_end)
    if labels.change:
        before = _asked(labels.before_start, labels.before_end, opened)
        then = _spans(labels.before_support_start, labels.before_support_end)
        return [_Side(before, then), _Side(_asked(labels.valid_start, labels.valid_end, opened), after)]
    if labels.valid_start is not None:
        return [_Side(_asked(labels.valid_start, labels.valid_end, opened), after)]
    periods = {period for one in opened for period in one.vectors.periods}
    if len(periods) > 1 and chosen is None:
        raise BadInput(
            f"the labels name no valid period and the fields hold {len(periods)}",
            "choose one with --period, or give the labels valid_time_start_ms and valid_time_end_ms",
        )
    only = chosen or next(iter(periods))
    return [_Side(np.tile(np.array([only.start, only.end], dtype="int64"), (len(labels), 1)), after)]


def _spans(start: np.ndarray | None, end: np.ndarray | None) -> np.ndarray | None:
    return None if start is None or end is None else np.stack([start, end], axis=1)


def _supported(cube: Cube, support: np.ndarray | None, count: int) -> Iterator[tuple[Cube, np.ndarray]]:
    """The cube as the labels of each support period may read it, and which labels those are: bool (count,)."""
    if support is None:
        yield cube, np.ones(count, dtype=bool)
        return
    for period, here in _distinct(support):
        gone = {n: (s.times < period.start) | (s.times >= period.end) for n, s in cube.sources.items()}
        yield without(cube, gone), here


def _asked(start: np.ndarray | None, end: np.ndarray | None, opened: Sequence[_Field]) -> np.ndarray:
    """Periods of labels. One that no field holds is widened to whole days of UTC, in which fields are asked for."""
    assert start is not None
    assert end is not None
    asked = np.stack([start, end], axis=1)
    held = np.logical_or.reduce([_same(asked, period) for one in opened for period in one.vectors.periods])
    days = np.stack([asked[:, 0] // DAY * DAY, -(-asked[:, 1] // DAY) * DAY], axis=1)
    return np.where(held[:, None], asked, days)


def _same(asked: np.ndarray, period: Period) -> np.ndarray:
    return (asked == [period.start, period.end]).all(axis=1)


def _holds(own: Period, period: Period) -> bool:
    return own.start <= period.start < period.end <= own.end


def _distinct(asked: np.ndarray) -> Iterator[tuple[Period, np.ndarray]]:
    """The periods asked for, in order, and which labels ask for each: bool (n,)."""
    for start, end in np.unique(asked, axis=0):
        yield Period(int(start), int(end)), (asked == [start, end]).all(axis=1)


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


# --- what they answer ---------------------------------------------------------------------------------------------


def _of_field(
    one: _Field, cube: Cube | None, labels: Labels, sides: Sequence[_Side], device: torch.device
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Vectors (n, d) of a field at the labels, NaN where it has none; whether it was asked for them (n,); and notes.

    A period that it does not hold is embedded, if its run and its cube are at hand and the cube reaches into it. A
    field that we did not make answers with the one of its periods that holds the label's.
    """
    out, embedded, wider, tried = [], 0, 0, np.ones(len(labels), dtype=bool)
    for side in sides:
        found = np.full((len(labels), one.vectors.dimensions), np.nan, dtype="float32")
        for period, here in _distinct(side.asked):
            held = enumerate(one.vectors.periods)
            holding = [at for at, own in held if own == period or (not one.ours and _holds(own, period))]
            if len(holding) == 1:
                wider += int(here.sum()) * (one.vectors.periods[holding[0]] != period)
                found[here] = one.vectors.sample(labels.lon[here], labels.lat[here], holding[0])[0]
            elif one.run and cube and period.start < cube.period.end and period.end > cube.period.start:
                found[here] = _embed(one.run, cube, labels.subset(here), period, side, here, device)
                embedded += int(_answered(found[here]).sum())
            else:
                tried &= ~here
        out.append(found)
    notes = [f"{embedded} labels ask {one.name} for periods it does not hold: embedded here"] if embedded else []
    notes += [f"{wider} labels are answered by the period of {one.name} that holds theirs"] if wider else []
    return np.concatenate(out, axis=1), tried, notes


def _embed(
    run: Run, cube: Cube, labels: Labels, period: Period, side: _Side, here: np.ndarray, device: torch.device
) -> np.ndarray:
    """What a field would hold for a period at some labels (n, 64), each from the inputs of its support."""
    rows, columns, inside = field.locate(cube.grid, labels.lon, labels.lat)
    model = checkpoint.load(run).to(device)
    out = np.full((len(labels), field.DIMENSIONS), np.nan, dtype="float32")
    support = None if side.support is None else side.support[here]
    for part, mine in _supported(cube, support, len(labels)):
        some = mine & inside
        made = embed.at_points(model, run.recipe, part, rows[some], columns[some], [period], device)[:, 0]
        out[some] = field.dequantise(field.quantise(made))
    return out


def _unanswered(one: _Field, cube: Cube | None, labels: Labels, sides: Sequence[_Side]) -> BadInput:
    """Why a field has nothing for any label: other periods, another place, or no data there."""
    held = one.vectors.periods
    for side in sides:
        wanted = [period for period, _ in _distinct(side.asked)]
        here = np.logical_or.reduce([_same(side.asked, period) for period in held])
        if not here.any():
            who = "--period asks" if labels.valid_start is None else "the labels ask"
            reach = cube is None or any(p.start < cube.period.end and p.end > cube.period.start for p in wanted)
            remedy = f"aef embed --period {wanted[0]}"
            if cube is not None and not reach:
                remedy = f"its cube spans {cube.period}; fetch {wanted[0]} and embed it, or ask for what there is"
            return BadInput(
                f"{who} for {wanted[0]}{' and others' * (len(wanted) > 1)}, {one.name} holds "
                f"{', '.join(map(str, held))}",
                remedy,
            )
    _, _, inside = field.locate(one.vectors.grid, labels.lon[here], labels.lat[here])
    if not inside.any():
        return BadInput(f"all {len(inside)} labels lie outside of {one.name}", "give labels of the same area")
    return BadInput(f"{one.name} is nodata at all {inside.sum()} labels inside of it", "give labels where it has data")


def _of_cube(
    cube: Cube,
    beside: Sequence[str],
    plan: recipe.Recipe | None,
    labels: Labels,
    sides: Sequence[_Side],
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
        for part, mine in _supported(cube, support, len(here)):
            where = (rows[here[mine]], columns[here[mine]])
            asked = list(_distinct(side.asked[here[mine]]))
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
