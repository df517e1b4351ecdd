"""The model card of a run: what it learned from, how large it is, how it was trained, what it scored, where it ends.

Owns the words. Reads the run's folder alone (recipe, data, samples, environment, log), so that a card can be written
anew wherever a run has been copied to. What the folder does not say, the card says is not recorded.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aefcli import checkpoint, cost
from aefcli.extent import Period
from aefcli.guards import spread
from aefcli.ledger import write_atomically
from aefcli.sources import LICENCES, SIMULATED

if TYPE_CHECKING:
    from aefcli.checkpoint import Run
    from aefcli.recipe import Recipe

_UNKNOWN = "not recorded"
_MOST = 20  # cubes that are listed one by one
_MEASURES = {
    "uniformity": "mean \\|cosine\\| between places; {even:.3f} if spread evenly, 1 if collapsed",
    "rank": "effective rank of the embeddings, of {d}",
    "phase": "share of variance by the place in the 2x2 cell; should be below 0.01",
    "r2/composite": "R2 of seasonal medians of Sentinel-2 by a linear probe taught at other windows, perhaps near",
    "r2/harmonics": "R2 of its first three annual harmonics, likewise",
}


def write(run: Run) -> Path:
    """Write card.md into the run's folder, over one that is there; its path. Raises BadInput if it is no run."""
    recipe = run.recipe
    data, made = _read(run.data), _read(run.environment)
    log = checkpoint.records(run)
    parts = [
        _head(run, recipe, data, made),
        _use(run),
        _data(run, recipe, data),
        _sizes(recipe),
        _training(recipe, data, made, log),
        _scores(recipe, data, log),
        _limits(recipe, data, log),
    ]
    path = run.path / "card.md"
    write_atomically(path, ("\n\n".join(parts) + "\n").encode())
    return path


