"""Recipes: what they hold, what they refuse and how they say it, values set by the way, and their commands."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from conftest import Aef
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import toy_recipe

from aefcli import recipe
from aefcli.errors import BadInput
from aefcli.recipe import Moments, with_values
from aefcli.sources import LICENCES, SOURCES

NANO = recipe.load("nano")
LANDSAT = {"mean": [0.5, 1.0, 1.5, 2.0, 2.5, 290.0], "std": [1.0, 0.25, 1.0, 1.0, 1.0, 12.0]}


def refused(words: str | list[str], plan: recipe.Recipe = NANO) -> str:
    with pytest.raises(BadInput) as caught:
        with_values(plan, [words] if isinstance(words, str) else words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- the shape --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [key for key in NANO.flat() if "." in key])
def test_every_key_stands_in_the_file(key: str) -> None:
    table, name = key.split(".")
    whole = NANO.model_dump(mode="json")
    del whole[table][name]
    with pytest.raises(BadInput, match=rf"^mine lacks {key}$"):
        recipe.check(whole, "mine")


def test_statistics_alone_may_be_left_out() -> None:
    assert "statistics" not in NANO.to_toml()
    assert NANO.statistics == {}


def test_statistics_travel_in_the_recipe_and_count_in_its_hash() -> None:
    plan = NANO.replace(statistics={"landsat": LANDSAT})
    again = recipe.parse(plan.to_toml(), "again")
    assert again == plan
    assert again.statistics["landsat"] == Moments(mean=tuple(LANDSAT["mean"]), std=tuple(LANDSAT["std"]))
    assert again.hash == plan.hash != NANO.hash


FEW = {"mean": [0.0] * 5, "std": [1.0] * 5}
BAD_STATISTICS = [
    ({"landsat": FEW}, "statistics.landsat has 5 means and 5 stds for 6 bands"),
    ({"landsat": {**LANDSAT, "std": [0.0] * 6}}, "statistics.landsat.std.0 = 0.0: input should be greater than 0"),
    ({"landsat": {**LANDSAT, "mean": [float("nan")] * 6}}, "statistics.landsat.mean.0"),
    ({"lansat": LANDSAT}, "did you mean landsat?"),
    ({"nlcd": {"mean": [0.0], "std": [1.0]}}, "a categorical source has no mean"),
    ({"landsat": {"mean": LANDSAT["mean"], "sdt": LANDSAT["std"]}}, "did you mean statistics.landsat.std?"),
]


@pytest.mark.parametrize(("statistics", "says"), BAD_STATISTICS, ids=[says for _, says in BAD_STATISTICS])
def test_statistics_that_do_not_fit_their_source_are_refused(statistics: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput) as caught:
        NANO.replace(statistics=statistics)
    assert says in str(caught.value)


@pytest.mark.parametrize("name", recipe.names())
def test_a_recipe_opens_with_what_it_is_its_command_its_hardware_and_what_to_expect(name: str) -> None:
    header = (recipe.folder() / f"{name}.toml").read_text().partition("\n\n")[0].splitlines()
    assert header[0].startswith(f"# {name}: ")
    assert any(re.fullmatch(r"#   .*aef train.*", line) for line in header)
    rest = " ".join(header)
    assert re.search(r"cores|H100|TPU", rest)
    assert re.search(r"\d+ (min|h)\b", rest)
    assert re.search(r"Goal, not a result|should then stand", rest)
    assert name == "nano" or "Nothing of this size has been trained" in rest  # no figure without a run


def test_paper_has_the_papers_numbers() -> None:
    """[S2.3, S2.4, equation 3]"""
    plan = recipe.load("paper")
    assert dict(zip(plan.data.sources, plan.data.frames, strict=True)) == {
        "sentinel-2": 65,
        "sentinel-1": 17,
        "landsat": 21,
    }
    assert set(plan.data.targets) == {"palsar-2", "era5-land", "gedi", "grace", "glo-30", "nlcd", "text"}
    model, loss, train = plan.model, plan.loss, plan.train
    assert (plan.data.patch, model.blocks, model.precision, model.time, model.space) == (128, 15, 128, 512, 1024)
    assert (model.embedding, model.kappa, model.decoder) == (64, 8000, 512)
    assert (loss.reconstruction, loss.uniformity, loss.consistency, loss.text) == (1, 0.05, 0.02, 0.001)
    assert (loss.targets, loss.whole_support) == (1, 0)
    assert (train.steps, train.batch * train.accumulate, train.lr, train.warmup) == (100_000, 256, 1e-4, 1000)


def test_every_source_has_a_licence_line() -> None:
    assert set(LICENCES) == set(SOURCES)


# --- values set by the way --------------------------------------------------------------------------------------------

SET = [
    ("train.lr=1e-3", "train", {"lr": 1e-3}),
    ("train.lr = 1", "train", {"lr": 1.0}),
    ("train.dtype=bfloat16", "train", {"dtype": "bfloat16"}),
    ('train.dtype="bfloat16"', "train", {"dtype": "bfloat16"}),
    ("train.compile=true", "train", {"compile": True}),
    ("data.frames=[1, 2, 3]", "data", {"frames": [1, 2, 3]}),
    ("statistics.grace={mean = [0], std = [1]}", "statistics", {"grace": {"mean": [0.0], "std": [1.0]}}),
]


@pytest.mark.parametrize(("word", "table", "values"), SET, ids=[word for word, _, _ in SET])
def test_a_value_set_is_the_value_replaced(word: str, table: str, values: dict[str, Any]) -> None:
    assert with_values(NANO, [word]) == NANO.replace(**{table: values})


def test_values_are_checked_together_and_the_last_of_a_key_counts() -> None:
    plan = with_values(NANO, ["data.patch=128", "train.steps=5", "data.site=256", "train.steps=7", "name=mine"])
    assert (plan.data.patch, plan.data.site, plan.train.steps, plan.name) == (128, 256, 7, "mine")
    assert with_values(NANO, []) == NANO
    assert "site = 64 is smaller than patch = 128" in refused("data.patch=128")


REFUSED = [
    ("train.lrr=1", "did you mean train.lr?"),
    ("trian.lr=1", "did you mean train.lr?"),
    ("lr=1", "did you mean train.lr?"),
    ("train={}", "unknown key"),
    ("train.lr", "sets nothing"),
    ("", "sets nothing"),
    ("train.lr=", "no TOML value"),
    ("train.lr=1 2", "no TOML value"),
    ("train.steps=1\nseed = 2", "no TOML value"),
    ("train.lr=fast", "train.lr = 'fast': input should be a valid number"),
    ("train.lr=nan", "finite"),
    ('train.steps="10"', "train.steps = '10': input should be a valid integer"),
    ("train.steps=1e5", "train.steps = 100000.0: input should be a valid integer"),
    ("train.compile=1", "train.compile = 1: input should be a valid boolean"),
    ("train.dtype=float16", "'float32' or 'bfloat16'"),
    ("train.seed=-1", "train.seed = -1"),
    ("train.accumulate=0", "train.accumulate = 0: input should be greater than 0"),
    ("train.look_every=0", "train.look_every = 0"),
    ("loss.targets=0", "loss.targets = 0"),
    ("data.sources=sentinel-2", "data.sources = 'sentinel-2'"),
    ("data.windows=0", "data.windows = 0"),
    ("data.site=40", "data.site = 40: input should be a multiple of 16"),
    ("data.validation=0.6", "data.validation = 0.6: input should be less than or equal to 0.5"),
    ("data.workers=-1", "data.workers = -1"),
    ("statistics.mars={mean = [], std = []}", "unknown source 'mars'"),
]


@pytest.mark.parametrize(("word", "says"), REFUSED, ids=[word for word, _ in REFUSED])
def test_what_cannot_be_set_is_refused_in_one_line(word: str, says: str) -> None:
    assert says in refused(word)


@settings(max_examples=25)
@given(st.text(max_size=20))
def test_any_word_is_a_value_or_one_line(text: str) -> None:
    """No fault of ours: of a key that there is, whatever stands after the =."""
    try:
        lr = with_values(NANO, [f"train.lr={text}"]).train.lr
    except BadInput as error:
        told = str(error)
    else:
        told = f"{lr}"
    assert told
    assert "\n" not in told


# --- the commands -----------------------------------------------------------------------------------------------------


def test_list_has_every_shipped_recipe(aef: Aef) -> None:
    code, out, err = aef("recipe", "list")
    assert (code, err) == (0, "")
    assert all(name in out for name in recipe.names())
    rows = json.loads(aef("recipe", "list", "--json")[1])["recipes"]
    assert [row["name"] for row in rows] == ["base", "nano", "paper", "small"] == recipe.names()
    assert rows[1]["recipe"] == NANO.hash
    assert rows[1]["parameters"] == 826_261
    assert aef("recipe", "list", "-q") == (0, "", "")


def test_show_prints_the_file_itself(aef: Aef) -> None:
    code, out, err = aef("recipe", "show", "nano")
    assert (code, err) == (0, "")
    assert out == (recipe.folder() / "nano.toml").read_text()


def test_show_with_values_prints_a_recipe_that_has_them_and_keeps_the_header(aef: Aef, tmp_path: Path) -> None:
    code, out, err = aef("recipe", "show", "nano", "--set", "train.lr=0.5", "--set", "name=mine")
    assert (code, err) == (0, "")
    assert out.startswith("# nano: ")
    changed = NANO.replace(train={"lr": 0.5})
    assert recipe.parse(out, "it") == with_values(changed, ["name=mine"])
    (tmp_path / "mine.toml").write_text(out)
    code, out, err = aef("recipe", "validate", "mine.toml")
    assert (code, err, out) == (0, "", f"mine.toml: valid, mine, hash {recipe.load('mine.toml').hash}\n")
    document = json.loads(aef("recipe", "show", "mine.toml", "--json")[1])
    assert document["values"] == tomllib.loads((tmp_path / "mine.toml").read_text()) | {"statistics": {}}


def test_diff_names_what_differs_and_nothing_else(aef: Aef, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    changed = NANO.replace(train={"lr": 0.5}, data={"frames": [1, 2, 3]}, statistics={"landsat": LANDSAT})
    (tmp_path / "run" / "recipe.toml").write_text(changed.to_toml())
    code, out, err = aef("recipe", "diff", "nano", "run")
    assert (code, err) == (0, "")
    rows = [re.split(r" {2,}", line) for line in out.splitlines()]
    assert rows[:2] == [["data.frames", "[20, 10, 8]", "[1, 2, 3]"], ["train.lr", "0.002", "0.5"]]
    assert [row[:2] for row in rows[2:]] == [["statistics.landsat", "-"]]
    different = json.loads(aef("recipe", "diff", "nano", "run", "--json")[1])["different"]
    assert different["train.lr"] == [0.002, 0.5]
    assert different["statistics.landsat"] == [None, LANDSAT]
    assert aef("recipe", "diff", "nano", "nano")[1] == "nano and nano are the same\n"


BAD = [
    (("lst",), "list"),
    (("show", "nanoo"), "nano"),
    (("show", "nano", "--set", "trian.lr=1"), "train.lr"),
    (("show", "none.toml"), "none.toml"),
    (("validate", "bad.toml"), "did you mean train.warmup?"),
    (("validate", "torn.toml"), "is not TOML"),
    (("validate", "picture.toml"), "is no text"),
    (("validate", "."), "recipe.toml"),
    (("validate", "nano", "--set", "train.steps=0"), "train.steps"),
    (("diff", "nano"), "B"),
    (("diff", "nano", "bad.toml"), "train.warmup"),
]


@pytest.mark.parametrize(("words", "says"), BAD, ids=lambda value: " ".join(value) if isinstance(value, tuple) else "")
def test_bad_input_gets_one_line_and_exit_2(words: tuple[str, ...], says: str, aef: Aef, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(toy_recipe().to_toml().replace("warmup", "warmupp"))
    (tmp_path / "torn.toml").write_text(toy_recipe().to_toml()[:-3] + "[")
    (tmp_path / "picture.toml").write_bytes(b"\x89PNG\r\n\xff\xfe")
    code, out, err = aef("recipe", *words)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("aef: ")
    assert says in err
    document = json.loads(aef("recipe", *words, "--json")[1])
    assert (document["command"], document["error"]["code"]) == ("recipe", 2)


@pytest.mark.parametrize("command", ["list", "show", "validate", "diff"])
def test_help_of_a_recipe_command_has_an_example_and_the_common_options(command: str, aef: Aef) -> None:
    code, out, err = aef("recipe", command, "--help")
    assert (code, err) == (0, "")
    assert all(part in out for part in (f"Example: aef recipe {command}", "--json", "-q, --quiet"))


def test_recipe_alone_lists_its_commands(aef: Aef) -> None:
    code, out, err = aef("recipe")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.partition("Commands:\n")[2].splitlines()[:4]] == [
        "list",
        "show",
        "validate",
        "diff",
    ]
