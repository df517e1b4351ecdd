"""What a run shows of itself: looks at the model in training, their pictures, its curves and its card."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Aef
from PIL import Image
from torch import nn
from toys import YEAR, noise_frames, noise_inputs, sub_pixel_share, toy_recipe

from aefcli import card, checkpoint, watch
from aefcli.batch import DAY, Batch, Frames, make_batch
from aefcli.checkpoint import Run
from aefcli.errors import BadInput
from aefcli.model import Decoder, Model
from aefcli.report import curves_png, look_png
from aefcli.report import run as drawing
from aefcli.watch import Look, collapse, look, phase

CPU = torch.device("cpu")
PLAN = toy_recipe(data={"targets": ["glo-30", "nlcd"]}, loss={"targets": 2})


def noise_batch(seed: int = 0, *, b: int = 4, inputs: dict[str, Frames] | None = None) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    frames = noise_inputs(b=b, t=6) | (inputs or {})
    alone = {name: noise_frames(name, b=b, t=1, seed=seed) for name in PLAN.data.targets}
    support = torch.tensor([[YEAR.start, YEAR.end]] * b)
    return make_batch(frames, alone, support, 0.3, generator, PLAN.loss.targets)


def says(model: Model, source: str, value: float) -> None:
    """Have a decoder answer one number everywhere."""
    decoder = model.decoders[source]
    assert isinstance(decoder, Decoder)
    nn.init.zeros_(decoder.out.weight)
    nn.init.constant_(decoder.out.bias, value)


def numbers(model: Model, *batches: Batch) -> dict[str, float]:
    return look(model, batches, PLAN, CPU).numbers


@pytest.fixture(scope="module")
def seen() -> Look:
    return look(checkpoint.build(PLAN), [noise_batch(1), noise_batch(2)], PLAN, CPU)


# --- errors -----------------------------------------------------------------------------------------------------------


def test_the_error_is_that_of_clear_pixels_of_the_first_targets() -> None:
    """A decoder that says 0.25 everywhere errs by the distance to it; cloud and lacking bands do not count."""
    model, batch = checkpoint.build(PLAN), noise_batch()
    says(model, "landsat", 0.25)
    target = batch.targets["landsat"]
    target.weight[:, :, :8] = 0
    target.pixels[:, :, :, :8] = 1e6
    target.bands[1, 0, 2] = False
    target.pixels[1, 0, 2] = 1e6
    counts = ((target.weight > 0)[:, :, None] & target.bands[..., None, None])[:, :1]
    expected = (target.pixels[:, :1] - 0.25).abs()[counts].mean().item()
    assert target.pixels.shape[1] == 2
    assert numbers(model, batch)["l1/landsat"] == pytest.approx(expected, rel=1e-5)


def test_batches_count_by_their_pixels() -> None:
    model, first, second = checkpoint.build(PLAN), noise_batch(1), noise_batch(2)
    second.targets["landsat"].weight[:, :, 4:] = 0
    one, other, both = (numbers(model, *some)["l1/landsat"] for some in ((first,), (second,), (first, second)))
    assert both == pytest.approx((8 * one + other) / 9, rel=1e-5)


def test_the_median_is_that_of_the_clear_frames_of_the_inputs() -> None:
    """Inputs hold each pixel's own value but in one clouded frame; held-out frames hold 0.75 more."""
    level = torch.randn(4, 1, 5, 32, 32, generator=torch.Generator().manual_seed(1))
    frames = noise_frames("sentinel-2", b=4, t=7)
    batch = noise_batch(inputs={"sentinel-2": replace(frames, pixels=level.expand(-1, 7, -1, -1, -1).clone())})
    inputs = batch.inputs["sentinel-2"]
    inputs.pixels[:, 3], inputs.weight[:, 3] = 50, 0
    inputs.weight[0, :, :4] = 0  # no median there: no error is counted either
    target = batch.targets["sentinel-2"]
    target.pixels[:] += 0.75
    target.pixels[0, :, :, :4] = 1e6
    model = checkpoint.build(PLAN)
    says(model, "sentinel-2", 0)
    found = numbers(model, batch)
    counts = torch.ones(4, 2, 5, 32, 32, dtype=torch.bool)
    counts[0, :, :, :4] = False
    assert found["median/sentinel-2"] == pytest.approx(0.75, rel=1e-5)
    assert found["l1/sentinel-2"] == pytest.approx(target.pixels[counts].abs().mean().item(), rel=1e-5)


