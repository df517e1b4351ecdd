"""One write protocol for every store: plan, lock, template, units with hashes, finish.

A store `x.zarr` is built with its records beside it, in `x.zarr.build/`:

    plan.json      the request as asked, its key (a hash of it), and what was frozen when work began
    ledger.jsonl   a line per finished unit of work, with the SHA-256 of every file that the unit wrote; the last line
                   says finished, with those of all other files
    lock           held with flock while a process writes; the kernel lets go when that process dies

A unit is whole chunks, written once, by one worker. Its line follows its files, both flushed to disk, so that
what the ledger names is there. Resuming is plan minus ledger. A finished store is left alone; another request for
the same path is refused, or built in `x.zarr.build/next/` and renamed into place when `overwrite` is asked for; a unit
that would be the same as in the store that it replaces may be adopted from there. `verify` holds a store to its
ledger.

Knows nothing of Zarr, arrays or networks. Source: `stores.md`, "A write that survives".
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from aefcli.errors import BadInput, Damaged, Locked, NoResources

FORMAT_KEY = "aef:format"  # the root attribute by which a store is known as ours
_ROOT = "zarr.json"  # the file that has it
_CUT_OFF = re.compile(r"\.[0-9a-f]{32}\.partial$")
_FLUSHERS = 8  # threads: files flushed to disk together share what the disk does for one


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`, in hex."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


@dataclass
class Build:
    """A store under construction, or found finished. Made by `build`."""

    store: Path  # where files are written now
    records: Path  # plan.json and ledger.jsonl
    key: str  # hash of the request
    plan: Any = None  # what was frozen when the work began
    complete: bool = False
    _lines: dict[str, dict[str, Any]] = field(default_factory=dict)  # of the finished units

    def template(self, write: Callable[[Path], None]) -> None:
        """Have `write(path)` make the empty store aside, then rename it into place. Nothing if it is there."""
        if self.store.exists():
            return
        aside = self.records / "template"
        shutil.rmtree(aside, ignore_errors=True)
        write(aside)
        aside.rename(self.store)
        _sync_folder(self.store.parent)

    def remaining(self, units: Iterable[str]) -> list[str]:
        return [unit for unit in units if unit not in self._lines]

    def files(self, unit: str) -> dict[str, str]:
        """The files of a finished unit and their hashes."""
        return dict(self._lines[unit]["files"])

    def about(self) -> dict[str, Any]:
        """What was kept with the finished units, by their names."""
        return {unit: line["about"] for unit, line in self._lines.items() if "about" in line}

    def record(self, unit: str, files: Iterable[Path], about: Mapping[str, Any] | None = None) -> None:
        """Flush the unit's files to disk, hash them, and only then say in the ledger that it is done.

        `about` is plain JSON to be kept with the unit. A later line of the same unit takes the place of an earlier one.
        """
        self._say(unit, self._flushed(files), about or {})

    def adopt(self, unit: str, other: Record, renamed: Callable[[str], str] = str) -> None:
        """Take a finished unit of another store as it is: its files are linked, not copied, each to its name here."""
        line = other.units[unit]
        hashes = {renamed(name): value for name, value in line["files"].items()}
        for name, here in zip(line["files"], hashes, strict=True):
            place = self.store / here
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
            try:
                os.link(other.store / name, place)
            except OSError:  # a file system without links
                shutil.copyfile(other.store / name, place)
        self._say(unit, hashes, line.get("about", {}))

    def finish(self, close: Callable[[Path], None], rest: Iterable[str] | None = None) -> None:
        """After the last unit: `close(store)` writes the final metadata; then the ledger says complete.

        `rest` names the files that are no unit's, by default all that are there: of a store that somebody has used
        meanwhile some are not its own.
        """
        close(self.store)
        if rest is None:
            known = {name for line in self._lines.values() for name in line["files"]}
            here = (f"{folder}{os.sep}{name}" for folder, _, names in os.walk(self.store) for name in names)
            rest = [name for name in map(self._within, here) if name not in known]
        self._append({"finished": self.key, "files": self._flushed(self.store / name for name in rest)})
        self.complete = True

    def _flushed(self, files: Iterable[Path]) -> dict[str, str]:
        """Hashes of files by their names, once they are on disk."""
        paths = list(files)

        def share(first: int) -> dict[str, str]:
            return {self._within(path): _flush_and_hash(path) for path in paths[first::_FLUSHERS]}

        with ThreadPoolExecutor(_FLUSHERS) as pool:  # a future for each file takes as long as its hash
            return {name: found for some in pool.map(share, range(_FLUSHERS)) for name, found in some.items()}

    def _within(self, path: str | Path) -> str:
        """The name of a file of the store, as text: paths of some hundred files take a while to be compared."""
        name, home = os.fspath(path), f"{self.store}{os.sep}"
        assert name.startswith(home), "a file of another store"
        return name[len(home) :]

    def _say(self, unit: str, hashes: Mapping[str, str], about: Mapping[str, Any]) -> None:
        for folder in {name.rpartition("/")[0] for name in hashes}:
            _sync_folder(self.store / folder)
        line = {"unit": unit, "files": dict(hashes), **({"about": dict(about)} if about else {})}
        self._append(line)
        self._lines[unit] = line

    def _append(self, line: dict[str, Any]) -> None:
        with (self.records / "ledger.jsonl").open("ab") as out:
            out.write(canonical(line).encode() + b"\n")
            out.flush()
            os.fsync(out.fileno())


@contextmanager
def build(
    store: Path, request: Mapping[str, Any], plan: Callable[[], Any], *, overwrite: bool = False
) -> Iterator[Build]:
    """Open the build of `store` for this request: new, resumed, or found complete.

    `plan()` is asked once in the life of a build, before anything is written, and its answer (plain JSON) is frozen.
    Raises BadInput where the path holds something else, Locked where another process is writing it, Damaged where
    the ledger cannot be read, or a finished store is not opened by its root. None of these writes anything.
    """
    asked: dict[str, Any] = json.loads(canonical(dict(request)))
    key = digest(asked)
    home = records_of(store)
    recover(store)
    aside = _choose(store, home, asked, key, overwrite)
    records = home / "next" if aside else home
    begun = _read_plan(records)
    content = None if begun and begun["key"] == key else plan()
    with _writing(home):
        home.mkdir(parents=True, exist_ok=True)
    with locked(home / "lock", store):
        if _choose(store, home, asked, key, overwrite) != aside:
            raise Locked(f"{store} was written by another process meanwhile", "run the same command again")
        current = Build(records / "store" if aside else store, records, key)
        with _writing(home):
            _enter(current, asked, content)
        if current.complete and not aside:
            check_root(store)
        yield current
        if aside and current.complete:
            _swap(store, home)
            current.store, current.records = store, home


def recover(store: Path) -> None:
    """Finish a swap that was cut off, if one was. Raises Locked where another process writes the store."""
    home = records_of(store)
    if home.exists():  # another writer is found before a catalog is asked
        with locked(home / "lock", store):
            if (home / "old").exists():
                _recover(store, home)


def settle(store: Path) -> None:
    """As `recover`; a store that another process writes is left alone where no swap was cut off."""
    if (records_of(store) / "old").exists():
        recover(store)


def would_write(store: Path, request: Mapping[str, Any], *, overwrite: bool = False) -> bool:
    """Whether `build` would find anything to do. Raises what it would raise, and writes nothing."""
    asked: dict[str, Any] = json.loads(canonical(dict(request)))
    if _choose(store, records_of(store), asked, digest(asked), overwrite):
        return True
    record = read(store)
    if record and record.finished:
        check_root(store)
    return record is None or not record.finished


@dataclass(frozen=True)
class Record:
    """What the records of a store say, read and not written to."""

    store: Path
    request: Mapping[str, Any]
    plan: Any
    units: Mapping[str, Mapping[str, Any]]  # lines by unit: `files` to their hashes, `about`
    rest: Mapping[str, str]  # metadata and coordinates to their hashes
    finished: bool


@dataclass(frozen=True)
class Fault:
    """A file of a store that is not what the ledger says."""

    path: str  # within the store
    what: str  # missing or damaged
    unit: str | None  # that wrote it; none for metadata and coordinates


def read(store: Path) -> Record | None:
    """The records of a store, or None where there are none. Raises Damaged where they cannot be read."""
    plan = _read_plan(records_of(store))
    if plan is None:
        return None
    lines = _read_lines(records_of(store) / "ledger.jsonl")
    units = {line["unit"]: line for line in lines if "unit" in line}
    rest = [line for line in lines if "finished" in line]
    files = rest[-1].get("files", {}) if rest else {}
    return Record(store, plan["request"], plan["plan"], units, files, bool(rest) and store.exists())


def is_recorded(store: Path) -> bool:
    """Whether records lie beside a store."""
    return (records_of(store) / "plan.json").is_file()


def request_of(store: Path) -> Mapping[str, Any]:
    """The request that the records of a store were begun with; nothing where there are none."""
    plan = _read_plan(records_of(store))
    return plan["request"] if plan else {}


def check_root(store: Path) -> None:
    """Raise Damaged where a finished store has lost the metadata of its root, by which it is opened."""
    if _is_ours(store):
        return
    record = read(store)
    if record and record.finished and _ROOT in record.rest:
        raise Damaged(f"{store} cannot be opened: its {_ROOT} is gone or damaged", f"aef repair {store} mends it")


def verify(store: Path, workers: int = 4) -> tuple[list[Fault], int]:
    """Hold every file of a finished store to its hash; what differs, and how many files were looked at.

    Raises BadInput where there are no records or the store is not finished.
    """
    record = read(store)
    if record is None:
        raise BadInput(f"{store} has no records beside it: {records_of(store).name} is gone", "nothing to hold it to")
    if not record.finished:
        raise BadInput(f"{store} is not finished", "run the command that made it again: it resumes")
    owners = {name: unit for unit, line in record.units.items() for name in line["files"]}
    hashes = {**{name: line["files"][name] for line in record.units.values() for name in line["files"]}, **record.rest}
    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(lambda name: _state(store / name, hashes[name]), hashes))
    faults = [Fault(name, what, owners.get(name)) for name, what in zip(hashes, found, strict=True) if what]
    return faults, len(hashes)


def hold(record: Record, units: Iterable[str] = (), apart: str = "") -> None:
    """Raise Damaged unless every file of a finished store is there, and its metadata, coordinates and the files of
    `units` are as they were written. Nothing is asked of what lies under the folder `apart`.
    """
    hashes = {name: value for unit in units for name, value in record.units[unit]["files"].items()}
    hashes = {name: value for name, value in {**hashes, **record.rest}.items() if not _lies_in(name, apart)}
    every = {name for line in record.units.values() for name in line["files"] if not _lies_in(name, apart)}
    gone = sorted(name for name in every - set(hashes) if not (record.store / name).is_file())
    with ThreadPoolExecutor(_FLUSHERS) as pool:
        states = zip(hashes, pool.map(lambda name: _state(record.store / name, hashes[name]), hashes), strict=True)
        wrong = [f"{record.store / name} is {what}" for name, what in states if what]
    wrong += [f"{record.store / name} is missing" for name in gone]
    if wrong:
        more = f", and {len(wrong) - 1} more files are wrong" if len(wrong) > 1 else ""
        hint = f"aef verify {record.store} finds all such files, aef repair {record.store} mends them"
        raise Damaged(wrong[0] + more, hint)


def _lies_in(name: str, folder: str) -> bool:
    return bool(folder) and name.startswith(folder + "/")


@contextmanager
def reopen(store: Path) -> Iterator[Build]:
    """The build of a finished store, for units of it to be made again and for `finish` to be called again.

    Raises BadInput where the store is not finished or has no records, Locked where another process writes it.
    """
    record = read(store)
    if record is None or not record.finished:
        raise BadInput(f"{store} is no finished store with its records", "run the command that made it again")
    home = records_of(store)
    with locked(home / "lock", store):
        build = Build(store, home, digest(dict(record.request)))
        _enter(build, dict(record.request), None)
        _sweep(store)
        yield build


def put_back(record: Record, aside: Path, names: Iterable[str], hint: str) -> None:
    """Metadata and coordinates of a finished store, as another store made anew has them. Raises Damaged where they are
    not those that were.
    """
    for name in names:
        if not is_as(aside / name, record.rest[name]):
            raise Damaged(f"{record.store}: {name} cannot be written as it was", hint)
        (record.store / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(record.store / name, (aside / name).read_bytes())


def is_as(path: Path, expected: str) -> bool:
    """Whether the file is there with this hash."""
    return not _state(path, expected)


def _state(path: Path, expected: str) -> str:
    """Nothing if the file has this hash, else what is wrong."""
    try:
        with path.open("rb") as handle:
            return "" if hashlib.file_digest(handle, "sha256").hexdigest() == expected else "damaged"
    except FileNotFoundError:
        return "missing"
    except OSError:
        return "damaged"


def records_of(store: Path) -> Path:
    """Where the records of a store lie: beside it; of a field in a group of several, in the records of the group."""
    if not store.name:
        raise BadInput(f"{str(store)!r} is no name for a store", "--out takes a path such as cube.zarr")
    shared = fields_of(store.parent) / store.name
    return shared if shared.is_dir() else store.with_name(store.name + ".build")


def fields_of(group: Path) -> Path:
    """Where the records of the fields in a group lie: beside the group, which has none of its own."""
    return Path(f"{group.resolve()}.build") / "fields"


def _choose(store: Path, home: Path, request: dict[str, Any], key: str, overwrite: bool) -> bool:
    """Whether to build aside and swap at the end; refuses what may not be touched."""
    plan, here = _read_plan(home), store.exists()
    if here and not plan and not _is_ours(store):
        raise BadInput(f"{store} exists and was not written by aef", "choose another --out")
    if not plan:
        if here and fields_of(store).is_dir():
            raise BadInput(f"{store} holds several fields", "choose another --out")
        if here and not overwrite:
            raise BadInput(f"{store} exists, but its records {home.name} are gone", "--overwrite, or another --out")
        return here
    finished = here and any("finished" in line for line in _read_lines(home / "ledger.jsonl"))
    if overwrite:
        return finished or plan["key"] != key
    if plan["key"] != key:
        raise BadInput(
            f"{store} was made by another request: {difference(plan['request'], request)}",
            "--overwrite, or another --out",
        )
    return False


def _enter(build: Build, request: dict[str, Any], content: Any) -> None:
    """Pick up what is there for this key, or clear the place and begin with the new plan."""
    begun = _read_plan(build.records)
    if begun is None or begun["key"] != build.key:
        if build.records.name == "next":
            shutil.rmtree(build.records, ignore_errors=True)
        build.records.mkdir(parents=True, exist_ok=True)
        (build.records / "ledger.jsonl").unlink(missing_ok=True)  # before the plan: lines never outlive theirs
        begun = {"key": build.key, "request": request, "plan": content}
        write_atomically(build.records / "plan.json", canonical(begun).encode())
    build.plan = begun["plan"]
    if not build.store.exists():  # removed by hand: its lines would pass for those of the next one
        (build.records / "ledger.jsonl").unlink(missing_ok=True)
    lines = _read_lines(build.records / "ledger.jsonl", mend=True)
    build._lines = {line["unit"]: line for line in lines if "unit" in line}
    build.complete = any("finished" in line for line in lines)
    if not build.complete:
        _sweep(build.store)


def _sweep(store: Path) -> None:
    """Remove what Zarr leaves of a file that it was writing when it was killed."""
    for file in store.rglob("*.partial"):
        if _CUT_OFF.search(file.name):
            file.unlink(missing_ok=True)


def _swap(store: Path, home: Path) -> None:
    """Put the finished store of `next` in the old one's place. `_recover` mends a stop between the renames."""
    old = home / "old"
    shutil.rmtree(old, ignore_errors=True)
    if store.exists():
        store.rename(old)
    else:
        old.mkdir()  # says that a swap has begun
    (home / "next" / "store").rename(store)
    for name in ("plan.json", "ledger.jsonl"):
        (home / "next" / name).replace(home / name)
    shutil.rmtree(home / "next")
    shutil.rmtree(old, ignore_errors=True)
    _sync_folder(store.parent)


