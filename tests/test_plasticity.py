"""k-caps, table plasticity and its meta-learning against NumPy, closed forms and themselves."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lax_learning as ll
from experiments.plasticity_transfer.models import double_softmax
from lax_learning import estimators, plasticity
from lax_learning.data import half_space, relu_net
from lax_learning.plasticity import MetaParams, Scheme, Tables, k_cap, passes, plastic_pass, top_k_mask
from tests.compare import assert_close, assert_mean, assert_near, assert_same, differs, flat, member, normal

# Much is traced here: annotations are checked where the same functions meet their other oracles.
pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

KEY = jax.random.key(0)


@pytest.fixture
def quick_caps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search within a cap in fewer and larger steps: the same result, compiled several times faster."""
    monkeypatch.setattr("lax_learning.plasticity._k_cap._BITS_A_ROUND", 8)


def largest(x: np.ndarray, k: int, axis: int = -1) -> np.ndarray:
    """By a stable sort: of equal values the first come first, and -0 equals 0."""
    order = np.argsort(-x.astype(np.float64), axis=axis, kind="stable")
    mask = np.zeros(x.shape, bool)
    np.put_along_axis(mask, np.take(order, np.arange(k), axis), True, axis)
    return mask


NUMBERS = st.sampled_from([-math.inf, -2.0, -0.0, 0.0, 0.5, 1.0, math.inf]) | st.floats(
    width=32, allow_nan=False, allow_subnormal=False
)  # few, so that there are ties


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", pytest.param("float64", marks=pytest.mark.slow)])
@settings(deadline=None, derandomize=True, database=None, max_examples=25)
@given(values=st.lists(NUMBERS, min_size=20, max_size=20), k=st.sampled_from([1, 2, 4]))
def test_k_cap_is_a_stable_sort(dtype: str, values: list[float], k: int) -> None:
    with jax.enable_x64(dtype == "float64"):
        x = jnp.asarray(np.asarray(values).reshape(5, 4), dtype)
        mask, kept = top_k_mask(x, k), k_cap(x, k)
    expected = largest(np.asarray(x), k)
    np.testing.assert_array_equal(mask, expected)
    assert kept.dtype == dtype
    np.testing.assert_array_equal(np.asarray(kept), np.where(expected, np.asarray(x), 0))


def test_axes_nan_and_gradients_of_a_cap() -> None:
    x, factors = np.round(2 * np.asarray(normal(1, 4, 5, 3))) / 2, normal(3, 4, 5, 3)  # x has ties

    @jax.jit
    def run(x: Any) -> Any:
        found = [(top_k_mask(x, 2, axis=axis), k_cap(x, 2, axis=axis)) for axis in (1, -3)]
        return found, jax.grad(lambda x: jnp.sum(factors * k_cap(x, 2)))(x)

    found, slopes = run(x)
    for axis, (mask, kept) in zip((1, -3), found, strict=True):
        expected = largest(x, 2, axis)
        np.testing.assert_array_equal(mask, expected)
        np.testing.assert_array_equal(kept, np.where(expected, x, 0))
    np.testing.assert_array_equal(slopes, np.where(largest(x, 2), factors, 0))  # the choice is constant
    for nan in (np.nan, -np.nan):  # larger than all numbers; inf - inf has a sign bit
        assert top_k_mask(jnp.array([1.0, nan, jnp.inf, 0]), 1).tolist() == [False, True, False, False]


def fire(z: np.ndarray, cap: int, fired: str) -> tuple[np.ndarray, np.ndarray]:
    values = np.maximum(z, 0)
    chosen = largest(values, cap)
    return np.where(chosen, values, 0), (chosen & (values > 0) if fired == "value" else chosen).astype(int)


