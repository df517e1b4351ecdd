"""What all tests share: shapes are checked, no connection leaves this machine, and where the real data lies."""

from __future__ import annotations

import ipaddress
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from archives import Toy, make_toy
from jaxtyping import install_import_hook

# Must come before the first import of these modules. jaxtyping's shapes, checked by beartype.
install_import_hook(["aefcli.model", "aefcli.losses", "aefcli.batch"], "beartype.beartype")

Aef = Callable[..., tuple[int, str, str]]
REAL = Path(__file__).parents[1].parent / "shared/data"


def pytest_configure(config: pytest.Config) -> None:
    for line in (
        "ignore:Use `@` matmul:PendingDeprecationWarning",  # odc-geo and rioxarray on affine 3
        "ignore:The 'shapely.ops.transform:DeprecationWarning",  # odc-geo on shapely 2.2
    ):
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder of real data."""
    if not REAL.is_dir():
        pytest.skip("needs the real data beside the checkout")
    return REAL


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """The made-up archive. Not to be changed."""
    return make_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def aef(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Aef:
    """Run a command in an empty folder: (exit code, stdout, stderr)."""
    from aefcli import cli

    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["aef", *words])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def is_here(address: Any) -> bool:
    """Whether a socket's address is on this machine: a path, or a loopback host."""
    if not isinstance(address, tuple):
        return True
    host = address[0].decode() if isinstance(address[0], bytes) else str(address[0])
    try:
        return host in ("localhost", "") or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True, scope="session")
def offline() -> Iterator[None]:
    """Python's sockets reach this machine alone. (GDAL has its own; it is given loopback addresses alone.)"""
    patch = pytest.MonkeyPatch()

    def guarded(call: Any, position: int) -> Any:
        def call_if_here(*args: Any, **kwargs: Any) -> Any:
            address = (args[0],) if position == 0 else args[position]
            if not is_here(address):
                raise PermissionError(f"tests do not reach {address}")
            return call(*args, **kwargs)

        return call_if_here

    for name in ("connect", "connect_ex"):
        patch.setattr(socket.socket, name, guarded(getattr(socket.socket, name), 1))
    patch.setattr(socket, "getaddrinfo", guarded(socket.getaddrinfo, 0))
    yield
    patch.undo()
