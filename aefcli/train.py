"""The training loop, as a generator of records.

Owns the step (teacher, student, decoders, the sum of losses), the schedule, how the step is laid over processes, and
when checkpoints are written and looks taken. What a step draws hangs on the seed, the step and the micro-batch alone,
so that a run that was cut off goes on as if it had not been. Source: method.md sections 8 and 9.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from aefcli import agreement, checkpoint, losses, parallel
from aefcli.batch import Batch, Frames, Text
from aefcli.errors import Diverged
from aefcli.model import Model, sample_vmf
from aefcli.recipe import Recipe, Train
from aefcli.sample import batches, validation
from aefcli.sources import SOURCES, Source
from aefcli.start import Start, environment
from aefcli.watch import Look, collapse, look

_ALL = 96  # frames of a source that weights begin on, about all that a year has
_WINDOWS = 16  # of a batch that weights begin on, or that is looked at, at most
LOOKED = 4  # held-out batches that a look is taken at


@dataclass(frozen=True)
class Record:
    """One step: its losses by name (reconstructions in sigmas), the rate, the norm of the gradient, and its pace."""

    step: int
    loss: float
    parts: dict[str, float]
    lr: float
    norm: float
    seconds: float
    wait: float  # share of the seconds in which no batch was at hand
    frames: float  # that the teacher read per second, of all processes
    look: Look | None = None
    warning: str = ""

    def line(self) -> dict[str, object]:
        """The record as the log has it."""
        told = {name: value for name, value in vars(self).items() if name not in ("look", "warning")}
        return told | ({"look": self.look.numbers} if self.look else {})


def train(start: Start, device: torch.device, stop: Callable[[], bool] = lambda: False) -> Iterator[Record]:
    """Train, and leave the weights in the run; go on from its newest checkpoint where it has one. Yields after every
    step; of a finished run nothing.

    Once `stop` answers yes in any process, all end after the step that they are at, with a checkpoint; before the first
    step without one, for what weights begin as is soon found again. Raises Diverged, with the last good checkpoint
    kept, when the loss or its gradient is no longer finite.
    """
    run, recipe = start.run, start.recipe
    if parallel.agreed(run.weights.is_file()):
        return
    if device.type == "cpu":  # sums have one order, so that a run that goes on ends in the same bits
        torch.use_deterministic_algorithms(True)
    model = _begun(start, device, stop)
    if model is None:
        return
    learner = _learner(model, start, device)
    done = checkpoint.restore(run, recipe, model, learner.optimiser)
    if not run.environment.is_file():
        _made(start, device, done)
    few = recipe.replace(train={"batch": min(recipe.train.batch, _WINDOWS)})
    held = validation(start.cubes, start.samples, few, LOOKED, texts=start.texts)
    looks = [record["look"] for record in checkpoint.records(run) if "look" in record]
    with closing(_stream(start, done + 1)) as stream:
        for step in range(done + 1, recipe.train.steps + 1):
            record, last = learner.step(stream, step), step == recipe.train.steps
            if last or step % recipe.train.look_every == 0:
                seen = look(model, held, recipe, device)
                looks.append(seen.numbers)
                record = replace(record, look=seen, warning=collapse(looks) or "")
            ending = bool(parallel.total(torch.tensor(float(stop()), device=device))) and not last
            if parallel.rank() == 0:  # before the checkpoint, with which it would be lost: `restore` cuts what is ahead
                checkpoint.append_record(run, record.line())
            if ending or (step % recipe.train.save_every == 0 and not last):
                checkpoint.save_state(run, recipe, model, learner.optimiser, step)
            if ending:
                _made(start, device, step)
            yield record
            if ending:
                return
    _made(start, device, recipe.train.steps)
    checkpoint.save_weights(run.weights, model, recipe, recipe.train.steps)  # last: with them the run is finished


def _made(start: Start, device: torch.device, step: int) -> None:
    """Have the run know what it is made with, and how far it has come."""
    if parallel.rank() == 0:
        plan, spent = start.recipe.train, sum(record["seconds"] for record in checkpoint.records(start.run))
        environment(start.run, device, step * plan.accumulate * plan.batch, spent)


def _begun(start: Start, device: torch.device, stop: Callable[[], bool]) -> Model | None:
    """The weights before the first step; fresh ones are fitted by the first process, on few windows with all frames
    that there are. None where that was told to stop.
    """
    recipe = start.recipe
    if parallel.agreed(parallel.rank() == 0 and checkpoint.newest_state(start.run, recipe) is not None):
        return checkpoint.build(recipe).to(device)  # the checkpoint has the weights
    model = start.model().to(device)
    if start.old is not None or recipe.train.agree == 0:
        return model
    fitted = True
    if parallel.rank() == 0:
        whole = recipe.replace(
            data={"frames": [_ALL] * len(recipe.data.sources), "targets": [], "patch": agreement.WINDOW},
            model={"text": 0},
            train={"batch": min(recipe.train.batch, _WINDOWS), "accumulate": 1},
        )
        with closing(batches(start.cubes, start.samples.middle(agreement.WINDOW), whole)) as stream:
            some = islice(stream, recipe.train.agree)
            fitted = agreement.begin(model, some, _noise(recipe.train.seed, 0, 0, device), stop)
    if not parallel.agreed(fitted):
        return None
    parallel.shared(model.state_dict().values())
    return model


def _stream(start: Start, first: int) -> Generator[Batch, None, None]:
    """This process's batches from a step on."""
    return batches(
        start.cubes,
        start.samples,
        start.recipe,
        first=first,
        rank=parallel.rank(),
        world=parallel.size(),
        texts=start.texts,
    )


