"""The contract that every rule keeps on every kind of model: one test over the registry for each clause."""

# pyright: reportArgumentType=false

import itertools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import FrozenDict
from jax import lax

import lax_learning as ll
from tests.compare import assert_close, assert_near, assert_same, differs, normal, slow_but, squares
from tests.registry import AT_REST, INPUT_SHAPES, LEARNING, NETWORKS, ONLINE, RULES

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

KEYS = jax.random.split(jax.random.key(0), 8)
SIZE = 6
# What costs a program for each rule: one of each kind.
ONE_OF_A_KIND = ("direct_feedback_alignment", "node_perturbation_batch", "kolen_pollack")
of_several_rules = pytest.mark.parametrize(
    "names", [ONE_OF_A_KIND, pytest.param(tuple(RULES), marks=pytest.mark.slow)], ids=len
)


class Pair(NamedTuple):
    second: Any
    first: Any


X = {"rows": normal(1, SIZE, 3), "gain": normal(2, SIZE)}
Y = {"target": normal(3, SIZE, 2), "weight": jnp.array([1.0, 0.0, 0.5, 2.0, 1.0, 0.0])}
PARAMS = Pair(FrozenDict(w=normal(6, 4, 2), b=None), {"w": normal(4, 3, 4), "b": normal(5, 4)})


def apply(params: Any, x: Any) -> Any:
    hidden = jnp.tanh(x["rows"] @ params.first["w"] + params.first["b"]) * x["gain"][:, None]
    return {"left": hidden @ params.second["w"], "right": jnp.sum(hidden, axis=1)}


def with_aux(params: Any, x: Any) -> Any:
    output = apply(params, x)
    return output, {"mean": jnp.mean(output["left"], axis=0)}


def weighted(output: Any, y: Any) -> jax.Array:
    """Losses of examples with weights that come with the targets."""
    return y["weight"] * (ll.squared_error(output["left"], y["target"]) + jnp.square(output["right"]))


MODEL = ll.Model(apply, lambda key: PARAMS)


def problem(kind: str, dtype: Any = jnp.float32) -> Any:
    """Trees in and out, a network with a loss at every step, or one of the library's own networks.

    A model, a loss of examples and a batch.
    """
    if kind == "trees":
        return MODEL, weighted, X, Y

    def given(seed: int, *shape: int) -> Any:
        return np.asarray(normal(seed, *shape)).astype(jnp.dtype(dtype))

    if kind == "online":
        x = given(1, SIZE, 3, 2)
        return ll.online.leaky_rnn((2, 4, 2), alpha=0.3, dtype=dtype), ll.squared_error, x, x[..., ::-1]
    return NETWORKS[kind](dtype), squares, np.tanh(given(1, 12, *INPUT_SHAPES[kind])), given(2, 12, 2)


def make(name: str, model: ll.Model = MODEL, loss: Any = weighted, **options: Any) -> ll.Rule:
    return (RULES | ONLINE)[name](model, loss, **options)


def roundings(name: str) -> float:
    """Returns the roundings of the largest entry by which two programs for one rule may differ.

    Sums of a dozen terms in another order differ by less than 64. Perturbation rules divide a
    difference of losses of order 1 by sigma = 0.1 or 0.2, which multiplies that by 1 / sigma.
    """
    return 640 if name.startswith(("weight_perturbation", "node_perturbation", "three_factor")) else 64


KINDS = (("trees", False), ("trees", True), ("convolutional", False), ("recurrent", False))
DTYPES = ("bfloat16", "float64", "float32", "float16")
OF_SHAPES = [(name, *kind, dtype) for name, kind, dtype in itertools.product(RULES, KINDS, DTYPES)]
OF_SHAPES += [(name, "online", False, dtype) for name, dtype in itertools.product(ONLINE, DTYPES[:3])]
FAST_SHAPES = [(name, "trees", True, "float64") for name in RULES]
FAST_SHAPES += [(name, "recurrent", False, "bfloat16") for name in (*ONE_OF_A_KIND, "spsa")]
FAST_SHAPES += [(name, "online", False, "bfloat16") for name in ("eprop", "rtrl", "three_factor")]


