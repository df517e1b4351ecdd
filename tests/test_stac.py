"""Catalogs: what they offer, what may be opened, what is told, and what they may answer."""

from __future__ import annotations

import copy
import gzip
import json
import logging
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
from items import HERE, LANDSAT, S2, TOKEN, WORLD, YEAR, catalog_of, feature, item, line, mapped
from servers import stac_api

from aefcli import stac
from aefcli.cube import frames_of
from aefcli.cube.frames import keep
from aefcli.errors import AefError, BadInput, RemoteFailed
from aefcli.extent import BBox, Period
from aefcli.sources import INPUTS, SOURCES
from aefcli.stac import hrefs, web

# ---------------------------------------------------------------- what a catalog offers


def shelf(folder: Path, *collections: str) -> stac.Catalog:
    return catalog_of(folder, *(feature(f"of {name}", name) for name in collections))


def test_the_best_collection_is_the_default_and_another_may_be_named(tmp_path: Path) -> None:
    catalog = shelf(tmp_path, "sentinel-2-l2a", "sentinel-2-c1-l2a", "sentinel-2-l1c", "mine", "sentinel-1-grd")
    free, other = catalog.offers()
    assert free == {"sentinel-2": "sentinel-2-c1-l2a"}
    assert other == {
        "sentinel-1": "the catalog has none of sentinel-1-rtc",
        "landsat": "the catalog has none of landsat-c2-l2, landsat-8-c2-l2, landsat-c2l2-sr",
    }
    free, other = catalog.offers({"sentinel-2": "sentinel-2-l1c", "sentinel-1": "sentinel-1-grd", "nlcd": "mine"})
    assert free == {"sentinel-2": "sentinel-2-l1c", "sentinel-1": "sentinel-1-grd", "nlcd": "mine"}
    assert list(other) == ["landsat"]
    assert catalog.offers(sources=("sentinel-2",)) == ({"sentinel-2": "sentinel-2-c1-l2a"}, {})
    free, other = catalog.offers(sources=("cdl", "gedi"))
    assert (free, list(other)) == ({}, ["cdl", "gedi"])
    assert "comes from files" in other["gedi"]
    with pytest.raises(BadInput, match=r"unknown collection .*'sentinel-2-l2b'.*did you mean sentinel-2-l2a\?"):
        catalog.offers({"sentinel-2": "sentinel-2-l2b"})
    with pytest.raises(BadInput, match=r"did you mean sentinel-2\?"):
        catalog.offers({"sentinel2": "mine"})


def test_the_listing_tells_of_every_source(tmp_path: Path) -> None:
    catalog = shelf(tmp_path, "sentinel-2-l2a", "sentinel-2-l1c", "sentinel-1-grd", "cop-dem-glo-30", "esa-worldcover")
    listed = {offer.source: offer for offer in catalog.listing()}
    assert list(listed) == list(SOURCES)
    assert listed["sentinel-2"] == stac.Offer(
        "sentinel-2", ("sentinel-2-l2a", "sentinel-2-l1c"), "sentinel-2-l2a", "only if named: sentinel-2-l1c"
    )
    assert (listed["sentinel-1"].collections, listed["sentinel-1"].default) == (("sentinel-1-grd",), "")
    assert "only if named: sentinel-1-grd" in listed["sentinel-1"].note
    assert [listed[name].default for name in ("glo-30", "worldcover", "cdl")] == [
        "cop-dem-glo-30",
        "esa-worldcover",
        "",
    ]
    assert "none of usda-cdl" in listed["cdl"].note
    assert "comes from files" in listed["grace"].note
    assert set(INPUTS) <= set(listed)


@pytest.fixture
def no_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_REQUEST_PAYER", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))


def test_a_named_catalog_is_known_by_its_address_too() -> None:
    for reference in ("earth-search", stac.NAMED["earth-search"]):
        assert stac.Catalog(reference, stac.NAMED["earth-search"], ()).known == "earth-search"
    for href in ("https://earth-search.aws.element84.com.evil.example/v1", "http://127.0.0.1/v1", "/data/v1"):
        assert stac.Catalog("earth-search", href, ()).known == ""


def earth_search(root: tuple[pystac.Item, ...]) -> stac.Catalog:
    """The named catalog, as it would be after it was opened."""
    return stac.Catalog("earth-search", stac.NAMED["earth-search"], root)


@pytest.mark.usefixtures("no_keys")
def test_what_the_reader_pays_for_names_the_variables_that_are_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = (item("a", "landsat-c2-l2"), item("b", "sentinel-2-l1c"), item("c", "sentinel-2-c1-l2a"))
    free, other = earth_search(root).offers()
    assert free == {"sentinel-2": "sentinel-2-c1-l2a"}
    assert "AWS_REQUEST_PAYER=requester" in other["landsat"]
    assert "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in other["landsat"]
    monkeypatch.setenv("AWS_REQUEST_PAYER", "requester")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", TOKEN)
    _, other = earth_search(root).offers({"sentinel-2": "sentinel-2-l1c"})
    assert "AWS_SECRET_ACCESS_KEY" in other["sentinel-2"]
    assert not any(word in other["sentinel-2"] for word in ("AWS_ACCESS_KEY_ID", "AWS_REQUEST_PAYER", TOKEN))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", TOKEN)
    free, _ = earth_search(root).offers({"sentinel-2": "sentinel-2-l1c"})
    assert free == {"sentinel-2": "sentinel-2-l1c", "landsat": "landsat-c2-l2"}
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert "landsat" not in earth_search(root).offers()[0]
    (tmp_path / "credentials").write_text("[default]\n")
    assert "landsat" in earth_search(root).offers()[0]


