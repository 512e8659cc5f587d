"""Iterables as inputs, outputs that are expected, and who the inputs are from."""

import itertools

import numpy as np
import pytest
from onnx import numpy_helper

from rewright.model.errors import UsageError
from rewright.verify.input_files import MAXIMUM_SETS, load_input_sets
from rewright.verify.inputs import make_input_sets
from rewright.verify.parity import ParityGate


@pytest.fixture(scope="module")
def model(parse):
    return parse("g (float[B, 4] x) => (float[B, 4] y, float[B, 4] z) { y = Relu(x) z = Neg(x) }")


def rows(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32)


def test_a_generator(model):
    sets = load_input_sets(model, ({"x": rows(count)} for count in (1, 2, 3)))
    assert [(each.name, each.arrays["x"].shape[0], each.origin) for each in sets] == [
        ("inputs-0", 1, "given"),
        ("inputs-1", 2, "given"),
        ("inputs-2", 3, "given"),
    ]


def test_of_an_endless_iterable_the_first_sets_are_taken_and_the_description_says_so(model):
    asked = itertools.count()
    sets = load_input_sets(model, ({"x": rows(1, seed)} for seed in asked))
    assert len(sets) == MAXIMUM_SETS
    assert next(asked) == MAXIMUM_SETS + 1, "no more was asked for than it takes to know that there are more"
    assert sets[0].description == f"given by the user (the first {MAXIMUM_SETS})"


def test_a_list_is_taken_whole(model):
    assert len(load_input_sets(model, [{"x": rows(1)}] * (MAXIMUM_SETS + 5))) == MAXIMUM_SETS + 5


class Tensor:
    """Has what a torch tensor has, and like it refuses to become an array while it requires a gradient."""

    def __init__(self, values, requires_gradient=True):
        self.values, self.requires_gradient = values, requires_gradient

    def detach(self):
        return Tensor(self.values, False)

    def cpu(self):
        return self

    def __array__(self, dtype=None, copy=None):
        if self.requires_gradient:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        return self.values


class Batch:
    """What a tokenizer yields: it has keys and items, and is no Mapping."""

    def __init__(self, **tensors):
        self.tensors = tensors

    def keys(self):
        return self.tensors.keys()

    def __getitem__(self, name):
        return self.tensors[name]


class Loader:
    """Has a length and can be iterated over again and again, but is no sequence."""

    def __len__(self):
        return 2

    def __iter__(self):
        return (Batch(x=Tensor(rows(2, seed))) for seed in range(2))


def test_a_data_loader_of_tensors(model):
    sets = load_input_sets(model, Loader())
    np.testing.assert_array_equal(sets[1].arrays["x"], rows(2, 1))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (5, "of the type int, from which no sets can be taken"),
        ([(rows(1), rows(1))], r"item 0 of the given inputs is of the type tuple.*Give mappings"),
        (({"x": rows(1)} if ok else rows(1) for ok in (True, False)), "item 1 of the given inputs is of the type ndarray"),
        ([{"x": rows(1), "labels": rows(1)}], "array 'labels', but the model has no such input.*leave it out"),
        (iter(()), "no input sets"),
    ],
)
def test_what_cannot_be_taken_is_refused_with_its_place(model, source, message):
    with pytest.raises(UsageError, match=message):
        load_input_sets(model, source)


def test_a_value_that_becomes_no_array_is_refused_by_name(model):
    class Stubborn(Tensor):
        def detach(self):
            return self

    with pytest.raises(UsageError, match=r"input 'x' of set 'inputs-0' is a Stubborn.*requires grad"):
        load_input_sets(model, [{"x": Stubborn(rows(1))}])


def write(folder, name, array, tensor_name=""):
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(numpy_helper.from_array(array, tensor_name).SerializeToString())


def test_outputs_that_came_with_the_inputs_are_held_against_the_original(model, worker, tmp_path):
    x = rows(3)
    write(tmp_path / "test_data_set_0", "input_0.pb", x)
    write(tmp_path / "test_data_set_0", "output_0.pb", np.maximum(x, 0))
    write(tmp_path / "test_data_set_0", "output_1.pb", -x, "z")
    write(tmp_path / "test_data_set_1", "input_0.pb", x)
    write(tmp_path / "test_data_set_1", "output_0.pb", np.maximum(x, 0) + np.float32(0.5))
    write(tmp_path / "test_data_set_1", "output_1.pb", -x, "elsewhere")
    evidence = ParityGate(model, load_input_sets(model, tmp_path), worker).check(model, "exact")
    assert (evidence.status, evidence.inputs) == ("passed", "given")
    assert [(each.input_set, each.output, each.reproduced) for each in evidence.expected] == [
        ("test_data_set_0", "y", True),
        ("test_data_set_0", "z", True),
        ("test_data_set_1", "y", False),
        ("test_data_set_1", "elsewhere", False),
    ]
    assert evidence.expected[2].max_abs == pytest.approx(0.5)
    assert "12 of 12 elements differ" in evidence.expected[2].message
    assert evidence.expected[3].message == "the original has no such output"


def test_the_evidence_says_who_the_inputs_are_from(model, worker):
    made = ParityGate(model, None, worker).check(model, "exact")
    assert (made.inputs, made.input_sets[0]) == ("made", "set-0")
    assert {each.origin for each in make_input_sets(model)} == {"made"}
    sets = load_input_sets(model, {"x": rows(2)}, origin="plugin", by="the plugin acme")
    assert sets[0].description == "given by the plugin acme"
    assert ParityGate(model, sets, worker).check(model, "exact").inputs == "plugin"
