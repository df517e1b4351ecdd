"""The seasons: what covers each parcel on each day. Double logistic curves in the thermal time of the place."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from aefcli.simulate.events import FIRE, FLOOD
from aefcli.simulate.kinds import CROPS, FORESTS, table
from aefcli.simulate.land import Site

STRESS = 0.38  # of its cover, what the driest season takes of a parcel without irrigation


@dataclass(frozen=True)
class Canopy:
    """Covers 0..1, each (p, day); `standing` is the structure that radar sees, green or not."""

    green: np.ndarray
    straw: np.ndarray
    flower: np.ndarray
    water: np.ndarray  # stands on the ground, seen or not
    char: np.ndarray
    standing: np.ndarray

    def blend(self, other: Canopy, share: np.ndarray) -> Canopy:
        """This one, and of the other a share (p, day)."""
        pairs = ((getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return Canopy(*(mine + (yours - mine) * share for mine, yours in pairs))

    def put(self, rows: np.ndarray, other: Canopy) -> None:
        """Replace the curves of some parcels."""
        for field in fields(self):
            getattr(self, field.name)[rows] = getattr(other, field.name)


def step(distance: np.ndarray, width: np.ndarray | float) -> np.ndarray:
    """The logistic: 0 long before, a half at 0, 1 long after."""
    return 1 / (1 + np.exp(-np.clip(distance / width, -30, 30)))


def stress(site: Site, season: int) -> float:
    """How dry the growing season was, 0..1."""
    days = site.climate.starts[season] + np.arange(60, 260)
    days = days[(days >= site.climate.origin) & (days < site.climate.origin + len(site.climate.wet))]
    return float(np.clip((0.42 - site.climate.at(site.climate.wet, days).mean()) / 0.25, 0, 1))


@dataclass(frozen=True)
class Plan:
    """When the parcels' season comes and how strong it is, (p, 1) each: the latent state behind every image."""

    kind: np.ndarray  # (p)
    up: np.ndarray
    rise: np.ndarray
    down: np.ndarray
    fall: np.ndarray
    harvest: np.ndarray
    winter: np.ndarray
    peak: np.ndarray
    floor: np.ndarray
    straw: np.ndarray
    flower: np.ndarray
    vigour: np.ndarray
    swamp: np.ndarray
    bite: np.ndarray
    wood: np.ndarray
    shift: np.ndarray


def plan_of(site: Site, season: int, rows: np.ndarray, kind: np.ndarray) -> Plan:
    """The plan of some parcels, were `kind` (p) what grows there."""
    dry = stress(site, season) * np.where(site.irrigated[rows] & (kind < CROPS), 0.15, 1.0)
    dry = np.where(np.isin(kind, FORESTS), 0.25 * dry, dry)
    told = {name: table(name)[kind].astype(float) for name in _FROM_TABLE}
    shift, length = site.shift[season, rows], site.length[season, rows]
    told["up"] += shift
    told["down"] += shift + length - 0.03 * dry
    told["harvest"] += shift + length
    told["floor"] *= site.vigour[season, rows]
    plan = told | {"vigour": site.vigour[season, rows] * (1 - STRESS * dry), "shift": shift}
    return Plan(kind=kind, **{name: value[:, None] for name, value in plan.items()})


_FROM_TABLE = (
    "up", "rise", "down", "fall", "harvest", "winter", "peak", "floor", "straw", "flower", "swamp", "bite", "wood",
)  # fmt: skip


