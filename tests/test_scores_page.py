"""The page of scores: what it holds, that nothing a user names can act in it, and how a browser shows it."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aefcli import probe
from aefcli.errors import BadInput, NoResources
from aefcli.guards import Guard
from aefcli.judge import Judgement, View
from aefcli.probe import Comparison, Labels
from aefcli.report import page, scores

HOSTILE = "<script>alert('x')</script> & \"more\""
GREEN = (12, 200, 34)


def labelled(kind: str, names: tuple[str, ...] = ("crops", HOSTILE, "water")) -> tuple[Labels, dict[str, np.ndarray]]:
    """180 points of 12 sites, and two fields: one that knows the labels, one that knows nothing."""
    rng = np.random.default_rng(0)
    site, code = np.repeat(np.arange(12), 15), np.tile(np.arange(3), 60)
    lon, lat = 11 + site * 0.02 + rng.uniform(0, 0.01, 180), 47 + rng.uniform(0, 0.1, 180)
    value = code if kind == "class" else code * 10.0 + rng.uniform(0, 3, 180)
    labels = Labels(lon, lat, value, names if kind == "class" else (), kind, site=site)  # type: ignore[arg-type]
    knowing = np.column_stack([np.eye(3)[code], np.zeros((180, 5))]) + rng.normal(0, 0.3, (180, 8))
    return labels, {"knowing": knowing, f"{HOSTILE} field": rng.normal(0, 1, (180, 4))}


def judged(kind: str) -> Judgement:
    labels, features = labelled(kind)
    found = probe.evaluate(features, labels, task=f"cover {HOSTILE}", shots=(1, 10, "max"), max_folds=3)
    rgb = np.full((30, 40, 3), GREEN, np.uint8)
    return Judgement(
        task=f"cover {HOSTILE}",
        evaluation=found,
        labels=labels,
        features=features,
        comparisons=tuple(probe.compare(found, *features)),
        notes=(f"3 points {HOSTILE} left out",),
        provenance={"recipe": HOSTILE, "command": "aef eval field.zarr"},
        guards=(Guard("uniformity", 0.123, "0.100", HOSTILE), Guard("seam", float("nan"), "1", "seams")),
        quantisation=probe.evaluate(
            {"float32": features["knowing"], "int8": np.rint(features["knowing"] * 9) / 9},
            labels,
            task="t",
            max_folds=2,
            probes=("knn1",),
        ),
        views=(View(f"embeddings {HOSTILE}", rgb, (5e5, 5.2e6, 5.004e5, 5.2003e6), "EPSG:32632", (11, 46, 11.1, 47)),),
    )


@pytest.fixture(scope="module")
def of_classes() -> Judgement:
    return judged("class")


@pytest.fixture(scope="module")
def of_values() -> Judgement:
    return judged("value")


class Elements(HTMLParser):
    """The elements of a page, and the text outside of its style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][0] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def read(judgement: Judgement, folder: Path) -> Elements:
    return Elements(page(judgement, folder / "scores.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", ["of_classes", "of_values"])
def test_nothing_acts_or_is_fetched_whatever_things_are_called(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    found = read(request.getfixturevalue(kind), tmp_path)
    assert not {tag for tag, _ in found.found} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert HOSTILE in found.text  # as text
    for _, attributes in found.found:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "srcset")]
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,"))
    assert sum(tag == "img" for tag, _ in found.found) == 1
    policies = [a["content"] for tag, a in found.found if tag == "meta" and "http-equiv" in a]
    assert len(policies) == 1
    assert (policies[0] or "").startswith("default-src 'none'; img-src data:; style-src 'sha256-")


