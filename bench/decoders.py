"""Decoding some pixels, beside decoding all of them: `python -m bench.decoders [--json]`.

Forward and backward of the L1 between one target frame of every source and what its decoder makes of given embeddings,
down to decoders and embeddings. `sampled` is the naive decoders' seconds at all pixels over ours at the recipe's
`loss.pixels`. Correct: the mean over many draws, of the L1 and of a cross-entropy between made-up logits and classes,
lies within four standard errors of the loss over all pixels; and ours over all pixels is the naive one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aefcli import losses
from aefcli.batch import Frames
from aefcli.model import Model
from bench import measure
from bench.measure import Check, Result, Setting
from bench.naive.model import Naive, reconstruction

SITES = 4
DRAWS = 200
CLOUDED = 0.3  # share of pixels without weight
CLASSES = 6


def main() -> None:
    chosen = measure.options(__doc__)
    run(Setting.of(chosen)).show(chosen.json)


@dataclass(frozen=True)
class Work:
    """What is decoded: embeddings and one target frame per source, for the year."""

    field: Tensor  # b d h w
    targets: Mapping[str, Frames]
    pixels: int

    @property
    def valid(self) -> Tensor:
        return measure.year(SITES)[:, 0]


def run(setting: Setting) -> Result:
    model, work = measure.stirred(setting.plan), made_up(setting)
    naive = measure.naive_like(model, setting.plan)
    rng = torch.Generator().manual_seed(4)
    works = {
        "all pixels, naive": backward(lambda: plain(naive, work), work, naive),
        "sampled": backward(lambda: sampled(model, work, rng), work, model),
    }
    taken = measure.seconds(works, setting.repeats)
    correct = {
        "sampled": spread(lambda: sampled(model, work, rng), plain(naive, work)),
        "cross-entropy": classes(work, rng),
        "every pixel": Check((sampled(model, work, rng, None) - plain(naive, work)).abs().item(), 1e-5),
    }
    ratios = {"sampled": taken["all pixels, naive"] / taken["sampled"]}
    rows = [(name, f"{spent:.3f}", name if name in correct else "") for name, spent in taken.items()]
    rows += [(name, "", name) for name in ("cross-entropy", "every pixel")]
    title = f"{measure.described(setting, SITES, len(work.targets))}, {work.pixels} pixels per sample and source"
    return Result("decoders", title, ("seconds",), rows, ratios, correct, {"seconds": taken})


def made_up(setting: Setting) -> Work:
    rng = torch.Generator().manual_seed(3)
    field = F.normalize(torch.randn(SITES, 64, setting.side, setting.side, generator=rng), dim=1)
    field = field.contiguous(memory_format=torch.channels_last)  # as the summariser gives it
    targets = measure.noise(dict.fromkeys(setting.plan.data.sources, 1), b=SITES, side=setting.side)
    for target in targets.values():
        target.weight[torch.rand(target.weight.shape, generator=rng) < CLOUDED] = 0.0
    pixels = min(setting.plan.loss.pixels, setting.side**2 // 4)
    return Work(field.requires_grad_(), targets, pixels)


def plain(naive: Naive, work: Work) -> Tensor:
    """The sum over sources at all pixels."""
    return torch.stack(
        [
            reconstruction(
                naive.decode(name, work.field, target.time[:, 0], work.valid, target.meta[:, 0]),
                target.pixels[:, 0],
                target.bands[:, 0],
                target.weight[:, 0],
            )
            for name, target in work.targets.items()
        ]
    ).sum()


def sampled(model: Model, work: Work, rng: torch.Generator, pixels: int | None = 0) -> Tensor:
    """The same at some pixels: those of the work, or all with None."""
    pixels = work.pixels if pixels == 0 else pixels
    each = []
    for name, target in work.targets.items():
        cells = losses.cells(target.weight[:, 0], rng, pixels=pixels)
        asked = losses.at(work.field, cells.index).flatten(1, 2)
        answer = model.decode(name, asked, target.time[:, 0], work.valid, target.meta[:, 0])
        answer = answer.unflatten(1, cells.index.shape[1:])
        each.append(losses.l1(answer, target.pixels[:, 0], target.bands[:, 0], cells))
    return torch.stack(each).sum()


def backward(loss: Callable[[], Tensor], work: Work, network: nn.Module) -> Callable[[], None]:
    def step() -> None:
        work.field.grad = None
        network.zero_grad()
        loss().backward()

    return step


@torch.no_grad()
def spread(draw: Callable[[], Tensor], whole: Tensor) -> Check:
    """How many standard errors the mean of many draws lies from the whole."""
    drawn = torch.stack([draw() for _ in range(DRAWS)]).double()
    error = drawn.std() / DRAWS**0.5
    return Check(((drawn.mean() - whole).abs() / error).item(), 4.0)


@torch.no_grad()
def classes(work: Work, rng: torch.Generator) -> Check:
    """The same for cross-entropy, of logits of noise."""
    weight = next(iter(work.targets.values())).weight[:, 0]
    logits = torch.randn(SITES, CLASSES, *weight.shape[1:], generator=rng)
    truth = torch.randint(CLASSES, weight.shape, generator=rng)
    whole = (F.cross_entropy(logits, truth, reduction="none") * weight).sum() / weight.sum()

    def draw() -> Tensor:
        cells = losses.cells(weight, rng, pixels=work.pixels)
        return losses.cross_entropy(losses.at(logits, cells.index), truth, cells)

    return spread(draw, whole)


if __name__ == "__main__":
    main()
