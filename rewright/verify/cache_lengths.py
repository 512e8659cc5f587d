"""Lengths that agree, for models with a cache: the mask covers what the past and the new tokens are together.

Exporters do not always say so in the names of dimensions: the mask of a decoder may have a length of its own name. In a model
that merges two decoders by `If`, it is as long as the new tokens alone where the branch is taken that reads no cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rewright.verify.roles import Dim, InputRole
from rewright.verify.symbols import dimension_symbol, evaluate, parse_expression, with_totals


def has_cache_branch(roles: Sequence[InputRole]) -> bool:
    """Whether a flag among the inputs says if the cache is to be read, as in merged decoders."""
    return bool(past_symbols(roles)) and any(role.kind == "flag" for role in roles)


def past_symbols(roles: Sequence[InputRole]) -> list[str]:
    """The symbols for the number of tokens in the cache of the model's own tokens, not in that of an encoder's."""
    found = (
        dimension_symbol(dim, axis)
        for role in roles
        if role.kind == "past" and not is_of_an_encoder(role.name)
        for axis, dim in enumerate(role.dims)
        if isinstance(dim, str) and "past" in dim.lower() and parse_expression(dim) is None
    )
    return list(dict.fromkeys(found))


def is_of_an_encoder(name: str) -> bool:
    """Whether an input or a dimension is named after an encoder, and not after a decoder."""
    return "encoder" in name.lower().replace("decoder", "")


def agreeing_lengths(
    roles: Sequence[InputRole],
    symbols: Mapping[str, str],
    sizes: Mapping[str, int],
    *,
    reads_cache: bool = True,
    past: int | None = None,
) -> dict[str, int]:
    """The sizes with other ones for the past, the masks and, at need, the new tokens, so that they agree.

    Args:
        roles: the model's inputs.
        symbols: what each symbol stands for.
        sizes: a size for each symbol.
        reads_cache: false for the branch of a merged decoder that does not: nothing is in its cache then, unless the mask of
            the new tokens is too short without.
        past: how many tokens are in the cache; None leaves that at `sizes`.
    """
    chosen = dict(sizes)
    pasts, new = past_symbols(roles), _new_length(roles)
    encoders = [symbol for symbol, sort in symbols.items() if sort == "length" and is_of_an_encoder(symbol)]
    chosen.update(dict.fromkeys(encoders, chosen[encoders[0]]) if encoders else {})  # one encoder has one length
    if not pasts or new is None:
        return chosen
    if not reads_cache or past is not None:
        chosen.update(dict.fromkeys(pasts, past or 0))
    _fit_masks(roles, pasts, new, chosen, reads_cache)
    return with_totals(chosen, symbols)


def _fit_masks(roles: Sequence[InputRole], pasts: Sequence[str], new: Dim, chosen: dict[str, int], reads_cache: bool) -> None:
    """Lets the masks over past and new tokens be that long; where their names do not let them, there is one new token."""
    for role in roles:
        if role.kind not in ("mask", "additive-mask") or is_of_an_encoder(role.name) or not role.dims:
            continue
        dim = role.dims[-1]
        expression = parse_expression(dim) if isinstance(dim, str) else None
        count = chosen[new] if isinstance(new, str) else new
        assert isinstance(count, int)
        if isinstance(dim, str) and expression is None and dim != new and dim not in pasts and not _is_elsewhere(dim, roles):
            chosen[dim] = chosen[pasts[0]] + count
        elif expression is not None and evaluate(expression, chosen) != chosen[pasts[0]] + count:
            # "past + 1": so many as there are tokens where no cache is read, else one token is new
            other = {new: 1} if reads_cache and isinstance(new, str) else dict.fromkeys(pasts, count - 1)
            trial = {**chosen, **other}
            wanted = trial[pasts[0]] + 1 if reads_cache else count
            if evaluate(expression, trial) == wanted:
                chosen.update(other)


def _new_length(roles: Sequence[InputRole]) -> Dim:
    """The dimension that counts the new tokens: of ids or of embedded ones."""
    for kinds, rank in ((("index",), 2), (("position",), 2), (("float",), 3)):
        for role in roles:
            if role.kind in kinds and len(role.dims) == rank and not is_of_an_encoder(role.name):
                dim = role.dims[1]
                return dim if isinstance(dim, int) or (dim and parse_expression(dim) is None) else None
    return None


def _is_elsewhere(symbol: str, roles: Sequence[InputRole]) -> bool:
    """Whether an input that is no mask has the dimension too."""
    return any(symbol in role.dims for role in roles if role.kind not in ("mask", "additive-mask"))
