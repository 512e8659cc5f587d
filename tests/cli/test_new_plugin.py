"""`rewright new-plugin`: the package installs, its tests pass, its pass is in the catalog; and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from onnx import parser

from rewright.cli import new_plugin as command
from rewright.model.load import load

ROOT = Path(__file__).parents[2]

RELU_AND_CLIP = """<ir_version: 9, opset_import: ["": 17]>
g (float[N, 4] x) => (float[N, 4] y) <float high = {6.0}> { s = Sigmoid(x)  r = Relu(s)  c = Clip(r, , high)  y = Neg(c) }"""


def run(*arguments: str | Path, cwd: Path | None = None, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, with the package installed in ``path``."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("REWRIGHT_", "PYTEST_"))}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (path, ROOT) if path is not None else (ROOT,)))
    command_line = [sys.executable, *map(str, arguments)]
    return subprocess.run(command_line, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)


def installed(package: Path, site: Path) -> Path:
    """The folder ``site`` with the package in it, installed from its pyproject.toml."""
    options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check", "--target", site)
    done = run("-m", "pip", "install", *options, package)
    assert done.returncode == 0, done.stderr
    return site


@pytest.mark.parametrize(
    ("kind", "chosen"),
    [
        ("pattern", "fires or refuses or what_is_left or finds"),  # .ci/run runs all of them
        ("graph", "not (opsets or dtypes or targets or random or inner)"),
    ],
)
def test_the_package_installs_passes_its_tests_and_joins_the_catalog(kind, chosen, command_line, tmp_path):
    package = tmp_path / "made"
    outcome = command_line("new-plugin", "acme-relu-clip", "-o", package, "--kind", kind)
    assert (outcome.status, outcome.err) == (0, "")
    site = installed(package, tmp_path / "site")
    assert (site / "acme_relu_clip" / "py.typed").exists()

    tests = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, cwd=package, path=site)
    assert tests.returncode == 0, tests.stdout
    assert " passed" in tests.stdout

    model = tmp_path / "model.onnx"
    model.write_bytes(parser.parse_model(RELU_AND_CLIP).SerializeToString())
    chain = ("-p", "O1, acme-relu-clip", "--json", "--verify", "structure")
    optimized = run("-m", "rewright", "optimize", model, "-o", tmp_path / "out.onnx", *chain, path=site)
    assert optimized.returncode == 0, optimized.stderr
    assert "Relu" not in {node.op_type for node in load(tmp_path / "out.onnx").proto.graph.node}
    assert '"version": "0.1.0"' in optimized.stdout


def test_the_last_lines_are_the_commands_to_run_next(command_line, tmp_path):
    lines = command_line("new-plugin", "acme-relu-clip", "-o", tmp_path / "of mine").out.splitlines()
    steps = [line.strip() for line in lines[lines.index("Next:") + 1 :]]
    assert steps[0] == f"cd '{tmp_path / 'of mine'}'"
    assert steps[1:3] == ['python -m pip install -e ".[test]"', "python -m pytest"]
    assert steps[-1] == 'rewright optimize MODEL -o OUT -p "O2, acme-relu-clip"'


def test_the_document_shows_what_is_printed(command_line, tmp_path, monkeypatch):
    document = (ROOT / "docs" / "plugins.md").read_text()
    monkeypatch.chdir(tmp_path)
    printed = command_line("new-plugin", "acme-relu-clip").out
    assert f"```text\n{printed.partition('Next:')[0].rstrip()}\n```" in document
    shown = {line.removeprefix("$ ") for line in document.splitlines() if line.startswith("$ ")}
    steps = [line.strip().replace("MODEL", "model.onnx").replace("OUT", "out.onnx") for line in printed.splitlines()]
    assert set(steps[steps.index("Next:") + 1 :]) <= shown


def test_what_the_package_writes_is_clean_and_typed(command_line, tmp_path):
    for kind in ("pattern", "graph"):
        command_line("new-plugin", "acme-relu-clip", "-o", tmp_path / kind, "--kind", kind)
    for check in (("format", "--check"), ("check", "--select", "B,C4,E,F,N,PIE,SIM,UP,W")):
        done = run("-m", "ruff", *check, "--isolated", tmp_path)
        assert done.returncode == 0, done.stdout
    done = run("-m", "mypy", "--strict", tmp_path / "pattern" / "src", cwd=ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("name", "module", "pass_name", "class_name"),
    [
        ("acme", "acme", "acme", "Acme"),
        ("Acme_Ops.v2", "acme_ops_v2", "acme-ops-v2", "AcmeOpsV2"),
        ("acme-match", "acme_match", "match", "MatchPass"),
        ("acme-none", "acme_none", "none", "NonePass"),
    ],
)
def test_names_follow_from_the_packages_name(name, module, pass_name, class_name, command_line, tmp_path):
    package = tmp_path / "made"
    chosen = ("--pass", pass_name) if pass_name in ("match", "none") else ()
    assert command_line("new-plugin", name, "-o", package, *chosen).status == 0
    project = tomllib.loads((package / "pyproject.toml").read_text())
    assert project["project"]["name"] == name
    assert project["project"]["entry-points"]["rewright"] == {name: f"{module}:PASSES"}
    source = (package / "src" / module / f"{pass_name.replace('-', '_')}.py").read_text()
    assert f"class {class_name}(PatternPass)" in source
    compile(source, "made", "exec")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["acme relu"], "cannot be the name of a package"),
        (["-acme"], "No such option"),
        (["acme-"], "cannot be the name of a package"),
        (["../acme"], "cannot be the name of a package"),
        (["3d-ops"], "Python cannot import"),
        (["class"], "Python cannot import"),
        (["acme", "--pass", "Acme"], "cannot be the name of a pass"),
        (["acme", "--pass", "lambda"], "Python cannot import"),
        (["acme", "--pass", "gelu"], "the pass 'gelu' is there already: rewright"),
        (["gelu"], "the pass 'gelu' is there already"),
        (["json"], "this environment has one already"),
        (["rewright"], "this environment has one already"),
        (["onnx"], "this environment has one already"),
        (["acme", "--kind", "class"], "the kind is 'class'"),
        (["acme", "-o", "nowhere/acme"], "does not exist"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(arguments, said, command_line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said in command_line("new-plugin", *arguments).assert_one_error()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: path.symlink_to("nothing")])
def test_what_is_there_stays(make, command_line, tmp_path):
    place = tmp_path / "made"
    make(place)
    assert "is there already" in command_line("new-plugin", "acme", "-o", place).assert_one_error()
    assert list(tmp_path.iterdir()) == [place]


def test_nothing_half_written_is_left(command_line, tmp_path, monkeypatch):
    real = Path.write_text

    def full(path: Path, text: str, **options: str) -> int:
        if path.name.startswith("test_"):
            raise OSError(28, "No space left on device")
        return real(path, text, **options)

    monkeypatch.setattr(command.Path, "write_text", full)
    assert "No space left" in command_line("new-plugin", "acme", "-o", tmp_path / "made").assert_one_error()
    assert list(tmp_path.iterdir()) == []
