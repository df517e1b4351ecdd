"""The samples of a batch, read from cubes and joined."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from aefcli.batch import Batch, Frames, Text, join, make_batch
from aefcli.cube import Cube
from aefcli.extent import Tile
from aefcli.recipe import Recipe
from aefcli.sample.memory import Cubes
from aefcli.sample.plan import Place, Work
from aefcli.sample.window import in_period, window
from aefcli.sources import SOURCES
from aefcli.text import Drawn, Placed, Texts, on
from aefcli.text import draw as draw_text


class Reader:
    """Batches of what a plan asks for. Reads nothing before it is asked; can be sent to another process."""

    def __init__(self, cubes: Cubes, recipe: Recipe, texts: Texts | None) -> None:
        self.cubes, self.recipe = cubes, recipe
        told = texts is not None and "text" in recipe.data.targets
        self.placed = [on(texts, cube) for cube in cubes] if told and texts is not None else []

    def __call__(self, work: Work) -> Batch:
        samples = [
            self._sample(place, np.random.default_rng([self.recipe.train.seed, *work.key, work.first + row]))
            for row, place in enumerate(work.places)
        ]
        return replace(join(samples, work.longest), apart=torch.tensor(work.apart))

    def _sample(self, place: Place, rng: np.random.Generator) -> Batch:
        """A batch of one."""
        cube, data, loss = self.cubes[place.cube], self.recipe.data, self.recipe.loss
        inputs = {
            name: self._input(cube, name, most + loss.targets, place, rng)
            for name, most in zip(data.sources, data.frames, strict=True)
        }
        alone = {name: self._alone(cube, name, place, rng) for name in data.targets if SOURCES[name].kind != "text"}
        support = torch.tensor([[place.support.start, place.support.end]])
        text = self._text(self.placed[place.cube], place, rng) if self.placed else None
        draws = torch.Generator().manual_seed(int(rng.integers(2**62)))
        batch = make_batch(inputs, alone, support, loss.whole_support, draws, loss.targets)
        return replace(batch, text=text, gsd=cube.grid.resolution.x)

    def _input(self, cube: Cube, name: str, most: int, place: Place, rng: np.random.Generator) -> Frames:
        """At most so many frames of an input, at random; one that is not present where there is none."""
        frames = in_period(cube.sources[name], place.support) if name in cube.sources else np.array([], dtype=int)
        if not len(frames):
            return _nothing(name, place.tile)
        return window(cube, name, place.tile, np.sort(rng.permutation(frames)[:most]), self.recipe.statistics)

    def _alone(self, cube: Cube, name: str, place: Place, rng: np.random.Generator) -> Frames:
        """One frame of a source that is no input, of those in the support, clear somewhere if there are any.

        A static source gives the frame nearest to the middle of the support, at a random instant of it: any would be
        true.
        """
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

    def _text(self, placed: Placed, place: Place, rng: np.random.Generator) -> Text:
        """A text of the place; where there is none, its period is the support and the rest is 0."""
        drawn: Drawn | None = draw_text(placed, place.tile, place.support, rng)
        vector = drawn.vector if drawn else np.zeros(self.recipe.model.text)
        return Text(
            vector=torch.from_numpy(vector.astype("float32"))[None],
            pixel=torch.tensor([drawn.pixel if drawn else (0, 0)]),
            valid=torch.tensor([drawn.valid if drawn else (place.support.start, place.support.end)]),
            there=torch.tensor([drawn is not None]),
        )


def _nothing(name: str, tile: Tile) -> Frames:
    """A source that the cube does not have: one frame that is not present."""
    bands, meta = len(SOURCES[name].bands), len(SOURCES[name].meta)
    return Frames(
        torch.zeros(1, 1, bands, *tile.shape),
        torch.zeros(1, 1, *tile.shape, dtype=torch.bool),
        torch.zeros(1, 1, bands, dtype=torch.bool),
        torch.zeros(1, 1, *tile.shape),
        torch.zeros(1, 1, dtype=torch.int64),
        torch.zeros(1, 1, meta),
    )
