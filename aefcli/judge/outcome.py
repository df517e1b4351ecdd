"""How to score, and what scoring ends with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from aefcli import baselines, probe
from aefcli.guards import Guard
from aefcli.probe import Comparison, Evaluation, Labels, Score
from aefcli.probe.split import BLOCK
from aefcli.published import Vectors

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
