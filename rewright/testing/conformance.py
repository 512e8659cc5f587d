"""What every pass has to hold, as a class of tests that the author of a pass subclasses."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, get_args

import onnx
import pytest

from rewright.api import Chain
from rewright.model.carrier import Model
from rewright.model.elements import normal_domain
from rewright.model.errors import RewrightError
from rewright.passes.contract import Exactness, Pass, Target
from rewright.passes.pattern_pass import PatternPass
from rewright.run import VerifyMode
from rewright.testing import variants, wording
from rewright.testing.checking import CheckedRun, chain_of, check_pass, examine
from rewright.testing.overriding import difference_under_other_weights
from rewright.testing.sources import Source, content, model_of, parse
from rewright.testing.variants import NoVariantError

OPSETS: Final = (11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23)
DTYPES: Final = tuple(variants.ELEM_TYPES)
TARGETS: Final[tuple[Target, ...]] = get_args(Target)
_INNER_VALUES: Final = 8
"""Values inside a site that are tried one by one as outputs and with another reader."""

_EMPTY: Final = {
    "nothing between input and output": "g (float[N] x) => (float[N] x) { }",
    "a constant as output": "g () => (float[2] w) <float[2] w = {1.0, 2.0}> { }",
}


@dataclass(frozen=True)
class Positive:
    """A model on which a configured pass fires."""

    pass_: Pass
    name: str
    model: Source
    sites: int


@dataclass(frozen=True)
class Refusal:
    """A model that a configured pass leaves as it is, and what its reason has to match."""

    pass_: Pass
    name: str
    model: Source
    reason: str


class PassConformance:
    """Subclass it in a test module, under a name that begins with ``Test``; pytest runs what it inherits.

    .. code-block:: python

        class TestBiasGelu(PassConformance):
            pass_ = BiasGelu()
            fires = {"plain": PLAIN, "two layers": (STACKED, 2)}
            refuses = {"bias is an input": (INPUT_BIAS, "not a constant vector")}

    Attributes:
        pass_, passes: the configured pass, or several that all fire on the same models.
        fires: models on which it fires by name; once, or as often as stated.
        refuses: models that it leaves as they are by name, and a regular expression for the reason.
        chain_before: chain text that runs before the pass on each of these models.
        verify: how runs are verified; see ``check_pass``.
        opsets: versions of the standard domain that the models are also tried at, as far as their nodes admit them; the pass
            may refuse there, but not be wrong.
        fires_at: those at which it has to fire as well.
        fires_in_bodies: whether it has to fire in the branches of an If as well.
        dtypes: what float32 is replaced by; the pass may refuse, but not be wrong.
        targets: where the result is going to run; likewise.
        random_graphs: how many generated models it has to leave unharmed; each takes a few tenths of a second.
        random_parts: what these are made of, as in ``rewright.testing.strategies.models``; of everything by default. Choose
            parts that the pass is about, and it fires more often.
    """

    pass_: ClassVar[Pass | type[Pass] | None] = None
    passes: ClassVar[Sequence[Pass | type[Pass]]] = ()
    fires: ClassVar[Mapping[str, Source | tuple[Source, int]]] = {}
    refuses: ClassVar[Mapping[str, tuple[Source, str]]] = {}
    chain_before: ClassVar[str] = ""
    verify: ClassVar[VerifyMode] = "sites"
    opsets: ClassVar[Sequence[int]] = OPSETS
    fires_at: ClassVar[Container[int]] = ()
    fires_in_bodies: ClassVar[bool] = True
    dtypes: ClassVar[Sequence[str]] = DTYPES
    targets: ClassVar[Sequence[Target]] = TARGETS
    random_graphs: ClassVar[int] = 20
    random_parts: ClassVar[Collection[str] | None] = None

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Makes one test of each pass, positive, refusal, opset, dtype and target."""
        given = [self.pass_] if self.pass_ is not None else list(self.passes)
        passes = [step() if isinstance(step, type) else step for step in given]
        for fixture, cases, ids in self._parameters(passes):
            if fixture in metafunc.fixturenames:
                metafunc.parametrize(fixture, cases, ids=ids)

    def _parameters(self, passes: Sequence[Pass]) -> Iterable[tuple[str, Sequence[Any], Sequence[str]]]:
        def ids(cases: Sequence[Any]) -> list[str]:
            return [f"{_title(case.pass_)}-{case.name}" if len(passes) > 1 else case.name for case in cases]

        pairs = {name: given if isinstance(given, tuple) else (given, 1) for name, given in self.fires.items()}
        positives = [Positive(step, name, model, sites) for step in passes for name, (model, sites) in pairs.items()]
        refusals = [Refusal(step, name, model, reason) for step in passes for name, (model, reason) in self.refuses.items()]
        yield "configured", passes, [_title(step) for step in passes]
        yield "positive", positives, ids(positives)
        yield "refusal", refusals, ids(refusals)
        yield "opset", self.opsets, [f"opset{version}" for version in self.opsets]
        yield "dtype", self.dtypes, self.dtypes
        yield "target", self.targets, self.targets
        yield "empty", list(_EMPTY.values()), list(_EMPTY)

    def test_something_is_tested(self) -> None:
        """The subclass names a pass and a model on which it fires."""
        assert self.pass_ is not None or self.passes, "set pass_ (or passes) to the pass that is tested"
        assert self.fires, "give at least one model on which the pass fires, in fires"

    def test_facts(self, configured: Pass) -> None:
        """The pass has a name, a summary in its docstring, an exactness, and declared ops that can be told apart."""
        problems = []
        if not configured.name:
            problems.append("it has no name")
        if not type(configured).summary():
            problems.append("it has no docstring, whose first line is what `rewright passes` shows")
        if configured.exactness not in get_args(Exactness):
            problems.append(f"its exactness is '{configured.exactness}'")
        problems += [
            f"it emits '{op}'; write it as domain.Op, such as com.microsoft.BiasGelu"
            for op in configured.emits
            if not op.replace("::", ".").rpartition(".")[0]
        ]
        if configured.backend not in configured.backends:
            problems.append(f"its backend is '{configured.backend}', and it has {', '.join(configured.backends)}")
        if problems:
            raise AssertionError(f"Pass developer: {'; '.join(problems)}.")

    def test_options(self, configured: Pass) -> None:
        """The options are the same after they were written as chain text, YAML and TOML, and read again."""
        chain = chain_of(configured)
        assert list(Chain(chain.text, catalog=chain.catalog))[-1] == configured
        assert list(Chain.from_yaml(chain.to_yaml(), catalog=chain.catalog))[-1] == configured
        assert list(Chain.from_toml(chain.to_toml(), catalog=chain.catalog))[-1] == configured
        default = type(configured).model_construct()
        if configured == default:
            assert chain_of(configured).text.endswith(configured.name)

    def test_fires(self, positive: Positive) -> None:
        """It fires as often as stated; the gates pass; a second run changes nothing; the input is untouched."""
        check_pass(positive.pass_, positive.model, sites=positive.sites, before=self.chain_before, verify=self.verify)

    def test_refuses(self, refusal: Refusal) -> None:
        """It leaves the model as it is, and the reason is the one that is expected."""
        check_pass(refusal.pass_, refusal.model, sites=0, refuses=refusal.reason, before=self.chain_before)

    def test_is_deterministic(self, positive: Positive) -> None:
        """Two runs on the same model do the same at the same places and give the same bytes."""
        first, second = (self._unverified(positive.pass_, self._origin(positive.model)) for _ in range(2))
        assert _account(first) == _account(second), "two runs of the pass on one model differ in their sites or reasons"
        if content(first.result.model) != content(second.result.model):
            raise AssertionError(f"two runs give different models{wording.difference(first.result.model, second.result.model)}")

    def test_emits_what_it_declares(self, positive: Positive) -> None:
        """Ops outside the standard that it adds are among those that it declares in ``emits``."""
        run = self._unverified(positive.pass_, self._origin(positive.model))
        added = _added_ops(run)
        declared = {op.replace("::", ".") for op in positive.pass_.emits}
        undeclared = sorted({f"{domain or 'ai.onnx'}.{op}" for domain, op in added if not _is_standard(domain, op)} - declared)
        if undeclared:
            raise AssertionError(f"Pass developer: declare emits = {tuple(undeclared)}; now it is {positive.pass_.emits}.")

    def test_other_opsets(self, positive: Positive, opset: int) -> None:
        """At every opset that the model's nodes admit it fires or refuses, and is never wrong."""
        model = self._variant(lambda: variants.at_opset(model_of(positive.model), opset))
        wanted = positive.sites if opset in self.fires_at else None
        self._must_be_sound(positive.pass_, model, f"at opset {opset}", sites=wanted)

    def test_other_dtypes(self, positive: Positive, dtype: str) -> None:
        """With another float type it fires or refuses, and the result is neither wrong nor unloadable."""
        model = self._variant(lambda: variants.in_dtype(model_of(positive.model), dtype))
        checked = self._must_be_sound(positive.pass_, model, f"in {dtype}", must_run=False)
        self._must_have_kernels(checked, "cpu")

    def test_targets(self, positive: Positive, target: Target) -> None:
        """For every target it emits only ops that run there, and their meaning is that of what they replace."""
        checked = self._must_be_sound(positive.pass_, positive.model, f"for the target {target}", target=target)
        self._must_have_kernels(checked, target)

    def test_inner_values_that_are_used(self, positive: Positive) -> None:
        """Where a value inside a site is an output or read by another node, it is kept, or the site is refused."""
        origin = self._origin(positive.model)
        run = self._unverified(positive.pass_, origin)
        left = {name for node in run.result.model.proto.graph.node for name in node.output}
        gone = [name for node in origin.proto.graph.node for name in node.output if name and name not in left]
        tried, wrong = 0, []
        for name, type_ in list(variants.inner_values(origin, gone))[:_INNER_VALUES]:
            for how, make in (("is an output", variants.with_output), ("has another reader", variants.with_reader)):
                try:
                    model = make(origin, name, type_)
                except NoVariantError:
                    continue
                tried += 1
                checked = examine(positive.pass_, model, sites=None, verify=self.verify, must_prove=False)
                wrong += [f"where '{name}' {how}: {problem}" for problem in checked.problems]
        if not tried:
            pytest.skip("no value inside a site disappears that has a known type")
        if wrong:
            raise AssertionError("\n".join(["a value that something else uses is not respected:", *wrong]))

    def test_in_bodies(self, positive: Positive) -> None:
        """In the branches of an If, weights captured from outside, it fires as often in each, and is not wrong."""
        model = self._variant(lambda: variants.in_bodies(self._origin(positive.model)))
        checked = self._must_be_sound(positive.pass_, model, "in the branches of an If", raw=False)
        if self.fires_in_bodies:
            hint = "Go through every graph (session.view.graphs()), or set fires_in_bodies = False."
            self._must_fire(checked, self._doubled(positive), "in the two branches of an If", hint)

    def test_twice_in_one_model(self, positive: Positive) -> None:
        """Beside a copy of itself it fires twice as often."""
        model = self._variant(lambda: variants.twice(self._origin(positive.model)))
        checked = self._must_be_sound(positive.pass_, model, "twice in one model", raw=False)
        self._must_fire(checked, self._doubled(positive), "twice in one model")

    def test_shared_weights(self, positive: Positive) -> None:
        """Where the copy reads the same initializers, none is changed for both because one was rewritten."""
        model = self._variant(lambda: variants.twice(self._origin(positive.model), shares_weights=True))
        self._must_be_sound(positive.pass_, model, "twice in one model with shared weights", raw=False)

    def test_weights_that_callers_may_replace(self, positive: Positive) -> None:
        """Where initializers are only the defaults of inputs, they are not taken for constants."""
        model = self._variant(lambda: variants.with_overridable_weights(self._origin(positive.model)))
        checked = self._must_be_sound(positive.pass_, model, "where every weight is the default of an input", raw=False)
        if any(record.sites for record in checked.result.report.passes):
            wrong = difference_under_other_weights(model, checked.result.model, positive.pass_.exactness)
            if wrong:
                raise AssertionError(f"a weight that is the default of an input was taken for a constant: {wrong}")

    def test_in_a_function(self, positive: Positive) -> None:
        """In a model-local function, whose values have no types, it fires or refuses, and is not wrong."""
        model = self._variant(lambda: variants.in_a_function(self._origin(positive.model)))
        self._must_be_sound(positive.pass_, model, "in a model-local function", raw=False)

    def test_empty_models(self, configured: Pass, empty: str) -> None:
        """A model without nodes is left as it is."""
        check_pass(configured, parse(empty), sites=0)

    def test_random_graphs(self, configured: Pass) -> None:
        """Generated well-typed models are not harmed: whatever it does to them passes the gates and is done once."""
        pytest.importorskip("hypothesis")
        if not self.random_graphs:
            pytest.skip("random_graphs is 0")
        from rewright.testing.random_graphs import leaves_unharmed

        leaves_unharmed(configured, self.random_graphs, self.random_parts, before=self.chain_before)

    def _origin(self, source: Source) -> Model:
        model = model_of(source)
        return Chain(self.chain_before).run(model, verify="off").model if self.chain_before else model

    def _variant(self, make: Any) -> Model:
        try:
            made: Model = make()
        except NoVariantError as error:
            pytest.skip(str(error))
        return made

    @staticmethod
    def _unverified(pass_: Pass, origin: Model) -> CheckedRun:
        return examine(pass_, origin, sites=None, verify="off", idempotent=False)

    def _must_be_sound(
        self,
        pass_: Pass,
        model: Source,
        circumstance: str,
        *,
        sites: int | None = None,
        target: Target = "cpu",
        raw: bool = True,
        must_run: bool = True,
    ) -> CheckedRun:
        """Whether the pass is right, if it fires at all; skips where the model itself does not run here, unless that may be."""
        __tracebackhide__ = True
        before = self.chain_before if raw else ""
        checked = examine(pass_, model, sites=sites, target=target, before=before, verify=self.verify, must_prove=False)
        if checked.problems:
            raise AssertionError(f"{circumstance}, {checked.message}")
        if must_run and checked.cannot_run:
            pytest.skip(f"ONNX Runtime does not run the model itself {circumstance}: {checked.cannot_run}")
        return checked

    @staticmethod
    def _doubled(positive: Positive) -> int:
        """How many sites there are at least where everything is there twice; graph passes may say once what they did to all."""
        return 2 * positive.sites if isinstance(positive.pass_, PatternPass) else positive.sites

    @staticmethod
    def _must_fire(checked: CheckedRun, wanted: int, circumstance: str, hint: str = "") -> None:
        __tracebackhide__ = True
        records = checked.result.report.passes
        fired = sum(len(record.sites) for record in records)
        if fired < wanted:
            said = f"{circumstance} it fires at {wording.count(fired, 'site')}, {wanted} expected{wording.rejections(records)}"
            raise AssertionError(f"{said}\n{hint}".rstrip())

    @staticmethod
    def _must_have_kernels(checked: CheckedRun, target: Target) -> None:
        """Whether every op that was added runs on the target in the type of the value that its contract is typed by."""
        __tracebackhide__ = True
        wrong = sorted(set(variants.without_kernel(checked.result.model, checked.origin, target)))
        if wrong:
            raise AssertionError(f"Pass developer: refuse the site, for {'; '.join(wrong)}.")


def _title(configured: Pass) -> str:
    """The pass as chain text, or its name where an option has no text form, which is for a test to say."""
    try:
        return chain_of(configured).text
    except RewrightError:
        return configured.name


def _account(run: CheckedRun) -> list[tuple[Any, ...]]:
    """What the passes say that they did."""
    return [
        (record.name, [site.model_dump() for site in record.sites], [item.model_dump() for item in record.rejections])
        for record in run.result.report.passes
    ]


def _added_ops(run: CheckedRun) -> set[tuple[str, str]]:
    """(domain, op) of which the result has more."""
    before = run.origin.op_counts()
    more = [key for key, count in run.result.model.op_counts().items() if count > before.get(key, 0)]
    return {(normal_domain(key.partition("::")[0]), key.partition("::")[2]) for key in more}


def _is_standard(domain: str, op: str) -> bool:
    return not domain and onnx.defs.has(op)
