"""What a graph input means is read off the graph that uses it."""

import pytest

from rewright.model.errors import UsageError
from rewright.verify.roles import infer_roles


@pytest.fixture
def role(parse):
    def of(text, name=None):
        roles = {role.name: role for role in infer_roles(parse(text))}
        return roles[name] if name else next(iter(roles.values()))

    return of


TABLE = "float[50, 8] table"


def test_token_ids_stay_below_the_table(role):
    found = role(f"g (int64[B, S] ids, {TABLE}) => (float[B, S, 8] y) {{ y = Gather(table, ids) }}", "ids")
    assert (found.kind, found.bound) == ("index", 50)


def test_the_axis_of_the_gather_counts(role):
    found = role(f"g (int64[B] ids, {TABLE}) => (float[50, B] y) {{ y = Gather<axis = 1>(table, ids) }}", "ids")
    assert found.bound == 8


def test_an_index_is_followed_through_ops_that_move_elements(role):
    found = role(
        """g (int32[B, S] ids) => (float[B, S, 1, 1] y)
        <float[5, 1] table = {1, 2, 3, 4, 5}, int64[1] one = {1}> {
            wide = Cast<to = 7>(ids)
            more = Unsqueeze(wide, one)
            moved = Transpose<perm = [0, 1, 2]>(more)
            y = Gather(table, moved)
        }"""
    )
    assert (found.kind, found.bound) == ("index", 5)


def test_an_added_offset_lowers_the_bound(role):
    found = role(
        """g (int64[B, S] positions) => (float[B, S, 1] y)
        <float[5, 1] table = {1, 2, 3, 4, 5}, int64 offset = {2}> {
            shifted = Add(positions, offset)
            y = Gather(table, shifted)
        }"""
    )
    assert (found.kind, found.bound) == ("position", 3)


def test_a_subtracted_offset_raises_the_smallest_value(role):
    found = role(
        """g (int64[B] ids) => (float[B, 1] y)
        <float[5, 1] table = {1, 2, 3, 4, 5}, int64 offset = {1}> {
            shifted = Sub(ids, offset)
            y = Gather(table, shifted)
        }"""
    )
    assert (found.low, found.bound) == (1, 5)


def test_the_smallest_of_several_tables_decides(role):
    found = role(
        """g (int64[B] ids) => (float[B, 1] y)
        <float[5, 1] large = {1, 2, 3, 4, 5}, float[2, 1] small = {1, 2}> {
            a = Gather(large, ids)
            b = Gather(small, ids)
            y = Add(a, b)
        }"""
    )
    assert found.bound == 2


def test_a_table_behind_dequantization_and_one_hot_depth(role):
    found = role(
        """g (int64[B] ids) => (float[B, 1] y)
        <int8[5, 1] table = {1, 2, 3, 4, 5}, float scale = {0.5}> {
            floats = DequantizeLinear(table, scale)
            y = Gather(floats, ids)
        }"""
    )
    assert found.bound == 5
    hot = role(
        """g (int64[B] ids) => (float[B, 7] y) <int64 depth = {7}, float[2] values = {0, 1}> {
            y = OneHot(ids, depth, values)
        }"""
    )
    assert (hot.kind, hot.bound) == ("index", 7)


def test_an_index_used_in_a_body_is_found(role):
    found = role(
        """g (bool flag, int64[B] ids) => (float[B, 1] y) <float[5, 1] table = {1, 2, 3, 4, 5}> {
            y = If(flag) <
                then_branch = a () => (float[B, 1] p) { p = Gather(table, ids) },
                else_branch = b () => (float[B, 1] q) { q = Gather(table, ids) }
            >
        }""",
        "ids",
    )
    assert (found.kind, found.bound) == ("index", 5)


def test_an_index_used_in_a_loop_and_in_a_function_is_found(role):
    looped = role(
        """g (int64[B] ids) => (float[N, B, 1] y)
        <float[5, 1] table = {1, 2, 3, 4, 5}, int64 trips = {2}, bool true = {1}> {
            last, y = Loop(trips, true, ids) <
                body = b (int64 i, bool c, int64[B] carried) => (bool c2, int64[B] next, float[B, 1] row) {
                    c2 = Identity(c)
                    next = Identity(carried)
                    row = Gather(table, carried)
                }
            >
        }"""
    )
    assert (looped.kind, looped.bound) == ("index", 5)
    called = role(
        """<ir_version: 10, opset_import: ["": 17, "own": 1]>
        g (int64[B] ids) => (float[B, 1] y) { y = own.embed(ids) }
        <domain: "own", opset_import: ["": 17]>
        embed (x) => (z) {
            table = Constant<value = float[3, 1] {1, 2, 3}>()
            z = Gather(table, x)
        }"""
    )
    assert (called.kind, called.bound) == ("index", 3)


