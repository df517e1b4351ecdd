"""aef: the open toolkit for embedding fields of the Earth. The command line is `aefcli.cli`; the README has the map."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aefcli.accessor import open_field

__all__ = ["open_field"]

# zarr tells writers that format 3 has no consolidated metadata yet; without it, xarray tells every reader. Said here
# once, for a filter is the process's: stores that were finished by several threads undid each other's.
warnings.filterwarnings("ignore", "Consolidated metadata is currently not part", UserWarning)


def __getattr__(name: str) -> object:
    """`open_field` at its first use: the import of a part of the package loads no xarray."""
    if name != "open_field":
        raise AttributeError(f"module 'aefcli' has no attribute {name!r}")
    from aefcli.accessor import open_field

    return open_field
