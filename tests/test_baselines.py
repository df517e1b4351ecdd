"""Designed baselines: each equals a plain reckoning of it, says what it can of pixels with gaps, and learns nothing of
labels. (`composite` beside a loop, and the untrained network: tests/test_judge.py.)"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from pyproj import Transformer
from rasterio import Affine
from scipy.linalg import inv, sqrtm
from sklearn.decomposition import PCA
from toys import YEAR

from aefcli import baselines, probe
from aefcli.baselines import learned, season, seen, series
from aefcli.batch import DAY
from aefcli.cube import Cube, cube_of, open_cube, write_cube
from aefcli.errors import BadInput
from aefcli.extent import Period
from aefcli.sources import SOURCES

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

SHAPE = (48, 42)
CORNER = (500_000, 5_100_000)
DESIGNED, OF_TIME = baselines.DESIGNED, ("composite", "percentiles", "harmonics", "raw")
SEEN_EVEN_IF_BLIND = ("xy", "xyz")
SPRING = Period.parse("2023-03:2023-05")
HOLE, ONCE, RADAR, LANDSAT = (2, 2), (20, 21), (45, 3), (1, 40)  # never seen; by one frame; by radar alone; by Landsat

Made = dict[str, np.ndarray]


def made_up() -> dict[str, xr.Dataset]:
    """Noise around a season in three sources, half of it clouded, and a slope of elevations."""
    rng = np.random.default_rng(0)

    def dataset(days: np.ndarray, gsd: int, values: Mapping[str, np.ndarray]) -> xr.Dataset:
        shape = tuple(extent * 10 // gsd for extent in SHAPE)
        grid = GeoBox(shape, Affine(gsd, 0, CORNER[0], 0, -gsd, CORNER[1]), "EPSG:32633")
        time = np.datetime64("2023-01-01T10:30", "ms") + days * np.timedelta64(1, "D")
        arrays = {name: (("time", "y", "x"), array) for name, array in values.items()}
        return xr.Dataset(arrays, coords={**xr_coords(grid), "time": time})

    def noise(days: np.ndarray, shape: tuple[int, int], level: float, spread: float, swing: float = 0.4) -> np.ndarray:
        wave = 1 + swing * np.cos(2 * np.pi * days / 365 + 1)[:, None, None]
        return level * wave * np.exp(spread * rng.standard_normal((len(days), *shape)))

    two, one, land = (np.sort(rng.choice(365, count, replace=False)) for count in (18, 12, 9))
    coarse = (SHAPE[0] // 3, SHAPE[1] // 3)
    optical = {band.name: noise(two, SHAPE, 1500, 0.3).astype("uint16") for band in SOURCES["sentinel-2"].bands}
    weight = (rng.random((18, *SHAPE)) < 0.5).astype("uint8")
    weight[:, :6, :6] = weight[:, 18:24, 18:24] = weight[:, 42:, :6] = weight[:, :3, 39:] = 0
    weight[7, ONCE[0], ONCE[1]] = 1
    radar = {band: noise(one, SHAPE, 0.1, 0.4).astype("float32") for band in ("VV", "VH")}
    radar["VV"][:, :6, :6] = radar["VV"][:, 18:24, 18:24] = radar["VV"][:, :3, 39:] = SOURCES["sentinel-1"].nodata
    again = {name: np.round(noise(land, coarse, 0.15, 0.2) / 2.75e-5 + 7273) for name in ("B2", "B3", "B4", "B5", "B6")}
    again["B10"] = np.round((noise(land, coarse, 290, 0.01, 0.03) - 149) / 0.00341802)
    again = {name: values.astype("uint16") for name, values in again.items()}
    clear = (rng.random((9, *coarse)) < 0.6).astype("uint8")
    clear[:, :2, :2] = clear[:, 6:8, 6:8] = clear[:, 14:, :2] = 0
    clear[4, 0, 13] = 1
    heights = (300 + 2.0 * np.add.outer(np.arange(coarse[0]), 3 * np.arange(coarse[1])))[None].astype("float32")
    return {
        "sentinel-2": dataset(two, 10, {**optical, "weight": weight}),
        "sentinel-1": dataset(one, 10, radar),
        "landsat": dataset(land, 30, {**again, "weight": clear}),
        "glo-30": dataset(np.array([0]), 30, {"elevation": heights}),
    }


@pytest.fixture(scope="module")
def data() -> dict[str, xr.Dataset]:
    return made_up()


@pytest.fixture(scope="module")
def cube(data: dict[str, xr.Dataset]) -> Cube:
    return cube_of(data, YEAR)


@pytest.fixture(scope="module")
def points() -> tuple[np.ndarray, np.ndarray]:
    """Every special place, the corners, and random pixels; some twice, in no order."""
    rng = np.random.default_rng(1)
    special = np.array([HOLE, ONCE, RADAR, LANDSAT, (47, 41), (0, 41), (47, 0), (20, 21)]).T
    random = [rng.integers(0, extent, 60) for extent in SHAPE]
    return np.r_[special[0], random[0]], np.r_[special[1], random[1]]


@pytest.fixture(scope="module")
def made(cube: Cube, points: tuple[np.ndarray, np.ndarray]) -> Made:
    return baselines.designed(cube, DESIGNED, *points, [YEAR, SPRING])


def without(cube: Cube, *names: str) -> Cube:
    return replace(cube, sources={name: one for name, one in cube.sources.items() if name not in names})


# --- beside plain reckonings ----------------------------------------------------------------------------------

Channels = list[list[tuple[int, float]]]  # (ms, value) of each frame that saw the channel clearly


def by_hand(data: dict[str, xr.Dataset], row: int, column: int) -> tuple[Channels, Channels, Channels]:
    """Channels with their indices of one pixel, frame by frame: colours, radar, thermal."""

    def frames(source: str, band: str) -> list[tuple[int, float]]:
        one, spec = data[source], SOURCES[source].band(band)
        at = (slice(None), row // 3, column // 3) if source == "landsat" else (slice(None), row, column)
        times = one["time"].values.astype("datetime64[ms]").astype(int).tolist()
        weight = one["weight"].values[at] if "weight" in one else np.ones(len(times))
        if source == "sentinel-1":  # a pixel is seen where all bands are
            weight = weight * np.all([one[name].values[at] > 0 for name in ("VV", "VH")], axis=0)
        out = []
        for time, stored, clear in zip(times, one[band].values[at].astype(float), weight, strict=True):
            if clear:
                physical = stored * spec.scale + spec.offset
                value = {
                    "log": lambda x: np.log(1 + 1e4 * max(x, 0)),
                    "db": lambda x: 10 * np.log10(x),
                    "linear": lambda x: x,
                }[spec.transform](physical)
                out.append((time, float(np.clip((value - spec.mean) / spec.std, -6, 6))))
        return out

    pairs = (("B02", "B2"), ("B03", "B3"), ("B04", "B4"), ("B08", "B5"), ("B11", "B6"))
    colours = [frames("sentinel-2", a) + frames("landsat", b) for a, b in pairs]
    physical = [
        [np.expm1(value * spec.std + spec.mean) * 1e-4 for _, value in one]
        for one, spec in zip(colours, SOURCES["sentinel-2"].bands, strict=True)
    ]
    _, green, red, nir, swir = physical
    when = [time for time, _ in colours[0]]
    indices = []
    for a, b, usual, spread in ((nir, red, 0.45, 0.3), (nir, swir, 0.1, 0.25), (green, nir, -0.45, 0.3)):
        ratio = [((x - y) / (x + y) - usual) / spread for x, y in zip(a, b, strict=True)]
        indices.append(list(zip(when, ratio, strict=True)))
    vv, vh = frames("sentinel-1", "VV"), frames("sentinel-1", "VH")
    both = [(time, a - b) for (time, a), (_, b) in zip(vv, vh, strict=True)]
    return [*colours, *indices], [vv, vh, both], [frames("landsat", "B10")]


def inside(frames: list[tuple[int, float]], period: Period) -> tuple[np.ndarray, np.ndarray]:
    """Times and values in the period, or those nearest to it."""
    away = [max(period.start - time, 0, time - period.end + 1) for time, _ in frames]
    kept = [frame for frame, far in zip(frames, away, strict=True) if far == min(away)]
    return np.array([time for time, _ in kept], float), np.array([value for _, value in kept])


def penalised(design: np.ndarray, values: np.ndarray, roots: np.ndarray) -> np.ndarray:
    """Least squares where the penalty is more rows, which want 0: (k,)."""
    return np.linalg.lstsq(np.vstack([design, roots]), np.r_[values, np.zeros(len(roots))], rcond=None)[0]


def harmonics_by_hand(frames: list[tuple[int, float]], period: Period) -> list[float]:
    middle, half = (period.start + period.end) / 2, max(period.end - period.start, 365.25 * DAY) / 2
    times, values = inside(frames, Period(int(middle - half), int(middle + half)))
    x = (times - middle) / (365.25 * DAY)
    waves = [wave(2 * np.pi * turn * x) for turn in (1, 2, 3) for wave in (np.cos, np.sin)]
    design = np.stack([np.ones_like(x), x, *waves], axis=1)
    found = penalised(design, values, np.sqrt(np.diag([1e-6, 2, 2, 2, 4, 4, 6, 6]) + np.diag([0] + [1e-6] * 7)))
    return [*found, np.sqrt(np.mean((values - design @ found) ** 2))]


def regular_by_hand(frames: list[tuple[int, float]], period: Period, steps: int) -> np.ndarray:
    times, values = inside(frames, period)
    middles = period.start + (np.arange(steps) + 0.5) * (period.end - period.start) / steps
    design = np.stack([np.interp(times, middles, one) for one in np.eye(steps)], axis=1)
    bends, slopes = np.diff(np.eye(steps), 2, axis=0), np.diff(np.eye(steps), axis=0)
    return penalised(design, values, np.vstack([np.sqrt(3) * bends, slopes]))


REFERENCES: dict[str, tuple[Callable[..., Any], int]] = {
    "percentiles": (lambda frames, period: np.percentile(inside(frames, period)[1], [5, 25, 50, 75, 95]), 5),
    "harmonics": (harmonics_by_hand, 9),
    "raw": (lambda frames, period: regular_by_hand(frames, period, 24), 24),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_summaries_equal_a_reckoning_channel_by_channel(
    data: dict[str, xr.Dataset], points: tuple[np.ndarray, np.ndarray], made: Made, name: str
) -> None:
    """np.percentile; np.linalg.lstsq of one pixel's one channel."""
    reckon, size = REFERENCES[name]
    for at, (row, column) in list(enumerate(zip(*points, strict=True)))[:30]:
        channels = [frames for group in by_hand(data, row, column) for frames in group]
        for which, period in enumerate((YEAR, SPRING)):
            seen_ever = any(channels)
            rest = [0.0 if seen_ever else np.nan] * size
            expected = np.concatenate([reckon(frames, period) if frames else rest for frames in channels])
            np.testing.assert_allclose(made[name][at, which], expected, atol=2e-4, rtol=1e-3)


