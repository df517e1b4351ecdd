"""Whether an embedding store is what it says, and what stores.md asks of an embedding field: a list of named checks.

Owns the checks. Opens whatever `published` opens: our fields, Zarr stores of others, GeoTIFFs, TESSERA's tiles. What is
stated twice has to agree, whoever wrote it. What our own fields have to have is no failure where others lack it: there
it is not applicable, and a note says so. Metadata is read as it stands on disk; vectors block by block, in threads.

What is not asked: that a pixel with a vector was seen in its valid period. A field is nodata where no frame of the
support period was clear, and a valid period is mostly a part of that: a month without a clear look has vectors and no
observations. The other way round, observations without a vector, is a fault.

    check     a check and its outcome
    vectors   the vectors of any store, block by block
    store     a Zarr store; its checks: where, stated, files
    raster    GeoTIFFs, TESSERA's tiles
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aefcli import ledger, several
from aefcli.errors import BadInput, Damaged
from aefcli.extent import Period
from aefcli.validate.check import Check, bad, few, hold, none
from aefcli.validate.raster import open_file
from aefcli.validate.store import open_store
from aefcli.validate.vectors import SAMPLE, Progress, content_checks, overview_check, read_all

__all__ = ["SAMPLE", "Check", "Validated", "validate"]


@dataclass(frozen=True)
class Validated:
    """A store, checked."""

    path: Path
    kind: str  # embedding field, Zarr store, GeoTIFF or tile; of a group, how many fields
    checks: tuple[Check, ...]
    notes: tuple[str, ...]  # what others do differently, and readers accept
    blocks: tuple[int, int]  # read, and of how many

    @property
    def failed(self) -> int:
        return sum(check.state == "failed" for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "checks": [vars(check) for check in self.checks],
            "failed": self.failed,
            "notes": list(self.notes),
            "blocks": {"read": self.blocks[0], "of": self.blocks[1]},
        }


def validate(
    path: Path,
    *,
    period: Period | None = None,
    quick: int | None = None,
    workers: int = 4,
    progress: Progress | None = None,
) -> Validated:
    """Check a store; `period` is what one describes that does not say it itself.

    All blocks are read; with `quick`, a seed, SAMPLE of them. Of a group of fields all are checked, and whether it says
    what they do. Raises BadInput where `path` is no embedding store, Damaged where a field of ours has lost the
    metadata of its root.
    """
    path = Path(path)
    if not path.exists():
        raise BadInput(f"there is no {path}", "name an embedding store")
    if several.is_several(path):
        return _each(path, lambda field: validate(field, quick=quick, workers=workers, progress=progress))
    ledger.check_root(path)
    found = open_store(path, period) if path.is_dir() else open_file(path, period)
    checks, content, blocks = list(found.metadata(quick is not None)), found.content, (0, 0)
    if content is None:
        checks.append(none("blocks", "the store does not open, so that no vector was looked at"))
    else:
        blocks, tally = read_all(content, quick, workers, progress)
        checks += content_checks(content, tally, blocks, quick)
    if found.thinned is not None:
        checks.append(overview_check(found.thinned, quick, workers))
    return Validated(path, found.kind, tuple(checks), tuple(found.notes), blocks)


def _each(group: Path, check: Callable[[Path], Validated]) -> Validated:
    """The checks of several fields, by their names, and that of the group."""
    fields = several.fields(group)
    names = few([each.name for each in fields])
    said = f"zarr.json says what {names} do" if several.is_true(group) else f"zarr.json says other than {names} do"
    checks, notes, read, blocks = [hold("group", several.is_true(group), said)], [], 0, 0
    for field in fields:
        try:
            found = check(field)
        except (BadInput, Damaged) as error:
            checks.append(bad(f"{field.name}: opens", str(error)))
            continue
        checks += [replace(each, name=f"{field.name}: {each.name}") for each in found.checks]
        notes += [f"{field.name}: {note}" for note in found.notes]
        read, blocks = read + found.blocks[0], blocks + found.blocks[1]
    return Validated(group, f"{len(fields)} embedding fields", tuple(checks), tuple(notes), (read, blocks))
