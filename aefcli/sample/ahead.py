"""Reading before it is asked for: by a thread of this process, which reads itself or takes from loader processes.

One thread does all of it. So an error comes out where a batch is asked for and nowhere else, and closing ends what was
begun.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from aefcli.batch import Batch
from aefcli.errors import AefError, NoResources
from aefcli.sample.plan import Work

_AHEAD = 2  # batches that are read before they are asked for, by each that reads

Read = Callable[[Work], Batch]


def read_ahead(works: Iterator[Work], read: Read, workers: int) -> Generator[Batch, None, None]:
    """The batches of some works in their order. `workers` processes read them, at most one a core; 0: this one does.

    Raises what `read` raises. A loader process that was killed raises NoResources.
    """
    source = _by_processes(works, read, workers) if workers else (read(work) for work in works)
    try:
        with ThreadPoolExecutor(1, "batches") as pool:
            waiting = deque(pool.submit(_next, source) for _ in range(_AHEAD))
            try:
                while True:
                    batch = waiting.popleft().result()
                    waiting.append(pool.submit(_next, source))
                    yield batch
            finally:
                for one in waiting:
                    one.cancel()
    finally:
        source.close()


def _next(source: Iterator[Batch]) -> Batch:
    """The next batch; where this process uses a GPU, in memory that the GPU can read while the process goes on."""
    batch = next(source)
    return batch.pin() if torch.cuda.is_initialized() else batch


class _Remote(Dataset[Batch | AefError]):
    """What a loader process does."""

    def __init__(self, read: Read) -> None:
        self.read = read

    def __getitem__(self, work: Work) -> Batch | AefError:
        try:
            return self.read(work).share()
        except AefError as error:  # handed over as it is: torch would make a page of text of it
            return error


def _by_processes(works: Iterator[Work], read: Read, workers: int) -> Generator[Batch, None, None]:
    loader: DataLoader[Batch | AefError] = DataLoader(
        _Remote(read),
        sampler=works,
        batch_size=None,
        num_workers=min(workers, _cores()),
        prefetch_factor=_AHEAD,
        collate_fn=_as_it_is,
        worker_init_fn=_deaf,
        multiprocessing_context=multiprocessing.get_context("spawn"),  # a fork would copy this one's threads half
        generator=torch.Generator(),  # not the process's own, on which a run may hang
    )
    found: Any = iter(loader)
    try:
        for each in found:
            if isinstance(each, AefError):
                raise each
            yield each
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise NoResources(f"a loader process died: {error}", "give it more memory, or set data.workers = 0") from error
    finally:
        found._shutdown_workers()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _as_it_is(found: Any) -> Any:
    return found


def _deaf(number: int) -> None:
    """Ctrl-C reaches all processes of a terminal, and SIGTERM all that torchrun or a scheduler ends: when the loaders
    end is for the one that trains to say.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