@pytest.mark.parametrize(("name", "kind", "has_aux", "dtype"), slow_but(FAST_SHAPES, OF_SHAPES))
def test_gradients_are_like_those_of_jax_grad(name: str, kind: str, has_aux: bool, dtype: str) -> None:
    # single and double precision never mix with another dtype unasked; half is raised on purpose
    wide = jnp.dtype(dtype).itemsize > 2
    with jax.enable_x64(dtype == "float64"), jax.numpy_dtype_promotion("strict" if wide else "standard"):
        model, loss, x, y = problem(kind, dtype)
        params = jax.eval_shape(model.init, KEYS[0])
        args = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), (params, x, y))
        exact_loss = jax.value_and_grad(lambda params, x, y: jnp.mean(loss(model.apply(params, x), y)))
        value, exact = jax.eval_shape(exact_loss, *args)
        rule = make(name, ll.Model(with_aux, has_aux=True) if has_aux else model, loss)
        key = jax.random.PRNGKey(0) if has_aux else KEYS[0]  # a raw key is one key
        state = jax.eval_shape(rule.init, key, *args[:2])
        first, grads, after = jax.eval_shape(rule.value_and_grad, key, args[0], state, *args[1:])
        found, aux = first if has_aux else (first, {"mean": jax.ShapeDtypeStruct((2,), dtype)})
        chex.assert_trees_all_equal_shapes_and_dtypes(grads, exact)
        chex.assert_trees_all_equal_shapes_and_dtypes(after, state)  # as a scan over updates asks for
        weak = [[leaf.weak_type for leaf in jax.tree.leaves(tree)] for tree in (after, state)]
        assert weak[0] == weak[1]
        assert (aux["mean"].shape, aux["mean"].dtype) == ((2,), jnp.dtype(dtype))
        # Losses are averaged in float32 or wider.
        assert (found.shape, found.dtype) == ((), value.dtype if wide else jnp.float32)


ON_KINDS = [("trees", name) for name in RULES] + [("online", name) for name in ONLINE]
ON_KINDS += [(kind, name) for kind in ("convolutional", "recurrent") for name in ONE_OF_A_KIND]
FAST_KINDS = [*(("trees", name) for name in ONE_OF_A_KIND[1:]), ("online", "three_factor")]
WITH_HYPER = ("weight_perturbation", "node_perturbation", "sign_symmetry", "kolen_pollack")


@pytest.mark.parametrize(("kind", "name"), slow_but(FAST_KINDS, ON_KINDS))
def test_jit_vmap_scan_and_donation_change_nothing(kind: str, name: str) -> None:
    """Hyper-parameters are traced."""
    model, loss, x, y = problem(kind)
    start, values = jax.jit(model.init)(KEYS[3]), jnp.array([0.1, 0.2])

    def made(value: Any) -> ll.Rule:
        moving = {"decay": value, "optimizer": optax.sgd(value)} if name == "kolen_pollack" else {}
        return make(name, model, loss, sigma=value, gain=value, **moving)

    def update(key: Any, params: Any, state: Any, value: Any) -> Any:
        loss_, grads, state = made(value).value_and_grad(key, params, state, x, y)
        return loss_, jax.tree.map(lambda w, g: w - g, params, grads), state

    chex.clear_trace_counter()
    keys, state = KEYS[1:3], jax.jit(made(0.1).init)(KEYS[0], start, x)
    before = jax.tree.map(np.array, (start, x, y))
    one: Any = jax.jit(chex.assert_max_traces(update, 1), donate_argnums=1)
    pairs = zip(keys, values, strict=True)
    rows = [one(key, jax.tree.map(jnp.copy, start), state, value) for key, value in pairs]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(stacked))

    @jax.jit
    def together(params: Any, state: Any) -> Any:
        def step(carry: Any, of: Any) -> Any:
            return carry, update(of[0], carry[0], carry[1], of[1])

        side_by_side = jax.vmap(update, (0, None, None, 0))(keys, params, state, values)
        return side_by_side, lax.scan(step, (params, state), (keys, values))[1]

    for found in together(start, state):
        assert_close(found, stacked, ulps=roundings(name))
    assert_same((start, x, y), before)
    if name not in (*LEARNING, "three_factor"):
        assert_same(rows[0][2], state)
    if name != "three_factor":  # whose loss is that of its noisy pass
        exact = jax.jit(lambda params: jnp.mean(loss(model.apply(params, x), y)))(start)
        np.testing.assert_allclose(stacked[0], exact, rtol=1e-5)
    if name.startswith(WITH_HYPER):  # key and value matter
        assert differs(rows[0][1], rows[1][1])
    if name == "kolen_pollack":
        assert differs(rows[0][2].feedback, rows[1][2].feedback)


