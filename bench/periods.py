"""Twelve valid periods from one encoding, beside twelve encodings: `python -m bench.periods [--json]`.

The encoder does not know the period, so one pass serves any number of them. Correct: the same vectors both ways.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aefcli.extent import Period
from bench import measure
from bench.measure import Check, Result, Setting


def main() -> None:
    chosen = measure.options(__doc__)
    run(Setting.of(chosen)).show(chosen.json)


@torch.inference_mode()
def run(setting: Setting) -> Result:
    model, inputs, valid = measure.stirred(setting.plan), measure.noise(side=setting.side), months()

    def once() -> Tensor:
        return model.summarise(model.encode(inputs), valid)

    def each() -> Tensor:
        parts = [model.summarise(model.encode(inputs), period) for period in valid.split(1, dim=1)]
        return torch.cat(parts, dim=1)

    encoded = model.encode(inputs)
    works = {
        "12 encodings": each,
        "one encoding": once,
        "encode": lambda: model.encode(inputs),
        "summarise 12": lambda: model.summarise(encoded, valid),
    }
    taken = measure.seconds(works, setting.repeats)
    ratios = {"periods12": taken["12 encodings"] / taken["one encoding"]}
    correct = {"periods12": Check(measure.difference(once(), each()), 1e-5)}
    rows = [(name, f"{spent:.3f}", "periods12" if name == "one encoding" else "") for name, spent in taken.items()]
    title = measure.described(setting, 1, sum(measure.SLOTS.values()))
    return Result("periods", title, ("seconds",), rows, ratios, correct, {"seconds": taken})


def months() -> Tensor:
    """The months of 2023 as valid periods of one site."""
    each = [Period.parse(f"2023-{month:02d}") for month in range(1, 13)]
    return torch.tensor([[[month.start, month.end] for month in each]])


if __name__ == "__main__":
    main()
