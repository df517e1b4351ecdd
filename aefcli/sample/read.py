"""The samples of a batch, read from cubes and joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from aefcli.batch import Batch, Frames, Text, make_batch, stack
from aefcli.extent import Tile
from aefcli.recipe import Recipe
from aefcli.sample.memory import Cubes
from aefcli.sample.plan import Place, Work
from aefcli.sample.window import in_period, window
from aefcli.sources import SOURCES
from aefcli.text import Texts, draw, on


class Reader:
    """Batches of what a plan asks for. Reads nothing before it is asked; can be sent to another process."""

    def __init__(self, cubes: Cubes, recipe: Recipe, texts: Texts | None) -> None:
        self.cubes, self.recipe = cubes, recipe
        told = texts is not None and "text" in recipe.data.targets
        self.placed = [on(texts, cube) for cube in cubes] if told and texts is not None else []

    def __call__(self, work: Work) -> Batch:
        data, loss, seed = self.recipe.data, self.recipe.loss, self.recipe.train.seed
        rngs = [np.random.default_rng([seed, *work.key, work.first + row]) for row in range(len(work.places))]
        rows = list(zip(work.places, rngs, strict=True))
        inputs = {
            name: stack([self._input(name, most + loss.targets, *row) for row in rows], work.longest[name])
            for name, most in zip(data.sources, data.frames, strict=True)
        }
        rasters = [name for name in data.targets if SOURCES[name].kind != "text"]
        alone = {name: stack([self._alone(name, *row) for row in rows]) for name in rasters}
        text = self._texts(rows) if self.placed else None
        support = torch.tensor([[place.support.start, place.support.end] for place in work.places])
        draws = [torch.Generator().manual_seed(int(rng.integers(2**62))) for rng in rngs]
        batch = make_batch(inputs, alone, support, loss.whole_support, draws, loss.targets)
        gsd = self.cubes[work.places[0].cube].grid.resolution.x
        return replace(batch, apart=torch.tensor(work.apart), text=text, gsd=gsd)

    def _input(self, name: str, most: int, place: Place, rng: np.random.Generator) -> Frames:
        """At most so many frames of an input, at random; one that is not present where there is none."""
        cube = self.cubes[place.cube]
        frames = in_period(cube.sources[name], place.support) if name in cube.sources else np.array([], dtype=int)
        if not len(frames):
            return _nothing(name, place.tile)
        return window(cube, name, place.tile, np.sort(rng.permutation(frames)[:most]), self.recipe.statistics)

    def _alone(self, name: str, place: Place, rng: np.random.Generator) -> Frames:
        """One frame of a source that is no input, of those in the support, clear somewhere if there are any.

        A static source gives the frame nearest to the middle of the support, at a random instant of it: any would be
        true.
        """
        cube = self.cubes[place.cube]
        if name not in cube.sources:
            return _nothing(name, place.tile)
        source, support = cube.sources[name], place.support
        if source.source.static:
            nearest = np.abs(source.times - (support.start + support.end) // 2).argmin()
            instant = torch.tensor([[int(rng.integers(support.start, support.end))]])
            frames = window(cube, name, place.tile, np.array([nearest]), self.recipe.statistics)
            return replace(frames, time=instant)
        some = in_period(source, support)
        if not len(some):
            return _nothing(name, place.tile)
        seen = some[source.clear(place.tile, some).any(axis=(1, 2))]
        return window(cube, name, place.tile, rng.choice(seen if len(seen) else some, 1), self.recipe.statistics)

    def _texts(self, rows: Sequence[tuple[Place, np.random.Generator]]) -> Text:
        """A text of each place; where there is none, its period is the support and the rest is 0."""
        told = [draw(self.placed[place.cube], place.tile, place.support, rng) for place, rng in rows]
        supports = [(place.support.start, place.support.end) for place, _ in rows]
        vectors = [one.vector if one else np.zeros(self.recipe.model.text) for one in told]
        return Text(
            vector=torch.from_numpy(np.stack(vectors).astype("float32")),
            pixel=torch.tensor([one.pixel if one else (0, 0) for one in told]),
            valid=torch.tensor([one.valid if one else support for one, support in zip(told, supports, strict=True)]),
            there=torch.tensor([one is not None for one in told]),
        )


def _nothing(name: str, tile: Tile) -> Frames:
    """A source that the cube does not have: one frame that is not present."""
    bands, meta = len(SOURCES[name].bands), len(SOURCES[name].meta)
    none, zero = torch.tensor(False), torch.tensor(0.0)  # expanded: of 101 bands the zeros alone would take a while
    return Frames(
        zero.expand(1, 1, bands, *tile.shape),
        none.expand(1, 1, *tile.shape),
        none.expand(1, 1, bands),
        zero.expand(1, 1, *tile.shape),
        torch.zeros(1, 1, dtype=torch.int64),
        zero.expand(1, 1, meta),
    )
