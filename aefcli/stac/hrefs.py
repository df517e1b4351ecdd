"""Which addresses a catalog may name, and what of an address may be shown."""

from __future__ import annotations

import ipaddress
import re
import socket
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlparse, urlsplit, urlunsplit

import requests

from aefcli.errors import BadInput


def vet(href: str, home: str) -> str:
    """The href if a catalog at `home` may name it: https, the catalog's own host, or inside its folder on disk."""
    try:
        parts, base = urlparse(href), urlparse(home)
        host = parts.hostname or ""
        parts.port  # noqa: B018 - raises where it is none
    except ValueError as error:
        raise BadInput(f"the catalog names {shown(href)}, which is no address: {error}") from error
    odd = any(ord(letter) < 32 or ord(letter) == 127 for letter in href) or (parts.scheme and "\\" in href)
    if odd or "@" in parts.netloc or href.startswith("/vsi"):
        raise BadInput(f"the catalog names {shown(href)}, which is no plain file or https address")
    at_home = host != "" and host == base.hostname
    if parts.scheme == "https" and (at_home or _is_public(host)):
        return href
    if parts.scheme == "http" == base.scheme and at_home:
        return href
    if parts.scheme == "" == base.scheme and Path(href).is_absolute():
        inside = Path(home).resolve().parent
        if Path(href).resolve().is_relative_to(inside):
            return href
    raise BadInput(
        f"the catalog names {shown(href)}, which lies outside of it",
        "hrefs must be https to a public host, or inside the catalog's folder",
    )


def _is_public(host: str) -> bool:
    """False for this machine and private networks: as a number in any spelling, and as a name that leads there."""
    name = host.rstrip(".")
    if not name.isascii() or "%" in name or name.endswith((".localhost", ".local", ".internal")):
        return False
    try:
        return _is_global(name if ":" in name else socket.inet_ntoa(socket.inet_aton(name)))
    except OSError:
        return "." in name and leads_outside(name)  # a name of a single label is of the local network


@lru_cache(maxsize=4096)
def leads_outside(name: str) -> bool:
    """Whether all addresses of a name are public. One that has none stays a name, and fails when it is opened."""
    try:
        found = socket.getaddrinfo(name, 443, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return True
    return all(_is_global(str(address[4][0])) for address in found)


def _is_global(address: str) -> bool:
    """Whether an address in numbers is of the open internet, be it an IPv4 one within an IPv6 one."""
    try:
        number = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(number, ipaddress.IPv6Address):
        inner = number.ipv4_mapped or number.sixtofour or (number.teredo or (None, None))[1]
        if inner is None and number in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(number) & 0xFFFFFFFF)
        number = inner or number
    return number.is_global and not number.is_multicast


def public(reference: str) -> str:
    """What was typed at --stac as it may be written down: without the query, fragment and user of an address."""
    try:
        parts = urlsplit(reference)
    except ValueError:  # no address, whatever it looks like
        return plain(reference)
    if parts.scheme not in ("http", "https"):
        return reference
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def plain(text: str) -> str:
    """A message without the queries and users of the addresses in it: that is where keys live."""
    return re.sub(r"(?<=//)[^/\s'\"@]*@", "", re.sub(r"\?[^\s'\")>]*", "", text))


def shown(href: str) -> str:
    return repr(plain(href))


def vet_redirect(response: requests.Response, **_: Any) -> None:
    if response.is_redirect:
        try:
            vet(urljoin(response.url, response.headers["location"]), response.url)
        except BadInput:
            response.close()
            raise
