"""Activation checkpointing: memory kept for the way back, and what it costs: `python -m bench.memory [--json]`.

`saved_bytes` is what one training forward of encoder and summariser leaves in memory for backward without checkpointing
over with it: every storage counted once, parameters and inputs not at all, the same in every run. `time` is forward and
backward with over without. Correct: the gradients of both.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aefcli.batch import Frames
from aefcli.model import Model
from bench import measure
from bench.measure import Check, Result, Setting

KINDS = {"kept": False, "checkpointed": True}


def main() -> None:
    chosen = measure.options(__doc__)
    run(Setting.of(chosen)).show(chosen.json)


def run(setting: Setting) -> Result:
    model, inputs = measure.stirred(setting.plan).train(), measure.noise(side=setting.side)
    saved = {name: saved_bytes(model, inputs, on) for name, on in KINDS.items()}
    gradients = {name: gradients_of(model, inputs, on) for name, on in KINDS.items()}
    works = {name: lambda on=on: backward(model, inputs, on) for name, on in KINDS.items()}
    taken = measure.seconds(works, setting.repeats)
    ratios = {
        "saved_bytes": saved["kept"] / saved["checkpointed"],
        "time": taken["checkpointed"] / taken["kept"],
    }
    correct = {"checkpointed": Check(apart(gradients["checkpointed"], gradients["kept"]), 1e-4)}
    rows = [
        (name, f"{saved[name] / 2**20:,.1f}", f"{taken[name]:.3f}", name if name in correct else "") for name in KINDS
    ]
    title = measure.described(setting, 1, sum(measure.SLOTS.values()))
    notes = {"bytes": saved, "seconds": taken}
    return Result("memory", title, ("MiB saved", "seconds"), rows, ratios, correct, notes)


def loss(model: Model, inputs: Mapping[str, Frames], checkpointing: bool) -> Tensor:
    """Any number that hangs on every vector."""
    model.checkpointing = checkpointing
    vectors = model.summarise(model.encode(inputs), measure.year())
    return (vectors * torch.linspace(-1, 1, vectors.numel()).view_as(vectors)).sum()


def backward(model: Model, inputs: Mapping[str, Frames], checkpointing: bool) -> None:
    model.zero_grad()
    loss(model, inputs, checkpointing).backward()


def saved_bytes(model: Model, inputs: Mapping[str, Frames], checkpointing: bool) -> int:
    """Bytes that a forward leaves behind for its backward, parameters and inputs apart."""
    given = [*model.parameters(), *(tensor for frames in inputs.values() for tensor in vars(frames).values())]
    with Storages() as storages:
        held = loss(model, inputs, checkpointing)
    own = {tensor.untyped_storage()._cdata for tensor in (*given, held)}
    return sum(size for address, size in storages.alive().items() if address not in own)


class Storages(TorchDispatchMode):
    """Notes every storage that an operation fills, and later which of them somebody still holds.

    `saved_tensors_hooks` would not do: checkpointing keeps the states of a block where no hook sees them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return out

    def alive(self) -> dict[int, int]:
        """Bytes of those still held, by address."""
        gc.collect()
        return {address: size for address, (storage, size) in self.made.items() if not storage.expired()}


def gradients_of(model: Model, inputs: Mapping[str, Frames], checkpointing: bool) -> list[Tensor]:
    backward(model, inputs, checkpointing)
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def apart(ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> float:
    """The largest difference of a weight's gradient, as a share of the largest gradient in its tensor."""
    pairs = zip(ours, theirs, strict=True)
    return max(((a - b).abs().max() / b.abs().max().clamp(min=1e-12)).item() for a, b in pairs)


if __name__ == "__main__":
    main()
