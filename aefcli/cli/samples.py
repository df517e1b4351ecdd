"""The command of the table that training draws from: samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aefcli.cli.app import CUBE_HINT, Json, Quiet, Result, Set, app, lines, must_exist, note, on_disk

if TYPE_CHECKING:
    from aefcli.cube import Cube
    from aefcli.sample import Samples


@app.command(epilog="Example: aef samples cube.zarr --recipe nano --set data.validation=0.2")
def samples(
    cubes: Annotated[
        list[Path] | None, typer.Argument(metavar="[CUBE ...]", help="Cubes; by default cube.zarr.")
    ] = None,
    recipe: Annotated[str, typer.Option("--recipe", help="A recipe's name, or a TOML file.")] = "nano",
    set_: Set = None,
    text: Annotated[
        Path | None, typer.Option("--text", help="Text vectors that aef text made; by default the cubes' own.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="The table.")] = Path("samples.parquet"),
    rows: Annotated[bool, typer.Option("--rows", help="Print its rows, too, as CSV.")] = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> Result:
    """Draw which windows of cubes are trained on and which are held out; writes a table for aef train --samples."""
    on_disk("--out", out)
    must_exist([path for path in (text,) if path], "aef text TABLE --model PATH makes one")
    from aefcli import recipe as recipes

    plan = recipes.with_values(recipes.load(recipe), set_ or [])
    must_exist(paths := cubes or [Path("cube.zarr")], CUBE_HINT)
    from aefcli import text as captions
    from aefcli.cube import open_cube
    from aefcli.sample import draw

    opened = [open_cube(path) for path in paths]
    texts = captions.read(text) if text else captions.held(opened) if "text" in plan.data.targets else None
    if texts is not None:
        captions.check(texts, plan, opened)
    table = draw(opened, plan, texts)
    table.save(out)
    figures: dict[str, Any] = {**table.counts(), "cubes": [_about(cube, table) for cube in opened], "recipe": plan.hash}
    if plan.data.validation and not figures["validation"]:
        note(f"too few sites to hold {plan.data.validation:g} of them out: data.site and data.validation say how many")
    return Result("samples", [out], figures, [*(table.csv().splitlines() if rows else ()), *_lines(figures["cubes"])])


def _about(cube: Cube, table: Samples) -> dict[str, Any]:
    """How many sites, windows and support periods the table has of a cube, and how its rows are split."""
    mine = table.at(table.cube == str(cube.path))
    return {
        "cube": str(cube.path),
        **{name: mine.counts()[name] for name in ("sites", "train", "validation")},
        "windows": len(set(zip(mine.top.tolist(), mine.left.tolist(), strict=True))),
        "supports": len(set(zip(mine.site.tolist(), mine.start.tolist(), strict=True))),
    }


def _lines(figures: Sequence[dict[str, Any]]) -> list[str]:
    from rich.table import Table

    table = Table()
    columns = ("cube", "sites", "windows", "supports", "train", "validation")
    for column in columns:
        table.add_column(column, justify="left" if column == "cube" else "right")
    for row in figures:
        table.add_row(*(str(row[column]) for column in columns))
    return lines(table)
