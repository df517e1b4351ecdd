"""The commands of models: text, train, embed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aefcli.cli.app import (
    CUBE_HINT,
    Device,
    Json,
    Overwrite,
    Quiet,
    Result,
    app,
    bar,
    device_of,
    must_exist,
    note,
    on_disk,
)
from aefcli.errors import BadInput
from aefcli.extent import Period

if TYPE_CHECKING:
    from aefcli.cube import Cube
    from aefcli.recipe import Recipe
    from aefcli.text import Texts


@app.command(epilog="Example: aef text captions.csv --model models/all-MiniLM-L6-v2")
def text(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="CSV, Parquet, GeoJSON or GeoPackage of texts.")],
    model: Annotated[str, typer.Option("--model", help="Folder of a sentence-transformers model, or its name.")],
    out: Annotated[Path, typer.Option("--out", help="The table of vectors.")] = Path("text.parquet"),
    device: Device = "auto",
    overwrite: Overwrite = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> Result:
    """Have a language model read texts at points; writes their vectors for aef train --text."""
    on_disk("--out", out)
    must_exist([table], "give a .csv, .parquet, .geojson or .gpkg file")
    from aefcli.text import encode

    with bar("reading texts") as progress:
        done = encode(table, model, out, device=str(device_of(device)), overwrite=overwrite, progress=progress)
    note(*done.notes)
    note(f"{done.texts} vectors of {done.width}" if done.written else "already complete")
    figures = {"texts": done.texts, "width": done.width, "model": done.model, "notes": list(done.notes)}
    return Result("text", [done.path], figures)


@app.command(epilog="Example: aef train cube.zarr --recipe nano --steps 100")
def train(
    cubes: Annotated[
        list[Path] | None, typer.Argument(metavar="[CUBE ...]", help="Cubes; by default cube.zarr.")
    ] = None,
    recipe: Annotated[str, typer.Option("--recipe", help="A recipe's name, or a TOML file.")] = "nano",
    steps: Annotated[int | None, typer.Option("--steps", help="Steps instead of the recipe's.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The run; by default the next runs/<recipe>-NNN.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed instead of the recipe's.", min=0)] = None,
    text: Annotated[
        Path | None, typer.Option("--text", help="Text vectors that aef text made; by default the cubes' own.")
    ] = None,
    device: Device = "auto",
    json_: Json = False,
    quiet: Quiet = False,
) -> Result:
    """Train a model on cubes; writes a run with its weights, recipe and log."""
    on_disk("--out", out)
    from aefcli import recipe as recipes

    changes = {key: value for key, value in {"steps": steps, "seed": seed}.items() if value is not None}
    plan = recipes.load(recipe).replace(train=changes)
    must_exist(paths := cubes or [Path("cube.zarr")], CUBE_HINT)
    from aefcli import checkpoint
    from aefcli.cube import open_cube
    from aefcli.sample import check
    from aefcli.train import train as run_steps

    opened, where = [open_cube(path) for path in paths], device_of(device)
    check(opened, plan)
    told = _told(text, plan, opened) if text or "text" in plan.data.targets else None
    run = checkpoint.new_run(out, plan)
    began, last = time.monotonic(), None
    with bar("training") as progress:
        for last in run_steps(run, plan, opened, where, told):
            progress(last.step, plan.train.steps)
            if last.step % 20 == 0 or last.step == plan.train.steps:
                parts = " ".join(f"{name} {value:.3f}" for name, value in last.parts.items())
                note(f"step {last.step}/{plan.train.steps}  loss {last.loss:.4f}  {parts}  {last.seconds:.2f} s/step")
    assert last is not None
    figures = {"steps": last.step, "loss": last.loss, "parts": last.parts, "seconds": time.monotonic() - began}
    return Result("train", [run.path], {**figures, "recipe": plan.hash})


def _told(path: Path | None, recipe: Recipe, cubes: Sequence[Cube]) -> Texts | None:
    """The text vectors of a table, else those that the cubes hold, checked against the recipe and the cubes."""
    from aefcli.text import check, held, read

    texts = read(path) if path else held(cubes)
    if texts is None:
        note(f"the recipe {recipe.name} has text among its targets, but neither --text nor the cubes hold any")
        return None
    count = check(texts, recipe, cubes)
    note(f"{count} of {len(texts)} texts lie on the cubes")
    return texts


@app.command(epilog="Example: aef embed cube.zarr --period 2023-01:2023-12 --period 2023-06")
def embed(
    cube: Annotated[Path, typer.Argument(metavar="[CUBE]", help="The cube.")] = Path("cube.zarr"),
    period: Annotated[list[str] | None, typer.Option("--period", help="A valid period; repeat.")] = None,
    model: Annotated[Path | None, typer.Option("--model", help="A run; by default the newest finished.")] = None,
    out: Annotated[Path, typer.Option("--out", help="The embedding field.")] = Path("embeddings.zarr"),
    device: Device = "auto",
    overwrite: Overwrite = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> Result:
    """Embed a cube for any valid periods: an embedding field as Zarr, and a preview beside it."""
    if not period:
        raise BadInput("--period is missing", "name at least one, such as --period 2023-01:2023-12")
    periods = [Period.parse(text) for text in period]
    on_disk("--out", out)
    must_exist([cube], CUBE_HINT)
    from aefcli import checkpoint, report
    from aefcli.cube import open_cube
    from aefcli.embed import embed as write

    run = checkpoint.open_run(model) if model else checkpoint.newest_run()
    opened, where = open_cube(cube), device_of(device)
    with bar("embedding") as progress:
        done = write(opened, run, periods, out, device=where, overwrite=overwrite, progress=progress)
    picture = report.preview(done.path)
    note(*(f"{outside} holds no frame of {cube}: its embeddings are extrapolated" for outside in done.extrapolated))
    note(f"model {run.path}, {len(done.periods)} periods" if done.written else "already complete")
    figures = {
        "model": str(run.path),
        "periods": [str(each) for each in done.periods],
        "extrapolated": [str(each) for each in done.extrapolated],
        "tiles": done.tiles,
        "tiles_written": done.written,
        "nodata_share": round(done.nodata, 6),
    }
    return Result("embed", [done.path], figures, beside=[picture])
