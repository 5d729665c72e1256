"""The contract that every rule keeps on every kind of network: one test over the registry for each clause."""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from lax_learning.feedback import without_feedback

import lax_learning as ll
from tests.command_line import CACHE
from tests.compare import assert_close, assert_same, differs
from tests.registry import NETWORKS, ON_NETWORKS, RULES

# Much is traced here: annotations are checked where the same functions meet their other oracles.
pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

QUICK: Any = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
KEYS = jax.random.split(jax.random.key(0), 8)
Y = jnp.asarray(np.random.default_rng(2).normal(size=(12, 2)), jnp.float32)
# Rules of every kind, for what is too slow to ask of each variant.
KINDS = ("backprop", "wp", "np-3", "fg-activities", "dfa", "kp")


def network(kind: str = "dense", dtype: Any = jnp.float32) -> ll.Network:
    return NETWORKS[kind](dtype)


def make(name: str, kind: str = "dense", dtype: Any = jnp.float32) -> ll.Rule:
    return RULES[name](network(kind, dtype), ll.squared_error)


def inputs(kind: str = "dense") -> Any:
    return jnp.asarray(np.random.default_rng(1).normal(size=(12, *network(kind).input_shape)), jnp.float32)


def splits(kind: str = "dense") -> ll.data.Splits:
    return ll.data.Splits(*[ll.data.Dataset(inputs(kind), Y)] * 3)


X, DATA = inputs(), splits()
on_networks = pytest.mark.parametrize(("kind", "name"), ON_NETWORKS)


def roundings(name: str) -> float:
    """How many roundings of the largest entry two programs for one rule may differ by.

    Sums of a dozen terms in another order differ by less than 64. Perturbation rules divide a
    difference of losses of order 1 by sigma = 0.1, which multiplies that by 1 / sigma.
    """
    return 640 if name.startswith(("wp", "np")) else 64


@on_networks
def test_jit_vmap_and_scan_change_nothing(kind: str, name: str) -> None:
    rule, close = make(name, kind), partial(assert_close, ulps=roundings(name))
    params, keys, x, traces = rule.init(KEYS[0]), KEYS[1:4], inputs(kind), []

    def value_and_grad(key: Any, params: Any) -> Any:
        traces.append(key)
        return rule.value_and_grad(key, params, x, Y)

    compiled = jax.jit(value_and_grad)
    one_by_one = [compiled(key, params) for key in keys]
    other = compiled(KEYS[4], jax.tree.map(lambda leaf: 2 * np.asarray(leaf), params))
    assert len(traces) == 1, "a second call compiled again"
    assert differs(other, one_by_one[0])
    loop = jax.tree.map(lambda *leaves: np.stack(leaves), *one_by_one)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(loop))

    close(rule.value_and_grad(keys[0], params, x, Y), one_by_one[0])

    @partial(jax.jit, compiler_options=QUICK)
    def together(params: Any) -> Any:
        side_by_side = jax.vmap(value_and_grad, (0, None))(keys, params)
        return side_by_side, lax.scan(lambda carry, key: (carry, value_and_grad(key, carry)), params, keys)[1]

    side_by_side, scanned = together(params)
    close(side_by_side, loop)
    close(scanned, loop)


@on_networks
def test_gradients_are_like_the_params(kind: str, name: str) -> None:
    for dtype in (jnp.float32, jnp.float64, jnp.bfloat16):
        # single and double precision never mix with another dtype unasked; half is raised on purpose
        mixing = "standard" if dtype == jnp.bfloat16 else "strict"
        with jax.enable_x64(dtype == jnp.float64), jax.numpy_dtype_promotion(mixing):
            rule = make(name, kind, dtype)
            params = jax.eval_shape(rule.init, KEYS[0])
            x, y = inputs(kind).astype(dtype), Y.astype(dtype)
            loss, grads = jax.eval_shape(rule.value_and_grad, KEYS[0], params, x, y)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
        assert grads == params
        assert loss.shape == () and loss.dtype == (jnp.float64 if dtype == jnp.float64 else jnp.float32)


@on_networks
def test_half_precision(kind: str, name: str) -> None:
    rule = make(name, kind, jnp.bfloat16)
    params = rule.init(KEYS[0])
    x, y = inputs(kind).astype(jnp.bfloat16), Y.astype(jnp.bfloat16)
    loss, grads = jax.jit(rule.value_and_grad, compiler_options=QUICK)(KEYS[0], params, x, y)
    loss, grads = jax.tree.map(lambda leaf: np.asarray(leaf, float), (loss, grads))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((loss, grads)))
    assert all((layer["w"] != 0).any() for layer in grads)
    plain = network(kind).apply(jax.tree.map(jnp.float32, params), inputs(kind))
    exact = jnp.mean(ll.squared_error(plain, Y))
    np.testing.assert_allclose(loss, exact, rtol=0.05)


# --- training


def trainer(rule: ll.Rule, optimizer: Any = None, kind: str = "dense") -> Any:
    optimizer = optax.sgd(0.02, momentum=0.9) if optimizer is None else optimizer

    def evaluate(key: Any, params: Any, data: Any) -> Any:
        return ll.accuracy(network(kind).apply(params, data.test.x), data.test.y)

    return ll.make_train(rule, optimizer, num_updates=4, batch_size=4, every=2, evaluate=evaluate)


