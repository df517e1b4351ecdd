"""Labels are read as they stand, splits never leak, trials follow the protocol, probes equal scikit-learn's."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression, RidgeClassifier
from sklearn.metrics import balanced_accuracy_score, f1_score, mean_absolute_error, r2_score
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

from aefcli.errors import BadInput
from aefcli.probe import PROBES, Labels, blocks, evaluate, find_labels, fit, folds, possible, read_labels
from aefcli.probe.split import bins, plan_split
from aefcli.probe.trial import Trial

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT.parent / "shared" / "data" / "aef"
DAY = 86_400_000


def classes(sizes, seed=0, extent=1.0, **columns):
    """Labels with classes of these sizes at random places in a square of `extent` degrees."""
    rng = np.random.default_rng(seed)
    code = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    lon, lat = rng.uniform(10, 10 + extent, len(code)), rng.uniform(45, 45 + extent, len(code))
    return Labels(lon, lat, code, tuple("abcdefghijkl"[: len(sizes)]), "class", **columns)


def clouds(code, noise, seed=0, dims=16):
    """One Gaussian cloud per class, float64 (n, dims)."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(code.max() + 1, dims))
    return centres[code] + noise * rng.normal(size=(len(code), dims))


def by(scores, **wanted):
    """The one score that has these fields."""
    found = [score for score in scores if all(getattr(score, key) == value for key, value in wanted.items())]
    assert len(found) == 1, found
    return found[0]


# --- reading --------------------------------------------------------------------------------------------------


def frame(**changed):
    columns = {
        "x": [8.5, 8.6, -179.5, 8.8],
        "y": [47.1, 47.2, -16.5, 47.4],
        "label": [7, 3, 7, 3],
        "label_name": ["maize", "forest", "maize", "forest"],
        "valid_time_start_ms": [1_000 * DAY, 1_000 * DAY, 2_000 * DAY, 2_000 * DAY],
        "valid_time_end_ms": [1_000 * DAY, 1_010 * DAY, 2_000 * DAY, 2_365 * DAY],
        "site": ["p", "q", "p", "r"],
        "split": ["train", "test", "train", "test"],
    }
    columns.update(changed)
    return pd.DataFrame({name: column for name, column in columns.items() if column is not None})


def points(table, crs):
    geometry = gpd.points_from_xy(table["x"], table["y"], crs="EPSG:4326")
    return gpd.GeoDataFrame(table.drop(columns=["x", "y"]), geometry=geometry).to_crs(crs)


def write(table, path):
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    elif path.suffix == ".geojson":
        table.to_file(path, driver="GeoJSON", engine="pyogrio")
    else:
        table.to_parquet(path)
    return path


@pytest.mark.parametrize("form", ["csv", "named", "parquet", "geojson", "geoparquet"])
def test_every_format_reads_the_same(tmp_path, form):
    table = frame()
    if form == "csv":
        path = write(table, tmp_path / "t.csv")
    elif form == "named":
        path = write(table.rename(columns={"x": "longitude", "y": "latitude"}), tmp_path / "t.csv")
    elif form == "parquet":
        path = write(table, tmp_path / "t.parquet")
    elif form == "geojson":
        path = write(points(table, "EPSG:4326"), tmp_path / "t.geojson")
    else:
        path = write(points(table, "EPSG:3832"), tmp_path / "t.parquet")  # a Mercator in metres
    labels = read_labels(path)
    np.testing.assert_allclose(labels.lon, table["x"], atol=1e-9)
    np.testing.assert_allclose(labels.lat, table["y"], atol=1e-9)
    assert (labels.kind, labels.names) == ("class", ("forest", "maize"))
    assert labels.value.dtype == np.int64
    assert labels.value.tolist() == [1, 0, 1, 0]
    assert labels.site.tolist() == ["p", "q", "p", "r"]
    assert labels.split.tolist() == ["train", "test", "train", "test"]
    # instants are widened to 4 days around them, periods stay
    assert (labels.valid_start // DAY).tolist() == [998, 1_000, 1_998, 2_000]
    assert (labels.valid_end // DAY).tolist() == [1_002, 1_010, 2_002, 2_365]
    assert labels.valid_start.dtype == labels.valid_end.dtype == np.int64


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".geojson"])
@pytest.mark.parametrize(
    ("column", "kind", "names", "value"),
    [
        ([10, 2, 10, 2], "class", ("2", "10"), [1, 0, 1, 0]),
        (["oak", " elm", "oak", "ash"], "class", ("ash", "elm", "oak"), [2, 1, 2, 0]),
        ([True, False, True, True], "class", ("False", "True"), [1, 0, 1, 1]),
        ([0.5, 1.0, 2.0, -3.0], "value", (), [0.5, 1.0, 2.0, -3.0]),
    ],
)
def test_the_kind_follows_the_type_of_the_label(tmp_path, suffix, column, kind, names, value):
    table = frame(label=column, label_name=None, site=[4, 4, 5, 5], split=None)
    table = points(table, "EPSG:4326") if suffix == ".geojson" else table
    labels = read_labels(write(table, tmp_path / f"t{suffix}"))
    assert (labels.kind, labels.names, labels.value.tolist()) == (kind, names, value)
    assert labels.value.dtype == (np.float64 if kind == "value" else np.int64)
    assert labels.site.tolist() == [4, 4, 5, 5]
    assert labels.split is None


