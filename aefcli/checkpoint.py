"""A run on disk: weights, the recipe that made them, and where training stands.

    runs/nano-001/
      model.safetensors    weights of the finished run
      recipe.toml          the resolved recipe
      log.jsonl            a record per step
      state/               the newest checkpoint: weights, optimiser, step

Owns the layout and its reading and writing. Weights are safetensors: opening somebody's model runs no code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from aefcli import recipe as recipes
from aefcli.errors import BadInput
from aefcli.ledger import canonical, write_atomically
from aefcli.model import Model
from aefcli.recipe import Recipe
from aefcli.sources import statistics


@dataclass(frozen=True)
class Run:
    """A run's folder. It is finished once it has its weights."""

    path: Path

    @property
    def weights(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def log(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def recipe(self) -> Recipe:
        file = self.path / "recipe.toml"
        if not file.is_file():
            raise BadInput(f"{self.path} is no run: it has no recipe.toml", "aef train makes one")
        return recipes.parse(file.read_text(), str(file))


def new_run(out: Path | None, recipe: Recipe) -> Run:
    """A fresh folder for a run: `out`, which must not hold one, or the next free runs/<recipe>-<number>."""
    if out is None:
        taken = [
            int(match.group(1)) for path in Path("runs").glob(f"{recipe.name}-*") if (match := _number(path, recipe))
        ]
        out = Path("runs") / f"{recipe.name}-{max(taken, default=0) + 1:03d}"
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"{out} exists and is not empty", "choose another --out")
    (out / "state").mkdir(parents=True, exist_ok=True)
    write_atomically(out / "recipe.toml", recipe.to_toml().encode())
    return Run(out)


def _number(path: Path, recipe: Recipe) -> re.Match[str] | None:
    return re.fullmatch(re.escape(recipe.name) + r"-(\d+)", path.name)


def newest_run(folder: Path = Path("runs")) -> Run:
    """The run that finished last."""
    runs = [Run(path) for path in folder.glob("*") if Run(path).weights.is_file()]
    if not runs:
        raise BadInput(f"there is no finished run in {folder}", "aef train makes one, or name one with --model")
    return max(runs, key=lambda run: (run.weights.stat().st_mtime_ns, run.path.name))


def open_run(path: Path) -> Run:
    run = Run(path)
    if not run.weights.is_file():
        raise BadInput(f"--model {path} holds no model.safetensors", "give the folder of a finished run")
    return run


def save_weights(path: Path, model: Model, recipe: Recipe, step: int) -> None:
    metadata = {
        "recipe": recipe.to_toml(),
        "recipe_hash": recipe.hash,
        "statistics": canonical(_statistics(recipe)),
        "step": str(step),
    }
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(path, save(tensors, metadata))


def save_state(run: Run, model: Model, optimiser: torch.optim.Optimizer, recipe: Recipe, step: int) -> None:
    """The newest checkpoint, written aside and renamed: one file, so that its parts cannot disagree."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    names = [name for name, _ in model.named_parameters()]
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"adam.{names[index]}.{key}": torch.as_tensor(value) for key, value in state.items()}
    metadata = {"recipe_hash": recipe.hash, "step": str(step)}
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    write_atomically(run.path / "state" / "checkpoint.safetensors", save(contiguous, metadata))


def _statistics(recipe: Recipe) -> dict[str, object]:
    return {name: bands for name, bands in statistics().items() if name in (*recipe.data.sources, *recipe.data.targets)}


def build(recipe: Recipe) -> Model:
    """The recipe's network with fresh weights, drawn from its seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)
        model = Model(recipe.model, recipe.data.sources, recipe.data.targets)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def load(run: Run) -> Model:
    """The trained network of a finished run, in eval mode; refuses weights that do not fit its recipe."""
    recipe = run.recipe
    model = build(recipe)
    tensors, metadata = _read(run.weights)
    if metadata.get("statistics") != canonical(_statistics(recipe)):
        raise BadInput(
            f"{run.weights} was trained with other statistics of its sources", "train again with this version"
        )
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if wanted != given:
        odd = sorted({name for name in {*wanted, *given} if wanted.get(name) != given.get(name)})[0]
        raise BadInput(
            f"{run.weights} does not fit its recipe: {odd} is {given.get(odd)}, not {wanted.get(odd)}",
            "train again with this version",
        )
    model.load_state_dict(tensors)
    return model.eval()


def identity(run: Run) -> dict[str, str]:
    """What names the model in everything that it makes: its recipe's hash and the hash of its weights."""
    import hashlib

    with run.weights.open("rb") as handle:
        weights = hashlib.file_digest(handle, "sha256").hexdigest()[:16]
    return {"run": run.path.name, "recipe": run.recipe.hash, "weights": weights}


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a weights file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise BadInput(f"{path} is no safetensors file", "weights in other formats are not opened") from error


def append_record(run: Run, record: Mapping[str, object]) -> None:
    with run.log.open("a") as out:
        out.write(json.dumps(record) + "\n")
