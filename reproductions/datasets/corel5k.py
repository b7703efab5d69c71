"""Corel5k: images as sets of visual tokens with several words each, in Mulan's sparse ARFF."""

from __future__ import annotations

import gzip
import re
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from reproductions import UserError
from reproductions.datasets.annotations import check_split, existing
from reproductions.datasets.multi_label import check_unique
from reproductions.storage import content_hash

LICENCE = "not known (Corel images; the tokens are public)"
SOURCE = (
    "P. Duygulu, K. Barnard, J. F. G. de Freitas, D. A. Forsyth, Object Recognition as Machine Translation, 2002;"
    " G. Tsoumakas et al., Mulan, 2011"
)
FOLDERS = ("corel5k", "Corel5k")
SPLITS = {"train": 4500, "test": 500}
TOKENS, WORDS = 499, 374
ATTRIBUTE = re.compile(r"@attribute\s+(?P<name>'[^']*'|\"[^\"]*\"|\S+)\s", re.IGNORECASE)
PADDING = -1


@dataclass(frozen=True, eq=False)
class TokenSets:
    """Images that are sets of visual tokens, with the words for them.

    Attributes:
        tokens: int64 ``(n, K)``, numbers from 0 to 498 in increasing order, ``PADDING`` after the last of an image.
        mask: bool ``(n, K)``, true where there is a token.
        targets: int8 ``(n, 374)``: 1 where the word was given; some words are given to no image of a split.
    """

    split: str
    tokens: np.ndarray
    targets: np.ndarray
    words: tuple[str, ...]
    vocabulary: int = TOKENS
    licence: str = LICENCE
    source: str = SOURCE

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def mask(self) -> np.ndarray:
        return self.tokens != PADDING

    @cached_property
    def sha256(self) -> str:
        """Hash of all tokens, targets and words."""
        return content_hash(self.tokens, self.targets, list(self.words))


def load_corel5k(root: Path, split: str) -> TokenSets:
    """The train (4,500) or test (500 images) split of ``corel5k/Corel5k-<split>-sparse.arff``, which may be gzipped.

    ``Corel5k.xml`` names the 374 words; all other attributes are tokens.

    Raises:
        UserError: an unknown split, or a file that is missing, truncated or not as expected.
    """
    check_split(split, tuple(SPLITS), "Corel5k")
    folder = next((root / name for name in FOLDERS if (root / name).is_dir()), root)
    plain = folder / f"Corel5k-{split}-sparse.arff"
    path = plain if plain.exists() else existing(plain.with_name(f"{plain.name}.gz"), "the table of Corel5k")
    words = _words(folder / "Corel5k.xml")
    attributes, rows = _read_sparse(path)
    if len(rows) != SPLITS[split]:
        raise UserError(f"{path} has {len(rows)} images where {SPLITS[split]} are expected: copy it again")
    number = {name: k for k, name in enumerate(words)}
    if lacking := set(words) - set(attributes):
        raise UserError(f"{path} has no attribute {min(lacking)!r}, which {folder / 'Corel5k.xml'} lists")
    word = np.array([number.get(name, -1) for name in attributes])
    token = np.where(word < 0, np.cumsum(word < 0) - 1, -1)
    if token.max() + 1 != TOKENS:
        raise UserError(f"{path} has {token.max() + 1} tokens where {TOKENS} are expected")
    targets = np.zeros((len(rows), len(words)), dtype=np.int8)
    sets = []
    for i, ones in enumerate(rows):
        targets[i, word[ones][word[ones] >= 0]] = 1
        sets.append(np.sort(token[ones][token[ones] >= 0]))
    tokens = np.full((len(sets), max(map(len, sets))), PADDING, dtype=np.int64)
    for row, found in zip(tokens, sets, strict=True):
        row[: len(found)] = found
    return TokenSets(split, tokens, targets, words)


def _words(path: Path) -> tuple[str, ...]:
    try:
        tree = ElementTree.parse(existing(path, "the list of words"))
    except ElementTree.ParseError as error:
        raise UserError(f"{path} is truncated or no XML: the list of {WORDS} labels is expected there") from error
    words = tuple(label.get("name", "") for label in tree.iter() if label.tag.endswith("label"))
    check_unique(words, str(path))
    if len(words) != WORDS:
        raise UserError(f"{path} lists {len(words)} labels where {WORDS} are expected")
    return words


def _read_sparse(path: Path) -> tuple[list[str], list[np.ndarray]]:
    """Attribute names, and for each row the numbers of the attributes that are 1, of a sparse ARFF file of 0 and 1."""
    expected = "attributes of {0,1} and then rows such as {3 1,17 1} are expected"
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): copy it again") from error
    attributes: list[str] = []
    rows: list[np.ndarray] = []
    for k, line in enumerate(text.splitlines(), start=1):
        if match := ATTRIBUTE.match(line):
            attributes.append(match["name"].strip("'\""))
        elif line.strip() and not line.startswith(("%", "@")):
            pairs = [pair.split() for pair in line.strip().strip("{}").split(",") if pair.strip()]
            ones = [int(pair[0]) for pair in pairs if len(pair) == 2 and pair[0].isdecimal() and pair[1] == "1"]
            if len(ones) != len(pairs) or not line.startswith("{") or any(c >= len(attributes) for c in ones):
                raise UserError(f"line {k} of {path} is {line[:40]!r}: {expected}")
            rows.append(np.array(ones, dtype=np.int64))
    check_unique(attributes, f"the attributes of {path}")
    return attributes, rows