@pytest.mark.parametrize(
    ("href", "allowed"),
    [
        ("s3://usgs-landsat/collection02/level-2/standard/x_T1/x_SR_B2.TIF", True),
        ("s3://sentinel-s2-l1c/tiles/20/E/PT/2025/7/31/0/B02.jp2", True),
        ("s3://someone-else/x.tif", False),
        ("s3://usgs-landsat.evil.example/x.tif", False),
        ("s3://user@usgs-landsat/x.tif", False),
        ("s3://usgs-landsat/../someone-else/x.tif", False),
        ("s3://usgs-landsat/x.tif?versionId=1", False),
        ("s3://usgs-landsat/x.tif\r\nHost: evil", False),
        ("S3://usgs-landsat/x.tif", False),
        ("s3://usgs-landsat", False),
    ],
)
def test_buckets_of_a_named_catalog_and_no_others(tmp_path: Path, href: str, allowed: bool) -> None:
    if allowed:
        assert earth_search(()).vet(href) == href
    else:
        with pytest.raises(BadInput, match="the catalog names"):
            earth_search(()).vet(href)
    with pytest.raises(BadInput, match="the catalog names"):
        shelf(tmp_path, "landsat-c2-l2").vet(href)
    typed = stac.Catalog("https://example.com/v1", "https://example.com/v1", ())
    with pytest.raises(BadInput, match="the catalog names"):
        typed.vet(href)


