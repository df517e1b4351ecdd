"""Cubes for reading windows at random: in memory where there is room, and in one memory for all processes that read."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aefcli.cube import Cube, open_cube
from aefcli.recipe import Recipe

_PRELOAD = 2 << 30  # bytes of stored values that are kept in memory rather than read again for every batch
_ALIGNED = 64  # bytes; where arrays begin
_SHARED = Path("/dev/shm")  # what processes share lies here on Linux


@dataclass(frozen=True)
class _Held:
    """Where in a block of memory an array lies."""

    first: int
    shape: tuple[int, ...]
    dtype: np.dtype

    def of(self, block: torch.Tensor) -> np.ndarray:
        size = int(np.prod(self.shape)) * self.dtype.itemsize
        return np.asarray(block[self.first : self.first + size].numpy().view(self.dtype).reshape(self.shape))


class Cubes:
    """Open cubes, of the sources that a recipe asks for. If they all find room they are held in memory; else those that
    lie on disk are read from there.

    Sent to another process they share that memory with it; there, what is on disk is opened when first asked for.
    """

    def __init__(self, cubes: Sequence[Cube], recipe: Recipe, *, share: bool = False, most: int | None = None) -> None:
        cubes = [_only(cube, recipe) for cube in cubes]
        self._bare = [_with(cube, {name: {} for name in cube.sources}) for cube in cubes]
        self._open, self._block = dict(enumerate(cubes)), torch.empty(0, dtype=torch.uint8)
        self._held: dict[int, dict[str, dict[str, _Held]]] = {}
        every = {place: array for number, cube in self._open.items() for place, array in _arrays(number, cube)}
        room = _PRELOAD if most is None else most
        if share and _SHARED.exists():
            room = min(room, shutil.disk_usage(_SHARED).free // 2)
        on_disk = {number for (number, *_), array in every.items() if not isinstance(array, np.ndarray)}
        at_hand = {number for (number, *_), array in every.items() if isinstance(array, np.ndarray)}
        roomy = sum(array.nbytes for array in every.values()) <= room
        # What was never on disk can be sent from memory alone; what is in memory need not be loaded for this process.
        chosen = at_hand if share else at_hand & on_disk
        chosen |= on_disk if roomy else set()
        self._load({place: array for place, array in every.items() if place[0] in chosen}, share)

    def _load(self, arrays: Mapping[tuple[int, str, str], Any], share: bool) -> None:
        """Into one block: a process keeps a file open for each that it shares."""
        rooms = [-(-array.nbytes // _ALIGNED) * _ALIGNED for array in arrays.values()]
        self._block = torch.empty(sum(rooms), dtype=torch.uint8)
        if share:
            self._block.share_memory_()
        first = 0
        for (number, name, key), array in arrays.items():
            held = _Held(first, array.shape, array.dtype)
            held.of(self._block)[...] = array[:]
            self._held.setdefault(number, {}).setdefault(name, {})[key] = held
            first += rooms.pop(0)
        self._open = {number: cube for number, cube in self._open.items() if number not in self._held}

    def __getitem__(self, number: int) -> Cube:
        if number not in self._open:
            self._open[number] = self._opened(number)
        return self._open[number]

    def _opened(self, number: int) -> Cube:
        bare, held = self._bare[number], self._held.get(number)
        if held is None:
            found = open_cube(bare.path).sources
            return _with(bare, {name: found[name].arrays for name in bare.sources})
        return _with(bare, {name: {key: at.of(self._block) for key, at in each.items()} for name, each in held.items()})

    def __iter__(self) -> Iterator[Cube]:
        return (self[number] for number in range(len(self._bare)))

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": {}}


def _only(cube: Cube, recipe: Recipe) -> Cube:
    """The cube without the sources that nobody asks for."""
    wanted = (*recipe.data.sources, *recipe.data.targets)
    return replace(cube, sources={name: source for name, source in cube.sources.items() if name in wanted})


def _with(cube: Cube, arrays: Mapping[str, Mapping[str, Any]]) -> Cube:
    """The cube with these arrays of its sources."""
    return replace(cube, sources={name: replace(source, arrays=arrays[name]) for name, source in cube.sources.items()})


def _arrays(number: int, cube: Cube) -> Iterator[tuple[tuple[int, str, str], Any]]:
    for name, source in cube.sources.items():
        for key, array in source.arrays.items():
            yield (number, name, key), array
