"""Puts quantized weights into a view: weight by weight, each stored once, with a record of every node."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
from onnx import ModelProto

from rewright.model.carrier import all_nodes
from rewright.model.graph import state_of
from rewright.model.opsets import raise_to
from rewright.model.view import FIRST_IR_WITH_OPTIONAL_INPUT_LISTING
from rewright.passes.coverage import Covered
from rewright.passes.ort.exchange import NotCarriedOut
from rewright.passes.session import PassSession, label, op_key
from rewright.quant.activations import agreement_of, calibration_sets, moments_of
from rewright.quant.blocks import Array, inverse_factor, optimal_rounding
from rewright.quant.matrices import Method, NotFiniteError, quantize_matrix, stored_bytes
from rewright.quant.weight_forms import StoredMatrix, operator_form, qdq_form
from rewright.quant.weight_sites import WeightSite, missed

if TYPE_CHECKING:
    from rewright.quant.quantize_weights import QuantizeWeights

OPSET_OF_BLOCKS: Final = 21
"""The first in which DequantizeLinear reads blocks, and types of 4 bits."""

_IR_OF_FOUR_BITS: Final = 10
_FEWEST_ALIKE: Final = 0.99
_LEAST_SQNR: Final = 25.0
_FASTEST: Final = 4


class WeightWriter:
    """One application of ``quantize-weights``.

    Args:
        step: the pass.
        session: its session.
    """

    def __init__(self, step: QuantizeWeights, session: PassSession) -> None:
        self._step = step
        self._session = session
        self._covered: dict[int, Covered] = {}
        self._counted: set[int] = set()
        self._unseen = 0

    def write(self, sites: Sequence[WeightSite]) -> dict[int, Covered]:
        """Quantizes what the sites read; returns what became of each, by the identity of its node."""
        if self._step.form == "qdq" and not self._raise_opset(sites):
            return self._covered
        groups: dict[tuple[Any, ...], list[WeightSite]] = {}
        for site in sites:
            groups.setdefault(site.key, []).append(site)
        before = self._session.view.to_model() if self._step.algorithm == "gptq" else None
        methods = self._by_activations(before, groups) if before is not None else ((key, None) for key in groups)
        for key, method in methods:
            # what is multiplied with comes first: a gather can read its layout, and not the other way round
            self._write_weight(sorted(groups[key], key=lambda site: site.node.op == "Gather"), method)
        self._tell(sites)
        return self._covered

    def _raise_opset(self, sites: Sequence[WeightSite]) -> bool:
        view = self._session.view
        if all(view.opset_of(site.candidate.graph) >= OPSET_OF_BLOCKS for site in sites):
            return True
        if reason := self._session.opset_obstacle(OPSET_OF_BLOCKS):
            text = f"the form qdq needs opset {OPSET_OF_BLOCKS}: {reason}"
            self._covered.update((id(site.node), missed(site.node, text)) for site in sites)
            return False
        raise_to(view, OPSET_OF_BLOCKS)
        view.graph.ir_version = max(view.graph.ir_version or 0, _IR_OF_FOUR_BITS)
        return True

    def _write_weight(self, sites: Sequence[WeightSite], method: Method | None) -> None:
        first = sites[0]
        form = self._step.block_format(first)
        is_padded = self._step.form == "operator" and first.node.op != "Gather"
        before, after = first.nbytes, stored_bytes(*first.shape, form, padded=is_padded)
        if after >= before:
            self._miss(sites, f"it would take {after} bytes, and takes {before}")
            return
        try:
            matrix = quantize_matrix(first.matrix(), form, method or self._step.method(self._session))
        except NotFiniteError:
            self._miss(sites, "the weight holds NaN or infinity")
            return
        except NotCarriedOut as error:
            self._miss(sites, f"onnxruntime.quantization did not do it: {error}")
            return
        stored = StoredMatrix(self._session, first.weight.name, matrix)
        algorithm = "gptq" if method is not None else "rtn" if self._step.algorithm == "gptq" else self._step.algorithm
        became = f"{'int' if form.symmetric else 'uint'}{form.bits} blocks of {form.block_size}, {algorithm}"
        for site in sites:
            counted = stored.nbytes
            reason = self._replace(site, stored)
            if reason is not None:
                self._miss([site], reason)
                continue
            source = id(site.weight.source)
            self._covered[id(site.node)] = Covered(
                label(site.node),
                op_key(site.node),
                "quantized",
                weight=site.weight.name,
                became=became,
                bytes_before=0 if source in self._counted else before,
                bytes_after=stored.nbytes - counted,
                error=matrix.error,
                worst_channel=matrix.worst_channel,
                worst_error=matrix.worst_error,
            )
            self._counted.add(source)
        if {"blocks", "rows"} <= stored.made.keys() or {"rows", "columns"} <= stored.made.keys():
            self._session.notes.append(f"'{first.weight.name}' is stored twice: its nodes read it in different layouts")

    def _replace(self, site: WeightSite, stored: StoredMatrix) -> str | None:
        """Puts the new nodes in the place of the old one; returns why not."""
        session, node = self._session, site.node
        if node.op == "Gather" and not stored.matrix.has_whole_points:
            return "its kernel reads whole zero points, and these are not"
        opset = session.view.opset_of(site.candidate.graph)
        if self._step.form == "qdq":
            made = qdq_form(site, stored, opset)
        else:
            made = operator_form(site, stored, self._step.accuracy_level, opset)
        refusal = next(filter(None, map(session.refusal, made)), None)
        if refusal is not None:
            session.editor.discard(made)
            return refusal
        outputs = [(index, output) for index, output in enumerate(node.outputs) if output.name]
        self._hold(site, stored)
        session.editor.insert(made, node)
        removed = session.editor.remove_with_dead_producers([node])
        for index, output in outputs:
            session.editor.take_output(output, made[-1], index)
        session.record(site.candidate.graph, removed, made)
        return None

    def _hold(self, site: WeightSite, stored: StoredMatrix) -> None:
        """Lets the graph that held the weight hold what stands for it, so that bodies share that too."""
        view = self._session.view
        if (view.graph.ir_version or 0) < FIRST_IR_WITH_OPTIONAL_INPUT_LISTING:
            return
        for graph in view.graphs():
            held = state_of(graph).initializers
            if held.get(site.weight.name) is site.weight.source:
                held.update((value.name, value.tensor) for value in stored.made.values())
                return

    def _miss(self, sites: Sequence[WeightSite], reason: str) -> None:
        self._covered.update((id(site.node), missed(site.node, reason)) for site in sites)

    def _by_activations(
        self, before: Any, groups: dict[tuple[Any, ...], list[WeightSite]]
    ) -> Iterator[tuple[tuple[Any, ...], Method | None]]:
        """The weights in the order in which the activations that they are multiplied with are measured, each with its method."""
        sets = calibration_sets(self._step.calibration or "")
        read: dict[tuple[str, ...], list[tuple[Any, ...]]] = {}
        for key, sites in groups.items():
            read.setdefault(self._activations(sites), []).append(key)
        for key in read.pop((), []):
            self._unseen += len(groups[key])
            yield key, None
        alone = {names[0]: keys for names, keys in read.items() if len(names) == 1}
        widths = {name: self._width(groups[keys[0]][0]) for name, keys in alone.items()}
        for name, moments, _ in moments_of(self._session, before, sets, widths):
            yield from self._rounding(alone[name], moments)
        for names, keys in read.items():
            if len(names) > 1:
                widths = dict.fromkeys(names, self._width(groups[keys[0]][0]))
                moments = np.sum([each for _, each, _ in moments_of(self._session, before, sets, widths)], axis=0)
                yield from self._rounding(keys, moments)

    @staticmethod
    def _width(site: WeightSite) -> tuple[int, int]:
        return site.shape[1], onnx.helper.np_dtype_to_tensor_dtype(site.dtype)

    def _rounding(self, keys: Sequence[tuple[Any, ...]], moments: Array) -> Iterator[tuple[tuple[Any, ...], Method | None]]:
        try:
            factor = inverse_factor(moments)
        except np.linalg.LinAlgError:
            self._unseen += len(keys)
            yield from ((key, None) for key in keys)
            return
        for key in keys:
            yield key, partial(optimal_rounding, factor=factor)

    def _activations(self, sites: Sequence[WeightSite]) -> tuple[str, ...]:
        """The values of the main graph that the weight is multiplied with."""
        main = self._session.view.graph
        read = (site.node.inputs[0] for site in sites if site.node.op != "Gather" and site.candidate.graph is main)
        return tuple(sorted({tensor.name for tensor in read if tensor.inputs or tensor in main.inputs}))

    def _tell(self, sites: Sequence[WeightSite]) -> None:
        """Notes: what stays in float beside its codes, what GPTQ did not see, and what the accuracy level costs."""
        notes, step = self._session.notes, self._step
        done = {id(site.weight.source): site for site in sites if self._covered[id(site.node)].outcome == "quantized"}
        if not done:
            return
        for site in done.values():
            readers = self._session.editor.consumers(site.weight.source)
            if readers:
                notes.append(f"'{site.weight.name}' is stored in float too: {label(readers[0])} reads it")
        if self._unseen:
            notes.append(f"rounded to nearest, since no activations were seen: {self._unseen} nodes")
        if step.form == "operator" and any(site.node.op != "Gather" for site in done.values()):
            self._tell_level()

    def _tell_level(self) -> None:
        notes, step = self._session.notes, self._step
        if step.accuracy_level != _FASTEST:
            if step.bits == 8:
                notes.append("accuracy_level below 4 has no fast kernel for 8 bits on CPU: it is slower than float")
            return
        if step.calibration is None:
            notes.append(
                "accuracy_level=4 rounds activations to 8 bits, which costs much where a few of them are very large: give"
                " calibration, to have that measured"
            )
            return
        self._session.editor.finish()
        fast = self._session.view.to_model()
        exact = ModelProto()
        exact.CopyFrom(fast.proto)
        for node in all_nodes(exact):
            for attribute in node.attribute if node.op_type == "MatMulNBits" else ():
                if attribute.name == "accuracy_level":
                    attribute.i = 0
        found = agreement_of(self._session, fast, fast.with_proto(exact), calibration_sets(step.calibration))
        for name, alike, sqnr in found:
            text = (
                f"accuracy_level=4 against 0 on the calibration sets: in '{name}' {100 * alike:.4g} % of the rows have their"
                f" largest element in the same place, SQNR {sqnr:.1f} dB"
            )
            costs_much = alike < _FEWEST_ALIKE or sqnr < _LEAST_SQNR
            notes.append(f"{text}: use accuracy_level=0" if costs_much else f"{text}: it is safe")
