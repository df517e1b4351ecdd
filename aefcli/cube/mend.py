"""Repair: what a ledger says is damaged or missing in a finished cube, made again from its archive."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from aefcli import ledger
from aefcli.cube.fetch import Archive, Request, addressed, check, plan, plan_of, stacks_of
from aefcli.cube.grid import grid_attrs
from aefcli.cube.grow import FinishedCube
from aefcli.cube.write import Parts, Progress, Stack, Work, close, made, masked, storing, template, units_of
from aefcli.errors import BadInput, Damaged
from aefcli.ledger import Fault


@dataclass(frozen=True)
class Repaired:
    """What a repair ended with: files that were wrong, units made again, those of them that hold other bytes now."""

    files: tuple[str, ...]
    units: int
    changed: tuple[str, ...]  # the archive is no longer what it was


def repair(
    path: Path, work: Work | None = None, progress: Progress | None = None, *, catalog: str | None = None
) -> Repaired:
    """Fetch the damaged and missing units of a cube again, and write its metadata anew where they are wrong.

    `catalog`: that of the cube, with the key that its address needs, which is written down nowhere.
    Raises BadInput where the cube was not fetched; RemoteFailed where the archive cannot be read; Damaged where
    metadata cannot be made as they were, or where a source is damaged that came from files: what else is, is mended.
    """
    faults, _ = ledger.verify(path)
    if not faults:
        return Repaired((), 0, ())
    record = ledger.read(path)
    assert record is not None
    if "catalog" not in record.request:
        raise BadInput(f"{path} was not fetched: it cannot be made again from a catalog", "write it again")
    with plan_of(path):
        request, attached = Request.from_dict(record.request), dict(record.request.get("attached", {}))
        grid = check(request)
    request = keyed(request, catalog, path)
    beyond = [fault for fault in faults if fault.path.partition("/")[0] in attached]
    faults = [fault for fault in faults if fault not in beyond]
    with ledger.reopen(path) as build, storing(path):
        items = addressed(build.plan, lambda: plan(request, attached))
        with plan_of(path):
            stacks = [_masking(stack, masked(build)) for stack in stacks_of(items, grid, request)]
        if any(fault.unit is None for fault in faults):
            if beyond and any(fault.path == "zarr.json" for fault in faults):  # it tells of them too
                raise _from_files(path, beyond)
            parts = Parts(grid, request.period, stacks, {}, record.request)
            _metadata(path, build, parts, {} if beyond else attached, faults)
        wrong = {fault.unit for fault in faults if fault.unit}
        units = {name: unit for name, unit in units_of(stacks).items() if name in wrong}
        changed = []
        for count, (name, files, missing) in enumerate(made(path, units, work or Work()), start=1):
            build.record(name, files, {"missing": missing} if missing else None)
            if build.files(name) != record.units[name]["files"]:
                changed.append(name)
            if progress:
                progress(count, len(units))
        if not beyond:
            build.finish(lambda _: None, record.rest)
    if beyond:
        raise _from_files(path, beyond)
    return Repaired(tuple(fault.path for fault in faults), len(wrong), tuple(sorted(changed)))


def _masking(stack: Stack, missing: Sequence[str]) -> Stack:
    """A stack that masks what was masked when the cube was made, and nothing else that may be gone by now."""
    assert isinstance(stack.read, Archive)
    return replace(stack, read=replace(stack.read, mask=frozenset(missing)))


def keyed(request: Request, catalog: str | None, path: Path) -> Request:
    """The request with the catalog as it is typed, where its address needs a key. Raises BadInput for another one."""
    if catalog is None:
        return request
    asked = replace(request, catalog=catalog)
    if asked.as_dict()["catalog"] != request.as_dict()["catalog"]:
        raise BadInput(f"{path} was fetched from {request.catalog}", "--stac takes that address, with its key")
    return asked


def _from_files(path: Path, beyond: Sequence[Fault]) -> Damaged:
    """The error for files that no catalog has, of which some are damaged."""
    names = sorted({fault.path.partition("/")[0] for fault in beyond})
    again = " and ".join(f"aef attach {path} --source {name} FILE ..." for name in names)
    return Damaged(f"{path}: {beyond[0].path} came from files, not from a catalog", f"{again} puts them in again")


def _metadata(
    path: Path, build: ledger.Build, parts: Parts, attached: dict[str, dict[str, object]], faults: Sequence[Fault]
) -> None:
    """Write the metadata and coordinates that are wrong as they were, from a template made aside."""
    record = ledger.read(path)
    assert record is not None
    if attached:  # the root may be what is gone: the ledger has the order in which they came
        rasters = [name for name in dict.fromkeys(unit.partition("/")[0] for unit in record.units) if name in attached]
        known = {"aef:sources": rasters, "aef:points": [name for name in attached if name not in rasters]}
        whole = FinishedCube(path, record, {**known, "aef:grid": grid_attrs(parts.grid)})
        stacks = [*parts.stacks, *map(whole.stack, rasters)]
        parts = Parts(parts.grid, parts.period, stacks, whole.tables, parts.request)
    aside = build.records / "template"
    shutil.rmtree(aside, ignore_errors=True)
    template(aside, parts, build.key)
    for name in attached:  # is whole, or was refused; a template might spell its CRS in other words
        for file in (*path.glob(f"{name}/zarr.json"), *path.glob(f"{name}/*/zarr.json")):
            shutil.copyfile(file, aside / file.relative_to(path))
    close(aside, masked(build))
    rest = [fault.path for fault in faults if fault.unit is None]
    ledger.put_back(record, aside, rest, "fetch it again with --overwrite")
    shutil.rmtree(aside)
