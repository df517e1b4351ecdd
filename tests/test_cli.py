"""The command line as users meet it: the chain of commands, --json and -q, and one line for bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from textwrap import indent

import geopandas
import numpy as np
import pytest
from conftest import Aef
from shapely.geometry import box
from toys import YEAR, made_up_cube, toy_recipe

from aefcli import checkpoint
from aefcli.cli.app import app
from aefcli.cube import write_cube

COMMANDS = [
    "simulate",
    "fetch",
    "attach",
    "verify",
    "repair",
    "samples",
    "text",
    "train",
    "embed",
    "eval",
    "map",
    "export",
    "validate",
    "info",
    "plot",
]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from aefcli.simulate import simulate

    out = tmp_path_factory.mktemp("world")
    simulate(out, seed=3, sites=9, size=48)
    return out


def bbox_of(world: Path) -> str:
    extent = json.loads((world / "sentinel-2-c1-l2a" / "collection.json").read_text())["extent"]
    return ",".join(str(value) for value in extent["spatial"]["bbox"][0])


def test_the_bare_chain_works_in_an_empty_folder(world: Path, aef: Aef, tmp_path: Path) -> None:
    """The four commands of the user's day; only the recipe is smaller than the default one."""
    (tmp_path / "toy.toml").write_text(toy_recipe(train={"steps": 4}).to_toml())
    code, out, err = aef("fetch", "--stac", str(world / "catalog.json"), "--bbox", bbox_of(world), "--period", "2023")
    assert (code, out) == (0, "cube.zarr\n"), err
    code, out, err = aef("train", "--recipe", "toy.toml")
    assert (code, out) == (0, "runs/nano-001\n"), err
    run = tmp_path / "runs" / "nano-001"
    assert {path.name for path in run.iterdir()} == {
        "card.md",
        "data.json",
        "environment.json",
        "lock",
        "log.jsonl",
        "looks",
        "model.safetensors",
        "recipe.toml",
        "samples.parquet",
        "state",
    }
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2, 3, 4]
    assert set(log[0]["parts"]) == {"sentinel-2", "sentinel-1", "landsat", "uniformity", "consistency"}
    code, out, err = aef("embed", "cube.zarr", "--period", "2023-01:2023-12")
    assert (code, out) == (0, "embeddings.zarr\n"), err
    assert (tmp_path / "embeddings.png").read_bytes().startswith(b"\x89PNG")
    code, out, err = aef("eval", "--probe", "knn", "--shots", "max")
    assert code == 0, err
    assert all(name in out for name in ("embeddings", "composite", "untrained", "knn1", "knn3", "max"))
    code, out, err = aef("eval", "--probe", "all", "--shots", "1,max", "--json")
    document = json.loads(out)
    assert (document["command"], document["status"]) == ("eval", "ok")
    assert document["outputs"] == ["embeddings.zarr"]
    rows = document["results"]
    assert {row["field"] for row in rows} == {"embeddings", "composite", "untrained"}
    assert {row["probe"] for row in rows} == {"knn1", "knn3", "linear", "ridge"}
    assert {row["shots"] for row in rows} == {1, "max"}
    assert {row["metric"] for row in rows} == {"balanced_accuracy", "macro_f1"}
    assert {*rows[0]} == {"field", "task", "probe", "shots", "metric", "mean", "std", "n_train", "n_test"}
    assert all(0 <= row["mean"] <= 1 for row in rows)
    code, out, err = aef("embed", "--period", "2023", "-q")
    assert (code, out, err) == (0, "embeddings.zarr\n", "")
    code, _, err = aef("eval", "--suite", "quick", "--model", "runs/nano-001", "--seed", "3")
    assert (code, "learned from the made-up world of seed 3," in err) == (2, True), err


