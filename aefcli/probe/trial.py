"""Trials: features and labels into scores, every field on the same draws."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from aefcli.errors import BadInput, unknown
from aefcli.probe.fit import (
    BOOTSTRAP,
    METRICS,
    NEAREST,
    PROBES,
    confusion,
    measure,
    neighbours,
    resamples,
    teach,
    votes,
)
from aefcli.probe.labels import Labels
from aefcli.probe.split import BLOCK, Plan, plan_split

Key = tuple[str, str, int | str]  # field, probe, shots


@dataclass(frozen=True)
class Score:
    """One metric of one probe on one field.

    mean, std        over folds; at `max` over folds and the bootstraps of their test sets
    n_train, n_test  points of a fold, the average rounded where folds differ
    """

    field: str
    task: str
    probe: str
    shots: int | str
    metric: str
    mean: float
    std: float
    n_train: int
    n_test: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What the trials of one task found.

    draws      (field, probe, shots) -> float64 (replicates, metrics of the kind, in the order of METRICS). Replicate i
               is the same fold, training draw and resample of the test set for every field: differences are paired
    confusion  (field, probe, shots) -> float64 (classes, classes), rows the truth, columns what was said, summed over
               folds; empty for values
    names      of the classes; empty for values
    about      how the points were split, and how often
    """

    scores: tuple[Score, ...]
    draws: Mapping[Key, np.ndarray]
    confusion: Mapping[Key, np.ndarray]
    names: tuple[str, ...]
    kind: Literal["class", "value"]
    about: Mapping[str, Any]


