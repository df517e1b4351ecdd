"""How a run begins and how it goes on: from cubes and a recipe, or from its folder, to all that training asks for.

Owns what is settled before the first step (samples, statistics, texts, weights to begin from) and written into the
run: `train` finds it the same at every start, in every process.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aefcli import checkpoint, ledger, parallel, sample
from aefcli.checkpoint import Run
from aefcli.cube import Cube, open_cube
from aefcli.errors import BadInput
from aefcli.recipe import Recipe
from aefcli.sample import Samples

if TYPE_CHECKING:
    import torch

    from aefcli.model import Model
    from aefcli.text import Texts


@dataclass(frozen=True)
class Start:
    """All that training asks for."""

    run: Run
    recipe: Recipe  # resolved: with the statistics of all that it standardises
    cubes: Sequence[Cube]
    samples: Samples
    texts: Texts | None = None
    notes: tuple[str, ...] = ()

    @property
    def old(self) -> Run | None:
        """The run that this one began from; it may have gone since."""
        told = _data(self.run)["from"]
        return told and Run(Path(told["path"]))

    def model(self) -> Model:
        """Weights of the run that this one began from, or fresh ones."""
        if self.old is None:
            return checkpoint.build(self.recipe)
        old = checkpoint.open_run(self.old.path)
        if checkpoint.identity(old) != _data(self.run)["from"]["model"]:
            raise BadInput(f"{old.path} is not the run that {self.run.path} began from", "train a new run")
        return checkpoint.build_from(old, self.recipe)


def begin(
    out: Path | None,
    cubes: Sequence[Cube],
    recipe: Recipe,
    *,
    old: Run | None = None,
    samples: Path | None = None,
    texts: Texts | None = None,
) -> Start:
    """A new run in `out`, by default the next runs/<recipe>-NNN.

    Samples are drawn unless a table of them is given. Statistics are the recipe's; of sources that it has none for,
    those of the run that it begins from; else those of the training samples. The first process does all of it.
    """
    if parallel.rank() > 0:
        return go_on(Run(parallel.agreed(None)), cubes, texts=texts)
    sample.check(cubes, recipe)
    texts, notes = _texts(texts, recipe, cubes)
    if old is not None:
        recipe = recipe.replace(statistics={**_dumped(old.recipe), **_dumped(recipe)})
        checkpoint.build_from(old, recipe)  # refused before anything is written
    table = Samples.load(samples, cubes, recipe) if samples else sample.draw(cubes, recipe, texts)
    measured = sample.measure(cubes, table, recipe)
    recipe = recipe.replace(statistics={name: moments.model_dump(mode="json") for name, moments in measured.items()})
    run = checkpoint.new_run(out, recipe)
    table.save(run.samples)
    data = {
        "cubes": [_about(cube) for cube in cubes],
        "samples": {split: len(table.of(split)) for split in ("train", "validation")} | {"sites": len(set(table.site))},
        "texts": _of_texts(texts),
        "from": old
        and {
            "path": str(old.path.resolve()),
            "model": checkpoint.identity(old),
            "seen": len(_seen(old, table)),
        },
        "worlds": sorted({*filter(None, map(_world, cubes)), *(worlds(old) if old else ())}),
    }
    ledger.write_atomically(run.data, json.dumps(data, indent=1).encode())  # last: with it the run can be gone on with
    parallel.agreed(run.path)
    return Start(run, recipe, cubes, table, texts, (*notes, *_lacking(recipe, cubes, table), *_flattered(data)))


def go_on(
    run: Run, cubes: Sequence[Cube] | None = None, recipe: Recipe | None = None, texts: Texts | None = None
) -> Start:
    """What `begin` made of a run, from its folder. Cubes, recipe and texts, where they are given, must be the run's."""
    known, data = run.recipe, _data(run)
    if recipe is not None and (odd := _difference(known, recipe)):
        raise BadInput(f"{run.path} was begun with {odd}", "leave --recipe and --set out, or train a new run")
    cubes = cubes or [open_cube(Path(about["path"])) for about in data["cubes"]]
    if [cube.key for cube in cubes] != [about["key"] for about in data["cubes"]]:
        raise BadInput(
            f"{run.path} was begun on other cubes than {', '.join(str(cube.path) for cube in cubes)}",
            f"it was {', '.join(about['path'] for about in data['cubes'])}",
        )
    texts, notes = _texts(texts or _texts_of(data), known, cubes)
    if "texts" in data and _key(_of_texts(texts)) != _key(data["texts"]):
        raise BadInput(
            f"{run.path} was begun with {'other' if data['texts'] else 'no'} texts", "give those, or train a new run"
        )
    table = Samples.load(run.samples, cubes, known)
    notes = (*notes, *_lacking(known, cubes, table), *_flattered(data), *_changed(cubes, data["cubes"]), *_moved(run))
    return Start(run, known, cubes, table, texts, notes)


