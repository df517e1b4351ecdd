"""The commands that show what is there: info, plot."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aefcli.cli.app import Json, Quiet, Result, app, cores, lines, must_exist, on_disk
from aefcli.cli.recipes import named
from aefcli.errors import BadInput

if TYPE_CHECKING:
    from aefcli.cube.about import About, SourceAbout


@app.command(epilog="Example: aef info cube.zarr; aef info base --frames 16")
def info(
    what: Annotated[
        str,
        typer.Argument(metavar="CUBE|RUN|RECIPE", help="A cube, a run's folder, a recipe's name or a TOML file."),
    ],
    frames: Annotated[
        int | None, typer.Option("--frames", help="Of a model: frames of all sources; by default the recipe's.", min=1)
    ] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> Result:
    """Describe a cube: its grid, and per source its frames, clear share and gaps.

    Of a run or recipe: count its model's parameters, and the FLOPs of one patch of 128x128 px and one valid period.
    """
    if _is_store(Path(what)):
        if frames is not None:
            raise BadInput(f"--frames {frames} goes with a run or a recipe, not with {what}", "leave it out")
        from aefcli.cube import open_cube
        from aefcli.cube.about import about

        found = about(open_cube(Path(what)), workers=cores())
        return Result("info", [], found.as_dict(), _holdings(found))
    from aefcli import cost

    recipe = named(what, "cube, run or recipe")
    most = dict(zip(recipe.data.sources, recipe.data.frames, strict=True))
    work = cost.split(frames or sum(most.values()), most)
    counts = cost.parameters(recipe.model, recipe.data.sources, recipe.data.targets)
    flops = cost.flops(recipe.model, work, targets=recipe.data.targets)
    figures = {"name": recipe.name, "recipe": recipe.hash, "frames": work, "parameters": counts, "flops": flops}
    return Result("info", [], figures, _costs(recipe.name, work, counts, flops))


def _is_store(path: Path) -> bool:
    """Whether a path means a store rather than a run, a recipe's name or a TOML file."""
    return path.suffix == ".zarr" or (path / "zarr.json").is_file()


