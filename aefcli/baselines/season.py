"""What a pixel's series says of a valid period, in the ways that people summarise one: plain functions of arrays.

Numbers in the comments are balanced accuracies of ten crops in two made-up worlds (seeds 100 and 101, 36 sites of 64x64
px, two years, split by site), at the most shots.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aefcli.baselines.series import Series
from aefcli.extent import Period

YEAR = 365.25 * 86_400_000  # ms
PERCENTILES = (0.05, 0.25, 0.50, 0.75, 0.95)  # ridge: .44 and .51; with 10 and 90 for the outer ones .42 in the first
STEPS = 24  # a year

_ANNUAL = 3  # harmonics
# Of the trend and the first harmonic, in clear frames; twice and thrice that of the next. kNN: .49 and .46; .49 and .46
# at 1, .48 and .45 at 4; at 0.01 a simpler world lost .15
_DAMPING = 2.0
# Of bends between steps, in clear frames, and of slopes, so that ends without a frame stay level rather than run away.
# kNN: .47 and .44, at 1 and .3 .49 and .45; linear of pca .52 and .50, there .50 and .49. In a simpler world linear
# interpolation from frame to frame lost .04 of kNN and .07 of ridge. To weigh frames by their residuals gains nothing
_BEND, _SLOPE = 3.0, 1.0


def within(series: Series, period: Period) -> Series:
    """The clear values inside a period; for a pixel's channel that has none, those nearest to it in time."""
    clear = ~np.isnan(series.values)
    away = np.maximum(np.maximum(period.start - series.times, series.times - (period.end - 1)), 0)
    used = clear & (away == 0)
    lacking = ~used.any(axis=2)
    if lacking.any():
        distance = np.where(clear[lacking], away, np.iinfo("int64").max)
        used[lacking] = clear[lacking] & (distance == distance.min(axis=1, keepdims=True))
    frames = used.any(axis=(0, 1))
    frames[0] |= not frames.any()
    values = np.where(used[:, :, frames], series.values[:, :, frames], np.float32(np.nan))
    return Series(series.times[frames], values)


def median(values: np.ndarray) -> np.ndarray:
    """Over time, of what is not NaN: (n, c, t) to (n, c); NaN where nothing is."""
    return quantiles(values, (0.5,))[..., 0]


def mean(values: np.ndarray) -> np.ndarray:
    """As `median`."""
    count = (~np.isnan(values)).sum(axis=2)
    total = np.nansum(values, axis=2, dtype="float64")
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0).astype("float32")


def quantiles(values: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """Quantiles along the last axis, NaN left out, linear between ranks: (n, c, t) to (n, c, shares)."""
    ranked = np.sort(values, axis=-1)  # NaN last
    last = np.maximum((~np.isnan(values)).sum(axis=-1, keepdims=True) - 1, 0)
    rank = last * np.asarray(shares)
    low = rank.astype("int64")
    below, above = (np.take_along_axis(ranked, at, axis=-1) for at in (low, np.minimum(low + 1, last)))
    return below + (above - below) * (rank - low).astype("float32")


def percentiles(inside: Series) -> np.ndarray:
    """`PERCENTILES` of each channel, float32 (n, c, 5); NaN where never seen."""
    return quantiles(inside.values, PERCENTILES)


def year_around(period: Period) -> Period:
    """The period, widened to a year around its middle where it is shorter."""
    short = int(max(0, YEAR - (period.end - period.start)) / 2)
    return Period(period.start - short, period.end + short)


def harmonics(inside: Series, period: Period) -> np.ndarray:
    """Offset, trend per year, cosines and sines of three annual harmonics, RMSE of each channel: float32 (n, c, 9).

    CCDC's coefficients, in time from the middle of the period, by least squares; all but the offset are damped a
    little, so that a year of twelve frames does not explode. NaN where never seen.
    """
    x = (inside.times - (period.start + period.end) / 2) / YEAR
    turns = 2 * np.pi * np.arange(1, _ANNUAL + 1) * x[:, None]
    waves = np.stack([np.cos(turns), np.sin(turns)], axis=2).reshape(len(x), -1)
    design = np.column_stack([np.ones_like(x), x, waves])
    order = np.r_[0, 1, np.repeat(np.arange(1, _ANNUAL + 1), 2)]
    found = _least_squares(inside.values, design, np.diag(_DAMPING * order + 1e-6))
    squares = np.square(inside.values - found @ design.T)
    clear = ~np.isnan(squares)
    rmse = np.sqrt(np.where(clear, squares, 0).sum(axis=2) / np.maximum(clear.sum(axis=2), 1))
    out = np.concatenate([found, rmse[..., None]], axis=2)
    return np.where(clear.any(axis=2)[..., None], out, np.nan).astype("float32")


def steps_of(periods: Sequence[Period]) -> int:
    """Steps of the regular grid, one number for all periods: 24 in a year, by the longest; 6 at least, 96 at most."""
    longest = max(period.end - period.start for period in periods)
    return int(np.clip(round(STEPS * longest / YEAR), 6, 4 * STEPS))


def regular(inside: Series, period: Period, steps: int) -> np.ndarray:
    """The series on a regular grid over the period, float32 (n, c, steps): its gaps filled, its noise smoothed.

    Whittaker's smoother, which gives between frames what bends least: a straight line across gaps, level at ends. NaN
    where never seen.
    """
    at = (inside.times - period.start) / (period.end - period.start) * steps - 0.5  # steps from the middle of the first
    at = np.clip(at, 0, steps - 1)
    low = np.minimum(at.astype("int64"), steps - 2)
    frames = np.arange(len(at))
    design = np.zeros((len(at), steps))
    design[frames, low], design[frames, low + 1] = low + 1 - at, at - low
    bends, slopes = (np.diff(np.eye(steps), order, axis=0) for order in (2, 1))
    found = _least_squares(inside.values, design, _BEND * bends.T @ bends + _SLOPE * slopes.T @ slopes)
    seen = ~np.isnan(inside.values).all(axis=2)
    return np.where(seen[..., None], found, np.nan).astype("float32")


def _least_squares(values: np.ndarray, design: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    """Coefficients (n, c, k) of values (n, c, t), where they are not NaN, on a design (t, k), under a penalty (k, k).

    A pixel never seen gets 0. Channels that are always seen together share their normal equations.
    """
    clear = ~np.isnan(values)
    if not (clear == clear[:, :1]).all():
        return np.concatenate(
            [_least_squares(values[:, [at]], design, penalty) for at in range(values.shape[1])], axis=1
        )
    k = design.shape[1]
    products = (design[:, :, None] * design[:, None]).reshape(-1, k * k)
    normal = (clear[:, 0].astype("float64") @ products).reshape(-1, k, k) + penalty
    normal[~clear[:, 0].any(axis=1)] = np.eye(k)
    right = np.where(clear, values, 0).astype("float64") @ design
    return np.linalg.solve(normal, right.transpose(0, 2, 1)).transpose(0, 2, 1)