def test_simulate_prints_the_next_command(aef: Aef, tmp_path: Path) -> None:
    code, out, err = aef("simulate", "w", "--sites", "1", "--size", "32")
    assert (code, out) == (0, "w/catalog.json\n")
    assert "aef fetch --stac w/catalog.json --bbox" in err
    assert (tmp_path / "w" / "labels.parquet").exists()


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """A folder with a small cube and a finished run of a toy recipe."""
    made_up_cube(tmp_path / "small.zarr", side=48)
    plan = toy_recipe()
    run = checkpoint.new_run(tmp_path / "toyrun", plan)
    checkpoint.save_weights(run.weights, checkpoint.build(plan), plan, 0)
    (tmp_path / "labels.csv").write_text("x,y,label\n15.001,45.1,1\n15.002,45.1,2\n")
    (tmp_path / "nonsense.json").write_text('{"type": "Sonnet"}')
    (tmp_path / "bad.toml").write_text(plan.to_toml().replace("warmup", "warmupp"))
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "recipe.toml").write_text(plan.to_toml())
    (tmp_path / "pickled" / "model.safetensors").write_bytes(b"\x80\x04cos\nsystem\n(S'touch owned'\ntR.")
    (tmp_path / "occupied").mkdir()
    (tmp_path / "occupied" / "thesis.txt").write_text("mine")
    return tmp_path


FETCH = ("fetch", "--stac", "nonsense.json", "--bbox", "15,46,15.1,46.1", "--period", "2023")


def fetch(**changes: str) -> tuple[str, ...]:
    words = list(FETCH)
    for option, value in changes.items():
        if f"--{option}" in words:
            words[words.index(f"--{option}") + 1] = value
        else:
            words += [f"--{option}", value]
    return tuple(words)


BAD = [
    (("simulate", "w", "--sites", "0"), "sites"),
    (("simulate", "w", "--size", "8"), "size"),
    (("simulate", "w", "--years", "soon"), "soon"),
    (("simulate", "w", "--years", "2024:2020"), "2024"),
    (fetch(bbox="15,46,15.1"), "four numbers"),
    (fetch(bbox="15.1,46,15.05,46.1"), "west >= east"),
    (fetch(bbox="15,46,15.1,nan"), "not finite"),
    (fetch(bbox="15,146,15.1,147"), "outside the globe"),
    (fetch(period="2023-13"), "2023-13"),
    (fetch(period="2023-05:2023-01"), "ends before it begins"),
    (fetch(period="2999"), "future"),
    (fetch(gsd="0"), "metres"),
    (fetch(gsd="0.0001"), "metres"),
    (fetch(crs="EPSG:4326"), "metres"),
    (fetch(source="sentinel2"), "sentinel-2"),
    (fetch(stac="earth-serch"), "earth-search"),
    (fetch(stac="labels.csv"), "not JSON"),
    (FETCH, "Sonnet"),
    (fetch(out="occupied"), "not written by aef"),
    (("train",), "cube.zarr"),
    (("train", "small.zarr", "--recipe", "nanoo"), "nano"),
    (("train", "small.zarr", "--recipe", "bad.toml"), "train.warmup"),
    (("train", "small.zarr", "--steps", "0"), "steps"),
    (("train", "small.zarr", "--device", "abacus"), "abacus"),
    (("train", "occupied"), "occupied"),
    (("embed", "small.zarr"), "--period"),
    (("embed", "small.zarr", "--period", "yesterday"), "yesterday"),
    (("embed", "small.zarr", "--period", "2023", "--model", "nanoo"), "nano for the model that comes with aef"),
    (("embed", "small.zarr", "--period", "2023", "--model", "occupied"), "model.safetensors"),
    (("embed", "small.zarr", "--period", "2023", "--model", "pickled"), "safetensors"),
    (("embed", "small.zarr", "--period", "2023", "--model", "toyrun", "--out", "occupied"), "not written by aef"),
    (("embed", "other.zarr", "--period", "2023"), "other.zarr"),
    (("eval",), "embeddings.zarr"),
    (("eval", "small.zarr"), "not an embedding field"),
    (("eval", "small.zarr", "--probe", "svm"), "knn"),
    (("eval", "small.zarr", "--shots", "1,many"), "many"),
    (("eval", "small.zarr", "--labels", "none.csv"), "none.csv"),
    (("info", "nanoo"), "nano"),
    (("info", "runs/none-001"), "run or recipe"),
    (("info", "none.toml"), "none.toml"),
    (("info", "bad.toml"), "train.warmup"),
    (("info", "occupied"), "recipe.toml"),
    (("info", "nano", "--frames", "0"), "frames"),
    (("fech",), "fetch"),
    (("fetch", "--bbix", "1,2,3,4"), "--bbox"),
    (("fetch", "--stac", "nonsense.json"), "--bbox"),
    (fetch(workers="0"), "workers"),
    (fetch(bbox=""), "--bbox is empty"),
    (fetch(dask="0"), "--dask 0"),
    *((fetch(**{"max-bytes": size}), size) for size in ("inf", "nan", "1e999GB", "-5GB", "20 apples")),
    (fetch(**{"max-bytes": ""}), "--max-bytes is empty"),
    (fetch(out="s3://bucket/cube.zarr"), "no path on disk"),
    (("simulate", "s3://bucket/world"), "no path on disk"),
    (("text", "labels.csv", "--model", "occupied", "--out", "gs://bucket/text.parquet"), "no path on disk"),
    (("train", "small.zarr", "--out", "s3://bucket/run"), "no path on disk"),
    (("embed", "small.zarr", "--period", "2023", "--out", "s3://bucket/e.zarr"), "no path on disk"),
    (("plot", "small.zarr", "--out", "s3://bucket/look.png"), "no path on disk"),
    (("plot", "small.zarr", "--out", "look.jpg"), ".png"),
    (("plot", "occupied"), "neither a cube"),
    (("eval", "small.zarr", "--shots", ""), "--shots"),
    (("eval", "small.zarr", "--shots", "²"), "--shots"),
    (("verify", "none.zarr"), "none.zarr"),
    (("validate",), "embeddings.zarr"),
    (("validate", "small.zarr"), "not an embedding field"),
    (("validate", "occupied"), "no Zarr group"),
    (("validate", "labels.csv", "--quick"), "labels.csv"),
    (("validate", "small.zarr", "--period", "yesterday"), "yesterday"),
    (("validate", "small.zarr", "--seed", "-1"), "seed"),
    (("repair", "none.zarr"), "none.zarr"),
    (("attach", "none.zarr", "labels.csv", "--source", "gedi"), "none.zarr"),
    (("attach", "small.zarr", "labels.csv", "--source", "gedi", "--pass", "up"), "ascending"),
    (("attach", "small.zarr", "--source", "gedi"), "FILE"),
    (("text", "none.csv", "--model", "occupied"), "none.csv"),
]


