"""What makes a problem, and what is refused with which words."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from solvers import AssignmentProblem, InvalidProblem, QuadraticAssignmentProblem, Status, TransportProblem, solve

EYE = np.eye(3)
NAN = np.array([[0.0, np.nan, 1.0], [0.0, 1.0, 2.0]])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TransportProblem(NAN), r"cost holds 1 NaN or infinite entry, the first \(NaN\) at \[0, 1\]"),
        (lambda: AssignmentProblem(EYE / 0.0), r"cost holds 9 NaN or infinite entries"),
        (lambda: AssignmentProblem([[1.0, np.inf]]), r"the first \(infinite\) at \[0, 1\]"),
        (lambda: TransportProblem(EYE, a=[0.5, 0.5, -0.1]), r"a has a negative weight, -0.1"),
        (lambda: TransportProblem(EYE, a=[0.5, 0.5, 0.5]), r"Σa = 1.5 and Σb = 1"),
        (lambda: TransportProblem(EYE, b=[0.5, 0.5]), r"b has shape \(2,\).*must have shape \(3,\)"),
        (lambda: TransportProblem(EYE, a=np.zeros(3), b=np.zeros(3)), r"a has total mass 0"),
        (lambda: TransportProblem(EYE, a=[np.nan, 0.5, 0.5]), r"a holds 1 NaN"),
        (lambda: TransportProblem(np.ones(3)), r"cost has shape \(3,\), but it must be a matrix"),
        (lambda: TransportProblem(np.ones((0, 3))), r"no side may be empty"),
        (lambda: AssignmentProblem(np.ones((2, 3, 0))), r"no side may be empty"),
        (lambda: AssignmentProblem(EYE + 1j), r"must hold real numbers"),
        (lambda: AssignmentProblem([["a", "b"]]), r"must hold real numbers"),
        (lambda: AssignmentProblem([[1, 2], [3]]), r"not a rectangular array"),
        (lambda: QuadraticAssignmentProblem(EYE, np.eye(4)), r"B has shape \(4, 4\).*A has shape \(3, 3\)"),
        (lambda: QuadraticAssignmentProblem(np.ones((2, 3)), EYE), r"A has shape \(2, 3\).*square"),
        (lambda: QuadraticAssignmentProblem(EYE, EYE, np.ones((3, 4))), r"linear has shape \(3, 4\)"),
        (lambda: QuadraticAssignmentProblem(EYE, EYE, constant=np.nan), r"constant must be finite"),
        (lambda: QuadraticAssignmentProblem(np.ones((2, 3, 3)), np.ones((5, 3, 3))), r"batch dimensions"),
        (lambda: TransportProblem(np.ones((4, 3, 3)), a=np.full((5, 3), 1 / 3)), r"\(4, 3\) or \(3,\)"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(make, words):
    with np.errstate(divide="ignore", invalid="ignore"), pytest.raises(InvalidProblem, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_uniform_weights_are_the_default_and_totals_are_made_equal():
    problem = TransportProblem(np.ones((2, 4, 5)))
    assert problem.a.shape == (2, 4)
    torch.testing.assert_close(problem.mass, torch.ones(2, dtype=torch.float64))
    slightly_off = TransportProblem(EYE, a=[0.2, 0.3, 0.5], b=np.array([0.2, 0.3, 0.5]) * (1 + 5e-7))
    assert float((slightly_off.a.sum() - slightly_off.b.sum()).abs()) < 1e-15
    masses = TransportProblem(EYE, a=[1, 2, 3], b=[3, 2, 1])
    assert float(masses.mass) == 6


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (np.int32, torch.float64),
        (np.bool_, torch.float64),
        (np.float16, torch.float32),
        (np.float32, torch.float32),
        (">f8", torch.float64),
        (np.longdouble, torch.float64),
    ],
)
def test_dtypes_at_the_border(given, expected):
    assert AssignmentProblem(EYE.astype(given)).dtype == expected
    assert AssignmentProblem(torch.eye(3, dtype=torch.bfloat16)).dtype == torch.float32


def test_reversed_and_read_only_arrays_are_taken():
    array = np.arange(6.0).reshape(2, 3)[::-1]
    array.flags.writeable = False
    np.testing.assert_array_equal(AssignmentProblem(array).cost.numpy(), array)


def test_koopmans_beckmann_is_the_sum_of_its_definition():
    rng = np.random.default_rng(0)
    A, B, L = rng.random((3, 4, 4))
    p = np.array([2, 0, 3, 1])
    expected = sum(A[i, j] * B[p[i], p[j]] for i in range(4) for j in range(4)) + sum(L[i, p[i]] for i in range(4)) + 7
    problem = QuadraticAssignmentProblem(A, B, L, 7)
    permutation = torch.from_numpy(p)
    assert problem.objective(permutation).item() == pytest.approx(expected)
    assert problem.objective(problem.matrix(permutation)).item() == pytest.approx(expected)
    many = problem.objective(torch.stack([permutation, torch.arange(4)]))
    assert many.shape == (2,)
    assert many[0].item() == pytest.approx(expected)
    assert not problem.is_symmetric


def test_gromov_wasserstein_is_a_qap():
    rng = np.random.default_rng(1)
    Dx, Dy = rng.random((2, 5, 5))
    p = rng.permutation(5)
    distortion = ((Dx - Dy[np.ix_(p, p)]) ** 2).sum()
    problem = QuadraticAssignmentProblem.from_gromov_wasserstein(Dx, Dy)
    assert problem.objective(torch.from_numpy(p)).item() == pytest.approx(distortion)


def test_similarities_enter_with_the_sign_turned():
    S = np.random.default_rng(2).random((4, 4))
    best = solve(AssignmentProblem.from_similarity(S), "brute_force")
    assert best.value.item() == pytest.approx(-S[np.arange(4), best.permutation.numpy()].sum())
    assert solve(TransportProblem.from_similarity(S), "emd").value.item() == pytest.approx(best.value.item() / 4)
    A = np.random.default_rng(3).random((4, 4))
    problem, twin = QuadraticAssignmentProblem.from_similarity(A, S, A, 2), QuadraticAssignmentProblem(A, S, A, 2)
    p = torch.tensor([1, 0, 3, 2])
    assert problem.objective(p).item() == pytest.approx(-twin.objective(p).item())


def test_assignment_and_transport_convert_exactly():
    C = np.random.default_rng(4).random((3, 5, 5))
    assignment = AssignmentProblem(C)
    transport = assignment.to_transport()
    lap, emd = solve(assignment, "jonker_volgenant"), solve(transport, "emd")
    torch.testing.assert_close(lap.value, emd.value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(assignment.matrix(lap.permutation), emd.plan, rtol=0, atol=1e-9)
    back = solve(TransportProblem(C).to_assignment(), "jonker_volgenant")
    torch.testing.assert_close(back.value, emd.value / 5, rtol=1e-12, atol=1e-12)
    with pytest.raises(InvalidProblem, match="unequal weights"):
        TransportProblem(C, a=[0.1, 0.1, 0.2, 0.3, 0.3]).to_assignment()
    with pytest.raises(InvalidProblem, match="3 × 4"):
        AssignmentProblem(np.ones((3, 4))).to_transport()


def test_the_default_solver_is_the_exact_one_for_the_type():
    C = np.random.default_rng(5).random((4, 4))
    assert solve(TransportProblem(C)).solver == "emd"
    assert solve(AssignmentProblem(C)).solver == "jonker_volgenant"
    assert solve(QuadraticAssignmentProblem(C, C)).status is Status.OPTIMAL


def test_feasibility_of_matrices_and_matchings():
    problem = AssignmentProblem(np.ones((3, 2)))
    assert problem.is_feasible(torch.tensor([1, -1, 0]))
    assert not problem.is_feasible(torch.tensor([1, -1, -1]))
    assert not problem.is_feasible(torch.tensor([1, 1, 0]))
    assert problem.is_feasible(torch.tensor([[0.0, 1], [0, 0], [1, 0]]))
    assert not problem.is_feasible(torch.full((3, 2), 0.5))
    assert problem.objective(torch.tensor([1, -1, 0])).item() == 2
    transport = TransportProblem(np.ones((2, 2)))
    assert transport.is_feasible(torch.full((2, 2), 0.25, dtype=torch.float64))
    assert transport.is_feasible(transport.independent_plan())
    assert not transport.is_feasible(torch.full((2, 2), 0.26, dtype=torch.float64))
