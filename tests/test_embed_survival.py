"""Embeds that are killed, starved of disk or shared among workers end in the same field.

A few of each run on every change; all that `reliability.md` asks for with `-m slow`.
"""

from __future__ import annotations

import contextlib
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from test_embed import untrained_run
from toys import YEAR, made_up_cube, workers

from aefcli import embed, field, ledger
from aefcli.checkpoint import Run
from aefcli.cube import Cube, Work
from aefcli.embed import How
from aefcli.errors import BadInput, Damaged, NoResources
from aefcli.extent import Period

CPU = torch.device("cpu")
PERIODS = [YEAR, Period.parse("2023-07")]
CHILD = """
import sys, time, torch
from pathlib import Path
from aefcli import embed, field
from aefcli.checkpoint import Run
from aefcli.cube import open_cube
from aefcli.extent import Period
from aefcli.embed import engine
field.CHUNK = 32  # nine tiles, eighteen units
compute = engine.compute
engine.compute = lambda *given: (time.sleep(0.02), compute(*given))[1]
cube, run, out = (Path(text) for text in sys.argv[1:])
print("ready", flush=True)
periods = [Period.parse("2023"), Period.parse("2023-07")]
embed.embed(open_cube(cube), Run(run), periods, out, device=torch.device("cpu"), how=embed.How(seams=False))
"""


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(field, "CHUNK", 32)


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> Cube:
    return made_up_cube(tmp_path_factory.mktemp("cube") / "cube.zarr")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return untrained_run(tmp_path_factory.mktemp("runs") / "toy-001")


@pytest.fixture(scope="module")
def whole(cube: Cube, run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The chunks of the field that nothing befell."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(field, "CHUNK", 32)
        out = tmp_path_factory.mktemp("whole") / "e.zarr"
        embed.embed(cube, run, PERIODS, out, device=CPU)
    return chunks(out)


def chunks(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.glob("*/c/**/*")) if file.is_file()}


def begun(cube: Cube, run: Run, out: Path) -> subprocess.Popen[str]:
    """An embed in a process of its own, at the moment when it begins."""
    arguments = [sys.executable, "-c", CHILD, str(cube.path), str(run.path), str(out)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as said:
        assert said.readline() == "ready\n"
    return process


def kills(cube: Cube, run: Run, folder: Path, whole: dict[str, bytes], count: int, seed: int) -> None:
    """Kill an embed at random moments until it has been killed `count` times, finishing every fifth one."""
    rng, caught, out, length = random.Random(seed), 0, folder / "e.zarr", 3.0
    while caught < count:
        process, start = begun(cube, run, out), time.monotonic()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0, length))
            length = 1.2 * (time.monotonic() - start)  # it came to its end
        process.kill()
        caught += process.wait() == -signal.SIGKILL
        if out.exists() and (process.returncode == 0 or rng.random() < 0.2):
            embed.embed(cube, run, PERIODS, out, device=CPU)
            assert chunks(out) == whole
            assert ledger.verify(out)[0] == []
            out, folder = (fresh := folder / "n") / "e.zarr", fresh
            folder.mkdir()
    embed.embed(cube, run, PERIODS, out, device=CPU)
    assert chunks(out) == whole


def test_killed_at_a_random_moment_and_resumed(cube: Cube, run: Run, whole: dict[str, bytes], tmp_path: Path) -> None:
    kills(cube, run, tmp_path, whole, 1, seed=0)


@pytest.mark.slow
def test_killed_at_fifty_random_moments_and_resumed(
    cube: Cube, run: Run, whole: dict[str, bytes], tmp_path: Path
) -> None:
    kills(cube, run, tmp_path, whole, 50, seed=1)


@pytest.mark.slow
def test_workers_of_a_cluster_killed_eight_times(cube: Cube, run: Run, whole: dict[str, bytes], tmp_path: Path) -> None:
    """The program kills a worker of its own cluster each time a tile is done, eight times; nannies start new ones."""
    killed: list[int] = []

    def one_less(done: int, total: int) -> None:
        if len(killed) < 8 and (running := workers()):
            killed.append(running[-1].pid)
            with contextlib.suppress(psutil.NoSuchProcess):
                running[-1].kill()

    how = How(work=Work(1, dask="2"))
    embed.embed(cube, run, PERIODS, tmp_path / "e.zarr", device=CPU, how=how, progress=one_less)
    assert len(killed) == 8
    assert chunks(tmp_path / "e.zarr") == whole


