"""The contract that every rule keeps on a `Model`: one test over the registry for each clause."""

# pyright: reportArgumentType=false

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lax_learning as ll
from tests.command_line import CACHE
from tests.compare import assert_close, assert_same
from tests.refusal import refuses
from tests.registry import MODEL_RULES

# Much is traced here: annotations are checked where the same functions meet their other oracles.
pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

QUICK: Any = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
KEYS = jax.random.split(jax.random.key(0), 4)
SIZE = 6
LEARNING = ("decorrelated", "kp", "spsa")
"""Rules whose state moves."""
all_rules = pytest.mark.parametrize("name", MODEL_RULES)


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


X = {"rows": normal(1, SIZE, 3), "gain": normal(2, SIZE)}
Y = {"target": normal(3, SIZE, 2), "weight": jnp.array([1.0, 0.0, 0.5, 2.0, 1.0, 0.0])}
PARAMS = {
    "first": {"w": normal(4, 3, 4), "b": normal(5, 4)},
    "second": {"w": normal(6, 4, 2), "b": None},
}


def apply(params: Any, x: Any) -> Any:
    first, second = params["first"], params["second"]
    hidden = jnp.tanh(x["rows"] @ first["w"] + first["b"]) * x["gain"][:, None]
    return {"left": hidden @ second["w"], "right": jnp.sum(hidden, axis=1)}


def with_aux(params: Any, x: Any) -> Any:
    output = apply(params, x)
    return output, {"mean": jnp.mean(output["left"], axis=0)}


def weighted(output: Any, y: Any) -> jax.Array:
    """Losses of examples with weights that come with the targets."""
    return y["weight"] * (ll.squared_error(output["left"], y["target"]) + jnp.square(output["right"]))


def mean_loss(params: Any, x: Any = X, y: Any = Y) -> jax.Array:
    return jnp.mean(weighted(apply(params, x), y))


MODEL = ll.Model(apply, lambda key: PARAMS)


def make(name: str, model: ll.Model = MODEL, **options: Any) -> Any:
    return MODEL_RULES[name](model, weighted, **options)


def roundings(name: str) -> float:
    """As in `test_contract`: differences of losses are divided by sigma = 0.1 or 0.2."""
    return 640 if name.startswith(("wp", "np")) else 64


@all_rules
def test_gradients_are_like_those_of_jax_grad(name: str) -> None:
    for dtype in (jnp.float32, jnp.float64, jnp.bfloat16, jnp.float16):
        # single and double precision never mix with another dtype unasked; half is raised on purpose
        wide = jnp.dtype(dtype).itemsize > 2
        with (
            jax.enable_x64(dtype == jnp.float64),
            jax.numpy_dtype_promotion("strict" if wide else "standard"),
        ):
            params, x, y = jax.tree.map(
                lambda leaf, dtype=dtype: jax.ShapeDtypeStruct(leaf.shape, dtype), (PARAMS, X, Y)
            )
            value, exact = jax.eval_shape(jax.value_and_grad(mean_loss), params, x, y)
            for function, has_aux in ((apply, False), (with_aux, True)):
                rule = make(name, ll.Model(function, has_aux=has_aux))
                state = jax.eval_shape(rule.init, KEYS[0], params, x)
                first, grads, after = jax.eval_shape(rule.value_and_grad, KEYS[0], params, state, x, y)
                loss, aux = first if has_aux else (first, {"mean": jax.ShapeDtypeStruct((2,), dtype)})
                chex.assert_trees_all_equal_shapes_and_dtypes(grads, exact)
                chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
                chex.assert_shape(aux["mean"], (2,))
                chex.assert_type(aux["mean"], dtype)
                chex.assert_shape(loss, ())
                # Losses are averaged in float32 or wider.
                chex.assert_type(loss, value.dtype if wide else jnp.float32)