@dataclass(frozen=True)
class _Learner:
    """A model in training: its step as it is laid over the processes, and its optimiser."""

    model: Model
    step_of: nn.Module
    optimiser: torch.optim.Optimizer  # two groups: the decoders are the second
    recipe: Recipe
    device: torch.device

    def step(self, stream: Iterator[Batch], step: int) -> Record:
        """Take one, counted from 1. Raises Diverged before the weights take any harm."""
        began, plan = time.perf_counter(), self.recipe.train
        encoding, decoding = self.optimiser.param_groups
        encoding["lr"] = plan.encoder_lr / plan.lr * schedule(step, plan, plan.settle)
        decoding["lr"] = schedule(step, plan)
        self.optimiser.zero_grad()
        sums, waited, frames = _gradients(self.step_of, stream, step, self.recipe, self.device)
        loss = sums.pop("loss")
        if not math.isfinite(loss):
            raise _diverged(f"the loss is {loss}", step, self.recipe)
        norm = _clipped(self.model, plan.clip)
        if not math.isfinite(norm):
            raise _diverged(f"the gradient is {norm}", step, self.recipe)
        self.optimiser.step()
        if self.model.text is not None:
            self.model.text.bound()
        spent = time.perf_counter() - began
        numbers = {name: part for name, part in sums.items() if not math.isnan(part)}
        return Record(step, loss, numbers, schedule(step, plan), norm, spent, waited / spent, frames / spent)


def _learner(model: Model, start: Start, device: torch.device) -> _Learner:
    """A model made ready to learn; a text head without any text to learn from stays as it is."""
    recipe = start.recipe
    model.train()
    model.checkpointing = recipe.train.checkpointing
    if model.text is not None and start.texts is None:
        model.text.requires_grad_(False)
    if recipe.train.compile:
        model.compile_operators()
    step_of = _laid_out(model, recipe, device)
    decoders = [*model.decoders.parameters()]
    others = [p for name, p in model.named_parameters() if not name.startswith("decoders.")]
    optimiser = torch.optim.Adam([{"params": others}, {"params": decoders}], lr=recipe.train.lr, fused=True)
    return _Learner(model, step_of, optimiser, recipe, device)


def _diverged(what: str, step: int, recipe: Recipe) -> Diverged:
    return Diverged(
        f"{what} at step {step}",
        f"lower train.lr ({recipe.train.lr:g}) or train.encoder_lr ({recipe.train.encoder_lr:g})",
    )


