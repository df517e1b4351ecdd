"""Held-out targets, valid periods, gaps and perturbation, and the objective made of them."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import YEAR, noise_frames, noise_inputs, toy_recipe

from aefcli import checkpoint
from aefcli.batch import DAY, Batch, Frames, Text, draw_valid, hold_out, make_batch, perturb
from aefcli.recipe import Recipe
from aefcli.sources import INPUTS, SOURCES
from aefcli.train import objective, schedule

SUPPORT = torch.tensor([[YEAR.start, YEAR.end]])


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, generator=rng(seed)), dim=1)


# --- batches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
def test_the_targets_leave_the_inputs(count: int) -> None:
    frames = noise_frames("sentinel-2", b=8, t=5)
    inputs, targets = hold_out(frames, count, rng())
    assert (inputs.present.flatten(2).any(-1).sum(1) == 5 - count).all()
    assert targets.present.all()
    for row in range(8):
        same = [
            [i for i in range(5) if torch.equal(frames.pixels[row, i], targets.pixels[row, k])] for k in range(count)
        ]
        assert all(len(each) == 1 for each in same)
        held = [each[0] for each in same]
        assert sorted(held) == [i for i in range(5) if not inputs.present[row, i].any()]
        assert torch.equal(targets.time[row], frames.time[row, held])
        assert not inputs.weight[row, held].any()


def test_any_clear_frame_may_become_any_target() -> None:
    frames = noise_frames("sentinel-2", b=300, t=5, side=16)
    frames = replace(frames, weight=frames.weight * (torch.arange(5) != 2)[None, :, None, None])
    inputs, targets = hold_out(frames, 2, rng())
    for k in range(2):
        first = frames.time.gather(1, torch.zeros(300, 1, dtype=torch.long))
        assert 30 < (targets.time[:, k] == first[:, 0]).sum() < 140
    assert inputs.present[:, 2].all(), "what is clouded is no target"


def test_where_frames_are_few_one_stays_and_targets_are_left_out() -> None:
    """Of t frames, of which some were delivered and some of these are clear, at most 4 are held out."""
    for t, there, clear, held in ((5, 5, 2, 2), (3, 3, 3, 2), (2, 2, 2, 1), (1, 1, 1, 1), (5, 1, 1, 1), (6, 6, 6, 4)):
        frames = noise_frames("landsat", t=t)
        present = frames.present & (torch.arange(t) < there)[None, :, None, None]
        weight = frames.weight * (torch.arange(t) < clear)[None, :, None, None]
        inputs, targets = hold_out(replace(frames, present=present, weight=weight), 4, rng())
        assert targets.present.shape[:2] == (2, 4)
        assert targets.present.flatten(2).any(-1).sum(1).tolist() == [held] * 2, (t, there, clear)
        assert inputs.present.flatten(2).any(-1).sum(1).tolist() == [there - held] * 2
        assert not targets.weight[~targets.present].any()


def test_a_poisoned_target_cannot_reach_the_embedding() -> None:
    inputs = noise_inputs(b=3)
    supports = SUPPORT.expand(3, 2)
    batch = make_batch(inputs, {}, supports, 0.3, rng(), targets=2)
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
    inputs, target = hold_out(frames, 1, rng())
    assert inputs.present.all()
    assert not target.weight.any()
    assert not target.present.any()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31),
    st.lists(st.integers(0, 364), min_size=1, max_size=8),
    st.sampled_from([YEAR.end - YEAR.start, 30 * DAY, 6 * DAY]),
)
def test_valid_periods_hold_the_instant_and_are_longer_than_four_days(seed: int, days: list[int], length: int) -> None:
    support = torch.tensor([[YEAR.start, YEAR.start + length]]).expand(len(days), 2)
    instant = (YEAR.start + torch.tensor(days) * DAY).clamp(max=YEAR.start + length - 1)[:, None].expand(-1, 3)
    valid = draw_valid(support, instant, 0.3, rng(seed))
    start, end = valid.unbind(-1)
    assert start.shape == instant.shape
    assert (start >= support[:, :1]).all()
    assert (end <= support[:, 1:]).all()
    assert (start <= instant).all()
    assert (instant < end).all()
    assert (end - start > 4 * DAY).all()


def test_each_source_has_a_period_of_its_own_around_its_first_target() -> None:
    batch = make_batch(noise_inputs(b=4, t=6), {}, SUPPORT.expand(4, 2), 0.0, rng(), targets=3)
    assert len(torch.cat(list(batch.valid.values())).unique(dim=0)) == 4 * len(INPUTS)
    for name, valid in batch.valid.items():
        assert batch.targets[name].time.shape == (4, 3)
        time = batch.targets[name].time[:, 0]
        assert ((valid[:, 0] <= time) & (time < valid[:, 1])).all()


def test_what_a_row_draws_hangs_on_its_own_generator() -> None:
    """The second row alone is what it is beside another."""
    inputs = noise_inputs(b=2, t=6)
    both = make_batch(inputs, {}, SUPPORT.expand(2, 2), 0.3, [rng(1), rng(2)], targets=2)
    second = {name: Frames(*(getattr(frames, f.name)[1:] for f in fields(Frames))) for name, frames in inputs.items()}
    alone = make_batch(second, {}, SUPPORT, 0.3, [rng(2)], targets=2)
    for name in INPUTS:
        assert torch.equal(both.inputs[name].present[1:], alone.inputs[name].present)
        assert torch.equal(both.targets[name].pixels[1:], alone.targets[name].pixels)
        assert torch.equal(both.valid[name][1:], alone.valid[name])
        assert torch.equal(both.student.drops[name][1:], alone.student.drops[name])
    assert torch.equal(both.student.valid[1:], alone.student.valid)


def test_a_batch_in_one_block_of_memory_is_the_same() -> None:
    alone = {"gedi": noise_frames("gedi", t=1), "nlcd": noise_frames("nlcd", t=1)}
    batch = make_batch(noise_inputs(t=3), alone, SUPPORT.expand(2, 2), 0.3, rng())
    moved = batch.share()
    assert torch.equal(moved.support, batch.support)
    assert torch.equal(moved.student.valid, batch.student.valid)
    places = set()
    for ours, theirs in ((batch.inputs, moved.inputs), (batch.targets, moved.targets)):
        for name, frames in ours.items():
            for f in fields(frames):
                one, other = getattr(frames, f.name), getattr(theirs[name], f.name)
                assert torch.equal(one, other)
                assert other.is_shared()
                places.add(other.untyped_storage().data_ptr())
    assert len(places) == 1


def test_perturbation_is_drawn_per_sample_and_follows_the_paper() -> None:
    count = 600
    inputs = noise_inputs(b=count, t=6, side=16)
    student = perturb(inputs, SUPPORT.expand(count, 2), rng())
    there, valid = {name: ~dropped for name, dropped in student.drops.items()}, student.valid
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


# --- the objective ---------------------------------------------------------------------------------------------------


def falling(plan: Recipe, batch: Batch, steps: int = 40) -> list[dict[str, float]]:
    """The named losses of a batch seen again and again."""
    model = checkpoint.build(plan)
    adam = torch.optim.Adam(model.parameters(), lr=plan.train.lr)
    seen = []
    for _ in range(steps):
        loss, parts = objective(model, batch, plan, rng())
        adam.zero_grad()
        loss.backward()
        adam.step()
        seen.append({name: part.item() for name, part in parts.items()})
    return seen


def smooth(frames: Frames) -> Frames:
    """Without noise between pixels, which nothing could learn."""
    return replace(frames, pixels=frames.pixels.mean(dim=(3, 4), keepdim=True).expand_as(frames.pixels) * 8)


def test_the_objective_falls_on_a_batch_seen_again_and_again() -> None:
    plan = toy_recipe(train={"lr": 3e-3})
    inputs = {name: smooth(frames) for name, frames in noise_inputs(b=2, t=3).items()}
    seen = falling(plan, make_batch(inputs, {}, SUPPORT.expand(2, 2), 1.0, rng()))
    for name in INPUTS:
        assert seen[-1][name] < 0.6 * seen[0][name], name


def everything(b: int = 3) -> tuple[Recipe, Batch]:
    """A recipe with every target of the table, and a batch that has them all."""
    targets = [name for name, source in SOURCES.items() if source.role == "target"]
    plan = toy_recipe(
        data={"targets": targets}, model={"text": 12}, loss={"pixels": 64, "text": 0.1}, train={"lr": 3e-3}
    )
    alone = {name: noise_frames(name, b=b, t=1) for name in targets if name != "text"}
    alone = {name: f if SOURCES[name].kind == "categorical" else smooth(f) for name, f in alone.items()}
    inputs = {name: smooth(frames) for name, frames in noise_inputs(b=b, t=3).items()}
    batch = make_batch(inputs, alone, SUPPORT.expand(b, 2), 1.0, rng())
    vector = torch.nn.functional.normalize(torch.randn(b, 12, generator=rng(8)), dim=1)
    text = Text(vector, torch.randint(32, (b, 2), generator=rng(7)), SUPPORT.expand(b, 2), torch.arange(b) > 0)
    return plan, replace(batch, text=text)


def test_every_target_of_the_table_is_decoded_and_learned() -> None:
    plan, batch = everything()
    assert len(batch.targets) == len(SOURCES) - 1  # all but text, which is a target too
    seen = falling(plan, batch)
    assert set(seen[0]) == {*SOURCES, "uniformity", "consistency"}
    for name in SOURCES:
        # The classes are noise: they can be known by heart in part only.
        assert seen[-1][name] < (0.98 if SOURCES[name].kind == "categorical" else 0.7) * seen[0][name], name


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"checkpointing": True}])
def test_the_objective_in_bfloat16_and_with_checkpointing(options: dict[str, object]) -> None:
    """The same loss, within the rounding of bfloat16, and finite gradients in float32."""
    plan, batch = everything()
    whole = {}
    for recipe in (plan, plan.replace(train=options)):
        model = checkpoint.build(recipe).train()
        model.checkpointing = recipe.train.checkpointing
        loss, _ = objective(model, batch, recipe, rng())
        loss.backward()
        assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())
        whole[recipe.train.dtype, recipe.train.checkpointing] = loss.item()
    first, second = whole.values()
    assert second == pytest.approx(first, rel=0.02 if "dtype" in options else 1e-5)


def test_coarser_cubes_take_fewer_pixels_to_a_cell_and_shift_less() -> None:
    """At 30 m Landsat's cells are single pixels, and 20 m reach no other pixel."""
    plan, batch = everything()
    model, parts = checkpoint.build(plan), {}
    for gsd in (10.0, 30.0):
        _, parts[gsd] = objective(model, replace(batch, gsd=gsd), plan, rng())
    assert all(part.isfinite() for part in parts[30.0].values())
    assert parts[30.0]["sentinel-2"] > parts[10.0]["sentinel-2"]


