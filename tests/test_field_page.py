"""The page of a field: what it holds, that nothing a user names can act in it, and what it does in a browser."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odc.geo.geobox import GeoBox
from PIL import Image
from rasterio import Affine
from test_scores_page import Elements

from aefcli import field
from aefcli.errors import BadInput, NoResources
from aefcli.extent import Period, Tile
from aefcli.report import field_page, slider
from aefcli.report.slider import _directions

HOSTILE = "<script>alert('x')</script> & \"more\""
GRID = GeoBox((60, 80), Affine(10, 0, 5e5, 0, -10, 5.1e6), "EPSG:32633")
MONTHS = [Period.parse(f"2023-0{month}") for month in (1, 2, 3)]
SPLIT = 30  # the column at which the ground changes
ROW, COLUMN = 20, 10  # a place in the west
YELLOW, PURPLE = (253, 231, 37), (68, 1, 84)


def ground() -> np.ndarray:
    """float32 (time, 64, y, x): a in the west, b in the east; then b all over; then a in the west and nothing else."""
    rng = np.random.default_rng(0)
    vectors = np.zeros((3, 64, 60, 80), "float32")
    a, b = np.eye(64, dtype="float32")[:2]
    vectors[0, :, :, :SPLIT], vectors[0, :, :, SPLIT:] = a[:, None, None], b[:, None, None]
    vectors[1] = b[:, None, None]
    vectors[2, :, :, :SPLIT] = a[:, None, None]
    vectors += rng.normal(0, 0.01, vectors.shape)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[2, :, :, SPLIT:] = np.nan
    return vectors


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three months of two kinds of ground, the last one extrapolated. Not to be changed."""
    path = tmp_path_factory.mktemp("page") / "three & <b>months.zarr"
    attrs = {"aef:recipe": f"name = {json.dumps(HOSTILE)}", "aef:model": HOSTILE, "aef:cube": "cube.zarr"}
    counts = [(6, 11), (5, 11), (0, 11)]
    field.create(path, GRID, MONTHS, sources=["sentinel-2"], attrs=attrs, inside=counts, uncertainty=True)
    seen = np.arange(3, dtype="uint16")[:, None, None] + np.ones((3, 60, 80), "uint16")
    unsure = np.full((3, 60, 80), 4.25, "float32")
    field.write(path, Tile(0, 0, 60, 80), field.quantise(ground(), 1), {"sentinel-2": seen}, uncertainty=unsure)
    field.finish(path)
    return path


@pytest.fixture(scope="module")
def page(store: Path) -> Path:
    return field_page(store, store.parent / "page.html")


@pytest.fixture(scope="module")
def place() -> tuple[float, float]:
    """Degrees of the centre of a pixel in the west."""
    from pyproj import Transformer

    to_degrees = Transformer.from_crs("EPSG:32633", "EPSG:4326", always_xy=True)
    return to_degrees.transform(5e5 + 10 * (COLUMN + 0.5), 5.1e6 - 10 * (ROW + 0.5))


def carried(text: str) -> dict[str, Any]:
    """What the page's script reads."""
    found = re.search(r'id="data">(.*?)</script>', text)
    assert found
    return json.loads(found[1])


def test_nothing_acts_or_is_fetched_whatever_things_are_called(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = Elements(text)
    assert "three & <b>months" in found.text
    assert HOSTILE in found.text
    assert not {tag for tag, _ in found.found} & {"link", "iframe", "object", "embed", "base", "form", "b"}
    assert [a.get("type") for tag, a in found.found if tag == "script"] == ["application/json", None]
    for _, attributes in found.found:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "srcset", "href")]
        assert (attributes.get("src") or "data:").startswith("data:")
    (policy,) = [a["content"] for tag, a in found.found if tag == "meta" and "http-equiv" in a]
    assert re.match(
        r"default-src 'none'; img-src data:; style-src 'sha256-\S+'; script-src 'sha256-\S+';", policy or ""
    )
    assert "unsafe" not in (policy or "")


def test_the_page_tells_of_every_period_without_its_script(page: Path) -> None:
    found = Elements(page.read_text(encoding="utf-8"))
    pictures = [a["src"] or "" for tag, a in found.found if tag == "img"]
    assert len(pictures) == 4  # the shown one, and one for each period
    assert pictures[0] == pictures[1]
    assert len(set(pictures)) == 3
    with Image.open(io.BytesIO(base64.b64decode(pictures[3].partition(",")[2]))) as image:
        rgba = np.asarray(image)
    assert rgba.shape == (60, 80, 4)
    np.testing.assert_array_equal(rgba[..., 3] > 0, np.isfinite(ground()[2, 0]))
    for words in (
        "2023-03 2023-03-01 to 2023-03-31 3.0 62.5% extrapolated",
        "60 rows x 80 columns of 10 m, 0.48 km²",
        "WGS 84 / UTM zone 33N (EPSG:32633)",
        "2023-01-01 to 2023-03-31",
        "6 (55%)",
        "4.2°",
    ):
        assert words in found.text


