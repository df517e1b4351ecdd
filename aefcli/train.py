"""The training loop, as a generator of records.

Owns the step (teacher, student, decoders, the sum of losses), the schedule and when checkpoints are written. Source:
method.md sections 8 and 9.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from aefcli import checkpoint, losses
from aefcli.batch import Batch, Frames, Text, perturb
from aefcli.checkpoint import Run
from aefcli.cube import Cube
from aefcli.errors import Diverged
from aefcli.model import Model, sample_vmf
from aefcli.recipe import Recipe, Train
from aefcli.sample import batches
from aefcli.sources import SOURCES, Source

if TYPE_CHECKING:
    from aefcli.text import Texts


@dataclass(frozen=True)
class Record:
    """One step: its losses by name (reconstructions in sigmas), the rate and the seconds it took."""

    step: int
    loss: float
    parts: dict[str, float]
    lr: float
    seconds: float


def train(
    run: Run, recipe: Recipe, cubes: Sequence[Cube], device: torch.device, texts: Texts | None = None
) -> Iterator[Record]:
    """Train a fresh model of the recipe on the cubes and leave its weights in the run. Yields after every step.

    Raises Diverged, with the last good checkpoint kept, when the loss or its gradient is no longer finite.
    """
    model = checkpoint.build(recipe).to(device).train()
    model.checkpointing = recipe.train.checkpointing
    if recipe.train.compile:
        model.compile_operators()
    optimiser = torch.optim.Adam(model.parameters(), lr=recipe.train.lr)
    draws = torch.Generator().manual_seed(recipe.train.seed)
    noise = torch.Generator(device).manual_seed(recipe.train.seed)
    stream = batches(cubes, recipe, recipe.train.seed, texts=texts)
    for step in range(1, recipe.train.steps + 1):
        began = time.perf_counter()
        rate = schedule(step, recipe.train)
        for group in optimiser.param_groups:
            group["lr"] = rate
        batch = next(stream)
        drops, period = perturb(batch, draws)
        lost = {name: dropped.to(device) for name, dropped in drops.items()}
        loss, parts = objective(model, batch.to(device), lost, period.to(device), recipe, noise)
        if not math.isfinite(loss.item()):
            raise Diverged(f"the loss is {loss.item()} at step {step}", f"lower train.lr ({recipe.train.lr:g})")
        optimiser.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.train.clip)
        if not norm.isfinite():
            raise Diverged(f"the gradient is {norm.item()} at step {step}", f"lower train.lr ({recipe.train.lr:g})")
        optimiser.step()
        if model.text is not None:
            model.text.bound()
        if step % recipe.train.save_every == 0:
            checkpoint.save_state(run, model, optimiser, recipe, step)
        numbers = {name: part.item() for name, part in parts.items()}
        record = Record(step, loss.item(), numbers, rate, time.perf_counter() - began)
        checkpoint.append_record(run, vars(record))
        yield record
    checkpoint.save_weights(run.weights, model, recipe, recipe.train.steps)


def schedule(step: int, train: Train) -> float:
    """The learning rate of a step counted from 1: linearly up over the warm-up, then linearly down to 0."""
    if step <= train.warmup:
        return train.lr * step / train.warmup
    return train.lr * (train.steps - step + 1) / max(1, train.steps - train.warmup)


def objective(
    model: Model,
    batch: Batch,
    drops: Mapping[str, Bool[Tensor, "b t"]],
    period: Int[Tensor, "b 2"],
    recipe: Recipe,
    noise: torch.Generator,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Equation 3 on one batch. One encode serves all targets of the teacher; one the student, who lost `drops`, at
    `period`. Everything on the generator's device.
    """
    student = {name: frames.without(drops[name]) for name, frames in batch.inputs.items()}
    with torch.autocast(noise.device.type, torch.bfloat16, enabled=recipe.train.dtype == "bfloat16"):
        encoded, student_encoded = model.encode(batch.inputs), model.encode(student)
        asked = [*batch.valid.values(), *([batch.text.valid] if batch.text else []), period]
        fields = model.summarise(encoded, torch.stack(asked, dim=1)).unbind(1)
        shown = model.summarise(student_encoded, period[:, None])[:, 0]
        errors = {}
        for name, field in zip(batch.valid, fields, strict=False):
            source, target = SOURCES[name], batch.targets[name]
            weight = target.weight[:, 0] * encoded.seen
            if not weight.any():
                continue  # a source that the batch lacks is no perfect one
            side = max(1.0, source.regrid / batch.gsd)
            cells = losses.cells(weight, noise, side=side, pixels=recipe.loss.pixels)
            drawn = sample_vmf(losses.at(field, cells.index).flatten(1, 2), recipe.model.kappa, noise)
            answer = model.decode(name, drawn, target.time[:, 0], batch.valid[name], target.meta[:, 0])
            predicted = answer.to(field.dtype).unflatten(1, cells.index.shape[1:])
            errors[name] = mismatch(source, predicted, target, weight, cells, int(source.shift // batch.gsd))
        both = encoded.seen & student_encoded.seen
        others = {
            "uniformity": torch.stack([losses.uniformity(field, encoded.seen, batch.apart) for field in fields]).mean(),
            "consistency": losses.consistency(fields[-1], shown, both),
        }
        if batch.text is not None and batch.text.there.sum() > 1:  # one text alone is told from no other
            others["text"] = captioned(model, batch.text, fields[-2], encoded.seen)
    return losses.total(errors, {name: SOURCES[name].weight for name in errors}, others, recipe.loss)


def mismatch(
    source: Source,
    predicted: Float[Tensor, "b m k c"],
    target: Frames,
    weight: Float[Tensor, "b h w"],
    cells: losses.Cells,
    reach: int,
) -> Float[Tensor, ""]:
    """The error that the source's row of the table asks for; `reach` in pixels."""
    if source.kind == "categorical":
        return losses.cross_entropy(predicted, target.pixels[:, 0, 0].long(), cells)
    if reach:
        return losses.shifted_l1(predicted, target.pixels[:, 0], weight, target.bands[:, 0], cells, reach)
    return losses.l1(predicted, target.pixels[:, 0], target.bands[:, 0], cells)


def captioned(
    model: Model, text: Text, field: Float[Tensor, "b d h w"], seen: Bool[Tensor, "b h w"]
) -> Float[Tensor, ""]:
    """The text term, at the texts' pixels; a text where no frame showed anything takes no part."""
    assert model.text is not None
    rows, (row, column) = torch.arange(len(text.there), device=seen.device), text.pixel.unbind(1)
    place, there = field[rows, :, row, column], text.there & seen[rows, row, column]
    return losses.contrastive(model.text(text.vector, text.valid), place, there, model.text.scale)
