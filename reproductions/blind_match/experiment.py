"""The tables of "It's a (Blind) Match!": synthetic clouds and colours for everyone, real data where there is some."""

from __future__ import annotations

from collections.abc import Callable

from reproductions.blind_match import ablation_rows, cifar10, colours, official, official_figures, tiny_imagenet
from reproductions.blind_match.figures import draw_colours, draw_shuffling, draw_sizes
from reproductions.blind_match.sides import stored_pairs
from reproductions.datasets.colours import load_colours
from reproductions.experiment import Advance, Measured, Options, Row

DRAWN_SIZES = (10, 20)  # of the colours


def rows(options: Options) -> list[Row]:
    """What everyone can run; the stored vectors of a folder; the paper's own tables, where its data are."""
    local = cifar10.rows(options) + tiny_imagenet.rows(options)
    return ablation_rows.rows(options) + colours.rows() + local + official.rows(options)


def prepare(options: Options, advance: Advance) -> None:
    """Embed the images and texts of the data sets in the folder with the networks whose weights are there."""
    official.prepare(options, advance)


def measure(row: Row, options: Options, advance: Callable[[float], None]) -> Measured:
    """One number, by whoever the row's table belongs to."""
    if row.table in official.STUDIES:
        return official.measure(row, options, advance)
    for part, name in ((ablation_rows, "hahn_grant"), (colours, "colours"), (cifar10, "cifar10")):
        if row.table.startswith(name):
            return part.measure(row, options, advance)
    return tiny_imagenet.measure(row, options, advance)


def pictures(options: Options) -> dict[str, bytes]:
    """Colours with the names they were given, alignment under shuffling, solvers against N, and the paper's own."""
    found = {"colours_matched": _colours(options), "colours_shuffled_curves": _shuffled()}
    if "tiny_imagenet_100" in stored_pairs(options.data):
        found["tiny_imagenet_100_curves"] = _sizes("tiny_imagenet_100", options)
    return found | official_figures.pictures(options)


def _colours(options: Options) -> bytes:
    names = load_colours().names
    groups = {}
    for row in colours.rows():
        if row.column == "cost" and row.row in {f"N = {n}" for n in DRAWN_SIZES}:
            members = colours.members(row.settings["n"]).tolist()
            groups[row.row] = [names[k] for k in members], colours.matches(row, options)[0]
    return draw_colours(groups)


def _shuffled() -> bytes:
    return draw_shuffling(colours.LEVELS, {name: colours.similarities(name).numpy() for name in colours.DISTORTIONS})


def _sizes(study: str, options: Options) -> bytes:
    sizes, curves = list(tiny_imagenet.SIZES[study]), dict[str, list]()
    for row in tiny_imagenet.rows(options):
        if row.table != f"{study}_cost":
            continue
        match = None if row.missing else tiny_imagenet.matches(row, options)[0]
        curves.setdefault(row.row, []).append(match)
    known = {name: matches for name, matches in curves.items() if any(matches) and name != "Random"}
    limit = f"{tiny_imagenet.LIMIT:g} s"
    return draw_sizes(f"Tiny-ImageNet, best N of 100 classes, {limit} each", sizes, known)
