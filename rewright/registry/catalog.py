"""The catalog: every known pass by name with its owner, and the levels, which are nothing but named chains."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rewright.model.errors import PluginError, RewrightError, UsageError
from rewright.registry.discovery import AUTOLOAD_VARIABLE, Contribution, PluginRecord, discover

if TYPE_CHECKING:
    from rewright.model.carrier import Model
    from rewright.passes.contract import Pass


class Catalog:
    """Pass classes by name: `name in catalog`, iteration over the names, `get` for the class and `owner` for its plugin.

    Attributes:
        plugins: a record for each plugin that was found, failed and skipped ones included.
        levels: level name -> chain text, which may name other levels.
    """

    def __init__(self, contributions: Iterable[Contribution]) -> None:
        """Merge what plugins offer.

        Raises:
            PluginError: two plugins offer a pass or a level of the same name.
        """
        self._contributions = tuple(contributions)
        self.plugins = tuple(contribution.record for contribution in self._contributions)
        self._passes: dict[str, type[Pass]] = {}
        self._owners: dict[str, PluginRecord] = {}
        levels: dict[str, str] = {}
        for contribution in self._contributions:
            for pass_class in contribution.passes:
                # the same class by two roads (an entry point and --plugin) is one pass
                if self._passes.get(pass_class.name) is not pass_class:
                    self._claim("pass", pass_class.name, contribution.record)
                    self._passes[pass_class.name] = pass_class
            for level, text in contribution.levels.items():
                self._claim("level", level, contribution.record)
                levels[level] = text
        self.levels: Mapping[str, str] = MappingProxyType(levels)

    @classmethod
    def load(cls, plugins: Sequence[str] = (), autoload: bool | None = None) -> Catalog:
        """Discover plugins (see `discovery.discover`) and build the catalog from them.

        Raises:
            PluginError: a plugin named in `plugins` cannot be loaded, or two plugins claim the same name.
        """
        return cls(discover(plugins, autoload))

    def extended(self, *pass_classes: type[Pass], owner: str = "this program") -> Catalog:
        """A catalog that knows these pass classes too, for passes that no plugin brings.

        Raises:
            PluginError: a class is no pass, or its name is taken.
        """
        return Catalog([*self._contributions, Contribution.of(PluginRecord(owner), pass_classes, {})])

    def get(self, name: str) -> type[Pass]:
        """The pass class of that name.

        Raises:
            UsageError: no pass has that name; the hint tells names that are near it.
            PluginError: no pass has that name, and a plugin that likely holds it failed to load or was skipped.
        """
        try:
            return self._passes[name]
        except KeyError:
            raise self.unknown(name) from None

    def owner(self, name: str) -> PluginRecord:
        """The plugin that brought a pass or a level. Raises like `get`."""
        if name not in self._owners:
            raise self.unknown(name)
        return self._owners[name]

    def input_sets(self, model: Model) -> tuple[Any, PluginRecord] | None:
        """What the first plugin that knows the model offers to compare it on, and the plugin; None if no plugin does.

        Raises:
            PluginError: a plugin's hook fails.
        """
        for contribution in self._contributions:
            for source in contribution.input_sources:
                try:
                    found = source(model)
                except Exception as error:
                    raise PluginError(
                        f"{contribution.record.label}: rewright_input_sets fails with {type(error).__name__}: {error}.",
                        "Give inputs of your own, or run without this plugin.",
                    ) from error
                if found is not None:
                    return found, contribution.record
        return None

    def unknown(self, name: str) -> RewrightError:
        """The error for a name that is no pass: a level, a misspelling, or a pass of a plugin that could not bring it."""
        if name in self.levels:
            return UsageError(f"'{name}' is a level, not a pass.", "It stands in a chain as plain text, without options.")
        near = did_you_mean(name, [*self._passes, *self.levels])
        absent = [record for record in self.plugins if record.status != "loaded"]
        for record in absent:
            if _may_hold(record, name):
                message = f"there is no pass '{name}'; it may belong to {record.label}, which {_fate(record)}."
                return PluginError(message, f"{_remedy(record)} {near}".rstrip())
        hint = near or "`rewright passes` and `rewright chains` list what there is."
        if absent:
            hint += f" (Not loaded: {', '.join(record.label for record in absent)}; see `rewright plugins`.)"
        return UsageError(f"there is no pass '{name}'.", hint)

    def __contains__(self, name: object) -> bool:
        return name in self._passes

    def __iter__(self) -> Iterator[str]:
        return iter(self._passes)

    def __len__(self) -> int:
        return len(self._passes)

    def _claim(self, kind: str, name: str, record: PluginRecord) -> None:
        if name in self._owners:
            raise PluginError(
                f"both {self._owners[name].label} and {record.label} register a {kind} '{name}'.",
                f"Uninstall one of them, or set {AUTOLOAD_VARIABLE}=1 and name the plugins that you want by --plugin.",
            )
        self._owners[name] = record


@cache
def default_catalog() -> Catalog:
    """The catalog of the built-in and the installed plugins, loaded once a process."""
    return Catalog.load()


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`Did you mean gelu, bias-gelu?`, or nothing when no known name is near."""
    # a level spelled in lower case is as near as can be
    spelled = {text.lower(): text for text in known}
    near = [spelled[text] for text in difflib.get_close_matches(name.lower(), list(spelled), n=3)]
    return f"Did you mean {', '.join(near)}?" if near else ""


def _may_hold(record: PluginRecord, name: str) -> bool:
    """Whether an unloaded plugin likely holds a pass: they share the first word (acme, acme-gelu), or are near names."""
    names = [text.lower().replace("_", "-") for text in (record.name, record.distribution) if text]
    first_word = name.partition("-")[0]
    return any(first_word in text.split("-") for text in names) or bool(difflib.get_close_matches(name, names))


def _fate(record: PluginRecord) -> str:
    reason = record.error.rstrip(".")
    return f"failed to load: {reason}" if record.status == "failed" else f"was skipped: {reason}"


def _remedy(record: PluginRecord) -> str:
    if record.status == "failed":
        return f"Mend or reinstall {record.distribution or record.name}; `rewright plugins` shows the state of each."
    return f"Ask for it with --plugin {record.name}."