@of_several_rules
def test_half_precision_nan_and_the_debugging_flags(names: tuple[str, ...]) -> None:
    """Near the loss in float32, and finite; NaN in, NaN out."""
    model, loss, x, y = problem("dense", jnp.bfloat16)
    rules = {name: make(name, model, loss) for name in names}

    @jax.jit
    def run(key: Any, params: Any, x: Any) -> Any:
        keys = jax.random.split(key, (len(rules), 2))
        return {
            name: rule.value_and_grad(update, params, rule.init(init, params, x), x, y)[:2]
            for (init, update), (name, rule) in zip(keys, rules.items(), strict=True)
        }

    def in_float32(params: Any) -> Any:
        return jnp.mean(loss(*jax.tree.map(jnp.float32, (model.apply(params, x), y))))

    nan = np.array(np.nan, x.dtype)
    with jax.debug_key_reuse(True):
        params = jax.jit(model.init)(jax.random.key(0))
        with jax.debug_nans(True):
            found = jax.tree.map(np.asarray, run(jax.random.key(1), params, x))
        for name, (value, grads) in found.items():
            np.testing.assert_allclose(value, jax.jit(in_float32)(params), rtol=0.05, err_msg=name)
            assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads)), name
            assert name in AT_REST or all((layer["w"] != 0).any() for layer in grads), name
        spoilt, one_nan = jax.tree.map(lambda leaf: np.full_like(leaf, nan), params), np.array(x)
        one_nan[0, 0] = nan
        for i, bad in enumerate([(params, one_nan), (spoilt, x)]):
            for name, (value, grads) in run(jax.random.key(2 + i), *bad).items():
                assert np.isnan(value), name
                for layer in grads:
                    assert np.isnan(layer["w"]).any() and np.isnan(layer["b"]).all(), name


# --- training

DATA = ll.data.Splits(*[ll.data.Dataset(*map(jnp.asarray, problem("dense")[2:]))] * 3)


def test_every_update_and_evaluation_has_a_key_of_its_own_and_pieces_make_up_the_run() -> None:
    def value_and_grad(key: Any, params: Any, state: Any, x: Any, y: Any) -> Any:
        return jax.random.uniform(key), -x[:, 0].sum(), state + 1

    def evaluate(key: Any, params: Any, state: Any, data: Any) -> Any:
        return params, jax.random.uniform(key), state

    rule = ll.Rule(lambda key, params, x: 0, value_and_grad)
    options: Any = {"num_updates": 3, "batch_size": 4, "every": 1, "evaluate": evaluate}
    train = ll.make_train(rule, optax.sgd(1.0), init=lambda key: jnp.zeros(()), **options)
    history = jax.jit(train)(KEYS[0], DATA)  # three batches of 4 are the epoch of 12 examples
    seen, drawn, states = history.evaluations
    assert len({*history.losses.tolist(), *drawn.tolist()}) == 3 + 4
    assert len({*seen.tolist()}) == 4 and states.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(seen[-1], DATA.train.x[:, 0].sum(), rtol=1e-4)

    start, advance, evaluated = map(jax.jit, (train.init, train.advance, train.evaluate))
    state, losses, evaluations = start(KEYS[0], DATA), [], []
    for step in range(3):
        evaluations.append(evaluated(state, step, DATA))
        state, of_piece = advance(state, step, DATA)
        losses.append(of_piece[0])
    evaluations.append(evaluated(state, 3, DATA))
    evaluations = jax.tree.map(lambda *leaves: np.stack(leaves), *evaluations)
    assert_same((np.array(losses), state, evaluations), (history.losses, history.state, history.evaluations))