@all_rules
def test_jit_vmap_and_donation_change_nothing(name: str) -> None:
    sigmas = jnp.array([0.1, 0.2])

    def update(key: Any, params: Any, state: Any, sigma: Any, x: Any, y: Any) -> Any:
        loss, grads, state = make(name, sigma=sigma).value_and_grad(key, params, state, x, y)
        return loss, jax.tree.map(lambda w, g: w - g, params, grads), state

    chex.clear_trace_counter()
    rule, compiled = make(name), partial(jax.jit, compiler_options=QUICK)
    state = rule.init(KEYS[0], PARAMS, X)
    before = jax.tree.map(np.array, (PARAMS, X, Y))
    one = compiled(chex.assert_max_traces(update, 1), donate_argnums=1)
    rows = [
        one(key, jax.tree.map(jnp.copy, PARAMS), state, sigma, X, Y)
        for key, sigma in zip(KEYS[1:3], sigmas, strict=True)
    ]
    together = compiled(jax.vmap(update, (0, None, None, 0, None, None)))
    side_by_side = together(KEYS[1:3], PARAMS, state, sigmas, X, Y)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
    chex.assert_tree_all_finite(stacked)
    assert_close(side_by_side, stacked, ulps=roundings(name))
    assert_same((PARAMS, X, Y), before)
    if name in LEARNING:
        chex.assert_trees_all_equal_shapes_and_dtypes(rows[0][2], state)
    else:
        assert_same(rows[0][2], state)
    np.testing.assert_allclose(stacked[0], mean_loss(PARAMS), rtol=1e-5)
    if name.startswith(("wp", "np")):  # key and sigma matter
        assert not np.allclose(rows[0][1]["first"]["w"], rows[1][1]["first"]["w"])


@all_rules
def test_a_key_is_required(name: str) -> None:
    rule = make(name)
    state = rule.init(KEYS[0], PARAMS, X)
    for bad, error in ((None, TypeError), (0, TypeError), (KEYS, ValueError), (jnp.zeros(2), TypeError)):
        refuses(partial(rule.init, bad, PARAMS, X), error, "^key: expected one key")
        refuses(partial(rule.value_and_grad, bad, PARAMS, state, X, Y), error, "^key: expected one key")
    raw = jax.random.PRNGKey(0)
    _, grads, _ = jax.eval_shape(
        rule.value_and_grad, raw, PARAMS, jax.eval_shape(rule.init, raw, PARAMS, X), X, Y
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, PARAMS)


# --- weights of examples


@pytest.mark.parametrize("name", ["backprop", "fa", "dfa"])
def test_examples_of_weight_zero_count_for_nothing(name: str) -> None:
    rule, kept = make(name), np.flatnonzero(Y["weight"])
    state = rule.init(KEYS[0], PARAMS, X)
    x, y = jax.tree.map(lambda leaf: leaf[kept], (X, Y))
    loss, grads, _ = rule.value_and_grad(KEYS[1], PARAMS, state, X, Y)
    of_kept, by_kept, _ = rule.value_and_grad(KEYS[1], PARAMS, state, x, y)
    share = len(kept) / SIZE
    expected = share * of_kept, jax.tree.map(lambda g: share * g, by_kept)
    assert_close((loss, grads), expected, ulps=64)
    exact = jax.value_and_grad(mean_loss)(PARAMS)
    if name == "fa":
        _, grads, _ = rule.value_and_grad(KEYS[1], PARAMS, state._replace(feedback=PARAMS), X, Y)
    if name == "dfa":  # the read-out's gradient is exact
        grads, exact = grads["second"], (exact[0], exact[1]["second"])
    assert_close((loss, grads), exact, ulps=64)


@pytest.mark.parametrize("name", ["np-antithetic", "np-batch", "wp-central"])
def test_estimates_follow_the_weights_of_examples(name: str) -> None:
    rule, number = make(name, sigma=1e-2), 4000

    @jax.jit
    def moments(keys: Any) -> Any:
        grads = jax.vmap(lambda key: rule.value_and_grad(key, PARAMS, (), X, Y)[1])(keys)
        return jax.tree.map(lambda g: (g.mean(0), g.std(0)), grads)

    found, exact = moments(jax.random.split(KEYS[0], number)), jax.grad(mean_loss)(PARAMS)
    for layer, entry in (("first", "w"), ("first", "b"), ("second", "w")):
        mean, deviation = found[layer][entry]
        # 5 standard errors; sigma^2 = 1e-4 of the curvature's scale for the bias.
        slack = 5 * deviation / number**0.5 + 1e-3 * np.abs(exact[layer][entry]).max()
        assert (np.abs(mean - exact[layer][entry]) <= slack).all()


