"""What the benchmarks share: their options, noise to work on, alternating clocks, and the printed table.

Each benchmark is `python -m bench.NAME [--json] [--quick] [--recipe NAME]`. `--quick` shrinks patch and repeats to see
that it runs; its figures mean nothing. It ends with status 1 if a result is wrong: speed of a wrong answer is no speed.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from aefcli import checkpoint, recipe
from aefcli.batch import DAY, Frames
from aefcli.extent import Period
from aefcli.model import Model
from aefcli.recipe import Recipe
from aefcli.sources import SOURCES
from bench.naive.model import Naive

YEAR = Period.parse("2023")
SLOTS = {"sentinel-2": 10, "sentinel-1": 3, "landsat": 3}  # T = 16 frames
REPEATS = 5
STIR = 0.02  # std of the noise on weights: fresh residual branches are silent, and would agree about anything
BRANCH = 0.5  # and what it may make of numbers of size 1, however many a weight sums


# --- options --------------------------------------------------------------------------------------------------------


def options(doc: str | None) -> argparse.Namespace:
    """The command line that the benchmarks share."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--quick", action="store_true", help="small patch and few repeats: only to see it run")
    parser.add_argument("--recipe", default="small", help="recipe that gives the sizes (default small)")
    parser.add_argument(
        "--repeats", type=int, default=REPEATS, help=f"of which the median is taken (default {REPEATS})"
    )
    return parser.parse_args()


@dataclass(frozen=True)
class Setting:
    """How much work a benchmark does."""

    plan: Recipe
    side: int = 128
    repeats: int = REPEATS

    @classmethod
    def of(cls, chosen: argparse.Namespace) -> Setting:
        plan = recipe.load(chosen.recipe)
        return cls(plan, side=32, repeats=1) if chosen.quick else cls(plan, repeats=chosen.repeats)


# --- material -------------------------------------------------------------------------------------------------------


def noise(slots: Mapping[str, int] = SLOTS, *, b: int = 1, side: int = 128, seed: int = 0) -> dict[str, Frames]:
    """Frames of noise all over 2023, all present and clear."""
    rng = torch.Generator().manual_seed(seed)
    return {name: _noise(name, (b, count, side), rng) for name, count in slots.items()}


def _noise(name: str, shape: tuple[int, int, int], rng: torch.Generator) -> Frames:
    (b, t, side), source = shape, SOURCES[name]
    return Frames(
        pixels=torch.randn(b, t, len(source.bands), side, side, generator=rng),
        present=torch.ones(b, t, side, side, dtype=torch.bool),
        bands=torch.ones(b, t, len(source.bands), dtype=torch.bool),
        weight=torch.ones(b, t, side, side),
        time=YEAR.start + torch.randint(365, (b, t), generator=rng) * DAY,
        meta=torch.zeros(b, t, len(source.meta)),
    )


def year(b: int = 1) -> Tensor:
    """The whole of 2023 as the one valid period of each site."""
    return torch.tensor([[[YEAR.start, YEAR.end]]] * b)


def stirred(plan: Recipe) -> Model:
    """The recipe's network in eval mode, its weights moved by noise so that no branch is silent."""
    model = checkpoint.build(plan)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            most = BRANCH / math.sqrt(parameter[0].numel()) if parameter.dim() > 1 else STIR
            parameter.add_(min(STIR, most) * torch.randn(parameter.shape, generator=rng))
    return model.eval()


def naive_like(model: Model, plan: Recipe) -> Naive:
    """The naive network with the weights of ours wherever it has the same; only its summariser has some of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.train.seed)
        naive = Naive(plan.model, plan.data.sources)
    theirs, ours = naive.state_dict(), model.state_dict()
    naive.load_state_dict({name: ours[name] if _same(ours.get(name), own) else own for name, own in theirs.items()})
    return naive.eval()


def _same(ours: Tensor | None, theirs: Tensor) -> bool:
    return ours is not None and ours.shape == theirs.shape


# --- clocks ---------------------------------------------------------------------------------------------------------


def seconds(works: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each piece of work: all once to warm up, then all in turn, `repeats` times."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            if turn:
                taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(each) for name, each in taken.items()}


# --- results --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """A figure and the limit that a correct result stays within."""

    value: float
    limit: float
    least: bool = False  # the limit is the least that is right, not the most

    @property
    def right(self) -> bool:
        return self.value >= self.limit if self.least else self.value <= self.limit

    def __str__(self) -> str:
        return f"{'yes' if self.right else 'NO'} ({self.value:.5g} {'>=' if self.least else '<='} {self.limit:g})"

    def as_json(self) -> dict[str, object]:
        return {"value": self.value, "at least" if self.least else "at most": self.limit, "right": self.right}


def difference(ours: Tensor, theirs: Tensor) -> float:
    return (ours - theirs).abs().max().item()


@dataclass(frozen=True)
class Result:
    """What a benchmark found. Rows hold what was done, figures as text, and the name of a check or ""."""

    bench: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    ratios: Mapping[str, float]
    correct: Mapping[str, Check]
    notes: Mapping[str, object] = field(default_factory=dict)

    @property
    def right(self) -> bool:
        return all(check.right for check in self.correct.values())

    def show(self, as_json: bool) -> None:
        """Print, and leave with status 1 if something is wrong."""
        if as_json:
            correct = {name: check.as_json() for name, check in self.correct.items()}
            parts = {"ratios": dict(self.ratios), "correct": correct, **self.notes}
            print(json.dumps({"bench": self.bench, **parts}))
        else:
            self._table()
        if not self.right:
            sys.exit(1)

    def _table(self) -> None:
        console = Console(width=None if sys.stdout.isatty() else 140)
        table = Table()
        for name in ("", *self.columns, "correct"):
            table.add_column(name, justify="right" if name else "left")
        for *cells, check in self.rows:
            table.add_row(*cells, str(self.correct[check]) if check else "-")
        if self.rows:
            console.print(f"bench.{self.bench}: {self.title}", highlight=False)
            console.print(table)
        for name, value in self.ratios.items():
            console.print(f"{name} {value:.2f}", highlight=False)
        for name, note in self.notes.items():
            console.print(f"{name}: {_text(note)}", highlight=False)


def _text(note: object) -> str:
    """A note for people: figures to four digits."""
    if isinstance(note, Mapping):
        return ", ".join(f"{name} {_text(value)}" for name, value in note.items())
    return f"{note:.4g}" if isinstance(note, float) else str(note)


def described(setting: Setting, b: int, frames: int) -> str:
    """Title of a table: what was measured and on how many threads."""
    size = f"{b} x {frames} frames of {setting.side} px"
    return f"{setting.plan.name}, {size}, median of {setting.repeats}, {torch.get_num_threads()} threads"
