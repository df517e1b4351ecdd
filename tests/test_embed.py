"""A cube into a field: what its values are, where it is nodata, and that a stop in the middle leaves no trace."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from conftest import Aef
from pyproj import Transformer
from toys import YEAR, made_up_cube, toy_recipe

from aefcli import checkpoint, embed, field
from aefcli.checkpoint import Run
from aefcli.cube import Cube
from aefcli.errors import BadInput, Locked
from aefcli.extent import Period
from aefcli.ledger import records_of

CPU = torch.device("cpu")
YEAR_AND_MONTH = [YEAR, Period.parse("2023-07")]


def untrained_run(path: Path) -> Run:
    plan = toy_recipe()
    run = checkpoint.new_run(path, plan)
    checkpoint.save_weights(run.weights, checkpoint.build(plan), plan, 0)
    return run


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> Cube:
    return made_up_cube(tmp_path_factory.mktemp("cube") / "cube.zarr")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return untrained_run(tmp_path_factory.mktemp("runs") / "toy-001")


@pytest.fixture(scope="module")
def made(cube: Cube, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("field") / "embeddings.zarr"
    embed.embed(cube, run, YEAR_AND_MONTH, out, device=CPU)
    return out


def hashes(store: Path) -> dict[str, str]:
    files = [path for path in store.rglob("*") if path.is_file()]
    return {str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_vectors_have_unit_length_and_periods_differ(made: Path) -> None:
    codes = field.open_field(made)["embeddings"].values
    vectors = field.dequantise(codes, axis=1, renormalise=False)
    norms = np.linalg.norm(vectors, axis=1)
    np.testing.assert_allclose(norms[np.isfinite(norms)], 1, atol=1e-2)
    assert np.nanmax(np.abs(vectors[0] - vectors[1])) > 0.02


def test_a_pixel_that_no_frame_saw_clearly_is_nodata(made: Path) -> None:
    store = field.open_field(made)
    empty = (store["embeddings"].values == -128).all(axis=1)
    expected = np.zeros((2, 96, 96), bool)
    expected[:, :12, :12] = True
    np.testing.assert_array_equal(empty, expected)
    np.testing.assert_array_equal((store["embeddings"].values == -128).any(axis=1), expected)


def test_observations_count_clear_frames_of_the_period(made: Path, cube: Cube) -> None:
    store = field.open_field(made)
    for name, source in cube.sources.items():
        counts = store[f"observations_{name}"].values
        for index, period in enumerate(YEAR_AND_MONTH):
            inside = (source.times >= period.start) & (source.times < period.end)
            assert (counts[index, 12:, 12:] == inside.sum()).all()
            assert (counts[index, :12, :12] == 0).all()


def test_the_field_lies_where_the_cube_lies(made: Path, cube: Cube) -> None:
    plain = xr.open_zarr(made)
    assert plain.rio.crs.to_epsg() == 32633
    assert field.geobox(field.open_field(made)) == cube.grid
    assert float(plain.x[0]) == cube.grid.transform.c + 5
    assert float(plain.y[0]) == cube.grid.transform.f - 5


def test_several_periods_from_one_pass_equal_one_each(made: Path, cube: Cube, run: Run, tmp_path: Path) -> None:
    embed.embed(cube, run, YEAR_AND_MONTH[1:], tmp_path / "one.zarr", device=CPU)
    alone = field.open_field(tmp_path / "one.zarr")["embeddings"].values[0].astype(int)
    assert np.abs(alone - field.open_field(made)["embeddings"].values[1]).max() <= 1


def test_points_equal_the_field(made: Path, cube: Cube, run: Run) -> None:
    rows, columns = np.array([50, 3, 95]), np.array([20, 5, 95])
    plan = run.recipe
    vectors = embed.at_points(checkpoint.load(run), plan, cube, rows, columns, YEAR_AND_MONTH, CPU)
    codes = field.open_field(made)["embeddings"].values[:, :, rows, columns].transpose(2, 0, 1)
    np.testing.assert_array_equal(field.quantise(vectors), codes)
    assert np.isnan(vectors[1]).all()


def test_a_finished_field_is_left_alone(made: Path, cube: Cube, run: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    done = embed.embed(cube, run, YEAR_AND_MONTH, made, device=CPU)
    assert done.written == 0
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before


def test_another_model_or_period_for_the_same_path_is_refused(made: Path, cube: Cube, run: Run, tmp_path: Path) -> None:
    before = hashes(made)
    with pytest.raises(BadInput, match="periods"):
        embed.embed(cube, run, [YEAR], made, device=CPU)
    plan = toy_recipe(train={"seed": 5})
    other = checkpoint.new_run(tmp_path / "other", plan)
    checkpoint.save_weights(other.weights, checkpoint.build(plan), plan, 0)
    with pytest.raises(BadInput, match="model"):
        embed.embed(cube, other, YEAR_AND_MONTH, made, device=CPU)
    assert hashes(made) == before


def test_a_period_outside_the_data_is_extrapolated_and_says_so(cube: Cube, run: Run, tmp_path: Path) -> None:
    done = embed.embed(cube, run, [Period.parse("2025")], tmp_path / "later.zarr", device=CPU)
    assert done.extrapolated == (Period.parse("2025"),)
    codes = field.open_field(tmp_path / "later.zarr")["embeddings"].values
    assert (codes[:, :, 12:, 12:] != -128).any(axis=1).all()


def test_a_cube_without_the_models_sources_is_refused(cube: Cube, tmp_path: Path) -> None:
    plan = toy_recipe(data={"sources": ["landsat"], "frames": [4], "patch": 32})
    run = checkpoint.new_run(tmp_path / "landsat", plan)
    checkpoint.save_weights(run.weights, checkpoint.build(plan), plan, 0)
    with pytest.raises(BadInput, match="landsat"):
        embed.embed(cube, run, [YEAR], tmp_path / "x.zarr", device=CPU)
    assert not (tmp_path / "x.zarr").exists()
    assert not records_of(tmp_path / "x.zarr").exists()


def test_supports_are_years_counted_from_the_cubes_start() -> None:
    two = Period.parse("2022:2023")
    assert embed.support_of(Period.parse("2023"), Period.parse("2023-03")) == Period.parse("2023")
    assert embed.support_of(Period.parse("2023"), Period.parse("2031")) == Period.parse("2023")
    early, late = embed.support_of(two, Period.parse("2022-02")), embed.support_of(two, Period.parse("2023-11"))
    assert early.start == two.start
    assert late.end == two.end
    assert early.days <= 366
    assert late.days <= 366
    assert embed.support_of(two, two) == two
    long = Period.parse("2020:2023")
    for year in range(2020, 2024):
        support = embed.support_of(long, Period.parse(str(year)))
        assert support.days <= 366
        assert support.start <= Period.parse(str(year)).start
        assert support.end >= Period.parse(str(year)).end


CHILD = """
import sys, torch
from pathlib import Path
from aefcli import embed, field
from aefcli.checkpoint import Run
from aefcli.cube import open_cube
from aefcli.extent import Period
field.CHUNK = 32  # nine units
periods = [Period.parse("2023"), Period.parse("2023-07")]
cube, run, out = (Path(text) for text in sys.argv[1:])
embed.embed(open_cube(cube), Run(run), periods, out, device=torch.device("cpu"))
"""


def child(cube: Cube, run: Run, out: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", CHILD, str(cube.path), str(run.path), str(out)])


def test_kill_9_then_the_same_again_gives_the_same_bytes(cube: Cube, run: Run, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole" / "e.zarr", tmp_path / "cut" / "e.zarr"
    whole.parent.mkdir()
    cut.parent.mkdir()
    assert child(cube, run, whole).wait(120) == 0
    process, book = child(cube, run, cut), records_of(cut) / "ledger.jsonl"
    deadline = time.monotonic() + 120
    while not book.exists() or book.read_bytes().count(b"\n") < 2:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert sum("unit" in json.loads(line) for line in book.read_text().splitlines()) < 9
    with pytest.raises(BadInput, match="incomplete"):
        field.open_field(cut)
    assert child(cube, run, cut).wait(120) == 0
    assert hashes(cut) == hashes(whole)


def test_a_second_writer_is_turned_away(cube: Cube, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "e.zarr"
    process = child(cube, run, out)
    try:
        deadline = time.monotonic() + 60
        while not (records_of(out) / "ledger.jsonl").exists():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        with pytest.raises(Locked):
            embed.embed(cube, run, YEAR_AND_MONTH, out, device=CPU)
    finally:
        process.kill()
        process.wait()


# --- the model that comes with aef ------------------------------------------------------------------------------------

USING = "using the shipped nano, which learned from simulated landscapes"


def test_the_package_has_a_whole_run_with_its_card() -> None:
    run = checkpoint.SHIPPED
    assert {path.name for path in run.path.iterdir()} == {"model.safetensors", "recipe.toml", "card.md"}
    weights, plan = checkpoint.load(run).state_dict(), run.recipe
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    fresh = checkpoint.build(plan).state_dict()
    assert any(not torch.equal(tensor, fresh[name]) for name, tensor in weights.items()), "it was trained"
    assert {*plan.statistics} == {*plan.data.sources}
    card, known = (run.path / "card.md").read_text(), checkpoint.identity(run)
    assert card.startswith("# nano\n")
    assert f"hash {known['recipe']}, weights {known['weights']}" in card
    assert "**It learned from simulated landscapes, not from the Earth.**" in card


def test_the_shipped_run_is_the_last_that_is_thought_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert checkpoint.newest_run() == checkpoint.open_run(Path("nano")) == checkpoint.SHIPPED
    begun = checkpoint.new_run(Path("runs/toy-001"), toy_recipe())
    assert checkpoint.newest_run() == checkpoint.SHIPPED, "what has only a recipe cannot be gone on with"
    begun.data.write_text("{}")
    with pytest.raises(BadInput, match="toy-001 is not finished"):
        checkpoint.newest_run()
    mine = untrained_run(Path("runs/mine"))
    assert checkpoint.newest_run() == mine
    assert (mine.name, mine.shipped) == ("runs/mine", False)
    here = untrained_run(Path("nano"))
    assert checkpoint.open_run(Path("nano")) == here
    assert (here.shipped, checkpoint.SHIPPED.shipped, checkpoint.SHIPPED.name) == (False, True, "nano")


def test_embed_without_a_run_takes_the_shipped_one_and_warns_each_time(aef: Aef, tmp_path: Path) -> None:
    made_up_cube(tmp_path / "cube.zarr", side=32, hole=False)
    fallback = f"warning: no run here: {USING} (aef train makes your own)"
    code, out, err = aef("embed", "--period", "2023", "--json")
    document = json.loads(out)
    assert (code, document["model"], document["notes"]) == (0, "nano", [fallback]), err
    assert err.splitlines().count(fallback) == 1
    attrs = field.open_field(tmp_path / "embeddings.zarr").attrs
    assert attrs["aef:model"] == checkpoint.identity(checkpoint.SHIPPED)
    assert attrs["aef:recipe"] == checkpoint.SHIPPED.recipe.to_toml()
    assert aef("embed", "--period", "2023", "-q") == (0, "embeddings.zarr\n", f"{fallback}\n")
    code, out, err = aef("embed", "--period", "2023", "--model", "nano", "--json")
    assert (code, json.loads(out)["notes"]) == (0, [f"warning: {USING}"]), err


def test_a_run_of_ones_own_comes_first(aef: Aef, tmp_path: Path) -> None:
    made_up_cube(tmp_path / "cube.zarr", side=32, hole=False)
    untrained_run(tmp_path / "runs" / "mine-001")
    code, out, err = aef("embed", "--period", "2023", "--json")
    assert (code, json.loads(out)["model"], json.loads(out)["notes"]) == (0, "runs/mine-001", []), err
    assert "shipped" not in err
    assert field.open_field(tmp_path / "embeddings.zarr").attrs["aef:model"]["run"] == "mine-001"


def test_eval_of_a_field_of_the_shipped_run_embeds_and_warns(aef: Aef, tmp_path: Path) -> None:
    cube = made_up_cube(tmp_path / "cube.zarr", side=32, hole=False)
    assert aef("embed", "--period", "2023", "-q")[0] == 0
    rows, columns = (each.ravel() for each in np.mgrid[2:32:6, 2:32:6])
    x, y = cube.grid.transform * (columns + 0.5, rows + 0.5)
    lon, lat = Transformer.from_crs(cube.grid.crs.to_epsg(), 4326, always_xy=True).transform(x, y)
    june = Period.parse("2023-06")
    labels = {"x": lon, "y": lat, "label": rows // 6 % 2 + columns // 6 % 2, "site": columns}
    asked = {"valid_time_start_ms": june.start, "valid_time_end_ms": june.end}
    pd.DataFrame(labels | asked).to_csv(tmp_path / "labels.csv", index=False)
    once = ("--probe", "knn", "--shots", "max", "--baseline", "untrained", "--json")
    code, out, err = aef("eval", "--model", "nano", *once)
    document = json.loads(out)
    assert code == 0, err
    made = "warning: embeddings was made by the shipped nano, which learned from simulated landscapes"
    assert document["notes"] == [made, "25 labels ask embeddings for periods it does not hold: embedded here"]
    assert {row["field"] for row in document["results"]} == {"embeddings", "untrained"}
    unnamed = json.loads(aef("eval", *once)[1])
    assert (unnamed["notes"], unnamed["results"]) == (document["notes"], document["results"])


def test_training_goes_on_from_the_shipped_run_by_its_name(aef: Aef, tmp_path: Path) -> None:
    made_up_cube(tmp_path / "cube.zarr", side=32, hole=False)
    small = ("train.batch=2", "train.agree=1", "data.windows=2", "loss.targets=1")
    code, out, err = aef("train", "--from", "nano", "--steps", "1", *(f"--set={word}" for word in small), "--json")
    assert (code, json.loads(out)["notes"]) == (0, [f"warning: {USING}"]), err
    assert "the weights of nano, whose card" in (tmp_path / "runs" / "nano-001" / "card.md").read_text()
