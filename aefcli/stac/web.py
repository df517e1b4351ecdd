"""Documents of catalogs: read with retries and bounds, keys kept to their origin, errors as one line."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import parse_qsl, urlencode, urlparse, urlsplit, urlunsplit

import pystac
import requests
from pystac.stac_io import DefaultStacIO
from pystac_client.errors import ClientTypeError
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO
from pystac_client.warnings import PystacClientWarning
from shapely.errors import ShapelyError
from urllib3 import Retry

from aefcli.errors import AefError, BadInput, RemoteFailed
from aefcli.stac.hrefs import plain, public, vet, vet_redirect

_TIMEOUT = (10, 30)  # seconds to connect, to read
_PATIENCE = 300  # seconds to ask for one document again whose body breaks off
_PAUSE = 0.5  # seconds before the second try; doubled up to 30
_MOST = 256 << 20  # bytes of one JSON document
MOST_TABLE = 1 << 30  # bytes of a stac-geoparquet file on the web
_RETRY = Retry(
    total=8,
    connect=4,  # seven seconds: a host without a name, or where nothing listens, seldom comes to life
    backoff_factor=0.5,
    backoff_max=30,
    status_forcelist=[408, 429, 500, 502, 503, 504],
    allowed_methods=None,  # searches are POSTs, and repeat safely
    respect_retry_after_header=True,
)
T = TypeVar("T")
# They write addresses into their logs, with what is in their queries.
for _name in ("urllib3.connectionpool", "urllib3.util.retry", "pystac_client"):
    logging.getLogger(_name).setLevel(logging.ERROR)


class Web:
    """Requests for a catalog's documents. What was typed as the query of its address goes to its origin alone."""

    def __init__(self, typed: str) -> None:
        parts = urlsplit(typed)
        self.home = public(typed)
        self.origin = (parts.scheme, parts.netloc)
        self.key = parse_qsl(parts.query, keep_blank_values=True) if parts.scheme in ("http", "https") else []
        self.session = requests.Session()
        self.prepare(self.session)

    @staticmethod
    def prepare(session: requests.Session) -> None:
        for scheme in ("http://", "https://"):
            session.mount(scheme, requests.adapters.HTTPAdapter(max_retries=_RETRY))
        session.hooks["response"] += [vet_redirect, _bounded]

    def keyed(self, href: str) -> str:
        """The href with the query that was typed, where it leads to the same origin and does not have it itself."""
        parts = urlsplit(href)
        if not self.key or (parts.scheme, parts.netloc) != self.origin:
            return href
        own = parse_qsl(parts.query, keep_blank_values=True)
        more = [pair for pair in self.key if pair[0] not in dict(own)]
        return urlunsplit(parts._replace(query=urlencode([*own, *more])))

    def get(self, href: str, most: int | None = None) -> bytes:
        """A document at an address that was vetted, of at most so many bytes."""

        def once() -> bytes:
            with self.session.get(self.keyed(href), timeout=_TIMEOUT, stream=True) as answer:
                if not answer.ok:
                    _refused(href, answer.status_code)
                return _taken(answer, most or _MOST)

        return _patiently(once)


def _patiently(ask: Callable[[], T]) -> T:
    """Ask again while the answer breaks off, for a while: urllib3 retries what comes before the body alone."""
    began, pause = time.monotonic(), _PAUSE
    while True:
        try:
            return ask()
        except (requests.exceptions.ChunkedEncodingError, requests.exceptions.ContentDecodingError):
            if time.monotonic() - began + pause > _PATIENCE:
                raise
        time.sleep(pause)
        pause = min(2 * pause, 30)


def _refused(href: str, status: int) -> NoReturn:
    """One line for an answer that is no document."""
    if status in (401, 403):
        raise BadInput(
            f"{public(href)} answers {status}: it wants credentials",
            "a key belongs in the address at --stac, as in --stac 'https://...?key=...'; it is written down nowhere",
        )
    if 400 <= status < 500 and status not in (408, 429):
        raise BadInput(f"{public(href)} answers {status}", "check the address")
    raise RemoteFailed(f"{public(href)} answers {status}", "run the same command again")


