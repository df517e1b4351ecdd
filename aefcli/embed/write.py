"""The field of a cube: what is asked, how a field grows by further periods, resuming and mending."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from dataclasses import field as default
from functools import cached_property
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from aefcli import checkpoint, field, ledger
from aefcli.checkpoint import Run
from aefcli.cube import Cube, Work, grid_attrs, reach
from aefcli.embed import periods as spans
from aefcli.embed.engine import Job, Made, computed
from aefcli.embed.network import AT_ONCE, readable
from aefcli.embed.seam import Seam, measured
from aefcli.embed.tiling import Part, Room, part_of, room, tile_side
from aefcli.errors import BadInput, NoResources
from aefcli.extent import BBox, Period, Tile, tiles
from aefcli.recipe import Embed
from aefcli.sample import in_period

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class How:
    """What of a cube is embedded, as what, and by whom."""

    sizes: Embed | None = None  # patch, halo and type of numbers, if not the recipe's
    box: BBox | None = None  # the part of the cube
    area: str | None = None  # WKT in degrees, within the box; pixels outside are nodata
    dtype: str = "int8"  # of the field
    passes: int = 0  # encodings with frames dropped, for the uncertainty; 0: none is written
    memory: int = 4 << 30  # bytes, for what is read and computed
    seams: bool = True  # encode some places once more at the end, for the seam score
    worker_device: str = ""  # of a cluster's workers: auto is what each has; by default that of this process
    work: Work = default(default_factory=lambda: Work(os.cpu_count() or 1))


@dataclass(frozen=True)
class Embedded:
    """What an embed ended with."""

    path: Path
    periods: tuple[Period, ...]  # all that the field now holds
    extrapolated: tuple[Period, ...]  # those that hold no frame of the cube
    beyond: tuple[Period, ...]  # those of which a part lies beyond the cube's period
    tiles: int  # tiles, each once per period
    written: int  # by this call
    adopted: int  # taken from the field that was there
    nodata: float  # share of pixels that no frame saw clearly, over the tiles written by this call
    patches: int = 0  # encoded by this call
    seam: Seam | None = None  # none where nothing was written, or no two patches meet


@dataclass(frozen=True)
class Mended:
    """What mending a field ended with."""

    files: tuple[str, ...]
    units: int  # of the whole field
    changed: tuple[str, ...]  # units that hold other bytes than before: another machine, or other versions


@dataclass(frozen=True)
class Plan:
    """All that a field is made of."""

    cube: Cube
    run: Run
    how: How
    device: torch.device
    part: Part
    sizes: Embed
    names: tuple[str, ...]
    identity: Mapping[str, str]
    periods: tuple[Period, ...]
    out: Path
    asked: Mapping[str, Any] | None = None  # instead of what is known of the cube: no cube is kept

    @cached_property
    def request(self) -> dict[str, Any]:
        """What the ledger knows the field by. The hash of a period tells which frames serve it."""
        if self.asked is not None:
            return dict(self.asked)
        keys, known = spans.keys_of(self.cube, self.names), ledger.request_of(self.out).get("cube")
        return {
            "format": field.FORMAT,
            "cube": known if known in keys else keys[0],
            "model": dict(self.identity),
            "grid": grid_attrs(self.part.grid),
            "patches": self.sizes.model_dump(),
            "dtype": self.how.dtype,
            **({"area": self.how.area} if self.how.area else {}),
            **({"uncertainty": self.how.passes} if self.how.passes else {}),
            "periods": [
                [period.start, period.end, spans.print_of(self.cube, self.names, period)] for period in self.periods
            ],
        }

    @cached_property
    def tiles(self) -> list[Tile]:
        return list(tiles(self.part.shape, tile_side(self.sizes)))

    def units(self) -> dict[str, tuple[int, Tile]]:
        """Units of work, a tile for a period each, by their names."""
        return {unit_of(period, tile): (time, tile) for time, period in enumerate(self.periods) for tile in self.tiles}

    @property
    def place(self) -> str:
        """Where the cube lies, seen from where the field lies."""
        return os.path.relpath(self.cube.path.resolve(), self.out.resolve().parent)

    def template(self, path: Path) -> None:
        """Everything but the chunks."""
        request = self.request
        attrs = {
            **({"aef:cube": self.place} if self.asked is None else {}),
            "aef:key": ledger.digest(request),
            "aef:model": dict(self.identity),
            "aef:recipe": self.run.recipe.to_toml(),
            "aef:request": request,
            "geoemb:model": _address(self.identity),
        }
        inside = [spans.inside(self.cube, self.names, period) for period in self.periods]
        field.create(
            path,
            self.part.grid,
            self.periods,
            sources=self.names,
            attrs=attrs,
            dtype=self.how.dtype,
            inside=inside,
            uncertainty=self.how.passes > 0,
            chunk=field.CHUNK,
        )

    def jobs(self, store: Path, remaining: Collection[str], room: Room) -> list[Job]:
        """What has to be computed so that the remaining units get written."""
        return [
            Job(
                store,
                self.cube,
                self.run,
                self.identity["weights"],
                self.sizes,
                self.how.worker_device or str(self.device),
                self.part,
                tile,
                self.names,
                support,
                tuple(self.periods[time] for time in times),
                times,
                frozenset(time for time in times if unit_of(self.periods[time], tile) in remaining),
                self.how.dtype,
                self.how.passes,
                room.share(tile, self.sizes),
            )
            for tile in self.tiles
            for support, times in self._together(tile, remaining, room.periods)
        ]

    def _together(self, tile: Tile, remaining: Collection[str], most: int) -> Iterator[tuple[Period, tuple[int, ...]]]:
        """Places of the valid periods that one encoding of a tile serves, at most so many, and their support.

        Whole blocks of those that are summarised together, so that they are the same ones after a stop.
        """
        supports = [spans.support_of(self.cube.period, period) for period in self.periods]
        for support in dict.fromkeys(supports):
            times = [time for time, own in enumerate(supports) if own == support]
            blocks = [times[start : start + AT_ONCE] for start in range(0, len(times), AT_ONCE)]
            left = [block for block in blocks if any(unit_of(self.periods[time], tile) in remaining for time in block)]
            count = max(1, most // AT_ONCE)
            for start in range(0, len(left), count):
                yield support, tuple(chain.from_iterable(left[start : start + count]))

    def told(self, stats: Stats, seam: Seam | None) -> Embedded:
        """What embedding it ended with."""
        outside = tuple(period for period in self.periods if not spans.inside(self.cube, self.names, period)[0])
        whole = self.cube.period
        beyond = tuple(each for each in self.periods if each.start < whole.start or each.end > whole.end)
        nodata, tiles = stats.nodata / max(1, stats.pixels), len(self.tiles)
        done = stats.written, stats.adopted, nodata, stats.patches
        return Embedded(self.out, self.periods, outside, beyond, tiles, *done, seam)

    def room(self) -> Room:
        """How much may be computed at once within the memory that is given."""
        supports = {spans.support_of(self.cube.period, period) for period in self.periods}
        most = {name: max(len(in_period(self.cube.sources[name], each)) for each in supports) for name in self.names}
        frames = sum(most.values())
        values = sum(count * len(self.cube.sources[name].source.bands) for name, count in most.items())
        itemsize = {"int8": 1, "float16": 2, "float32": 4}[self.how.dtype]
        return room(self.how.memory, self.how.work.threads, frames, values, len(self.periods), self.sizes, itemsize)


def embed(
    cube: Cube,
    run: Run,
    periods: Sequence[Period],
    out: Path,
    *,
    device: torch.device,
    how: How | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Embedded:
    """Write the field of a cube for some valid periods; resume one that was cut off; leave a finished one alone.

    A finished field of the same model, cube and kind grows by further periods, and by what has changed in a cube that
    has grown. Raises BadInput where the model reads none of the cube's sources, or where `out` holds something else.
    """
    plan, before = prepared(cube, run, periods, out, how or How(), device, overwrite=overwrite)
    limits = plan.room()
    reach(plan.how.work)
    old = Old.of(before, plan) if before and before.request != plan.request else None
    units, stats, known = plan.units(), Stats(), {"cube": plan.place}  # for `aef repair` of a field without metadata
    aside = overwrite or old is not None
    with ledger.build(out, plan.request, lambda: known, overwrite=aside) as build, storing(out):
        if not build.complete:
            build.template(plan.template)
            adopted = old.adopt(build, units) if old else 0
            stats = compute_units(build, plan, limits, units, progress)
            stats.adopted = adopted
            build.finish(field.finish)
    seam = None
    if plan.how.seams and stats.written:
        seam = measured(cube, run, plan.sizes, plan.part, plan.names, plan.periods[0], device)
    return plan.told(stats, seam)


def prepared(
    cube: Cube, run: Run, periods: Sequence[Period], out: Path, how: How, device: torch.device, *, overwrite: bool
) -> tuple[Plan, ledger.Record | None]:
    """What `embed` is to write, and the finished field at `out` that grows by it, if there is one."""
    if out.resolve() == cube.path.resolve():
        raise BadInput(f"{out} is the cube itself", "give --out another path")
    ledger.recover(out)  # before its records are read
    plan = _planned(cube, run, periods, out, how, device)
    before = None if overwrite else finished(out, plan.request, apart=("periods",))
    if before:
        plan = replace(plan, periods=ordered([*plan.periods, *periods_of(before.request)]))
    return plan, before


def mend(
    out: Path, cube: Cube, run: Run, *, device: torch.device, work: Work, progress: Progress | None = None
) -> Mended:
    """Compute again what is damaged or missing in a finished field.

    Raises BadInput where the model or the cube is another than the field was made with.
    """
    record = standing(out)
    request = record.request
    if "cube" not in request:
        raise BadInput(f"{out} was made by an earlier version, or from no cube", "embed anew with --overwrite")
    periods, how = periods_of(request), how_of(request, work)
    plan = _planned(cube, run, periods, out, how, device)
    plan = replace(plan, part=_part_again(cube, request["grid"], request.get("area")))
    if ledger.canonical(plan.request) != ledger.canonical(request):
        raise BadInput(
            f"{out} was made by another request: {ledger.difference(request, plan.request)}",
            "give --model and the cube that it was made with, or embed anew with --overwrite",
        )
    return mended(plan, record, lambda build, units: compute_units(build, plan, plan.room(), units, progress))


def standing(out: Path) -> ledger.Record:
    """The records of a finished field that says how it was made."""
    record = ledger.read(out)
    if record is None or not record.finished:
        raise BadInput(f"{out} is no finished field with its records", "run aef embed again: it resumes")
    if "patches" not in record.request:
        raise BadInput(f"{out} was made by an earlier version, or from no cube", "embed anew with --overwrite")
    return record


def how_of(request: Mapping[str, Any], work: Work) -> How:
    """How a field of this request was made, but for who does it now."""
    sizes = Embed(**request["patches"])
    return How(sizes, None, request.get("area"), request["dtype"], request.get("uncertainty", 0), work=work)


def mended(
    plan: Plan, record: ledger.Record, make: Callable[[ledger.Build, Mapping[str, tuple[int, Tile]]], object]
) -> Mended:
    """Have `make` compute what is damaged or missing in a finished field, and write what else is anew."""
    out = plan.out
    faults, _ = ledger.verify(out)
    with ledger.reopen(out) as build, storing(out):
        all_units = plan.units()
        units = {fault.unit: all_units[fault.unit] for fault in faults if fault.unit}
        rest = [fault.path for fault in faults if not fault.unit]
        _mend_metadata(plan, out, rest)
        if units:
            make(build, units)
        changed = [unit for unit in units if build.files(unit) != record.units[unit]["files"]]
        if changed or not all(ledger.is_as(out / name, record.rest[name]) for name in rest):  # of another version
            build.finish(field.finish, record.rest)
    return Mended(tuple(fault.path for fault in faults), len(record.units), tuple(changed))


def _planned(cube: Cube, run: Run, periods: Sequence[Period], out: Path, how: How, device: torch.device) -> Plan:
    sizes = how.sizes or run.recipe.embed
    return Plan(
        cube,
        run,
        how,
        device,
        part_of(cube, sizes, how.box, how.area),
        sizes,
        tuple(readable(cube, run.recipe)),
        checkpoint.identity(run),
        ordered(periods),
        out,
    )


def ordered(periods: Sequence[Period]) -> tuple[Period, ...]:
    return tuple(sorted(set(periods), key=lambda period: (period.start, -period.end)))


def _address(identity: Mapping[str, str]) -> str:
    """A model as a package URL, its run's name and the hash of its weights: it says which, not where (purl-spec)."""
    return f"pkg:generic/{re.sub(r'[^A-Za-z0-9.-]+', '-', identity['run'])}@{identity['weights']}"


