"""The run record: under which commit, on which machine, with which versions and seeds numbers were measured."""

from __future__ import annotations

import json
import platform
import re
import secrets
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numba
import psutil
import torch

from reproductions.schema import SCHEMA
from reproductions.storage import source_hash, write_atomically

STAMP = "%Y%m%dT%H%M%S"
LIBRARIES = (
    "matchmark",
    "torch",
    "torchvision",
    "timm",
    "open_clip_torch",
    "numpy",
    "scipy",
    "numba",
    "POT",
    "scikit-learn",
    "scikit-image",
)


def library_versions() -> dict[str, str]:
    """The installed version of every library that a number may depend on."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def environment(device: str, seed: int) -> dict[str, Any]:
    """Everything beside the code and the data that a number may depend on."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if (state := _git("status", "--porcelain", "--", ":!results")) is None else bool(state),
        "source_hash": source_hash(),
        "hardware": _hardware(),
        "versions": library_versions(),
        "threads": {"torch": torch.get_num_threads(), "numba": numba.config.NUMBA_NUM_THREADS},
        "tf32": {"matmul": torch.backends.cuda.matmul.allow_tf32, "cudnn": torch.backends.cudnn.allow_tf32},
        "default_dtype": str(torch.get_default_dtype()),
        "device": device,
        "seed": seed,
    }


class RunRecord:
    """``results/runs/<id>.json``, written when the run starts, after every row and when it ends.

    A later run has a greater id than those in the folder, also where the clock was set back in between.
    """

    def __init__(self, folder: Path, paper: str, tier: str, device: str, seed: int) -> None:
        started, self._began = datetime.now(UTC), time.monotonic()
        self.fields: dict[str, Any] = {
            "schema": SCHEMA,
            "paper": paper,
            "tier": tier,
            "started": started.isoformat(timespec="seconds"),
            "finished": None,
            "seconds": None,
            "arguments": sys.argv[1:],
            **environment(device, seed),
            "data": {},
            "rows": [],
        }
        self.id = f"{_stamp(started, folder)}-{secrets.token_hex(4)}"
        self.path = folder / f"{self.id}.json"

    def write(self) -> None:
        write_atomically(self.path, json.dumps(self.fields, indent=1))

    def finish(self) -> None:
        self.fields["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
        self.fields["seconds"] = round(time.monotonic() - self._began, 3)  # no clock that may be set
        self.write()


def _stamp(now: datetime, folder: Path) -> str:
    """The time in seconds, or the second after the latest record's where that is not later than it."""
    stamps = [path.name.partition("-")[0] for path in folder.glob("*-*.json")]
    latest = max((s for s in stamps if re.fullmatch(r"\d{8}T\d{6}", s)), default="")
    if (stamp := f"{now:{STAMP}}") > latest:
        return stamp
    return f"{datetime.strptime(latest, STAMP) + timedelta(seconds=1):{STAMP}}"


def _hardware() -> dict[str, Any]:
    gpus = (
        [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return {
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _cpu_name(),
        "cores": {"physical": psutil.cpu_count(logical=False), "logical": psutil.cpu_count()},
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": gpus,
        "cuda": torch.version.cuda if gpus else None,
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git(*arguments: str) -> str | None:
    """What git says of the project's checkout; None when it is not one or git is missing."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
