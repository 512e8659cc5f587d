"""The cleanup passes one after the other on one view, as a run applies them."""

from pass_harness import as_model, parity, zoo_feeds

from rewright.passes.cleanup.common_subexpression import CommonSubexpression
from rewright.passes.cleanup.constant_folding import ConstantFolding
from rewright.passes.cleanup.dead_code import DeadCode
from rewright.passes.cleanup.identity_elimination import IdentityElimination
from rewright.passes.cleanup.shape_simplification import ShapeSimplification
from rewright.passes.session import PassSession

CHAIN = (
    ConstantFolding(),
    IdentityElimination(),
    CommonSubexpression(),
    ShapeSimplification(),
    ConstantFolding(),
    CommonSubexpression(),  # the new targets of Reshapes
    DeadCode(),
)


def apply(model, view=None):
    """The result of the chain and the number of sites of each pass."""
    sites = []
    for current in CHAIN:
        session = PassSession(current, model, opened=view)
        current.apply(session)
        view = session.view
        sites.append(len(session.sites))
    return view, sites


def test_the_chain_is_exact_and_shrinks(zoo_model):
    before = as_model(zoo_model)
    view, sites = apply(before)
    after = view.to_model()
    for batch, length in ((2, 6), (1, 1), (3, 5)):
        parity(before, after, zoo_feeds(after, batch, length))
    assert after.node_count() <= before.node_count()
    if ".ts" in zoo_model.name:
        assert sum(sites) >= 20
        assert after.node_count() < 0.7 * before.node_count()


def test_nothing_is_left_for_a_second_time(zoo_model):
    view, _ = apply(as_model(zoo_model))
    once = view.to_model()
    _, again = apply(once, view)  # the facts of the first time are still there
    assert again == [0] * len(CHAIN)
    _, fresh = apply(once)  # and with none
    assert fresh == [0] * len(CHAIN)
