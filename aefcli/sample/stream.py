"""The endless stream of training batches, and the fixed ones that are held out."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from itertools import count as count_from

from aefcli.batch import Batch
from aefcli.cube import Cube
from aefcli.errors import BadInput
from aefcli.recipe import Recipe
from aefcli.sample.ahead import read_ahead
from aefcli.sample.memory import Cubes
from aefcli.sample.plan import Plan, Work
from aefcli.sample.read import Reader
from aefcli.sample.table import Samples, check
from aefcli.text import Texts


def batches(
    cubes: Sequence[Cube],
    samples: Samples,
    recipe: Recipe,
    *,
    first: int = 1,
    rank: int = 0,
    world: int = 1,
    texts: Texts | None = None,
) -> Generator[Batch, None, None]:
    """Endless training batches, those of step `first` and on, each micro-batch of a step in its turn.

    Each has those of `train.batch` samples that fall to this one of `world` processes. What they hold hangs on the
    seed, the step, the micro-batch and the row in the batch of all processes alone. `texts` are drawn from where the
    recipe has text among its targets. Closing the iterator ends its thread and its processes. Raises BadInput where
    `check` does, and the errors of reading cubes.
    """
    check(cubes, recipe)
    if recipe.train.batch % world:
        raise BadInput(
            f"train.batch = {recipe.train.batch} is no multiple of {world} processes", "set one that is, or start fewer"
        )
    share, every = recipe.train.batch // world, recipe.loss.student_every
    if world > 1 and share % every:  # else others would have a student than in one process
        raise BadInput(
            f"{share} samples of train.batch a process are no multiple of loss.student_every = {every}",
            "set a larger batch, or start fewer",
        )
    micros, workers = recipe.train.accumulate, recipe.data.workers
    plan = Plan(samples.of("train"), cubes, recipe)

    def works() -> Iterator[Work]:
        for number in count_from((first - 1) * micros):
            step, micro = divmod(number, micros)
            yield plan.work(number, (1 + step, micro), rank, world)

    reader = Reader(Cubes(cubes, recipe, share=workers > 0), recipe, texts)
    return read_ahead(works(), reader, workers)


def validation(
    cubes: Sequence[Cube], samples: Samples, recipe: Recipe, count: int, texts: Texts | None = None
) -> list[Batch]:
    """`count` batches of the places that are held out, the same at every call; where the table has none, of those that
    are trained on.
    """
    held = samples.of("validation")
    plan = Plan(held if len(held) else samples.of("train"), cubes, recipe)
    reader = Reader(Cubes(cubes, recipe), recipe, texts)
    return [reader(plan.work(number, (0, number), 0, 1)) for number in range(count)]