def test_what_the_reader_pays_for_is_read_with_the_variables_of_aws(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From a bucket of this machine: the request is signed, and says who pays."""
    import rasterio
    from affine import Affine
    from odc.geo.geobox import GeoBox

    from aefcli.cube.load import Loading, load

    grid = GeoBox((64, 64), Affine(30, 0, 500_010, 0, -30, 5_100_000), "EPSG:32633")
    about = {"driver": "GTiff", "height": 64, "width": 64, "count": 1, "dtype": "uint16", "crs": "EPSG:32633"}
    with rasterio.open(tmp_path / "x.tif", "w", transform=grid.transform, **about) as file:
        file.write(np.full((64, 64), 7, "uint16"), 1)
    server.routes["/usgs-landsat/x.tif"] = (tmp_path / "x.tif").read_bytes()
    variables = {
        "AWS_S3_ENDPOINT": server.url.removeprefix("http://"), "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "FALSE",
        "AWS_REQUEST_PAYER": "requester", "AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": TOKEN,
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    scene = item(collection="landsat-c2-l2", assets=("blue",))
    scene.assets["blue"].href = earth_search(()).vet("s3://usgs-landsat/x.tif")
    values, lost = load(frames_of([scene], LANDSAT), "blue", "uint16", 0, "nearest", grid, Loading())
    assert (values == 7).all()
    assert not lost
    headers = [{name.lower(): value for name, value in told.items()} for _, _, told, _ in server.log]
    assert all(told["x-amz-request-payer"] == "requester" for told in headers)
    assert all("Credential=someone/" in told["authorization"] for told in headers)
    assert TOKEN not in server.asked()


def test_open_buckets_are_read_over_the_web(tmp_path: Path) -> None:
    made = feature("dem", "cop-dem-glo-30", assets=("data",))
    made["assets"]["data"]["href"] = "s3://copernicus-dem-30m/Copernicus_DSM_COG_10_N46_00_E015_00_DEM/x_DEM.tif"
    (found,) = earth_search((pystac.Item.from_dict(made),)).search("cop-dem-glo-30", HERE, None)
    href = found.assets["data"].href
    assert href == "https://copernicus-dem-30m.s3.amazonaws.com/Copernicus_DSM_COG_10_N46_00_E015_00_DEM/x_DEM.tif"
    assert earth_search(()).vet(href) == href
    (found,) = catalog_of(tmp_path, made).search("cop-dem-glo-30", HERE, None)
    assert found.assets["data"].href.startswith("s3://")  # of another catalog it is what it says, and refused


# ---------------------------------------------------------------- stac-geoparquet


def table_of(folder: Path, features: list[dict[str, Any]], name: str = "items.parquet") -> Path:
    from stac_geoparquet.arrow import parse_stac_items_to_arrow, to_parquet

    to_parquet(parse_stac_items_to_arrow(features).read_all(), folder / name)
    return folder / name


def test_a_table_gives_the_items_that_the_collection_gives(tmp_path: Path) -> None:
    east = {"bbox": [16.0, 46.0, 16.2, 46.2]}
    features = [
        feature("a", "sentinel-2-l2a", assets={"blue": {"raster:bands": [{"scale": 1e-4, "offset": -0.1}]}, "scl": {}}),
        feature("b", "sentinel-2-l2a", datetime="2022-12-31T23:59:59.999Z"),
        feature("c", "sentinel-2-l2a", datetime="2023-01-01T00:00:00Z"),
        feature("d", "sentinel-2-l2a", **east),
        feature("e", "sentinel-2-c1-l2a"),
        feature("f", "usda-cdl", assets=("cropland",), **{"datetime": None, "start_datetime": "2012-01-01T00:00:00Z",
                                                          "end_datetime": "2012-12-31T00:00:00Z"}),
    ]  # fmt: skip
    listed, table = catalog_of(tmp_path, *features), stac.open_catalog(str(table_of(tmp_path, features)))
    assert table.collections == listed.collections
    assert table.offers() == listed.offers()
    for collection in ("sentinel-2-l2a", "sentinel-2-c1-l2a", "usda-cdl", "none"):
        for box in (HERE, BBox(16.1, 46.1, 16.3, 46.3), BBox(170, 46, -170, 47)):
            for period in (YEAR, None):
                ours, theirs = (catalog.search(collection, box, period) for catalog in (table, listed))
                assert [one.id for one in ours] == [one.id for one in theirs]
    (ours, *_), (theirs, *_) = (catalog.search("sentinel-2-l2a", HERE, YEAR) for catalog in (table, listed))
    assert frames_of([ours], S2)[0].offset == frames_of([theirs], S2)[0].offset
    assert {key: asset.href for key, asset in ours.assets.items()} == {k: a.href for k, a in theirs.assets.items()}
    assert stac.instant(ours) == stac.instant(theirs)


@pytest.mark.filterwarnings("ignore:Could not parse bucket")
def test_real_items_through_a_table(real: Path, tmp_path: Path) -> None:
    path = real / "stac-answers/pystac-client/pc_sentinel2_datetime__00_POST_api_stac_v1_search.json"
    features = json.loads(path.read_text())["features"]
    table = stac.open_catalog(str(table_of(tmp_path, features)))
    found = table.search("sentinel-2-l2a", WORLD, None)
    assert {one.id for one in found} == {one["id"] for one in features}
    whole = [pystac.Item.from_dict(copy.deepcopy(one)) for one in features]
    ours, theirs = frames_of(keep(found, S2, YEAR)[0], S2), frames_of(keep(whole, S2, YEAR)[0], S2)
    assert [[one.id for one in frame.items] for frame in ours] == [[one.id for one in frame.items] for frame in theirs]
    assert [frame.time for frame in ours] == [frame.time for frame in theirs]


def test_tables_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    (tmp_path / "text.parquet").write_text("hello")
    parquet.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    for name, says in (("text.parquet", "no Parquet file"), ("other.parquet", "lacks assets, geometry, id")):
        with pytest.raises(BadInput, match=says) as caught:
            stac.open_catalog(str(tmp_path / name))
        line(caught.value)
    table_of(tmp_path, [feature()])
    monkeypatch.setattr(stac.table, "_MOST_ROWS", 100)
    with pytest.raises(BadInput, match="unpacks to"):
        stac.open_catalog(str(tmp_path / "items.parquet"))


# ---------------------------------------------------------------- a server that does as it is told


@dataclass
class Server:
    """A running server on `host`. `log` holds (method, path with query, headers, body) of each request."""

    url: str
    routes: dict[str, Any] = field(default_factory=dict)  # path -> bytes, JSON, or a function of (path, body)
    log: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)

    def asked(self) -> str:
        """Everything that was ever sent to it."""
        return repr(self.log)


@dataclass(frozen=True)
class Answer:
    body: bytes = b""
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    cut: int = 0  # bytes that its length promises and that do not come


@contextmanager
def serving(host: str = "127.0.0.1") -> Iterator[Server]:
    made = Server("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            made.log.append((self.command, self.path, dict(self.headers), body))
            told = made.routes.get(self.path.partition("?")[0], Answer(b"nothing here", 404))
            told = told(self.path, body) if isinstance(told, Callable) else told  # type: ignore[arg-type]
            if not isinstance(told, Answer):
                told = Answer(told if isinstance(told, bytes) else json.dumps(told).encode())
            if told.status == 0:  # says nothing, and hangs up
                self.close_connection = True
                return
            self.send_response(told.status)
            for name, value in told.headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(told.body) + told.cut))
            self.end_headers()
            with suppress(ConnectionError):  # it is told more than it wants
                self.wfile.write(told.body)
            if told.cut:
                self.close_connection = True

        do_GET = do_POST = answer

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer((host, 0), Handler)
    server.daemon_threads = True
    made.url = f"http://{host}:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as made:
        yield made


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses between tries."""
    monkeypatch.setattr(web, "_RETRY", web._RETRY.new(backoff_factor=0))
    monkeypatch.setattr(web, "_PAUSE", 0.0)


EXTENT = {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}}


