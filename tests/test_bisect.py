"""Finding the pass that makes a model wrong, which of its changes do, and the first value that differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import rewright
from rewright import Chain, GraphPass, Match, ModelPass, PatternPass, UsageError
from rewright.bisection import Bisection

ZOO = Path(__file__).parent / "zoo"
HEADER = '<ir_version: 10, opset_import: ["": 17, "com.microsoft": 1]>'
INNER = ("sine", "cosine", "logistic", "root", "power", "hyper")
BRANCHES = """g (float[N, 4] x) => (float[N, 4] y, float[N, 4] z) {
    positive = Abs(x)
    sine = Sin(x)  cosine = Cos(x)  logistic = Sigmoid(x)  root = Sqrt(positive)  power = Mul(x, x)  hyper = Tanh(x)
    n0 = Neg(sine)  n1 = Neg(cosine)  n2 = Neg(logistic)  n3 = Neg(root)  n4 = Neg(power)  n5 = Neg(hyper)
    y = Sum(n0, n1, n2, n3, n4, n5)
    absent = Identity(hyper)
    z = Exp(absent)
}"""


class Negation(PatternPass):
    """Neg(x) -> x * -1, but x * -factor where x is one of `wrong`."""

    name = "negation"
    exactness = "reassociating"

    wrong: tuple[str, ...] = ()
    factor: float = 1.5

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Neg(x)

    def rewrite(self, op: Any, x: Any) -> Any:
        return op.Mul(x, op.constant(np.float32(-self.factor if x.name in self.wrong else -1)))


class ExactNegation(Negation):
    """The same, promising more."""

    name = "exact-negation"
    exactness = "exact"


class Division(PatternPass):
    """x * c -> x / (1 / (c * factor))."""

    name = "division"
    exactness = "reassociating"

    factor: float = 1.0

    def pattern(self, op: Any, x: Any, c: Any) -> Any:
        return op.Mul(x, c)

    def check(self, match: Match, c: Any) -> None:
        match.require(c.scalar is not None, "the factor is no constant")

    def rewrite(self, op: Any, x: Any, c: Any) -> Any:
        return op.Div(x, op.constant(np.float32(1 / (c.scalar * self.factor))))


class LooseDivision(Division):
    """The same, promising less."""

    name = "loose-division"
    exactness = "approximate"


class SineAsTangent(PatternPass):
    """Sin(x) -> Tan(x)."""

    name = "sine-as-tangent"

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Sin(x)

    def rewrite(self, op: Any, x: Any) -> Any:
        return op.Tan(x)


class TangentAsSine(PatternPass):
    """Tan(x) -> Sin(x)."""

    name = "tangent-as-sine"

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Tan(x)

    def rewrite(self, op: Any, x: Any) -> Any:
        return op.Sin(x)


class UnknownOp(PatternPass):
    """Cos(x) -> an op that nobody has."""

    name = "unknown-op"

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Cos(x)

    def rewrite(self, op: Any, x: Any) -> Any:
        return op.Cosinus(x, domain="com.microsoft")


class Crashing(GraphPass):
    """Crashes."""

    name = "crashing"

    def run(self, session: Any) -> None:
        raise IndexError("no node 7")


class Silent(GraphPass):
    """Changes an op and does not tell."""

    name = "silent"

    def run(self, session: Any) -> None:
        next(node for node in session.view.graph.nodes if node.op == "Exp").op = "Sigmoid"


class Dangling(ModelPass):
    """Takes the node away that makes `sine`."""

    name = "dangling"

    def transform(self, session: Any) -> Any:
        graph = session.view.graph
        session.record(graph, [node for node in graph.nodes if node.op == "Sin"], [])
        proto = onnx.ModelProto()
        proto.CopyFrom(session.model.proto)
        proto.graph.node.remove(next(node for node in proto.graph.node if "sine" in node.output))
        return session.model.with_proto(proto)


class OutputLost(ModelPass):
    """Takes the second output away."""

    name = "output-lost"

    def transform(self, session: Any) -> Any:
        session.record(session.view.graph, [], [])
        proto = onnx.ModelProto()
        proto.CopyFrom(session.model.proto)
        del proto.graph.output[1]
        return session.model.with_proto(proto)


def model(text: str = BRANCHES) -> onnx.ModelProto:
    return onnx.parser.parse_model(HEADER + text)


def bisect(*steps: Any, source: Any = None, **options: Any) -> Bisection:
    return rewright.bisect(source if source is not None else model(), chain=Chain(list(steps)), **options)


def only_culprit(found: Bisection) -> Any:
    assert found.verdict == "found"
    (culprit,) = found.culprits
    return culprit


def tried(found: Bisection, step: str) -> list[tuple[int, str]]:
    return [(trial.applied, trial.status) for trial in found.trials if trial.step == step]


def test_a_chain_of_right_passes_is_clean() -> None:
    found = rewright.bisect(ZOO / "bert.ts17.sdpa.onnx", chain="O2")
    assert (found.verdict, found.culprits, found.unexamined) == ("clean", [], [])
    assert len(found.applications) == len(Chain("O2"))
    assert sum(record.status == "applied" for record in found.applications) >= 8
    assert {trial.status for trial in found.trials} == {"passed"}
    assert len(found.trials) <= 4  # the original, and the end of each stretch with one promise


def test_a_chain_without_a_pass_is_clean() -> None:
    assert bisect().verdict == "clean"


def test_the_one_wrong_site_of_the_one_wrong_pass() -> None:
    steps = ["dead-code", "constant-folding", Negation(wrong=("root",)), "identity-elimination", Division(), "dead-code"]
    found = bisect(*steps)
    culprit = only_culprit(found)
    assert (culprit.index, culprit.name, culprit.kind, culprit.changes) == (2, "negation", "parity", 6)
    assert culprit.chain == "negation{wrong=[root]}"
    (change,) = culprit.undo
    assert change.sites == ["negation#3"]
    assert [node.split()[0] for node in change.removed + change.added] == ["Neg", "Mul"]
    assert culprit.is_enough
    assert found.unexamined == ["identity-elimination", "division", "dead-code"]


def test_the_figures_of_every_step() -> None:
    found = bisect(Negation(wrong=("root",)), inputs={"x": np.array([[4, 1, 0, -1]], np.float32)})
    culprit = only_culprit(found)
    assert tried(found, "pass") == [(0, "passed"), (1, "failed")]
    assert found.trials[1].output == "y"
    assert found.trials[1].max_abs == pytest.approx(1, rel=1e-4)  # half of the root of four
    assert culprit.before is None or culprit.before.status == "passed"
    assert (culprit.after.status, culprit.alone.status) == ("failed", "failed")
    assert culprit.divergence.first.reference.name == "n3"
    assert (culprit.divergence.first.reference.op, culprit.divergence.first.candidate.op) == ("Neg", "Mul")
    assert culprit.divergence.first.evidence.max_abs == pytest.approx(1, rel=1e-4)
    assert culprit.divergence.last_agreeing.reference.name == "root"
    sites = tried(found, "sites")
    assert len(sites) <= 5
    assert {status for _, status in sites} == {"passed", "failed"}


def test_the_neighbours_of_the_culprit_were_compared() -> None:
    """Whatever its place in a chain of passes that all change something."""
    steps = [Negation(), SineAsTangent(), Division(), "identity-elimination"]
    assert [record.status for record in bisect(steps[0], *steps[2:]).applications] == ["applied"] * 3
    for place in range(3):
        order = [steps[0], *steps[2:]]
        order.insert(place, steps[1])
        found = bisect(*order)
        assert only_culprit(found).index == place
        assert (place + 1, "failed") in tried(found, "pass")
        assert (place, "passed") in tried(found, "pass")


def test_several_wrong_sites_are_undone_together() -> None:
    culprit = only_culprit(bisect(Negation(wrong=("sine", "power", "hyper"))))
    assert [change.sites for change in culprit.undo] == [["negation#0"], ["negation#4"], ["negation#5"]]
    assert culprit.is_enough


def test_the_first_of_several_wrong_passes() -> None:
    found = bisect("identity-elimination", SineAsTangent(), Negation(wrong=("root",)))
    assert only_culprit(found).name == "sine-as-tangent"
    assert found.unexamined == ["negation"]


def test_all_of_several_wrong_passes() -> None:
    steps = [SineAsTangent(), UnknownOp(), Crashing(), Negation(wrong=("root",)), "identity-elimination"]
    found = bisect(*steps, every=True)
    assert [culprit.name for culprit in found.culprits] == ["sine-as-tangent", "unknown-op", "crashing", "negation"]
    assert [culprit.kind for culprit in found.culprits] == ["parity", "parity", "crash", "parity"]
    assert found.culprits[3].undo[0].sites == ["negation#3"]
    assert found.unexamined == []
    assert tried(found, "pass") == [(0, "passed"), (1, "failed"), (2, "failed"), (4, "failed"), (5, "passed")]


def test_what_a_later_pass_mends_is_no_divergence() -> None:
    assert bisect(SineAsTangent(), TangentAsSine()).verdict == "clean"
    assert [culprit.name for culprit in bisect(SineAsTangent(), TangentAsSine(), every=True).culprits] == ["sine-as-tangent"]


def test_a_later_pass_that_promises_less_does_not_cover_an_earlier_one() -> None:
    wrong = ExactNegation(wrong=INNER, factor=1.0001)
    found = bisect(wrong, LooseDivision(), "dead-code")
    assert only_culprit(found).name == "exact-negation"
    assert bisect(ExactNegation(), LooseDivision(factor=1.0001)).verdict == "clean"


SPREAD = {"x": np.array([[0.1, 0.1, 0.1, 4]], np.float32)}


def test_a_difference_that_grows_over_several_passes() -> None:
    """Each is off by 8e-6 of the value, which is allowed; together they are not."""
    source = model("g (float[N, 4] x) => (float[N, 4] y) { y = Neg(x) }")
    found = bisect(Negation(wrong=("x",), factor=1 + 8e-6), Division(factor=1 + 8e-6), source=source, inputs=SPREAD)
    culprit = only_culprit(found)
    assert culprit.name == "division"
    assert culprit.before.status == "passed"
    assert culprit.alone.status == "passed"
    assert culprit.divergence.first.reference.name == "y"


def test_sites_that_are_wrong_only_together() -> None:
    source = model("g (float[N, 4] x) => (float[N, 4] y) { a = Neg(x)  y = Neg(a) }")
    culprit = only_culprit(bisect(Negation(wrong=("x", "a"), factor=1 + 8e-6), source=source, inputs=SPREAD))
    assert len(culprit.undo) == 1
    assert not culprit.is_enough


class LongEpsilon(PatternPass):
    """Fuses a sum and its normalisation, and takes the epsilon for 1e-12."""

    name = "long-epsilon"
    exactness = "reassociating"

    def pattern(self, op: Any, a: Any, b: Any, gamma: Any, beta: Any) -> Any:
        return op.LayerNormalization(a + b, gamma, beta, axis=-1)

    def rewrite(self, op: Any, a: Any, b: Any, gamma: Any, beta: Any) -> Any:
        return op.SkipLayerNormalization(a, b, gamma, beta, domain="com.microsoft", epsilon=1e-12)


LIVELY = """g (float[N, S, 4] x) => (float[N, S, 4] y)
<float[4] rows = {30, -10, 20, 0}, float[4] one = {1, 1, 1, 1}, float[4] zero = {0, 0, 0, 0}> {
    lively = Add(x, rows)  still = Mul(x, zero)
    s0 = Add(still, lively)  n0 = LayerNormalization <axis = -1, epsilon = 1e-12> (s0, one, zero)
    s1 = Add(lively, lively)  n1 = LayerNormalization <axis = -1> (s1, one, zero)
    z = Relu(n0)  y = Add(z, n1)
}"""


@pytest.mark.parametrize("every", [False, True])
def test_what_the_outputs_hide_is_found_by_running_changes_alone(every: bool) -> None:
    """No row that the model makes has so low a variance that the epsilon counts."""
    steps = ("dead-code", LongEpsilon(), "identity-elimination")
    assert bisect(*steps, source=model(LIVELY), every=every).verdict == "clean"
    culprit = only_culprit(bisect(*steps, source=model(LIVELY), every=every, verify="sites"))
    assert (culprit.name, culprit.kind, culprit.changes) == ("long-epsilon", "sites", 2)
    (change,) = culprit.undo
    assert change.sites == ["long-epsilon#1"]
    assert change.evidence.max_abs > change.evidence.allowed


def test_running_changes_alone_finds_nothing_in_right_passes() -> None:
    assert rewright.bisect(ZOO / "bert.ts17.sdpa.onnx", chain="O2", verify="sites").verdict == "clean"


@pytest.mark.parametrize(
    ("step", "kind", "reason"),
    [
        (Crashing(), "crash", "IndexError: no node 7"),
        (Silent(), "contract", "changed the model but reports no site"),
        (Dangling(), "structure", "'sine'"),
        (OutputLost(), "interface", "output 'z' is gone"),
        (UnknownOp(), "parity", "Cosinus"),
    ],
)
def test_what_is_wrong_before_numbers_are(step: Any, kind: str, reason: str) -> None:
    found = bisect("identity-elimination", Negation(), step, Division())
    culprit = only_culprit(found)
    assert (culprit.index, culprit.kind) == (2, kind)
    assert reason in culprit.reason
    assert [record.status for record in found.applications[:2]] == ["applied", "applied"]
    assert found.unexamined == ["division"]
    assert culprit.divergence is None


def test_a_wrong_pass_before_a_crash_is_the_first() -> None:
    found = bisect(Negation(wrong=("root",)), Division(), Crashing(), "dead-code")
    assert only_culprit(found).name == "negation"
    assert [record.status for record in found.applications] == ["applied", "applied", "failed", "not-run"]


def test_ops_without_a_kernel_here_are_compared_by_what_they_mean() -> None:
    """GemmFastGelu runs on GPUs only."""
    text = """g (float[N, 4] x) => (float[N, 4] y) <float[4, 4] w = {1,2,3,4,0,1,0,1,-1,0,2,0,1,0,0,1}> {
        m = MatMul(x, w)  s = com.microsoft.FastGelu(m)  y = Neg(s)
    }"""
    assert bisect("gemm-fast-gelu", source=model(text), target="cuda").verdict == "clean"
    found = bisect("gemm-fast-gelu", Negation(wrong=("s",)), source=model(text), target="cuda")
    assert only_culprit(found).divergence.first.reference.name == "y"


def test_models_that_cannot_be_compared() -> None:
    with pytest.raises(UsageError, match="proves nothing"):
        bisect(Negation(), source=model("g (float[N, 4] x) => (float[N, 4] y) <float zero = {0}> { y = Mul(x, zero) }"))
    with pytest.raises(UsageError, match="Frobnicate"):
        bisect(Negation(), source=model("g (float[N] x) => (float[N] y) { y = Frobnicate(x) }"))


def test_the_original_and_its_inputs_are_left_alone() -> None:
    source, array = model(), np.arange(4, dtype=np.float32).reshape(1, 4)
    before = source.SerializeToString(deterministic=True)
    bisect(Negation(wrong=INNER), source=source, inputs={"x": array})
    assert source.SerializeToString(deterministic=True) == before
    assert np.array_equal(array, [[0, 1, 2, 3]])


def test_the_models_around_the_culprit_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    found = bisect("identity-elimination", Negation(wrong=("root",)), Crashing(), every=True, output=folder)
    wrong, crashed = (Path(culprit.folder or "") for culprit in found.culprits)
    comparison = rewright.verify(wrong / "before.onnx", wrong / "after.onnx", inputs=folder / "inputs")
    assert not comparison.equal
    assert comparison.divergence.first.reference.name == "n3"
    assert rewright.verify(crashed / "before.onnx", model()).equal
    assert not (crashed / "after.onnx").exists()
    assert Bisection.model_validate_json((folder / "bisection.json").read_text()) == found
    bisect(SineAsTangent(), output=folder)
    assert {path.name for path in folder.iterdir()} == {"00-sine-as-tangent", "inputs", "bisection.json"}


def test_nothing_is_written_where_nothing_is_found(tmp_path: Path) -> None:
    bisect(Negation(), output=tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path, tmp_path / "file", tmp_path / "absent" / "kept"):
        with pytest.raises(UsageError):
            bisect(SineAsTangent(), output=place)
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "file"}


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    bisect(SineAsTangent(), "dead-code", progress=lambda *step: told.append(step))
    assert {"applying sine-as-tangent", "comparing after sine-as-tangent", "looking into sine-as-tangent"} <= {
        what for what, _, _ in told
    }
    assert all(0 <= done <= total == 2 for _, done, total in told)
