"""The command that scores: eval."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aefcli.cli.app import Device, Json, Quiet, Result, Seed, app, bar, device_of, lines, must_exist, note
from aefcli.errors import BadInput, unknown

if TYPE_CHECKING:
    from aefcli.judge import Judgement


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
    counts = _shots(shots) if shots is not None else None
    paths = fields or [Path("embeddings.zarr")]
    must_exist(paths, "aef embed cube.zarr --period 2023-01:2023-12 makes one")
    must_exist([path for path in (labels, cube) if path], "check the path")
    from aefcli.judge import find_labels, judge

    table = labels or find_labels(paths, cube)
    with bar("scoring") as progress:
        done = judge(
            paths,
            table,
            cube,
            probes=probes[probe],
            shots=counts,
            seed=seed,
            device=device_of(device),
            progress=progress,
        )
    note(f"labels: {table}", *done.notes)
    figures = {"labels": str(table), "about": dict(done.about), "results": [score.as_dict() for score in done.scores]}
    return Result("eval", paths, figures, _table(done))


def _shots(text: str) -> list[int | str]:
    counts: list[int | str] = []
    for part in text.split(","):
        if part != "max" and not (part.isdecimal() and int(part) > 0):
            raise BadInput(f"--shots {text!r} holds {part!r}", "use numbers from 1 and max, as in 1,10,max")
        counts.append(part if part == "max" else int(part))
    return counts


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
    return lines(table)