def test_optional_columns_may_be_absent_or_empty(tmp_path):
    empty = frame(site=[None] * 4, split=None, valid_time_start_ms=None, valid_time_end_ms=None, label_name=[""] * 4)
    labels = read_labels(write(empty, tmp_path / "t.csv"))
    assert labels.site is labels.split is labels.valid_start is labels.valid_end is None
    assert labels.names == ("3", "7")


def test_subset_keeps_codes_and_names(tmp_path):
    labels = read_labels(write(frame(), tmp_path / "t.csv"))
    part = labels.subset(np.array([False, True, False, True]))
    assert (len(labels), len(part)) == (4, 2)
    assert part.value.tolist() == [0, 0]
    assert part.names == labels.names
    assert part.site.tolist() == ["q", "r"]
    assert part.valid_end.tolist() == labels.valid_end[[1, 3]].tolist()
    assert labels.subset(np.array([2])).lon.tolist() == [-179.5]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"label": None}, r"no column 'label'; its columns: x, y, label_name"),
        ({"x": None}, r"no coordinates; its columns: y, label"),
        ({"label": [1, None, 2, None]}, r"2 of 4 rows have no label or no coordinates"),
        ({"label": ["a", " ", "b", "b"]}, r"1 of 4 rows"),
        ({"label": [0.1, np.inf, 0.2, 0.3]}, r"1 of 4 rows"),
        ({"y": [47.0, None, np.nan, 1.0]}, r"2 of 4 rows"),
        ({"x": [8.0, 181.0, -500.0, 1.0]}, r"2 points lie outside.* first at 181, 47.2 in row 1"),
        ({"y": [8.0, 90.5, -9.0, 1.0]}, r"1 points lie outside"),
        ({"x": [8.0, np.inf, -9.0, 1.0]}, r"1 points lie outside.* first at inf, 47.2 in row 1"),
        ({"label": [5, 5, 5, 5], "label_name": None}, r"all 4 labels are 5 \(.*two classes"),
        ({"label": [0.5, 0.5, 0.5, 0.5]}, r"all 4 labels are 0.5 \(.*two values"),
        ({"label_name": ["maize", "forest", "corn", "forest"]}, r"label 7 has 2 names: corn, maize"),
        ({"valid_time_end_ms": [0, 0, 0, 0]}, r"4 of 4 rows end before they start"),
        ({"valid_time_end_ms": None}, r"one end of the valid time, and no valid_time_end_ms"),
        ({"valid_time_end_ms": [1, None, 2, 3]}, r"1 of 4 rows have no valid_time_end_ms"),
        ({"valid_time_start_ms": ["2023-01-01"] * 4}, r"valid_time_start_ms is no number of milliseconds"),
        ({"valid_time_end_ms": [1_700_000_000_000_000] * 4}, r"valid_time_end_ms is no number of mill"),  # but of micro
        ({"split": ["train", "test", "val", "dev"]}, r"says dev, val \(its words are train and test"),
        ({"split": ["train", "test", None, "test"]}, r"1 of 4 rows have no split"),
        ({"site": ["p", None, "p", "q"]}, r"1 of 4 rows have no site"),
    ],
)
def test_a_bad_table_is_refused_in_one_line(tmp_path, changed, says):
    path = write(frame(**changed), tmp_path / "t.csv")
    with pytest.raises(BadInput, match=says) as caught:
        read_labels(path)
    assert "\n" not in str(caught.value)


def test_dates_are_no_milliseconds(tmp_path):
    dates = pd.to_datetime(["2023-01-01"] * 4)
    with pytest.raises(BadInput, match="no number of milliseconds"):
        read_labels(write(frame(valid_time_start_ms=dates), tmp_path / "t.parquet"))