@pytest.mark.parametrize(
    "nodes",
    [
        "c = Cast<to = 9>(m) y = Where(c, a, b)",
        "f = Cast<to = 1>(m) s = Sub(one, f) y = Add(s, a)",
        "f = Cast<to = 1>(m) s = Mul(f, lowest) y = Add(s, a)",
        "z = Cast<to = 7>(m) e = Equal(z, zero) y = Where(e, a, b)",
    ],
)
def test_masks_are_known_by_what_is_done_with_them(role, nodes):
    found = role(
        f"""g (int64[B, S] m, float[B, S] a, float[B, S] b) => (float[B, S] y)
        <float one = {{1}}, float lowest = {{-10000}}, int64 zero = {{0}}> {{ {nodes} }}"""
    )
    assert found.kind == "mask"


def test_a_mask_that_is_only_added_holds_large_negative_numbers(role):
    text = "g (float[B, 1, S, S] attention_mask, float[B, 1, S, S] x) => (float[B, 1, S, S] y) { y = Add(attention_mask, x) }"
    assert role(text).kind == "additive-mask"


@pytest.mark.parametrize(
    ("dims", "nodes", "kind"),
    [
        ("B, S, 2", "t = MatMul(masked_x, w) y = Add(t, masked_x)", "float"),
        ("B, S, 2", "t = LayerNormalization(masked_x, v) y = Add(t, masked_x)", "float"),
        ("B, 2, S, S", "y = Conv(masked_x, k)", "image"),
        ("B, S, 2", "t = MatMul(masked_x, w) s = Sub(one, masked_x) y = Add(t, s)", "mask"),
        ("B, S, 2", "t = MatMul(x, masked_x) y = Add(t, t)", "mask"),
    ],
)
def test_what_goes_through_weights_is_no_mask_whatever_its_name(role, dims, nodes, kind):
    text = f"""g (float[{dims}] masked_x, float[B, S, S] x) => (float[{dims}] y)
        <float one = {{1}}, float[2] v = {{1, 2}}, float[2, 2] w = {{1, 2, 3, 4}}, float[2, 2, 1, 1] k = {{1, 2, 3, 4}}> {{
            {nodes}
        }}"""
    assert role(text).kind == kind


@pytest.mark.parametrize(
    ("declared", "kind"),
    [
        ("bool[B, S] a", "mask"),
        ("bool[1] a", "flag"),
        ("float[B, 4, P, 16] past_key_values_0_key", "past"),
        ("float[B, 3, 32, 32] a", "image"),
        ("float[B, S, 8] a", "float"),
        ("int64[B] a", "integer"),
        ("string[B] a", "text"),
        ("int64[B, S] position_ids", "position"),
    ],
)
def test_the_rest_goes_by_type_rank_and_name(role, declared, kind):
    assert role(f"g ({declared}) => ({declared.rsplit(' ', 1)[0]} y) {{ y = Identity({declared.split()[-1]}) }}").kind == kind


def test_a_convolved_row_is_a_waveform(role):
    found = role(
        """g (float[B, T] samples) => (float[B, 1, U] y) <float[1, 1, 2] w = {1, 2}, int64[1] one = {1}> {
            c = Unsqueeze(samples, one)
            y = Conv(c, w)
        }"""
    )
    assert found.kind == "waveform"


def test_shape_operands(role):
    text = "g (float[B, S] x, int64[2] target) => (float[A, C] y) { y = Reshape(x, target) }"
    assert (role(text, "target").kind, role(text, "target").reshapes) == ("shape", True)
    text = "g (float[B, S] x, int64[2] target) => (float[A, C] y) { y = Expand(x, target) }"
    assert (role(text, "target").kind, role(text, "target").reshapes) == ("shape", False)


def test_inputs_with_a_default_are_not_fed(parse):
    model = parse("g (float[N] x, float[2] w) => (float[N] y) <float[2] w = {1, 2}> { y = Add(x, w) }")
    assert [role.name for role in infer_roles(model)] == ["x"]


def test_an_input_that_is_no_tensor_is_refused(parse):
    model = parse("g (seq(float[N]) x) => (float[N] y) <int64 zero = {0}> { y = SequenceAt(x, zero) }")
    with pytest.raises(UsageError, match="input 'x' is a sequence_type"):
        infer_roles(model)


def test_exported_models_have_the_roles_that_their_authors_meant(zoo):
    bert = {role.name: (role.kind, role.bound) for role in infer_roles(zoo("bert.ts17.sdpa"))}
    assert bert["attention_mask"] == ("mask", None)
    assert bert["token_type_ids"] == ("index", 2)
    assert bert["input_ids"][0] == "index"
    assert bert["input_ids"][1] > 50
    assert [role.kind for role in infer_roles(zoo("vit.ts17.sdpa"))] == ["image"]
