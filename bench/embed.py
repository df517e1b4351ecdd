"""Embedding a local cube end to end, beside the encoder alone: `python -m bench.embed [--json]`.

End to end is reading, encoding, summarising, quantising and writing with the ledger. The encoder alone runs on frames
that are in memory. Both count encoded pixels, halo included; overtiling is encoded pixels per written one. Correct:
the codes in the field equal those of the vectors computed apart from it. Medians of three, one process.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from aefcli import checkpoint, embed, field, recipe
from aefcli.cube import Cube, Request, fetch, open_cube
from aefcli.extent import BBox, Period, tiles
from aefcli.simulate import simulate

REPEATS = 3
PERIOD = Period.parse("2023")
CPU = torch.device("cpu")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        report(*measure(Path(folder)))


def measure(folder: Path) -> tuple[list[tuple[str, float, float, str]], dict[str, float]]:
    """Rows of (what, encoded pixels/s, seconds, correct), and the ratios."""
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
    correct = "yes" if equal(cube, run, folder / "0.zarr") else "NO"
    ours, theirs = encoded / statistics.median(whole), encoded / statistics.median(alone)
    rows = [
        ("end to end", ours, statistics.median(whole), correct),
        ("encoder alone", theirs, statistics.median(alone), "-"),
    ]
    overtiling = encoded / (cube.shape[0] * cube.shape[1])
    return rows, {"end_to_end": ours / theirs, "overtiling": overtiling}


def made_up(folder: Path) -> Cube:
    world = simulate(folder / "world", seed=0, sites=9, size=64)
    request = Request(str(world.catalog), BBox(*world.bbox), PERIOD)
    return open_cube(fetch(request, folder / "cube.zarr").path)


def encoder(cube: Cube, run: checkpoint.Run) -> float:
    """Seconds for the patches of the field alone, their frames in memory."""
    model, plan, seconds = checkpoint.load(run), run.recipe, 0.0
    for tile in tiles(cube.shape, field.CHUNK):
        frames = embed.read_tile(cube, embed.readable(cube, plan), tile, PERIOD, plan.embed)
        for part, _, _ in embed.patches(frames, tile, plan.embed):
            began = time.perf_counter()
            embed.encode_patch(model, part, [PERIOD], CPU, plan.embed.dtype)
            seconds += time.perf_counter() - began
    return seconds


def equal(cube: Cube, run: checkpoint.Run, path: Path) -> bool:
    """Whether the field's codes are those of vectors computed pixel by pixel, apart from it."""
    rng = np.random.default_rng(0)
    rows, columns = (rng.integers(0, extent, 50) for extent in cube.shape)
    vectors = embed.at_points(checkpoint.load(run), run.recipe, cube, rows, columns, [PERIOD], CPU)
    codes = field.open_field(path)["embeddings"].values[:, :, rows, columns].transpose(2, 0, 1)
    return bool((field.quantise(vectors) == codes).all())


def report(rows: list[tuple[str, float, float, str]], ratios: dict[str, float]) -> None:
    if "--json" in sys.argv:
        print(json.dumps({"bench": "embed", "ratios": ratios}))
        return
    table = Table(title=f"bench.embed: nano, median of {REPEATS}", title_justify="left")
    for name in ("", "encoded px/s", "seconds", "correct"):
        table.add_column(name, justify="right" if name else "left")
    for what, rate, seconds, correct in rows:
        table.add_row(what, f"{rate:,.0f}", f"{seconds:.1f}", correct)
    Console().print(table)
    print("  ".join(f"{name} {value:.2f}" for name, value in ratios.items()))


if __name__ == "__main__":
    main()
