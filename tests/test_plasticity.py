"""k-caps, table plasticity and its meta-learning against closed forms, slow references and themselves."""

import importlib
import math
from collections.abc import Iterator
from contextlib import nullcontext
from fractions import Fraction
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

import lax_learning as ll
from experiments.plasticity_transfer.models import double_softmax
from lax_learning import estimators, plasticity
from lax_learning.data import half_space, relu_net
from lax_learning.plasticity import MetaParams, Scheme, Tables, k_cap, passes, plastic_pass, top_k_mask
from tests.compare import assert_close, assert_same, differs, slow_but

# Much is traced here: annotations are checked where the same functions meet their other oracles.
pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

KEY = jax.random.key(0)
RULES = {
    "pre_post": plasticity.pre_post,
    "pre_post_count": plasticity.pre_post_count,
    "pre_post_percent": plasticity.pre_post_percent,
    "post_count": plasticity.post_count,
}
K_CAP: Any = importlib.import_module("lax_learning.plasticity._k_cap")
BITS_A_ROUND = K_CAP._BITS_A_ROUND


@pytest.fixture(autouse=True, scope="module")
def quick_caps() -> Iterator[None]:
    """The search within a cap in fewer and larger steps: the same result, compiled several times faster."""
    K_CAP._BITS_A_ROUND = 8
    yield
    K_CAP._BITS_A_ROUND = BITS_A_ROUND


@pytest.fixture
def default_caps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(K_CAP, "_BITS_A_ROUND", BITS_A_ROUND)


def uniform(seed: int, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """In -1..1; normal draws take longer to compile. Drawn in NumPy: no program at all."""
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, shape), dtype)


# --- k-cap: a stable sort


def largest(x: np.ndarray, k: int, axis: int = -1) -> np.ndarray:
    """By a stable sort: of equal values the first come first, and -0 equals 0."""
    order = np.argsort(-x.astype(np.float64), axis=axis, kind="stable")
    mask = np.zeros(x.shape, bool)
    np.put_along_axis(mask, np.take(order, np.arange(k), axis), True, axis)
    return mask


NUMBERS = st.sampled_from([-math.inf, -2.0, -0.0, 0.0, 0.5, 1.0, math.inf]) | st.floats(
    width=32, allow_nan=False, allow_subnormal=False
)  # few, so that there are ties


@pytest.mark.usefixtures("default_caps")
@pytest.mark.parametrize("dtype", slow_but(["float32", "bfloat16"], ["float32", "float64", "bfloat16"]))
@settings(deadline=None, derandomize=True, database=None, max_examples=25)
@given(values=st.lists(NUMBERS, min_size=21, max_size=21), k=st.integers(1, 7))
def test_k_cap_is_a_stable_sort(dtype: str, values: list[float], k: int) -> None:
    with jax.enable_x64(dtype == "float64"):
        x = jnp.asarray(np.asarray(values).reshape(3, 7), dtype)
        mask, kept = top_k_mask(x, k), k_cap(x, k)
    expected = largest(np.asarray(x), k)
    np.testing.assert_array_equal(mask, expected)
    assert kept.dtype == dtype
    np.testing.assert_array_equal(np.asarray(kept), np.where(expected, np.asarray(x), 0))


def test_axes_nan_and_gradients_of_a_cap() -> None:
    x = np.round(2 * np.asarray(uniform(1, (4, 5, 3)))) / 2  # five values: ties
    for axis in (1, -3):
        for k in (1, x.shape[axis]):
            expected = largest(x, k, axis)
            np.testing.assert_array_equal(top_k_mask(x, k, axis=axis), expected)
            np.testing.assert_array_equal(k_cap(x, k, axis=axis), np.where(expected, x, 0))
    for nan in (np.nan, -np.nan):  # larger than all numbers; inf - inf has a sign bit
        assert top_k_mask(jnp.array([1.0, nan, jnp.inf]), 1).tolist() == [False, True, False]
    # The choice counts as constant.
    slopes = jax.jit(jax.grad(lambda y: jnp.sum(uniform(3, (4, 5, 3)) * k_cap(y, 2))))(x)
    np.testing.assert_array_equal(slopes, np.where(largest(x, 2), uniform(3, (4, 5, 3)), 0))


