"""Fields, a cube and labels into scores: every candidate answers the same labels, and what is left out is said."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
import zarr
from conftest import Aef
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from pyproj import Transformer
from rasterio import Affine
from toys import YEAR, toy_recipe

from aefcli import baselines, checkpoint, embed, field, probe
from aefcli.batch import DAY
from aefcli.checkpoint import Run
from aefcli.cli import scores as scores_command
from aefcli.cube import Cube, open_cube, write_cube
from aefcli.errors import BadInput
from aefcli.extent import Period, Tile
from aefcli.judge import BASELINES, Judgement, Protocol, find_labels, judge, judge_table
from aefcli.sources import SOURCES

CPU = torch.device("cpu")
SPRING, AUTUMN = Period.parse("2023-01:2023-06"), Period.parse("2023-07:2023-12")
SHAPE = (48, 40)
GRID = GeoBox(SHAPE, Affine(10, 0, 500_000, 0, -10, 5_100_000), "EPSG:32633")
HOLE = np.s_[:, :6, :6]  # no source ever sees it
RADAR = np.s_[:, 40:, :]  # Sentinel-1 alone sees it
EARLY = np.s_[6:, :, 20:26]  # no clear frame of Sentinel-2 from June on
RIGHT = np.arange(SHAPE[1]) >= 20  # the second of two covers

Datasets = dict[str, xr.Dataset]


def made_up() -> Datasets:
    """Two covers under noise, half of all pixels clouded, Sentinel-1 with gaps and one power out of range."""
    rng = np.random.default_rng(0)

    def dataset(name: str, days: Sequence[int], values: Mapping[str, np.ndarray]) -> xr.Dataset:
        time = np.datetime64("2023-01-01T10:30", "ms") + np.array(days) * np.timedelta64(1, "D")
        dims = ("time", "y", "x")
        arrays = {key: (dims, array) for key, array in values.items()}
        return xr.Dataset(arrays, coords={**xr_coords(GRID), "time": time})

    days = [5, 40, 75, 100, 130, 150, 200, 215, 240, 300, 350]
    shape = (len(days), *SHAPE)
    optical = {
        band.name: (rng.integers(300, 1500, shape) + 2000 * RIGHT).astype("uint16")
        for band in SOURCES["sentinel-2"].bands
    }
    optical["B04"][:, 30:34, :8] = 0  # one band not delivered makes the pixel unclear
    weight = (rng.random(shape) < 0.5).astype("uint8")
    weight[0, :, 20:26] = 1
    weight[HOLE] = weight[RADAR] = weight[EARLY] = 0
    passes = [3, 50, 95, 140, 185, 230, 275]
    shape = (len(passes), *SHAPE)
    radar = {band: (rng.uniform(0.02, 0.3, shape) * (1 + RIGHT)).astype("float32") for band in ("VV", "VH")}
    radar["VH"][rng.random(shape) < 0.3] = SOURCES["sentinel-1"].nodata
    radar["VV"][2] = 1e-5  # -50 dB
    radar["VV"][HOLE] = SOURCES["sentinel-1"].nodata
    return {
        "sentinel-2": dataset("sentinel-2", days, {**optical, "weight": weight}),
        "sentinel-1": dataset("sentinel-1", passes, radar),
    }


@dataclass(frozen=True)
class World:
    folder: Path
    data: Datasets
    cube: Cube
    run: Run

    @property
    def field(self) -> Path:
        return self.folder / "embeddings.zarr"


def make_run(path: Path, noise: float) -> Run:
    """A run of the toy recipe that was trained not at all, or by noise."""
    two = {"sources": ["sentinel-2", "sentinel-1"], "frames": [6, 4]}
    plan = toy_recipe(data=two, embed={"patch": 32, "halo": 4})
    run, model = checkpoint.new_run(path, plan), checkpoint.build(plan)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weights in model.parameters():
            weights += noise * torch.randn(weights.shape, generator=generator)
    checkpoint.save_weights(run.weights, model, plan, 0)
    return run


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Two of torch's threads wait for each other on a busy machine, and gain nothing on networks of this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """cube.zarr, and embeddings.zarr beside it: two half years from a model that noise has trained."""
    folder, data = tmp_path_factory.mktemp("world"), made_up()
    cube = open_cube(write_cube(folder / "cube.zarr", data, YEAR))
    run = make_run(folder / "runs" / "toy-001", 0.02)
    embed.embed(cube, run, [SPRING, AUTUMN], folder / "embeddings.zarr", device=CPU)
    return World(folder, data, cube, run)


def table(seed: int = 0, count: int = 80, period: Period | None = SPRING, **columns: Any) -> pd.DataFrame:
    """Labels in equal numbers, with sites, at pixels outside of the hole; one in five is not of its cover."""
    rng = np.random.default_rng(seed)
    label = np.arange(count) % 2
    cover = label ^ (rng.random(count) < 0.2)
    made = {"row": rng.integers(6, SHAPE[0], count), "column": rng.integers(6, 20, count) + 20 * cover, "label": label}
    made["site"] = made["row"] // 6
    if period is not None:
        made |= {"valid_time_start_ms": period.start, "valid_time_end_ms": period.end}
    return pd.DataFrame({**made, **columns})


def save(labels: pd.DataFrame, path: Path) -> Path:
    """As CSV or Parquet, with the places of the pixels' centres in degrees."""
    x, y = 500_005 + 10 * labels["column"], 5_099_995 - 10 * labels["row"]
    lon, lat = Transformer.from_crs("EPSG:32633", "EPSG:4326", always_xy=True).transform(x, y)
    placed = labels.drop(columns=["row", "column"]).assign(x=lon, y=lat)
    placed.to_csv(path, index=False) if path.suffix == ".csv" else placed.to_parquet(path, index=False)
    return path


