"""Omniglot: handwritten characters of many alphabets, and its twenty one-shot classification runs.

Both are read from the official zips, never unpacked, or from the folders they unpack to.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from reproductions import UserError
from reproductions.datasets.files import Tree, folder_or_zip, is_image, open_tree
from reproductions.datasets.images import ImageSet

LICENCE = "MIT"
SOURCE = (
    "B. M. Lake, R. Salakhutdinov, J. B. Tenenbaum, Human-level concept learning through probabilistic program"
    " induction, 2015"
)
SIDE = 105
RUNS = 20
ITEMS = 20
PARTS = ("images_background", "images_background_small1", "images_background_small2")
DRAWING = re.compile(r"(?:.*/)?(?P<character>[^/]+/character\d+)/[^/]+")


@dataclass(frozen=True)
class Download:
    """An official file, where it comes from, and what it must hash to."""

    file: str
    url: str
    sha256: str


SITE = "https://github.com/brendenlake/omniglot/raw/master/python"
DOWNLOADS = (
    Download(
        "images_background_small1.zip",
        f"{SITE}/images_background_small1.zip",
        "f38eb80f801274ac2b4dff5b24289016bfaba4a7d5bb50deebf27104ad6cb8a4",
    ),
    Download(
        "images_background_small2.zip",
        f"{SITE}/images_background_small2.zip",
        "3ccaa407515a8778e5d0861875af38b17e418f301ad5bb3b5a6b65d901a41c7f",
    ),
    Download(
        "all_runs.zip",
        f"{SITE}/one-shot-classification/all_runs.zip",
        "437c1eeab0af8484112e1b4cc0f3d541ec727f7c47b9b202da738af9dfd6c325",
    ),
)


@dataclass(frozen=True, eq=False)
class OneShotRun:
    """One 20-way task: which training character is each test drawing?

    Attributes:
        training, test: float32 ``(20, 1, 105, 105)``, ink = 1.
        answers: int64 ``(20,)``, for each test drawing the position of its class in ``training``.
    """

    training: np.ndarray
    test: np.ndarray
    answers: np.ndarray


def load_omniglot(folder: Path) -> ImageSet:
    """All drawings of the background sets in the folder, ink = 1; a class is "alphabet/characterNN".

    Any of ``images_background``, ``images_background_small1`` and ``images_background_small2`` counts, zipped or
    unpacked. They share alphabets (the two small ones Greek and Latin): a drawing in several of them is taken once.

    Raises:
        UserError: there is none of them, or a drawing is broken or not 105×105.
    """
    parts = [path for stem in PARTS if (path := folder_or_zip(folder, stem)) is not None]
    if not parts:
        raise UserError(f"{folder} has no Omniglot: one of {', '.join(PARTS)} is expected there, zipped or unpacked")
    drawings: dict[tuple[str, str], np.ndarray] = {}
    for part in parts:
        with open_tree(part) as tree:
            found = [(m["character"], name) for name in tree.names if is_image(name) and (m := DRAWING.fullmatch(name))]
            for character, name in found:
                key = character, PurePosixPath(name).name
                if key not in drawings:
                    drawings[key] = _ink(tree, name)
        if not found:
            raise UserError(f"{part} has no drawing: <alphabet>/characterNN/*.png is expected in it")
    classes = tuple(sorted({character for character, _ in drawings}))
    position = {c: k for k, c in enumerate(classes)}
    order = sorted(drawings)
    return ImageSet(
        name="omniglot",
        title="Omniglot background characters",
        tier="local",
        images=np.stack([drawings[key] for key in order]),
        labels=np.array([position[character] for character, _ in order], dtype=np.int64),
        classes=classes,
        licence=LICENCE,
        source=f"{SOURCE}; {', '.join(p.stem for p in parts)}",
    )


def load_one_shot_runs(folder: Path) -> tuple[OneShotRun, ...]:
    """The twenty runs in order, from ``all_runs.zip``, from ``all_runs/`` or from ``run01`` … ``run20`` themselves.

    Raises:
        UserError: a run is missing or incomplete, or its ``class_labels.txt`` does not pair all its files.
    """
    place = folder_or_zip(folder, "all_runs") or folder
    if place == folder and not (folder / "run01").is_dir():
        raise UserError(f"{folder} has no one-shot runs: all_runs.zip or the folders run01 to run{RUNS} are expected")
    with open_tree(place) as tree:
        return tuple(_read_run(tree, f"run{k:02d}") for k in range(1, RUNS + 1))


def _read_run(tree: Tree, run: str) -> OneShotRun:
    names = {
        part: [n for n in tree.names if n.startswith(f"{run}/{part}/") and is_image(n)] for part in ("training", "test")
    }
    for part, found in names.items():
        if len(found) != ITEMS:
            raise UserError(f"{tree.path} has {len(found)} drawings in {run}/{part}, but {ITEMS} are expected")
    listing = f"{run}/class_labels.txt"
    if listing not in tree.names:
        raise UserError(f"{tree.path} has no {listing}: it says which training drawing each test drawing belongs to")
    lines = [line.split() for line in tree.read(listing).decode(errors="replace").splitlines() if line.strip()]
    pairs = {line[0]: line[-1] for line in lines if len(line) == 2}
    if set(pairs) != set(names["test"]) or set(pairs.values()) != set(names["training"]):
        raise UserError(
            f"{tree.path}/{listing} is not as expected: its {ITEMS} lines pair the files of {run}/test"
            f" with those of {run}/training"
        )
    training, test = (np.stack([_ink(tree, n) for n in names[part]]) for part in ("training", "test"))
    return OneShotRun(
        training,
        test,
        answers=np.array([names["training"].index(pairs[n]) for n in names["test"]], dtype=np.int64),
    )


def _ink(tree: Tree, name: str) -> np.ndarray:
    """A drawing ``(1, 105, 105)``: the files have black ink on white paper."""
    return 1 - tree.pixels(name, "L", SIDE)