# --- table plasticity: loops over synapses, one sample


def fire(z: np.ndarray, cap: int, fired: str) -> tuple[np.ndarray, np.ndarray]:
    values = np.maximum(z, 0)
    chosen = largest(values, cap)
    return np.where(chosen, values, 0), (chosen & (values > 0) if fired == "value" else chosen).astype(int)


def respond_feed_forward(layers: Any, x: np.ndarray, caps: Any, fired: str) -> Any:
    """Codes of the units before and behind every plastic layer but the last, and logits."""
    values, codes = x, []
    for (w, mask), cap in zip(layers[:-1], caps, strict=True):
        values, code = fire(values @ (w * mask), cap, fired)
        codes.append(code)
    return codes, codes[1:], values @ (layers[-1][0] * layers[-1][1])


def respond_recurrent(layers: Any, x: np.ndarray, cap: int, rounds: int, fired: str) -> Any:
    w_in, graph, w_out = (w * mask for w, mask in layers)
    drive = x @ w_in
    h, who = fire(drive, cap, fired)
    digits = [who]
    for _ in range(rounds):
        h, who = fire((h + drive) @ graph, cap, fired)
        digits.append(who)
    history = np.array([int("".join(map(str, unit)), 2) for unit in np.stack(digits, axis=1)])
    return [history, history], [history], h @ w_out


def entry(rule: str, table: np.ndarray, pre: int, post: int, count: int, num_inputs: int) -> float:
    if rule == "pre_post":
        return table[pre, post]
    if rule == "pre_post_count":
        return table[pre, post, count]
    if rule == "pre_post_percent":
        return table[pre, post, math.floor(20 * Fraction(count, num_inputs))]
    return table[post, count]


def after_one_sample(
    rule: str, scheme: Scheme, layers: Any, tables: Any, response: Any, label: int, code: int
):
    """The plastic weights after one sample; `code` is that of the label: 1 feed-forward, 0 recurrent."""
    pres, posts, logits = response
    prediction = int(np.argmax(logits))
    of_labels = np.array([code if unit == label else 1 - code for unit in range(len(logits))])
    after = [w.copy() for w, _ in layers[1:]]
    if scheme.samples == "misclassified" and prediction == label:
        return after
    for n, ((_, mask), table) in enumerate(zip(layers[1:], tables, strict=True)):
        is_output = n == len(after) - 1
        pre, post = pres[n], of_labels if is_output else posts[n]
        for j in range(mask.shape[1]):
            if is_output and scheme.rows == "two" and j not in (label, prediction):
                continue
            inputs = np.flatnonzero(mask[:, j])
            count = sum(int(pre[i] > 0) for i in inputs)
            for i in inputs:
                change = scheme.step_size * entry(rule, table, pre[i], post[j], count, len(inputs))
                w = after[n][i, j]
                after[n][i, j] = w + change if scheme.update == "additive" else w * (1 + change)
    return after


def random_state(network: plasticity.KCapNetwork, seed: int = 0) -> Any:
    """In the middle of an episode: all weights random. Masks drawn in NumPy with p = 0.6, 0.7, ..."""
    random, layers = np.random.default_rng(seed), []
    for n, shape in enumerate(network.shapes):
        mask = random.random(shape) < (0.6 + 0.1 * n if n < len(network.shapes) - 1 else 1)
        layers.append({"w": uniform(seed + 1 + n, shape, network.dtype), "mask": jnp.asarray(mask)})
    return tuple(layers)


def random_tables(network: plasticity.KCapNetwork, seed: int = 9, num_hidden: int | None = None) -> Tables:
    *hidden, output = network.table_shapes
    drawn = [uniform(seed + n, shape, network.dtype) for n, shape in enumerate(hidden[:num_hidden])]
    return Tables(tuple(drawn), uniform(seed + 7, output, network.dtype))


def in_double(state: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(np.asarray(layer["w"], np.float64), np.asarray(layer["mask"])) for layer in state]


def in_tables(network: plasticity.KCapNetwork, tables: Tables) -> list[np.ndarray]:
    return [np.asarray(table, np.float64) for table in network.layer_tables(tables)]


