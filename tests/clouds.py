"""Made-up labels and features, for the tests of the probes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from aefcli.probe import Labels, Score


def classes(sizes: Sequence[int], seed: int = 0, extent: float = 1.0, **columns: Any) -> Labels:
    """Labels with classes of these sizes at random places in a square of `extent` degrees."""
    rng = np.random.default_rng(seed)
    code = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    lon, lat = rng.uniform(10, 10 + extent, len(code)), rng.uniform(45, 45 + extent, len(code))
    return Labels(lon, lat, code, tuple("abcdefghijkl"[: len(sizes)]), "class", **columns)


def clouds(code: np.ndarray, noise: float, seed: int = 0, dims: int = 16) -> np.ndarray:
    """One Gaussian cloud per class, float64 (n, dims)."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(code.max() + 1, dims))
    return centres[code] + noise * rng.normal(size=(len(code), dims))


def by(scores: Iterable[Score], **wanted: Any) -> Score:
    """The one score that has these fields."""
    found = [score for score in scores if all(getattr(score, key) == value for key, value in wanted.items())]
    assert len(found) == 1, found
    return found[0]
