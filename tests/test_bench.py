"""The benchmarks measure right answers: the naive network is the same architecture, and their checks can fail."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import zarr
from toys import YEAR, noise_inputs, toy_recipe

from aefcli import probe, recipe
from aefcli.batch import Frames
from aefcli.cube import cube_of, open_cube
from aefcli.errors import BadInput
from aefcli.extent import Tile
from aefcli.model import Model
from aefcli.simulate import imagine
from aefcli.sources import SOURCES
from aefcli.start import begin
from aefcli.train import train

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench import (
    ablate,
    decoders,
    embed,
    encoder,
    fetch,
    judge,
    knn,
    layers,
    measure,
    memory,
    periods,
    ragged,
    reader,
    roofline,
    tiling,
)
from bench.measure import Check, Result, Setting
from bench.naive.model import Naive

VALID = torch.tensor([[[YEAR.start, YEAR.end]]] * 2)
TOY = Setting(toy_recipe(loss={"pixels": 64}), side=32, repeats=1)


@pytest.fixture(scope="module")
def ours() -> Model:
    return measure.stirred(TOY.plan)


@pytest.fixture(scope="module")
def naive(ours: Model) -> Naive:
    return measure.naive_like(ours, TOY.plan)


def gappy() -> dict[str, Frames]:
    """Frames of noise, some of them missing at one site, and one in part."""
    inputs = noise_inputs()
    gone = torch.zeros(2, 4, dtype=torch.bool)
    gone[0, 1:3] = True
    inputs["sentinel-2"] = inputs["sentinel-2"].without(gone)
    inputs["landsat"].present[1, 0, :7, :9] = False
    return inputs


# --- the naive network ----------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_naive_encoder_has_our_weights_and_gives_our_features(ours: Model, naive: Naive) -> None:
    for part in ("stem", "blocks", "decoders"):
        own, theirs = (getattr(network, part).state_dict() for network in (ours, naive))
        beside = (".fine.", ".bent.", ".clear.")  # go round the encoder, to the summariser
        own = {name: tensor for name, tensor in own.items() if not any(part in name for part in beside)}
        assert own.keys() == theirs.keys()
        assert all(torch.equal(own[name], theirs[name]) for name in own)
    inputs = gappy()
    packed, dense = ours.encode(inputs), naive.encode(inputs)
    filled = dense.present.flatten(2).any(-1)
    assert (~filled).any()
    # Both go through sites, then sources, then slots; ours leaves the empty ones out.
    torch.testing.assert_close(dense.features[filled], packed.features, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_naive_vectors_have_unit_length_and_do_not_hang_on_what_is_not_present(naive: Naive) -> None:
    inputs = gappy()
    vectors = naive.summarise(naive.encode(inputs), VALID)
    assert vectors.shape == (2, 1, 64, 32, 32)
    torch.testing.assert_close(vectors.norm(dim=2), torch.ones(2, 1, 32, 32))
    frames = inputs["sentinel-2"]
    other = replace(frames, pixels=torch.where(frames.present[:, :, None], frames.pixels, 7.0))
    again = naive.summarise(naive.encode({**inputs, "sentinel-2": other}), VALID)
    torch.testing.assert_close(again, vectors, atol=1e-6, rtol=0)
    moved = {**inputs, "sentinel-2": replace(frames, pixels=frames.pixels + 1)}
    assert (naive.summarise(naive.encode(moved), VALID) - vectors).abs().max() > 1e-3


# --- the benchmarks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bench", [encoder, ragged, periods, decoders, memory], ids=lambda bench: bench.__name__)
def test_every_benchmark_runs_and_is_right(bench: object, capsys: pytest.CaptureFixture[str]) -> None:
    result = bench.run(TOY)
    assert result.right, result.correct
    assert all(value > 0 for value in result.ratios.values())
    result.show(as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert printed["bench"] == result.bench
    assert printed["ratios"] == dict(result.ratios)
    result.show(as_json=False)
    assert "yes" in capsys.readouterr().out


def test_fetch_beside_others_runs_and_is_right(tmp_path: Path) -> None:
    result = fetch.run(tmp_path, fetch.QUICK, repeats=1)
    assert result.right, result.correct
    assert set(result.ratios) == {"time", "memory", "rasterio", "area"}
    runs = result.notes["runs"]
    assert set(runs) == {*fetch.KINDS, "1x", "8x"}
    for figures in runs.values():
        assert figures["peak"] > 50e6  # an interpreter and its libraries
        assert figures["served"] > 0
    assert runs["rasterio"]["requests"] >= 2 * 6 * fetch.QUICK.dates  # every file
    odc_store = tmp_path / "odc-0"
    red = zarr.open_array(odc_store / "red")
    assert (red[:] == 0).any(), "nodata was compared"
    red[0, 0, 0] += 1
    assert fetch.differing(tmp_path / "ours-0", odc_store) == 1


def test_reader_beside_others_runs_and_is_right(tmp_path: Path) -> None:
    result = reader.run(tmp_path, reader.QUICK, repeats=1)
    assert result.right, result.correct
    assert set(result.correct) == {"ours", "one-frame", "tensorstore", "zarr"}
    windows = reader.corners(reader.QUICK)
    readers = reader.readers_of(open_cube(tmp_path / "cube.zarr"), tmp_path / "again.zarr")

    def off(tile: Tile) -> tuple[np.ndarray, np.ndarray]:
        values, weight = readers["ours"](tile)
        return values, 1 - weight

    assert reader.differing(readers["tensorstore"], off, windows) == len(windows) * 5 * 64 * 64


def test_knn_beside_scikit_learn_runs_and_is_right() -> None:
    result = knn.run(knn.QUICK, repeats=1)
    assert result.right, result.correct
    assert result.ratios["knn"] > 0
    assert {row[0]: row[1] for row in result.rows} == {"ours": "5,000", "ours, as many": "200", "scikit-learn": "200"}
    rng = np.random.default_rng(0)
    x = knn.vectors(50, rng.standard_normal((3, knn.DIMENSIONS), dtype=np.float32), rng)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, rtol=1e-6)
    assert knn.double(x, x)[:, 0].tolist() == list(range(50))
    assert (knn.double(x, -x)[:, 0] != np.arange(50)).all()


def test_judging_runs_and_is_right(tmp_path: Path) -> None:
    result = judge.run(tmp_path, judge.QUICK, repeats=1)
    assert result.right, result.correct
    assert set(result.correct) == {"protocol, rarest 40", "ridge, 0.1 MP", "ridge, 0.3 MP"}
    assert set(result.ratios) == {"memory"}
    assert result.rows[0][1] == "400 points, 659 folds"
    assert all(each["peak"] > 20e6 for each in result.notes["runs"].values())  # an interpreter and its libraries
    with rasterio.open(tmp_path / "256-ridge.tif") as file:
        profile, said = file.profile, file.read()
    with rasterio.open(tmp_path / "turned.tif", "w", **profile) as file:
        file.write(said[:, ::-1])
    assert judge.right(tmp_path / "turned.tif") < 0.5
    assert judge.extrapolated((1_000_000, 2_000_000), (3, 4)) == pytest.approx(102)


def test_embedding_runs_and_is_right(tmp_path: Path) -> None:
    result = embed.run(tmp_path, TOY)
    assert result.right, result.correct
    assert {"end_to_end", "overtiling", "months", "months, 16 frames", "memory"} <= set(result.ratios)
    assert all(value > 0 for value in result.ratios.values())
    assert result.ratios["overtiling"] == (48 / 32) ** 2
    assert len(result.notes["seconds of areas and frames"]) == 4
    other = embed.saved(tmp_path / "other", TOY.plan.replace(train={"seed": 5}))
    assert embed.wrong(open_cube(tmp_path / "cube.zarr"), other, tmp_path / "0.zarr") > 0


def test_tiling_runs_and_patches_add_up(tmp_path: Path) -> None:
    result = tiling.run(tmp_path, quick=True)
    assert [row[0] for row in result.rows] == [f"nano, 80 px, halo 4, {way}" for way in ("trimmed", "blended")]
    assert all(0 < float(mean) < float(most) < 90 for _, mean, most, *_ in result.rows)
    assert set(result.ratios) == {"nano 80/4, blended over trimmed"}
    for blended in (False, True):
        weight = tiling.ramp(80, 4, blended)
        np.testing.assert_allclose(weight[:, :8] + weight[:, -8:], weight[:, 8:16])


def test_layers_are_probed_at_the_same_pixels_and_a_fitted_network_tells_more() -> None:
    result = layers.run((layers.UNTRAINED, "nano"), layers.QUICK)
    untrained, nano = result.notes["r2"].values()
    assert [row[0] for row in result.rows] == list(nano)
    assert untrained["bands"] == nano["bands"]
    for layer in ("projected", "sample"):
        assert nano[layer]["r2/composite"] > untrained[layer]["r2/composite"] + 0.2
    assert nano["stem"] == {}  # more numbers than half of the pixels
    assert result.rows[1] == ("stem", "-", "-", "")


@torch.inference_mode()
def test_layers_have_each_pixel_in_its_place() -> None:
    model, plan = layers.network("nano")
    land = imagine(1, sites=4, size=32, years=(2023, 2023))
    cube = cube_of({name: data for name, data in land.datasets.items() if name in plan.data.sources}, land.period)
    (batch,) = layers.windows(cube, plan, layers.QUICK)
    frames = batch.inputs["sentinel-2"]
    gone = frames.present.clone()
    gone[1, :, 5, 8] = False
    one = replace(batch, inputs=batch.inputs | {"sentinel-2": replace(frames, present=gone)})
    whole, found = (layers.layers(model, each, plan.model.kappa, torch.Generator()) for each in (batch, one))
    heads, detail, bands = plan.model.pool_heads, plan.model.pool_detail, len(SOURCES["sentinel-2"].bands)
    for name, width in (("bands", 12 * bands), ("stem", 12 * detail), ("detail", heads * detail)):
        empty, before = ((each[name][..., :width] == 0).all(-1) for each in (found, whole))
        assert np.argwhere(empty & ~before).tolist() == [[1, 5, 8]], name
    clear = (frames.weight * gone)[2, :, 3, 4].numpy()
    month = ((frames.time[2] - batch.support[2, 0]) * 12 // (batch.support[2, 1] - batch.support[2, 0])).numpy()
    sums = [(clear * (month == each) * frames.pixels[2, :, 0, 3, 4].numpy()).sum() for each in range(12)]
    counts = [(clear * (month == each)).sum() for each in range(12)]
    np.testing.assert_allclose(found["bands"][2, 3, 4, 0 : 12 * bands : bands], sums / np.maximum(counts, 1), atol=1e-6)
    vectors = model.summarise(model.encode(one.inputs), one.support[:, None])[:, 0].movedim(1, -1).numpy()
    np.testing.assert_array_equal(found["embedding"], vectors)
    cosine = (found["sample"] * vectors).sum(-1)
    assert 0.98 < cosine.mean() < 1


def test_a_fold_by_scikit_learn_tells_other_draws_apart() -> None:
    labels, x = judge.task(400, 30)
    assert np.bincount(labels.value).tolist() == [30, 32, 34, 37, 39, 41, 43, 46, 48, 50]
    done = probe.evaluate({"x": x}, labels, task="t", probes=("knn1", "knn3", "linear"), shots=(10,), max_folds=1)
    assert judge.off(done, labels, x) <= 1e-9
    assert judge.off(replace(done, about={**done.about, "seed": 1}), labels, x) > 1e-3


def test_three_fifths_of_the_slots_are_empty_and_no_site_is() -> None:
    frames = ragged.frames_of(ragged.thinned(measure.noise(b=ragged.SITES, side=16)))
    assert sum(frames) == round(0.4 * 64)
    assert min(frames) > 0


def test_decoders_notice_a_biased_sample(ours: Model) -> None:
    work, rng = decoders.made_up(TOY), torch.Generator().manual_seed(0)
    whole = decoders.sampled(ours, work, rng, pixels=None)
    assert decoders.spread(lambda: decoders.sampled(ours, work, rng), whole).right
    assert not decoders.spread(lambda: decoders.sampled(ours, work, rng) * 1.05, whole).right


def test_checkpointing_keeps_a_fifth_at_most() -> None:
    """`small` on a small patch: the share hangs little on it."""
    model, inputs = measure.stirred(recipe.load("small")).train(), measure.noise(side=16)
    kept, checkpointed = (memory.saved_bytes(model, inputs, on) for on in (False, True))
    assert kept >= 5 * checkpointed


def test_bytes_kept_are_those_that_autograd_saves(ours: Model) -> None:
    inputs, model = measure.noise(side=16), measure.stirred(TOY.plan).train()
    held_anyway = [*model.parameters(), *model.buffers()]
    given = [*held_anyway, *(tensor for frames in inputs.values() for tensor in vars(frames).values())]
    own = {tensor.untyped_storage().data_ptr() for tensor in given}
    saved: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        held = memory.loss(model, inputs, False)
    expected = sum(tensor.untyped_storage().nbytes() for address, tensor in saved.items() if address not in own)
    assert held.requires_grad
    assert memory.saved_bytes(model, inputs, False) == expected


def test_roofline_measures_on_a_cpu_what_it_is_told_to(tmp_path: Path) -> None:
    path = tmp_path / "toy.toml"
    path.write_text(TOY.plan.to_toml())
    words = ["--recipe", str(path), "--frames", "4", "--side", "32", "--repeats", "1"]
    result = roofline.run(roofline.parse(words), torch.device("cpu"))
    assert result.right, result.correct
    assert len(result.rows) == 2
    assert all(value > 0 for value in result.ratios.values())
    (limits,) = [note for name, note in result.notes.items() if name.startswith("step")]
    assert "limited by" in limits


def test_roofline_without_gpu_or_options_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    monkeypatch.setattr(sys, "argv", ["roofline"])
    roofline.main()
    assert capsys.readouterr().out == "device: no GPU here: nothing measured\n"


# --- the ablation ---------------------------------------------------------------------------------------------------


def test_every_variant_is_a_recipe_that_differs_from_the_base() -> None:
    asked = ablate.tasks(recipe.load("nano"), steps=7, seeds=2)
    assert [task.variant for task in asked] == [*ablate.variants(recipe.load("nano"))] * 2
    first = {task.variant: task.plan for task in asked if task.plan.train.seed == 0}
    assert len({plan.hash for plan in first.values()}) == len(first)
    assert {plan.train.steps for plan in first.values()} == {7}
    assert first["no-radar"].data.sources == ("sentinel-2", "landsat")
    assert first["expansion-4"].model.precision_expansion == 4
    (one,) = ablate.tasks(recipe.load("nano"), 7, 1, only=["kappa-800"])
    assert one.plan.model.kappa == 800
    with pytest.raises(BadInput, match="did you mean no-radar"):
        ablate.tasks(recipe.load("nano"), 7, 1, only=["no-rader"])


def row_of(task: ablate.Task, ours: float) -> ablate.Row:
    """As a finished run leaves it, with one score everywhere."""
    found = {"ours": ours, "designed": 0.5, "rival": "raw", "reduction": (ours - 0.5) / 0.5}
    scores = {name: {str(shots): found for shots in ablate.SHOTS} for name in ablate.SPARSE}
    return task.key | {"minutes": 5.0, "loss": 1.0, "parts": {}, "scores": scores, "uniformity": 0.1, "rank": 20.0}


def test_finished_rows_are_not_run_again(tmp_path: Path) -> None:
    """Nothing is made where all rows are there; rows of other steps, and one that was cut off, are none of them."""
    asked = ablate.tasks(recipe.load("nano"), 7, 2, only=["base", "no-agree"])
    (other,) = ablate.tasks(recipe.load("nano"), 8, 1, only=["base"])
    lines = [json.dumps(row_of(task, 0.6)) for task in (other, *reversed(asked))]
    (tmp_path / "ablate.jsonl").write_text("\n".join([*lines, lines[0][:99]]))
    rows = ablate.campaign(tmp_path, asked)
    assert [(row["variant"], row["seed"], row["steps"]) for row in rows] == [
        ("base", 0, 7),
        ("no-agree", 0, 7),
        ("base", 1, 7),
        ("no-agree", 1, 7),
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"ablate.jsonl", "lock"}


def test_the_table_has_medians_over_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ablate.tasks(recipe.load("nano"), 7, 3, only=["base", "no-agree"])
    rows = [row_of(task, ours) for task, ours in zip(asked, (0.6, 0.5, 0.7, 0.4, 0.62, 0.63), strict=True)]
    found = ablate.figures(rows)
    assert found["base"]["crops 10"].median == 0.62
    assert found["base"]["nature max"].spread == pytest.approx(0.1)
    assert found["base"]["reduction max"].median == pytest.approx(0.24)
    assert found["no-agree"]["over base"].median == pytest.approx(-0.1)  # of -0.1, -0.3 and 0.01
    assert found["base"]["over base"] == ablate.Figure(0, 0)
    ablate.show(rows, as_json=False)
    printed = capsys.readouterr().out
    assert ".620 (.100)" in printed
    assert ".500 raw" in printed
    ablate.show(rows, as_json=True)
    assert json.loads(capsys.readouterr().out)["variants"]["base"]["mean"]["median"] == pytest.approx(0.62)


@pytest.mark.slow
def test_a_campaign_goes_on_with_the_run_that_it_was_cut_off_in(tmp_path: Path) -> None:
    plan, worlds = toy_recipe(), replace(ablate.QUICK, sites=4)
    asked = ablate.tasks(plan, 4, 1, ["base", "b-0.005"], worlds)
    whole = ablate.campaign(tmp_path / "whole", asked)
    path = tmp_path / "cut"
    start = begin(asked[0].run(path).path, [ablate.learned(path, asked[0])], asked[0].plan)
    with closing(train(start, ablate.CPU)) as stream:
        assert [next(stream).step for _ in range(3)] == [1, 2, 3]
    assert ablate.campaign(path, asked[:1])[0]["scores"] == whole[0]["scores"]
    assert [row["variant"] for row in ablate.campaign(path, asked)] == ["base", "b-0.005"]
    assert len(ablate.rows_of(path)) == 2
    scores = whole[0]["scores"]["nature"]["max"]
    assert 0 < scores["ours"] < 1
    assert scores["rival"] in ablate.DESIGNED


# --- what they share ------------------------------------------------------------------------------------------------


def test_clocks_alternate_and_warm_up() -> None:
    order: list[str] = []

    def work(name: str) -> Callable[[], None]:
        return lambda: order.append(name)

    taken = measure.seconds({"a": work("a"), "b": work("b")}, repeats=3)
    assert order == ["a", "b"] * 4
    assert set(taken) == {"a", "b"}


def test_a_wrong_result_is_shown_and_ends_with_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    limits = {"at most": Check(0.2, 0.1), "at least": Check(0.9, 0.99, least=True), "nan": Check(float("nan"), 1.0)}
    assert not any(check.right for check in limits.values())
    assert Check(0.1, 0.1).right
    assert Check(0.99, 0.99, least=True).right
    for name, check in limits.items():
        result = Result("toy", "toy", (), [("row", name)], {}, {name: check})
        with pytest.raises(SystemExit, match="1"):
            result.show(as_json=False)
        assert "NO" in capsys.readouterr().out
