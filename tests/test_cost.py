"""The count of parameters and FLOPs: against the network itself, against PyTorch's count, and as exact figures.

PyTorch counts no fused attention on the CPU, so the network runs on the kernel that is made of two matrix products.
"""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from toys import YEAR, noise_frames, toy_recipe

from aefcli import checkpoint, cost, recipe
from aefcli.model import Model
from aefcli.recipe import Recipe
from aefcli.sources import INPUTS, SOURCES

ALONE = tuple(name for name, source in SOURCES.items() if source.role == "target")


def plan_of(name: str) -> Recipe:
    """A shipped recipe, the toy one, or the toy one with every target and text."""
    if name == "toy with targets":
        return toy_recipe().replace(data={"targets": ALONE}, model={"text": 24})
    return toy_recipe() if name == "toy" else recipe.load(name)


def shares(plan: Recipe) -> dict[str, int]:
    return dict(zip(plan.data.sources, plan.data.frames, strict=True))


def counted(plan: Recipe) -> dict[str, int]:
    return cost.parameters(plan.model, plan.data.sources, plan.data.targets)


def worked(plan: Recipe, frames: dict[str, int] | None = None, side: int = 128, periods: int = 1) -> dict[str, int]:
    return cost.flops(plan.model, frames or shares(plan), side, periods, plan.data.targets)


@pytest.mark.parametrize("name", ["toy", "toy with targets", *recipe.names()])
def test_parameters_are_those_of_the_network(name: str) -> None:
    plan = plan_of(name)
    with torch.device("meta"):
        model = Model(plan.model, plan.data.sources, plan.data.targets)
    assert counted(plan) == model.parameters_by_part()
    assert counted(plan)["total"] == sum(parameter.numel() for parameter in model.parameters())


def run(plan: Recipe, frames: dict[str, int], side: int, periods: int) -> dict[str, int]:
    """FLOPs by part as PyTorch counts them while the network works on one patch of noise."""
    model = checkpoint.build(plan).eval()
    inputs = {name: noise_frames(name, b=1, t=count, side=side) for name, count in frames.items() if count}
    year = torch.tensor([[YEAR.start, YEAR.end]])
    with FlopCounterMode(display=False) as encoder, sdpa_kernel(SDPBackend.MATH), torch.inference_mode():
        vectors = model.summarise(model.encode(inputs), year[None].expand(-1, periods, -1))
    with FlopCounterMode(display=False) as decoders, torch.inference_mode():
        sample = vectors[:, 0].flatten(2).transpose(1, 2)
        for name in model.decoders:
            model.decode(name, sample, year[:, 0], year, torch.zeros(1, len(SOURCES[name].meta)))
        if model.text is not None:
            model.text(torch.ones(1, plan.model.text), year)
    modules = {name: sum(counts.values()) for name, counts in encoder.get_flop_counts().items()}
    return {
        "total": encoder.get_total_flops(),
        "stem": modules["SourceEncoder"],
        **{path: modules[f"Block.operators.{path}"] for path in ("space", "time", "precision")},
        "exchange": sum(count for name, count in modules.items() if re.fullmatch(r"Block\.exchange\.\w+", name)),
        "summary": modules["Summariser"],
        "decoders": decoders.get_total_flops(),
    }


@pytest.mark.parametrize(
    ("name", "frames", "side", "periods"),
    [
        ("toy", (3, 2, 1), 32, 1),
        ("toy", (5, 1, 2), 48, 3),
        ("toy", (0, 4, 0), 16, 2),
        ("toy", (3, 2, 0), 16, 12),
        ("toy", (0, 2, 1), 16, 1),
        ("toy with targets", (2, 2, 2), 32, 1),
        ("nano", (4, 2, 1), 64, 1),
        ("nano", (1, 5, 3), 16, 2),
        ("small", (2, 1, 1), 32, 1),
    ],
)
def test_flops_are_those_that_pytorch_counts(name: str, frames: tuple[int, int, int], side: int, periods: int) -> None:
    plan, work = plan_of(name), dict(zip(INPUTS, frames, strict=True))
    assert worked(plan, work, side, periods) == run(plan, work, side, periods)


@pytest.mark.parametrize(
    ("name", "parameters", "flops"),
    [
        ("nano", 826_261, 12_611_647_360),
        ("small", 37_963_074, 789_932_696_320),
        ("base", 464_015_939, 23_859_383_763_968),
    ],
)
def test_sizes_of_the_recipes(name: str, parameters: int, flops: int) -> None:
    """With the recipe's own number of frames."""
    plan = recipe.load(name)
    assert counted(plan)["total"] == parameters
    assert worked(plan)["total"] == flops


def test_small_is_small_enough_for_a_laptop() -> None:
    plan = recipe.load("small")
    flops = worked(plan, cost.split(16, shares(plan)))
    assert flops["total"] == 316_889_314_048
    assert min(flops[path] for path in ("space", "time", "precision")) > flops["total"] / 8
    assert 20e6 < counted(plan)["total"] < 45e6


def test_base_is_of_the_papers_size() -> None:
    plan = recipe.load("base")
    assert counted(plan)["total"] == pytest.approx(480e6, rel=0.1)
    flops = worked(plan)
    assert flops["exchange"] <= 0.25 * flops["total"]


@pytest.mark.parametrize("name", recipe.names())
def test_every_shipped_recipe_builds(name: str) -> None:
    plan = recipe.load(name)
    assert plan.name == name
    assert recipe.parse(plan.to_toml(), name) == plan
    with torch.device("meta"):
        assert checkpoint.build(plan).sources == plan.data.sources


@pytest.mark.parametrize("name", ["small", "base"])
def test_computed_figures_in_the_header_follow_from_the_recipe(name: str) -> None:
    plan = recipe.load(name)
    flops, header = worked(plan)["total"], (recipe.folder() / f"{name}.toml").read_text().partition("\nname")[0]
    hours = flops * 3 * 2 * plan.train.batch * plan.train.steps / (0.35 * 990e12) / 3600
    assert f"{flops / 1e12:.3f} TFLOP" in header
    assert (f"{hours:,.1f} h" if hours < 100 else f"{hours:,.0f} h") in header
    assert f"{counted(plan)['total'] / 1e6:.0f} million parameters" in header
    assert "computed, not measured" in header
    assert "not a result" in header


def test_base_without_wider_perceptrons_is_smaller_than_the_paper_as_its_recipe_says() -> None:
    narrow = recipe.load("base").replace(model={"mlp_ratio": 4})
    assert f"{counted(narrow)['total'] / 1e6:.0f} million" in (recipe.folder() / "base.toml").read_text()


@given(st.integers(0, 500), st.lists(st.integers(1, 99), min_size=1, max_size=5))
def test_split_sums_and_stays_within_one_of_the_proportion(count: int, parts: list[int]) -> None:
    most = {str(index): part for index, part in enumerate(parts)}
    got = cost.split(count, most)
    assert list(got) == list(most)
    assert sum(got.values()) == count
    assert all(abs(got[name] - count * part / sum(parts)) < 1 for name, part in most.items())


def test_split_by_largest_remainder() -> None:
    assert cost.split(16, {"a": 65, "b": 17, "c": 21}) == {"a": 10, "b": 3, "c": 3}
    assert cost.split(2, {"a": 1, "b": 1, "c": 2}) == {"a": 1, "b": 0, "c": 1}