def api_of(server: Server, features: list[dict[str, Any]], *collections: str) -> str:
    """Routes of a STAC API that answers every search with the same page. Returns its address."""
    kinds = ("core", "item-search", "collections", "ogcapi-features")
    server.routes |= {
        "/api": {
            "type": "Catalog", "id": "x", "stac_version": "1.0.0", "description": "x",
            "conformsTo": [f"https://api.stacspec.org/v1.0.0/{kind}" for kind in kinds],
            "links": [
                {"rel": "self", "href": f"{server.url}/api"},
                {"rel": "root", "href": f"{server.url}/api"},
                {"rel": "data", "href": f"{server.url}/collections"},
                {"rel": "search", "href": f"{server.url}/search", "method": "POST", "type": "application/geo+json"},
            ],
        },
        "/collections": {"collections": [collection(name) for name in collections], "links": []},
        "/search": {"type": "FeatureCollection", "features": features, "links": []},
    }  # fmt: skip
    return f"{server.url}/api"


def collection(name: str) -> dict[str, Any]:
    return {"type": "Collection", "id": name, "stac_version": "1.0.0", "description": "x", "license": "other",
            "extent": EXTENT, "links": []}  # fmt: skip


def search(typed: str) -> list[pystac.Item]:
    """Open, list the collections, and search."""
    catalog = stac.open_catalog(typed)
    assert catalog.collections
    return catalog.search("sentinel-2-l2a", HERE, YEAR)


def page(features: list[dict[str, Any]], onward: str | None = None, **about: Any) -> dict[str, Any]:
    links = [{"rel": "next", "href": onward}] if onward else []
    return {"type": "FeatureCollection", "features": features, "links": links, **about}


# ---------------------------------------------------------------- searches that end


def test_pages_that_lead_back_end_without_duplicates(server: Server) -> None:
    """a -> b -> c -> b; each page repeats an item of the one before, and the number of matches is a lie."""
    typed = api_of(server, [], "sentinel-2-l2a")
    names = ["a", "b", "c"]
    for number, name in enumerate(names):
        pair = [feature(name), feature(names[number - 1] if number else "first")]
        onward = f"{server.url}/page/{names[number + 1] if number < 2 else 'b'}"
        server.routes[f"/page/{name}"] = page(pair, onward, numberMatched=10**9, numberReturned=7)
    server.routes["/search"] = server.routes["/page/a"]
    found = stac.open_catalog(typed).search("sentinel-2-l2a", HERE, YEAR)
    assert sorted(one.id for one in found) == ["a", "b", "c", "first"]
    assert len([path for _, path, _, _ in server.log if path.startswith(("/page", "/search"))]) == 4


def test_a_search_without_end_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stac.catalog, "_MOST_PAGES", 5)
    typed = api_of(server, [], "sentinel-2-l2a")

    def more(path: str, body: bytes) -> Any:
        number = int(path.partition("=")[2] or 0)
        return page([feature(f"item {number}")], f"{server.url}/search?token={number + 1}")

    server.routes["/search"] = more
    with pytest.raises(RemoteFailed, match="does not end: 5 items") as caught:
        stac.open_catalog(typed).search("sentinel-2-l2a", HERE, YEAR)
    assert caught.value.code == 3


def test_lists_of_collections_that_lead_back_end(server: Server) -> None:
    typed = api_of(server, [], "sentinel-2-l2a", "landsat-c2-l2")
    server.routes["/collections"]["links"] = [{"rel": "next", "href": f"{server.url}/collections"}]
    assert stac.open_catalog(typed).collections == {"sentinel-2-l2a", "landsat-c2-l2"}


def test_static_catalogs_that_lead_back_end(tmp_path: Path) -> None:
    links = [{"rel": "child", "href": f"./{name}.json"} for name in ("collection", "catalog")]
    root = {"type": "Catalog", "id": "root", "stac_version": "1.0.0", "description": "x", "links": links}
    inside = collection("sentinel-2-l2a") | {
        "links": [{"rel": "child", "href": "./catalog.json"}, {"rel": "item", "href": "./one.json"}]
    }
    for name, document in (("catalog", root), ("collection", inside), ("one", feature())):
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    catalog = stac.open_catalog(str(tmp_path / "catalog.json"))
    assert catalog.collections == {"sentinel-2-l2a"}
    assert [one.id for one in catalog.search("sentinel-2-l2a", HERE, YEAR)] == ["one"]


# ---------------------------------------------------------------- answers that are none


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("status", [400, 401, 403, 404, 500, 503])
@pytest.mark.parametrize("place", ["/api", "/search", "/collections", "/one.json"])
def test_refusals_are_one_line_with_the_address_and_the_status(
    server: Server, tmp_path: Path, status: int, place: str
) -> None:
    typed = api_of(server, [], "sentinel-2-l2a")
    if place == "/one.json":
        server.routes["/api"] = collection("sentinel-2-l2a") | {
            "links": [{"rel": "item", "href": f"{server.url}/one.json"}]
        }
    server.routes[place] = Answer(b"<html>\n<p>Sorry: the key is %b</p>\n</html>" % TOKEN.encode(), status)
    with pytest.raises(AefError) as caught:
        search(f"{typed}?key={TOKEN}")
    assert caught.value.code == (2 if status < 500 else 3)
    told = line(caught.value)
    assert str(status) in told
    assert f"{server.url}{place}" in told
    assert TOKEN not in told
    assert ("credentials" in told) == (status in (401, 403))


