"""Rules on decorrelated inputs: a matrix before the weights of every product and convolution of a model."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int

from lax_learning._checks import check_function, check_instance, check_key, check_memory
from lax_learning._precision import raised
from lax_learning._sites._batch import as_batch
from lax_learning._sites._coupling import made_up
from lax_learning._sites._plan import Site
from lax_learning._sites._products import Layout
from lax_learning._sites._program import Program, free_name
from lax_learning._sites._run import Bilinear, Hooks
from lax_learning.decorrelation import DecorrelationState
from lax_learning.models import Model, check_model, check_where, selects
from lax_learning.types import Dynamics, Key, Params, Rule, Where

Layers = dict[str, dict[str, Array]]


class DecorrelatedState(NamedTuple):
    """State of a rule on decorrelated inputs.

    Fields:
      layers: `{"R": [..., size, size]}`, and `"b": [..., size]` where the mean is removed, by the path of the
        first parameter that reads the data value; leading axes of stacked layers and of groups.
      losses: of the inputs before the last update, by the same names, as `decorrelation_loss`; NaN where R
        was not updated.
      step: number of updates seen.
      rule: state of the rule.
    """

    layers: Layers
    losses: dict[str, Array]
    step: Int[Array, ""]
    rule: Any


class _Place(NamedTuple):
    """A data value with a matrix of its own.

    Fields:
      sites: the products that read it; all have the layout of the first.
      lead: numbers of stacked layers.
    """

    sites: list[Site]
    lead: tuple[int, ...]

    @property
    def layout(self) -> Layout:
        layout = self.sites[0].layout
        assert layout is not None
        return layout

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the vectors without their number."""
        return *self.lead, *self.layout.groups, self.layout.size

    def vectors(self, x: Array) -> Array:
        """Returns the vectors of the operands of all steps, `[*lead, *groups, vectors, size]`."""
        stacked = self.sites[0].stacked
        take = self.layout.vectors
        for _ in stacked:
            take = jax.vmap(take)
        found = take(x)  # [*steps, *groups, vectors, size]
        layers = [axis for axis, flag in enumerate(stacked) if flag]
        times = [axis for axis, flag in enumerate(stacked) if not flag]
        order = (*layers, *range(len(stacked), found.ndim - 2), *times, found.ndim - 2, found.ndim - 1)
        return jnp.transpose(found, order).reshape(*self.shape[:-1], -1, self.shape[-1])


def _places(program: Program, where: Where) -> dict[str, _Place]:
    """Returns the data values that selected products and convolutions read, by name."""
    reads = {read.index: read for read in program.plan.all_reads}
    found: dict[Any, _Place] = {}
    names: dict[str, _Place] = {}
    for site in program.plan.all_sites:
        paths = [program.split.paths[i] for i in sorted(site.leaves)]
        if site.layout is None or not any(selects(where, path) for path in paths):
            continue
        if not site.reads:
            raise ValueError(
                f"x: expected floating-point numbers, which R can multiply, got others at {paths[0]!r}"
            )
        read = reads[site.reads[0]]
        key = (
            read.index,
            site.stacked,
            site.layout.groups,
            site.layout.size,
            site.layout.window,
            site.layout.axes,
        )
        if key not in found:
            lead = tuple(n for n, flag in zip(read.shape, site.stacked, strict=False) if flag)
            names[free_name(paths[0], names)] = found[key] = _Place([], lead)
        found[key].sites.append(site)
    if not names:
        raise ValueError(
            "where: expected to select a product or convolution of parameters with data, "
            f"got {where!r}, which selects none of {program.split.parameter_paths}"
        )
    return names