def test_classes_have_a_cross_entropy_and_what_is_decoded_alone_no_median(seen: Look) -> None:
    model = checkpoint.build(PLAN)
    says(model, "nlcd", 0)
    assert numbers(model, noise_batch())["cross-entropy/nlcd"] == pytest.approx(math.log(20), rel=1e-5)
    assert {name for name in seen.numbers if name.endswith(("glo-30", "nlcd"))} == {"l1/glo-30", "cross-entropy/nlcd"}


def test_a_source_without_a_clear_target_is_left_out() -> None:
    batch = noise_batch()
    batch.targets["landsat"].weight[:] = 0
    assert not {"l1/landsat", "median/landsat"} & set(numbers(checkpoint.build(PLAN), batch))


def test_a_look_leaves_no_trace_and_sees_the_same_again(seen: Look) -> None:
    model = checkpoint.build(PLAN).train()
    before, state = {name: tensor.clone() for name, tensor in model.state_dict().items()}, torch.get_rng_state()
    again = look(model, [noise_batch(1), noise_batch(2)], PLAN, CPU)
    assert again.numbers == seen.numbers
    assert np.array_equal(again.embeddings, seen.embeddings)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    look(model.eval(), [noise_batch(1)], PLAN, CPU)
    assert not model.training


# --- embeddings -------------------------------------------------------------------------------------------------------


def collapsed() -> Model:
    model = checkpoint.build(PLAN)
    for parameter in model.summariser.pools.parameters():
        nn.init.zeros_(parameter)
    nn.init.ones_(model.summariser.level)
    return model


def test_a_collapsed_model_has_uniformity_and_rank_1() -> None:
    found = numbers(collapsed(), noise_batch())
    assert found["uniformity"] == pytest.approx(1)
    assert found["rank"] == pytest.approx(1)
    assert found["phase"] == pytest.approx(0, abs=1e-6)


def test_uniformity_is_of_places_apart_alone() -> None:
    """As in training: of the whole supports, between a sample and the one before."""
    model, batch = checkpoint.build(PLAN), noise_batch()
    with torch.no_grad():
        field = model.eval().summarise(model.encode(batch.inputs), batch.support[:, None])[:, 0]
    cosine = (field * field.roll(1, 0)).sum(1).abs().mean((1, 2))
    for apart in ([True] * 4, [True, False, False, True]):
        told = numbers(model, replace(batch, apart=torch.tensor(apart)))["uniformity"]
        assert told == pytest.approx(cosine[torch.tensor(apart)].mean().item(), rel=1e-5)
    assert "uniformity" not in numbers(model, replace(batch, apart=torch.zeros(4, dtype=torch.bool)))


def test_pixels_that_no_frame_showed_have_no_embedding() -> None:
    batch = noise_batch()
    for frames in batch.inputs.values():
        frames.present[0, :, :10] = False
    batch.targets["glo-30"].pixels[0, :, :, :10] = 1e6  # counted by nobody
    found = look(checkpoint.build(PLAN), [batch], PLAN, CPU)
    blank = np.isnan(found.embeddings).all(axis=-1)
    assert blank[0, :10].all()
    assert not blank[0, 10:].any()
    assert not blank[1:].any()
    assert found.numbers["l1/glo-30"] < 10
    made = next(picture.made for picture in found.pictures if picture.source == "glo-30")
    assert np.array_equal(np.isnan(made).all(axis=-1), blank)


