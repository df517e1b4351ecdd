"""What all commands share: the Typer app, their common options, what they end with, and everything that is printed.

stdout carries results (a path, a table, or one JSON object), stderr carries progress and notes. Whatever a user can
mend becomes one line and an exit code of `errors`.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, cast

import typer
import typer.core

from aefcli.cli import signals
from aefcli.errors import AefError, BadInput, NoResources, unknown

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from aefcli.checkpoint import Run

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
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A value instead of the recipe's, as train.lr=1e-4; repeat."),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 ...")]

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
CUBE_HINT = "aef fetch --stac ... --bbox ... --period ... makes one"


@dataclass
class Result:
    """What a command ends with."""

    command: str
    outputs: list[Path]  # what -q prints
    figures: dict[str, Any] = field(default_factory=dict)  # for --json
    lines: list[str] = field(default_factory=list)  # for a reader; without any, the outputs
    beside: list[Path] = field(default_factory=list)  # files that came with the outputs, for --json
    error: AefError | None = None  # it failed; `figures` say more


# --- reading options ------------------------------------------------------------------------------------------------


class _Command(typer.core.TyperCommand):
    """A command, whose every word is looked at here before any of them means something."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        for param in self.params:
            for word in _each(given.get(param.name)):
                _check(_shown(param), word, str(getattr(param, "help", None) or "").rstrip("."))
        rest = super().parse_args(ctx, args)
        for param in self.params:
            name, value = _shown(param), ctx.params[param.name]
            found = [_path(name, one) for one in value] if isinstance(value, list) else _path(name, value)
            ctx.params[param.name] = found
        return rest


def _shown(param: Any) -> str:
    """What a user calls an option or an argument: --out, CUBE."""
    return (
        max(param.opts, key=len)
        if param.param_type_name == "option"
        else re.sub(r"[][]| \.\.\.", "", param.metavar or param.name)
    )


def _each(given: Any) -> Sequence[str]:
    """The words that were given for one parameter."""
    words = given if isinstance(given, list | tuple) else [given]
    return [word for word in words if isinstance(word, str)]


def _check(name: str, word: str, hint: str) -> None:
    if not word.strip():
        raise BadInput(f"{name} is empty", hint)
    if "\0" in word or any("\ud800" <= letter <= "\udfff" for letter in word):
        raise BadInput(f"{name} {word!r} is not UTF-8 text", hint)


def _path(name: str, value: Any) -> Any:
    """A path with its ~ expanded, as no shell does in --out=~/x; refused if no file can have that name."""
    if not isinstance(value, str | Path):
        return value
    found = type(value)(os.path.expanduser(value))  # noqa: PTH111 - Path's raises where there is no such home
    if isinstance(found, Path):
        try:
            found.stat()
        except OSError as error:
            if error.errno in _NO_NAME:
                raise BadInput(f"{name} {_short(str(found))} is no path: {error.strerror}", "give another") from error
    return found


_NO_NAME = (errno.ENAMETOOLONG, errno.ELOOP)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_LEAVE = (errno.EACCES, errno.EPERM, errno.EROFS)


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:60]}...{text[-17:]}")


def on_disk(option: str, out: Path | None) -> None:
    """Refuse an URL where a path belongs: it would become a folder named s3: here."""
    if out is not None and (scheme := re.match(r"[a-z][a-z0-9+.-]*:/", str(out), re.IGNORECASE)):
        raise BadInput(f"{option} {scheme[0]}/... is no path on disk", "write here, then copy it to the cloud")


def must_exist(paths: Sequence[Path], hint: str) -> None:
    for path in paths:
        if not path.exists():
            raise BadInput(f"there is no {path}", hint)


def device_of(name: str) -> torch.device:
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
    """Have glibc reuse large blocks rather than give them back: page faults cost embed a quarter of its time.

    In two arenas, which threads share: one for each of them would hold what it ever held.
    """
    import ctypes

    trim_threshold, mmap_threshold, arena_max = -1, -3, -8  # M_... of mallopt(3)
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(trim_threshold, 2_000_000_000)
        library.mallopt(mmap_threshold, 1_000_000_000)
        library.mallopt(arena_max, 2)


def size_of(option: str, text: str) -> int:
    """Bytes, as in 500MB or 20GB."""
    number = text.strip().upper().rstrip("KMGTB")
    unit, hint = text.strip().upper()[len(number) :], "as in 500MB or 20GB"
    try:
        count = int(float(number) * UNITS[unit])
    except (KeyError, ValueError, OverflowError) as error:
        raise BadInput(f"{option} {text!r} is no size", hint) from error
    if count < 0:
        raise BadInput(f"{option} {text!r} is below 0", hint)
    return count


def one_of(option: str, word: str, known: Sequence[str]) -> str:
    if word not in known:
        raise unknown(option, word, known)
    return word


