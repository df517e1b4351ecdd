"""The fields to be judged, and what is at hand of how they were made: runs, cubes, recipes, labels beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aefcli import checkpoint, probe, recipe
from aefcli.checkpoint import Run
from aefcli.cube import Cube, open_cube
from aefcli.errors import BadInput
from aefcli.extent import Period
from aefcli.judge.outcome import BASELINES
from aefcli.published import Vectors, open_vectors
from aefcli.several import outside


@dataclass(frozen=True)
class Field:
    """A field to be judged, and the run that made it, if that is at hand."""

    name: str
    vectors: Vectors
    run: Run | None
    unread: str = ""  # why the run of the name of the one that made it cannot be read

    @property
    def ours(self) -> bool:
        return "aef:recipe" in self.vectors.attrs


def opened_fields(fields: Sequence[Path], run: Run | None, period: Period | None) -> list[Field]:
    """The fields by the names of their rows: the store's own, or its path where another row has that name too."""
    own = [path.name.removesuffix(".zarr").removesuffix(".tif") for path in fields]
    taken = [*own, *BASELINES]
    names = [name if taken.count(name) == 1 else str(path) for name, path in zip(own, fields, strict=True)]
    opened = [(name, path, open_vectors(path, period)) for name, path in zip(names, fields, strict=True)]
    return [Field(name, vectors, *_run_of(path, vectors, run)) for name, path, vectors in opened]


def _run_of(path: Path, vectors: Vectors, given: Run | None) -> tuple[Run | None, str]:
    """The run that made a field, by its identity: the one given, one of `runs` beside it, or the shipped one; or why
    one of that name cannot be read. Other runs are passed over unread.
    """
    made_by = vectors.attrs.get("aef:model")
    if not isinstance(made_by, Mapping):
        return None, ""
    if given:
        if checkpoint.identity(given) == made_by:
            return given, ""
        raise BadInput(f"--model {given.path} did not make {path}", "name the run that made it, or leave --model out")
    return checkpoint.made_by(made_by, outside(path).resolve().parent / "runs")


def described(one: Field) -> str:
    made_by = one.vectors.attrs.get("aef:model")
    plan = f", recipe {str(made_by.get('recipe'))[:12]}" if one.ours and isinstance(made_by, Mapping) else ""
    return f"{one.vectors.path}{plan}, {', '.join(map(str, one.vectors.periods))}"


def find_labels(fields: Sequence[Path], cube_path: Path | None, period: Period | None = None) -> Path:
    """labels.parquet, .geojson, .gpkg or .csv beside the field; else beside the catalog on disk of its cube."""
    for path in fields:
        if found := probe.find_labels(outside(path).resolve().parent):
            return found
    cube = own_cube(open_vectors(fields[0], period), cube_path)
    catalog = Path((cube.attrs.get("aef:request") or {}).get("catalog") or "") if cube else Path()
    if catalog.is_file() and (found := probe.find_labels(catalog.resolve().parent)):
        return found
    raise BadInput(
        f"there are no labels beside {fields[0]} (labels.parquet, .geojson, .gpkg or .csv)",
        "name a table with --labels; aef simulate makes one",
    )


def own_cube(first: Vectors, given: Path | None) -> Cube | None:
    """The cube asked for, else the one that the first field was made of, else cube.zarr beside it, else none."""
    if given is not None:
        return open_cube(given)
    recorded, usual = first.attrs.get("aef:cube"), outside(first.path).resolve().parent / "cube.zarr"
    for path in ([first.path.resolve().parent / str(recorded)] if recorded else []) + [usual]:
        if path.exists():
            return open_cube(path)
    return None


def own_plan(opened: Sequence[Field]) -> tuple[recipe.Recipe | None, list[str]]:
    """The recipe of the first field that has one, for the untrained network; or a note of why it cannot be read."""
    text = next((str(one.vectors.attrs["aef:recipe"]) for one in opened if one.ours), None)
    if text is None:
        return None, []
    try:
        return recipe.parse(text, "the recipe in the field"), []
    except BadInput as error:
        return None, [f"untrained is left out: {error.what}"]