def test_the_copy_keeps_cosines_within_what_it_says(store: Path, page: Path) -> None:
    data = carried(page.read_text(encoding="utf-8"))
    codes = np.frombuffer(base64.b64decode(data["vectors"]), np.int8).reshape(data["shape"])
    assert codes.shape[:3] == (3, 60, 80)
    nodata = (codes == -128).all(axis=-1)
    np.testing.assert_array_equal(nodata, np.isnan(ground()[:, 0]))
    kept = codes.astype(float)
    kept /= np.linalg.norm(kept, axis=-1, keepdims=True)
    cosines = np.einsum("tyxk,tk->tyx", kept, kept[:, ROW, COLUMN])
    expected = np.einsum("tdyx,td->tyx", ground(), ground()[:, :, ROW, COLUMN])
    np.testing.assert_allclose(cosines[~nodata], expected[~nodata], atol=0.06)


def test_directions_are_the_fewest_that_hold_enough() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(0, 1, (500, 64)) * np.r_[np.ones(5), np.full(59, 0.02)]
    directions, share = _directions(vectors)
    assert directions.shape == (64, 5)
    assert share > 0.95
    np.testing.assert_allclose(directions.T @ directions, np.eye(5), atol=1e-5)
    every, share = _directions(rng.normal(0, 1, (5000, 64)))
    assert every.shape[1] > 55
    assert share >= 0.95


