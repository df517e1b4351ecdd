"""One valid period through encoder and summariser, beside the naive network: `python -m bench.encoder [--json]`.

Ratios: seconds of the naive network in fp32 over seconds of ours, in fp32 and under bf16 autocast. Correct: our
vectors against those of our function with plain NCHW weights and inputs, fp32.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from aefcli.batch import Frames
from aefcli.model import Model
from bench import measure
from bench.measure import Check, Result, Setting


def main() -> None:
    chosen = measure.options(__doc__)
    run(Setting.of(chosen)).show(chosen.json)


@torch.inference_mode()
def run(setting: Setting) -> Result:
    model, inputs, valid = measure.stirred(setting.plan), measure.noise(side=setting.side), measure.year()
    naive = measure.naive_like(model, setting.plan)
    taken = measure.seconds(
        {
            "naive fp32": lambda: naive.summarise(naive.encode(inputs), valid),
            "fp32": lambda: vectors(model, inputs, valid),
            "bf16": lambda: rounded(model, inputs, valid),
        },
        setting.repeats,
    )
    contiguous = copy.deepcopy(model).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    plain = vectors(contiguous, inputs, valid)
    correct = {
        "fp32": Check(measure.difference(vectors(model, inputs, valid), plain), 1e-4),
        "bf16": Check((rounded(model, inputs, valid) * plain).sum(2).mean().item(), 0.999, least=True),
    }
    ratios = {name: taken["naive fp32"] / taken[name] for name in correct}
    rows = [
        (name, f"{spent:.3f}", f"{taken['naive fp32'] / spent:.2f}", name if name in correct else "")
        for name, spent in taken.items()
    ]
    title = measure.described(setting, 1, sum(measure.SLOTS.values()))
    notes = {"seconds": taken, "bf16 instructions": bf16_instructions() or "none"}
    return Result("encoder", title, ("seconds", "naive / this"), rows, ratios, correct, notes)


def vectors(model: Model, inputs: Mapping[str, Frames], valid: Tensor) -> Tensor:
    return model.summarise(model.encode(inputs), valid)


def rounded(model: Model, inputs: Mapping[str, Frames], valid: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return vectors(model, inputs, valid).float()


def bf16_instructions() -> list[str]:
    """The CPU's own: without them bf16 is emulated, and no faster."""
    info = Path("/proc/cpuinfo")
    words = set(info.read_text().split()) if info.is_file() else set()
    return sorted(words & {"avx512_bf16", "amx_bf16"})


if __name__ == "__main__":
    main()
