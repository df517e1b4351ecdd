"""Ranges of files on the web: asked for, held to what was asked, signed and repeated one by one.

GDAL's own reading over HTTP takes wrong ranges for right ones, follows redirects to anywhere and hides Retry-After, so
it is given bytes that come from here. Sources: `sources.md`, `reliability.md`.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Literal
from urllib.parse import urljoin, urlparse, urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.exceptions import InvalidSchema, InvalidURL
from urllib3 import BaseHTTPResponse, HTTPConnectionPool, Timeout
from urllib3.exceptions import HTTPError, LocationValueError

from aefcli.errors import AefError
from aefcli.stac import vet

PATIENCE = 300.0  # seconds without an answer, after which a file is given up
TRIES = 10  # answers of 200 to a range in a row, or files that do not decode: no fault of the moment
_CONNECT = 10.0  # seconds
_REDIRECTS = 30  # in a row
_PART = 1 << 18  # bytes taken at a time: fewer ask the system more often, more are memory that is new each time
_QUICK = 0.004  # seconds to an answer
_STALL = (0.2, 8.0)  # seconds without a byte, after which a request is sent anew: the least, the most
_PAUSE = (0.02, 10.0)  # seconds before the second try, doubled before each further one up to the latter

# Who signs addresses, by the host or the end of its name: (address, whether the last signature was refused) -> signed.
Signer = Callable[[str, bool], str]


class Unreadable(Exception):
    """A file cannot be read, and trying again does not help. `gone`: it is not there, or not ours to read."""

    def __init__(self, uri: str, why: str, gone: bool = False) -> None:
        super().__init__(uri, why, gone)  # all three, so that it survives pickling
        self.uri, self.why, self.gone = uri, why, gone

    def __str__(self) -> str:
        return f"{without_query(self.uri)}: {without_query(self.why)}"


class _Fault(Exception):
    """An answer that is not the bytes asked for. `wait`: seconds that the server wants to be left alone."""

    def __init__(self, why: str, kind: Literal["again", "lie", "refused", "final"] = "again", wait: float = 0) -> None:
        super().__init__(why)
        self.kind, self.wait = kind, wait


@dataclass
class _Host:
    """What is known of a host: how long its answers take, and until when it wants to be left alone."""

    usual: float = 0.1  # seconds to the first byte, averaged over some answers
    closed: float = 0.0  # on the monotonic clock
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answered(self, seconds: float) -> None:
        with self.lock:
            self.usual += (seconds - self.usual) / 8

    def close(self, seconds: float) -> None:
        with self.lock:
            self.closed = max(self.closed, time.monotonic() + seconds)

    def stall(self, attempt: int) -> float:
        """Seconds without a byte after which an answer is held for lost: many times the usual, longer at each try."""
        return min(_STALL[1], max(_STALL[0], 20 * self.usual) * 2.0**attempt)


@lru_cache(maxsize=256)
def _host(name: str) -> _Host:
    return _Host()


@dataclass(frozen=True)
class _Way:
    """How a host is asked: over connections that stay open, with these headers."""

    pool: HTTPConnectionPool
    prefix: str  # of paths: the origin where a proxy is asked for it, else nothing
    headers: Mapping[str, str]


@lru_cache(maxsize=256)
def _way(origin: str) -> _Way:
    """As `requests` would ask: by the environment's proxies, with its certificates and netrc's password.

    It looks for them at each request, which takes it as long as the request itself.
    """
    session, adapter = requests.Session(), HTTPAdapter(pool_connections=1, pool_maxsize=64)
    asked = session.prepare_request(requests.Request("GET", origin))
    found = session.merge_environment_settings(str(asked.url), {}, True, None, None)
    pool = adapter.get_connection_with_tls_context(asked, found["verify"], found["proxies"], found["cert"])
    adapter.cert_verify(pool, str(asked.url), found["verify"], found["cert"])
    headers = {name: value for name, value in asked.headers.items() if isinstance(value, str)}
    return _Way(pool, adapter.request_url(asked, found["proxies"]).removesuffix("/"), headers)


def quick(uri: str) -> bool:
    """Whether a file's host answers as soon as another thread would have asked it."""
    return _host(urlparse(uri).netloc).usual < _QUICK


def fetch(uri: str, start: int, stop: int, halt: threading.Event) -> tuple[memoryview, int]:
    """Bytes start to stop of a file, fewer if it ends before, and the file's size. Raises Unreadable."""
    host, began, attempt, lies, refused = _host(urlparse(uri).netloc), time.monotonic(), 0, 0, False
    while not halt.wait(max(0.0, host.closed - time.monotonic())):
        try:
            return _ask(_signed(uri, refused), start, stop, host, host.stall(attempt))
        except (InvalidURL, InvalidSchema, LocationValueError) as error:
            raise Unreadable(uri, str(error)) from error
        except AefError as error:
            raise Unreadable(uri, f"it redirects: {error.what}") from error
        except (_Fault, HTTPError, requests.RequestException) as error:
            fault = error if isinstance(error, _Fault) else _Fault(_short(error), _kind(error))
            if fault.kind == "refused" and not refused and _signer(uri):
                refused = True
                continue
            lies = lies + 1 if fault.kind == "lie" else 0
            pause = max(fault.wait, pause_before(attempt + 1))
            if fault.kind in ("refused", "final") or lies == TRIES or time.monotonic() + pause > began + PATIENCE:
                raise Unreadable(uri, f"{fault} ({attempt + 1} tries)", gone=fault.kind == "refused") from error
            if fault.wait:
                host.close(pause)
            halt.wait(0 if fault.wait else pause)
            attempt += 1
    raise Unreadable(uri, "stopped")


