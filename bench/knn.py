"""Exact nearest neighbours beside scikit-learn's: `python -m bench.knn [--json] [--quick]`.

100,000 training vectors and 1,000,000 queries of 64 numbers and unit length, k = 3. `scikit-learn` is its
NearestNeighbors with metric="cosine" and algorithm="brute", timed on 2,000 of the queries, in turn with ours on as
many; then ours is timed on all, once. Half of the vectors lie about 1,000 centres, as embeddings do; queries likewise.

Ratio: `knn` is our queries/s, of all, over theirs. Correct: the share of the neighbours of a sample of queries that a
search in double precision finds too, in the same order.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass

import numpy as np
from sklearn.neighbors import NearestNeighbors

from aefcli.probe import nearest
from bench import measure
from bench.measure import Check, Result

DIMENSIONS = 64
NEIGHBOURS = 3
REPEATS = 3


@dataclass(frozen=True)
class Size:
    """How many vectors and queries; how many of these are timed beside scikit-learn, and checked."""

    vectors: int = 100_000
    queries: int = 1_000_000
    beside: int = 2_000
    checked: int = 500


QUICK = Size(2_000, 5_000, 200, 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--quick", action="store_true", help="few vectors, one repeat: only to see it run")
    parser.add_argument("--repeats", type=int, default=REPEATS, help=f"of which the median is taken ({REPEATS})")
    chosen = parser.parse_args()
    size, repeats = (QUICK, 1) if chosen.quick else (Size(), chosen.repeats)
    run(size, repeats).show(chosen.json)


def run(size: Size, repeats: int) -> Result:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((1_000, DIMENSIONS), dtype=np.float32)
    x, queries = (vectors(count, centres, rng) for count in (size.vectors, size.queries))
    theirs = NearestNeighbors(n_neighbors=NEIGHBOURS, metric="cosine", algorithm="brute").fit(x)
    few = queries[: size.beside]
    works = {
        "ours, as many": lambda: nearest(x, few, NEIGHBOURS),
        "scikit-learn": lambda: theirs.kneighbors(few, return_distance=False),
    }
    rates = {name: len(few) / spent for name, spent in measure.seconds(works, repeats).items()}
    began = time.perf_counter()
    index, _ = nearest(x, queries, NEIGHBOURS)
    rates = {"ours": len(queries) / (time.perf_counter() - began)} | rates
    sample = rng.choice(len(queries), size.checked, replace=False)
    recall = Check(float((index[sample] == double(x, queries[sample])).mean()), 1.0, least=True)
    counts = {"ours": len(queries)}
    rows = [
        (name, f"{counts.get(name, len(few)):,}", f"{rate:,.0f}", "ours" if name == "ours" else "")
        for name, rate in rates.items()
    ]
    title = f"{len(x):,} vectors of {DIMENSIONS}, k = {NEIGHBOURS}, {os.cpu_count()} cores, medians of {repeats}"
    ratios = {"knn": rates["ours"] / rates["scikit-learn"]}
    return Result("knn", title, ("queries", "queries/s"), rows, ratios, {"ours": recall}, {"queries/s": rates})


def vectors(count: int, centres: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """float32 (count, d) of unit length: half anywhere, half about the centres."""
    out = rng.standard_normal((count, DIMENSIONS), dtype=np.float32)
    out[::2] = centres[rng.integers(len(centres), size=len(out[::2]))] + 0.3 * out[::2]
    return out / np.linalg.norm(out, axis=1, keepdims=True)


def double(x: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """The nearest rows of `x` by sums of squared differences in double precision, ties by the lowest."""
    wide = x.astype(np.float64)
    away = [np.square(wide - query).sum(axis=1) for query in queries.astype(np.float64)]
    return np.stack([np.argsort(distance, kind="stable")[:NEIGHBOURS] for distance in away])


if __name__ == "__main__":
    main()
