"""Runs: begun, cut off and gone on with; beside other processes; from other weights; and what ends them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch
from conftest import Aef
from safetensors import safe_open
from safetensors.torch import load_file
from toys import made_up_cube, toy_recipe

from aefcli import checkpoint
from aefcli.checkpoint import Run
from aefcli.cube import Cube
from aefcli.errors import BadInput, Diverged, Locked
from aefcli.ledger import locked
from aefcli.recipe import Recipe
from aefcli.start import Start, begin, go_on
from aefcli.train import Record, train

CPU = torch.device("cpu")
PLAN = toy_recipe(
    data={"frames": [4, 3, 3]},
    train={"steps": 6, "batch": 4, "warmup": 2, "save_every": 2, "look_every": 6},
    loss={"targets": 2, "pixels": 64},
)


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> Cube:
    return made_up_cube(tmp_path_factory.mktemp("train") / "cube.zarr", side=144)


@pytest.fixture(scope="module")
def whole(cube: Cube, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """A run that nothing interrupted."""
    start = begin(tmp_path_factory.mktemp("runs") / "whole", [cube], PLAN)
    list(train(start, CPU))
    return start


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.weights)


def assert_same(run: Run, other: Run) -> None:
    ours, theirs = weights(run), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def until(start: Start, last: int) -> list[Record]:
    """The records up to a step, after which training is asked to stop."""
    seen: list[Record] = []
    for record in train(start, CPU, stop=lambda: len(seen) == last - 1):
        seen.append(record)
    return seen


# --- going on ---------------------------------------------------------------------------------------------------------


def test_a_run_cut_off_twice_ends_in_the_same_bits(cube: Cube, whole: Start, tmp_path: Path) -> None:
    start = begin(tmp_path / "run", [cube], PLAN)
    assert [record.step for record in until(start, 3)] == [1, 2, 3]
    with closing(train(go_on(start.run), CPU)) as stream:  # and once without a word: step 5 is lost
        assert [next(stream).step, next(stream).step] == [4, 5]
    last = list(train(go_on(start.run), CPU))
    assert [record.step for record in last] == [5, 6]
    assert_same(start.run, whole.run)
    told = [{key: line[key] for key in ("step", "loss", "norm", "lr")} for line in checkpoint.records(start.run)]
    assert told == [{key: line[key] for key in told[0]} for line in checkpoint.records(whole.run)]


def test_a_torn_checkpoint_gives_way_to_the_one_before(cube: Cube, whole: Start, tmp_path: Path) -> None:
    damages = (lambda raw: raw[:-7], lambda raw: raw[:-400] + bytes(8) + raw[-392:], lambda raw: b"")
    for number, damage in enumerate(damages):
        start = begin(tmp_path / str(number), [cube], PLAN)
        until(start, 5)
        newest = max(start.run.states.glob("*.safetensors"))
        newest.write_bytes(damage(newest.read_bytes()))
        with start.run.log.open("a") as log:
            log.write('{"step": 6, "lo')
        assert next(iter(train(go_on(start.run), CPU))).step == 5
        assert [line["step"] for line in checkpoint.records(start.run)] == [1, 2, 3, 4, 5]
    for state in start.run.states.glob("*.safetensors"):
        state.unlink()
    assert next(iter(train(go_on(start.run), CPU))).step == 1
    assert [line["step"] for line in checkpoint.records(start.run)] == [1], "a run without a checkpoint begins anew"


def test_a_run_killed_at_random_moments_ends_in_the_same_bits(cube: Cube, whole: Start, tmp_path: Path) -> None:
    """By SIGKILL, some of them while a checkpoint is written; ended at last."""
    kills = [0.3, 1.1, 2.3]
    command = [sys.executable, "-c", "from aefcli.cli import main; main()", "train", str(cube.path), "--out", "run"]
    (tmp_path / "toy.toml").write_text(PLAN.to_toml())
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    more = ["--recipe", "toy.toml", "--set", "train.save_every=1", "--device", "cpu"]
    plan = PLAN.replace(train={"save_every": 1})
    for after in kills:
        log = tmp_path / "run" / "log.jsonl"
        steps = len(log.read_text().splitlines()) if log.exists() else 0
        resume = ["--resume"] if (tmp_path / "run" / "data.json").exists() else more
        child = subprocess.Popen([*command, *resume], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
        while child.poll() is None and (not log.exists() or len(log.read_text().splitlines()) <= steps):
            time.sleep(0.005)
        time.sleep(after / 10)
        child.kill()
        child.wait()
    done = subprocess.run(
        [*command, "--resume", "--json"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    other = begin(tmp_path / "other", [cube], plan)
    list(train(other, CPU))
    assert_same(Run(tmp_path / "run"), other.run)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_soon_and_it_goes_on(cube: Cube, tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "toy.toml").write_text(PLAN.replace(train={"steps": 500, "save_every": 500}).to_toml())
    command = [sys.executable, "-c", "from aefcli.cli import main; main()", "train", str(cube.path), "--out", "run"]
    child = subprocess.Popen([*command, "--recipe", "toy.toml"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "run" / "log.jsonl"
    while child.poll() is None and (not log.exists() or len(log.read_text().splitlines()) < 3):
        time.sleep(0.01)
    child.send_signal(number)
    began = time.monotonic()
    _, err = child.communicate()
    assert time.monotonic() - began < 10
    assert child.returncode == 128 + number
    assert err.splitlines()[-1] == f"aef: ended by {number.name} (run the same command with --resume)"
    (state,) = (tmp_path / "run" / "state").glob("*.safetensors")
    with safe_open(state, "pt") as file:
        assert int(file.metadata()["step"]) == len(checkpoint.records(Run(tmp_path / "run"))) >= 3


def test_what_does_not_fit_a_run_is_refused(cube: Cube, whole: Start, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"was begun with train\.lr = 0\.002, not 0\.1"):
        go_on(whole.run, recipe=PLAN.replace(train={"lr": 0.1}))
    go_on(whole.run, recipe=PLAN)
    other = made_up_cube(tmp_path / "other.zarr", side=144, seed=1)
    with pytest.raises(BadInput, match="was begun on other cubes than"):
        go_on(whole.run, [other])
    with pytest.raises(BadInput, match="there is no unfinished run in"):
        checkpoint.unfinished_run(None, tmp_path)


def test_one_process_writes_a_run(whole: Start, aef: Aef) -> None:
    with locked(whole.run.path / "lock", whole.run.path):
        code, _, err = aef("train", str(whole.cubes[0].path), "--out", str(whole.run.path), "--resume")
    assert code == Locked.code == 5, err


# --- what ends a run --------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_checkpoint(cube: Cube, tmp_path: Path) -> None:
    start = begin(tmp_path / "run", [cube], PLAN.replace(train={"lr": 1e18, "warmup": 0, "save_every": 1}))
    with pytest.raises(Diverged, match=r"at step \d \(lower train\.lr"):
        list(train(start, CPU))
    assert Diverged.code == 7
    model = checkpoint.build(start.recipe)
    kept = checkpoint.restore(start.run, start.recipe, model, torch.optim.Adam(model.parameters()))
    assert kept == len(checkpoint.records(start.run)) >= 1


# --- from other weights -----------------------------------------------------------------------------------------------


def test_a_run_begins_from_another_with_fewer_sources(cube: Cube, whole: Start, tmp_path: Path) -> None:
    plan = PLAN.replace(data={"sources": ["landsat", "sentinel-2"], "frames": [4, 4]})
    start = begin(tmp_path / "run", [cube], plan, old=whole.run)
    model, old = start.model(), checkpoint.load(whole.run)
    assert start.recipe.statistics["landsat"] == whole.recipe.statistics["landsat"]
    torch.testing.assert_close(model.stem["landsat"].project.weight, old.stem["landsat"].project.weight)
    torch.testing.assert_close(model.summariser.lean[0], old.summariser.lean[list(PLAN.data.sources).index("landsat")])
    torch.testing.assert_close(model.blocks[1].state_dict(), old.blocks[1].state_dict())
    first = next(iter(train(start, CPU)))
    assert set(first.parts) <= {"landsat", "sentinel-2", "uniformity", "consistency"}
    with pytest.raises(BadInput, match=r"has model\.time = 32, the recipe 64"):
        begin(tmp_path / "wide", [cube], PLAN.replace(model={"time": 64}), old=whole.run)
    assert not (tmp_path / "wide").exists()


# --- several processes ------------------------------------------------------------------------------------------------

_PROCESS = """
import json, sys
from pathlib import Path
import torch
from aefcli import parallel
from aefcli.cube import open_cube
from aefcli.recipe import parse
from aefcli.checkpoint import Run
from aefcli.start import begin, go_on
from aefcli.train import train
out, cube, plan = map(Path, sys.argv[1:4])
with parallel.joined(torch.device("cpu")) as device:
    start = go_on(Run(out)) if sys.argv[4:] else begin(out, [open_cube(cube)], parse(plan.read_text(), "the recipe"))
    list(train(start, device))
