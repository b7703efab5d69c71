"""An asv environment that links to the packages already installed instead of installing them again.

Each environment is an empty virtual environment with one ``.pth`` file: first the checkout of the commit to measure,
then the site-packages of the interpreter that runs asv. So a commit is measured with its own `solvers`, offline and
without another copy of torch. The ``.pth`` files of that site-packages are not followed, hence an editable installation
of this project there cannot shadow the checkout. Good for pure Python only: nothing is built.
"""

import os
import sys
import sysconfig
import venv
from pathlib import Path

if sys.modules.get("asv"):  # not in the processes that find and run benchmarks: they import every file of this folder
    from asv import environment
else:
    environment = None

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"

if environment is not None:

    class Linked(environment.Environment):
        """The environment type "linked" of asv.conf.json."""

        tool_name = "linked"

        def __init__(self, conf, python, requirements, tagged_env_vars):
            self._requirements = requirements  # asv's own constructor reads it before it sets it
            super().__init__(conf, python, requirements, tagged_env_vars)

        @classmethod
        def matches(cls, python):
            return python == PYTHON

        def check_presence(self):
            # asv also asks for pip, which these environments do without.
            try:
                self.find_executable("python")
                self.run_executable("python", ["-c", "pass"])
            except Exception:  # a removed or upgraded interpreter fails in many ways, and all mean: create it again
                return False
            return True

        def _setup(self):
            venv.create(self._path, with_pip=False, symlinks=os.name != "nt")

        def install_project(self, conf, repo, commit_hash):
            if self._get_installed_commit_hash() == commit_hash:
                self._set_commit_hash(commit_hash)
            else:
                self._set_installed_commit_hash(None)  # an interrupted checkout must not count as installed
                self.checkout_project(repo, commit_hash)
                self._set_installed_commit_hash(commit_hash)
            checkout = Path(self._build_root, self._repo_subdir)
            self._keep_compiled_kernels(checkout, commit_hash)
            variables = {"base": self._path, "platbase": self._path}
            site = Path(sysconfig.get_path("purelib", scheme="venv", vars=variables))
            site.mkdir(parents=True, exist_ok=True)
            (site / "linked.pth").write_text("\n".join(map(str, [checkout, *_host_packages()])) + "\n")

        def _keep_compiled_kernels(self, checkout, commit_hash):
            """Give each commit a folder for what Numba compiles, and its files a date of its own.

            Every checkout wipes the tree and dates its files anew, and Numba goes by their dates: ``asv continuous``
            turns from one commit to the other and back, and would compile everything at each turn.
            """
            self._global_env_vars["NUMBA_CACHE_DIR"] = str(Path(self._path, "numba", commit_hash))
            date = int(commit_hash[:7], 16)
            for file in checkout.rglob("*.py"):
                os.utime(file, (date, date))

        def run(self, args, **kwargs):
            return self.run_executable("python", args, **kwargs)


def _host_packages():
    """The folders this interpreter finds installed packages in."""
    return [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
