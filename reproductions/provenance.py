"""The run record: under which commit, on which machine, with which versions and seeds numbers were measured."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numba
import psutil
import torch

from reproductions.storage import content_hash, source_hash, write_atomically

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
    """``results/runs/<id>.json``, written when the run starts, after every row and when it ends."""

    def __init__(self, folder: Path, paper: str, tier: str, device: str, seed: int) -> None:
        started = datetime.now(UTC)
        self.fields: dict[str, Any] = {
            "schema": 1,
            "paper": paper,
            "tier": tier,
            "started": started.isoformat(timespec="seconds"),
            "finished": None,
            "arguments": sys.argv[1:],
            **environment(device, seed),
            "data": {},
            "rows": [],
        }
        self.id = f"{started:%Y%m%dT%H%M%S}-{content_hash(self.fields, os.getpid())[:8]}"
        self.path = folder / f"{self.id}.json"

    def write(self) -> None:
        write_atomically(self.path, json.dumps(self.fields, indent=1))

    def finish(self) -> None:
        self.fields["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
        self.write()


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