def test_what_is_too_much_for_a_page_is_thinned(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for a thousandth of what a page may carry."""
    monkeypatch.setattr(slider, "_PICTURES", slider._PICTURES // 1000)
    monkeypatch.setattr(slider, "_COPY", slider._COPY // 1000)
    text = field_page(store, tmp_path / "deep/page.html").read_text(encoding="utf-8")
    data = carried(text)
    times, rows, columns, kept = data["shape"]
    assert rows * columns * kept * times <= 3000 * 1.2
    assert rows * columns > 200
    assert data["box"] == pytest.approx([0, 0, 1, 1], abs=0.04)  # of the picture, which itself is thinned
    found = Elements(text)
    sizes = {(a["width"], a["height"]) for tag, a in found.found if tag == "img"}
    assert sizes == {("20", "15")}
    assert "one pixel in 4 along each side" in found.text


def test_where_it_cannot_be_written_or_what_is_not_there(store: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is a folder"):
        field_page(store, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(NoResources, match="cannot write"):
        field_page(store, tmp_path / "file/page.html")
    with pytest.raises(BadInput, match="outside"):
        field_page(store, tmp_path / "page.html", at=(3.0, 45.0))
    with pytest.raises(BadInput, match="no period 2022"):
        field_page(store, tmp_path / "page.html", change=(MONTHS[0], Period.parse("2022")))
    assert not (tmp_path / "page.html").exists()


# --- in a browser ---------------------------------------------------------------------------------------------


class Tab:
    """A page in headless Chromium, driven through its two pipes (the DevTools protocol)."""

    def __init__(self, browser: str, profile: Path) -> None:
        (their_in, self.out), (self.come, their_out) = os.pipe(), os.pipe()
        redirect = (  # the browser hears on 3 and speaks on 4
            "import fcntl, os, sys\n"
            "hears, speaks = (fcntl.fcntl(int(word), fcntl.F_DUPFD, 10) for word in sys.argv[1:3])\n"
            "os.dup2(hears, 3)\n"
            "os.dup2(speaks, 4)\n"
            "os.execv(sys.argv[3], sys.argv[3:])"
        )
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        options += ["--disable-background-networking", "--disable-extensions", "--force-device-scale-factor=1"]
        options += ["--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-pipe", "--window-size=1200,1000"]
        options += [f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", redirect, str(their_in), str(their_out), browser, *options],
            pass_fds=(their_in, their_out),
            stderr=subprocess.DEVNULL,
        )
        os.close(their_in)
        os.close(their_out)
        self.count, self.rest, self.session = 0, b"", ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        os.write(self.out, json.dumps(message | ({"sessionId": self.session} if self.session else {})).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == self.count:
                assert "error" not in found, found
                return found["result"]
            self.events.append(found)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            assert select.select([self.come], [], [], 60)[0], "the browser is silent"
            read = os.read(self.come, 1 << 16)
            assert read, "the browser ended"
            self.rest += read
        first, _, self.rest = self.rest.partition(b"\0")
        return json.loads(first)

    def open(self, file: Path) -> None:
        self.events.clear()
        self.call("Page.navigate", url=file.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def ask(self, expression: str) -> Any:
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str) -> None:
        codes = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Home": 36, "End": 35, "Escape": 27}
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key])

    def click(self, selector: str, across: float = 0.5, down: float = 0.5) -> None:
        """On an element, at shares of its width and height."""
        self.ask(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
        box = self.ask(f"(() => {{ const b = document.querySelector({selector!r}).getBoundingClientRect();"
                       "return [b.left, b.top, b.width, b.height]; })()")  # fmt: skip
        at = {"x": box[0] + box[2] * across, "y": box[1] + box[3] * down}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **at)

    def text(self, selector: str) -> str:
        return self.ask(f"document.querySelector({selector!r}).innerText")

    def seen(self) -> np.ndarray:
        """What the map looks like: uint8 (y, x, 3)."""
        self.ask("scrollTo(0, 0)")
        x, y, width, height = self.ask(
            "(() => { const b = document.getElementById('frame').getBoundingClientRect();"
            "return [b.left, b.top, b.width, b.height]; })()"
        )
        clip = {"x": x, "y": y, "width": width, "height": height, "scale": 1}
        taken = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)["data"]
        with Image.open(io.BytesIO(base64.b64decode(taken))) as image:
            return np.asarray(image.convert("RGB"))

    def complaints(self) -> list[Any]:
        """What the console and the page's errors said."""
        kinds = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [event["params"] for event in self.events if event["method"] in kinds]

    def requests(self) -> list[str]:
        sent = [event["params"] for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [each["request"]["url"] for each in sent if not each["request"]["url"].startswith("data:")]

    def close(self) -> None:
        self.session = ""
        self.call("Browser.close")
        self.process.wait(timeout=30)
        os.close(self.out)
        os.close(self.come)


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("needs Chromium (chromium, chromium-browser or google-chrome on PATH)")
    with closing(Tab(found, tmp_path_factory.mktemp("profile"))) as opened:
        yield opened


def quiet(tab: Tab, page: Path) -> None:
    assert tab.complaints() == []
    assert tab.requests() == [page.as_uri()]


def test_the_slider_moves_by_keys_and_mouse_and_the_picture_changes(tab: Tab, page: Path) -> None:
    tab.open(page)
    assert tab.text("#name") == "2023-01"
    first = tab.seen()
    west, east = first[200, 100].astype(int), first[200, -100].astype(int)
    assert abs(west[0] - east[0]) > 200  # two kinds of ground, told by the first component
    tab.ask("document.getElementById('slider').focus()")
    tab.press("ArrowRight")
    assert tab.text("#name") == "2023-02"
    assert tab.text("[data-source]") == "2.0"
    assert tab.text("#frames") == "5 (45%)"
    assert not tab.ask("document.getElementById('extrapolated').checkVisibility()")
    second = tab.seen()
    assert abs(int(second[200, 100, 0]) - east[0]) < 20  # the west has turned into what the east is
    assert (np.abs(first.astype(int) - second).max(axis=-1) > 60).mean() > 0.3
    tab.ask("document.activeElement.blur()")
    tab.press("End")
    assert tab.text("#dates") == "2023-03-01 to 2023-03-31"
    assert tab.ask("document.getElementById('extrapolated').checkVisibility()")
    assert tab.ask("document.getElementById('slider').getAttribute('aria-valuetext')") == "2023-03, extrapolated"
    assert tab.ask("document.getElementById('after').disabled")
    ground = tab.seen()[200, -100]
    assert np.ptp(ground.astype(int)) < 12  # nothing there: the grey of the page
    tab.press("Home")
    np.testing.assert_array_equal(tab.seen(), first)
    tab.click("#strip li:nth-child(2) button")
    assert tab.text("#name") == "2023-02"
    assert (
        tab.ask("[...document.querySelectorAll('#strip [aria-current=true]')].map(b => b.innerText).join()")
        == "2023-02"
    )
    tab.click("#slider", 0.995)
    assert tab.text("#name") == "2023-03"
    quiet(tab, page)


def test_a_click_on_the_map_shows_what_is_like_the_place(tab: Tab, page: Path, place: tuple[float, float]) -> None:
    tab.open(page)
    tab.click("#frame", (COLUMN + 0.5) / 80, (ROW + 0.5) / 60)
    assert tab.ask("document.querySelector('input[name=shown]:checked').value") == "similarity"
    assert "{:.4f}, {:.4f}".format(*place) in tab.text("#readout")
    assert f"In 2023-01 {100 * SPLIT / 80:.1f}% of the pixels" in tab.text("#readout")
    seen = tab.seen()
    np.testing.assert_allclose(seen[300, 40], YELLOW, atol=12)
    np.testing.assert_allclose(seen[300, -40], PURPLE, atol=12)
    tab.press("ArrowRight")  # a click leaves the keys to the period
    assert "In 2023-02 100.0% of the pixels" in tab.text("#readout")
    np.testing.assert_allclose(tab.seen()[300, -40], YELLOW, atol=12)
    tab.ask("document.getElementById('frame').focus()")
    for _ in range(SPLIT - COLUMN):
        tab.press("ArrowRight")  # the place moves east, over the border
    tab.press("ArrowDown")
    assert tab.text("#name") == "2023-02"
    tab.click("#after")
    assert "No data at" in tab.text("#readout")
    tab.click("#before")
    tab.click("#before")
    assert f"{100 - 100 * SPLIT / 80:.1f}% of the pixels" in tab.text("#readout")
    tab.ask("document.getElementById('frame').focus()")
    tab.press("Escape")
    assert tab.ask("document.querySelector('input[name=shown]:checked').value") == "colours"
    assert tab.ask("document.getElementById('layer').hidden && document.getElementById('ring').hasAttribute('hidden')")
    quiet(tab, page)


def test_change_is_counted_from_the_chosen_period(tab: Tab, page: Path) -> None:
    tab.open(page)
    tab.click("input[value=change]")
    assert "the vectors turned by 0.0° (median)" in tab.text("#readout")
    tab.ask("since.value = '1'; since.dispatchEvent(new Event('change'))")
    seen = tab.seen()
    assert seen[300, -40].max() < 60  # the east stayed as it was, within the noise
    assert seen[300, 40].min() > 150  # the west turned by a right angle
    assert re.search(r"From 2023-02 to 2023-01 the vectors turned by [0-9.]+° \(median\)", tab.text("#readout"))
    quiet(tab, page)


def test_a_page_begins_where_it_was_told_to(tab: Tab, store: Path, tmp_path: Path, place: tuple[float, float]) -> None:
    similar = field_page(store, tmp_path / "s.html", at=place)
    tab.open(similar)
    assert "{:.4f}, {:.4f}".format(*place) in tab.text("#readout")
    np.testing.assert_allclose(tab.seen()[300, 40], YELLOW, atol=12)
    quiet(tab, similar)
    changed = field_page(store, tmp_path / "c.html", change=(MONTHS[1], MONTHS[2]))
    tab.open(changed)
    assert tab.text("#name") == "2023-03"
    assert re.search(r"From 2023-02 to 2023-03 the vectors turned by (89|90)\.\d° \(median\)", tab.text("#readout"))
    quiet(tab, changed)


def test_it_follows_the_reader_to_the_dark_and_fits_a_telephone(tab: Tab, page: Path) -> None:
    tab.open(page)
    body = "getComputedStyle(document.body).{}.match(/[0-9]+/g).slice(0, 3).map(Number)"
    for scheme, paper in (("light", 255), ("dark", 24)):
        tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        found, ink = tab.ask(body.format("backgroundColor")), tab.ask(body.format("color"))
        assert abs(found[0] - paper) < 10
        assert abs(found[0] - ink[0]) > 150
    tab.call("Emulation.setEmulatedMedia", features=[])
    tab.call("Emulation.setDeviceMetricsOverride", width=380, height=800, deviceScaleFactor=1, mobile=True)
    assert tab.ask("document.documentElement.scrollWidth") <= 380
    tab.call("Emulation.clearDeviceMetricsOverride")


def test_the_policy_stops_what_is_not_ours(tab: Tab, page: Path, tmp_path: Path) -> None:
    """That the tests above can fail: a script, a style and an image from elsewhere are refused, and it is told."""
    added = (
        '<p style="color: red">x</p><img src="http://127.0.0.1:9/x.png"><script>document.title = "x"</script></main>'
    )
    changed = tmp_path / "page.html"
    changed.write_text(page.read_text(encoding="utf-8").replace("</main>", added), encoding="utf-8")
    tab.open(changed)
    told = json.dumps(tab.complaints())
    assert "inline style" in told
    assert "inline script" in told
    assert "127.0.0.1:9" in told
    assert tab.ask("document.title") != "x"