def test_principal_axes_equal_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    vectors = (rng.standard_normal((500, 90)) * np.linspace(3, 0.1, 90) + 5).astype("float32")
    ours, theirs = learned.axes(vectors).project(vectors), PCA(64).fit_transform(vectors.astype("float64"))
    assert ours.shape == (500, 64)
    signs = np.sign((ours * theirs).sum(axis=0))
    np.testing.assert_allclose(ours, theirs * signs, atol=1e-4)


def test_pca_turns_raw_and_keeps_its_distances(made: Made) -> None:
    """Of 288 numbers 64 are left: no distance grows, and those of a cube of noise shrink by less than half."""
    raw, pca = (made[name][~np.isnan(made["raw"]).any(axis=(1, 2)), 0] for name in ("raw", "pca"))
    before, after = (
        np.linalg.norm(one[:, None] - one[None], axis=2)[np.triu_indices(len(one), 1)] for one in (raw, pca)
    )
    different = before > 0  # a point is there twice
    assert (after <= before * 1.0001 + 1e-4).all()
    assert np.median(after[different] / before[different]) > 0.5


def test_random_filters_equal_a_loop(cube: Cube, points: tuple[np.ndarray, np.ndarray]) -> None:
    """Whitened patches on whitened patches, both signs, the mean over 5x5 px, by the spread of single patches."""
    row, column = points
    wanted = np.unique(row * SHAPE[1] + column)
    known = seen.see(cube, cube, {"image"}, np.arange(SHAPE[0] * SHAPE[1]), [YEAR, SPRING])
    image = known.image.reshape(*SHAPE, 2, -1).astype("float64")
    patches = known.patches(np.arange(SHAPE[0] * SHAPE[1]))[:, 0]
    patches = patches[np.isfinite(patches).all(axis=1)]
    filters = learned.filters(patches, np.random.default_rng(7))
    found = known.pooled(wanted, filters)
    assert found.shape == (len(wanted), 2, 256)

    mean, spread = patches.mean(axis=0, dtype="float64"), np.cov(patches.T.astype("float64"), bias=True)
    whiten = inv(sqrtm(spread + 0.1 * np.trace(spread) / len(spread) * np.eye(len(spread))).real)
    chosen = (patches[np.random.default_rng(7).choice(len(patches), 128, replace=False)] - mean) @ whiten
    directions = chosen / np.linalg.norm(chosen, axis=1, keepdims=True)

    def answers(patch: np.ndarray) -> np.ndarray:
        signed = directions @ (whiten @ (patch - mean))
        return np.r_[np.maximum(signed, 0), np.maximum(-signed, 0)]

    single = np.stack([answers(patch) for patch in patches])

    def patch_of(r: int, c: int, which: int, like: np.ndarray | None = None) -> np.ndarray:
        own = image[r, c, which]
        rows, columns = np.clip([r - 1, r, r + 1], 0, SHAPE[0] - 1), np.clip([c - 1, c, c + 1], 0, SHAPE[1] - 1)
        cells = [np.where(np.isnan(image[i, j, which]), own, image[i, j, which]) for i in rows for j in columns]
        patch = np.concatenate(cells)
        return patch if like is None else np.where(np.isnan(patch), like, patch)

    for at in range(0, len(wanted), 5):
        r, c = divmod(int(wanted[at]), SHAPE[1])
        for which in range(2):
            own, total = patch_of(r, c, which), np.zeros(256)
            for i in np.clip(np.arange(r - 2, r + 3), 0, SHAPE[0] - 1):
                for j in np.clip(np.arange(c - 2, c + 3), 0, SHAPE[1] - 1):
                    total += answers(patch_of(i, j, which, own)) / 25
            expected = (total - single.mean(axis=0)) / single.std(axis=0)
            np.testing.assert_allclose(found[at, which], expected, atol=5e-3)


