"""The site: every docstring, README.md and the pages it leads to, as ``python -m docs.site`` writes it.

A warning of pdoc's, such as an annotation that cannot be resolved, ends it: a page would lack something.
"""

from __future__ import annotations

import os
import pkgutil
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

from reproductions import UserError
from reproductions.storage import write_atomically

ROOT = Path(__file__).parents[1]
SITE = ROOT / "results" / "docs"
PACKAGES = ("solvers", "reproductions")
PAGES = {"README.md": "index.html", "CONTRIBUTING.md": "contributing.html", "docs/slurm.md": "slurm.html"}
LINK = re.compile(r'(?P<attribute>href|src)="(?P<path>(?!#|[a-z]+:)[^"#]+)(?P<anchor>[^"]*)"')
# Of a NamedTuple pdoc looks for the types of its fields where namedtuple() is defined, and does not find ours.
UNRESOLVED = r"Error parsing type annotation ForwardRef\(.*\) for [\w.]+\.__init__\."


def modules_of(package: str) -> list[str]:
    """What to name to pdoc for all of a package: of one that has ``__all__`` it takes only what is listed there."""
    found = import_module(package)
    listed = pkgutil.iter_modules(found.__path__, f"{package}.") if hasattr(found, "__all__") else ()
    return [package, *(module.name for module in listed)]


def build(folder: Path = SITE, modules: Sequence[str] = (), pages: Mapping[str, str] = PAGES) -> None:
    """Write the site into a folder; ``index.html`` is its first page.

    Args:
        folder: created if need be; files of an older site are written over.
        modules: to document; all of both packages when left out.
        pages: Markdown files, by their path in the project → names in the site.

    Raises:
        UserError: pdoc is not installed.
        UserWarning: pdoc warns.
    """
    try:
        import pdoc
    except ImportError:
        raise UserError(
            "the site needs the package pdoc, which is not installed: pip install 'matchmark[docs]'"
        ) from None
    modules = modules or [name for package in PACKAGES for name in modules_of(package)]
    pdoc.render.configure(docformat="google", template_directory=Path(__file__).with_name("templates"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", UNRESOLVED)
        pdoc.pdoc(*modules, output_directory=folder)
    template = pdoc.render.env.get_template("page.html.jinja2")
    for source, name in pages.items():
        text = pdoc.render_helpers.to_html((ROOT / source).read_text())
        page = template.render(
            title=f"Matchmark: {source}", text=text, pages={Path(s).stem: n for s, n in pages.items()}, modules=modules
        )
        write_atomically(folder / name, LINK.sub(lambda link, source=source: _from_site(link, source, folder), page))


def _from_site(link: re.Match[str], source: str, folder: Path) -> str:
    """A link within the project, as it is from the site: to a page or a module of it, else to the file itself."""
    target = Path(os.path.normpath(Path(source).parent / link["path"]))
    module = target.with_suffix(".html")
    if str(target) in PAGES:
        place = PAGES[str(target)]
    elif target.suffix == ".py" and (folder / module).exists():
        place = str(module)
    elif (ROOT / target).exists():
        place = os.path.relpath(ROOT / target, folder)
    else:
        return link[0]  # to a page of the site
    return f'{link["attribute"]}="{place}{link["anchor"]}"'


if __name__ == "__main__":
    try:
        build()
    except UserError as error:
        sys.exit(str(error))
    print(f"the site: {SITE / 'index.html'}")