@pytest.mark.parametrize(("words", "says"), BAD, ids=lambda value: " ".join(value) if isinstance(value, tuple) else "")
def test_bad_input_gets_one_line_and_exit_2_and_makes_nothing(
    words: tuple[str, ...], says: str, aef: Aef, stage: Path
) -> None:
    before = sorted(stage.rglob("*"))
    code, out, err = aef(*words)
    assert code == 2, err
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("aef: ")
    assert says in err
    code, out, again = aef(*words, "--json")
    document = json.loads(out)
    assert (code, again, document["command"], document["status"]) == (2, err, words[0], "error")
    assert document["error"]["code"] == 2
    assert err.startswith(f"aef: {document['error']['what']}")
    assert sorted(stage.rglob("*")) == before


def ended(body: str, grace: float, *words: str) -> subprocess.CompletedProcess[str]:
    """What comes of a command `aef end` that does what `body` says, in a process of its own."""
    probe = (
        "import os, signal, sys, threading, time; sys.argv[0] = 'aef'\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it\n"
        "from aefcli import cli\n"
        f"cli.signals.GRACE = {grace}\n"
        "@cli.app.app.command()\n"
        f"def end(json_: cli.app.Json = False) -> None:\n{indent(body, '    ')}\n"
        "cli.main()"
    )
    line = [sys.executable, "-c", probe, "end", *words]
    return subprocess.run(line, capture_output=True, text=True, timeout=40)


