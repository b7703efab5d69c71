from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_fscore_support

from reproductions.multi_label.average_precision import CONVENTIONS, average_precision, mean_average_precision
from reproductions.multi_label.precision_recall import PrecisionRecall, above, precision_recall, top

SIX = ("OP", "OR", "OF1", "CP", "CR", "CF1")


def six(predicted, labels, empty):
    found = precision_recall(predicted, labels, empty)
    return np.array([getattr(found, name) for name in SIX]) / 100


def scores_of(order):
    """Scores without ties whose ranking is the stored order of each class, best first."""
    s = np.empty(order.shape)
    np.put_along_axis(s, order, -np.arange(len(order), dtype=float)[:, None].repeat(order.shape[1], 1), 0)
    return s


def random(n=60, C=9, ties=False, seed=0):
    rng = np.random.default_rng(seed)
    s, y = rng.normal(size=(n, C)), rng.integers(0, 2, (n, C))
    return (np.round(s), y) if ties else (s, y)


@pytest.mark.parametrize("case", ["random", "absent", "tied"])
def test_the_three_conventions_of_the_papers_own_codes(golden, case):
    z = golden("map_average_precision")
    s, y = z[f"{case}_scores"], z[f"{case}_labels"]
    ranked = {"tied": "tied_order_numpy_argsort_reversed"}
    s_ml = scores_of(z[ranked[case]]) if case in ranked else s
    s_q2l = scores_of(z["tied_order_numpy_argsort_neg"]) if case == "tied" else s
    s_zsl = scores_of(z["tied_order_torch_sort_desc"]) if case == "tied" else s
    assert np.nan_to_num(average_precision(s_ml, y)) == pytest.approx(z[f"{case}_mldecoder_ap"], abs=1e-6)
    assert mean_average_precision(s_ml, y, absent="zero") == pytest.approx(z[f"{case}_mldecoder_mAP_percent"], abs=1e-4)
    assert 100 * average_precision(s_q2l, y, "envelope") == pytest.approx(
        z[f"{case}_q2l_ap_percent"], abs=1e-4, nan_ok=True
    )
    assert average_precision(s_zsl, y, "zero-shot") == pytest.approx(z[f"{case}_biam_ap"], abs=1e-6)
    assert mean_average_precision(s_zsl, y, "zero-shot") == pytest.approx(z[f"{case}_biam_mAP_percent"], abs=1e-4)
    if case == "random":
        assert average_precision(s, y) == pytest.approx(z["random_salgl2007_ap"], abs=1e-6)
        assert average_precision(s, y, "envelope") == pytest.approx(z["random_salgl2012_ap"], abs=1e-6)


def test_what_is_left_out_is_not_ranked(golden):
    z = golden("map_average_precision")
    s, y = z["threeval_scores"], z["threeval_labels"]  # 1, −1 absent, 0 left out
    ours = np.select([y == 1, y == 0], [1, -1], 0)
    assert average_precision(s, ours) == pytest.approx(z["threeval_mlgcn_difficult_ap"], abs=1e-6)
    assert average_precision(s, ours, "zero-shot") == pytest.approx(z["threeval_biam_ap"], abs=1e-6)


@pytest.mark.parametrize("case", ["random", "tied"])
def test_precision_and_recall_of_the_papers_own_codes(golden, case):
    z = golden("map_prf")
    logits, p, y = z[f"{case}_logits"], z[f"{case}_prob"], z[f"{case}_labels"]
    close = lambda expected: pytest.approx(expected, abs=1e-6)  # noqa: E731
    assert six(above(logits, 0), y, "one prediction") == close(z[f"{case}_mlgcn_all_OP_OR_OF1_CP_CR_CF1"])
    assert six(above(p), y, "one") == close(z[f"{case}_salgl_all_OP_OR_OF1_CP_CR_CF1"])
    for k in (3, 5):
        chosen = np.zeros(logits.shape, bool)
        np.put_along_axis(chosen, z[f"{case}_topk{k}_indices_torch"], True, 1)  # ties as that code broke them
        both = chosen & above(logits, 0)
        assert six(both, y, "one prediction") == close(z[f"{case}_mlgcn_top{k}_OP_OR_OF1_CP_CR_CF1"])
        assert six(chosen, y, "zero")[:3] == close(z[f"{case}_biam_top{k}_P_R_F1"])
        if case == "random":  # how DualCoOp breaks ties is not stored
            assert 100 * six(chosen, y, "zero")[:3] == close(z[f"random_dualcoop_top{k}_P_R_F1_percent"])
            assert (top(logits, k) == chosen).all()
            assert (top(logits, k, 0.0) == both).all()
    found = precision_recall(p > 0.5, y)  # that code wants more than the threshold
    assert [found.CP, found.CR, found.mean_F1] == close(100 * z[f"{case}_restated_dualcoop_all_CP_CR_meanF1"])
    if case == "random":
        assert six(top(p, 3, 0.5), y, "one") == close(z["random_salgl_top3_OP_OR_OF1_CP_CR_CF1"])


