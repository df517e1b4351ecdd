"""The command that draws maps: map."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aefcli.cli.app import Json, Overwrite, Quiet, Result, Seed, app, bar, cores, lines, must_exist, note, on_disk
from aefcli.errors import BadInput, unknown
from aefcli.extent import Period

if TYPE_CHECKING:
    from aefcli.maps import Map

_PROBES = ("linear", "ridge", "knn", "knn1", "knn3")


@app.command(epilog="Example: aef map embeddings.zarr --labels labels.csv --probe ridge --out map.tif", name="map")
def map_(
    field: Annotated[
        Path, typer.Argument(metavar="[FIELD]", help="An embedding field: ours, AEF's GeoTIFFs, Zarr, TESSERA's tiles.")
    ] = Path("embeddings.zarr"),
    labels: Annotated[
        Path | None, typer.Option("--labels", help="Labelled points; by default labels.* beside the field.")
    ] = None,
    label: Annotated[str, typer.Option("--label", help="The column of the labels.")] = "label",
    probe: Annotated[str, typer.Option("--probe", help="linear, ridge, knn (k = 3), knn1 or knn3.")] = "ridge",
    period: Annotated[
        str | None, typer.Option("--period", help="Which valid period; or the one of a file that does not say it.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="The map, a cloud-optimised GeoTIFF.")] = Path("map.tif"),
    no_score: Annotated[bool, typer.Option("--no-score", help="Do not cross-validate the probe.")] = False,
    block: Annotated[
        float,
        typer.Option("--block", help="Metres of the blocks that scoring splits by, where there is no site or split."),
    ] = 1280.0,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> Result:
    """Draw a map of classes or values from labelled points: one probe, taught on all of them, over every pixel.

    Of classes, band 2 is confidence in percent: of linear and ridge, half of the lead over the second class; of knn,
    the share of the votes.
    """
    if probe not in _PROBES:
        raise unknown("--probe", probe, _PROBES)
    if not 0 < block < math.inf:
        raise BadInput(f"--block {block:g} is no size", "give metres, such as 1280")
    on_disk("--out", out)
    told = Period.parse(period) if period is not None else None
    must_exist([field], "aef embed cube.zarr --period 2023-01:2023-12 makes one")
    from aefcli.maps import draw_map
    from aefcli.probe import find_labels
    from aefcli.several import outside

    table = labels or find_labels(outside(field).resolve().parent)
    if table is None:
        raise BadInput(f"there are no labels beside {field}", "name a table with --labels")
    with bar("mapping") as progress:
        done = draw_map(
            field,
            table,
            out,
            kind=probe,
            label=label,
            period=told,
            seed=None if no_score else seed,
            block=block,
            workers=cores(),
            overwrite=overwrite,
            progress=progress,
        )
    note(f"{done.trained} labels of {table} teach {done.probe} on {done.field}, {done.period}", *done.notes)
    figures = {
        "field": str(field),
        "period": str(done.period),
        "labels": str(table),
        "probe": done.probe,
        "trained": done.trained,
        "classes": dict(done.classes),
        "nodata": done.nodata,
        "results": [score.as_dict() for score in done.scores],
        "about": dict(done.about),
        "notes": list(done.notes),
    }
    return Result("map", [done.path], figures, [*_told(done), str(done.path)])


def _told(done: Map) -> list[str]:
    """The probe's score, how it was split, and the share of the map that each class has."""
    from rich.table import Table

    names = {"balanced_accuracy": "balanced accuracy", "macro_f1": "macro-F1", "r2": "R2", "mae": "mean absolute error"}
    shown = [f"{names[score.metric]} {score.mean:.3f} ± {score.std:.3f}" for score in done.scores]
    split = f"{done.scores[0].n_train} labels train, split by {done.about['split']}" if shown else "not scored"
    scored = ", ".join((*shown, split))
    if not done.classes:
        return [scored]
    table = Table()
    table.add_column("class")
    table.add_column("share of the map", justify="right")
    for name, share in done.classes.items():
        table.add_row(name, f"{share:.1%}")
    return [scored, *lines(table)]
