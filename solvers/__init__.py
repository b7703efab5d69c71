"""Solvers that match things, behind one interface.

>>> import numpy as np
>>> from solvers import TransportProblem, solve
>>> solution = solve(TransportProblem(np.array([[0.0, 1.0], [1.0, 0.0]])), "emd")
>>> float(solution.value), solution.status.name
(0.0, 'OPTIMAL')
"""

from solvers.graph_matching import GraphMatchingProblem
from solvers.lazy_plan import LazyPlan
from solvers.partial import PartialTransportProblem
from solvers.point_clouds import PointCloudTransportProblem
from solvers.problems import (
    AssignmentProblem,
    InvalidProblem,
    QuadraticAssignmentProblem,
    TransportProblem,
)
from solvers.registry import UnknownSolver, available_solvers, make_solver, solve
from solvers.solution import Progress, Solution, Status
from solvers.solver import Solver
from solvers.unbalanced import UnbalancedTransportProblem
from solvers.verify import InvalidSolution, check

__all__ = [
    "AssignmentProblem",
    "GraphMatchingProblem",
    "InvalidProblem",
    "InvalidSolution",
    "LazyPlan",
    "PartialTransportProblem",
    "PointCloudTransportProblem",
    "Progress",
    "QuadraticAssignmentProblem",
    "Solution",
    "Solver",
    "Status",
    "TransportProblem",
    "UnbalancedTransportProblem",
    "UnknownSolver",
    "available_solvers",
    "check",
    "make_solver",
    "solve",
]