def periods_of(request: Mapping[str, Any]) -> list[Period]:
    return [Period(start, end) for start, end, *_ in request["periods"]]


def finished(out: Path, request: Mapping[str, Any], apart: Collection[str]) -> ledger.Record | None:
    """The records of a finished field of this request, but for the entries `apart`, if there is one.

    Refuses an unfinished one of other periods.
    """
    record = ledger.read(out)
    if record is None or ledger.difference(*({**each, **dict.fromkeys(apart)} for each in (record.request, request))):
        return None
    periods = periods_of(record.request)
    if not record.finished and out.exists() and periods != periods_of(request):
        begun = " ".join(f"--period {period}" for period in periods)
        raise BadInput(f"{out} is unfinished, and was begun with {begun}", "run that first, or give --overwrite")
    return record if record.finished else None


@dataclass(frozen=True)
class Old:
    """A finished field whose chunks may be taken over: its records, and where its periods are."""

    record: ledger.Record
    times: Mapping[Period, int]  # those that stay as they are

    @classmethod
    def of(cls, record: ledger.Record, plan: Plan) -> Old:
        held, now = record.request["periods"], plan.request["periods"]
        return cls(record, {Period(start, end): time for time, (start, end, _) in enumerate(held) if held[time] in now})

    def adopt(self, build: ledger.Build, units: Mapping[str, tuple[int, Tile]]) -> int:
        """Take over what stays as it is; how many units that were."""
        here = [unit for unit in build.remaining(units) if self.has(unit)]
        for unit in here:
            build.adopt(unit, self.record, _moved(self._places[unit.partition("/")[0]], units[unit][0]))
        return len(here)

    def has(self, unit: str) -> bool:
        """Whether a unit stays as it is and its files are all there; one whose files are not is computed again."""
        if unit.partition("/")[0] not in self._places or unit not in self.record.units:
            return False
        return all((self.record.store / name).is_file() for name in self.record.units[unit]["files"])

    @cached_property
    def _places(self) -> dict[str, int]:
        return {str(period): time for period, time in self.times.items()}