def _costs(name: str, frames: Mapping[str, int], counts: Mapping[str, int], flops: Mapping[str, int]) -> list[str]:
    """A row per part and one for all of them; what the decoders work is beside the total, not in it."""
    from rich.table import Table

    shown = ", ".join(f"{source} {count}" for source, count in frames.items())
    table = Table()
    for column in ("part", "parameters", "share", "GFLOP", "share"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for part in (*(part for part in counts if part != "total"), "total"):
        work = "training alone" if part == "decoders" else f"{flops[part] / flops['total']:.1%}"
        share = f"{counts[part] / counts['total']:.1%}"
        table.add_row(
            part, f"{counts[part]:,}", share, f"{flops[part] / 1e9:,.1f}", work, end_section=part == "decoders"
        )
    return [f"{name}: 128x128 px, one valid period, {sum(frames.values())} frames ({shown})", *lines(table)]


def _holdings(found: About) -> list[str]:
    """What a cube holds: where, how much, a row per source, frames per month, and the gaps."""
    from rich.table import Table

    grid, megabytes = found.grid, 1e-6
    code = grid.crs if grid.crs.startswith("EPSG:") else "no code"
    shown = [
        f"{found.path}: {found.format}, {found.period}",
        f"{grid.rows} rows x {grid.columns} columns of {grid.gsd:g} m, {grid.area_km2:,.4g} km2, {grid.name} ({code}), "
        f"corner {grid.corner[0]:.12g} {grid.corner[1]:.12g}",
        f"bbox {','.join(f'{value:.4f}' for value in grid.bbox)}",
        f"{found.stored * megabytes:,.1f} MB on disk, {found.decoded * megabytes:,.1f} MB decoded",
    ]
    if "catalog" in found.request:
        shown.append(f"from {found.request['catalog']}")
    table = Table()
    for name in ("source", "frames", "first", "last", "cell", "clear", "longest gap", "MB"):
        table.add_column(name, justify="left" if name == "source" else "right")
    for name, one in found.sources.items():
        first, last = (when[:10] if when else "" for when in one.span)
        gap = "static" if one.longest is None else f"{one.longest:.0f} days"
        size = f"{one.stored * megabytes:,.1f}"
        table.add_row(name, str(len(one.times)), first, last, f"{one.cell:g} m", f"{one.clear:.1%}", gap, size)
    shown += [*lines(table), *_months(found)]
    for name, one in found.sources.items():
        shown.append(f"{name}: {_lineage(one)}")
        shown += [f"{name}: no clear look {gap}, {gap.days:.0f} days" for gap in one.gaps[:5]]
        shown += [f"{name}: {len(one.gaps) - 5} more gaps, see --json"] if len(one.gaps) > 5 else []
        shown += [f"{name}: {len(one.masked)} assets masked, such as {one.masked[0]}"] if one.masked else []
    return shown + [f"{name}: {rows} rows at points" for name, rows in found.points.items()]


def _lineage(one: SourceAbout) -> str:
    """A source's bands, its frames by platform and direction, and the offsets decided for them."""
    parts = [" ".join(one.bands) if len(one.bands) <= 12 else f"{one.bands[0]} ... {one.bands[-1]}"]
    for counts in (one.platforms, one.orbits):
        parts.append(", ".join(f"{word} {count}" for word, count in counts.items() if word))
    if one.offsets:
        parts.append(", ".join(f"offset {value} in {count} frames" for value, count in one.offsets.items()))
    return "; ".join(part for part in parts if part)


def _months(found: About) -> list[str]:
    """Frames in each calendar month, a row per source and year."""
    from rich.table import Table

    table = Table(title="frames per month", title_justify="left", box=None, padding=(0, 1, 0, 0))
    for name in ("source", "year", *"JFMAMJJASOND"):
        table.add_column(name, justify="left" if name == "source" else "right", min_width=3 if len(name) == 1 else None)
    for name, one in found.sources.items():
        for year in [] if one.static else sorted({month[:4] for month in one.months}):
            counts = (one.months.get(f"{year}-{month:02d}", "") for month in range(1, 13))
            table.add_row(name, year, *map(str, counts))
    return lines(table) if table.row_count else []


@app.command(epilog="Example: aef plot cube.zarr --out look.png")
def plot(
    store: Annotated[
        Path, typer.Argument(metavar="[CUBE|FIELD|RUN]", help="A cube, an embedding field or a run's folder.")
    ] = Path("cube.zarr"),
    out: Annotated[
        Path | None, typer.Option("--out", help="The picture; by default beside the store, or in the run.")
    ] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> Result:
    """Draw a cube as a calendar of its frames above quick-looks, a field as colours, a run as its curves: a PNG."""
    if out and out.suffix.lower() != ".png":
        raise BadInput(f"--out {out} is no .png file", "name one, such as --out look.png")
    on_disk("--out", out)
    must_exist([store], "aef fetch makes a cube, aef embed a field, aef train a run")
    from aefcli import report
    from aefcli.cube import open_cube
    from aefcli.report.page import destination

    family = _family(store)
    if family == "embedding-field":
        picture = report.preview(store, out)
    elif family == "datacube":
        picture = report.picture(open_cube(store), out, workers=cores())
    elif (store / "recipe.toml").is_file():
        from aefcli.checkpoint import Run

        family = "run"
        picture = report.curves_png(Run(store), destination(store, out or store / "curves.png"))
    else:
        raise BadInput(
            f"{store} is neither a cube nor an embedding field nor a run", "aef fetch, embed and train make them"
        )
    return Result("plot", [picture], {"drawn": family})


def _family(store: Path) -> str:
    """The kind of store that a path holds, as its root says: datacube, embedding-field, or nothing."""
    try:
        document = json.loads((store / "zarr.json").read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return ""
    attributes = document.get("attributes") if isinstance(document, dict) else None
    return str((attributes or {}).get("aef:format", "")).partition("/")[0]