def _recover(store: Path, home: Path) -> None:
    """Finish a swap that was cut off: the old store is moved away only once the new one is whole."""
    if not store.exists() and (home / "next" / "store").exists():
        (home / "next" / "store").rename(store)
    for name in ("plan.json", "ledger.jsonl"):
        if (home / "next" / name).exists():
            (home / "next" / name).replace(home / name)
    shutil.rmtree(home / "next", ignore_errors=True)
    shutil.rmtree(home / "old", ignore_errors=True)


@contextmanager
def _writing(place: Path) -> Iterator[None]:
    """A disk or a folder that refuses, as one line."""
    try:
        yield
    except OSError as error:
        raise NoResources(
            f"cannot write {place}: {error.strerror or error}", "make room or give leave, or name another --out"
        ) from error


@contextmanager
def locked(path: Path, store: Path) -> Iterator[None]:
    """The lock file of a store held; raises Locked where another process holds it."""
    with _writing(path):
        handle = path.open("a")
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Locked(f"{store} is being written by another process", "wait for it to end") from error
        yield


def _is_ours(store: Path) -> bool:
    try:
        return FORMAT_KEY in json.loads((store / _ROOT).read_text())["attributes"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False


def _anew(records: Path) -> str:
    if records.name == "next":  # of what was to take the place of a finished store, which is whole
        return f"remove {records}, then run the same command again"
    return f"remove {records}, then --overwrite makes the store anew"


def _read_plan(records: Path) -> dict[str, Any] | None:
    try:
        plan = json.loads((records / "plan.json").read_text())
        if not (isinstance(plan, dict) and {"key", "request", "plan"} <= set(plan)):
            raise ValueError("not a plan")
        if plan["key"] != digest(plan["request"]):  # it would pass for another's, and be cleared away
            raise ValueError("another request than it was made for")
        return plan
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, IsADirectoryError, PermissionError) as error:
        raise Damaged(f"{records / 'plan.json'} cannot be read", _anew(records)) from error


