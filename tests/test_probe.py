"""Labels are read as they stand, splits never leak, probes equal scikit-learn's."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
from clouds import classes, clouds
from sklearn.linear_model import LinearRegression, Ridge, RidgeClassifier, RidgeCV
from sklearn.metrics import balanced_accuracy_score, f1_score, mean_absolute_error, r2_score
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.preprocessing import StandardScaler

from aefcli.errors import BadInput
from aefcli.probe import PROBES, Labels, blocks, evaluate, find_labels, fit, folds, possible, read_labels, read_points
from aefcli.probe.split import bins, plan_split

DAY = 86_400_000
THEN = 10_000 * DAY  # in 1997
METRES = np.radians(6_371_008.8)  # per degree of latitude


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
    elif path.suffix in (".geojson", ".gpkg"):
        table.to_file(path, driver={".geojson": "GeoJSON", ".gpkg": "GPKG"}[path.suffix], engine="pyogrio")
    else:
        table.to_parquet(path)
    return path


@pytest.mark.parametrize("form", ["csv", "named", "parquet", "geojson", "geoparquet", "gpkg"])
def test_every_format_reads_the_same(tmp_path, form):
    table = frame()
    if form == "csv":
        path = write(table, tmp_path / "t.csv")
    elif form == "named":
        path = write(table.rename(columns={"x": "longitude", "y": "latitude"}), tmp_path / "t.csv")
    elif form == "parquet":
        path = write(table, tmp_path / "t.parquet")
    elif form in ("geojson", "gpkg"):
        path = write(points(table, "EPSG:4326"), tmp_path / f"t.{form}")
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
        ({"x": [8.0, 181.0, -500.0, 1.0]}, r"2 points outside.* first at 181, 47.2 in row 1"),
        ({"y": [8.0, 90.5, -9.0, 1.0]}, r"1 point outside"),
        ({"x": [8.0, np.inf, -9.0, 1.0]}, r"1 point outside.* first at inf, 47.2 in row 1"),
        ({"label": [5, 5, 5, 5], "label_name": None}, r"all 4 labels are 5 \(.*two classes"),
        ({"label": [0.5, 0.5, 0.5, 0.5]}, r"all 4 labels are 0.5 \(.*two values"),
        ({"label_name": ["maize", "forest", "corn", "forest"]}, r"label 7 has 2 names: corn, maize"),
        ({"valid_time_end_ms": [900 * DAY] * 4}, r"4 of 4 rows end before they start"),
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


@pytest.mark.parametrize(
    ("number", "year"),
    [(1_672_531_200, 1970), (2023, 1970), (19_358, 1970), (0, 1970), (-1, 1969), (31_000_000_000, 1970)],
)
def test_seconds_days_and_years_are_no_milliseconds(tmp_path, number, year):
    """They would read as 1970, or as the end of 1969."""
    path = write(frame(valid_time_start_ms=[500 * DAY, number, number, 500 * DAY]), tmp_path / "t.csv")
    with pytest.raises(BadInput) as caught:
        read_labels(path)
    told = f"t.csv: valid_time_start_ms is {number} in row 1, which in milliseconds is in {year} (count milliseconds"
    assert told in str(caught.value)
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
    with pytest.raises(BadInput, match="4 points outside"):
        read_labels(write(astray, tmp_path / "astray.parquet"))
    features = [
        {"type": "Feature", "properties": {"label": label}, "geometry": place}
        for label, place in ((1, {"type": "Point", "coordinates": [8, 47]}), (2, None), (1, None))
    ]
    path = tmp_path / "gaps.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    with pytest.raises(BadInput, match="2 of 3 rows have no label or no coordinates"):
        read_labels(path)


def pairs(**changed):
    columns = {
        **{"x": [8.5, 8.6, 8.7, 8.8], "y": [47.1, 47.2, 47.3, 47.4]},
        **{"label_before": [1, 2, 2, 3], "label_after": [1, 3, 2, 1]},
        **{"valid_time_start_before_ms": [THEN] * 4, "valid_time_end_before_ms": [THEN + 365 * DAY] * 4},
        **{
            "valid_time_start_after_ms": [THEN + 400 * DAY] * 4,
            "valid_time_end_after_ms": [THEN + days * DAY for days in (500, 500, 400, 450)],
        },
    }
    columns.update(changed)
    return pd.DataFrame({name: column for name, column in columns.items() if column is not None})


def test_pairs_are_change_where_their_labels_differ(tmp_path):
    labels = read_labels(write(pairs(), tmp_path / "t.csv"))
    assert labels.change
    assert (labels.kind, labels.names, labels.value.tolist()) == ("class", ("no change", "change"), [0, 1, 0, 1])
    assert ((labels.before_start - THEN) // DAY).tolist() == [0] * 4
    assert ((labels.before_end - THEN) // DAY).tolist() == [365] * 4
    assert ((labels.valid_start - THEN) // DAY).tolist() == [400, 400, 398, 400]  # an instant is widened, here too
    assert ((labels.valid_end - THEN) // DAY).tolist() == [500, 500, 402, 450]
    assert labels.support_start is labels.before_support_start is None
    part = labels.subset(np.array([2, 3]))
    assert part.change
    assert part.before_end.tolist() == [THEN + 365 * DAY] * 2
    words = pairs(label_before=["oak", " elm ", "oak", "ash"], label_after=["oak", "elm", "ash", "oak"])
    assert read_labels(write(words, tmp_path / "w.csv")).value.tolist() == [0, 0, 1, 1]
    assert not read_labels(write(frame(), tmp_path / "f.csv")).change


def test_support_periods_are_read(tmp_path):
    one = supported([0, DAY, 0, 0], [366 * DAY, 2 * DAY, DAY, DAY])
    labels = read_labels(write(one, tmp_path / "t.csv"))
    assert ((labels.support_start - THEN) // DAY).tolist() == [0, 1, 0, 0]
    assert ((labels.support_end - THEN) // DAY).tolist() == [366, 2, 1, 1]
    assert labels.subset(np.array([1])).support_end.tolist() == [THEN + 2 * DAY]
    both = pairs(
        **{f"support_time_start_{when}_ms": [THEN + start] * 4 for when, start in (("before", 1), ("after", 2))},
        **{f"support_time_end_{when}_ms": [THEN + end] * 4 for when, end in (("before", 3), ("after", 4))},
    )
    labels = read_labels(write(both, tmp_path / "b.csv"))
    columns = (labels.before_support_start, labels.before_support_end, labels.support_start, labels.support_end)
    assert [(column - THEN).tolist() for column in columns] == [[1] * 4, [3] * 4, [2] * 4, [4] * 4]
    assert read_labels(write(frame(), tmp_path / "f.csv")).support_end is None


def supported(start, end):
    """The table of labels with supports, ms from THEN."""
    bounds = {"support_time_start_ms": start, "support_time_end_ms": end}
    return frame(**{name: [THEN + each for each in values] for name, values in bounds.items()})


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (
            supported([0] * 4, [DAY, 366 * DAY, 367 * DAY, 900 * DAY]),
            r"2 of 4 rows have a support of more than a year, the first of 367 days in row 2 \(bring support_time_",
        ),
        (supported([5] * 4, [5, 6, 7, 4]), r"2 of 4 rows end .*support times"),
        (
            frame(support_time_start_ms=[5] * 4),
            r"one end of the support time, and no support_time_end_ms \(give both\)",
        ),
        (pairs(label_before=[1, None, 2, 3]), r"1 of 4 rows have no label_before or no label_after or no coordinates"),
        (pairs(label_after=[1, 2, 2, 3]), r"all 4 labels are no change \("),
        (pairs(label_before=[2, 1, 1, 4]), r"all 4 labels are change \("),
        (pairs(valid_time_start_before_ms=None), r"one end of the valid time, and no valid_time_start_before_ms"),
        (
            pairs(valid_time_start_before_ms=None, valid_time_end_before_ms=None),
            r"no column valid_time_start_before_ms \(pairs need the valid times before and after",
        ),
        (
            pairs(valid_time_start_after_ms=None, valid_time_end_after_ms=None),
            r"no column valid_time_start_after_ms \(pairs",
        ),
        (pairs(label_after=None), r"no column 'label'; its columns: x, y, label_before"),
    ],
)
def test_bad_pairs_and_supports_are_refused_in_one_line(tmp_path, table, says):
    with pytest.raises(BadInput, match=says) as caught:
        read_labels(write(table, tmp_path / "t.csv"))
    assert "\n" not in str(caught.value)


# --- points with features ----------------------------------------------------------------------------------------


def featured(**changed):
    columns = {
        **{"longitude": [8.5, 8.6, 8.7], "latitude": [47.1, 47.2, 47.3], "cover": [4, 9, 4]},
        **{"A02": [2.0, 2.5, 2.7], "A00": [0.0, 0.5, 0.7], "word": ["a", "b", "c"], "A01": [1.0, 1.5, 1.7]},
        **{"A10": [10, 11, 12], "cover_name": ["oak", "elm", "oak"], "red": [3, 4, 5], "A": [6, 6, 6]},
    }
    columns.update(changed)
    return pd.DataFrame(columns)


@pytest.mark.parametrize(
    ("features", "columns"),
    [
        ("A00:A02", ["A00", "A01", "A02"]),
        ("A02", ["A02"]),
        ("red, A00:A01 ,A10", ["red", "A00", "A01", "A10"]),
        ("A00:A00", ["A00"]),
        ("red:A", ["red", "A"]),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_points_bring_their_features(tmp_path, suffix, features, columns):
    table = featured()
    labels, matrix = read_points(write(table, tmp_path / f"t{suffix}"), features, "cover")
    assert matrix.dtype == np.float64
    np.testing.assert_array_equal(matrix, table[columns].to_numpy(float))
    assert (labels.lon.tolist(), labels.lat.tolist()) == ([8.5, 8.6, 8.7], [47.1, 47.2, 47.3])
    assert (labels.names, labels.value.tolist()) == (("oak", "elm"), [0, 1, 0])


def test_a_feature_without_a_number_is_nan(tmp_path):
    path = write(featured(A00=[0.5, None, 1.0], A01=[np.inf, 1.0, 2.0]), tmp_path / "t.csv")
    labels, matrix = read_points(path, "A00:A01", "red")
    np.testing.assert_array_equal(matrix, [[0.5, np.nan], [np.nan, 1], [1, 2]])
    assert labels.names == ("3", "4", "5")


@pytest.mark.parametrize(
    ("features", "label", "says"),
    [
        ("A00:A99", "cover", r"unknown column 'A99'"),
        ("A0", "cover", r"unknown column 'A0' .*did you mean A"),
        ("A00:A10", "cover", r"A00:A10 has 4 columns of 11 \("),
        ("A02:A00", "cover", r"A02:A00 runs backwards \(A00:A02\)"),
        ("A:red", "cover", r"A:red runs backwards"),
        ("A00:A02,A01", "cover", r"name A01 twice"),
        ("A00,word", "cover", r"word is no number in 3 rows, first 'a'"),
        ("", "cover", r"unknown column ''"),
        ("A00", "dw_label", r"no column 'dw_label'; its columns: longitude"),
        ("A00,cover", "cover", r"the features name cover, which tells the answer or the split \(leave it out"),
    ],
)
def test_features_that_cannot_be_read_are_refused_in_one_line(tmp_path, features, label, says):
    with pytest.raises(BadInput, match=says) as caught:
        read_points(write(featured(), tmp_path / "t.csv"), features, label)
    assert "t.csv: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_points_that_a_program_exported_as_sets_of_one(tmp_path):
    import geopandas as gpd
    from shapely.geometry import MultiPoint

    places = gpd.GeoSeries([MultiPoint([(5, 50)]), MultiPoint([(6, 51)])], crs=4326)
    gpd.GeoDataFrame({"class": ["a", "b"]}, geometry=places).to_file(tmp_path / "t.gpkg", engine="pyogrio")
    labels = read_labels(tmp_path / "t.gpkg", "class")
    np.testing.assert_array_equal([labels.lon, labels.lat], [[5, 6], [50, 51]])
    assert labels.names == ("a", "b")
    several = gpd.GeoSeries([MultiPoint([(5, 50), (7, 50)]), MultiPoint([(6, 51)])], crs=4326)
    gpd.GeoDataFrame({"class": ["a", "b"]}, geometry=several).to_file(tmp_path / "s.gpkg", engine="pyogrio")
    with pytest.raises(BadInput, match="holds MultiPoint; labels are points"):
        read_labels(tmp_path / "s.gpkg", "class")


def test_the_usual_names_in_their_order(tmp_path):
    assert find_labels(tmp_path) is None
    for name in ("labels.csv", "labels.gpkg", "labels.geojson", "labels.parquet"):
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
    with pytest.raises(BadInput, match=rf"share 1 pixel, the first at {lon[9]:.6f}"):
        evaluate({"f": np.zeros((100, 2))}, shared, task="t")
    with pytest.raises(BadInput, match="all 100 points are in the test split"):
        evaluate(
            {"f": np.zeros((100, 2))},
            Labels(lon, lat, labels.value, labels.names, "class", split=np.full(100, "test")),
            task="t",
        )


def beside(metres):
    """Twelve pairs of points so far apart to the north, one of each pair on either side of a border of blocks."""
    row = 1280.0 * np.arange(3_000, 3_012)
    lat = np.concatenate([row - metres / 2, row + metres / 2]) / METRES - 90
    code = np.tile([0, 1], 12)
    return Labels(np.full(24, 10.0), lat, code, ("a", "b"), "class")


def test_our_splits_keep_the_points_of_a_pixel_together():
    """Also where the pixel lies across a border of blocks, or two sites have it."""
    apart, near = beside(30.0), beside(3.0)
    alone = np.arange(24)
    pair = alone % 12
    assert plan_split(apart, 1280.0).sharing == 0
    divided = plan_split(near, 1280.0, place=alone)
    assert divided.sharing == 0
    assert (divided.group[:12] != divided.group[12:]).all()
    kept = plan_split(near, 1280.0, place=pair)
    assert kept.sharing == 24
    assert (kept.group[:12] == kept.group[12:]).all()
    assert len(kept.held) == 12
    site = np.concatenate([np.arange(12), np.arange(12) ^ 1])
    joined = plan_split(replace(near, site=site), 1280.0, place=pair)
    assert len(joined.held) == 6
    assert (joined.group[:12] == joined.group[12:]).all()
    assert [len(set(joined.group[site == one])) for one in range(12)] == [1] * 12  # no site is divided
    for fold in range(10):
        train, test = kept.draw("max", np.random.default_rng(fold))
        assert not set(pair[train]) & set(pair[test])


def test_a_cell_of_ten_metres_stands_for_a_pixel():
    lat = 45 + np.array([0.0, 3.0, 0.0, 25.0, 4_000.0, 9_000.0]) / METRES
    lon = np.array([10.0, 10.0, 10.0, 10.0, 10.0, 10.0])
    labels = Labels(lon, lat, np.array([0, 1, 0, 1, 0, 1]), ("a", "b"), "class")
    cells = blocks(lon, lat, 10.0)
    assert plan_split(labels, 1280.0).sharing == np.isin(cells, np.flatnonzero(np.bincount(cells) > 1)).sum() >= 2
    done = evaluate(
        {"f": np.ones((6, 2))}, labels, task="t", shots=["max"], probes=["knn1"], place=np.array([0, 0, 0, 1, 2, 3])
    )
    assert done.about["sharing"] == 3


def test_a_given_split_that_divides_a_pixel_is_refused():
    split = np.array(["train"] * 12 + ["test"] * 12)
    given = replace(beside(3.0), split=split)
    assert plan_split(given, 1280.0, place=np.arange(24)).how == "given"
    with pytest.raises(
        BadInput, match=r"share 12 pixels, the first at 10.0\d+, -?\d+\.\d+ \(keep every pixel"
    ) as caught:
        plan_split(given, 1280.0, place=np.arange(24) % 12)
    assert "\n" not in str(caught.value)


def test_a_given_split_lends_all_it_has():
    split = np.where(np.arange(100) % 4 == 0, "test", "train")
    labels = replace(classes([60, 40]), split=split)
    least = np.bincount(labels.value[split == "train"]).min()
    train, _ = plan_split(labels, 1280.0).draw("max", np.random.default_rng(0))
    assert np.bincount(labels.value[train]).tolist() == [least, least]


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
    refused(clustered, r"'b' 1 point to train on.* lie in 1 of 6 sites", shots=["max"])
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


def predicted(probe, x, y, test, kind="class"):
    return fit.teach(probe, x, y, kind, int(y.max()) + 1 if kind == "class" else 0).predict(test)


@pytest.mark.parametrize("count", [2, 3, 12])
@pytest.mark.parametrize("shots", [1, 10, 60])
def test_class_probes_equal_sklearn(count, shots):
    for seed in range(5):
        y = np.repeat(np.arange(count), shots)
        x, test = clouds(y, 2.0, seed), clouds(np.repeat(np.arange(count), 100), 2.0, seed + 50)
        target = 2.0 * np.eye(count)[y] - 1
        taught = fit.teach("linear", x, y, "class", count)
        rest = LinearRegression().fit(x, target).predict(test)
        np.testing.assert_allclose(taught.scores(test), rest, atol=1e-6)
        np.testing.assert_array_equal(taught.predict(test), rest.argmax(axis=1))
        if len(x) > x.shape[1] + 1:  # with fewer rows RidgeClassifier divides by rounding: see below
            ridge = RidgeClassifier(alpha=0, solver="svd").fit(x, y).predict(test)
            np.testing.assert_array_equal(taught.predict(test), ridge)
        for k in {1, min(3, len(x))}:
            knn = KNeighborsClassifier(k, algorithm="brute").fit(x, y)
            taught = fit.teach(f"knn{k}" if k != 2 else "knn3", x, y, "class", count)
            np.testing.assert_allclose(taught.scores(test), knn.predict_proba(test), atol=1e-6)
            np.testing.assert_array_equal(taught.predict(test), knn.predict(test))


def test_neighbours_differ_from_sklearn_only_where_two_are_equally_near():
    rng = np.random.default_rng(0)
    x, test, y = rng.integers(-3, 4, (200, 3)), rng.integers(-3, 4, (300, 3)), rng.integers(0, 4, 200)
    near = fit.neighbours(x.astype(float), test.astype(float), 3)
    distance = np.linalg.norm(test[:, None] - x[None], axis=2)
    np.testing.assert_array_equal(near, np.argsort(distance, axis=1, kind="stable")[:, :3])
    own = KNeighborsClassifier(1, algorithm="brute").fit(x.astype(float), y).predict(test.astype(float))
    tied = (np.sort(distance, axis=1)[:, 0] == np.sort(distance, axis=1)[:, 1]).nonzero()[0]
    assert len(tied) > 20
    assert set(np.flatnonzero(y[near[:, 0]] != own)) <= set(tied)


def test_value_probes_equal_sklearn():
    rng = np.random.default_rng(0)
    x, test = rng.normal(size=(90, 16)), rng.normal(size=(70, 16))
    y = x @ rng.normal(size=16) + 3 + rng.normal(size=90)
    linear = LinearRegression().fit(x, y).predict(test)
    np.testing.assert_allclose(predicted("linear", x, y, test, "value"), linear, atol=1e-6)
    for k in (1, 3):
        expected = KNeighborsRegressor(k, algorithm="brute").fit(x, y).predict(test)
        np.testing.assert_allclose(predicted(f"knn{k}", x, y, test, "value"), expected, atol=1e-6)
        assert fit.teach(f"knn{k}", x, y, "value", 0).scores(test).shape == (70, 1)


@pytest.mark.parametrize("shape", [(90, 16), (12, 40)])
@pytest.mark.parametrize("penalty", [1e-4, 0.1, 1.0])
def test_ridge_equals_sklearn_on_standardised_features(shape, penalty):
    rng = np.random.default_rng(0)
    unit = 10.0 ** rng.uniform(-3, 3, shape[1])
    x, test = rng.normal(size=shape) * unit + unit, rng.normal(size=(70, shape[1])) * unit
    y = rng.normal(size=(len(x), 3))
    scaler = StandardScaler().fit(x)
    squares = np.linalg.svd(scaler.transform(x), compute_uv=False) ** 2
    theirs = Ridge(alpha=penalty * squares.mean()).fit(scaler.transform(x), y).predict(scaler.transform(test))
    weights, offset = fit.ridge(x, y, penalty)
    np.testing.assert_allclose(test @ weights + offset, theirs, atol=1e-6)


def test_ridge_chooses_the_penalty_that_sklearn_would():
    """RidgeCV's leaving one out, over the same penalties; it does not count the mean as learned, we do."""
    rng = np.random.default_rng(1)
    chosen = set()
    for noise, dims in ((0.01, 8), (3.0, 60), (30.0, 60)):
        x = rng.normal(size=(80, dims))
        y = x[:, :1] + noise * rng.normal(size=(80, 1))
        scaled = StandardScaler().fit_transform(x)
        unit = (np.linalg.svd(scaled, compute_uv=False) ** 2).mean()
        theirs = RidgeCV(alphas=fit._PENALTIES * unit).fit(scaled, y[:, 0] - y.mean()).alpha_ / unit
        weights, offset = fit.ridge(x, y)
        expected = [fit.ridge(x, y, penalty) for penalty in fit._PENALTIES]
        matches = [np.allclose(weights, one) and np.allclose(offset, other) for one, other in expected]
        assert sum(matches) == 1
        assert fit._PENALTIES[matches.index(True)] == pytest.approx(theirs)
        chosen.add(matches.index(True))
    assert len(chosen) > 1


