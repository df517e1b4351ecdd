"""Errors a user can act on, and the exit codes they end in.

Owns the one family of errors that the command line turns into a single line, and how such lines name and count
things. Anything else that escapes is a fault of ours: it keeps its traceback and ends in exit code 1.

    AefError                what is wrong (with the value), and the flag or command that mends it
    ├── BadInput        2   nothing was written
    ├── RemoteFailed    3   remote data failed after retries; the run can be resumed
    ├── Damaged         4   a store does not hold what its ledger says
    ├── Locked          5   another process writes this store
    ├── NoResources     6   disk, memory or permission
    ├── Diverged        7   training left the finite numbers
    └── BelowThreshold  8   a score asked of `aef eval` was missed
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AefError(Exception):
    """One line for the user: `what` is wrong, with its value; `hint` says how to mend it."""

    code = 2

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what = " ".join(what.split())
        self.hint = " ".join(hint.split())

    def __str__(self) -> str:
        return f"{self.what} ({self.hint})" if self.hint else self.what

    def __reduce__(self) -> tuple[type[AefError], tuple[str, str]]:
        return type(self), (self.what, self.hint)  # whole, from one process to another


class BadInput(AefError):
    code = 2


class RemoteFailed(AefError):
    code = 3


class Damaged(AefError):
    code = 4


class Locked(AefError):
    code = 5


class NoResources(AefError):
    code = 6


class Diverged(AefError):
    code = 7


class BelowThreshold(AefError):
    code = 8


def counted(count: int, what: str) -> str:
    """`1 period`, `2 periods`."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def unknown(kind: str, value: str, known: Iterable[str], hint: str = "") -> BadInput:
    """The error for a name that is not in a list: names the nearest one, and all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(value, names, n=1, cutoff=0.5)
    guess = f"did you mean {near[0]}? " if near else ""
    return BadInput(f"unknown {kind} {value!r}", f"{guess}known: {', '.join(names) or 'none'}{'; ' * bool(hint)}{hint}")
