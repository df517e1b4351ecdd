"""The commands that show what is there: info, plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aefcli import ledger
from aefcli.cli.app import Json, Quiet, Result, app, cores, kind_of, lines, must_exist, on_disk
from aefcli.cli.recipes import named
from aefcli.errors import BadInput, counted
from aefcli.extent import Period

if TYPE_CHECKING:
    from aefcli.cube.about import About, SourceAbout
    from aefcli.report.about import FieldAbout

_RASTERS = (".tif", ".tiff", ".npy")

Told = Annotated[
    str | None, typer.Option("--period", help="What a published field describes that does not say it itself.")
]


@app.command(epilog="Example: aef info cube.zarr; aef info embeddings.zarr; aef info base --frames 16")
def info(
    what: Annotated[
        str,
        typer.Argument(
            metavar="CUBE|FIELD|RUN|RECIPE", help="A cube, anybody's field, a run, a recipe's name or a TOML file."
        ),
    ],
    frames: Annotated[
        int | None, typer.Option("--frames", help="Of a model: frames of all sources; by default the recipe's.", min=1)
    ] = None,
    period: Told = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> Result:
    """Describe a cube: its grid, and per source its frames, clear share and gaps.

    Of a field: where it lies, what its periods hold, and where it comes from. Of a run or recipe: count its model's
    parameters, and the FLOPs of one patch of 128x128 px and one valid period.
    """
    store = _is_store(Path(what))
    if frames is not None and store:
        raise BadInput(f"--frames {frames} goes with a run or a recipe, not with {what}", "leave it out")
    if Path(what).suffix.lower() in _RASTERS:
        must_exist([Path(what)], "name a cube, a field, a run or a recipe")
    family = kind_of(Path(what)) if store else ""
    if family == "embedding-fields":
        _says_its_own(Path(what), family, period)
        return _described_each(Path(what))
    if family == "embedding-field" or (store and _may_be_field(Path(what))):
        _says_its_own(Path(what), family, period)
        return _described(Path(what), Period.parse(period) if period else None)
    if period is not None:
        raise BadInput(f"--period {period} goes with a published field, not with {what}", "leave it out")
    if store:
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
    """Whether a path means a store or a raster rather than a run, a recipe's name or a TOML file."""
    if path.suffix.lower() in (".zarr", *_RASTERS):
        return True
    return any((path / name).is_file() for name in ("zarr.json", ".zgroup"))


def _described(path: Path, told: Period | None) -> Result:
    from aefcli.published import open_vectors
    from aefcli.report.about import about

    found = about(open_vectors(path, told))
    return Result("info", [], found.as_dict(), _field(found))


def _described_each(group: Path) -> Result:
    """Of several fields, as of each: their lines one after the other."""
    from aefcli.several import fields

    found = [_described(each, None) for each in fields(group)]
    shown = [f"{group}: {counted(len(found), 'field')}"]
    shown += [line for each in found for line in ("", *each.lines)]
    return Result("info", [], {"path": str(group), "fields": [each.figures for each in found]}, shown)


def _field(found: FieldAbout) -> list[str]:
    """What a field holds: where, how it is stored, where it comes from, and a row per period."""
    from rich.table import Table

    from aefcli.report.about import frames, place

    code = found.crs if found.crs.startswith("EPSG:") else "no code"
    _, _, west, _, _, north = found.transform
    shown = [
        f"{found.path}: {found.format}, {found.dtype}, {found.dimensions} dimensions",
        f"{place(found)}, {found.name} ({code}), corner {west:.12g} {north:.12g}",
        f"bbox {','.join(f'{value:.4f}' for value in found.bbox)}",
        f"{found.stored / 1e6:,.1f} MB on disk",
        f"values: {found.decoding}",
    ]
    lineage = {"model": found.model, "recipe": found.recipe, "cube": found.cube, "licence": found.licence}
    shown += [", ".join(f"{name} {value}" for name, value in lineage.items() if value)] if any(lineage.values()) else []
    told: dict[str, list[str]] = {}
    if any(each.frames is not None for each in found.periods):
        told["frames inside"] = [frames(each) for each in found.periods]
    if any(each.uncertainty is not None for each in found.periods):
        told["uncertainty"] = ["" if each.uncertainty is None else f"{each.uncertainty:.1f}°" for each in found.periods]
    sources = list(dict.fromkeys(name for each in found.periods for name in each.observations))
    table = Table()
    for name in ("period", "nodata", *sources, *told):
        table.add_column(name, justify="left" if name == "period" else "right")
    for index, each in enumerate(found.periods):
        counts = (f"{each.observations[name]:.1f}" for name in sources)
        note = " extrapolated" if each.extrapolated else ""
        others = (texts[index] for texts in told.values())
        table.add_row(f"{each.period}{note}", f"{each.nodata:.1%}", *counts, *others)
    notes = ["a source's column: the mean number of its frames that saw a pixel clearly"] if sources else []
    read, blocks = found.blocks
    notes += [f"shares and means of {read} of {blocks} blocks"] if read < blocks else []
    return [*shown, *lines(table), *notes]


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
        shown += [f"{name}: {counted(len(one.masked), 'asset')} masked, such as {one.masked[0]}"] if one.masked else []
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


