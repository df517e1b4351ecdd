"""The commands of finished fields: export, validate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aefcli.cli.app import Json, Overwrite, Quiet, Result, Seed, app, bar, cores, must_exist, note, on_disk
from aefcli.errors import BadInput, Damaged
from aefcli.extent import Period

if TYPE_CHECKING:
    from aefcli.published import Vectors
    from aefcli.validate import Validated


@app.command(epilog="Example: aef export embeddings.zarr --cog --out geotiffs")
def export(
    field: Annotated[
        Path, typer.Argument(metavar="[FIELD]", help="An embedding field: ours, AEF's GeoTIFFs, Zarr, TESSERA's tiles.")
    ] = Path("embeddings.zarr"),
    cog: Annotated[bool, typer.Option("--cog", help="A cloud-optimised GeoTIFF for each valid period.")] = False,
    points: Annotated[
        Path | None, typer.Option("--points", help="A table of the vectors at the points of this one.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The folder of --cog, by default this one; the table of --points, points.parquet."),
    ] = None,
    period: Annotated[
        list[str] | None,
        typer.Option("--period", help="Which valid period; or the one of a file that does not say it. Repeat."),
    ] = None,
    dequantised: Annotated[
        bool, typer.Option("--dequantised", help="Vectors as float32 in place of codes: four times the size.")
    ] = False,
    overwrite: Overwrite = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> Result:
    """Write a field for those who read no Zarr: GeoTIFFs for QGIS and GDAL, or a table of its vectors at points.

    <field>_<first day>_<last day>.tif has a band for each dimension, A00 ... A63, and overviews that are means of
    decoded vectors. A table, .parquet or .csv, has the points' own columns, period_start and period_end (half open),
    and A00 ... A63 as float32; a row for each point and period, or for the period that a point itself names in
    valid_time_start_ms and valid_time_end_ms.
    """
    if cog == (points is not None):
        raise BadInput(f"give {'one of --cog and --points' if cog else '--cog or --points'}", "two runs make both")
    if dequantised and not cog:
        raise BadInput("--dequantised is of --cog", "a table holds decoded vectors as it is: leave it out")
    on_disk("--out", out)
    told = [Period.parse(text) for text in period or []]
    must_exist([field], "aef embed cube.zarr --period 2023-01:2023-12 makes one")
    if points is not None:
        must_exist([points], "give a .csv, .parquet, .geojson or .gpkg file")
    folder = out or Path()
    if cog and (folder.suffix.lower() in (".tif", ".tiff") or (folder.exists() and not folder.is_dir())):
        raise BadInput(f"--out {folder} is no folder", "name the folder of the GeoTIFFs: a period each")
    from aefcli.published import open_vectors

    vectors = open_vectors(field, told[0] if len(told) == 1 else None)
    note(*vectors.notes)
    if points is not None:
        return _table(vectors, points, out or Path("points.parquet"), told, overwrite)
    from aefcli.export import write_cogs

    with bar("exporting") as progress:
        done = write_cogs(
            vectors,
            folder,
            told,
            dequantised=dequantised,
            workers=cores(),
            overwrite=overwrite,
            progress=progress,
        )
    for each in done:
        note(f"{each.path}: " + ("is there" if each.nodata is None else f"{each.period}, {each.nodata:.1%} nodata"))
    rows = [{"path": str(each.path), "period": str(each.period), "nodata": each.nodata} for each in done]
    figures = {**_about(vectors), "files": rows}
    return Result("export", [each.path for each in done], figures)


def _table(vectors: Vectors, points: Path, out: Path, periods: Sequence[Period], overwrite: bool) -> Result:
    from aefcli.export import write_table

    done = write_table(vectors, points, out, periods, overwrite=overwrite)
    if gone := sum(done.missing.values()):
        why = ", ".join(f"{count} {name}" for name, count in done.missing.items() if count)
        note(f"{gone} of {done.rows} rows have no vector: {why}")
    counts = {"points": done.points, "rows": done.rows, "missing": dict(done.missing)}
    held = [str(period) for period in done.periods]
    return Result("export", [done.path], {**_about(vectors), **counts, "periods": held})


def _about(vectors: Vectors) -> dict[str, Any]:
    return {"field": str(vectors.path), "dimensions": vectors.dimensions, "notes": list(vectors.notes)}


@app.command(epilog="Example: aef validate embeddings.zarr")
def validate(
    field: Annotated[
        Path, typer.Argument(metavar="[FIELD]", help="An embedding store: ours, Zarr, AEF's GeoTIFFs, TESSERA's tiles.")
    ] = Path("embeddings.zarr"),
    quick: Annotated[bool, typer.Option("--quick", help="Read a sample of the blocks, and no hash.")] = False,
    period: Annotated[
        str | None, typer.Option("--period", help="What a published field describes that does not say it.")
    ] = None,
    seed: Seed = 0,
    json_: Json = False,
    quiet: Quiet = False,
) -> Result:
    """Hold an embedding store to what it says and to the field's format, a line for each check; exit 4 if one fails.

    Place, periods, labels, nodata, quantiser, lengths, observations, chunks, records and the STAC item beside it. What
    others do differently and readers accept is noted.
    """
    told = Period.parse(period) if period else None
    must_exist([field], "aef embed cube.zarr --period 2023-01:2023-12 makes one")
    from aefcli.validate import validate as check

    with bar("reading") as progress:
        found = check(field, period=told, quick=seed if quick else None, workers=cores(), progress=progress)
    note(*found.notes)
    wrong = [each for each in found.checks if each.state == "failed"]
    error = None
    if wrong:
        what = f"{field}: {len(wrong)} of {len(found.checks)} checks failed: {', '.join(each.name for each in wrong)}"
        error = Damaged(what, "write it again, or mend what they name")
    return Result("validate", [field], found.as_dict(), _checks(found), error=error)


def _checks(found: Validated) -> list[str]:
    """A line for each check, which no width of a terminal folds."""
    wide = max(len(check.name) for check in found.checks)
    failed = f"{found.failed} failed" if found.failed else "all good"
    counts = f"{len(found.checks)} checks, {failed}"
    return [
        *(f"{check.state:<14}  {check.name:<{wide}}  {check.found}" for check in found.checks),
        f"{found.path}, {found.kind}: {counts}",
    ]
