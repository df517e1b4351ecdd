"""Invariants of the network: what must not change the embeddings, what must, and what may never reach them."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import ive
from scipy.stats import ks_2samp, vonmises_fisher
from torch.utils._python_dispatch import TorchDispatchMode
from toys import YEAR, noise_frames, noise_inputs, sub_pixel_share, toy_recipe

from aefcli import checkpoint
from aefcli.batch import DAY, Frames, stack
from aefcli.extent import Period
from aefcli.model import (
    Asked,
    Encoded,
    Model,
    Neighbours,
    Pool,
    position,
    relative,
    sample_vmf,
    staggered,
    summariser,
    timecode,
    timecodes,
)

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


def test_no_parameter_is_a_scalar(model: Model) -> None:
    """FSDP takes none."""
    assert all(parameter.ndim for parameter in model.parameters())


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


@pytest.mark.parametrize(("text", "late"), [("2030-05", True), ("2019", False)])
def test_beyond_all_frames_the_year_beside_them_is_read(text: str, late: bool) -> None:
    model = checkpoint.build(toy_recipe()).eval()  # fresh: the query knows nothing of periods yet
    frames = noise_inputs()["sentinel-2"]  # of instants of its own at each site
    first, last = frames.time.min(1).values, frames.time.max(1).values
    ends = [last - timecodes.YEAR, last] if late else [first, first + timecodes.YEAR]
    period = Period.parse(text)
    beyond = vectors(model, {"sentinel-2": frames}, torch.tensor([[[period.start, period.end]]] * 2))
    beside = vectors(model, {"sentinel-2": frames}, torch.stack(ends, dim=1)[:, None])
    torch.testing.assert_close(beyond, beside, atol=1e-6, rtol=0)


def test_a_frame_on_either_side_of_a_periods_start_makes_little_difference() -> None:
    model, frames = checkpoint.build(toy_recipe()).eval(), noise_inputs()["sentinel-2"]
    frames.time[:] = frames.time.sort(dim=1).values
    month = frames.time.max() + DAY // 2
    found = []
    for hours in (-1, 1):
        frames.time[:, -1] = month + hours * DAY // 24
        found.append(vectors(model, {"sentinel-2": frames}, torch.tensor([[[month, month + 30 * DAY]]] * 2)))
    assert F.cosine_similarity(*found, dim=2).min() > 0.999


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


def listed(field: torch.Tensor) -> torch.Tensor:
    """A map (b, d, h, w) as the list of its pixels (b, h w, d), as decoders take them."""
    return field.flatten(2).transpose(1, 2)


def test_gradients_are_finite_and_reach_every_weight(model: Model) -> None:
    fresh = checkpoint.build(toy_recipe())
    inputs = noise_inputs()
    out = listed(fresh.summarise(fresh.encode(inputs), VALID)[:, 0])
    loss = sum(
        fresh.decode(name, out, frames.time[:, 0], VALID[:, 0], frames.meta[:, 0]).square().mean()
        for name, frames in inputs.items()
    )
    loss.backward()
    silent = [name for name, parameter in fresh.named_parameters() if parameter.grad is None]
    assert not silent
    assert all(parameter.grad.isfinite().all() for parameter in fresh.parameters())


def test_gradients_equal_finite_differences(model: Model) -> None:
    """gradcheck in float64 through encoder, summariser and a decoder: for the pixels and some weights of every part."""
    exact = copy.deepcopy(model).double()
    frames = {
        name: replace(f, pixels=f.pixels.double())
        for name, f in noise_inputs(b=1, t=2, side=16).items()
        if name != "landsat"
    }
    rng = torch.Generator().manual_seed(3)
    weights = [p for name, p in exact.named_parameters() if name.endswith(("norm.weight", "norms.0.bias", "centre"))]
    pool = exact.summariser.pools["sentinel-1"]
    weights += [pool.log_width, pool.usual, exact.stem["sentinel-1"].source]
    spots = torch.randint(256, (3,), generator=rng)
    along = torch.randn(3, 4, generator=rng, dtype=torch.float64)
    touched = torch.randn(5, generator=rng, dtype=torch.float64)

    def answer(step: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        radar = frames["sentinel-1"]
        pixels = radar.pixels.index_put((torch.tensor(0),) * 5, step[0], accumulate=True)
        pixels = pixels.index_put(tuple(torch.tensor(i) for i in (0, 1, 1, 9, 6)), step[1], accumulate=True)
        encoded = exact.encode({**frames, "sentinel-1": replace(radar, pixels=pixels)})
        field = listed(exact.summarise(encoded, VALID[:1])[:, 0])[:, spots]
        decoded = exact.decode("sentinel-1", field, radar.time[:, 0], VALID[:1, 0], radar.meta[:, 0].double())
        return (decoded[0] * along).sum()

    step = touched[:2].clone().requires_grad_()
    assert torch.autograd.gradcheck(answer, (step, *weights), eps=1e-6, atol=1e-6, rtol=1e-4)


def test_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for keep in (False, True):
        fresh = checkpoint.build(toy_recipe()).train()
        fresh.checkpointing = keep
        fresh.summarise(fresh.encode(noise_inputs()), VALID)[:, 0, 0].sum().backward()
        gradients.append([p.grad for p in fresh.parameters() if p.grad is not None])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain)


@torch.inference_mode()
def test_periods_are_summarised_so_many_at_a_time(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded, sizes, pool = model.encode(noise_inputs()), set[int](), Pool.asked
    valid = torch.cat([VALID, VALID - YEAR.end + YEAR.start, VALID + torch.tensor([0, DAY])], dim=1)
    each = torch.cat([model.summarise(encoded, period) for period in valid.split(1, dim=1)], dim=1)

    def noted(self: Pool, frames: Encoded, cells: torch.Tensor, few: torch.Tensor) -> Asked:
        sizes.add(few.shape[1])
        return pool(self, frames, cells, few)

    monkeypatch.setattr(Pool, "asked", noted)
    for at_once, expected in ((1, {1}), (2, {1, 2}), (3, {3}), (4, {3}), (None, {3})):
        sizes.clear()
        torch.testing.assert_close(model.summarise(encoded, valid, at_once), each, atol=1e-6, rtol=0)
        assert sizes == expected


@torch.inference_mode()
@pytest.mark.parametrize("whole", [True, False])
def test_projecting_before_or_after_pooling_is_the_same_sum(
    model: Model, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    inputs, start = noise_inputs(t=3), torch.arange(12)[:, None] * 30 * DAY
    for frames in inputs.values():
        frames.present[0, 1] = False
        if not whole:  # pixels that some frames show and others do not
            frames.present[:, 0, ::3] = frames.present[:, 2, :, ::2] = False
    valid = (VALID[:, :1] + torch.cat([start, start - 300 * DAY], dim=1)).contiguous()
    encoded, chosen = model.encode(inputs), set[bool]()
    pooled, answers = Pool.projected, {}
    monkeypatch.setattr(Pool, "projected", lambda *given: chosen.add(first) or pooled(*given))
    for first in (True, False):
        monkeypatch.setattr(summariser, "_project_first", lambda *_, first=first: first)
        answers[first] = model.summarise(encoded, valid)
    assert chosen == {True}, "by the first alone"
    torch.testing.assert_close(answers[True], answers[False], atol=1e-6, rtol=0)


def test_a_frame_without_any_band_has_no_share_of_the_detail(model: Model) -> None:
    """With gradients every weight is divided by what showed the pixel; without, only where that is not all."""
    inputs = noise_inputs(t=3)
    inputs["sentinel-1"].bands[:, 1] = False
    encoded = model.encode(inputs)
    divided = model.summarise(encoded, VALID)
    with torch.no_grad():
        torch.testing.assert_close(model.summarise(encoded, VALID), divided, atol=1e-6, rtol=0)


def test_what_takes_less_is_projected_first() -> None:
    frames, periods, into, out = 10, 12, 64, 16
    assert summariser._project_first(frames, periods, into, out)
    assert not summariser._project_first(frames, 1, into, out)
    assert not summariser._project_first(100 * frames, periods, into, out)


def test_cells_of_any_number_of_samples_are_pooled_a_few_at_a_time(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However large the batch, no more is held at once, and nothing else comes out of it."""
    inputs, valid = noise_inputs(b=5), VALID[:1].expand(5, 1, 2)
    encoded, sizes, pool = model.encode(inputs), [], Pool.forward
    once = model.summarise(encoded, valid)

    def noted(self: Pool, asked: Asked, *others: Any) -> Any:
        sizes.append(math.prod(asked.cells.shape[:3]) * asked.wanted.shape[-1] * asked.cells.shape[-1])
        return pool(self, asked, *others)

    monkeypatch.setattr(Pool, "forward", noted)
    row = 16 * 2 * (4 * 6 + 4 + 16 + 1)  # cells, heads, and what each head pools of a cell
    for rows, times in ((3, 2), (40, 1), (1, 1)):
        monkeypatch.setattr(summariser, "_POOLED", rows * row)
        monkeypatch.setattr(summariser, "_SAMPLES", times)
        sizes.clear()
        torch.testing.assert_close(model.summarise(encoded, valid), once, atol=1e-6, rtol=0)
        assert max(sizes) <= times * rows * row
        assert sum(sizes) == 3 * 5 * 16 * row, "each cell of each source once"
    monkeypatch.setattr(summariser, "_EXPANDED", 2 * 32 * 32)
    torch.testing.assert_close(model.summarise(encoded, valid), once, atol=1e-6, rtol=0)


