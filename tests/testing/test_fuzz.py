"""The fuzzer finds what passes must not do, keeps it small, and goes on whatever happens to its process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx.parser import parse_model

from rewright.registry.catalog import Catalog, default_catalog
from rewright.testing.fuzz.checks import Examiner, Finding
from rewright.testing.fuzz.echo import Echo
from rewright.testing.fuzz.findings import Kept, keep, minimize, read, replay
from rewright.testing.fuzz.process import Assignment, fuzz

TANH = parse_model(
    """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 8] x) => (float[N, 8] y) { [a] a = Relu(x) [b] b = Neg(a) [t] t = Tanh(b) [y] y = Softsign(t) }"""
)
NEG = parse_model('<ir_version: 8, opset_import: ["": 17]> g (float[N, 8] x) => (float[N, 8] y) { [n] y = Neg(x) }')


@pytest.fixture(scope="module", autouse=True)
def plugin_path():
    """The spawned processes import the faulty plugin too."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parent), before)))
    yield
    os.environ.pop("PYTHONPATH")
    if before is not None:
        os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="module")
def catalog(plugin_path):
    return Catalog.load(["faulty_plugin"], autoload=False)


@pytest.fixture
def examiner(catalog):
    return Examiner(catalog, limit=5.0)


EXPECTED = {
    "wrong-numbers": ("wrong", "elements differ"),
    "crashes": ("crash", "KeyError: 'tanh'"),
    "again-and-again": ("not idempotent", "fires again"),
    "dead-code": None,
}


@pytest.mark.parametrize("name", EXPECTED)
def test_what_a_pass_does_wrong_is_named(examiner, name):
    finding = examiner.judge(TANH, name, is_idempotent=True)
    assert examiner.judge(NEG, name, is_idempotent=True) is None
    if EXPECTED[name] is None:
        assert finding is None
        return
    assert finding is not None
    assert (finding.kind, finding.culprit, finding.chain) == (EXPECTED[name][0], name, name)
    assert EXPECTED[name][1] in finding.reason


def test_an_approximation_that_is_undone_is_counted_and_no_finding(examiner):
    assert examiner.judge(TANH, "too-rough", is_idempotent=True) is None
    assert examiner.tally.ends == {"approximation undone": 1}


def test_a_pass_that_does_not_end_is_stopped(catalog):
    finding = Examiner(catalog, limit=0.5).judge(TANH, "never-ends", is_idempotent=True)
    assert finding is not None
    assert (finding.kind, finding.culprit) == ("hang", "never-ends")


def test_the_order_of_a_set_shows_in_another_process(catalog):
    with Echo(("faulty_plugin",), autoload=False) as echo:
        examiner = Examiner(catalog, echo=echo)
        finding = examiner.judge(TANH, "orders-by-hash", is_idempotent=False)
        assert examiner.judge(TANH, "dead-code, O1", is_idempotent=False) is None
    assert finding is not None
    assert (finding.kind, finding.reason) == ("nondeterministic", "a process with other hashes gives another model")


def test_the_culprit_of_a_chain_is_left_alone_on_a_small_model(examiner, tmp_path):
    chain = "dead-code, common-subexpression, wrong-numbers, constant-folding"
    finding = examiner.judge(TANH, chain, is_idempotent=False)
    assert finding is not None
    assert finding.culprit == "wrong-numbers"
    model, small = minimize(examiner, TANH, finding, seed=0, seconds=5.0)
    assert (small.chain, [node.op_type for node in model.graph.node]) == ("wrong-numbers", ["Tanh"])
    place = keep(tmp_path, Kept(model, small))
    assert (place / "chain.txt").read_text() == "wrong-numbers\n"
    assert (place / "COMMAND").read_text() == f"python -m rewright.testing.fuzz --replay {place}\n"
    assert replay(examiner, read(place)) == small


def test_findings_of_one_sort_differ_in_names_and_numbers_only():
    one = Finding("wrong", "gelu", "gelu", "output 'y' differs by 0.25 at [0, 1]")
    other = Finding("wrong", "O2", "gelu", "output 'z' differs by 1e-3 at [2, 3]")
    assert one.key == other.key
    assert one.key != Finding("wrong", "gelu", "gelu", "output 'y' is not finite").key


def test_a_killed_process_costs_one_graph_and_not_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("FAULTY_PLUGIN_MARK", str(tmp_path / "mark"))
    plan = {"seconds": 100.0, "graphs": 6, "seed": 1, "plugins": ("faulty_plugin",), "autoload": False}
    outcome = fuzz(Assignment(passes=("kills",), folder=tmp_path / "kept", **plan))
    assert outcome.graphs == 6
    ((finding, died),) = outcome.findings.values()
    assert (finding.kind, finding.reason) == ("died", "the process ended with status -9")
    onnx.checker.check_model(onnx.load(died / "model.onnx"))
    assert json.loads((died / "finding.json").read_text())["chain"] == "kills"


def command(*arguments):
    line = [sys.executable, "-m", "rewright.testing.fuzz", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    return subprocess.run(line, capture_output=True, text=True, timeout=120, check=False, env=environment)


def test_a_short_run_over_everything_finds_nothing(tmp_path):
    done = command("--graphs", 12, "--seed", 7, "--keep", tmp_path, "--no-plugins")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 graphs, seed 7, verify model" in done.stdout
    assert {name for name in default_catalog() if name not in done.stdout} == {"quantize-static", "smooth-quant"}
    assert not any(tmp_path.iterdir())


def test_a_finding_is_kept_and_runs_again(tmp_path):
    place = keep(tmp_path, Kept(TANH, Finding("crash", "crashes", "crashes", "?")))
    broken = command("--replay", place, "--plugin", "faulty_plugin", "--no-plugins")
    assert (broken.returncode, "KeyError: 'tanh'" in broken.stdout) == (1, True), broken.stderr
    onnx.save(NEG, place / "model.onnx")
    mended = command("--replay", place, "--plugin", "faulty_plugin", "--no-plugins")
    assert (mended.returncode, "mended" in mended.stdout) == (0, True), mended.stderr


def test_without_hypothesis_it_says_what_to_install(tmp_path):
    (tmp_path / "hypothesis.py").write_text("raise ModuleNotFoundError(name='hypothesis')")
    line = [sys.executable, "-m", "rewright.testing.fuzz"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith('hint: pip install "rewright[testing]"\n')


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--passes", "gelo"], "there is no pass 'gelo'"),
        (["--verify", "off"], "graphs are not checked by 'off'"),
        (["--target", "tpu"], "there is no target 'tpu'"),
        (["--replay", "nowhere"], "holds no finding"),
    ],
)
def test_wrong_use_is_one_message(arguments, message):
    done = command(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_pass_that_is_given_no_data_is_no_finding(tmp_path):
    done = command("--graphs", 20, "--seed", 8, "--keep", tmp_path, "--no-plugins", "--passes", "quantize-static")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "data wanted" in done.stdout
