"""The commands of models: text, train, embed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aefcli.cli.app import (
    CUBE_HINT,
    Device,
    Json,
    Overwrite,
    Quiet,
    Result,
    Set,
    app,
    bar,
    cores,
    device_of,
    must_exist,
    note,
    on_disk,
    one_of,
    size_of,
    warned,
)
from aefcli.cli.signals import stopping
from aefcli.errors import BadInput, counted
from aefcli.extent import BBox, Period

if TYPE_CHECKING:
    import torch

    from aefcli.checkpoint import Run
    from aefcli.cube import Cube
    from aefcli.embed import Embedded
    from aefcli.recipe import Embed
    from aefcli.start import Start
    from aefcli.text import Texts
    from aefcli.train import Record

_TELL = 10.0  # seconds between two lines of training


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
    note(f"{counted(done.texts, 'vector')} of {done.width}" if done.written else "already complete")
    figures = {"texts": done.texts, "width": done.width, "model": done.model, "notes": list(done.notes)}
    return Result("text", [done.path], figures)


@app.command(epilog="Example: aef train cube.zarr --recipe nano --set train.steps=100")
def train(
    cubes: Annotated[
        list[Path] | None, typer.Argument(metavar="[CUBE ...]", help="Cubes; by default cube.zarr.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="A recipe's name, or a TOML file; by default nano.")
    ] = None,
    set_: Set = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Steps instead of the recipe's.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed instead of the recipe's.", min=0)] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The run; by default the next runs/<recipe>-NNN.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the newest unfinished run, or --out's.")] = False,
    from_: Annotated[Path | None, typer.Option("--from", help="A finished run whose weights to begin with.")] = None,
    samples: Annotated[Path | None, typer.Option("--samples", help="A table by aef samples, or a run's.")] = None,
    text: Annotated[
        Path | None, typer.Option("--text", help="Text vectors that aef text made; by default the cubes' own.")
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write the log for TensorBoard, too.")] = False,
    device: Device = "auto",
    json_: Json = False,
    quiet: Quiet = False,
) -> Result | int:
    """Train a model on cubes; writes a run with its weights, recipe, log, pictures and card."""
    on_disk("--out", out)
    if resume and (from_ or samples):
        raise BadInput("--resume goes on with what the run began with", "leave --from and --samples out")
    must_exist([path for path in (samples, text) if path], "give one that exists")
    must_exist(cubes or [], CUBE_HINT)
    from aefcli import checkpoint, parallel
    from aefcli import recipe as recipes
    from aefcli.report import board
    from aefcli.start import begin, go_on

    if tensorboard:
        board.check()

    run, old = checkpoint.unfinished_run(out) if resume else None, checkpoint.open_run(from_) if from_ else None
    known = run or old
    changes = list(set_ or [])
    changes += [f"train.{key}={value}" for key, value in (("steps", steps), ("seed", seed)) if value is not None]
    base = recipes.load(recipe or "nano") if recipe or known is None else known.recipe
    plan = recipes.with_values(base, changes)
    opened, told = _opened(cubes, [] if run else [Path("cube.zarr")]), _texts(text)
    with parallel.joined(device_of(device)) as where:
        if run:
            start = go_on(run, opened, plan, told)
        else:
            start = begin(out, opened, plan, old=old, samples=samples, texts=told)
        return _steps(start, where, board.board(start.run) if tensorboard else nullcontext(lambda record: None))


def _opened(given: list[Path] | None, usual: list[Path]) -> list[Cube]:
    from aefcli.cube import open_cube

    must_exist(paths := given or usual, CUBE_HINT)
    return [open_cube(path) for path in paths]


def _texts(path: Path | None) -> Texts | None:
    from aefcli.text import read

    return read(path) if path else None


def _steps(start: Start, device: torch.device, board: AbstractContextManager[Callable[[Record], None]]) -> Result | int:
    """Train, telling of it, and finish the run's folder; in all but the first process nothing is told."""
    from aefcli import ledger, parallel
    from aefcli.report.run import look_png
    from aefcli.train import train as run_steps

    run, steps = start.run, start.recipe.train.steps
    if parallel.rank() > 0:
        with stopping() as stop:
            deque(run_steps(start, device, stop), maxlen=0)
        return 0
    notes = [*warned(start.old), *start.notes]
    note(*start.notes)
    if run.weights.is_file():
        note(f"{run.path} is finished")
    began, told, last = time.monotonic(), 0.0, None
    alone = ledger.locked(run.path / "lock", run.path)
    with alone, _carded(run), bar("training") as progress, board as tell, stopping() as stop:
        for record in run_steps(start, device, stop):
            if last is None:
                first, since = record.step, time.monotonic()
            last = record
            progress(record.step, steps)
            tell(record)
            if record.look:
                look_png(record.look, run.path / "looks" / f"{record.step:08d}.png")
            if record.warning:
                note(f"warning: {record.warning}")
            if record.look or record.step == steps or time.monotonic() - told > _TELL:
                told = time.monotonic()
                left = (told - since) / max(1, record.step - first) * (steps - record.step)
                eta = f"  ETA {timedelta(seconds=round(left))}" if record.step > first else ""
                note(f"step {record.step}/{steps}  {_told(record)}{eta}")
    figures: dict[str, Any] = {"recipe": start.recipe.hash, "steps": steps, "seconds": time.monotonic() - began}
    figures["notes"] = notes
    if last is not None:
        figures |= {"loss": last.loss, "parts": last.parts, "look": last.look.numbers if last.look else {}}
    return Result("train", [run.path], figures)


