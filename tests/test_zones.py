"""Cubes of two zones into one group: each field is what its cube alone gives, and the group opens and says so."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from conftest import Aef
from test_embed import chunks, hashes, untrained_run
from toys import YEAR, made_up_cube, toy_recipe

import aefcli
from aefcli import checkpoint, embed, field, item, ledger, several
from aefcli.checkpoint import Run
from aefcli.cube import Cube, open_cube
from aefcli.embed import Embedded, How
from aefcli.errors import BadInput, Damaged, Locked
from aefcli.extent import BBox, Period
from aefcli.validate import validate

CPU = torch.device("cpu")
ZONES = {"a": 32632, "b": 32633}
JULY = Period.parse("2023-07")
PERIODS = [YEAR, JULY]
IN_B = BBox(15.0, 45.145, 15.01, 45.152)  # degrees, of zone 33: a lies around 9 E
CHILD = """
import os, signal, sys, torch
from pathlib import Path
from aefcli import embed
from aefcli.checkpoint import Run
from aefcli.cube import open_cube
from aefcli.extent import Period
*cubes, run, out, last = sys.argv[1:]
told = []
def count(done, total):
    told.append(done)
    if len(told) == int(last):
        os.kill(os.getpid(), signal.SIGKILL)
periods = [Period.parse("2023"), Period.parse("2023-07")]
print("ready", flush=True)
opened = [open_cube(Path(cube)) for cube in cubes]
for _ in embed.embed_each(
    opened, Run(Path(run)), lambda cube: periods, Path(out), device=torch.device("cpu"), progress=count
):
    pass
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zones")


@pytest.fixture(scope="module")
def cubes(home: Path) -> list[Cube]:
    return [made_up_cube(home / f"{name}.zarr", side=32, seed=code, epsg=code) for name, code in ZONES.items()]


@pytest.fixture(scope="module")
def run(home: Path) -> Run:
    return untrained_run(home / "runs" / "toy-001")


@pytest.fixture(scope="module")
def region(home: Path, cubes: list[Cube], run: Run) -> Path:
    """The group of both periods. Not to be changed."""
    assert [one.written for one in embedded(cubes, run, home / "region.zarr").values()] == [2, 2]
    return home / "region.zarr"


@pytest.fixture
def copy(region: Path, tmp_path: Path) -> Path:
    """The group with its records, to be changed, beside where the cubes were."""
    for name in ("region.zarr", "region.zarr.build", "a.zarr", "b.zarr", "runs"):
        shutil.copytree(region.parent / name, tmp_path / name)
    return tmp_path / "region.zarr"


def embedded(
    cubes: Sequence[Cube], run: Run, out: Path, periods: Sequence[Period] = PERIODS, **options: Any
) -> dict[str, Embedded]:
    """What embedding the cubes ended with, by the names of the fields; those of cubes left out are not in it."""
    options = {"how": How(seams=False), **options}
    each = embed.embed_each(cubes, run, lambda cube: periods, out, device=CPU, **options)
    return {done.path.name: done for _, done in each if done}


def whole(path: Path) -> dict[str, str]:
    """All files of a folder but the locks, which come and go."""
    return {name: value for name, value in hashes(path).items() if not name.endswith("lock")}


# --- what is written --------------------------------------------------------------------------------------------------


def test_each_field_has_the_bytes_that_its_cube_alone_gives(
    region: Path, cubes: list[Cube], run: Run, tmp_path: Path
) -> None:
    for cube, (name, code) in zip(cubes, ZONES.items(), strict=True):
        embed.embed(cube, run, PERIODS, tmp_path / f"{name}.zarr", device=CPU, how=How(seams=False))
        assert chunks(region / name) == chunks(tmp_path / f"{name}.zarr")
        plain = xr.open_zarr(region, group=name)
        assert plain.rio.crs.to_epsg() == code
        assert field.geobox(aefcli.open_field(region / name)) == cube.grid
    assert chunks(region / "a") != chunks(region / "b")


def test_it_opens_without_a_warning_and_holds_nothing_but_fields(region: Path) -> None:
    """Warnings are errors here."""
    for consolidated in (True, False):
        root = zarr.open_group(region, mode="r", use_consolidated=consolidated)
        assert sorted(name for name, _ in root.groups()) == list(root.attrs["aef:fields"]) == ["a", "b"]
        assert root.attrs["aef:format"] == several.FORMAT
        assert root["b"]["embeddings"].shape == (2, 64, 32, 32)
    tree = xr.open_datatree(region)
    assert tree["a"]["embeddings"].sizes == tree["b"]["embeddings"].sizes
    assert sorted(path.name for path in region.iterdir()) == ["a", "b", "zarr.json"]


