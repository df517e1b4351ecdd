"""A run on disk: weights, the recipe that made them, and where training stands.

    runs/nano-001/
      model.safetensors    weights of the finished run
      recipe.toml          the resolved recipe, with the statistics that its inputs are standardised by
      samples.parquet      where and when it learned, and what was held out
      data.json            the cubes, and the run that it began from; written last of what training begins with
      environment.json     versions, device, processes
      log.jsonl            a record per step
      state/               the newest two checkpoints: weights and optimiser after a step
      looks/, card.md      pictures by step, and the model card

One comes with the package, SHIPPED: weights, recipe, data.json and card alone. Owns the layout and its reading and
writing. Weights are safetensors: opening somebody's model runs no code.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from aefcli import recipe as recipes
from aefcli.errors import BadInput
from aefcli.ledger import write_atomically
from aefcli.model import Model, Pool, silent
from aefcli.parallel import agreed, rank
from aefcli.recipe import Recipe

_KEPT = 2  # checkpoints
_FIRST = ("recipe.toml", "samples.parquet")  # what lies in a run that has not quite begun


@dataclass(frozen=True)
class Run:
    """A run's folder. It is finished once it has its weights."""

    path: Path

    @property
    def name(self) -> str:
        """What finds it again: its path, or the bare name of the shipped one."""
        return self.path.name if self.shipped else str(self.path)

    @property
    def shipped(self) -> bool:
        return self.path.resolve() == SHIPPED.path.resolve()

    @property
    def weights(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def log(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def states(self) -> Path:
        return self.path / "state"

    @property
    def samples(self) -> Path:
        return self.path / "samples.parquet"

    @property
    def data(self) -> Path:
        return self.path / "data.json"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def recipe(self) -> Recipe:
        file = self.path / "recipe.toml"
        if not file.is_file():
            raise BadInput(f"{self.path} is no run: it has no recipe.toml", "aef train makes one")
        return recipes.parse(file.read_text(), str(file))


SHIPPED = Run(Path(str(resources.files("aefcli"))) / "shipped" / "nano")  # `make shipped` trains it


def new_run(out: Path | None, recipe: Recipe) -> Run:
    """A fresh folder for a run: `out`, which must not hold one, or the next free runs/<recipe>-<number>."""
    if out is None:
        taken = [
            int(match.group(1)) for path in Path("runs").glob(f"{recipe.name}-*") if (match := _number(path, recipe))
        ]
        out = Path("runs") / f"{recipe.name}-{max(taken, default=0) + 1:03d}"
    if out.exists() and not _unbegun(out, recipe):
        raise BadInput(f"{out} exists and is not empty", "choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "recipe.toml", recipe.to_toml().encode())
    return Run(out)


def _unbegun(out: Path, recipe: Recipe) -> bool:
    """Whether a folder holds no more than this recipe's run leaves where it is cut off before it has begun."""
    names = {path.name for path in out.iterdir()} if out.is_dir() else {""}
    if not names <= {*_FIRST, *(f"{name}.part" for name in (*_FIRST, "data.json"))}:
        return False
    known = out / "recipe.toml"
    return not known.exists() or known.read_text() == recipe.to_toml()


def _number(path: Path, recipe: Recipe) -> re.Match[str] | None:
    return re.fullmatch(re.escape(recipe.name) + r"-(\d+)", path.name)


def unfinished_run(out: Path | None, folder: Path = Path("runs")) -> Run:
    """`out`, or the run that was begun last and has no weights yet."""
    runs = [Run(path.parent) for path in folder.glob("*/data.json")] if out is None else [Run(out)]
    runs = [run for run in runs if run.data.is_file() and (out or not run.weights.is_file())]
    if not runs:
        where = f"no unfinished run in {folder}" if out is None else f"no run at {out}"
        raise BadInput(f"there is {where}", "train without --resume, or name the run by --out")
    return max(runs, key=lambda run: (run.data.stat().st_mtime_ns, run.path.name))


def newest_run(folder: Path = Path("runs")) -> Run:
    """The run that finished last; where none was begun, the shipped one. Refuses to pass over an unfinished one."""
    runs = [Run(path) for path in folder.glob("*") if Run(path).weights.is_file()]
    if runs:
        return max(runs, key=lambda run: (run.weights.stat().st_mtime_ns, run.path.name))
    if begun := sorted(folder.glob("*/data.json")):
        hint = f"aef train --resume finishes it; or name a model, such as --model {SHIPPED.name}"
        raise BadInput(f"{begun[-1].parent} is not finished", hint)
    return SHIPPED


def open_run(path: Path) -> Run:
    """The finished run in a folder; or the shipped one by its name, where no folder here has that name."""
    run = SHIPPED if str(path) == SHIPPED.name and not path.exists() else Run(path)
    if not run.weights.is_file():
        hint = f"give the folder of a finished run, or {SHIPPED.name} for the model that comes with aef"
        raise BadInput(f"{path} holds no model.safetensors" if path.exists() else f"there is no {path}", hint)
    return run


def save_weights(path: Path, model: Model, recipe: Recipe, step: int) -> None:
    """Those of a finished run, by the first process; all of them must call."""
    tensors = _whole(model)
    if rank() == 0:
        metadata = {"recipe": recipe.to_toml(), "recipe_hash": recipe.hash, "step": str(step)}
        write_atomically(path, save(_plain(tensors), metadata))


def save_state(run: Run, recipe: Recipe, model: Model, optimiser: torch.optim.Optimizer, step: int) -> None:
    """A checkpoint, by the first process; all of them must call. One file, so that its parts cannot disagree, written
    aside and renamed; the newest two are kept.

    It holds all that a run goes on from: what is drawn hangs on the recipe's seed and the step.
    """
    tensors = {f"model.{name}": tensor for name, tensor in _whole(model).items()}
    for name, state in _adam(model, optimiser).get("state", {}).items():
        tensors |= {f"adam.{name}.{key}": torch.as_tensor(value) for key, value in state.items()}
    if rank() > 0:
        return
    plain = _plain(tensors)
    metadata = {"recipe_hash": recipe.hash, "step": str(step), "checksum": _checksum(plain)}
    run.states.mkdir(exist_ok=True)
    write_atomically(run.states / f"{step:08d}.safetensors", save(plain, metadata))
    for old in sorted(run.states.glob("*.safetensors"))[:-_KEPT]:
        old.unlink()


def restore(run: Run, recipe: Recipe, model: Model, optimiser: torch.optim.Optimizer) -> int:
    """Bring both to the newest checkpoint that is whole; its step, or 0 where there is none. The log ends there too."""
    found = agreed(newest_state(run, recipe) if rank() == 0 else None)
    if rank() == 0:
        _cut_log(run, found[1] if found else 0)
    if found is None:
        return 0
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    tensors, step = found
    weights = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
    _check_fits(run.states, weights, model)
    states: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("adam."):
            parameter, key = name.removeprefix("adam.").rsplit(".", 1)
            states.setdefault(parameter, {})[key] = tensor
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = [{**group, "params": [names[each] for each in group["params"]]} for group in optimiser.param_groups]
    adam: Any = {"state": states, "param_groups": groups}
    whole = StateDictOptions(full_state_dict=True)
    set_state_dict(model, optimiser, model_state_dict=weights, optim_state_dict=adam, options=whole)
    for weight, state in optimiser.state.items():  # fused Adam goes through memory: laid out as the weights are
        for key, value in state.items():
            if value.shape == weight.shape:
                state[key] = torch.empty_like(weight).copy_(value)
    return step


def newest_state(run: Run, recipe: Recipe) -> tuple[dict[str, Tensor], int] | None:
    """The tensors and the step of the newest checkpoint that is whole. Refuses one of another recipe."""
    for path in sorted(run.states.glob("*.safetensors"), reverse=True):
        try:
            tensors, metadata = _read(path)
        except BadInput:
            continue
        if metadata.get("checksum") != _checksum(tensors):
            continue
        if metadata["recipe_hash"] != recipe.hash:
            raise BadInput(
                f"{path} was made by recipe {metadata['recipe_hash']}, not {recipe.hash}",
                "train a new run without --resume",
            )
        return tensors, int(metadata["step"])
    return None


# torch's own way to whole tensors, in one process, under DDP and under FSDP; its import takes a second.


def _whole(model: Model) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def _adam(model: Model, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    return get_optimizer_state_dict(model, optimiser, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """CRC-32C of all bytes in the order of the names."""
    import google_crc32c

    found = 0
    for name in sorted(tensors):
        raw = tensors[name].contiguous().flatten().view(torch.uint8).numpy()
        found = google_crc32c.extend(found, raw.tobytes())
    return f"{found:08x}"


def _cut_log(run: Run, step: int) -> None:
    """Without the records after a step, and without a line that was cut off."""
    kept = [line for line in records(run) if line["step"] <= step]
    write_atomically(run.log, "".join(json.dumps(line) + "\n" for line in kept).encode())


def records(run: Run) -> list[dict[str, Any]]:
    """The log, without a last line that was cut off."""
    lines = run.log.read_text().splitlines(keepends=True) if run.log.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def build(recipe: Recipe) -> Model:
    """The recipe's network with fresh weights, drawn from its seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)
        model = Model(recipe.model, recipe.data.sources, recipe.data.targets)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def build_from(run: Run, recipe: Recipe) -> Model:
    """The recipe's network with a finished run's weights, as far as both have a part: fresh stems, pools and decoders
    where it has a source that the run had not. Refuses sizes that differ.
    """
    for name, wanted in recipe.model.model_dump().items():
        if name not in ("text", "kappa") and (other := getattr(run.recipe.model, name)) != wanted:
            raise BadInput(
                f"{run.path} has model.{name} = {other}, the recipe {wanted}", f"give --set model.{name}={other}"
            )
    model, old = build(recipe), load(run).state_dict()
    new = model.state_dict()
    same = {name: tensor for name, tensor in old.items() if name in new and new[name].shape == tensor.shape}
    model.load_state_dict(new | same)
    theirs, ours = set(run.recipe.data.sources), set(recipe.data.sources)
    pools = {name: cast(Pool, pool) for name, pool in model.summariser.pools.items()}
    with torch.no_grad():  # embeddings stay where they were: what is gone shows nothing, what is new nothing yet
        for name in theirs - ours:
            model.summariser.level.add_(old[f"summariser.pools.{name}.usual"])
            for other in ours & theirs:
                instead = f"summariser.pools.{other}.instead.{name}"
                pools[other].fine.weight.add_(old[f"{instead}.weight"])
                pools[other].usual.sub_(old[f"{instead}.bias"])
                model.summariser.level.add_(old[f"{instead}.bias"])
        for name in ours - theirs:
            pool = pools[name]
            silent(pool.coarse)
            silent(pool.fine)
    return model


def load(run: Run) -> Model:
    """The trained network of a finished run, in eval mode; refuses weights that do not fit its recipe."""
    recipe = run.recipe
    model = build(recipe)
    tensors, _ = _read(run.weights)
    _check_fits(run.weights, tensors, model)
    model.load_state_dict(tensors)
    return model.eval()


def _check_fits(path: Path, tensors: Mapping[str, Tensor], model: Model) -> None:
    """Refuse weights of a network that another version made of the same recipe."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if wanted != given:
        odd = sorted({name for name in {*wanted, *given} if wanted.get(name) != given.get(name)})[0]
        raise BadInput(
            f"{path} does not fit its recipe: {odd} is {given.get(odd)}, not {wanted.get(odd)}",
            "train again with this version",
        )


def identity(run: Run) -> dict[str, str]:
    """What names the model in everything that it makes: its recipe's hash and the hash of its weights.

    Of the tensors, not of the file: two files of the same tensors differ in the order of their header.
    """
    state = run.weights.stat() if run.weights.is_file() else None
    known = (state.st_ino, state.st_size, state.st_mtime_ns) if state else None
    return {"run": run.path.name, "recipe": run.recipe.hash, "weights": _digest_of(run.weights, known)}


@lru_cache(maxsize=16)
def _digest_of(weights: Path, state: tuple[int, ...] | None) -> str:
    """That of a weights file as it is now; asked for several times in a run, and seconds for a large one."""
    return _digest(_read(weights)[0])


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes in the order of the names; its first 16 digits."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def made_by(known: Mapping[str, object], folder: Path) -> tuple[Run | None, str]:
    """The run of this identity, one of `folder` or the shipped one; or why one of its name cannot be read.

    Other runs are passed over unread.
    """
    unread = ""
    for run in [*map(Run, sorted(folder.glob("*"))), SHIPPED]:
        if run.path.name != known.get("run") or not run.weights.is_file():
            continue
        try:
            if identity(run) == known:
                return run, ""
        except BadInput as error:
            unread = error.what
    return None, unread


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
