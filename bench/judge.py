"""What judging takes: `python -m bench.judge [--json] [--quick] [--repeats N]`. Every run is a process of its own.

    protocol  `aef eval` of one task of 10,000 points, 64 numbers each, in 10 classes: kNN with k = 1 and 3, linear and
              ridge at 1, 10 and max shots, every fold that the formula asks for. Of 1,000 points of each class that is
              125, and at max one that is resampled; of 75 of the rarest class 273 each
    map       `aef map` of an embedding field in our format, int8 codes in chunks on disk, taught by 300 labels and
              scored on them: by ridge and by kNN, of 4 and of 16 million pixels

Of a row's runs the one of median seconds counts. A map's seconds hold its scores, and imports of a second. Ratios:
`memory` is the peak at 16 million pixels over the peak at 4, of ridge, and `knn_memory` of kNN. Extrapolated, not
measured: the seconds of 100 million pixels, by what each pixel between the two sizes took. Correct: one fold's balanced
accuracy by scikit-learn equals ours; the maps say the classes that the fields were drawn from.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.fetch import peak

if TYPE_CHECKING:  # the processes that are measured import this module, and are to hold what they need alone
    import numpy as np

    from aefcli.probe import Evaluation, Labels
    from bench.measure import Result

DIMENSIONS = 64
CLASSES = 10
LABELS = 300  # that teach a map
REPEATS = 3
CHUNK = 256  # pixels along y and x, as in every field of ours
PARCEL = 32
DRAWN = 8  # chunks whose pixels are made; the others are these again
FAR = 100e6  # pixels, of which the time is extrapolated


@dataclass(frozen=True)
class Size:
    """How many points, how many of the rarest class in each task, the sides of the fields, and what is taught."""

    points: int = 10_000
    rarest: tuple[int, ...] = (1_000, 75)
    sides: tuple[int, int] = (2048, 4096)  # pixels
    taught: tuple[str, ...] = ("ridge", "knn")


QUICK = Size(400, (40,), (256, 512), ("ridge",))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--quick", action="store_true", help="few points and pixels, once: only to see it run")
    parser.add_argument("--repeats", type=int, default=REPEATS, help=f"of which the median is taken ({REPEATS})")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        size, repeats = (QUICK, 1) if chosen.quick else (Size(), chosen.repeats)
        run(Path(folder), size, repeats).show(chosen.json)


def run(folder: Path, size: Size, repeats: int) -> Result:
    from bench.measure import Check, Result

    runs = {f"protocol, rarest {rarest:,}": apart(repeats, protocol, size.points, rarest) for rarest in size.rarest}
    did = {name: f"{size.points:,} points, {each.found['folds']} folds" for name, each in runs.items()}
    correct = {name: Check(each.found["off"], 1e-9) for name, each in runs.items()}
    pixels = [side**2 for side in size.sides]
    maps: dict[str, list[Run]] = {kind: [] for kind in size.taught}
    for side, count in zip(size.sides, pixels, strict=True):
        write_field(folder / f"{side}.zarr", side)
        for kind, done in maps.items():
            done.append(apart(repeats, draw, folder / f"{side}.zarr", kind))
            name = f"{kind}, {count / 1e6:.1f} MP"
            runs[name], did[name] = done[-1], f"{count / done[-1].seconds / 1e6:.2f} MP/s"
            correct[name] = Check(done[-1].found["right"], 0.99, least=True)
    far = {kind: extrapolated(pixels, [each.seconds for each in done]) for kind, done in maps.items()}
    named = {kind: "memory" if kind == "ridge" else f"{kind}_memory" for kind in maps}
    ratios = {named[kind]: large.peak / small.peak for kind, (small, large) in maps.items()}
    rows = [(name, did[name], *each.cells(), name) for name, each in runs.items()]
    figures = {name: {"seconds": each.seconds, "cpu": each.cpu, "peak": each.peak} for name, each in runs.items()}
    title = f"one task of the protocol; maps from {LABELS} labels; {os.cpu_count()} cores, median of {repeats}"
    notes = {f"seconds of {FAR / 1e6:.0f} MP, extrapolated": far, "runs": figures}
    return Result("judge", title, ("did", "seconds", "CPU s", "peak MiB"), rows, ratios, correct, notes)


def extrapolated(pixels: Sequence[int], seconds: Sequence[float]) -> float:
    """Seconds of FAR pixels on the line through two sizes."""
    (small, large), (first, second) = pixels, seconds
    return second + (FAR - large) * (second - first) / (large - small)


# --- one run, in a process of its own ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """What one run took, and what it found."""

    seconds: float
    cpu: float  # seconds of processor, all threads
    peak: int  # bytes of memory, the interpreter and its libraries among them
    found: dict[str, float]

    def cells(self) -> tuple[str, ...]:
        return (f"{self.seconds:.1f}", f"{self.cpu:.1f}", f"{self.peak / 2**20:,.0f}")


def apart(repeats: int, work: Callable[..., Run], *given: Any) -> Run:
    """Run it as often, each time in a new process: the run of median seconds."""
    done = []
    for _ in range(repeats):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            done.append(pool.submit(work, *given).result())
    return sorted(done, key=lambda each: each.seconds)[len(done) // 2]


def timed(work: Callable[[], Any]) -> tuple[Any, float, float, int]:
    """What `work` returns, its seconds, its seconds of processor, and the peak of memory after it."""
    began, cpu = time.perf_counter(), time.process_time()
    done = work()
    return done, time.perf_counter() - began, time.process_time() - cpu, peak()


# --- the protocol -----------------------------------------------------------------------------------------------------


def protocol(points: int, rarest: int) -> Run:
    """All folds of one task, and how far ours is from scikit-learn on one of them."""
    from aefcli import probe

    labels, x = task(points, rarest)
    done, *taken = timed(lambda: probe.evaluate({"x": x}, labels, task="made up"))
    folds = sum(done.about["folds"].values())
    return Run(*taken, {"folds": folds, "off": off(done, labels, x)})


def task(points: int, rarest: int) -> tuple[Labels, np.ndarray]:
    """Labels all over ten degrees, and vectors of unit length about three centres for each class.

    Sizes of the classes rise by one step from `rarest`.
    """
    import numpy as np

    from aefcli.probe import Labels

    rng = np.random.default_rng(0)
    step = 2 * (points / CLASSES - rarest) / (CLASSES - 1)
    sizes = [rarest + round(step * each) for each in range(CLASSES)]
    sizes[-1] += points - sum(sizes)
    value = rng.permutation(np.repeat(np.arange(CLASSES), sizes))
    centres = rng.standard_normal((CLASSES, 3, DIMENSIONS))
    x = centres[value, rng.integers(3, size=points)] + 2 * rng.standard_normal((points, DIMENSIONS))
    lon, lat = rng.uniform(10, 20, points), rng.uniform(40, 50, points)
    names = tuple(f"class {each}" for each in range(CLASSES))
    return Labels(lon, lat, value, names, "class"), x / np.linalg.norm(x, axis=1, keepdims=True)


def off(done: Evaluation, labels: Labels, x: np.ndarray) -> float:
    """The largest difference to scikit-learn's balanced accuracy, over the first fold at 10 shots."""
    from sklearn.linear_model import RidgeClassifier
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.neighbors import KNeighborsClassifier

    from aefcli.probe.split import plan_split
    from aefcli.probe.trial import Trial

    trial = Trial(plan_split(labels, done.about["block"]), labels.value, "class", (), done.about["seed"])
    train, test, _ = trial.draw(10, 0)
    theirs = {
        "knn1": KNeighborsClassifier(1),
        "knn3": KNeighborsClassifier(3),
        "linear": RidgeClassifier(alpha=0, solver="svd"),
    }
    far = []
    for probe, theirs_of in theirs.items():
        said = theirs_of.fit(x[train], labels.value[train]).predict(x[test])
        far.append(abs(balanced_accuracy_score(labels.value[test], said) - done.draws["x", probe, 10][0, 0]))
    return float(max(far))