def schedule(step: int, train: Train, settling: int = 0) -> float:
    """The learning rate of a step counted from 1: 0 while others settle, linearly up over the warm-up, then linearly
    down to 0 [paper S2.3]. Settling is our choice: the paper's rate is one for all weights, and rises from the start.
    """
    begun = settling + train.warmup
    if step <= begun:
        return train.lr * max(0, step - settling) / max(1, train.warmup)
    return train.lr * (train.steps - step + 1) / max(1, train.steps - begun)


# --- processes --------------------------------------------------------------------------------------------------------


class _Step(nn.Module):
    """The objective as a module, which is what DDP wraps."""

    def __init__(self, model: Model, recipe: Recipe) -> None:
        super().__init__()
        self.model, self.recipe = model, recipe

    def forward(self, batch: Batch, noise: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        return objective(self.model, batch, self.recipe, noise)


def _laid_out(model: Model, recipe: Recipe, device: torch.device) -> nn.Module:
    """The step over all processes: weights whole in each (DDP), or in shares (FSDP), each block by itself."""
    step = _Step(model, recipe)
    if parallel.size() == 1:
        return step
    if recipe.train.shard:
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # it takes no other
        for block in model.blocks:
            fully_shard(block)
        fully_shard(model)
        for method in ("encode", "summarise", "decode"):
            register_fsdp_forward_method(model, method)
        return step
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(step, device_ids=[device.index] if device.type == "cuda" else None)


def _gradients(
    step_of: nn.Module, stream: Iterator[Batch], step: int, recipe: Recipe, device: torch.device
) -> tuple[dict[str, float], float, int]:
    """Those of the mean over the micro-batches: (loss and its parts over all processes, seconds waited, frames read).

    A process has its share of a loss, and DDP and FSDP take the mean of the gradients: so they are scaled.
    """
    times, world = recipe.train.accumulate, parallel.size()
    found: dict[str, list[Tensor]] = {}
    waited, frames = 0.0, torch.zeros((), dtype=torch.int64, device=device)
    for micro in range(times):
        began = time.perf_counter()
        batch = next(stream).to(device)
        waited += time.perf_counter() - began
        with _unsynced(step_of) if micro < times - 1 else nullcontext():
            loss, parts = step_of(batch, _noise(recipe.train.seed, step, micro, device))
            (loss * world / times).backward()
        for name, value in {"loss": loss, **parts}.items():
            found.setdefault(name, []).append(value.detach())
        frames += sum(each.present.flatten(2).any(-1).sum() for each in batch.inputs.values())
    # A part that some micro-batches lack, in all processes alike, is the mean of the others; the loss is of all.
    means = [
        torch.stack(each).mean() if name == "loss" else torch.stack(each).nanmean() for name, each in found.items()
    ]
    told = parallel.total(torch.stack([*means, frames.double()])).tolist()  # the one wait for the device
    return dict(zip(found, told, strict=False)), waited, int(told[-1])


def _unsynced(step_of: nn.Module):  # type: ignore[no-untyped-def]
    """Gradients of this micro-batch stay in the process; FSDP hands them round each time, which is the same sum."""
    from torch.nn.parallel import DistributedDataParallel

    return step_of.no_sync() if isinstance(step_of, DistributedDataParallel) else nullcontext()


def _noise(seed: int, step: int, micro: int, device: torch.device) -> torch.Generator:
    (state,) = np.random.SeedSequence([seed, step, micro]).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state >> np.uint64(1)))


def _clipped(model: Model, most: float) -> float:
    """Clip the gradient to that norm; what it was."""
    norm = nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], most)
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


# --- the objective ----------------------------------------------------------------------------------------------------


