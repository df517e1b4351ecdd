"""What training does to a network, on simulated sites: small, but real training of the whole objective.

One short run is shared by all. Claims are about paired differences over held-out batches, in standard errors.
"""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import sub_pixel_share

from aefcli import checkpoint, losses, recipe, suite
from aefcli.batch import DAY, Batch, Frames
from aefcli.checkpoint import Run
from aefcli.cube import Cube, Request, fetch, open_cube
from aefcli.extent import BBox, Period, Tile
from aefcli.model import Model
from aefcli.recipe import Recipe
from aefcli.sample import batches, draw, in_period, window
from aefcli.simulate import simulate
from aefcli.sources import INPUTS
from aefcli.start import begin
from aefcli.suite import Outcome, Suite
from aefcli.train import Record, objective, train

pytestmark = pytest.mark.xdist_group("learning")  # one worker trains, and once

STEPS = 150
SMALL = {
    "blocks": 4,
    "precision": 16,
    "time": 48,
    "space": 48,
    "head": 16,
    "mlp_ratio": 2,
    "pool_heads": 12,
    "pool_width": 4,
    "decoder": 64,
}
HELD_OUT = 48  # batches
GATES = Suite("gates", 24, ("sparse", "honesty"), 0.05, size=48)  # a world that nothing was learned from
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Trained:
    run: Run
    plan: Recipe
    cube: Cube
    model: Model
    records: list[Record]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """nano, narrow and with few frames."""
    folder = tmp_path_factory.mktemp("learning")
    world = simulate(folder / "world", seed=11, sites=16, size=64)
    request = Request(str(world.catalog), BBox(*world.bbox), Period.parse("2023"))
    cube = open_cube(fetch(request, folder / "cube.zarr").path)
    sizes = {
        "data": {"frames": [10, 8, 4]},
        "model": SMALL,
        "train": {"steps": STEPS, "warmup": 15},
    }
    plan = recipe.load("nano").replace(**sizes)
    start = begin(folder / "run", [cube], plan)
    records = list(train(start, CPU))
    return Trained(start.run, start.recipe, cube, checkpoint.load(start.run), records)


@pytest.fixture(scope="module")
def held_out(trained: Trained) -> list[Batch]:
    """Batches that training did not draw."""
    other = trained.plan.replace(train={"seed": trained.plan.train.seed + 1})
    with closing(batches([trained.cube], draw([trained.cube], other), other)) as stream:
        return [next(stream) for _ in range(HELD_OUT)]


def assert_greater(larger: list[float], smaller: list[float]) -> None:
    """By more than three standard errors of the paired difference."""
    gap = np.array(larger) - np.array(smaller)
    assert gap.mean() > 3 * gap.std(ddof=1) / math.sqrt(len(gap)), (gap.mean(), gap.std(ddof=1))


@torch.inference_mode()
def error(model: Model, batch: Batch, name: str, valid: torch.Tensor, instant: torch.Tensor | None = None) -> float:
    """Plain L1 of one source's target, from the mean direction for a valid period; the instant is in it or given."""
    encoded = model.encode(batch.inputs)
    field = model.summarise(encoded, valid[:, None])[:, 0]
    target, weight = batch.targets[name], batch.targets[name].weight[:, 0] * encoded.seen
    every = losses.cells(weight, torch.Generator())
    time = target.time[:, 0] if instant is None else instant
    answer = model.decode(name, losses.at(field, every.index)[:, :, 0], time, valid, target.meta[:, 0])
    return losses.l1(answer[:, :, None], target.pixels[:, 0], target.bands[:, 0], every).item()


@torch.inference_mode()
def terms(trained: Trained, model: Model, batch: Batch, seed: int) -> dict[str, float]:
    """The named losses of a held-out batch; the same draws for the same seed."""
    _, parts = objective(model, batch, trained.plan, torch.Generator().manual_seed(seed))
    return {name: part.item() for name, part in parts.items()}


def test_each_term_falls(trained: Trained, held_out: list[Batch]) -> None:
    """On held-out batches, from random weights to the trained network, the fit before the first step included.

    A random network's vectors are nearly all alike, so that consistency costs it little: that term is measured in
    distances between places.
    """
    fresh = checkpoint.build(trained.plan).eval()
    pairs = [
        [terms(trained, model, batch, seed) for model in (fresh, trained.model)] for seed, batch in enumerate(held_out)
    ]
    for parts in (part for pair in pairs for part in pair):
        parts["consistency"] /= 1 - parts["uniformity"]
    for name in trained.records[0].parts:
        assert_greater([before[name] for before, _ in pairs], [after[name] for _, after in pairs])


def test_uniformity_heads_from_random_weights_to_a_tenth_and_not_to_one(trained: Trained, tmp_path: Path) -> None:
    plan = trained.plan.replace(train={"steps": 40, "agree": 0, "settle": 0, "encoder_lr": 2e-3})
    records = train(begin(tmp_path / "run", [trained.cube], plan), CPU)
    fifths = np.array_split([record.parts["uniformity"] for record in records], 5)
    means = [fifth.mean() for fifth in fifths]
    assert abs(means[-1] - 0.1) < abs(means[-1] - 1)
    assert means[-1] == min(means)


# --- what a short training has to be worth ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judged(trained: Trained) -> Outcome:
    return suite.run(GATES, trained.run, 12, CPU)


