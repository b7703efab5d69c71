"""Blind matching against the outputs of the released code, and against what can be said without them."""

from __future__ import annotations

import warnings

import numpy as np
import ot
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from reproductions import UserError
from reproductions.blind_match.contenders import CONTENDERS
from reproductions.blind_match.instances import Instance, best_subsets
from reproductions.blind_match.method import RELEASED, Compatibility, Distortion, matching_accuracy, standardised
from reproductions.blind_match.sampling import half_of, language_prototypes, local_seeds, vision_prototypes
from solvers import solve

GW, RELEASED_GW = Distortion("gw"), Distortion("gw", compatibility=RELEASED)
SIZES = ("N6", "N8", "N8_hard", "N10", "N20", "N30")
NAMES = {"gw": "gw", "ip": "inner_product", "cka": "cka", "knn": "knn"}
LONG = 60.0


def released(short: str, stored: dict) -> Distortion:
    return Distortion(NAMES[short], k=int(stored["knn_k"]), compatibility=RELEASED)


@pytest.mark.parametrize("short", NAMES)
@pytest.mark.parametrize("size", SIZES)
def test_kernels_costs_and_constants_are_those_of_the_released_code(size, short, golden):
    stored = golden(f"blind_match_{size}")
    distortion, n = released(short, stored), len(stored["x"])
    raw = [distortion.kernel(torch.from_numpy(stored[side])) for side in "xy"]
    off = ~np.eye(n, dtype=bool)
    for K, side in zip(raw, ("source", "target"), strict=True):
        np.testing.assert_allclose(K.numpy()[off], stored[f"{short}_kernel_{side}_raw"][off], rtol=0, atol=5e-6)
        np.testing.assert_allclose(standardised(K), stored[f"{short}_kernel_{side}_std"], rtol=0, atol=5e-5)
    V, L = map(standardised, raw)
    problem = distortion.problem(V, L)
    permutations = torch.from_numpy(stored["eval_perms"])
    np.testing.assert_allclose(problem.constant, stored[f"{short}_constant"], rtol=0, atol=3e-6 * n**2)
    expected = stored[f"{short}_objective_of_eval_perms_std"]
    np.testing.assert_allclose(problem.objective(permutations), expected, rtol=0, atol=3e-6 * n**2)
    scores = [distortion.alignment(raw[0], raw[1][p][:, p]) for p in permutations]
    np.testing.assert_allclose(scores, stored[f"{short}_alignment_of_eval_perms_raw"], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("short", NAMES)
@pytest.mark.parametrize("size", SIZES[:4])
def test_the_proven_optimum_is_the_enumerated_one(size, short, golden):
    stored = golden(f"blind_match_{size}")
    distortion = released(short, stored)
    problem = distortion.problem(
        *(standardised(distortion.kernel(torch.from_numpy(stored[s]).double())) for s in ("x", "y"))
    )
    found = solve(problem)
    assert found.status.name == "OPTIMAL"
    n = len(stored["x"])
    np.testing.assert_allclose(found.value, stored[f"{short}_check_best_f64"], rtol=0, atol=1e-4)
    if stored[f"{short}_check_second_best_f64"] - stored[f"{short}_check_best_f64"] > 3e-6 * n**2:
        assert found.permutation.tolist() == stored[f"{short}_check_best_perm"].tolist()


@pytest.mark.parametrize("short", ["gw", "cka", "knn4"])
def test_the_matching_experiment_is_that_of_the_released_code(short, golden):
    stored = golden("blind_match_experiment")
    name = "knn" if short == "knn4" else short
    distortion = Distortion(name, k=4, compatibility=RELEASED)
    vision, labels = torch.from_numpy(stored["vision_embeddings"]), torch.from_numpy(stored["labels"])
    language = language_prototypes(torch.from_numpy(stored["language_embeddings"])[:, None])
    seeds = local_seeds(3, int(stored["seed"]))
    assert seeds == stored["local_seeds"].tolist()
    for k, seed in enumerate(seeds):
        instance = Instance(vision_prototypes(vision, labels, 8, seed), language)
        exact = CONTENDERS["branch and bound"].match(instance, distortion, LONG, seed)
        assert exact.proven
        np.testing.assert_allclose(64 * exact.cost, stored[f"bruteforce_{short}_cost"][k], rtol=0, atol=2e-4)
        if short != "knn4":  # whose optimum is tied
            assert list(exact.permutation) == stored[f"bruteforce_{short}_prediction"][k].tolist()
            assert exact.correct / 8 == stored[f"bruteforce_{short}_accuracy"][k]
        if short == "gw":
            faq = CONTENDERS["FAQ"].match(instance, distortion, LONG, seed)
            np.testing.assert_allclose(64 * faq.cost, stored["faq_gw_cost"][k], rtol=0, atol=2e-4)
            ours = CONTENDERS["FHG"].match(instance, distortion, LONG, seed)
            assert ours.cost == pytest.approx(exact.cost, abs=1e-9)


@pytest.mark.parametrize("size", ["N8", "N10"])
def test_entropic_transport_is_pots_in_double_precision(size, golden):
    """In the released code it runs in single precision, where the plan underflows and the matching is arbitrary."""
    stored = golden(f"blind_match_{size}")
    instance = Instance(*(torch.from_numpy(stored[side]).double() for side in "xy"))
    V, L = (K.numpy() for K in instance.kernels(GW))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Sinkhorn's own, of its iterations
        T = ot.gromov.entropic_gromov_wasserstein(V, 2 * L, loss_fun="square_loss", epsilon=0.1, symmetric=True)
    p = torch.from_numpy(linear_sum_assignment(-T)[1])
    expected = float(instance.problem(GW).objective(p)) / instance.n**2
    found = CONTENDERS["OT"].match(instance, RELEASED_GW, LONG, 0)
    assert found.cost == pytest.approx(expected, abs=1e-6)
    assert found.cost < float(stored["gw_entropic_ot_cost"]) / instance.n**2 / 2


def planted(n: int = 8, seed: int = 0) -> Instance:
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, 6, generator=g, dtype=torch.float64)
    Q = torch.linalg.qr(torch.randn(6, 6, generator=g, dtype=torch.float64)).Q
    return Instance(z, z @ Q)