def test_bfloat16_embeddings_have_unit_norm_and_stay_close(model: Model) -> None:
    inputs = noise_inputs()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = vectors(model, inputs)
    exact = vectors(model, inputs)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded.norm(dim=2), torch.ones(2, 1, 32, 32), atol=1e-5, rtol=0)
    assert not torch.equal(rounded, exact)
    assert (rounded * exact).sum(2).mean() > 0.995


def test_sources_bands_and_numbers_of_frames_mix_in_one_batch(model: Model) -> None:
    """Each site gets what it gets alone, whatever its neighbours have: other sources, bands, numbers of frames."""
    sites = [noise_inputs(b=1, t=t) for t in (1, 5, 3)]
    none = torch.ones(1, 5, dtype=torch.bool)
    sites[1]["landsat"] = sites[1]["landsat"].without(none)
    sites[1]["sentinel-2"] = sites[1]["sentinel-2"].without(none)
    some = sites[2]["sentinel-1"].bands.clone()
    some[:, :2, 2:] = False
    sites[2]["sentinel-1"] = replace(sites[2]["sentinel-1"], bands=some)
    batch = {name: stack([site[name] for site in sites]) for name in sites[0]}
    mixed = vectors(model, batch, VALID[:1].expand(3, 1, 2))
    for row, site in enumerate(sites):
        alone = vectors(model, {name: f for name, f in site.items() if f.present.any()}, VALID[:1])
        torch.testing.assert_close(mixed[row], alone[0], atol=1e-5, rtol=0)


