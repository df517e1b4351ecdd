"""The network untrained: what the architecture gives without having learned anything."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from aefcli import checkpoint, embed
from aefcli.cube import Cube
from aefcli.extent import Period
from aefcli.recipe import Recipe


def untrained(
    recipe: Recipe, cube: Cube, rows: np.ndarray, columns: np.ndarray, periods: Sequence[Period], device: torch.device
) -> np.ndarray:
    """Vectors (n, p, 64) of the recipe's network with the weights that training started from."""
    model = checkpoint.build(recipe).to(device).eval()
    return embed.at_points(model, recipe, cube, rows, columns, periods, device)
