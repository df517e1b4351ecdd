"""The command line: parse, call, print.

Owns the commands, their options and everything that is printed. stdout carries results (a path, a table, or one JSON
object), stderr carries progress and notes. Whatever a user can mend becomes one line and an exit code of `errors`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, cast

import typer

from aefcli.errors import AefError, BadInput, Damaged, NoResources, unknown
from aefcli.extent import BBox, Period

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from aefcli.cube import Cube, Estimate, Request, Work
    from aefcli.cube.about import About, SourceAbout
    from aefcli.judge import Judgement
    from aefcli.recipe import Recipe
    from aefcli.text import Texts

app = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print the output path alone.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output made by another request.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.", min=0)]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 ...")]


@dataclass
class Result:
    """What a command ends with: paths it made, figures for --json, lines for a reader."""

    command: str
    outputs: list[Path]
    figures: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)


# --- commands -------------------------------------------------------------------------------------------------------


@app.command(epilog="Example: aef simulate world --seed 1 --sites 16")
def simulate(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the archive.")],
    seed: Seed = 0,
    sites: Annotated[int, typer.Option("--sites", help="Number of sites, each with its own land.")] = 36,
    size: Annotated[int, typer.Option("--size", help="Side of a site in pixels of 10 m.")] = 64,
    years: Annotated[str, typer.Option("--years", help="2023 or 2022:2023.")] = "2023",
    json_: Json = False,
    quiet: Quiet = False,
) -> Result:
    """Make a static STAC catalog of a made-up landscape, with labels: OUT/catalog.json, OUT/labels.parquet."""
    first, last = _years(years)
    from aefcli.simulate import simulate as make

    with _progress("simulating") as progress:
        world = make(out, seed=seed, sites=sites, size=size, years=(first, last), progress=progress)
    bbox = ",".join(f"{value:.4f}" for value in world.bbox)
    catalog = out / world.catalog.name
    _note(f"next: aef fetch --stac {catalog} --bbox {bbox} --period {years}")
    figures = {"bbox": list(world.bbox), "items": world.items, "points": world.points}
    return Result("simulate", [catalog, out / world.labels.name], figures, [str(catalog)])


@app.command(epilog="Example: aef fetch --stac earth-search --bbox 15.0,45.95,15.1,46.05 --period 2023-01:2023-12")
def fetch(
    stac: Annotated[str, typer.Option("--stac", help="earth-search, planetary-computer, an API's URL, or a catalog.")],
    bbox: Annotated[str | None, typer.Option("--bbox", help="W,S,E,N in degrees.")] = None,
    area: Annotated[
        Path | None, typer.Option("--area", help="GeoJSON or GeoPackage; of several polygons a cube each.")
    ] = None,
    like: Annotated[Path | None, typer.Option("--like", help="A raster or cube whose grid the cube shares.")] = None,
    period: Annotated[
        str | None, typer.Option("--period", help="2023, 2023-08, 2023-01:2023-12 (both ends included).")
    ] = None,
    source: Annotated[list[str] | None, typer.Option("--source", help="Only these sources; repeat.")] = None,
    collection: Annotated[
        list[str] | None, typer.Option("--collection", help="SOURCE=ID: another collection; repeat.")
    ] = None,
    band: Annotated[list[str] | None, typer.Option("--band", help="Of the sources that have it only these.")] = None,
    max_cloud: Annotated[
        float | None, typer.Option("--max-cloud", help="Per cent of an item that may be cloud.")
    ] = None,
    gsd: Annotated[float, typer.Option("--gsd", help="Spacing of the cube in metres.")] = 10.0,
    crs: Annotated[str | None, typer.Option("--crs", help="A CRS in metres; by default the box's UTM zone.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The cube (cube.zarr), or the folder of several (cubes).")
    ] = None,
    resampling: Annotated[str | None, typer.Option("--resampling", help="nearest or bilinear, for all bands.")] = None,
    loader: Annotated[str, typer.Option("--loader", help="odc or stackstac.")] = "odc",
    on_missing: Annotated[str, typer.Option("--on-missing", help="A file that is gone: fail, or mask it.")] = "fail",
    list_: Annotated[bool, typer.Option("--list", help="Only show what the catalog has for each source.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be read and written.")] = False,
    max_bytes: Annotated[str | None, typer.Option("--max-bytes", help="Refuse to write more, as in 20GB.")] = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Search again; append what is new.")] = False,
    workers: Annotated[int | None, typer.Option("--workers", help="Reads at a time.", min=1)] = None,
    dask: Annotated[
        str | None, typer.Option("--dask", help="Work on a cluster: a scheduler's address, or a number of processes.")
    ] = None,
    overwrite: Overwrite = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> Result:
    """Search a STAC catalog and write what it has of a place and a period as a Zarr datacube."""
    if list_:
        return _listing(stac)
    if len([given for given in (bbox, area, like) if given is not None]) != 1:
        raise BadInput("one of --bbox, --area and --like says where", "give exactly one")
    if period is None:
        raise BadInput("--period is missing", "use 2023, 2023-08 or 2023-01:2023-12")
    box, when = BBox.parse(bbox) if bbox else None, _past(Period.parse(period))
    most = _bytes(max_bytes) if max_bytes else None
    chosen = _pairs("--collection", collection or [])
    _no_cloud(out)
    from aefcli import cube

    def request(place: BBox, **more: Any) -> cube.Request:
        return cube.Request(
            stac,
            place,
            when,
            tuple(source or ()),
            more.pop("gsd", gsd),
            crs,
            resampling,
            collections=chosen,
            bands=tuple(band or ()),
            max_cloud=max_cloud,
            loader=loader,
            on_missing=on_missing,
            **more,
        )

    if like:
        grid = cube.grid_like(like)
        asked = {out or Path("cube.zarr"): request(cube.outline(grid), grid=grid, gsd=grid.resolution.x)}
    elif area:
        found = cube.areas(area)
        folder = out or Path("cubes")
        names = {name: folder / f"{name}.zarr" if len(found) > 1 else out or Path("cube.zarr") for name in found}
        asked = {names[name]: request(place, area=outline) for name, (place, outline) in found.items()}
    else:
        assert box is not None
        asked = {out or Path("cube.zarr"): request(box)}
    for each in asked.values():
        cube.check(each)
    work = cube.Work(workers or _cores(), dask)
    if dry_run or most is not None:
        estimates = {path: cube.estimate(each, path, work) for path, each in asked.items()}
        if dry_run:
            return _planned(estimates)
        total = sum(found.bytes_written for found in estimates.values())
        if most is not None and total > most:
            raise BadInput(f"the cube would take about {_size(total)}, over --max-bytes {max_bytes}", "ask for less")
    results = [_fetched(path, each, work, overwrite, refresh) for path, each in asked.items()]
    if len(results) == 1:
        return results[0]
    return Result("fetch", list(asked), {"cubes": [one.figures for one in results]}, [str(path) for path in asked])


def _fetched(path: Path, request: Request, work: Work, overwrite: bool, refresh: bool) -> Result:
    from aefcli import cube

    with _progress("fetching") as progress:
        done = cube.fetch(request, path, work=work, overwrite=overwrite, refresh=refresh, progress=progress)
    for note in done.notes:
        _note(note)
    if done.missing:
        shown = ", ".join(done.missing[:3]) + (" ..." if len(done.missing) > 3 else "")
        _note(f"masked: {len(done.missing)} assets that are not there: {shown}")
    counts = ", ".join(f"{name} {count}" for name, count in done.frames.items())
    _note(f"{done.items} items in frames: {counts}" if done.written + done.adopted else f"already complete: {counts}")
    figures = {
        "frames": done.frames,
        "items": done.items,
        "units_written": done.written,
        "units_adopted": done.adopted,
        "missing": list(done.missing),
        "notes": list(done.notes),
    }
    return Result("fetch", [done.path], figures, [str(done.path)])


def _listing(stac: str) -> Result:
    """What a catalog has for each source."""
    from rich.table import Table

    from aefcli.stac import open_catalog

    offers = open_catalog(stac).listing()
    table = Table()
    for column in ("source", "collection", "others", "note"):
        table.add_column(column)
    for offer in offers:
        others = ", ".join(name for name in offer.collections if name != offer.default)
        table.add_row(offer.source, offer.default, others, offer.note)
    figures = [{**vars(offer), "collections": list(offer.collections)} for offer in offers]
    return Result("fetch", [], {"sources": figures}, _lines(table))


def _planned(estimates: Mapping[Path, Estimate]) -> Result:
    """What fetches would read and write, a row each."""
    from rich.table import Table

    table = Table()
    for column in ("cube", "items", "frames", "to read", "to write", "free", "time"):
        table.add_column(column, justify="left" if column in ("cube", "frames") else "right")
    for path, found in estimates.items():
        frames = ", ".join(f"{name} {count}" for name, count in found.frames.items())
        free, seconds = _size(found.bytes_free), _duration(found.seconds)
        sizes = (_size(found.bytes_read), _size(found.bytes_written), free, seconds)
        table.add_row(str(path), str(found.items), frames, *sizes)
        for note in found.notes:
            _note(note)
    each = {str(path): found.as_dict() for path, found in estimates.items()}
    figures = next(iter(each.values())) if len(each) == 1 else {"cubes": each}
    return Result("fetch", [], figures, _lines(table))


@app.command(epilog="Example: aef verify cube.zarr")
def verify(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="A cube or an embedding field.")],
    json_: Json = False,
) -> Result:
    """Hold every file of a cube or field to the hash that was written down when it was made."""
    _exist([store], "give a cube or a field")
    from aefcli import ledger

    faults, count = ledger.verify(store, _cores())
    for fault in faults:
        _note(f"{fault.what}: {fault.path}")
    if faults:
        raise Damaged(f"{store}: {len(faults)} of {count} files are damaged or missing", f"aef repair {store}")
    return Result("verify", [store], {"files": count}, [f"{store}: {count} files are as they were written"])


@app.command(epilog="Example: aef repair cube.zarr")
def repair(
    cube: Annotated[Path, typer.Argument(metavar="CUBE", help="A cube that aef fetch made.")],
    workers: Annotated[int | None, typer.Option("--workers", help="Reads at a time.", min=1)] = None,
    json_: Json = False,
) -> Result:
    """Fetch what is damaged or missing in a cube again."""
    _exist([cube], "give a cube")
    from aefcli import cube as cubes

    with _progress("repairing") as progress:
        done = cubes.repair(cube, cubes.Work(workers or _cores()), progress)
    if done.changed:
        _note(f"{len(done.changed)} of {done.units} units hold other bytes than before: the archive has changed")
    figures = {"files": list(done.files), "units": done.units, "changed": list(done.changed)}
    return Result("repair", [cube], figures, [f"{cube}: {len(done.files)} files mended"])


@app.command(epilog="Example: aef attach cube.zarr --source era5-land era5-2023.grib")
def attach(
    cube: Annotated[Path, typer.Argument(metavar="CUBE", help="The cube.")],
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE", help="NetCDF, GRIB, HDF5, GeoTIFF, Zarr, Parquet or CSV.")
    ],
    source: Annotated[str, typer.Option("--source", help="What the files hold: era5-land, gedi, grace, nlcd ...")],
    date: Annotated[
        list[str] | None, typer.Option("--date", help="When they hold, if they do not say: one for all, or one each.")
    ] = None,
    heading: Annotated[str | None, typer.Option("--pass", help="Of radar: ascending or descending.")] = None,
    look: Annotated[str | None, typer.Option("--look", help="Of radar: right or left.")] = None,
    overwrite: Overwrite = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> Result:
    """Put what files of another source have of a cube's ground and period into the cube."""
    for name, said, known in (("--pass", heading, ("ascending", "descending")), ("--look", look, ("right", "left"))):
        if said not in (None, *known):
            raise unknown(name, str(said), known)
    dates = tuple(Period.parse(text) for text in date or ())
    _exist([cube], "aef fetch --stac ... --bbox ... --period ... makes one")
    from aefcli.attach import Told
    from aefcli.attach import attach as put

    done = put(cube, source, files, Told(dates, heading, look), overwrite=overwrite)
    for note in done.notes:
        _note(note)
    what = "texts" if source == "text" else "frames"
    _note(f"{what} {'attached' if done.written else 'there already'}: {source} {done.count}")
    figures = {"source": source, what: done.count, "written": done.written, "notes": list(done.notes)}
    return Result("attach", [done.path], figures, [str(done.path)])


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
    _exist([table], "give a .csv, .parquet, .geojson or .gpkg file")
    from aefcli.text import encode

    with _progress("reading texts") as progress:
        done = encode(table, model, out, device=str(_device(device)), overwrite=overwrite, progress=progress)
    for note in done.notes:
        _note(note)
    _note(f"{done.texts} vectors of {done.width}" if done.written else "already complete")
    figures = {"texts": done.texts, "width": done.width, "model": done.model, "notes": list(done.notes)}
    return Result("text", [done.path], figures, [str(done.path)])


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
    from aefcli import recipe as recipes

    changes = {key: value for key, value in {"steps": steps, "seed": seed}.items() if value is not None}
    plan = recipes.load(recipe).replace(train=changes)
    _exist(paths := cubes or [Path("cube.zarr")], "aef fetch --stac ... --bbox ... --period ... makes one")
    from aefcli import checkpoint
    from aefcli.cube import open_cube
    from aefcli.sample import check
    from aefcli.train import train as run_steps

    opened, where = [open_cube(path) for path in paths], _device(device)
    check(opened, plan)
    told = _told(text, plan, opened) if text or "text" in plan.data.targets else None
    run = checkpoint.new_run(out, plan)
    began, last = time.monotonic(), None
    with _progress("training") as progress:
        for last in run_steps(run, plan, opened, where, told):
            progress(last.step, plan.train.steps)
            if last.step % 20 == 0 or last.step == plan.train.steps:
                parts = " ".join(f"{name} {value:.3f}" for name, value in last.parts.items())
                _note(f"step {last.step}/{plan.train.steps}  loss {last.loss:.4f}  {parts}  {last.seconds:.2f} s/step")
    assert last is not None
    figures = {"steps": last.step, "loss": last.loss, "parts": last.parts, "seconds": time.monotonic() - began}
    return Result("train", [run.path], {**figures, "recipe": plan.hash}, [str(run.path)])


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
    _exist([cube], "aef fetch --stac ... --bbox ... --period ... makes one")
    from aefcli import checkpoint, report
    from aefcli.cube import open_cube
    from aefcli.embed import embed as write

    run = checkpoint.open_run(model) if model else checkpoint.newest_run()
    opened, where = open_cube(cube), _device(device)
    with _progress("embedding") as progress:
        done = write(opened, run, periods, out, device=where, overwrite=overwrite, progress=progress)
    picture = report.preview(done.path)
    for outside in done.extrapolated:
        _note(f"{outside} holds no frame of {cube}: its embeddings are extrapolated")
    _note(f"model {run.path}, {len(done.periods)} periods" if done.written else "already complete")
    figures = {
        "model": str(run.path),
        "periods": [str(each) for each in done.periods],
        "extrapolated": [str(each) for each in done.extrapolated],
        "tiles": done.tiles,
        "tiles_written": done.written,
        "nodata_share": round(done.nodata, 6),
    }
    return Result("embed", [done.path, picture], figures, [str(done.path)])