def test_the_group_says_what_zarr_would_consolidate_and_where_the_fields_lie(region: Path, tmp_path: Path) -> None:
    shutil.copytree(region, tmp_path / "r.zarr")
    said = json.loads((region / "zarr.json").read_text())
    zarr.consolidate_metadata(tmp_path / "r.zarr", zarr_format=3)
    assert json.loads((tmp_path / "r.zarr" / "zarr.json").read_text()) == said
    for name, code in ZONES.items():
        own = zarr.open_group(region / name, mode="r").attrs
        about = said["attributes"]["aef:fields"][name]
        assert about == {"proj:code": f"EPSG:{code}", "spatial:bbox": own["spatial:bbox"]}


def test_finished_fields_are_left_alone(region: Path, cubes: list[Cube], run: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in region.rglob("*")}
    assert [one.written for one in embedded(cubes, run, region).values()] == [0, 0]
    assert {path: path.stat().st_mtime_ns for path in region.rglob("*")} == before


def test_a_kill_leaves_no_trace(region: Path, cubes: list[Cube], run: Run, tmp_path: Path) -> None:
    out = tmp_path / "region.zarr"
    assert killed(cubes, run, out, at=1) == -signal.SIGKILL
    assert not several.is_finished(out / "a"), "its units are in the ledger, and it is not closed"
    with pytest.raises(BadInput, match="incomplete, its state is 'building'"):
        aefcli.open_field(out)
    done = embedded(cubes, run, out)
    assert [one.written for one in done.values()] == [0, 2]
    assert {name: chunks(out / name) for name in ZONES} == {name: chunks(region / name) for name in ZONES}
    assert several.is_true(out)


@pytest.mark.slow
def test_killed_twenty_times(region: Path, cubes: list[Cube], run: Run, tmp_path: Path) -> None:
    rng, caught, out = random.Random(0), 0, tmp_path / "region.zarr"
    while caught < 20:
        process, start = begun(cubes, run, out, at=0), time.monotonic()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0, 3))
        process.kill()
        caught += process.wait() == -signal.SIGKILL
        if process.returncode == 0:
            assert time.monotonic() > start
            assert {name: chunks(out / name) for name in ZONES} == {name: chunks(region / name) for name in ZONES}
            shutil.rmtree(out)
            shutil.rmtree(tmp_path / "region.zarr.build")
    embedded(cubes, run, out)
    assert {name: chunks(out / name) for name in ZONES} == {name: chunks(region / name) for name in ZONES}
    assert several.is_true(out)


