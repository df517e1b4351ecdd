"""Embedding a local cube end to end, beside the encoder alone: `python -m bench.embed [--json]`.

End to end is reading, encoding, summarising, quantising and writing with the ledger. The encoder alone runs on frames
that are in memory. Both count encoded pixels, halo included; overtiling is encoded pixels per written one. Correct:
the codes in the field equal those of the vectors computed apart from it. Medians of three, one process.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from aefcli import checkpoint, embed, field, recipe
from aefcli.cube import Cube, Request, fetch, open_cube
from aefcli.extent import BBox, Period, tiles
from aefcli.simulate import simulate
from bench.measure import Check, Result

REPEATS = 3
PERIOD = Period.parse("2023")
CPU = torch.device("cpu")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder)).show("--json" in sys.argv)


def measure(folder: Path) -> Result:
    cube = made_up(folder)
    plan = recipe.load("nano")
    run = checkpoint.new_run(folder / "run", plan)
    checkpoint.save_weights(run.weights, checkpoint.build(plan), plan, 0)
    step = plan.embed.patch - 2 * plan.embed.halo
    patches = sum(len(list(tiles(tile.shape, step))) for tile in tiles(cube.shape, field.CHUNK))
    encoded = patches * plan.embed.patch**2
    whole, alone = [], []
    for repeat in range(REPEATS):
        began = time.perf_counter()
        embed.embed(cube, run, [PERIOD], folder / f"{repeat}.zarr", device=CPU)
        whole.append(time.perf_counter() - began)
        alone.append(encoder(cube, run))
    correct = {"end to end": Check(wrong(cube, run, folder / "0.zarr"), 0)}
    taken = {"end to end": statistics.median(whole), "encoder alone": statistics.median(alone)}
    rows = [
        (name, f"{encoded / spent:,.0f}", f"{spent:.1f}", name if name in correct else "")
        for name, spent in taken.items()
    ]
    ratios = {
        "end_to_end": taken["encoder alone"] / taken["end to end"],
        "overtiling": encoded / (cube.shape[0] * cube.shape[1]),
    }
    title = f"nano, median of {REPEATS}"
    return Result("embed", title, ("encoded px/s", "seconds"), rows, ratios, correct, {"seconds": taken})


def made_up(folder: Path) -> Cube:
    world = simulate(folder / "world", seed=0, sites=9, size=64)
    request = Request(str(world.catalog), BBox(*world.bbox), PERIOD)
    return open_cube(fetch(request, folder / "cube.zarr").path)


def encoder(cube: Cube, run: checkpoint.Run) -> float:
    """Seconds for the patches of the field alone, their frames in memory."""
    model, plan, seconds = checkpoint.load(run), run.recipe, 0.0
    for tile in tiles(cube.shape, field.CHUNK):
        frames = embed.read_tile(cube, embed.readable(cube, plan), tile, PERIOD, plan)
        for part, _, _ in embed.patches(frames, tile, plan.embed):
            began = time.perf_counter()
            embed.encode_patch(model, part, [PERIOD], CPU, plan.embed.dtype)
            seconds += time.perf_counter() - began
    return seconds


def wrong(cube: Cube, run: checkpoint.Run, path: Path) -> int:
    """How many codes of some pixels of the field differ from those of vectors computed apart from it."""
    rng = np.random.default_rng(0)
    rows, columns = (rng.integers(0, extent, 50) for extent in cube.shape)
    vectors = embed.at_points(checkpoint.load(run), run.recipe, cube, rows, columns, [PERIOD], CPU)
    codes = field.open_field(path)["embeddings"].values[:, :, rows, columns].transpose(2, 0, 1)
    return int((field.quantise(vectors) != codes).sum())


if __name__ == "__main__":
    main()
