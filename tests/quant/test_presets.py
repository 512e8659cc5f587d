"""The options for each instruction set, and which of them fits a machine."""

from __future__ import annotations

import pytest

from rewright.model.errors import UsageError
from rewright.quant.presets import PRESETS, detect, preset_of

CPUS = ("arm64", "avx2", "avx512", "avx512-vnni", "ppc64le")


def test_the_values_are_those_that_optimum_users_know() -> None:
    assert set(PRESETS) == {*CPUS, "tensorrt"}
    for name in CPUS:
        weight = "uint8" if name == "avx2" else "int8"
        expected = {"weight": weight, "symmetric": True, "per_channel": True, "reduce_range": False}
        assert PRESETS[name].of("dynamic") == expected
        assert PRESETS[name].of("static") == {"activation": "uint8", "activation_symmetric": False, **expected}


def test_tensorrt_is_static_and_symmetric() -> None:
    found = PRESETS["tensorrt"].of("static")
    assert (found["activation"], found["activation_symmetric"], found["weight"]) == ("int8", True, "int8")
    with pytest.raises(UsageError, match="has no mode 'dynamic'"):
        PRESETS["tensorrt"].of("dynamic")


@pytest.mark.parametrize(
    ("machine", "features", "name"),
    [
        ("x86_64", {"avx2", "avx512f", "avx512_vnni"}, "avx512-vnni"),
        ("AMD64", {"avx2", "avx512f"}, "avx512"),
        ("x86_64", {"avx2", "avx_vnni"}, "avx2"),
        ("x86_64", {"sse4_1"}, "avx2"),
        ("aarch64", set(), "arm64"),
        ("arm64", set(), "arm64"),
        ("ppc64le", set(), "ppc64le"),
    ],
)
def test_the_machine_decides(machine: str, features: set[str], name: str) -> None:
    assert detect(machine, frozenset(features)).preset.name == name


def test_it_says_why() -> None:
    assert detect("x86_64", frozenset({"avx2", "avx512f"})).reason == "this processor has avx512f and no VNNI"
    assert preset_of("auto") == detect()


def test_names_as_optimum_writes_them_and_unknown_ones() -> None:
    assert preset_of("avx512_vnni").preset.name == "avx512-vnni"
    with pytest.raises(UsageError, match="no preset 'sse'"):
        preset_of("sse")
    with pytest.raises(UsageError, match="no preset for riscv64"):
        detect("riscv64", frozenset())
