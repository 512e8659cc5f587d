"""`rewright new-plugin`: writes a package with a pass that works, its tests, and its entry point."""

from __future__ import annotations

import keyword
import os
import re
import shlex
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

import rewright
from rewright.cli import arguments, console
from rewright.cli.failures import DONE
from rewright.model.errors import ModelError, UsageError

if TYPE_CHECKING:
    from rewright.registry.catalog import Catalog

_DISTRIBUTION: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
"""The form of a distribution's name; packaging.python.org, "Names and normalization"."""

_SEPARATORS: Final = re.compile(r"[-_.]+")
_PASS: Final = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")

_SUMMARIES: Final = {
    "pattern": "Clip(Relu(x), low, high) -> Clip(x, max(low, 0), high).",
    "graph": "Relu(x) -> x, where x is never negative.",
}
_IMPORTED: Final = {"Any", "GraphPass", "Match", "None", "PassSession", "PatternPass", "True", "False", "Value"}
"""Names that the class of the pass cannot have: those that its module imports, and keywords."""


@dataclass(frozen=True)
class _Plan:
    """The names that the package is written with."""

    distribution: str
    module: str
    pass_name: str
    kind: str

    @property
    def pass_module(self) -> str:
        return self.pass_name.replace("-", "_")

    @property
    def class_name(self) -> str:
        words = "".join(word.capitalize() for word in self.pass_name.split("-"))
        return f"{words}Pass" if words in _IMPORTED else words

    def files(self) -> dict[str, str]:
        """The template of each file of the package, by its path."""
        package = f"src/{self.module}"
        return {
            ".gitignore": "gitignore",
            "LICENSE": "LICENSE",
            "README.md": "README.md",
            "pyproject.toml": "pyproject.toml",
            f"{package}/__init__.py": "package.py",
            f"{package}/{self.pass_module}.py": f"{self.kind}_pass.py",
            f"{package}/py.typed": "py.typed",
            f"tests/test_{self.pass_module}.py": f"test_{self.kind}_pass.py",
        }


def new_plugin(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The package's name, such as acme-relu-clip.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FOLDER", help="The folder to make; by default NAME, here.")
    ] = None,
    pass_name: Annotated[
        str | None, typer.Option("--pass", metavar="PASS", help="The name of its pass; by default the package's.")
    ] = None,
    kind: Annotated[
        str,
        typer.Option("--kind", metavar="KIND", help="pattern (replaces what fits a pattern) or graph (edits the graph freely)."),
    ] = "pattern",
    plugins: arguments.Plugins = None,
    no_plugins: arguments.NoPlugins = False,
) -> int:
    """Writes a package with a pass of your own: it installs, passes its tests, and shows in `rewright passes`.

    The pass that it holds is a working example to replace.
    """
    plan = _plan(name, pass_name, kind)
    folder = output if output is not None else Path(name)
    _check_free(plan, folder, arguments.load_catalog(plugins, no_plugins))
    _write(plan, folder)
    console.write(_next_steps(plan, folder))
    return DONE


def _plan(name: str, pass_name: str | None, kind: str) -> _Plan:
    """The names that follow from the arguments.

    Raises:
        UsageError: one of them cannot be used.
    """
    if kind not in _SUMMARIES:
        raise UsageError(f"the kind is '{kind}'.", "It is pattern or graph.")
    example = "Take lower-case words joined by hyphens, such as acme-relu-clip."
    if not _DISTRIBUTION.fullmatch(name):
        raise UsageError(f"'{name}' cannot be the name of a package.", example)
    words = _SEPARATORS.sub("-", name).lower()
    module = words.replace("-", "_")
    if not module.isidentifier() or keyword.iskeyword(module):
        raise UsageError(f"the package '{name}' would hold the module '{module}', which Python cannot import.", example)
    chosen = pass_name if pass_name is not None else words
    if not _PASS.fullmatch(chosen):
        raise UsageError(f"'{chosen}' cannot be the name of a pass.", f"{example} --pass sets it.")
    if keyword.iskeyword(chosen):
        raise UsageError(f"the pass '{chosen}' would be in the module '{chosen}', which Python cannot import.", example)
    return _Plan(name, module, chosen, kind)


def _check_free(plan: _Plan, folder: Path, catalog: Catalog) -> None:
    """Refuses names that are taken, and a folder that is there."""
    for names, what in ((catalog, "pass"), (catalog.levels, "level")):
        if plan.pass_name in names:
            owner = catalog.owner(plan.pass_name).label
            raise UsageError(f"the {what} '{plan.pass_name}' is there already: {owner} has it.", "Choose another name by --pass.")
    if plan.module in sys.stdlib_module_names or plan.module in sys.modules or find_spec(plan.module) is not None:
        raise UsageError(
            f"the package '{plan.distribution}' would hold the module '{plan.module}', and this environment has one already.",
            "Choose a name of your own, such as one with your organisation's name in front.",
        )
    if os.path.lexists(folder):
        raise UsageError(f"{folder} is there already.", "Nothing was written. Choose another folder by -o, or remove it.")
    if not folder.absolute().parent.is_dir():
        raise UsageError(f"the folder {folder.absolute().parent} does not exist.", "Make it, or choose another folder by -o.")


def _write(plan: _Plan, folder: Path) -> None:
    """Writes the package beside its place, and moves it there when it is complete."""
    texts = _rendered(plan)
    scratch: Path | None = None
    try:
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.absolute().parent))
        whole = scratch / "package"
        for path, text in texts.items():
            place = whole / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")
        os.rename(whole, folder)  # a folder that somebody has put there meanwhile stays as it is
    except OSError as error:
        reason = error.strerror or str(error)
        raise ModelError(f"cannot write {folder}: {reason}.", "Check the folder, its permissions and the free space.") from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _rendered(plan: _Plan) -> dict[str, str]:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("rewright", "testing/new_plugin"), undefined=StrictUndefined, keep_trailing_newline=True
    )
    values = {
        "distribution": plan.distribution,
        "module": plan.module,
        "pass_name": plan.pass_name,
        "pass_module": plan.pass_module,
        "class_name": plan.class_name,
        "kind": plan.kind,
        "summary": _SUMMARIES[plan.kind],
        "rewright_version": ".".join(rewright.__version__.split(".")[:2]),
    }
    return {path: environment.get_template(f"{name}.jinja").render(values) for path, name in plan.files().items()}


def _next_steps(plan: _Plan, folder: Path) -> str:
    commands = (
        f"cd {shlex.quote(str(folder))}",
        'python -m pip install -e ".[test]"',
        "python -m pytest",
        f"rewright passes {plan.pass_name}",
        f'rewright optimize MODEL -o OUT -p "O2, {plan.pass_name}"',
    )
    files = "".join(f"  {path}\n" for path in plan.files())
    steps = "".join(f"  {command}\n" for command in commands)
    return f"Wrote {folder}:\n{files}\nNext:\n{steps}"
