"""Rules that learn while a sequence runs: closed forms on finite windows, identities, statistics."""

# pyright: reportArgumentType=false

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lax_learning as ll
from lax_learning import online
from tests import registry
from tests.compare import assert_close, assert_mean, differs, draws_of, normal
from tests.refusal import refusals

# Much is traced here: annotations are checked where the same functions meet their other oracles.
pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

KEY = jax.random.key(0)
BATCH, STEPS, IN, UNITS, OUT, ALPHA = 3, 4, 2, 4, 2, 0.3
RULES: dict[str, Any] = registry.ONLINE


def leaky(dtype: Any = jnp.float64) -> online.Recurrent:
    return online.leaky_rnn((IN, UNITS, OUT), alpha=ALPHA, dtype=dtype)


def problem(net: Any) -> tuple[Any, Any, Any]:
    """Params, all of them random, biases too; inputs and targets."""
    leaves, structure = jax.tree.flatten(jax.eval_shape(net.init, KEY))
    params = structure.unflatten([0.7 * normal(1 + i, *leaf.shape) for i, leaf in enumerate(leaves)])
    return params, normal(8, BATCH, STEPS, IN), normal(9, BATCH, STEPS, OUT)


def by_steps(rule: ll.Rule, params: Any, state: Any, x: Any, y: Any, rate: float = 0.0) -> Any:
    """Losses and gradients at every step; the weights move in between, by `rate` times the gradient."""
    steps = rule.online
    assert steps is not None

    def step(carry: Any, inputs: Any) -> Any:
        memory, params = carry
        key, x, y = inputs
        loss, grads, memory = steps.step(key, params, state, memory, x, y)
        return (memory, jax.tree.map(lambda w, g: w - rate * g, params, grads)), (loss, grads)

    keys = jax.random.split(KEY, x.shape[1])
    start = steps.start(params, x[:, 0]), params
    return jax.lax.scan(step, start, (keys, x.swapaxes(0, 1), y.swapaxes(0, 1)))[1]


def powers_of(decay: float) -> np.ndarray:
    """`decay^(t - s)` for steps s <= t, else 0."""
    lags = np.arange(STEPS)[:, None] - np.arange(STEPS)
    return np.where(lags >= 0, decay ** np.maximum(lags, 0), 0.0)


# --- closed forms in NumPy


def written_out(params: Any, feedback: Any, x: Any, y: Any, rate: float, itself: bool) -> Any:
    """Gradients at every step, by the double sum over steps s <= t; weights move by `rate` in between.

    Trace `p_s` meets every step behind it with the leaks of the steps in between, written as a product.
    Without feedback errors pass through the readout's own weights, as they move.
    """
    params, feedback, x, y = jax.tree.map(np.array, (params, feedback, x, y))
    cell, readout, h = params["cell"], params["readout"], np.zeros((BATCH, UNITS))
    inputs, slopes, leaks, found = [], [], [], []
    for t in range(STEPS):
        inputs.append(np.concatenate([x[:, t], h], axis=1))
        u = inputs[t] @ cell["w"] + cell["b"]
        slopes.append(ALPHA * (1 - np.tanh(u) ** 2))
        own = np.diag(cell["w"][IN:]) if itself else 0
        leaks.append(1 - ALPHA + slopes[t] * own)
        h = (1 - ALPHA) * h + ALPHA * np.tanh(u)
        error = 2 * (h @ readout["w"] + readout["b"] - y[:, t]) / BATCH
        sent = error @ (readout if feedback is None else feedback)["w"].T
        w, b = np.zeros_like(cell["w"]), np.zeros_like(cell["b"])
        for s in range(t + 1):
            signal = sent * slopes[s] * np.prod(leaks[s + 1 : t + 1], axis=0)
            w += inputs[s].T @ signal
            b += signal.sum(axis=0)
        grads = {"cell": {"b": b, "w": w}, "readout": {"b": error.sum(axis=0), "w": h.T @ error}}
        found.append(jax.tree.map(np.copy, grads))
        jax.tree.map(lambda w, g: np.subtract(w, rate * g, out=w), params, grads)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *found)