def kind_of(store: Path) -> str:
    """The kind of store that a path holds, as its root says: datacube, embedding-field, or nothing."""
    try:
        document = json.loads((store / "zarr.json").read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return ""
    attributes = document.get("attributes") if isinstance(document, dict) else None
    return str((attributes or {}).get("aef:format", "")).partition("/")[0]


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- printing -------------------------------------------------------------------------------------------------------


def _quiet() -> bool:
    return bool({"-q", "--quiet"} & set(sys.argv))


def note(*texts: str) -> None:
    if not _quiet():
        for text in texts:
            print(text, file=sys.stderr, flush=True)


def warned(run: Run | None, asked: bool = True) -> list[str]:
    """What has to be said where a run is the shipped one, for --json; printed in spite of -q."""
    if run is None or not run.shipped:
        return []
    told = f"using the shipped {run.name}, which learned from simulated landscapes"
    told = f"warning: {told}" if asked else f"warning: no run here: {told} (aef train makes your own)"
    print(told, file=sys.stderr, flush=True)
    return [told]


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with an ETA on stderr when it is a terminal; silent otherwise."""
    if _quiet() or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)


def lines(table: Table) -> list[str]:
    import io

    from rich.console import Console

    text = io.StringIO()
    Console(file=text, width=100).print(table)
    return [line.rstrip() for line in text.getvalue().rstrip().splitlines()]


def _show(result: Result) -> int:
    paths = [str(path) for path in result.outputs]
    if result.error:
        if "--json" not in sys.argv and not _quiet():
            for line in result.lines:
                print(line)
        return _fail(result.error, result.figures)
    if "--json" in sys.argv:
        outputs = [*paths, *map(str, result.beside)]
        document = {"command": result.command, "status": "ok", "outputs": outputs, **result.figures}
        print(json.dumps(document))
    else:
        for line in paths if _quiet() else result.lines or paths:
            print(line)
    return 0


def _fail(error: AefError, figures: Mapping[str, Any] | None = None) -> int:
    print(f"aef: {error}", file=sys.stderr)
    _document(error.code, error.what, error.hint, figures)
    return error.code


def _refused(error: OSError) -> AefError | None:
    """What a disk that refuses means to the user; None where it is no refusal."""
    where = f"{_short(str(error.filename))}: " if error.filename else ""
    if error.errno in _NO_NAME:
        return BadInput(f"{where}{error.strerror}", "give another path")
    if error.errno in _NO_ROOM or (error.errno in _NO_LEAVE and where):
        return NoResources(f"{where}{error.strerror}", "make room or give leave, or name another path")
    return None


def _document(code: int, what: str, hint: str = "", figures: Mapping[str, Any] | None = None) -> None:
    """With --json, say on stdout what went wrong."""
    if "--json" in sys.argv:
        command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
        error = {"code": code, "what": what, "hint": hint}
        print(json.dumps({"command": command, "status": "error", "error": error, **(figures or {})}))


def _fault(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What we broke keeps its traceback; Python makes the exit code 1."""
    sys.__excepthook__(kind, error, trace)
    _document(1, f"{kind.__name__}: {error}", "a fault of aef: please report the traceback")


def _leave(code: int) -> NoReturn:
    """Out at once, by a signal: threads may wait for a slow archive, and every store can be gone on with."""
    ended = f"ended by {signal.Signals(code - 128).name}"
    hint = f"run the same command {'with --resume' if 'train' in sys.argv[1:2] else 'again'}"
    print(f"aef: {ended} ({hint})", file=sys.stderr)
    _document(code, ended, hint)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    """Embedding fields of the Earth: fetch, train, embed, eval."""
    if context.invoked_subcommand is None and not version:
        print(context.get_help())
    if version:
        from importlib.metadata import version as installed

        print(installed("aefcli"))
        raise typer.Exit


def main() -> NoReturn:
    """The entry point: runs a command, prints its result, and turns errors into one line and an exit code."""
    sys.excepthook = _fault
    # Threads that wait without spinning: beside two busy processes on two cores a training step took 1.9 s so and
    # 3.3 s otherwise; on an idle machine 1.08 s against 0.96 s.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    warnings.filterwarnings("ignore", module="rasterio|odc|affine|stackstac")
    groups = (group.typer_instance for group in app.registered_groups)
    for command in [each for one in (app, *groups) if one for each in one.registered_commands]:
        command.cls = _Command
    with signals.ending(_leave):
        code = _run()
    sys.stdout.flush()
    raise SystemExit(code)


def _run() -> int:
    """Run the command that was asked for; the exit code."""
    # ClickException, the ancestor of every usage error: typer carries a click of its own.
    usage = cast("type[typer.BadParameter]", typer.BadParameter.__mro__[2])
    try:
        result = typer.main.get_command(app)(standalone_mode=False)
        code = _show(result) if isinstance(result, Result) else result if isinstance(result, int) else 0
    except AefError as error:
        code = _fail(error)
    except usage as error:
        code = _fail(BadInput(error.format_message().rstrip("."), "see aef --help or aef COMMAND --help"))
    except MemoryError:
        code = _fail(NoResources("out of memory", "use a smaller box, patch or batch"))
    except KeyboardInterrupt:
        code = 130
    except SystemExit as end:
        code = int(end.code or 0)
    except BrokenPipeError:
        code = 0
    except OSError as error:
        if (told := _refused(error)) is None:
            raise
        code = _fail(told)
    if code > 128:  # Typer, too, makes 130 of Ctrl-C
        _leave(code)
    return code