@contextmanager
def _carded(run: Run) -> Iterator[None]:
    """Write the run's card in the end; also where it was cut off or failed, which is not to be hidden by that."""
    from aefcli import card

    whole = False
    try:
        yield
        whole = True
    finally:
        with nullcontext() if whole else suppress(OSError):
            card.write(run)


def _told(record: Record) -> str:
    """A step in one line: losses, rate, pace, how long the data kept it waiting, and what a look showed."""
    parts = " ".join(f"{name} {value:.3f}" for name, value in record.parts.items())
    pace = f"{record.seconds:.2f} s/step  {record.frames:.0f} frames/s  waiting {100 * record.wait:.0f}%"
    seen = "".join(f"  {name} {value:.3f}" for name, value in record.look.numbers.items()) if record.look else ""
    return f"loss {record.loss:.4f}  {parts}  lr {record.lr:.1e}  {pace}{seen}"


@app.command(
    epilog="Example: aef embed cube.zarr --period 2023-01:2023-12; aef embed --every month; "
    "aef embed cubes/a.zarr cubes/b.zarr --period 2023 --out region.zarr; "
    "aef embed --stac earth-search --bbox 15.0,45.95,15.1,46.05 --period 2023"
)
def embed(
    cubes: Annotated[
        list[Path] | None, typer.Argument(metavar="[CUBE ...]", help="Cubes; by default cube.zarr, with --stac none.")
    ] = None,
    period: Annotated[list[str] | None, typer.Option("--period", help="A valid period; repeat.")] = None,
    every: Annotated[
        str | None,
        typer.Option("--every", help="month, quarter or year: cut each period, by default the cube's, into these."),
    ] = None,
    model: Annotated[Path | None, typer.Option("--model", help="A run; by default the newest, or else nano.")] = None,
    out: Annotated[Path, typer.Option("--out", help="The embedding field.")] = Path("embeddings.zarr"),
    bbox: Annotated[str | None, typer.Option("--bbox", help="A part of the cube: W,S,E,N in degrees.")] = None,
    area: Annotated[
        Path | None, typer.Option("--area", help="A part of the cube: one polygon, GeoJSON or GeoPackage.")
    ] = None,
    stac: Annotated[
        str | None, typer.Option("--stac", help="A catalog instead of a cube; --bbox or --area says where.")
    ] = None,
    gsd: Annotated[float | None, typer.Option("--gsd", help="With --stac: spacing in metres; by default 10.")] = None,
    max_cloud: Annotated[
        float | None, typer.Option("--max-cloud", help="With --stac: per cent of an item that may be cloud.")
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="int8, float16 or float32.")] = "int8",
    uncertainty: Annotated[
        int, typer.Option("--uncertainty", help="Passes with a third of the frames dropped; adds their spread.", min=0)
    ] = 0,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="embed.halo, embed.patch or embed.dtype.")
    ] = None,
    memory: Annotated[str, typer.Option("--memory", help="For what is read and computed, of each process.")] = "4GB",
    workers: Annotated[int | None, typer.Option("--workers", help="Patches at a time.", min=1)] = None,
    dask: Annotated[
        str | None, typer.Option("--dask", help="Work on a cluster: a scheduler's address, or a number of processes.")
    ] = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> Result:
    """Embed a cube for any valid periods: an embedding field as Zarr, a preview and a STAC item beside it.

    Run again, it goes on where it stopped; with further periods, or once the cube has grown, the field grows. Several
    cubes, as of several zones, make a group of fields, each by its cube's name. With --stac no cube is kept: the
    calendar years of the periods are fetched and embedded part by part.
    """
    if not period and not every:
        raise BadInput("--period is missing", "name one, such as --period 2023-01:2023-12, or --every month")
    if bbox is not None and area is not None:
        raise BadInput("--bbox and --area both say which part", "give one of them")
    asked = [Period.parse(text) for text in period or ()]
    box, room = BBox.parse(bbox) if bbox is not None else None, size_of("--memory", memory)
    one_of("--dtype", dtype, ("int8", "float16", "float32"))
    if every is not None:
        one_of("--every", every, ("month", "quarter", "year"))
    on_disk("--out", out)
    if stac is None:
        _without_stac({"--gsd": gsd, "--max-cloud": max_cloud})
        must_exist(cubes := cubes or [Path("cube.zarr")], CUBE_HINT)
    else:
        _with_stac(cubes, bbox or area, asked)
    must_exist([area] if area else [], "give a GeoJSON or GeoPackage file")
    from aefcli import checkpoint
    from aefcli.cube import Request, Work, open_cube
    from aefcli.embed import How, from_catalog, years_of
    from aefcli.embed import embed as write
    from aefcli.several import check_alone

    run = checkpoint.open_run(model) if model else checkpoint.newest_run()
    where = device_of("auto" if dask and device.startswith("cuda") else device)  # a cluster has its own
    opened = [open_cube(path) for path in cubes or ()]
    outline = None
    if area is not None:
        box, outline = _polygon(area)
    sizes, work = _sizes(run, set_), Work(workers or cores(), dask)
    how = How(sizes, box, outline, dtype, uncertainty, room, worker_device=device if dask else "", work=work)
    notes, more = warned(run, asked=model is not None), dict[str, Any]()
    options: dict[str, Any] = {"device": where, "how": how, "overwrite": overwrite}
    if len(opened) > 1:
        return _each(opened, run, lambda cube: _cut(asked or [cube.period], every), out, notes, options)
    check_alone(out)
    cube = opened[0] if opened else None
    periods = _cut(asked or ([cube.period] if cube else []), every)
    with bar("embedding") as progress:
        if cube:
            done = write(cube, run, periods, out, progress=progress, **options)
        else:
            assert stac is not None
            assert box is not None
            request = Request(
                stac, box, years_of(periods), gsd=10.0 if gsd is None else gsd, area=outline, max_cloud=max_cloud
            )
            streamed = from_catalog(request, run, periods, out, progress=progress, **options)
            done = streamed.field
            more = {"items": streamed.items, "parts": streamed.parts, "parts_fetched": streamed.fetched}
            note(*streamed.notes)
            notes += streamed.notes
    beside = _beside(done.path, cube.path if cube else None, run, made=done.written > 0)
    data = str(cube.path) if cube else "the catalog"
    return _embedded(done, {"model": run.name, "notes": notes}, more, data, beside)


