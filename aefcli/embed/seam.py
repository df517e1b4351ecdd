"""How much the same pixel differs between two tilings: a field's seams are where patches meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from aefcli import checkpoint
from aefcli.checkpoint import Run
from aefcli.cube import Cube
from aefcli.embed.network import Network, read_frames, seen
from aefcli.embed.periods import support_of
from aefcli.embed.tiling import Part, around, step_of
from aefcli.extent import Period, Tile
from aefcli.recipe import Embed

_PLACES = 3  # of a field, two patches each
_TRIES = 20  # places looked at, where many hold no data


@dataclass(frozen=True)
class Seam:
    """Degrees between vectors of the same pixels, of a patch as it lies and of one half a patch further."""

    mean: float
    most: float  # of 99 in 100 pixels
    places: int

    def __str__(self) -> str:
        return f"the same pixel under two tilings: {self.mean:.2f} degrees apart, 99% below {self.most:.2f}"


def measured(
    cube: Cube, run: Run, sizes: Embed, part: Part, names: Sequence[str], period: Period, device: torch.device
) -> Seam | None:
    """The seam score of some places of a part of a cube, spread over it; None where no two patches meet with data."""
    half = step_of(sizes) // 2
    lattice = [
        Tile(top, left, top + half, left + half)
        for top in range(part.top, part.top + part.shape[0] - 2 * half, 2 * half)
        for left in range(part.left, part.left + part.shape[1] - 2 * half, 2 * half)
        if half
    ]
    if not lattice:
        return None
    recipe = run.recipe.model_copy(update={"embed": sizes})
    network, support = Network(checkpoint.load(run).to(device), recipe, device), support_of(cube.period, period)
    angles: list[np.ndarray] = []
    for index in np.random.default_rng(0).permutation(len(lattice))[:_TRIES]:
        # What the lower right quarter of a patch holds, the upper left one of a patch half a patch further holds too.
        corner, found = lattice[index], []
        for cell in (corner, Tile(corner.top + half, corner.left + half, corner.bottom + half, corner.right + half)):
            whole = Tile(cell.top, cell.left, cell.top + 2 * half, cell.left + 2 * half)
            frames = read_frames(cube, names, around(whole, sizes), support, recipe)
            found.append(seen(network, frames, whole, [period]))
        one, other = found[0].vectors[0, :, half:, half:], found[1].vectors[0, :, :half, :half]
        clear = found[0].clear[half:, half:]
        if clear.any():
            angle = torch.rad2deg(torch.arccos((one * other).sum(0).clamp(-1, 1))).cpu().numpy()
            angles.append(angle[clear])
        if len(angles) == _PLACES:
            break
    if not angles:
        return None
    every = np.concatenate(angles)
    return Seam(float(every.mean()), float(np.percentile(every, 99)), len(angles))