def _moved(was: int, now: int) -> Callable[[str], str]:
    """The name of a chunk whose time has another place: array/c/TIME/..."""

    def renamed(name: str) -> str:
        array, c, time, *rest = name.split("/")
        assert (c, time) == ("c", str(was)), name
        return "/".join((array, c, str(now), *rest))

    return renamed


@dataclass
class Stats:
    written: int = 0
    adopted: int = 0
    patches: int = 0
    nodata: int = 0
    pixels: int = 0


def compute_units(
    build: ledger.Build,
    plan: Plan,
    limits: Room,
    units: Mapping[str, tuple[int, Tile]],
    progress: Progress | None,
) -> Stats:
    """Compute what the ledger does not have of some units, or all of them where it has them all."""
    todo = set(units if build.complete else build.remaining(units))
    stats, total = Stats(), len(units)
    work = replace(plan.how.work, threads=limits.workers)
    with closing(computed(plan.jobs(build.store, todo, limits), work)) as done:
        for job, made in done:
            for time, files in made.files.items():
                build.record(unit_of(plan.periods[time], job.tile), files)
            _count(stats, job, made)
            if progress:
                progress(total - len(todo) + stats.written, total)
    return stats


def _count(stats: Stats, job: Job, made: Made) -> None:
    stats.written += len(made.files)
    stats.patches += made.patches
    stats.nodata += made.nodata
    stats.pixels += job.tile.shape[0] * job.tile.shape[1]


def unit_of(period: Period, tile: Tile) -> str:
    return f"{period}/{tile.top}/{tile.left}"


def _part_again(cube: Cube, grid: Mapping[str, Any], area: str | None) -> Part:
    """The part of a cube that has this grid."""
    from aefcli.cube import grid_from

    box, affine = grid_from(grid), cube.grid.transform
    top, left = (box.transform.f - affine.f) / affine.e, (box.transform.c - affine.c) / affine.a
    return Part(box, round(top), round(left), area)


def _mend_metadata(plan: Plan, out: Path, names: Sequence[str]) -> None:
    """Write metadata and coordinates anew, and put those files that are named in their place."""
    if not names:
        return
    with TemporaryDirectory(dir=ledger.records_of(out)) as folder:
        aside = Path(folder) / "store"
        plan.template(aside)
        field.finish(aside)
        for name in names:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(aside / name, out / name)


@contextmanager
def storing(out: Path) -> Iterator[None]:
    """A disk that refuses, as one line: the field's own, or the one that the cube lies on."""
    try:
        yield
    except OSError as error:
        where, why = error.filename or out, error.strerror or error
        raise NoResources(f"cannot read or write {where}: {why}", "make room or give leave, then run again") from error
