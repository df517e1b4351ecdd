"""A window of a cube as normalised frames [paper S1]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch

from aefcli.batch import Frames
from aefcli.cube import Cube, CubeSource
from aefcli.extent import Period, Tile
from aefcli.recipe import Moments
from aefcli.sources import Band, transform, valid

_CLIP = 6.0  # sigmas
Statistics = Mapping[str, Moments]  # by source; one that is not there has those of the table


def normalise(
    stored: np.ndarray, source: CubeSource, frames: np.ndarray, statistics: Statistics
) -> tuple[np.ndarray, np.ndarray]:
    """Stored values (t c h w) of a source's bands to model inputs, and where all delivered bands have one (t h w).

    Physical value, transform, standardise, clip at 6 sigma; 0 where there is no value. A categorical source's codes
    become indices into its classes; a code that is not among them is no value.
    """
    if source.source.kind == "categorical":
        return _indices(stored, source.source.classes)
    moments = statistics.get(source.source.name)
    out = np.empty(stored.shape, dtype="float32")
    for index, name in enumerate(source.bands):
        band = source.source.band(name)
        if moments is not None:
            place = source.source.bands.index(band)
            band = replace(band, mean=moments.mean[place], std=moments.std[place])
        _fill(out[:, index], stored[:, index], source, frames, index, band, _CLIP)
    delivered = source.delivered[frames]
    lacks = np.isnan(out)
    if delivered.all() and not lacks.any():
        return out, np.ones((len(out), *out.shape[2:]), dtype=bool)
    lacks &= delivered[:, :, None, None]
    present = ~lacks.any(axis=1) & delivered.any(axis=1)[:, None, None]
    return np.where(present[:, None] & delivered[:, :, None, None], out, np.float32(0)), present


def transformed(stored: np.ndarray, source: CubeSource, frames: np.ndarray, band: str) -> np.ndarray:
    """One band's stored values (t h w) on the scale that is standardised, float32; NaN where there is no value."""
    out = np.empty(stored.shape, dtype="float32")
    plain = replace(source.source.band(band), mean=0.0, std=1.0)
    _fill(out, stored, source, frames, source.bands.index(band), plain, np.inf)
    return out


def _fill(
    out: np.ndarray,
    stored: np.ndarray,
    source: CubeSource,
    frames: np.ndarray,
    index: int,
    band: Band,
    clip: float,
) -> None:
    """One band's frames (t h w) in sigmas, NaN where there is no value. Frames of one scale and offset go together."""
    numbers = list(zip(source.scale[frames, index].tolist(), source.offset[frames, index].tolist(), strict=True))
    for scale, offset in (found := dict.fromkeys(numbers)):
        same = slice(None) if len(found) == 1 else np.array([each == (scale, offset) for each in numbers])
        how = (band, source.source.nodata, scale, offset, clip)
        if stored.dtype.name in ("uint8", "uint16"):
            out[same] = _table(stored.dtype.name, *how)[stored[same]]
        else:
            out[same] = _sigmas(stored[same], *how)


@lru_cache(maxsize=128)
def _table(dtype: str, band: Band, nodata: float, scale: float, offset: float, clip: float) -> np.ndarray:
    """What each number that can be stored is: to look it up takes a fifth of the time that its logarithm takes."""
    return _sigmas(np.arange(np.iinfo(dtype).max + 1, dtype=dtype), band, nodata, scale, offset, clip)


def _sigmas(stored: np.ndarray, band: Band, nodata: float, scale: float, offset: float, clip: float) -> np.ndarray:
    there = valid(stored, nodata)
    value = transform(np.where(there, stored * np.float64(scale) + offset, 1.0), band.transform)
    if band.valid is not None:
        there &= (value >= band.valid[0]) & (value <= band.valid[1])
    return np.where(there, np.clip((value - band.mean) / band.std, -clip, clip), np.nan).astype("float32")


def _indices(stored: np.ndarray, classes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Codes (t 1 h w), unsigned, to their places among the classes, and where they have one (t h w)."""
    table = np.full(np.iinfo(stored.dtype).max + 1, -1, dtype="int16")
    table[list(classes)] = np.arange(len(classes))
    index = table[stored]
    return np.maximum(index, 0).astype("float32"), index[:, 0] >= 0


def window(cube: Cube, name: str, tile: Tile, frames: np.ndarray, statistics: Statistics) -> Frames:
    """Some frames of one source over a tile, as a batch of one. Pixels outside the cube are not present."""
    source, bands = cube.sources[name], cube.sources[name].source.bands
    height, width = cube.shape
    inside = Tile(max(tile.top, 0), max(tile.left, 0), min(tile.bottom, height), min(tile.right, width))
    stored, weight = source.read(inside, frames)
    values, there = normalise(stored, source, frames, statistics)
    time, meta = torch.from_numpy(source.times[frames])[None], torch.from_numpy(source.meta[frames])[None]
    if inside == tile and len(source.bands) == len(bands):
        has, clear = torch.from_numpy(source.delivered[frames]), torch.from_numpy(there & (weight > 0)).float()
        return Frames(torch.from_numpy(values)[None], torch.from_numpy(there)[None], has[None], clear[None], time, meta)
    place = (
        slice(inside.top - tile.top, inside.bottom - tile.top),
        slice(inside.left - tile.left, inside.right - tile.left),
    )
    columns = [index for index, band in enumerate(bands) if band.name in source.bands]
    pixels = torch.zeros(1, len(frames), len(bands), *tile.shape)
    present = torch.zeros(1, len(frames), *tile.shape, dtype=torch.bool)
    clear = torch.zeros(1, len(frames), *tile.shape)
    has = torch.zeros(1, len(frames), len(bands), dtype=torch.bool)
    has[0][:, columns] = torch.from_numpy(source.delivered[frames])
    pixels[(0, slice(None), columns, *place)] = torch.from_numpy(values)
    present[(0, slice(None), *place)] = torch.from_numpy(there)
    clear[(0, slice(None), *place)] = torch.from_numpy((there & (weight > 0)).astype("float32"))
    return Frames(pixels, present, has, clear, time, meta)


def in_period(source: CubeSource, period: Period) -> np.ndarray:
    """Indices of the source's frames in the period, in order of time."""
    return np.nonzero((source.times >= period.start) & (source.times < period.end))[0]