def scored(fields: Sequence[Path], labels: Path, cube: Path | None = None) -> Judgement:
    return judge(fields, labels, cube, Protocol(("knn1", "linear"), ("max",)), device=CPU)


def rows(done: Judgement) -> list[str]:
    return list(dict.fromkeys(score.field for score in done.evaluation.scores))


# --- scores ---------------------------------------------------------------------------------------------------


def test_rows_for_the_field_and_its_baselines(world: World, tmp_path: Path) -> None:
    done = scored([world.field], save(table(), tmp_path / "covers.parquet"))
    assert rows(done) == ["embeddings", "composite", "untrained"]
    assert {score.task for score in done.evaluation.scores} == {"covers"}
    assert done.notes == ()
    assert done.evaluation.about["points"] == 80
    assert done.evaluation.about["split"] == "site"
    of = {row: {(s.probe, s.metric): s.mean for s in done.evaluation.scores if s.field == row} for row in rows(done)}
    assert of["composite"]["linear", "balanced_accuracy"] > 0.65
    assert len({tuple(scores.values()) for scores in of.values()}) == 3  # no two rows are of the same vectors


def test_labels_that_not_all_can_answer_are_dropped_and_counted(world: World, tmp_path: Path) -> None:
    good = table()
    outside = table(1, 4, row=[-1, SHAPE[0], 10, 10], column=[10, 10, -1, SHAPE[1]])
    elsewhen = table(2, 6, Period.parse("2022"))
    nodata = table(3, 2, row=[0, 5], column=[5, 0])
    # In the middle, so that the rows left must be matched with the rows left of every candidate
    mixed = pd.concat([good[:30], outside, elsewhen, good[30:], nodata])
    done = scored([world.field], save(mixed, tmp_path / "t.csv"))
    reasons = "4 outside, 6 of periods that a field does not hold, 2 without data"
    assert done.notes == (f"12 of 92 labels are left out: {reasons}",)
    assert done.evaluation.about["points"] == 80
    alone = scored([world.field], save(good, tmp_path / "t.parquet"))
    assert done.evaluation.scores == alone.evaluation.scores


def test_each_label_is_answered_for_its_own_period(world: World, tmp_path: Path) -> None:
    which = np.arange(80) // 2 % 2  # the half year of each label
    bounds = np.array([[SPRING.start, SPRING.end], [AUTUMN.start, AUTUMN.end]])[which].T
    chosen = table(valid_time_start_ms=bounds[0], valid_time_end_ms=bounds[1])
    file = save(chosen, tmp_path / "t.csv")
    labels, where = probe.read_labels(file), (chosen["row"].to_numpy(), chosen["column"].to_numpy())
    asked = (world.cube, *where, [SPRING, AUTUMN])
    made = {
        "embeddings": field.sample(field.open_field(world.field), labels.lon, labels.lat)[0],
        "composite": baselines.composite(*asked),
        "untrained": baselines.untrained(world.run.recipe, *asked, CPU),
    }
    own = {name: values[np.arange(80), which] for name, values in made.items()}
    alone = probe.evaluate(own, labels, task="t", probes=("knn1", "linear"), shots=("max",))
    done = scored([world.field], file)
    assert done.evaluation.scores == alone.scores
    assert done.evaluation.about == {**alone.about, "sharing": done.evaluation.about["sharing"]}
    assert done.notes == ()


def scored_alone(world: World, folder: Path, period: Period) -> tuple[Any, ...]:
    return scored([world.field], save(table(period=period), folder / "t.csv")).evaluation.scores