def test_phase_is_the_share_of_variance_by_the_place_in_the_cell() -> None:
    rng = np.random.default_rng(0)
    cells = rng.normal(size=(2, 16, 16, 8)).repeat(2, axis=1).repeat(2, axis=2)
    pattern = np.tile(rng.normal(size=(2, 2, 8)), (16, 16, 1))[None]
    mixed = (cells + 0.5 * pattern).astype("float32")
    assert phase(mixed) == pytest.approx(sub_pixel_share(torch.from_numpy(np.moveaxis(mixed, -1, 1))), rel=1e-4)
    assert 0.05 < phase(mixed) < 0.5
    assert phase(cells) == pytest.approx(0, abs=1e-12)
    assert phase(np.broadcast_to(pattern, (2, 32, 32, 8))) == pytest.approx(1)
    holed = mixed.copy()
    holed[0, 5, 5] = np.nan
    assert phase(holed) == pytest.approx(phase(mixed), rel=0.05)


def test_many_samples_are_looked_at_in_parts_which_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = checkpoint.build(PLAN), [noise_batch(1, b=5), noise_batch(2, b=4)]
    whole = look(model, batches, PLAN, CPU)
    monkeypatch.setattr(watch, "_ROWS", 4)
    parts = look(model, batches, PLAN, CPU)
    assert parts.numbers == pytest.approx(whole.numbers, rel=1e-3)
    assert len(parts.pictures[0].made) == len(parts.embeddings) == 4


def test_no_more_samples_than_needed_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = checkpoint.build(PLAN), noise_batch(b=5)
    monkeypatch.setattr(watch, "_MOST", 3)
    found = numbers(model, batch, noise_batch(1))
    monkeypatch.setattr(watch, "_MOST", 64)
    assert found == pytest.approx(numbers(model, cut(batch, torch.tensor([False, True, True]))), rel=1e-3)


def cut(batch: Batch, apart: torch.Tensor) -> Batch:
    """The first samples of a batch, apart as told."""
    count = len(apart)

    def of(frames: Frames) -> Frames:
        return Frames(*(value[:count] for value in vars(frames).values()))

    inputs, targets = ({name: of(each) for name, each in side.items()} for side in (batch.inputs, batch.targets))
    valid = {name: each[:count] for name, each in batch.valid.items()}
    return replace(batch, inputs=inputs, targets=targets, valid=valid, support=batch.support[:count], apart=apart)


# --- probes -----------------------------------------------------------------------------------------------------------

_TURN = 2 * math.pi / 365.25


def wave(days: torch.Tensor) -> torch.Tensor:
    """Of days from 1 July."""
    return 3 + torch.cos(_TURN * days) + 0.5 * torch.sin(2 * _TURN * days)


def summer(count: int, first: int = 0) -> float:
    """The median of that many days from 1 July, or from the `first` after it."""
    return wave(torch.arange(first, first + count)).median().item()


def waving(start: int) -> tuple[Frames, torch.Tensor]:
    """The year of Sentinel-2 before some day of 2023: every pixel is 3 + cosine + half a sine of two turns a year."""
    support = torch.tensor([[YEAR.start + (start - 365) * DAY, YEAR.start + start * DAY]])
    days = start - 365 + torch.arange(0, 365, 5)
    value = wave(days - 181.0)
    frames = noise_frames("sentinel-2", b=1, t=len(days), side=4)
    pixels = value[None, :, None, None, None].expand(1, -1, 5, 4, 4).clone()
    return replace(frames, pixels=pixels, time=(YEAR.start + days * DAY)[None]), support


