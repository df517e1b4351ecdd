"""Which rows of the table make which batch.

It hangs on the seed and the number of the batch alone, and so do not the processes that share it, nor where a run that
was cut off begins again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import shapely

from aefcli.cube import Cube
from aefcli.extent import Period, Tile
from aefcli.recipe import Recipe
from aefcli.sample.ground import Grounds, shared
from aefcli.sample.table import Samples, generator

_BUCKETS = 8  # batches that an epoch must have for like lengths to come together


@dataclass(frozen=True)
class Place:
    """One row of the table."""

    cube: int
    tile: Tile
    support: Period


@dataclass(frozen=True)
class Work:
    """What makes one batch of one process. `key` seeds its rows, counted in the batch of all processes."""

    key: tuple[int, ...]
    first: int
    places: tuple[Place, ...]
    apart: tuple[bool, ...]
    longest: Mapping[str, int]  # frames that each input is padded to, the same in all processes


class Plan:
    """Which rows make which batch: of different sites, in a new order each epoch; each visit takes a site's next row.

    An epoch visits each site once, less those that fill no batch. Where sites are fewer than a batch has rows, an epoch
    is one batch that visits them in turn.
    """

    def __init__(self, samples: Samples, cubes: Sequence[Cube], recipe: Recipe) -> None:
        self.seed, self.batch = recipe.train.seed, recipe.train.batch
        number = {str(cube.path): index for index, cube in enumerate(cubes)}
        self.cube = np.array([number[path] for path in samples.cube])
        self.top, self.left, self.side = samples.top, samples.left, samples.side
        self.start, self.end = samples.start, samples.end
        self.grounds = Grounds(cubes)
        self.lengths = _lengths(self.cube, self.start, self.end, cubes, recipe)
        _, site = np.unique(samples.site, return_inverse=True)
        order = generator(self.seed, 0, 0, 2).permutation(len(site))
        self.rows = order[np.argsort(site[order], kind="stable")]
        self.counts = np.bincount(site)
        self.starts = np.cumsum(self.counts) - self.counts
        self.near = self._near()
        self.epoch, self.order = -1, np.zeros((0, self.batch), int)

    def work(self, number: int, key: tuple[int, ...], rank: int, world: int) -> Work:
        """The batch of that number, counted from 0: the part of it that one of `world` processes reads."""
        rows = self._rows(number)
        grounds = self.grounds.of(self.cube[rows], self._boxes(rows))
        apart = ~shapely.intersects(grounds, np.roll(grounds, 1))
        longest = {name: int(lengths[rows].max()) for name, lengths in self.lengths.items()}
        mine = slice(rank * len(rows) // world, (rank + 1) * len(rows) // world)
        places = tuple(self._place(row) for row in rows[mine])
        return Work(key, mine.start, places, tuple(map(bool, apart[mine])), longest)

    def _place(self, row: int) -> Place:
        top, left, side = int(self.top[row]), int(self.left[row]), int(self.side[row])
        support = Period(int(self.start[row]), int(self.end[row]))
        return Place(int(self.cube[row]), Tile(top, left, top + side, left + side), support)

    def _boxes(self, rows: np.ndarray) -> np.ndarray:
        top, left, side = self.top[rows], self.left[rows], self.side[rows]
        return np.stack([top, left, top + side, left + side], axis=1)

    def _rows(self, number: int) -> np.ndarray:
        epoch, index = divmod(number, max(1, len(self.counts) // self.batch))
        if epoch != self.epoch:
            self.epoch, self.order = epoch, self._drawn(epoch)
        rows: np.ndarray = self.order[index]
        return rows

    def _drawn(self, epoch: int) -> np.ndarray:
        """The rows of an epoch (batches, batch)."""
        rng, sites = generator(self.seed, 0, 0, 3, epoch), len(self.counts)
        order = rng.permutation(sites)
        if sites < self.batch:
            visit = np.arange(self.batch)
            order, again = order[visit % sites], epoch * -(-self.batch // sites) + visit // sites
            return self._visited(order, again)[None]
        rows = self._visited(order, np.full(sites, epoch))
        batches = sites // self.batch
        if batches >= _BUCKETS:
            order, rows = order[: batches * self.batch], rows[: batches * self.batch]  # else it drops the longest ever
            # To a twelfth: how many frames there are is much the same in neighbours, and batches are not of these.
            total = np.sum(list(self.lengths.values()), axis=0)[rows]
            by_length = np.argsort(np.round(8 * np.log2(total)), kind="stable")
            order, rows = order[by_length], rows[by_length]
        rows = rows[self._spread(order)].reshape(batches, self.batch)
        return rows[rng.permutation(batches)]

    def _visited(self, site: np.ndarray, visit: np.ndarray) -> np.ndarray:
        """The row that each visit of a site takes."""
        rows: np.ndarray = self.rows[self.starts[site] + visit % self.counts[site]]
        return rows

    def _spread(self, order: np.ndarray) -> np.ndarray:
        """Places in the order of sites, of whole batches in which no two share ground if that can be."""
        most = len(order) // self.batch * self.batch
        if not self.near:
            return np.arange(most)
        out: list[int] = []
        waiting = deque(range(len(order)))
        while len(out) < most:
            taken: list[int] = []
            left: list[int] = []
            near: set[int] = set()
            while waiting and len(taken) < self.batch:
                one = waiting.popleft()
                if order[one] in near:
                    left.append(one)
                    continue
                taken.append(one)
                near |= self.near.get(int(order[one]), set())
            missing = self.batch - len(taken)
            out += taken + left[:missing]
            waiting.extendleft(reversed(left[missing:]))
        return np.array(out)

    def _near(self) -> dict[int, set[int]]:
        """Sites that share ground with another: only cubes that lie on one another have them."""
        boxes = self._boxes(self.rows)
        hull = [np.minimum.reduceat(boxes[:, axis], self.starts) for axis in (0, 1)]
        hull += [np.maximum.reduceat(boxes[:, axis], self.starts) for axis in (2, 3)]
        ground = self.grounds.of(self.cube[self.rows[self.starts]], np.stack(hull, axis=1))
        found: dict[int, set[int]] = {}
        for one, other in shared(ground, ground).T:
            if one != other:
                found.setdefault(int(one), set()).add(int(other))
        return found


def _lengths(
    cube: np.ndarray, start: np.ndarray, end: np.ndarray, cubes: Sequence[Cube], recipe: Recipe
) -> dict[str, np.ndarray]:
    """How many frames of each input a sample has, per row of the table: 1, not present, where it has none."""
    found = {}
    for name, most in zip(recipe.data.sources, recipe.data.frames, strict=True):
        lengths = np.zeros(len(cube), int)
        for index, one in enumerate(cubes):
            if name in one.sources:
                mine, times = cube == index, one.sources[name].times
                lengths[mine] = np.searchsorted(times, end[mine]) - np.searchsorted(times, start[mine])
        found[name] = np.clip(lengths, 1, most + recipe.loss.targets)
    return found
