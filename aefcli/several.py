"""Several embedding fields in one Zarr group, one for each cube: `region.zarr/a`, each in a CRS of its own.

    region.zarr/zarr.json         aef:format, state, aef:fields (where each field lies); all metadata, consolidated
    region.zarr/a/                a whole embedding field, which opens by its own path
    region.zarr.build/fields/a/   its records: within the group, zarr would warn of them
    region-a.png, ...             what else lies beside a field

Owns the group, and where what belongs to a field in one lies. The fields are those of `field`. What the group says is
taken from them to the byte, so that it needs no records. Source: stores.md "One group per CRS if there are several".
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aefcli.errors import BadInput
from aefcli.field import SEVERAL
from aefcli.ledger import FORMAT_KEY, fields_of, locked, write_atomically

_VERSION = 1
FORMAT = f"{SEVERAL}/{_VERSION}"
_ROOT = "zarr.json"


def is_several(path: Path) -> bool:
    """Whether a path is a group of fields: it says so or, where its root cannot be read, its records do."""
    said, records = _said(path)[0], fields_of(path)
    lost = not said and path.is_dir() and records.is_dir() and not (records.parent / "plan.json").exists()
    return said == SEVERAL or lost


def group_of(field: Path) -> Path | None:
    """The group that a field is in, or that a path would be in; None where there is none."""
    group = field.parent if field.parent.name else field.parent.resolve()
    return group if is_several(group) else None


def outside(field: Path) -> Path:
    """The path beside which what belongs to a field lies (pictures, items, runs, labels), and by which it is named.

    Its own; of `region.zarr/a` it is `region-a.zarr`, where nothing is.
    """
    group = group_of(field)
    return field if group is None else group.with_name(f"{group.name.removesuffix('.zarr')}-{field.name}.zarr")


def from_outside(field: Path) -> str:
    """A field's path as seen from what lies beside it: its name, or `region.zarr/a`."""
    return os.path.relpath(field, outside(field).parent)


def check_alone(out: Path) -> None:
    """Refuse to write one field where several are, or among them."""
    if is_several(out):
        raise BadInput(f"{out} holds several fields", "give all of its cubes, or another --out")
    if group := group_of(out):
        raise BadInput(f"{out} lies in {group}, which holds several fields", f"give all their cubes and --out {group}")


def check_free(out: Path) -> None:
    """Refuse to write several fields where something else is, or inside of others."""
    if out.exists() and not is_several(out):
        raise BadInput(f"{out} exists, and is no group of fields", "several cubes need an --out of their own")
    if group := group_of(out):
        raise BadInput(f"{out} lies in {group}, which holds several fields", "give another --out")
    _check_version(out)


def here(group: Path) -> list[Path]:
    """The fields on disk, whole or not, by name."""
    return sorted(each.parent for each in group.glob(f"*/{_ROOT}"))


def is_finished(field: Path) -> bool:
    return bool(_attributes(field).get("state") == "complete")


def fields(group: Path) -> list[Path]:
    """The fields of a finished group by name, those too that it names and that are gone.

    Raises BadInput where it is unfinished, or of a newer version.
    """
    _check_version(group)
    attrs = _attributes(group)
    if attrs and attrs.get("state") != "complete":
        raise BadInput(f"{group} is incomplete, its state is {attrs.get('state')!r}", "run aef embed again")
    return sorted({*here(group), *(group / name for name in attrs.get("aef:fields", ()))})


@contextmanager
def writing(group: Path) -> Iterator[None]:
    """The group's lock held; raises Locked where another process writes it."""
    fields_of(group).mkdir(parents=True, exist_ok=True)
    with locked(fields_of(group).parent / "lock", group):
        yield


def begin(group: Path) -> None:
    """Have the group say that its fields are being written, and no more; makes it where there is none."""
    group.mkdir(parents=True, exist_ok=True)
    write_atomically(group / _ROOT, _encoded(_group({FORMAT_KEY: FORMAT, "state": "building"})))


def finish(group: Path) -> None:
    """Have the group say what its fields do, all of which are finished. Doing it again changes nothing."""
    if not is_true(group):
        write_atomically(group / _ROOT, _encoded(_document(group)))


def is_true(group: Path) -> bool:
    """Whether the group says what its fields do, to the byte."""
    try:
        return (group / _ROOT).read_bytes() == _encoded(_document(group))
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False


def _document(group: Path) -> dict[str, Any]:
    """The group's metadata, consolidated as zarr does it: fields by name, arrays by path, all in one dictionary."""
    about: dict[str, Any] = {}
    kept: dict[str, Any] = {}
    for field in here(group):
        root = json.loads((field / _ROOT).read_text())
        attrs, inside = root["attributes"], root["consolidated_metadata"]["metadata"]
        crs = "proj:code" if "proj:code" in attrs else "proj:wkt2"
        about[field.name] = {key: attrs[key] for key in (crs, "spatial:bbox")}
        kept[field.name] = {**root, "consolidated_metadata": _consolidated({})}
        kept |= {f"{field.name}/{name}": entry for name, entry in inside.items()}
    return _group({FORMAT_KEY: FORMAT, "aef:fields": about, "state": "complete"}, kept)


def _group(attrs: dict[str, Any], kept: dict[str, Any] | None = None) -> dict[str, Any]:
    inside = {} if kept is None else {"consolidated_metadata": _consolidated(kept)}
    return {"attributes": attrs, "zarr_format": 3, **inside, "node_type": "group"}


def _consolidated(metadata: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "inline", "must_understand": False, "metadata": metadata}


def _encoded(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=2).encode()


def _check_version(group: Path) -> None:
    family, version = _said(group)
    if family == SEVERAL and version != str(_VERSION):
        raise BadInput(f"{group} is of format {family}/{version}, not {FORMAT}", "upgrade aefcli")


def _said(path: Path) -> tuple[str, str]:
    """Family and version of the format that a path says it has."""
    family, _, version = str(_attributes(path).get(FORMAT_KEY, "")).partition("/")
    return family, version


def _attributes(path: Path) -> dict[str, Any]:
    """What the root of a store says; {} where it cannot be read."""
    try:
        document = json.loads((path / _ROOT).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    found = document.get("attributes") if isinstance(document, dict) else None
    return found if isinstance(found, dict) else {}