def test_every_score_stands_in_the_table_and_the_best_are_marked(of_classes: Judgement, tmp_path: Path) -> None:
    text = page(of_classes, tmp_path / "scores.html").read_text(encoding="utf-8")
    table = text[text.index('<table class="scores">') : text.index("</table>")]
    cells = re.findall(r'<td class="number([^"]*)" title="([^"]*)"><b>([^<]*)</b> <small>± ([^<]*)<', table)
    assert sorted((mean, std) for _, _, mean, std in cells) == sorted(
        (f"{score.mean:.3f}", f"{score.std:.3f}") for score in of_classes.evaluation.scores
    )
    for shots in (1, 10, "max"):
        top = max(s.mean for s in of_classes.evaluation.scores if (s.shots, s.metric) == (shots, "balanced_accuracy"))
        named = "max" if shots == "max" else f"{shots} shot{'s' * (shots != 1)}"
        here = [cell for cell in cells if f", {named}: balanced accuracy" in unescape(cell[1])]
        assert {mean for look, _, mean, _ in here if "first" in look} == {f"{top:.3f}"}
        assert sum("own" in look for look, *_ in here) == 2  # one probe for each field


def test_the_least_error_is_the_best_of_its_column(of_values: Judgement, tmp_path: Path) -> None:
    text = page(of_values, tmp_path / "scores.html").read_text(encoding="utf-8")
    table = text[text.index('<table class="scores">') : text.index("</table>")]
    marked = re.findall(r'class="number[^"]* first[^"]*" title="[^"]*max: MAE[^"]*"><b>([\d.]+)', table)
    least = min(s.mean for s in of_values.evaluation.scores if (s.shots, s.metric) == ("max", "mae"))
    assert marked
    assert [float(value) for value in marked] == pytest.approx([least] * len(marked), rel=0.01)
    assert "Confusion" not in text


def test_a_confusion_matrix_shows_shares_of_the_truth_and_tells_counts(of_classes: Judgement, tmp_path: Path) -> None:
    found = read(of_classes, tmp_path)
    probe_, _ = probe.best(of_classes.evaluation, "knowing", "max")
    counts = of_classes.evaluation.confusion["knowing", probe_, "max"]
    titles = {attributes.get("title") for tag, attributes in found.found if tag == "td"}
    assert f"crops, said crops: {counts[0, 0]:.0f} of {counts[0].sum():.0f}" in titles
    shade = round(counts[0, 0] / counts[0].sum() * 20)
    assert [a for t, a in found.found if t == "td" and a.get("class") == f"h{shade} right"]


def test_the_rest_is_there(of_classes: Judgement, tmp_path: Path) -> None:
    text = read(of_classes, tmp_path).text
    for words in (
        "by site: 12 sites",
        f"3 points {HOSTILE} left out",
        "points of other sites",
        "A guard warns of a fault; it is no score",
        "0.123",
        "Difference from float32",
        "x 500000 to 500400, y 5200000 to 5200300 in EPSG:32632",
        "aef eval field.zarr",
        "seed: 0",
    ):
        assert words in text
    assert re.search(r"Written \d{4}-\d\d-\d\d \d\d:\d\d UTC", text)


@pytest.mark.parametrize(
    ("low", "high", "reduction", "confirmed", "words"),
    [
        (0.01, 0.05, 0.12, True, "At 10 shots, a's error is 12.0 % lower than b's; the interval of the difference "
         "excludes 0, and macro-F1 agrees."),
        (0.01, 0.05, 0.12, False, "At 10 shots, a's error is 12.0 % lower than b's; the interval of the difference "
         "excludes 0, but macro-F1 does not agree: no win."),
        (-0.05, 0.01, -0.2, True, "At 10 shots, a's error is 20.0 % higher than b's; the interval of the difference "
         "includes 0, so neither is shown to be better."),
        (-0.05, -0.01, float("-inf"), True, "At 10 shots, a and b differ by −0.030; the interval of the difference "
         "excludes 0, and macro-F1 agrees."),
    ],
)  # fmt: skip
def test_comparisons_in_words(low: float, high: float, reduction: float, confirmed: bool, words: str) -> None:
    difference = (low + high) / 2
    found = Comparison(
        "a", "b", 10, "balanced_accuracy", "knn1", "linear", difference, low, high, 1.1, reduction, confirmed
    )
    assert scores._said(found, "macro_f1").replace("\N{NO-BREAK SPACE}", " ") == words


