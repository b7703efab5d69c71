"""Figures as the bytes of a picture, the same for the same figure."""

from __future__ import annotations

import io

from matplotlib.figure import Figure


def png(fig: Figure, dpi: int = 130) -> bytes:
    """The figure as PNG, without the name and version of what drew it."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()
