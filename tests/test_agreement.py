"""What weights begin as: known axes of agreement are found, clouds are told, and halves of the frames come together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from toys import YEAR, noise_frames, toy_recipe

from aefcli import agreement, checkpoint
from aefcli.batch import Batch, Frames, Student
from aefcli.model import Model
from aefcli.model.parts import silent

CLOUD = 3.0  # of what lies below, in sigmas


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def landscape(seed: int, b: int = 4, t: int = 12) -> Batch:
    """Places of their own colours in every source, a third of the frames of Sentinel-2 under bright cloud."""
    draws = rng(seed)
    inputs: dict[str, Frames] = {}
    for name in toy_recipe().data.sources:
        frames = noise_frames(name, b=b, t=t, side=16, seed=seed)
        ground = torch.randn(b, 1, frames.pixels.shape[2], 16, 16, generator=draws)
        pixels, weight = ground + 0.5 * frames.pixels, frames.present.float()
        if name == "sentinel-2":
            cloud = torch.rand(b, t, 16, 16, generator=draws) < 0.3
            pixels = torch.where(cloud[:, :, None], CLOUD + 0.5 * frames.pixels, pixels)
            weight = weight * ~cloud
        inputs[name] = replace(frames, pixels=pixels, weight=weight)
    support = torch.tensor([[YEAR.start, YEAR.end]] * b)
    drops = {name: torch.zeros(b, t, dtype=torch.bool) for name in inputs}
    return Batch(inputs, {}, {}, support, torch.ones(b, dtype=torch.bool), student=Student(drops, support))


@pytest.fixture(scope="module")
def begun() -> tuple[Model, Model]:
    """A fresh network, and the same fitted."""
    fresh, fitted = checkpoint.build(toy_recipe()).eval(), checkpoint.build(toy_recipe()).eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agreement, "_KEPT", 3)  # so that the last one is not held
        agreement.begin(fitted, (landscape(seed) for seed in range(4)), rng(0))
    return fresh, fitted


def test_axes_that_repeat_come_first_and_noise_weighs_little() -> None:
    draws = rng(1)
    signal = torch.randn(20_000, 3, generator=draws) * torch.tensor([0.3, 1.0, 3.0])
    spread = torch.tensor([1.0, 1.0, 1.0, 10.0])  # the widest axis of all is noise
    one, other = (
        torch.cat([signal, torch.zeros(20_000, 1)], 1) + spread * torch.randn(20_000, 4, generator=draws) + 5
        for _ in range(2)
    )
    views = agreement.Views()
    for part in (slice(0, 5_000), slice(5_000, None)):
        views.add(one[part], other[part])
    weight, mean = views.agreeing(6)
    torch.testing.assert_close(mean, torch.full((4,), 5.0), atol=0.1, rtol=0)
    assert not weight[4:].any()  # there are no more axes than numbers
    answers = [(view - mean) @ weight.T for view in (one, other)]
    torch.testing.assert_close(torch.stack(answers).square().mean(), torch.tensor(1.0), atol=1e-3, rtol=0)
    agreed = [torch.corrcoef(torch.stack([a, b]))[0, 1] for a, b in zip(*(x.T[:4] for x in answers), strict=True)]
    expected = torch.tensor([9 / 10, 1 / 2, 0.09 / 1.09, 0.0])  # variance of the signal in that of all
    torch.testing.assert_close(torch.stack(agreed), expected, atol=0.03, rtol=0)
    assert (answers[0].var(0)[:3].diff() < 0).all()  # each weighs as far as it repeats
    assert answers[0].var(0)[3] < 0.01 * answers[0].var(0)[0]


@torch.inference_mode()
def test_the_guess_at_what_is_clear_is_learned_from_the_masks(begun: tuple[Model, Model]) -> None:
    batch = landscape(9)
    frames = batch.inputs["sentinel-2"]
    right = []
    for model in begun:
        guess = model.stem["sentinel-2"].clear(frames.pixels.flatten(0, 1))[:, 0]
        right.append(((guess > 0) == (frames.weight.flatten(0, 1) > 0))[frames.present.flatten(0, 1)].float().mean())
    assert right[1] > 0.97
    assert right[0] < 0.9


@torch.inference_mode()
def test_halves_of_the_frames_tell_a_place_from_others(begun: tuple[Model, Model]) -> None:
    batch = landscape(9)
    agreed = []
    for model in begun:
        halves = []
        for side in (0, 1):
            gone = (torch.arange(12) % 2 == side).expand(4, 12)
            encoded = model.encode({name: frames.without(gone) for name, frames in batch.inputs.items()})
            halves.append(model.summarise(encoded, batch.support[:, None])[:, 0].movedim(1, -1).flatten(0, -2))
        one, other = (half - half.mean(0) for half in halves)
        agreed.append((one * other).sum(1).mean() / (one.square().sum(1).mean() * other.square().sum(1).mean()).sqrt())
    assert agreed[1] > 0.8
    assert agreed[1] > agreed[0] + 0.1


@pytest.mark.parametrize("late", [0, 3])
def test_a_source_that_lacks_at_half_of_the_places_is_no_axis(late: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Places without Landsat lack it in both halves: that would repeat better than any colour of the ground. Nor is it
    one where none of the batches that are held has any.
    """
    monkeypatch.setattr(agreement, "_KEPT", 3)
    batches = [landscape(seed) for seed in range(6)]
    lacking = torch.zeros(4, 12, dtype=torch.bool)
    lacking[:2] = True
    bare = [with_landsat(batch, batch.inputs["landsat"].without(lacking)) for batch in batches]
    for batch in batches[:late]:
        bare.insert(0, replace(batch, inputs={n: f for n, f in batch.inputs.items() if n != "landsat"}))
    model = checkpoint.build(toy_recipe())
    agreement.begin(model, bare, rng(0))
    there = torch.tensor([0.0, 0, 1, 1]).repeat_interleave(256)
    told = []
    for batch in (
        with_landsat(landscape(seed), landscape(seed).inputs["landsat"].without(lacking)) for seed in (7, 8, 9)
    ):
        field = model.summarise(model.encode(batch.inputs), batch.support[:, None])[:, 0].detach()
        told.append(field.movedim(1, -1).flatten(0, -2))
    correlation = torch.corrcoef(torch.cat([torch.cat(told).T, there.repeat(3)[None]]))[-1, :-1].abs()
    assert correlation.nan_to_num().max() < 0.3  # not a number where there are no more axes