def test_harmonics_and_seasons_are_those_of_the_calendar_whatever_the_support() -> None:
    for start in (365, 270, 90):
        ((seasons, waves),) = watch._series(*waving(start), step=1)
        assert seasons.shape == (16, 4, 5)
        assert waves.shape == (16, 6, 5)
        expected = np.array([1, 0, 0, 0.5, 0, 0])
        assert np.abs(waves[0, :, 0] - expected).max() < 0.15  # damped
        assert seasons[0, 0, 0] == pytest.approx(summer(91), abs=0.1)  # July to September
        assert seasons[0, 2, 0] == pytest.approx(summer(91, 184), abs=0.1)  # January to March


def test_a_season_without_a_clear_frame_is_not_known() -> None:
    frames, support = waving(365)
    winter = (frames.time[0] - YEAR.start) < 91 * DAY
    frames.weight[:, winter] = 0
    ((seasons, waves),) = watch._series(frames, support, step=2)
    assert np.isnan(seasons[:, 2]).all()
    assert np.isfinite(seasons[:, [0, 1, 3]]).all()
    assert np.isfinite(waves).all()


def test_r2_is_one_of_what_is_linear_and_none_of_noise() -> None:
    rng = np.random.default_rng(0)
    vectors, taught = rng.normal(size=(600, 8)), np.arange(600) % 2 == 0
    linear = (vectors @ rng.normal(size=(8, 6)) + 5).reshape(600, 2, 3)
    half = linear + linear.std() * rng.normal(size=linear.shape)
    assert watch._r2(vectors, linear, taught) == pytest.approx(1, abs=1e-3)
    assert watch._r2(vectors, half, taught) == pytest.approx(0.5, abs=0.1)
    assert watch._r2(vectors, rng.normal(size=(600, 2, 3)), taught) == pytest.approx(0, abs=0.1)
    wide = rng.normal(size=(600, 64))  # which fits noise by a fifth where it was taught
    told = watch._r2(wide, rng.normal(size=(600, 2, 3)), taught)
    assert told is not None
    assert told < 0.05
    linear[::3, 0] = np.nan
    assert watch._r2(vectors, linear, taught) == pytest.approx(1, abs=1e-3)
    assert watch._r2(vectors, linear, np.arange(600) < 10) is None


def test_a_look_has_every_measure(seen: Look) -> None:
    told = {name for name in seen.numbers if "/" not in name or name.startswith("r2/")}
    assert told == {"uniformity", "rank", "phase", "r2/composite", "r2/harmonics"}
    assert all(math.isfinite(value) for value in seen.numbers.values())
    assert 0 < seen.numbers["r2/composite"] < 0.6  # random weights let some of the pixels' own series through


# --- collapse ---------------------------------------------------------------------------------------------------------


def looks(**curves: list[float]) -> list[dict[str, float]]:
    return [dict(zip(curves, row, strict=True)) for row in zip(*curves.values(), strict=True)]


# As nano runs have them. From random weights everything points one way at first, and noise has some rank.
RANDOM = looks(uniformity=[0.86, 0.55, 0.56, 0.49, 0.40], rank=[19.4, 7.1, 4.4, 5.9, 8.2])
FITTED = looks(uniformity=[0.112, 0.112, 0.111, 0.109, 0.108], rank=[37.6, 37.6, 37.9, 38.5, 38.9])


