"""Flow fields in Middlebury's file format, and the share of pixels a predicted flow gets right."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from reproductions import UserError
from reproductions.storage import write_atomically

MAGIC = struct.pack("<f", 202021.25)
UNKNOWN = 1e9
"""A flow this large or larger in either component means: not known here."""


def read_flow(path: Path) -> np.ndarray:
    """The flow of a .flo file, float32 ``(H, W, 2)``, x first; unknown pixels keep their large values.

    Raises:
        UserError: the file is missing, no .flo file, or truncated.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"the flow {path} cannot be read ({error.strerror})") from error
    if data[:4] != MAGIC or len(data) < 12:
        raise UserError(f"{path} is not a Middlebury .flo file: it does not start with 202021.25, a width and a height")
    width, height = struct.unpack("<ii", data[4:12])
    expected = 8 * width * height
    if min(width, height) < 1 or len(data) - 12 != expected:
        raise UserError(f"{path} holds {len(data) - 12} bytes of flow where {width} x {height} pixels take {expected}")
    return np.frombuffer(data, dtype="<f4", offset=12).reshape(height, width, 2).astype(np.float32)


def write_flow(path: Path, flow: np.ndarray) -> None:
    """Write ``(H, W, 2)`` as a .flo file, whole or not at all.

    Raises:
        ValueError: another shape.
    """
    if flow.ndim != 3 or flow.shape[2] != 2 or not flow.size:
        raise ValueError(f"a flow has shape (H, W, 2), and this one has {flow.shape}")
    height, width, _ = flow.shape
    write_atomically(
        path, MAGIC + struct.pack("<ii", width, height) + np.ascontiguousarray(flow, dtype="<f4").tobytes()
    )


def known(flow: np.ndarray) -> np.ndarray:
    """Where a flow ``(H, W, 2)`` is known, as ``(H, W)``."""
    return (np.abs(flow) < UNKNOWN).all(-1)


def flow_accuracy(predicted: np.ndarray, truth: np.ndarray, threshold: float = 5.0) -> float:
    """Percent of known pixels whose end point is off by at most ``threshold`` percent of the image's longer side.

    Both flows are ``(H, W, 2)``. A pixel that the prediction leaves unknown is wrong.

    Raises:
        ValueError: the shapes differ, or no pixel's flow is known.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"the predicted flow has shape {predicted.shape} and the true one {truth.shape}")
    counted = known(truth)
    if not counted.any():
        raise ValueError("no pixel's flow is known, so no share of them can be right")
    error = np.linalg.norm(predicted[counted].astype(np.float64) - truth[counted], axis=-1)
    return 100 * float((error <= threshold / 100 * max(truth.shape[:2])).mean())
