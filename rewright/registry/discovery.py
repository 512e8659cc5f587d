"""Finds plugins and collects what each one offers; a broken plugin is recorded and never takes the others down."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module, metadata
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import pluggy

from rewright.model.errors import PluginError
from rewright.registry import builtin, hookspecs

if TYPE_CHECKING:
    from rewright.model.carrier import Model
    from rewright.passes.contract import Pass

InputSource = Callable[["Model"], Any]
"""What `rewright_input_sets` is in a plugin; see there."""

GROUP = hookspecs.PROJECT
AUTOLOAD_VARIABLE = "REWRIGHT_DISABLE_PLUGIN_AUTOLOAD"

Status = Literal["loaded", "failed", "skipped"]

_LEVEL_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class PluginRecord:
    """What became of one plugin.

    Attributes:
        name: the entry point's name, or the module that was asked for by `--plugin`.
        distribution: the installed distribution that brings the plugin; empty for a plain module.
        version: that distribution's version; empty for a plain module.
        status: `loaded`, `failed` (see `error`) or `skipped` (not looked at; `error` says why).
        error: why the plugin is not loaded, on one line.
        passes: the names of the passes that it brought.
    """

    name: str
    distribution: str = ""
    version: str = ""
    status: Status = "loaded"
    error: str = ""
    passes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The plugin as messages name it: `acme-rewright 0.1.0 (plugin acme)`."""
        if not self.distribution:
            return f"plugin {self.name}"
        owner = f"{self.distribution} {self.version}".rstrip()
        return owner if self.name == self.distribution else f"{owner} (plugin {self.name})"


@dataclass(frozen=True)
class Contribution:
    """What one plugin offers to the catalog, with the record of where it came from."""

    record: PluginRecord
    passes: tuple[type[Pass], ...] = ()
    levels: Mapping[str, str] = field(default_factory=dict)
    input_sources: tuple[InputSource, ...] = ()

    @classmethod
    def of(
        cls,
        record: PluginRecord,
        passes: Iterable[type[Pass]],
        levels: Mapping[str, str],
        input_sources: Iterable[InputSource] = (),
    ) -> Contribution:
        """Check what a plugin's hooks returned and put it on record.

        Raises:
            PluginError: something is not a pass class, or a name is not fit for chain text.
        """
        classes = tuple(_checked_pass(value) for value in passes)
        for level, text in levels.items():
            if not (isinstance(level, str) and _LEVEL_NAME.fullmatch(level) and isinstance(text, str)):
                raise PluginError(
                    f"Plugin developer: rewright_levels returned {level!r}: {text!r}.",
                    "A level is a word that stands for a chain text.",
                )
        return cls(replace(record, passes=tuple(c.name for c in classes)), classes, dict(levels), tuple(input_sources))


def discover(plugins: Sequence[str] = (), autoload: bool | None = None) -> tuple[Contribution, ...]:
    """Load the built-in plugin, the installed ones, then the ones named in `plugins`.

    Args:
        plugins: entry point names of the group `rewright`, modules (`acme_passes`) or attributes (`acme_passes:PASSES`).
        autoload: whether to load every installed plugin; by default yes, unless the environment variable
            `REWRIGHT_DISABLE_PLUGIN_AUTOLOAD` is set (to anything but `0`).

    Returns:
        One contribution a plugin, failed and skipped ones included (those offer nothing).

    Raises:
        PluginError: a plugin that was asked for by name cannot be loaded.
    """
    if autoload is None:
        autoload = os.environ.get(AUTOLOAD_VARIABLE, "") in ("", "0")
    loader = _Loader()
    contributions = [loader.load(_builtin_record(), builtin)]
    entry_points = sorted(metadata.entry_points(group=GROUP), key=lambda e: (_record_of(e).distribution, e.name))
    for entry_point in entry_points:
        record = _record_of(entry_point)
        if not autoload and entry_point.name not in plugins:
            reason = "installed plugins are not loaded by themselves in this run"
            contributions.append(Contribution(replace(record, status="skipped", error=reason)))
            continue
        try:
            contributions.append(loader.load(record, entry_point.load()))
        # SystemExit as well: a plugin that calls sys.exit on import is broken, and must not end the host.
        except (Exception, SystemExit) as error:
            if entry_point.name in plugins:
                raise _cannot_load(record, error) from error
            contributions.append(Contribution(replace(record, status="failed", error=_one_line(error))))
    installed = {entry_point.name for entry_point in entry_points}
    for name in plugins:
        if name not in installed:
            contributions.extend(loader.load_module(name))
    return tuple(contributions)