@app.command(epilog="Example: aef eval embeddings.zarr --labels labels.csv --probe knn --shots 1,10,max", name="eval")
def eval_(
    fields: Annotated[
        list[Path] | None, typer.Argument(metavar="[FIELD ...]", help="By default embeddings.zarr.")
    ] = None,
    labels: Annotated[Path | None, typer.Option("--labels", help="CSV, Parquet or GeoJSON of labelled points.")] = None,
    cube: Annotated[Path | None, typer.Option("--cube", help="For the baselines; by default the field's own.")] = None,
    probe: Annotated[str, typer.Option("--probe", help="knn, linear or all.")] = "all",
    shots: Annotated[
        str | None, typer.Option("--shots", help="Labels per class; by default those of 1,10,max that fit.")
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    json_: Json = False,
    quiet: Quiet = False,
) -> Result:
    """Score embedding fields on labels, beside the baselines from the same cube."""
    probes = {"knn": ("knn1", "knn3"), "linear": ("linear",), "all": ("knn1", "knn3", "linear")}
    if probe not in probes:
        raise unknown("--probe", probe, probes)
    counts = _shots(shots) if shots else None
    paths = fields or [Path("embeddings.zarr")]
    _exist(paths, "aef embed cube.zarr --period 2023-01:2023-12 makes one")
    _exist([path for path in (labels, cube) if path], "check the path")
    from aefcli.judge import find_labels, judge

    table = labels or find_labels(paths, cube)
    with _progress("scoring") as progress:
        done = judge(
            paths, table, cube, probes=probes[probe], shots=counts, seed=seed, device=_device(device), progress=progress
        )
    for note in (f"labels: {table}", *done.notes):
        _note(note)
    figures = {"labels": str(table), "about": dict(done.about), "results": [score.as_dict() for score in done.scores]}
    return Result("eval", paths, figures, _table(done))


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
) -> Result:
    """Describe a cube: its grid, and per source its frames, clear share and gaps.

    Of a run or recipe: count its model's parameters, and the FLOPs of one patch of 128x128 px and one valid period.
    """
    if _is_store(Path(what)):
        if frames is not None:
            raise BadInput(f"--frames {frames} goes with a run or a recipe, not with {what}", "leave it out")
        from aefcli.cube import open_cube
        from aefcli.cube.about import about

        found = about(open_cube(Path(what)), workers=_cores())
        return Result("info", [], found.as_dict(), _holdings(found))
    from aefcli import cost

    recipe = _recipe(what)
    most = dict(zip(recipe.data.sources, recipe.data.frames, strict=True))
    work = cost.split(frames or sum(most.values()), most)
    counts = cost.parameters(recipe.model, recipe.data.sources, recipe.data.targets)
    flops = cost.flops(recipe.model, work, targets=recipe.data.targets)
    figures = {"name": recipe.name, "recipe": recipe.hash, "frames": work, "parameters": counts, "flops": flops}
    return Result("info", [], figures, _costs(recipe.name, work, counts, flops))


