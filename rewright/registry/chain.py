"""A chain: an immutable list of configured passes, with a text, a YAML, a TOML and a Python form that round-trip."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Any, Self, overload

from rewright.model.errors import UsageError
from rewright.passes.contract import Backend, Pass
from rewright.registry import chain_files, grammar, ordering
from rewright.registry.catalog import Catalog, default_catalog, did_you_mean
from rewright.registry.options import OptionError, check_backend, chosen_options, configure, with_options


class Chain(Sequence[Pass]):
    """An ordered list of passes with options.

    `Chain("O2, attention{heads=12}")` reads chain text (see `grammar`); a list may mix texts, passes and other chains.
    A level (O0, O1, ...) expands in place, its passes sorted by their constraints. Outside levels the order is kept as
    given, and a constraint that it breaks becomes a warning. A pass that another one requires and that has not run by
    then is inserted before it, with default options.

    Attributes:
        passes: the configured passes.
        text: the canonical text: levels expanded, only options that differ from their defaults.
        warnings: ordering wishes that the given order does not grant.
        inserted: what was inserted, and why.
        catalog: where names were looked up: the one given, the one of a chain that is the source, or the default one.
    """

    def __init__(self, source: str | Iterable[str | Pass] = (), *, catalog: Catalog | None = None) -> None:
        """Resolve a chain.

        Raises:
            UsageError: the text is malformed, a pass, level or option is unknown, a value is wrong, or passes of the
                chain contradict each other's ordering constraints. Errors in text show the place.
            PluginError: a name likely belongs to a plugin that failed to load.
        """
        if catalog is None:
            catalog = source.catalog if isinstance(source, Chain) else default_catalog()
        self.catalog: Catalog = catalog
        resolver = _Resolver(self.catalog)
        parts = [source] if isinstance(source, (str, Pass)) else list(source)
        passes = [step for part in parts for step in resolver.resolve(part)]
        self.passes, self.inserted = ordering.with_required(passes, self.catalog.get)
        self.warnings: tuple[str, ...] = ordering.violations(self.passes)

    @property
    def text(self) -> str:
        """The canonical text; `Chain(chain.text) == chain`."""
        return ", ".join(grammar.format_pass(step.name, chosen_options(step)) for step in self.passes)

    def with_option(self, option: str, value: object) -> Self:
        """The chain with one option set, in every occurrence of its pass: `with_option("gelu.backend", "ort")`.

        Raises:
            UsageError: the chain does not hold that pass, or the pass does not accept the option or the value.
        """
        name, dot, field = option.partition(".")
        if not dot or not field:
            raise UsageError(f"'{option}' names no option.", "Write it as PASS.OPTION, such as gelu.backend.")
        names = list(dict.fromkeys(step.name for step in self.passes))
        if name not in names:
            near = did_you_mean(name, names) or f"It holds: {', '.join(names) or 'no pass'}."
            raise UsageError(f"the chain holds no pass '{name}' to set {field} on.", near)
        return self._derived(with_options(step, {field: value}) if step.name == name else step for step in self.passes)

    def with_setting(self, setting: str) -> Self:
        """`with_option` for a command line: `gelu.backend=ort`, the value spelled as in chain text."""
        option, equals, value = setting.partition("=")
        if not equals:
            raise UsageError(f"'{setting}' sets nothing.", "Write PASS.OPTION=VALUE, such as gelu.backend=ort.")
        return self.with_option(option.strip(), grammar.parse_value(value))

    def with_backend(self, backend: Backend) -> tuple[Self, tuple[str, ...]]:
        """The chain with every pass on one backend, as far as each has it and has not been given one of its own.

        Returns:
            The chain, and the names of the passes that do not have that backend and stay as they are.
        """
        without = dict.fromkeys(step.name for step in self.passes if backend not in step.backends)
        movable = {step.name for step in self.passes} - without.keys()
        passes = (
            with_options(step, {"backend": backend}) if step.name in movable and "backend" not in step.model_fields_set else step
            for step in self.passes
        )
        return self._derived(passes), tuple(without)

    def expanded(self) -> Self:
        """The chain with the two passes that one with the backend "auto" stands for: its own rewrite, then ONNX Runtime's."""
        return self._derived(part for step in self.passes for part in step.parts())

    def to_data(self) -> chain_files.ChainData:
        """Plain data: `{"chain": ["constant-folding", {"attention": {"heads": 12}}]}`."""
        entries: list[chain_files.Entry] = []
        for step in self.passes:
            options = chosen_options(step)
            entries.append({step.name: options} if options else step.name)
        return {"chain": entries}

    @classmethod
    def from_data(cls, data: object, *, catalog: Catalog | None = None) -> Self:
        """The chain of `to_data`'s form, where a text entry may be any chain text, levels included.

        Raises:
            UsageError: the data has another form, or see `Chain`.
        """
        catalog = catalog if catalog is not None else default_catalog()
        steps: list[str | Pass] = []
        for entry in chain_files.entries(data):
            if isinstance(entry, str):
                steps.append(entry)
            else:
                steps.extend(configure(catalog.get(name), options) for name, options in entry.items())
        return cls(steps, catalog=catalog)

    def to_yaml(self) -> str:
        """The chain as a YAML document."""
        return chain_files.dump_yaml(self.to_data())

    @classmethod
    def from_yaml(cls, text: str, *, catalog: Catalog | None = None) -> Self:
        """The chain of a YAML document; data only, nothing in it is imported."""
        return cls.from_data(chain_files.parse_yaml(text), catalog=catalog)

    def to_toml(self) -> str:
        """The chain as a TOML document. Raises UsageError for an option set to null, which TOML cannot say."""
        return chain_files.dump_toml(self.to_data())

    @classmethod
    def from_toml(cls, text: str, *, catalog: Catalog | None = None) -> Self:
        """The chain of a TOML document."""
        return cls.from_data(chain_files.parse_toml(text), catalog=catalog)

    @classmethod
    def from_file(cls, path: str | PathLike[str], *, catalog: Catalog | None = None) -> Self:
        """The chain of a file: `.yaml` or `.yml`, `.toml`, and anything else is chain text.

        Raises:
            UsageError: the file cannot be read, or holds no chain; the message names the file.
        """
        try:
            content = chain_files.read(path)
            if isinstance(content, str):
                return cls(content, catalog=catalog)
            return cls.from_data(content, catalog=catalog)
        except UsageError as error:
            raise UsageError(f"chain file {path}: {error.message}", error.hint) from error

    def _derived(self, passes: Iterable[Pass]) -> Self:
        return type(self)(passes, catalog=self.catalog)

    @overload
    def __getitem__(self, index: int) -> Pass: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Pass, ...]: ...
    def __getitem__(self, index: int | slice) -> Pass | tuple[Pass, ...]:
        return self.passes[index]

    def __len__(self) -> int:
        return len(self.passes)

    def __eq__(self, other: object) -> bool:
        return self.passes == other.passes if isinstance(other, Chain) else NotImplemented

    def __hash__(self) -> int:
        # equal passes may be configured by unhashable values, so the names stand for them
        return hash(tuple(step.name for step in self.passes))

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.text!r})"