def test_training_with_weights_of_examples_equals_its_loop() -> None:
    """Optimisers that ask for the loss get `value`, `grad` and `value_fn`; targets are any pytree."""
    rule, optimizer, data = make("backprop"), optax.lbfgs(), ll.data.Splits(ll.data.Dataset(X, Y), None, None)
    train = ll.make_train(rule, optimizer, init=MODEL.init, num_updates=3, batch_size=SIZE)

    def mean_loss(params: Any) -> jax.Array:
        return jnp.mean(weighted(apply(params, X), Y))

    def step(carry: Any, _: Any) -> Any:
        params, state = carry
        value, grad = jax.value_and_grad(mean_loss)(params)
        given: Any = {"value": value, "grad": grad, "value_fn": mean_loss}
        updates, state = optimizer.update(grad, state, params, **given)
        return (optax.apply_updates(params, updates), state), value

    @jax.jit
    def both(key: Any) -> Any:
        return train(key, data), lax.scan(step, (PARAMS, optimizer.init(PARAMS)), length=train.num_updates)

    history, ((params, _), losses) = both(KEYS[0])
    # another order of the 6 examples in sums, through the updates and the line search of each
    np.testing.assert_allclose(history.losses, losses, rtol=1e-3)
    assert_near(history.state.params, params, rtol=1e-2, atol=1e-3)
    assert losses[-1] < losses[0]


# --- reverse mode and devices


@of_several_rules
def test_reverse_mode_passes_through_every_update(names: tuple[str, ...]) -> None:
    for rule in map(make, names):
        state = jax.eval_shape(rule.init, KEYS[0], PARAMS, X)

        def size_of_update(params: Any, state: Any, rule: Any = rule) -> Any:
            loss, grads, _ = rule.value_and_grad(KEYS[1], params, state, X, Y)
            return loss + sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(grads))

        grads = jax.eval_shape(jax.grad(size_of_update), PARAMS, state)
        chex.assert_trees_all_equal_shapes_and_dtypes(grads, PARAMS)


SHARDED = "kolen_pollack", "forward_direct_feedback", "node_perturbation_batch", "forward_gradient", "eprop"
SPLIT, WHOLE = jax.P("devices"), jax.P()


@pytest.mark.parametrize("name", slow_but(SHARDED, [*RULES, *ONLINE]))
def test_shard_map_with_its_default_check(name: str) -> None:
    """Gradients of shared params are the same on all devices, those of params of seeds differ."""
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.sharding.AbstractMesh((2,), ("devices",), axis_types=auto)
    model, loss, x, y = problem("online" if name in ONLINE else "recurrent")
    rule, params = make(name, model, loss), jax.jit(model.init)(KEYS[0])

    def grads_of(key: Any, params: Any, x: Any, y: Any) -> Any:
        return rule.value_and_grad(key, params, rule.init(key, params, x), x, y)[1]

    def of_step(key: Any, params: Any, x: Any, y: Any) -> Any:
        online: Any = rule.online
        state, memory = rule.init(key, params, x), online.start(params, x[:, 0])
        return online.step(key, params, state, memory, x[:, 0], y[:, 0])[1]

    def folded(key: Any, *args: Any) -> Any:
        return grads_of(jax.random.fold_in(key, lax.axis_index("devices")), *args)

    seeds = jax.vmap(grads_of, (0, 0, None, None))
    noisy = jax.vmap(grads_of, (0, None, None, None))
    many = jax.tree.map(lambda leaf: np.stack([leaf] * 4), params)
    cases: Any = [
        (grads_of, (KEYS[0], params), (WHOLE, WHOLE, SPLIT, SPLIT), WHOLE, ()),
        (seeds, (KEYS[:4], many), (SPLIT, SPLIT, WHOLE, WHOLE), SPLIT, (4,)),
        (folded, (KEYS[0], params), (WHOLE, WHOLE, SPLIT, SPLIT), WHOLE, ()),
        (noisy, (KEYS[:4], params), (SPLIT, WHOLE, WHOLE, WHOLE), WHOLE, (2,)),
    ]
    if name in ONLINE:
        cases[2:] = [(of_step, (KEYS[0], params), (WHOLE, WHOLE, SPLIT, SPLIT), WHOLE, ())]
    for of, args, ins, out, lead in cases:
        shapes = jax.eval_shape(jax.shard_map(of, mesh=mesh, in_specs=ins, out_specs=out), *args, x, y)
        for grad, leaf in zip(jax.tree.leaves(shapes), jax.tree.leaves(params), strict=True):
            assert grad.shape == (*lead, *leaf.shape)
