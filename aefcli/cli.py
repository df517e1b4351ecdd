"""The command line: parse, call, print.

Owns the commands, their options and everything that is printed. stdout carries results (a path, a table, or one JSON
object), stderr carries progress and notes. Whatever a user can mend becomes one line and an exit code of `errors`.
"""

from __future__ import annotations

import json
import os
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

from aefcli.errors import AefError, BadInput, NoResources, unknown
from aefcli.extent import BBox, Period

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from aefcli.cube import Cube
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
    bbox: Annotated[str, typer.Option("--bbox", help="W,S,E,N in degrees.")],
    period: Annotated[str, typer.Option("--period", help="2023, 2023-08, 2023-01:2023-12 (both ends included).")],
    source: Annotated[list[str] | None, typer.Option("--source", help="Only these sources; repeat.")] = None,
    gsd: Annotated[float, typer.Option("--gsd", help="Spacing of the cube in metres.")] = 10.0,
    crs: Annotated[str | None, typer.Option("--crs", help="A CRS in metres; by default the box's UTM zone.")] = None,
    out: Annotated[Path, typer.Option("--out", help="The cube.")] = Path("cube.zarr"),
    resampling: Annotated[str | None, typer.Option("--resampling", help="nearest or bilinear, for all bands.")] = None,
    workers: Annotated[int | None, typer.Option("--workers", help="Reads at a time.", min=1)] = None,
    overwrite: Overwrite = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> Result:
    """Search a STAC catalog and write what it has of a box and a period as a Zarr datacube."""
    box, when = BBox.parse(bbox), _past(Period.parse(period))
    if resampling not in (None, "nearest", "bilinear"):
        raise unknown("--resampling", str(resampling), ["nearest", "bilinear"])
    from aefcli import cube

    request = cube.Request(stac, box, when, tuple(source or ()), cube.check_gsd(gsd), crs, resampling)
    with _progress("fetching") as progress:
        done = cube.fetch(request, out, workers=workers or _cores(), overwrite=overwrite, progress=progress)
    for note in done.notes:
        _note(note)
    counts = ", ".join(f"{name} {count}" for name, count in done.frames.items())
    _note(f"{done.items} items in frames: {counts}" if done.written else f"already complete: {counts}")
    figures = {"frames": done.frames, "items": done.items, "units_written": done.written, "notes": list(done.notes)}
    return Result("fetch", [done.path], figures, [str(done.path)])


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
    text: Annotated[Path | None, typer.Option("--text", help="Text vectors that aef text made.")] = None,
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
    told = _told(text, plan, opened) if text else None
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


@app.command(epilog="Example: aef info base --frames 16")
def info(
    plan: Annotated[str, typer.Argument(metavar="RUN|RECIPE", help="A run's folder, a recipe's name or a TOML file.")],
    frames: Annotated[
        int | None, typer.Option("--frames", help="Frames of all sources; by default the recipe's.", min=1)
    ] = None,
    json_: Json = False,
) -> Result:
    """Count a model's parameters, and the FLOPs of one patch of 128x128 px and one valid period, by part."""
    from aefcli import cost

    recipe = _recipe(plan)
    most = dict(zip(recipe.data.sources, recipe.data.frames, strict=True))
    work = cost.split(frames or sum(most.values()), most)
    counts = cost.parameters(recipe.model, recipe.data.sources, recipe.data.targets)
    flops = cost.flops(recipe.model, work, targets=recipe.data.targets)
    figures = {"name": recipe.name, "recipe": recipe.hash, "frames": work, "parameters": counts, "flops": flops}
    return Result("info", [], figures, _costs(recipe.name, work, counts, flops))


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


def _shots(text: str) -> list[int | str]:
    counts: list[int | str] = []
    for part in text.split(","):
        if part != "max" and not (part.isdigit() and int(part) > 0):
            raise BadInput(f"--shots {text!r} holds {part!r}", "use numbers from 1 and max, as in 1,10,max")
        counts.append(part if part == "max" else int(part))
    return counts


def _recipe(name: str) -> Recipe:
    """The recipe of that name, in that TOML file, or in that run's folder."""
    from aefcli import recipe as recipes

    known, run = recipes.names(), Path(name)
    if name in known or name.endswith(".toml"):
        return recipes.load(name)
    if not run.is_dir():
        raise unknown("run or recipe", name, known, "or a run's folder, or the path of a .toml file")
    if not (run / "recipe.toml").is_file():
        raise BadInput(f"{run} is no run: it has no recipe.toml", "aef train makes one")
    return recipes.load(str(run / "recipe.toml"))


def _told(path: Path, recipe: Recipe, cubes: Sequence[Cube]) -> Texts:
    """The text vectors, checked against the recipe and the cubes."""
    from aefcli.text import check, read

    count = check(texts := read(path), recipe, cubes)
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
        code = 130
    except BrokenPipeError:
        code = 0
    sys.stdout.flush()
    raise SystemExit(code)
