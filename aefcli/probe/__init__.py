"""Labels and what a feature is worth on them: read, split, draw, fit, score.

Owns the label table (`Labels`), the split of its points into a training pool and a test set, the trials drawn
from them and their metrics. Knows of no store, no cube and no model: features arrive as plain matrices whose
rows are aligned with the labels. Protocol: supplement S3-S6 of the paper; every choice of ours says so.

    labels    a table on disk -> Labels, and features where it brings them
    split     Labels -> a training pool and a test set, again and again
    nearest   vectors and queries -> exact nearest neighbours
    fit       matrices -> probes -> predictions -> metrics
    trial     features and labels -> an Evaluation
    compare   an Evaluation -> errors, best transfers, paired differences
    change    vectors of two periods -> the scores of a detector without labels
"""

from aefcli.probe.change import changed
from aefcli.probe.compare import Comparison, best, compare, error
from aefcli.probe.fit import METRICS, PRIMARY, PROBES, Taught, teach
from aefcli.probe.labels import Labels, Places, find_labels, labels_of, read_labels, read_places, read_points
from aefcli.probe.nearest import nearest
from aefcli.probe.split import blocks, folds, possible
from aefcli.probe.trial import Evaluation, Score, evaluate

__all__ = [
    "METRICS",
    "PRIMARY",
    "PROBES",
    "Comparison",
    "Evaluation",
    "Labels",
    "Places",
    "Score",
    "Taught",
    "best",
    "blocks",
    "changed",
    "compare",
    "error",
    "evaluate",
    "find_labels",
    "folds",
    "labels_of",
    "nearest",
    "possible",
    "read_labels",
    "read_places",
    "read_points",
    "teach",
]