@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        ("1 / 0", 1, "ZeroDivisionError"),
        ("signal.raise_signal(signal.SIGINT)", 130, "SIGINT"),
        ("signal.raise_signal(signal.SIGTERM)", 143, "SIGTERM"),
        ("try: signal.raise_signal(signal.SIGINT)\nexcept BaseException: time.sleep(60)", 130, "SIGINT"),
        ("try: signal.raise_signal(signal.SIGTERM)\nfinally: 1 / 0", 143, "SIGTERM"),
        ("try: signal.raise_signal(signal.SIGTERM)\nfinally: signal.raise_signal(signal.SIGINT)", 130, "SIGINT"),
    ],
    ids=["a fault", "Ctrl-C", "SIGTERM", "Ctrl-C that is swallowed", "SIGTERM that breaks what it meets", "both"],
)
def test_an_end_that_is_nobodys_mistake_has_its_document_too(body: str, code: int, says: str) -> None:
    ran = ended(body, 0.1, "--json")
    document = json.loads(ran.stdout)
    assert (ran.returncode, document["command"], document["status"]) == (code, "end", "error")
    assert document["error"]["code"] == code
    assert says in document["error"]["what"]
    assert ("Traceback" in ran.stderr) == (code == 1)


def test_a_signal_that_meets_a_wait_without_an_end_closes_what_is_open() -> None:
    """As when it comes just before the wait: Python's handler is due, and the main thread is not there to run it."""
    body = (
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # so that another thread is given it\n"
        "threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
        "try: threading.Event().wait()\n"
        "finally: print('closed')"
    )
    ran = ended(body, 60)
    assert (ran.returncode, ran.stdout) == (143, "closed\n")


def test_a_child_that_is_ended_does_not_end_its_parent() -> None:
    body = (
        "child = os.fork()\n"
        "if not child: time.sleep(60)\n"
        "time.sleep(0.5)  # Python forgets what comes while it sets a child up\n"
        "os.kill(child, signal.SIGTERM)\n"
        "os.waitpid(child, 0)\n"
        "time.sleep(1)\n"
        "print('done')"
    )
    ran = ended(body, 0)
    assert (ran.returncode, ran.stdout) == (0, "done\n")


# --- -q and --json ----------------------------------------------------------------------------------------------------


def test_quiet_prints_the_outputs_and_nothing_where_there_are_none(world: Path, aef: Aef) -> None:
    line = ("fetch", "--stac", str(world / "catalog.json"))
    place = ("--bbox", bbox_of(world), "--period", "2023-06", "--source", "landsat", "--gsd", "60")
    assert aef(*line, "--list", "-q") == (0, "", "")
    assert aef(*line, *place, "--dry-run", "-q") == (0, "", "")
    assert aef(*line, *place, "-q") == (0, "cube.zarr\n", "")
    assert aef("info", "cube.zarr", "-q") == (0, "", "")
    for command in ("verify", "repair"):
        assert aef(command, "cube.zarr", "-q") == (0, "cube.zarr\n", "")
    assert aef("plot", "cube.zarr", "-q") == (0, "cube.png\n", "")


def test_several_areas_are_one_object_or_a_line_each(world: Path, aef: Aef, tmp_path: Path) -> None:
    west, south, east, north = map(float, bbox_of(world).split(","))
    middle = (west + east) / 2
    halves = {"west": box(west, south, middle, north), "east": box(middle, south, east, north)}
    table = geopandas.GeoDataFrame({"id": list(halves)}, geometry=list(halves.values()), crs=4326)
    table.to_file(tmp_path / "halves.geojson", driver="GeoJSON")
    line = ("fetch", "--stac", str(world / "catalog.json"), "--area", "halves.geojson", "--period", "2023-06")
    line = (*line, "--source", "landsat", "--gsd", "60")
    paths = ["cubes/west.zarr", "cubes/east.zarr"]
    code, out, err = aef(*line, "--dry-run", "--json")
    planned = json.loads(out)
    assert (code, planned["outputs"], list(planned["cubes"])) == (0, [], paths), err
    code, out, err = aef(*line, "--json")
    document = json.loads(out)
    assert (code, document["command"], document["status"]) == (0, "fetch", "ok"), err
    assert (document["outputs"], list(document["cubes"])) == (paths, paths)
    for path, figures in document["cubes"].items():
        assert figures["frames"] == planned["cubes"][path]["frames"]
        assert figures["units_written"] > 0
    assert aef(*line, "-q") == (0, "".join(f"{path}\n" for path in paths), "")


