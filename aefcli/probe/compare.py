"""What one field's scores are worth beside another's: errors, best transfers, paired differences."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from aefcli.errors import unknown
from aefcli.probe.fit import METRICS, PRIMARY
from aefcli.probe.trial import Evaluation


@dataclass(frozen=True)
class Comparison:
    """Field `a` beside field `b` at one number of shots, each at its best transfer by the primary metric.

    difference       a's mean less b's
    low, high        of 95% of the paired replicates' differences
    error_ratio      b's error / a's: above 1 where a is better; infinite where a alone has none, 1 where neither has
    error_reduction  1 - a's error / b's; minus infinity where b alone has none, 0 where neither has
    confirmed        the second metric (macro-F1; for values MAE, our choice) says the same: of the two transfers that
                     are compared, and of each field's best by that metric. A win that it does not confirm is no win
    """

    a: str
    b: str
    shots: int | str
    metric: str
    a_probe: str
    b_probe: str
    difference: float
    low: float
    high: float
    error_ratio: float
    error_reduction: float
    confirmed: bool

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinite numbers: they become None."""
        return {key: None if value in (np.inf, -np.inf) else value for key, value in asdict(self).items()}


def error(score_mean: float, metric: str, classes: int) -> float:
    """The error of a mean score, 0 .. 1: 1 is a random predictor, or the mean of the values, and all that is worse.

    Of balanced accuracy the balanced error, kappa-adjusted for chance among `classes`; of R2 what it leaves open.
    """
    assert metric in PRIMARY.values(), f"{metric} has no error"
    chance = 1 - 1 / classes if metric == PRIMARY["class"] else 1.0
    return float(min(1.0, max(0.0, 1 - score_mean) / chance))


def best(evaluation: Evaluation, field: str, shots: int | str) -> tuple[str, float]:
    """The probe by which a field does best at a number of shots by the primary metric, and its mean."""
    return _best(evaluation, field, shots, 0)


def compare(evaluation: Evaluation, a: str, b: str) -> list[Comparison]:
    """Field `a` beside field `b`, at each number of shots. Raises BadInput for a field that was not scored."""
    known = list(dict.fromkeys(field for field, _, _ in evaluation.draws))
    for name in (a, b):
        if name not in known:
            raise unknown("field", name, known)
    levels = dict.fromkeys(shots for _, _, shots in evaluation.draws)
    return [_compared(evaluation, a, b, shots) for shots in levels]


def _best(evaluation: Evaluation, field: str, shots: int | str, metric: int) -> tuple[str, float]:
    means = {
        probe: float(draws[:, metric].mean())
        for (name, probe, level), draws in evaluation.draws.items()
        if (name, level) == (field, shots)
    }
    chosen = max(means, key=lambda probe: _gain(evaluation, metric) * means[probe])
    return chosen, means[chosen]


def _gain(evaluation: Evaluation, metric: int) -> int:
    """1 for a metric that is better the larger it is, else -1."""
    return -1 if METRICS[evaluation.kind][metric] == "mae" else 1


def _compared(evaluation: Evaluation, a: str, b: str, shots: int | str) -> Comparison:
    (a_probe, ours), (b_probe, theirs) = (best(evaluation, field, shots) for field in (a, b))
    paired = evaluation.draws[a, a_probe, shots] - evaluation.draws[b, b_probe, shots]
    low, high = np.percentile(paired[:, 0], [2.5, 97.5])
    metric, classes = PRIMARY[evaluation.kind], len(evaluation.names)
    own, other = error(ours, metric, classes), error(theirs, metric, classes)
    gain = _gain(evaluation, 1)
    (_, a_second), (_, b_second) = (_best(evaluation, field, shots, 1) for field in (a, b))
    said = {np.sign(ours - theirs), np.sign(gain * paired[:, 1].mean()), np.sign(gain * (a_second - b_second))}
    ratio = other / own if own else (float("inf") if other else 1.0)
    reduction = 1 - own / other if other else (-float("inf") if own else 0.0)
    figures = (ours - theirs, float(low), float(high), ratio, reduction)
    return Comparison(a, b, shots, metric, a_probe, b_probe, *figures, confirmed=len(said) == 1 and said != {0.0})