def test_places_far_apart_have_maps_of_their_own_and_no_point_is_lost(of_classes: Judgement) -> None:
    near = of_classes.labels
    assert len(scores._places(near, 3)) == 1
    thin = near.subset(np.arange(0, 180, 6))  # with gaps all over, but no two places
    assert len(scores._places(thin, 3)) == 1
    far = dataclasses.replace(near, lon=np.where(np.arange(180) < 60, near.lon - 40, near.lon))
    west, east = scores._places(far, 3)
    assert west["x"][0][1].endswith("W")
    assert east["x"][0][1].endswith("E")
    dots = sum(group["path"].count("M") for place in (west, east) for group in place["drawn"])
    assert 170 <= dots <= 180  # dots that fall on one another are drawn once
    assert [group["count"] for group in scores._counted(far, 3)] == [60, 60, 60]


def test_more_classes_than_colours_share_the_last(of_classes: Judgement, tmp_path: Path) -> None:
    labels, features = labelled("class", tuple(f"kind {index}" for index in range(30)))
    many = dataclasses.replace(labels, value=np.arange(180) % 30)
    found = probe.evaluate(features, many, task="many", shots=("max",), max_folds=1, probes=("knn1",))
    bare = Judgement("many", found, many, features, (), (), {})
    text = read(bare, tmp_path).text
    assert "other classes 48" in text


def test_one_point_alone_is_drawn() -> None:
    one = Labels(np.array([11.0]), np.array([47.0]), np.array([0]), ("a", "b"), "class")
    (place,) = scores._places(one, 2)
    assert [group["path"].count("M") for group in place["drawn"]] == [1]


def test_where_it_cannot_be_written(of_classes: Judgement, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is a folder"):
        page(of_classes, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(NoResources, match="cannot write"):
        page(of_classes, tmp_path / "file/scores.html")


# --- in a browser ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("needs Chromium (chromium, chromium-browser or google-chrome on PATH)")
    return found


def show(browser: str, file: Path, height: int = 5000) -> tuple[str, list[str], np.ndarray]:
    """The DOM of a page, what the console said, and its picture (y, x, 3)."""
    picture = file.with_suffix(".png")
    done = subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
            *("--disable-background-networking", "--disable-extensions", "--hide-scrollbars"),
            *("--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--force-device-scale-factor=1"),
            *(f"--user-data-dir={file.parent / 'profile'}", f"--window-size=1200,{height}"),
            *("--virtual-time-budget=2000", "--dump-dom", f"--screenshot={picture}", file.as_uri()),
        ],
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=True,
    )
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB"))
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line], pixels


def test_a_browser_shows_all_of_it_without_a_complaint(browser: str, of_classes: Judgement, tmp_path: Path) -> None:
    dom, console, pixels = show(browser, page(of_classes, tmp_path / "scores.html"))
    assert console == []
    text = Elements(dom).text
    for score in of_classes.evaluation.scores:
        assert f"{score.mean:.3f} ± {score.std:.3f}" in text
    assert HOSTILE in text
    count = {colour: int((pixels == colour).all(axis=2).sum()) for colour in (GREEN, (0, 0x72, 0xB2), (215, 236, 217))}
    assert count[GREEN] > 10_000  # the view was decoded, and is as wide as its column
    assert count[0, 0x72, 0xB2] > 100  # the first line of the chart
    assert count[215, 236, 217] > 1000  # best cells: the style sheet has passed its own policy
    used = np.flatnonzero((pixels != pixels[0, 0]).any(axis=(1, 2)))
    assert used.max() > 2500  # the page goes on to its end


def test_the_policy_stops_what_is_not_ours(browser: str, of_classes: Judgement, tmp_path: Path) -> None:
    """That the test above can fail: a style and an image from elsewhere are refused, and the console says so."""
    file = page(of_classes, tmp_path / "scores.html")
    added = '<p style="color: red">x</p><img src="http://127.0.0.1:9/x.png"></main>'
    file.write_text(file.read_text(encoding="utf-8").replace("</main>", added), encoding="utf-8")
    _, console, _ = show(browser, file, 800)
    assert any("inline style" in line for line in console)
    assert any("127.0.0.1:9" in line for line in console)