@app.command(epilog="Example: aef plot cube.zarr; aef plot f.zarr --at 15.03,46.03; aef plot f.zarr --out f.html")
def plot(
    store: Annotated[
        Path, typer.Argument(metavar="[CUBE|FIELD|RUN]", help="A cube, anybody's embedding field or a run's folder.")
    ] = Path("cube.zarr"),
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The .png, by default beside the store, or in the run; of a field an .html."),
    ] = None,
    at: Annotated[
        str | None, typer.Option("--at", metavar="LON,LAT", help="Of a field: how alike its pixels are to this one.")
    ] = None,
    change: Annotated[
        tuple[str, str] | None,
        typer.Option("--change", metavar="PERIOD PERIOD", help="Of a field: how far each vector turned between two."),
    ] = None,
    period: Told = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> Result:
    """Draw a cube as a calendar of its frames above quick-looks, a field as colours, a run as its curves: a PNG.

    Of a field --out page.html makes one page with a slider of its periods, and similarity to the place that is clicked.
    """
    if out and out.suffix.lower() not in (".png", ".html"):
        raise BadInput(f"--out {out} is no .png file", "name one, such as look.png; of a field an .html is a page")
    on_disk("--out", out)
    place = _place(at) if at is not None else None
    between = (Period.parse(change[0]), Period.parse(change[1])) if change else None
    told = Period.parse(period) if period else None
    must_exist([store], "aef fetch makes a cube, aef embed a field, aef train a run")
    is_page = out is not None and out.suffix.lower() == ".html"
    if between and place:
        raise BadInput(f"--change does not go with --at {at}", "each is a picture of its own")
    family = kind_of(store)
    is_run = (store / "recipe.toml").is_file()
    if family == "datacube" or is_run:
        of_fields = {"--at": at, "--change": change, "--period": period, f"--out {out}": is_page}
        for option in (option for option, given in of_fields.items() if given):
            what = "cube" if family else "run"
            raise BadInput(f"{option} is of an embedding field, and {store} is a {what}", "leave it out")
    from aefcli import report

    if family == "datacube":
        from aefcli.cube import open_cube

        picture = report.picture(open_cube(store), out, workers=cores())
    elif is_run:
        from aefcli.checkpoint import Run
        from aefcli.report.page import destination

        family = "run"
        picture = report.curves_png(Run(store), destination(store, out or store / "curves.png"))
    elif family == "embedding-field" or _may_be_field(store):
        _says_its_own(store, family, period)
        family = family or "published"
        if out is not None and is_page:
            picture = report.field_page(store, out, at=place, change=between, told=told)
        elif between:
            picture = report.changed(store, between, out, told)
        elif place:
            picture = report.similar(store, place, out, told)
        else:
            picture = report.preview(store, out, told)
    else:
        ledger.check_root(store)
        raise BadInput(
            f"{store} is neither a cube nor an embedding field nor a run", "aef fetch, embed and train make them"
        )
    return Result("plot", [picture], {"drawn": family})


def _says_its_own(store: Path, family: str, period: str | None) -> None:
    if family and period is not None:
        raise BadInput(f"--period {period} is of fields that do not say theirs, and {store} does", "leave it out")


def _place(text: str) -> tuple[float, float]:
    """LON,LAT in degrees."""
    hint = "give LON,LAT in degrees, such as --at 15.03,46.03"
    try:
        lon, lat = (float(part) for part in text.split(","))
    except ValueError as error:
        raise BadInput(f"--at {text!r} is not two numbers", hint) from error
    if not (-180 <= lon <= 180 and -90 <= lat <= 90):
        raise BadInput(f"--at {text} lies outside the globe", hint)
    return lon, lat


def _may_be_field(path: Path) -> bool:
    """Whether a path, no store of ours, is of a kind in which others publish fields: the reader says what it is."""
    if not path.is_dir():
        return path.is_file() and path.suffix.lower() in _RASTERS
    names = ("embeddings/zarr.json", "embeddings/.zarray", "embedding/zarr.json", "embedding/.zarray")
    groups = (path, *path.iterdir())  # a store may have a group for each CRS
    return any((group / name).is_file() for group in groups for name in names)
