"""Fields, tables, a cube and labels into scores: gathers the features that `probe` judges.

Owns who the candidates are, which labels every one of them can answer (inside, with data, for a period that it holds or
that its model can still embed), so that all are scored on the same points, and what is said of those left out. Source:
evaluation.md.

    outcome    how to score, and what scoring ends with
    fields     the fields, and the runs, cubes and labels that belong to them
    asked      the valid period of each label, and the inputs that may be read for it
    answers    what fields and baselines answer, and why they do not
    score      all of it into a judgement
"""

from aefcli.judge.fields import find_labels
from aefcli.judge.outcome import BASELINES, USUAL, Judgement, Progress, Protocol, View
from aefcli.judge.score import judge, judge_table

__all__ = [
    "BASELINES",
    "USUAL",
    "Judgement",
    "Progress",
    "Protocol",
    "View",
    "find_labels",
    "judge",
    "judge_table",
]