def test_a_bad_file_is_refused_in_one_line(tmp_path):
    cases = {
        "absent.csv": (None, "there is no label table"),
        "table.xlsx": (b"PK", "unknown kind of label table '.xlsx'"),
        "empty.csv": (b"", "cannot read"),
        "rowless.csv": (b"x,y,label\n", "no rows"),
        "torn.csv": (b'x,y,label\n1,2,"3', "cannot read"),
        "latin.csv": (b"x,y,label\n1,2,\xff\xfe\n", "cannot read"),
        "text.parquet": (b"this is no parquet file", "cannot read"),
        "text.geojson": (b"{ nor is this GeoJSON", "cannot read"),
    }
    for name, (body, says) in cases.items():
        if body is not None:
            (tmp_path / name).write_bytes(body)
        with pytest.raises(BadInput, match=says) as caught:
            read_labels(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_geometries_must_be_points_with_a_crs(tmp_path):
    table = points(frame(), "EPSG:4326")
    nowhere = gpd.GeoDataFrame(table.drop(columns="geometry"), geometry=list(table.geometry), crs=None)
    with pytest.raises(BadInput, match="has no CRS"):
        read_labels(write(nowhere, tmp_path / "nowhere.parquet"))
    areas = table.to_crs(3857)
    areas["geometry"] = areas.buffer(10)
    with pytest.raises(BadInput, match="holds Polygon; labels are points"):
        read_labels(write(areas, tmp_path / "areas.parquet"))
    astray = points(frame(), "EPSG:3857").set_crs("EPSG:32632", allow_override=True)
    astray.geometry = astray.translate(1e12, 1e12)
    with pytest.raises(BadInput, match="4 points lie outside"):
        read_labels(write(astray, tmp_path / "astray.parquet"))
    features = [
        {"type": "Feature", "properties": {"label": label}, "geometry": place}
        for label, place in ((1, {"type": "Point", "coordinates": [8, 47]}), (2, None), (1, None))
    ]
    path = tmp_path / "gaps.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    with pytest.raises(BadInput, match="2 of 3 rows have no label or no coordinates"):
        read_labels(path)


def test_the_usual_names_in_their_order(tmp_path):
    assert find_labels(tmp_path) is None
    for name in ("labels.csv", "labels.geojson", "labels.parquet"):
        (tmp_path / name).touch()
        assert find_labels(tmp_path) == tmp_path / name


# --- splits ---------------------------------------------------------------------------------------------------


def test_folds_as_the_paper_counts_them():
    assert [folds(count) for count in (1, 10, 75, 100)] == [1000, 500, 273, 250]


def test_folds_and_width_at_max():
    plan = lambda sizes: plan_split(classes(sizes), 1280.0)  # noqa: E731
    assert plan([75, 90]).folds("max", None) == plan([75, 90]).folds(1, None) == 273
    assert plan([75, 75]).folds("max", None) == 1  # all classes equally large
    assert plan([75, 75]).folds(10, None) == 273
    assert plan([199, 200]).folds("max", None) == folds(199)
    assert plan([200, 201]).folds("max", None) == 1  # the bootstrap is enough
    assert plan([75, 90]).folds("max", 7) == 7
    one_bin = Labels(np.arange(30.0), np.zeros(30), np.arange(30.0), (), "value")
    assert plan_split(one_bin, 1280.0).folds("max", None) == folds(30)  # one bin is no balance
    assert [plan([n, 2_000]).width("max") for n in (2, 5, 10, 75, 499, 500, 501, 1_000)] == [
        *(1, 3, 6, 45, 299, 300, 300, 300)
    ]
    assert plan([75, 90]).width(10) == 10


def test_blocks_hold_their_size_and_never_divide():
    rng = np.random.default_rng(0)
    for latitude in (0.0, 45.0, -75.0):
        lon, lat = rng.uniform(20, 20.5, 4_000), rng.uniform(latitude, latitude + 0.2, 4_000)
        block = blocks(lon, lat, 1280.0)
        for one in np.unique(block):
            inside = block == one
            high = np.ptp(lat[inside]) * 111_195
            wide = np.ptp(lon[inside]) * 111_195 * np.cos(np.radians(lat[inside].mean()))
            assert max(high, wide) < 1_290
        area = 0.5 * 0.2 * 111_195**2 * np.cos(np.radians(latitude + 0.1))
        assert area / 1280**2 < len(np.unique(block)) < 1.35 * area / 1280**2
    # pixels 10 m apart share a block, but for the few on either side of a border
    lon, lat = rng.uniform(20, 21, 2_000), rng.uniform(45, 46, 2_000)
    both = blocks(np.r_[lon, lon], np.r_[lat, lat + 10 / 111_195], 1280.0)
    assert 0.97 < (both[:2_000] == both[2_000:]).mean() < 1.0
    with pytest.raises(BadInput, match="blocks of 0 m"):
        blocks(lon, lat, 0.0)


@pytest.mark.parametrize("how", ["site", "block"])
def test_no_group_is_on_both_sides(how):
    site = np.random.default_rng(1).integers(0, 12, 300) if how == "site" else None
    labels = classes([120, 100, 80], extent=0.1, site=site)
    plan = plan_split(labels, 1280.0)
    group = site if how == "site" else blocks(labels.lon, labels.lat, 1280.0)
    assert plan.how == how
    assert len(np.unique(group)) == len(plan.held) > 10
    shares = []
    for fold in range(50):
        for shots in (1, 10, "max"):
            train, test = plan.draw(shots, np.random.default_rng(fold))
            pool = np.isin(group, group[test], invert=True)
            assert not set(group[train]) & set(group[test])
            # the test set is all of its groups, the training set is drawn from all others, and balanced
            assert len(test) == np.isin(group, group[test]).sum()
            assert set(train) <= set(np.flatnonzero(pool))
            assert set(labels.value[test]) == {0, 1, 2}
            drawn = np.bincount(labels.value[train])
            if shots == "max":
                assert len(set(drawn)) == 1
                assert drawn[0] == min(48, *np.bincount(labels.value[pool]))
            else:
                assert drawn.tolist() == [shots] * 3
            shares.append(pool.mean())
    assert 0.55 < np.mean(shares) < 0.65


def searched(plan, need, rng):
    """The groups of the first shuffle with `need` points of every stratum to train on and one to test; its number."""
    for attempt in range(1, 1_000):
        order = rng.permutation(len(plan.held))
        shares = [plan.held[order[:count]].sum() / plan.held.sum() for count in range(1, len(order))]
        groups = order[: 1 + np.argmin(np.abs(np.array(shares) - 0.6))]
        inside = plan.held[groups].sum(axis=0)
        if (inside >= need).all() and (inside < plan.sizes).all():
            return set(groups.tolist()), attempt
    raise AssertionError("no shuffle is good")


@pytest.mark.parametrize(("shots", "need"), [(10, 10), ("max", 8)])
def test_the_search_takes_the_first_good_shuffle(shots, need):
    """Not the best of many, which would choose the split by its labels."""
    site = np.random.default_rng(2).integers(0, 8, 167)
    site[classes([80, 60, 27]).value == 2] = np.repeat([0, 1, 2, 3], [12, 8, 5, 2])
    plan = plan_split(classes([80, 60, 27], site=site), 1280.0)
    assert plan.width("max") == 16
    attempts = []
    for seed in range(40):
        expected, attempt = searched(plan, need, np.random.default_rng(seed))
        _, test = plan.draw(shots, np.random.default_rng(seed))
        assert set(range(8)) - set(plan.group[test].tolist()) == expected
        attempts.append(attempt)
    assert attempts.count(1) > 5  # a shuffle that would do comes first
    assert max(attempts) > 1  # and one that would not is passed over


def test_max_settles_for_the_best_of_fifty_shuffles():
    """Where half of what `max` asks for cannot be had: sites of 30 + 2, 2 + 30 and 3 + 3 points."""
    code = np.repeat([0, 1, 0, 1, 0, 1], [30, 2, 2, 30, 3, 3])
    site = np.repeat([0, 0, 1, 1, 2, 2], [30, 2, 2, 30, 3, 3])
    plan = plan_split(Labels(np.arange(70.0), np.zeros(70), code, ("a", "b"), "class", site=site), 1280.0)
    for seed in range(20):
        train, test = plan.draw("max", np.random.default_rng(seed))
        assert set(plan.group[test]) in ({0}, {1})  # the least site always helps to train
        assert np.bincount(code[train]).tolist() == [5, 5]


def test_a_given_split_is_honoured():
    labels = classes([60, 40])
    split = np.where(np.arange(100) % 4 == 0, "test", "train")
    plan = plan_split(Labels(labels.lon, labels.lat, labels.value, labels.names, "class", split=split), 1280.0)
    first, again = (plan.draw(10, np.random.default_rng(fold)) for fold in (0, 1))
    assert first[1].tolist() == again[1].tolist() == list(range(0, 100, 4))
    assert (split[first[0]] == "train").all()
    assert first[0].tolist() != again[0].tolist()


def test_a_place_in_both_splits_is_refused():
    labels = classes([60, 40])
    split = np.where(np.arange(100) % 4 == 0, "test", "train")
    lon, lat = labels.lon.copy(), labels.lat.copy()
    lon[9], lat[9] = 10.123456, 45.5
    lon[8], lat[8] = lon[9] - 1e-12, lat[9] + 1e-12  # what a reprojection leaves
    shared = Labels(lon, lat, labels.value, labels.names, "class", split=split)
    with pytest.raises(BadInput, match=rf"share 1 locations, the first at {lon[9]:.6f}"):
        evaluate({"f": np.zeros((100, 2))}, shared, task="t")
    with pytest.raises(BadInput, match="all 100 points are in the test split"):
        evaluate(
            {"f": np.zeros((100, 2))},
            Labels(lon, lat, labels.value, labels.names, "class", split=np.full(100, "test")),
            task="t",
        )


def refused(labels, says, **options):
    with pytest.raises(BadInput, match=says) as caught:
        evaluate({"f": np.zeros((len(labels), 2))}, labels, task="t", **options)
    assert "\n" not in str(caught.value)


def test_splits_that_cannot_be_made_name_the_reason():
    refused(classes([30, 30], extent=0.0001), r"all 60 points lie in one block of 1280 m.*smaller blocks")
    refused(classes([30, 30], site=np.full(60, "s")), r"all 60 points lie in one site.*remove the column 'site'")
    labels = classes([30, 30, 30])
    site = np.where(labels.value == 1, 0, np.arange(90) % 5 + 1)
    clustered = classes([30, 30, 30], site=site)
    refused(clustered, r"'b' 1 points to train on.* lie in 1 of 6 sites", shots=["max"])
    refused(classes([40, 10]), r"10 shots: 'b' has 10 points and one has to stay.*at most 9 shots", shots=[1, 10])
    refused(classes([40, 1]), r"'b' has 1 point and .*nothing to learn it from", shots=["max"])
    only = classes([40, 40])
    refused(only.subset(only.value == 0), r"all 40 labels are a")
    split = np.where((labels.value == 2) & (np.arange(90) > 20), "test", "train")
    split[:10] = "test"
    few = classes([30, 30, 30], split=split)
    count = int(((labels.value == 2) & (split == "train")).sum())
    assert 0 < count < 10
    refused(few, rf"10 shots: 'c' has {count} points in the train split; at most {count} shots", shots=[10])


def test_possible_shots_are_never_refused():
    given = np.where(np.arange(80) % 2, "test", "train")
    cases = [classes([40, 20]), classes([40, 19]), classes([40, 2]), classes([60, 20], split=given)]
    cases += [Labels(np.arange(10.0), np.zeros(10), np.arange(10.0), (), "value")]  # one bin
    found = [possible(labels, (1, 10, "max")) for labels in cases]
    train = np.bincount(cases[3].value[given == "train"]).min()
    assert 1 < train < 20
    assert found == [[1, 10, "max"], [1, "max"], [1, "max"], [1, 10, "max"] if train >= 10 else [1, "max"], [1, "max"]]
    for labels, shots in zip(cases, found, strict=True):
        plan = plan_split(labels, 1280.0)
        for level in shots:
            plan.check(level)


def test_requests_that_make_no_sense():
    labels = classes([40, 40])
    refused(labels, r"unknown probe 'knn2'.*did you mean knn", probes=["knn2"])
    refused(labels, r"0 shots", shots=[0])
    refused(labels, r"'most' shots", shots=["most"])
    refused(labels, r"seed -1", seed=-1)
    refused(labels, r"at most 0 folds", max_folds=0)
    with pytest.raises(AssertionError, match="not finite"):
        evaluate({"f": np.full((80, 2), np.nan)}, labels, task="t")
    with pytest.raises(AssertionError, match="79 rows"):
        evaluate({"f": np.zeros((79, 2))}, labels, task="t")


# --- probes against scikit-learn --------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 12])
@pytest.mark.parametrize("shots", [1, 10, 60])
def test_class_probes_equal_sklearn(count, shots):
    for seed in range(5):
        y = np.repeat(np.arange(count), shots)
        x, test = clouds(y, 2.0, seed), clouds(np.repeat(np.arange(count), 100), 2.0, seed + 50)
        ours = fit.linear(x, y, test, "class")
        rest = LinearRegression().fit(x, 2.0 * np.eye(count)[y] - 1).predict(test)
        np.testing.assert_array_equal(ours, rest.argmax(axis=1))
        if len(x) > x.shape[1] + 1:  # with fewer rows RidgeClassifier divides by rounding: see below
            ridge = RidgeClassifier(alpha=0, solver="svd").fit(x, y).predict(test)
            np.testing.assert_array_equal(ours, ridge)
        near = y[fit.neighbours(x, test, 3)]
        for k in {1, min(3, len(x))}:
            knn = KNeighborsClassifier(k, algorithm="brute").fit(x, y).predict(test)
            np.testing.assert_array_equal(fit.vote(near[:, :k], "class"), knn)
        assert len(set(ours)) == count


def test_neighbours_differ_from_sklearn_only_where_two_are_equally_near():
    """On quantised features one search for three serves k = 1 as well as a search of its own."""
    rng = np.random.default_rng(0)
    x, test, y = rng.integers(-3, 4, (200, 3)), rng.integers(-3, 4, (300, 3)), rng.integers(0, 4, 200)
    near = fit.neighbours(x.astype(float), test.astype(float), 3)
    distance = np.linalg.norm(test[:, None] - x[None], axis=2)
    np.testing.assert_allclose(np.take_along_axis(distance, near, 1), np.sort(distance, axis=1)[:, :3])
    own = KNeighborsClassifier(1, algorithm="brute").fit(x.astype(float), y).predict(test.astype(float))
    tied = (np.sort(distance, axis=1)[:, 0] == np.sort(distance, axis=1)[:, 1]).nonzero()[0]
    assert set(np.flatnonzero(y[near[:, 0]] != own)) <= set(tied)


def test_value_probes_equal_sklearn():
    rng = np.random.default_rng(0)
    x, test = rng.normal(size=(90, 16)), rng.normal(size=(70, 16))
    y = x @ rng.normal(size=16) + 3 + rng.normal(size=90)
    np.testing.assert_allclose(fit.linear(x, y, test, "value"), LinearRegression().fit(x, y).predict(test))
    near = y[fit.neighbours(x, test, 3)]
    for k in (1, 3):
        expected = KNeighborsRegressor(k, algorithm="brute").fit(x, y).predict(test)
        np.testing.assert_allclose(fit.vote(near[:, :k], "value"), expected)


def test_the_linear_probe_does_not_depend_on_the_unit_of_the_features():
    """With fewer rows than columns, scikit-learn's does: its least singular value is rounding, kept or dropped."""
    code = np.repeat(np.arange(12), 60)
    wrong, ours = 0, 0
    for seed in range(20):
        x, test = clouds(np.arange(12), 1.0, seed, 64), clouds(code, 1.0, seed, 64)
        y = np.arange(12)
        centred = np.linalg.pinv(x - x.mean(0), rcond=1e-10) @ (2.0 * np.eye(12) - 2 / 12)
        exact = ((test - x.mean(0)) @ centred).argmax(1)
        wrong += (RidgeClassifier(alpha=0, solver="svd").fit(x * 3e4, y).predict(test * 3e4) != exact).sum()
        ours += (fit.linear(x * 3e4, y, test * 3e4, "class") != exact).sum()
        ours += (fit.linear(x * 3e4 + 1e4, y, test * 3e4 + 1e4, "class") != exact).sum()
    assert ours == 0
    assert wrong > 100  # else the scaling is no longer needed


def test_the_metrics_equal_sklearn():
    rng = np.random.default_rng(0)
    truth, guess = rng.integers(0, 4, 300), rng.integers(0, 6, 300)  # classes 4 and 5 are guessed, never true
    (found,) = fit.measure(truth, guess, "class")
    recalls = [(guess[truth == c] == c).mean() for c in range(4)]
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        assert balanced_accuracy_score(truth, guess) == pytest.approx(np.mean(recalls))
    np.testing.assert_allclose(found, [np.mean(recalls), f1_score(truth, guess, average="macro", labels=range(4))])
    value, said = rng.normal(size=300), rng.normal(size=300)
    (found,) = fit.measure(value, said, "value")
    np.testing.assert_allclose(found, [r2_score(value, said), mean_absolute_error(value, said)])
    assert fit.measure(np.ones(3), np.ones(3), "value").tolist() == [[1.0, 0.0]]
    assert fit.measure(np.full(3, 0.1), np.zeros(3), "value")[0, 0] == 0.0


def test_the_bootstrap_equals_one_by_rows(monkeypatch):
    monkeypatch.setattr(fit, "BOOTSTRAP", 4_000)
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2], [60, 25, 15])
    guess = np.where(rng.random(100) < 0.7, truth, rng.integers(0, 3, 100))
    value, said = rng.normal(size=100), rng.normal(size=100)
    by_rows = [], []
    for _ in range(4_000):
        row = rng.integers(0, 100, 100)
        by_rows[0].append(fit.measure(truth[row], guess[row], "class")[0])
        by_rows[1].append(fit.measure(value[row], said[row], "value")[0])
    ours = fit.measure(truth, guess, "class", rng), fit.measure(value, said, "value", rng)
    for drawn, expected in zip(ours, by_rows, strict=True):
        spread = np.std(expected, axis=0)
        np.testing.assert_allclose(drawn.mean(axis=0), np.mean(expected, axis=0), atol=0.1 * spread.min())
        np.testing.assert_allclose(drawn.std(axis=0), spread, rtol=0.08)


