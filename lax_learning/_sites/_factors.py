"""Gradients of a single example, kept as factors where they are outer products."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lax_learning._sites._batch import one_example
from lax_learning._sites._plan import Site
from lax_learning._sites._products import Bilinear
from lax_learning._sites._program import Program
from lax_learning._sites._run import Hooks
from lax_learning._sites.tapped import Taps, by_index, cut
from lax_learning.models import Model
from lax_learning.types import Params


class Factors(NamedTuple):
    """Gradient of one example, by position of the leaf in params."""

    products: dict[int, tuple[Array, Array]]  # `(v, delta)` for a gradient `v delta^T`
    others: dict[int, Array]  # gradients of all other leaves


def has_factors(model: Model, params: Params, x: Any) -> bool:
    """Returns whether the factors of all gradients are no larger than the pre-activations of the model.

    A gradient is an outer product if a single matrix product reads the parameter, unmodified and outside of
    scans, with one vector per example. Other gradients must be no larger than pre-activations at their sites.
    """
    program = Program(model, params, one_example(x))
    products = _products(program)
    sizes = dict.fromkeys(range(len(program.split.leaves)), 0)
    for tap in program.plan.all_taps:
        for i in frozenset().union(*(site.leaves for site in tap.sites)):
            sizes[i] += math.prod(tap.shape)
    leaves = zip(program.split.leaves, program.split.trained, strict=True)
    return all(
        leaf.size <= sizes[i] or not trained or i in products for i, (leaf, trained) in enumerate(leaves)
    )


def factors(model: Model, params: Params, x: Any, deltas: Taps) -> Factors:
    """Pulls back the teaching signals of a batch of one example, and keeps outer products as factors."""
    program = Program(model, params, x)
    products = _products(program)
    wanted = by_index("signals.deltas", deltas, program.named_taps)
    own = [i for i, trained in enumerate(program.split.trained) if trained]
    parameters = dict(zip(own, program.split.parameters, strict=True))

    def product(site: Site, op: Bilinear, w: Any, x: Any, partner: Any, feed: Any) -> Any:
        return op(w, x) if feed is None else op(w, x) + feed

    hooks = Hooks(product, cut, operands=frozenset(site for site, _ in products.values()))

    def run(others: dict[int, Array], offsets: dict[int, Array]) -> tuple[dict[int, Array], Any]:
        emitted = program.run(list((parameters | others).values()), x, hooks, feeds=offsets)[2]
        return {i: emitted[i] for i in wanted}, {i: emitted[i][1] for i in hooks.operands}

    others = {i: leaf for i, leaf in parameters.items() if i not in products}
    offsets = {site: jnp.zeros(z.shape, z.dtype) for site, z in products.values()}
    _, transpose, reads = jax.vjp(run, others, offsets, has_aux=True)
    grads, at_products = transpose(wanted)
    pairs = {leaf: (reads[i].reshape(-1), at_products[i].reshape(-1)) for leaf, (i, _) in products.items()}
    return Factors(pairs, grads)


def _products(program: Program) -> dict[int, tuple[int, Any]]:
    """Returns index and result of products of a vector with a leaf `[in, out]` that nothing else reads."""
    plan, found = program.plan, {}
    for operation in plan.operations:
        site = operation.site
        if site is None or site.layout is None or site.layout.window or site.layout.groups:
            continue
        w, x = operation.operands(operation.ins)
        axes, is_vector = (site.layout.rows, site.layout.columns), x.aval.size == site.layout.size
        if w in plan.ins and axes == ((0,), (1,)) and is_vector:
            leaf = plan.ins.index(w)
            if sum(leaf in other.leaves for other in plan.all_sites) == 1:
                found[leaf] = site.index, operation.outs[0].aval
    return found
