"""What each choice of `nano` is worth: `python -m bench.ablate [--minutes 6] [--seeds 3] [--only NAME ...]
[--folder DIR] [--steps N] [--json] [--quick]`.

Each variant is `nano` with a few values set. All train the same number of steps on one made-up world, which is drawn
once, on one core, and are judged on the tasks of few labels in another one, beside every designed baseline. A row is
added to DIR/ablate.jsonl once a run is judged: a campaign that was cut off goes on where it was, and so does the run
that it was in. A row is known by variant, seed, steps, the two worlds and the hash of the recipe with the variant's
values: not by the code, so take a new folder for new code.

`minutes` are those of training, by the clock; keep the other cores idle. Of the scores by kNN and by ridge the
best one counts. The table holds medians over the seeds, and in brackets the largest less the smallest; `mean` is over
tasks and shots, and `over base` the median of its differences to the base of the same seed. Of the best designed
baseline, chosen in each column, there is one score: it has no seed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from aefcli import checkpoint, embed, guards, ledger, probe, recipe, suite
from aefcli.checkpoint import Run
from aefcli.cli.app import device_of
from aefcli.cube import Cube, cube_of, open_cube, write_cube
from aefcli.errors import AefError, unknown
from aefcli.probe import Evaluation
from aefcli.recipe import Recipe
from aefcli.simulate import VERSION, Imagined, imagine
from aefcli.sources import INPUTS
from aefcli.start import begin, go_on
from aefcli.suite import DESIGNED, SPARSE, Stage, Suite
from aefcli.train import train

# Of `nano` on one core, what comes before the first step included: 240 steps take 5.4 minutes, by 44 of them.
STEPS_A_MINUTE = 40
SHOTS: tuple[int | str, ...] = (10, "max")
PROBES = ("knn1", "knn3", "ridge")
OURS = "ours"
CPU = torch.device("cpu")

Row = dict[str, Any]


def variants(base: Recipe) -> dict[str, list[str]]:
    """Name -> the values that it sets, as `aef train --set` takes them. One more line here is one more variant."""
    frames = dict(zip(base.data.sources, base.data.frames, strict=True))
    frames.pop("sentinel-1")
    return {
        "base": [],
        "no-consistency": ["loss.consistency=0"],
        "no-uniformity": ["loss.uniformity=0"],
        "b-0.05": ["loss.uniformity=0.05"],
        "b-0.005": ["loss.uniformity=0.005"],
        "kappa-800": ["model.kappa=800"],
        "kappa-80000": ["model.kappa=80000"],
        "expansion-4": ["model.precision_expansion=4"],
        "no-radar": [f"data.sources={list(frames)}", f"data.frames={list(frames.values())}"],
        "no-neighbours": ["model.neighbours=0"],
        "no-agree": ["train.agree=0", "train.settle=0", "train.encoder_lr=2e-3"],
        "heads-8": ["model.pool_heads=8"],
        "heads-12": ["model.pool_heads=12"],
        "heads-24": ["model.pool_heads=24"],
        "detail-12": ["model.pool_detail=12"],
        "detail-30": ["model.pool_detail=30"],
        "as-shipped": ["train.agree=144", "train.encoder_lr=1e-5"],  # as the nano in the package was trained
    }


@dataclass(frozen=True)
class Worlds:
    """Where variants learn and where they are judged: seeds that nothing else uses."""

    learn: int = 4001
    judge: int = 4002
    sites: int = 64  # to learn from
    judged: int = 36
    size: int = 64  # px of a site's side
    folds: float = 0.2  # of the protocol's
    version: int = VERSION


QUICK = Worlds(sites=6, judged=16, size=32, folds=0.01)


@dataclass(frozen=True)
class Task:
    """One run to make."""

    variant: str
    plan: Recipe
    worlds: Worlds

    @property
    def key(self) -> Row:
        """What its row is known by."""
        train = self.plan.train
        names = {"variant": self.variant, "seed": train.seed, "steps": train.steps, "recipe": self.plan.hash}
        return names | {"worlds": asdict(self.worlds)}

    def run(self, folder: Path) -> Run:
        return Run(folder / "runs" / f"{self.variant}-{self.plan.hash}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("--minutes", type=float, default=6, help=f"of training, at {STEPS_A_MINUTE} steps each (6)")
    parser.add_argument("--steps", type=int, help="steps instead of those of the minutes")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant (3)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some of the variants")
    parser.add_argument("--folder", type=Path, default=Path("ablate"), help="of rows, runs and world (ablate)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--quick", action="store_true", help="small worlds: only to see it run")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    device_of("cpu")  # memory is kept as `aef train` keeps it
    steps = chosen.steps or max(1, round(chosen.minutes * STEPS_A_MINUTE))
    try:
        asked = tasks(recipe.load("nano"), steps, chosen.seeds, chosen.only, QUICK if chosen.quick else Worlds())
        show(campaign(chosen.folder, asked), chosen.json)
    except AefError as error:
        print(f"bench.ablate: {error}", file=sys.stderr)
        sys.exit(error.code)


def tasks(
    base: Recipe, steps: int, seeds: int, only: Sequence[str] | None = None, worlds: Worlds | None = None
) -> list[Task]:
    """All runs asked for: every variant by the first seed, then all by the second."""
    known = variants(base)
    for name in only or ():
        if name not in known:
            raise unknown("variant", name, known)
    return [
        Task(
            name,
            recipe.with_values(base, [*known[name], f"train.steps={steps}", f"train.seed={seed}"]),
            worlds or Worlds(),
        )
        for seed in range(seeds)
        for name in (only or known)
    ]


# --- the campaign -----------------------------------------------------------------------------------------------------


def campaign(folder: Path, asked: Sequence[Task]) -> list[Row]:
    """The rows of all that is asked for; those that are not there yet are made, and added as they come."""
    folder.mkdir(parents=True, exist_ok=True)
    with ledger.locked(folder / "lock", folder):
        known = rows_of(folder)
        left = [task for task in asked if _row(task, known) is None]
        if left:
            cube, court = learned(folder, asked[0]), Court(left[0].worlds)
        for done, task in enumerate(left, 1):
            print(f"{done}/{len(left)}: {task.variant}, seed {task.plan.train.seed}", file=sys.stderr, flush=True)
            row = task.key | trained(task.run(folder), cube, task.plan)
            row |= court.judged(task.run(folder))
            known.append(row)
            text = "".join(json.dumps(each) + "\n" for each in known)
            ledger.write_atomically(folder / "ablate.jsonl", text.encode())
    return [row for task in asked if (row := _row(task, known)) is not None]


def rows_of(folder: Path) -> list[Row]:
    """The rows that are there, without a last one that was cut off."""
    path = folder / "ablate.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _row(task: Task, rows: Sequence[Row]) -> Row | None:
    return next((row for row in rows if all(row[name] == value for name, value in task.key.items())), None)


def learned(folder: Path, task: Task) -> Cube:
    """The world that all learn from, as a cube on disk, made where it is not there yet."""
    worlds = task.worlds
    path = folder / f"world-{worlds.learn}-{worlds.sites}-{worlds.size}-v{worlds.version}.zarr"
    record = ledger.read(path)
    if record is None or not record.finished:
        world = imagine(worlds.learn, sites=worlds.sites, size=worlds.size)
        write_cube(path, {name: world.datasets[name] for name in (*INPUTS, *task.plan.data.targets)}, world.period)
    return open_cube(path)


def trained(run: Run, cube: Cube, plan: Recipe) -> Row:
    """Train, or go on with a run that was cut off; what it took and came to."""
    began = time.monotonic()
    if not run.weights.is_file():
        if not run.data.is_file():
            shutil.rmtree(run.path, ignore_errors=True)  # cut off before it had begun
        for _ in train(go_on(run, [cube], plan) if run.data.is_file() else begin(run.path, [cube], plan), CPU):
            pass
    records = checkpoint.records(run)
    seconds = max(time.monotonic() - began, sum(record["seconds"] for record in records))  # the latter where cut off
    return {"minutes": round(seconds / 60, 3), "loss": records[-1]["loss"], "parts": records[-1]["parts"]}


# --- the judgement ----------------------------------------------------------------------------------------------------


class Court:
    """A world of another seed, and what the designed baselines say of it, computed once."""

    def __init__(self, worlds: Worlds) -> None:
        self.suite = Suite("ablate", worlds.judged, ("sparse",), worlds.folds, size=worlds.size)
        self.seed = worlds.judge

    @cached_property
    def world(self) -> Imagined:
        return imagine(self.seed, sites=self.suite.sites, size=self.suite.size, years=self.suite.years)

    @cached_property
    def stage(self) -> Stage:
        datasets = {name: data for name, data in self.world.datasets.items() if name in (*INPUTS, "glo-30")}
        return Stage(self.suite, self.world, cube_of(datasets, self.world.period), {}, 0, CPU)

    @cached_property
    def pixels(self) -> np.ndarray:
        return np.unique(np.concatenate([self.stage.pixel(self.stage.labels(task)) for task in SPARSE]))

    @cached_property
    def designed(self) -> suite.Features:
        return self.stage.features(self.stage.cube, self.pixels, self.stage.years, DESIGNED)

    @cached_property
    def rivals(self) -> dict[str, Evaluation]:
        """Of each task, the scores of the designed baselines: no run changes them."""
        return {task: self._scored(task, self.designed) for task in SPARSE}

    def judged(self, run: Run) -> Row:
        """Scores of a run and of the best designed baseline, and how its vectors are spread."""
        stage, model = self.stage, checkpoint.load(run)
        rows, columns = np.divmod(self.pixels, stage.cube.shape[1])
        vectors = embed.at_points(model, run.recipe, stage.cube, rows, columns, stage.years, CPU)
        answered = np.logical_and.reduce([np.isfinite(values).all(axis=2) for values in self.designed.values()])
        assert np.isfinite(vectors[answered]).all(), "a baseline answers for a pixel of which the run says nothing"
        vectors = np.where(answered[..., None], vectors, np.nan)  # the same labels for all
        scores = {task: compared(self._scored(task, {OURS: vectors}), rivals) for task, rivals in self.rivals.items()}
        flat = vectors[answered]
        return {"scores": scores, "uniformity": guards.uniformity(flat), "rank": guards.effective_rank(flat)}

    def _scored(self, task: str, known: suite.Features) -> Evaluation:
        """How features (pixels, years, d) serve the labels of a task."""
        labels = self.stage.labels(task)
        at, year = np.searchsorted(self.pixels, self.stage.pixel(labels)), self.stage.year(labels.valid_start)
        found = {name: values[at, year] for name, values in known.items()}
        return self.stage.evaluate(task, found, labels, shots=SHOTS, probes=PROBES)


def compared(done: Evaluation, rivals: Evaluation) -> dict[str, Row]:
    """By shots: our balanced accuracy, that of the best designed baseline, its name, and the error reduction."""
    ours, theirs = best(done), best(rivals)
    out: dict[str, Row] = {}
    for shots, mine in ours.items():
        rival = max(theirs[shots], key=lambda name: theirs[shots][name])
        scores = mine[OURS], theirs[shots][rival]
        errors = [probe.error(score, probe.PRIMARY[done.kind], len(done.names)) for score in scores]
        reduction = 1 - errors[0] / errors[1] if errors[1] > 0 else 0.0
        out[shots] = {"ours": scores[0], "designed": scores[1], "rival": rival, "reduction": reduction}
    return out


def best(done: Evaluation) -> dict[str, dict[str, float]]:
    """Shots -> candidate -> its primary score by the probe that served it best."""
    out: dict[str, dict[str, float]] = {}
    for score in done.scores:
        if score.metric == probe.PRIMARY[done.kind]:
            found = out.setdefault(str(score.shots), {})
            found[score.field] = max(score.mean, found.get(score.field, 0.0))
    return out


# --- the table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """Of one column of one variant."""

    median: float
    spread: float  # the largest less the smallest

    def __str__(self) -> str:
        return f"{_short(self.median)} ({_short(self.spread)})"


def _short(value: float) -> str:
    """Three digits at least, and no zero before the point."""
    return f"{value:.3f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.1f}"


def figures(rows: Sequence[Row]) -> dict[str, dict[str, Figure]]:
    """Variant -> column -> figure, in the order of the rows; `over base` where the base has the same seeds."""
    told = {(row["variant"], row["seed"]): dict(_columns(row)) for row in rows}
    for (_, seed), columns in told.items():
        if ("base", seed) in told:
            columns["over base"] = columns["mean"] - told["base", seed]["mean"]
    out: dict[str, dict[str, Figure]] = {}
    for variant in dict.fromkeys(variant for variant, _ in told):
        mine = [columns for (name, _), columns in told.items() if name == variant]
        common = [name for name in mine[0] if all(name in columns for columns in mine)]
        out[variant] = {name: _figure([columns[name] for columns in mine]) for name in common}
    return out


def _columns(row: Row) -> Iterator[tuple[str, float]]:
    scores = {f"{task} {shots}": found for task, by in row["scores"].items() for shots, found in by.items()}
    yield from ((name, found["ours"]) for name, found in scores.items())
    yield "mean", statistics.mean(found["ours"] for found in scores.values())
    for shots in map(str, SHOTS):
        if reductions := [found["reduction"] for name, found in scores.items() if name.endswith(f" {shots}")]:
            yield f"reduction {shots}", statistics.mean(reductions)
    yield from ((name, row[name]) for name in ("uniformity", "rank", "minutes"))


def _figure(values: Sequence[float]) -> Figure:
    return Figure(statistics.median(values), max(values) - min(values))


def rivals(rows: Sequence[Row]) -> dict[str, tuple[str, float]]:
    """Column -> the best designed baseline and its score."""
    scores = rows[0]["scores"]
    return {
        f"{task} {shots}": (found["rival"], found["designed"])
        for task, by in scores.items()
        for shots, found in by.items()
    }


def show(rows: Sequence[Row], as_json: bool) -> None:
    """Print what the rows come to."""
    found, best = figures(rows), rivals(rows)
    if as_json:
        table = {
            name: {column: asdict(figure) for column, figure in columns.items()} for name, columns in found.items()
        }
        print(json.dumps({"bench": "ablate", "variants": table, "designed": best, "rows": list(rows)}))
        return
    steps, seeds = rows[0]["steps"], len({row["seed"] for row in rows})
    console = Console(width=None if sys.stdout.isatty() else 240)
    table = Table()
    columns = list(dict.fromkeys(name for each in found.values() for name in each))
    for name in ("", *columns):
        table.add_column(name, justify="right" if name else "left")
    for variant, each in found.items():
        table.add_row(variant, *(str(each.get(name, "-")) for name in columns))
    table.add_row(
        "best designed", *(f"{_short(best[name][1])} {best[name][0]}" if name in best else "-" for name in columns)
    )
    console.print(f"bench.ablate: nano, {steps} steps, {seeds} seeds: medians (and spreads)", highlight=False)
    console.print(table)


if __name__ == "__main__":
    main()