@pytest.mark.parametrize("name", ["rflo", "eprop_symmetric"])
def test_traces_and_filtered_signals_equal_the_double_sum(x64, name):
    """At every step while weights move; and summed over a window, where signals go backwards."""
    net, itself, window = leaky(), name.startswith("eprop"), STEPS - 1
    params, x, y = problem(net)
    rule = RULES[name](net, ll.squared_error)

    @jax.jit
    def run(params: Any) -> Any:
        state = rule.init(KEY, params, x)
        of_window = rule.value_and_grad(KEY, params, state, x[:, :window], y[:, :window])[1]
        one = state, x[:1], y[:1]
        pulled_back = ll.tapped(net).pull_back(params, x[:1], rule.signals(KEY, params, *one).deltas)
        of_signals = pulled_back, rule.value_and_grad(KEY, params, *one)[1]
        return state, by_steps(rule, params, state, x, y, rate=0.1)[1], of_window, of_signals

    state, moving, of_window, of_signals = run(params)
    assert_close(*of_signals, ulps=64)
    assert_close(moving, written_out(params, state.feedback, x, y, 0.1, itself), ulps=256)
    at_steps = written_out(params, state.feedback, x, y, 0.0, itself)
    assert_close(of_window, jax.tree.map(lambda g: g[:window].sum(axis=0), at_steps), ulps=256)


def test_eligibility_equals_the_double_sum_of_injected_noise(x64):
    net, sigma, decay, base = leaky(), 0.2, 0.7, normal(7, STEPS)
    params, x, y = problem(net)
    unit = {UNITS: normal(5, BATCH, 1, UNITS), OUT: 2 * normal(6, BATCH, 1, OUT)}

    def injected(key: Any, like: Any) -> Any:
        return jax.tree.map(lambda leaf: unit[leaf.shape[-1]], like)

    rule = online.three_factor(net, ll.squared_error, sigma=sigma, decay=decay, rate=0.25, noise=injected)
    state = rule.init(KEY, params, x)._replace(baseline=base)

    @jax.jit
    def run(params: Any) -> Any:
        return by_steps(rule, params, state, x, y), rule.value_and_grad(KEY, params, state, x, y)

    (losses, found), (loss, summed, after) = run(params)
    cell, readout = (jax.tree.map(np.asarray, params[part]) for part in ("cell", "readout"))
    xi = {size: sigma * np.asarray(noise)[:, 0] for size, noise in unit.items()}
    h, inputs, states, each = np.zeros((BATCH, UNITS)), [], [], []
    for t in range(STEPS):
        inputs.append(np.concatenate([x[:, t], h], axis=1))
        h = (1 - ALPHA) * h + ALPHA * np.tanh(inputs[t] @ cell["w"] + cell["b"] + xi[UNITS])
        states.append(h)
        each.append(np.sum((h @ readout["w"] + readout["b"] + xi[OUT] - y[:, t]) ** 2, axis=1))
    means, credit = np.mean(each, axis=1), (np.array(each) - np.array(base)[:, None]) / BATCH
    credited = partial(np.einsum, "ts,tb,sbi,bj->tij", powers_of(decay), credit)
    expected = {
        part: {"b": credited(np.ones((STEPS, BATCH, 1)), score)[:, 0], "w": credited(read, score)}
        for part, read, score in (
            ("cell", inputs, xi[UNITS] / sigma**2), ("readout", states, xi[OUT] / sigma**2)
        )
    }  # fmt: skip
    np.testing.assert_allclose(losses, means, rtol=1e-12)
    assert_close(found, expected, ulps=256)
    # and the running mean over batches
    np.testing.assert_allclose(after.baseline, 0.75 * base + 0.25 * means, rtol=1e-12)
    np.testing.assert_allclose(loss, sum(means), rtol=1e-12)
    assert_close(summed, jax.tree.map(lambda g: g.sum(axis=0), found), ulps=64)


# --- identities


