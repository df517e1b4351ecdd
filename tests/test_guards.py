"""Guards give the known answers on vectors, fields and models that are made to have them; int8 costs what it must."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from affine import Affine
from odc.geo.geobox import GeoBox
from scipy.ndimage import gaussian_filter
from toys import YEAR, made_up_cube, toy_recipe

from aefcli import checkpoint, field, guards
from aefcli.batch import DAY, Frames
from aefcli.checkpoint import Run
from aefcli.cube import Cube
from aefcli.errors import BadInput
from aefcli.extent import tiles
from aefcli.guards import NEAR, SHIFTED, Guard, boundary, edges, effective_rank, quantisation, quantised, seam
from aefcli.guards import guards as every_guard
from aefcli.model import Model
from aefcli.probe import Labels, compare

CPU = torch.device("cpu")


def directions(count: int, dimensions: int = 64, seed: int = 0) -> np.ndarray:
    """Vectors that point anywhere, float32 (count, dimensions) of length 1."""
    vectors = np.random.default_rng(seed).normal(size=(count, dimensions))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype("float32")


# --- vectors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimensions", [8, 64, 128])
def test_an_even_spread_has_the_uniformity_of_the_sphere_and_full_rank(dimensions: int) -> None:
    vectors = directions(20_000, dimensions)
    assert guards.uniformity(vectors) == pytest.approx(guards.spread(dimensions), rel=0.02)
    assert effective_rank(vectors) == pytest.approx(dimensions, rel=0.01)


def test_the_spread_in_64_dimensions_is_the_papers() -> None:
    assert guards.spread(64) == pytest.approx(0.100, abs=5e-4)


def test_a_collapsed_field_has_uniformity_and_rank_1() -> None:
    vectors = np.repeat(directions(1), 500, axis=0)
    assert guards.uniformity(vectors) == pytest.approx(1)
    assert effective_rank(vectors) == 1


def test_a_field_of_eight_dimensions_has_rank_8_however_it_is_turned() -> None:
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(64, 64)))[0]
    vectors = np.pad(directions(20_000, 8), ((0, 0), (0, 56))) @ turn
    assert effective_rank(vectors) == pytest.approx(8, rel=0.01)


def test_no_vector_is_paired_with_itself() -> None:
    assert guards.uniformity(np.eye(2, 64)) == 0


def test_vectors_of_any_length_are_taken_as_directions() -> None:
    vectors = directions(1000)
    longer = vectors * np.random.default_rng(2).uniform(1, 50, (1000, 1))
    assert guards.uniformity(longer) == pytest.approx(guards.uniformity(vectors))
    assert effective_rank(longer) == pytest.approx(effective_rank(vectors))


def test_the_published_vectors_of_a_region_are_far_from_an_even_spread(real: Path) -> None:
    """What the words of these two guards say of AlphaEarth's own vectors."""
    names = ("iowa_ag", "sf_bay_urban")
    tables = [pd.read_csv(real / f"aef/alphaearth_s1_dw_samples_{name}_2024.csv") for name in names]
    vectors = [table[list(field.LABELS)].to_numpy() for table in tables]
    assert [guards.uniformity(matrix) for matrix in vectors] == pytest.approx([0.59, 0.42], abs=5e-3)
    assert [effective_rank(matrix) for matrix in vectors] == pytest.approx([16.1, 14.7], abs=0.1)


# --- a field ----------------------------------------------------------------------------------------------------

CHUNK, STEP = 80, 32  # patches start afresh in every chunk: edges at 32, 64, 80, 112, 144


def write_field(path: Path, vectors: np.ndarray, attrs: Mapping[str, object]) -> Path:
    """A field of one period of vectors (64, h, w)."""
    shape = vectors.shape[1:]
    grid = GeoBox(shape, Affine(10, 0, 500_000, 0, -10, 5_000_000), "EPSG:32633")
    field.create(path, grid, [YEAR], sources=[], attrs=attrs, chunk=CHUNK)
    for tile in tiles(shape, CHUNK):
        field.write(path, tile, field.quantise(vectors[(slice(None), *tile.slices)], axis=0)[None], {})
    field.finish(path)
    return path


def turned(angle: np.ndarray) -> np.ndarray:
    """Unit vectors (64, ...) at some angles within a plane that no axis lies in."""
    axes = np.linalg.qr(np.random.default_rng(3).normal(size=(64, 2)))[0]
    return np.tensordot(axes, np.stack([np.cos(angle), np.sin(angle)]), axes=1)