def test_places_seen_once_or_never_clear_leave_finite_weights() -> None:
    fresh = checkpoint.build(toy_recipe()).state_dict()
    once = torch.ones(4, 12, dtype=torch.bool)
    once[:, 0] = False
    for kind in ("never clear", "seen once", "never seen"):
        batch = landscape(1)
        inputs = {
            name: {
                "never clear": replace(frames, weight=torch.zeros_like(frames.weight)),
                "seen once": frames.without(once if name == "landsat" else torch.ones_like(once)),
                "never seen": frames.without(torch.ones_like(once)),
            }[kind]
            for name, frames in batch.inputs.items()
        }
        model = checkpoint.build(toy_recipe())
        agreement.begin(model, [replace(batch, inputs=inputs)], rng(0))
        assert all(parameter.isfinite().all() for parameter in model.parameters()), kind
        same = torch.equal(model.summariser.level, fresh["summariser.level"])
        assert same == (kind != "never clear"), kind


def test_what_is_told_of_a_part_is_the_regression_on_the_others() -> None:
    draws = rng(2)
    common = torch.randn(20_000, 2, generator=draws) @ torch.randn(2, 6, generator=draws)
    one = common + torch.randn(20_000, 6, generator=draws)
    views = agreement.Views()
    views.add(one, one)  # no noise: both see the same
    told, away = views.told(3), one - one.mean(0)
    for part in ((0, 1), (2, 3), (4, 5)):
        rest = [at for at in range(6) if at not in part]
        expected = torch.linalg.lstsq(away[:, rest], away[:, part]).solution.T
        torch.testing.assert_close(told[part, :][:, rest], expected, atol=0.05, rtol=0)
        assert not told[part, :][:, part].any()


def test_a_source_that_lacks_is_told_from_the_others() -> None:
    """All sources see the same ground here: without one the vectors are nearer to those with it than if what is usual
    of it alone stood in for it.
    """

    def alike(seed: int) -> Batch:
        batch, draws = landscape(seed), rng(seed)
        ground = torch.randn(4, 1, 1, 16, 16, generator=draws)
        shown = {name: replace(f, pixels=0.8 * ground + 0.3 * f.pixels) for name, f in batch.inputs.items()}
        return replace(batch, inputs=shown)

    model = checkpoint.build(toy_recipe()).eval()
    agreement.begin(model, (alike(seed) for seed in range(4)), rng(0))
    batch = alike(9)

    @torch.inference_mode()
    def without(lost: str) -> torch.Tensor:
        some = {name: frames for name, frames in batch.inputs.items() if name != lost}
        return model.summarise(model.encode(some), batch.support[:, None])

    whole = without("")
    for lost in batch.inputs:
        told = without(lost)
        for name, pool in model.summariser.pools.items():
            if name != lost:
                silent(pool.instead[lost])
        near, far = ((whole - each).norm(dim=2).mean() for each in (told, without(lost)))
        assert near < 0.85 * far, lost


def test_a_source_in_no_batch_keeps_its_weights() -> None:
    model = checkpoint.build(toy_recipe())
    before = model.stem["landsat"].clear[0].weight.clone()
    batch = landscape(1)
    agreement.begin(model, [replace(batch, inputs={n: f for n, f in batch.inputs.items() if n != "landsat"})], rng(0))
    torch.testing.assert_close(model.stem["landsat"].clear[0].weight, before)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def with_landsat(batch: Batch, frames: Frames) -> Batch:
    return replace(batch, inputs=batch.inputs | {"landsat": frames})
