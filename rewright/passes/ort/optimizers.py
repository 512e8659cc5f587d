"""The names by which ONNX Runtime's session optimizers can be switched off.

``disabled_optimizers`` ignores a name that it does not know, and there is no list to ask for, so the names are kept here and
checked by tests: with all of them disabled, nothing is rewritten at any level. Source: ONNX Runtime 1.31 and 1.32,
onnxruntime/core/optimizer (graph_transformer_utils.cc and the constructors of the transformers and rules).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Final

from rewright.model.errors import UsageError

BASIC: Final = (
    "CastChainElimination",
    "CastElimination",
    "CommonSubexpressionElimination",
    "ConstantFolding",
    "ConstantFoldingDQ",
    "ConstantSharing",
    "ConvAddFusion",
    "ConvBNFusion",
    "ConvMulFusion",
    "DivMulFusion",
    "DoubleQDQPairsRemover",
    "EliminateDropout",
    "EliminateIdentity",
    "EliminateSlice",
    "EnsureUniqueDQForNodeUnit",
    "ExpandElimination",
    "FreeDimensionOverrideTransformer",
    "FuseReluClip",
    "GeluFusionL1",
    "GemmSumFusion",
    "GemmTransposeFusion",
    "LabelEncoderFusion",
    "LayerNormFusionL1",
    "MatMulAddFusion",
    "MatMul_BatchNormalization_Fusion",
    "NoopElimination",
    "NotWhereFusion",
    "Pad_Fusion",
    "PreShapeNodeElimination",
    "QDQPropagationTransformer",
    "ReshapeFusion",
    "RocmBlasAltImpl",
    "SliceConcatToSpaceToDepthFusion",
    "TransposeOptimizer",
    "UnsqueezeElimination",
    "WeightBiasQuantization",
)

EXTENDED: Final = (
    "AttentionFusion",
    "Avx2WeightS8ToU8Transformer",
    "BiasDropoutFusion",
    "BiasGeluFusion",
    "BiasSkipLayerNormFusion",
    "BiasSoftmaxFusion",
    "ClipQuantRewrite",
    "ConvActivationFusion",
    "DQMatMulNBitsFusion",
    "DynamicQuantizeMatMulFusion",
    "EmbedLayerNormFusion",
    "FastGeluFusion",
    "GatherSliceToSplitFusion",
    "GatherToSliceFusion",
    "GeluApproximation",
    "GeluFusionL2",
    "GemmActivationFusion",
    "GroupQueryAttentionFusion",
    "GroupQueryAttentionPreNormFusion",
    "LayerNormFusionL2",
    "MatMulActivationFusion",
    "MatMulIntegerToFloatFusion",
    "MatMulNBitsFusion",
    "MatMulNBitsMlpFusion",
    "MatMulNBitsQLoRAFusion",
    "MatMulNBitsQkvFusion",
    "MatMulScaleFusion",
    "MatmulTransposeFusion",
    "QDQFinalCleanupTransformer",
    "QDQS8ToU8Transformer",
    "QDQSelectorActionTransformer",
    "QuickGeluFusion",
    "ReluQuantRewrite",
    "SimplifiedLayerNormFusion",
    "SkipLayerNormFusion",
    "SwiGluFusion",
    "TransposeOptimizer_CPUExecutionProvider",
)

LAYOUT: Final = ("ConvAddActivationFusion", "NchwcTransformer", "NhwcTransformer")

KNOWN: Final = (*BASIC, *EXTENDED, *LAYOUT)


def all_but(wanted: Iterable[str]) -> list[str]:
    """The names to disable so that only ``wanted`` run.

    Raises:
        UsageError: a wanted name is not one of ONNX Runtime's.
    """
    kept = set(wanted)
    for name in sorted(kept - set(KNOWN)):
        near = difflib.get_close_matches(name, KNOWN, n=3, cutoff=0.5)
        hint = f"Did you mean {', '.join(near)}?" if near else "See rewright.passes.ort.optimizers for the names."
        raise UsageError(f"ONNX Runtime has no optimizer '{name}'.", hint)
    return [name for name in KNOWN if name not in kept]