def _read_lines(path: Path, *, mend: bool = False) -> list[dict[str, Any]]:
    """The ledger's lines. A torn last line, left by a stop in mid-write, is dropped (and cut off if `mend`)."""
    if not path.exists():
        return []
    raw, lines, kept = path.read_bytes(), [], 0
    for number, line in enumerate(raw.splitlines(keepends=True), start=1):
        try:
            lines.append(_parsed(line))
        except ValueError as error:
            if kept + len(line) < len(raw):
                raise Damaged(f"{path} is damaged in line {number}", _anew(path.parent)) from error
            break
        kept += len(line)
    if mend and kept < len(raw):
        os.truncate(path, kept)
    return lines


def _parsed(raw: bytes) -> dict[str, Any]:
    """A line; ValueError where it is torn, or names files that are not of the store."""
    line = json.loads(raw)
    files = line.get("files", {}) if isinstance(line, dict) else None
    if not (raw.endswith(b"\n") and isinstance(files, dict) and ("files" in line or "unit" not in line)):
        raise ValueError("no line of a ledger")
    for name in files:
        parts = PurePosixPath(name).parts
        if not parts or parts[0] == "/" or ".." in parts or "\0" in name:
            raise ValueError(f"{name} is no file of the store")
    return line


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The first few entries that differ, as `name: old -> new`."""
    names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    return "; ".join(f"{name}: {_short(old.get(name))} -> {_short(new.get(name))}" for name in names[:3])


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else canonical(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _flush_and_hash(path: Path) -> str:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Write aside, flush to disk, rename: readers see the old file or the new one, never a part."""
    aside = path.with_name(path.name + ".part")
    with aside.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    aside.replace(path)
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
