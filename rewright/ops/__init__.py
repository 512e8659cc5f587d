"""Op contracts: what each fused op means, and where it runs."""

from rewright.ops import activations as activations
from rewright.ops import attention as attention
from rewright.ops import blockwise as blockwise
from rewright.ops import embedding as embedding
from rewright.ops import integer as integer
from rewright.ops import linear_quantization as linear_quantization
from rewright.ops import microsoft as microsoft
from rewright.ops import normalization as normalization
from rewright.ops import rotary as rotary