def _each(
    cubes: Sequence[Cube],
    run: Run,
    periods: Callable[[Cube], Sequence[Period]],
    out: Path,
    notes: list[str],
    options: dict[str, Any],
) -> Result:
    """Embed several cubes into one group, a field for each."""
    from aefcli.embed import embed_each

    fields, beside = [], list[Path]()
    with bar("embedding") as progress:
        for cube, done in embed_each(cubes, run, periods, out, progress=progress, **options):
            if done is None:
                notes.append(f"{cube.path} is left out: --bbox or --area does not touch it")
                note(notes[-1])
                continue
            note(f"{done.path}:")
            made = _beside(done.path, cube.path, run, made=done.written > 0)
            one = _embedded(done, {"path": str(done.path), "model": run.name}, {}, str(cube.path), made)
            fields.append(one.figures)
            beside += one.beside
    return Result("embed", [out], {"model": run.name, "notes": notes, "fields": fields}, beside=beside)


def _embedded(done: Embedded, first: dict[str, Any], more: dict[str, Any], data: str, beside: list[Path]) -> Result:
    """What an embed ends with, told and as figures."""
    note(*(f"{outside} holds no frame of {data}: its embeddings are extrapolated" for outside in done.extrapolated))
    beyond = [period for period in done.beyond if period not in done.extrapolated]
    note(*(f"{period} reaches beyond {data}: what lies there is extrapolated" for period in beyond))
    note(f"model {first['model']}, {counted(len(done.periods), 'period')}" if done.written else "already complete")
    if done.written:
        note(str(done.seam or "no two patches meet where there is data: no seam"))
    figures = {
        **first,
        "periods": [str(each) for each in done.periods],
        "extrapolated": [str(each) for each in done.extrapolated],
        "beyond": [str(each) for each in done.beyond],
        "tiles": done.tiles,
        "tiles_written": done.written,
        "tiles_adopted": done.adopted,
        "patches": done.patches,
        "nodata_share": round(done.nodata, 6),
        "seam_degrees": {"mean": done.seam.mean, "p99": done.seam.most} if done.seam else None,
        **more,
    }
    return Result("embed", [done.path], figures, beside=beside)


