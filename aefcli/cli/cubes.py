"""The commands that make and keep cubes: simulate, fetch, attach, verify, repair."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from aefcli.cli.app import (
    CUBE_HINT,
    UNITS,
    Device,
    Json,
    Overwrite,
    Quiet,
    Result,
    Seed,
    app,
    bar,
    cores,
    device_of,
    kind_of,
    lines,
    must_exist,
    note,
    on_disk,
    size_of,
)
from aefcli.errors import AefError, BadInput, Damaged, NoResources, counted, unknown
from aefcli.extent import BBox, Period

if TYPE_CHECKING:
    from aefcli.cube import Estimate, Request, Work

Made = TypeVar("Made")

Workers = Annotated[int | None, typer.Option("--workers", help="Reads at a time.", min=1)]


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
    """Make a static STAC catalog of a made-up landscape: OUT/catalog.json, with labels of all classes, labels.parquet.

    Beside them labels of other tasks (labels-crops.parquet ...), a coarse map for aef attach, captions for aef text.
    """
    first, last = _years(years)
    on_disk("OUT", out)
    from aefcli.simulate import simulate as make

    with bar("simulating") as progress:
        world = make(out, seed=seed, sites=sites, size=size, years=(first, last), progress=progress)
    bbox = ",".join(f"{value:.4f}" for value in world.bbox)
    catalog = out / world.catalog.name
    note(f"next: aef fetch --stac {catalog} --bbox {bbox} --period {years}")
    figures = {"bbox": list(world.bbox), "items": world.items, "points": world.points}
    return Result("simulate", [catalog], figures, beside=[out / world.labels.name])


def _years(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    try:
        return int(first), int(last or first)
    except ValueError as error:
        raise BadInput(f"--years {text!r} is not a year or two", "use 2023 or 2022:2023") from error


@app.command(epilog="Example: aef fetch --stac earth-search --bbox 15.0,45.95,15.1,46.05 --period 2023-01:2023-12")
def fetch(
    stac: Annotated[str, typer.Option("--stac", help="earth-search, planetary-computer, an API's URL, or a catalog.")],
    bbox: Annotated[str | None, typer.Option("--bbox", help="W,S,E,N in degrees.")] = None,
    area: Annotated[
        Path | None, typer.Option("--area", help="GeoJSON or GeoPackage; of several polygons a cube each.")
    ] = None,
    like: Annotated[Path | None, typer.Option("--like", help="A raster or cube whose grid the cube shares.")] = None,
    period: Annotated[
        str | None, typer.Option("--period", help="2023, 2023-08, 2023-01:2023-12 (both ends included); needed.")
    ] = None,
    source: Annotated[
        list[str] | None, typer.Option("--source", help="Only these; by default the model's inputs; repeat.")
    ] = None,
    collection: Annotated[
        list[str] | None, typer.Option("--collection", help="SOURCE=ID: another collection; repeat.")
    ] = None,
    band: Annotated[
        list[str] | None, typer.Option("--band", help="As in B04: of sources that have it only these; repeat.")
    ] = None,
    max_cloud: Annotated[
        float | None, typer.Option("--max-cloud", help="Per cent of an item that may be cloud.")
    ] = None,
    gsd: Annotated[float | None, typer.Option("--gsd", help="Spacing of the cube in metres; by default 10.")] = None,
    crs: Annotated[str | None, typer.Option("--crs", help="A CRS in metres; by default the box's UTM zone.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The cube (cube.zarr), or the folder of several (cubes).")
    ] = None,
    resampling: Annotated[
        str | None, typer.Option("--resampling", help="nearest or bilinear (the default), for all bands.")
    ] = None,
    loader: Annotated[str, typer.Option("--loader", help="odc or stackstac.")] = "odc",
    on_missing: Annotated[str, typer.Option("--on-missing", help="A file that is gone: fail, or mask it.")] = "fail",
    list_: Annotated[bool, typer.Option("--list", help="Only show what the catalog has for each source.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be read and written.")] = False,
    max_bytes: Annotated[str | None, typer.Option("--max-bytes", help="Refuse to write more, as in 20GB.")] = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Search again; append what is new.")] = False,
    workers: Workers = None,
    dask: Annotated[
        str | None, typer.Option("--dask", help="Work on a cluster: a scheduler's address, or a number of processes.")
    ] = None,
    overwrite: Overwrite = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> Result:
    """Search a STAC catalog and write what it has of a place and a period as a Zarr datacube.

    One of --bbox, --area and --like says where. Run again, it goes on where it stopped; with a longer --period it
    appends.
    """
    if list_:
        return _listing(stac)
    if len([given for given in (bbox, area, like) if given is not None]) != 1:
        raise BadInput("one of --bbox, --area and --like says where", "give exactly one")
    if period is None:
        raise BadInput("--period is missing", "use 2023, 2023-08 or 2023-01:2023-12")
    when, most = _past(Period.parse(period)), None if max_bytes is None else size_of("--max-bytes", max_bytes)
    chosen = _pairs("--collection", collection or [])
    on_disk("--out", out)
    places = _places(bbox, area, like, out)
    from aefcli import cube

    asked = {
        path: cube.Request(
            catalog=stac,
            period=when,
            sources=tuple(source or ()),
            crs=crs,
            resampling=resampling,
            collections=chosen,
            bands=tuple(band or ()),
            max_cloud=max_cloud,
            loader=loader,
            on_missing=on_missing,
            **{"gsd": 10.0 if gsd is None else gsd, **place},
        )
        for path, place in places.items()
    }
    for path, each in asked.items():
        cube.check(each, path)
        if gsd not in (None, each.gsd) or (crs is not None and each.grid is not None):
            raise BadInput(f"--like {like} brings its own grid, of {each.gsd:g} m", "leave --gsd and --crs out")
    work = cube.Work(workers or cores(), dask)
    if dry_run or most is not None:
        options = {"overwrite": overwrite, "refresh": refresh}
        estimates, refused = _each(asked, lambda each, path: cube.estimate(each, path, work, **options))
        excess = _excess(estimates, most, max_bytes)
        if dry_run:
            return _planned(estimates, len(asked), excess or _some(refused, len(asked)))
        if excess:
            raise excess
    results, refused = _each(asked, lambda each, path: _fetched(path, each, work, overwrite, refresh))
    if len(asked) == 1:
        return results[next(iter(asked))]
    figures = {"cubes": {str(path): one.figures for path, one in results.items()}}
    return Result("fetch", list(results), figures, error=_some(refused, len(asked)))


def _each(
    asked: Mapping[Path, Request], make: Callable[[Request, Path], Made]
) -> tuple[dict[Path, Made], dict[Path, BadInput]]:
    """What is made of each request, and why nothing of some: of a polygon, say, of which the catalog has nothing, while
    the others are none the worse. One that is alone raises.
    """
    made, refused = {}, {}
    for path, each in asked.items():
        try:
            made[path] = make(each, path)
        except BadInput as error:
            if len(asked) == 1:
                raise
            refused[path] = error
    return made, refused


def _some(refused: Mapping[Path, BadInput], count: int) -> BadInput | None:
    """The first of the cubes that were refused, and how many they are."""
    for path, error in refused.items():
        return BadInput(f"{len(refused)} of {count} cubes cannot be made: {path}: {error.what}", error.hint)
    return None


def _places(bbox: str | None, area: Path | None, like: Path | None, out: Path | None) -> dict[Path, dict[str, Any]]:
    """The cubes that are asked for, by their paths, each with what a request says of where it lies."""
    alone = out or Path("cube.zarr")
    if bbox is not None:
        return {alone: {"bbox": BBox.parse(bbox)}}
    from aefcli import cube

    if like is not None:
        grid = cube.grid_like(like)
        return {alone: {"bbox": cube.outline(grid), "grid": grid, "gsd": grid.resolution.x}}
    assert area is not None
    found, folder = cube.areas(area), out or Path("cubes")
    return {
        folder / f"{name}.zarr" if len(found) > 1 else alone: {"bbox": box, "area": outline}
        for name, (box, outline) in found.items()
    }


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


def _fetched(path: Path, request: Request, work: Work, overwrite: bool, refresh: bool) -> Result:
    from aefcli import cube

    with bar("fetching") as progress:
        done = cube.fetch(request, path, work=work, overwrite=overwrite, refresh=refresh, progress=progress)
    note(*done.notes)
    if done.missing:
        shown = ", ".join(done.missing[:3]) + (" ..." if len(done.missing) > 3 else "")
        note(f"masked, as not there: {counted(len(done.missing), 'asset')}, {shown}")
    counts = ", ".join(f"{name} {count}" for name, count in done.frames.items())
    kept = f"; {done.adopted} of {done.adopted + done.written} slabs were there" if done.adopted else ""
    note(
        f"{counted(done.items, 'item')} in frames: {counts}{kept}"
        if kept or done.written
        else f"already complete: {counts}"
    )
    figures = {
        "frames": done.frames,
        "items": done.items,
        "units_written": done.written,
        "units_adopted": done.adopted,
        "missing": list(done.missing),
        "notes": list(done.notes),
    }
    return Result("fetch", [done.path], figures)


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
    return Result("fetch", [], {"sources": figures}, lines(table))


def _excess(estimates: Mapping[Path, Estimate], most: int | None, typed: str | None) -> AefError | None:
    """What is wrong with fetching so much: more bytes than are allowed (`most`, as typed), or than are free."""
    total = sum(found.bytes_written for found in estimates.values())
    if most is not None and total > most:
        return BadInput(f"the cube would take about {_size(total)}, over --max-bytes {typed}", "ask for less")
    begin = [found for path, found in estimates.items() if not path.exists()]  # others have taken some already
    if begin and (new := sum(found.bytes_written for found in begin)) > begin[0].bytes_free:
        return NoResources(
            f"the cube would take about {_size(new)}, and {_size(begin[0].bytes_free)} are free on its disk",
            "ask for less, or name another disk with --out",
        )
    return None


def _planned(estimates: Mapping[Path, Estimate], asked: int, error: AefError | None) -> Result:
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
        note(*found.notes)
    each = {str(path): found.as_dict() for path, found in estimates.items()}
    figures = next(iter(each.values())) if asked == 1 else {"cubes": each}
    return Result("fetch", [], figures, lines(table), error=error)


def _size(count: float) -> str:
    unit = next((unit for unit in ("TB", "GB", "MB", "KB") if count >= UNITS[unit]), "")
    return f"{count / UNITS[unit]:.3g} {unit or 'bytes'}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


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
    must_exist([cube], CUBE_HINT)
    from aefcli.attach import Told
    from aefcli.attach import attach as put

    done = put(cube, source, files, Told(dates, heading, look), overwrite=overwrite)
    note(*done.notes)
    what = "texts" if source == "text" else "frames"
    note(f"{what} {'attached' if done.written else 'there already'}: {source} {done.count}")
    figures = {"source": source, what: done.count, "written": done.written, "notes": list(done.notes)}
    return Result("attach", [done.path], figures)


@app.command(epilog="Example: aef verify cube.zarr")
def verify(
    store: Annotated[Path, typer.Argument(metavar="CUBE|FIELD", help="A cube or an embedding field.")],
    json_: Json = False,
    quiet: Quiet = False,
) -> Result:
    """Hold every file of a cube or field to the hash that was written down when it was made."""
    must_exist([store], "give a cube or a field")
    from aefcli import ledger, several

    group = several.is_several(store)
    found = {each: ledger.verify(each, cores()) for each in (several.fields(store) if group else [store])}
    faults = {os.path.relpath(each / fault.path, store): fault.what for each in found for fault in found[each][0]}
    count = sum(files for _, files in found.values()) + group
    if group and not several.is_true(store):
        faults["zarr.json"] = "damaged"
    note(*(f"{what}: {path}" for path, what in faults.items()))
    figures = {"files": count, "damaged": list(faults)}
    if faults:
        error = Damaged(f"{store}: {len(faults)} of {counted(count, 'file')} damaged or missing", f"aef repair {store}")
        return Result("verify", [store], figures, error=error)
    return Result("verify", [store], figures, [f"{store}: {count} files are as they were written"])


@app.command(epilog="Example: aef repair cube.zarr")
def repair(
    store: Annotated[Path, typer.Argument(metavar="CUBE|FIELD", help="A cube that aef fetch made, or a field.")],
    stac: Annotated[
        str | None, typer.Option("--stac", help="The catalog it came from, as typed then, if the address holds a key.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option("--model", help="The run that made a field; by default of runs/, or else nano.")
    ] = None,
    workers: Workers = None,
    device: Device = "auto",
    json_: Json = False,
    quiet: Quiet = False,
) -> Result:
    """Fetch what is damaged or missing in a cube again, or compute it again in a field."""
    must_exist([store], "give a cube or a field")
    from aefcli import cube as cubes
    from aefcli import ledger, several

    work = cubes.Work(workers or cores())
    if several.is_several(store):
        _no_stac(stac)
        return _mended_each(store, model, device, work)
    record = ledger.read(store)
    # Where the root's metadata is what is damaged, the records know.
    if "embedding-field" in (kind_of(store), str(record and record.request.get("format")).partition("/")[0]):
        return _mended(store, model, device, work, stac)
    if model:
        raise BadInput("--model goes with a field", "leave it out: a cube is fetched again")
    with bar("repairing") as progress:
        done = cubes.repair(store, work, progress, catalog=stac)
    if done.changed:
        note(f"{len(done.changed)} of {done.units} units hold other bytes than before: the archive has changed")
    figures = {"files": list(done.files), "units": done.units, "changed": list(done.changed)}
    return Result("repair", [store], figures, [f"{store}: {counted(len(done.files), 'file')} mended"])


def _no_stac(stac: str | None) -> None:
    if stac:
        raise BadInput("--stac goes with what was fetched", "leave it out: the field is computed again from its cube")


def _mended_each(group: Path, model: Path | None, device: str, work: Work) -> Result:
    """Compute again what is damaged in each of several fields, and have their group say what they do."""
    from aefcli import several

    fields = several.fields(group)
    with several.writing(group):
        done = {each: _mended(each, model, device, work).figures for each in fields}
        wrong = [] if several.is_true(group) else ["zarr.json"]
        several.finish(group)
    files = [os.path.relpath(each / name, group) for each in done for name in done[each]["files"]] + wrong
    changed = [f"{each.name}/{unit}" for each in done for unit in done[each]["changed"]]
    figures = {"files": files, "units": sum(each["units"] for each in done.values()), "changed": changed}
    return Result("repair", [group], figures, [f"{group}: {counted(len(files), 'file')} mended"])


def _mended(store: Path, model: Path | None, device: str, work: Work, stac: str | None = None) -> Result:
    """Compute again what is damaged in a field, by the model that it names, from its cube or from its catalog."""
    from aefcli import checkpoint, embed, ledger
    from aefcli.cube import open_cube

    record = ledger.read(store)
    request = record.request if record else {}
    known = request.get("model", {})
    run = checkpoint.open_run(model) if model else checkpoint.made_by(known, _runs(store))[0]
    if run is None:
        raise BadInput(f"no run here made {store}: it was {known.get('run')}", "--model names the run's folder")
    options: dict[str, Any] = {"device": device_of(device), "work": work}
    if "catalog" in request:
        with bar("repairing") as progress:
            done = embed.mend_streamed(store, run, progress=progress, catalog=stac, **options)
    else:
        _no_stac(stac)
        place = (record.plan if record else {}).get("cube") or _said(store)
        must_exist([cube := store.parent / place], f"{store} was made of it: put it back")
        with bar("repairing") as progress:
            done = embed.mend(store, open_cube(cube), run, progress=progress, **options)
    if done.changed:
        note(f"{len(done.changed)} of {done.units} units hold other bytes than before: another machine or version")
    figures = {"files": list(done.files), "units": done.units, "changed": list(done.changed)}
    return Result("repair", [store], figures, [f"{store}: {counted(len(done.files), 'file')} mended"])


def _runs(store: Path) -> Path:
    from aefcli.several import outside

    return outside(store).resolve().parent / "runs"


def _said(store: Path) -> str:
    """The cube that a field names, as fields of earlier versions alone have it."""
    try:
        return str(json.loads((store / "zarr.json").read_text())["attributes"]["aef:cube"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise BadInput(f"{store} no longer says which cube it was made of", "embed anew with --overwrite") from error
