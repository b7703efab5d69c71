"""``python -m reproductions`` is the ``matchmark`` command."""

from reproductions.cli import main

main()
