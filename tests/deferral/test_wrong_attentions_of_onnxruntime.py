"""Attentions and image blocks that ONNX Runtime gets wrong are undone site by site, and the right ones beside them stay."""

import wrong_image_and_attention_rewrites as room
from side_by_side import ops_behind
from wrong_rewrite_tests import rewrite_tests

import rewright

(
    test_onnxruntime_alone_gets_it_wrong,
    test_the_wrong_one_is_undone_and_the_right_one_beside_it_stays,
) = rewrite_tests(room.ATTENTIONS | room.IMAGES)


def test_the_convolution_between_a_group_normalisation_and_its_activation_is_lost() -> None:
    """No CPU kernel has GroupNorm, so that the numbers cannot tell."""
    case = room.IMAGES["A17"]
    assert "Conv" in ops_behind(case.model, "wrong/")
    assert "Conv" not in ops_behind(case.directly(case.model), "wrong/")
    result = rewright.optimize(case.model, chain=case.chains[0], verify="model")
    assert "Conv" in ops_behind(result.model.proto, "wrong/")
