"""Per-paper reproductions: data → features → problem → solve → metric → row, one folder a paper."""

PAPERS = ("deepemd", "scot", "patchct", "ram", "blind_match")
"""The papers that can be run, each a sub-package with claims.toml, protocol.md, method.py and experiment.py."""


class UserError(Exception):
    """Something the user asked for cannot be done; the message is one sentence that says what to do instead."""