# --- training


OPTIMIZERS = {
    "lbfgs": optax.lbfgs,
    "reduce_on_plateau": lambda: optax.chain(optax.sgd(0.05), optax.contrib.reduce_on_plateau(patience=1)),
}


@pytest.mark.parametrize(
    ("name", "optimizer"), [("backprop", "lbfgs"), ("fa", "lbfgs"), ("fa", "reduce_on_plateau")]
)
def test_training_with_weights_of_examples_equals_its_loop(name: str, optimizer: str) -> None:
    """Optimisers that ask for the loss get `value`, `grad` and `value_fn`; targets are any pytree."""
    rule, number = make(name), 4
    with_extra = optax.with_extra_args_support(OPTIMIZERS[optimizer]())
    data = ll.data.Splits(ll.data.Dataset(X, Y), None, None)
    train = ll.make_train(rule, OPTIMIZERS[optimizer](), init=MODEL.init, num_updates=number, batch_size=SIZE)
    history = jax.jit(train)(KEYS[0], data)

    @jax.jit
    def update(params: Any, optimizer_state: Any) -> Any:
        loss, grads, _ = rule.value_and_grad(KEYS[1], params, start.rule_state, X, Y)
        updates, optimizer_state = with_extra.update(
            grads, optimizer_state, params, value=loss, grad=grads, value_fn=mean_loss
        )
        return optax.apply_updates(params, updates), optimizer_state, loss

    start = train.init(KEYS[0], data)
    params, optimizer_state, losses = start.params, with_extra.init(start.params), []
    for _ in range(number):
        params, optimizer_state, loss = update(params, optimizer_state)
        losses.append(loss)
    # another order of the 6 examples in sums, through four updates and the line search of each
    np.testing.assert_allclose(history.losses, losses, rtol=1e-3)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-2, atol=1e-3), history.state.params, params)
    assert losses[-1] < losses[0]


# --- scans


ROWS, TARGETS = normal(7, SIZE, 4, 3), {"target": normal(8, SIZE, 2), "weight": jnp.ones(SIZE)}
CELL = {"u": normal(9, 3, 5) / 2, "v": normal(10, 5, 5) / 2, "h": normal(11, 5), "out": normal(12, 5, 2)}


def recurrent(scan: Any, params: Any, x: Any) -> Any:
    def step(h: Any, x: Any) -> Any:
        return jnp.tanh(x @ params["u"] + h @ params["v"]), None

    start = jnp.broadcast_to(params["h"], (len(x), 5)) if "h" in params else jnp.zeros((len(x), 5))
    h, _ = scan(step, start, x.swapaxes(0, 1))
    return {"left": h @ params["out"], "right": jnp.zeros(len(x))}


def loop(step: Any, carry: Any, xs: Any) -> Any:
    for x in xs:
        carry, _ = step(carry, x)
    return carry, None


def same_at_every_step(key: Any, like: Any) -> Any:
    """Noise on units, equal at all steps; none on a learned initial carry, which is outside of a scan."""
    noise = {5: jnp.array([1.0, -1.0, 1.0, 1.0, -1.0]), 2: jnp.array([-1.0, 1.0])}
    is_scan = any(leaf.ndim == 4 for leaf in like.values())

    def of(leaf: Any) -> Any:
        is_carry = is_scan and leaf.ndim == 3 and leaf.shape[-1] == 5
        return jnp.broadcast_to(noise[leaf.shape[-1]] * (not is_carry), leaf.shape)

    return jax.tree.map(of, like)


def of_each_step(scanned: Any, looped: Any) -> Any:
    """Feedback of a loop: what a scan shares over its steps, for each, and that of the last state."""

    def by_read(feedback: Any) -> list[list[str]]:
        names = sorted(feedback, key=lambda name: tuple(map(int, name.split("/"))))
        reads = dict.fromkeys(name.split("/")[0] for name in names)
        return [[name for name in names if name.split("/")[0] == read] for read in reads]

    (steps, last), reads = by_read(scanned), by_read(looped)
    sources = [steps] * (len(reads) - 1) + [last]
    return {
        name: scanned[source]
        for names, of_read in zip(reads, sources, strict=True)
        for name, source in zip(names, of_read, strict=True)
    }