def test_metrics_of_ram(golden):
    z = golden("ram_metrics")
    for case in "ab":
        for k in (3, 5):
            found = precision_recall(top(z[f"scores_{case}"], k), z[f"labels_{case}"])
            ours = [found.CP, found.CR, found.CF1, found.OP, found.OR, found.OF1]
            assert np.array(ours) / 100 == pytest.approx(z[f"{case}_at{k}_CP_CR_CF1_OP_OR_OF1"], abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_is_that_of_scikit_learn(ties):
    s, y = random(ties=ties)
    assert average_precision(s, y) == pytest.approx(average_precision_score(y, s, average=None), abs=1e-12)


def test_precision_and_recall_are_those_of_scikit_learn():
    s, y = random(C=6)
    y[:, 2], s[:, 4] = 0, -9.0  # without positives, never predicted
    predicted, found = above(s, 0), precision_recall(above(s, 0), y)
    for average, names in (("micro", ("OP", "OR", "OF1")), ("macro", ("CP", "CR", "mean_F1"))):
        theirs = precision_recall_fscore_support(y, predicted, average=average, zero_division=0)[:3]
        assert [getattr(found, name) for name in names] == pytest.approx(100 * np.array(theirs), abs=1e-10)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(CONVENTIONS), st.booleans())
def test_only_the_order_of_scores_counts(seed, convention, ties):
    s, y = random(25, 4, ties, seed)
    y[0] = 1
    rng = np.random.default_rng(seed)
    ap, images = average_precision(s, y, convention), rng.permutation(len(s))
    assert average_precision(np.arctan(s) * 3 + 7, y, convention) == pytest.approx(ap, abs=1e-12)
    assert average_precision(s[images], y[images], convention) == pytest.approx(ap, abs=1e-12)
    assert (average_precision(s, y, "envelope") >= average_precision(s, y) - 1e-12).all()
    assert average_precision(y + 0.0, y, convention) == pytest.approx(1)


def test_equal_scores_are_worth_the_share_of_positives():
    y = np.array([[1], [0], [0], [1]])
    assert average_precision(np.zeros((4, 1)), y) == pytest.approx([0.5])


def test_classes_without_positives():
    s, y = random()
    y[:, 3] = 0
    assert np.isnan(average_precision(s, y)[3])
    assert average_precision(s, y, "zero-shot")[3] == 0
    others = np.arange(9) != 3
    rest = mean_average_precision(s[:, others], y[:, others])
    assert mean_average_precision(s, y) == pytest.approx(rest)
    assert mean_average_precision(s, y, absent="zero") == pytest.approx(rest * 8 / 9)
    assert mean_average_precision(s, y, "zero-shot") == pytest.approx(rest * 8 / 9)
    with pytest.raises(ValueError, match="none of the 9 classes has a positive"):
        mean_average_precision(s, 0 * y)


def test_no_prediction_at_all():
    y = np.array([[1, 0], [1, 1]])
    assert precision_recall(np.zeros((2, 2), bool), y) == PrecisionRecall(0, 0, 0, 0, 0, 0, 0)
    assert precision_recall(np.zeros((2, 2), bool), y, "one").CP == 100


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, y: average_precision(s[:5], y), r"scores have shape \(5, 9\) and labels \(60, 9\)"),
        (lambda s, y: average_precision(np.where(s == s[2, 1], np.nan, s), y), "score of image 2 for class 1 is nan"),
        (lambda s, y: average_precision(s, y + 1), "labels must be 1, 0 or −1, not 2"),
        (lambda s, y: average_precision(s, y, "voc"), "convention must be one of 'non-interpolated'"),
        (lambda s, y: mean_average_precision(s, y, absent="skip"), "absent must be 'left out' or 'zero'"),
        (lambda s, y: precision_recall(above(s), y, "two"), "empty must be 'zero', 'one' or 'one prediction'"),
        (lambda s, y: top(s, 10), "the top 10 of 9 classes"),
    ],
)
def test_bad_input_gets_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call(*random())
