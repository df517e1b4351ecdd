"""Suites: named tasks in the made-up world, each scored for a model beside everything that it has to beat.

Owns which tasks there are, what each asks of every candidate, and the one summary: how much lower the model's error is
than the best designed baseline's. The world is drawn and held in memory, goes through the door of `cube_of`, and is
judged by `probe` alone: a candidate sees the cube and nothing else. A score says whether time, sources and space
were used on data like these; it says nothing of any real place. Sources: evaluation.md, simulator.md.

    sparse        crops, nature and all classes from few labels
    twins         classes that time alone, or radar alone, tells apart
    values        measurements: regression
    month         the greenness of a month of which all frames are withheld, from around it and from before it
    honesty       the period asked for against another one
    lost          a source or frames missing where it is asked, though not where it learned
    cloud         the third of the points that were seen clearly least
    change        what became of places between two years
    boundary      near the borders of parcels
    int8          stored vectors against those they were made of
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from aefcli import baselines, checkpoint, embed, guards, probe
from aefcli import field as stored
from aefcli.cube import Cube, cube_of, without
from aefcli.errors import BadInput
from aefcli.extent import Period, Tile
from aefcli.probe import Evaluation, Labels
from aefcli.simulate import VERSION, Imagined, imagine
from aefcli.start import worlds

if TYPE_CHECKING:
    import torch

    from aefcli.checkpoint import Run
    from aefcli.model import Model
    from aefcli.recipe import Recipe

SHOTS: tuple[int | str, ...] = (1, 10, "max")
DESIGNED = tuple(name for name in baselines.DESIGNED if name not in ("xy", "xyz"))
SPARSE = ("crops", "nature", "cover")
OTHER_YEAR = ", other year"
LEADS = (1, 2, 3)  # months between the last frame and the end of the month that is foretold
_IMPUTED = ("composite", "percentiles", "harmonics", "raw")  # whose parts are of one source each
_SITES = 4  # that a class has to lie in
_MONTH = 2_629_746_000  # ms, a twelfth of a year

Progress = Callable[[int, int], None]
Features = dict[str, np.ndarray]  # candidate -> (n, d)
Row = dict[str, Any]


@dataclass(frozen=True)
class Suite:
    """How large a world, which tasks, and what share of the protocol's folds."""

    name: str
    sites: int
    tasks: tuple[str, ...]
    folds: float
    size: int = 64  # px of a site's side
    years: tuple[int, int] = (2022, 2023)


SUITES = {
    "quick": Suite("quick", 48, ("sparse", "twins", "honesty", "int8"), 0.1),
    "full": Suite(
        "full",
        64,
        ("sparse", "twins", "values", "month", "honesty", "lost", "cloud", "change", "boundary", "int8"),
        1.0,
    ),
}


@dataclass(frozen=True)
class Outcome:
    """What a suite found. `results`: a row per task, candidate, probe, shots and metric; `summary` as `run` says."""

    results: tuple[Row, ...]
    summary: Mapping[str, Any]
    about: Mapping[str, Any]
    notes: tuple[str, ...]


def run(
    suite: Suite, model: Run | None, seed: int, device: torch.device, progress: Progress = lambda done, total: None
) -> Outcome:
    """Score a run, or without one its untrained network, on the tasks of a suite.

    summary: `error_reduction` by shots, the mean over the sparse-label tasks of 1 - error of ours / error of the best
    designed baseline, kappa-adjusted, each at its best transfer; and `tasks`, what each task comes down to.

    Raises BadInput for a run that is known to have learned from the very world it would be judged in.
    """
    if model:
        _check_unseen(model, seed)
    total = len(suite.tasks) + 2
    progress(0, total)
    stage = _stage(suite, model, seed, device)
    progress(1, total)
    assert stage.known  # every candidate is asked once for all points and years
    results: list[Row] = []
    tasks: dict[str, Any] = {}
    for done, task in enumerate(suite.tasks, 2):
        progress(done, total)
        for found in TASKS[task](stage):
            results += found.rows
            tasks |= {found.name: found.summary}
    progress(total, total)
    about = {
        "suite": suite.name,
        "world": VERSION,
        "seed": seed,
        "sites": suite.sites,
        "size": suite.size,
        "years": list(suite.years),
        "folds": suite.folds,
        "ours": model.name if model else "untrained",
        "points": int(stage.pixels.size),
    }
    notes = ["a made-up world: its scores say nothing of any real place"]
    if suite.folds < 1:
        notes.append(f"{suite.sites} sites and {suite.folds:.0%} of the protocol's folds: --suite full has all")
    return Outcome(tuple(results), {"error_reduction": _reduction(tasks), "tasks": tasks}, about, tuple(notes))