# --- trials ---------------------------------------------------------------------------------------------------


def test_features_that_leak_the_class_are_perfect_and_noise_is_at_chance():
    labels = classes([70, 60, 50, 80])
    noise = np.random.default_rng(5).normal(size=(len(labels), 8))
    fields = {"leak": np.eye(4)[labels.value] + 1e-3 * noise[:, :4], "noise": noise}
    scores, report = evaluate(fields, labels, task="made-up", max_folds=40, seed=3)
    assert len(scores) == 2 * 3 * 3 * 2
    for score in scores:
        if score.field == "leak" and not (score.probe == "knn3" and score.shots == 1):
            assert (score.mean, score.std) == (1.0, 0.0)
        elif score.field == "noise" and score.metric == "balanced_accuracy":
            assert score.mean == pytest.approx(0.25, abs=0.04)
    assert by(scores, field="leak", probe="knn1", shots=10, metric="macro_f1").as_dict() == {
        **{"field": "leak", "task": "made-up", "probe": "knn1", "shots": 10, "metric": "macro_f1"},
        **{"mean": 1.0, "std": 0.0, "n_train": 40, "n_test": 104},
    }
    groups = len(np.unique(blocks(labels.lon, labels.lat, 1280.0)))
    assert report == {
        **{"split": "block", "groups": groups, "folds": {1: 40, 10: 40, "max": 40}, "max_folds": 40},
        **{"bootstrap": 100, "seed": 3, "points": 260, "block": 1280.0},
    }