def worlds(run: Run) -> tuple[tuple[str, int], ...]:
    """The made-up worlds that a run has learned from, with those of the runs that it began from: (version, seed).

    None where the run does not know: it is of an earlier version, or its cubes came from no catalog on disk.
    """
    told = _data(run).get("worlds", ()) if run.data.is_file() else ()
    return tuple((version, seed) for version, seed in told)


def environment(run: Run, device: torch.device, samples: int, seconds: float) -> None:
    """Write what a run is made with: versions, device, processes, samples that it saw, seconds that its steps took."""
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} CPU cores"
    about = {**_versions(), "device": name, "samples_seen": samples, "seconds": round(seconds, 1)}
    ledger.write_atomically(run.environment, json.dumps(about, indent=1).encode())


def _versions() -> dict[str, Any]:
    """What the bits of a run hang on beside its recipe, its data and the device."""
    from importlib.metadata import version

    import torch

    return {
        "aef": version("aefcli"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processes": parallel.size(),
        "threads": torch.get_num_threads(),
    }


def _seen(old: Run, table: Samples) -> set[str]:
    """The sites held out that another run was trained on; as far as sites are of one grid and size."""
    if not old.samples.is_file():
        return set()
    return {*table.of("validation").site} & {*Samples.read(old.samples).of("train").site}


def _flattered(data: dict[str, Any]) -> list[str]:
    """What to say where scores of places held out are of places that the weights have learned from before."""
    seen = (data["from"] or {}).get("seen")
    told = f"the run that this one began from was trained on {seen} of the sites held out: their scores flatter"
    return [told] if seen else []


def _of_texts(texts: Texts | None) -> dict[str, str | None] | None:
    return {"path": str(texts.path) if texts.path else None, "key": texts.key} if texts else None


def _key(about: dict[str, str | None] | None) -> str | None:
    return about["key"] if about else None


def _texts_of(data: dict[str, Any]) -> Texts | None:
    """Those of the table that a run was begun with, if it was with one."""
    from aefcli.text import read

    path = (data.get("texts") or {}).get("path")
    return read(Path(path)) if path else None


def _changed(cubes: Sequence[Cube], begun: Sequence[dict[str, Any]]) -> list[str]:
    """What to say of cubes that hold other values than when the run was begun."""
    return [
        f"{cube.path} has changed since the run began: it will not end in the bits of a run that was not interrupted"
        for cube, about in zip(cubes, begun, strict=True)
        if "content" in about and about["content"] != _content(cube)
    ]


def _content(cube: Cube) -> str | None:
    """A hash of what the cube's ledger says of its chunks; None where it has none."""
    record = ledger.read(cube.path)
    return ledger.digest({unit: line["files"] for unit, line in record.units.items()}) if record else None


def _moved(run: Run) -> list[str]:
    """What to say where a run goes on with other versions, processes or threads than it began with."""
    if not run.environment.is_file():
        return []
    began = json.loads(run.environment.read_text())
    changed = [f"{key} {began.get(key)}, now {value}" for key, value in _versions().items() if began.get(key) != value]
    told = f"begun with {', '.join(changed)}: it may not end in the bits of a run that was not interrupted"
    return [told] if changed else []


def _data(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run.data.read_text())
    return found


def _about(cube: Cube) -> dict[str, Any]:
    bbox = cube.attrs.get("aef:request", {}).get("bbox")
    return {
        **({"bbox": bbox} if bbox else {}),
        "path": str(cube.path.resolve()),
        "key": cube.key,
        "content": _content(cube),
        "crs": str(cube.grid.crs),
        "shape": list(cube.shape),
        "gsd": abs(cube.grid.resolution.x),
        "period": [cube.period.start, cube.period.end],
        "simulated": _simulated(cube),
        "sources": {
            name: {"frames": len(source.times), "collections": _collections(cube, name)}
            for name, source in cube.sources.items()
        },
    }


def _simulated(cube: Cube) -> bool | None:
    """Whether the cube was fetched from the archive of a made-up world; None where that is not known."""
    catalog = cube.attrs.get("aef:request", {}).get("catalog")
    if catalog is None or "://" in catalog:
        return None if catalog is None else False
    found = _catalog(cube)
    return None if found is None else "aef:simulate" in found


def _world(cube: Cube) -> tuple[str, int] | None:
    """The version and the seed of the made-up world that the cube was fetched from, if that can be told."""
    found = _catalog(cube) or {}
    seed = re.fullmatch(r"made-up-world-(\d+)", str(found.get("id")))
    return (str(found["aef:simulate"]), int(seed[1])) if seed and "aef:simulate" in found else None


def _catalog(cube: Cube) -> dict[str, Any] | None:
    """The catalog on disk that the cube was fetched from, if it is still there."""
    catalog = cube.attrs.get("aef:request", {}).get("catalog")
    if catalog is None or "://" in catalog:
        return None
    try:
        found = json.loads(Path(catalog).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _collections(cube: Cube, name: str) -> list[str]:
    """The collections that a source of a cube on disk was fetched from."""
    about = cube.path / name / "zarr.json"
    found = json.loads(about.read_text())["attributes"].get("aef:collection") if about.is_file() else None
    return [found] if found else []


def _dumped(recipe: Recipe) -> dict[str, Any]:
    return {name: moments.model_dump(mode="json") for name, moments in recipe.statistics.items()}


def _difference(known: Recipe, given: Recipe) -> str:
    """Where two recipes differ, but for statistics that one of them leaves to be measured."""
    ours, theirs = known.flat(), given.replace(statistics=_dumped(known) | _dumped(given)).flat()
    return "; ".join(f"{key} = {ours.get(key)}, not {value}" for key, value in theirs.items() if ours.get(key) != value)


def _texts(texts: Texts | None, recipe: Recipe, cubes: Sequence[Cube]) -> tuple[Texts | None, tuple[str, ...]]:
    """The texts given, else those that the cubes hold, checked against the recipe and the cubes; and what to say."""
    from aefcli.text import check, held

    if texts is None and "text" not in recipe.data.targets:
        return None, ()
    texts = texts or held(cubes)
    if texts is None:
        told = f"the recipe {recipe.name} has text among its targets, but neither --text nor the cubes hold any"
        return None, (told,)
    count = check(texts, recipe, cubes)
    return texts, (f"{count} of {len(texts)} texts lie on the cubes",)


def _lacking(recipe: Recipe, cubes: Sequence[Cube], table: Samples) -> list[str]:
    """What to say of what the recipe asks for and the data have none of."""
    held = {name for cube in cubes for name in cube.sources}
    told = [f"no cube has the target {name}" for name in recipe.data.targets if name not in {*held, "text"}]
    if not len(table.of("validation")):
        told.append("no site is held out: looks and the card's scores are of places that are trained on")
    return told