def begun(cubes: Sequence[Cube], run: Run, out: Path, at: int) -> subprocess.Popen[str]:
    """An embed in a process of its own, which kills itself when it tells of its progress for that time; 0: never."""
    words = [*(str(cube.path) for cube in cubes), str(run.path), str(out), str(at)]
    process = subprocess.Popen([sys.executable, "-c", CHILD, *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as said:
        assert said.readline() == "ready\n"
    return process


def killed(cubes: Sequence[Cube], run: Run, out: Path, at: int) -> int:
    return begun(cubes, run, out, at).wait()


def test_fields_grow_by_a_period_and_say_meanwhile_that_they_are_being_written(
    region: Path, cubes: list[Cube], run: Run, tmp_path: Path
) -> None:
    out, states = tmp_path / "region.zarr", []

    def look(done: int, total: int) -> None:
        states.append((json.loads((out / "zarr.json").read_text())["attributes"]["state"], done, total))

    embedded(cubes, run, out, [JULY])
    grown = embedded(cubes, run, out, [YEAR], progress=look)
    assert states == [("building", 2, 4), ("building", 4, 4)], "of each one was taken over"
    assert [(one.written, one.adopted, one.periods) for one in grown.values()] == [(1, 1, (YEAR, JULY))] * 2
    assert zarr.open_group(out)["a"]["embeddings"].shape[0] == 2, "as consolidated"
    for name in ZONES:
        now, at_once = (aefcli.open_field(path / name)["embeddings"].values.astype(int) for path in (out, region))
        assert np.abs(now - at_once).max() <= 1
        assert ledger.verify(out / name)[0] == []
    assert several.is_true(out)


def test_a_stop_between_the_renames_of_a_growing_field_is_mended(copy: Path, cubes: list[Cube], run: Run) -> None:
    """The old field of July is away, that of both periods is not yet in its place."""
    before, young = chunks(copy / "a"), copy.parent / "young.zarr"
    embedded(cubes, run, young, [JULY])
    home, other = ledger.records_of(copy / "a"), ledger.records_of(young / "a")
    (home / "next").mkdir()
    for name in ("plan.json", "ledger.jsonl"):
        (home / name).rename(home / "next" / name)
        shutil.copy(other / name, home / name)
    (copy / "a").rename(home / "next" / "store")
    (young / "a").rename(home / "old")
    assert [one.written for one in embedded(cubes, run, copy, [YEAR]).values()] == [0, 0]
    assert chunks(copy / "a") == before
    assert several.is_true(copy)


def test_a_further_cube_joins_and_the_others_stay(copy: Path, run: Run) -> None:
    before = whole(copy / "b")
    other = made_up_cube(copy.parent / "c.zarr", side=32, seed=3, epsg=32634)
    shutil.copytree(copy.parent / "c.zarr", copy.parent / "d.zarr")
    done = embedded([open_cube(copy.parent / "d.zarr"), other], run, copy)
    assert list(done) == ["d", "c"]
    assert list(zarr.open_group(copy).attrs["aef:fields"]) == ["a", "b", "c", "d"]
    assert whole(copy / "b") == before


def test_overwriting_makes_anew_what_is_asked_for(copy: Path, run: Run) -> None:
    plan = toy_recipe(train={"seed": 5})
    other = checkpoint.new_run(copy.parent / "other", plan)
    checkpoint.save_weights(other.weights, checkpoint.build(plan), plan, 0)
    opened = [open_cube(copy.parent / f"{name}.zarr") for name in ZONES]
    before = chunks(copy / "a")
    assert [one.written for one in embedded(opened, other, copy, overwrite=True).values()] == [2, 2]
    assert chunks(copy / "a") != before
    assert several.is_true(copy)


def test_cubes_that_the_box_does_not_touch_are_left_out(cubes: list[Cube], run: Run, tmp_path: Path) -> None:
    each = embed.embed_each(cubes, run, lambda cube: [YEAR], tmp_path / "r.zarr", device=CPU, how=How(box=IN_B))
    (_, first), (_, second) = list(each)
    assert (first, second and second.path) == (None, tmp_path / "r.zarr" / "b")
    assert several.fields(tmp_path / "r.zarr") == [tmp_path / "r.zarr" / "b"]
    with pytest.raises(BadInput, match="touches none of the 2 cubes"):
        embedded(cubes, run, tmp_path / "x.zarr", how=How(box=BBox(1, 1, 2, 2)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.zarr", "r.zarr.build"]


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_cube_alone_and_the_group_stay_apart(copy: Path, run: Run) -> None:
    opened = [open_cube(copy.parent / f"{name}.zarr") for name in ZONES]
    embed.embed(opened[0], run, [JULY], copy.parent / "alone.zarr", device=CPU)
    before = whole(copy.parent)
    for out, says in (("alone.zarr", "no group of fields"), ("b.zarr", "no group"), ("region.zarr/x", "lies in")):
        with pytest.raises(BadInput, match=says):
            embedded(opened, run, copy.parent / out, overwrite=True)
    for overwrite in (False, True):
        with pytest.raises(BadInput, match="holds several fields"):
            embed.embed(opened[0], run, [JULY], copy, device=CPU, overwrite=overwrite)
    assert whole(copy.parent) == before


def test_what_cannot_be_is_refused_before_anything_is_written(cubes: list[Cube], run: Run, tmp_path: Path) -> None:
    a, b = cubes
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("mine")
    before = whole(tmp_path)
    other = replace(b, path=tmp_path / "elsewhere" / "a.zarr")
    hidden = replace(b, path=tmp_path / ".b.zarr")
    root = replace(b, path=tmp_path / "zarr.json.zarr")
    blind = replace(b, sources={})
    for given, out, says in (
        ([a, a], "r.zarr", "both named a"),
        ([a, other], "r.zarr", "both named a"),
        ([a, hidden], "r.zarr", "no name"),
        ([a, root], "r.zarr", "no name"),
        ([a, blind], "r.zarr", "the model reads"),
        ([a, b], "thesis", "no group of fields"),
    ):
        with pytest.raises(BadInput, match=says):
            embedded(given, run, tmp_path / out)
    assert whole(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["thesis"]


def test_another_model_is_refused_and_the_group_stays_finished(copy: Path, cubes: list[Cube]) -> None:
    before = whole(copy)
    plan = toy_recipe(train={"seed": 5})
    other = checkpoint.new_run(copy.parent / "other", plan)
    checkpoint.save_weights(other.weights, checkpoint.build(plan), plan, 0)
    with pytest.raises(BadInput, match="made by another request: model"):
        embedded(cubes, other, copy)
    assert whole(copy) == before
    document = json.loads((copy / "zarr.json").read_text())
    document["attributes"]["aef:format"] = "embedding-fields/2"
    (copy / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(BadInput, match="embedding-fields/2"):
        embedded(cubes, other, copy, overwrite=True)


def test_a_field_that_was_left_unfinished_has_to_come_along(cubes: list[Cube], run: Run, tmp_path: Path) -> None:
    out = tmp_path / "r.zarr"

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embedded(cubes, run, out, progress=stop)
    with pytest.raises(BadInput, match=r"r\.zarr/a is unfinished \(give its cube, too\)"):
        embedded(cubes[1:], run, out)
    assert list(embedded(cubes, run, out)) == ["a", "b"]
    assert several.is_true(out)


def test_a_second_writer_is_locked_out(copy: Path, cubes: list[Cube], run: Run) -> None:
    with several.writing(copy), pytest.raises(Locked, match="being written by another process"):
        embedded(cubes, run, copy)


# --- the commands -----------------------------------------------------------------------------------------------------


def test_the_command_makes_a_group_with_pictures_and_items_beside_it(region: Path, aef: Aef, tmp_path: Path) -> None:
    words = [str(region.parent / f"{name}.zarr") for name in ZONES]
    line = ("embed", *words, "--model", str(region.parent / "runs" / "toy-001"), "--out", "region.zarr")
    code, out, err = aef(*line, "--period", "2023", "--period", "2023-07", "--json")
    document = json.loads(out)
    names = [f"region-{name}{ending}" for name in ZONES for ending in (".png", ".preview.tif", ".stac.json")]
    assert (code, document["outputs"]) == (0, ["region.zarr", *names]), err
    assert [one["path"] for one in document["fields"]] == ["region.zarr/a", "region.zarr/b"]
    assert [one["periods"] for one in document["fields"]] == [[str(period) for period in PERIODS]] * 2
    assert [one["tiles_written"] for one in document["fields"]] == [2, 2]
    models = [f"region-{name}.model.stac.json" for name in ZONES]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [*names, *models, "region.zarr", "region.zarr.build"]
    )
    assert {name: chunks(tmp_path / "region.zarr" / name) for name in ZONES} == {
        name: chunks(region / name) for name in ZONES
    }
    for name in ZONES:
        told = json.loads(item.beside(tmp_path / "region.zarr" / name).read_text())
        assert told["id"].startswith(f"region-{name}-")
        assert (tmp_path / told["assets"]["embeddings"]["href"]) == tmp_path / "region.zarr" / name
        model = json.loads((tmp_path / f"region-{name}.model.stac.json").read_text())
        weights = Path(os.path.normpath(tmp_path / model["assets"]["model"]["href"]))
        assert weights == region.parent / "runs" / "toy-001" / "model.safetensors"
    assert aef(*line, "--period", "2023", "-q") == (0, "region.zarr\n", "")
    code, out, err = aef(*line, "--every", "year", "--bbox", str(IN_B), "--out", "east.zarr")
    assert (code, out) == (0, "east.zarr\n")
    assert f"{words[0]} is left out: --bbox or --area does not touch it" in err
    assert len(several.fields(tmp_path / "east.zarr")) == 1


def test_readers_take_all_fields_or_say_what_to_name(copy: Path, aef: Aef) -> None:
    code, out, _ = aef("info", "region.zarr", "--json")
    told = json.loads(out)
    assert (code, [one["crs"] for one in told["fields"]]) == (0, ["EPSG:32632", "EPSG:32633"])
    code, out, _ = aef("info", "region.zarr")
    assert (code, out.splitlines()[0]) == (0, "region.zarr: 2 fields")
    assert "region.zarr/a: embedding-field/1" in out
    assert "region.zarr/b: embedding-field/1" in out
    code, out, err = aef("validate", "region.zarr", "--json")
    document = json.loads(out)
    names = {check["name"] for check in document["checks"]}
    assert (code, document["kind"], document["failed"]) == (0, "2 embedding fields", 0), err
    assert {"group", "a: CRS", "b: CRS", "a: ledger", "b: lengths"} <= names
    code, out, _ = aef("verify", "region.zarr")
    count = sum(ledger.verify(copy / name)[1] for name in ZONES) + 1
    assert (code, out) == (0, f"region.zarr: {count} files are as they were written\n")
    (copy.parent / "labels.csv").write_text("x,y,label\n9.001,45.15,1\n9.002,45.15,2\n")
    one = "region.zarr holds the fields a, b (name one, such as region.zarr/a)"
    for words in (
        ("plot", "region.zarr"),
        ("export", "region.zarr", "--cog"),
        ("map", "region.zarr"),
        ("eval", "region.zarr"),
    ):
        code, out, err = aef(*words)
        assert (code, out, err) == (2, "", f"aef: {one}\n"), words
    with pytest.raises(BadInput, match="holds the fields a, b"):
        aefcli.open_field(copy)
    code, out, err = aef("embed", "a.zarr", "--period", "2023", "--out", "region.zarr", "--model", "runs/toy-001")
    assert (code, err.count("\n"), "holds several fields" in err) == (2, 1, True), err
    code, out, err = aef("embed", "a.zarr", "--period", "2023", "--out", "region.zarr/a", "--model", "runs/toy-001")
    assert (code, err.count("\n"), "--out region.zarr" in err) == (2, 1, True), err


def test_a_field_in_a_group_has_what_belongs_to_it_beside_the_group(copy: Path, aef: Aef) -> None:
    assert aef("plot", "region.zarr/a", "-q") == (0, "region-a.png\n", "")
    assert aef("export", "region.zarr/b", "--cog", "--period", "2023", "-q")[0] == 0
    assert sorted(path.name for path in copy.iterdir()) == ["a", "b", "zarr.json"]
    code, _, err = aef("eval", "region.zarr/a", "--probe", "knn", "--baseline", "none")
    assert (code, "there are no labels beside region.zarr/a" in err) == (2, True), err
    points = [(row, label) for row in range(6) for label in (1, 2)]
    lines = [
        f"{9 + 0.0017 * label},{45.153 - 0.0003 * row},{label},{('train', 'test')[row % 2]}" for row, label in points
    ]
    (copy.parent / "labels.csv").write_text("\n".join(["x,y,label,split", *lines]))
    code, out, err = aef("eval", "region.zarr/a", "--probe", "knn", "--period", "2023", "--baseline", "none", "-q")
    assert (code, out) == (0, "region.zarr/a\n"), err
    assert aef("map", "region.zarr/a", "--period", "2023", "--no-score", "-q")[:2] == (0, "map.tif\n")
    with (copy / "a" / "zarr.json").open() as text:
        assert json.load(text)["attributes"]["aef:cube"] == "../a.zarr"


def test_damage_is_found_and_mended_in_fields_and_in_the_group(copy: Path, aef: Aef) -> None:
    before, chunk = whole(copy), copy / "b" / "embeddings" / "c" / "1" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-7])
    (copy / "a" / "x" / "zarr.json").unlink()
    (copy / "zarr.json").write_text("{")
    code, out, err = aef("verify", "region.zarr", "--json")
    document = json.loads(out)
    harm = ["a/x/zarr.json", "b/embeddings/c/1/0/0/0", "zarr.json"]
    assert (code, sorted(document["damaged"]), "aef repair region.zarr" in err) == (4, harm, True), err
    code, out, err = aef("repair", "region.zarr", "--json")
    document = json.loads(out)
    assert (code, sorted(document["files"]), document["units"], document["changed"]) == (0, harm, 4, []), err
    assert whole(copy) == before
    assert aef("repair", "region.zarr")[:2] == (0, "region.zarr: 0 files mended\n")
    code, _, err = aef("repair", "region.zarr", "--stac", "earth-search")
    assert (code, err.count("\n"), "--stac goes with what was fetched" in err) == (2, 1, True)


def test_a_check_of_the_group_names_what_it_says_wrong(copy: Path) -> None:
    document = json.loads((copy / "zarr.json").read_text())
    document["attributes"]["aef:fields"]["a"]["proj:code"] = "EPSG:32650"
    (copy / "zarr.json").write_text(json.dumps(document, indent=2))
    found = validate(copy)
    assert [check.name for check in found.checks if check.state == "failed"] == ["group"]
    shutil.rmtree(copy / "b")
    with pytest.raises(BadInput, match="is not finished"):
        ledger.verify(copy / "b")
    assert {check.name for check in validate(copy).checks if check.state == "failed"} == {"group", "b: opens"}


def test_a_damaged_root_is_told_of(copy: Path, cubes: list[Cube], run: Run) -> None:
    (copy / "a" / "zarr.json").write_text("{")
    with pytest.raises(Damaged, match=r"aef repair .*/a"):
        embedded([open_cube(copy.parent / f"{name}.zarr") for name in ZONES], run, copy)
