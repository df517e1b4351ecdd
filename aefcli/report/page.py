"""What all pictures share: where a picture goes, and how it is saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from aefcli.errors import BadInput, NoResources

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 100


def destination(store: Path, out: Path | None) -> Path:
    """The PNG of a store: `out`, or beside the store under its name."""
    target = out or store.parent / f"{store.resolve().stem}.png"
    if target.is_dir():
        raise BadInput(f"{target} is a folder", "name a .png file")
    return target


def save(figure: Figure, target: Path) -> None:
    """Write a PNG. No program name in the file: same store, same versions, same bytes."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target, format="png", dpi=DPI, metadata={"Software": None})
    except OSError as error:
        raise NoResources(f"cannot write {target}: {error.strerror or error}", "name another --out") from error
