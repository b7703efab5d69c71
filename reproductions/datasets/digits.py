"""Handwritten digits, the embedded image set: 1797 real scans that ship inside scikit-learn."""

from __future__ import annotations

import numpy as np
from sklearn import datasets

from reproductions.datasets.images import ImageSet

SHA256 = "6d854bfa8318ad877449274b74d5d206198cf2c4bb14bc0ebc2c9be3b183ab2c"


def load_digits() -> ImageSet:
    """The 8×8 digits of 13 writers (test part of UCI's Optical Recognition of Handwritten Digits).

    Raises:
        ValueError: scikit-learn ships other pixels than those this project measured on.
    """
    bunch = datasets.load_digits()
    digits = ImageSet(
        name="digits",
        title="scikit-learn's handwritten digits",
        tier="embedded",
        images=(bunch.images / 16).astype(np.float32)[:, None],
        labels=bunch.target.astype(np.int64),
        classes=tuple("0123456789"),
        licence="CC BY 4.0 (UCI Machine Learning Repository)",
        source="E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, 1998; sklearn.datasets.load_digits",
    )
    if digits.sha256 != SHA256:
        raise ValueError(f"the digits of this scikit-learn have sha256 {digits.sha256}, but {SHA256} is expected")
    return digits
