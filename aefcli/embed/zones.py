"""Cubes of several zones into one group: a whole field for each, in its cube's CRS and under its cube's name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from aefcli import ledger, several
from aefcli.checkpoint import Run
from aefcli.cube import Cube
from aefcli.embed.tiling import part_of
from aefcli.embed.write import Embedded, How, Progress, embed, prepared, storing
from aefcli.errors import BadInput
from aefcli.extent import Period


def embed_each(
    cubes: Sequence[Cube],
    run: Run,
    periods: Callable[[Cube], Sequence[Period]],
    out: Path,
    *,
    device: torch.device,
    how: How | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Iterator[tuple[Cube, Embedded | None]]:
    """Write `out/<name>` for each cube as `embed` would, one after the other; None for those that the box leaves out.

    `periods` gives the valid periods of a cube. Fields of the group that no cube is given for stay as they are. Raises
    BadInput, before anything is written, where cubes share a name, the box touches none, `out` is anything but a group
    of fields, or `embed` would refuse one of them; Locked where another process writes the group.
    """
    how, places = how or How(), _places(cubes, out)
    several.check_free(out)
    inside = {place: cube for place, cube in places.items() if _touches(cube, run, how)}
    if not inside:
        raise BadInput(f"{how.box} touches none of the {len(cubes)} cubes", "aef info CUBE says where one lies")
    begun = [place for place in several.here(out) if place not in inside and not several.is_finished(place)]
    if begun:
        raise BadInput(f"{begun[0]} is unfinished", "give its cube, too")
    units: dict[Path, int] = {}
    is_new = not several.is_true(out)
    for place, cube in inside.items():
        plan, before = prepared(cube, run, periods(cube), place, how, device, overwrite=overwrite)
        plan.room()
        grows = before is not None and before.request != plan.request
        is_new |= ledger.would_write(place, plan.request, overwrite=overwrite or grows)
        units[place] = len(plan.units())
    with storing(out), several.writing(out):
        if is_new:
            several.begin(out)
        for place, cube in places.items():
            if place not in inside:
                yield cube, None
                continue
            (ledger.fields_of(out) / place.name).mkdir(exist_ok=True)
            asked, told = periods(cube), _counting(progress, units, place)
            yield cube, embed(cube, run, asked, place, device=device, how=how, overwrite=overwrite, progress=told)
        several.finish(out)


def _places(cubes: Sequence[Cube], out: Path) -> dict[Path, Cube]:
    """Where the field of each cube goes, by the cube's own name."""
    found: dict[Path, Cube] = {}
    for cube in cubes:
        name = cube.path.absolute().name.removesuffix(".zarr")
        if name.startswith((".", "__")) or name in ("", "zarr.json"):
            raise BadInput(f"{cube.path} has no name that a field in {out} can have", "rename it")
        if other := found.get(out / name):
            raise BadInput(f"{other.path} and {cube.path} are both named {name}", "give each once, or rename one")
        found[out / name] = cube
    return found


def _touches(cube: Cube, run: Run, how: How) -> bool:
    try:
        part_of(cube, how.sizes or run.recipe.embed, how.box, how.area)
    except BadInput:
        return False
    return True


def _counting(progress: Progress | None, units: dict[Path, int], place: Path) -> Progress | None:
    """Progress of one field as progress of all; those before it are done."""
    if progress is None:
        return None
    total, places = sum(units.values()), list(units)
    before = sum(units[each] for each in places[: places.index(place)])
    return lambda done, _: progress(before + done, total)