SCANNED: dict[str, Any] = {
    **{name: MODEL_RULES[name] for name in ("backprop", "fa", "dfa", "wp", "wp-central")},
    "np": partial(ll.node_perturbation, sigma=0.1, noise=same_at_every_step),
    "np-activity": partial(ll.node_perturbation, sigma=0.1, noise=same_at_every_step, variant="activity"),
}


@pytest.mark.parametrize("learned", [False, True], ids=["zeros", "learned carry"])
@pytest.mark.parametrize("name", SCANNED)
def test_a_scan_equals_its_loop(name: str, learned: bool) -> None:
    """A learned initial carry is data inside a scan, and in a loop it meets data one product later.

    Its own gradient then comes through feedback, or from noise of its own, in the one and not in the other;
    those of all other parameters agree.
    """
    params = {entry: w for entry, w in CELL.items() if learned or entry != "h"}
    rules = [SCANNED[name](ll.Model(partial(recurrent, scan)), weighted) for scan in (jax.lax.scan, loop)]
    states = [rule.init(KEYS[0], params, ROWS) for rule in rules]
    if name == "dfa":
        feedback = of_each_step(*(state.feedback for state in states))
        states[1] = states[1]._replace(feedback=feedback)
    if name == "fa":
        states[1] = states[1]._replace(feedback=states[0].feedback)
    found = [
        jax.jit(rule.value_and_grad, compiler_options=QUICK)(KEYS[1], params, state, ROWS, TARGETS)[:2]
        for rule, state in zip(rules, states, strict=True)
    ]
    if name not in ("backprop", "wp", "wp-central"):
        for _, grads in found:
            grads.pop("h", None)
    if name == "np-activity" and learned:  # its factor N counts the 5 units of the carry
        found[1] = found[1][0], jax.tree.map(lambda g: 27 / 22 * g, found[1][1])
    # sums over 4 steps and 6 examples in another order
    assert_close(found[0], found[1], ulps=4 * roundings(name))
    if name == "fa":
        exact = jax.grad(lambda p: jnp.mean(weighted(recurrent(loop, p, ROWS), TARGETS)))(params)
        for rule, state in zip(rules, states, strict=True):
            _, grads, _ = rule.value_and_grad(KEYS[1], params, state._replace(feedback=params), ROWS, TARGETS)
            assert_close(grads, exact, ulps=256)


# --- devices


def in_scan(params: Any, x: Any) -> Any:
    """A recurrent network whose state varies over devices as its inputs do."""
    start = jnp.zeros_like(x["rows"] @ params["first"]["w"])
    out, _ = jax.lax.scan(
        lambda h, _: (jnp.tanh(h + x["rows"] @ params["first"]["w"] + params["first"]["b"]), None),
        start, None, length=2,
    )  # fmt: skip
    return {"left": out @ params["second"]["w"], "right": x["gain"]}


SPLIT, WHOLE = jax.P("devices"), jax.P()