def test_places_are_the_centres_of_pixels(
    cube: Cube, data: dict[str, xr.Dataset], points: tuple[np.ndarray, np.ndarray], made: Made
) -> None:
    """Up to scale and shift: sine and cosine of longitude and latitude, then metres above the sea."""
    row, column = points
    to_degrees = Transformer.from_crs("EPSG:32633", "EPSG:4326", always_xy=True)
    lon, lat = np.radians(to_degrees.transform(CORNER[0] + 10.0 * column + 5, CORNER[1] - 10.0 * row - 5))
    height = data["glo-30"]["elevation"].values[0, row // 3, column // 3]
    for index, true in enumerate((np.sin(lon), np.cos(lon), np.sin(lat), np.cos(lat), height)):
        assert abs(np.corrcoef(made["xyz"][:, 0, index], true)[0, 1]) > 1 - 1e-6
    np.testing.assert_array_equal(made["xy"], made["xyz"][..., :4])
    np.testing.assert_array_equal(made["xyz"][:, 0], made["xyz"][:, 1])
    everywhere = np.divmod(np.arange(SHAPE[0] * SHAPE[1]), SHAPE[1])
    whole = baselines.designed(cube, ["xyz"], *everywhere, [YEAR])["xyz"][:, 0]
    np.testing.assert_allclose(whole.mean(axis=0), 0, atol=0.1)  # of one scale, so that none drowns the others
    np.testing.assert_allclose(whole.std(axis=0), 1, atol=0.1)


# --- gaps -----------------------------------------------------------------------------------------------------


def test_shapes_and_what_is_never_seen(made: Made) -> None:
    sizes = {name: values.shape[2] for name, values in made.items()}
    assert list(sizes) == list(DESIGNED)
    assert sizes == {
        "xy": 4,
        "xyz": 5,
        "composite": 5 + 2 + 6,
        "percentiles": 12 * 5,  # five colours, three indices, two polarisations, their ratio, one thermal
        "harmonics": 12 * 9,
        "raw": 12 * 24,
        "pca": 64,
        "mosaiks": 256,
    }
    for name, values in made.items():
        assert values.dtype == np.float32
        blind = np.isnan(values)
        assert (blind.all(axis=2) == blind.any(axis=2)).all(), "a row is there or not"
        assert blind[0].all() == (name not in SEEN_EVEN_IF_BLIND)  # the hole
        assert not blind[1:8].any()
        assert name in SEEN_EVEN_IF_BLIND or np.nanstd(values[8:, 0], axis=0).min() > 0.02


def test_one_frame_is_the_level_of_all_times(data: dict[str, xr.Dataset], made: Made) -> None:
    """No trend, no season, no spread: neither inside of its period nor far from it."""
    colours = by_hand(data, *ONCE)[0]
    assert {len(frames) for frames in colours} == {1}
    level = np.array([frames[0][1] for frames in colours])
    for which in range(2):
        at = {name: made[name][1, which] for name in OF_TIME}
        np.testing.assert_allclose(at["composite"][:5], level[:5], atol=1e-5)
        np.testing.assert_allclose(at["percentiles"].reshape(12, 5)[:8], level[:, None].repeat(5, axis=1), atol=1e-4)
        np.testing.assert_allclose(at["raw"].reshape(12, 24)[:8], level[:, None].repeat(24, axis=1), atol=1e-4)
        np.testing.assert_allclose(at["harmonics"].reshape(12, 9)[:8, 0], level, atol=1e-4)
        np.testing.assert_allclose(at["harmonics"].reshape(12, 9)[:8, 1:], 0, atol=1e-4)


def test_what_a_pixel_lacks_takes_its_usual_value(made: Made) -> None:
    radar, landsat = ({name: made[name][at, 0] for name in OF_TIME} for at in (2, 3))
    for name, size in (("composite", 1), ("percentiles", 5), ("harmonics", 9), ("raw", 24)):
        first = 5 if name == "composite" else 8
        count = 2 if name == "composite" else 3
        assert (radar[name][: first * size] == 0).all()
        assert (radar[name][first * size : (first + count) * size] != 0).any()
        assert (landsat[name][first * size : (first + count) * size] == 0).all()
    assert (landsat["composite"][:5] == 0).all()  # its own bands are apart, in a composite of bands
    assert (landsat["percentiles"][:25] != 0).all()


def test_a_gap_is_a_straight_line_and_an_end_is_level() -> None:
    times = np.concatenate([np.linspace(0, 0.25, 60), np.linspace(0.6, 0.7, 60)])
    values = np.where(times < 0.5, 0.0, 1.0)[None, None].astype("float32")
    when = (YEAR.start + times * (YEAR.end - YEAR.start)).astype("int64")
    found = season.regular(series.Series(when, values), YEAR, 24)[0, 0]
    np.testing.assert_allclose(found[:5], 0, atol=0.1)
    assert (np.diff(found[6:14]) > 0.05).all()
    np.testing.assert_allclose(found[15:], 1, atol=0.15)


def test_twelve_frames_a_year_do_not_explode() -> None:
    """Eight coefficients on a single winter's five frames would, without damping."""
    rng = np.random.default_rng(0)
    days = np.array([1, 3, 8, 20, 40])
    values = rng.standard_normal((50, 3, 5)).astype("float32")
    held = series.Series(YEAR.start + days * DAY, values)
    assert np.abs(season.harmonics(held, YEAR)).max() < np.abs(values).max() + 0.5


def test_a_cube_without_a_source_has_fewer_channels(cube: Cube, points: tuple[np.ndarray, np.ndarray]) -> None:
    channels = {"sentinel-2": 8, "sentinel-1": 3, "landsat": 9}
    for name in channels:
        alone = replace(cube, sources={name: cube.sources[name]})
        found = baselines.designed(alone, DESIGNED, *points, [SPRING])
        assert set(found) == set(DESIGNED) - {"xyz"}
        assert found["percentiles"].shape[2] == 5 * channels[name]
        assert np.isfinite(found["mosaiks"][8:]).any()
    found = baselines.designed(without(cube, *channels), DESIGNED, *points, [SPRING])
    assert set(found) == {"xy", "xyz"}


def test_statistics_that_differ_keep_sensors_apart(cube: Cube, points: tuple[np.ndarray, np.ndarray]) -> None:
    """Top-of-atmosphere reflectance is brighter in blue than what Landsat's product says of the same ground."""
    other = replace(cube.sources["sentinel-2"], source=SOURCES["sentinel-2"].of("sentinel-2-l1c"))
    toa = replace(cube, sources={**cube.sources, "sentinel-2": other})
    found = baselines.designed(toa, ["percentiles"], *points, [YEAR])["percentiles"]
    assert found.shape[2] == 5 * (8 + 3 + 9)


def test_like_another_cube(cube: Cube, points: tuple[np.ndarray, np.ndarray], made: Made) -> None:
    """A cube that lacks a source answers as its whole self would, had that source never seen anything."""
    missing = without(cube, "sentinel-1")
    found = baselines.designed(missing, DESIGNED, *points, [YEAR, SPRING], like=cube)
    blind = replace(cube.sources["sentinel-1"], delivered=np.zeros_like(cube.sources["sentinel-1"].delivered))
    same = replace(cube, sources={**cube.sources, "sentinel-1": blind})
    expected = baselines.designed(same, DESIGNED, *points, [YEAR, SPRING], like=cube)
    for name in DESIGNED:
        assert found[name].shape == made[name].shape
        np.testing.assert_array_equal(found[name], expected[name])
    raw, before = found["raw"][4:], made["raw"][4:]
    lit = np.isfinite(raw).all(axis=(1, 2))  # by an optical sensor
    assert lit.sum() > 40
    assert (raw[lit][..., 8 * 24 : 11 * 24] == 0).all()
    np.testing.assert_array_equal(raw[lit][..., : 8 * 24], before[lit][..., : 8 * 24])


# --- the same, however it is asked ----------------------------------------------------------------------------


def test_seeds_decide_what_is_learned_and_nothing_else(
    cube: Cube, points: tuple[np.ndarray, np.ndarray], made: Made
) -> None:
    again, other = (baselines.designed(cube, DESIGNED, *points, [YEAR, SPRING], seed=seed) for seed in (0, 1))
    for name in DESIGNED:
        np.testing.assert_array_equal(again[name], made[name])
        assert np.array_equal(other[name], made[name], equal_nan=True) == (name in OF_TIME)


def test_order_repetition_and_company_of_points_change_nothing(
    cube: Cube, points: tuple[np.ndarray, np.ndarray], made: Made
) -> None:
    order = np.random.default_rng(2).permutation(np.r_[np.arange(len(points[0])), 3, 3, 9])
    shuffled = baselines.designed(cube, DESIGNED, points[0][order], points[1][order], [YEAR, SPRING])
    alone = baselines.designed(cube, DESIGNED, points[0][8:9], points[1][8:9], [YEAR, SPRING])
    for name in DESIGNED:
        np.testing.assert_array_equal(shuffled[name], made[name][order])
        np.testing.assert_allclose(alone[name], made[name][8:9], atol=1e-4)


def test_blocks_and_chunks_change_nothing(
    cube: Cube, points: tuple[np.ndarray, np.ndarray], made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(series, "CHUNK", 16)
    monkeypatch.setattr(series, "_BLOCK", 5)
    monkeypatch.setattr(seen, "_AT_ONCE", 7)
    pieces = baselines.designed(cube, DESIGNED, *points, [YEAR, SPRING])
    for name in DESIGNED:
        np.testing.assert_allclose(pieces[name], made[name], atol=2e-4)


def test_each_baseline_alone_is_what_it_is_among_all(
    cube: Cube, points: tuple[np.ndarray, np.ndarray], made: Made
) -> None:
    for name in DESIGNED:
        found = baselines.designed(cube, [name, name], *points, [YEAR, SPRING])
        assert list(found) == [name]
        np.testing.assert_allclose(found[name], made[name], atol=1e-4)


def test_a_store_says_what_memory_says(
    data: dict[str, xr.Dataset], points: tuple[np.ndarray, np.ndarray], made: Made, tmp_path: Path
) -> None:
    stored = open_cube(write_cube(tmp_path / "cube.zarr", data, YEAR))
    found = baselines.designed(stored, DESIGNED, *points, [YEAR, SPRING])
    for name in DESIGNED:
        np.testing.assert_array_equal(found[name], made[name])


def test_the_grid_is_as_fine_as_the_longest_period_asks() -> None:
    months = [Period.parse("2023-03"), Period.parse("2023-06")]
    assert season.steps_of(months) == 6
    assert season.steps_of([*months, YEAR]) == 24
    assert season.steps_of([Period.parse("2022:2023")]) == 48


def test_an_unknown_name_is_refused(cube: Cube, points: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(BadInput, match=r"unknown baseline 'harmonic' \(did you mean harmonics\?"):
        baselines.designed(cube, ["harmonic"], *points, [YEAR])


# --- on real months -------------------------------------------------------------------------------------------


def test_belgian_months_tell_crops_from_the_rest(real: Path) -> None:
    """20 months of Sentinel-2 and Sentinel-1; labels are WorldCereal's product, a map made by a model: weak."""
    import belgium

    months = belgium.months(next((real / "belgium-monthly").glob("WORLDCEREAL-INPUTS-10m_belgium_*.nc")))
    cube, table = cube_of(belgium.sources(months), belgium.period(months)), belgium.labels(months)
    to_grid = Transformer.from_crs("EPSG:4326", "EPSG:32631", always_xy=True)
    x, y = to_grid.transform(table["x"].to_numpy(), table["y"].to_numpy())
    affine = cube.grid.transform
    row, column = (np.floor((a - b) / c).astype(int) for a, b, c in ((y, affine.f, affine.e), (x, affine.c, affine.a)))
    found = baselines.designed(cube, DESIGNED, row, column, [Period.parse("2021")])
    assert set(found) == set(DESIGNED) - {"xyz"}
    features = {name: values[:, 0] for name, values in found.items()}
    assert all(np.isfinite(values).all() for values in features.values())
    names, codes = np.unique(table["label"].to_numpy().astype(str), return_inverse=True)
    labels = probe.Labels(table["x"].to_numpy(), table["y"].to_numpy(), codes, tuple(names), "class")
    done = probe.evaluate(
        features, labels, task="cereals", probes=("knn3", "linear"), shots=("max",), block=100, max_folds=5
    )
    score = {(one.field, one.probe): one.mean for one in done.scores if one.metric == "balanced_accuracy"}
    for name in features:
        assert max(score[name, "knn3"], score[name, "linear"]) > (0 if name == "xy" else 1.2 / len(names)), score
    assert max(score["harmonics", "knn3"], score["harmonics", "linear"]) > 0.6
