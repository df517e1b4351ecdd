"""The state behind a year's images, without noise: what a perfect observer would know. For judging only."""

from __future__ import annotations

import numpy as np

from aefcli.simulate.kinds import table
from aefcli.simulate.land import Site, heights
from aefcli.simulate.season import plan_of


def latents(site: Site, year: int) -> np.ndarray:
    """Float32 (latent, p), each in units of about its own spread; `year` counts from 0.

    The parcel's own season (when it greens, fades, is cut and harvested, how dense, flooded, flowering), structure,
    tone and ground. Knows no class by name.
    """
    kind, every = site.kind[year], np.arange(site.soil.size)
    plan = plan_of(site, year, every, kind)
    cut = np.isfinite(site.cuts[year]).sum(1) * table("bite")[kind]
    curve = [
        *(30 * np.minimum(getattr(plan, name), 1.2)[:, 0] for name in ("up", "down")),
        20 * np.minimum(plan.harvest, 1.2)[:, 0],
        *(8 * getattr(plan, name)[:, 0] for name in ("winter", "peak", "floor", "straw", "flower", "swamp")),
        *(6 * np.minimum(column, 1.0) for name in ("second", "flood") for column in table(name)[kind].T),
        3 * cut,
        2 * plan.vigour[:, 0],
    ]
    volume, stems = table("volume")[kind].T, site.stems[year]
    structure = [
        60 * volume[0] * stems,
        200 * volume[1] * stems,
        200 * table("bounce")[kind].clip(0, 0.05) * site.bounce[year],
        *(5 * table(name)[kind] for name in ("depth", "wood")),
        0.2 * heights(site, year),
    ]
    tone = (30 * table("leaf")[kind] * site.leafy[year]).T
    ground = 20 * table("ground")[kind].T
    wet = np.full(kind.size, site.climate.wet.mean())
    return np.stack([*curve, *structure, *tone, *ground, site.soil, wet]).astype(np.float32)