@pytest.mark.parametrize(
    "body",
    [
        b"<html>hello</html>", b"", b"null", b"[]", b'"x"', b"{}", b'{"type": "Feature"}', b"\xff\xfe", b"[" * 100_000,
        b'{"type": "Catalog"}', b'{"type": "FeatureCollection", "features": 7}', b'{"conformsTo": []}',
        b'{"conformsTo": 7, "type": "Catalog", "id": "x"}', b'{"type": "FeatureCollection", "features": [null]}',
    ],
)  # fmt: skip
def test_an_address_that_is_no_catalog(server: Server, body: bytes) -> None:
    server.routes["/api"] = body
    with pytest.raises(BadInput) as caught:
        stac.open_catalog(f"{server.url}/api?key={TOKEN}").search("sentinel-2-l2a", HERE, YEAR)
    assert server.url in line(caught.value)
    assert TOKEN not in line(caught.value)


@pytest.mark.parametrize("body", [b"<html>hello</html>", b"[]", b'{"features": [{}]}', b'{"features": 7}'])
def test_a_search_that_answers_something_else(server: Server, body: bytes) -> None:
    typed = api_of(server, [], "sentinel-2-l2a")
    server.routes["/search"] = body
    with pytest.raises(AefError) as caught:
        stac.open_catalog(typed).search("sentinel-2-l2a", HERE, YEAR)
    line(caught.value)


def test_an_api_without_a_search(server: Server) -> None:
    typed = api_of(server, [], "sentinel-2-l2a")
    server.routes["/api"]["conformsTo"] = []
    server.routes["/api"]["links"] = server.routes["/api"]["links"][:2]
    with pytest.raises(AefError) as caught:
        stac.open_catalog(typed).search("sentinel-2-l2a", HERE, YEAR)
    line(caught.value)


@pytest.mark.usefixtures("quick")
def test_answers_that_break_off_are_asked_for_again(server: Server) -> None:
    """A body cut short, on every other request, of an API and of a file."""
    typed = api_of(server, [feature()], "sentinel-2-l2a")
    count = Counter[str]()
    for path, told in list(server.routes.items()):
        whole = json.dumps(told).encode()

        def torn(asked: str, body: bytes, path: str = path, whole: bytes = whole) -> Answer:
            count[path] += 1
            return Answer(whole[:-7], cut=7) if count[path] % 2 else Answer(whole)

        server.routes[path] = torn
    catalog = stac.open_catalog(typed)
    assert catalog.collections == {"sentinel-2-l2a"}
    assert [one.id for one in catalog.search("sentinel-2-l2a", HERE, YEAR)] == ["one"]
    assert all(count[path] >= 2 and count[path] % 2 == 0 for path in count)


FAULTS = [Answer(status=503), Answer(status=429), Answer(status=502, body=b"<html>"), Answer(status=0),
          Answer(b'{"type": ', cut=50)]  # fmt: skip


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("seed", range(10))
def test_an_api_of_which_a_fifth_of_the_answers_fail_finds_the_same(server: Server, seed: int) -> None:
    """Ten pages of one item; busy, gone in the middle of a word, hung up."""
    rng, typed = np.random.default_rng(seed), api_of(server, [], "sentinel-2-l2a")
    for number in range(10):
        onward = f"{server.url}/page/{number + 1}" if number < 9 else None
        server.routes[f"/page/{number}"] = page([feature(f"item {number}")], onward)
    server.routes["/search"] = server.routes.pop("/page/0")
    failed = []
    for path, told in list(server.routes.items()):

        def sometimes(asked: str, body: bytes, told: Any = told) -> Any:
            if rng.random() < 0.2:
                failed.append(asked)
                return FAULTS[rng.integers(len(FAULTS))]
            return told

        server.routes[path] = sometimes
    assert sorted(one.id for one in search(typed)) == [f"item {number}" for number in range(10)]
    assert len(server.log) == 13 + len(failed)  # the landing page is asked for twice
    assert failed


def test_a_search_of_a_real_server_for_maps_of_long_ago(tmp_path: Path) -> None:
    """Without a period, over two pages; the years that are kept are those of the period."""
    years = [mapped(str(year), year, collection="usda-cdl", assets=("cropland",)) for year in range(1900, 2020)]
    features = [one.to_dict(include_self_link=False) for one in years] + [feature()]
    with stac_api(tmp_path, [collection("usda-cdl"), collection("sentinel-2-l2a")], features) as api:
        catalog = stac.open_catalog(api.url)
        assert catalog.offers(sources=("cdl", "glo-30"))[0] == {"cdl": "usda-cdl"}
        found = catalog.search("usda-cdl", HERE, None)
        assert len([told for told in api.log() if "search" in told[0]]) == 2
    assert len(found) == 120
    assert [one.id for one in keep(found, SOURCES["cdl"], YEAR)[0]] == ["2019"]


