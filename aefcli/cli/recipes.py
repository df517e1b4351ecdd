"""The commands of recipes: list, show, validate, diff; and how other commands find one by its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aefcli.cli.app import Json, Quiet, Result, Set, app, lines
from aefcli.errors import BadInput, unknown

if TYPE_CHECKING:
    from aefcli.recipe import Recipe

group = typer.Typer(
    epilog="Example: aef recipe diff nano runs/nano-001; each has --json and -q, --quiet", rich_markup_mode=None
)
app.add_typer(group, name="recipe")

Named = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe's name, a TOML file, or a run's folder.", show_default=False)
]


@group.callback(invoke_without_command=True)
def _group(context: typer.Context) -> Result | None:
    """List, show, validate and compare recipes: experiments as TOML files."""
    return None if context.invoked_subcommand else Result("recipe", [], {}, context.get_help().splitlines())


@group.command("list", epilog="Example: aef recipe list")
def list_(json_: Json = False, quiet: Quiet = False) -> Result:
    """The recipes that come with aef."""
    from rich.table import Table

    from aefcli import cost
    from aefcli import recipe as recipes

    table, rows = Table(), []
    for column in ("recipe", "parameters", "patch", "frames", "steps", "batch"):
        table.add_column(column, justify="left" if column == "recipe" else "right")
    table.add_column("what it is")
    for name in recipes.names():
        plan, what = recipes.load(name), _what(name)
        size = cost.parameters(plan.model, plan.data.sources, plan.data.targets)["total"]
        frames, batch = sum(plan.data.frames), plan.train.batch * plan.train.accumulate
        cells = (f"{size:,}", str(plan.data.patch), str(frames), f"{plan.train.steps:,}", str(batch))
        table.add_row(name, *cells, what)
        sizes = {"parameters": size, "patch": plan.data.patch, "frames": frames, "steps": plan.train.steps}
        rows.append({"name": name, "recipe": plan.hash, **sizes, "batch": batch, "what": what})
    return Result("recipe", [], {"recipes": rows}, lines(table))


def _what(name: str) -> str:
    """The first sentence of a shipped recipe's header, without its name."""
    from aefcli.recipe import folder

    return (folder() / f"{name}.toml").read_text().splitlines()[0].removeprefix(f"# {name}: ")


@group.command(epilog="Example: aef recipe show nano --set train.lr=1e-3 > mine.toml")
def show(recipe: Named, set_: Set = None, json_: Json = False, quiet: Quiet = False) -> Result:
    """Print a recipe as TOML, with the comments that it opens with."""
    from aefcli import recipe as recipes

    plan = named(recipe)
    text = _file(recipe).read_text()
    if set_:
        plan = recipes.with_values(plan, set_)
        text = _header(text) + plan.to_toml()
    figures = {"name": plan.name, "recipe": plan.hash, "values": plan.model_dump(mode="json")}
    return Result("recipe", [], figures, text.splitlines())


def _header(text: str) -> str:
    """The comments that a recipe opens with, and the line below them."""
    rows = text.splitlines()
    end = next((number for number, row in enumerate(rows) if not row.startswith("#")), len(rows))
    return "".join(f"{row}\n" for row in [*rows[:end], ""]) if end else ""


@group.command(epilog="Example: aef recipe validate mine.toml")
def validate(recipe: Named, set_: Set = None, json_: Json = False, quiet: Quiet = False) -> Result:
    """Check a recipe: exit code 0, or 2 with one line."""
    from aefcli import recipe as recipes

    plan = recipes.with_values(named(recipe), set_ or [])
    return Result(
        "recipe", [], {"name": plan.name, "recipe": plan.hash}, [f"{recipe}: valid, {plan.name}, hash {plan.hash}"]
    )


@group.command(epilog="Example: aef recipe diff nano runs/nano-001")
def diff(
    one: Annotated[str, typer.Argument(metavar="A", help="A recipe's name, a TOML file, or a run's folder.")],
    other: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    json_: Json = False,
    quiet: Quiet = False,
) -> Result:
    """Values that two recipes have different, one a line."""
    first, second = named(one).flat(), named(other).flat()
    keys = [key for key in dict.fromkeys([*first, *second]) if first.get(key) != second.get(key)]
    rows = [(key, _toml(first, key), _toml(second, key)) for key in keys]
    wide, broad = (max((len(row[column]) for row in rows), default=0) for column in (0, 1))
    shown = [f"{key:{wide}}  {a:{broad}}  {b}" for key, a, b in rows]
    figures = {"different": {key: [first.get(key), second.get(key)] for key in keys}}
    return Result("recipe", [], figures, shown or [f"{one} and {other} are the same"])


def _toml(values: dict[str, object], key: str) -> str:
    """A value as a recipe has it, on one line; - where it is missing."""
    return json.dumps(values[key]) if key in values else "-"


def named(name: str, kinds: str = "run or recipe") -> Recipe:
    """The recipe of that name, in that TOML file, or in that run's folder; `kinds` is what else a name could mean."""
    from aefcli import recipe as recipes

    known, path = recipes.names(), Path(name)
    if name in known or name.endswith(".toml"):
        return recipes.load(name)
    if not path.is_dir():
        raise unknown(kinds, name, known, "or a run's folder, or the path of a .toml file")
    if not (path / "recipe.toml").is_file():
        inside = next(iter(sorted(path.glob("*.zarr"))), None)
        hint = f"name one of the stores in it, such as {inside}" if inside else "aef train makes one"
        raise BadInput(f"{path} is no run: it has no recipe.toml", hint)
    return recipes.load(str(path / "recipe.toml"))


def _file(name: str) -> Path:
    """Where the recipe of that name lies."""
    from aefcli.recipe import folder, names

    if name in names():
        return folder() / f"{name}.toml"
    return Path(name) / "recipe.toml" if Path(name).is_dir() else Path(name)
