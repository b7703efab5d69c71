"""How long importing takes, in a fresh interpreter, its start included."""

import subprocess
import sys

from benchmarks import common, timing

try:
    import resource
except ImportError:  # Windows
    resource = None


def processor_seconds():
    """Of all processes that were started here and have ended: imports compute, and a busy machine does not matter."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class ImportTime(timing.Timed):
    """Processor time, with the files' bytecode compiled and in the cache of the file system."""

    version = "1"  # to be raised when settings change: older results are then no longer comparable
    param_names = ("module",)
    params = (["solvers", "reproductions.cli", "torch"],)
    timer = staticmethod(processor_seconds)
    rounds = 2
    repeat = 4

    def setup(self, module):
        if resource is None:
            raise NotImplementedError("the time of child processes is counted on Unix")
        common.of_commit(module)
        self.command = [sys.executable, "-c", f"import {module}"]

    def time_import(self, module):
        subprocess.run(self.command, check=True)