@pytest.mark.usefixtures("quick")
def test_patience_with_answers_that_break_off_ends(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_PATIENCE", -1)
    server.routes["/items.json"] = Answer(b'{"type": "Fea', cut=100)
    with pytest.raises(RemoteFailed, match="cannot read") as caught:
        stac.open_catalog(f"{server.url}/items.json?key={TOKEN}")
    assert TOKEN not in line(caught.value)


def test_a_table_on_the_web(server: Server, tmp_path: Path) -> None:
    server.routes["/data/items.parquet"] = table_of(tmp_path, [feature("a"), feature("b")]).read_bytes()
    catalog = stac.open_catalog(f"{server.url}/data/items.parquet?key={TOKEN}")
    assert [one.id for one in catalog.search("sentinel-2-l2a", HERE, YEAR)] == ["a", "b"]
    assert catalog.search("sentinel-2-l2a", HERE, Period.parse("2022")) == []
    assert [path for _, path, _, _ in server.log] == [f"/data/items.parquet?key={TOKEN}"]
    assert catalog.reference == f"{server.url}/data/items.parquet"


@pytest.mark.parametrize("squeezed", [False, True])
@pytest.mark.parametrize("place", ["/api", "/search", "/collections", "/items.parquet"])
def test_documents_larger_than_a_bound_are_not_taken(
    server: Server, monkeypatch: pytest.MonkeyPatch, place: str, squeezed: bool
) -> None:
    """Counted as they come and unpacked: a length may be a lie, and a small body unpack to a large one."""
    typed = api_of(server, [], "sentinel-2-l2a")
    monkeypatch.setattr(web, "_MOST", 100_000)
    monkeypatch.setattr(stac.catalog, "MOST_TABLE", 100_000)
    body = b'{"x": "' + b" " * 10_000_000 + b'"}'
    server.routes[place] = Answer(gzip.compress(body), headers=(("Content-Encoding", "gzip"),)) if squeezed else body
    with pytest.raises(BadInput, match="is larger than") as caught:
        search(f"{server.url}/items.parquet" if "parquet" in place else typed)
    line(caught.value)


def test_files_larger_than_a_bound_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_MOST", 1000)
    with (tmp_path / "big.json").open("wb") as file:
        file.truncate(1 << 40)  # no memory holds it
    with pytest.raises(BadInput, match="is larger than"):
        stac.open_catalog(str(tmp_path / "big.json"))


# ---------------------------------------------------------------- keys


def test_a_key_in_the_address_goes_to_its_origin_and_nowhere_else(server: Server) -> None:
    """Another port of the same machine is another origin: a `next` leads there, and it gets no key."""
    with serving() as other:
        typed = api_of(server, [], "sentinel-2-l2a")
        server.routes["/search"] = page([feature("here")], f"{server.url}/more?token=2")
        server.routes["/more"] = page([feature("more")], f"{other.url}/onward")
        other.routes["/onward"] = page([feature("there")])
        catalog = stac.open_catalog(f"{typed}?key={TOKEN}&other=1")
        assert catalog.collections
        found = catalog.search("sentinel-2-l2a", HERE, YEAR)
        assert sorted(one.id for one in found) == ["here", "more", "there"]
        assert len(other.log) == 1
        assert TOKEN not in other.asked()
    assert all(f"key={TOKEN}&other=1" in path for _, path, _, _ in server.log)
    assert any("token=2" in path for _, path, _, _ in server.log)
    assert TOKEN not in repr(catalog)
    assert (catalog.reference, catalog.href) == (typed, typed)


def test_a_key_follows_no_redirect(server: Server) -> None:
    with serving() as other:
        api_of(other, [], "sentinel-2-l2a")
        server.routes["/api"] = Answer(status=302, headers=(("Location", f"{other.url}/api"),))
        stac.open_catalog(f"{server.url}/api?key={TOKEN}")
        assert other.log
        assert TOKEN not in other.asked()
        assert server.url not in other.asked()  # nor a Referer


def test_a_key_of_a_static_catalog(server: Server) -> None:
    with serving() as other:
        links = [{"rel": "item", "href": "./one.json"}, {"rel": "item", "href": f"{other.url}/two.json"}]
        server.routes |= {"/c.json": collection("sentinel-2-l2a") | {"links": links}, "/one.json": feature("one")}
        other.routes["/two.json"] = feature("two")
        catalog = stac.open_catalog(f"{server.url}/c.json?key={TOKEN}")
        found = catalog.search("sentinel-2-l2a", HERE, YEAR)
        assert [one.id for one in found] == ["one", "two"]
        assert TOKEN not in other.asked()
        assert TOKEN not in json.dumps([one.to_dict() for one in found])
    assert all(TOKEN in path for _, path, _, _ in server.log)


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("https://example.com/v1?key=x#y", "https://example.com/v1"),
        ("https://user:pass@example.com:8443/v1?key=x", "https://example.com:8443/v1"),
        ("earth-search", "earth-search"),
        ("/data/a?b.json", "/data/a?b.json"),
        ("items.json", "items.json"),
    ],
)
def test_what_may_be_written_down_of_an_address(typed: str, shown: str) -> None:
    assert stac.public(typed) == shown