@pytest.mark.parametrize("function", [apply, in_scan])
@all_rules
def test_shard_map_with_its_default_check(name: str, function: Any) -> None:
    """Gradients of shared params are the same on all devices, those of params of seeds differ."""
    axis_types = (jax.sharding.AxisType.Auto,)
    mesh = jax.sharding.AbstractMesh((2,), ("devices",), axis_types=axis_types)
    rule = make(name, ll.Model(function))

    def grads_of(key: Any, params: Any, x: Any, y: Any) -> Any:
        return rule.value_and_grad(key, params, rule.init(key, params, x), x, y)[1]

    def folded(key: Any, *args: Any) -> Any:
        return grads_of(jax.random.fold_in(key, jax.lax.axis_index("devices")), *args)

    seeds = jax.vmap(grads_of, (0, 0, None, None))
    noisy = jax.vmap(grads_of, (0, None, None, None))
    many = jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), PARAMS)
    cases = {
        "batch": (grads_of, (KEYS[0], PARAMS, X, Y), (WHOLE, WHOLE, SPLIT, SPLIT), WHOLE),
        "batch, a key a device": (folded, (KEYS[0], PARAMS, X, Y), (WHOLE, WHOLE, SPLIT, SPLIT), WHOLE),
        "seeds": (seeds, (KEYS, many, X, Y), (SPLIT, SPLIT, WHOLE, WHOLE), SPLIT),
        "keys": (noisy, (KEYS, PARAMS, X, Y), (SPLIT, WHOLE, WHOLE, WHOLE), WHOLE),
    }
    for case, (of, args, ins, outs) in cases.items():
        mapped = jax.shard_map(of, mesh=mesh, in_specs=ins, out_specs=outs)
        shapes = jax.eval_shape(mapped, *args)
        lead = {"seeds": (4,), "keys": (2,)}.get(case, ())
        for grad, leaf in zip(jax.tree.leaves(shapes), jax.tree.leaves(PARAMS), strict=True):
            chex.assert_shape(grad, (*lead, *leaf.shape))


ON_TWO_DEVICES = """
import jax
from tests.compare import assert_close
from tests.test_contract_models import KEYS, PARAMS, SIZE, SPLIT, WHOLE, X, Y, make, mean_loss, roundings
from tests.registry import MODEL_RULES

mesh = jax.make_mesh((2,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
halves = [jax.tree.map(lambda leaf: leaf[i : i + SIZE // 2], (X, Y)) for i in (0, SIZE // 2)]
many = jax.tree.map(lambda leaf: jax.numpy.stack([leaf] * 4), PARAMS)

def on_devices(function, *specs):
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=specs[:-1], out_specs=specs[-1]))

for name in ("backprop", "fa", "dfa", "np-antithetic", "np-batch", "wp-central"):
    rule = make(name)
    state = rule.init(KEYS[0], PARAMS, X)
    ulps = 4 * roundings(name)

    def grads_of(key, params, state, x, y):
        return rule.value_and_grad(key, params, state, x, y)[1]

    def folded(key, *args):
        return grads_of(jax.random.fold_in(key, jax.lax.axis_index("devices")), *args)

    # Over the batch: gradients of shared params are summed over devices, as those of `jax.grad` are. The key
    # of weight noise is the same everywhere, that of noise on units has the number of the device in it.
    on_units = name.startswith("np")
    keys = [jax.random.fold_in(KEYS[1], i) if on_units else KEYS[1] for i in (0, 1)]
    first, second = (grads_of(key, PARAMS, state, *half) for key, half in zip(keys, halves))
    expected = jax.tree.map(lambda a, b: a + b, first, second)
    over_batch = on_devices(folded if on_units else grads_of, WHOLE, WHOLE, WHOLE, SPLIT, SPLIT, WHOLE)
    found = over_batch(KEYS[1], PARAMS, state, X, Y)
    assert_close(found, expected, ulps=ulps)
    exact = on_devices(jax.grad(mean_loss), WHOLE, SPLIT, SPLIT, WHOLE)(PARAMS, X, Y)
    if name == "fa":
        found = over_batch(KEYS[1], PARAMS, state._replace(feedback=PARAMS), X, Y)
    if name in ("backprop", "fa"):
        assert_close(found, exact, ulps=ulps)
    if name == "dfa":
        assert_close(found["second"], exact["second"], ulps=ulps)

    # Over seeds: each device has two, side by side.
    seeds = jax.vmap(lambda key, params, x, y: grads_of(key, params, rule.init(key, params, x), x, y),
                     (0, 0, None, None))
    found = on_devices(seeds, SPLIT, SPLIT, WHOLE, WHOLE, SPLIT)(KEYS, many, X, Y)
    assert_close(found, jax.jit(seeds)(KEYS, many, X, Y), ulps=ulps)
print("as on one device")
"""


def test_values_on_two_devices() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ON_TWO_DEVICES],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", **CACHE},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "as on one device" in done.stdout, done.stderr