def test_a_batch_without_any_frame_is_not_seen(model: Model) -> None:
    gone = torch.ones(2, 4, dtype=torch.bool)
    encoded = model.encode({name: frames.without(gone) for name, frames in noise_inputs().items()})
    assert not encoded.seen.any()
    assert model.summarise(encoded, VALID).isfinite().all()


def test_paths_start_staggered_and_end_at_precision() -> None:
    p, pt, pts = ("precision",), ("precision", "time"), ("precision", "time", "space")
    assert staggered(5) == [(p, pt), (pt, pts), (pts, pts), (pts, pts), (pts, p)]


@torch.inference_mode()
def test_a_pixel_absent_in_a_cell_that_is_there_is_pooled_without_it(model: Model) -> None:
    """Gaps of a pixel of its own: it takes what its other frames showed, as if its cell had not been there at all."""
    inputs = noise_inputs(b=1, t=8)
    radar = inputs["sentinel-1"]

    def gap(rows: slice, columns: slice) -> torch.Tensor:
        present = radar.present.clone()
        present[:, :5, rows, columns] = False
        encoded = model.stems(inputs | {"sentinel-1": replace(radar, present=present)})
        detail, there = model.summariser.pooled_detail(encoded, VALID[:1])
        assert there.all()
        return detail[1].unflatten(0, (16, 16))[4, 4]

    alone, cell, none = gap(slice(8, 9), slice(8, 9)), gap(slice(8, 10), slice(8, 10)), gap(slice(0), slice(0))
    assert (alone - none).norm() > 2 * (alone - cell).norm()
    torch.testing.assert_close(alone, cell, atol=0.05, rtol=0)