def test_ridge_does_not_explode_where_rows_and_columns_are_as_many():
    """Where plain least squares does: as many rows as columns and one."""
    y = np.repeat(np.arange(13), 5)
    code = np.repeat(np.arange(13), 60)
    right = {"linear": 0.0, "ridge": 0.0}
    for seed in range(8):
        x, test = clouds(y, 2.5, seed, dims=64), clouds(code, 2.5, seed, dims=64)
        for probe in right:
            right[probe] += (predicted(probe, x, y, test) == code).mean() / 8
    assert right["ridge"] > right["linear"] + 0.2


def test_ridge_of_one_row_a_class_or_of_constant_columns():
    x = np.column_stack([np.eye(4), np.full(4, 7.0)])
    assert predicted("ridge", x, np.arange(4), x).tolist() == [0, 1, 2, 3]
    twice = np.r_[x, x]
    assert predicted("ridge", twice, np.tile(np.arange(4), 2), x * [1, 1, 1, 1, 9]).tolist() == [0, 1, 2, 3]
    assert predicted("ridge", np.ones((4, 2)), np.array([0.0, 1, 2, 3]), np.ones((2, 2)), "value").tolist() == [1.5] * 2


def test_a_class_that_was_not_shown_is_never_said():
    x, y = clouds(np.repeat([0, 2], 30), 1.0), np.repeat([0, 2], 30)
    far = 100 * np.random.default_rng(0).normal(size=(500, 16))
    for probe in PROBES:
        taught = fit.teach(probe, x, y, "class", 4)
        assert taught.scores(far).shape == (500, 4)
        assert set(taught.predict(far)) == {0, 2}


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
        ours += (predicted("linear", x * 3e4, y, test * 3e4) != exact).sum()
        ours += (predicted("linear", x * 3e4 + 1e4, y, test * 3e4 + 1e4) != exact).sum()
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
    weight = fit.resamples(100, rng)
    ours = fit.measure(truth, guess, "class", weight), fit.measure(value, said, "value", weight)
    for drawn, expected in zip(ours, by_rows, strict=True):
        spread = np.std(expected, axis=0)
        np.testing.assert_allclose(drawn.mean(axis=0), np.mean(expected, axis=0), atol=0.1 * spread.min())
        np.testing.assert_allclose(drawn.std(axis=0), spread, rtol=0.08)


