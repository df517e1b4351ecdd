"""How the points may be split: strata, groups, and the draw of a training set and its test set.

A stratum is a class, or a bin of values where the labels are measurements. A group is a site or a block of
ground that lies on one side of a split as a whole. So does a pixel: points of one pixel have the same features, and to
learn from the one would be to know the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aefcli.errors import BadInput
from aefcli.probe.labels import Labels, check_several

BLOCK = 1280.0  # metres: how far apart the paper's points lie
PIXEL = 10.0  # metres

TRAIN_SHARE = 0.6  # of the points, in splits of ours

_MAX_SHOTS = 300
_BINS = 10
_TRIES = 1000  # shuffles of the groups before a split is given up
_PATIENCE = 50  # shuffles after which `max` takes the best split seen
_METRES_PER_DEGREE = math.radians(6_371_008.8)


@dataclass(frozen=True, eq=False)
class Plan:
    """How the points may be split.

    how      "given" (group 0 is the training pool, group 1 the test set), "site" or "block"
    group    int64 (n,), 0 .. groups - 1
    stratum  int64 (n,), 0 .. strata - 1
    names    of the strata
    held     int64 (groups, strata), points
    sharing  points that share their pixel with another
    """

    how: str
    group: np.ndarray
    stratum: np.ndarray
    names: tuple[str, ...]
    held: np.ndarray
    sharing: int = 0

    @property
    def sizes(self) -> np.ndarray:
        return self.held.sum(axis=0)

    @property
    def trains(self) -> np.ndarray:
        """Points of each stratum that a training set can have at most."""
        return self.held[0] if self.how == "given" else self.sizes - 1

    def target(self, labels: Labels) -> np.ndarray:
        """What probes are taught, (n,): the stratum of a class, or the value."""
        return self.stratum if labels.kind == "class" else labels.value

    def width(self, shots: int | str) -> int:
        """Training points per stratum asked for: at `max` 300, and at most 60% of the smallest stratum.

        60% leave every stratum some points to test on; a given split has its test set, and lends all it has.
        """
        if shots != "max":
            return int(shots)
        if self.how == "given":
            return max(1, min(_MAX_SHOTS, int(self.trains.min())))
        # In whole numbers: 0.6 * 5 is 3.0000000000000004 or 2.9999999999999996 by the weather
        return max(1, min(_MAX_SHOTS, int(self.sizes.min()) * 6 // 10))

    def folds(self, shots: int | str, limit: int | None) -> int:
        """Folds of a trial. At `max` one fold is enough where a bootstrap of the test set tells the spread."""
        sizes = self.sizes
        alone = shots == "max" and (sizes.min() >= 200 or (len(sizes) > 1 and sizes.min() == sizes.max()))
        count = 1 if alone else folds(int(sizes.min()))
        return count if limit is None else min(count, limit)

    def check(self, shots: int | str) -> None:
        """Refuse a number of shots that no split can serve."""
        given, least = self.how == "given", int(self.trains.argmin())
        most = int(self.trains[least])
        if most >= (1 if shots == "max" else int(shots)):
            return
        possible = f"at most {most} shots are possible" if most else "there is nothing to learn it from"
        count = most if given else most + 1
        points = f"{count} point{'s' * (count != 1)}"
        where = " in the train split" if given else " and one has to stay in the test set"
        raise BadInput(
            f"{shots} shots: {self.names[least]!r} has {points}{where}; {possible}",
            "ask for fewer shots, add points, or leave it out",
        )

    def draw(self, shots: int | str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers of one training set, balanced over the strata, and of its whole test set."""
        pool = self.group == 0 if self.how == "given" else np.isin(self.group, self._training(shots, rng))
        order = rng.permutation(np.flatnonzero(pool))
        rows = [order[self.stratum[order] == stratum] for stratum in range(len(self.names))]
        width = min(self.width(shots), *(len(row) for row in rows))
        return np.sort(np.concatenate([row[:width] for row in rows])), np.flatnonzero(~pool)

    def _training(self, shots: int | str, rng: np.random.Generator) -> np.ndarray:
        """Groups of the training pool: the first shuffle that leaves every stratum enough points on both sides.

        To take the best of many would choose the split by its labels. At `max` half of what is asked for is enough:
        to insist on all of it would hand every split to the rarest class.
        """
        floor, enough = (1, -(-self.width(shots) // 2)) if shots == "max" else (int(shots), int(shots))
        best, chosen, short = 0, np.empty(0, np.int64), np.zeros(len(self.names), np.int64)
        for attempt in range(1, _TRIES + 1):
            groups = self._shuffled(rng)
            inside = self.held[groups].sum(axis=0)
            lacking = (inside < floor) | (inside == self.sizes)
            short += lacking
            if not lacking.any() and inside.min() > best:
                best, chosen = int(inside.min()), groups
            if best >= (enough if attempt < _PATIENCE else floor):
                return chosen
        raise self._impossible(int(short.argmax()), floor)

    def _shuffled(self, rng: np.random.Generator) -> np.ndarray:
        """Some groups in random order: as many as come nearest to 60% of the points, never all of them."""
        order = rng.permutation(len(self.held))
        filled = self.held.sum(axis=1)[order].cumsum()
        return order[: 1 + int(np.abs(filled[:-1] - TRAIN_SHARE * filled[-1]).argmin())]

    def _impossible(self, stratum: int, shots: int) -> BadInput:
        name, where = self.names[stratum], int((self.held[:, stratum] > 0).sum())
        return BadInput(
            f"no split leaves {name!r} {shots} point{'s' * (shots != 1)} to train on and one to test: its "
            f"{self.sizes[stratum]} points lie in {where} of {len(self.held)} {self.how}s",
            f"add points of {name!r} in other {self.how}s, ask for fewer shots, or leave it out",
        )


def plan_split(labels: Labels, block: float, place: np.ndarray | None = None) -> Plan:
    """Strata and groups of the labels; blocks of `block` metres where they have neither a split nor a site.

    `place` (n,) numbers the pixel of each point; without it, cells of 10 m on the ground stand for pixels.
    """
    stratum, names = _strata(labels)
    pixel = _pixels(labels, place)
    how, group = _groups(labels, block, pixel)
    held = np.zeros((int(group.max()) + 1, len(names)), np.int64)
    np.add.at(held, (group, stratum), 1)
    shared = np.bincount(pixel)
    return Plan(how, group, stratum, names, held, int(shared[shared > 1].sum()))


def possible(
    labels: Labels, shots: Sequence[int | str], block: float = BLOCK, place: np.ndarray | None = None
) -> list[int | str]:
    """Those of some numbers of shots that every stratum surely has the points for.

    In splits of ours that is half of its points: a stratum that lies in few groups seldom lends more to the pool.
    """
    plan = plan_split(labels, block, place)
    most = int(plan.trains.min() if plan.how == "given" else plan.sizes.min() // 2)
    return [level for level in shots if level == "max" or int(level) <= most]


def folds(smallest: int) -> int:
    """Folds of a trial whose smallest class has this many points: 1 -> 1000, 10 -> 500, 75 -> 273 (S4)."""
    return round(1000 / 2 ** math.log10(smallest))


# --- strata ---------------------------------------------------------------------------------------------------


def _strata(labels: Labels) -> tuple[np.ndarray, tuple[str, ...]]:
    """Stratum of each point, int64 (n,), and the names; a class without points is none."""
    found, stratum = np.unique(labels.value, return_inverse=True)
    if labels.kind == "value":
        check_several(found, len(labels), "values")
        return bins(labels.value)
    names = tuple(labels.names[code] for code in found)
    check_several(names, len(labels), "classes")
    return stratum.astype(np.int64), names


def bins(value: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Ten equally spaced bins between the least and the largest value; the empty are left out.

    Our choice: a bin thinner than 20 points and 2% of all joins the nearer of its neighbours, of equally near ones
    the smaller. One outlier alone in the last bin would otherwise be the smallest class, and `max` would mean one
    point per bin.
    """
    edges = np.linspace(value.min(), value.max(), _BINS + 1)
    fine = np.digitize(value, edges[1:-1])
    count = np.bincount(fine, minlength=_BINS)
    spans = [(at, at + 1, int(count[at])) for at in range(_BINS) if count[at]]  # first bin, last + 1, points
    thin = max(20, len(value) // 50)
    while len(spans) > 1 and min(span[2] for span in spans) < thin:
        at = min(range(len(spans)), key=lambda index: spans[index][2])
        # Joins are named by their lower half: (empty bins between, points of the neighbour, lower half)
        below = [(spans[at][0] - spans[at - 1][1], spans[at - 1][2], at - 1)] if at else []
        above = [(spans[at + 1][0] - spans[at][1], spans[at + 1][2], at)] if at + 1 < len(spans) else []
        low = min(below + above)[2]
        (first, _, left), (_, last, right) = spans[low], spans[low + 1]
        spans[low : low + 2] = [(first, last, left + right)]
    stratum = np.digitize(fine, [first for first, _, _ in spans[1:]])
    return stratum, tuple(f"{edges[first]:g}..{edges[last]:g}" for first, last, _ in spans)


# --- groups ---------------------------------------------------------------------------------------------------


def _pixels(labels: Labels, place: np.ndarray | None) -> np.ndarray:
    """The pixel of each point, int64 (n,), numbered from 0."""
    if place is None:
        return blocks(labels.lon, labels.lat, PIXEL)
    assert place.shape == (len(labels),), f"{place.shape} places for {len(labels)} labels"
    return np.unique(place, return_inverse=True)[1].reshape(-1)


def _groups(labels: Labels, block: float, pixel: np.ndarray) -> tuple[str, np.ndarray]:
    """How to split, and the group of each point, int64 (n,)."""
    if labels.split is not None:
        return "given", _given(labels, labels.split == "test", pixel)
    if labels.site is not None:
        how, where = "site", "site"
        group = _joined(np.unique(labels.site, return_inverse=True)[1].reshape(-1), pixel)
        hint = "remove the column 'site' to split by blocks of ground, or add a column 'split'"
    else:
        how, where = "block", f"block of {block:g} m"
        # A pixel on the border of two blocks goes with its first point
        group = np.unique(blocks(labels.lon, labels.lat, block)[_first(pixel)], return_inverse=True)[1].reshape(-1)
        hint = "add points farther apart, ask for smaller blocks, or add a column 'site' or 'split'"
    if group.max() == 0:
        raise BadInput(f"all {len(labels)} points lie in one {where}: none is left to test on", hint)
    return how, group


def _first(pixel: np.ndarray) -> np.ndarray:
    """The first row of each row's pixel, int64 (n,)."""
    _, first, which = np.unique(pixel, return_index=True, return_inverse=True)
    return first[which.reshape(-1)]


def _joined(site: np.ndarray, pixel: np.ndarray) -> np.ndarray:
    """The group of each point where sites that share a pixel are one, int64 (n,)."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = int(site.max()) + 1
    links = coo_array((np.ones(len(site)), (site, site[_first(pixel)])), shape=(count, count))
    return connected_components(links, directed=False)[1][site].astype(np.int64)


def _given(labels: Labels, test: np.ndarray, pixel: np.ndarray) -> np.ndarray:
    """0 for train, 1 for test; a pixel that both have is refused."""
    if test.all() or not test.any():
        side = "test" if test.all() else "train"
        raise BadInput(f"all {len(labels)} points are in the {side} split", "mark both train and test")
    shared = np.intersect1d(pixel[test], pixel[~test])
    if len(shared):
        row = int(np.flatnonzero(np.isin(pixel, shared))[0])
        raise BadInput(
            f"the train and test splits share {len(shared)} pixel{'s' * (len(shared) != 1)}, the first at "
            f"{labels.lon[row]:.6f}, {labels.lat[row]:.6f}",
            "keep every pixel on one side, or remove the column 'split'",
        )
    return test.astype(np.int64)


def blocks(lon: np.ndarray, lat: np.ndarray, size: float) -> np.ndarray:
    """The block of each point, int64 (n,), numbered from 0; blocks are `size` metres high and wide, on a sphere.

    Rows of latitude, each cut along its middle parallel: a block keeps its size from the equator to the poles,
    where one projection for all points would not.
    """
    if not size > 0:
        raise BadInput(f"blocks of {size:g} m", "give a size above 0")
    row = np.floor((lat + 90) * _METRES_PER_DEGREE / size)
    middle = np.radians(np.clip((row + 0.5) * size / _METRES_PER_DEGREE - 90, -90, 90))
    column = np.floor((lon + 180) * _METRES_PER_DEGREE * np.cos(middle) / size)
    return _number_rows(np.column_stack([row, column]))


def _number_rows(cells: np.ndarray) -> np.ndarray:
    """Distinct rows of whole numbers, numbered from 0: int64 (n,)."""
    return np.unique(cells.astype(np.int64), axis=0, return_inverse=True)[1].reshape(-1)
