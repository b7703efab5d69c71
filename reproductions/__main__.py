"""``python -m reproductions`` and ``matchmark``, the same command."""

from __future__ import annotations

import sys


def main() -> None:
    """Import the command, which takes seconds, and run it; Ctrl-C ends both alike."""
    try:
        from reproductions.cli import main as command
    except KeyboardInterrupt:
        print("matchmark: stopped", file=sys.stderr)
        sys.exit(130)
    command()


if __name__ == "__main__":
    main()
