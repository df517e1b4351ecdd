"""The house keeps its order: imports point downward, the wings stay apart, only the command line prints.

The layer table in the README is the rule; this test reads it from there.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "aefcli"
ARRAYS, TENSORS = {"xarray", "zarr", "dask", "rasterio", "odc"}, {"torch", "jaxtyping", "safetensors"}
NETWORK = {"requests", "urllib", "urllib3", "http", "socket", "pystac_client", "planetary_computer", "aiohttp"}


def table() -> dict[str, tuple[str, int]]:
    """Module -> (row, place in the row), from the README; rows are "0", "1", "2 arrays", "2 tensors", "3" ..."""
    text = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| (\d(?: \w+)?) \| ((?:`\w+`(?:, )?)+) \|", text, flags=re.M)
    return {
        module: (row, place) for row, modules in rows for place, module in enumerate(re.findall(r"`(\w+)`", modules))
    }


def module_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def files() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def imports(path: Path) -> set[str]:
    """Every module that the file imports anywhere, dotted, `from aefcli import x` as aefcli.x."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "aefcli":
            found |= {f"aefcli.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


def test_the_table_lists_every_module_once() -> None:
    assert set(table()) == {module_of(path) for path in files()}


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downward(path: Path) -> None:
    rows, own = table(), module_of(path)
    (row, place) = rows[own]
    for name in imports(path):
        if not name.startswith("aefcli."):
            continue
        other = name.split(".")[1]
        if other == own:
            continue
        other_row, other_place = rows[other]
        earlier = other_row == row and other_place < place
        assert other_row[0] < row[0] or earlier, f"{own} ({row}) imports {other} ({other_row})"


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_wings_and_network_stay_apart(path: Path) -> None:
    row, own = table()[module_of(path)][0], module_of(path)
    used = {name.split(".")[0] for name in imports(path)}
    if row[0] in "01" or row == "2 arrays":
        assert not used & TENSORS, f"{own} imports {used & TENSORS}"
    if row == "2 tensors":
        assert not used & ARRAYS, f"{own} imports {used & ARRAYS}"
    if own not in ("stac", "cube"):
        assert not used & NETWORK, f"{own} reaches the network: {used & NETWORK}"


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_command_line_prints(path: Path) -> None:
    if module_of(path) == "cli":
        return
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_catches_everything(path: Path) -> None:
    handlers = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ExceptHandler)]
    broad = [
        handler.lineno
        for handler in handlers
        if handler.type is None or ast.unparse(handler.type) in ("Exception", "BaseException")
    ]
    assert not broad
