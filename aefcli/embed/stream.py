"""A field straight from a catalog: the ground is fetched and embedded part by part, and no cube is kept.

The items are searched for once and frozen in the field's records, as those of a cube are. Each part is fetched with
what patches reach around it into a small cube beside those records, embedded, and removed; while one is embedded the
next is fetched, so that the disk holds two of them at most. The vectors are those that a cube of the whole would give:
its frames, its lattice of patches, its support periods. (Files of another zone are warped window by window, to within
an eighth of a cell: there they differ as much as that.) A killed run goes on with what its last part had. A field grows
by further periods: what those read is fetched, and periods that read what they did are taken over.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from aefcli import checkpoint, field, ledger
from aefcli.checkpoint import Run
from aefcli.cube import Cube, Request, Work, check, cluster, grid_attrs, reach
from aefcli.cube.fetch import addressed, frozen_of, plan_of, stacks_of
from aefcli.cube.fetch import plan as searched
from aefcli.cube.mend import keyed
from aefcli.cube.part import Planned
from aefcli.cube.write import SLAB, give_back_memory, quiet_warps
from aefcli.embed import periods as spans
from aefcli.embed.network import readable
from aefcli.embed.seam import Seam, measured
from aefcli.embed.tiling import Part, around, cells, tile_side
from aefcli.embed.write import (
    Embedded,
    How,
    Mended,
    Old,
    Plan,
    Progress,
    Stats,
    compute_units,
    finished,
    how_of,
    mended,
    ordered,
    periods_of,
    standing,
    storing,
    unit_of,
)
from aefcli.errors import BadInput
from aefcli.extent import Period, Tile, tiles, to_ms

_PATIENCE = 5.0  # seconds for what is being fetched to end, once nobody waits for it


@dataclass(frozen=True)
class Streamed:
    """What a stream ended with."""

    field: Embedded
    items: int
    parts: int  # of the ground
    fetched: int  # of these, by this call
    notes: tuple[str, ...]  # sources left out, with the reason


def years_of(periods: Sequence[Period]) -> Period:
    """The calendar years that hold some periods, from the first to the last: what a stream reads for them."""
    first = min(period.dates()[0].year for period in periods)
    last = max(Period(period.end - 1, period.end).dates()[0].year for period in periods)
    return Period(to_ms(datetime(first, 1, 1, tzinfo=UTC)), to_ms(datetime(last + 1, 1, 1, tzinfo=UTC)))


def from_catalog(
    request: Request,
    run: Run,
    periods: Sequence[Period],
    out: Path,
    *,
    device: torch.device,
    how: How | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Streamed:
    """Write the field of what a catalog has of a place, for some valid periods; resume one that was cut off.

    `request` is that of a cube: its period says what is read (see `years_of`), its sources by default those of the
    model. A finished field of the same request is left alone and asks for nothing; it grows by further periods, for
    which the catalog is searched again if they lie in other years. Raises BadInput before anything is written where
    the catalog has nothing that the model reads, RemoteFailed (resumable) where data cannot be read.
    """
    how = replace(how or How(), box=None, area=request.area)  # where, the request says
    request = replace(request, sources=request.sources or tuple(run.recipe.data.sources))
    grid, sizes = check(request), how.sizes or run.recipe.embed
    asked = {
        **request.as_dict(),
        "format": field.FORMAT,
        "model": dict(checkpoint.identity(run)),
        "grid": grid_attrs(grid),
        "patches": sizes.model_dump(),
        "dtype": how.dtype,
        **({"uncertainty": how.passes} if how.passes else {}),
        "periods": [[period.start, period.end] for period in ordered(periods)],
    }
    before = None if overwrite else finished(out, asked, apart=("period", "periods"))
    if before:
        periods, was = [*periods, *periods_of(before.request)], Request.from_dict(before.request).period
        read = Period(min(was.start, request.period.start), max(was.end, request.period.end))
        request = replace(request, period=read)
        asked["period"] = request.as_dict()["period"]
        asked["periods"] = [[period.start, period.end] for period in ordered(periods)]
    grows = before is not None and ledger.digest(before.request) != ledger.digest(asked)

    @cache
    def search() -> dict[str, Any]:
        reach(how.work)  # before anything is written
        return _searched(request, run)

    def frozen() -> Any:
        return before.plan if before and before.request["period"] == asked["period"] else frozen_of(search())

    with ledger.build(out, asked, frozen, overwrite=overwrite or grows) as build, storing(out):
        items = build.plan["items"] if build.complete else addressed(build.plan, search)
        plan, planned = _plans(request, items, run, replace(how, sizes=sizes), device, periods, out, asked)
        with plan_of(out):
            old = _old(before, plan, planned) if before and grows else None
        going = _Stream(build, plan, planned, progress, old)
        if not build.complete:
            going.do()
            build.finish(field.finish)
        notes, count = tuple(build.plan["notes"]), sum(map(len, items.values()))
    return Streamed(plan.told(going.stats, going.seam), count, len(slabs_of(plan)), going.fetched, notes)


def mend_streamed(
    out: Path,
    run: Run,
    *,
    device: torch.device,
    work: Work,
    progress: Progress | None = None,
    catalog: str | None = None,
) -> Mended:
    """Fetch what lies around the damaged and missing parts of a finished field again, and embed them.

    `catalog`: that of the field, with the key that its address needs. Raises BadInput where the model is another,
    RemoteFailed where data cannot be read.
    """
    record = standing(out)
    with plan_of(out):
        request = Request.from_dict(record.request)
    if dict(checkpoint.identity(run)) != record.request["model"]:
        raise BadInput(f"{out} was made by another model than {run.path}", "--model names the run that made it")
    asked = keyed(request, catalog, out)
    items = addressed(record.plan, cache(lambda: _searched(asked, run)))
    how = how_of(record.request, work)
    plan, planned = _plans(asked, items, run, how, device, periods_of(record.request), out, record.request)

    def make(build: ledger.Build, units: Mapping[str, tuple[int, Tile]]) -> None:
        hurt = [replace(slab, units={n: u for n, u in slab.units.items() if n in units}) for slab in slabs_of(plan)]
        _Stream(build, plan, planned, progress, None).through([slab for slab in hurt if slab.units], len(units))

    return mended(plan, record, make)


def _plans(
    request: Request,
    items: Mapping[str, Any],
    run: Run,
    how: How,
    device: torch.device,
    periods: Sequence[Period],
    out: Path,
    asked: Mapping[str, Any],
) -> tuple[Plan, Planned]:
    """A field of what is frozen of a catalog, and the cube that it would be of."""
    grid, sizes = check(request), how.sizes or run.recipe.embed
    with plan_of(out):
        planned = Planned(request, grid, tuple(stacks_of(items, grid, request)))
    cube, whole = planned.cube(out), Part(grid, 0, 0, request.area)
    names, identity = tuple(readable(cube, run.recipe)), checkpoint.identity(run)
    told = json.loads(ledger.canonical(asked))  # in the order that its records have it in
    return Plan(cube, run, how, device, whole, sizes, names, identity, ordered(periods), out, told), planned


def _old(before: ledger.Record, plan: Plan, planned: Planned) -> Old:
    """What a finished field has of periods for which what is read by now is what was read then."""
    request = Request.from_dict(before.request)
    stacks = tuple(stacks_of(before.plan["items"], planned.grid, request))
    cube = replace(planned, request=request, stacks=stacks).cube(plan.out)
    names = readable(cube, plan.run.recipe)
    times = {
        period: time
        for time, period in enumerate(periods_of(before.request))
        if spans.read_for(cube, names, period) == spans.read_for(plan.cube, plan.names, period)
    }
    return Old(before, times)


def _searched(request: Request, run: Run) -> dict[str, Any]:
    """The plan of what the catalog gives of the sources that are asked for; why it does not give the others."""
    from aefcli.stac import open_catalog

    catalog = open_catalog(request.catalog)
    free, barred = catalog.offers(request.collections, request.sources)
    why = [f"{name}: {reason}" for name, reason in barred.items()]
    if not free:
        raise BadInput(
            f"{catalog.reference} gives nothing that {run.name} reads: {'; '.join(why)}", "name another --stac"
        )
    found = searched(replace(request, sources=tuple(name for name in request.sources if name in free)))
    return {**found, "notes": [*why, *found["notes"]]}


@dataclass(frozen=True)
class Slab:
    """A part of the ground that is fetched and embedded at once: whole tiles of the field, and what they need."""

    tile: Tile
    window: Tile  # with what the patches reach around it, within the grid
    units: Mapping[str, tuple[int, Tile]]

    @property
    def name(self) -> str:
        return f"{self.tile.top}-{self.tile.left}.zarr"


def slabs_of(plan: Plan) -> list[Slab]:
    """The ground of a field in slabs of about as many pixels as a cube's unit of work has."""
    side = tile_side(plan.sizes)
    size = max(1, SLAB // side) * side
    found = []
    for slab in tiles(plan.part.shape, size, size // 4):
        own = [
            Tile(tile.top + slab.top, tile.left + slab.left, tile.bottom + slab.top, tile.right + slab.left)
            for tile in tiles(slab.shape, side)
        ]
        reached = [around(cell, plan.sizes) for tile in own for cell in cells(tile, plan.sizes)]
        window = Tile(
            min(patch.top for patch in reached),
            min(patch.left for patch in reached),
            max(patch.bottom for patch in reached),
            max(patch.right for patch in reached),
        )
        units = {unit_of(period, tile): (time, tile) for time, period in enumerate(plan.periods) for tile in own}
        found.append(Slab(slab, window, units))
    return found


class _Stream:
    """A field being made of slabs: what is done of it, and what was seen on the way."""

    def __init__(
        self, build: ledger.Build, plan: Plan, planned: Planned, progress: Progress | None, old: Old | None
    ) -> None:
        self.build, self.plan, self.planned, self.progress, self.old = build, plan, planned, progress, old
        self.stats, self.fetched = Stats(), 0
        self.seam: Seam | None = None
        self.folder = build.records / "parts"
        times = {time for unit, (time, _) in plan.units().items() if not (old and old.has(unit))}
        self.periods = [plan.periods[time] for time in sorted(times)]  # some of whose units are to be made
        self.supports = {spans.support_of(plan.cube.period, period) for period in self.periods}

    def do(self) -> None:
        """Fetch and embed what remains."""
        slabs = slabs_of(self.plan)
        self._planned(slabs[0])
        self.build.template(self.plan.template)
        if self.old:
            self.stats.adopted = self.old.adopt(self.build, self.plan.units())
        total = sum(len(slab.units) for slab in slabs)
        self.through([slab for slab in slabs if self.build.remaining(slab.units)], total)

    def through(self, left: Sequence[Slab], total: int) -> None:
        """Fetch and embed some slabs, of so many units in all."""
        done = total - sum(len(slab.units) for slab in left)
        self._clear(left)
        with _one_cluster(self.plan.how.work) as work, quiet_warps(), closing(_ahead(left, self._fetched)) as found:
            self.plan = replace(self.plan, how=replace(self.plan.how, work=work))
            for slab, (cube, part) in found:
                self._embed(slab, cube, part, done, total)
                done += len(slab.units)
                _remove(self.folder / slab.name)
                give_back_memory()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _clear(self, left: Sequence[Slab]) -> None:
        """Remove what a stop has left of slabs that were done."""
        known = {slab.name for slab in left}
        for path in self.folder.glob("*.zarr") if self.folder.exists() else ():
            if path.name not in known:
                _remove(path)

    def _planned(self, slab: Slab) -> tuple[Planned, Part]:
        """What is read for a slab, and where the field's grid lies in it; refused where memory is too little for it."""
        window, whole = self.planned.within(slab.window), self.plan.part
        part = self.planned.part(window, list(self.supports))
        lies = Part(whole.grid, whole.top - window.top, whole.left - window.left, whole.area)
        replace(self.plan, cube=part.cube(self.folder), part=lies).room()
        return part, lies

    def _fetched(self, slab: Slab) -> tuple[Cube, Part]:
        """A slab as a cube, and where the field's grid lies in it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        part, lies = self._planned(slab)
        cube = part.fetch(self.folder / slab.name, Work(self.plan.how.work.threads))
        self.fetched += 1
        return cube, lies

    def _embed(self, slab: Slab, cube: Cube, lies: Part, done: int, total: int) -> None:
        plan, tell = replace(self.plan, cube=cube, part=lies), self.progress
        made = compute_units(
            self.build, plan, plan.room(), slab.units, (lambda count, _: tell(done + count, total)) if tell else None
        )
        for key, value in vars(made).items():
            setattr(self.stats, key, getattr(self.stats, key) + value)
        if plan.how.seams and self.seam is None:
            own = Part(lies.grid[slab.tile.slices], slab.tile.top + lies.top, slab.tile.left + lies.left, lies.area)
            self.seam = measured(cube, plan.run, plan.sizes, own, plan.names, self.periods[0], plan.device)


def _remove(store: Path) -> None:
    """Remove a part: its pixels first, so that its records, found without them, are begun anew."""
    shutil.rmtree(store, ignore_errors=True)
    shutil.rmtree(ledger.records_of(store), ignore_errors=True)


def _ahead(
    slabs: Sequence[Slab], fetch: Callable[[Slab], tuple[Cube, Part]]
) -> Generator[tuple[Slab, tuple[Cube, Part]], None, None]:
    """Slabs in their order, each fetched while the one before it is worked on."""
    pool = ThreadPoolExecutor(1, "parts")
    running = pool.submit(fetch, slabs[0]) if slabs else None
    try:
        for at, slab in enumerate(slabs):
            assert running is not None
            found = running.result()
            running = pool.submit(fetch, slabs[at + 1]) if at + 1 < len(slabs) else None
            yield slab, found
    finally:
        if running is not None:
            _end(running)
        pool.shutdown(wait=running is None, cancel_futures=True)


def _end(running: Future[Any]) -> None:
    """Have a fetch come to its end: nobody waits for it."""
    from aefcli.cube.read import abandon

    until = monotonic() + _PATIENCE
    while not running.cancel() and not running.done() and monotonic() < until:
        abandon()
        wait([running], timeout=0.1)


@contextmanager
def _one_cluster(work: Work) -> Iterator[Work]:
    """The cluster that works on all slabs: one that is started here is started once."""
    if work.dask is None or not work.dask.isdecimal():
        yield work
        return
    with cluster(work) as client:
        yield replace(work, dask=client.scheduler.address)
