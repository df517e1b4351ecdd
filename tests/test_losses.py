"""The terms of the loss, each against a reference written out apart from it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from toys import toy_recipe

from aefcli import losses


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=rng(seed)), dim=1)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=rng(seed))


def patchy(b: int, side: int, seed: int = 9) -> torch.Tensor:
    """Weights with holes, another share of them in each sample."""
    share = torch.linspace(0.2, 0.9, b)[:, None, None]
    return (torch.rand(b, side, side, generator=rng(seed)) < share).float()


APART = torch.ones(16, dtype=torch.bool)
BANDS = torch.tensor([[True, True, False], [True, True, True]])


# --- cells and L1 ---------------------------------------------------------------------------------------------------


def test_l1_of_all_pixels_is_the_mean_over_clear_pixels_and_bands_there() -> None:
    predicted, target, weight = noise(2, 3, 8, 8), noise(2, 3, 8, 8, seed=1), patchy(2, 8)
    every = losses.cells(weight, rng())
    found = losses.l1(losses.at(predicted, every.index), target, BANDS, every)
    chosen = (weight[:, None] * BANDS[:, :, None, None]).bool().expand_as(target)
    assert found.item() == pytest.approx((predicted - target).abs()[chosen].mean().item(), rel=1e-5)
    nothing = losses.cells(torch.zeros_like(weight), rng())
    assert losses.l1(losses.at(predicted, nothing.index), target, BANDS, nothing).item() == 0


def area_average(image: np.ndarray, weight: np.ndarray, side: float, corner: tuple[float, float]) -> dict:
    """Cell -> (clear area, weighted mean) by a loop over pixels; the grid's first cell begins at `-corner`."""
    sums: dict[tuple[int, int], list[float]] = {}
    for (y, x), value in np.ndenumerate(image):
        for i in range(math.ceil((len(image) + side) / side) + 1):
            for j in range(math.ceil((len(image) + side) / side) + 1):
                tall = min(y + 1, (i + 1) * side - corner[0]) - max(y, i * side - corner[0])
                wide = min(x + 1, (j + 1) * side - corner[1]) - max(x, j * side - corner[1])
                area = max(tall, 0) * max(wide, 0) * weight[y, x]
                total = sums.setdefault((i, j), [0.0, 0.0])
                total[0] += area
                total[1] += area * value
    return {cell: (area, total / area) for cell, (area, total) in sums.items() if area > 1e-9}


@pytest.mark.parametrize("side", [3.0, 2.0, 1.5, 5.0, 40.0])
def test_regridding_equals_an_area_average(side: float) -> None:
    """The cells of one sample against numpy, at whichever place the grid fell; all of the clear area is used once."""
    image, weight = noise(1, 1, 12, 12), patchy(1, 12)
    found = losses.cells(weight, rng(4), side=side)
    mean = (found.part * losses.at(image, found.index)[..., 0]).sum(2)[0]
    area = found.weight[0] * found.clear[0]
    filled = area > 1e-6
    ours = sorted(zip(area[filled].tolist(), mean[filled].tolist(), strict=True))
    corners = [0.0] if side >= 12 else [float(k) for k in range(math.ceil(side))]
    references = [
        sorted(area_average(image[0, 0].numpy(), weight[0].numpy(), min(side, 12.0), (y, x)).values())
        for y in corners
        for x in corners
    ]
    close = [len(ours) == len(each) and np.allclose(ours, each, atol=1e-4) for each in references]
    assert any(close)
    assert area.sum().item() == pytest.approx(weight.sum().item(), rel=1e-5)


def test_the_grid_falls_elsewhere_each_time_and_in_each_sample() -> None:
    weight = torch.ones(6, 12, 12)
    areas = [losses.cells(weight, rng(seed), side=3.0).weight for seed in range(3)]
    assert any(not torch.equal(areas[0], other) for other in areas[1:])
    assert any(not torch.equal(areas[0][0], row) for row in areas[0][1:])


def test_regridded_l1_ignores_what_averages_out() -> None:
    """Detail inside the cells of 30 m is free; the mean of a cell is not."""
    target, weight = torch.zeros(2, 3, 12, 12), torch.ones(2, 12, 12)
    every = losses.cells(weight, rng(), side=12.0)
    wiggle = noise(2, 3, 12, 12)
    wiggle = wiggle - wiggle.mean(dim=(2, 3), keepdim=True)
    assert losses.l1(losses.at(wiggle, every.index), target, BANDS, every).item() == pytest.approx(0, abs=1e-6)
    assert losses.l1(losses.at(wiggle + 0.5, every.index), target, BANDS, every).item() == pytest.approx(0.5)


