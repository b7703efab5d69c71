"""Graph matchings in ``.dd`` files, the format of libmpopt and of the benchmark of Haller et al. (ECCV 2022)."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np

from solvers.graph_matching import GraphMatchingProblem
from solvers.validation import InvalidProblem

READ_OVER = {"c", "i0", "i1", "n0", "n1"}  # comments, coordinates, neighbourhoods
COUNTS = {"p": 5, "a": 5, "e": 4}  # words of a line


def read_dd(path: str | Path) -> GraphMatchingProblem:
    """The problem in a ``.dd`` file, or in one compressed by gzip.

    Raises:
        InvalidProblem: a line that is no line of such a file, with its number and what is expected there; a header that
            counts other than what follows; several problems in one file.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise InvalidProblem(f"{path} is not a .dd file: it cannot be read as text ({error})") from None
    header: tuple[int, ...] | None = None
    choices, edges = list[tuple[int, int, float]](), list[tuple[int, int, float]]()
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        kind = words[0] if words else ""
        if kind in READ_OVER:
            continue

        def wrong(expected: str, line: str = line, number: int = number) -> InvalidProblem:
            return InvalidProblem(f"line {number} of {path} is {line[:60]!r}, but expected is {expected}")

        if kind not in COUNTS or len(words) != COUNTS[kind]:
            raise wrong("'p N0 N1 A E', 'a id i0 i1 cost', 'e id1 id2 cost' or a comment 'c …', one problem a file")
        if (kind == "p") != (header is None):
            raise wrong("one header 'p N0 N1 A E' before all assignments and edges")
        try:
            whole = tuple(int(word) for word in words[1 : 5 if kind == "p" else -1])
            cost = 0.0 if kind == "p" else float(words[-1])
        except ValueError:
            raise wrong("integers, and for the cost a number") from None
        if min(whole) < 0 or not math.isfinite(cost):
            raise wrong("integers that are not negative and a finite cost")
        if header is None:
            header = whole
        elif kind == "a":
            if whole[0] != len(choices) or whole[1] >= header[0] or whole[2] >= header[1]:
                raise wrong(f"the assignment {len(choices)}, of nodes within {header[0]} × {header[1]}")
            choices.append((whole[1], whole[2], cost))
        else:
            if not whole[0] < whole[1] < len(choices):
                raise wrong(f"two assignments id1 < id2 of the {len(choices)} above")
            edges.append((whole[0], whole[1], cost))
    if header is None or (len(choices), len(edges)) != header[2:]:
        said = "has no header" if header is None else f"promises {header[2]} assignments and {header[3]} edges"
        raise InvalidProblem(f"{path} {said}, and it has {len(choices)} and {len(edges)}; is it whole?")
    return _problem(path, header, choices, edges)


def _problem(
    path: Path,
    header: tuple[int, ...],
    choices: list[tuple[int, int, float]],
    edges: list[tuple[int, int, float]],
) -> GraphMatchingProblem:
    linear = np.full(header[:2], np.inf)
    for k, (i, s, cost) in enumerate(choices):
        if np.isfinite(linear[i, s]):
            raise InvalidProblem(f"assignment {k} of {path} is of {i} and {s}, as one before; each may be there once")
        linear[i, s] = cost
    ends = np.array([choice[:2] for choice in choices], np.int64).reshape(-1, 2)
    which = np.array([edge[:2] for edge in edges], np.int64).reshape(-1, 2)
    pairs = np.concatenate([ends[which[:, 0]], ends[which[:, 1]]], 1)
    try:
        return GraphMatchingProblem(linear, pairs, np.array([edge[2] for edge in edges], np.float64))
    except InvalidProblem as error:
        raise InvalidProblem(f"{path}: {error}") from None


def write_dd(path: str | Path, problem: GraphMatchingProblem) -> None:
    """Write a problem as a ``.dd`` file, whole or not at all; a constant goes into a comment.

    Raises:
        InvalidProblem: a complete problem, which the format cannot say.
    """
    if problem.complete:
        raise InvalidProblem("a .dd file cannot say that all nodes are to be matched; make all costs negative instead")
    L = problem.linear.detach().double().cpu().numpy()
    allowed = np.isfinite(L)
    number = np.full(L.shape, -1)
    number[allowed] = np.arange(allowed.sum())
    lines = [f"c constant {float(problem.constant)!r}"] if problem.constant else []
    lines.append(f"p {L.shape[0]} {L.shape[1]} {allowed.sum()} {len(problem.pairs)}")
    lines += [f"a {number[i, s]} {i} {s} {float(L[i, s])!r}" for i, s in np.argwhere(allowed).tolist()]
    costs = problem.pair_costs.detach().double().tolist()
    for (i, s, j, t), cost in zip(problem.pairs.tolist(), costs, strict=True):
        first, second = sorted((int(number[i, s]), int(number[j, t])))
        lines.append(f"e {first} {second} {cost!r}")
    target = Path(path)
    partial = target.with_name(f"{target.name}.part")
    partial.write_text("\n".join([*lines, ""]))
    partial.replace(target)
