"""Catalogs and searches: from what the user typed to STAC items.

`catalog` opens the named catalogs and the four shapes a catalog comes in (API, static, item collection, and
stac-geoparquet, which is `table`), chooses collections and searches. `hrefs` says which addresses may be opened, and
what of them may be shown. `web` reads documents, with retries and bounds. Reads no pixels. Only this module and `cube`
reach the network. Traps and their sources: `sources.md`.
"""

from aefcli.stac.catalog import NAMED, Catalog, Offer, instant, missing_credentials, open_catalog, sound
from aefcli.stac.hrefs import plain, public, vet

__all__ = [
    "NAMED", "Catalog", "Offer", "instant", "missing_credentials", "open_catalog", "plain", "public",
    "sound", "vet",
]  # fmt: skip