def evaluate(
    features: Mapping[str, np.ndarray],
    labels: Labels,
    *,
    task: str,
    probes: Sequence[str] = PROBES,
    shots: Sequence[int | str] = (1, 10, "max"),
    seed: int = 0,
    block: float = BLOCK,
    max_folds: int | None = None,
    place: np.ndarray | None = None,
    tested: Mapping[str, np.ndarray] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score every field with every probe at every number of shots.

    features   field -> finite floats (n, d), rows aligned with `labels`; d may differ by field
    block      metres, where there is neither a split nor a site
    max_folds  an upper limit that saves time; None keeps to the protocol
    place      the pixel of each point, int64 (n,), which is never divided; without it a cell of 10 m
    tested     field -> what stands in for its features in test sets, as where inputs are missing only there
    progress   called with (folds done, folds in all)

    All fields see the same folds, training draws, test sets and resamples of them, and a score does not depend on
    which other fields, probes or shots were asked for. `BadInput` where the labels cannot be split, have too few
    points for the shots, or come with a split that shares a pixel.
    """
    matrices = {name: _matrix(name, feature, len(labels)) for name, feature in features.items()}
    other = {name: _matrix(name, feature, len(labels)) for name, feature in (tested or {}).items()}
    assert other.keys() <= matrices.keys(), f"{other.keys() - matrices.keys()} stand in for no field"
    _check_request(probes, shots, seed, max_folds)
    plan = plan_split(labels, block, place)
    for level in shots:
        plan.check(level)
    trial = Trial(plan, plan.target(labels), labels.kind, tuple(dict.fromkeys(probes)), seed)
    count = {level: plan.folds(level, max_folds) for level in shots}
    found: dict[int | str, list[Fold]] = {level: [] for level in shots}
    todo = [(level, fold) for level in count for fold in range(count[level])]
    with _lean():
        for done, (level, fold) in enumerate(todo, start=1):
            found[level].append(trial.run(matrices, {**matrices, **other}, level, fold))
            if progress:
                progress(done, len(todo))
    keys = list(itertools.product(matrices, trial.probes, found))
    draws = {key: np.concatenate([fold.found[key[:2]] for fold in found[key[2]]]) for key in keys}
    named = labels.kind == "class"
    return Evaluation(
        tuple(score for key in keys for score in _scores(key, draws[key], found[key[2]], task, METRICS[labels.kind])),
        draws,
        {key: np.sum([fold.confusion[key[:2]] for fold in found[key[2]]], axis=0) for key in keys} if named else {},
        plan.names if named else (),
        labels.kind,
        _report(plan, labels, block, seed) | {"folds": count, "max_folds": max_folds},
    )


def _report(plan: Plan, labels: Labels, block: float, seed: int) -> dict[str, Any]:
    """How the points were split; `sharing` of them share their pixel with another."""
    report = {"split": plan.how, "groups": len(plan.held), "bootstrap": BOOTSTRAP, "seed": seed}
    report |= {"points": len(labels), "sharing": plan.sharing}
    report |= {"block": block} if plan.how == "block" else {}
    return report | ({"bins": list(plan.names)} if labels.kind == "value" else {})


def _matrix(name: str, feature: np.ndarray, rows: int) -> np.ndarray:
    """Float64, contiguous: the least squares of a float32 matrix would lose its null space to rounding."""
    matrix = np.ascontiguousarray(feature, dtype=np.float64)
    assert matrix.ndim == 2, f"{name}: features are (n, d), not {matrix.shape}"
    assert len(matrix) == rows, f"{name}: {len(matrix)} rows of features for {rows} labels"
    assert np.isfinite(matrix).all(), f"{name}: the caller removes rows that are not finite"
    return matrix


def _check_request(probes: Sequence[str], shots: Sequence[int | str], seed: int, max_folds: int | None) -> None:
    for probe in probes:
        if probe not in PROBES:
            raise unknown("probe", probe, PROBES)
    for level in shots:
        if level != "max" and (not isinstance(level, int) or level < 1):
            raise BadInput(f"{level!r} shots", "give whole numbers from 1, or max")
    if seed < 0:
        raise BadInput(f"the seed {seed} is negative", "give a seed from 0")
    if max_folds is not None and max_folds < 1:
        raise BadInput(f"at most {max_folds} folds", "give a number from 1")


@contextmanager
def _lean() -> Iterator[None]:
    """One thread for thousands of small fits.

    Threads gain nothing on matrices of a few hundred rows and spin while they wait: on two busy cores a trial took
    two to four times as long with them. They would also let the last digit depend on the machine.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        yield


@dataclass(frozen=True)
class Fold:
    """What one fold found: points on either side, and by field and probe (replicates, 2) metrics and confusion."""

    n_train: int
    n_test: int
    found: dict[tuple[str, str], np.ndarray]
    confusion: dict[tuple[str, str], np.ndarray]


@dataclass(frozen=True, eq=False)
class Trial:
    """Everything that the folds of one evaluation share. `target` (n,): codes from 0, or measurements."""

    plan: Plan
    target: np.ndarray
    kind: Literal["class", "value"]
    probes: tuple[str, ...]
    seed: int

    def run(
        self, matrices: Mapping[str, np.ndarray], tested: Mapping[str, np.ndarray], shots: int | str, fold: int
    ) -> Fold:
        """One fold. Its generators are keyed by shots and fold alone: every field gets the same draws."""
        train, test, weight = self.draw(shots, fold)
        truth, count = self.target[test], len(self.plan.names)
        done = Fold(len(train), len(test), {}, {})
        for name, matrix in matrices.items():
            for probe, guess in self._guesses(matrix[train], self.target[train], tested[name][test]):
                done.found[name, probe] = measure(truth, guess, self.kind, weight)
                if self.kind == "class":
                    done.confusion[name, probe] = confusion(truth, guess, count)
        return done

    def draw(self, shots: int | str, fold: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Rows to learn from and to test on, and at `max` the resamples of the test set (replicates, n_test)."""
        key = [self.seed, 0 if shots == "max" else int(shots), fold]
        train, test = self.plan.draw(shots, np.random.default_rng(key))
        return train, test, resamples(len(test), np.random.default_rng([*key, 1])) if shots == "max" else None

    def _guesses(self, x: np.ndarray, y: np.ndarray, test: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """What each probe, taught (x, y), says of the rows of `test`. All k share one neighbour search."""
        count = len(self.plan.names)
        widest = max((NEAREST[probe] for probe in self.probes if probe in NEAREST), default=0)
        near = y[neighbours(x, test, widest)] if widest else y
        for probe in self.probes:
            if probe in NEAREST:
                share = votes(near[:, : NEAREST[probe]], self.kind, count)
                yield probe, share.argmax(axis=1) if self.kind == "class" else share[:, 0]
            else:
                yield probe, teach(probe, x, y, self.kind, count).predict(test)


def _scores(key: Key, draws: np.ndarray, folds: Sequence[Fold], task: str, metrics: Sequence[str]) -> Iterator[Score]:
    """Mean and standard deviation over all folds and replicates of one (field, probe, shots)."""
    field, probe, shots = key
    n_train = round(float(np.mean([fold.n_train for fold in folds])))
    n_test = round(float(np.mean([fold.n_test for fold in folds])))
    for metric, mean, std in zip(metrics, draws.mean(axis=0), draws.std(axis=0), strict=True):
        yield Score(field, task, probe, shots, metric, float(mean), float(std), n_train, n_test)