@pytest.mark.parametrize("side", [1.0, 3.0])
def test_l1_of_drawn_cells_is_unbiased(side: float) -> None:
    predicted, target, weight = noise(2, 3, 24, 24), noise(2, 3, 24, 24, seed=1), patchy(2, 24)
    weight[1] *= 0.5  # weights need not be 0 or 1

    def error(pixels: int | None, seed: int) -> float:
        drawn = losses.cells(weight, rng(seed), side=side, pixels=pixels)
        return losses.l1(losses.at(predicted, drawn.index), target, BANDS, drawn).item()

    # The grid's place is random as well, so that the whole is a mean over places too.
    whole = np.mean([error(None, seed) for seed in range(200 if side > 1 else 1)])
    some = np.array([error(36, seed) for seed in range(2000)])
    assert some.std() > 0
    assert abs(some.mean() - whole) < 4 * some.std() / math.sqrt(len(some)) + (2e-3 if side > 1 else 0)


def test_drawn_cells_lie_where_it_is_clear_and_are_as_many_as_asked() -> None:
    weight = patchy(3, 24)
    drawn = losses.cells(weight, rng(), pixels=50)
    assert drawn.index.shape == (3, 50, 1)
    assert losses.at(weight[:, None], drawn.index).all()
    assert losses.cells(weight, rng(), side=3.0, pixels=50).index.shape == (3, 6, 9)
    whole = losses.cells(weight, rng(), side=128.0, pixels=50)  # coarser than the patch: every pixel
    assert whole.index.shape == (3, 1, 576)
    none = losses.cells(torch.zeros(2, 8, 8), rng(), pixels=5)
    assert none.clear.eq(0).all()


def test_values_of_unclear_pixels_reach_no_error() -> None:
    weight = patchy(2, 12)
    target = noise(2, 3, 12, 12)
    poisoned = target.masked_fill(weight[:, None] == 0, torch.nan)
    for side in (1.0, 3.0):
        every = losses.cells(weight, rng(), side=side)
        predicted = losses.at(noise(2, 3, 12, 12, seed=1), every.index)
        assert losses.l1(predicted, poisoned, BANDS, every) == losses.l1(predicted, target, BANDS, every)
    every = losses.cells(weight, rng())
    predicted = losses.at(noise(2, 3, 12, 12, seed=1), every.index)
    assert losses.shifted_l1(predicted, poisoned, weight, BANDS, every, 2).isfinite()


def test_a_band_that_the_scene_lacks_may_be_nan() -> None:
    target, weight = noise(2, 3, 8, 8), patchy(2, 8)
    target[0, 2] = torch.nan  # BANDS says that the first scene lacks it
    every = losses.cells(weight, rng())
    predicted = losses.at(noise(2, 3, 8, 8, seed=1), every.index).requires_grad_()
    both = losses.l1(predicted, target, BANDS, every) + losses.shifted_l1(predicted, target, weight, BANDS, every, 1)
    both.backward()
    assert both.isfinite()
    assert predicted.grad is not None
    assert predicted.grad.isfinite().all()


# --- shifts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "free"), [((0, 0), True), ((2, -1), True), ((-2, 2), True), ((3, 0), False)])
def test_a_copy_shifted_within_reach_costs_nothing(step: tuple[int, int], free: bool) -> None:
    target, weight = noise(2, 3, 16, 16), torch.ones(2, 16, 16)
    copy = target.roll(step, dims=(2, 3))
    inner = torch.zeros_like(weight)
    inner[:, 3:-3, 3:-3] = 1  # what was rolled over the edge is no copy
    for pixels in (None, 40):
        drawn = losses.cells(inner, rng(), pixels=pixels)
        error = losses.shifted_l1(losses.at(copy, drawn.index), target, weight, BANDS, drawn, 2).item()
        assert (error < 1e-6) == free