def test_the_spread_is_that_of_folds_and_bootstraps():
    """At max the bootstraps widen the spread of the folds; one fold alone has theirs."""
    labels = classes([150, 120])
    fields = {"f": clouds(labels.value, 4.0)}
    scores, _ = evaluate(fields, labels, task="t", probes=["linear"], shots=["max"], max_folds=30)
    plan = plan_split(labels, 1280.0)
    trial = Trial(plan, labels.value, "class", ("linear",), 0)
    found = [trial.run(fields, "max", fold).found["f", "linear"] for fold in range(30)]
    assert found[0].shape == (100, 2)
    score = by(scores, metric="balanced_accuracy")
    assert score.std == pytest.approx(np.concatenate(found)[:, 0].std())
    assert score.std > 1.1 * np.std([fold[:, 0].mean() for fold in found])
    low, _ = evaluate(fields, labels, task="t", probes=["linear"], shots=[10], max_folds=30)
    alone = [trial.run(fields, 10, fold).found["f", "linear"][0, 0] for fold in range(30)]
    assert by(low, metric="balanced_accuracy").mean == pytest.approx(np.mean(alone))
    assert by(low, metric="balanced_accuracy").std == pytest.approx(np.std(alone))


def test_the_seed_decides_and_nothing_else():
    labels = classes([40, 30, 50])
    one, two = clouds(labels.value, 2.0, 1), clouds(labels.value, 3.0, 2, dims=5)
    options = {"task": "t", "shots": (1, "max"), "max_folds": 5}
    both, _ = evaluate({"one": one, "second": two}, labels, seed=7, **options)
    again, _ = evaluate({"one": one, "second": two}, labels, seed=7, **options)
    other, _ = evaluate({"one": one, "second": two}, labels, seed=8, **options)
    assert both == again
    assert [score.mean for score in both] != [score.mean for score in other]
    # a field's score stands on its own: the company, the probes and the shots beside it change nothing
    alone, _ = evaluate({"second": two}, labels, task="t", seed=7, probes=["knn3"], shots=["max"], max_folds=5)
    assert alone == [s for s in both if (s.field, s.probe, s.shots) == ("second", "knn3", "max")]
    assert [(s.field, s.probe, s.shots) for s in both[:4]] == [
        *[("one", "knn1", 1)] * 2,
        *[("one", "knn1", "max")] * 2,
    ]