@pytest.mark.parametrize("count", range(len(RANDOM) + 1))
def test_a_run_that_spreads_is_not_warned_of(count: int) -> None:
    assert collapse(RANDOM[:count]) is None
    assert collapse(FITTED[:count]) is None


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (looks(uniformity=[0.55, 0.31, 0.62], rank=[7.0, 8.0, 6.0]), "uniformity is back at 0.62 from 0.31"),
        (looks(uniformity=[0.11, 0.11, 0.48, 0.92], rank=[37.6, 36.9, 26.4, 15.6]), "back at 0.92 from 0.11"),
        (looks(uniformity=[0.97, 0.98, 0.97]), "uniformity stays at 0.97"),
        (looks(uniformity=[0.3, 0.3], rank=[4.0, 2.5]), "the effective rank is 2.5"),
        (looks(uniformity=[0.3, 0.3, 0.99], rank=[4.0, 2.5, 1.1]), "0.99 from 0.30 and the effective rank is 1.1"),
    ],
)
def test_a_collapse_is_told_in_one_line_with_a_remedy(told: list[dict[str, float]], expected: str) -> None:
    line = collapse(told)
    assert line is not None
    assert expected in line
    assert "loss.uniformity" in line
    assert "\n" not in line
    assert collapse([*told, {"uniformity": 0.3, "rank": 9.0}]) is None  # over


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_pictures_hold_what_was_held_out_and_clear() -> None:
    batch = noise_batch(b=6)
    target = batch.targets["sentinel-2"]
    target.weight[0, 0, :5] = 0
    found = look(checkpoint.build(PLAN), [batch], PLAN, CPU)
    picture = found.pictures[0]
    assert [one.source for one in found.pictures] == list(batch.valid)
    assert picture.target.shape == picture.made.shape == (4, 32, 32, 5)
    assert found.embeddings.shape == (4, 32, 32, 64)
    assert picture.times == tuple(target.time[:4, 0].tolist())
    assert np.isnan(picture.target[0, :5]).all()
    assert np.array_equal(picture.target[1], target.pixels[1, 0].permute(1, 2, 0).numpy())
    classes = found.pictures[-1].made
    assert np.isin(classes, np.arange(20)).all()


def test_a_look_is_drawn_the_same_twice_and_differs_where_the_model_does(seen: Look, tmp_path: Path) -> None:
    few = replace(seen, pictures=seen.pictures[-2:], embeddings=seen.embeddings[:2])
    one, two = look_png(few, tmp_path / "looks" / "000100.png"), look_png(few, tmp_path / "again" / "000100.png")
    assert one.read_bytes() == two.read_bytes()
    with Image.open(one) as image:
        assert image.format == "PNG"
        before = np.asarray(image.convert("RGB")).astype(int)
    worse = tuple(replace(picture, made=picture.made[::-1]) for picture in few.pictures)
    with Image.open(look_png(replace(few, pictures=worse), tmp_path / "000100.png")) as image:
        assert (np.asarray(image.convert("RGB")) != before).any()


def test_both_sides_of_a_source_have_one_stretch_and_blanks_are_transparent() -> None:
    target = np.linspace(0, 1, 64, dtype="float32").reshape(1, 8, 8, 1).repeat(5, axis=-1)
    made = target / 2
    target[0, 0, 0] = np.nan
    left, right = drawing._coloured(watch.Picture("sentinel-2", (0,), target, made))
    assert left[0, 0, 0, 3] == 0
    assert left[..., 3].sum() == 63
    assert right[..., 3].all()
    assert right[0, 7, 7, 0] == pytest.approx(left[0, 4, 0, 0], abs=0.02)  # the same value, the same colour
    assert left[0, 7, 7, 0] == pytest.approx(1)


def test_a_look_at_places_without_any_data_is_drawn(tmp_path: Path) -> None:
    blank = np.full((2, 8, 8, 5), np.nan, "float32")
    picture = watch.Picture("sentinel-2", (0, 0), blank, blank)
    assert look_png(Look({}, (picture,), np.full((2, 8, 8, 64), np.nan, "float32")), tmp_path / "x.png").is_file()


# --- curves -----------------------------------------------------------------------------------------------------------


def line(step: int, **more: Any) -> dict[str, Any]:
    parts = {"sentinel-2": 1 / step, "landsat": 2 / step, "uniformity": 0.5, "consistency": 0.1}
    pace = {"lr": 1e-3, "norm": 2.0, "seconds": 1.5, "wait": 0.02, "frames": 300.0}
    return {"step": step, "loss": 3 / step, "parts": parts, **pace, **more}