def objective(
    model: Model, batch: Batch, recipe: Recipe, noise: torch.Generator
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Equation 3 on one batch: (loss, its terms unweighted by name; nan for a source that the batch lacks).

    One encode serves all targets of the teacher; one the student, who lost what `batch.student` says. Everything on
    the generator's device. In several processes each has its share of the loss and of its terms.

    Where the paper is silent, our choice: uniformity is the mean over the fields of all periods of the batch (the
    targets', the text's and the student's); only every `loss.student_every`-th sample has a student.
    """
    some = slice(None, None, recipe.loss.student_every)
    student = {name: frames.without(batch.student.drops[name]).at(some) for name, frames in batch.inputs.items()}
    period = batch.student.valid
    with torch.autocast(noise.device.type, torch.bfloat16, enabled=recipe.train.dtype == "bfloat16"):
        encoded, student_encoded = model.encode(batch.inputs), model.encode(student)
        asked = [*batch.valid.values(), *([batch.text.valid] if batch.text else []), period]
        fields = model.summarise(encoded, torch.stack(asked, dim=1)).unbind(1)
        shown = model.summarise(student_encoded, period[some, None])[:, 0]
        errors, there = {}, {}
        for name in batch.targets:
            errors[name], there[name] = _error(model, name, fields, encoded.seen, batch, recipe, noise)
        both = encoded.seen[some] & student_encoded.seen
        others = {
            "uniformity": torch.stack([losses.uniformity(field, encoded.seen, batch.apart) for field in fields]).mean(),
            "consistency": losses.consistency(fields[-1][some], shown, both),
        }
        told = torch.tensor(True, device=noise.device)
        if batch.text is not None:
            others["text"] = captioned(model, batch.text, fields[-2], encoded.seen)
            told = parallel.total(batch.text.there.sum()) > 1  # one text alone is told from no other
    loss = losses.total(errors, {name: SOURCES[name].weight for name in errors}, there, others, recipe.loss)
    lacking = there | ({"text": told} if batch.text is not None else {})
    parts = {**errors, **others}
    return loss, parts | {name: torch.where(has, parts[name], torch.nan) for name, has in lacking.items()}


def _error(
    model: Model,
    name: str,
    fields: Sequence[Float[Tensor, "b d h w"]],
    seen: Bool[Tensor, "b h w"],
    batch: Batch,
    recipe: Recipe,
    noise: torch.Generator,
) -> tuple[Float[Tensor, ""], Bool[Tensor, ""]]:
    """How far a source's targets are from what the decoder makes of the fields, and whether there is any target.

    The paper draws one target of a source, and decodes it from the field of its own period. Our choice: of an input
    source `loss.targets` are held out, and each is decoded from the fields of all sources' periods that hold its
    instant, at the same pixels; they are there, and more of them learn to tell the whole period. A field counts by the
    clear pixels that it answers for, and `loss.pixels` of each target are decoded, not all.
    """
    source, frames = SOURCES[name], batch.targets[name]
    k, target = frames.time.shape[1], frames.rows()
    weight = target.weight[:, 0] * seen.repeat_interleave(k, 0)
    side = max(1.0, source.regrid / batch.gsd)
    cells = losses.cells(weight, noise, side=side, pixels=recipe.loss.pixels)
    shares, means = [], []
    for field, valid in zip(fields, batch.valid.values(), strict=False):
        valid = valid.repeat_interleave(k, 0)
        inside = (target.time[:, 0] >= valid[:, 0]) & (target.time[:, 0] < valid[:, 1])
        vectors = losses.at(field, cells.index.unflatten(0, (-1, k)).flatten(1, 2))
        drawn = sample_vmf(vectors.unflatten(1, (k, -1)).flatten(0, 1).flatten(1, 2), recipe.model.kappa, noise)
        answer = model.decode(name, drawn, target.time[:, 0], valid, target.meta[:, 0])
        predicted = answer.to(field.dtype).unflatten(1, cells.index.shape[1:])
        held = replace(cells, clear=cells.clear * inside)
        shares.append(parallel.total(held.clear.sum()))
        means.append(mismatch(source, predicted, target, weight, held, int(source.shift // batch.gsd)))
    share = torch.stack(shares)
    error = (torch.stack(means) * share).sum() / share.sum().clamp(min=1e-6)
    return error, share.sum() > 0


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
