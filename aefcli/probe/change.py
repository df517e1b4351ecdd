"""Change told without labels: how far the vectors of two periods are apart, against a threshold.

The paper picks the threshold on the test set. That figure is reported as it has it; beside it stands the honest one,
whose threshold is picked on the training points.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from aefcli.errors import BadInput
from aefcli.probe.fit import METRICS, PRIMARY, measure
from aefcli.probe.labels import Labels
from aefcli.probe.split import BLOCK, plan_split
from aefcli.probe.trial import Score, Trial

THRESHOLDS = np.arange(1, 10) / 10
DETECTORS = ("change/test threshold", "change/train threshold")


def changed(
    before: np.ndarray,
    after: np.ndarray,
    labels: Labels,
    *,
    field: str,
    task: str,
    seed: int = 0,
    block: float = BLOCK,
    max_folds: int | None = None,
    place: np.ndarray | None = None,
) -> tuple[Score, ...]:
    """Scores of "change" wherever (1 - cosine) / 2 of vectors `before` and `after` (n, d) is above a threshold.

    Thresholds .1 ... .9, folds and test sets are those of the max trial, bootstrapped as there; of equally good
    thresholds the lowest is picked. Raises BadInput for labels that are no change pairs.
    """
    if not labels.change:
        raise BadInput("these labels are no pairs", "change is told from label_before and label_after")
    assert before.shape == after.shape == (len(labels), before.shape[1]), f"{before.shape} and {after.shape}"
    plan = plan_split(labels, block, place)
    plan.check("max")
    said = (apart(before, after)[:, None] > THRESHOLDS).astype(np.int64)
    trial = Trial(plan, plan.target(labels), "class", (), seed)
    draws = [trial.draw("max", fold) for fold in range(plan.folds("max", max_folds))]
    n_train = round(float(np.mean([len(train) for train, _, _ in draws])))
    n_test = round(float(np.mean([len(test) for _, test, _ in draws])))
    scores = []
    for detector in DETECTORS:
        found = np.concatenate(list(_measured(trial.target, said, draws, detector)))
        for metric, mean, std in zip(METRICS["class"], found.mean(axis=0), found.std(axis=0), strict=True):
            scores.append(Score(field, task, detector, "max", metric, float(mean), float(std), n_train, n_test))
    return tuple(scores)


def apart(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(1 - cosine) / 2 of each pair of rows (n, d): 0 alike, .5 at right angles or one of them 0, 1 opposite."""
    product = np.einsum("nd,nd->n", before, after, dtype=np.float64)
    length = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    return (1 - np.divide(product, length, out=np.zeros(len(product)), where=length > 0)) / 2


def _measured(
    target: np.ndarray, said: np.ndarray, draws: list[tuple[np.ndarray, np.ndarray, np.ndarray | None]], detector: str
) -> Iterator[np.ndarray]:
    """(replicates, 2) metrics of each fold. `said` (n, thresholds) is what each threshold says."""
    for train, test, weight in draws:
        seen = test if detector == DETECTORS[0] else train
        picked = max(range(len(THRESHOLDS)), key=lambda at: _score(target[seen], said[seen, at]))
        yield measure(target[test], said[test, picked], "class", weight)


def _score(truth: np.ndarray, guess: np.ndarray) -> float:
    (found,) = measure(truth, guess, "class")
    return float(found[METRICS["class"].index(PRIMARY["class"])])