SCHEMES = list(product(("additive", "multiplicative"), ("all", "two"), ("every", "misclassified")))
REFERENCES = [
    *(("pre_post", *scheme, "value") for scheme in SCHEMES),
    *((rule, *SCHEMES[7 * (i % 2)], "value") for i, rule in enumerate(RULES) if i),
    ("pre_post", *SCHEMES[0], "index"),
    ("recurrent", *SCHEMES[0], "value"),
    ("recurrent", *SCHEMES[7], "index"),
]


@pytest.mark.parametrize(("rule", "update", "rows", "samples", "fired"), slow_but(REFERENCES[7:], REFERENCES))
def test_a_sample_is_a_loop_over_synapses(
    rule: str, update: Any, rows: Any, samples: Any, fired: Any
) -> None:
    # Widths, caps, edge probabilities and tables differ between layers. With "index" caps are larger than the
    # number of values above 0.
    scheme = Scheme(step_size=0.5, update=update, rows=rows, samples=samples)
    if rule == "recurrent":
        network = plasticity.k_cap_recurrent((4, 7, 3), 4, rounds=2, scheme=scheme, fired=fired)
        respond, reads, code = partial(respond_recurrent, cap=4, rounds=2, fired=fired), "pre_post", 0
        state = random_state(network)
    else:
        caps = (4, 3, 2) if fired == "value" else (7, 5, 4)
        widths = (4, 9, 7, 6, 3)
        network = plasticity.k_cap_mlp(widths, caps, rule=RULES[rule], scheme=scheme, fired=fired)
        respond, reads, code = partial(respond_feed_forward, caps=caps, fired=fired), rule, 1
        state = random_state(network)
        alone = jnp.ones((9, 7), bool).at[:, 2].set(state[1]["mask"][:, 2]).at[:, 4].set(False)
        state = (state[0], {**state[1], "mask": state[1]["mask"] & alone}, *state[2:])  # 4 has no inputs
    tables = random_tables(network)
    update_one = jax.jit(plasticity.table_plasticity(network).update)
    seen = set()
    for x, shift in zip(np.asarray(uniform(30, (3, 4))), (0, 1, 2), strict=True):
        layers = [(np.asarray(layer["w"], np.float64), np.asarray(layer["mask"])) for layer in state]
        in_double = [np.asarray(table, np.float64) for table in network.layer_tables(tables)]
        response = respond(layers, x.astype(np.float64))
        label = (int(np.argmax(response[2])) + shift) % 3  # right, wrong, wrong
        after, diagnostics = update_one(tables, state, x, label)
        expected = after_one_sample(reads, scheme, layers, in_double, response, label, code)
        # A change and a sum or product, of two roundings each.
        assert_close([layer["w"] for layer in after[1:]], [jnp.float32(w) for w in expected], ulps=4)
        assert_same(after[0], state[0])
        assert int(diagnostics.prediction) == int(np.argmax(response[2]))
        assert bool(diagnostics.updated) == differs(after, state) == (samples == "every" or shift > 0)
        for got, codes in zip(diagnostics.response.pre, response[0], strict=True):
            np.testing.assert_array_equal(got, codes)
        seen |= {tuple(codes) for codes in response[0]}
    assert len(seen) > 2, "the samples should make different units fire"


def test_a_unit_without_inputs_has_a_share_of_0() -> None:
    network = plasticity.k_cap_mlp((2, 4, 3, 2), (3, 2), rule=plasticity.pre_post_percent)
    table = random_tables(network).hidden[0]
    mask = jnp.array([[0, 1, 1], [0, 0, 1], [0, 1, 0], [0, 0, 1]], bool)  # shares 0 / 0, 2 / 2 and 1 / 3
    rows = plasticity.pre_post_percent.rows(table, jnp.array([1, 0, 1, 0]), jnp.array([1, 0, 1]), mask)
    assert_same(rows, jnp.stack([table[:, 1, 0], table[:, 0, 20], table[:, 1, 6]], axis=1))


# --- one small network of each kind, for all that follows

XS = uniform(40, (6, 4))
YS = jnp.array([0, 1, 1, 0, 0, 1])


