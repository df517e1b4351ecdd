"""Labels and what a feature is worth on them: read, split, draw, fit, score.

Owns the label table (`Labels`), the split of its points into a training pool and a test set, the trials drawn
from them and their metrics. Knows of no store, no cube and no model: features arrive as plain matrices whose
rows are aligned with the labels. Protocol: supplement S3-S6 of the paper; every choice of ours says so.

    labels    a table on disk -> Labels
    split     Labels -> a training pool and a test set, again and again
    fit       matrices -> predictions -> metrics
    trial     features and labels -> scores
"""

from aefcli.probe.fit import METRICS, PROBES
from aefcli.probe.labels import Labels, find_labels, read_labels
from aefcli.probe.split import blocks, folds, possible
from aefcli.probe.trial import Score, evaluate

__all__ = [
    "METRICS",
    "PROBES",
    "Labels",
    "Score",
    "blocks",
    "evaluate",
    "find_labels",
    "folds",
    "possible",
    "read_labels",
]