def test_training_on_nothing_but_cloud_is_refused(aef: Aef, tmp_path: Path) -> None:
    import rioxarray  # noqa: F401 - adds .rio
    import xarray as xr

    axes, shape = ("time", "y", "x"), (12, 48, 48)
    bands = {"B04": (axes, np.full(shape, 2000, "uint16")), "scl": (axes, np.full(shape, 9, "uint8"))}
    time = np.datetime64("2023-01-05", "ms") + 30 * np.arange(12) * np.timedelta64(1, "D")
    coords = {"time": time, "y": 5_000_000 - 10 * (np.arange(48) + 0.5), "x": 500_000 + 10 * (np.arange(48) + 0.5)}
    cloud = xr.Dataset(bands, coords).rio.write_crs("EPSG:32633")
    write_cube(tmp_path / "cloud.zarr", {"sentinel-2": cloud}, YEAR)
    (tmp_path / "toy.toml").write_text(toy_recipe().to_toml())
    code, _, err = aef("train", "cloud.zarr", "--recipe", "toy.toml")
    assert code == 2
    assert "no 32x32 px place with data" in err


def test_help_lists_every_command_in_the_order_of_a_users_day(aef: Aef) -> None:
    code, out, _ = aef("--help")
    listed = [line.split()[0] for line in out.partition("Commands:\n")[2].splitlines()]
    assert (code, listed) == (0, [*COMMANDS, "recipe"])
    assert len(app.registered_commands) == len(COMMANDS)


@pytest.mark.parametrize("command", ["", *COMMANDS, "recipe"])
def test_help_names_an_example_and_loads_nothing_heavy(command: str) -> None:
    probe = (
        "import sys; sys.argv = ['aef', *sys.argv[1:]]\n"
        "from aefcli import cli\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'xarray', 'numpy', 'zarr', 'pandas'} & set(sys.modules)))"
    )
    words = [word for word in (command, "--help") if word]
    ran = subprocess.run([sys.executable, "-c", probe, *words], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"
    assert not command or all(part in ran.stdout for part in (f"Example: aef {command}", "--json", "-q, --quiet"))


PARTS = ["total", "stem", "space", "time", "precision", "exchange", "summary", "decoders"]


@pytest.mark.parametrize("named", ["toyrun", "toyrun/recipe.toml"])
def test_info_of_a_run_and_of_its_recipe(named: str, aef: Aef, stage: Path) -> None:
    code, out, err = aef("info", named, "--frames", "9", "--json")
    assert (code, err) == (0, "")
    document, model = json.loads(out), checkpoint.load(checkpoint.open_run(stage / "toyrun"))
    assert (document["command"], document["status"], document["outputs"]) == ("info", "ok", [])
    assert document["frames"] == {"sentinel-2": 4, "sentinel-1": 3, "landsat": 2}  # of 6, 4 and 4
    assert list(document["parameters"]) == list(document["flops"]) == PARTS
    assert document["parameters"] == model.parameters_by_part()


def test_info_prints_a_row_per_part(aef: Aef) -> None:
    code, out, err = aef("info", "nano")
    assert (code, err) == (0, "")
    head, *rows = [line.split() for line in out.replace("│", " ").splitlines() if line[0] not in "┏┃┡├└"]
    assert head[:6] == ["nano:", "128x128", "px,", "one", "valid", "period,"]
    assert [row[0] for row in rows] == [*PARTS[1:], "total"]
    assert sum(int(row[1].replace(",", "")) for row in rows[:-1]) == int(rows[-1][1].replace(",", ""))


def test_info_needs_no_torch() -> None:
    probe = (
        "import sys; sys.argv = ['aef', 'info', 'base']\n"
        "from aefcli import cli\n"
        "try: cli.main()\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "0 False"
