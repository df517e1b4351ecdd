"""Several processes that train as one: who they are, what they sum, and the random numbers they agree on.

Owns the process group and the few operations that reach across it. A batch is dealt out in order: of a batch of all
processes, process r holds the rows r b to (r + 1) b. In one process every function here is what it would be without the
others. Knows neither the network nor the data.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

# While the first process draws samples and fits what all begin with, which of many sites takes hours, the others wait.
_PATIENCE = timedelta(hours=6)


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Among the processes that torchrun started, one device each; alone, where nothing of torchrun's is set."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def total(x: Tensor) -> Tensor:
    """The sum over all processes, without a gradient."""
    x = x.detach()
    if size() > 1:
        x = x.clone()
        dist.all_reduce(x)
    return x


def agreed(value: Any) -> Any:
    """What the first process says, anything that pickles."""
    if size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def shared(tensors: Iterable[Tensor]) -> None:
    """Every process takes what the first one has, in place."""
    if size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), 0)


def own(draw: Callable[[int], Tensor], rows: int) -> Tensor:
    """The own rows of what `draw` makes for those of all processes: each draws them all, by the same generator."""
    return draw(size() * rows)[rank() * rows : (rank() + 1) * rows]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        whole = gradient.contiguous()
        dist.all_reduce(whole)
        return whole.chunk(size())[rank()]


def gathered(x: Shaped[Tensor, "b ..."]) -> Shaped[Tensor, "w ..."]:
    """The rows of all processes, differentiable."""
    if size() == 1:
        return x
    if x.dtype == torch.bool:
        return gathered(x.byte()).bool()
    out: Tensor = _Gather.apply(x)
    return out


def rolled(x: Shaped[Tensor, "b ..."]) -> Shaped[Tensor, "b ..."]:
    """Rotated by one along the batch of all processes."""
    if size() == 1:
        return x.roll(1, dims=0)
    return torch.cat([gathered(x[-1:])[rank() - 1][None], x[:-1]])