def canopy(plan: Plan, cuts: np.ndarray, heat: np.ndarray, since: np.ndarray, wet: np.ndarray) -> Canopy:
    """Covers of parcels by a plan.

    cuts (p, 6) thermal times; heat, since, wet (day): thermal time, days since the season began, soil moisture.
    """
    kind = plan.kind
    grown = step(heat - plan.up, plan.rise)
    alive = 1 - step(heat - plan.down, plan.fall)
    left = 1 - step(heat - plan.harvest, 0.006)  # a harvest takes days, not weeks
    sown = plan.winter * step(since + 62 - 400 * plan.shift, 9.0)  # emerged two months before
    cover = (sown + (plan.peak - plan.floor - plan.winter) * grown) * alive * left
    again_up, again_down, again = (column[:, None] for column in table("second")[kind].T)
    more = again * step(heat - again_up - plan.shift, 0.02) * (1 - step(heat - again_down - plan.shift, 0.02))
    passed = heat - cuts[..., None]  # (p, cut, day)
    regrow = np.where(passed > 0, np.exp(-np.clip(passed, 0, 9) / 0.055), 0).max(1)
    kept = 1 - plan.bite * regrow
    green = np.clip((plan.floor + (cover + more) * plan.vigour) * kept, 0, 0.97)
    flower = plan.flower * np.exp(-0.5 * ((heat - plan.up - 0.085) / 0.022) ** 2)
    stubble = 0.45 * (1 - left) * np.exp(-np.clip(heat - plan.harvest, 0, None) / 0.09)
    straw = plan.straw * ((1 - alive) * left * (grown > 0.5) + stubble)
    after, until, share = (column[:, None] for column in table("flood")[kind].T)
    water = share * step(heat - after - plan.shift, 0.008) * (1 - step(heat - until - plan.shift, 0.02))
    water = np.maximum(water, plan.swamp * step(wet - 0.55, 0.07))
    harvested = plan.harvest < 5
    upright = np.where(harvested, left, 0.35 + 0.65 * alive) * kept
    rank = np.clip(0.5 * sown + (1 - 0.5 * plan.winter) * grown, 0, 1) * upright + more
    standing = plan.wood + (1 - plan.wood) * np.clip(rank, 0, 1) * plan.vigour * (plan.peak > 0)
    return Canopy(green, np.minimum(straw, 1 - green), np.minimum(flower, green), water, 0 * green, standing)


def canopy_on(site: Site, days: np.ndarray) -> Canopy:
    """All parcels of a site on some days (p, day), events and all."""
    days = np.asarray(days)
    found = _grown(site, days, np.arange(site.soil.size), site.grown)
    events = site.events
    if len(rows := events.switched):
        old, new = (
            _grown(site, days, rows, np.tile(kind[rows], (len(site.grown), 1))) for kind in (events.old, events.new)
        )
        found.put(rows, old.blend(new, events.done(days)[rows]))
    if not (events.what > 0).any():
        return found
    burnt, drowned, kept = events.trace(FIRE, days), events.trace(FLOOD, days), events.kept(days)
    lost = (1 - 0.75 * burnt) * (1 - 0.45 * drowned) * (0.35 + 0.65 * kept)
    return Canopy(
        green=found.green * lost,
        straw=np.clip(found.straw * (1 - burnt) + 0.3 * found.green * (1 - kept), 0, 1),
        flower=found.flower * lost,
        water=np.maximum(found.water, 0.85 * drowned),
        char=0.6 * burnt,
        standing=found.standing * kept * (1 - 0.35 * burnt) * (1 - 0.3 * drowned),
    )


def _grown(site: Site, days: np.ndarray, rows: np.ndarray, kinds: np.ndarray) -> Canopy:
    """Parcels of `kinds` (season, p); late in a season, what was sown for the next shows beside the old."""
    seasons = site.climate.season_of(days)
    parts, order = [], np.argsort(seasons, kind="stable")
    for season in np.unique(seasons).tolist():
        when = days[seasons == season]
        now = _season(site, season, when, rows, kinds[season])
        late = when - site.climate.starts[season] >= 250
        if late.any():
            sown = _season(site, season + 1, when, rows, kinds[season + 1])
            field = (kinds[season] < CROPS)[:, None] & late
            green = np.where(field, np.maximum(now.green, sown.green), now.green)
            standing = np.where(field, np.maximum(now.standing, sown.standing), now.standing)
            now = replace(now, green=green, straw=np.minimum(now.straw, 1 - green), standing=standing)
        parts.append(now)
    whole = ([getattr(part, field.name) for part in parts] for field in fields(Canopy))
    return Canopy(*(np.concatenate(pieces, 1)[:, np.argsort(order)] for pieces in whole))


def _season(site: Site, season: int, days: np.ndarray, rows: np.ndarray, kind: np.ndarray) -> Canopy:
    climate = site.climate
    plan = plan_of(site, season, rows, kind)
    heat, since = climate.thermal(season, days), days - climate.starts[season]
    return canopy(plan, site.cuts[season, rows], heat, since, climate.at(climate.wet, days))
