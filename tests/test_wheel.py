"""The wheel holds all that the commands need: built, installed apart, and run. Slow: it installs every dependency."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


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
    run(aef, "train", "--steps", "2")
    run(aef, "embed", "cube.zarr", "--period", "2023-01:2023-12")
    scores = json.loads(run(aef, "eval", "--probe", "knn", "--json"))
    assert {row["field"] for row in scores["results"]} == {"embeddings", "composite", "untrained"}
