"""What all pictures and pages share: where they go, how they are saved, and what a page is made with."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aefcli.errors import BadInput, NoResources
from aefcli.several import outside

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.figure import Figure

DPI = 100


def destination(store: Path, out: Path | None) -> Path:
    """The PNG of a store: `out`, or beside the store under its name."""
    beside = outside(store)
    target = out or beside.parent / f"{beside.resolve().stem}.png"
    if target.is_dir():
        raise BadInput(f"{target} is a folder", "name a .png file")
    return target


def save(figure: Figure, target: Path) -> None:
    """Write a PNG. No program name in the file: same store, same versions, same bytes."""
    with saving(target):
        figure.savefig(target, format="png", dpi=DPI, metadata={"Software": None})


@contextmanager
def saving(target: Path, hint: str = "name another --out") -> Iterator[None]:
    """The folder of a file made; what the disk refuses is one line."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise NoResources(f"cannot write {target}: {error.strerror or error}", hint) from error


def templates() -> Environment:
    """Those beside this file. What is put into them is escaped; a name that nothing is given for is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def as_uri(pixels: np.ndarray) -> str:
    """A picture uint8 (y, x, 3 or 4) as a PNG in a data URI."""
    from matplotlib.image import imsave

    held = io.BytesIO()
    imsave(held, np.ascontiguousarray(pixels), format="png")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()


def hashed(text: str) -> str:
    """The hash by which a page's policy names its style or script, so that nothing in the data brings in its own."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