def test_shifted_l1_equals_a_loop_over_frames_and_shifts() -> None:
    predicted, target, weight = noise(2, 3, 10, 10), noise(2, 3, 10, 10, seed=1), patchy(2, 10)
    predicted += 2 * target.roll((1, 1), dims=(2, 3))
    every = losses.cells(weight, rng())
    found = losses.shifted_l1(losses.at(predicted, every.index), target, weight, BANDS, every, 2).item()
    total = share = 0.0
    for b in range(2):
        errors, overlaps = [], []
        for dy in range(-2, 3):
            for dx in range(-2, 3):
                both = [
                    (y, x)
                    for y, x in np.ndindex(10, 10)
                    if weight[b, y, x] and 0 <= y + dy < 10 and 0 <= x + dx < 10 and weight[b, y + dy, x + dx]
                ]
                each = [(predicted[b, :, y, x] - target[b, :, y + dy, x + dx]).abs()[BANDS[b]].mean() for y, x in both]
                errors.append(float(np.mean(each)))
                overlaps.append(len(both))
        best = min(error for error, overlap in zip(errors, overlaps, strict=True) if 2 * overlap >= max(overlaps))
        own = float(weight[b].sum()) * int(BANDS[b].sum())
        total, share = total + own * best, share + own
    assert found == pytest.approx(total / share, rel=1e-5)


def test_a_shift_onto_a_sliver_does_not_count() -> None:
    """One clear column: shifted off it nothing is left to be wrong about, which must not be the smallest error."""
    predicted, target = torch.ones(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)
    weight = torch.zeros(1, 8, 8)
    weight[:, :, 4] = 1
    every = losses.cells(weight, rng())
    assert losses.shifted_l1(losses.at(predicted, every.index), target, weight, BANDS[1:], every, 2).item() == 1


# --- classes --------------------------------------------------------------------------------------------------------


def test_cross_entropy_of_pixels_equals_torch() -> None:
    logits, classes, weight = noise(2, 5, 8, 8), torch.randint(5, (2, 8, 8), generator=rng(1)), patchy(2, 8)
    every = losses.cells(weight, rng())
    found = losses.cross_entropy(losses.at(logits, every.index), classes, every)
    each = F.cross_entropy(logits, classes, reduction="none")
    assert found.item() == pytest.approx(each[weight > 0].mean().item(), rel=1e-5)


def test_cross_entropy_of_cells_is_between_shares_of_classes() -> None:
    logits, classes, weight = noise(1, 5, 6, 6), torch.randint(5, (1, 6, 6), generator=rng(1)), torch.ones(1, 6, 6)
    every = losses.cells(weight, rng(), side=6.0)
    found = losses.cross_entropy(losses.at(logits, every.index), classes, every).item()
    shares = np.bincount(classes.flatten().numpy(), minlength=5) / 36
    mixture = logits.softmax(1).mean(dim=(0, 2, 3)).numpy()
    assert found == pytest.approx(-(shares * np.log(mixture)).sum(), rel=1e-5)


def test_cross_entropy_of_drawn_pixels_is_unbiased() -> None:
    logits, classes, weight = noise(2, 5, 16, 16), torch.randint(5, (2, 16, 16), generator=rng(1)), patchy(2, 16)

    def error(pixels: int | None, seed: int = 0) -> float:
        drawn = losses.cells(weight, rng(seed), pixels=pixels)
        return losses.cross_entropy(losses.at(logits, drawn.index), classes, drawn).item()

    some = np.array([error(20, seed) for seed in range(2000)])
    assert abs(some.mean() - error(None)) < 4 * some.std() / math.sqrt(len(some))


# --- the other terms ------------------------------------------------------------------------------------------------


def test_uniformity_equals_a_loop_over_the_batch() -> None:
    u = unit(5, 64, 3, 4)
    seen = torch.rand(5, 3, 4, generator=rng(1)) < 0.8
    cosines = [
        abs(float(u[b, :, y, x] @ u[b - 1, :, y, x]))
        for b in range(5)
        for y in range(3)
        for x in range(4)
        if seen[b, y, x] and seen[b - 1, y, x]
    ]
    assert losses.uniformity(u, seen, APART[: len(u)]).item() == pytest.approx(np.mean(cosines), rel=1e-5)


def test_pairs_that_share_ground_take_no_part_in_uniformity() -> None:
    u, seen = unit(3, 64, 4, 4), torch.ones(3, 4, 4, dtype=torch.bool)
    u[1] = u[0]
    apart = torch.tensor([True, False, True])
    cosines = [abs(float(u[b, :, y, x] @ u[b - 1, :, y, x])) for b in (0, 2) for y in range(4) for x in range(4)]
    assert losses.uniformity(u, seen, apart).item() == pytest.approx(np.mean(cosines), rel=1e-5)


def test_uniformity_of_uniform_and_of_collapsed_vectors() -> None:
    seen = torch.ones(16, 32, 32, dtype=torch.bool)
    uniform = unit(16, 64, 32, 32)
    assert losses.uniformity(uniform, seen, APART).item() == pytest.approx(0.100, abs=0.005)
    assert losses.uniformity(uniform[:1].expand(16, -1, -1, -1), seen, APART).item() == pytest.approx(1, abs=1e-5)


