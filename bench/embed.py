"""Embedding a local cube end to end: `python -m bench.embed [--json] [--quick] [--recipe small]`.

End to end is reading, encoding, summarising, quantising and writing with the ledger, by `aef embed`'s own function on
all cores; the encoder alone runs on frames that are in memory, on as many threads of one core each. Both count encoded
pixels, halo included; `overtiling` is encoded pixels per written one.

    end_to_end      the encoder's seconds over those of end to end, per pixel
    months          twelve valid periods over one, of a year of 123 frames; and of 16 frames, where summaries weigh more
    memory          the peak of a process for 64 tiles over that for 4
    workers         one dask worker's seconds over two's, start of the cluster not counted (with two cores or more)

The last two, and the line of cost through four areas and three numbers of frames, are of `nano` with tiles of 64 px.
With `--quick` no process is started: memory is that of this one, and workers are left out.
Correct: the codes in the field equal those of vectors computed apart from it. Medians of three.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from aefcli import checkpoint, embed, field, recipe
from aefcli.checkpoint import Run
from aefcli.cube import Cube, Work, cluster, open_cube, without, write_cube
from aefcli.embed import How, network, tiling
from aefcli.extent import Period, tiles
from aefcli.sources import SOURCES
from bench import measure
from bench.measure import Check, Result, Setting

YEAR = measure.YEAR
MONTHS = embed.every(YEAR, "month")
CPU = torch.device("cpu")
LAND_KM2 = 149e6


def main() -> None:
    chosen = measure.options(__doc__)
    setting = Setting.of(chosen)
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), setting if chosen.quick else replace(setting, side=256, repeats=min(3, chosen.repeats))).show(
            chosen.json
        )


def run(folder: Path, setting: Setting) -> Result:
    cores, quick = len(os.sched_getaffinity(0)), setting.side < 256
    plan = setting.plan.replace(embed={"patch": 48, "halo": 8}) if quick else setting.plan
    model, cube = saved(folder / "run", plan), made_up(folder / "cube.zarr", setting.side)
    full = made_up(folder / "full.zarr", plan.embed.patch - 2 * plan.embed.halo, 60 if quick else 5)
    whole, alone, twelve, year, year_months = [], [], [], [], []
    for repeat in range(setting.repeats):
        whole.append(end_to_end(cube, model, [YEAR], folder / f"{repeat}.zarr", cores))
        alone.append(encoder(cube, model, cores))
        twelve.append(end_to_end(cube, model, MONTHS, folder / f"months-{repeat}.zarr", cores))
        year.append(end_to_end(full, model, [YEAR], folder / f"full-{repeat}.zarr", cores))
        year_months.append(end_to_end(full, model, MONTHS, folder / f"full-months-{repeat}.zarr", cores))
    one, bare, months, long, long_months = map(statistics.median, (whole, alone, twelve, year, year_months))
    cells = patches_of(cube, plan)
    encoded = len(cells) * plan.embed.patch**2
    correct = {"end to end": Check(wrong(cube, model, folder / "0.zarr"), 0)}
    small = saved(folder / "nano", recipe.load("nano"))
    side = 64 if quick else 512
    areas = [made_up(folder / f"peak-{pixels}.zarr", pixels).path for pixels in (side // 4, side)]
    given = [(path, small.path, path.with_name(f"{path.stem}-field.zarr")) for path in areas]
    peaks = [peak(*each) if quick else apart(peak, *each) for each in given]
    costs, line = scaling(folder, small, quick, cores)
    rows = [
        ("end to end, one period", f"{encoded / one:,.0f}", f"{one:.2f}", "end to end"),
        ("the encoder alone", f"{encoded / bare:,.0f}", f"{bare:.2f}", ""),
        ("end to end, twelve periods", f"{encoded / months:,.0f}", f"{months:.2f}", ""),
        ("a patch of a year's frames", f"{plan.embed.patch**2 / long:,.0f}", f"{long:.2f}", ""),
        ("the same, twelve periods", f"{plan.embed.patch**2 / long_months:,.0f}", f"{long_months:.2f}", ""),
    ]
    ratios = {
        "end_to_end": bare / one,
        "overtiling": encoded / (cube.shape[0] * cube.shape[1]),
        "months": long_months / long,
        "months, 16 frames": months / one,
        "memory": peaks[1] / peaks[0],
    }
    if cores > 1 and not quick:
        ratios["workers"] = apart(by_worker, folder, small.path, side, 1) / apart(
            by_worker, folder, small.path, side, 2
        )
    notes = {
        "cost": line,
        "seconds of areas and frames": costs,
        "100 km tile": f"{1e8 * one / (setting.side**2) / 3600:.0f} core-pair hours by {setting.plan.name}",
        "land surface": f"{LAND_KM2 * 1e4 * one / setting.side**2 / 3600 / 24 / 365:,.0f} such years",
    }
    title = f"{setting.plan.name}, {setting.side} px, 16 frames, {cores} threads, median of {setting.repeats}"
    return Result("embed", title, ("encoded px/s", "seconds"), rows, ratios, correct, notes)


# --- material ---------------------------------------------------------------------------------------------------------


def saved(path: Path, plan: recipe.Recipe) -> Run:
    """A run of weights that are not trained, moved so that no branch is silent."""
    run = checkpoint.new_run(path, plan)
    checkpoint.save_weights(run.weights, measure.stirred(plan), plan, 0)
    return run


def made_up(path: Path, side: int, every: int = 36) -> Cube:
    """A cube of noise: Sentinel-2 every so many days, Sentinel-1 and Landsat a third as often; 16 frames by default."""
    import rioxarray  # noqa: F401 - adds .rio
    import xarray as xr

    rng = np.random.default_rng(0)
    y, x = 5_000_000 - 10 * (np.arange(side) + 0.5), 500_000 + 10 * (np.arange(side) + 0.5)
    made = {}
    for name, apart_ in (("sentinel-2", every), ("sentinel-1", 3 * every), ("landsat", 3 * every)):
        source = SOURCES[name]
        days = (
            np.arange(2, 365, apart_)[: 10 if name == "sentinel-2" else 3] if every == 36 else np.arange(2, 365, apart_)
        )
        level, kind = (0.1, "float32") if name == "sentinel-1" else (9000, source.dtype)
        variables = {
            band.name: (("time", "y", "x"), (level * rng.uniform(0.8, 1.2, (len(days), side, side))).astype(kind))
            for band in source.bands
        }
        times = np.datetime64("2023-01-01", "ms") + days * np.timedelta64(1, "D")
        made[name] = xr.Dataset(variables, {"time": times, "y": y, "x": x}).rio.write_crs("EPSG:32633")
    return open_cube(write_cube(path, made, YEAR))


def patches_of(cube: Cube, plan: recipe.Recipe) -> list[tiling.Tile]:
    side = tiling.tile_side(plan.embed)
    return [cell for tile in tiles(cube.shape, side) for cell in tiling.cells(tile, plan.embed)]


# --- one run ----------------------------------------------------------------------------------------------------------


def end_to_end(cube: Cube, run: Run, periods: Sequence[Period], out: Path, threads: int) -> float:
    """Seconds of an embed, without the three places that are looked at for seams after it."""
    began = time.perf_counter()
    done = embed.embed(cube, run, periods, out, device=CPU, how=How(work=Work(threads), seams=False))
    assert done.written
    return time.perf_counter() - began


def encoder(cube: Cube, run: Run, threads: int) -> float:
    """Seconds for all patches of the field, their frames in memory, by so many threads."""
    plan = run.recipe
    net = network.Network(checkpoint.load(run), plan, CPU)
    names = embed.readable(cube, plan)
    read = [
        frames
        for cell in patches_of(cube, plan)
        for _, frames in network.patches(cube, names, embed.support_of(cube.period, YEAR), plan, [cell])
    ]

    def work(frames: network.Read) -> None:
        torch.set_num_threads(1)
        net.directions(frames, [YEAR])

    before = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        began = time.perf_counter()
        list(pool.map(work, read))
        spent = time.perf_counter() - began
    torch.set_num_threads(before)
    return spent


def wrong(cube: Cube, run: Run, path: Path) -> int:
    """How many codes of some pixels of the field differ from those of vectors computed apart from it."""
    rng = np.random.default_rng(0)
    rows, columns = (rng.integers(0, extent, 50) for extent in cube.shape)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    vectors = embed.at_points(checkpoint.load(run), run.recipe, cube, rows, columns, [YEAR], CPU)
    torch.set_num_threads(before)
    codes = field.open_field(path)["embeddings"].values[:, :, rows, columns].transpose(2, 0, 1)
    return int((field.quantise(vectors) != codes).sum())


# --- how it scales ----------------------------------------------------------------------------------------------------


def scaling(folder: Path, run: Run, quick: bool, cores: int) -> tuple[dict[str, float], str]:
    """Seconds of some areas and numbers of frames, and the plane through them."""
    field.CHUNK = 64
    sides, cuts = ((32, 64), (1, 2)) if quick else ((64, 128, 192, 256), (1, 2, 4))
    rows, taken = [], {}
    for side in sides:
        cube = made_up(folder / f"cube-{side}.zarr", side, 36 if quick else 8)
        for cut in cuts:
            gone = {name: np.arange(len(source.times)) % cut > 0 for name, source in cube.sources.items()}
            fewer = without(cube, gone) if cut > 1 else cube
            frames = sum(int((~gone[name]).sum()) for name in gone)
            spent = end_to_end(fewer, run, [YEAR], folder / f"area-{side}-{cut}.zarr", cores)
            taken[f"{side} px, {frames} frames"] = round(spent, 2)
            rows.append((side**2, side**2 * frames, spent))
    field.CHUNK = 256
    table = np.array(rows)
    fit, *_ = np.linalg.lstsq(np.c_[np.ones(len(table)), table[:, :2]], table[:, 2], rcond=None)
    left = table[:, 2] - np.c_[np.ones(len(table)), table[:, :2]] @ fit
    share = 1 - left.var() / table[:, 2].var()
    return (
        taken,
        f"{fit[0]:.2f} s + {1e6 * fit[1]:.1f} s per Mpx + {1e6 * fit[2]:.2f} s per Mpx and frame, R2 {share:.3f}",
    )


def peak(path: Path, run: Path, out: Path) -> float:
    """Bytes that this process comes to hold for a field of tiles of 64 px."""
    field.CHUNK = 64
    end_to_end(open_cube(path), Run(run), MONTHS[:4], out, 2)
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def by_worker(folder: Path, run: Path, side: int, workers: int) -> float:
    """Seconds of so many dask workers for a field of tiles of 64 px, once they run."""
    field.CHUNK = 64
    cube = made_up(folder / f"workers-{workers}.zarr", side)
    with cluster(Work(dask=str(workers))) as client:
        how = How(work=Work(dask=client.scheduler.address), seams=False)
        warm = folder / f"warm-{workers}.zarr"
        embed.embed(cube, Run(run), [MONTHS[0]], warm, device=CPU, how=how)
        began = time.perf_counter()
        embed.embed(cube, Run(run), [YEAR], folder / f"by-{workers}.zarr", device=CPU, how=how)
        return time.perf_counter() - began


def apart(work: Callable[..., float], *given: object) -> float:
    """What a function returns in a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *given).result()


if __name__ == "__main__":
    main()