class _Resolver:
    """Turns the parts of a chain into configured passes."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog: Catalog = catalog
        self.open_levels: list[str] = []

    def resolve(self, part: Any) -> Sequence[Pass]:
        if isinstance(part, str):
            return [step for written in grammar.parse_chain(part) for step in self._written(written)]
        if isinstance(part, Chain):
            return part.passes
        if isinstance(part, Pass):
            self._check_instance(part)
            return (part,)
        if isinstance(part, type) and issubclass(part, Pass):
            raise UsageError(f"{part.__name__} is a pass class.", f"A chain takes configured passes: {part.__name__}().")
        raise UsageError(f"a chain cannot hold {part!r}.", "It takes chain text, passes and chains.")

    def _written(self, written: grammar.PassText) -> Sequence[Pass]:
        if written.name in self.catalog.levels:
            if written.braced:
                message = f"level {written.name} has no options."
                raise grammar.pointed_error(message, written.text, written.name_at, "Set them on its passes instead.")
            return self._level(written.name)
        try:
            return (configure(self.catalog.get(written.name), written.options),)
        except UsageError as error:
            option = error.option if isinstance(error, OptionError) else ""
            at = written.options_at.get(option, written.name_at)
            raise grammar.pointed_error(error.message, written.text, at, error.hint) from error

    def _level(self, level: str) -> Sequence[Pass]:
        if level in self.open_levels:
            circle = [*self.open_levels[self.open_levels.index(level) :], level]
            raise UsageError(f"levels contain each other: {' -> '.join(circle)}.", self.catalog.owner(level).label)
        self.open_levels.append(level)
        try:
            return ordering.solve(self.resolve(self.catalog.levels[level]))
        except UsageError as error:
            owner = self.catalog.owner(level).label
            raise UsageError(f"level {level} of {owner}: {error.message}", error.hint) from error
        finally:
            self.open_levels.pop()

    def _check_instance(self, step: Pass) -> None:
        check_backend(step)
        if not step.name:
            raise UsageError(f"the pass {type(step).__name__} has no name.", "Give its class a `name`.")
        if step.name in self.catalog and self.catalog.get(step.name) is not type(step):
            raise UsageError(
                f"the pass {type(step).__module__}.{type(step).__qualname__} has the name '{step.name}',"
                f" which belongs to {self.catalog.owner(step.name).label}.",
                "Rename it, so that the chain's text means one thing.",
            )