def member(tree: Any, index: Any) -> Any:
    def of(leaf: jax.Array) -> Any:
        return leaf[index] if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else np.asarray(leaf)[index]

    return jax.tree.map(of, tree)


@on_networks
def test_every_rule_goes_into_a_training_run(kind: str, name: str) -> None:
    rule = make(name, kind)
    # the scan checks structure, shapes and dtypes
    history = jax.eval_shape(trainer(rule, kind=kind), KEYS[0], splits(kind))
    assert history.losses.shape == (4,) and history.evaluations.shape == (3,)
    assert history.state.params == jax.eval_shape(rule.init, KEYS[0])


@pytest.mark.parametrize("name", KINDS)
def test_a_member_does_not_depend_on_how_many_run_beside_it(name: str) -> None:
    rule, optimizer = make(name), optax.sgd(0.02, momentum=0.9)

    def run(key: Any) -> Any:
        """Two updates: the second sees what the first did."""

        def update(carry: Any, key: Any) -> Any:
            params, state = carry
            loss, grads = rule.value_and_grad(key, params, X, Y)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), loss

        init_key, key = jax.random.split(key)
        params = rule.init(init_key)
        return lax.scan(update, (params, optimizer.init(params)), jax.random.split(key, 2))

    ensemble = ll.ensemble(run)
    eight = ensemble(KEYS)
    # In one and the same program neighbours and position leave no trace, to the last bit.
    assert_same(ensemble(KEYS[::-1]), member(eight, slice(None, None, -1)))
    assert_same(
        member(ensemble(jnp.concatenate([KEYS[:1], jax.random.split(KEYS[0], 7)])), 0), member(eight, 0)
    )
    # Programs for other numbers of members may round sums otherwise.
    close = partial(assert_close, ulps=2 * roundings(name))
    three = ll.ensemble(run)(KEYS[:3])
    close(three, member(eight, slice(0, 3)))
    one = ll.ensemble(run)(KEYS[1:2])
    close(one, member(eight, slice(1, 2)))
    if name in ("backprop", "np-3"):
        one_at_a_time = ll.ensemble(run, memory_budget=1.0)(KEYS[:3])
        assert_same(member(one_at_a_time, slice(1, 2)), one)
        close(one_at_a_time, three)
        large: Any = ensemble.compile(KEYS).memory_analysis()
        budget = 0.45 * large.temp_size_in_bytes
        padded = ll.ensemble(run, memory_budget=budget)(KEYS)  # batches of 3, 3 and 2
        close(padded, eight)
        # In batches a member's result does not depend on how many others there are.
        of_two = [ll.ensemble(run, batch_size=2)(KEYS[:number]) for number in (8, 5, 3)]
        close(of_two[0], eight)
        assert_same(of_two[1], member(of_two[0], slice(0, 5)))
        assert_same(of_two[2], member(of_two[0], slice(0, 3)))


@pytest.mark.parametrize("name", ["np", "kp"])
def test_runs_are_deterministic_and_the_same_in_pieces(name: str) -> None:
    train = trainer(make(name))
    run = jax.jit(train)
    whole = run(KEYS[0], DATA)
    assert_same(run(KEYS[0], DATA), whole)
    assert differs(run(KEYS[1], DATA).losses, whole.losses)

    state = jax.jit(train.init)(KEYS[0], DATA)
    advance, evaluate, losses = jax.jit(train.advance), jax.jit(train.evaluate), []
    evaluations = [evaluate(state, jnp.asarray(0), DATA)]
    for step in range(0, train.num_updates, train.every):
        state, of_piece = advance(state, jnp.asarray(step), DATA)
        losses.append(of_piece)
        evaluations.append(evaluate(state, jnp.asarray(step + train.every), DATA))
    assert_same((jnp.concatenate(losses), state), (whole.losses, whole.state))
    assert_same(jnp.stack(evaluations), whole.evaluations)


def test_every_update_has_a_key_and_a_batch_of_its_own() -> None:
    def value_and_grad(key: Any, params: Any, x: Any, y: Any) -> Any:
        return jax.random.uniform(key) + 0 * x[0, 0], {"seen": -x[0, 0] * jnp.ones(1)}

    rule = ll.Rule(lambda key: {"seen": jnp.zeros(1)}, value_and_grad)
    train = ll.make_train(
        rule, optax.sgd(1.0), num_updates=3, batch_size=4, every=1, evaluate=lambda key, params, data: params
    )
    history = jax.jit(train)(KEYS[0], DATA)  # three batches of 4 are the epoch of 12 examples
    assert len(set(history.losses.tolist())) == 3
    seen = jnp.diff(history.evaluations["seen"][:, 0])
    assert len({int(jnp.argmin(jnp.abs(X[:, 0] - value))) for value in seen}) == 3


# --- hyper-parameters that are traced


