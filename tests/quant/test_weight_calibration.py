"""Weights that are quantized for the activations of calibration data, and what the kernels' rounding of activations costs."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import rewright
from rewright.api import Chain
from rewright.quant import activations
from rewright.quant.measuring import moments
from tests.quant.weight_models import FLOATS, RNG, K, N, coverage, model_of, ops, quantized, run

W = FLOATS["w"].astype(np.float32)
MIX = RNG.standard_normal((6, K)).astype(np.float32)


def correlated(rows):
    """Inputs that lie near six directions, as activations do, and as their moments have to tell."""
    return (RNG.standard_normal((rows, 6)) @ MIX + 0.05 * RNG.standard_normal((rows, K))).astype(np.float32)


@pytest.fixture
def folder(tmp_path):
    """Sets of different lengths."""
    for number, rows in enumerate((5, 40, 1, 64)):
        np.savez(tmp_path / f"{number}.npz", x=correlated(rows))
    return tmp_path


def error_of(result, x, wanted):
    found = run(result, {"x": x})[0]
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("symmetric", ["true", "false"])
@pytest.mark.parametrize("form", ["operator", "qdq"])
def test_gptq_has_the_smaller_error_on_inputs_like_those_it_has_seen(folder, symmetric, form):
    model = model_of("[m] y = MatMul(x, w)", f"(float[R, {K}] x) => (float y)", opset=21)
    x = correlated(100)
    options = f"symmetric={symmetric}, form={form}, accuracy_level=0"
    nearest = error_of(quantized(model, options), x, x @ W)
    result = quantized(model, f'{options}, algorithm=gptq, calibration="{folder}"')
    assert error_of(result, x, x @ W) < 0.5 * nearest
    assert coverage(result)["m"].became.endswith("blocks of 32, gptq")


def test_gptq_counts_all_that_a_shared_weight_is_multiplied_with(folder):
    body = "s = Relu(x) [a] p = MatMul(x, w) [b] q = MatMul(s, w) y = Add(p, q)"
    model = model_of(body, f"(float[R, {K}] x) => (float y)")
    x = correlated(100)
    wanted = x @ W + np.maximum(x, 0) @ W
    nearest = error_of(quantized(model, "accuracy_level=0"), x, wanted)
    result = quantized(model, f'accuracy_level=0, algorithm=gptq, calibration="{folder}"')
    assert error_of(result, x, wanted) < 0.7 * nearest
    assert len([name for name in ops(result) if name == "MatMulNBits"]) == 2


def test_where_no_activations_are_seen_weights_are_rounded_to_nearest_and_that_is_told(folder):
    body = """y = If(b) <then_branch = t () => (float p) { [then] p = MatMul(x, w) },
                        else_branch = f () => (float q) { q = Neg(x) }>"""
    model = model_of(body, f"(float[R, {K}] x, bool b) => (float y)")
    for path in folder.iterdir():
        np.savez(path, x=correlated(3), b=np.asarray(True))
    result = quantized(model, f'algorithm=gptq, calibration="{folder}"')
    assert coverage(result)["then"].became == "int4 blocks of 32, rtn"
    assert "rounded to nearest, since no activations were seen: 1 nodes" in result.report.passes[0].notes


def test_moments_are_sums_over_all_sets(folder):
    model = model_of("h = Relu(x) y = Neg(h)", f"(float[R, {K}] x) => (float y)")
    sets = sorted(folder.iterdir())
    arguments = {"root": "/", "sets": list(map(str, sets)), "values": ["x", "y"], "folder": str(folder)}
    assert moments(model.SerializeToString(), arguments) == [110, 110]
    x = np.concatenate([np.load(path)["x"] for path in sets])
    np.testing.assert_allclose(np.load(folder / "0.npy"), x.T @ x, rtol=1e-4, atol=1e-3)
    positive = np.maximum(x, 0)
    np.testing.assert_allclose(np.load(folder / "1.npy"), positive.T @ positive, rtol=1e-4, atol=1e-3)


def test_moments_do_not_grow_with_the_data(tmp_path):
    model = model_of("y = Relu(x)", f"(float[R, {K}] x) => (float y)").SerializeToString()
    peaks = []
    for count in (2, 40):
        for number in range(count):
            np.savez(tmp_path / f"{number}.npz", x=RNG.standard_normal((2000, K)).astype(np.float32))
        arguments = {"root": "/", "sets": sorted(map(str, tmp_path.glob("*.npz"))), "values": ["y"], "folder": str(tmp_path)}
        tracemalloc.start()
        assert moments(model, arguments) == [2000 * count]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


def test_matrices_are_measured_in_groups_that_fit_in_memory(monkeypatch):
    monkeypatch.setattr(activations, "_BYTES_AT_ONCE", 4 * 10 * 10 * 2)
    nbytes = {name: 4 * width**2 for name, width in {"a": 10, "b": 10, "c": 4, "d": 100, "e": 2}.items()}
    assert list(activations.in_groups(nbytes)) == [
        ["a", "b"],
        ["c"],
        ["d"],
        ["e"],
    ]


def massive(rows):
    """Activations of which one channel in each block is a thousand times the others, as those behind a massive residual are."""
    x = RNG.standard_normal((rows, K)).astype(np.float32)
    x[:, ::16] *= 3000
    return x


def spared():
    """A weight that hardly reads the large channels, so that the answer is in the small ones."""
    weight = FLOATS["w"].astype(np.float32).copy()
    weight[::16] = 0
    return weight


@pytest.mark.parametrize("verify", ["off", "structure"])
def test_level_four_on_massive_activations_is_measured_and_advised_against(tmp_path, verify):
    np.savez(tmp_path / "one.npz", x=massive(200))
    model = model_of("[m] y = MatMul(x, q)", f"(float[R, {K}] x) => (float y)", q=spared())
    result = quantized(model, f'block_size=16, calibration="{tmp_path}"', verify=verify)
    (note,) = result.report.passes[0].notes
    assert note.startswith("accuracy_level=4 against 0 on the calibration sets: in 'y' ")
    assert note.endswith(": use accuracy_level=0")
    x = massive(300)
    exact = quantized(model, "block_size=16, accuracy_level=0")
    places = [run(each, {"x": x})[0].argmax(1) for each in (result, exact)]
    agreement = (places[0] == places[1]).mean()
    assert agreement < 0.9
    assert float(note.partition("in 'y' ")[2].partition(" %")[0]) == pytest.approx(100 * agreement, abs=12)
    assert (places[1] == (x @ spared()).argmax(1)).mean() > 0.6


def test_level_four_on_ordinary_activations_is_called_safe(folder):
    result = quantized(model_of("[m] y = MatMul(x, w)", f"(float[R, {K}] x) => (float y)"), f'calibration="{folder / "3.npz"}"')
    assert [note.endswith(": it is safe") for note in result.report.passes[0].notes] == [True]


def test_without_calibration_the_level_is_told_to_be_unmeasured():
    result = quantized(model_of("[m] y = MatMul(x, w)"))
    assert any("give calibration, to have that measured" in note for note in result.report.passes[0].notes)
    slow = quantized(model_of("[m] y = MatMul(x, w)"), "bits=8, accuracy_level=1")
    assert any("no fast kernel for 8 bits" in note for note in slow.report.passes[0].notes)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"z": np.zeros((2, K), np.float32)}, "lacks the input 'x'. It holds z; the model takes x."),
        ({"x": np.zeros((2, K), np.float64)}, "does not run on the calibration data"),
        ({"x": np.zeros((2, 7), np.float32)}, "does not run on the calibration data"),
    ],
)
@pytest.mark.parametrize("verify", ["off", "model"])
def test_data_that_does_not_fit_ends_the_run(tmp_path, arrays, said, verify):
    np.savez(tmp_path / "one.npz", **arrays)
    step = Chain(f'quantize-weights{{algorithm=gptq, calibration="{tmp_path}"}}')
    with pytest.raises(rewright.UsageError) as caught:
        step.run(model_of("[m] y = MatMul(x, w)", f"(float[R, {K}] x) => (float[R, {N}] y)"), verify=verify)
    assert said in str(caught.value)


def test_a_file_that_is_no_archive_is_refused_before_the_run(tmp_path):
    (tmp_path / "one.npz").write_text("no archive")
    with pytest.raises(rewright.UsageError, match="cannot be read"):
        Chain(f'quantize-weights{{algorithm=gptq, calibration="{tmp_path}"}}').run(model_of("[m] y = MatMul(x, w)"))
    with pytest.raises(rewright.UsageError, match="is neither an"):
        Chain(f'quantize-weights{{algorithm=gptq, calibration="{tmp_path / "one.npz"}"}}')