def _checked_places(program: Program, where: Where, layers: Any) -> dict[str, _Place]:
    """Returns the places of a model, whose matrices are checked to fit."""
    places = _places(program, where)
    if not isinstance(layers, dict) or layers.keys() != places.keys():
        got = sorted(layers) if isinstance(layers, dict) else type(layers).__name__
        raise ValueError(f"state.layers: expected the entries {sorted(places)}, see init, got {got}")
    for name, place in places.items():
        expected = (*place.shape, place.shape[-1])
        layer = layers[name]
        got = jnp.shape(layer["R"]) if isinstance(layer, dict) and "R" in layer else None
        if got != expected:
            raise ValueError(
                f"state.layers[{name!r}]['R']: expected shape {list(expected)}, "
                f"got {got if got is None else list(got)}"
            )
    return places


def decorrelated(model: Model, layers: Layers, *, where: Where = None) -> Model:
    """The model with decorrelated inputs: `op(w, R x)` in place of every product `op(w, x)`.

    Args:
      model: any model.
      layers: of a `DecorrelatedState`; constants for every rule.
      where: which parameters read decorrelated inputs.

    Returns:
      A model with the same params. A convolution runs with one fused kernel, `w R` on its patches.

    Raises:
      ValueError: at trace time, for layers that are not those of the model.
    """
    check_model(model)
    check_where("where", where)

    def apply(params: Params, x: Any) -> Any:
        program = Program(model, params, x)
        places = _checked_places(program, where, layers)
        hooks, feeds = Hooks(product=_product_on_decorrelated), _feeds(places, layers)
        output, aux, _ = program.run(program.split.parameters, x, hooks, feeds=feeds)
        return (output, aux) if model.has_aux else output

    return Model(apply, model.init, model.has_aux, model.trainable)


def _product_on_decorrelated(site: Site, op: Bilinear, w: Any, x: Any, partner: Any, feed: Any) -> Any:
    if feed is None:
        return op(w, x)
    assert site.layout is not None
    # In the dtype of x: a model keeps its precision.
    b = jnp.asarray(feed["b"], x.dtype) if "b" in feed else None
    return site.layout.transformed(op, w, x, jnp.asarray(feed["R"], x.dtype), b)


def decorrelation_inputs(
    model: Model, params: Params, layers: Layers, x: Any, *, where: Where = None
) -> dict[str, Array]:
    """Returns the vectors that the products of a decorrelated model read, before R.

    Args:
      model: the model, not decorrelated.
      params: its parameters.
      layers: of a `DecorrelatedState`.
      x: a batch.
      where: as of `decorrelated_rule`.

    Returns:
      `[..., vectors, size]` by the names of the layers; patches, for convolutions.
    """
    check_model(model)
    x, _ = as_batch(x)
    program = Program(model, params, x)
    places = _checked_places(program, where, layers)
    first = {name: place.sites[0].index for name, place in places.items()}
    hooks = Hooks(product=_product_on_decorrelated, operands=frozenset(first.values()))
    feeds = _feeds(places, layers)
    _, _, emitted = program.run(program.split.parameters, x, hooks, feeds=feeds)
    return {
        name: jax.lax.stop_gradient(place.vectors(emitted[first[name]][1])) for name, place in places.items()
    }


def _feeds(places: dict[str, _Place], layers: Layers) -> dict[int, Any]:
    return {site.index: layers[name] for name, place in places.items() for site in place.sites}


