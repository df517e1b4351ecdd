"""What is computed from a band rather than delivered: slope and aspect of the ground."""

from __future__ import annotations

import numpy as np


def slope_and_aspect(elevation: np.ndarray, spacing: float) -> dict[str, np.ndarray]:
    """Slope and aspect of elevations on a grid in metres, north up, by Horn's differences over 3x3 cells [1981].

    `elevation` is float (h, w) in metres, with a margin of one cell on each side, NaN where not delivered; `spacing`
    of its cells in metres. Returns the bands of glo-30, float32 (h - 2, w - 2): elevation, slope in degrees, and sine
    and cosine of the aspect: where the ground faces downhill, clockwise from north. Where it is flat, both are 0; where
    any of the nine cells is NaN, slope and aspect are NaN.
    """
    assert elevation.ndim == 2
    assert min(elevation.shape) > 2
    height = elevation.astype("float64")
    rows = height[:-2] + 2 * height[1:-1] + height[2:]
    columns = height[:, :-2] + 2 * height[:, 1:-1] + height[:, 2:]
    east = (rows[:, 2:] - rows[:, :-2]) / (8 * spacing)
    north = (columns[:-2] - columns[2:]) / (8 * spacing)
    middle = height[1:-1, 1:-1]
    steep = np.where(np.isnan(middle), np.nan, np.hypot(east, north))
    along = -np.where(steep == 0, 1.0, steep)
    bands = {
        "elevation": middle,
        "slope": np.degrees(np.arctan(steep)),
        "aspect_sine": east / along + 0.0,  # no negative zeros
        "aspect_cosine": north / along + 0.0,
    }
    return {name: values.astype("float32") for name, values in bands.items()}
