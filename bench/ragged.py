"""Sites of unequal length: frames packed, beside every slot encoded: `python -m bench.ragged [--json]`.

Of the slots of four sites 60% hold no frame. Ratios: `packed` is our network with every slot encoded as a frame over
our network, which packs those there are; `packed_naive` the naive network, which computes empty slots and masks them,
over ours. Correct: the vectors of each site alone, without its empty slots.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

import torch
from jaxtyping import Bool
from torch import Tensor

from aefcli.batch import Frames
from aefcli.model import Model
from bench import measure
from bench.measure import Check, Result, Setting

SITES = 4
EMPTY = 0.6  # share of slots


def main() -> None:
    chosen = measure.options(__doc__)
    run(Setting.of(chosen)).show(chosen.json)


@torch.inference_mode()
def run(setting: Setting) -> Result:
    model, valid = measure.stirred(setting.plan), measure.year(SITES)
    naive = measure.naive_like(model, setting.plan)
    full = measure.noise(b=SITES, side=setting.side)
    ragged = thinned(full)
    taken = measure.seconds(
        {
            "naive, masked": lambda: naive.summarise(naive.encode(ragged), valid),
            "every slot": lambda: model.summarise(model.encode(full), valid),
            "packed": lambda: model.summarise(model.encode(ragged), valid),
        },
        setting.repeats,
    )
    together = model.summarise(model.encode(ragged), valid)
    correct = {
        "packed": Check(
            max(measure.difference(together[[site]], of(model, ragged, site)) for site in range(SITES)), 1e-5
        )
    }
    ratios = {"packed": taken["every slot"] / taken["packed"], "packed_naive": taken["naive, masked"] / taken["packed"]}
    rows = [(name, f"{spent:.3f}", name if name in correct else "") for name, spent in taken.items()]
    title = measure.described(setting, SITES, sum(measure.SLOTS.values()))
    notes = {"seconds": taken, "frames": frames_of(ragged)}
    return Result("ragged", title, ("seconds",), rows, ratios, correct, notes)


def thinned(inputs: Mapping[str, Frames]) -> dict[str, Frames]:
    """60% of all slots emptied at random, over sites and sources; every site keeps one frame at least."""
    counts = [frames.time.shape[1] for frames in inputs.values()]
    score = torch.rand(SITES, sum(counts), generator=torch.Generator().manual_seed(2))
    score[torch.arange(SITES), score.argmin(1)] = -1.0
    kept = round((1 - EMPTY) * score.numel())
    empty = score > score.flatten().sort().values[kept - 1]
    return {
        name: cleared(frames, dropped)
        for (name, frames), dropped in zip(inputs.items(), empty.split(counts, dim=1), strict=True)
    }


def cleared(frames: Frames, dropped: Bool[Tensor, "b t"]) -> Frames:
    """The same with slots as padding leaves them: not present, and zeros."""
    without = frames.without(dropped)
    values = {each.name: getattr(without, each.name) for each in fields(Frames)}
    values["pixels"] = values["pixels"].masked_fill(dropped[:, :, None, None, None], 0.0)
    values["time"] = values["time"].masked_fill(dropped, 0)
    return Frames(**values)


def of(model: Model, inputs: Mapping[str, Frames], site: int) -> Tensor:
    """The vectors of one site alone, its empty slots and the sources that it lacks left out."""
    alone = {}
    for name, frames in inputs.items():
        filled = frames.present[site].flatten(1).any(1)
        if filled.any():
            alone[name] = Frames(*(getattr(frames, each.name)[site][filled][None] for each in fields(Frames)))
    return model.summarise(model.encode(alone), measure.year())


def frames_of(inputs: Mapping[str, Frames]) -> list[int]:
    """How many frames each site has."""
    return torch.cat([frames.present.flatten(2).any(-1) for frames in inputs.values()], dim=1).sum(1).tolist()


if __name__ == "__main__":
    main()