# --- bins ---------------------------------------------------------------------------------------------------------


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


# --- the package -------------------------------------------------------------------------------------------------


def test_the_package_loads_nothing_heavy():
    heavy = {"pandas", "geopandas", "sklearn", "scipy", "pyarrow", "torch", "xarray"}
    code = f"import sys, aefcli.probe; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_parts_import_one_way():
    """labels, split, trial, compare and change in this order, nearest and fit beside them; none reaches for stores
    or tensors."""
    allowed = {
        "__init__": {"change", "compare", "fit", "labels", "nearest", "split", "trial"},
        "change": {"fit", "labels", "split", "trial"},
        "compare": {"fit", "trial"},
        "trial": {"labels", "split", "fit"},
        "split": {"labels"},
        "fit": {"nearest"},
    }
    files = sorted(Path(fit.__file__).parent.glob("*.py"))
    assert {path.stem for path in files} == allowed["__init__"] | {"__init__"}
    for path in files:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
        inner = {name.removeprefix("aefcli.probe.") for name in names if name.startswith("aefcli.probe")}
        assert inner <= allowed.get(path.stem, set())
        outer = {name for name in names if name.startswith("aefcli.")} - {f"aefcli.probe.{name}" for name in inner}
        assert outer <= {"aefcli.errors", "aefcli.table"}
        assert not {name.split(".")[0] for name in names} & {"torch", "xarray"}