def patched(theta: float) -> np.ndarray:
    """Vectors (64, 160, 160): one per patch, neighbouring patches `theta` apart."""
    number = np.cumsum(np.isin(np.arange(160), (32, 64, 80, 112, 144)))
    return turned(theta * (number[:, None] + number))


RECIPE = {"aef:recipe": toy_recipe(embed={"patch": 48, "halo": 8}).to_toml()}


def test_a_seam_at_every_patch_is_measured_as_it_was_made(tmp_path: Path) -> None:
    store = field.open_field(write_field(tmp_path / "seams.zarr", patched(0.5), RECIPE))
    assert seam(store) == pytest.approx(np.cos(0.5), abs=2e-3)


@pytest.mark.parametrize(("attrs", "share"), [({}, 1 / 2), (RECIPE, 1 / 10)])
def test_edges_of_chunks_are_edges_with_and_without_a_recipe(
    tmp_path: Path, attrs: dict[str, str], share: float
) -> None:
    """Vectors turn by a right angle at one edge: that between chunks, from left to right."""
    jump = turned(np.pi / 2 * (np.arange(160) >= CHUNK) + np.zeros((160, 1)))
    store = field.open_field(write_field(tmp_path / "chunks.zarr", jump, attrs))
    assert seam(store) == pytest.approx(1 - share, abs=5e-3)


def test_a_smooth_field_has_no_seam_and_nodata_is_none(tmp_path: Path) -> None:
    angle = 5 * gaussian_filter(np.random.default_rng(4).normal(size=(160, 160)), 2)
    vectors = turned(angle)
    vectors[:, 30:34, 20:90] = np.nan
    store = field.open_field(write_field(tmp_path / "smooth.zarr", vectors, RECIPE))
    assert seam(store) == pytest.approx(1, abs=2e-3)
    assert seam(store, seed=5) == seam(store, seed=5)


def test_a_field_of_one_patch_or_of_nothing_has_no_seam_to_measure(tmp_path: Path) -> None:
    small = write_field(tmp_path / "small.zarr", patched(0.5)[:, :20, :20], RECIPE)
    empty = write_field(tmp_path / "empty.zarr", np.full((64, 160, 160), np.nan), RECIPE)
    assert seam(field.open_field(small)) is None
    assert seam(field.open_field(empty)) is None


# --- vectors and labels -----------------------------------------------------------------------------------------


def labelled(count: int = 600, seed: int = 0) -> Labels:
    """Points of three classes in a square of a degree, in random order."""
    rng = np.random.default_rng(seed)
    lon, lat = rng.uniform(10, 11, count), rng.uniform(45, 46, count)
    return Labels(lon, lat, rng.permutation(np.arange(count) % 3), ("a", "b", "c"), "class")


def around(labels: Labels, noise: np.ndarray | float, seed: int = 1) -> np.ndarray:
    """Unit vectors around a centre for each class, float32 (n, 64)."""
    rng = np.random.default_rng(seed)
    centres = directions(3, seed=seed)
    vectors = centres[labels.value] + np.reshape(noise, (-1, 1)) * rng.normal(size=(len(labels), 64)) / 8
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype("float32")


def test_what_is_lost_near_boundaries_is_measured() -> None:
    labels = labelled()
    edge = np.random.default_rng(5).choice([1.0, NEAR, 2.5, 9.0], len(labels))
    vectors = around(labels, 0.5)
    blurred = np.where((edge <= NEAR)[:, None], directions(len(labels)), vectors)
    assert boundary(vectors, labels, edge) == (1, 1)
    near, inside = boundary(blurred, labels, edge)  # type: ignore[misc]
    assert inside == pytest.approx(1, abs=0.02)
    assert near == pytest.approx(1 / 3, abs=0.08)


def test_too_few_points_near_a_boundary_tell_nothing() -> None:
    labels = labelled()
    assert boundary(around(labels, 0.5), labels, np.full(len(labels), 9.0)) is None
    empty = {"empty": np.full((len(labels), 64), np.nan)}
    _, notes = every_guard(empty, labels=labels, edge=np.full(len(labels), 1.0))
    assert "empty: boundary precision left out: too few labels within 2 px of a boundary or beyond" in notes