MEASURED = {
    "uniformity": 0.3,
    "l1/sentinel-2": 0.39,
    "median/sentinel-2": 0.36,
    "l1/landsat": 0.3,
    "median/landsat": 0.34,
    "rank": 8.7,
    "phase": 0.003,
    "r2/composite": 0.5,
    "r2/harmonics": -0.06,
}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """The folder of a finished run, its log with a hole in it."""
    plan = toy_recipe(train={"steps": 40})
    made = checkpoint.new_run(tmp_path / "toy-001", plan)
    steps = [*range(1, 21), *range(31, 41)]
    log = [line(step, **({"look": MEASURED} if step % 10 == 0 else {})) for step in steps]
    made.log.write_text("".join(json.dumps(each) + "\n" for each in log))
    cube = {
        "path": "/data/alps.zarr",
        "crs": "EPSG:32633",
        "shape": [256, 128],
        "gsd": 10.0,
        "period": [YEAR.start, YEAR.end],
        "sources": {
            "sentinel-2": {"frames": 70, "collections": ["sentinel-2-c1-l2a"]},
            "sentinel-1": {"frames": 31, "collections": ["sentinel-1-rtc"]},
        },
    }
    write(made, "data.json", {"cubes": [cube], "samples": {"train": 12, "validation": 4, "sites": 8}, "from": None})
    about = {"aef": "0.1", "python": "3.11", "torch": "2.13", "device": "2 CPU cores", "processes": 1, "threads": 2}
    write(made, "environment.json", {**about, "seconds": 60.0, "samples_seen": 80})
    samples = {"cube": "/data/alps.zarr", "site": ["a", "a", "b"], "top": 0, "left": 0, "side": 32}
    rows = {**samples, "start": YEAR.start, "end": YEAR.end, "split": ["train", "train", "validation"]}
    pd.DataFrame(rows).to_parquet(made.path / "samples.parquet")
    return made


def write(run: Run, name: str, document: Any) -> None:
    (run.path / name).write_text(json.dumps(document))


def change(run: Run, name: str, **values: Any) -> None:
    write(run, name, json.loads((run.path / name).read_text()) | values)


def test_plot_draws_the_curves_of_a_run_into_it(run: Run, aef: Aef, tmp_path: Path) -> None:
    code, out, err = aef("plot", "toy-001")
    assert (code, out, err) == (0, "toy-001/curves.png\n", "")
    with Image.open(run.path / "curves.png") as image:
        assert image.format == "PNG"
        assert image.width == 1200
    code, out, _ = aef("plot", "toy-001", "--out", "mine.png", "--json")
    assert json.loads(out) == {"command": "plot", "status": "ok", "outputs": ["mine.png"], "drawn": "run"}
    assert (tmp_path / "mine.png").read_bytes() == (run.path / "curves.png").read_bytes()


def test_panels_are_of_what_the_log_has_and_break_where_steps_are_missing(run: Run) -> None:
    panels = {title: curves for title, _, curves in drawing._panels(checkpoint.records(run))}
    assert [len(curves) for curves in panels.values()] == [1, 2, 2, 4, 1, 1, 2, 1, 1, 1, 1]
    ((_, steps, values, _),) = panels["loss"]
    assert steps[20] == 31
    assert np.flatnonzero(np.isnan(values)).tolist() == [20]
    assert values[21] == pytest.approx(3 / 31)
    bare = [{key: value for key, value in line(step).items() if key in ("step", "loss", "parts")} for step in (1, 2)]
    titles = [title for title, _, curves in drawing._panels(bare) if curves]
    assert titles == ["loss", "its other terms", "reconstruction in training"]


def test_a_part_that_a_step_lacks_leaves_a_hole_and_the_mean_runs_over_the_rest() -> None:
    values = np.array([1.0, np.nan, 3.0, 5.0])
    assert drawing._smoothed(values) == pytest.approx([1.0, np.nan, 4.0, 4.0], nan_ok=True)


def test_a_run_without_a_step_is_refused(run: Run, aef: Aef) -> None:
    run.log.write_text("")
    with pytest.raises(BadInput, match="no step"):
        curves_png(run, run.path / "curves.png")
    code, out, err = aef("plot", "toy-001")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert not (run.path / "curves.png").exists()