def test_training_tells_crops_apart_that_fresh_weights_do_not(judged: Outcome) -> None:
    for shots in ("10", "max"):
        crops = judged.summary["tasks"]["crops"][shots]
        assert crops["ours"] - crops["untrained"] >= 0.08, crops


def test_the_period_asked_for_is_told_from_another_year(judged: Outcome) -> None:
    drops = judged.summary["tasks"]["honesty"]["right_minus_wrong"]
    assert drops["model"] >= 0.10, drops


def test_held_out_frames_are_met_better_than_by_the_pixels_median(trained: Trained) -> None:
    numbers = checkpoint.records(trained.run)[-1]["look"]
    for name in INPUTS:
        assert numbers[f"l1/{name}"] < numbers[f"median/{name}"], numbers


def test_embeddings_at_held_out_sites_have_not_collapsed(trained: Trained) -> None:
    numbers = checkpoint.records(trained.run)[-1]["look"]
    assert numbers["uniformity"] <= 0.2, numbers
    assert numbers["rank"] >= 16, numbers
    assert numbers["phase"] < 0.01, numbers


# --- what it has learned ----------------------------------------------------------------------------------------------


def around(batch: Batch, centre: torch.Tensor) -> torch.Tensor:
    """60 days around an instant, inside the support."""
    start, end = batch.support.unbind(1)
    centre = centre.clamp(min=start + 30 * DAY, max=end - 30 * DAY)
    return torch.stack([centre - 30 * DAY, centre + 30 * DAY], dim=1)


@pytest.mark.parametrize("name", INPUTS)
def test_wrong_dates_of_the_inputs_make_reconstruction_worse(
    trained: Trained, held_out: list[Batch], name: str
) -> None:
    """The dates of the frames are dealt out anew within each source."""

    def redated(frames: Frames, generator: torch.Generator) -> Frames:
        order = torch.stack([torch.randperm(frames.time.shape[1], generator=generator) for _ in frames.time])
        return replace(frames, time=frames.time.gather(1, order))

    right, wrong = [], []
    for index, batch in enumerate(held_out):
        generator, valid = torch.Generator().manual_seed(index), around(batch, batch.targets[name].time[:, 0])
        inputs = {source: redated(frames, generator) for source, frames in batch.inputs.items()}
        right.append(error(trained.model, batch, name, valid))
        wrong.append(error(trained.model, replace(batch, inputs=inputs), name, valid))
    assert_greater(wrong, right)


def test_the_wrong_valid_period_gives_the_wrong_season(trained: Trained, held_out: list[Batch]) -> None:
    """The 60 days around the target against those half a year away, decoded in the middle of both."""
    right, wrong = [], []
    for batch in held_out:
        (start, end), instant = batch.support.unbind(1), batch.targets["sentinel-2"].time[:, 0]
        away = start + (instant - start + (end - start) // 2) % (end - start)
        for valid, into in ((around(batch, instant), right), (around(batch, away), wrong)):
            into.append(error(trained.model, batch, "sentinel-2", valid, instant=valid.sum(1) // 2))
    assert_greater(wrong, right)


def patch_of(trained: Trained, top: int, left: int, side: int = 64) -> dict[str, Frames]:
    tile = Tile(top, left, top + side, left + side)
    return {
        name: window(trained.cube, name, tile, in_period(source, trained.cube.period)[::3], trained.plan.statistics)
        for name, source in trained.cube.sources.items()
    }


@torch.inference_mode()
def year_of(trained: Trained, frames: dict[str, Frames]) -> torch.Tensor:
    period = trained.cube.period
    valid = torch.tensor([[[period.start, period.end]]])
    return trained.model.summarise(trained.model.encode(frames), valid)[:, 0]


def test_the_sub_pixel_position_explains_nothing_after_training(trained: Trained) -> None:
    """Of many places, so that the land itself does not stand at even pixels by chance."""
    fields = torch.cat(
        [year_of(trained, patch_of(trained, top, left)) for top in (0, 65, 130) for left in (1, 66, 131)]
    )
    assert sub_pixel_share(fields) < 0.01


def test_a_scene_shifted_by_a_pixel_gives_embeddings_shifted_by_a_pixel(trained: Trained) -> None:
    """What stays behind is well below what would, if the embeddings did not follow."""
    followed, left_behind = [], []
    inner = slice(8, -8)
    for top in (4, 68, 132):
        for left in (4, 68, 132):
            before, after = (year_of(trained, patch_of(trained, top, left + step))[0] for step in (0, 1))
            moved = before.roll(-1, dims=2)
            followed.append((1 - (moved * after).sum(0))[inner, inner].mean().item())
            left_behind.append((1 - (before * after).sum(0))[inner, inner].mean().item())
    assert_greater(left_behind, [2 * each for each in followed])


def test_vectors_with_half_of_the_frames_stay_nearer_than_those_of_other_pixels(trained: Trained) -> None:
    """What the consistency term is for."""

    def apart(a: torch.Tensor, b: torch.Tensor) -> float:
        return (1 - (a * b).sum(1)).mean().item()

    fewer, other = [], []
    for top in (0, 64, 128):
        for left in (0, 64, 128):
            frames = patch_of(trained, top, left)
            whole = year_of(trained, frames)
            half = {
                name: each.without((torch.arange(each.time.shape[1]) % 2 == 0)[None]) for name, each in frames.items()
            }
            fewer.append(apart(whole, year_of(trained, half)))
            other.append(apart(whole, whole.roll(20, dims=2)))
    assert_greater(other, fewer)
