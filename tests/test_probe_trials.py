"""Trials follow the protocol; what they found compares fields in pairs; real embeddings score as others found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clouds import by, classes, clouds
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import GroupKFold, StratifiedKFold

from aefcli import probe
from aefcli.errors import BadInput
from aefcli.probe import PROBES, Evaluation, Labels, blocks, evaluate
from aefcli.probe.change import apart
from aefcli.probe.split import plan_split
from aefcli.probe.trial import Trial

# --- trials ---------------------------------------------------------------------------------------------------


def test_features_that_leak_the_class_are_perfect_and_noise_is_at_chance():
    labels = classes([70, 60, 50, 80])
    noise = np.random.default_rng(5).normal(size=(len(labels), 8))
    fields = {"leak": np.eye(4)[labels.value] + 1e-3 * noise[:, :4], "noise": noise}
    done = evaluate(fields, labels, task="made-up", max_folds=40, seed=3)
    scores = done.scores
    assert len(scores) == 2 * 4 * 3 * 2
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
    assert done.about == {
        **{"split": "block", "groups": groups, "folds": {1: 40, 10: 40, "max": 40}, "max_folds": 40},
        **{"bootstrap": 100, "seed": 3, "points": 260, "block": 1280.0, "sharing": 0},
    }


def test_the_spread_is_that_of_folds_and_bootstraps():
    """At max the bootstraps widen the spread of the folds; one fold alone has theirs."""
    labels = classes([150, 120])
    fields = {"f": clouds(labels.value, 4.0)}
    scores = evaluate(fields, labels, task="t", probes=["linear"], shots=["max"], max_folds=30).scores
    plan = plan_split(labels, 1280.0)
    trial = Trial(plan, labels.value, "class", ("linear",), 0)
    found = [trial.run(fields, fields, "max", fold).found["f", "linear"] for fold in range(30)]
    assert found[0].shape == (100, 2)
    score = by(scores, metric="balanced_accuracy")
    assert score.std == pytest.approx(np.concatenate(found)[:, 0].std())
    assert score.std > 1.1 * np.std([fold[:, 0].mean() for fold in found])
    low = evaluate(fields, labels, task="t", probes=["linear"], shots=[10], max_folds=30).scores
    alone = [trial.run(fields, fields, 10, fold).found["f", "linear"][0, 0] for fold in range(30)]
    assert by(low, metric="balanced_accuracy").mean == pytest.approx(np.mean(alone))
    assert by(low, metric="balanced_accuracy").std == pytest.approx(np.std(alone))


def test_the_seed_decides_and_nothing_else():
    labels = classes([40, 30, 50])
    one, two = clouds(labels.value, 2.0, 1), clouds(labels.value, 3.0, 2, dims=5)
    options = {"task": "t", "shots": (1, "max"), "max_folds": 5}
    both = evaluate({"one": one, "second": two}, labels, seed=7, **options).scores
    again = evaluate({"one": one, "second": two}, labels, seed=7, **options).scores
    other = evaluate({"one": one, "second": two}, labels, seed=8, **options).scores
    assert both == again
    assert [score.mean for score in both] != [score.mean for score in other]
    # a field's score stands on its own: the company, the probes and the shots beside it change nothing
    alone = evaluate({"second": two}, labels, task="t", seed=7, probes=["knn3"], shots=["max"], max_folds=5).scores
    assert alone == tuple(s for s in both if (s.field, s.probe, s.shots) == ("second", "knn3", "max"))
    assert [(s.field, s.probe, s.shots) for s in both[:4]] == [
        *[("one", "knn1", 1)] * 2,
        *[("one", "knn1", "max")] * 2,
    ]


def test_a_class_without_points_is_no_class():
    labels = classes([40, 30, 50])
    part = labels.subset(labels.value != 1)
    scores = evaluate(
        {"f": np.eye(3)[part.value]}, part, task="t", shots=["max"], max_folds=3, probes=["linear"]
    ).scores
    assert by(scores, metric="balanced_accuracy").mean == 1.0


def test_two_classes_at_one_shot_have_but_two_neighbours():
    labels = classes([30, 30])
    scores = evaluate({"f": np.eye(2)[labels.value]}, labels, task="t", shots=[1], probes=["knn3"], max_folds=3).scores
    assert by(scores, metric="balanced_accuracy").mean == 0.5  # each vote is a tie


def test_regression():
    rng = np.random.default_rng(0)
    value = rng.normal(size=800)
    value[0] = 40.0  # an outlier alone in the last bin
    labels = Labels(rng.uniform(5, 6, 800), rng.uniform(5, 6, 800), value, (), "value")
    exact = np.column_stack([value, rng.normal(size=(800, 3))])
    done = evaluate({"exact": exact, "noise": exact[:, 1:]}, labels, task="t", probes=["knn1", "linear"], max_folds=10)
    assert by(done.scores, field="exact", probe="linear", shots="max", metric="r2").mean == pytest.approx(1.0)
    assert by(done.scores, field="exact", probe="linear", shots="max", metric="mae").mean < 1e-6
    assert by(done.scores, field="noise", probe="linear", shots="max", metric="r2").mean < 0.1
    assert 1 <= len(done.about["bins"]) <= 10
    assert done.about["folds"]["max"] in (1, 10)


def test_shuffled_labels_are_at_chance():
    """Vectors that tell five classes apart tell nothing of labels in random order, on any split."""
    rng = np.random.default_rng(0)
    labels = classes([120] * 5, site=rng.integers(0, 60, 600))
    fields = {"f": clouds(labels.value, 0.5)}
    shuffled = replace(labels, value=rng.permutation(labels.value))
    for made, chance in ((labels, False), (shuffled, True)):
        for given in (made, replace(made, site=None)):
            for score in evaluate(fields, given, task="t", max_folds=30).scores:
                if score.metric == "balanced_accuracy" and (score.probe, score.shots) != ("knn3", 1):
                    assert score.mean == pytest.approx(0.2, abs=0.05) if chance else score.mean > 0.8, score


def test_other_features_may_stand_in_for_a_field_in_test_sets():
    """As where inputs are missing only there: on noise it is at chance, on its own features what it was."""
    labels = classes([90, 80, 70])
    fields = {"f": clouds(labels.value, 1.0), "g": clouds(labels.value, 2.0, 1)}
    noise = np.random.default_rng(0).normal(size=fields["f"].shape)
    options = {"task": "t", "shots": (10, "max"), "probes": ("knn1", "linear"), "max_folds": 30}
    plain = evaluate(fields, labels, **options)
    assert evaluate(fields, labels, tested={"f": fields["f"]}, **options).scores == plain.scores
    blind = evaluate(fields, labels, tested={"f": noise}, **options).scores
    for score, before in zip(blind, plain.scores, strict=True):
        if score.field == "g":
            assert score == before
        elif score.metric == "balanced_accuracy":
            assert before.mean > 0.8
            assert score.mean == pytest.approx(1 / 3, abs=0.06)
    with pytest.raises(AssertionError, match="h"):
        evaluate(fields, labels, tested={"h": noise}, **options)


# --- what an evaluation holds -------------------------------------------------------------------------------------


def test_replicates_are_paired_over_fields():
    """The same vectors under two names, and turned: every replicate is the same; others differ in most."""
    labels = classes([60, 40, 50])
    one = clouds(labels.value, 2.0, 1)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(16, 16)))[0]
    fields = {"one": one, "same": one, "turned": one @ turn, "other": clouds(labels.value, 2.0, 2)}
    done = evaluate(fields, labels, task="t", max_folds=6)
    assert set(done.draws) == {(f, p, s) for f in fields for p in PROBES for s in (1, 10, "max")}
    for (name, transfer, shots), draws in done.draws.items():
        assert draws.shape == (600 if shots == "max" else 6, 2)
        first = done.draws["one", transfer, shots]
        if name == "other" and (transfer, shots) != ("knn3", 1):  # three neighbours of three classes: always a tie
            assert (draws != first).any(axis=1).mean() > 0.5
        elif name == "same" or (name == "turned" and transfer.startswith("knn")):
            np.testing.assert_allclose(draws, first)
        score = by(done.scores, field=name, probe=transfer, shots=shots, metric="macro_f1")
        assert (score.mean, score.std) == pytest.approx((draws[:, 1].mean(), draws[:, 1].std()))


def test_pairs_are_surer_than_fields_alone():
    """Two fields that err on the same hard points: the resamples are shared, so their difference is steadier."""
    labels = classes([400, 300])
    one = clouds(labels.value, 3.0)
    two = one + 0.3 * np.random.default_rng(1).normal(size=one.shape)
    done = evaluate({"one": one, "two": two}, labels, task="t", shots=["max"], probes=["linear"])
    a, b = (done.draws[name, "linear", "max"][:, 0] for name in ("one", "two"))
    assert (a - b).std() < 0.8 * np.hypot(a.std(), b.std())


def test_the_confusion_is_that_of_all_folds():
    labels = classes([60, 40, 50])
    part = labels.subset(labels.value != 1)
    fields = {"f": clouds(part.value, 2.0)}
    done = evaluate(fields, part, task="t", shots=[10, "max"], probes=["knn1", "ridge"], max_folds=5)
    assert done.names == ("a", "c")  # a class without points is none
    assert done.kind == "class"
    plan = plan_split(part, 1280.0)
    expected = np.zeros((2, 2))
    for fold in range(5):
        train, test = plan.draw(10, np.random.default_rng([0, 10, fold]))
        taught = probe.teach("ridge", fields["f"][train], plan.stratum[train], "class", 2)
        expected += confusion_matrix(plan.stratum[test], taught.predict(fields["f"][test]))
    np.testing.assert_array_equal(done.confusion["f", "ridge", 10], expected)
    assert (
        done.confusion["f", "knn1", "max"].sum()
        == 5 * by(done.scores, shots="max", probe="knn1", metric="macro_f1").n_test
    )


# --- comparisons --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mean", "metric", "classes", "expected"),
    [
        (1.0, "balanced_accuracy", 4, 0.0),
        (0.25, "balanced_accuracy", 4, 1.0),
        (0.1, "balanced_accuracy", 4, 1.0),
        (0.7, "balanced_accuracy", 4, 0.4),
        (0.75, "balanced_accuracy", 2, 0.5),
        (0.4, "r2", 0, 0.6),
        (-3.0, "r2", 0, 1.0),
    ],
)
def test_the_error_is_adjusted_for_chance_and_clamped(mean, metric, classes, expected):
    assert probe.error(mean, metric, classes) == pytest.approx(expected)


def evaluation(kind="class", names=("a", "b"), **draws):
    """An evaluation at ten shots of these replicates: field_probe -> rows of two metrics."""
    keyed = {(*name.rsplit("_", 1), 10): np.array(rows, dtype=float) for name, rows in draws.items()}
    return Evaluation((), keyed, {}, names, kind, {})


def test_fields_are_compared_at_their_best_transfers_in_pairs():
    done = evaluation(
        ours_knn1=[[0.70, 0.70], [0.80, 0.80], [0.90, 0.90], [0.84, 0.80]],
        ours_linear=[[0.10, 0.10]] * 4,
        theirs_knn1=[[0.50, 0.50]] * 4,
        theirs_ridge=[[0.66, 0.60], [0.74, 0.70], [0.85, 0.80], [0.79, 0.70]],
    )
    assert probe.best(done, "ours", 10) == ("knn1", pytest.approx(0.81))
    assert probe.best(done, "theirs", 10) == ("ridge", pytest.approx(0.76))
    (found,) = probe.compare(done, "ours", "theirs")
    assert (found.a, found.b, found.shots, found.metric) == ("ours", "theirs", 10, "balanced_accuracy")
    assert (found.a_probe, found.b_probe) == ("knn1", "ridge")
    assert found.difference == pytest.approx(0.05)
    assert (found.low, found.high) == (pytest.approx(0.04075), pytest.approx(0.05925))
    assert found.error_ratio == pytest.approx(0.48 / 0.38)
    assert found.error_reduction == pytest.approx(1 - 0.38 / 0.48)
    assert found.confirmed
    (back,) = probe.compare(done, "theirs", "ours")
    assert back.difference == -found.difference
    assert (back.low, back.high) == (-found.high, -found.low)
    assert back.error_ratio == pytest.approx(1 / found.error_ratio)
    assert back.error_reduction < 0
    assert back.confirmed  # the loss
    with pytest.raises(BadInput, match=r"unknown field 'our'.*did you mean ours"):
        probe.compare(done, "our", "theirs")


def test_a_win_that_f1_does_not_confirm_is_told():
    lower = evaluation(ours_knn1=[[0.8, 0.5]] * 2, theirs_knn1=[[0.7, 0.6]] * 2)
    assert not probe.compare(lower, "ours", "theirs")[0].confirmed
    # F1 agrees about the two transfers, but theirs has another that is better by F1
    other = evaluation(ours_knn1=[[0.8, 0.6]] * 2, theirs_knn1=[[0.7, 0.5]] * 2, theirs_ridge=[[0.6, 0.65]] * 2)
    assert not probe.compare(other, "ours", "theirs")[0].confirmed
    even = evaluation(ours_knn1=[[0.8, 0.6]] * 2, theirs_knn1=[[0.8, 0.6]] * 2)
    assert not probe.compare(even, "ours", "theirs")[0].confirmed
    # of values, a smaller mean absolute error confirms
    for mae, confirmed in ((0.1, True), (0.3, False)):
        values = evaluation("value", (), ours_knn1=[[0.8, mae]] * 2, theirs_knn1=[[0.7, 0.2]] * 2)
        assert probe.compare(values, "ours", "theirs")[0].confirmed is confirmed


def test_errors_of_nothing_have_ratios():
    perfect, wrong = [[1.0, 1.0]] * 2, [[0.75, 0.75]] * 2
    figures = {
        (ours, theirs): probe.compare(evaluation(ours_knn1=rows[ours], theirs_knn1=rows[theirs]), "ours", "theirs")[0]
        for rows in [{"perfect": perfect, "wrong": wrong}]
        for ours in rows
        for theirs in rows
    }
    ratios = {key: (found.error_ratio, found.error_reduction) for key, found in figures.items()}
    assert ratios == {
        ("perfect", "perfect"): (1.0, 0.0),
        ("perfect", "wrong"): (np.inf, 1.0),
        ("wrong", "perfect"): (0.0, -np.inf),
        ("wrong", "wrong"): (1.0, 0.0),
    }


def test_a_comparison_of_real_trials_for_every_number_of_shots():
    labels = classes([80, 70, 60])
    fields = {"clear": clouds(labels.value, 1.0), "dim": clouds(labels.value, 4.0)}
    found = probe.compare(evaluate(fields, labels, task="t", max_folds=20), "clear", "dim")
    assert [one.shots for one in found] == [1, 10, "max"]
    assert all(one.low > 0 and one.confirmed and one.error_ratio > 1.5 for one in found[1:])


# --- change without labels ----------------------------------------------------------------------------------------


def pairs(count=400, share=0.5, seed=0):
    """Labels of change for `share` of all, and unit vectors before and after; distances of change .25 .. .95."""
    rng = np.random.default_rng(seed)
    code = (rng.permutation(count) < share * count).astype(np.int64)
    time = np.zeros(count, np.int64)
    labels = Labels(
        *(rng.uniform(10, 12, count), rng.uniform(45, 47, count), code, ("no change", "change"), "class"),
        **{"valid_start": time, "valid_end": time, "before_start": time, "before_end": time},
    )
    before = clouds(code * 0, 1.0, seed)
    before /= np.linalg.norm(before, axis=1, keepdims=True)
    side = rng.normal(size=before.shape)
    side -= (side * before).sum(axis=1, keepdims=True) * before
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    distance = np.where(code == 1, rng.uniform(0.25, 0.95, count), rng.uniform(0.0, 0.35, count))
    cosine = (1 - 2 * distance)[:, None]
    return labels, distance, before, cosine * before + np.sqrt(1 - cosine**2) * side


def test_the_distance_of_pairs_is_that_of_their_angle():
    _, distance, before, after = pairs(50)
    np.testing.assert_allclose(apart(before, after), distance, atol=1e-9)
    np.testing.assert_allclose(apart(3 * before, 0.5 * after), distance, atol=1e-9)
    assert apart(np.zeros((1, 3)), np.ones((1, 3))).tolist() == [0.5]


def test_change_is_told_by_the_best_threshold():
    labels, distance, before, after = pairs()
    scores = probe.changed(before, after, labels, field="f", task="t", max_folds=1)
    assert [(score.probe, score.metric) for score in scores] == [
        *[("change/test threshold", "balanced_accuracy"), ("change/test threshold", "macro_f1")],
        *[("change/train threshold", "balanced_accuracy"), ("change/train threshold", "macro_f1")],
    ]
    train, test = plan_split(labels, 1280.0).draw("max", np.random.default_rng([0, 0, 0]))

    def recalls(rows, at):
        said = distance[rows] > at
        return np.mean([(said == one)[labels.value[rows] == one].mean() for one in (0, 1)])

    best = max(recalls(test, at / 10) for at in range(1, 10))
    chosen = max(range(1, 10), key=lambda at: recalls(train, at / 10))
    assert scores[0].mean == pytest.approx(best, abs=0.01)  # of a hundred resamples
    assert scores[2].mean == pytest.approx(recalls(test, chosen / 10), abs=0.01)
    assert (scores[0].n_train, scores[0].n_test) == (len(train), len(test))
    assert scores[0].mean > 0.85


def test_the_threshold_of_the_test_set_flatters():
    """On vectors that know nothing the honest figure is chance, the other above it."""
    means = {"test": [], "train": []}
    for seed in range(15):
        labels, _, before, _ = pairs(120, seed=seed)
        after = before + 0.6 * np.random.default_rng(seed).normal(size=before.shape)
        scores = probe.changed(before, after, labels, field="f", task="t", max_folds=5)
        for side, found in means.items():
            found.append(by(scores, probe=f"change/{side} threshold", metric="balanced_accuracy").mean)
    assert np.mean(means["train"]) == pytest.approx(0.5, abs=0.03)
    assert np.mean(means["test"]) > np.mean(means["train"]) + 0.03


def test_change_by_learning_sees_both_periods():
    """Supervised: vectors of before and after side by side, as any other labels."""
    labels, _, before, after = pairs()
    fields = {"pairs": np.hstack([before, after]), "after": after}
    done = evaluate(fields, labels, task="t", shots=["max"], probes=["knn3", "ridge"], max_folds=2)
    assert done.names == ("no change", "change")
    with pytest.raises(BadInput, match="are no pairs"):
        probe.changed(before, after, replace(labels, before_start=None), field="f", task="t")


# --- real embeddings ----------------------------------------------------------------------------------------------

FIVEFOLD = {"knn1": 0.71, "knn3": 0.73, "linear": 0.75}
BLOCKED = {"knn1": 0.67, "knn3": 0.69, "linear": 0.74}  # of 0.2 degrees


@pytest.fixture(scope="module")
def aef(real: Path) -> tuple[Labels, np.ndarray]:
    """Dynamic World classes and AEF's vectors at 1,440 points, of the two tables."""
    parts = [probe.read_points(path, "A00:A63", "dw_label") for path in sorted((real / "aef").glob("*.csv"))]
    assert [matrix.shape for _, matrix in parts] == [(720, 64)] * 2
    columns = {name: np.concatenate([getattr(labels, name) for labels, _ in parts]) for name in ("lon", "lat", "value")}
    return Labels(**columns, names=parts[0][0].names, kind="class"), np.concatenate([matrix for _, matrix in parts])


