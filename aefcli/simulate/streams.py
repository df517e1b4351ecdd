"""Random streams and smooth noise: what everything in the world is drawn from."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


def stream(seed: int, *key: int) -> np.random.Generator:
    """A stream of its own for each thing drawn: one more site or year leaves the others as they were."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))


@lru_cache(maxsize=64)
def _bells(size: int, scale: float) -> np.ndarray:
    """Bell curves (size, n) whose sum, each times a number of spread 1, has spread 1 everywhere."""
    centres = np.arange(-2 * scale, size + 2 * scale, 0.9 * scale)
    bells = np.exp(-0.5 * ((np.arange(size)[:, None] - centres) / scale) ** 2)
    return (bells / np.sqrt((bells**2).sum(1, keepdims=True))).astype(np.float32)


def noise_side(size: int, scale: float) -> int:
    """How many numbers a side smooth noise is made of."""
    return _bells(size, scale).shape[1]


def smooth(drawn: np.ndarray, size: int, scale: float) -> np.ndarray:
    """Numbers of spread 1 (..., n, n), n of `noise_side`, to noise (..., size, size); `scale` in pixels."""
    bells = _bells(size, scale)
    return bells @ drawn @ bells.T


def noise(rng: np.random.Generator, size: int, scale: float) -> np.ndarray:
    """Smooth noise of mean 0 and spread 1, float32 (size, size)."""
    side = noise_side(size, scale)
    return smooth(rng.standard_normal((side, side), np.float32), size, scale)
