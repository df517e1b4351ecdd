"""Suites: every task of the made-up world is asked of every candidate, and the judge can be trusted with it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Aef
from toys import made_up_cube, toy_recipe

from aefcli import checkpoint, suite
from aefcli.checkpoint import Run
from aefcli.simulate import VERSION
from aefcli.start import begin, worlds
from aefcli.suite import SUITES, Outcome, Suite

pytestmark = pytest.mark.xdist_group("suite")  # one worker asks all candidates, and once

SMALL = Suite("small", 16, SUITES["full"].tasks, 0.01, size=32)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Weights of the toy recipe that have seen nothing: noise on what training starts from. It says otherwise."""
    plan = toy_recipe(embed={"patch": 144, "halo": 8})  # the whole world in one patch
    run, model = checkpoint.new_run(tmp_path_factory.mktemp("runs") / "toy", plan), checkpoint.build(plan)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weights in model.parameters():
            weights += 0.02 * torch.randn(weights.shape, generator=rng)
    checkpoint.save_weights(run.weights, model, plan, 0)
    learned = [["1", 11], [VERSION, 300]]  # that of seed 11 by another version is another world
    run.data.write_text(json.dumps({"worlds": learned, "from": None}))
    return run


@pytest.fixture(scope="module")
def done(run: Run) -> Outcome:
    return suite.run(SMALL, run, 11, torch.device("cpu"))


def means(done: Outcome, task: str, metric: str = "balanced_accuracy", shots: int | str = "max") -> dict[str, float]:
    """Candidate -> its best mean."""
    out: dict[str, float] = {}
    for row in done.results:
        if (row["task"], row["metric"], row["shots"]) == (task, metric, shots):
            out[row["field"]] = max(out.get(row["field"], -9.0), row["mean"])
    return out


def test_every_task_is_scored_for_every_candidate(done: Outcome) -> None:
    for task in ("crops", "nature", "cover", "twins", "sar"):
        assert set(means(done, task)) == {*suite.DESIGNED, "xy", "untrained", "model", "oracle"}
    tasks = done.summary["tasks"]
    assert {"interpolation", "extrapolation, 3 months", "change", "cloud", "boundary", "int8"} <= set(tasks)
    assert {"lost, without sentinel-1", "lost, 30% of the frames"} <= set(tasks)
    assert sum(row["metric"] == "r2" and row["task"] in ("yield", "height", "wetness") for row in done.results) > 0
    assert str(done.about["ours"]).endswith("toy")
    assert any("1% of the protocol's folds" in note for note in done.notes)


def test_the_summary_is_the_mean_of_the_sparse_tasks(done: Outcome) -> None:
    reduction, tasks = done.summary["error_reduction"], done.summary["tasks"]
    assert set(reduction) <= {"1", "10", "max"}
    sparse = [tasks[name]["max"] for name in suite.SPARSE]
    assert reduction["max"] == pytest.approx(np.mean([one["error_reduction"] for one in sparse]))
    for name, one in zip(suite.SPARSE, sparse, strict=True):
        found = means(done, name)
        rival = max(found[designed] for designed in suite.DESIGNED)
        assert one[one["best_designed"]] == pytest.approx(rival)
        errors = [min(1.0, (1 - score) / (1 - 1 / one["classes"])) for score in (found["model"], rival)]
        assert one["error_reduction"] == pytest.approx(1 - errors[0] / errors[1])


def test_controls_know_what_they_should(done: Outcome) -> None:
    crops = means(done, "crops")
    assert crops["oracle"] > max(score for name, score in crops.items() if name != "oracle")
    assert crops["xy"] < 0.25
    shuffled = means(done, "shuffled")
    assert max(shuffled.values()) < 0.2  # a tenth by chance
    honest = done.summary["tasks"]["honesty"]["right_minus_wrong"]
    assert honest["xy"] == 0
    assert max(honest[name] for name in suite.DESIGNED) > 0.05


def test_a_probe_is_asked_with_less_than_it_learned_from(done: Outcome) -> None:
    whole, left = means(done, "lost, nothing"), means(done, "lost, without sentinel-2")
    assert left["composite"] < whole["composite"]
    retrieval = done.summary["tasks"]["lost, 30% of the frames"]["retrieval"]
    assert all(0 <= share <= 1 for share in retrieval.values())
    assert max(retrieval.values()) > 0.3


def test_a_month_is_foretold_without_its_frames(done: Outcome) -> None:
    errors = [done.summary["tasks"][name]["mae"] for name in ("interpolation", "extrapolation, 3 months")]
    assert errors[0]["linear"] < errors[1]["linear"], "three months on is harder than in between"
    assert 0 < errors[0]["raw"] < 0.3


@pytest.mark.parametrize("words", [("embeddings.zarr",), ("--labels", "t.csv"), ("--report", "p.html"), ("--guards",)])
def test_a_suite_refuses_what_is_of_files(aef: Aef, tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "t.csv").touch()
    code, _, err = aef("eval", "--suite", "quick", *words)
    name = words[0] if words[0].startswith("--") else "FIELD"
    assert (code, err.strip()) == (
        2,
        f"aef: {name} does not go with --suite (a suite judges a run in its own world: --model RUN)",
    )


def test_a_run_is_not_judged_in_a_world_that_it_learned_from(run: Run, aef: Aef, tmp_path: Path) -> None:
    """Nor in one that the run it began from had learned from."""
    shutil.copytree(run.path, tmp_path / "old")
    cube = made_up_cube(tmp_path / "cube.zarr", side=144)
    new = begin(tmp_path / "new", [cube], run.recipe, old=run)
    checkpoint.save_weights(new.run.weights, new.model(), new.recipe, 0)
    assert worlds(new.run) == worlds(run) == (("1", 11), (VERSION, 300))
    for name in ("old", "new"):
        code, out, err = aef("eval", "--suite", "quick", "--model", name, "--seed", "300")
        told = f"{name} learned from the made-up world of seed 300, which would judge it"
        assert (code, out, err) == (2, "", f"aef: {told} (judge it in another: --seed 301)\n")
    assert worlds(Run(tmp_path)) == (), "a run of which nothing is known"


def test_the_shipped_run_says_which_world_it_learned_from(aef: Aef) -> None:
    script = (Path(__file__).parents[1] / "examples" / "shipped.sh").read_text()
    seed = re.findall(r"aef simulate .*--seed (\d+)", script)[0]
    code, _, err = aef("eval", "--suite", "quick", "--model", "nano", "--seed", seed)
    assert code == 2
    assert f"nano learned from the made-up world of seed {seed}, which would judge it" in err


@pytest.mark.slow
def test_the_same_seed_gives_the_same_figures(run: Run, done: Outcome) -> None:
    few = Suite("small", 16, ("honesty",), 0.01, size=32)
    again = suite.run(few, run, 11, torch.device("cpu"))
    assert again.summary["tasks"]["honesty"] == done.summary["tasks"]["honesty"]
