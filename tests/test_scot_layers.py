"""The search for layers: against trying every set, and the PCK it maximises against that of hyperpixels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from reproductions import UserError
from reproductions.datasets.warped import ImagePair
from reproductions.metrics import percentage_of_correct_keypoints
from reproductions.scot.backbones import Backbone, TimmTaps
from reproductions.scot.hyperpixels import hyperpixels
from reproductions.scot.layers import LayerScorer, StoredScores, beam_search
from reproductions.scot.method import Matching
from reproductions.storage import Cache

VALUES = (3.0, 1.0, -2.0, 5.0, 0.5, -1.0, 2.0)


def additive(layers) -> float:
    return sum(VALUES[k] for k in layers)


def every_set(first, count, depth):
    """All sets whose smallest layer is one of the first."""
    sets = (s for d in range(1, depth + 1) for s in itertools.combinations(range(count), d))
    return [s for s in sets if s[0] in first]


@pytest.mark.parametrize("depth", [1, 2, 4, 7])
def test_a_greedy_beam_finds_the_best_of_a_sum(depth):
    found = beam_search(additive, range(4), len(VALUES), depth=depth)
    best = max(every_set(range(4), len(VALUES), depth), key=additive)
    assert (found.layers, found.score) == (best, additive(best))


def test_a_beam_that_keeps_all_tries_every_set_once():
    told = []
    found = beam_search(additive, (0, 2), 6, beam=99, depth=4, on_candidate=lambda *x: told.append(x))
    tried = [s for s, _ in found.history]
    assert tried == every_set((0, 2), 6, 4)
    assert all(score == additive(s) for s, score in found.history)
    assert told == list(found.history)


def test_a_duplicate_costs_no_other_set():
    """(0, 1) and (0, 2) both lead to (0, 1, 2), before the best set (0, 2, 3) and the worst (0, 2, 4)."""
    scores = {(0,): 1, (0, 1): 3, (0, 2): 2, (0, 2, 3): 9}
    found = beam_search(lambda s: scores.get(s, 0), (0,), 5, beam=2, depth=3)
    assert (found.layers, found.score) == ((0, 2, 3), 9)
    tried = [s for s, _ in found.history]
    assert tried[5:] == [(0, 1, 2), (0, 1, 3), (0, 1, 4), (0, 2, 3), (0, 2, 4)]


def test_a_beam_forgets_what_it_did_not_keep_but_not_the_best():
    scores = {(0,): 9, (1,): 1, (2,): 0}
    found = beam_search(lambda s: scores.get(s, 2), (0, 1, 2), 4, beam=1, depth=3)
    assert (found.layers, found.score) == ((0,), 9)
    assert {s[0] for s, _ in found.history if len(s) > 1} == {0}


def test_of_equal_sets_the_smallest_and_first_wins():
    found = beam_search(lambda s: 1.0, (2, 1), 4, beam=1, depth=4)
    assert found.layers == (1,)
    assert [s for s, _ in found.history] == [(1,), (2,), (1, 2), (1, 3), (1, 2, 3)]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"first": (0,), "beam": 0}, "beam 0"),
        ({"first": (0,), "depth": 0}, "depth 0"),
        ({"first": ()}, r"layers 0 … 3, not with \[\]"),
        ({"first": (1, 4)}, r"not with \[1, 4\]"),
    ],
)
def test_searches_of_nothing_are_refused(asked, words):
    with pytest.raises(UserError, match=words):
        beam_search(additive, layers=4, **asked)


def test_a_killed_search_goes_on(tmp_path):
    scored, limit = [], 6

    def score(layers):
        if len(scored) == limit:
            raise KeyboardInterrupt
        scored.append(layers)
        return additive(layers) / 3

    def search(key="a"):
        return beam_search(StoredScores(score, Cache(tmp_path), key), range(3), 5, beam=2, depth=3)

    with pytest.raises(KeyboardInterrupt):
        search()
    limit = 99
    found = search()
    assert len(scored) == len(set(scored)) == len(found.history)
    assert found == beam_search(lambda s: additive(s) / 3, range(3), 5, beam=2, depth=3)
    assert search() == found
    assert len(scored) == len(found.history)
    search("b")
    assert len(scored) == 2 * len(found.history)


# ---------------------------------------------------------------------------------------------------------------- PCK


def image_pair(seed: int) -> ImagePair:
    """Noise and the same noise 16 px further right, at other sizes than the network's."""
    noise = np.random.default_rng(seed).integers(0, 256, (15, 20, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    keypoints = np.random.default_rng(seed).uniform(20, 100, (6, 2))
    target = np.roll(noise, 16, 1)[:100]
    return ImagePair(f"noise {seed}", noise, target, keypoints, keypoints + np.array([16, 0]), "noise", 160.0)


@pytest.fixture
def scorer():
    pairs = [image_pair(0), image_pair(1)]
    pairs.append(ImagePair("again", pairs[0].target, pairs[1].source, *(np.full((1, 2), 9.0),) * 2, "noise", 1.0))
    return LayerScorer(Backbone("mobilenetv2_050", (), "random"), pairs, Matching(), side=96)


def test_the_score_is_the_mean_pck_of_the_pairs(scorer):
    for layers in ((1,), (2, 4)):
        shares, backbone = [], Backbone("mobilenetv2_050", layers, "random")
        for pair in scorer.pairs:
            (source, r), (target, q) = (hyperpixels(backbone, x, side=96) for x in (pair.source, pair.target))
            moved = scorer.matching.transferred(source, target, torch.from_numpy(pair.source_keypoints).float() * r)
            truth = torch.from_numpy(pair.target_keypoints).float() * q
            shares.append(percentage_of_correct_keypoints(moved, truth, pair.threshold * q, 0.1).item())
        assert scorer(layers) == pytest.approx(np.mean(shares))
    assert 0 < scorer((1,)) < 100


def test_every_image_goes_through_the_network_once(scorer, monkeypatch):
    seen, tapped = [], TimmTaps.tapped
    assert scorer.backbone.network.depth == 17  # made before what it is given is counted
    monkeypatch.setattr(TimmTaps, "tapped", lambda self, x, layers: seen.append(x) or tapped(self, x, layers))
    found = beam_search(scorer, (2, 3), 5, beam=2, depth=2)
    assert len(found.history) == 5
    assert len(seen) == 4


def test_scores_of_other_settings_are_kept_apart(scorer):
    backbone, pairs, matching = scorer.backbone, scorer.pairs, scorer.matching
    others = [
        LayerScorer(backbone, pairs, matching),
        LayerScorer(backbone, pairs[:2], matching, 96),
        LayerScorer(backbone, pairs, Matching(exponent=1), 96),
        LayerScorer(Backbone("mobilenetv2_050", (), "random", options=(("num_classes", 9),)), pairs, matching, 96),
    ]
    assert len({scorer.key, *(other.key for other in others)}) == 5
    assert LayerScorer(Backbone("mobilenetv2_050", (2,), "random"), pairs, matching, 96).key == scorer.key