def test_edges_are_read_from_the_label_table(tmp_path: Path) -> None:
    (tmp_path / "with.csv").write_text("x,y,label,edge\n1,2,3,1.5\n1,2,3,\n")
    (tmp_path / "without.csv").write_text("x,y,label\n1,2,3\n")
    (tmp_path / "words.csv").write_text("x,y,label,edge\n1,2,3,far\n")
    np.testing.assert_array_equal(edges(tmp_path / "with.csv"), [1.5, np.nan])
    assert edges(tmp_path / "without.csv") is None
    with pytest.raises(BadInput, match="'edge' is no number"):
        edges(tmp_path / "words.csv")


# --- quantisation -----------------------------------------------------------------------------------------------


def test_codes_keep_directions_and_prefixes_are_of_unit_length() -> None:
    vectors = directions(500)
    made = quantised(vectors)
    assert list(made) == ["float32", "int16", "int8", "int8, first 32", "int8, first 16", "int8, first 8"]
    cosine = {name: (vectors * made[name]).sum(axis=1) for name in ("int16", "int8")}
    assert cosine["int8"].min() > 0.9995
    assert cosine["int16"].min() > 1 - 1e-6
    np.testing.assert_array_equal(made["int8"], field.dequantise(field.quantise(vectors)))
    assert 0 < np.abs(made["int16"] - vectors).max() < 1e-4
    for length in (32, 16, 8):
        assert made[f"int8, first {length}"].shape == (500, length)
        np.testing.assert_allclose(np.linalg.norm(made[f"int8, first {length}"], axis=1), 1, atol=1e-6)


def test_periods_side_by_side_are_coded_one_by_one() -> None:
    before, after = directions(50, seed=1), directions(50, seed=2)
    pairs = quantised(np.stack([before, after], axis=1))
    for name, alone in quantised(after).items():
        assert pairs[name].shape == (50, 2 * alone.shape[1])
        np.testing.assert_array_equal(pairs[name][:, alone.shape[1] :], alone)


def test_int8_costs_nothing_that_intervals_show_and_eight_dimensions_do() -> None:
    labels = labelled()
    vectors = around(labels, 1.5)
    done = quantisation(labels, vectors, task="toy", probes=["linear"], shots=[10, "max"], max_folds=10)
    again = quantisation(labels, vectors, task="toy", probes=["linear"], shots=[10, "max"], max_folds=10)
    assert done.scores == again.scores
    assert "notes" not in done.about
    exact = next(row for row in compare(done, "int8", "float32") if row.shots == "max")
    short = next(row for row in compare(done, "int8, first 8", "float32") if row.shots == "max")
    assert exact.low <= 0 <= exact.high
    assert abs(exact.difference) < 0.02
    assert short.high < -0.05


def test_vectors_that_were_stored_are_compared_with_nothing_finer() -> None:
    labels = labelled(150)
    vectors = field.dequantise(field.quantise(around(labels, 1)))
    done = quantisation(labels, vectors, stored=True, task="toy", probes=["knn1"], shots=[1], max_folds=3)
    assert {score.field for score in done.scores} == {"int8", "int8, first 32", "int8, first 16", "int8, first 8"}
    assert done.about["notes"] == [guards.STORED]


# --- a model and a cube -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> Cube:
    return made_up_cube(tmp_path_factory.mktemp("cube") / "cube.zarr")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The network as it was drawn: not trained, and so sure to lean on everything it reads."""
    plan = toy_recipe()
    run = checkpoint.new_run(tmp_path_factory.mktemp("runs") / "toy-001", plan)
    checkpoint.save_weights(run.weights, checkpoint.build(plan), plan, 0)
    return run


class Blind(torch.nn.Module):
    """A provider that cheats: the mean of Sentinel-2's frames; it looks at no date and at no other source."""

    def encode(self, inputs: Mapping[str, Frames]) -> torch.Tensor:
        frames = inputs.get("sentinel-2")
        if frames is None:
            return torch.ones(1, 64, *next(iter(inputs.values())).pixels.shape[-2:]) / 8
        there = frames.present[:, :, None].float()
        mean = (frames.pixels * there).sum(1) / there.sum(1).clamp(min=1)
        return torch.nn.functional.normalize(torch.nn.functional.pad(mean, (0, 0, 0, 0, 1, 58), value=1), dim=1)

    def summarise(self, encoded: torch.Tensor, valid: torch.Tensor, at_once: int | None = None) -> torch.Tensor:
        return encoded[:, None].expand(-1, valid.shape[1], -1, -1, -1)


