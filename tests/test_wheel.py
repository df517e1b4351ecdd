"""The wheel holds all that the commands need: built, and (slow, with every dependency) installed apart and run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_wheel_holds_every_file_of_the_package(tmp_path: Path) -> None:
    """Built of a copy: what a build leaves behind would find its way into the next one."""
    for name in ("aefcli", "recipes"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    words = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist"]
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = {f"aefcli/{path.relative_to(ROOT / 'aefcli')}" for path in (ROOT / "aefcli").rglob("*") if path.is_file()}
    files |= {f"aefcli/recipes/{path.name}" for path in (ROOT / "recipes").glob("*.toml")}
    assert packed == {name for name in files if "__pycache__" not in name}
    assert "aefcli/shipped/nano/model.safetensors" in packed


@pytest.mark.slow
def test_a_wheel_in_a_clean_environment_runs_the_four_commands(tmp_path: Path) -> None:
    def run(*words: object) -> str:
        return subprocess.run(
            [str(word) for word in words], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    run(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path / "dist", ROOT)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    venv.create(tmp_path / "env", with_pip=True)
    python, aef = tmp_path / "env" / "bin" / "python", tmp_path / "env" / "bin" / "aef"
    run(python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel)
    world = json.loads(run(aef, "simulate", "world", "--sites", "9", "--size", "48", "--json"))
    bbox = ",".join(str(value) for value in world["bbox"])
    run(aef, "fetch", "--stac", "world/catalog.json", "--bbox", bbox, "--period", "2023")
    shipped = json.loads(run(aef, "embed", "cube.zarr", "--period", "2023-06", "--out", "june.zarr", "--json"))
    assert shipped["model"] == "nano"
    run(aef, "train", "--steps", "2")
    run(aef, "embed", "cube.zarr", "--period", "2023-01:2023-12")
    scores = json.loads(run(aef, "eval", "--probe", "knn", "--json"))
    assert {row["field"] for row in scores["results"]} == {"embeddings", "composite", "untrained"}