@app.command(epilog="Example: aef plot cube.zarr --out look.png")
def plot(
    store: Annotated[Path, typer.Argument(metavar="[CUBE|FIELD]", help="A cube or an embedding field.")] = Path(
        "cube.zarr"
    ),
    out: Annotated[Path | None, typer.Option("--out", help="The picture; by default beside the store.")] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> Result:
    """Draw a cube as a calendar of its frames above quick-looks, or an embedding field as colours: a PNG."""
    if out and out.suffix.lower() != ".png":
        raise BadInput(f"--out {out} is no .png file", "name one, such as --out look.png")
    _exist([store], "aef fetch makes a cube, aef embed a field")
    from aefcli import report
    from aefcli.cube import open_cube

    family = _family(store)
    if family == "embedding-field":
        picture = report.preview(store, out)
    elif family == "datacube":
        picture = report.picture(open_cube(store), out, workers=_cores())
    else:
        raise BadInput(f"{store} is neither a cube nor an embedding field", "aef fetch and aef embed make them")
    return Result("plot", [picture], {"drawn": family}, [str(picture)])


# --- reading options ------------------------------------------------------------------------------------------------


def _years(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    try:
        return int(first), int(last or first)
    except ValueError as error:
        raise BadInput(f"--years {text!r} is not a year or two", "use 2023 or 2022:2023") from error


def _past(period: Period) -> Period:
    if period.start > time.time() * 1000:
        raise BadInput(f"--period {period} begins in the future", "archives hold what was measured")
    return period


def _pairs(option: str, given: Sequence[str]) -> dict[str, str]:
    """SOURCE=VALUE, each source once."""
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals and value) or name in found:
            raise BadInput(
                f"{option} {text!r} is not SOURCE=ID, each source once", f"as in {option} landsat=landsat-c2-l2"
            )
        found[name] = value
    return found


_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def _bytes(text: str) -> int:
    number = text.strip().upper().rstrip("KMGTB")
    unit = text.strip().upper()[len(number) :]
    try:
        return int(float(number) * _UNITS[unit])
    except (KeyError, ValueError) as error:
        raise BadInput(f"--max-bytes {text!r} is no size", "as in 500MB or 20GB") from error


def _size(count: float) -> str:
    unit = next((unit for unit in ("TB", "GB", "MB", "KB") if count >= _UNITS[unit]), "")
    return f"{count / _UNITS[unit]:.3g} {unit or 'bytes'}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _no_cloud(out: Path | None) -> None:
    if out is not None and re.match(r"[a-z][a-z0-9+.-]*:/", str(out)):
        raise BadInput(f"--out {str(out)!r} is no path on disk", "write here, then copy the store to the cloud")


def _shots(text: str) -> list[int | str]:
    counts: list[int | str] = []
    for part in text.split(","):
        if part != "max" and not (part.isdigit() and int(part) > 0):
            raise BadInput(f"--shots {text!r} holds {part!r}", "use numbers from 1 and max, as in 1,10,max")
        counts.append(part if part == "max" else int(part))
    return counts


def _is_store(path: Path) -> bool:
    """Whether a path means a store rather than a run, a recipe's name or a TOML file."""
    return path.suffix == ".zarr" or (path / "zarr.json").is_file()


def _family(store: Path) -> str:
    """The kind of store that a path holds, as its root says: datacube, embedding-field, or nothing."""
    try:
        document = json.loads((store / "zarr.json").read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return ""
    attributes = document.get("attributes") if isinstance(document, dict) else None
    return str((attributes or {}).get("aef:format", "")).partition("/")[0]


def _recipe(name: str) -> Recipe:
    """The recipe of that name, in that TOML file, or in that run's folder."""
    from aefcli import recipe as recipes

    known, run = recipes.names(), Path(name)
    if name in known or name.endswith(".toml"):
        return recipes.load(name)
    if not run.is_dir():
        raise unknown("cube, run or recipe", name, known, "or a run's folder, or the path of a .toml file")
    if not (run / "recipe.toml").is_file():
        raise BadInput(f"{run} is no run: it has no recipe.toml", "aef train makes one")
    return recipes.load(str(run / "recipe.toml"))


def _told(path: Path | None, recipe: Recipe, cubes: Sequence[Cube]) -> Texts | None:
    """The text vectors of a table, else those that the cubes hold, checked against the recipe and the cubes."""
    from aefcli.text import check, held, read

    texts = read(path) if path else held(cubes)
    if texts is None:
        return None
    count = check(texts, recipe, cubes)
    _note(f"{count} of {len(texts)} texts lie on the cubes")
    return texts


def _exist(paths: Sequence[Path], hint: str) -> None:
    for path in paths:
        if not path.exists():
            raise BadInput(f"there is no {path}", hint)


def _device(name: str) -> torch.device:
    """The device of that name, checked; readies the process for tensors of tens of megabytes that come and go."""
    _keep_freed_memory()
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BadInput(f"--device {name!r} is no device", "use auto, cpu, cuda or cuda:1") from error
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and not torch.cuda.is_available()):
        raise BadInput(f"--device {name} is not here", "use --device cpu")
    return device


def _keep_freed_memory() -> None:
    """Have glibc reuse large blocks rather than give them back: page faults cost embed a quarter of its time."""
    import ctypes

    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of mallopt(3)
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(trim_threshold, 2_000_000_000)
        library.mallopt(mmap_threshold, 1_000_000_000)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- printing -------------------------------------------------------------------------------------------------------


def _note(text: str) -> None:
    if not {"-q", "--quiet"} & set(sys.argv):
        print(text, file=sys.stderr, flush=True)  # noqa: T201


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with an ETA on stderr when it is a terminal; silent otherwise."""
    if not sys.stderr.isatty() or {"-q", "--quiet"} & set(sys.argv):
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _table(done: Judgement) -> list[str]:
    """The scores as lines: a row per field and probe, a column per number of shots, mean and std."""
    from rich.table import Table

    main = {"balanced_accuracy": "balanced accuracy", "r2": "R2"}
    scores = [score for score in done.scores if score.metric in main]
    counts = list(dict.fromkeys(score.shots for score in scores))
    title = f"{scores[0].task}: {main[scores[0].metric]}, {done.about['points']} points, split by {done.about['split']}"
    table = Table(title=title, title_justify="left")
    for name in ("field", "probe", *(f"{count} shots" if count != "max" else "max" for count in counts)):
        table.add_column(name, justify="left" if name in ("field", "probe") else "right")
    for row in dict.fromkeys((score.field, score.probe) for score in scores):
        cells = {
            score.shots: f"{score.mean:.3f} ± {score.std:.3f}" for score in scores if (score.field, score.probe) == row
        }
        table.add_row(*row, *(cells.get(count, "") for count in counts))
    return _lines(table)


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
    return [f"{name}: 128x128 px, one valid period, {sum(frames.values())} frames ({shown})", *_lines(table)]


def _holdings(found: About) -> list[str]:
    """What a cube holds: where, how much, a row per source, frames per month, and the gaps."""
    from rich.table import Table

    grid, megabytes = found.grid, 1e-6
    code = grid.crs if grid.crs.startswith("EPSG:") else "no code"
    lines = [
        f"{found.path}: {found.format}, {found.period}",
        f"{grid.rows} rows x {grid.columns} columns of {grid.gsd:g} m, {grid.area_km2:,.4g} km2, {grid.name} ({code}), "
        f"corner {grid.corner[0]:.12g} {grid.corner[1]:.12g}",
        f"bbox {','.join(f'{value:.4f}' for value in grid.bbox)}",
        f"{found.stored * megabytes:,.1f} MB on disk, {found.decoded * megabytes:,.1f} MB decoded",
    ]
    if "catalog" in found.request:
        lines.append(f"from {found.request['catalog']}")
    table = Table()
    for name in ("source", "frames", "first", "last", "cell", "clear", "longest gap", "MB"):
        table.add_column(name, justify="left" if name == "source" else "right")
    for name, one in found.sources.items():
        first, last = (when[:10] if when else "" for when in one.span)
        gap = "static" if one.longest is None else f"{one.longest:.0f} days"
        size = f"{one.stored * megabytes:,.1f}"
        table.add_row(name, str(len(one.times)), first, last, f"{one.cell:g} m", f"{one.clear:.1%}", gap, size)
    lines += [*_lines(table), *_months(found)]
    for name, one in found.sources.items():
        lines.append(f"{name}: {_lineage(one)}")
        lines += [f"{name}: no clear look {gap}, {gap.days:.0f} days" for gap in one.gaps[:5]]
        lines += [f"{name}: {len(one.gaps) - 5} more gaps, see --json"] if len(one.gaps) > 5 else []
        lines += [f"{name}: {len(one.masked)} assets masked, such as {one.masked[0]}"] if one.masked else []
    return lines + [f"{name}: {rows} rows at points" for name, rows in found.points.items()]


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
    return _lines(table) if table.row_count else []


def _lines(table: Table) -> list[str]:
    import io

    from rich.console import Console

    text = io.StringIO()
    Console(file=text, width=100).print(table)
    return [line.rstrip() for line in text.getvalue().rstrip().splitlines()]


def _show(result: Result) -> None:
    if "--json" in sys.argv:
        outputs = [str(path) for path in result.outputs]
        document = {"command": result.command, "status": "ok", "outputs": outputs, **result.figures}
        print(json.dumps(document))  # noqa: T201
    elif {"-q", "--quiet"} & set(sys.argv):
        print(result.outputs[0])  # noqa: T201
    else:
        print("\n".join(result.lines))  # noqa: T201


def _fail(error: AefError) -> int:
    print(f"aef: {error}", file=sys.stderr)  # noqa: T201
    if "--json" in sys.argv:
        command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
        what = {"code": error.code, "what": error.what, "hint": error.hint}
        print(json.dumps({"command": command, "status": "error", "error": what}))  # noqa: T201
    return error.code


def _leave(code: int) -> NoReturn:
    """Out at once: threads may be waiting for a slow archive, and every store can be gone on with."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _terminated(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    """Embedding fields of the Earth: fetch, train, embed, eval."""
    if context.invoked_subcommand is None and not version:
        print(context.get_help())  # noqa: T201
    if version:
        from importlib.metadata import version as installed

        print(installed("aefcli"))  # noqa: T201
        raise typer.Exit


def main() -> NoReturn:
    """The entry point: runs a command, prints its result, and turns errors into one line and an exit code."""
    # ClickException, the ancestor of every usage error: typer carries a click of its own.
    usage = cast("type[typer.BadParameter]", typer.BadParameter.__mro__[2])
    signal.signal(signal.SIGTERM, _terminated)
    # Threads that wait without spinning: beside two busy processes on two cores a training step took 1.9 s so and
    # 3.3 s otherwise; on an idle machine 1.08 s against 0.96 s.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    warnings.filterwarnings("ignore", module="rasterio|odc|affine|stackstac")
    try:
        result = app(standalone_mode=False)
        if isinstance(result, Result):
            _show(result)
        code = result if isinstance(result, int) else 0
    except AefError as error:
        code = _fail(error)
    except usage as error:
        code = _fail(BadInput(error.format_message().rstrip("."), "see aef --help or aef COMMAND --help"))
    except MemoryError:
        code = _fail(NoResources("out of memory", "use a smaller box, patch or batch"))
    except (KeyboardInterrupt, typer.Abort):
        _leave(130)
    except SystemExit as end:
        _leave(int(end.code or 0))
    except BrokenPipeError:
        code = 0
    sys.stdout.flush()
    raise SystemExit(code)
