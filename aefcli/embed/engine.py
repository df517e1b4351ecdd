"""Who computes the tiles of a field, and how many at a time: threads of this process, or a dask cluster.

A job is one tile for some valid periods. Threads take its patches, each reading, encoding and quantising its own: on a
CPU each on one core, on a GPU by turns, so that it encodes while others read. Two jobs are at hand, one being written
while the next is computed. Who computes a tile, and beside how many others, does not change a bit of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from aefcli import checkpoint, field
from aefcli.checkpoint import Run
from aefcli.cube import Cube, Work, cluster, open_cube
from aefcli.embed.network import OUT_OF_MEMORY, Network, Seen, patches, seen, stored
from aefcli.embed.tiling import JOBS, Part, cells, runs
from aefcli.errors import AefError, BadInput, NoResources
from aefcli.extent import Period, Tile
from aefcli.recipe import Embed

_PATIENCE = 4.0  # seconds
_turn = threading.Lock()  # at the GPU
_loading = threading.Lock()


class Stopped(Exception):
    """A job was left because the run is over."""


@dataclass(frozen=True)
class Job:
    """One tile of a field, for the valid periods of one support: all that a worker needs to know."""

    store: Path
    cube: Cube | Path
    run: Run
    weights: str  # that the run has to have: what tells one version of a model from another
    sizes: Embed
    device: str
    part: Part
    tile: Tile
    names: tuple[str, ...]
    support: Period
    periods: tuple[Period, ...]
    times: tuple[int, ...]  # of the field, that these periods are
    write: frozenset[int]  # those of `times` that are not there yet
    dtype: str
    passes: int
    at_once: int  # patches read at once


@dataclass(frozen=True)
class Made:
    """What became of a job."""

    files: dict[int, list[Path]]  # by time
    nodata: int  # pixels of the tile
    patches: int  # encoded
    encoding: float  # seconds
    seconds: float


@lru_cache(maxsize=2)
def network(run: Run, device: str, sizes: Embed, weights: str) -> Network:
    """The model of a run, loaded once in each process. Refuses other weights than those that are asked for."""
    if (found := checkpoint.identity(run)["weights"]) != weights:
        raise BadInput(f"{run.weights} has changed: its weights are {found}, not {weights}", "put the old file back")
    recipe = run.recipe.model_copy(update={"embed": sizes})
    here = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and here == "cpu":
        raise BadInput(f"a worker has no {device}", "--device auto takes what each has")
    where = torch.device(here if device == "auto" else device)
    return Network(checkpoint.load(run).to(where), recipe, where)


def compute(job: Job, threads: Executor | None = None, stop: threading.Event | None = None) -> Made:
    """Do a job, by some threads or in this one: its chunks are on disk afterwards.

    `stop` is set where nobody waits for it any more; then it raises Stopped at its next patch.
    """
    began = perf_counter()
    cube = job.cube if isinstance(job.cube, Cube) else open_cube(job.cube)
    with _loading:
        net = network(job.run, job.device, job.sizes, job.weights)
    out, wanted = _Buffers.of(job), job.part.wanted(job.tile)
    found = [cell for cell in cells(job.part.in_cube(job.tile), job.sizes) if wanted[_place(job, cell)].any()]

    def fill(row: list[Tile]) -> float:
        """Encode neighbouring cells; returns the seconds that the model took."""
        spent = 0.0
        for cell, frames in patches(cube, job.names, job.support, net.recipe, row):
            if stop and stop.is_set():
                raise Stopped
            with _device(net.device):
                start = perf_counter()
                one = seen(net, frames, cell, job.periods, job.passes)
                codes = stored(one, job.dtype)
                spent += perf_counter() - start
            out.put(_place(job, cell), one, codes)
        return spent

    rows = list(runs(found, job.at_once))
    encoding = sum(threads.map(fill, rows) if threads else map(fill, rows))
    out.blank(~wanted)
    files = out.write(job)
    return Made(files, int(out.empty().sum()), len(found), encoding, perf_counter() - began)


def _place(job: Job, cell: Tile) -> tuple[slice, slice]:
    """Where the tile holds a cell of the cube."""
    top, left = cell.top - job.part.top - job.tile.top, cell.left - job.part.left - job.tile.left
    return slice(top, top + cell.shape[0]), slice(left, left + cell.shape[1])


@contextmanager
def _device(device: torch.device) -> Iterator[None]:
    """The turn at a GPU; on a CPU, one core."""
    if device.type == "cpu":
        torch.set_num_threads(1)  # of this thread: what several cores sum up hangs on how many there are
        yield
        return
    with _turn:
        yield


@dataclass
class _Buffers:
    """A tile being put together from its patches."""

    codes: np.ndarray  # (p, 64, h, w)
    observed: dict[str, np.ndarray]  # uint16 (p, h, w)
    spread: np.ndarray | None

    @classmethod
    def of(cls, job: Job) -> _Buffers:
        shape, count = job.tile.shape, len(job.periods)
        nothing = field.NODATA if job.dtype == "int8" else np.nan
        return cls(
            np.full((count, field.DIMENSIONS, *shape), nothing, dtype=job.dtype),
            {name: np.zeros((count, *shape), dtype="uint16") for name in job.names},
            np.full((count, *shape), np.nan, dtype="float32") if job.passes else None,
        )

    def put(self, place: tuple[slice, slice], one: Seen, codes: np.ndarray) -> None:
        at = (..., *place)
        self.codes[at] = codes
        for name, counts in one.observed.items():
            self.observed[name][at] = counts
        if self.spread is not None and one.spread is not None:
            self.spread[at] = np.where(one.clear, one.spread.cpu().numpy(), np.nan)

    def blank(self, outside: np.ndarray) -> None:
        """No data where nothing was asked for."""
        self.codes[..., outside] = field.NODATA if self.codes.dtype == np.int8 else np.nan
        for counts in self.observed.values():
            counts[..., outside] = 0
        if self.spread is not None:
            self.spread[..., outside] = np.nan

    def empty(self) -> np.ndarray:
        """Which pixels hold no data: bool (h, w)."""
        first = self.codes[0, 0]
        return first == field.NODATA if first.dtype == np.int8 else np.isnan(first)

    def write(self, job: Job) -> dict[int, list[Path]]:
        files = {}
        for index, time in enumerate(job.times):
            if time in job.write:
                one = slice(index, index + 1)
                files[time] = field.write(
                    job.store,
                    job.tile,
                    self.codes[one],
                    {name: counts[one] for name, counts in self.observed.items()},
                    uncertainty=None if self.spread is None else self.spread[one],
                    times=[time],
                )
        return files


def computed(jobs: Sequence[Job], work: Work) -> Generator[tuple[Job, Made], None, None]:
    """Do jobs, a few in flight so that memory is bounded; each as it gets done.

    Closed early, what is running ends at its next patch; a patch that takes longer is not waited for.
    """
    todo, running, stop = iter(jobs), dict[Future[Made | Exception], Job](), threading.Event()
    with _workers(work, stop) as (submit, at_once):
        try:
            while True:
                running |= {submit(job): job for job in islice(todo, at_once - len(running))}
                if not running:
                    return
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    job, made = running.pop(done), done.result()
                    if isinstance(made, Exception):
                        raise made
                    yield job, made
        finally:
            stop.set()
            for future in running:
                future.cancel()
            wait(running, timeout=_PATIENCE)


def _told(job: Job, threads: Executor | None = None, stop: threading.Event | None = None) -> Made | Exception:
    """As `compute`; what a user can mend comes back, as a worker of dask makes pages of text of what is raised."""
    try:
        return compute(job, threads, stop)
    except (AefError, OSError) as error:
        return error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not OUT_OF_MEMORY.search(str(error)):
            raise
        return NoResources("out of memory", "give less to --memory, so that less is computed at once")


@contextmanager
def _workers(work: Work, stop: threading.Event) -> Iterator[tuple[Callable[[Job], Future[Made | Exception]], int]]:
    """What takes a job, and how many it is given at a time."""
    if work.dask is not None:
        with cluster(work) as client, client.get_executor(pure=False, retries=3) as pool:
            count = max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
            # Each opens the cube itself: handles of stores do not travel.
            yield lambda job: pool.submit(_told, replace(job, cube=getattr(job.cube, "path", job.cube))), 2 * count
        return
    before = torch.get_num_threads()
    pool, threads = ThreadPoolExecutor(JOBS), ThreadPoolExecutor(work.threads)
    try:
        yield lambda job: pool.submit(_told, job, threads, stop), JOBS
    finally:
        for each in (pool, threads):
            each.shutdown(wait=False, cancel_futures=True)
        torch.set_num_threads(before)
