"""Runs: begun, cut off and gone on with; beside other processes; from other weights; and what ends them."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Aef
from pyproj import Transformer
from safetensors import safe_open
from safetensors.torch import load_file
from toys import YEAR, made_up_cube, noise_frames, toy_recipe

from aefcli import card, checkpoint, recipe, text
from aefcli import train as training
from aefcli.checkpoint import Run
from aefcli.cube import Cube, open_cube, write_cube
from aefcli.errors import BadInput, Diverged, Locked, NoResources
from aefcli.ledger import locked, read, records_of
from aefcli.recipe import Recipe
from aefcli.report.board import board
from aefcli.sample import batches, draw
from aefcli.simulate import imagine
from aefcli.sources import INPUTS
from aefcli.start import Start, begin, go_on
from aefcli.train import Record, schedule, train

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

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


def test_a_run_stopped_before_its_first_step_begins_anew(cube: Cube, whole: Start, tmp_path: Path) -> None:
    """Weights are fitted on one batch: whether to stop is asked before it, each of three sources, and the halves."""
    start = begin(tmp_path / "run", [cube], PLAN)
    for asked in range(5):
        times = itertools.count()
        assert list(train(start, CPU, stop=lambda at=asked, times=times: next(times) == at)) == []
        assert next(times) == asked + 1, "nothing was done after"
        assert {path.name for path in start.run.path.iterdir()} == {"recipe.toml", "samples.parquet", "data.json"}
    list(train(go_on(start.run), CPU))
    assert_same(start.run, whole.run)


def test_a_finished_run_is_left_as_it_is(whole: Start, aef: Aef) -> None:
    kept = {path: path.read_bytes() for path in whole.run.path.rglob("*") if path.is_file()}
    code, out, err = aef("train", "--resume", "--out", str(whole.run.path), "--device", "cpu")
    assert (code, out.splitlines()) == (0, [str(whole.run.path)]), err
    assert "is finished" in err
    assert {path: path.read_bytes() for path in kept if path.name != "card.md"} == {
        path: raw for path, raw in kept.items() if path.name != "card.md"
    }


def test_a_checkpoint_of_another_network_is_refused(cube: Cube, tmp_path: Path) -> None:
    """The recipe is the same, the code that makes a network of it is not."""
    start = begin(tmp_path / "run", [cube], PLAN)
    until(start, 2)
    other = checkpoint.build(start.recipe.replace(model={"pool_value": 3}))
    with pytest.raises(BadInput, match=r"state does not fit its recipe: summariser\.pools\.landsat\.\w+\.?\w* is \("):
        checkpoint.restore(start.run, start.recipe, other, torch.optim.Adam(other.parameters()))


def test_a_run_that_goes_on_with_other_versions_says_so(cube: Cube, tmp_path: Path) -> None:
    start = begin(tmp_path / "run", [cube], PLAN)
    next(iter(train(start, CPU)))
    about = json.loads(start.run.environment.read_text())
    assert about["torch"] == torch.__version__
    assert go_on(start.run).notes == start.notes
    start.run.environment.write_text(json.dumps(about | {"torch": "2.0.0", "threads": 64}))
    (told,) = set(go_on(start.run).notes) - set(start.notes)
    assert told.startswith(f"begun with torch 2.0.0, now {torch.__version__}, threads 64, now ")


def test_what_the_data_have_none_of_is_told(cube: Cube, tmp_path: Path) -> None:
    assert begin(tmp_path / "all", [cube], PLAN).notes == ()
    plan = PLAN.replace(data={"targets": ["nlcd"], "validation": 0.0})
    target, held = begin(tmp_path / "run", [cube], plan).notes
    assert target == "no cube has the target nlcd"
    assert held.startswith("no site is held out")


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


def started(folder: Path, *cubes: Cube) -> subprocess.Popen[str]:
    """`aef train` in a process of its own, as many threads as here: folder/run by folder/plan.toml, or on with it."""
    words = (
        ["--resume"]
        if (folder / "run/data.json").exists()
        else ["--recipe", "plan.toml", *(str(c.path) for c in cubes)]
    )
    command = [sys.executable, "-c", "from aefcli.cli import main; main()", "train", "--out", "run", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen([*command, *words], cwd=folder, env=environment, text=True, **quiet)


def ended(child: subprocess.Popen[str]) -> int:
    """What a process ended with: 0, or by a signal."""
    _, err = child.communicate(timeout=300)
    assert child.returncode in (0, -signal.SIGKILL, 128 + signal.SIGTERM), err[-3000:]
    return child.returncode


def steps_of(run: Run) -> int:
    return len(run.log.read_text().splitlines()) if run.log.exists() else 0


def await_steps(child: subprocess.Popen[str], run: Run, count: int = 1) -> None:
    """Wait for that many more lines in the log."""
    wanted = steps_of(run) + count
    while child.poll() is None and steps_of(run) < wanted:
        time.sleep(0.005)


def killed(child: subprocess.Popen[str], run: Run, moment: str, rng: random.Random) -> bool:
    """Kill it while a checkpoint is written, or at any moment; whether it was caught there, or alive."""
    for part in run.states.glob("*.part"):  # of a life before
        part.unlink()
    if moment == "checkpoint":
        while child.poll() is None and not any(run.states.glob("*.part")):
            pass
    elif rng.random() < 0.3:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(rng.uniform(0, 4))
    else:
        await_steps(child, run)
        time.sleep(rng.uniform(0, 0.3))
    child.kill()
    return ended(child) == -signal.SIGKILL and (moment == "any" or any(run.states.glob("*.part")))


def kills(cube: Cube, whole: Run, folder: Path, times: int, checkpoints: int, seed: int) -> None:
    """Kill a run at random moments, some of them while it writes a checkpoint; begin another whenever one is finished.

    What was a checkpoint stays one, and all end in the same bits.
    """
    rng = random.Random(seed)
    left = ["any"] * (times - checkpoints) + ["checkpoint"] * checkpoints
    rng.shuffle(left)
    while left:
        (folder := folder / "next").mkdir()
        (folder / "plan.toml").write_text(whole.recipe.to_toml())
        run, reached = Run(folder / "run"), 0
        while left and not run.weights.exists():
            if killed(started(folder, cube), run, left[-1], rng):
                left.pop()
            found = checkpoint.newest_state(run, whole.recipe)
            assert found is not None or not any(run.states.glob("*.safetensors"))
            assert (found[1] if found else 0) >= reached
            reached = found[1] if found else 0
        while not run.weights.exists():
            assert ended(started(folder, cube)) == 0
        assert_same(run, whole)


def test_a_run_killed_at_random_moments_ends_in_the_same_bits(cube: Cube, whole: Start, tmp_path: Path) -> None:
    kills(cube, whole.run, tmp_path, 2, checkpoints=1, seed=0)


@pytest.mark.slow
def test_a_run_killed_twenty_times_ends_in_the_same_bits(cube: Cube, tmp_path: Path) -> None:
    """As reliability.md asks: five of them while a checkpoint is written."""
    plan = PLAN.replace(train={"steps": 30, "save_every": 1, "look_every": 15})
    whole = begin(tmp_path / "whole", [cube], plan)
    list(train(whole, CPU))
    kills(cube, whole.run, tmp_path, 20, checkpoints=5, seed=1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_soon_and_it_goes_on(cube: Cube, tmp_path: Path, number: signal.Signals) -> None:
    """The loader process has the signal as well, as from torchrun and schedulers; the step asks it for more batches."""
    plan = PLAN.replace(train={"steps": 500, "save_every": 500, "batch": 2, "accumulate": 8}, data={"workers": 1})
    (tmp_path / "toy.toml").write_text(plan.to_toml())
    command = [sys.executable, "-c", "from aefcli.cli import main; main()", "train", str(cube.path), "--out", "run"]
    command += ["--recipe", "toy.toml"]
    child = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    log = tmp_path / "run" / "log.jsonl"
    while child.poll() is None and (not log.exists() or len(log.read_text().splitlines()) < 3):
        time.sleep(0.01)
    os.killpg(child.pid, number)
    began = time.monotonic()
    _, err = child.communicate()
    assert time.monotonic() - began < 10
    assert child.returncode == 128 + number
    assert err.splitlines()[-1] == f"aef: ended by {number.name} (run the same command with --resume)"
    (state,) = (tmp_path / "run" / "state").glob("*.safetensors")
    with safe_open(state, "pt") as file:
        step = int(file.metadata()["step"])
    assert step == len(checkpoint.records(Run(tmp_path / "run"))) >= 3
    assert f"Training stands at step {step} of 500: unfinished." in (tmp_path / "run" / "card.md").read_text()


def test_a_run_goes_on_with_the_texts_that_it_began_with(cube: Cube, tmp_path: Path) -> None:
    plan = PLAN.replace(data={"targets": ["text"]}, model={"text": 8}, loss={"text": 0.1})
    table = captioned(cube)
    table.to_parquet(tmp_path / "texts.parquet")
    texts = text.read(tmp_path / "texts.parquet")
    start = begin(tmp_path / "run", [cube], plan, texts=texts)
    until(start, 2)
    again = go_on(start.run)
    assert again.texts is not None
    assert again.texts.key == texts.key
    assert next(iter(train(again, CPU))).parts["text"] > 0
    without = begin(tmp_path / "without", [cube], plan)
    with pytest.raises(BadInput, match=r"was begun with no texts \(give those"):
        go_on(without.run, texts=texts)
    table.iloc[::-1].to_parquet(tmp_path / "texts.parquet")
    with pytest.raises(BadInput, match="was begun with other texts"):
        go_on(start.run)
    (tmp_path / "texts.parquet").unlink()
    with pytest.raises(BadInput, match="there is no table of text vectors"):
        go_on(start.run)


def test_a_cube_that_has_changed_under_a_run_is_told_of(tmp_path: Path) -> None:
    """As `aef fetch --refresh` changes it: the request stays, what was fetched does not."""
    cube = made_up_cube(tmp_path / "cube.zarr", side=144)
    start = begin(tmp_path / "run", [cube], PLAN)
    assert go_on(start.run).notes == start.notes
    lines = records_of(cube.path) / "ledger.jsonl"
    first = next(iter(read(cube.path).units.values()))["files"]
    lines.write_text(lines.read_text().replace(next(iter(first.values())), "0" * 64))
    (told,) = set(go_on(start.run).notes) - set(start.notes)
    assert told.startswith(f"{cube.path} has changed since the run began")


def test_what_does_not_fit_a_run_is_refused(cube: Cube, whole: Start, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"was begun with train\.lr = 0\.002, not 0\.1"):
        go_on(whole.run, recipe=PLAN.replace(train={"lr": 0.1}))
    go_on(whole.run, recipe=PLAN)
    other = made_up_cube(tmp_path / "other.zarr", side=144, seed=1)
    with pytest.raises(BadInput, match="was begun on other cubes than"):
        go_on(whole.run, [other])
    with pytest.raises(BadInput, match="there is no unfinished run in"):
        checkpoint.unfinished_run(None, tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/recipe.toml").write_text("# my recipe\n" + PLAN.to_toml())
    with pytest.raises(BadInput, match="mine exists and is not empty"):
        begin(tmp_path / "mine", [cube], PLAN)


def test_one_process_writes_a_run(whole: Start, aef: Aef) -> None:
    with locked(whole.run.path / "lock", whole.run.path):
        code, _, err = aef("train", str(whole.cubes[0].path), "--out", str(whole.run.path), "--resume")
    assert code == Locked.code == 5, err


@pytest.mark.slow
def test_a_run_on_real_and_simulated_sites_interrupted_twice_ends_in_the_same_bits(real: Path, tmp_path: Path) -> None:
    """`nano`, but smaller, on twelve months of Belgium and a made-up world: ended by SIGTERM, then by SIGKILL."""
    import belgium

    months = belgium.months(real / "belgium-monthly" / "worldcereal_preprocessed_inputs.nc")
    write_cube(tmp_path / "belgium.zarr", belgium.sources(months), belgium.period(months))
    world = imagine(seed=21, sites=4, size=64, years=(2023, 2023))
    write_cube(tmp_path / "world.zarr", {name: world.datasets[name] for name in INPUTS}, world.period)
    cubes = [open_cube(tmp_path / name) for name in ("belgium.zarr", "world.zarr")]
    sizes = {"precision": 16, "time": 32, "space": 32, "head": 16, "pool_heads": 12, "pool_value": 8, "decoder": 64}
    schedule = {"steps": 12, "warmup": 3, "settle": 2, "save_every": 4, "look_every": 6}
    plan = recipe.load("nano").replace(model=sizes, train=schedule, data={"frames": [8, 6, 4]})
    whole = begin(tmp_path / "whole", cubes, plan)
    assert len(set(whole.samples.cube)) == 2
    list(train(whole, CPU))
    (tmp_path / "plan.toml").write_text(plan.to_toml())
    run = Run(tmp_path / "run")
    for number, code in ((signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)):
        child = started(tmp_path, *cubes)
        await_steps(child, run, 2)
        child.send_signal(number)
        assert ended(child) == code
    assert not run.weights.exists()
    assert ended(started(tmp_path)) == 0
    assert_same(run, whole.run)


# --- what ends a run --------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_checkpoint(cube: Cube, tmp_path: Path) -> None:
    start = begin(tmp_path / "run", [cube], PLAN.replace(train={"lr": 1e18, "warmup": 0, "save_every": 1}))
    with pytest.raises(Diverged, match=r"at step \d \(lower train\.lr"):
        list(train(start, CPU))
    assert Diverged.code == 7
    model = checkpoint.build(start.recipe)
    kept = checkpoint.restore(start.run, start.recipe, model, torch.optim.Adam(model.parameters()))
    assert kept == len(checkpoint.records(start.run)) >= 1


def test_a_disk_that_takes_no_more_is_one_line_and_the_run_goes_on(
    cube: Cube, whole: Start, aef: Aef, tmp_path: Path
) -> None:
    """Files of more than some bytes are refused: the recipe, then the samples, then a checkpoint."""
    (tmp_path / "plan.toml").write_text(PLAN.to_toml())
    run, words = Run(tmp_path / "run"), ["train", str(cube.path), "--recipe", "plan.toml", "--device", "cpu", "-q"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for most in (1_000, 3_000, 100_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
        try:
            code, out, err = aef(*words, "--out", "run")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert (code, out, err.count("\n")) == (NoResources.code, "", 1) == (6, "", 1), err
        assert "File too large" in err
    assert steps_of(run) == 2, "the first checkpoint follows the second step"
    code, _, err = aef("train", "--resume", "--out", "run", "--device", "cpu")
    assert code == 0, err
    assert_same(run, whole.run)


# --- steps ------------------------------------------------------------------------------------------------------------


def test_the_encoder_stands_still_until_the_decoders_have_settled(cube: Cube, tmp_path: Path) -> None:
    plan = PLAN.replace(train={"steps": 100, "lr": 1.0, "warmup": 20, "settle": 30})
    rates = [schedule(step, plan.train, plan.train.settle) for step in (1, 30, 40, 50, 51, 100)]
    assert rates == pytest.approx([0, 0, 0.5, 1, 1, 0.02])
    assert schedule(1, plan.train) == 0.05
    start = begin(tmp_path / "run", [cube], PLAN.replace(train={"agree": 0, "settle": 1}))
    until(start, 1)
    tensors, step = checkpoint.newest_state(start.run, start.recipe)
    assert step == 1
    fresh = {f"model.{name}": tensor for name, tensor in checkpoint.build(start.recipe).state_dict().items()}
    moved = {name.split(".")[1] for name, tensor in fresh.items() if not torch.equal(tensors[name], tensor)}
    assert moved == {"decoders"}


def test_micro_batches_make_a_step_of_their_mean(cube: Cube, tmp_path: Path) -> None:
    start = begin(tmp_path / "run", [cube], PLAN.replace(train={"agree": 0, "accumulate": 2, "clip": 1e9}))
    record = next(iter(train(start, CPU)))
    model, losses = start.model().train(), []
    with closing(batches([cube], start.samples, start.recipe)) as stream:
        for micro, batch in enumerate(itertools.islice(stream, 2)):
            noise = training._noise(start.recipe.train.seed, 1, micro, CPU)
            losses.append(training.objective(model, batch, start.recipe, noise)[0])
    (sum(losses) / 2).backward()
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    assert record.loss == pytest.approx(sum(loss.item() for loss in losses) / 2, rel=1e-5)
    assert record.norm == pytest.approx(float(torch.nn.utils.get_total_norm(gradients)), rel=1e-4)


def test_a_part_that_a_micro_batch_lacks_is_that_of_the_others(cube: Cube) -> None:
    plan = PLAN.replace(train={"accumulate": 2})
    weight = torch.nn.Parameter(torch.ones(()))
    parts = iter((torch.nan, 3.0))

    class Step(torch.nn.Module):
        def forward(self, batch: object, noise: object) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            part = next(parts)
            return weight * 2, {"gedi": torch.tensor(part), "nlcd": torch.tensor(torch.nan)}

    with closing(batches([cube], draw([cube], plan), plan)) as stream:
        sums, _, _ = training._gradients(Step(), stream, 1, plan, CPU)
    assert (sums["loss"], sums["gedi"], weight.grad) == (2, 3, 2)
    assert math.isnan(sums["nlcd"])


# --- watching ---------------------------------------------------------------------------------------------------------


def test_tensorboard_tells_of_each_step_once(cube: Cube, whole: Start, aef: Aef, tmp_path: Path) -> None:
    """Of a run that was cut off, and lost a step that it had told of."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    start = begin(tmp_path / "run", [cube], PLAN)
    with closing(train(start, CPU)) as stream, board(start.run) as tell:
        for record in itertools.islice(stream, 3):
            tell(record)
    code, _, err = aef("train", "--resume", "--out", "run", "--tensorboard", "--device", "cpu")
    assert code == 0, err
    events = EventAccumulator(str(start.run.path / "tensorboard"))
    events.Reload()
    log = checkpoint.records(whole.run)
    told = {name: {each.step: each.value for each in events.Scalars(name)} for name in events.Tags()["scalars"]}
    assert [each.step for each in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert told["loss"] == pytest.approx({line["step"]: line["loss"] for line in log})
    assert told["parts/uniformity"] == pytest.approx({line["step"]: line["parts"]["uniformity"] for line in log})
    assert told["look/rank"] == pytest.approx({6: log[-1]["look"]["rank"]})


def test_without_tensorboard_one_line_says_how_to_get_it(
    cube: Cube, aef: Aef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    code, out, err = aef("train", str(cube.path), "--tensorboard", "--out", "run")
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert "pip install 'aefcli[tensorboard]'" in err
    assert not (tmp_path / "run").exists()


# --- from other weights -----------------------------------------------------------------------------------------------


def test_a_run_begins_from_another_with_fewer_sources(cube: Cube, whole: Start, tmp_path: Path) -> None:
    plan = PLAN.replace(data={"sources": ["landsat", "sentinel-2"], "frames": [4, 4]})
    start = begin(tmp_path / "run", [cube], plan, old=whole.run)
    model, old = start.model(), checkpoint.load(whole.run)
    assert start.notes == ()
    assert start.recipe.statistics["landsat"] == whole.recipe.statistics["landsat"]
    torch.testing.assert_close(model.stem["landsat"].project.weight, old.stem["landsat"].project.weight)
    inputs = {name: noise_frames(name, b=2, t=4, side=16) for name in ("landsat", "sentinel-2")}
    inputs["landsat"] = inputs["landsat"].without(torch.tensor([[True] * 4, [False] * 4]))  # of one place
    period = torch.tensor([[[YEAR.start, YEAR.end]]] * 2)
    with torch.inference_mode():  # embeddings stay where they were, by what is there
        fields = (each.eval().summarise(each.encode(inputs), period) for each in (model, old))
        torch.testing.assert_close(*fields, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.blocks[1].state_dict(), old.blocks[1].state_dict())
    first = next(iter(train(start, CPU)))
    assert set(first.parts) <= {"landsat", "sentinel-2", "uniformity", "consistency"}
    with pytest.raises(BadInput, match=r"has model\.time = 32, the recipe 64"):
        begin(tmp_path / "wide", [cube], PLAN.replace(model={"time": 64}), old=whole.run)
    assert not (tmp_path / "wide").exists()


def test_held_out_sites_that_the_run_before_was_trained_on_are_told_of(
    cube: Cube, whole: Start, tmp_path: Path
) -> None:
    plan = PLAN.replace(data={"validation": 0.5}, train={"seed": 1, "steps": 1, "look_every": 1})
    start = begin(tmp_path / "run", [cube], plan, old=whole.run)
    before, now = ({*each.samples.of("train").site} for each in (whole, start))
    held = {*start.samples.site} - now
    count = len(held & before)
    assert 0 < count < len(before)
    told = f"the run that this one began from was trained on {count} of the sites held out: their scores flatter"
    assert start.notes == (told,)
    assert told in go_on(start.run).notes
    list(train(start, CPU))
    assert f"held out from training, {count} of which the run that it" in card.write(start.run).read_text()


def test_a_run_begins_from_another_with_more_sources(cube: Cube, tmp_path: Path) -> None:
    """Embeddings stay where they were, whatever the new source shows; it has something to learn."""
    few = PLAN.replace(data={"sources": ["landsat", "sentinel-2"], "frames": [4, 4]}, train={"steps": 2})
    old = begin(tmp_path / "old", [cube], few)
    list(train(old, CPU))
    start = begin(tmp_path / "run", [cube], PLAN, old=old.run)
    inputs = {name: noise_frames(name, b=1, t=4, side=16) for name in PLAN.data.sources}
    known = {name: inputs[name] for name in few.data.sources}
    period = torch.tensor([[[YEAR.start, YEAR.end]]])
    with torch.inference_mode():
        fields = [
            model.eval().summarise(model.encode(shown), period)
            for model, shown in ((start.model(), inputs), (checkpoint.load(old.run), known))
        ]
    assert (fields[0] * fields[1]).sum(2).min() > 0.99
    assert "sentinel-1" in next(iter(train(start, CPU))).parts


def test_a_run_that_began_from_one_that_is_gone_goes_on(cube: Cube, whole: Start, tmp_path: Path) -> None:
    old = Run(shutil.copytree(whole.run.path, tmp_path / "old"))
    start = begin(tmp_path / "run", [cube], PLAN, old=old)
    until(start, 3)
    shutil.rmtree(old.path)
    assert next(iter(train(go_on(start.run), CPU))).step == 4
    for state in start.run.states.glob("*.safetensors"):
        state.unlink()
    with pytest.raises(BadInput, match="old"):
        next(iter(train(go_on(start.run), CPU)))


# --- several processes ------------------------------------------------------------------------------------------------

_PROCESS = """
import json, sys
from pathlib import Path
import torch
from aefcli import parallel, text
from aefcli.cube import open_cube
from aefcli.recipe import parse
from aefcli.checkpoint import Run
from aefcli.start import begin, go_on
from aefcli.train import train
out, cube, plan, texts = map(Path, sys.argv[1:5])
cubes, told = [open_cube(cube)], text.read(texts)
with parallel.joined(torch.device("cpu")) as device:
    plan = parse(plan.read_text(), "the recipe")
    start = go_on(Run(out), cubes, texts=told) if sys.argv[5:] else begin(out, cubes, plan, texts=told)
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
    files = (folder / "run", cube.path, folder / "plan.toml", cube.path.parent / "texts.parquet")
    words = [sys.executable, "-c", _PROCESS, *map(str, files), *more]
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


def captioned(cube: Cube) -> pd.DataFrame:
    """Vectors of texts of the whole year, one every 80 m."""
    step = np.arange(4, cube.shape[0], 8)
    rows, columns = (each.ravel() for each in np.meshgrid(step, step, indexing="ij"))
    degrees = Transformer.from_crs(cube.grid.crs, "EPSG:4326", always_xy=True)
    lon, lat = degrees.transform(*(cube.grid.transform * (columns, rows)))
    vector = np.random.default_rng(0).standard_normal((len(lon), 8)).astype("float32")
    return pd.DataFrame({"lon": lon, "lat": lat, "start": YEAR.start, "end": YEAR.end, "vector": list(vector)})


@pytest.mark.parametrize("shard", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_train_as_one_with_the_double_batch(cube: Cube, tmp_path: Path, shard: bool) -> None:
    """The same losses, and the same weights but for the order of sums. Every patch has a text."""
    plan = PLAN.replace(
        data={"targets": ["text"]},
        model={"text": 8},
        loss={"text": 0.1, "student_every": 2},
        train={"steps": 3, "shard": shard, "accumulate": 2, "look_every": 3, "save_every": 2, "agree": 0},
    )
    captioned(cube).to_parquet(cube.path.parent / "texts.parquet")
    one, two = (together(plan, cube, tmp_path / str(count), count) for count in (1, 2))
    for ours, theirs in zip(checkpoint.records(one), checkpoint.records(two), strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-5)
        assert theirs["norm"] == pytest.approx(ours["norm"], rel=1e-4)
        assert theirs["parts"] == pytest.approx(ours["parts"], rel=1e-4)
        assert ours["parts"]["text"] > 0
    alone, shared = weights(one), weights(two)
    moved = {name: (alone[name] - fresh).abs().max() for name, fresh in checkpoint.build(plan).state_dict().items()}
    for name, tensor in alone.items():
        assert (shared[name] - tensor).abs().max() <= 0.05 * moved[name] + 1e-6, name
    assert json.loads((two.path / "environment.json").read_text())["processes"] == 2
    two.weights.unlink()
    together(plan, cube, two.path.parent, 2, "resume")
    assert all(torch.equal(tensor, shared[name]) for name, tensor in weights(two).items()), "gone on with"


def test_torchrun_trains_and_a_run_that_it_ended_goes_on(cube: Cube, tmp_path: Path) -> None:
    """The command itself, as a scheduler starts and ends it: the same bits as a run that nothing interrupted."""
    plan = PLAN.replace(train={"steps": 24, "save_every": 100, "look_every": 24, "agree": 2}, data={"workers": 1})
    (tmp_path / "plan.toml").write_text(plan.to_toml())
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    words = [str(Path(sys.executable).with_name("aef")), "train", "--device", "cpu", "--out"]
    fresh = ["--recipe", "plan.toml", str(cube.path)]
    begin_with = {
        "cwd": tmp_path,
        "stderr": subprocess.PIPE,
        "text": True,
        "env": os.environ | {"OMP_NUM_THREADS": "1"},
    }
    cut, whole = Run(tmp_path / "cut"), Run(tmp_path / "whole")

    child = subprocess.Popen([*torchrun, *words, "cut", *fresh], start_new_session=True, **begin_with)
    await_steps(child, cut, 3)
    child.terminate()
    try:
        _, err = child.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    assert child.returncode != 0
    assert "aef: ended by SIGTERM (run the same command with --resume)" in err, err[-3000:]
    assert 3 <= steps_of(cut) < 24
    for rest in (["cut", "--resume"], ["whole", *fresh]):
        ran = subprocess.run([*torchrun, *words, *rest], timeout=300, **begin_with)
        assert ran.returncode == 0, ran.stderr[-3000:]
    assert_same(cut, whole)
    assert len(checkpoint.records(cut)) == 24