def test_a_disk_that_takes_no_more_is_one_line_and_resumable(
    cube: Cube, run: Run, whole: dict[str, bytes], tmp_path: Path
) -> None:
    """Files of more than 20,000 bytes are refused, which the chunks of vectors are."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(NoResources) as refused:
            embed.embed(cube, run, PERIODS, tmp_path / "e.zarr", device=CPU)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert refused.value.code == 6
    assert "\n" not in str(refused.value)
    with pytest.raises(BadInput, match="incomplete"):
        field.open_field(tmp_path / "e.zarr")
    embed.embed(cube, run, PERIODS, tmp_path / "e.zarr", device=CPU)
    assert chunks(tmp_path / "e.zarr") == whole


def test_a_growing_field_that_is_stopped_stays_whole(
    cube: Cube, run: Run, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "e.zarr"
    embed.embed(cube, run, PERIODS[1:], out, device=CPU)
    before = chunks(out)

    def stop(done: int, total: int) -> None:
        if done > 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed.embed(cube, run, PERIODS[:1], out, device=CPU, progress=stop)
    assert chunks(out) == before
    assert field.open_field(out).sizes["time"] == 1
    done = embed.embed(cube, run, PERIODS[:1], out, device=CPU)
    assert 0 < done.written < 9, "what was made before the stop is kept"
    assert {name for name, _ in chunks(out).items()} == {*whole}


def test_an_unfinished_field_says_what_it_was_begun_with(cube: Cube, run: Run, tmp_path: Path) -> None:
    out, how = tmp_path / "e.zarr", How(seams=False)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed.embed(cube, run, PERIODS[1:], out, device=CPU, how=how, progress=stop)
    with pytest.raises(BadInput) as refused:
        embed.embed(cube, run, PERIODS[:1], out, device=CPU, how=how)
    begun = f"{out} is unfinished, and was begun with --period 2023-07-01:2023-07-31"
    assert str(refused.value) == f"{begun} (run that first, or give --overwrite)"
    assert 0 < embed.embed(cube, run, PERIODS[1:], out, device=CPU, how=how).written < 9
    assert embed.embed(cube, run, PERIODS[:1], out, device=CPU, how=how).adopted == 9


@pytest.mark.parametrize("dask", [None, "2"], ids=["threads", "a cluster"])
def test_a_damaged_cube_is_one_line_and_resumable(
    run: Run, whole: dict[str, bytes], tmp_path: Path, dask: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    cube, out = made_up_cube(tmp_path / "cube.zarr"), tmp_path / "e.zarr"
    chunk = cube.path / "sentinel-2" / "B04" / "c" / "0" / "0" / "0"
    sound = chunk.read_bytes()
    chunk.write_bytes(sound[:500] + bytes([sound[500] ^ 1]) + sound[501:])
    how = How(seams=False, work=Work(2, dask))
    with pytest.raises(Damaged, match=r"B04/c/0/0/0 is damaged"):
        embed.embed(cube, run, PERIODS, out, device=CPU, how=how)
    assert "is damaged" not in capfd.readouterr().err, "dask tells nothing of it"
    chunk.write_bytes(sound)
    embed.embed(cube, run, PERIODS, out, device=CPU, how=How(seams=False))
    assert chunks(out) == whole


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_within_ten_seconds(cube: Cube, run: Run, tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "e.zarr"
    script = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # background jobs ignore it
    script += "from aefcli.cli import main; main()"
    words = ["embed", str(cube.path), "--model", str(run.path), "--every", "month", "--out", str(out)]
    words += ["--uncertainty", "30", "-q"]
    process = subprocess.Popen([sys.executable, "-c", script, *words], stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 90
        while not out.exists():
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(10) == 128 + number
    finally:
        process.kill()
        process.communicate()