def decorrelated_rule(
    make_rule: Callable[[Model], Rule], model: Model, dynamics: Dynamics, *, where: Where = None
) -> Rule:
    """Any rule on decorrelated inputs, with the update of R in the same step.

    `op(w, R x)` in place of every product `op(w, x)`; R is learned from x without noise.

    R belongs to a data value: query, key and value that read one x share one R. It is shared over the steps
    of a scan over time; stacked layers have one each, and so have the groups of a grouped convolution. R is
    no parameter: gradients have the structure of params, and errors flow on through `R^T`.

    Args:
      make_rule: `model -> rule`, for example `lambda model: feedback_alignment(model, loss)`.
      model: any model.
      dynamics: from `decorrelation`.
      where: which parameters read decorrelated inputs; by default those of all products and convolutions.

    Returns:
      The rule, with a `DecorrelatedState`.

    Raises:
      TypeError: for a make_rule or dynamics of other kinds.
      ValueError: at trace time, for a where that selects no product, a product that reads integers, or a
        state of another model.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import lax_learning as ll
      >>> from lax_learning.models import Model
      >>> model = Model(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"])
      >>> rule = decorrelated_rule(lambda m: ll.backprop(m, ll.squared_error), model, ll.decorrelation(0.1))
      >>> key, params, x = jax.random.key(0), {"a": jnp.eye(3), "b": jnp.eye(3)}, jnp.ones((5, 3))
      >>> state = rule.init(key, params, x)
      >>> {name: layer["R"].shape for name, layer in state.layers.items()}
      {'a': (3, 3), 'b': (3, 3)}
      >>> loss, grads, state = rule.value_and_grad(key, params, state, x, x)

    References:
      Ahmad, Schrader, van Gerven, Constrained parameter inference as a principle for learning,
      https://arxiv.org/abs/2203.13203, 2022; Dalm, Offergeld, Ahmad, van Gerven, Efficient deep learning with
      decorrelated backpropagation, https://arxiv.org/abs/2405.02385, 2024.
    """
    check_model(model)
    check_function("make_rule", make_rule, "a function from a model to a rule", model)
    check_instance("dynamics", dynamics, Dynamics, "Dynamics, from decorrelation")
    check_where("where", where)

    def rule_on(model: Model) -> Rule:
        rule = make_rule(model)
        check_instance("make_rule", rule, Rule, "a function from a model to a rule on it")
        return rule

    def init(key: Key, params: Params, x: Any) -> DecorrelatedState:
        check_key("key", key)
        program = Program(model, params, as_batch(x, only_shapes=True)[0])
        layers: Layers = {}
        for name, place in _places(program, where).items():
            check_memory(f"where: {name!r}", [(*place.shape, place.shape[-1])])
            start = dynamics.init((place.shape[-1],)).layers[0]
            layers[name] = {
                entry: jnp.broadcast_to(value, (*place.shape[:-1], *value.shape))
                for entry, value in start.items()
            }
        losses = {
            name: jnp.full(layer["R"].shape[:-2], jnp.nan, jnp.float32) for name, layer in layers.items()
        }
        rule_state = rule_on(decorrelated(model, layers, where=where)).init(key, params, x)
        return DecorrelatedState(layers, losses, jnp.zeros((), jnp.int32), rule_state)

    def value_and_grad(
        key: Key, params: Params, state: DecorrelatedState, x: Any, y: Any
    ) -> tuple[Any, Params, DecorrelatedState]:
        check_instance("state", state, DecorrelatedState, "the state of the rule's init(key, params, x)")
        check_key("key", key)
        rule_key, update_key = jax.random.split(key)
        rule = rule_on(decorrelated(model, state.layers, where=where))
        value, grads, rule_state = rule.value_and_grad(rule_key, params, state.rule, x, y)
        layers, losses = learned(update_key, state, params, x)
        return value, grads, DecorrelatedState(layers, losses, state.step + 1, rule_state)

    def learned(
        key: Key, state: DecorrelatedState, params: Params, x: Any
    ) -> tuple[Layers, dict[str, Array]]:
        every_vectors = decorrelation_inputs(model, params, state.layers, x, where=where)

        def update(key: Key, layer: dict[str, Array], vectors: Array) -> tuple[dict[str, Array], Array]:
            before = DecorrelationState((layer,), state.step)
            after, diagnostics = dynamics.update(key, before, (vectors,))
            return after.layers[0], diagnostics.loss[0].astype(jnp.float32)

        layers: Layers = {}
        losses: dict[str, Array] = {}
        keys = jax.random.split(key, len(every_vectors))
        for k, (name, vectors) in zip(keys, every_vectors.items(), strict=True):
            one, lead = update, vectors.shape[:-2]
            for _ in lead:
                one = jax.vmap(one)
            layers[name], losses[name] = one(jax.random.split(k, lead), state.layers[name], vectors)
        return layers, losses

    return Rule(init, value_and_grad, model.trainable)