def test_a_class_without_points_is_no_class():
    labels = classes([40, 30, 50])
    part = labels.subset(labels.value != 1)
    scores, _ = evaluate({"f": np.eye(3)[part.value]}, part, task="t", shots=["max"], max_folds=3, probes=["linear"])
    assert by(scores, metric="balanced_accuracy").mean == 1.0


def test_two_classes_at_one_shot_have_but_two_neighbours():
    labels = classes([30, 30])
    scores, _ = evaluate({"f": np.eye(2)[labels.value]}, labels, task="t", shots=[1], probes=["knn3"], max_folds=3)
    assert by(scores, metric="balanced_accuracy").mean == 0.5  # each vote is a tie


def test_regression():
    rng = np.random.default_rng(0)
    value = rng.normal(size=800)
    value[0] = 40.0  # an outlier alone in the last bin
    labels = Labels(rng.uniform(5, 6, 800), rng.uniform(5, 6, 800), value, (), "value")
    exact = np.column_stack([value, rng.normal(size=(800, 3))])
    scores, report = evaluate(
        {"exact": exact, "noise": exact[:, 1:]}, labels, task="t", probes=["knn1", "linear"], max_folds=10
    )
    assert by(scores, field="exact", probe="linear", shots="max", metric="r2").mean == pytest.approx(1.0)
    assert by(scores, field="exact", probe="linear", shots="max", metric="mae").mean < 1e-6
    assert by(scores, field="noise", probe="linear", shots="max", metric="r2").mean < 0.1
    assert 1 <= len(report["bins"]) <= 10
    assert report["folds"]["max"] in (1, 10)