class ApiIO(StacApiIO):
    """pystac-client's requests, with retries, a timeout and bounds; `next` links and redirects are vetted."""

    def __init__(self, web: Web) -> None:
        super().__init__(timeout=_TIMEOUT)
        self.web = web
        web.prepare(self.session)

    def read_text(self, source: Any, *args: Any, **kwargs: Any) -> str:
        vet(source.href if isinstance(source, pystac.Link) else str(source), self.web.home)
        return super().read_text(source, *args, **kwargs)

    def request(self, href: str, *args: Any, **kwargs: Any) -> str:
        def once() -> str:
            try:
                return super(ApiIO, self).request(self.web.keyed(href), *args, **kwargs)
            except APIError as error:
                if status := getattr(error, "status_code", None):
                    _refused(href, status)
                raise error.__context__ or error from None  # pystac-client hides what went wrong

        return _patiently(once)


class StaticIO(DefaultStacIO):
    """Reads the files of a static catalog: those that it may name, and no others."""

    def __init__(self, web: Web) -> None:
        super().__init__()
        self.web = web

    def read_text_from_href(self, href: str) -> str:
        vet(href, self.web.home)
        return (self.web.get(href) if urlparse(href).scheme else read_local(Path(href))).decode()


def read_local(path: Path) -> bytes:
    if path.stat().st_size > _MOST:
        raise too_large(str(path), _MOST)
    return path.read_bytes()


def too_large(href: str, most: int) -> BadInput:
    return BadInput(f"{public(href)} is larger than {most >> 20} MiB", "name a part of it")


def _bounded(response: requests.Response, stream: bool = False, **_: Any) -> None:
    """Read the body of an answer up to a bound, unless its reader does."""
    if not stream:
        response._content = _taken(response, _MOST)  # what `content` would set


def _taken(response: requests.Response, most: int) -> bytes:
    """The body of an answer, unpacked, if it is of at most so many bytes; counted as it comes."""
    parts, size = [], 0
    for part in response.iter_content(1 << 16):
        size += len(part)
        if size > most:
            response.close()
            raise too_large(response.url, most)
        parts.append(part)
    return b"".join(parts)


# What the libraries raise about what cannot be reached, and about documents that lack what STAC demands, or hold
# another type of it.
_UNREACHED = (APIError, requests.RequestException, OSError)
_BROKEN = (pystac.STACError, pystac.STACTypeError, ShapelyError, LookupError, ValueError, TypeError, AttributeError)
_UNABLE = (NotImplementedError, RecursionError, PystacClientWarning, ClientTypeError)


@contextmanager
def reaching(href: str) -> Iterator[None]:
    """Turns what the libraries raise about an unreachable or broken catalog into one line, without queries."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of extensions that pystac cannot bring up to date
            yield
    except (*_UNREACHED, *_BROKEN, *_UNABLE) as caught:
        raise _told(caught, href) from caught


def _told(caught: BaseException, href: str) -> AefError:
    """What the error means to the user."""
    error = caught
    if isinstance(error, pystac.STACError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # pystac hides what went wrong with a linked file
    if isinstance(error, AefError):
        return error
    if isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.InvalidSchema):
        return BadInput(f"{href} is no address: {plain(str(error))}")
    if isinstance(error, requests.RequestException):
        href = public(str(error.request.url)) if error.request else href
        error = getattr(error.args[0], "reason", error) if error.args else error  # of urllib3's, without what it tried
        return RemoteFailed(f"cannot read {href}: {plain(str(error))}", "run the same command again")
    text = plain(str(error))
    if isinstance(error, APIError) or (isinstance(error, OSError) and urlparse(href).scheme):
        return RemoteFailed(f"cannot read {href}: {text}", "run the same command again")
    if isinstance(error, OSError):
        return BadInput(f"cannot read {href}: {text}")
    return BadInput(f"{href} is not valid STAC: {text}")