def test_a_model_that_ignores_dates_and_a_source_is_exposed(cube: Cube) -> None:
    blind: Model = Blind()  # type: ignore[assignment]
    found = guards.robustness(blind, toy_recipe(), cube, YEAR, device=CPU)
    assert found[SHIFTED] == pytest.approx(1, abs=1e-6)
    assert found["without sentinel-1"] == pytest.approx(1, abs=1e-6)
    for change in ("without sentinel-2", "without half of the frames", "without the later half"):
        assert found[change] < 0.9999


def test_a_network_answers_to_every_change_and_the_seed_determines_all(cube: Cube, run: Run) -> None:
    model = checkpoint.load(run)
    found = guards.robustness(model, run.recipe, cube, YEAR, device=CPU, seed=3)
    assert list(found) == [
        "without sentinel-2",
        "without sentinel-1",
        "without half of the frames",
        "without the later half",
        SHIFTED,
    ]
    assert all(0 < value < 0.99999 for value in found.values()), found
    assert guards.robustness(model, run.recipe, cube, YEAR, device=CPU, seed=3) == found


def test_what_takes_nothing_away_is_not_asked(cube: Cube, run: Run) -> None:
    """A cube of one source, all of its frames in the first half: only single frames and dates are left to change."""
    source = cube.sources["sentinel-2"]
    early = replace(source, times=source.times.min() + np.arange(len(source.times)) * 1000)
    alone = replace(cube, sources={"sentinel-2": early})
    found = guards.robustness(checkpoint.load(run), run.recipe, alone, YEAR, device=CPU)
    assert list(found) == ["without half of the frames", SHIFTED]


def test_the_later_half_is_the_later_one(cube: Cube, run: Run) -> None:
    """Sentinel-2 in spring alone, Sentinel-1 in autumn alone: without the later half there is no Sentinel-1."""
    days = {"sentinel-2": 60, "sentinel-1": 240}
    moved = {
        name: replace(source, times=YEAR.start + (days[name] + np.arange(len(source.times))) * DAY)
        for name, source in cube.sources.items()
    }
    found = guards.robustness(checkpoint.load(run), run.recipe, replace(cube, sources=moved), YEAR, device=CPU)
    assert found["without the later half"] == pytest.approx(found["without sentinel-1"], abs=1e-6)


# --- all together -----------------------------------------------------------------------------------------------


def test_everything_at_hand_gives_every_guard_in_order(tmp_path: Path, cube: Cube, run: Run) -> None:
    labels = labelled()
    edge = np.random.default_rng(6).choice([1.0, 9.0], len(labels))
    store = write_field(tmp_path / "ours.zarr", patched(0.1), RECIPE)
    vectors = {"ours": around(labels, 1)}
    found, notes = every_guard(
        vectors, labels=labels, edge=edge, fields={"ours": store}, cube=cube, run=run, device=CPU
    )
    assert [guard.name for guard in found] == [
        "ours: uniformity",
        "ours: effective rank",
        "ours: seam",
        "ours: boundary precision",
        "toy-001: consistency without sentinel-2",
        "toy-001: consistency without sentinel-1",
        "toy-001: consistency without half of the frames",
        "toy-001: consistency without the later half",
        "toy-001: order sensitivity",
    ]
    assert notes == []
    assert all(isinstance(guard, Guard) and np.isfinite(guard.value) for guard in found)
    assert [guard.ideal for guard in found[:5]] == ["0.100", "64", "1", "0", "1"]


def test_what_is_not_at_hand_is_said(tmp_path: Path) -> None:
    vectors = {"points": directions(500), "few": np.vstack([directions(100), np.full((400, 64), np.nan)])}
    found, notes = every_guard(vectors, fields={"few": tmp_path / "theirs.tif"})
    assert [guard.name for guard in found] == ["points: uniformity", "points: effective rank", "few: uniformity"]
    said = "\n".join(notes)
    for part in (
        "few: effective rank left out: 100 places are too few",
        "points: seam left out: only a field of ours",
        "few: seam left out",
        "boundary precision left out: it needs labels with a column edge",
        "order sensitivity left out: they need a cube and a run",
    ):
        assert part in said
    assert len(notes) == 5