def test_bins_are_equally_spaced_and_none_is_thin():
    value = np.linspace(0, 10, 1_001)
    stratum, names = bins(value)
    assert names[:2] == ("0..1", "1..2")
    assert len(names) == 10
    np.testing.assert_array_equal(stratum, np.minimum(value.astype(int), 9))
    # empty bins in the middle are left out, and a thin one joins its neighbour
    value = np.r_[np.linspace(0, 1, 100), np.linspace(9, 10, 100), [8.5, 8.6]]
    stratum, names = bins(value)
    assert len(names) == 2
    assert np.bincount(stratum).tolist() == [100, 102]
    skewed = np.r_[np.random.default_rng(0).exponential(size=2_000), 30.0]
    stratum, names = bins(skewed)
    assert np.bincount(stratum).min() >= 40
    assert stratum[-1] == len(names) - 1


def test_regression_draws_from_every_bin():
    rng = np.random.default_rng(0)
    value = rng.uniform(0, 10, 1_000)
    labels = Labels(rng.uniform(5, 6, 1_000), rng.uniform(5, 6, 1_000), value, (), "value")
    plan = plan_split(labels, 1280.0)
    train, test = plan.draw(10, rng)
    assert np.histogram(value[train], np.linspace(value.min(), value.max(), 11))[0].tolist() == [10] * 10
    assert not set(train) & set(test)


