"""The files that are compared: of a folder of results, or of that folder in a git revision."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from reproductions import UserError

Files = dict[str, bytes]
"""Content by path below the results folder."""
WANTED = re.compile(r"(?!cache/|runs/|report/)[^/\n]+/[^/\n]+\.csv|asv/[^/\n]+/[^/\n]+\.json")


def on_disk(results: Path) -> Files:
    """The tables and asv results of a folder.

    Raises:
        UserError: there is no such folder.
    """
    if not results.is_dir():
        raise UserError(f"there is no folder of results at {results}")
    found = (p for pattern in ("*/*.csv", "asv/*/*.json") for p in results.glob(pattern) if p.is_file())
    named = {p.relative_to(results).as_posix(): p for p in sorted(found)}
    return {name: path.read_bytes() for name, path in named.items() if WANTED.fullmatch(name)}


def committed(results: Path, revision: str) -> Files:
    """The same of the results folder as it stands in a git revision.

    Raises:
        UserError: not a git checkout, or no such revision.
    """

    def git(*arguments: str, stdin: bytes = b"") -> bytes:
        command = ["git", "-C", str(results), *arguments]
        try:
            done = subprocess.run(command, input=stdin, capture_output=True)
        except FileNotFoundError:
            raise UserError(
                f"the reference is read from revision {revision} with git, which is not installed: "
                "install it, or name a folder with --against"
            ) from None
        if done.returncode:
            why = (done.stderr.decode(errors="replace").strip().splitlines() or ["git failed"])[-1]
            raise UserError(f"cannot read the reference tables of {revision}: {why}")
        return done.stdout

    top = Path(git("rev-parse", "--show-toplevel").decode().strip())
    commit = git("rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}").decode().strip()
    inside = results.resolve().relative_to(top.resolve()).as_posix() + "/"
    listed = git("ls-tree", "-r", "-z", "--name-only", "--full-tree", commit, "--", inside).decode(errors="replace")
    below = {name.removeprefix(inside): name for name in listed.split("\0") if name.startswith(inside)}
    wanted = {name: path for name, path in below.items() if WANTED.fullmatch(name)}
    answer = git("cat-file", "--batch", stdin="".join(f"{commit}:{path}\n" for path in wanted.values()).encode())
    found: Files = {}
    for name in wanted:  # each: "<hash> blob <size>", a line break, the content, a line break
        head, _, answer = answer.partition(b"\n")
        size = int(head.rsplit(b" ", 1)[1])
        found[name], answer = answer[:size], answer[size + 1 :]
    return found


def reference(results: Path, against: str) -> Files:
    """The files of a folder, or of a git revision of the results folder.

    Raises:
        UserError: it is neither.
    """
    return on_disk(Path(against)) if Path(against).is_dir() else committed(results, against)