def test_the_texts_temperature_comes_back_from_its_bound() -> None:
    """At the bound its gradient is alive."""
    plan, _ = everything()
    head = checkpoint.build(plan).text
    assert head is not None
    with torch.no_grad():
        head.log_scale.fill_(9.0)
    head.bound()
    assert head.scale.item() == pytest.approx(100, rel=1e-5)
    head.scale.backward()
    assert head.log_scale.grad is not None
    assert head.log_scale.grad > 0


def test_a_source_that_the_batch_lacks_has_no_error() -> None:
    plan, batch = everything()
    gone = {**batch.targets, "gedi": batch.targets["gedi"].without(torch.ones(3, 1, dtype=torch.bool))}
    one = replace(batch.text, there=torch.arange(3) == 1)
    _, parts = objective(checkpoint.build(plan), replace(batch, targets=gone, text=one), plan, rng())
    there = {name for name, part in parts.items() if part.isfinite()}
    assert there == {*SOURCES, "uniformity", "consistency"} - {"gedi", "text"}


def test_compiled_training_gives_the_same_loss_and_gradients() -> None:
    """In a process of its own: shapes are not checked inside of what is compiled."""
    code = """
import sys; sys.path.insert(0, "tests")
import torch
from toys import YEAR, noise_inputs, toy_recipe
from aefcli import checkpoint
models = [checkpoint.build(toy_recipe()) for _ in range(2)]
with torch.no_grad():
    for a, b in zip(*(model.parameters() for model in models)):
        a += 0.02 * torch.randn_like(a)
        b.copy_(a)
models[1].compile_operators()
for frames in (4, 3):
    outs = [m.summarise(m.encode(noise_inputs(t=frames)), torch.tensor([[[YEAR.start, YEAR.end]]] * 2)) for m in models]
    torch.testing.assert_close(*outs, atol=1e-5, rtol=0)
outs[0][:, :, 0].mean().backward(), outs[1][:, :, 0].mean().backward()
for (name, a), b in zip(models[0].named_parameters(), models[1].parameters()):
    assert (a.grad is None) == (b.grad is None), name
    if a.grad is not None:
        torch.testing.assert_close(a.grad, b.grad, atol=1e-4, rtol=1e-3, msg=lambda text: f"{name}: {text}")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_schedule_rises_and_falls_linearly() -> None:
    train = toy_recipe(train={"steps": 100, "warmup": 10, "lr": 1e-3}).train
    rates = [schedule(step, train) for step in range(1, 101)]
    assert rates[0] == pytest.approx(1e-4)
    assert max(rates) == rates[9] == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(1e-3 / 90)
    np.testing.assert_allclose(np.diff(rates[10:]), -1e-3 / 90, rtol=1e-6)


def test_a_line_of_radar_is_blanked_alike_in_all_frames_and_no_other_source() -> None:
    count, side = 200, 32
    inputs = noise_inputs(b=count, t=4, side=side)
    batch = make_batch(inputs, {}, SUPPORT.expand(count, 2), 0.3, rng())
    for name, frames in batch.inputs.items():
        held = ~frames.present.flatten(2).any(-1)
        assert held.sum(1).eq(1).all()
        gaps = ~frames.present.flatten(0, 1)[~held.flatten()].unflatten(0, (count, 3))
        assert torch.equal(gaps, gaps[:, :1].expand_as(gaps))  # alike in every frame
        assert torch.equal(frames.weight == 0, ~frames.present)
        blank = gaps[:, 0].flatten(1).sum(1)
        if name != "sentinel-1":
            assert not blank.any()
            continue
        # A line of 0.5 to 2 px through a point of the patch: at most 2 px times the diagonal, seldom nothing.
        assert blank.max() <= 2 * (math.sqrt(2) * side + 2)
        assert (blank > 0).float().mean() > 0.85
        for gap in gaps[:, 0][blank > 8]:
            places = gap.nonzero().double()
            across = torch.linalg.svdvals(places - places.mean(0))[-1] / math.sqrt(len(places))
            assert across < 2 / math.sqrt(12) + 0.3  # spread of a stripe 2 px wide
    assert batch.targets["sentinel-1"].present.all()  # the target is whole: the line is to be filled


def test_sources_that_disagree_in_size_are_refused() -> None:
    frames = {"sentinel-2": noise_frames("sentinel-2"), "landsat": noise_frames("landsat", side=16)}
    with pytest.raises(ValueError, match="disagree"):
        make_batch(frames, {}, SUPPORT.expand(2, 2), 0.3, rng())


def test_without_drops_presence_and_weight_alone() -> None:
    frames = noise_frames("sentinel-1")
    gone = torch.tensor([[True, False, False, False]] * 2)
    left: Frames = frames.without(gone)
    assert not left.present[:, 0].any()
    assert not left.weight[:, 0].any()
    assert left.present[:, 1:].all()
    assert torch.equal(left.pixels, frames.pixels)