"""


def together(plan: Recipe, cube: Cube, folder: Path, processes: int, *more: str) -> Run:
    """A run by that many processes, over gloo; with `resume` one that is gone on with."""
    folder.mkdir(exist_ok=True)
    (folder / "plan.toml").write_text(plan.to_toml())
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
        "OMP_NUM_THREADS": "1",
    }
    words = [sys.executable, "-c", _PROCESS, str(folder / "run"), str(cube.path), str(folder / "plan.toml"), *more]
    children = [
        subprocess.Popen(
            words, env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE
        )
        for rank in range(processes)
    ]
    try:
        errors = [child.communicate(timeout=120)[1].decode() for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0] * processes, "\n".join(errors)[-3000:]
    return Run(folder / "run")


@pytest.mark.parametrize("shard", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_train_as_one_with_the_double_batch(cube: Cube, tmp_path: Path, shard: bool) -> None:
    """The same losses, and the same weights but for the order of sums."""
    plan = PLAN.replace(train={"steps": 3, "shard": shard, "accumulate": 2, "look_every": 3, "save_every": 2})
    one, two = (together(plan, cube, tmp_path / str(count), count) for count in (1, 2))
    for ours, theirs in zip(checkpoint.records(one), checkpoint.records(two), strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-5)
        assert theirs["norm"] == pytest.approx(ours["norm"], rel=1e-4)
        assert theirs["parts"] == pytest.approx(ours["parts"], rel=1e-4)
    alone, shared = weights(one), weights(two)
    moved = {name: (alone[name] - fresh).abs().max() for name, fresh in checkpoint.build(plan).state_dict().items()}
    for name, tensor in alone.items():
        assert (shared[name] - tensor).abs().max() <= 0.05 * moved[name] + 1e-6, name
    assert json.loads((two.path / "environment.json").read_text())["processes"] == 2
    two.weights.unlink()
    together(plan, cube, two.path.parent, 2, "resume")
    assert all(torch.equal(tensor, shared[name]) for name, tensor in weights(two).items()), "gone on with"
