"""Activation checkpointing: memory kept for the way back, and what it costs: `python -m bench.memory [--json]`.

`saved_bytes` is what one training forward of encoder and summariser saves for backward without checkpointing over with
it: every storage counted once, parameters not at all, the same on every machine. `time` is forward and backward with
over without. Correct: the gradients of both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

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
    """Bytes of all storages that a forward keeps for backward, parameters apart."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}  # holding them, so that no address serves twice

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss(model, inputs, checkpointing)
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in own)


def gradients_of(model: Model, inputs: Mapping[str, Frames], checkpointing: bool) -> list[Tensor]:
    backward(model, inputs, checkpointing)
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def apart(ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> float:
    """The largest difference of a weight's gradient, as a share of the largest gradient in its tensor."""
    pairs = zip(ours, theirs, strict=True)
    return max(((a - b).abs().max() / b.abs().max().clamp(min=1e-12)).item() for a, b in pairs)


if __name__ == "__main__":
    main()
