"""The sky before one site: clouds, their shadows and haze, and what the products' masks make of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_dilation
from scipy.special import ndtri

from aefcli.simulate.passes import Pass
from aefcli.simulate.streams import noise_side, smooth

_BLOB, _RAG, _VEIL = 8, 2, 10  # pixels: clouds, their borders, haze
_BIAS = -0.52  # log-odds of cloud on a usual day: with it 0.45 of all that is seen is clear
_SHADE = 10  # pixels: no cloud throws its shadow farther


@dataclass(frozen=True)
class Sky:
    """Some passes over one site: how much of each pixel is cloud, shadow, haze, float32 0..1 (frame, y, x)."""

    cloud: np.ndarray
    shadow: np.ndarray
    haze: np.ndarray
    noticed: np.ndarray  # (frame) whether the mask has the haze
    slip: np.ndarray  # (frame) pixels by which the mask is misplaced, mostly 0
    glow: np.ndarray  # (frame) brightness of the clouds, about 1

    def flags(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cloud, shadow and haze as the product sees them, right or wrong."""
        cloud, shadow, haze = self.cloud.copy(), self.shadow.copy(), self.haze * self.noticed[:, None, None]
        for frame in np.flatnonzero(self.slip).tolist():
            for layer in (cloud, shadow, haze):
                layer[frame] = np.roll(layer[frame], int(self.slip[frame]), (0, 1))
        return cloud, shadow, haze


def sky_of(rngs: Sequence[np.random.Generator], plan: Sequence[Pass], gloom: float, size: int) -> Sky:
    """Clouds as blobs above a threshold: one weather for the day, more or less of it at each site."""
    sides = [noise_side(size, scale) for scale in (_BLOB, _RAG, _VEIL)]
    drawn: list[list[np.ndarray]] = [[], [], []]
    numbers = []
    for rng in rngs:
        numbers.append((*rng.random(6), rng.normal(), *rng.integers((3, 2), (_SHADE, 7))))
        for side, stack in zip(sides, drawn, strict=True):
            stack.append(rng.standard_normal((side, side), np.float32))
    blob, rag, veil = (
        smooth(np.stack(stack), size, scale) for stack, scale in zip(drawn, (_BLOB, _RAG, _VEIL), strict=True)
    )
    hazy, strength, seen, wrong, far, glow, own, down, right = np.array(numbers).T
    day = np.array([one.gloom for one in plan])
    share = 1 / (1 + np.exp(-1.7 * (_BIAS + day + gloom + 0.7 * own)))
    cut = -1.044 * ndtri(np.clip(share, 1e-4, 1 - 1e-4))
    cloud = np.clip((blob + 0.3 * rag - cut[:, None, None].astype(np.float32)) / 0.45 + 0.25, 0, 1)
    shadow = np.zeros_like(cloud)
    for frame, (low, aside) in enumerate(zip(down.astype(int), right.astype(int), strict=True)):
        shadow[frame, :-low, :-aside] = cloud[frame, low:, aside:]  # the sun stands in the south-east
    veiled = np.where(hazy < 0.40, 0.06 + 0.24 * strength, 0).astype(np.float32)
    return Sky(
        cloud=cloud,
        shadow=shadow,
        haze=veiled[:, None, None] * np.clip(0.7 + 0.4 * veil, 0, 1),
        noticed=(seen < 2 / 3).astype(np.float32),
        slip=np.where(wrong < 0.05, 4 + (6 * far).astype(int), 0),
        glow=(0.85 + 0.3 * glow).astype(np.float32),
    )


def classes(cloud: np.ndarray, shadow: np.ndarray, haze: np.ndarray) -> dict[str, np.ndarray]:
    """The product's mask of means over its cells: bool of `cloud`, `thin`, `shadow`, `haze`; none overlap."""
    return {
        "cloud": cloud > 0.55,
        "thin": (cloud > 0.2) & (cloud <= 0.55),
        "shadow": (shadow > 0.25) & (cloud <= 0.2),
        "haze": (haze > 0.04) & (cloud <= 0.2) & (shadow <= 0.25),
    }


def widened(cloud: np.ndarray) -> np.ndarray:
    """Clouds (frame, y, x) and the cells around them."""
    return binary_dilation(cloud, np.ones((1, 3, 3), bool))