# --- the maps ---------------------------------------------------------------------------------------------------------


def draw(path: Path, kind: str) -> Run:
    """`aef map` of one field, and the share of the pixels that it calls what they are."""
    from aefcli.cli.app import cores
    from aefcli.maps import draw_map

    out, labels = path.with_name(f"{path.stem}-{kind}.tif"), path.with_suffix(".csv")
    _, *taken = timed(lambda: draw_map(path, labels, out, kind=kind, workers=cores(), overwrite=True))
    return Run(*taken, {"right": right(out)})


def cover(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The class of each pixel: square parcels, the same in every chunk."""
    return (rows % CHUNK // PARCEL * 3 + columns % CHUNK // PARCEL) % CLASSES


def write_field(path: Path, side: int) -> None:
    """A finished field of `side` pixels squared, and beside it a table of labels at some of them."""
    import numpy as np
    import pandas as pd
    from odc.geo.geobox import GeoBox
    from pyproj import Transformer
    from rasterio import Affine

    from aefcli import field
    from aefcli.extent import Period, tiles

    rng, place = np.random.default_rng(0), Affine(10, 0, 500_000, 0, -10, 5_100_000)
    places = list(tiles((side, side), CHUNK))
    chunks = drawn(min(DRAWN, len(places)), rng)
    field.create(path, GeoBox((side, side), place, "EPSG:32633"), [Period.parse("2023")], sources=[], attrs={})
    for index, tile in enumerate(places):
        field.write(path, tile, chunks[index % len(chunks)][None], {})
    field.finish(path)
    row, column = rng.integers(side, size=(2, LABELS))
    to_degrees = Transformer.from_crs("EPSG:32633", "EPSG:4326", always_xy=True)
    lon, lat = to_degrees.transform(*(place * (column + 0.5, row + 0.5)))
    pd.DataFrame({"x": lon, "y": lat, "label": cover(row, column)}).to_csv(path.with_suffix(".csv"), index=False)


def drawn(count: int, rng: np.random.Generator) -> np.ndarray:
    """int8 (count, 64, CHUNK, CHUNK): a direction for each class, under noise."""
    import numpy as np

    from aefcli.field import quantise

    centres = rng.standard_normal((DIMENSIONS, CLASSES), dtype=np.float32)[:, cover(*np.mgrid[:CHUNK, :CHUNK])]
    made = []
    for _ in range(count):
        vectors = centres + 0.7 * rng.standard_normal(centres.shape, dtype=np.float32)
        made.append(quantise(vectors / np.linalg.norm(vectors, axis=0), axis=0))
    return np.stack(made)


def right(path: Path) -> float:
    """The share of a map's pixels that have the class they were drawn with; read apart from the clock."""
    import numpy as np
    import rasterio

    with rasterio.open(path) as file:
        said = file.read(1)
    return float((said == cover(*np.indices(said.shape, sparse=True))).mean())


if __name__ == "__main__":
    main()
