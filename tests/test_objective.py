"""Held-out targets, valid periods, perturbation, and the terms of the loss."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import YEAR, noise_frames, noise_inputs, toy_recipe

from aefcli import checkpoint, losses
from aefcli.batch import DAY, Batch, Frames, draw_valid, hold_out, make_batch, perturb
from aefcli.train import objective, schedule

SUPPORT = torch.tensor([[YEAR.start, YEAR.end]])


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, generator=rng(seed)), dim=1)


# --- batches --------------------------------------------------------------------------------------------------------


def test_the_target_leaves_the_inputs() -> None:
    frames = noise_frames("sentinel-2", b=8, t=5)
    inputs, target = hold_out(frames, rng())
    assert (inputs.present.flatten(2).any(-1).sum(1) == 4).all()
    for row in range(8):
        same = [i for i in range(5) if torch.equal(frames.pixels[row, i], target.pixels[row, 0])]
        assert same == [i for i in range(5) if not inputs.present[row, i].any()]
        assert len(same) == 1
        assert target.time[row, 0] == frames.time[row, same[0]]
        assert not inputs.weight[row, same].any()


def test_a_poisoned_target_cannot_reach_the_embedding() -> None:
    inputs = noise_inputs(b=3)
    supports = SUPPORT.expand(3, 2)
    batch = make_batch(inputs, supports, 0.3, rng())
    poisoned = {}
    for name, frames in batch.inputs.items():
        gone = ~frames.present.flatten(2).any(-1)
        assert gone.any()
        poisoned[name] = replace(frames, pixels=frames.pixels.masked_fill(gone[:, :, None, None, None], torch.nan))
    model = checkpoint.build(toy_recipe())
    valid = torch.stack(list(batch.valid.values()), 1)
    assert model.summarise(model.encode(poisoned), valid).isfinite().all()


def test_a_sample_with_nothing_clear_keeps_its_inputs() -> None:
    frames = noise_frames("landsat")
    frames = replace(frames, weight=torch.zeros_like(frames.weight))
    inputs, target = hold_out(frames, rng())
    assert inputs.present.all()
    assert not target.weight.any()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31),
    st.lists(st.integers(0, 364), min_size=1, max_size=8),
    st.sampled_from([YEAR.end - YEAR.start, 30 * DAY, 6 * DAY]),
)
def test_valid_periods_hold_the_instant_and_are_longer_than_four_days(seed: int, days: list[int], length: int) -> None:
    support = torch.tensor([[YEAR.start, YEAR.start + length]]).expand(len(days), 2)
    instant = (YEAR.start + torch.tensor(days) * DAY).clamp(max=YEAR.start + length - 1)
    valid = draw_valid(support, instant, 0.3, rng(seed))
    assert (valid[:, 0] >= support[:, 0]).all()
    assert (valid[:, 1] <= support[:, 1]).all()
    assert (valid[:, 0] <= instant).all()
    assert (instant < valid[:, 1]).all()
    assert (valid[:, 1] - valid[:, 0] > 4 * DAY).all()


def test_perturbation_is_drawn_per_sample_and_follows_the_paper() -> None:
    count = 600
    inputs = noise_inputs(b=count, t=6, side=16)
    batch = Batch(inputs, {}, {}, SUPPORT.expand(count, 2))
    student, valid = perturb(batch, rng())
    there = {name: frames.present.flatten(2).any(-1) for name, frames in student.items()}
    middle = (YEAR.start + YEAR.end) // 2
    late = (valid == torch.tensor([middle, YEAR.end])).all(1)
    early = (valid == torch.tensor([YEAR.start, middle])).all(1)
    scattered = ~late & ~early
    for kind in (late, early, scattered):
        assert kind.float().mean().item() == pytest.approx(1 / 3, abs=0.07)
    for name, frames in inputs.items():
        after = frames.time >= middle
        assert not there[name][late][after[late]].any()
        assert not there[name][early][~after[early]].any()
    assert there["sentinel-2"][late].sum() == (inputs["sentinel-2"].time < middle)[late].sum()
    kept = there["sentinel-2"][scattered]
    assert kept.any(1).all()
    assert kept.float().mean().item() == pytest.approx(0.5, abs=0.06)
    for name in ("landsat", "sentinel-1"):
        assert (~there[name][scattered].any(1)).float().mean().item() == pytest.approx(0.3, abs=0.08)
    assert torch.equal(inputs["landsat"].pixels, student["landsat"].pixels)


# --- the objective ---------------------------------------------------------------------------------------------------


def test_the_objective_falls_on_a_batch_seen_again_and_again() -> None:
    plan = toy_recipe(train={"lr": 3e-3})
    model = checkpoint.build(plan)
    inputs = noise_inputs(b=2, t=3)
    smooth = {
        name: replace(f, pixels=f.pixels.mean(dim=(3, 4), keepdim=True).expand_as(f.pixels) * 8)
        for name, f in inputs.items()
    }
    batch = make_batch(smooth, SUPPORT.expand(2, 2), 1.0, rng())
    student, period = perturb(batch, rng())
    adam = torch.optim.Adam(model.parameters(), lr=plan.train.lr)
    seen = []
    for _ in range(40):
        loss, parts = objective(model, batch, student, period, plan, rng())
        adam.zero_grad()
        loss.backward()
        adam.step()
        seen.append({name: part.item() for name, part in parts.items()})
    for name in ("sentinel-2", "sentinel-1", "landsat"):
        assert seen[-1][name] < 0.6 * seen[0][name], name


def test_the_schedule_rises_and_falls_linearly() -> None:
    train = toy_recipe(train={"steps": 100, "warmup": 10, "lr": 1e-3}).train
    rates = [schedule(step, train) for step in range(1, 101)]
    assert rates[0] == pytest.approx(1e-4)
    assert max(rates) == rates[9] == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(1e-3 / 90)
    np.testing.assert_allclose(np.diff(rates[10:]), -1e-3 / 90, rtol=1e-6)


def test_sources_that_disagree_in_size_are_refused() -> None:
    frames = {"sentinel-2": noise_frames("sentinel-2"), "landsat": noise_frames("landsat", side=16)}
    with pytest.raises(ValueError, match="disagree"):
        Batch(frames, {}, {}, SUPPORT.expand(2, 2))


def test_without_drops_presence_and_weight_alone() -> None:
    frames = noise_frames("sentinel-1")
    gone = torch.tensor([[True, False, False, False]] * 2)
    left: Frames = frames.without(gone)
    assert not left.present[:, 0].any()
    assert not left.weight[:, 0].any()
    assert left.present[:, 1:].all()
    assert torch.equal(left.pixels, frames.pixels)
