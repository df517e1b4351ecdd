"""The log of a run as TensorBoard reads it, in RUN/tensorboard.

Owns the names of the curves: those of log.jsonl, a slash for each level, as in `parts/landsat` and `look/rank`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from aefcli.errors import BadInput

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from aefcli.checkpoint import Run
    from aefcli.train import Record


def check() -> None:
    """Refuse where TensorBoard is not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise BadInput("--tensorboard needs the package tensorboard", "pip install 'aefcli[tensorboard]'") from error


@contextmanager
def board(run: Run) -> Iterator[Callable[[Record], None]]:
    """What writes a record, at once: a run that is killed keeps what it told.

    The first record makes a file of events, by which readers forget what earlier files have of its step and of later
    ones: a run that goes on from a checkpoint tells of each step once.
    """
    from torch.utils.tensorboard import SummaryWriter

    writer: SummaryWriter | None = None

    def write(record: Record) -> None:
        nonlocal writer
        if writer is None:
            writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=record.step)
        for name, value in _scalars(record.line()):
            writer.add_scalar(name, value, record.step)
        writer.flush()

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()


def _scalars(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in line.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}/{part}", number) for part, number in _scalars(value))
        elif name != "step":
            yield name, value
