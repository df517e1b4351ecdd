"""Nearest neighbours are those of a search in double precision, whatever the vectors, in bounded memory."""

from __future__ import annotations

import importlib
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from aefcli.probe import nearest

Made = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
MADE: dict[str, Made] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "single precision": lambda rng, shape: rng.standard_normal(shape, dtype=np.float32),
    "unit": lambda rng, shape: unit(rng.normal(size=shape)),
    "ties": lambda rng, shape: rng.integers(-1, 2, shape),
    "alike": lambda rng, shape: np.full(shape, 0.3),
    "far off": lambda rng, shape: 1e4 + 1e-3 * rng.normal(size=shape),
    "all sizes": lambda rng, shape: rng.normal(size=shape) * 10 ** rng.uniform(-8, 8, shape),
    "closer than single precision": lambda rng, shape: 1 + 1e-9 * rng.normal(size=shape) * (rng.random(shape) < 0.5),
}


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def by_hand(x: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Every squared distance in double precision, sorted; ties by index."""
    wide = x.astype(np.float64)
    away = np.stack([np.einsum("nd,nd->n", wide - one, wide - one) for one in queries.astype(np.float64)])
    order = np.argsort(away, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(away, order, axis=1)


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
@pytest.mark.parametrize(("n", "m", "d"), [(1, 5, 3), (2, 7, 64), (40, 300, 64), (997, 60, 2), (3_000, 90, 16)])
def test_neighbours_are_those_of_double_precision(made: Made, n: int, m: int, d: int) -> None:
    rng = np.random.default_rng(n)
    x, queries = made(rng, (n, d)), made(rng, (m, d))
    queries[: min(3, n)] = x[: min(3, n)]  # themselves among them
    for k in (1, 3, 10):
        index, distance = nearest(x, queries, k, block=64)
        order, away = by_hand(x, queries, k)
        assert index.dtype == np.int64
        assert distance.dtype == np.float64
        np.testing.assert_array_equal(index, order)
        np.testing.assert_allclose(distance, away, rtol=1e-12)


def test_a_query_out_of_the_reach_of_single_precision() -> None:
    rng = np.random.default_rng(0)
    x, queries = (
        rng.normal(size=(500, 4)),
        rng.normal(size=(6, 4)) * 10.0 ** np.array([[0], [9], [30], [45], [60], [0]]),
    )
    index, distance = nearest(x, queries, 3)
    order, away = by_hand(x, queries, 3)
    np.testing.assert_array_equal(index, order)
    np.testing.assert_array_equal(distance, away)


def test_unit_vectors_have_the_neighbours_of_the_cosine() -> None:
    rng = np.random.default_rng(0)
    x, queries = unit(rng.normal(size=(4_000, 64))), unit(rng.normal(size=(300, 64)))
    cosine, theirs = NearestNeighbors(n_neighbors=3, metric="cosine", algorithm="brute").fit(x).kneighbors(queries)
    index, distance = nearest(x, queries, 3)
    np.testing.assert_array_equal(index, theirs)
    np.testing.assert_allclose(distance / 2, cosine, atol=1e-6)


def test_threads_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x, queries = rng.integers(-2, 3, (2_000, 8)).astype(np.float64), rng.integers(-2, 3, (900, 8)).astype(np.float64)
    whole = nearest(x, queries, 5)
    monkeypatch.setattr(importlib.import_module("aefcli.probe.nearest"), "_SMALL", 0)
    for block in (1, 100, 1_000):
        parts = nearest(x, queries, 5, block)
        assert all(np.array_equal(one, other) for one, other in zip(whole, parts, strict=True))
    with pytest.raises(AssertionError, match="queries are finite"):
        nearest(x, np.full((3, 8), np.nan), 5)  # from a thread, too


@pytest.mark.parametrize("alike", [False, True])
def test_memory_is_bounded_even_where_nothing_can_be_ruled_out(alike: bool) -> None:
    """Pairs of 400 queries and 20,000 vectors would take 64 MB as bare distances."""
    rng = np.random.default_rng(0)
    x = np.ones((20_000, 4)) if alike else rng.normal(size=(20_000, 4))
    tracemalloc.start()
    index, _ = nearest(x, x[:400], 2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert index[:, 0].tolist() == ([0] * 400 if alike else list(range(400)))
    assert peak < 32e6


def test_what_cannot_be_searched() -> None:
    x = np.ones((3, 2))
    for wrong in ((x[:0], x, 1), (x, x, 0), (x, np.ones((3, 3)), 1), (x[0], x, 1), (x * np.nan, x, 1)):
        with pytest.raises(AssertionError):
            nearest(*wrong)
    assert nearest(x, x[:0], 2)[0].shape == (0, 2)
    assert nearest(x, x, 9)[0].tolist() == [[0, 1, 2]] * 3