def fold(model: Model, params: Params, layers: Layers, x: Any, *, where: Where = None) -> Params:
    """Returns plain weights, with which the model itself does what it does on decorrelated inputs.

    `w <- R^T w`, for the matrix w of every product and convolution that reads decorrelated inputs.

    Args:
      model: the model, not decorrelated.
      params: learned on decorrelated inputs.
      layers: of a `DecorrelatedState`.
      x: a batch; only its shapes and types are used.
      where: as of `decorrelated_rule`.

    Returns:
      Params of the model.

    Raises:
      ValueError: for a parameter that several operations read, or that is normalised or scaled before its
        product, or a mean that is removed (`bias=True`).
    """
    check_model(model)
    program = Program(model, params, as_batch(x, only_shapes=True)[0])
    places = _checked_places(program, where, layers)
    leaves = list(program.split.leaves)
    for name, layer in layers.items():
        if "b" in layer:
            raise ValueError(
                f"layers[{name!r}]: expected no mean to remove, which weights cannot do, got an entry 'b'"
            )
    for site, name in ((site, name) for name, place in places.items() for site in place.sites):
        names = ", ".join(repr(program.split.paths[i]) for i in sorted(site.leaves))
        readers = [other for other in program.plan.all_sites if other.leaves & site.leaves]
        leaf = min(site.leaves)
        alone = len(site.leaves) == len(readers) == 1
        operand, restore = _operand(program, leaves, leaf, site) if alone else (leaves[leaf], None)
        if restore is None:
            raise ValueError(
                f"params: expected parameters that one product reads as they are, got {names}, which are "
                "read several times, normalised or scaled: they have no plain weights"
            )
        leaves[leaf] = restore(_folded(site, layers[name]["R"], operand)).astype(leaves[leaf].dtype)
    return jax.tree.unflatten(program.split.structure, leaves)


def _folded(site: Site, r: Array, w: Array) -> Array:
    """Returns `R^T w`, for every stacked layer."""
    layout = site.layout
    assert layout is not None

    def fold_one(r: Array, w: Array) -> Array:
        matrix = layout.matrix(w)
        dtype = raised(matrix, r)
        return layout.unmatrix((jnp.swapaxes(r, -1, -2).astype(dtype) @ matrix.astype(dtype)).astype(w.dtype))

    for flag in site.stacked:
        fold_one = jax.vmap(fold_one) if flag else fold_one
    return fold_one(r, w)


def _operand(
    program: Program, leaves: list[Array], leaf: int, site: Site
) -> tuple[Array, Callable[[Array], Array] | None]:
    """Returns what a product makes of a parameter, `[*lead, ...]`, and the way back if there is one."""
    rng = np.random.default_rng(0)
    x = [made_up(rng, like) for like in program.x]

    def operand(own: list[Array]) -> Array:
        parameters = [each for each, trained in zip(own, program.split.trained, strict=True) if trained]
        _, _, emitted = program.run(parameters, x, Hooks(operands=frozenset({site.index})))
        w, _ = emitted[site.index]
        for axis, stacked in reversed(list(enumerate(site.stacked))):
            w = w if stacked else jax.lax.index_in_dim(w, 0, axis, keepdims=False)
        return w

    def at(others: list[Array]) -> Callable[[Array], Array]:
        return jax.jit(lambda value: operand([*others[:leaf], value, *others[leaf + 1 :]]))

    found, back = jax.vjp(at(leaves), leaves[leaf])
    with jax.ensure_compile_time_eval():  # on made-up numbers: the weights may be traced
        probes = [made_up(rng, like) for like in leaves]
        moved, pull = jax.vjp(at(probes), probes[leaf])
        same = jnp.array_equal(pull(moved)[0], probes[leaf])
        same &= jnp.array_equal(
            at(probes)(-probes[leaf]), -moved
        )  # as a change of shape does, and `abs` does not
    if isinstance(same, Tracer):
        raise ValueError("params: expected weights with values, got traced ones; fold outside of jit")
    kept = bool(same)
    return found, (lambda w: back(w)[0]) if kept else None
