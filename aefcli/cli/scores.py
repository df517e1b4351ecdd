"""The command that scores: eval."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aefcli.cli.app import (
    Device,
    Json,
    Quiet,
    Result,
    Seed,
    app,
    bar,
    device_of,
    lines,
    must_exist,
    note,
    on_disk,
    warned,
)
from aefcli.errors import BadInput, BelowThreshold, unknown
from aefcli.extent import Period

if TYPE_CHECKING:
    from aefcli.judge import Judgement, Protocol
    from aefcli.probe import Comparison, Evaluation
    from aefcli.suite import Outcome

_PROBES = {
    "knn": ("knn1", "knn3"),
    "linear": ("linear",),
    "ridge": ("ridge",),
    "all": ("knn1", "knn3", "linear", "ridge"),
}
_METRICS = {"balanced_accuracy": "balanced accuracy", "macro_f1": "macro-F1", "r2": "R2", "mae": "mean error"}
_TABLES = (".csv", ".parquet", ".geojson", ".gpkg")


@dataclass(frozen=True)
class _Wanted:
    """What is asked for beside the scores."""

    report: Path | None
    csv: Path | None
    fail_under: float | None


@app.command(epilog="Example: aef eval embeddings.zarr --labels labels.csv --probe knn --shots 1,10,max", name="eval")
def eval_(
    fields: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FIELD ...]", help="Fields, or a table with --features; by default embeddings.zarr."),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option("--labels", help="CSV, Parquet, GeoJSON or GeoPackage of labelled points.")
    ] = None,
    features: Annotated[
        list[str] | None, typer.Option("--features", help="Columns of a table to score, as A00:A63 or red,nir; repeat.")
    ] = None,
    label: Annotated[str, typer.Option("--label", help="The column of the labels.")] = "label",
    cube: Annotated[Path | None, typer.Option("--cube", help="For the baselines; by default the field's own.")] = None,
    model: Annotated[
        Path | None, typer.Option("--model", help="The run that made the field; by default of runs beside it, or nano.")
    ] = None,
    period: Annotated[
        str | None, typer.Option("--period", help="What a published field describes that does not say it.")
    ] = None,
    probe: Annotated[str, typer.Option("--probe", help="knn, linear, ridge or all.")] = "all",
    shots: Annotated[
        str | None, typer.Option("--shots", help="Labels per class; by default those of 1,10,max that fit.")
    ] = None,
    block: Annotated[
        float | None, typer.Option("--block", help="Metres of the blocks of ground to split by; by default 1280.")
    ] = None,
    baseline: Annotated[
        str, typer.Option("--baseline", help="By commas, all, or none; by default composite,untrained.")
    ] = "composite,untrained",
    compare: Annotated[
        tuple[str, str] | None, typer.Option("--compare", metavar="A B", help="Two rows, for their paired difference.")
    ] = None,
    guards: Annotated[bool, typer.Option("--guards", help="Add measures that need no labels.")] = False,
    quantisation: Annotated[
        bool, typer.Option("--quantisation", help="Add float beside int16 and int8, and fewer dimensions.")
    ] = False,
    suite: Annotated[str | None, typer.Option("--suite", help="quick or full: tasks in the made-up world.")] = None,
    report: Annotated[Path | None, typer.Option("--report", help="Write one HTML page.")] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write the scores as CSV.")] = None,
    fail_under: Annotated[
        float | None, typer.Option("--fail-under", help="Exit 8 where the first row's best score is lower.")
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    json_: Json = False,
    quiet: Quiet = False,
) -> Result:
    """Score embedding fields on labels, beside the baselines from the same cube."""
    for option, path in (("--report", report), ("--csv", csv)):
        on_disk(option, path)
    must_exist([path for path in (labels, cube) if path], "check the path")
    wanted = _Wanted(report, csv, fail_under)
    if suite is not None:
        of_files: dict[str, Any] = {"FIELD": fields, "--labels": labels, "--features": features, "--cube": cube}
        of_files |= {"--period": period, "--shots": shots, "--block": block, "--compare": compare, "--report": report}
        of_files |= {"--guards": guards, "--quantisation": quantisation}
        for option in (option for option, given in of_files.items() if given):
            raise BadInput(f"{option} does not go with --suite", "a suite judges a run in its own world: --model RUN")
        return _suite(suite, model, seed, device, wanted)
    protocol = _protocol(probe, shots, block, compare, seed)
    paths = fields or [Path("embeddings.zarr")]
    if features:
        of_fields: dict[str, Any] = {"--labels": labels, "--cube": cube, "--model": model, "--period": period}
        of_fields |= {"--guards": guards, "--quantisation": quantisation}
        return _table(fields or [], features, label, of_fields, protocol, wanted)
    if tables := [path for path in paths if path.suffix.lower() in _TABLES]:
        raise BadInput(f"{tables[0]} is a table of points", "name columns of it with --features, as A00:A63")
    must_exist(paths, "aef embed cube.zarr --period 2023-01:2023-12 makes one")
    from aefcli.checkpoint import open_run
    from aefcli.judge import find_labels, judge

    told = Period.parse(period) if period else None
    table = labels or find_labels(paths, cube, told)
    with bar("scoring") as progress:
        done = judge(
            paths,
            table,
            cube,
            protocol,
            label=label,
            beside=_beside(baseline),
            run=open_run(model) if model else None,
            period=told,
            guards=guards,
            quantisation=quantisation,
            device=device_of(device),
            progress=progress,
        )
    return _ended(done, paths, table, wanted)


def _table(
    paths: Sequence[Path],
    features: Sequence[str],
    label: str,
    of_fields: Mapping[str, Any],
    protocol: Protocol,
    wanted: _Wanted,
) -> Result:
    """Columns of one table as candidates; what is of fields alone is refused."""
    if len(paths) != 1:
        raise BadInput("--features is of one table", "name it: aef eval points.csv --features A00:A63")
    must_exist(paths, "give a table of points that has the columns of --features")
    for option in (option for option, given in of_fields.items() if given):
        raise BadInput(f"{option} is of fields, and {paths[0]} is a table", f"leave {option} out")
    from aefcli.judge import judge_table

    with bar("scoring") as progress:
        done = judge_table(paths[0], features, label, protocol, progress)
    return _ended(done, paths, paths[0], wanted)


# --- reading options ----------------------------------------------------------------------------------------------


def _protocol(
    text: str, shots: str | None, block: float | None, compare: tuple[str, str] | None, seed: int
) -> Protocol:
    if text not in _PROBES:
        raise unknown("--probe", text, _PROBES)
    counts = _shots(shots) if shots is not None else None
    if block is not None and not 0 < block < 1e7:
        raise BadInput(f"--block {block:g} is no size of a block of ground", "give metres, such as 1280")
    from aefcli.judge import Protocol

    plain = Protocol(_PROBES[text], counts, seed, pairs=[compare] if compare else ())
    return plain if block is None else replace(plain, block=block)


def _shots(text: str) -> list[int | str]:
    counts: list[int | str] = []
    for part in text.split(","):
        if part != "max" and not (part.isdecimal() and int(part) > 0):
            raise BadInput(f"--shots {text!r} holds {part!r}", "use numbers from 1 and max, as in 1,10,max")
        counts.append(part if part == "max" else int(part))
    return counts


def _beside(text: str) -> list[str]:
    """The baselines by name."""
    from aefcli.judge import BASELINES

    names = {"all": list(BASELINES), "none": []}.get(text, text.split(","))
    for name in names:
        if name not in BASELINES:
            raise unknown("--baseline", name, [*BASELINES, "all", "none"])
    return names


# --- what it ends with --------------------------------------------------------------------------------------------


def _ended(done: Judgement, paths: Sequence[Path], table: Path, wanted: _Wanted) -> Result:
    """Files, table and figures of a judgement."""
    note(f"labels: {table}", *done.notes)
    results = [score.as_dict() for score in (*done.evaluation.scores, *done.detected)]
    beside = []
    if wanted.csv:
        beside.append(_write_csv(wanted.csv, results))
    if wanted.report:
        from aefcli.report import page, view

        told = {**done.provenance, "command": shlex.join(["aef", *sys.argv[1:]])}
        drawn = tuple(view(field) for field in done.fields)
        beside.append(page(replace(done, provenance=told, views=drawn), wanted.report))
    figures: dict[str, Any] = {
        "labels": str(table),
        "about": dict(done.evaluation.about),
        "notes": list(done.notes),
        "results": results,
        "comparisons": [one.as_dict() for one in done.comparisons],
        "guards": [asdict(one) for one in done.guards],
    }
    text = _score_table(done.evaluation, done.task) + _sentences(done) + _guard_lines(done)
    if done.quantisation:
        from aefcli.probe import compare

        first, *others = dict.fromkeys(score.field for score in done.quantisation.scores)
        found = [one for other in others for one in compare(done.quantisation, other, first)]
        figures["quantisation"] = {
            "results": [score.as_dict() for score in done.quantisation.scores],
            "comparisons": [one.as_dict() for one in found],
        }
        text += [*_score_table(done.quantisation, f"{done.task}, as stored"), *map(_said, found)]
    error = _missed(done.evaluation, wanted.fail_under)
    return Result("eval", list(paths), figures, text, beside=beside, error=error)


def _missed(evaluation: Evaluation, least: float | None) -> BelowThreshold | None:
    """What --fail-under says of the first row, at the most shots that were scored."""
    if least is None:
        return None
    from aefcli.probe import best

    first, shots = evaluation.scores[0].field, evaluation.scores[-1].shots
    name, mean = best(evaluation, first, shots)
    if mean >= least:
        return None
    return BelowThreshold(f"{first}: {mean:.3f} with {name} at {shots} shots is below --fail-under {least:g}")


def _write_csv(path: Path, results: Sequence[Mapping[str, Any]]) -> Path:
    import pandas as pd

    from aefcli.ledger import write_atomically

    write_atomically(path, pd.DataFrame(list(results)).to_csv(index=False).encode())
    return path


def _score_table(evaluation: Evaluation, task: str) -> list[str]:
    """The scores as lines: a row per field and probe, a column per number of shots."""
    from rich.table import Table

    from aefcli.probe import METRICS

    main, beside = METRICS[evaluation.kind]
    found = {(s.field, s.probe, s.shots, s.metric): s for s in evaluation.scores}
    counts = list(dict.fromkeys(score.shots for score in evaluation.scores))
    about = evaluation.about
    how = {"site": f"{about['groups']} sites", "given": "the split given"}
    how["block"] = f"{about['groups']} blocks of {about.get('block', 0):g} m"
    title = f"{task}: {_METRICS[main]} ± std, {_METRICS[beside]}; {about['points']} points in {how[about['split']]}"
    table = Table()
    for name in ("field", "probe", *(_shown(count) for count in counts)):
        figures = name not in ("field", "probe")
        # A long name folds: cut short, two tiles of one field would have the same
        table.add_column(name, justify="right" if figures else "left", no_wrap=figures, overflow="fold")
    for name, probe in dict.fromkeys((score.field, score.probe) for score in evaluation.scores):
        cells = []
        for count in counts:
            first, second = (found[name, probe, count, metric] for metric in (main, beside))
            cells.append(f"{first.mean:.3f} ± {first.std:.3f}, {second.mean:.3f}")
        table.add_row(name, probe, *cells)
    return [title, *lines(table)]


def _shown(count: int | str) -> str:
    return "max" if count == "max" else f"{count} shot{'' if str(count) == '1' else 's'}"


def _sentences(done: Judgement) -> list[str]:
    """Each comparison, and what is told of change without labels, in a sentence."""
    return [_said(one) for one in done.comparisons] + [
        f"{score.field}, {score.probe}: {score.mean:.3f} ± {score.std:.3f} {_METRICS[score.metric]}, without labels"
        for score in done.detected
        if score.metric == "balanced_accuracy"
    ]


def _said(one: Comparison) -> str:
    return (
        f"{one.a} ({one.a_probe}) minus {one.b} ({one.b_probe}) at {_shown(one.shots)}: {one.difference:+z.3f} "
        f"{_METRICS[one.metric]}, 95% {one.low:+z.3f} to {one.high:+z.3f}; error reduction "
        f"{100 * one.error_reduction:+z.1f}%, error ratio {one.error_ratio:.2f}"
        f"{'' if one.confirmed or not round(one.difference, 3) else '; the second metric does not confirm it'}"
    )


def _guard_lines(done: Judgement) -> list[str]:
    """The guards: whether something is broken, not how good it is."""
    if not done.guards:
        return []
    from rich.table import Table

    table = Table()
    for name in ("guard", "value", "whole is", "what"):
        table.add_column(name, justify="right" if name == "value" else "left")
    for one in done.guards:
        table.add_row(one.name, f"{one.value:.3f}", str(one.ideal), one.what)
    return ["guards: whether something is broken, not how good it is", *lines(table)]


# --- suites -------------------------------------------------------------------------------------------------------


def _suite(name: str, model: Path | None, seed: int, device: str, wanted: _Wanted) -> Result:
    """The made-up world's tasks, for a run or for a network without one."""
    from aefcli.checkpoint import open_run
    from aefcli.suite import SUITES, run

    if name not in SUITES:
        raise unknown("--suite", name, SUITES)
    judged, where = open_run(model) if model else None, device_of(device)
    told = warned(judged)
    with bar(f"suite {name}") as progress:
        done = run(SUITES[name], judged, seed, where, progress)
    note(*done.notes)
    beside = [_write_csv(wanted.csv, done.results)] if wanted.csv else []
    figures = {"about": dict(done.about), "results": list(done.results), "summary": dict(done.summary)}
    figures["notes"] = [*told, *done.notes]
    error = None
    reached = done.summary["error_reduction"]["max"]
    if wanted.fail_under is not None and reached < wanted.fail_under:
        error = BelowThreshold(f"the error reduction at max is {reached:.3f}, below --fail-under {wanted.fail_under:g}")
    return Result("eval", [], figures, _suite_lines(done), beside=beside, error=error)


def _suite_lines(done: Outcome) -> list[str]:
    """Each task's best transfers at the most shots, and what it comes down to; then the error reductions."""
    from rich.table import Table

    main = {row["metric"]: row for row in done.results if row["metric"] in ("balanced_accuracy", "r2")}
    assert main, "a suite has scores"
    counts = ["1", "10", "max"]
    table = Table()
    for name in ("task", "candidate", *(_shown(count) for count in counts)):
        table.add_column(name, justify="left" if name in ("task", "candidate") else "right")
    best: dict[tuple[str, str], dict[str, float]] = {}
    for row in done.results:
        if row["metric"] in main:
            cells = best.setdefault((row["task"], row["field"]), {})
            cells[str(row["shots"])] = max(cells.get(str(row["shots"]), -9.0), row["mean"])
    shown = ""
    for (task, name), cells in best.items():
        table.add_row(task if task != shown else "", name, *(f"{cells[c]:.3f}" if c in cells else "" for c in counts))
        shown = task
    reductions = ", ".join(f"{value:+.1%} at {shots}" for shots, value in done.summary["error_reduction"].items())
    said = (
        f"error reduction of {done.about['ours']} against the best designed baseline, mean of the sparse-label tasks: "
    )
    return [*lines(table), said + reductions]
