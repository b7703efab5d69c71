"""The data sets: one loader each; ``DATASETS`` lists them for the command line."""

from collections.abc import Callable

from reproductions.datasets.digits import load_digits
from reproductions.datasets.images import ImageSet

__all__ = ["DATASETS", "ImageSet", "load_digits"]

DATASETS: dict[str, Callable[[], ImageSet]] = {"digits": load_digits}