def on_units(cell: Any, leaves: int = 1) -> online.Recurrent:
    """A network of one's own cell, whose readout sees the first leaf of the state."""
    shapes = {
        "cell": {"w": (IN, UNITS), "u": (UNITS, UNITS), "leak": (UNITS,)},
        "readout": {"a": (UNITS, 3), "b": (3, OUT)},
    }
    return online.Recurrent(
        cell=cell,
        readout=lambda params, h: jnp.tanh(jax.tree.leaves(h)[0] @ params["a"]) @ params["b"],
        start=lambda size: jnp.zeros((size, UNITS)) if leaves == 1 else (jnp.zeros((size, UNITS)),) * leaves,
        init=lambda key: jax.tree.map(jnp.zeros, shapes, is_leaf=lambda node: isinstance(node, tuple)),
    )


def adaptive(params: Any, h: Any, x: Any) -> Any:
    """Units with a voltage and a threshold that follows it."""
    voltage, threshold = h
    rate = jax.nn.sigmoid(voltage - threshold)
    voltage = 0.8 * voltage - threshold * rate + x @ params["w"] + rate @ params["u"]
    return voltage, 0.9 * threshold + params["leak"] * rate


def normed(params: Any, h: Any, x: Any) -> Any:
    """A sum over units besides the products."""
    z = x @ params["w"] + h @ params["u"] + params["leak"]
    return jnp.tanh(z - z.mean(axis=-1, keepdims=True))


def layered(params: Any, h: Any, x: Any) -> Any:
    """A weight that reads what depends on another."""
    return jnp.tanh(jnp.tanh(x @ params["w"]) @ params["u"] + h + params["leak"])


def test_on_any_cell(x64):
    """RTRL is backprop through time; where units act on each other by products, forwards is backwards.

    What passes between units is all that is missing: exact where units act on themselves alone (e-prop), or
    not even that (RFLO); biased elsewhere.
    """
    net = on_units(adaptive, leaves=2)
    params, x, y = problem(net)

    def mean_loss(net: Any, params: Any) -> Any:
        """Through a loop in Python, without the model's own scan."""
        h, total = net.start(BATCH), 0.0
        for t in range(STEPS):
            h = net.cell(params["cell"], h, x[:, t])
            total += ll.squared_error(net.readout(params["readout"], h), y[:, t]).mean()
        return total

    @jax.jit
    def run(params: Any) -> Any:
        equal, backward = [], {}
        for of in (net, on_units(layered)):
            found = online.rtrl(of, ll.squared_error).value_and_grad(KEY, params, (), x, y)[:2]
            equal.append((found, jax.value_and_grad(partial(mean_loss, of))(params)))
        for name in ("rflo", "eprop_symmetric", "rflo_symmetric"):
            rule = RULES[name](net, ll.squared_error)
            state = rule.init(KEY, params, x)
            backward[name] = rule.value_and_grad(KEY, params, state, x, y)[:2]
            if name != "rflo_symmetric":
                losses, grads = by_steps(rule, params, state, x, y)
                forward = losses.sum(), jax.tree.map(lambda g: g.sum(axis=0), grads)
                equal.append((forward, backward[name]))
        return equal, {name: grads for name, (_, grads) in backward.items()}

    # No unit acts on any, every unit acts on itself, or on all.
    eprop, rflo = "eprop_symmetric", "rflo_symmetric"
    cases = (np.zeros(UNITS), (eprop, rflo)), (np.eye(UNITS), (eprop,)), (np.ones(UNITS), ())
    for mask, without_bias in cases:
        equal, found = run(params | {"cell": params["cell"] | {"u": mask * params["cell"]["u"]}})
        exact = equal[0][1][1]
        for pair in equal:
            assert_close(*pair, ulps=256)
        for name, grads in found.items():
            if name in without_bias:
                # what no weight passes still has the error of sums in another order
                assert_close(grads, exact, ulps=256)
            else:
                rounded = partial(jax.tree.map, partial(np.round, decimals=6))
                assert differs(rounded(grads), rounded(exact))


# --- statistics