def _check_unseen(model: Run, seed: int) -> None:
    """Sites are the same in every world of a seed, whatever its size and years."""
    learned = {own for version, own in worlds(model) if version == VERSION}
    if seed in learned:
        other = next(free for free in range(seed + 1, seed + len(learned) + 2) if free not in learned)
        raise BadInput(
            f"{model.name} learned from the made-up world of seed {seed}, which would judge it",
            f"judge it in another: --seed {other}",
        )


def _reduction(tasks: Mapping[str, Any]) -> dict[str, float]:
    """The mean error reduction over the sparse-label tasks, by shots."""
    found = [tasks[name] for name in SPARSE if name in tasks]
    return {
        str(shots): float(np.mean([task[str(shots)]["error_reduction"] for task in found if str(shots) in task]))
        for shots in SHOTS
        if any(str(shots) in task for task in found)
    }


# --- the stage ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Stage:
    """The world, who is judged in it, and how."""

    suite: Suite
    world: Imagined
    cube: Cube
    networks: Mapping[str, tuple[Model, Recipe]]
    seed: int
    device: torch.device

    @property
    def ours(self) -> str:
        return "model" if "model" in self.networks else "untrained"

    @cached_property
    def years(self) -> list[Period]:
        return [Period.parse(str(year)) for year in range(self.suite.years[0], self.suite.years[1] + 1)]

    @cached_property
    def pixels(self) -> np.ndarray:
        """The pixels of all labels of all tasks, numbered row by row: int64, ascending."""
        return np.unique(np.concatenate([self.pixel(self.labels(name)) for name in self.world.truth]))

    @cached_property
    def known(self) -> dict[str, np.ndarray]:
        """Candidate -> features (pixels, years, d) of the whole cube, and the controls'."""
        found = self.features(self.cube, self.pixels, self.years, [*DESIGNED, "xy", *self.networks])
        rows, columns = np.divmod(self.pixels, self.cube.shape[1])
        found["oracle"] = self.world.oracle[:, :, rows, columns].transpose(2, 0, 1)
        return found

    def labels(self, task: str) -> Labels:
        return probe.labels_of(self.world.truth[task])

    def pixel(self, labels: Labels) -> np.ndarray:
        rows, columns, inside = stored.locate(self.cube.grid, labels.lon, labels.lat)
        assert inside.all(), "the world's labels lie in it"
        return rows * self.cube.shape[1] + columns

    def year(self, start: np.ndarray | None) -> np.ndarray:
        """The year, counted from the first, that some instants lie in."""
        assert start is not None
        return np.searchsorted([year.start for year in self.years], start, side="right") - 1

    def answers(self, labels: Labels, year: np.ndarray | None = None) -> Features:
        """What every candidate says of the labels' pixels, in their own years or in others."""
        at = np.searchsorted(self.pixels, self.pixel(labels))
        chosen = self.year(labels.valid_start) if year is None else year
        return {name: values[at, chosen] for name, values in self.known.items()}

    def features(
        self, cube: Cube, pixels: np.ndarray, periods: Sequence[Period], names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Candidate -> features (pixels, periods, d) of a cube, in which something may be missing."""
        rows, columns = np.divmod(pixels, cube.shape[1])
        designed = [name for name in names if name in baselines.DESIGNED]
        found = baselines.designed(cube, designed, rows, columns, periods, like=self.cube)
        for name in (name for name in names if name in self.networks):
            network, plan = self.networks[name]
            found[name] = embed.at_points(network, plan, cube, rows, columns, periods, self.device)
        return found

    def evaluate(
        self,
        task: str,
        features: Features,
        labels: Labels,
        shots: Sequence[int | str] = SHOTS,
        tested: Features | None = None,
        probes: Sequence[str] = probe.PROBES,
    ) -> Evaluation:
        """Scores at the labels for which every candidate has an answer."""
        asked = [*features.values(), *(tested or {}).values()]
        usable = np.logical_and.reduce([np.isfinite(values).all(axis=1) for values in asked]) & _common(labels)
        kept = labels.subset(usable)
        return probe.evaluate(
            {name: values[usable] for name, values in features.items()},
            kept,
            task=task,
            probes=probes,
            shots=probe.possible(kept, shots),
            seed=self.seed,
            max_folds=self._folds(kept),
            tested={name: values[usable] for name, values in tested.items()} if tested else None,
        )

    def _folds(self, labels: Labels) -> int | None:
        if self.suite.folds == 1:
            return None
        smallest = int(np.bincount(labels.value).min()) if labels.kind == "class" else len(labels) // 10
        return max(1, math.ceil(self.suite.folds * probe.folds(max(1, smallest))))


def _common(labels: Labels) -> np.ndarray:
    """Points, bool (n,), of the classes that splits by sites can serve: those of a small world lack some."""
    if labels.kind == "value":
        return np.ones(len(labels), dtype=bool)
    assert labels.site is not None, "the world's labels have sites"
    sites = [len(np.unique(labels.site[labels.value == code])) for code in range(len(labels.names))]
    return np.array([found >= _SITES for found in sites])[labels.value]


def _stage(suite: Suite, model: Run | None, seed: int, device: torch.device) -> Stage:
    from aefcli import recipe

    world = imagine(seed, sites=suite.sites, size=suite.size, years=suite.years)
    cube = cube_of({name: data for name, data in world.datasets.items() if name in _inputs()}, world.period)
    plan = model.recipe if model else recipe.load("nano")
    networks = {"model": (checkpoint.load(model).to(device), plan)} if model else {}
    networks["untrained"] = (checkpoint.build(plan).to(device).eval(), plan)
    return Stage(suite, world, cube, networks, seed, device)


def _inputs() -> Sequence[str]:
    from aefcli.sources import INPUTS

    return (*INPUTS, "glo-30")


# --- tasks --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What a task found, and what it comes down to."""

    name: str
    rows: list[Row]
    summary: dict[str, Any]


def _rows(evaluation: Evaluation) -> list[Row]:
    return [score.as_dict() for score in evaluation.scores]


def _against(evaluation: Evaluation, ours: str) -> dict[str, Any]:
    """By shots: our error against that of the best designed baseline, each at its best transfer."""
    shots = dict.fromkeys(score.shots for score in evaluation.scores)
    classes, metric = len(evaluation.names), probe.METRICS[evaluation.kind][0]
    there = {score.field for score in evaluation.scores}
    out: dict[str, Any] = {}
    for level in shots:
        found = {name: probe.best(evaluation, name, level)[1] for name in there}
        rival = max((name for name in DESIGNED if name in there), key=lambda name: found[name])
        errors = [probe.error(found[name], metric, classes) for name in (ours, rival)]
        out[str(level)] = {
            "ours": found[ours],
            "best_designed": rival,
            **({"classes": classes} if classes else {}),
            rival: found[rival],
            **{name: found[name] for name in ("untrained", "xy", "oracle") if name in there},
            "error_reduction": 1 - errors[0] / errors[1] if errors[1] > 0 else 0.0,
        }
    return out


def _scored(stage: Stage, task: str) -> Found:
    labels = stage.labels(task)
    done = stage.evaluate(task, stage.answers(labels), labels)
    return Found(task, _rows(done), _against(done, stage.ours))


def _sparse(stage: Stage) -> Iterator[Found]:
    for task in SPARSE:
        yield _scored(stage, task)
    yield _shuffled(stage)


def _shuffled(stage: Stage) -> Found:
    """Labels that say nothing: whatever scores above chance here has seen the answers."""
    labels = stage.labels("crops")
    mixed = replace(labels, value=np.random.default_rng(stage.seed).permutation(labels.value))
    features = {name: values for name, values in stage.answers(mixed).items() if name in ("composite", stage.ours)}
    done = stage.evaluate("shuffled", features, mixed, shots=("max",))
    return Found("shuffled", _rows(done), {**_against(done, stage.ours), "chance": 1 / len(done.names)})


def _twins(stage: Stage) -> Iterator[Found]:
    for task in ("twins", "sar"):
        yield _scored(stage, task)


def _values(stage: Stage) -> Iterator[Found]:
    for task in stage.world.truth:
        if task not in ("change",) and stage.labels(task).kind == "value":
            yield _scored(stage, task)


def _honesty(stage: Stage) -> Iterator[Found]:
    """Crops rotate: who answers for another year than the one asked for knows no crop."""
    labels = stage.labels("crops")
    own = stage.year(labels.valid_start)
    right, wrong = stage.answers(labels), stage.answers(labels, (own + 1) % len(stage.years))
    names = [name for name in right if name != "oracle"]
    done = stage.evaluate(
        "honesty",
        {name: right[name] for name in names} | {name + OTHER_YEAR: wrong[name] for name in names},
        labels,
        shots=("max",),
    )
    level = done.scores[-1].shots
    drops = {n: probe.best(done, n, level)[1] - probe.best(done, n + OTHER_YEAR, level)[1] for n in names}
    yield Found("honesty", _rows(done), {"right_minus_wrong": drops})


def _int8(stage: Stage) -> Iterator[Found]:
    labels = stage.labels("crops")
    done = stage.evaluate("int8", guards.quantised(stage.answers(labels)[stage.ours]), labels)
    level = done.scores[-1].shots
    means = {name: probe.best(done, name, level)[1] for name in dict.fromkeys(s.field for s in done.scores)}
    yield Found("int8", _rows(done), {"max": means})


def _cloud(stage: Stage) -> Iterator[Found]:
    """The third of the points with the fewest clear looks of Sentinel-2 in their year."""
    labels = stage.labels("crops")
    source, (rows, columns) = stage.cube.sources["sentinel-2"], np.divmod(stage.pixel(labels), stage.cube.shape[1])
    seen = np.zeros((len(labels), len(stage.years)))
    for index, year in enumerate(stage.years):
        frames = np.flatnonzero((source.times >= year.start) & (source.times < year.end))
        weight = source.clear(Tile(0, 0, *stage.cube.shape), frames)
        seen[:, index] = (weight[:, rows, columns] > 0).sum(axis=0)
    looks = seen[np.arange(len(labels)), stage.year(labels.valid_start)]
    dark = labels.subset(looks <= np.quantile(looks, 1 / 3))
    done = stage.evaluate("cloud", stage.answers(dark), dark, shots=("max",))
    yield Found("cloud", _rows(done), _against(done, stage.ours))


def _change(stage: Stage) -> Iterator[Found]:
    labels = stage.labels("change")
    before = stage.answers(labels, stage.year(labels.before_start))
    after = stage.answers(labels)
    both = {name: np.concatenate([before[name], after[name]], axis=1) for name in before if name != "oracle"}
    done = stage.evaluate("change", both, labels)
    summary = _against(done, stage.ours)
    rows = _rows(done)
    for name in stage.networks:  # unit vectors: the detector is a threshold on their angle
        found = probe.changed(before[name], after[name], labels, field=name, task="change", seed=stage.seed)
        rows += [score.as_dict() for score in found]
    yield Found("change", rows, summary)


def _boundary(stage: Stage) -> Iterator[Found]:
    table = stage.world.truth["cover"]
    labels, edge = stage.labels("cover"), table["edge"].to_numpy()
    near = {name: labels.subset(chosen) for name, chosen in (("near", edge <= 2), ("inside", edge > 2))}
    summary: dict[str, Any] = {}
    rows: list[Row] = []
    for where, some in near.items():
        done = stage.evaluate(f"boundary, {where}", stage.answers(some), some, shots=("max",))
        rows += _rows(done)
        summary[where] = _against(done, stage.ours)
    yield Found("boundary", rows, summary)


def _missing(stage: Stage) -> Iterator[Found]:
    """Probes learn the last year's crops with everything, and are asked where a source or frames are missing.

    What a designed baseline then lacks is foretold from what it has, as somebody with both would do.
    """
    labels, last = stage.labels("crops"), len(stage.years) - 1
    labels = labels.subset(stage.year(labels.valid_start) == last)
    distinct, at = np.unique(stage.pixel(labels), return_inverse=True)
    whole, rng = stage.answers(labels), np.random.default_rng(stage.seed)
    draws = {name: rng.random(len(source.times)) for name, source in stage.cube.sources.items()}
    losses: dict[str, dict[str, float]] = {  # source -> the share of its frames that is gone
        "nothing": {},
        "without sentinel-1": {"sentinel-1": 1.0},
        "without sentinel-2": {"sentinel-2": 1.0},
        "half of the frames": dict.fromkeys(draws, 0.5),
        "30% of the frames": dict.fromkeys(draws, 0.3),
    }
    for what, shares in losses.items():
        full = {name: whole[name] for name in (*_IMPUTED, stage.ours)}
        left = dict(full)
        if shares:
            cube = without(stage.cube, {name: draws[name] < share for name, share in shares.items()})
            found = stage.features(cube, distinct, stage.years[-1:], list(full))
            left = {name: found[name][at, 0] for name in full}
            left |= {name: _imputed(full[name], left[name]) for name in _IMPUTED}
        done = stage.evaluate(f"lost, {what}", full, labels, shots=("max",), tested=left)
        summary = _against(done, stage.ours)
        if "30%" in what:
            summary["retrieval"] = {name: _retrieved(full[name], left[name]) for name in left}
        yield Found(f"lost, {what}", _rows(done), summary)


def _imputed(whole: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Features with a source missing: what no longer varies is foretold from the rest by least squares."""
    from sklearn.linear_model import Ridge

    there = np.isfinite(left).all(axis=0) & (left.std(axis=0) > 1e-6)
    gone = ~there & (whole.std(axis=0) > 1e-6)
    out = np.where(np.isfinite(left), left, 0.0)
    if gone.any() and there.any():
        out[:, gone] = Ridge(alpha=1e-3 * len(whole)).fit(whole[:, there], whole[:, gone]).predict(out[:, there])
    return out


def _retrieved(whole: np.ndarray, left: np.ndarray) -> float:
    """The share of places whose degraded features lie nearest to their own whole ones."""
    usable = np.isfinite(whole).all(axis=1) & np.isfinite(left).all(axis=1)
    found = probe.nearest(whole[usable].astype("float64"), left[usable].astype("float64"), 1)[0][:, 0]
    return float((found == np.arange(usable.sum())).mean())


def _month(stage: Stage) -> Iterator[Found]:
    """The greenness that was observed in July of the last year, foretold without any frame of it.

    `interpolation` has the frames before and after; `extrapolation, N months` none from N - 1 months before July on.
    """
    july = Period.parse(f"{stage.suite.years[1]}-07")
    table = stage.labels("cover")
    pixels, first = np.unique(stage.pixel(table), return_index=True)
    times, green = _greenness(stage.cube, pixels)
    inside = (times >= july.start) & (times < july.end)
    seen = np.isfinite(green[:, inside]).any(axis=1) & np.isfinite(green[:, times < july.start - _MONTH]).any(axis=1)
    seen &= np.isfinite(green[:, times >= july.end]).any(axis=1)
    pixels, green, chosen = pixels[seen], green[seen], table.subset(first[seen])
    truth = np.nanmedian(green[:, inside], axis=1)
    labels = replace(chosen, value=truth, names=(), kind="value")
    tasks = {"interpolation": (july.start, july.end)}
    tasks |= {f"extrapolation, {lead} months": (july.start - (lead - 1) * _MONTH, 1 << 60) for lead in LEADS}
    for task, (start, end) in tasks.items():
        cube = without(stage.cube, {n: (s.times >= start) & (s.times < end) for n, s in stage.cube.sources.items()})
        left = np.where((times >= start) & (times < end), np.nan, green)
        before = stage.years[-1]
        if end > july.end:
            before, cube = Period(start - 12 * _MONTH, start), replace(cube, period=Period(cube.period.start, start))
        features = {
            "raw": stage.features(cube, pixels, [before], ["raw"])["raw"][:, 0],
            stage.ours: stage.features(cube, pixels, [july], [stage.ours])[stage.ours][:, 0],
        }
        features["linear"] = _interpolated(times, left, (july.start + july.end) / 2)[:, None]
        done = stage.evaluate(task, features, labels, shots=("max",))
        errors = {
            name: min(score.mean for score in done.scores if (score.field, score.metric) == (name, "mae"))
            for name in features
        }
        ratios = {f"over_{name}": errors[stage.ours] / errors[name] for name in ("linear", "raw")}
        yield Found(task, _rows(done), {"mae": errors, **ratios})


def _greenness(cube: Cube, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Instants (t) of Sentinel-2, and the NDVI of pixels (n, t), NaN where they were not seen clearly."""
    source, (rows, columns) = cube.sources["sentinel-2"], np.divmod(pixels, cube.shape[1])
    red, near = (source.bands.index(name) for name in ("B04", "B08"))
    out = np.full((len(pixels), len(source.times)), np.nan)
    for frame in range(len(source.times)):
        values, weight = source.read(Tile(0, 0, *cube.shape), np.array([frame]))
        physical = values[0] * source.scale[frame][:, None, None] + source.offset[frame][:, None, None]
        r, n = physical[red, rows, columns], physical[near, rows, columns]
        clear = (weight[0, rows, columns] > 0) & (r + n > 0)
        out[clear, frame] = ((n - r) / (n + r))[clear]
    return source.times, out


def _interpolated(times: np.ndarray, values: np.ndarray, at: float) -> np.ndarray:
    """Values (n) at an instant, linear between the nearest ones that are there, and the last one after them."""
    found = [np.interp(at, times[there], row[there]) for row in values if (there := np.isfinite(row)).any()]
    assert len(found) == len(values), "every point was seen before the month"
    return np.array(found)


TASKS: Mapping[str, Callable[[Stage], Iterator[Found]]] = {
    "sparse": _sparse,
    "twins": _twins,
    "values": _values,
    "month": _month,
    "honesty": _honesty,
    "lost": _missing,
    "cloud": _cloud,
    "change": _change,
    "boundary": _boundary,
    "int8": _int8,
}