def _ask(address: str, start: int, stop: int, host: _Host, stall: float) -> tuple[memoryview, int]:
    """One request. Raises _Fault or an HTTPError."""
    began = time.monotonic()
    with _answer(address, f"bytes={start}-{stop - 1}", Timeout(connect=_CONNECT, read=stall)) as answer:
        host.answered(time.monotonic() - began)
        first, last, size = _promised(answer, start, stop)
        data, came = bytearray(last + 1 - first), 0
        while part := answer.read1(_PART):
            data[came : came + len(part)] = part
            came += len(part)
            if came > len(data) or time.monotonic() - began > PATIENCE:  # byte by byte
                break
        if came != last + 1 - first:
            raise _Fault(f"{came} bytes came of {last + 1 - first}")
        return memoryview(data), size


def _answer(address: str, span: str, timeout: Timeout) -> BaseHTTPResponse:
    """What comes of a request. A redirect may lead where the address it came from might have led."""
    origin = urlsplit(address)[:2]
    for _ in range(_REDIRECTS):
        parts = urlsplit(address)
        way = _way("://".join(parts[:2]))
        headers = {**way.headers, "Range": span, "Accept-Encoding": "identity"}
        if parts[:2] != origin:
            headers.pop("Authorization", None)
        path = f"{way.prefix}{parts.path or '/'}" + f"?{parts.query}" * bool(parts.query)
        answer = way.pool.urlopen(
            "GET", path, None, headers, False, False, timeout=timeout, preload_content=False, decode_content=False
        )  # no retries, and no redirects
        place = answer.get_redirect_location()
        if not place:
            return answer
        answer.close()
        address = vet(urljoin(address, place), address)
    raise _Fault(f"it redirects {_REDIRECTS} times", "final")


def _promised(answer: BaseHTTPResponse, start: int, stop: int) -> tuple[int, int, int]:
    """The first and the last byte that the answer brings, and the file's size; _Fault if they are not those asked."""
    status = answer.status
    if status in (408, 425, 429) or status >= 500:
        raise _Fault(f"HTTP response code: {status}", wait=_asked_to_wait(answer.headers.get("Retry-After", "")))
    if status == 200:
        kind = answer.headers.get("Content-Type", "something")
        raise _Fault(f"a range was asked for, and all of a file of {kind} came", "lie")
    if status != 206:
        raise _Fault(f"HTTP response code: {status}", "refused" if status in (403, 404, 410) else "final")
    given = answer.headers.get("Content-Range", "none")
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", given.strip())
    first, last, size = map(int, match.groups()) if match else (-1, -1, -1)
    if (first, last) != (start, min(stop, size) - 1):
        raise _Fault(f"the range {start}-{stop - 1} was asked for, and {given} came")
    return first, last, size


def pause_before(attempt: int) -> float:
    """Seconds to wait before a try; the first is 0."""
    return min(_PAUSE[1], _PAUSE[0] * 2.0 ** (attempt - 1))


def _asked_to_wait(text: str) -> float:
    """Seconds of a Retry-After, which is a number or a date; 0 if it is neither."""
    if re.fullmatch(r"\d+(\.\d+)?", text.strip()):
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0


def _kind(error: BaseException) -> Literal["again", "final"]:
    """Whether it may go better next time: not where whoever signs addresses says no."""
    answer = error.response if isinstance(error, requests.HTTPError) else None
    refused = answer is not None and 400 <= answer.status_code < 500 and answer.status_code not in (408, 425, 429)
    return "final" if refused else "again"


def _short(error: BaseException) -> str:
    """What lies at the bottom of the errors that urllib3 and `requests` wrap each other's in."""
    while error.args and isinstance(error.args[-1], BaseException):
        error = error.args[-1]
    return str(getattr(error, "reason", None) or error)


# ---------------------------------------------------------------- signatures


def _planetary_computer(href: str, refused: bool) -> str:
    """Its blobs want a token in the address. The library keeps a token until a minute before it expires."""
    import planetary_computer
    from planetary_computer.sas import TOKEN_CACHE

    if refused:
        TOKEN_CACHE.clear()
    return planetary_computer.sign(href)


SIGNERS: dict[str, Signer] = {".blob.core.windows.net": _planetary_computer}


def _signer(uri: str) -> Signer | None:
    host = urlparse(uri).hostname or ""
    return next((sign for end, sign in SIGNERS.items() if host.endswith(end)), None)


def _signed(uri: str, refused: bool) -> str:
    sign = _signer(uri)
    return sign(uri, refused) if sign else uri


def without_query(text: str) -> str:
    """The text without what follows a `?` in addresses: signatures live there."""
    return re.sub(r"\?[^\s'\"]*", "", text)