def test_three_factors_are_unbiased_as_far_as_the_trace_reaches(x64):
    net, number, above, decay = leaky(), 4000, 3.0, 0.5
    params, x, y = problem(net)
    x, y = x[:1], y[:1]
    copies = jax.tree.map(lambda leaf: jnp.stack([leaf] * STEPS), params)  # weights of every step's own

    def losses(copies: Any) -> Any:
        h, found = net.start(1), []
        for t in range(STEPS):
            h, output = net.step(jax.tree.map(lambda leaf, t=t: leaf[t], copies), h, x[:, t])
            found.append(ll.squared_error(output, y[:, t])[0])
        return jnp.stack(found)

    clean, by_pairs = jax.jit(lambda copies: (losses(copies), jax.jacrev(losses)(copies)))(copies)
    # `sum_{s <= t} decay^(t - s) dl_t/dw_s`
    expected = jax.tree.map(partial(np.einsum, "ts,ts...->...", powers_of(decay)), by_pairs)

    def one(key: Any, shift: Any) -> Any:
        rule = online.three_factor(net, ll.squared_error, sigma=1e-3, decay=decay)
        state = rule.init(key, params, x)._replace(baseline=clean + shift)
        return rule.value_and_grad(key, params, state, x, y)[1]

    plain, shifted = draws_of(lambda key: (one(key, 0.0), one(key, 1e-3 * above)), KEY, number)
    # The loss moves by sigma times its slope: a baseline that is off by 3 of these changes variances alone.
    # Its bias is sigma^2 of third derivatives, 1e-6 of the scale.
    rounding = 1e-5 * max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    assert_mean(plain, expected, atol=rounding)
    change = jax.tree.map(jnp.subtract, shifted, plain)
    assert_mean(change, jax.tree.map(jnp.zeros_like, expected), atol=rounding)
    spread = [max(float(g.std(axis=0).max()) for g in jax.tree.leaves(t)) for t in (plain, shifted)]
    assert spread[1] > spread[0]


# --- the contract, whose other clauses are those of all rules


def test_in_float32():
    """Traces of a weight have one number an example; steps behind the baseline's have no credit.

    Other rules take the model as any: feedback alignment through the weights is backprop.
    """
    net = leaky(jnp.float32)
    params, x, y = jax.tree.map(jnp.float32, problem(net))
    rules = {name: make(net, ll.squared_error) for name, make in RULES.items()}

    def traces(name: str) -> Any:
        return jax.tree.map(jnp.shape, jax.eval_shape(rules[name].online.start, params, x[:, 0])[1])

    assert traces("eprop")["w"] == (BATCH, 1, IN + UNITS, UNITS)
    assert traces("three_factor")["cell"]["w"] == (BATCH, IN + UNITS, UNITS)
    assert traces("rtrl")["w"] == (BATCH, UNITS, IN + UNITS, UNITS)

    @jax.jit
    def run(params: Any) -> Any:
        short = rules["three_factor"].init(KEY, params, x[:, :-1])
        aligned, exact = ll.feedback_alignment(net, ll.squared_error), ll.backprop(net, ll.squared_error)
        state = aligned.init(KEY, params, x)._replace(feedback=params)
        pair = aligned.value_and_grad(KEY, params, state, x, y), exact.value_and_grad(KEY, params, (), x, y)
        return by_steps(rules["three_factor"], params, short, x, y), [found[:2] for found in pair]

    (losses, grads), pair = run(params)
    assert_close(*pair, ulps=64)
    assert np.isfinite(losses).all()
    for leaf in jax.tree.leaves(grads):
        assert np.isfinite(leaf[:-1]).all() and np.isnan(leaf[-1]).all()

    def steps_of_all(key_data: Any, params: Any) -> Any:
        key = jax.random.wrap_key_data(key_data)
        made = [rules[name] for name in ("eprop", "three_factor")]
        return [by_steps(rule, params, rule.init(key, params, x), x, y) for rule in made]

    lowered = partial(jax.export.export, platforms=("cpu", "cuda", "tpu"))(jax.jit(steps_of_all))
    assert len(lowered(jax.random.key_data(KEY), params).platforms) == 3


# --- learning


