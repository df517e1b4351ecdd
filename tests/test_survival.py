"""Fetches that are killed, starved of disk or shared among workers end in the same cube.

A few of each run on every change; all that `reliability.md` asks for with `-m slow`.
"""

from __future__ import annotations

import contextlib
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from archives import TOY_BOX, Toy, toy_request
from toys import workers

import aefcli.cube.write as writing
from aefcli import ledger
from aefcli.cube import Work, check, fetch, open_cube
from aefcli.cube.fetch import plan, stacks_of
from aefcli.errors import BadInput, NoResources

SLOW_SLAB = 0.05  # seconds that a unit takes at least, so that there is something to be killed
CHILD = f"""
import sys, time, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import aefcli.cube.write as writing
from aefcli.cube import Request, Work, fetch
from aefcli.extent import BBox, Period
writing.CHUNK, writing.SLAB = (2, 32, 32), 32
write = writing.write_slab
writing.write_slab = lambda *args: (time.sleep({SLOW_SLAB}), write(*args))[1]
catalog, box, out = sys.argv[1:]
print("ready", flush=True)
fetch(Request(catalog, BBox(*map(float, box.split("/"))), Period.parse("2023-08"), ("sentinel-2",), 60), Path(out))
"""


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "CHUNK", (2, 32, 32))
    monkeypatch.setattr(writing, "SLAB", 32)


@pytest.fixture(scope="module")
def whole(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the cube that nothing befell."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "CHUNK", (2, 32, 32))
        patch.setattr(writing, "SLAB", 32)
        fetch(toy_request(toy), path := tmp_path_factory.mktemp("whole") / "c.zarr")
    return files(path)


def files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("where", ["template", "write_slab"])
def test_stopped_before_anything_was_written(
    toy: Toy, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """All that is left of the first try is the plan, as a file."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writing, where, stop)
        with pytest.raises(KeyboardInterrupt):
            fetch(toy_request(toy), tmp_path / "c.zarr")
    fetch(toy_request(toy), tmp_path / "c.zarr")
    assert files(tmp_path / "c.zarr") == whole


def test_a_plan_that_is_read_again_names_its_sources_in_the_same_order(toy: Toy) -> None:
    request = toy_request(toy)
    items = plan(request)["items"]
    named = {name: [item | {"collection": "x"} for item in items["sentinel-2"]] for name in ("landsat", "sentinel-2")}
    for order in (named, dict(reversed(named.items()))):
        stacks = stacks_of(order, check(request), request)
        assert [stack.source.name for stack in stacks] == ["sentinel-2", "landsat"]


def begun(toy: Toy, out: Path) -> subprocess.Popen[str]:
    """A fetch in a process of its own, at the moment when it begins."""
    box = "/".join(map(repr, (TOY_BOX.west, TOY_BOX.south, TOY_BOX.east, TOY_BOX.north)))
    arguments = [sys.executable, "-c", CHILD, str(toy.catalog), box, str(out)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as said:
        assert said.readline() == "ready\n"
    return process


def kills(toy: Toy, folder: Path, whole: dict[str, bytes], count: int, seed: int) -> None:
    """Kill a fetch at random moments until it has been killed `count` times, finishing every fifth one."""
    rng, caught = random.Random(seed), 0
    out = folder / "c.zarr"
    length = 3 * SLOW_SLAB * len(whole) / 7  # about as long as a fetch takes: a unit has seven files
    while caught < count:
        process = begun(toy, out)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0, length))
        process.kill()
        caught += process.wait() == -signal.SIGKILL
        if out.exists() and (process.returncode == 0 or rng.random() < 0.2):
            fetch(toy_request(toy), out)
            assert files(out) == whole
            assert ledger.verify(out)[0] == []
            out, folder = (fresh := folder / "n") / "c.zarr", fresh
            folder.mkdir()
    fetch(toy_request(toy), out)
    assert files(out) == whole


def test_killed_at_random_moments_and_resumed(toy: Toy, whole: dict[str, bytes], tmp_path: Path) -> None:
    kills(toy, tmp_path, whole, 3, seed=0)


@pytest.mark.slow
def test_killed_at_fifty_random_moments_and_resumed(toy: Toy, whole: dict[str, bytes], tmp_path: Path) -> None:
    kills(toy, tmp_path, whole, 50, seed=1)


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_any_number_of_threads_makes_the_same(toy: Toy, whole: dict[str, bytes], tmp_path: Path, workers: int) -> None:
    fetch(toy_request(toy), tmp_path / "c.zarr", work=Work(workers))
    assert files(tmp_path / "c.zarr") == whole


@pytest.mark.slow
def test_workers_of_a_cluster_killed_eight_times(toy: Toy, whole: dict[str, bytes], tmp_path: Path) -> None:
    """The program kills a worker of its own cluster each time a unit is done, eight times; nannies start new ones."""
    killed: list[int] = []

    def one_less(done: int, total: int) -> None:
        if len(killed) < 8 and (running := workers()):
            killed.append(running[-1].pid)
            with contextlib.suppress(psutil.NoSuchProcess):
                running[-1].kill()

    fetch(toy_request(toy), tmp_path / "c.zarr", work=Work(1, dask="2"), progress=one_less)
    assert len(killed) == 8
    assert files(tmp_path / "c.zarr") == whole


def test_a_disk_that_takes_no_more_is_one_line_and_resumable(toy: Toy, whole: dict[str, bytes], tmp_path: Path) -> None:
    """Files of more than 2,000 bytes are refused, which the chunks of one band and the ledger soon are."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, limits[1]))
    try:
        with pytest.raises(NoResources) as refused:
            fetch(toy_request(toy), tmp_path / "c.zarr")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert refused.value.code == 6
    assert "\n" not in str(refused.value)
    if (tmp_path / "c.zarr").exists():
        with pytest.raises(BadInput, match="not finished"):
            open_cube(tmp_path / "c.zarr")
    fetch(toy_request(toy), tmp_path / "c.zarr")
    assert files(tmp_path / "c.zarr") == whole


def test_a_finished_fetch_is_soon_done(toy: Toy, tmp_path: Path) -> None:
    process = begun(toy, tmp_path / "c.zarr")
    assert process.wait(60) == 0
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "c.zarr").rglob("*")}
    assert begun(toy, tmp_path / "c.zarr").wait(60) == 0
    assert written == {path: path.stat().st_mtime_ns for path in (tmp_path / "c.zarr").rglob("*")}