@pytest.mark.usefixtures("quick")
def test_failures_show_no_key_in_errors_or_logs(
    server: Server, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Ten kinds, with logging as a user's script would have it."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{nobody.getsockname()[1]}/api"
    api_of(server, [], "sentinel-2-l2a")
    server.routes |= {
        "/missing": Answer(status=404), "/wants": Answer(status=401), "/busy": Answer(status=503),
        "/html": b"<html>", "/list": b"[]", "/feature": {"type": "Feature"},
        "/away": Answer(status=302, headers=(("Location", f"file:///etc/passwd?key={TOKEN}"),)),
        "/inside": Answer(status=302, headers=(("Location", f"http://10.0.0.1/x?key={TOKEN}"),)),
        "/round": Answer(status=302, headers=(("Location", f"/round?key={TOKEN}"),)),
    }  # fmt: skip
    caplog.set_level(logging.INFO)
    kinds = [f"{server.url}/{path}" for path in
             ("missing", "wants", "busy", "html", "list", "feature", "away", "inside", "round")]  # fmt: skip
    for typed in (*kinds, closed, f"{server.url}:99999/x"):
        with pytest.raises(AefError) as caught:
            stac.open_catalog(f"{typed}?key={TOKEN}")
        assert TOKEN not in line(caught.value), typed
    out, err = capfd.readouterr()
    assert TOKEN not in caplog.text + out + err


# ---------------------------------------------------------------- hostile addresses

HOSTILE = [
    "file:///etc/passwd", "FILE:///etc/passwd", "file:/etc/passwd", "file://localhost/etc/passwd", "file:etc/passwd",
    "/etc/passwd", "//etc/passwd", "../../etc/passwd", "https:/etc/passwd", "https:///etc/passwd", "https://",
    "http://127.0.0.1:{port}/x.tif", "http://example.com/x.tif", "https://127.0.0.1:{port}/x.tif",
    "https://localhost:{port}/x.tif", "https://LocalHost:{port}/x.tif", "https://localhost.:{port}/x.tif",
    "https://x.localhost:{port}/x.tif", "https://127.1:{port}/x.tif", "https://127.0.1:{port}/x.tif",
    "https://2130706433:{port}/x.tif", "https://0x7f000001:{port}/x.tif", "https://0x7f.0.0.1:{port}/x.tif",
    "https://017700000001:{port}/x.tif", "https://0177.0.0.1:{port}/x.tif", "https://127.0.0.1.:{port}/x.tif",
    "https://127%2e0.0.1:{port}/x.tif", "https://①②⑦.0.0.1:{port}/x.tif", "https://１２７.０.０.１:{port}/x.tif",
    "https://127。0。0。1:{port}/x.tif", "https://ⓛocalhost:{port}/x.tif", "https://0:{port}/x.tif",
    "https://0.0.0.0:{port}/x.tif", "https://[::1]:{port}/x.tif", "https://[::]:{port}/x.tif",
    "https://[0:0:0:0:0:0:0:1]:{port}/x.tif", "https://[::ffff:127.0.0.1]:{port}/x.tif",
    "https://[::ffff:7f00:1]:{port}/x.tif", "https://[64:ff9b::7f00:1]/x.tif", "https://[2002:7f00:1::]/x.tif",
    "https://[fe80::1%25lo]:{port}/x.tif", "https://[fc00::1]/x.tif", "https://[ff02::1]/x.tif", "https://[/x.tif",
    "https://10.0.0.1/x.tif", "https://172.16.0.1/x.tif", "https://192.168.1.1/x.tif", "https://100.64.0.1/x.tif",
    "https://169.254.169.254/latest/meta-data", "https://0xa9fea9fe/latest/meta-data", "https://224.0.0.1/x.tif",
    "https://255.255.255.255/x.tif", "https://metadata.google.internal/x", "https://printer.local/x",
    "https://router/x.tif", "https://user:pass@example.com/x.tif", "https://example.com@127.0.0.1:{port}/x.tif",
    "https://example.com\\@127.0.0.1:{port}/x.tif", "https://127.0.0.1:{port}\\.example.com/x.tif",
    "https://example.com/x.tif\r\nHost: evil", "https://example.com/\x00.tif", "https://exa\tmple.com/x.tif",
    "https://example.com:99999/x.tif", "https://example.com:x/x.tif", "ftp://example.com/x.tif",
    "gopher://127.0.0.1:{port}/x", "dict://127.0.0.1:{port}/x", "s3://bucket/x.tif", "gs://bucket/x.tif",
    "az://bucket/x.tif", "/vsicurl/http://127.0.0.1:{port}/x.tif", "/vsis3/bucket/x.tif", "/vsimem/x.tif",
    "/vsizip//vsicurl/http://127.0.0.1:{port}/x.zip/x.tif", "/vsistdin/", "zip+https://127.0.0.1:{port}/x.zip!x.tif",
    "zip:///etc/x.zip!x.tif", "data:text/plain,hello", "javascript:1", "HDF5:/etc/passwd://x",
    "NETCDF:http://127.0.0.1:{port}/x", "WMS:http://127.0.0.1:{port}/?", "<VRTDataset></VRTDataset>",
    "vrt:///etc/passwd?bands=1", "GTIFF_DIR:1:/etc/passwd",
]  # fmt: skip


@pytest.mark.parametrize("href", HOSTILE)
def test_hostile_addresses_are_refused(href: str, tmp_path: Path, server: Server) -> None:
    """By a catalog on the web and by one on disk, as they are and as pystac makes them absolute."""
    href = href.format(port=server.url.rpartition(":")[2])
    made = feature()
    made["assets"]["red"]["href"] = href
    here = catalog_of(tmp_path, made)
    web = stac.Catalog("https://catalog.example.com/v1", "https://catalog.example.com/v1", here.root)
    for catalog in (here, web):
        with pytest.raises(BadInput) as caught:
            catalog.vet(href)
        line(caught.value)
    with suppress(BadInput):
        (found,) = here.search("sentinel-2-l2a", HERE, YEAR)
        absolute = here.vet(found.assets["red"].href)
        # A strange name of a file in the folder, or of a page of a public host, is no harm.
        assert Path(absolute).resolve().is_relative_to(tmp_path) or absolute.startswith("https://example.com/")
    assert server.log == []


def test_there_are_sixty_of_them() -> None:
    assert len(set(HOSTILE)) >= 60


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "::1", "::ffff:192.168.0.1", "169.254.169.254"])
def test_names_that_lead_inside_are_refused_and_asked_for_once(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """The resolver is the machine's; here it is told what to say."""
    asked = []

    def resolve(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        public = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.215.14", port))]
        return [*public, (family, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    hrefs.leads_outside.cache_clear()
    catalog = stac.Catalog("https://catalog.example.com", "https://catalog.example.com", ())
    for number in range(3):
        with pytest.raises(BadInput, match="the catalog names"):
            catalog.vet(f"https://rebound.example.com/{number}.tif")
    assert asked == ["rebound.example.com"]
    hrefs.leads_outside.cache_clear()


def test_ordinary_addresses_pass(tmp_path: Path) -> None:
    """Names that do not resolve, as here without a network, stay names."""
    hrefs.leads_outside.cache_clear()
    catalog = catalog_of(tmp_path, feature())
    for href in (
        "https://example.com/x.tif", "https://example.com:8443/a b/x.tif?sig=1%2F2", "https://8.8.8.8/x.tif",
        "https://[2606:4700::1111]/x.tif", "https://a.b.example.org./x.tif", str(tmp_path / "a b/vsi.tif"),
    ):  # fmt: skip
        assert catalog.vet(href) == href
    typed = stac.Catalog("http://127.0.0.1:8000/c.json", "http://127.0.0.1:8000/c.json", ())
    assert typed.vet("http://127.0.0.1:9000/x.tif")  # the very host that was typed
    with pytest.raises(BadInput):
        typed.vet("http://localhost:8000/x.tif")


@pytest.mark.parametrize("place", ["/api", "/search", "/collections", "/one.json"])
def test_redirects_to_the_inside_are_not_followed(server: Server, place: str) -> None:
    """The typed host may be of this machine; that it names another spelling of it is another host."""
    port = server.url.rpartition(":")[2]
    typed = api_of(server, [], "sentinel-2-l2a")
    if place == "/one.json":
        server.routes["/api"] = collection("sentinel-2-l2a") | {"links": [{"rel": "item", "href": "./one.json"}]}
    server.routes[place] = Answer(status=307, headers=(("Location", f"http://localhost:{port}/secret"),))
    server.routes["/secret"] = {"type": "FeatureCollection", "features": []}
    with pytest.raises(BadInput, match="the catalog names") as caught:
        search(typed)
    line(caught.value)
    assert not any("secret" in path for _, path, _, _ in server.log)


@pytest.mark.parametrize("rel", ["next", "search", "data"])
@pytest.mark.parametrize("href", ["file:///etc/passwd", "http://localhost:{port}/secret", "https://10.0.0.1/x"])
def test_links_of_an_api_to_the_inside_are_not_followed(server: Server, rel: str, href: str) -> None:
    typed, href = api_of(server, [feature()], "sentinel-2-l2a"), href.format(port=server.url.rpartition(":")[2])
    if rel == "next":
        server.routes["/search"] = page([feature()], href)
    else:
        for link in server.routes["/api"]["links"]:
            link["href"] = href if link["rel"] == rel else link["href"]
    with pytest.raises(BadInput, match="the catalog names"):
        search(typed)
    assert not any("secret" in path for _, path, _, _ in server.log)
