"""Trials: features and labels into scores, every field on the same draws."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from aefcli.errors import BadInput, unknown
from aefcli.probe.fit import BOOTSTRAP, METRICS, PROBES, linear, measure, neighbours, vote
from aefcli.probe.labels import Labels
from aefcli.probe.split import BLOCK, Plan, plan_split

_NEAREST = {"knn1": 1, "knn3": 3}


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
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Score], dict[str, Any]]:
    """Score every field with every probe at every number of shots.

    features   field -> finite floats (n, d), rows aligned with `labels`; d may differ by field
    block      metres, where there is neither a split nor a site
    max_folds  an upper limit that saves time; None keeps to the protocol
    progress   called with (folds done, folds in all)

    All fields see the same folds, training draws and test sets, and a score does not depend on which other
    fields, probes or shots were asked for. Answers the scores, and how the split was made. `BadInput` where the
    labels cannot be split, or have too few points for the shots.
    """
    matrices = {name: _matrix(name, feature, len(labels)) for name, feature in features.items()}
    _check_request(probes, shots, seed, max_folds)
    plan = plan_split(labels, block)
    for level in shots:
        plan.check(level)
    target = plan.stratum if labels.kind == "class" else labels.value
    trial = Trial(plan, target, labels.kind, tuple(probes), seed)
    count = {level: plan.folds(level, max_folds) for level in shots}
    found: dict[int | str, list[Fold]] = {level: [] for level in shots}
    todo = [(level, fold) for level in count for fold in range(count[level])]
    with _lean():
        for done, (level, fold) in enumerate(todo, start=1):
            found[level].append(trial.run(matrices, level, fold))
            if progress:
                progress(done, len(todo))
    scores: list[Score] = []
    for name, probe, level in itertools.product(matrices, dict.fromkeys(probes), found):
        scores += _scores(found[level], (name, probe, level), task, METRICS[labels.kind])
    report = {"split": plan.how, "groups": len(plan.held), "folds": count, "max_folds": max_folds}
    report |= {"bootstrap": BOOTSTRAP, "seed": seed, "points": len(labels)}
    report |= {"block": block} if plan.how == "block" else {}
    report |= {"bins": list(plan.names)} if labels.kind == "value" else {}
    return scores, report


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
    """One thread, and no checks of what is checked already, for thousands of small fits.

    Threads gain nothing on matrices of a few hundred rows and spin while they wait: on two busy cores a trial took
    two to four times as long with them. They would also let the last digit depend on the machine.
    """
    import sklearn.linear_model
    import sklearn.neighbors
    from threadpoolctl import threadpool_limits

    # Libraries are limited as they are found, so those of scikit-learn have to be loaded by now
    with threadpool_limits(1), sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        yield


@dataclass(frozen=True)
class Fold:
    """What one fold found: points on either side, and (replicates, 2) metrics by field and probe."""

    n_train: int
    n_test: int
    found: dict[tuple[str, str], np.ndarray]


@dataclass(frozen=True, eq=False)
class Trial:
    """Everything that the folds of one evaluation share. `target` (n,): codes from 0, or measurements."""

    plan: Plan
    target: np.ndarray
    kind: Literal["class", "value"]
    probes: tuple[str, ...]
    seed: int

    def run(self, matrices: Mapping[str, np.ndarray], shots: int | str, fold: int) -> Fold:
        """One fold. Its generators are keyed by shots and fold alone: every field gets the same draws."""
        key = [self.seed, 0 if shots == "max" else int(shots), fold]
        train, test = self.plan.draw(shots, np.random.default_rng(key))
        found = {}
        for name, matrix in matrices.items():
            for probe, guess in self._guesses(matrix[train], self.target[train], matrix[test]):
                rng = np.random.default_rng([*key, 1]) if shots == "max" else None
                found[name, probe] = measure(self.target[test], guess, self.kind, rng)
        return Fold(len(train), len(test), found)

    def _guesses(self, x: np.ndarray, y: np.ndarray, test: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """What each probe, taught (x, y), says of the rows of `test`. All k share one neighbour search."""
        # Always for three: which of two equally near rows comes first must not hang on the probes asked for
        near = y[neighbours(x, test, 3)] if _NEAREST.keys() & set(self.probes) else y
        for probe in self.probes:
            guess = linear(x, y, test, self.kind) if probe == "linear" else vote(near[:, : _NEAREST[probe]], self.kind)
            yield probe, guess


def _scores(
    folds: Sequence[Fold], which: tuple[str, str, int | str], task: str, metrics: Sequence[str]
) -> Iterator[Score]:
    """Mean and standard deviation over all folds and replicates of one (field, probe, shots)."""
    field, probe, shots = which
    n_train = round(float(np.mean([fold.n_train for fold in folds])))
    n_test = round(float(np.mean([fold.n_test for fold in folds])))
    results = np.concatenate([fold.found[field, probe] for fold in folds])
    for metric, mean, std in zip(metrics, results.mean(axis=0), results.std(axis=0), strict=True):
        yield Score(field, task, probe, shots, metric, float(mean), float(std), n_train, n_test)