@pytest.mark.parametrize("expected", [FIVEFOLD, BLOCKED], ids=["5-fold", "blocks"])
def test_real_embeddings_score_as_others_found(aef: tuple[Labels, np.ndarray], expected: dict[str, float]) -> None:
    """Cross-validation is a given split five times over; the means over the folds are within .03 of theirs."""
    labels, matrix = aef
    cell = np.unique(np.floor(labels.lon / 0.2) * 10_000 + np.floor(labels.lat / 0.2), return_inverse=True)[1]
    if expected is FIVEFOLD:
        folds = StratifiedKFold(5, shuffle=True, random_state=0).split(matrix, labels.value)
    else:
        folds = GroupKFold(5, shuffle=True, random_state=0).split(matrix, groups=cell)
    means: dict[str, list[float]] = {name: [] for name in PROBES}
    for _, test in folds:
        split = np.full(len(labels), "train")
        split[test] = "test"
        given = replace(labels, split=split)
        # Two of the points are 7 m apart, which the others did not mind
        done = evaluate({"aef": matrix}, given, task="dw", shots=["max"], place=np.arange(len(labels)))
        for name in PROBES:
            means[name].append(by(done.scores, probe=name, metric="balanced_accuracy").mean)
    found = {name: float(np.mean(each)) for name, each in means.items()}
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=0.03)
    assert found["ridge"] == pytest.approx(expected["linear"], abs=0.03)


def test_real_embeddings_on_splits_of_our_own(aef: tuple[Labels, np.ndarray]) -> None:
    """The protocol's max trial learns from 60% of the points and not from 80%: points alone, and blocks of 22 km."""
    labels, matrix = aef
    alone = replace(labels, site=np.arange(len(labels)))
    for given, block, expected, within in ((alone, 1280.0, FIVEFOLD, 0.03), (labels, 22_239.0, BLOCKED, 0.05)):
        means: dict[str, list[float]] = {name: [] for name in expected}
        for seed in range(6):
            done = evaluate({"aef": matrix}, given, task="dw", shots=["max"], seed=seed, block=block)
            assert done.about["folds"] == {"max": 1}  # 160 points of every class
            assert done.about["sharing"] == 2
            for name in means:
                means[name].append(by(done.scores, probe=name, metric="balanced_accuracy").mean)
        found = {name: float(np.mean(each)) for name, each in means.items()}
        assert found == pytest.approx(expected, abs=within)