@torch.inference_mode()
def test_cells_that_no_frame_saw_take_no_part_in_their_neighbours(model: Model) -> None:
    """Ground alike everywhere, seen in the left half alone: its pixels are alike up to the edge, where cells mix."""
    even = copy.deepcopy(model.summariser)
    encoded = model.encode(noise_inputs())
    present = encoded.present.clone()
    present[:, :, 8:] = False
    seen = encoded.seen.clone()
    seen[:, :, 16:] = False
    alike = encoded.features[..., :1, :1].expand_as(encoded.features)
    same, clear = torch.ones_like(encoded.detail), torch.zeros_like(encoded.clear)
    given = replace(encoded, features=alike, detail=same, clear=clear, present=present, seen=seen)
    out = even(given, VALID)[..., :16]
    torch.testing.assert_close(out, out[..., :1, :1].expand_as(out), atol=1e-5, rtol=0)
    poisoned, spoilt, odd = (torch.where(present[:, None], each, torch.nan) for each in (alike, same, clear[:, None]))
    again = even(replace(given, features=poisoned, detail=spoilt, clear=odd[:, 0]), VALID)[..., :16]
    torch.testing.assert_close(again, out)


@pytest.mark.parametrize(("reach", "height", "width"), [(1, 6, 5), (2, 7, 9), (3, 3, 2)])
def test_neighbours_are_weighed_by_how_alike_they_are(reach: int, height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = F.normalize(torch.randn(2, 8, height, width, generator=generator), dim=1)
    seen = torch.rand(2, height, width, generator=generator) < 0.7
    part = Neighbours(reach)
    expected = torch.zeros_like(vectors)
    for n, y, x in np.ndindex(2, height, width):
        for v, u in np.ndindex(height, width):
            if max(abs(v - y), abs(u - x)) <= reach and (seen[n, v, u] or (v, u) == (y, x)):
                alike = part.log_sharpness.exp() * (vectors[n, :, y, x] @ vectors[n, :, v, u] - 1)
                expected[n, :, y, x] += alike.exp() * vectors[n, :, v, u]
    assert torch.allclose(part(vectors, seen), F.normalize(expected, dim=1), atol=1e-6)


def test_neighbours_average_noise_and_keep_borders() -> None:
    """Two parcels of orthogonal vectors: noise falls within them, and nothing of either crosses."""
    generator = torch.Generator().manual_seed(0)
    parcels = torch.zeros(1, 16, 12, 12)
    parcels[:, 0, :, :6], parcels[:, 1, :, 6:] = 1.0, 1.0
    noisy = F.normalize(parcels + 0.05 * torch.randn(parcels.shape, generator=generator), dim=1)
    part, seen = Neighbours(2), torch.ones(1, 12, 12, dtype=torch.bool)
    calm = part(noisy, seen)
    before, after = (torch.rad2deg(torch.arccos((each * parcels).sum(1))).mean() for each in (noisy, calm))
    assert after < before / 2
    torch.testing.assert_close(part(parcels, seen), parcels, atol=1e-3, rtol=0)


def test_sub_pixel_position_explains_little_variance() -> None:
    """The up-sampling must not give the four pixels of a cell four codes (method.md, section 5).

    After training: test_learning.
    """
    fresh = checkpoint.build(toy_recipe()).eval()
    assert sub_pixel_share(vectors(fresh, noise_inputs(b=2, t=4, side=64))[:, 0]) < 0.01


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


class Magnitudes(TorchDispatchMode):
    """Notes every operation that makes float32 numbers of the size of milliseconds since 1970."""

    def __init__(self) -> None:
        super().__init__()
        self.large: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(each, torch.Tensor) and each.dtype == torch.float32 and each.numel():
                size = each.detach().abs()
                if ((size > 1e8) & (size < 1e20)).any():  # -1e30 marks absent frames
                    self.large.append(str(func))
        return out


def test_float32_never_sees_raw_milliseconds(model: Model) -> None:
    frames = noise_frames("sentinel-1")
    with Magnitudes() as seen, torch.inference_mode():
        out = listed(model.summarise(model.encode(noise_inputs()), VALID)[:, 0])
        model.decode("sentinel-1", out, frames.time[:, 0], VALID[:, 0], frames.meta[:, 0])
    assert not seen.large
    with Magnitudes() as seen:
        frames.time.float()
    assert seen.large
    minutes = frames.time[:, 0] + torch.tensor([0, 60_000])  # float32 milliseconds cannot tell them apart
    assert timecode(minutes[:1]).ne(timecode(minutes[:1] + 60_000)).any()


@pytest.mark.parametrize("kappa", [10.0, 100.0, 8000.0])
def test_vmf_samples_have_the_mean_cosine_of_the_distribution(kappa: float) -> None:
    """The Bessel ratio A_64."""
    bessel = ive(32, kappa) / ive(31, kappa)
    drawn, spread = draws(kappa, 40_000)
    torch.testing.assert_close(drawn.norm(dim=1), torch.ones(40_000))
    cosine = (drawn * spread).sum(1).double()
    assert cosine.mean().item() == pytest.approx(bessel, abs=4 * cosine.std().item() / 200 + 1e-7)


def draws(kappa: float, count: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples around one mean direction, and that direction beside each."""
    mean = torch.nn.functional.normalize(torch.randn(64, generator=torch.Generator().manual_seed(0)), dim=0)
    spread = mean.expand(count, -1)
    return sample_vmf(spread, kappa, torch.Generator().manual_seed(seed)), spread


@pytest.mark.parametrize("kappa", [10.0, 100.0, 8000.0])
def test_vmf_equals_scipys_sampler(kappa: float) -> None:
    """Two-sample tests: of the cosine to the mean, and along axes that lie askew to it."""
    ours, spread = (each.double().numpy() for each in draws(kappa, 20_000))
    theirs = vonmises_fisher(spread[0] / np.linalg.norm(spread[0]), kappa).rvs(20_000, random_state=3)
    axes = np.random.default_rng(4).standard_normal((64, 4))
    for axis in (spread[0], *axes.T):
        assert ks_2samp(ours @ axis, theirs @ axis).pvalue > 0.01
    # The test has teeth: another kappa, 5% away, does not pass.
    other = vonmises_fisher(spread[0] / np.linalg.norm(spread[0]), 1.05 * kappa).rvs(20_000, random_state=3)
    assert ks_2samp(ours @ spread[0], other @ spread[0]).pvalue < 0.01


@pytest.mark.parametrize("kappa", [10.0, 8000.0])
def test_vmf_gradient_is_that_of_the_expectation(kappa: float) -> None:
    """E x = A(kappa) mean: the pathwise gradient of <a, x>, across the mean, averages A(kappa) a."""
    _, spread = draws(kappa, 40_000)
    leaf = spread.clone().requires_grad_()
    along = torch.nn.functional.normalize(torch.randn(64, generator=torch.Generator().manual_seed(5)), dim=0)
    (sample_vmf(leaf, kappa, torch.Generator().manual_seed(6)) @ along).sum().backward()
    mean = spread[0]
    across = along - (along @ mean) * mean
    found = leaf.grad @ across / across.square().sum()
    expected = ive(32, kappa) / ive(31, kappa)
    assert found.mean().item() == pytest.approx(expected, abs=4 * found.std().item() / 200 + 1e-5)


def test_decoder_depends_on_instant_and_geometry(model: Model) -> None:
    out = listed(vectors(model, noise_inputs())[:, 0])
    frames = noise_frames("sentinel-1")
    base = model.decode("sentinel-1", out, frames.time[:, 0], VALID[:, 0], frames.meta[:, 0])
    later = model.decode("sentinel-1", out, frames.time[:, 0] + 90 * DAY, VALID[:, 0], frames.meta[:, 0])
    other = model.decode("sentinel-1", out, frames.time[:, 0], VALID[:, 0], frames.meta[:, 0] + 1)
    assert base.shape == (2, 32 * 32, 4)
    assert (base - later).abs().max() > 1e-3
    assert (base - other).abs().max() > 1e-3