def respond(network: plasticity.KCapNetwork, layers: Any, x: np.ndarray) -> Any:
    """Codes of the units before and behind every plastic layer but the last, and logits."""
    first, *hidden, output = (w * mask for w, mask in layers)
    drive, times = x @ first, network.rounds or 1
    values, code = fire(drive, network.caps[0], network.fired)
    codes = [code]
    for w, cap in zip(hidden * times, network.caps[1:] * times, strict=True):
        values, code = fire((values + drive if network.rounds else values) @ w, cap, network.fired)
        codes.append(code)
    if network.rounds:
        codes = [np.stack(codes, axis=1) @ 2 ** np.arange(times, -1, -1)] * 2
    return codes, codes[1:], values @ output


def after_one_sample(
    network: plasticity.KCapNetwork, layers: Any, tables: Any, response: Any, label: int
) -> list[np.ndarray]:
    """The plastic weights after one sample."""
    (pres, posts, logits), rule, scheme = response, network.rule, network.scheme
    units, prediction = np.arange(len(logits)), np.argmax(logits)
    posts, after = [*posts, ((units == label) == (network.rounds is None)).astype(int)], []
    for (w, mask), table, pre, post in zip(layers[1:], tables, pres, posts, strict=True):
        count, num_inputs = (pre > 0).astype(int) @ mask, mask.sum(axis=0)
        share = 20 * count // np.maximum(num_inputs, 1)
        bins = {plasticity.pre_post: (), plasticity.pre_post_percent: (share,)}.get(rule, (count,))
        entries = table[(post, *bins) if rule == plasticity.post_count else (pre[:, None], post, *bins)]
        change, learns = scheme.step_size * entries, mask & (scheme.samples == "every" or label != prediction)
        if scheme.rows == "two" and table is tables[-1]:
            learns = learns & ((units == label) | (units == prediction))
        after.append(np.where(learns, w + change if scheme.update == "additive" else w * (1 + change), w))
    return after


def random_state(network: plasticity.KCapNetwork) -> Any:
    """In the middle of an episode: all weights random, and sparse masks."""
    random, layers = np.random.default_rng(0), []
    for n, shape in enumerate(network.shapes):
        mask = random.random(shape) < (0.6 + 0.1 * n if n < len(network.shapes) - 1 else 1)
        layers.append({"w": normal(1 + n, *shape) / 2, "mask": jnp.asarray(mask)})
    return tuple(layers)


def random_tables(network: plasticity.KCapNetwork, num_hidden: int | None = None) -> Tables:
    *hidden, output = network.table_shapes
    drawn = [normal(27 + n, *shape) / 2 for n, shape in enumerate(hidden[:num_hidden])]
    return Tables(tuple(drawn), normal(34, *output) / 2)


# Every way to read a table, and every choice of a scheme. With "index" caps are larger than the number of
# values above 0. The golden arrays have the other pairs of choices.
REFERENCES = [
    ("pre_post_count", (7, 5, 4), Scheme(0.5, "additive", "misclassified", "two"), "index"),
    ("pre_post_percent", (4, 3, 2), Scheme(0.5, "multiplicative", "misclassified", "all"), "value"),
    ("post_count", (4, 3, 2), Scheme(0.5, "multiplicative", "every", "two"), "value"),
    ("recurrent", (4, 4), Scheme(0.5, "multiplicative", "misclassified", "two"), "value"),
]


