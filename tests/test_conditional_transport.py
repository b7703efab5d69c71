"""Conditional transport: the papers' own figures, a naive two-softmax reference, gradients, masks, limits, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from solvers import InvalidProblem, TransportProblem, make_solver, solve
from solvers.conditional_transport import FORMS, conditional_transport, conditional_transport_features
from solvers.navigators import distance, nearness, plain_costs

DOUBLE = torch.float64
AFFINITIES = ["cosine", "inner", "sqeuclidean"]
COSTS = list(FORMS)


def rand(*shape: int, dtype=DOUBLE, seed: int = 0, positive: bool = False) -> Tensor:
    g = torch.Generator().manual_seed(seed + 1000 * len(shape) + sum(shape))
    x = torch.randn(*shape, generator=g, dtype=DOUBLE)
    return (x.abs() + 0.1 if positive else x).to(dtype)


def naive(s, c, theta=None, beta=None, tau=1.0, p=None, q=None):
    """(L_f, L_b, π_f, π_b) as papers write them."""
    n, m = s.shape[-2:]
    theta = torch.full((n,), 1 / n, dtype=s.dtype) if theta is None else theta
    beta = torch.full((m,), 1 / m, dtype=s.dtype) if beta is None else beta
    p, q = theta if p is None else p, beta if q is None else q
    tau = torch.as_tensor(tau, dtype=s.dtype)[..., None, None]
    forward = torch.softmax(s / tau + q.log().unsqueeze(-2), -1)
    backward = torch.softmax(s / tau + p.log().unsqueeze(-1), -2)
    return (theta * (forward * c).sum(-1)).sum(-1), (beta * (backward * c).sum(-2)).sum(-1), forward, backward


def same(x, y, rtol: float, atol: float = 0.0):
    """Equal to ``rtol`` of the largest entry."""
    x, y = (torch.as_tensor(v).detach().double() for v in (x, y))
    torch.testing.assert_close(x, y, rtol=0, atol=rtol * y.abs().max().item() + atol)


def squares(x, y):
    return (x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1)


# ------------------------------------------------------------------------------------------- the papers' own figures


@pytest.mark.parametrize("name", ["ct_fixed_A", "ct_fixed_B"])
def test_fixed_exponents_of_ct_pytorch(golden, name):
    stored = {k: torch.from_numpy(np.asarray(v)) for k, v in golden(name).items()}
    x, y, E = (stored[k].clone().requires_grad_() for k in ("x", "y", "exponent"))
    rho = stored["rho"].item()
    cost = squares(x, y)
    same(distance(x[None], y[None], "sqeuclidean")[0], stored["cost"], 1e-5)
    result = conditional_transport(E, cost, rho=rho)
    torch.testing.assert_close(result.forward_map, stored["forward_map"], rtol=0, atol=1e-6)
    torch.testing.assert_close(result.backward_map, stored["backward_map"], rtol=0, atol=1e-6)
    torch.testing.assert_close(result.loss, stored["ct"], rtol=1e-6, atol=0)
    torch.testing.assert_close(result.loss.double(), stored["check_f64_ct"], rtol=1e-6, atol=0)
    for share, key in ((1.0, "ct_forward_only"), (0.0, "ct_backward_only")):
        torch.testing.assert_close(conditional_transport(E, cost, rho=share).loss, stored[key], rtol=1e-6, atol=0)
    for gradient, key in zip(torch.autograd.grad(result.loss, (x, y, E)), "xyE", strict=True):
        same(gradient, stored[f"grad_{'exponent' if key == 'E' else key}"], 1e-5)
    for tag, affinity, tau in (("negsqdist_tau2", "sqeuclidean", 2.0), ("cos_tau0.1", "cosine", 0.1)):
        result = conditional_transport_features(x, y, affinity, "sqeuclidean", temperature=tau, rho=rho)
        given = conditional_transport(stored[f"exponent_{tag}"], stored["cost"], rho=rho)
        for it, tolerance in ((given, 1e-6), (result, 5e-6)):
            torch.testing.assert_close(it.forward_map, stored[f"forward_map_{tag}"], rtol=0, atol=tolerance)
            torch.testing.assert_close(it.backward_map, stored[f"backward_map_{tag}"], rtol=0, atol=tolerance)
            torch.testing.assert_close(it.loss, stored[f"ct_{tag}"], rtol=1e-6, atol=0)


def test_learned_navigator_of_ct_pytorch(golden):
    stored = {k: torch.from_numpy(np.asarray(v)) for k, v in golden("ct_navigator").items()}
    layers = [torch.nn.Linear(6, 20), torch.nn.LeakyReLU(), torch.nn.Linear(20, 10), torch.nn.LeakyReLU()]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(10, 1))
    model.load_state_dict({k.removeprefix("w::model."): v for k, v in stored.items() if k.startswith("w::")})
    x, y = (stored[k].clone().requires_grad_() for k in "xy")
    mlp = model((x[:, None] - y[None]).square()).squeeze(-1)
    cost = squares(x, y)
    same(cost, stored["cost"], 1e-5)
    readme = conditional_transport(-mlp, cost, rho=stored["rho"].item())
    toy = conditional_transport(mlp, cost)
    same(readme.loss, stored["readme_ct"], 1e-5)
    same(toy.forward_cost, stored["toy_forward_loss"], 1e-5)
    same(toy.backward_cost, stored["toy_backward_loss"], 1e-5)
    for result, tag in ((readme, "readme"), (toy, "toy")):
        same(result.forward_map, stored[f"{tag}_forward_map"], 1e-5)
        same(result.backward_map, stored[f"{tag}_backward_map"], 1e-5)
    same(torch.autograd.grad(toy.loss, y, retain_graph=True)[0], stored["toy_grad_y"], 1e-5)
    readme.loss.backward()
    same(x.grad, stored["readme_grad_x"], 1e-5)
    same(y.grad, stored["readme_grad_y"], 1e-5)
    for k, w in model.named_parameters():
        wanted = stored[f"readme_grad_w::model.{k}"]
        # A bias added to every exponent changes nothing: its gradient is rounding alone.
        same(w.grad, wanted, 1e-5, atol=1e-6 if k == "4.bias" else 0.0)


def test_words_and_topics_of_wete(golden):
    stored = {k: torch.from_numpy(np.asarray(v)) for k, v in golden("ct_weighted_words_topics").items()}
    words, topics = stored["word_embeddings"], stored["topic_embeddings"].clone().requires_grad_()
    theta = stored["theta"].clone().requires_grad_()
    docs = stored["docs_padded_minus1"]
    same(distance(words[None], topics[None], "exponential")[0], stored["cost"], 1e-5)
    by_features = conditional_transport_features(
        words[docs], topics, "inner", "exponential", beta=theta.softmax(-1), mask_x=docs >= 0
    )
    inner = (words @ topics.T)[docs]
    cost = torch.exp(-inner).clamp(1e-30, 1e10)
    by_matrices = conditional_transport(inner, cost, beta=theta.softmax(-1), mask_x=docs >= 0)
    for result in (by_features, by_matrices):
        same(result.forward_cost, stored["forward_cost_per_doc"], 1e-5)
        same(result.backward_cost, stored["backward_cost_per_doc"], 1e-5)
        same(result.forward_cost.sum(), stored["forward_cost_sum"], 1e-5)
        same(result.backward_cost.sum(), stored["backward_cost_sum"], 1e-5)
        to_topics, to_theta = torch.autograd.grad(result.loss.sum(), (topics, theta), retain_graph=True)
        same(to_topics, stored["grad_topics_of_half_sum"], 1e-5)
        same(to_theta, stored["grad_theta_of_half_sum"], 1e-5)


@pytest.mark.parametrize(("t", "b", "s"), [("1", "0.1", "0.5"), ("0.3", "0", "1"), ("0.3", "0", "0")])
def test_prototypes_with_a_running_prior_of_proto_da(golden, t, b, s):
    stored = {k: torch.from_numpy(np.asarray(v)) for k, v in golden("ct_prototypes").items()}
    prototypes, features = (stored[k].clone().requires_grad_() for k in ("prototypes", "features"))
    tag, tau, momentum, share = f"t{t}_b{b}_s{s}", float(t), float(b), float(s)

    def transport(prior):
        return conditional_transport_features(
            prototypes, features, "inner", "cosine", theta=prior, prior_x=prior + 1e-8, temperature=tau, rho=1 - share
        )

    prior = torch.full((7,), 1 / 7)
    seen = transport(prior).backward_map.detach().mean(-1)
    prior = (1 - momentum) * prior + momentum * seen
    same(prior, stored[f"prop_after_{tag}"], 1e-5)
    loss = transport(prior).loss
    same(loss, stored[f"loss_{tag}"], 1e-5)
    for gradient, key in zip(
        torch.autograd.grad(loss, (prototypes, features)), ("prototypes", "features"), strict=True
    ):
        same(gradient, stored[f"grad_{key}_{tag}"], 1e-5)


# --------------------------------------------------------------------------------------------- against the reference


def arguments(batch=(2,), n=6, m=5, dtype=DOUBLE, scale=1.0):
    """s, c, θ, β, p, q and τ of a batch, all with gradients."""
    made = (
        rand(*batch, n, m, dtype=dtype, seed=1) * scale,
        rand(*batch, n, m, dtype=dtype, seed=2),
        *(rand(*batch, k, dtype=dtype, seed=i, positive=True) for i, k in enumerate((n, m, n, m))),
        rand(*batch, dtype=dtype, seed=7, positive=True),
    )
    return tuple(t.requires_grad_() for t in made)


def by_core(s, c, theta, beta, p, q, tau, rho=0.3):
    return conditional_transport(s, c, theta, beta, temperature=tau, rho=rho, prior_x=p, prior_y=q)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("scale", [1.0, 30.0, 3000.0])
@pytest.mark.parametrize(("n", "m"), [(6, 5), (1, 4), (5, 1), (70, 65), (3, 5000)])
def test_values_maps_and_gradients_are_those_of_two_softmaxes(dtype, scale, n, m):
    inputs = arguments((2,), n, m, dtype, scale)
    wide = tuple(t.detach().double().requires_grad_() for t in inputs)
    s, c, theta, beta, p, q, tau = wide
    L_f, L_b, forward, backward = naive(s, c, theta, beta, tau, p, q)
    result, tolerance = by_core(*inputs), 1e-12 if dtype == DOUBLE else 3e-6
    assert result.loss.dtype == result.plan.dtype == dtype
    same(result.forward_cost, L_f, tolerance)
    same(result.backward_cost, L_b, tolerance)
    same(result.loss, 0.3 * L_f + 0.7 * L_b, tolerance)
    exponent = scale * 4 / wide[-1].min().item()  # what rounding of s/τ does to the maps
    maps = tolerance + (1e-15 if dtype == DOUBLE else 5e-7) * exponent
    same(result.forward_map, forward, maps)
    same(result.backward_map, backward, maps)
    plan = 0.3 * theta.unsqueeze(-1) * forward + 0.7 * backward * beta.unsqueeze(-2)
    same(result.plan, plan, maps)
    got = torch.autograd.grad(result.loss.sum(), inputs)
    wanted = torch.autograd.grad((0.3 * L_f + 0.7 * L_b).sum(), wide)
    size = wanted[1].abs().max().item()
    for x, y in zip(got, wanted, strict=True):
        same(x, y, 30 * maps, atol=30 * maps * size)


def test_gradcheck_of_costs_maps_and_plan():
    def costs(*inputs):
        result = by_core(*inputs)
        return result.loss, result.forward_cost, result.backward_cost

    def maps(s, *others):
        result = by_core(s, s.detach(), *others)
        return result.forward_map, result.backward_map, result.plan

    for scale in (1.0, 400.0):  # one reference a problem, and one a row and column
        inputs = arguments((2,), 4, 3, scale=1.0)
        inputs = (inputs[0], *inputs[1:6], inputs[6])
        shift = torch.zeros(4, 3, dtype=DOUBLE)
        shift[0], shift[1] = scale, -scale
        assert gradcheck(lambda s, *o, shift=shift: costs(s + shift, *o), inputs)
        assert gradcheck(lambda s, *o, shift=shift: maps(s + shift, *o), (inputs[0], *inputs[2:]))
    shared = torch.tensor(0.7, dtype=DOUBLE, requires_grad=True)
    assert gradcheck(costs, (*inputs[:6], shared))


def test_a_second_derivative_is_refused():
    s, c, *others = arguments()
    weight = torch.ones(2, dtype=DOUBLE, requires_grad=True)
    (gradient,) = torch.autograd.grad((weight * by_core(s, c, *others).loss).sum(), s, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("affinity", AFFINITIES)
@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize(
    ("x", "y"), [((2, 4, 6), (2, 3, 6)), ((2, 4, 6), (3, 6)), ((4, 6), (2, 3, 6)), ((4, 6), (3, 6))]
)
def test_features_are_the_matrices_made_of_them(affinity, cost, x, y):
    x, y = (rand(*shape).requires_grad_() for shape in (x, y))
    tau = torch.tensor(0.7, dtype=DOUBLE, requires_grad=True)
    beta = rand(3, positive=True).requires_grad_()

    def features(x, y, beta, tau):
        result = conditional_transport_features(x, y, affinity, cost, beta=beta, temperature=tau, rho=0.3)
        return result.loss, result.forward_cost

    assert gradcheck(features, (x, y, beta, tau))
    s = {"cosine": torch.cosine_similarity(x.unsqueeze(-2), y.unsqueeze(-3), dim=-1), "inner": x @ y.mT}
    s["sqeuclidean"] = -squares(x, y)
    c = {"cosine": 1 - s["cosine"], "inner": -s["inner"], "exponential": torch.exp(-s["inner"])}
    c["sqeuclidean"] = squares(x, y)
    wanted = conditional_transport(s[affinity], c[cost], beta=beta, temperature=tau, rho=0.3)
    result = conditional_transport_features(x, y, affinity, cost, beta=beta, temperature=tau, rho=0.3)
    same(result.loss, wanted.loss, 1e-12)
    same(result.plan, wanted.plan, 1e-12)
    same(nearness(x, y, affinity), s[affinity], 1e-12)


def test_zero_vectors_and_distances_far_from_the_origin():
    x, y = rand(4, 6).requires_grad_(), rand(3, 6)
    with torch.no_grad():
        x[1] = 0
    result = conditional_transport_features(x, y, temperature=0.1)
    (gradient,) = torch.autograd.grad(result.loss, x)
    assert torch.isfinite(gradient).all()
    assert (gradient[1] == 0).all()
    near = conditional_transport_features(x, y, "sqeuclidean", "sqeuclidean").loss
    x, y = x.detach().float() + 1000, y.float() + 1000
    same(conditional_transport_features(x, y, "sqeuclidean", "sqeuclidean").loss, near, 1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("scale", [1.0, 3000.0])
def test_plain_operations_of_torch_agree_with_the_kernel(dtype, scale):
    """What runs on other devices, here on the CPU."""
    s, c, theta, beta, p, q, tau = (t.detach() for t in arguments((3,), 7, 4, dtype, scale))
    p, q = (w / w.amax(-1, keepdim=True) for w in (p, q))
    q[0, 1] = p[1, 0] = 0
    inputs = tuple(t.requires_grad_() for t in (s, c, theta, beta, p, q, tau))
    forward, backward = plain_costs(*inputs[:-1], inputs[-1].double())
    result = by_core(*inputs)
    tolerance = 1e-11 if dtype == DOUBLE else 3e-3 if scale > 1 else 3e-5
    same(result.forward_cost, forward, tolerance)
    same(result.backward_cost, backward, tolerance)
    ours = torch.autograd.grad((result.forward_cost + 2 * result.backward_cost).sum(), inputs)
    plain = torch.autograd.grad((forward + 2 * backward).sum(), inputs)
    for x, y in zip(ours, plain, strict=True):
        same(x, y, tolerance, atol=tolerance)


# ------------------------------------------------------------------------------------------------------ batches, masks


@pytest.mark.parametrize("features", [False, True])
def test_a_padded_batch_is_a_loop_over_sets_of_different_size(features):
    sizes = [(5, 3), (2, 6), (7, 1), (1, 1)]
    mask_x, mask_y = (torch.arange(k) < torch.tensor(sizes)[:, [side]] for side, k in enumerate((7, 6)))
    theta, beta = rand(4, 7, positive=True).requires_grad_(), rand(4, 6, positive=True).requires_grad_()
    if features:
        pair = rand(4, 7, 5), rand(4, 6, 5)
        pair[0][~mask_x], pair[1][~mask_y] = torch.nan, torch.inf
        transport = conditional_transport_features
    else:
        pair = rand(4, 7, 6), rand(4, 7, 6, seed=1)
        for M in pair:
            M[~(mask_x[:, :, None] & mask_y[:, None])] = torch.nan
        transport = conditional_transport
    pair = tuple(M.requires_grad_() for M in pair)
    settings = {"temperature": 0.4, "rho": 0.3}
    for weights in ((None, None), (theta, beta)):
        together = transport(*pair, theta=weights[0], beta=weights[1], mask_x=mask_x, mask_y=mask_y, **settings)
        wanted = pair if weights[0] is None else (*pair, *weights)
        gradients = torch.autograd.grad(together.loss.sum(), wanted)
        for k, (n, m) in enumerate(sizes):
            w = (None, None) if weights[0] is None else (theta[k, :n], beta[k, :m])
            cut = (pair[0][k, :n], pair[1][k, :m]) if features else tuple(M[k, :n, :m] for M in pair)
            alone = transport(*cut, theta=w[0], beta=w[1], **settings)
            same(together.loss[k], alone.loss, 1e-12)
            for whole, part in ((together.plan, alone.plan), (together.forward_map, alone.forward_map)):
                same(whole[k, :n, :m], part, 1e-12)
                assert whole[k].sum().item() == pytest.approx(part.sum().item(), rel=1e-12)
            own = torch.autograd.grad(alone.loss, wanted)
            for gradient, reference in zip(gradients, own, strict=True):
                same(gradient[k], reference[k], 1e-12)


def test_a_batch_is_a_loop_to_the_last_bit():
    inputs = tuple(t.detach() for t in arguments((2, 3), 9, 8, torch.float32))
    together = by_core(*inputs)
    assert together.loss.shape == (2, 3)
    for k in np.ndindex(2, 3):
        alone = by_core(*(t[k] for t in inputs))
        assert torch.equal(together.loss[k], alone.loss)
        assert torch.equal(together.plan[k], alone.plan)


def test_layout_and_threads_do_not_matter():
    s, c, *others = (t.detach() for t in arguments((5,), 9, 8))
    wanted = by_core(s, c, *others)
    twin = by_core(s.mT.contiguous().mT, c.mT.contiguous().mT, *others)
    assert torch.equal(twin.loss, wanted.loss)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(by_core(s, c, *others).loss, wanted.loss)
    finally:
        torch.set_num_threads(before)


# --------------------------------------------------------------------------------------------------------- the limits


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_the_cold_limit_is_chamfer_and_the_hot_one_the_independent_coupling(dtype):
    c = rand(3, 6, 5, dtype=dtype, positive=True)
    theta, beta = (rand(3, k, dtype=dtype, positive=True).softmax(-1) for k in (6, 5))
    for tau in (1e-6, 1e-30):
        cold = conditional_transport(-c, c, theta, beta, temperature=tau)
        same(cold.forward_cost, (theta * c.amin(-1)).sum(-1), 1e-6)
        same(cold.backward_cost, (beta * c.amin(-2)).sum(-1), 1e-6)
    hot = conditional_transport(-c, c, theta, beta, temperature=1e9)
    independent = (theta.unsqueeze(-1) * beta.unsqueeze(-2) * c).sum((-2, -1))
    same(hot.forward_cost, independent, 1e-6)
    same(hot.backward_cost, independent, 1e-6)


def test_a_point_of_weight_zero_has_a_one_sided_derivative():
    s, c = (t.detach() for t in arguments((1,), 4, 3)[:2])
    for weight in (0.0, 1e-7):
        beta = torch.tensor([[0.5, weight, 0.5]], dtype=DOUBLE, requires_grad=True)
        loss = conditional_transport(s, c, beta=beta).loss
        (gradient,) = torch.autograd.grad(loss.sum(), beta)
        if weight == 0:
            value, slope = loss.item(), gradient[0, 1].item()
    assert slope == pytest.approx((loss.item() - value) / 1e-7, rel=1e-4)
    far = torch.tensor([[[0.0, 1e6, 0.0]]], dtype=torch.float32)
    beta = torch.tensor([[0.5, 0.0, 0.5]], requires_grad=True)
    (gradient,) = torch.autograd.grad(conditional_transport(far, 1e9 + far, beta=beta).loss.sum(), beta)
    assert torch.isfinite(gradient).all()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_finite_problem(data):
    n, m = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    dtype = data.draw(st.sampled_from([torch.float32, DOUBLE]))
    scale = 10.0 ** data.draw(st.integers(-12, 12))
    tau = 10.0 ** data.draw(st.integers(-12, 12))
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    points = torch.randn(n + m, 3, generator=g, dtype=DOUBLE)
    if data.draw(st.booleans()):
        points = points[torch.randint(2, (n + m,), generator=g)]  # repeated points
    c = (scale * squares(points[:n], points[n:])).to(dtype).requires_grad_()
    theta, beta = (torch.rand(k, generator=g, dtype=DOUBLE).to(dtype) for k in (n, m))
    if data.draw(st.booleans()):
        theta, beta = (w * (w > 0.5) + (torch.arange(len(w)) == 0) for w in (theta, beta))  # zero weights
    theta, beta = ((w / w.sum()).requires_grad_() for w in (theta, beta))
    result = conditional_transport(-c, c, theta, beta, temperature=tau)
    eps = 1e-12 if dtype == DOUBLE else 2e-5
    low, high = c.min().item(), c.max().item()
    assert low * (1 - eps) <= result.loss.item() <= high * (1 + eps)
    same(result.forward_map.sum(-1), torch.ones(n), eps)
    same(result.backward_map.sum(-2), torch.ones(m), eps)
    assert result.plan.min() >= 0
    assert (result.forward_map[:, beta == 0] == 0).all()
    assert (result.backward_map[theta == 0] == 0).all()
    same((c * result.plan).sum(), result.loss, eps)
    same(result.plan.sum(), torch.ones(()), eps)
    for gradient in torch.autograd.grad(result.loss, (c, theta, beta)):
        assert torch.isfinite(gradient).all()


# --------------------------------------------------------------------------------------------- the solver, refusals


def test_the_solver_is_the_loss_and_its_plan_has_the_gradients():
    C = rand(2, 5, 4, positive=True).requires_grad_()
    a, b = (rand(2, k).softmax(-1).requires_grad_() for k in (5, 4))
    s = rand(2, 5, 4, seed=3).requires_grad_()
    for affinity in (None, s):
        solver = make_solver("conditional_transport", temperature=0.3, rho=0.8, affinity=affinity)
        solution = solver.solve(TransportProblem(C, a, b))
        wanted = conditional_transport(-C if affinity is None else s, C, a, b, temperature=0.3, rho=0.8)
        same(solution.value, wanted.loss, 1e-12)
        same(solution.plan, wanted.plan, 1e-12)
        inputs = (C, a, b) if affinity is None else (C, a, b, s)
        for x, y in zip(*(torch.autograd.grad(v.sum(), inputs) for v in (solution.value, wanted.loss)), strict=True):
            same(x, y, 1e-10)

    def plan(C, s, a, b):
        problem = TransportProblem(C, a.softmax(-1), b.softmax(-1))
        return make_solver("conditional_transport", affinity=s).solve(problem).plan

    assert gradcheck(plan, (C, s, a.detach().requires_grad_(), b.detach().requires_grad_()))
    only_affinity = make_solver("conditional_transport", affinity=s).solve(TransportProblem(C.detach()))
    assert torch.autograd.grad(only_affinity.value.sum(), s)[0].abs().max() > 0


def test_each_half_of_the_plan_keeps_its_marginal():
    problem = TransportProblem(rand(3, 5, 4, positive=True), 2 * rand(5).softmax(-1), 2 * rand(4).softmax(-1))
    forward, backward = (solve(problem, "conditional_transport", rho=rho).plan for rho in (1.0, 0.0))
    same(forward.sum(-1), problem.a, 1e-12)
    same(backward.sum(-2), problem.b, 1e-12)
    both = solve(problem, "conditional_transport", rho=0.25)
    same(both.plan, 0.25 * forward + 0.75 * backward, 1e-12)
    same(both.plan.sum((-2, -1)), problem.mass, 1e-12)


GOOD = {"affinity": torch.rand(2, 3, 4), "cost": torch.rand(2, 3, 4)}
BAD = {
    "temperature 0": ({"temperature": 0.0}, "temperature must be positive.*not 0"),
    "temperature NaN": ({"temperature": float("nan")}, "temperature must be positive"),
    "temperature of a shape": ({"temperature": torch.ones(3)}, r"temperature has shape \(3,\)"),
    "rho above 1": ({"rho": 1.5}, r"rho must be in \[0, 1\], not 1.5"),
    "cost of another shape": ({"cost": torch.rand(2, 4, 3)}, "affinity has shape .* and cost .*the same"),
    "vector": ({"affinity": torch.rand(3), "cost": torch.rand(3)}, "must be a matrix"),
    "NaN affinity": ({"affinity": torch.full((2, 3, 4), torch.nan)}, "affinity holds 24 NaN"),
    "infinite cost": ({"cost": torch.full((2, 3, 4), torch.inf)}, "cost holds 24 NaN or infinite"),
    "theta of another size": ({"theta": torch.ones(4)}, r"theta has shape \(4,\)"),
    "negative beta": ({"beta": -torch.ones(4)}, "beta has a negative weight"),
    "negative prior": ({"prior_y": -torch.ones(4)}, "prior_y has a negative weight"),
    "beta all zero": ({"beta": torch.zeros(4)}, "beta leaves no point with a positive weight in problem 0"),
    "prior all zero": (
        {"prior_x": torch.eye(2, 3) * torch.tensor([[1.0], [0.0]])},
        "prior_x leaves no point.*problem 1",
    ),
    "mask of numbers": ({"mask_x": torch.ones(3)}, "mask_x has shape .* must be bool"),
    "mask of another size": ({"mask_y": torch.ones(3, dtype=torch.bool)}, r"mask_y has shape \(3,\)"),
    "mask of nothing": ({"mask_y": torch.zeros(4, dtype=torch.bool)}, "mask_y leaves no point"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_refused_in_one_sentence(what):
    wrong, sentence = BAD[what]
    with pytest.raises(InvalidProblem, match=sentence):
        conditional_transport(**GOOD | wrong)


def test_bad_features_and_settings_are_refused():
    x, y = torch.rand(2, 3, 5), torch.rand(2, 4, 5)
    with pytest.raises(InvalidProblem, match=r"x has shape \(2, 3, 5\) and y \(2, 4, 6\)"):
        conditional_transport_features(x, torch.rand(2, 4, 6))
    with pytest.raises(InvalidProblem, match="must be"):
        conditional_transport_features(x, torch.rand(3, 4, 5))
    with pytest.raises(
        ValueError, match=r"affinity must be one of 'cosine', 'inner', 'sqeuclidean', not 'exponential'"
    ):
        conditional_transport_features(x, y, "exponential")
    with pytest.raises(ValueError, match=r"cost must be one of .*, not 'l2'"):
        conditional_transport_features(x, y, cost="l2")
    for setting, value in (("temperature", 0.0), ("temperature", float("inf")), ("rho", -0.1), ("rho", float("nan"))):
        with pytest.raises(ValueError, match=setting):
            make_solver("conditional_transport", **{setting: value})
    with pytest.raises(InvalidProblem, match=r"affinity has shape \(4, 3\) and cost \(3, 4\)"):
        solve(TransportProblem(torch.rand(3, 4)), "conditional_transport", affinity=torch.rand(4, 3))


@pytest.mark.gpu
def test_costs_maps_and_gradients_on_the_gpu_are_those_of_the_cpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    here = arguments((3,), 7, 4)
    there = tuple(t.detach().cuda().requires_grad_() for t in here)
    results = by_core(*here), by_core(*there)
    for name in ("loss", "forward_map", "backward_map", "plan"):
        got = getattr(results[1], name)
        assert got.device.type == "cuda"
        same(got.cpu(), getattr(results[0], name), 1e-12)
    for x, y in zip(
        *(torch.autograd.grad(r.loss.sum(), i) for r, i in zip(results, (here, there), strict=True)), strict=True
    ):
        same(y.cpu(), x, 1e-11)
    for affinity in AFFINITIES:
        for cost in COSTS:
            x, y = rand(2, 4, 6), rand(3, 6)
            losses = [
                conditional_transport_features(u, v, affinity, cost).loss for u, v in ((x, y), (x.cuda(), y.cuda()))
            ]
            same(losses[1].cpu(), losses[0], 1e-12)