@pytest.mark.slow
@pytest.mark.usefixtures("with_default_passes")
@pytest.mark.parametrize(
    ("name", "units", "updates"),
    [("rflo", 32, 600), ("eprop", 32, 600), ("rtrl", 12, 300), ("three_factor", 32, 400)],
)
def test_rule_learns(name, units, updates):
    is_match, make = name != "three_factor", getattr(online, name)
    draw, rate = (ll.data.delayed_match, 0.01) if is_match else (ll.data.cue_accumulation, 0.003)
    make = make if is_match else partial(make, sigma=0.3, decay=0.9)
    train, test = (draw(key, number) for key, number in zip(jax.random.split(KEY), (2000, 500), strict=True))
    data = ll.data.Splits(*(ll.data.Dataset(part.x, part.y) for part in (train, test, test)))
    net = online.leaky_rnn((train.x.shape[-1], units, 2), alpha=0.2)

    def evaluate(key: Any, params: Any, state: Any, data: Any) -> Any:
        return ll.accuracy(net.apply(params, data.test.x)[:, -1], data.test.y[:, -1])

    run = ll.make_train(
        make(net, ll.softmax_cross_entropy), optax.adam(rate), init=net.init, num_updates=updates,
        batch_size=50, evaluate=evaluate,
    )  # fmt: skip
    found = jax.jit(jax.vmap(lambda key: run(key, data).evaluations[-1]))(jax.random.split(KEY, 4))
    # 500 sequences: chance is 0.5 with a standard error of 0.0224. A match is an exclusive or: a sum of what
    # is known of either symbol gets three of the four pairs right, 0.75 with a standard error of 0.0194.
    enough = 0.75 + 5 * 0.0194 if is_match else 0.5 + 5 * 0.0224
    assert (found > enough).sum() >= 3, found  # a seed may get stuck


# --- bad input

SMALL = online.leaky_rnn((2, 3, 2), alpha=0.5)
P, X, Y, LOSS = SMALL.init(KEY), jnp.ones((4, 5, 2)), jnp.ones((4, 5, 2)), ll.squared_error
noisy = partial(online.three_factor, sigma=0.1)
ALL = [online.rflo, noisy]  # e-prop is made as RFLO is, and both step as RTRL does


def run(make: Any, net: Any = SMALL, params: Any = P, x: Any = X, y: Any = Y, state: Any = None) -> Any:
    rule = make(net, LOSS)

    def call() -> Any:
        return rule.value_and_grad(KEY, params, rule.init(KEY, params, x) if state is None else state, x, y)

    return jax.eval_shape(call)


def each(**given: Any) -> list[Any]:
    return [partial(run, make, **given) for make in ALL]


def replaced(**parts: Any) -> online.Recurrent:
    return online.Recurrent(**{"cell": SMALL.cell, "readout": SMALL.readout, "start": SMALL.start} | parts)


leaking = replaced(cell=lambda p, h, x: p["leak"] * SMALL.cell(p["of"], h, x))
coupled = replaced(cell=lambda p, h, x: SMALL.cell(p, h, x - x.mean(axis=0)))
of_another = replaced(start=lambda size: jnp.zeros((size, 7)))
test_bad_values = refusals(
    values={
        "^widths: expected the sizes of input, layer and output": lambda: online.leaky_rnn((2, 3), alpha=0.1),
        "^modulator: expected shape": partial(run, partial(noisy, modulator=lambda loss, base: base)),
        r"^x: expected arrays \[batch, steps": each(x=jnp.ones(4)),
        "^y: expected 5 steps as in x, got 4": each(y=Y[:, 1:]),
        "^params: expected a dict with the entries": each(params=P["cell"]),
        "^apply: expected a model in which each output depends": [
            partial(run, make, coupled) for make in (*ALL, online.rtrl)
        ],
        r"^state.baseline: expected shape \[5\], got \[4\]": lambda: run(
            noisy, state=noisy(SMALL, LOSS).init(KEY, P, X[:, 1:])
        ),
        "^cell: expected units that interact only through products": lambda: run(
            online.rflo, on_units(normed), *problem(on_units(normed))
        ),
        "^cell: expected products of weights with x or h only": lambda: run(
            online.rflo, on_units(layered), *problem(on_units(layered))
        ),
        "^apply: expected params and x that fit the model, got": each(net=of_another),
        r"^params\['cell'\]\['leak'\]: expected 3 units as its last": lambda: run(
            online.rflo, leaking, P | {"cell": {"leak": jnp.ones(()), "of": P["cell"]}}
        ),
    },
    types={
        "^net: expected a Recurrent": each(net=ll.rnn((2, 3, 2))),
        "^state: expected the state of the rule's init": [partial(run, m, state=()) for m in (ALL[0], noisy)],
    },
)
