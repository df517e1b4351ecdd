"""Invariants of the network: what must not change the embeddings, what must, and what may never reach them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import ive
from toys import YEAR, noise_frames, noise_inputs, toy_recipe

from aefcli import checkpoint
from aefcli.batch import DAY, Frames, stack
from aefcli.extent import Period
from aefcli.model import Model, position, relative, sample_vmf, staggered, timecode

VALID = torch.tensor([[[YEAR.start, YEAR.end]]] * 2)


@pytest.fixture(scope="module")
def model() -> Model:
    """A toy network whose zero-initialised parts are stirred, so that no path is silent."""
    model = checkpoint.build(toy_recipe())
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=rng)
    return model.eval()


@torch.inference_mode()
def vectors(model: Model, inputs: dict[str, Frames], valid: torch.Tensor = VALID) -> torch.Tensor:
    return model.summarise(model.encode(inputs), valid)


def shuffled(frames: Frames, order: torch.Tensor) -> Frames:
    return Frames(
        *(getattr(frames, name)[:, order] for name in ("pixels", "present", "bands", "weight", "time", "meta"))
    )


def test_unit_norm_and_shape(model: Model) -> None:
    out = vectors(model, noise_inputs())
    assert out.shape == (2, 1, 64, 32, 32)
    torch.testing.assert_close(out.norm(dim=2), torch.ones(2, 1, 32, 32))


@pytest.mark.parametrize("side", [16, 48, 80])
def test_any_side_divisible_by_16(model: Model, side: int) -> None:
    assert vectors(model, noise_inputs(side=side)).shape[-2:] == (side, side)


def test_padding_changes_nothing(model: Model) -> None:
    inputs = noise_inputs()
    padded = {}
    for name, frames in inputs.items():
        longer = noise_frames(name, b=1, t=9, seed=99).without(torch.ones(1, 9, dtype=torch.bool))
        padded[name] = Frames(*(part[:2] for part in vars(stack([frames, longer])).values()))
    torch.testing.assert_close(vectors(model, padded), vectors(model, inputs), atol=1e-5, rtol=0)


def test_a_sample_does_not_see_its_neighbours_in_the_batch(model: Model) -> None:
    inputs = noise_inputs()
    first = {name: Frames(*(part[:1] for part in vars(frames).values())) for name, frames in inputs.items()}
    torch.testing.assert_close(vectors(model, first, VALID[:1])[0], vectors(model, inputs)[0], atol=1e-5, rtol=0)


def test_order_of_frames_and_of_sources_changes_nothing(model: Model) -> None:
    inputs = noise_inputs()
    turned = {name: shuffled(frames, torch.tensor([2, 0, 3, 1])) for name, frames in reversed(inputs.items())}
    torch.testing.assert_close(vectors(model, turned), vectors(model, inputs), atol=1e-5, rtol=0)


def test_not_present_equals_absence(model: Model) -> None:
    inputs = noise_inputs()
    gone = torch.zeros(2, 4, dtype=torch.bool)
    gone[:, 1] = True
    dropped = {name: frames.without(gone) for name, frames in inputs.items()}
    shorter = {name: shuffled(frames, torch.tensor([0, 2, 3])) for name, frames in inputs.items()}
    torch.testing.assert_close(vectors(model, dropped), vectors(model, shorter), atol=1e-5, rtol=0)
    without = {name: frames for name, frames in inputs.items() if name != "landsat"}
    all_gone = {**without, "landsat": inputs["landsat"].without(torch.ones(2, 4, dtype=torch.bool))}
    torch.testing.assert_close(vectors(model, all_gone), vectors(model, without), atol=1e-5, rtol=0)


def test_what_is_not_present_may_be_nan(model: Model) -> None:
    inputs = noise_inputs()
    frames = inputs["sentinel-2"]
    present = frames.present.clone()
    present[:, 0] = False
    present[:, 1, :10] = False
    bands = frames.bands.clone()
    bands[:, 2, 3] = False
    poisoned = frames.pixels.masked_fill(~present[:, :, None], torch.nan)
    poisoned[:, 2, 3] = torch.nan
    clean = poisoned.nan_to_num(0.0)
    known = [replace(frames, pixels=pixels, present=present, bands=bands) for pixels in (poisoned, clean)]
    outs = [vectors(model, {**inputs, "sentinel-2": each}) for each in known]
    assert outs[0].isfinite().all()
    assert torch.equal(outs[0], outs[1])


def test_weight_never_reaches_the_encoder(model: Model) -> None:
    inputs = noise_inputs()
    unweighed = {
        name: replace(frames, weight=torch.full_like(frames.weight, torch.nan)) for name, frames in inputs.items()
    }
    assert torch.equal(vectors(model, unweighed), vectors(model, inputs))


def test_every_source_pixel_and_instant_matters(model: Model) -> None:
    inputs = noise_inputs()
    before = vectors(model, inputs)
    for name, frames in inputs.items():
        other = {**inputs, name: replace(frames, pixels=frames.pixels + 1)}
        assert (vectors(model, other) - before).abs().max() > 1e-3, name
        later = {**inputs, name: replace(frames, time=frames.time + 30 * DAY)}
        assert (vectors(model, later) - before).abs().max() > 1e-3, name


def test_periods_differ_and_the_encoder_does_not_know_them(model: Model) -> None:
    inputs = noise_inputs()
    spring, autumn = Period.parse("2023-03:2023-05"), Period.parse("2023-09:2023-11")
    both = torch.tensor([[[spring.start, spring.end], [autumn.start, autumn.end]]] * 2)
    together = vectors(model, inputs, both)
    assert (together[:, 0] - together[:, 1]).abs().max() > 1e-2
    alone = vectors(model, inputs, both[:, 1:])
    torch.testing.assert_close(together[:, 1:], alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("text", ["2019", "2030-05", "2023-06-01:2023-06-01"])
def test_extrapolated_and_empty_periods_work(model: Model, text: str) -> None:
    period = Period.parse(text)
    out = vectors(model, noise_inputs(), torch.tensor([[[period.start, period.end]]] * 2))
    torch.testing.assert_close(out.norm(dim=2), torch.ones(2, 1, 32, 32))


def test_a_site_without_frames_is_not_seen_and_stays_finite(model: Model) -> None:
    inputs = {}
    for name, frames in noise_inputs().items():
        gone = torch.zeros(2, 4, dtype=torch.bool)
        gone[1] = True
        inputs[name] = frames.without(gone)
    encoded = model.encode(inputs)
    assert encoded.seen[0].all()
    assert not encoded.seen[1].any()
    assert model.summarise(encoded, VALID).isfinite().all()


def test_gradients_are_finite_and_reach_every_weight(model: Model) -> None:
    fresh = checkpoint.build(toy_recipe())
    inputs = noise_inputs()
    out = fresh.summarise(fresh.encode(inputs), VALID)[:, 0]
    loss = sum(
        fresh.decode(name, out, frames.time[:, 0], VALID[:, 0], frames.meta[:, 0]).square().mean()
        for name, frames in inputs.items()
    )
    loss.backward()
    silent = [name for name, parameter in fresh.named_parameters() if parameter.grad is None]
    assert not silent
    assert all(parameter.grad.isfinite().all() for parameter in fresh.parameters())


def test_paths_start_staggered_and_end_at_precision() -> None:
    p, pt, pts = ("precision",), ("precision", "time"), ("precision", "time", "space")
    assert staggered(5) == [(p, pt), (pt, pts), (pts, pts), (pts, pts), (pts, p)]


def test_sub_pixel_position_explains_little_variance(model: Model) -> None:
    """The up-sampling must not give the four pixels of a cell four codes (method.md, section 5)."""
    fresh = checkpoint.build(toy_recipe()).eval()
    out = vectors(fresh, noise_inputs(b=2, t=4, side=64))[:, 0]
    cells = out.unflatten(-1, (-1, 2)).unflatten(2, (-1, 2))  # b d y 2 x 2
    phase = cells.mean(dim=(0, 2, 4))
    assert phase.var(dim=(1, 2), unbiased=False).sum() / out.var(dim=(0, 2, 3), unbiased=False).sum() < 0.01


# --- timecodes and bottleneck ---------------------------------------------------------------------------------------


def test_timecodes_are_continuous_over_the_new_year_and_tell_days_apart() -> None:
    instants = torch.tensor([Period.parse("2023").end - 1000, Period.parse("2024").start])
    codes = timecode(instants)
    assert (codes[0] - codes[1]).abs().max() < 1e-4
    days = timecode(torch.tensor([YEAR.start, YEAR.start + DAY]))
    assert (days[0] - days[1]).abs().max() > 0.1


def test_timecodes_equal_a_float64_reference() -> None:
    instants = torch.randint(Period.parse("1990").start, Period.parse("2060").start, (200,))
    days = (instants.numpy().astype("float64") - Period.parse("2020").start) / DAY
    periods = np.array([365.2425 * 2.0**k for k in range(4, -8, -1)])
    angle = 2 * np.pi * days[:, None] / periods
    np.testing.assert_allclose(timecode(instants).numpy(), np.concatenate([np.sin(angle), np.cos(angle)], 1), atol=2e-5)


def test_relative_place_is_exact_in_long_and_short_periods() -> None:
    start, end = torch.tensor([YEAR.start]), torch.tensor([YEAR.end])
    assert relative(start, start, end).item() == 0
    assert relative(torch.tensor([(YEAR.start + YEAR.end) // 2]), start, end).item() == pytest.approx(0.5)
    assert position(torch.tensor([0.25])).shape == (1, 16)


def test_vmf_sample_has_the_mean_cosine_of_the_distribution() -> None:
    mean = torch.nn.functional.normalize(torch.randn(64, generator=torch.Generator().manual_seed(0)), dim=0)
    spread = mean[None, :, None, None].expand(4, -1, 100, 100)
    drawn = sample_vmf(spread, 8000.0, torch.Generator().manual_seed(1))
    torch.testing.assert_close(drawn.norm(dim=1), torch.ones(4, 100, 100))
    bessel = ive(32, 8000.0) / ive(31, 8000.0)
    assert (drawn * spread).sum(1).mean().item() == pytest.approx(bessel, abs=4e-5)


def test_decoder_depends_on_instant_and_geometry(model: Model) -> None:
    out = vectors(model, noise_inputs())[:, 0]
    frames = noise_frames("sentinel-1")
    base = model.decode("sentinel-1", out, frames.time[:, 0], VALID[:, 0], frames.meta[:, 0])
    later = model.decode("sentinel-1", out, frames.time[:, 0] + 90 * DAY, VALID[:, 0], frames.meta[:, 0])
    other = model.decode("sentinel-1", out, frames.time[:, 0], VALID[:, 0], frames.meta[:, 0] + 1)
    assert base.shape == (2, 4, 32, 32)
    assert (base - later).abs().max() > 1e-3
    assert (base - other).abs().max() > 1e-3