def _read(path: Path) -> dict[str, Any]:
    """A document of the run, or nothing where it has none yet."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _head(run: Run, recipe: Recipe, data: Mapping[str, Any], made: Mapping[str, Any]) -> str:
    weights = f", weights {checkpoint.identity(run)['weights']}" if run.weights.is_file() else ", not finished"
    d = recipe.model.embedding
    warning = "**It learned from simulated landscapes, not from the Earth.** " if _made_up(data) else ""
    return (
        f"# {run.path.resolve().name}\n\n"
        f"A model that embeds satellite series: {d} numbers of unit length per pixel, for any valid period. "
        f"{warning}Its architecture is that of AlphaEarth Foundations (arXiv 2507.22291); its weights are not, and no "
        "output of that model was used.\n\n"
        f"Recipe {recipe.name}, hash {recipe.hash}{weights}, aef {made.get('aef', _UNKNOWN)}."
    )


def _use(run: Run) -> str:
    path, here = run.path.resolve(), Path.cwd()
    model = path.relative_to(here) if path.is_relative_to(here) else path.name
    return (
        "## How to use\n\n"
        f"    aef embed cube.zarr --period 2024 --model {model}\n"
        "    aef eval embeddings.zarr --labels labels.csv\n\n"
        "The cube is one that `aef fetch` made, with at least one of the inputs below, of pixels of the size below. "
        "Vectors are features for probes and searches; vectors of two models do not compare."
    )


# --- data -------------------------------------------------------------------------------------------------------------


def _data(run: Run, recipe: Recipe, data: Mapping[str, Any]) -> str:
    cubes = data.get("cubes", [])
    rows = [_cube(cube) for cube in cubes[:_MOST]]
    more = f"\n\n... and {len(cubes) - _MOST} more." if len(cubes) > _MOST else ""
    listed = _table(("cube", "place", "size", "period", "world"), rows) if cubes else f"Cubes: {_UNKNOWN}."
    return f"## Data\n\n{listed}{more}\n\n{_samples(run)}\n\n{_sources(recipe, data)}"


def _cube(cube: Mapping[str, Any]) -> tuple[str, ...]:
    from pyproj import CRS

    rows, columns = cube["shape"]
    place = CRS.from_user_input(cube["crs"]).name
    if "bbox" in cube:
        place += ", " + " ".join(f"{value:.3f}" for value in cube["bbox"])
    area = rows * columns * (cube["gsd"] / 1000) ** 2
    size = f"{rows} x {columns} px of {cube['gsd']:g} m, {area:,.3g} km2"
    world = {True: "simulated", False: "real", None: _UNKNOWN}[cube.get("simulated")]
    return Path(cube["path"]).name, place, size, str(Period(*cube["period"])), world


def _samples(run: Run) -> str:
    """Sites, windows and supports of the table of samples, by split."""
    if not (run.path / "samples.parquet").is_file():
        return f"Samples: {_UNKNOWN}."
    import pandas as pd

    table = pd.read_parquet(run.path / "samples.parquet")
    rows = []
    for split, part in table.groupby("split", sort=True):
        years = np.array([part["start"].min(), part["end"].max()], dtype="datetime64[ms]").astype("datetime64[D]")
        rows.append((split, part["site"].nunique(), len(part), f"{years[0]} to {years[1]}"))
    return _table(("split", "sites", "samples", "supports within"), rows)


def _made_up(data: Mapping[str, Any]) -> bool:
    """Whether all cubes are of simulated worlds."""
    return {cube.get("simulated") for cube in data.get("cubes", [])} == {True}


def _sources(recipe: Recipe, data: Mapping[str, Any]) -> str:
    """Every source of the recipe: how it was used, what there was of it, and whose it is."""
    cubes = data.get("cubes", [])
    rows = []
    for name in (*recipe.data.sources, *recipe.data.targets):
        held = [cube["sources"][name] for cube in cubes if name in cube["sources"]]
        frames = sum(one["frames"] for one in held)
        collections = dict.fromkeys(each for one in held for each in one["collections"])
        role = "read and decoded" if name in recipe.data.sources else "decoded in training"
        if not held and name != "text":
            role = "absent from the data"
        told = SIMULATED if _made_up(data) else LICENCES[name]
        rows.append((name, role, frames or "", ", ".join(collections) or _UNKNOWN, told))
    return _table(("source", "role", "frames", "collections", "licence of the source"), rows)


# --- sizes and training -----------------------------------------------------------------------------------------------


def _sizes(recipe: Recipe) -> str:
    counts = cost.parameters(recipe.model, recipe.data.sources, recipe.data.targets)
    rows = [(part, f"{count:,}") for part, count in counts.items() if part != "total"]
    return (
        f"## Sizes\n\n{counts['total']:,} parameters; the decoders serve training alone.\n\n"
        f"{_table(('part', 'parameters'), rows)}"
    )


def _training(
    recipe: Recipe, data: Mapping[str, Any], made: Mapping[str, Any], log: Sequence[Mapping[str, Any]]
) -> str:
    train, loss = recipe.train, recipe.loss
    done = log[-1]["step"] if log else 0
    seconds = sum(line["seconds"] for line in log)
    seen = made.get("samples_seen", done * train.batch * train.accumulate)
    old = data.get("from")
    fresh = f"weights fitted on {train.agree} batch{'es' * (train.agree != 1)}" if train.agree else "random weights"
    begun = f"the weights of {Path(old['path']).name} ({_words(old['model'])})" if old else fresh
    device = made.get("device", _UNKNOWN) + (f", {count} processes" if (count := made.get("processes", 1)) > 1 else "")
    weights = [(name, getattr(loss, name)) for name in ("reconstruction", "uniformity", "consistency", "text")]
    rows = [
        ("began from", begun),
        ("steps", f"{done:,} of {train.steps:,}"),
        ("samples seen", f"{seen:,}, {train.batch * train.accumulate} a step"),
        ("time", f"{seconds / 3600:.2f} h of steps" if seconds >= 3600 else f"{seconds / 60:.1f} min of steps"),
        ("device", device),
        (
            "optimiser",
            f"Adam, to {train.lr:g} over {train.warmup:,} steps, then linearly to 0; "
            f"all but the decoders after {train.settle:,} steps, to {train.encoder_lr:g}",
        ),
        ("norm of the gradient", f"at most {train.clip:g}"),
        ("precision of the arithmetic", train.dtype),
        ("seed", train.seed),
        *((f"weight of {name}", weight) for name, weight in weights if name != "text" or "text" in recipe.data.targets),
        (
            "held out per sample",
            f"{loss.targets} of each input; {loss.whole_support:g} of valid periods are the support",
        ),
    ]
    return f"## Training\n\n{_table(('what', 'value'), rows)}"


def _words(model: Mapping[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in model.items() if key != "run")


# --- scores and limits ------------------------------------------------------------------------------------------------


def _last_look(log: Sequence[Mapping[str, Any]]) -> tuple[int, Mapping[str, float]]:
    found = [(int(line["step"]), line["look"]) for line in log if line.get("look")]
    return found[-1] if found else (0, {})


def _held_out(data: Mapping[str, Any]) -> bool:
    return bool(data.get("samples", {}).get("validation"))


def _scores(recipe: Recipe, data: Mapping[str, Any], log: Sequence[Mapping[str, Any]]) -> str:
    step, numbers = _last_look(log)
    if not numbers:
        return "## Scores\n\nNone: nothing was measured yet."
    d = recipe.model.embedding
    rows = []
    for name, value in numbers.items():
        kind, _, source = name.partition("/")
        if kind == "l1":
            median = numbers.get(f"median/{source}")
            beside = "" if median is None else f"; of the pixel's median over the inputs {median:.3f}"
            rows.append((f"L1 of {source}", f"{value:.3f}", f"sigmas, frames held out{beside}"))
        elif kind == "cross-entropy":
            rows.append((f"cross-entropy of {source}", f"{value:.3f}", "nats"))
        elif name in _MEASURES:
            what = _MEASURES[name].format(even=spread(d), d=d)
            rows.append((name.replace("/", " "), f"{value:.3g}", what))
    where = "sites held out from training" if _held_out(data) else "sites that it was trained on: none were held out"
    if seen := (data.get("from") or {}).get("seen"):
        where += f", {seen} of which the run that it began from was trained on"
    return f"## Scores\n\nAt step {step}, of {where}.\n\n{_table(('measure', 'value', 'what it is'), rows)}"


def _limits(recipe: Recipe, data: Mapping[str, Any], log: Sequence[Mapping[str, Any]]) -> str:
    lines = [_world(data), *_before(data), *_ground(data), *_lacking(recipe, data), *_short(recipe, log)]
    lines.append("No task with labels was scored here, and one seed was trained: `aef eval` says what it is good for.")
    if _held_out(data):
        lines.append("Held-out sites lie in the same cubes as those of training: they do not stand for other regions.")
    else:
        lines.append("The scores above are of places that it was trained on; elsewhere they will be worse.")
    for kind, source, value, median in _beaten(log):
        lines.append(f"On {source} its {kind} of {value:.3f} is no better than the pixel's median ({median:.3f}).")
    lines.append(
        "Supports are a year at most in training: longer ones, and valid periods far outside of one, are untried."
    )
    lines.append("It never sees coordinates, and clouds it has to tell by itself: no cloud mask is used at inference.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _world(data: Mapping[str, Any]) -> str:
    kinds = {cube.get("simulated") for cube in data.get("cubes", [])}
    if _made_up(data):
        return "It learned from simulated landscapes alone. What it makes of the real Earth is unknown."
    if kinds == {False}:
        return "It learned from real acquisitions."
    if True in kinds:
        return "Some of what it learned from is simulated landscapes."
    return "Whether its cubes are of the real Earth or simulated is not recorded: ask who trained it."


def _before(data: Mapping[str, Any]) -> list[str]:
    old = data.get("from")
    return (
        [f"It began with the weights of {Path(old['path']).name}, whose card says what those had learned from."]
        if old
        else []
    )


def _ground(data: Mapping[str, Any]) -> list[str]:
    cubes = data.get("cubes", [])
    if not cubes:
        return []
    area = sum(math.prod(cube["shape"]) * (cube["gsd"] / 1000) ** 2 for cube in cubes)
    years = Period(min(cube["period"][0] for cube in cubes), max(cube["period"][1] for cube in cubes))
    count = "one cube" if len(cubes) == 1 else f"{len(cubes)} cubes"
    return [
        f"It has seen {count}, {area:,.3g} km2 in all, within {years}. Land covers, climates, seasons and years beyond "
        "these are untried, and so are pixels of another size."
    ]


def _lacking(recipe: Recipe, data: Mapping[str, Any]) -> list[str]:
    """What the recipe asks for and no cube had."""
    cubes = data.get("cubes", [])
    there = {name for cube in cubes for name in cube["sources"]}
    inputs, targets = (
        [name for name in names if name not in there and name != "text"]
        for names in (recipe.data.sources, recipe.data.targets)
    )
    told = []
    if cubes and inputs:
        told.append(f"It never read {_list(inputs)}, which no cube had: embed cubes without.")
    if cubes and targets:
        told.append(f"It learned nothing from {_list(targets)}: no cube had them.")
    return told


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _short(recipe: Recipe, log: Sequence[Mapping[str, Any]]) -> list[str]:
    done = log[-1]["step"] if log else 0
    return (
        [] if done >= recipe.train.steps else [f"Training stands at step {done} of {recipe.train.steps}: unfinished."]
    )


def _beaten(log: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, float, float]]:
    """Sources that the median of the pixel tells at least as well."""
    numbers = _last_look(log)[1]
    pairs = {name.removeprefix("median/"): value for name, value in numbers.items() if name.startswith("median/")}
    return [
        ("L1", name, numbers[f"l1/{name}"], value) for name, value in pairs.items() if numbers[f"l1/{name}"] >= value
    ]