@pytest.mark.parametrize(
    ("factory", "values"),
    [
        (lambda value: ll.weight_perturbation(network(), ll.squared_error, sigma=value), (0.05, 0.2)),
        (lambda value: ll.node_perturbation(network(), ll.squared_error, sigma=value), (0.05, 0.2)),
        (lambda value: ll.sign_symmetry(network(), ll.squared_error, gain=value), (0.3, 1.5)),
        (lambda value: ll.kolen_pollack(network(), ll.squared_error, decay=value), (0.0, 0.5)),
    ],
    ids=["wp-sigma", "np-sigma", "gain", "decay"],
)
def test_traced_hyper_parameters_of_rules(factory: Callable[[Any], ll.Rule], values: Any) -> None:
    def run(key: Any, value: Any) -> Any:
        rule = factory(value)
        return rule.value_and_grad(key, rule.init(key), X, Y)

    swept = ll.ensemble(run, in_axes=(None, 0))(KEYS[0], jnp.asarray(values))
    assert differs(member(swept, 0)[1], member(swept, 1)[1])
    for i, value in enumerate(values):
        static = jax.jit(lambda key, value=value: run(key, value), compiler_options=QUICK)(KEYS[0])
        assert_close(member(swept, i), static, ulps=640 * 2)  # sigma = 0.05: see roundings


def test_traced_learning_rate() -> None:
    def run(key: Any, learning_rate: Any) -> Any:
        return trainer(make("fa"), optax.sgd(learning_rate))(key, DATA).losses

    rates = jnp.asarray([0.01, 0.03])
    swept = ll.ensemble(run, in_axes=(0, 0))(KEYS[:2], rates)
    assert_close(swept, jnp.stack([run(KEYS[0], 0.01), run(KEYS[1], 0.03)]), ulps=256)
    assert differs(swept[0], run(KEYS[0], 0.03))


# --- devices

ON_FOUR_DEVICES = """
import jax
import lax_learning as ll
from tests.compare import assert_close, assert_same
from tests.test_contract import DATA, KEYS, member, make, trainer

assert jax.device_count() == 4
train = trainer(make("kp"))
on_four = ll.ensemble(train)(KEYS[:5], DATA)  # two members a device, three of them padding
on_one = ll.ensemble(train, devices=jax.devices()[:1])(KEYS[:5], DATA)
assert on_four.losses.shape == (5, 4)
# Two members a device are another program than five on one: sums over the batch and the layers may be
# rounded otherwise, 32 terms long at most, in each of four updates.
assert_close(on_four, on_one, ulps=4 * 32)
chunked = ll.ensemble(train, memory_budget=1.0)(KEYS[:5], DATA)  # one a device, in two chunks
assert_close(chunked, on_one, ulps=4 * 32)
# Which device a member is on leaves no trace.
assert_same(ll.ensemble(train)(KEYS[:5][::-1], DATA), member(on_four, slice(None, None, -1)))
# Uneven members are put together on one device: to index arrays that are spread out, devices would exchange
# messages, which can lock up on CPU. Members that fit stay where they are, and go into the next call.
assert {len(leaf.devices()) for leaf in jax.tree.leaves(on_four)} == {1}
four = ll.ensemble(train.init)(KEYS[:4], DATA)
assert {len(leaf.devices()) for leaf in jax.tree.leaves(four)} == {4}
advance = ll.ensemble(train.advance, in_axes=(0, None, None))
after, losses = advance(four, 0, DATA)
assert {len(leaf.devices()) for leaf in jax.tree.leaves(after)} == {4}
assert_close(losses, on_four.losses[:4, :2], ulps=4 * 32)
print("same on four devices")
"""


def test_results_do_not_depend_on_the_number_of_devices() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ON_FOUR_DEVICES],
        cwd=Path(__file__).parents[1],
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "4",
            **CACHE,
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "same on" in done.stdout


def test_ensemble_compiles_once_for_arguments_of_one_shape() -> None:
    traces = []

    def run(key: Any, data: Any) -> Any:
        traces.append(key)
        rule = make("fa")
        return without_feedback(rule.value_and_grad(key, rule.init(key), *data.train)[1])

    ensemble = ll.ensemble(run)
    ensemble(KEYS[:2], DATA)
    first = len(traces)
    ensemble(KEYS[2:4], DATA)
    assert len(traces) == first


@pytest.mark.parametrize("batch_size", [None, 1])
@pytest.mark.parametrize("of", [np, jnp])
def test_what_a_function_closes_over_is_no_constant_of_the_program(of: Any, batch_size: int | None) -> None:
    held, key = of.linspace(0, 1, 21, dtype=of.float32).reshape(3, 7), jax.random.key(1)

    @jax.jit
    def inner(x: Any) -> Any:
        return jnp.sin(held).sum() * x + jax.random.normal(key)

    run = ll.ensemble(lambda x, y: (inner(x) + y, 2), batch_size=batch_size)
    x = jnp.arange(3.0)
    program = run.compile(x, 1.0).as_text() or ""
    assert "f32[3,7]{1,0} parameter(" in program and "f32[3,7]{1,0} constant(" not in program
    np.testing.assert_allclose(run(x, 1.0)[0], inner(x) + 1, rtol=1e-6)