# --- the card ---------------------------------------------------------------------------------------------------------


def test_the_card_tells_data_sizes_training_scores_and_limits(run: Run) -> None:
    plan = run.recipe
    checkpoint.save_weights(run.weights, checkpoint.build(plan), plan, 40)
    path = card.write(run)
    text = path.read_text()
    assert path == run.path / "card.md"
    sections = [row for row in text.splitlines() if row.startswith("#")]
    assert sections == ["# toy-001", "## How to use", "## Data", "## Sizes", "## Training", "## Scores", "## Limits"]
    for part in (
        f"hash {plan.hash}, weights {checkpoint.identity(run)['weights']}",
        "| alps.zarr | WGS 84 / UTM zone 33N | 256 x 128 px of 10 m, 3.28 km2 | 2023-01-01:2023-12-31 | not recorded |",
        "| train | 1 | 2 | 2023-01-01 to 2024-01-01 |",
        "| validation | 1 | 1 | 2023-01-01 to 2024-01-01 |",
        "aef embed cube.zarr --period 2024 --model toy-001",
        "| sentinel-2 | read and decoded | 70 | sentinel-2-c1-l2a | Copernicus Sentinel terms",
        "| landsat | absent from the data |",
        "| steps | 40 of 40 |",
        "| samples seen | 80, 2 a step |",
        "2 CPU cores",
        "| weight of uniformity | 0.05 |",
        "At step 40, of sites held out from training.",
        "| L1 of sentinel-2 | 0.390 | sigmas, frames held out; of the pixel's median over the inputs 0.360 |",
        "- On sentinel-2 its L1 of 0.390 is no better than the pixel's median (0.360).",
        "- It never read landsat,",
        "- Whether its cubes are of the real Earth or simulated is not recorded",
    ):
        assert part in text, part
    assert "On landsat" not in text
    assert "weight of text" not in text
    assert f"{checkpoint.build(plan).parameters_by_part()['total']:,} parameters" in text


@pytest.mark.parametrize(
    ("worlds", "expected"),
    [
        ([True], "simulated landscapes alone"),
        ([False], "from real acquisitions"),
        ([True, False], "Some of what it learned from is simulated"),
    ],
)
def test_the_card_says_of_which_world_the_model_learned(worlds: list[bool], expected: str, run: Run) -> None:
    (cube,) = json.loads((run.path / "data.json").read_text())["cubes"]
    change(run, "data.json", cubes=[cube | {"simulated": world} for world in worlds])
    text = card.write(run).read_text()
    assert expected in text
    assert ("CC0" in text) == (worlds == [True])


def test_a_card_of_an_unfinished_run_without_held_out_sites_says_so(run: Run) -> None:
    run.log.write_text("".join(json.dumps(line(step)) + "\n" for step in (1, 2)))
    change(run, "data.json", samples={"train": 12, "validation": 0, "sites": 3})
    for name in ("environment.json", "samples.parquet"):
        (run.path / name).unlink()
    text = card.write(run).read_text()
    for part in (
        "not finished",
        "Training stands at step 2 of 40",
        "None: nothing was measured yet",
        "Samples: not recorded.",
        "| device | not recorded |",
        "| samples seen | 4, 2 a step |",
        "places that it was trained on",
    ):
        assert part in text, part


def test_a_card_names_the_run_that_the_weights_began_from(run: Run) -> None:
    old = {"path": "/runs/nano-007", "model": {"run": "nano-007", "recipe": "abc", "weights": "def"}}
    change(run, "data.json", **{"from": old})
    assert "| began from | the weights of nano-007 (recipe abc, weights def) |" in card.write(run).read_text()


def test_a_folder_that_is_no_run_has_no_card(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is no run"):
        card.write(Run(tmp_path))
    assert not list(tmp_path.iterdir())
