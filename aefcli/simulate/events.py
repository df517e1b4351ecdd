"""What happens to parcels: things that change what a place is, and things that do not.

Owns which parcels meet with what, when, and how quickly. Rotation and dry years are no events: they come by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aefcli.simulate.kinds import CODE, CROPS, FORESTS, GRASSES, GROUP, GROUPS, TOWN

NONE, CLEARCUT, THINNING, BUILDING, CONVERSION, FIRE, FLOOD = range(7)
NAMES = ("none", "clear-cut", "thinning", "construction", "conversion", "fire", "flood")
CHANGES = (CLEARCUT, THINNING, BUILDING, CONVERSION)
THINNED = "thinned forest"  # what the label of change tables says of it; its class stays
_SHARE = 0.30  # of parcels, where there are years to compare
_DAYS = np.array([1.0, 6.0, 45.0, 130.0, 40.0, 3.0, 5.0])  # how long each takes
_STAY = {FIRE: 110.0, FLOOD: 14.0}  # days after which a third of the trace is left


@dataclass(frozen=True)
class Events:
    """At most one per parcel."""

    what: np.ndarray  # (p) one of the numbers above
    year: np.ndarray  # (p) the first year after it, 0: none
    day: np.ndarray  # (p) its middle
    force: np.ndarray  # (p) 0..1
    old: np.ndarray  # (p) kinds before and after
    new: np.ndarray

    @property
    def switched(self) -> np.ndarray:
        """Parcels whose kind an event changes."""
        return np.flatnonzero(self.old != self.new)

    def applied(self, kind: np.ndarray) -> np.ndarray:
        """Kinds (year, p) as events leave them."""
        after = np.arange(len(kind))[:, None] >= self.year
        return np.where(self.old != self.new, np.where(after, self.new, self.old), kind)

    def done(self, days: np.ndarray) -> np.ndarray:
        """How far each event has come by some days, 0..1 (p, day)."""
        rate = (np.asarray(days) - self.day[:, None]) / (_DAYS[self.what][:, None] / 4)
        return np.where((self.what > 0)[:, None], 1 / (1 + np.exp(-np.clip(rate, -30, 30))), 0.0)

    def trace(self, what: int, days: np.ndarray) -> np.ndarray:
        """What a fire or a flood has left by some days, 0..1 (p, day)."""
        since = np.maximum(np.asarray(days) - self.day[:, None], 0)
        return (self.what == what)[:, None] * self.done(days) * self.force[:, None] * np.exp(-since / _STAY[what])

    def kept(self, days: np.ndarray) -> np.ndarray:
        """The share of stems that thinning leaves, (p, day)."""
        return 1 - (self.what == THINNING)[:, None] * self.done(days) * (0.25 + 0.35 * self.force[:, None])

    def groups(self, kind: np.ndarray, year: int) -> np.ndarray:
        """What change tables call each parcel in a year, (p): the group of its kind, or one more once it is thinned."""
        thinned = (self.what == THINNING) & (self.year <= year)
        return np.where(thinned, len(GROUPS), GROUP[kind[year]])

    def left(self, year: int) -> np.ndarray:
        """The share of stems in a year, (p)."""
        return 1 - ((self.what == THINNING) & (self.year <= year)) * (0.25 + 0.35 * self.force)


def draw_events(rng: np.random.Generator, grown: np.ndarray, days: np.ndarray) -> Events:
    """Draw what meets each parcel; `days`: the first of each year of the world and of the next."""
    years, kind = len(days) - 1, grown[0]
    many = kind.size
    lucky, choice, force = rng.random(many), rng.random(many), rng.random(many)
    year = 1 + (rng.random(many) * max(years - 1, 1)).astype(int)
    when, onto = rng.uniform(-110, 70, many), rng.random(many)
    what, new = np.zeros(many, int), kind.copy()
    if years > 1:
        forest, grass, crop = np.isin(kind, FORESTS), np.isin(kind, GRASSES), kind < CROPS
        open_trees = np.isin(kind, [CODE["orchard"], CODE["savanna"]])
        for where, kinds in (
            (forest, (CLEARCUT, THINNING, THINNING, FIRE)),
            (grass, (BUILDING, CONVERSION, FIRE, FLOOD)),
            (crop, (BUILDING, CONVERSION, FLOOD, FLOOD)),
            (open_trees, (CONVERSION, FIRE)),
        ):
            picked = np.array(kinds)[(choice * len(kinds)).astype(int)]
            what = np.where(where & (lucky < _SHARE), picked, what)
        crops = np.unique(grown[grown < CROPS])
        crops = crops if crops.size else np.arange(CROPS)
        field = crops[(onto * crops.size).astype(int)]
        other = np.array([CODE["orchard"], CODE["meadow"]])[(onto * 2).astype(int)]
        new = np.where(what == CLEARCUT, CODE["grassland"], new)
        new = np.where(what == BUILDING, TOWN, new)
        new = np.where(what == CONVERSION, np.where(crop, other, field), new)
    year = np.where(what > 0, year, 0)
    return Events(
        what=what,
        year=year,
        day=days[year] + when,
        force=force,
        old=kind,
        new=new,
    )