def feed_forward(dtype: Any = jnp.float32, **scheme: Any) -> plasticity.KCapNetwork:
    return plasticity.k_cap_mlp(
        (4, 6, 5, 2), (3, 2), scheme=Scheme(**{"step_size": 0.2, **scheme}), dtype=dtype
    )


def recurrent(dtype: Any = jnp.float32, **scheme: Any) -> plasticity.KCapNetwork:
    scheme = {"step_size": 0.2, **scheme}
    return plasticity.k_cap_recurrent((4, 6, 2), 3, rounds=1, scheme=Scheme(**scheme), dtype=dtype)


KINDS = {"feed-forward": feed_forward, "recurrent": recurrent}
# Two programs for one pass: six changes of a weight, each of a product and a sum of two roundings.
PASS_ULPS = 4 * len(YS)


def member(tree: Any, i: Any) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf)[i], tree)


@pytest.mark.parametrize("kind", slow_but(["feed-forward"], KINDS))
def test_passes_online_and_side_by_side(kind: str) -> None:
    """With other tables and another step size, which is traced."""
    network, traces = KINDS[kind](), []
    tables, close = random_tables(network), partial(assert_close, ulps=PASS_ULPS)
    state = random_state(network)

    def run(tables: Tables, step_size: Any) -> Any:
        traces.append(0)
        return plastic_pass(KINDS[kind](step_size=step_size), tables, state, XS, YS)

    members = jax.tree.map(lambda a: jnp.stack([a, -a / 2]), tables), jnp.array([0.2, 0.4])
    compiled = jax.jit(run)
    whole, other = (compiled(*member(members, i)) for i in (0, 1))
    assert len(traces) == 1, "a second call compiled again"
    assert differs(other[0], whole[0])
    together = jax.jit(jax.vmap(run))(*members)
    close(together, jax.tree.map(lambda a, b: np.stack([a, b]), whole, other))

    update, online, predictions = jax.jit(plasticity.table_plasticity(network).update), state, []
    for x, y in zip(XS, YS, strict=True):
        online, diagnostics = update(tables, online, x, int(y))
        predictions.append(int(diagnostics.prediction))
    close(online, whole[0])
    assert predictions == whole[1].tolist()
    assert len(set(predictions)) == 2