def test_uniformity_ignores_a_shuffle_of_pixels_alike_in_every_sample() -> None:
    u, order = unit(4, 64, 8, 8), torch.randperm(64, generator=rng(5))
    seen = torch.ones(4, 8, 8, dtype=torch.bool)
    turned = u.flatten(2)[..., order].unflatten(2, (8, 8))
    torch.testing.assert_close(losses.uniformity(turned, seen, APART[:4]), losses.uniformity(u, seen, APART[: len(u)]))


def test_consistency_runs_from_0_to_1() -> None:
    u, seen = unit(2, 64, 4, 4), torch.ones(2, 4, 4, dtype=torch.bool)
    assert losses.consistency(u, u, seen).item() == pytest.approx(0, abs=1e-6)
    assert losses.consistency(u, -u, seen).item() == pytest.approx(1, abs=1e-6)


def test_the_text_term_equals_a_loop_over_pairs() -> None:
    text, place = unit(6, 64), unit(6, 64, seed=1)
    there, scale = torch.tensor([True, False, True, True, False, True]), 14.3
    rows = [i for i in range(6) if there[i]]
    cost = 0.0
    for i in rows:
        by_text = [math.exp(scale * float(text[i] @ place[j])) for j in rows]
        by_place = [math.exp(scale * float(text[j] @ place[i])) for j in rows]
        own = math.exp(scale * float(text[i] @ place[i]))
        cost -= (math.log(own / sum(by_text)) + math.log(own / sum(by_place))) / 2
    found = losses.contrastive(text, place, there, torch.tensor(scale))
    assert found.item() == pytest.approx(cost / len(rows), rel=1e-5)


def test_rows_without_text_take_no_part() -> None:
    text, place, there = unit(4, 64), unit(4, 64, seed=1), torch.tensor([True, False, True, True])
    other = text.clone()
    other[1] = place[0]
    scale = torch.tensor(10.0)
    assert losses.contrastive(text, place, there, scale) == losses.contrastive(other, place, there, scale)
    assert losses.contrastive(text, place, there & False, scale).item() == 0
    assert losses.contrastive(text, text, there, scale) < losses.contrastive(text, place, there, scale)


def test_total_weighs_its_terms() -> None:
    errors = {"a": torch.tensor(1.0), "b": torch.tensor(3.0)}
    others = {"uniformity": torch.tensor(0.4), "consistency": torch.tensor(0.2), "text": torch.tensor(2.0)}
    loss = toy_recipe().loss
    there = {"a": torch.tensor(True), "b": torch.tensor(True)}
    whole = losses.total(errors, {"a": 1.0, "b": 0.5}, there, others, loss)
    assert whole.item() == pytest.approx(1.25 + 0.05 * 0.4 + 0.02 * 0.2 + 0.001 * 2)
    lacking = losses.total(errors, {"a": 1.0, "b": 0.5}, {**there, "b": torch.tensor(False)}, others, loss)
    assert lacking.item() == pytest.approx(1.0 + 0.05 * 0.4 + 0.02 * 0.2 + 0.001 * 2)
    assert losses.total({}, {}, {}, {"uniformity": torch.tensor(0.4)}, loss).item() == pytest.approx(0.02)


def test_gradients_of_every_term_equal_finite_differences() -> None:
    """gradcheck in float64."""
    weight, target = patchy(2, 6).double(), noise(2, 3, 6, 6, seed=1).double()
    pixels, squares = losses.cells(weight, rng()), losses.cells(weight, rng(), side=3.0)
    classes, there = torch.randint(3, (2, 6, 6), generator=rng(2)), torch.tensor([True, True])
    seen = weight > 0

    def terms(predicted: torch.Tensor, u: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        fine, coarse = losses.at(predicted, pixels.index), losses.at(predicted, squares.index)
        return (
            losses.l1(coarse, target, BANDS, squares),
            losses.shifted_l1(fine, target, weight, BANDS, pixels, 1),
            losses.cross_entropy(coarse, classes, squares),
            losses.uniformity(u, seen, APART[: len(u)]),
            losses.consistency(u, v, seen),
            losses.contrastive(u[:, :, 0, 0], v[:, :, 0, 0], there, torch.tensor(5.0, dtype=torch.float64)),
        )

    leaves = [
        each.double().requires_grad_() for each in (noise(2, 3, 6, 6), unit(2, 4, 6, 6), unit(2, 4, 6, 6, seed=1))
    ]
    assert torch.autograd.gradcheck(terms, leaves)
