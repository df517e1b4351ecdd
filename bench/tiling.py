"""Trimmed or blended overlaps: `python -m bench.tiling [--json] [--quick]`.

A made-up site is laid over with patches twice, the second time half a step further, and the vectors of each pixel are
compared. Trimmed, each patch gives the pixels within its halo, as `aef embed` does; blended, the halo counts too, by
weights that fall to nothing at the patch's edge, and vectors are brought to unit length again. The model is the `nano`
of the package; `untrained` the network of `small`, whose attention across the patch has nothing learned.

    apart     mean degrees between the two tilings; 99 in 100 pixels are below the second figure
    cost      pixels encoded per pixel written, in the middle of a large field
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

from aefcli import checkpoint, embed, recipe
from aefcli.cube import Cube, Request, fetch, open_cube
from aefcli.embed import network
from aefcli.extent import BBox, Period, Tile
from aefcli.recipe import Recipe
from aefcli.simulate import simulate
from bench import measure
from bench.embed import made_up
from bench.measure import Result

YEAR = Period.parse("2023")
CPU = torch.device("cpu")
LAID = {"nano": [(80, 4), (80, 8), (80, 16)], "untrained": [(128, 8), (128, 16)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--quick", action="store_true", help="a small cube of noise, nano alone: only to see it run")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), chosen.quick).show(chosen.json)


def run(folder: Path, quick: bool) -> Result:
    cube = made_up(folder / "cube.zarr", 64) if quick else site(folder, 192)
    rows, ratios = [], {}
    plans = {"nano": checkpoint.SHIPPED.recipe, "untrained": with_statistics(recipe.load("small"))}
    for name, laid in LAID.items():
        if quick and name != "nano":
            continue
        plan = plans[name]
        model = checkpoint.load(checkpoint.SHIPPED) if name == "nano" else measure.stirred(plan)
        for patch, halo in laid[:1] if quick else laid:
            net = network.Network(model, plan.replace(embed={"patch": patch, "halo": halo}), CPU)
            found = compared(net, cube, patch, halo)
            step = patch - 2 * halo
            for way, angle in found.items():
                share = f"{angle.mean():.3f}", f"{np.percentile(angle, 99):.2f}"
                rows.append((f"{name}, {patch} px, halo {halo}, {way}", *share, f"{(patch / step) ** 2:.2f}", ""))
            ratios[f"{name} {patch}/{halo}, blended over trimmed"] = float(
                found["blended"].mean() / found["trimmed"].mean()
            )
    columns = ("degrees apart", "99% below", "cost")
    return Result("tiling", f"a site of {cube.shape[0]} px", columns, rows, ratios, {}, {})


def site(folder: Path, side: int) -> Cube:
    world = simulate(folder / "world", seed=5, sites=1, size=side)
    return open_cube(fetch(Request(str(world.catalog), BBox(*world.bbox), YEAR), folder / "cube.zarr").path)


def with_statistics(plan: Recipe) -> Recipe:
    """The recipe with the statistics of the shipped one: where a source is measured alike, its numbers are alike."""
    return plan.model_copy(update={"statistics": checkpoint.SHIPPED.recipe.statistics})


def compared(net: network.Network, cube: Cube, patch: int, halo: int) -> dict[str, np.ndarray]:
    """Degrees between two tilings of the middle of a cube, pixel by pixel: trimmed and blended."""
    step = patch - 2 * halo
    pairs = zip(*(laid(net, cube, step, halo, shift) for shift in (0, step // 2)), strict=True)
    apart = [np.degrees(np.arccos(np.clip((one * other).sum(0), -1, 1))) for one, other in pairs]
    return dict(zip(("trimmed", "blended"), apart, strict=True))


def laid(net: network.Network, cube: Cube, step: int, halo: int, shift: int) -> np.ndarray:
    """Unit vectors (2, 64, h, w) of the middle of a cube, trimmed and blended, the lattice of patches moved by `shift`
    px.
    """
    names, margin = embed.readable(cube, net.recipe), 24
    low, high = margin, cube.shape[0] - margin
    out = np.zeros((2, 64, high - low, high - low))
    patch = step + 2 * halo
    weight = np.stack([ramp(patch, halo, blended) for blended in (False, True)])[:, None]
    starts = range(low - shift - step, high + step, step)
    for top in starts:
        for left in starts:
            where = Tile(top - halo, left - halo, top - halo + patch, left - halo + patch)
            mine = [slice(max(low, a), min(high, b)) for a, b in ((where.top, where.bottom), (where.left, where.right))]
            if any(part.stop <= part.start for part in mine):
                continue
            frames = network.read_frames(cube, names, where, embed.support_of(cube.period, YEAR), net.recipe)
            vectors = net.directions(frames, [YEAR])[0].numpy() * weight
            own = [slice(part.start - a, part.stop - a) for part, a in zip(mine, (where.top, where.left), strict=True)]
            place = [slice(part.start - low, part.stop - low) for part in mine]
            out[(slice(None), slice(None), *place)] += vectors[(slice(None), slice(None), *own)]
    return out / np.linalg.norm(out, axis=1, keepdims=True)


def ramp(patch: int, halo: int, blended: bool) -> np.ndarray:
    """What each pixel of a patch counts (patch, patch)."""
    line = np.ones(patch)
    rise = (np.arange(2 * halo) + 0.5) / (2 * halo) if blended else np.arange(2 * halo) >= halo
    line[: 2 * halo], line[-2 * halo :] = rise, rise[::-1]
    return line[:, None] * line


if __name__ == "__main__":
    main()