def test_a_field_of_one_period_answers_labels_without_one(world: World, tmp_path: Path) -> None:
    embed.embed(world.cube, world.run, [SPRING], tmp_path / "embeddings.zarr", device=CPU)
    plain = scored([tmp_path / "embeddings.zarr"], save(table(period=None), tmp_path / "t.csv"))
    assert rows(plain) == ["embeddings", "composite", "untrained"]  # the cube is where the field says
    assert plain.evaluation.scores == scored_alone(world, tmp_path, SPRING)


def test_periods_of_labels_count_in_whole_days(world: World, tmp_path: Path) -> None:
    """As fields are asked for: else the hint to embed the labels' period would lead nowhere."""
    start, end = SPRING.start + DAY // 3, SPRING.end - DAY // 4
    part = table(valid_time_start_ms=start, valid_time_end_ms=end)
    found = scored([world.field], save(part, tmp_path / "t.csv"))
    assert found.evaluation.scores == scored_alone(world, tmp_path, SPRING)


def test_periods_that_the_field_lacks_are_embedded_where_its_run_is_at_hand(
    world: World, aef: Aef, tmp_path: Path
) -> None:
    late = save(table(valid_time_start_ms=SPRING.start + DAY), tmp_path / "t.csv")
    done = scored([world.field], late)
    assert done.notes == ("80 labels ask embeddings for periods it does not hold: embedded here",)
    other = Period(SPRING.start + DAY, SPRING.end)
    embed.embed(world.cube, world.run, [other], tmp_path / "embeddings.zarr", device=CPU)
    assert scored([tmp_path / "embeddings.zarr"], late, world.cube.path).evaluation.scores == done.evaluation.scores
    shutil.copytree(world.field, tmp_path / "alone.zarr")
    with pytest.raises(
        BadInput, match=r"ask for 2023-01-02:2023-06-30, alone holds 2023-01-01:2023-06-30, "
    ) as refused:
        scored([tmp_path / "alone.zarr"], late, world.cube.path)
    told, _, command = refused.value.hint.partition("; or score another field: ")
    assert told == "--model names the run that made it"
    shutil.copytree(world.run.path, tmp_path / "runs" / "other-001")
    code, out, err = aef(*shlex.split(command)[1:], "-q")
    assert (code, out) == (0, f"{tmp_path / 'alone-2023-01-02.zarr'}\n"), err
    again = scored([tmp_path / "alone-2023-01-02.zarr"], late, world.cube.path)
    assert again.evaluation.scores[0].mean == done.evaluation.scores[0].mean
    named = judge([tmp_path / "alone.zarr"], late, world.cube.path, Protocol(("knn1",)), run=world.run, device=CPU)
    assert "80 labels ask alone for periods it does not hold: embedded here" in named.notes
    stranger = make_run(tmp_path / "stranger", 0.1)
    with pytest.raises(BadInput, match=r"did not make .*alone.zarr"):
        judge([tmp_path / "alone.zarr"], late, world.cube.path, Protocol(), run=stranger, device=CPU)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_is_embedded_for_a_field_is_rounded_as_the_field_is(world: World, tmp_path: Path, dtype: str) -> None:
    late = table(valid_time_start_ms=SPRING.start + DAY)
    how = embed.How(dtype=dtype)
    embed.embed(world.cube, world.run, [SPRING], tmp_path / "wide.zarr", device=CPU, how=how)
    where, period = (late["row"].to_numpy(), late["column"].to_numpy()), Period(SPRING.start + DAY, SPRING.end)
    made = embed.at_points(checkpoint.load(world.run), world.run.recipe, world.cube, *where, [period], CPU)[:, 0]
    file, plan = save(late, tmp_path / "t.csv"), Protocol(("knn1",))
    done = judge([tmp_path / "wide.zarr"], file, world.cube.path, plan, beside=(), run=world.run, device=CPU)
    np.testing.assert_array_equal(done.features["wide"], made.astype(dtype).astype("float32"))


def test_runs_of_other_versions_are_named_only_where_they_are_needed(world: World, tmp_path: Path) -> None:
    here, runs = tmp_path / "embeddings.zarr", tmp_path / "runs"
    shutil.copytree(world.field, here)
    for name in ("older-001", "toy-001"):
        shutil.copytree(world.run.path, runs / name)
        (runs / name / "recipe.toml").write_text('name = "toy"\n')
    held, late = (
        save(table(valid_time_start_ms=SPRING.start + days * DAY), tmp_path / f"{days}.csv") for days in (0, 1)
    )
    assert scored([here], held, world.cube.path).notes == ()
    why = rf"cannot be read: {re.escape(str(runs))}/toy-001/recipe\.toml lacks data"
    with pytest.raises(BadInput, match=rf"ask for 2023-01-02.* holds .*, and the run that made it {why} \(--model"):
        scored([here], late, world.cube.path)
    both = save(pd.concat([table(), table(1, 6, Period.parse("2022-11:2023-02"))]), tmp_path / "both.csv")
    *_, read, left = scored([here], both, world.cube.path).notes
    assert re.fullmatch(rf"the run that made embeddings {why}", read)
    assert left == "6 of 86 labels are left out: 6 of periods that a field does not hold"
    done = judge([here], held, world.cube.path, Protocol(("knn1",)), quantisation=True, device=CPU)
    assert re.fullmatch(rf"the run that made embeddings {why}", done.notes[0])
    root = json.loads((here / "zarr.json").read_text())
    root["attributes"]["aef:recipe"] = 'name = "toy"\n'
    (here / "zarr.json").write_text(json.dumps(root))
    done = scored([here], held, world.cube.path)
    assert done.notes == ("untrained is left out: the recipe in the field lacks data",)
    assert rows(done) == ["embeddings", "composite"]
    assert done.provenance["field embeddings"].startswith(f"{here}, recipe {world.run.recipe.hash}, 2023-01-01")


