"""The files of a Zarr store: consolidated metadata, chunks, checksums, records and the STAC item beside it."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aefcli import item, ledger
from aefcli.validate.check import Check, agrees, bad, few, hold, none, ok

if TYPE_CHECKING:
    import zarr

    from aefcli.validate.store import Store

_LISTED, _OURS = 1 << 20, 1 << 24  # chunks that are looked for one by one, of others' stores and of ours


def consolidated(store: Store) -> Iterator[Check]:
    """Consolidated metadata: there, and the same as what it was made from."""
    if store.root.metadata.zarr_format == 2:
        there = (store.path / ".zmetadata").is_file()
        yield (ok if there else none)("metadata", f".zmetadata is {'' if there else 'not '}there, format 2")
        return
    kept = json.loads((store.path / "zarr.json").read_text()).get("consolidated_metadata")
    if not kept:
        yield (bad if store.ours else none)("metadata", "not consolidated: a plain open warns")
        return
    inside = {
        str(path.parent.relative_to(store.path)): json.loads(path.read_text())
        for path in sorted(store.path.glob("*/zarr.json"))
    }
    known = {name: entry for name, entry in kept["metadata"].items() if "/" not in name}
    odd = sorted(name for name in {*inside, *known} if _bare(inside.get(name)) != _bare(known.get(name)))
    shown = f"{', '.join(odd)} not as consolidated: what opens sees depends on who opens" if odd else ""
    yield hold("metadata", not odd, shown or f"consolidated, {len(known)} arrays")


def _bare(entry: Any) -> Any:
    return {key: value for key, value in entry.items() if key != "consolidated_metadata"} if entry else entry


def state(store: Store) -> Iterator[Check]:
    state = store.attrs.get("state")
    if store.ours:
        yield hold("state", state == "complete", f"state {state}, to be complete")
    else:
        yield none("state", "others do not say it")


def checksums(store: Store) -> Iterator[Check]:
    """Whether a flipped bit is found when it is read."""
    bare = []
    for name, array in sorted(store.root.arrays()):
        said = json.dumps(array.metadata.to_dict(), default=str)
        codecs = said.replace(" ", "").replace("True", "true")
        if '"checksum":true' not in codecs and "crc32c" not in codecs:
            bare.append(name)
    if bare and not store.ours:
        store.notes.append(f"without a checksum flipped bits are not found: {few(bare)}")
        yield none("checksums", f"none in {few(bare)}")
    else:
        yield hold("checksums", not bare, f"none in {few(bare)}" if bare else "in every array")


def chunks(store: Store) -> Iterator[Check]:
    """Every chunk (or shard) of every array: an absent one was not written."""
    arrays = dict(store.root.arrays()) if store.ours else {str(store.array.basename): store.array}
    total = sum(math.prod(len(cuts) for cuts in _cuts(array)) for array in arrays.values())
    if total > (_OURS if store.ours else _LISTED):
        yield none("chunks", f"{total:,}, too many to look for")
        return
    absent, first = 0, ""
    for path in (path for name, array in arrays.items() for path in _absent(store.path / name, array)):
        absent, first = absent + 1, first or str(path.relative_to(store.path))
    shown = f"{absent:,} of {total:,} absent, first {first}" if absent else f"all {total:,} there"
    if absent and not store.ours:
        store.notes.append(f"{absent:,} of {total:,} chunks are not there: they read as {store.array.fill_value}")
        yield none("chunks", shown)
    else:
        yield hold("chunks", not absent, shown)


def _cuts(array: zarr.Array) -> list[range]:
    """Numbers of the stored files along each dimension."""
    sizes = getattr(array, "shards", None) or array.chunks
    return [range(-(-extent // size)) for extent, size in zip(array.shape, sizes, strict=True)]


def _absent(folder: Path, array: zarr.Array) -> Iterator[Path]:
    for place in itertools.product(*_cuts(array)):
        file = folder / array.metadata.encode_chunk_key(place)
        if not file.is_file():
            yield file


def records(store: Store, quick: bool) -> Iterator[Check]:
    record = ledger.read(store.path) if store.ours else None
    if record is None:
        yield none("ledger", "there are no records beside it")
    elif quick:
        yield none("ledger", "not held to its hashes in a quick look")
    else:
        faults, count = ledger.verify(store.path)
        shown = f"{len(faults)} of {count} files, first {faults[0].path} {faults[0].what}" if faults else ""
        yield hold("ledger", not faults, shown or f"{count} files are as they were written")


def item_beside(store: Store) -> Iterator[Check]:
    def expected() -> dict[str, Any]:
        if store.ours:
            return item.document(store.path)
        vectors = store.opened[0]
        return {"bbox": item.place(vectors.grid)[0]} if vectors else {}

    yield agrees(item.beside(store.path), expected)
