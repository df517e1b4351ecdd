"""The training loop, as a generator of records.

Owns the step (teacher, student, decoders, the sum of losses), the schedule and when checkpoints are written. Source:
method.md sections 8 and 9.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from aefcli import checkpoint, losses
from aefcli.batch import Batch, Frames, perturb
from aefcli.checkpoint import Run
from aefcli.cube import Cube
from aefcli.errors import Diverged
from aefcli.model import Model, sample_vmf
from aefcli.recipe import Recipe, Train
from aefcli.sample import batches
from aefcli.sources import SOURCES


@dataclass(frozen=True)
class Record:
    """One step: its losses by name (reconstructions in sigmas), the rate and the seconds it took."""

    step: int
    loss: float
    parts: dict[str, float]
    lr: float
    seconds: float


def train(run: Run, recipe: Recipe, cubes: Sequence[Cube], device: torch.device) -> Iterator[Record]:
    """Train a fresh model of the recipe on the cubes and leave its weights in the run. Yields after every step.

    Raises Diverged, with the last good checkpoint kept, when the loss or its gradient is no longer finite.
    """
    model = checkpoint.build(recipe).to(device).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=recipe.train.lr)
    drops = torch.Generator().manual_seed(recipe.train.seed)
    noise = torch.Generator(device).manual_seed(recipe.train.seed)
    stream = batches(cubes, recipe, recipe.train.seed)
    for step in range(1, recipe.train.steps + 1):
        began = time.perf_counter()
        rate = schedule(step, recipe.train)
        for group in optimiser.param_groups:
            group["lr"] = rate
        batch = next(stream)
        student, period = perturb(batch, drops)
        moved = {name: frames.to(device) for name, frames in student.items()}
        loss, parts = objective(model, batch.to(device), moved, period.to(device), recipe, noise)
        if not math.isfinite(loss.item()):
            raise Diverged(f"the loss is {loss.item()} at step {step}", f"lower train.lr ({recipe.train.lr:g})")
        optimiser.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.train.clip)
        if not norm.isfinite():
            raise Diverged(f"the gradient is {norm.item()} at step {step}", f"lower train.lr ({recipe.train.lr:g})")
        optimiser.step()
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
    student: Mapping[str, Frames],
    period: Int[Tensor, "b 2"],
    recipe: Recipe,
    noise: torch.Generator,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Equation 3 on one batch: one encode serves all targets of the teacher, one the student at `period`."""
    encoded, student_encoded = model.encode(batch.inputs), model.encode(student)
    periods = torch.stack([*(batch.valid[name] for name in batch.targets), period], dim=1)
    teacher = model.summarise(encoded, periods)
    errors = {}
    for index, (name, target) in enumerate(batch.targets.items()):
        drawn = sample_vmf(teacher[:, index], recipe.model.kappa, noise)
        predicted = model.decode(name, drawn, target.time[:, 0], batch.valid[name], target.meta[:, 0])
        weight = target.weight[:, 0] * encoded.seen
        if not weight.any():
            continue  # a source that the batch lacks is no perfect one
        errors[name] = losses.reconstruction(predicted, target.pixels[:, 0], target.bands[:, 0], weight)
    shown = model.summarise(student_encoded, period[:, None])[:, 0]
    consistent = losses.consistency(teacher[:, -1], shown, encoded.seen & student_encoded.seen)
    uniform = torch.stack([losses.uniformity(each, encoded.seen) for each in teacher.unbind(1)]).mean()
    weights = {name: SOURCES[name].weight for name in errors}
    return losses.total(errors, weights, uniform, consistent, recipe.loss)