def _without_stac(given: dict[str, float | None]) -> None:
    for option, value in given.items():
        if value is not None:
            raise BadInput(f"{option} {value:g} goes with --stac", "a cube has what it was fetched with")


def _with_stac(cubes: list[Path] | None, place: str | Path | None, periods: list[Period]) -> None:
    """Refuse what makes no sense where a catalog is read."""
    if cubes:
        raise BadInput(f"{cubes[0]} and --stac both say what is embedded", "give one of them")
    if place is None:
        raise BadInput("--stac needs to be told where", "give --bbox W,S,E,N in degrees, or --area")
    if not periods:
        raise BadInput("--every cuts the period of a cube, and --stac has none", "give --period, too")
    for period in periods:
        if period.dates()[0].year > time.gmtime().tm_year:
            raise BadInput(
                f"--period {period} begins in a year to come, and archives hold what was measured",
                "aef fetch makes a cube of the past, which aef embed takes beyond its period",
            )


def _beside(store: Path, cube: Path | None, run: Run, *, made: bool) -> list[Path]:
    """Pictures and STAC item of a field, made where the field was, or where they are gone or of another state of it.

    The item comes last: one that is of this state says that the pictures are, too.
    """
    from aefcli import item, report
    from aefcli.several import outside

    here = outside(store)
    places = [here.parent / f"{here.resolve().stem}{ending}" for ending in (".png", ".preview.tif", ".stac.json")]
    if made or not all(place.is_file() for place in places) or not item.is_current(store):
        return [report.preview(store), report.preview_tif(store), item.write(store, cube, run)]
    return places


def _cut(periods: list[Period], every: str | None) -> list[Period]:
    from aefcli.embed import every as pieces

    return [piece for period in periods for piece in pieces(period, every)] if every else periods


def _sizes(run: Run, words: list[str] | None) -> Embed:
    """How patches are laid, by the run's recipe and what is set instead; nothing else of a trained model can be."""
    from aefcli import recipe as recipes

    for word in words or ():
        if not word.strip().startswith("embed."):
            raise BadInput(f"--set {word} is for training", "embed takes embed.halo, embed.patch and embed.dtype")
    return recipes.with_values(run.recipe, words or ()).embed


def _polygon(path: Path) -> tuple[BBox, str]:
    """The one polygon of a file: its box and its outline."""
    from aefcli.cube import areas

    found = areas(path)
    if len(found) > 1:
        raise BadInput(f"{path} holds {len(found)} polygons", "aef embed takes one; aef fetch --area makes a cube each")
    return next(iter(found.values()))