@pytest.mark.usefixtures("quick_caps")
@pytest.mark.parametrize(("rule", "caps", "scheme", "fired"), REFERENCES)
def test_a_sample_is_one_in_numpy(
    rule: str, caps: Any, scheme: Scheme, fired: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Widths, caps, edge probabilities and tables differ between layers."""
    options: Any = {"scheme": scheme, "fired": fired}
    if rule == "recurrent":
        network = plasticity.k_cap_recurrent((4, 7, 3), caps[0], rounds=2, **options)
    else:
        network = plasticity.k_cap_mlp((4, 9, 7, 6, 3), caps, rule=getattr(plasticity, rule), **options)
    assert network.caps == caps
    if rule == "pre_post_percent":  # entries are gathered, as with many codes
        monkeypatch.setattr(passes, "MAX_SELECTS", 1)
    state, tables = random_state(network), random_tables(network)
    if rule != "recurrent":
        state[1]["mask"] = state[1]["mask"].at[:, 4].set(False)  # a unit without inputs
    update_one, seen = jax.jit(plasticity.table_plasticity(network).update), set()
    entries = [np.asarray(table, np.float64) for table in network.layer_tables(tables)]
    for x, shift in zip(np.asarray(normal(30, 3, 4), np.float64), (0, 1, 2), strict=True):
        layers = [(np.asarray(layer["w"], np.float64), np.asarray(layer["mask"])) for layer in state]
        response = respond(network, layers, x)
        label = (int(np.argmax(response[2])) + shift) % 3  # right, wrong, wrong
        after, diagnostics = update_one(tables, state, np.float32(x), label)
        expected = after_one_sample(network, layers, entries, response, label)
        # A change and a sum or product, of two roundings each.
        assert_close([layer["w"] for layer in after[1:]], [jnp.float32(w) for w in expected], ulps=4)
        assert_same(after[0], state[0])
        assert int(diagnostics.prediction) == int(np.argmax(response[2]))
        assert bool(diagnostics.updated) == differs(after, state) == (scheme.samples == "every" or shift > 0)
        for got, codes in zip(diagnostics.response.pre, response[0], strict=True):
            np.testing.assert_array_equal(got, codes)
        seen |= {tuple(codes) for codes in response[0]}
    assert len(seen) > 2, "the samples should make different units fire"


XS = normal(40, 6, 4)
YS = jnp.array([0, 1, 1, 0, 0, 1])


def feed_forward(dtype: Any = jnp.float32, step_size: Any = 0.2, **scheme: Any) -> plasticity.KCapNetwork:
    return plasticity.k_cap_mlp((4, 6, 5, 2), (3, 2), scheme=Scheme(step_size, **scheme), dtype=dtype)


@pytest.mark.usefixtures("quick_caps")
def test_a_pass_is_its_samples_one_by_one() -> None:
    """For passes side by side, with tables and step sizes that are traced."""
    state = random_state(feed_forward())
    tables = random_tables(feed_forward())
    members = jax.tree.map(lambda a: jnp.stack([a, -a / 2]), tables), jnp.array([0.2, 0.4])

    def run(tables: Tables, step_size: Any) -> Any:
        return plastic_pass(feed_forward(step_size=step_size), tables, state, XS, YS)[:2]

    @jax.jit
    def update(tables: Tables, step_size: Any, state: Any, x: Any, y: Any) -> Any:
        return plasticity.table_plasticity(feed_forward(step_size=step_size)).update(tables, state, x, y)

    together = jax.jit(jax.vmap(run))(*members)
    for i in (0, 1):
        online, predictions = state, []
        for x, y in zip(np.asarray(XS), np.asarray(YS), strict=True):
            online, diagnostics = update(*member(members, i), online, x, y)
            predictions.append(diagnostics.prediction)
        # Two programs for one pass: six changes of a weight, each of a product and a sum of two roundings.
        assert_close((online, np.stack(predictions)), member(together, i), ulps=4 * len(YS))
        assert i == 1 or len(set(map(int, predictions))) == 2


@pytest.mark.usefixtures("quick_caps")
def test_weights_that_a_change_zeroes_have_finite_gradients() -> None:
    # 1 + 0.2 beta = 0: every weight that is updated is 0 afterwards, and stays there.
    network = feed_forward(update="multiplicative")
    state, tables = random_state(network), Tables((jnp.full((2, 2), -5.0),), jnp.full((2, 2), -5.0))

    def total(tables: Tables) -> Any:
        learned = plasticity.learn_episode(network, tables, state, XS, YS)
        return jnp.sum(learned[-1]["w"])

    value, grads = jax.jit(jax.value_and_grad(total))(tables)
    assert value == 0 and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_init_and_reset() -> None:
    def ones(key: Any, shape: Any, dtype: Any = None, out_sharding: Any = None) -> Any:
        return np.ones(shape)

    make = partial(plasticity.k_cap_mlp, (4, 6, 5, 2), 2, w_init=ones, dtype=jnp.bfloat16)
    for scheme, start in ((Scheme(update="additive"), 0), (Scheme(update="multiplicative"), 1)):
        network = make(edge_probability=(1.0, 0.0), scheme=scheme)
        state, other = network.init(KEY), random_state(network)
        assert {layer["w"].dtype for layer in state} == {jnp.dtype(jnp.bfloat16)}
        assert [np.mean(layer["mask"]) for layer in state] == [1, 0, 1]
        reset = network.reset(other)
        assert all((layer["w"] == start).all() for layer in (*state[1:], *reset[1:]))
        assert_same(reset[0], other[0])
    assert_same(feed_forward().init_tables(KEY), Tables((jnp.full((2, 2), 0.4),), jnp.zeros((2, 2))))


def test_edge_probability() -> None:
    init = jax.nn.initializers.zeros
    loops = plasticity.k_cap_recurrent((4, 7, 3), 4, edge_probability=1, w_init=init)
    network = plasticity.k_cap_mlp((40, 50, 60, 2), 2, edge_probability=(0.2, 0.7), w_init=init)
    (_, graph, _), (*hidden, _) = jax.jit(lambda key: (loops.init(key), network.init(key)))(KEY)
    np.testing.assert_array_equal(graph["mask"], ~np.eye(7, dtype=bool))  # no self-loops
    for layer, p in zip(hidden, (0.2, 0.7), strict=True):
        error = 5 * math.sqrt(p * (1 - p) / layer["mask"].size)
        assert abs(float(layer["mask"].mean()) - p) < error


def test_tables_go_into_networks_of_other_width_and_depth() -> None:
    """One for all layers into any, but for counts with the same cap; one a layer into the same depth."""
    make = partial(plasticity.k_cap_mlp, rule=plasticity.post_count)
    tables, each = random_tables(make((4, 8, 6, 2), 3), num_hidden=1), random_tables(make((4, 8, 6, 5, 2), 3))
    for widths in ((4, 8, 5, 7, 9, 2), (11, 8, 6, 10), (4, 8, 2)):
        expected = tables if len(widths) > 3 else Tables((), tables.output)
        assert_same(plasticity.transfer(tables, make(widths, 3)), expected)
    assert_same(plasticity.transfer(each, make((7, 9, 9, 9, 3), 3)), each)
    for wrong, network in ((tables, make((4, 20, 20, 2), 10)), (each, make((4, 8, 6, 2), 3))):
        with pytest.raises(ValueError, match=r"^tables\.hidden.*: expected "):
            plasticity.transfer(wrong, network)


@pytest.mark.usefixtures("quick_caps", "x64")
@pytest.mark.parametrize("reverse", [True, False])
def test_meta_gradient(reverse: bool) -> None:
    """By autodiff through the scan itself: factors of both signs in reverse, or summands in forward mode."""
    if reverse:
        network, loss = feed_forward(jnp.float64, update="multiplicative", step_size=2.0), double_softmax
    else:
        network = plasticity.k_cap_recurrent((4, 6, 2), 3, rounds=1, scheme=Scheme(0.2), dtype=jnp.float64)
        loss = ll.softmax_cross_entropy
    state = random_state(network)
    params = MetaParams(random_tables(network, num_hidden=1), state[0]["w"])
    assert not reverse or any((1 + 2 * table < 0).any() for table in jax.tree.leaves(params.tables))
    direction = jax.tree.map(lambda leaf: normal(50, *leaf.shape), params)
    along = partial(estimators.forward_gradient, noise=lambda key, like: direction)
    estimator = estimators.backprop if reverse else along

    def straight(params: MetaParams, x: Any, y: Any) -> Any:
        start = network.reset(({**state[0], "w": params.w}, *state[1:]))
        after = plastic_pass(network, params.tables, start, x, jnp.argmax(y, axis=-1))[0]
        return jnp.mean(loss(network.apply(after, x), y))

    @jax.jit
    def run(params: MetaParams, x: Any, y: Any) -> Any:
        rule = plasticity.meta_rule(network, state, estimator=estimator, loss=loss)
        return jax.value_and_grad(straight)(params, x, y), rule.value_and_grad(KEY, params, (), x, y)[:2]

    (value, exact), (found, grads) = run(params, np.float64(XS), np.eye(2)[YS])
    if not reverse:
        slope = flat(exact) @ flat(direction)
        exact = jax.tree.map(lambda v: slope * v, direction)
    # Losses are sums over the layers, samples and changes; a hundred roundings are more than they need.
    roundings = 100 * float(np.finfo(np.float64).eps)
    np.testing.assert_allclose(found, value, rtol=roundings, atol=0)
    assert_near(grads, exact, rtol=0, atol=roundings * max(1.0, np.max(np.abs(flat(exact)))))
    for part in (grads.tables.hidden, grads.tables.output, grads.w):
        assert np.max(np.abs(flat(part))) > 1e-3


@pytest.mark.slow
def test_learned_tables_have_the_published_signs() -> None:
    network = plasticity.k_cap_mlp((10, 32, 32, 2), 16)
    optimizer = optax.chain(optax.add_decayed_weights(0.01), optax.adam(0.01))

    def run(key: Any) -> Any:
        data_key, state_key, key = jax.random.split(key, 3)
        state = network.init(state_key)
        train = plasticity.meta_learn(network, state, optimizer, num_updates=200, loss=double_softmax)
        return train(key, half_space(data_key, 10))

    history = jax.jit(jax.vmap(run))(jax.random.split(KEY, 3))
    assert (history.losses >= math.log(1 + math.exp(-1))).all()
    assert (history.losses[:, -10:].mean(axis=1) < 0.5).all()  # from log 2 = 0.69
    (hidden,), output = history.state.params.tables
    for i in (0, 1):
        assert (hidden[:, i, i] > hidden[:, i, 1 - i]).all() and (hidden[:, i, i] > hidden[:, 1 - i, i]).all()
    assert (output * jnp.array([[1, -1], [-1, 1]]) > 0.2).all()


def test_data() -> None:
    sizes, num_features = (3000, 20, 1000), 5
    makers = half_space, partial(relu_net, num_units=30)
    draw = [jax.vmap(partial(make, num_features=num_features, sizes=sizes)) for make in makers]
    planes, units = jax.jit(lambda keys: [of(keys) for of in draw])(jax.random.split(KEY, 3))
    planes, units = ([member(seeds, i) for i in range(3)] for seeds in (planes, units))
    bound, away = 5 * 0.5 / math.sqrt(3000), []
    for seeds in (planes, units):
        for split, size in zip(seeds[0], sizes, strict=True):
            assert split.x.shape == (size, num_features)
            np.testing.assert_array_equal(split.y, np.eye(2)[split.y[:, 1].astype(int)])
        x = np.concatenate([split.x for split in seeds[0]])
        assert differs(seeds[0], seeds[1]) and len(np.unique(x, axis=0)) == sum(sizes)
        assert np.abs(x).max() <= 1
        assert_mean((x, x**2), (0, 1 / 3))  # uniform
        away.append(max(abs(seed.train.y[:, 1].mean() - 0.5) for seed in seeds))
    # Both sides of a plane through the origin are equally likely; ReLU units prefer one label.
    assert away[0] < bound < away[1] < 0.49
    normals = [np.linalg.lstsq(seed.train.x, 2 * seed.train.y[:, 1] - 1, rcond=None)[0] for seed in planes]
    for seed, across in zip(planes, normals, strict=True):
        assert np.mean((seed.test.x @ across > 0) == (seed.test.y[:, 1] == 1)) > 0.95
    cosine = normals[0] @ normals[1] / np.linalg.norm(normals[0]) / np.linalg.norm(normals[1])
    assert cosine < 0.95, "two seeds, one plane"