def test_the_package_loads_nothing_heavy():
    heavy = {"pandas", "geopandas", "sklearn", "scipy", "pyarrow", "torch", "xarray"}
    code = f"import sys, aefcli.probe; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_parts_import_one_way():
    """labels, split, trial in this order, and fit beside them; none reaches for stores or tensors."""
    allowed = {
        "__init__": {"labels", "split", "fit", "trial"},
        "trial": {"labels", "split", "fit"},
        "split": {"labels"},
    }
    files = sorted(Path(fit.__file__).parent.glob("*.py"))
    assert [path.stem for path in files] == ["__init__", "fit", "labels", "split", "trial"]
    for path in files:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
        inner = {name.removeprefix("aefcli.probe.") for name in names if name.startswith("aefcli.probe")}
        assert inner <= allowed.get(path.stem, set())
        outer = {name for name in names if name.startswith("aefcli.")} - {f"aefcli.probe.{name}" for name in inner}
        assert outer <= {"aefcli.errors", "aefcli.table"}
        assert not {name.split(".")[0] for name in names} & {"torch", "xarray"}


# --- real embeddings ------------------------------------------------------------------------------------------


@pytest.mark.skipif(not list(REAL.glob("*.csv")), reason="the shared AlphaEarth samples are not beside the repository")
def test_real_embeddings_tell_land_cover_apart():
    """Dynamic World classes from AlphaEarth's embeddings; 5-fold block CV elsewhere found .67, .69 and .74."""
    table = pd.concat([pd.read_csv(path) for path in sorted(REAL.glob("*.csv"))], ignore_index=True)
    lon, lat = table["longitude"].to_numpy(), table["latitude"].to_numpy()
    code = table["dw_label"].to_numpy(dtype=np.int64)
    labels = Labels(lon, lat, code, tuple(str(label) for label in range(9)), "class")
    fields = {"aef": table[[f"A{band:02}" for band in range(64)]].to_numpy()}
    found = {probe: [] for probe in PROBES}
    for seed in range(5):
        scores, report = evaluate(fields, labels, task="dw", shots=["max"], seed=seed, block=20_000.0)
        assert report["folds"] == {"max": 1}  # 160 points of every class
        for name in PROBES:
            found[name].append(by(scores, probe=name, metric="balanced_accuracy").mean)
    means = {name: float(np.mean(values)) for name, values in found.items()}
    for name, expected in {"knn1": 0.67, "knn3": 0.69, "linear": 0.74}.items():
        assert expected - 0.08 < means[name] < expected + 0.05, means
