"""The ``rotary-embedding`` pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from rewright.model.edit import domain_of
from rewright.model.facts import attribute, dtype_of, producer, shape_of
from rewright.model.names import scope_of
from rewright.ops.microsoft import DOMAIN
from rewright.ops.targets import unsupported
from rewright.passes.deferral import Deferral
from rewright.passes.graph_pass import GraphPass
from rewright.passes.rotary.caches import Caches
from rewright.passes.rotary.emission import FIRST_TWO, HEADS, POSITIONS, Emission, Layout
from rewright.passes.rotary.moves import Moves
from rewright.passes.rotary.repair import narrow_operands, widened
from rewright.passes.rotary.rotation import Cache, NoRotation, Rotation, find, summing_nodes
from rewright.passes.rotary.terms import LEAD, Terms
from rewright.passes.session import PassSession
from rewright.shapes.dimensions import Size
from rewright.shapes.terms import term_of
from rewright.shapes.walk import shapes_of

_OP: Final = "RotaryEmbedding"
_STANDARD_SINCE: Final = 23
_STANDARD_TYPES: Final = ("float32", "float16", "bfloat16")
_RESULTS: Final = ("Add", "Sub", "Concat", "Reshape", _OP)


class RotaryEmbedding(GraphPass):
    """x * cos + rotated(x) * sin -> com.microsoft.RotaryEmbedding (for the target portable: ONNX RotaryEmbedding).

    rotated(x) = (-x2, x1) for the halves (x1, x2) of a head, or the same for each two neighbours (``interleaved``).

    1. Each element of the result is followed back to elements of x, cos and sin through whatever moves them: Slice, Split,
       Gather, Concat, Unsqueeze, Reshape, Transpose, Expand, Tile, Neg, factors of -1. So halves and neighbours, whole tables and
       half ones, and heads of which only the first elements are rotated are one case, however they are written.
    2. The caches hold one number for each pair: that both elements of a pair have the same cosine and the same sine must follow
       from how these are made (Concat of a value with itself, repeated elements) or from the numbers of a constant. Cos and Sin
       are then computed for one half only, once for all rotations that share them.
    3. Caches that are the same for the whole batch are read from position 0 on, which is right for any batch. Caches with a row
       for each element of the batch are laid end to end, and the positions count through them (for a batch of 0 the kernel
       then refuses to run: it wants as many rows as there are positions).
    4. Axes: (batch, heads, positions, elements) or (batch, positions, heads, elements). The lengths of x and of the caches must
       be known to agree, by number or by symbol; so must the number of elements of a head.
    5. ONNX RotaryEmbedding whose caches have one row for a batch of several, as exporters write it, runs for a batch of 1 only.
       It becomes an op that runs for any.
    6. Refused: products or sums inside that something else uses, other orders and signs, a dtype without kernel.

    Source: Su et al., "RoFormer" (arXiv 2104.09864); ONNX Runtime contrib operator RotaryEmbedding; ONNX RotaryEmbedding-23.
    """

    name = "rotary-embedding"
    exactness = "reassociating"
    emits = ("com.microsoft.RotaryEmbedding",)
    after = ("constant-folding", "rms-norm", "layer-norm")
    before = ("multi-head-attention", "attention")
    ort = Deferral(
        classes=("FusionRotaryEmbeddings",),
        makes=("com.microsoft::RotaryEmbedding",),
        anchors=("Neg",),
        weights="read",
    )

    def run(self, session: PassSession) -> None:
        if not any(_may_rotate(node) for graph in session.view.graphs() for node in graph.nodes):
            return
        session.ensure_facts()
        search = _Search(session)
        for graph in list(session.view.graphs()):
            search.graph(graph)


@dataclass(frozen=True, eq=False)
class _Site:
    """A rotation that ``node`` ends, or (without one) an op with operands that have too few rows."""

    node: Any
    rotation: Rotation | None = None
    layout: Layout | None = None
    narrow: tuple[int, ...] = ()


class _Search:
    def __init__(self, session: PassSession) -> None:
        self._session = session
        self._moves = Moves(shapes_of(session.view))

    def graph(self, graph: Any) -> None:
        """Finds the rotations of one graph, the outermost nodes first, and then replaces them from the first on."""
        self._terms, self._caches = Terms(self._moves), Caches(self._moves)  # what they hold, replacing makes stale
        sites: list[_Site] = []
        taken: set[int] = set()
        refused: dict[int, tuple[Any, str, set[int]]] = {}
        for node in reversed(graph.nodes):
            if id(node) in taken or not _may_end_one(node):
                continue
            try:
                site = self._site(node, self._session.view.opset_of(graph))
            except NoRotation as reason:
                inner = {id(item) for item in summing_nodes(node.outputs[0], self._terms)}
                if not any(id(node) in nodes for _, _, nodes in refused.values()):
                    refused[id(node)] = node, str(reason), inner
                continue
            if site is not None:
                sites.append(site)
                taken.update(id(item) for item in (site.rotation.nodes if site.rotation is not None else ()))
        for node, why, inner in reversed(refused.values()):
            if not inner & taken:
                self._session.reject(node, why)
        emission = Emission(self._session.names, graph, self._session.view.opset_of(graph))
        sites.reverse()
        inserted = [self._insert(site, emission) for site in sites]
        # From the last one on, for looking whether a value with many uses is still used starts from its first use.
        removed = [self._take_out(site.node, last) for site, (last, _) in zip(sites[::-1], inserted[::-1], strict=True)]
        for (_, nodes), gone in zip(inserted, removed[::-1], strict=True):
            self._session.record(graph, gone, [node for node in nodes if node.alive])

    def _site(self, node: Any, opset: int) -> _Site | None:
        narrow = tuple(narrow_operands(node, self._moves)) if node.op == _OP else ()
        if node.op == _OP and not narrow:
            return None  # as it should be
        rotation = None if domain_of(node) else find(node.outputs[0], self._terms, self._caches)
        if rotation is None:
            _require_known_heads(node)
            return _Site(node, narrow=narrow) if narrow else None
        self._require_private(rotation)
        layout = self._layout(rotation)
        self._require_op(rotation, layout, opset)
        return _Site(node, rotation, layout)

    def _require_private(self, rotation: Rotation) -> None:
        editor, inside = self._session.editor, set(map(id, rotation.nodes))
        for node in rotation.nodes[1:]:
            output = node.outputs[0]
            if editor.is_graph_output(output) or any(id(user) not in inside for user in editor.consumers(output)):
                raise NoRotation(f"the value '{output.name}' inside it is used elsewhere too")

    def _layout(self, rotation: Rotation) -> Layout:
        dims = self._moves.dims(rotation.x)
        cos, sin = (self._lead(cache) for cache in (rotation.cos, rotation.sin))
        if dims is not None and cos is not None and cos == sin:
            for positions, others in ((POSITIONS, HEADS), (HEADS, POSITIONS)):
                if cos[others] == 1 and cos[0] in (1, dims[0]) and _same(cos[positions], dims[positions]):
                    return Layout(positions, cos[0] != 1, tuple(dims))
            if cos[HEADS] == cos[POSITIONS] == 1 and _same(cos[0], dims[0]):
                return Layout(0, False, tuple(dims))
        shapes = [shape_of(tensor) for tensor in (rotation.x, rotation.cos.source.tensor, rotation.sin.source.tensor)]
        shown = [f"({', '.join('?' if dim is None else str(dim) for dim in shape or ())})" for shape in shapes]
        raise NoRotation(
            f"the positions of x {shown[0]} and those of the cosines {shown[1]} and the sines {shown[2]} are not known to agree"
        )

    def _lead(self, cache: Cache) -> list[Size] | None:
        """The sizes along batch, heads and positions (or batch, positions and heads); 1 where the cache has no such axis."""
        tensor = cache.source.tensor
        dims = self._moves.dims(tensor)
        if dims is None:
            return None
        lead: list[Size] = list(dims[: len(dims) - Terms.count(tensor)])
        return [lead[0], 1, lead[1]] if cache.source.by_position else [*[1] * (LEAD - len(lead)), *lead]

    def _require_op(self, rotation: Rotation, layout: Layout, opset: int) -> None:
        """Refuses what the op of the target does not take."""
        dtype, target = dtype_of(rotation.x), self._session.target
        for cache in (rotation.cos, rotation.sin):
            if dtype is None or dtype_of(cache.source.tensor) != dtype:
                raise NoRotation("the dtypes of x and its cosines and sines are not known to be the same")
        if target == "portable":
            if opset < _STANDARD_SINCE:
                raise NoRotation(f"{_OP} is standard from opset {_STANDARD_SINCE} on, and the model is at opset {opset}")
            if dtype is None or dtype.name not in _STANDARD_TYPES:
                raise NoRotation(f"{_OP} does not compute in {dtype}")
        elif (reason := unsupported(DOMAIN, _OP, dtype, target)) is not None:
            raise NoRotation(reason)
        heads = layout.heads
        if not isinstance(heads, int) and (layout.positions != POSITIONS or rotation.rotated < rotation.size):
            raise NoRotation("the number of heads is not known")

    def _insert(self, site: _Site, emission: Emission) -> tuple[Any, list[Any]]:
        """Puts the new nodes before the last of the old ones; returns the node that is to take its place, and all of them."""
        emission.scope = scope_of(site.node)
        if site.rotation is None or site.layout is None:
            result = widened(site.node, list(site.narrow), emission)
        else:
            make = emission.standard if self._session.target == "portable" else emission.contributed
            result = make(site.rotation, site.layout, self._caches)
        nodes = emission.take()
        self._session.editor.insert(nodes, at=site.node)
        return producer(result), nodes

    def _take_out(self, root: Any, last: Any) -> list[Any]:
        """Lets ``last`` compute what ``root`` does; returns the nodes that go."""
        editor, output = self._session.editor, root.outputs[0]
        feeders = [tensor.inputs[0] for tensor in root.inputs if tensor.inputs]
        editor.remove(root)
        editor.take_output(output, last)
        dead = [node for node in feeders if node.alive and not any(editor.is_used(tensor) for tensor in node.outputs)]
        return [root, *self._without_moves_back(output), *editor.remove_with_dead_producers(dead)]

    def _without_moves_back(self, value: Any) -> list[Any]:
        """Takes out what undoes the last Transpose or Reshape of the new nodes, and then these; returns the old nodes of it."""
        editor, removed = self._session.editor, []
        maker = producer(value)
        while maker is not None and maker.op in ("Transpose", "Reshape"):
            source = maker.inputs[0]
            for user in editor.consumers(value):
                back, same = user.outputs[0], self._moves.dims(user.outputs[0]) == self._moves.dims(source)
                undone = maker.op == "Reshape" or attribute(user, "perm") == attribute(maker, "perm") == FIRST_TWO
                if user.op == maker.op and same and undone and not domain_of(user) and not editor.is_graph_output(back):
                    editor.redirect(back, source, user)
                    editor.remove(user)
                    removed.append(user)
            if editor.is_used(value):
                break
            editor.remove(maker)
            value, maker = source, producer(source)
        return removed


def _same(length: Size, wanted: Size) -> bool:
    """Whether a cache has a row for each position, or fewer (but not one) and then the model could not be computed anyway.

    ``wanted`` is a dimension, so a Slice from 0 to it takes min(wanted, rows).
    """
    if length == wanted:
        return True
    capped, cut = term_of(length, "min"), term_of(length, "sliced")
    if capped is not None:
        return wanted in capped.arguments and any(isinstance(cap, int) and cap > 1 for cap in capped.arguments)
    if cut is None:
        return False
    start, end, rows = cut.arguments
    return start == 0 and end == wanted and isinstance(rows, int) and rows > 1


def _may_rotate(node: Any) -> bool:
    """Whether the node is a sum of two products, or the op itself."""
    if node.op == _OP:
        return domain_of(node) in ("", DOMAIN)
    if node.op not in ("Add", "Sub") or domain_of(node):
        return False
    makers = [producer(tensor) for tensor in node.inputs]
    return all(maker is not None and maker.op == "Mul" for maker in makers)


def _may_end_one(node: Any) -> bool:
    return node.op in _RESULTS and (not domain_of(node) or _may_rotate(node))


def _require_known_heads(node: Any) -> None:
    """Refuses what has the nodes of a rotation, where too little is known of the shapes to say more."""
    factors = [tensor for product in node.inputs for maker in product.inputs if maker.op == "Mul" for tensor in maker.inputs]
    joins = [maker for tensor in factors for maker in tensor.inputs if maker.op == "Concat"]
    if not any(maker.op == "Neg" for join in joins for tensor in join.inputs for maker in tensor.inputs):
        return
    shapes = [shape_of(tensor) for tensor in factors]
    if None in shapes:
        raise NoRotation("the number of axes of x is not known")
    if not all(isinstance(shape[-1], int) for shape in shapes if shape):
        raise NoRotation("the size of a head is not known")