def test_many_codes_are_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same changes as by one select a code."""
    network = recurrent()
    run = partial(plastic_pass, network, random_tables(network), random_state(network), XS)
    selected = jax.jit(lambda ys: run(ys)[0])(YS)
    monkeypatch.setattr(passes, "MAX_SELECTS", 1)
    assert_close(jax.jit(lambda ys: run(ys)[0])(YS), selected, ulps=PASS_ULPS)


def test_weights_that_a_change_zeroes_have_finite_gradients() -> None:
    # 1 + 0.01 beta = 0: every weight that is updated is 0 afterwards, and stays there.
    network = plasticity.k_cap_mlp((3, 4, 2), 2, scheme=Scheme(update="multiplicative"))
    state, tables = network.init(KEY), Tables((), jnp.full((2, 2), -100.0))

    def total(tables: Tables) -> Any:
        learned = plasticity.learn_episode(network, tables, state, jnp.ones((2, 3)), jnp.array([0, 1]))
        return jnp.sum(learned[-1]["w"])

    value, grads = jax.jit(jax.value_and_grad(total))(tables)
    assert value == 0 and jnp.all(jnp.isfinite(grads.output))


# --- initialisation and transfer


def test_init_and_reset() -> None:
    for update, start in (("additive", 0), ("multiplicative", 1)):
        option: dict[str, Any] = {"update": update}
        network = plasticity.k_cap_mlp((4, 6, 5, 2), 2, edge_probability=(1.0, 0.0), scheme=Scheme(**option))
        state = network.init(KEY)
        assert [bool(layer["mask"].all()) for layer in state] == [True, False, True]
        assert not state[1]["mask"].any()
        reset = network.reset(random_state(network))
        for layer in (*state[1:], *reset[1:]):
            assert (layer["w"] == start).all()
        assert_same(reset[0], random_state(network)[0])
    tables = network.init_tables(KEY)
    assert_same(tables, Tables((jnp.full((2, 2), 0.4),), jnp.zeros((2, 2))))


def test_edge_probability() -> None:
    loops = plasticity.k_cap_recurrent((4, 7, 3), 4, edge_probability=1)
    mask = jax.jit(loops.init)(KEY)[1]["mask"]
    np.testing.assert_array_equal(mask, ~np.eye(7, dtype=bool))  # no self-loops
    network = plasticity.k_cap_mlp((40, 50, 60, 2), 2, edge_probability=(0.2, 0.7))
    for layer, p in zip(jax.jit(network.init)(KEY)[:2], (0.2, 0.7), strict=True):
        error = 5 * math.sqrt(p * (1 - p) / layer["mask"].size)
        assert abs(float(layer["mask"].mean()) - p) < error


def runs(network: plasticity.KCapNetwork, tables: Tables) -> bool:
    """Returns whether a pass with these tables can be traced."""
    num_inputs, num_labels = network.shapes[0][0], network.shapes[-1][1]
    state, xs = jax.eval_shape(network.init, KEY), jnp.ones((3, num_inputs))
    after = jax.eval_shape(partial(plastic_pass, network), tables, state, xs, jnp.arange(3) % num_labels)[0]
    return after == state


@pytest.mark.parametrize("rule", slow_but(["post_count"], RULES))
def test_tables_go_into_networks_of_other_width_and_depth(rule: str) -> None:
    """One for all layers into any, but for counts with the same cap; one a layer into the same depth."""
    make = partial(plasticity.k_cap_mlp, rule=RULES[rule])
    tables = random_tables(make((4, 8, 6, 2), 3), num_hidden=1)
    for widths in ((4, 8, 5, 7, 9, 2), (11, 8, 6, 10), (4, 8, 2)):
        transferred = plasticity.transfer(tables, make(widths, 3))
        assert_same(transferred, tables if len(widths) > 3 else Tables((), tables.output))
        assert runs(make(widths, 3), transferred)
    wrong = r"^tables\.hidden for layer 1: expected shape .*11\], got .*4\]"
    with pytest.raises(ValueError, match=wrong) if rule.endswith("count") else nullcontext():
        assert_same(plasticity.transfer(tables, make((4, 20, 20, 2), 10)), tables)
    each = random_tables(make((4, 8, 6, 5, 2), 3))
    assert_same(plasticity.transfer(each, make((7, 9, 9, 9, 3), 3)), each)
    with pytest.raises(ValueError, match=r"^tables\.hidden: expected one .* each of 3 .*, got 2"):
        plasticity.transfer(each, make((4, 8, 6, 5, 7, 2), 3))


# --- the gradient with respect to tables and first-layer weights

CONFIGURATIONS = {
    "feed-forward-additive": (feed_forward, "additive", False),
    "feed-forward-multiplicative": (feed_forward, "multiplicative", True),
    "recurrent-additive": (recurrent, "additive", True),
    "recurrent-multiplicative": (recurrent, "multiplicative", False),
}


def configuration(name: str) -> Any:
    """A small meta-learning problem in float64: network, state, options of the rule, params and batch."""
    make, update, double = CONFIGURATIONS[name]
    network = make(jnp.float64, update=update, step_size=0.2 if update == "additive" else 2.0)
    state = random_state(network)
    params = MetaParams(random_tables(network, num_hidden=1), state[0]["w"])
    x, y = XS.astype(jnp.float64), jax.nn.one_hot(YS, 2, dtype=jnp.float64)
    return network, state, {"loss": double_softmax if double else ll.softmax_cross_entropy}, params, (x, y)


def straight_loss(network: Any, state: Any, loss: Any, params: MetaParams, x: Any, y: Any) -> Any:
    """The loss by the definition, through the scan itself, and the codes of all units on the way."""
    start = network.reset(({**state[0], "w": params.w}, *state[1:]))
    after, _, diagnostics = plastic_pass(network, params.tables, start, x, jnp.argmax(y, axis=-1))
    response = network.respond(after, network.drive(after, x))
    return jnp.mean(loss(response.logits, y)), [(r.pre, r.post) for r in (diagnostics.response, response)]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", slow_but(list(CONFIGURATIONS)[1:3], CONFIGURATIONS))
def test_meta_gradient(name: str) -> None:
    """By autodiff through the scan itself, and by differences; in reverse and in forward mode."""
    network, state, options, params, batch = configuration(name)
    if network.scheme.update == "multiplicative":  # factors of both signs
        assert any((1 + network.scheme.step_size * t < 0).any() for t in jax.tree.leaves(params.tables))
    flat, unravel = ravel_pytree(params)
    direction = uniform(50, flat.shape, jnp.float64)
    step = float(jnp.finfo(jnp.float64).eps) ** (1 / 3)

    def along(loss_fn: Any) -> Any:
        return estimators.forward_gradient(loss_fn, noise=lambda key, like: unravel(direction))

    modes = {"reverse": estimators.backprop, "forward": along}
    modes.pop({"feed-forward-multiplicative": "forward", "recurrent-additive": "reverse"}.get(name, ""), None)

    @jax.jit
    def run(params: MetaParams, *batch: Any) -> Any:
        straight = partial(straight_loss, network, state, options["loss"])
        # At params, and one step to either side of them.
        points = flat + step * jnp.array([[0.0], [1.0], [-1.0]]) * direction
        losses, codes = jax.vmap(lambda point: straight(unravel(point), *batch))(points)
        exact = jax.grad(lambda params: straight(params, *batch)[0])(params)
        rules = {m: plasticity.meta_rule(network, state, estimator=e, **options) for m, e in modes.items()}
        found = {mode: rule.value_and_grad(KEY, params, (), *batch)[:2] for mode, rule in rules.items()}
        return losses, codes, exact, found

    losses, codes, exact, found = run(params, *batch)
    for code in jax.tree.leaves(codes):
        assert (code == code[:1]).all(), "a step of the differences flips a cap"
    # Losses are sums over the layers, samples and changes; a hundred roundings are more than they need.
    roundings = 100 * float(jnp.finfo(jnp.float64).eps)
    slopes = np.asarray(ravel_pytree(exact)[0])
    slope, scale = float(slopes @ direction), max(1.0, float(np.max(np.abs(slopes))))
    for mode, (loss, grads) in found.items():
        np.testing.assert_allclose(loss, losses[0], rtol=roundings, atol=0)
        expected = slopes if mode == "reverse" else slope * direction
        tolerance = roundings * scale * max(1.0, abs(slope))
        np.testing.assert_allclose(ravel_pytree(grads)[0], expected, rtol=0, atol=tolerance)
    # Central differences err by the rounding of the loss over the step, and by third derivatives (up to
    # a hundred times the loss and the slopes, in every direction) times its square.
    bias = roundings * float(losses[0]) / step + 100 * step**2 * scale * float(direction @ direction)
    np.testing.assert_allclose(slope, (losses[1] - losses[2]) / (2 * step), rtol=0, atol=bias)
    for part in (exact.tables.hidden, exact.tables.output, exact.w):
        assert max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(part)) > 1e3 * bias
    if network.scheme.update == "additive":
        # With two labels only the difference of the logits counts.
        np.testing.assert_allclose(exact.tables.output.sum(axis=-1), 0, atol=roundings * scale)


# --- meta-learning as published


@pytest.mark.slow
@pytest.mark.usefixtures("default_caps")  # the fastest of a long run
def test_learned_tables_have_the_published_signs() -> None:
    num_updates, rate = 200, 0.01
    network = plasticity.k_cap_mlp((10, 32, 32, 2), 16)
    optimizer = optax.chain(optax.add_decayed_weights(0.01), optax.adam(rate))

    def run(key: Any) -> Any:
        data_key, state_key, key = jax.random.split(key, 3)
        train = plasticity.meta_learn(
            network,
            network.init(state_key),
            optimizer,
            num_updates=num_updates,
            loss=double_softmax,
            evaluate=lambda key, params, state, data: params.tables,
            every=10,
        )
        history = train(key, half_space(data_key, 10))
        return history.losses, history.evaluations

    losses, tables = jax.jit(jax.vmap(run))(jax.random.split(KEY, 3))
    assert (losses >= math.log(1 + math.exp(-1))).all()
    assert (losses[:, -10:].mean(axis=1) < 0.5).all()  # from log 2 = 0.69
    hidden, output = tables.hidden[0][:, -1], tables.output[:, -1]
    for i in (0, 1):
        assert (hidden[:, i, i] > hidden[:, i, 1 - i]).all() and (hidden[:, i, i] > hidden[:, 1 - i, i]).all()
    assert (jnp.sign(output) == jnp.array([[1, -1], [-1, 1]])).all()
    assert (jnp.abs(output) > 0.2).all()
    # The two labels' gradients are opposite up to roundings, and so are Adam's steps of at most `rate`;
    # the gradient is a sum of 100 samples with 100 changes each, of which errors grow as the root.
    roundings = 100 * float(jnp.finfo(jnp.float32).eps)
    np.testing.assert_allclose(tables.output.sum(axis=-1), 0, atol=num_updates * rate * roundings)


# --- data


@pytest.mark.parametrize(
    "make", [half_space, partial(relu_net, num_units=30)], ids=["half_space", "relu_net"]
)
def test_data(make: Any) -> None:
    sizes, num_features = (3000, 20, 1000), 5
    many = jax.vmap(partial(make, num_features=num_features, sizes=sizes))
    seeds = [member(jax.jit(many)(jax.random.split(KEY, 3)), i) for i in range(3)]
    for split, size in zip(seeds[0], sizes, strict=True):
        assert split.x.shape == (size, num_features) and split.y.shape == (size, 2)
        assert ((split.y == 0) | (split.y == 1)).all() and (split.y.sum(axis=1) == 1).all()
    x = np.concatenate([split.x for split in seeds[0]]).astype(np.float64)
    assert differs(seeds[0], seeds[1]) and len(np.unique(x, axis=0)) == sum(sizes)

    # x is uniform: mean 0, variance 1/3 with a standard error of sqrt(1/5 - 1/9) for one number
    assert np.abs(x).max() <= 1 and abs(x.mean()) < 5 * math.sqrt(1 / 3 / x.size)
    assert abs((x**2).mean() - 1 / 3) < 5 * math.sqrt((1 / 5 - 1 / 9) / x.size)
    # The plane goes through the origin, and both sides are equally likely, as if the units were linear; ReLU
    # units prefer one label, by another amount for every seed.
    ones = np.array([seed.train.y[:, 1].mean() for seed in seeds])
    away, bound = np.abs(ones - 0.5), 5 * 0.5 / math.sqrt(3000)
    assert away.max() < min(bound if make is half_space else 1, 0.49)
    assert make is half_space or away.max() > bound
    if make is half_space:
        planes = []
        for seed in seeds[:2]:
            plane = np.linalg.lstsq(seed.train.x, 2 * seed.train.y[:, 1] - 1, rcond=None)[0]
            assert np.mean((seed.test.x @ plane > 0) == (seed.test.y[:, 1] == 1)) > 0.95
            planes.append(plane / np.linalg.norm(plane))
        assert planes[0] @ planes[1] < 0.95, "two seeds, one plane"


# --- accuracy, balanced over classes


def test_balanced_accuracy() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 3])  # class 2 does not occur
    predictions = np.array([0, 0, 0, 2, 1, 0, 3])
    y, output = np.eye(4, dtype=np.float32)[labels], 0.5 * np.eye(4, dtype=np.float32)[predictions] - 3
    np.testing.assert_allclose(ll.balanced_accuracy(output, y), (3 / 4 + 1 / 2 + 1) / 3, rtol=1e-6)
    np.testing.assert_allclose(ll.accuracy(output, y), 5 / 7, rtol=1e-6)
    assert float(ll.balanced_accuracy(y, y)) == 1
    assert float(ll.balanced_accuracy(np.roll(y, 1, axis=1), y)) == 0
    # Always the same answer is worth one class.
    constant = np.tile(np.eye(4, dtype=np.float32)[0], (7, 1))
    np.testing.assert_allclose(ll.balanced_accuracy(constant, y), 1 / 3, rtol=1e-6)
    half = jax.eval_shape(ll.balanced_accuracy, *(jnp.bfloat16(a) for a in (output, y)))
    assert half.dtype == jnp.float32