def test_a_split_of_few_blocks_is_told_of(tmp_path: Path) -> None:
    """Places 0.1 degrees apart on the equator, ten points at each."""
    for places in (6, 30):
        place, point = np.divmod(np.arange(10 * places), 10)
        points = {"x": 0.1 * place + 1e-4 * point, "y": 0.001, "label": point % 2, "a": point % 3, "b": 1.0 * place}
        pd.DataFrame(points).to_csv(tmp_path / "t.csv", index=False)
        notes = judge_table(tmp_path / "t.csv", ["a,b"], "label", Protocol(("knn1",), ["max"])).notes
        told = "the labels lie in 6 blocks of 1280 m, about 2 of which test a fold: too few to stand for other ground"
        assert notes == ((f"{told} (--block 640 makes more of them)",) if places == 6 else ())


def test_shots_beyond_the_training_split_are_left_out_by_default(world: World, tmp_path: Path) -> None:
    split = np.where(np.arange(80) < 8, "train", "test")  # 4 points of either class to learn from
    labels = table(row=6 + np.arange(80) // 34, column=6 + np.arange(80) % 34, split=split)
    done = judge([world.field], save(labels, tmp_path / "t.csv"), None, Protocol(("knn1",)), device=CPU)
    assert done.notes[0] == "10 shots left out: the smallest class has too few points"
    assert {score.shots for score in done.evaluation.scores} == {1, "max"}


def test_without_a_cube_the_baselines_are_left_out(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.field, tmp_path / "alone.zarr")
    labels = save(table(), tmp_path / "t.csv")
    done = scored([tmp_path / "alone.zarr"], labels)
    assert rows(done) == ["alone"]
    assert done.notes == ("no cube at hand: composite and untrained are left out (--cube names one)",)
    named = scored([tmp_path / "alone.zarr"], labels, world.cube.path)
    assert rows(named) == ["alone", "composite", "untrained"]


def test_fields_of_one_name_keep_their_rows(world: World, tmp_path: Path) -> None:
    other, posing = tmp_path / "embeddings.zarr", tmp_path / "composite.zarr"
    embed.embed(world.cube, make_run(tmp_path / "run", 0.1), [SPRING], other, device=CPU)
    shutil.copytree(other, posing)
    done = scored([world.field, other, posing], save(table(), tmp_path / "t.csv"))
    assert rows(done) == [str(world.field), str(other), str(posing), "composite", "untrained"]
    of = {name: [score.mean for score in done.evaluation.scores if score.field == name] for name in rows(done)}
    assert of[str(other)] == of[str(posing)] != of[str(world.field)]
    assert of["composite"] != of[str(posing)]


# --- what the judge sees through ------------------------------------------------------------------------------


def posing(path: Path, vectors: np.ndarray) -> Path:
    """A field that holds these vectors (time, 64, y, x) for the two half years, whoever made them."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    field.create(path, GRID, [SPRING, AUTUMN], sources=[], attrs={})
    field.write(path, Tile(0, 0, *SHAPE), field.quantise(unit, axis=1), {})
    field.finish(path)
    return path


def best_of(done: Judgement, name: str) -> float:
    return probe.best(done.evaluation, name, "max")[1]


def test_a_copy_of_the_coordinates_knows_nothing_at_other_sites(tmp_path: Path) -> None:
    """Labels that hang on the site: points beside each other would give them away, a split by sites does not."""
    row, column = np.mgrid[: SHAPE[0], : SHAPE[1]]
    rng = np.random.default_rng(3)
    (along, across), phase = rng.normal(0, 1 / 3, (2, 64)), rng.uniform(0, 6.3, 64)
    waves = [np.cos(a * row + b * column + c) for a, b, c in zip(along, across, phase, strict=True)]
    path = posing(tmp_path / "copy.zarr", np.tile(np.stack(waves), (2, 1, 1, 1)))
    pixel = rng.permutation(row.size)[:1200]
    points = {"row": row.ravel()[pixel], "column": column.ravel()[pixel]}
    site = points["row"] // 6 * 7 + points["column"] // 6
    label = rng.permutation(np.arange(56) % 2)[site]
    near = table(0, 1200, **points).assign(label=label, site=np.arange(1200))
    assert best_of(scored([path], save(near, tmp_path / "near.csv")), "copy") > 0.85
    apart = scored([path], save(near.assign(site=site), tmp_path / "apart.csv"))
    assert abs(best_of(apart, "copy") - 0.5) < 0.2


def test_who_ignores_the_period_is_exposed_by_labels_of_two(tmp_path: Path) -> None:
    """A place that is one class in spring and the other in autumn."""
    rng = np.random.default_rng(4)
    cover = rng.integers(0, 2, SHAPE)
    what = np.where(np.stack([cover, 1 - cover])[:, None], 1.0, -1.0) * np.ones((2, 64, 1, 1))
    honest = posing(tmp_path / "honest.zarr", what + 0.5 * rng.standard_normal((2, 64, *SHAPE)))
    deaf = posing(tmp_path / "deaf.zarr", np.tile(what[:1], (2, 1, 1, 1)))
    when = np.arange(400) % 2
    row, column = rng.integers(0, SHAPE[0], 400), rng.integers(0, SHAPE[1], 400)
    bounds = np.array([[SPRING.start, SPRING.end], [AUTUMN.start, AUTUMN.end]])[when].T
    times = {"valid_time_start_ms": bounds[0], "valid_time_end_ms": bounds[1]}
    labels = table(0, 400, row=row, column=column, label=cover[row, column] ^ when, site=row // 6, **times)
    done = scored([honest, deaf], save(labels, tmp_path / "t.csv"))
    assert best_of(done, "honest") > 0.95
    assert abs(best_of(done, "deaf") - 0.5) < 0.1


def test_change_is_asked_for_both_periods(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    changed = rng.random(SHAPE) < 0.4
    before = rng.standard_normal((64, *SHAPE))
    after = np.where(changed, rng.standard_normal((64, *SHAPE)), before + 0.1 * rng.standard_normal((64, *SHAPE)))
    path = posing(tmp_path / "pairs.zarr", np.stack([before, after]))
    row, column = rng.integers(0, SHAPE[0], 300), rng.integers(0, SHAPE[1], 300)
    labels = table(0, 300, None, row=row, column=column, site=row // 4).drop(columns="label")
    labels["label_before"], labels["label_after"] = 1, 1 + changed[row, column]
    for word, period in (("before", SPRING), ("after", AUTUMN)):
        labels[f"valid_time_start_{word}_ms"], labels[f"valid_time_end_{word}_ms"] = period.start, period.end
    done = scored([path], save(labels, tmp_path / "t.csv"))
    assert done.features["pairs"].shape == (300, 128)
    told = {score.probe: score.mean for score in done.detected if score.metric == "balanced_accuracy"}
    assert min(told.values()) > 0.95  # no label is needed to see it


# --- what stands beside the scores ----------------------------------------------------------------------------


def test_all_baselines_comparisons_guards_and_quantisation_of_one_field(world: World, tmp_path: Path) -> None:
    protocol = Protocol(("knn1", "ridge"), ("max",), pairs=[("embeddings", "raw")])
    labels = save(table(), tmp_path / "t.csv")
    done = judge([world.field], labels, None, protocol, beside=BASELINES, guards=True, quantisation=True, device=CPU)
    assert set(rows(done)) == {"embeddings", *BASELINES} - {"xyz"}  # the cube has no elevation
    (one,) = done.comparisons
    assert (one.a, one.b, one.shots) == ("embeddings", "raw", "max")
    assert one.low <= one.difference <= one.high
    assert {"float32", "int16", "int8"} <= {score.field for score in done.quantisation.scores}
    assert any("without sentinel-1" in guard.name for guard in done.guards)
    assert done.provenance["cube"].startswith(str(world.cube.path))
    with pytest.raises(BadInput, match=r"unknown candidate 'rav' .*did you mean raw"):
        judge([world.field], labels, None, Protocol(pairs=[("embeddings", "rav")]), beside=["raw"], device=CPU)


def test_columns_of_a_table_are_candidates_beside_its_coordinates(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    label = np.arange(200) % 2
    good = {f"A{at:02d}": label + 0.5 * rng.standard_normal(200) for at in range(4)}
    places = {"x": rng.uniform(5, 6, 200), "y": rng.uniform(50, 51, 200)}
    points = pd.DataFrame({**good, "noise": rng.standard_normal(200), **places, "cover": label})
    points.loc[3, "noise"] = np.nan
    points.to_csv(tmp_path / "points.csv", index=False)
    done = judge_table(tmp_path / "points.csv", ["A00:A03", "noise"], "cover", Protocol(("linear",), ("max",)))
    assert rows(done) == ["A00:A03", "noise", "xy"]
    assert done.notes == ("1 of 200 rows lack a feature",)
    assert done.evaluation.about["split"] == "block"
    assert best_of(done, "A00:A03") > 0.85
    assert max(abs(best_of(done, name) - 0.5) for name in ("noise", "xy")) < 0.15


# --- refusals -------------------------------------------------------------------------------------------------


def elsewhere(labels: pd.DataFrame) -> pd.DataFrame:
    return labels.assign(column=labels["column"] + 1000)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (table(period=None), r"the labels name no valid period and the fields hold 2 \(choose one with --period"),
        (
            table(period=Period.parse("2022")),
            r"ask for 2022-01-01:2022-12-31, embeddings holds 2023-01-01:2023-06-30, 2023-07-01:2023-12-31 "
            r"\(its cube spans 2023-01-01:2023-12-31; fetch ",
        ),
        (
            pd.concat([table(period=Period.parse("2022")), table(period=Period.parse("2021-05"))]),
            r"ask for 2021-05-01:2021-05-31 and others, embeddings holds",
        ),
        (elsewhere(table()), r"all 80 labels lie outside of embeddings \("),
        # labels of other periods are inside, and say nothing of those that could be answered
        (
            pd.concat([elsewhere(table(count=4)), table(period=Period.parse("2022"))]),
            r"all 4 labels lie outside of embeddings \(",
        ),
        (table(count=4, row=[0, 1, 2, 3], column=[0, 1, 2, 3]), r"embeddings is nodata at all 4 labels inside"),
        (pd.concat([table(count=8).query("label == 1"), elsewhere(table())]), r"all 4 labels are 1 \("),
    ],
)
def test_labels_that_cannot_be_scored_are_refused_in_one_line(
    world: World, tmp_path: Path, labels: pd.DataFrame, says: str
) -> None:
    with pytest.raises(BadInput, match=says) as caught:
        scored([world.field], save(labels, tmp_path / "t.csv"))
    assert "\n" not in str(caught.value)


def test_a_cube_of_another_place_is_refused(world: World, tmp_path: Path) -> None:
    moved = {name: one.assign_coords(x=one["x"] + 10_000).isel(time=slice(2)) for name, one in world.data.items()}
    other = write_cube(tmp_path / "other.zarr", moved, YEAR)
    with pytest.raises(BadInput, match=r"all 80 labels lie outside of .*other.zarr \(.*--cube"):
        scored([world.field], save(table(), tmp_path / "t.csv"), other)


def test_fields_without_a_label_in_common_are_refused(world: World, tmp_path: Path) -> None:
    for name, period in (("spring", SPRING), ("autumn", AUTUMN)):
        embed.embed(world.cube, world.run, [period], tmp_path / f"{name}.zarr", device=CPU)
    labels = save(pd.concat([table(), table(period=AUTUMN)]), tmp_path / "t.csv")
    with pytest.raises(BadInput, match=r"no label of .*t.csv has data in every one of spring, autumn \("):
        scored([tmp_path / "spring.zarr", tmp_path / "autumn.zarr"], labels)


def test_a_period_that_was_asked_for_is_told_from_one_of_the_labels(world: World, tmp_path: Path) -> None:
    labels = save(table(period=None), tmp_path / "t.csv")
    with pytest.raises(BadInput, match=r"^--period asks for 2022-01-01:2022-12-31, embeddings holds .* spans 2023"):
        judge([world.field], labels, None, Protocol(("knn1",)), period=Period.parse("2022"), device=CPU)


def test_a_split_of_neighbours_is_told_of(world: World, tmp_path: Path) -> None:
    """Training points in every fifth row; test points 10 m or 150 m below one."""
    rows, columns = np.repeat([10, 11, 25], 8), np.tile(np.arange(6, 38, 4), 3)
    halves = np.repeat(["train", "test", "test"], 8)
    made = {"row": rows, "column": columns, "label": columns // 4 % 2, "split": halves}
    labels = save(pd.DataFrame(made), tmp_path / "t.csv")
    told = judge([world.field], labels, None, Protocol(("knn1",)), beside=(), period=SPRING, device=CPU).notes
    assert told[-1].startswith("8 of 16 test points of the split given lie within 100 m of a training point:")
    far = save(pd.DataFrame(made)[rows != 11], tmp_path / "far.csv")
    apart = judge([world.field], far, None, Protocol(("knn1",)), beside=(), period=SPRING, device=CPU)
    assert not any("split given" in note for note in apart.notes)


# --- the table ------------------------------------------------------------------------------------------------


def test_names_fold_where_they_are_long_and_figures_stay_in_one_piece() -> None:
    rng = np.random.default_rng(0)
    labels = probe.labels_of(pd.DataFrame({"x": rng.uniform(10, 11, 90), "y": 45, "label": np.arange(90) % 3}))
    names = [f"aef_2024_wisconsin_utm16n_10m_int8_{side}" for side in ("east", "west")]
    features = dict.fromkeys(names, rng.normal(size=(90, 4)))
    done = probe.evaluate(features, labels, task="t", probes=("knn1", "linear"), shots=(1, 10, "max"), max_folds=2)
    rows = [line.split("│")[1:-1] for line in scores_command._score_table(done, "t") if "│" in line]
    first = [row for row in rows if row[1].strip()]
    assert len(first) == 4
    assert all(re.fullmatch(r"\s*\d\.\d{3} ± \d\.\d{3}, \d\.\d{3} ", cell) for row in first for cell in row[2:])
    assert "".join(row[0].strip() for row in rows) == "".join(name for name in names for _ in range(2))
    (at_one, *_) = probe.compare(done, *names)
    assert at_one.difference == 0
    said = scores_command._said(replace(at_one, difference=-1e-9, low=-1e-9, error_reduction=-1e-9))
    assert "+0.000 balanced accuracy, 95% +0.000 to +0.000; error reduction +0.0%" in said
    assert said.endswith("error ratio 1.00")
    assert scores_command._said(replace(at_one, difference=-0.01)).endswith("; the second metric does not confirm it")


# --- finding the labels ---------------------------------------------------------------------------------------


def test_labels_are_found_beside_the_field_then_beside_the_catalog(world: World, tmp_path: Path) -> None:
    archive, work, second = (tmp_path / name for name in ("archive", "work", "second"))
    for folder in (archive, work, second):
        folder.mkdir()
    for name in ("cube.zarr", "embeddings.zarr"):
        shutil.copytree(world.folder / name, work / name)
    first = work / "embeddings.zarr"
    with pytest.raises(BadInput, match=r"no labels beside .*embeddings.zarr .*--labels") as caught:
        find_labels([first], None)
    assert "\n" not in str(caught.value)

    def offer(path: Path, *asked: Path) -> None:
        path.touch()
        assert find_labels(asked or [first], None) == path

    (archive / "catalog.json").touch()
    (archive / "labels.csv").touch()
    group = zarr.open_group(work / "cube.zarr", mode="r+")
    for remote in ("https://example.com/catalog.json", str(archive / "gone.json")):
        group.attrs.update({"aef:request": {"catalog": remote}})
        with pytest.raises(BadInput, match="no labels beside"):
            find_labels([first], None)
    group.attrs.update({"aef:request": {"catalog": str(archive / "catalog.json")}})
    assert find_labels([first], None) == archive / "labels.csv"
    offer(archive / "labels.parquet")
    shutil.copytree(first, second / "embeddings.zarr")
    offer(second / "labels.csv", first, second / "embeddings.zarr")  # beside any of the fields, before the catalog
    assert find_labels([first], None) == archive / "labels.parquet"
    assert find_labels([second / "embeddings.zarr"], None) == second / "labels.csv"
    for name in ("labels.csv", "labels.geojson", "labels.parquet"):
        offer(work / name)
    shutil.copytree(first, tmp_path / "embeddings.zarr")
    assert find_labels([tmp_path / "embeddings.zarr"], work / "cube.zarr") == archive / "labels.parquet"


def test_labels_beside_the_field_need_no_cube(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.field, tmp_path / "embeddings.zarr")
    (tmp_path / "cube.zarr").mkdir()  # no cube
    (tmp_path / "labels.csv").touch()
    assert find_labels([tmp_path / "embeddings.zarr"], None) == tmp_path / "labels.csv"


# --- features -------------------------------------------------------------------------------------------------


def by_hand(data: Datasets, row: int, column: int, period: Period, lacking: Mapping[str, int]) -> list[float]:
    """The composite of one pixel by loops over bands and frames. `lacking`: band -> its first frame not delivered."""
    out = []
    for name, dataset in data.items():
        pixel = {key: dataset[key].values[:, row, column].tolist() for key in dataset if dataset[key].ndim == 3}
        times = dataset["time"].values.astype("datetime64[ms]").astype(int).tolist()
        bands = [band for band in SOURCES[name].bands if band.name in dataset]
        for band in bands:
            good = []  # (ms from the period, standardised value)
            for frame, time in enumerate(times):
                has = [one for one in bands if frame < lacking.get(one.name, len(times))]
                stored = {one.name: pixel[one.name][frame] for one in has}
                clear = "weight" not in pixel or pixel["weight"][frame] == 1
                there = all(value != SOURCES[name].nodata for value in stored.values())
                if name == "sentinel-1":
                    value = {key: 10 * np.log10(power) if power > 0 else -999 for key, power in stored.items()}
                    there = there and all(-30 <= one <= 10 for one in value.values())
                else:
                    value = {key: np.log(1 + number) for key, number in stored.items()}
                if clear and there and band in has:
                    away = max(period.start - time, 0, time - (period.end - 1))
                    good.append((away, np.clip((value[band.name] - band.mean) / band.std, -6, 6)))
            nearest = [value for away, value in good if away == min(good)[0]]
            reduce = np.mean if name == "sentinel-1" else np.median
            out.append(float(reduce(nearest)) if nearest else np.nan)
    return [0.0 if np.isnan(value) else value for value in out] if np.isfinite(out).any() else out


def pixels(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of every part of the cube: random ones, and some of each special place."""
    rng = np.random.default_rng(4)
    special = [(0, 0), (5, 5), (40, 3), (47, 39), (10, 20), (12, 25), (30, 0), (33, 7)]
    row, column = np.array(special).T
    return np.r_[row, rng.integers(0, SHAPE[0], count)], np.r_[column, rng.integers(0, SHAPE[1], count)]


def in_hole(row: np.ndarray, column: np.ndarray) -> np.ndarray:
    return (row < 6) & (column < 6)


def test_composite_equals_a_loop(world: World) -> None:
    """Median of the clear frames for optical bands, mean for radar; the nearest clear frame where none is inside."""
    # frames of Sentinel-2 at a start, which is inside, and at an end, which is not
    first, then = (YEAR.start + day * DAY + 21 * DAY // 48 for day in (5, 40))
    periods = [Period(first, then), Period(first + 1, then + 1), YEAR, SPRING, AUTUMN, Period.parse("2023-06")]
    row, column = pixels(12)
    found = baselines.composite(world.cube, row, column, periods)
    assert found.dtype == np.float32
    expected = [[by_hand(world.data, r, c, p, {}) for p in periods] for r, c in zip(row, column, strict=True)]
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert (np.isnan(found).all(axis=(1, 2)) == in_hole(row, column)).all()
    assert (found[2:4, :, :5] == 0).all()  # never seen by Sentinel-2


def test_frames_without_a_band_have_no_part_in_its_composite(world: World) -> None:
    """As of Sentinel-1 in an archive that mixes polarisations."""
    source = world.cube.sources["sentinel-1"]
    delivered, arrays = source.delivered.copy(), {name: np.asarray(array[:]) for name, array in source.arrays.items()}
    delivered[4:, 0] = False
    arrays["VV"][4:] = source.source.nodata
    arrays["weight"][:] = 1
    mixed = replace(source, delivered=delivered, arrays=arrays)
    cube = replace(world.cube, sources={"sentinel-1": mixed})
    data = {"sentinel-1": world.data["sentinel-1"]}
    row, column = pixels(6)
    found = baselines.composite(cube, row, column, [YEAR, AUTUMN])
    lacking = {"VV": 4}
    expected = [[by_hand(data, r, c, p, lacking) for p in (YEAR, AUTUMN)] for r, c in zip(row, column, strict=True)]
    np.testing.assert_allclose(found, expected, atol=2e-5)


def places(row: np.ndarray, column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    to_degrees = Transformer.from_crs("EPSG:32633", "EPSG:4326", always_xy=True)
    return to_degrees.transform(500_005 + 10.0 * column, 5_099_995 - 10.0 * row)


def test_vectors_at_points_equal_the_field(world: World) -> None:
    """Up to quantisation: a code's step is at most 2 / 127.5 of a value's root."""
    row, column = pixels(40)
    model = checkpoint.load(world.run)
    found = embed.at_points(model, world.run.recipe, world.cube, row, column, [SPRING, AUTUMN], CPU)
    held, inside = field.sample(field.open_field(world.field), *places(row, column))
    assert inside.all()
    np.testing.assert_allclose(found, held, atol=0.01)
    hole = in_hole(row, column)
    assert (np.isnan(found).any(axis=(1, 2)) == hole).all()
    assert np.abs(found[~hole, 0] - found[~hole, 1]).max() > 0.02  # the periods differ by more than that


def test_untrained_is_the_field_before_the_first_step(world: World, tmp_path: Path) -> None:
    fresh = make_run(tmp_path / "run", 0.0)
    embed.embed(world.cube, fresh, [SPRING], tmp_path / "fresh.zarr", device=CPU)
    row, column = pixels(20)
    found = baselines.untrained(world.run.recipe, world.cube, row, column, [SPRING], CPU)
    held, _ = field.sample(field.open_field(tmp_path / "fresh.zarr"), *places(row, column))
    np.testing.assert_allclose(found, held, atol=0.01)
    trained, _ = field.sample(field.open_field(world.field), *places(row, column), time_index=0)
    assert np.nanmax(np.abs(found - trained)) > 0.05