@pytest.mark.parametrize("name", ["gw", "cka", "knn", "inner_product"])
def test_a_rotation_is_undone_and_proven(name):
    instance = planted()
    found = CONTENDERS["branch and bound"].match(instance, Distortion(name, k=3), LONG, 0)
    assert found.proven
    identity = instance.problem(Distortion(name, k=3)).objective(torch.arange(8)) / 64
    assert found.cost == pytest.approx(float(identity), abs=1e-9)
    if name != "knn":  # whose kernels have few values
        assert found.correct == 8


def test_our_cka_is_that_of_the_centred_kernels():
    """tr(KHLH) over the norms, by its definition; the released row-centred sum is another number."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(7, 5, generator=g, dtype=torch.float64), torch.randn(7, 4, generator=g, dtype=torch.float64)
    H = torch.eye(7, dtype=torch.float64) - 1 / 7

    def hsic(K, L):
        return torch.trace(K @ H @ L @ H)

    K, L = ((z := v / v.std(1, keepdim=True)) @ z.mT for v in (x, y))
    cka = hsic(K, L) / (hsic(K, K) * hsic(L, L)).sqrt()
    ours, theirs = Distortion("cka"), Distortion("cka", compatibility=Compatibility(row_centred_cka=True))
    assert float(-ours.alignment(ours.kernel(x), ours.kernel(y))) == pytest.approx(float(cka), abs=1e-12)
    assert abs(float(-theirs.alignment(theirs.kernel(x), theirs.kernel(y))) - float(cka)) > 1e-3


def test_a_member_is_its_own_neighbour_in_the_released_code_alone():
    x = torch.eye(3, dtype=torch.float64) - 0.5  # all similarities are negative
    released_kernel = Distortion("knn", k=1, compatibility=RELEASED).kernel(x)
    assert (released_kernel.diagonal() > 0).all()
    assert (Distortion("knn", k=1).kernel(x).diagonal() == 0).all()
    with pytest.raises(ValueError, match="3 neighbours need more than 3"):
        Distortion("knn", k=3).kernel(x)


def test_a_subset_is_standardised_on_itself_or_on_all_as_released():
    whole = planted(12)
    part = whole.subset(torch.arange(5))
    V, L = part.kernels(GW)
    for K in (V, L):
        off = K[~torch.eye(5, dtype=torch.bool)]
        assert float(off.mean()) == pytest.approx(0, abs=1e-12)
        assert float(off.std()) == pytest.approx(1)
    assert not torch.allclose(part.kernels(RELEASED_GW)[1], L)
    torch.testing.assert_close(part.kernels(RELEASED_GW)[0], V)


def test_the_best_subset_is_the_planted_one():
    whole = planted(10)
    noise = torch.randn(14, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    mixed = Instance(torch.cat([whole.x, noise]), torch.cat([whole.y, noise[torch.randperm(14)] * 3 + 1]))
    assert best_subsets(mixed, 8, 3, GW)[0].max() < 10


def test_local_cka_is_judged_by_gw_unless_the_released_way_is_asked_for():
    instance = planted()
    ours = CONTENDERS["LocalCKA"].match(instance, GW, LONG, 0)
    p = torch.tensor(ours.permutation)
    assert ours.cost == pytest.approx(float(instance.problem(GW).objective(p)) / 64)
    theirs = CONTENDERS["LocalCKA"].match(instance, RELEASED_GW, LONG, 0)
    assert theirs.cost < 0  # minus a CKA


def test_prompts_that_are_missing_do_not_count():
    texts = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [torch.nan, torch.nan]]])
    expected = torch.tensor([[0.5**0.5, 0.5**0.5], [1.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(language_prototypes(texts), expected)


def test_half_of_the_images_and_what_they_lack():
    assert len(half_of(11, 3)) == 5
    assert half_of(10, 3).tolist() == torch.randperm(10, generator=torch.Generator().manual_seed(3))[:5].tolist()
    with pytest.raises(UserError, match="class 1 has no image"):
        vision_prototypes(torch.ones(4, 2), torch.zeros(4, dtype=torch.int64), 2)


def test_what_a_distortion_refuses():
    with pytest.raises(ValueError, match="a distortion is one of"):
        Distortion("wasserstein")
    with pytest.raises(ValueError, match="k must be at least 1"):
        Distortion("knn", k=0)
    with pytest.raises(ValueError, match="nothing to match by"):
        standardised(torch.ones(3, 3))


def test_accuracy_is_in_percent():
    assert matching_accuracy(torch.tensor([[0, 1, 2], [2, 1, 0]])).tolist() == pytest.approx([100.0, 100 / 3])
