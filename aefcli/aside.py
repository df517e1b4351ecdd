"""A file that is there whole or not at all, whoever writes it: made aside, under a lock, flushed and renamed.

What is at hand as bytes, `ledger.write_atomically` writes; stores, `ledger.build`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from aefcli import ledger
from aefcli.errors import BadInput, Locked, NoResources


def check(out: Path, what: str, kinds: Sequence[str], overwrite: bool) -> None:
    """Refuse, as no `what`, a path with another ending than one of `kinds`, a folder, and what may not be replaced."""
    named = f"name a {' or '.join(kinds)} file"
    if out.suffix.lower() not in kinds:
        raise BadInput(f"--out {out} is no {what}", named)
    if out.is_dir():
        raise BadInput(f"--out {out} is a folder", named)
    if out.exists() and not overwrite:
        raise BadInput(f"{out} is there already", "--overwrite replaces it, --out names another")


@contextmanager
def making(out: Path, *faults: type[Exception]) -> Iterator[Path]:
    """Where to make `out`: a path of its suffix in `.<name>.part` beside it. It is put in place when the body is done.

    That folder is locked, emptied of what a killed process left there, free for all else that is needed meanwhile, and
    gone afterwards; with it go folders that were made for nothing. Raises NoResources where the disk refuses or one
    of `faults` is raised, BadInput where `out` lies in no folder, Locked where another process makes it.
    """
    folder = out.with_name(f".{out.name}.part")
    refusals: tuple[type[Exception], ...] = (OSError, *faults)
    absent = [parent for parent in folder.parents if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise BadInput(f"--out {out} lies in what is no folder", "name another") from error
    except OSError as error:
        raise NoResources(
            f"cannot write {out}: {error.strerror}", "make room or give leave, or name another --out"
        ) from error
    try:
        with ledger.locked(lock := folder / "lock", out):
            if not lock.exists():  # its holder has just ended, and taken the folder with it
                raise Locked(f"{out} was being written by another process", "run again")
            for left in folder.iterdir():
                if left != lock:
                    left.unlink()
            try:
                yield (made := folder / f"made{out.suffix}")
                _put(made, out)
            except refusals as error:
                why = error.__cause__ or error  # rasterio's own says no more than that there is one
                raise NoResources(
                    f"cannot write {out}: {why}", "make room or give leave, or name another --out"
                ) from error
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        if not out.exists():
            for parent in absent:
                with suppress(OSError):  # it holds something by now
                    parent.rmdir()


def _put(made: Path, out: Path) -> None:
    with made.open("rb") as handle:
        os.fsync(handle.fileno())
    made.replace(out)