class _Loader:
    """One plugin manager, and the ways in which a plugin's value may be spelled."""

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager(hookspecs.PROJECT)
        self.manager.add_hookspecs(hookspecs)

    def load(self, record: PluginRecord, value: object) -> Contribution:
        """Register one plugin and call its hooks; on any error it is taken out again and the error goes up."""
        plugin = value if isinstance(value, ModuleType) else _PassList(value)
        # pluggy refuses a name twice, and two distributions may well call their entry points alike
        name = self.manager.register(plugin, f"{record.distribution}:{record.name}")
        try:
            self.manager.check_pending()
            if not self.manager.get_hookcallers(plugin):
                raise PluginError(
                    f"module {getattr(value, '__name__', value)} has no function that implements a rewright hook.",
                    "Plugin developer: define rewright_passes and mark it with @rewright.hookimpl,"
                    " or let the entry point name a pass class or a list of them (module:ATTRIBUTE).",
                )
            passes = [p for found in self._call(plugin, "rewright_passes") for p in _iterable(found)]
            levels = {name: text for found in self._call(plugin, "rewright_levels") for name, text in dict(found).items()}
            return Contribution.of(record, passes, levels, self._input_sources(plugin))
        except BaseException:
            self.manager.unregister(name=name)
            raise

    def load_module(self, name: str) -> list[Contribution]:
        """Load `module` or `module:attribute`; nothing when an installed plugin already brought that module."""
        module_name, _, attribute = name.partition(":")
        record = PluginRecord(name)
        try:
            value = import_module(module_name)
            if self.manager.is_registered(value) and not attribute:
                return []
            record = _with_distribution(record, module_name)
            return [self.load(record, getattr(value, attribute) if attribute else value)]
        except (Exception, SystemExit) as error:
            raise _cannot_load(record, error) from error

    def _input_sources(self, plugin: object) -> list[InputSource]:
        """The plugin's own implementations of `rewright_input_sets`, which may leave the argument out."""
        found = self.manager.hook.rewright_input_sets.get_hookimpls()
        return [_input_source(each) for each in found if each.plugin is plugin]

    def _call(self, plugin: object, hook: str) -> list[Any]:
        """Call one plugin's own implementations of a hook, so that its errors and its passes are known to be its."""
        implementations = getattr(self.manager.hook, hook).get_hookimpls()
        results = [found.function() for found in implementations if found.plugin is plugin]
        return [result for result in results if result is not None]


def _input_source(implementation: pluggy.HookImpl) -> InputSource:
    def ask(model: Model) -> Any:
        return implementation.function(*(model for _ in implementation.argnames))

    return ask


class _PassList:
    """Gives an entry point whose value is a pass class, or several, the form of a plugin with a hook."""

    def __init__(self, value: object) -> None:
        self.value = value

    @hookspecs.hookimpl
    def rewright_passes(self) -> Iterable[object]:
        return self.value if isinstance(self.value, (list, tuple)) else [self.value]


def _iterable(found: object) -> Iterable[Any]:
    if isinstance(found, Iterable):
        return found
    raise PluginError(f"Plugin developer: rewright_passes returned {found!r}.", "Return a list of pass classes.")


def _checked_pass(value: object) -> type[Pass]:
    from rewright.passes.contract import Pass

    if not (isinstance(value, type) and issubclass(value, Pass)):
        raise PluginError(
            f"Plugin developer: {value!r} is not a pass.",
            "A plugin offers subclasses of rewright.Pass, or functions decorated with @rewright.graph_pass.",
        )
    if inspect.isabstract(value):
        missing = ", ".join(sorted(value.__abstractmethods__))
        raise PluginError(
            f"Plugin developer: the pass class {value.__module__}.{value.__qualname__} is not finished.",
            f"It must define {missing}.",
        )
    if not value.name:
        raise PluginError(
            f"Plugin developer: the pass class {value.__module__}.{value.__qualname__} has no name.",
            "Give it a class attribute `name` of lower-case words joined by hyphens, such as acme-relu-clip.",
        )
    return value


def _builtin_record() -> PluginRecord:
    try:
        version = metadata.version(hookspecs.PROJECT)
    except metadata.PackageNotFoundError:  # a checkout on the path, not installed
        version = ""
    return PluginRecord(hookspecs.PROJECT, hookspecs.PROJECT, version)


def _record_of(entry_point: metadata.EntryPoint) -> PluginRecord:
    distribution = entry_point.dist
    if distribution is None:
        return PluginRecord(entry_point.name)
    return PluginRecord(entry_point.name, distribution.name, distribution.version)


def _with_distribution(record: PluginRecord, module: str) -> PluginRecord:
    for distribution in metadata.packages_distributions().get(module.partition(".")[0], ()):
        return replace(record, distribution=distribution, version=metadata.version(distribution))
    return record


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, PluginError) else f"{type(error).__name__}: {text}".removesuffix(": ")


def _cannot_load(record: PluginRecord, error: BaseException) -> PluginError:
    return PluginError(
        f"{record.label} cannot be loaded: {_one_line(error)}".rstrip(".") + ".",
        "Mend or remove it, or leave it out of --plugin.",
    )
