"""Where in the network what its inputs tell is lost: `python -m bench.layers [RUN ...] [--json] [--quick]`.

At layer after layer, how much a linear probe tells of the seasonal medians and the first three annual harmonics of
Sentinel-2: `r2/composite` and `r2/harmonics` of `aefcli.watch`, taught at every other site of a made-up world and
tested at the rest, at the same pixels for all. RUN is a finished run, `nano`, or `untrained`: the shipped network with
random weights (default: untrained nano).

    bands      the clear pixels' values in each twelfth of the support, all inputs: what the others are held to
    stem       what the stems make of these pixels, in the same twelfths: with the next, the summariser's inputs
    encoder    what the STP encoder makes of their 2x2 cells, likewise
    detail     the stems' output as the summariser's heads pool it, by weights of its own
    features   the encoder's, likewise
    projected  the embedding before the mean of neighbours
    embedding  as the network gives it
    sample     drawn around it by the bottleneck
    stored     as int8 codes

The first three know what is clear; the network guesses it. R2 below 0 is worse than the mean. `-`: there are
more numbers than half of the pixels that the probe has to learn from.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from aefcli import checkpoint, field, sample, watch
from aefcli.batch import Batch
from aefcli.checkpoint import SHIPPED
from aefcli.cube import Cube, cube_of
from aefcli.model import Encoded, Model, sample_vmf
from aefcli.recipe import Recipe
from aefcli.simulate import imagine
from aefcli.sources import INPUTS
from bench.measure import Result

SEED = 4003  # of a world that nothing else uses
FRAMES = 96  # of a source, about all that a year has
PATCH, BATCH = 16, 16  # px; windows at once
MONTHS = 12  # parts of the support
UNTRAINED = "untrained"
PROBES = ("r2/composite", "r2/harmonics")


@dataclass(frozen=True)
class World:
    sites: int = 64
    size: int = 64  # px


QUICK = World(sites=4, size=32)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("runs", nargs="*", metavar="RUN", default=[UNTRAINED, SHIPPED.name], help="(untrained nano)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--quick", action="store_true", help="a small world: only to see it run")
    chosen = parser.parse_args()
    result = run(chosen.runs, QUICK if chosen.quick else World())
    (result if chosen.json else replace(result, notes={})).show(chosen.json)


def run(names: Sequence[str], world: World) -> Result:
    land = imagine(SEED, sites=world.sites, size=world.size, years=(2023, 2023))
    cube = cube_of({name: data for name, data in land.datasets.items() if name in INPUTS}, land.period)
    told = {name: probed(*network(name), cube, world) for name in names}
    layers = list(dict.fromkeys(layer for found in told.values() for layer in found))
    rows = [(layer, *(_pair(found[layer]) for found in told.values()), "") for layer in layers]
    title = f"R2 of composites / harmonics, {world.sites} sites of {world.size} px, seed {SEED}"
    return Result("layers", title, list(told), rows, {}, {}, {"r2": told})


def _pair(told: Mapping[str, float]) -> str:
    return " / ".join(f"{told[name]:.3f}" for name in PROBES if name in told) or "-"


def network(name: str) -> tuple[Model, Recipe]:
    if name == UNTRAINED:
        return checkpoint.build(SHIPPED.recipe).eval(), SHIPPED.recipe
    known = SHIPPED if name == SHIPPED.name else checkpoint.open_run(Path(name))
    return checkpoint.load(known), known.recipe


@torch.no_grad()
def probed(model: Model, recipe: Recipe, cube: Cube, world: World) -> dict[str, dict[str, float]]:
    """Layer -> what the probes tell of it."""
    seen = windows(cube, recipe, world)
    noise = torch.Generator().manual_seed(0)
    parts = [layers(model, batch, recipe.model.kappa, noise) for batch in seen]
    return {name: watch.probes(seen, np.concatenate([part[name] for part in parts])) for name in parts[0]}


def windows(cube: Cube, recipe: Recipe, world: World) -> Sequence[Batch]:
    """One window of each site, with all frames of its support; the same for any recipe of these sources."""
    one = {"patch": PATCH, "windows": 1, "site": world.size}
    plan = recipe.replace(
        data={"frames": [FRAMES] * len(recipe.data.sources), "targets": [], **one},
        model={"text": 0},
        train={"batch": min(BATCH, world.sites), "accumulate": 1, "seed": 0},
    )
    table = sample.draw([cube], plan)
    table = replace(table, split=np.full(len(table), "validation"))
    return sample.validation([cube], table, plan, len(table) // plan.train.batch)


def layers(model: Model, batch: Batch, kappa: float, noise: torch.Generator) -> dict[str, np.ndarray]:
    """Layer -> what it has of each pixel (b, h, w, d); NaN where no frame showed anything."""
    encoded, valid = model.encode(batch.inputs), batch.support[:, None]
    with heard(model.summariser.neighbours) as projected:
        embedding = model.summarise(encoded, valid)[:, 0].movedim(1, -1)
    found = {
        **by_month(model, encoded, batch),
        **pooled(model, encoded, valid),
        **({"projected": torch.cat(projected).movedim(1, -1)} if projected else {}),
        "embedding": embedding,
        "sample": sample_vmf(embedding.flatten(1, 2), kappa, noise).view_as(embedding),
        "stored": torch.from_numpy(field.dequantise(field.quantise(embedding.numpy()))),
    }
    return {name: torch.where(encoded.seen[..., None], values, torch.nan).numpy() for name, values in found.items()}


@contextmanager
def heard(module: nn.Module | None) -> Iterator[list[Tensor]]:
    """What a module is given meanwhile."""
    given: list[Tensor] = []
    if module is None:
        yield given
        return
    handle = module.register_forward_pre_hook(lambda _, arguments: given.append(arguments[0]))
    try:
        yield given
    finally:
        handle.remove()


def by_month(model: Model, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
    """Bands, stem and encoder: means over the clear frames of each twelfth of the support, 0 where it has none."""
    found: dict[str, list[Tensor]] = {"bands": [], "stem": [], "encoder": []}
    start, end = batch.support.unbind(1)
    for kind, name in enumerate(model.sources):
        frames, part = batch.inputs[name], encoded.of(kind)
        at = frames.present.flatten(2).any(-1).nonzero(as_tuple=True)  # the order in which they were packed
        assert torch.equal(frames.time[at], part.layout.time), "frames and what became of them"
        site, weight = part.layout.site, (frames.weight[at] * frames.present[at])[..., None]
        month = ((part.layout.time - start[site]) * MONTHS // (end - start)[site]).clamp(0, MONTHS - 1)
        detail = part.detail.unflatten(1, (2, 2, -1)).permute(0, 4, 1, 5, 2, 3).flatten(3, 4).flatten(1, 2)
        cells = part.features.movedim(1, -1).repeat_interleave(2, 1).repeat_interleave(2, 2)
        for layer, values in (("bands", frames.pixels[at].movedim(1, -1)), ("stem", detail), ("encoder", cells)):
            shape = (len(batch.support) * MONTHS, *values.shape[1:])
            sums = values.new_zeros(shape).index_add_(0, site * MONTHS + month, values * weight)
            count = values.new_zeros(*shape[:-1], 1).index_add_(0, site * MONTHS + month, weight.to(values.dtype))
            mean = (sums / count.clamp(min=1e-6)).unflatten(0, (-1, MONTHS))
            found[layer].append(mean.movedim(1, -2).flatten(-2))
    return {layer: torch.cat(parts, dim=-1) for layer, parts in found.items()}


def pooled(model: Model, encoded: Encoded, valid: Tensor) -> dict[str, Float[Tensor, "b h w d"]]:
    """Of all sources, what the summariser's heads pool: pixels' detail and cells' features."""
    b, h, w = encoded.seen.shape
    details, features = [], []
    for kind, pool in enumerate(model.summariser.pools.values()):
        shown = encoded.of(kind)
        asked = pool.asked(shown, pool.cells(shown), valid)
        weights = pool.weigh(asked)
        detail = torch.stack([pool.pooled(weights, pixel) for pixel in pool.shown(weights, asked)])
        cells = detail.view(2, 2, b, h // 2, w // 2, -1).permute(2, 3, 0, 4, 1, 5)
        details.append(cells.reshape(b, h, w, -1))
        wide = (weights.transpose(1, 2) @ pool.features(asked)).reshape(b, h // 2, w // 2, -1)
        features.append(wide.repeat_interleave(2, 1).repeat_interleave(2, 2))
    return {"detail": torch.cat(details, dim=-1), "features": torch.cat(features, dim=-1)}


if __name__ == "__main__":
    main()
