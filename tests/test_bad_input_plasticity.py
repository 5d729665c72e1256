"""Bad input to k-cap networks and plasticity: as in `test_bad_input`, the errors that a user sees."""

# pyright: reportArgumentType=false

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lax_learning as ll
from lax_learning import plasticity
from lax_learning.data import half_space, relu_net
from lax_learning.plasticity import MetaParams, Scheme, Tables, k_cap, k_cap_mlp, k_cap_recurrent, top_k_mask
from tests.refusal import parametrize_cases, refuses

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

KEY = jax.random.key(0)
NETWORK = k_cap_mlp((3, 4, 5, 2), 2)
RECURRENT = k_cap_recurrent((3, 4, 2), 2, rounds=1)
NETWORKS = {"feed-forward": NETWORK, "recurrent": RECURRENT}


def zeros(network: plasticity.KCapNetwork) -> Any:
    """A state, without drawing it: that takes longer than the tests."""
    return tuple({"w": np.zeros(shape, np.float32), "mask": np.ones(shape, bool)} for shape in network.shapes)


STATE = zeros(NETWORK)
TABLES = Tables((jnp.zeros((2, 2)),), jnp.zeros((2, 2)))
XS, YS = jnp.ones((5, 3)), jnp.array([0, 1, 1, 0, 1])
UPDATE = plasticity.table_plasticity(NETWORK).update


@pytest.mark.parametrize("function", [k_cap, top_k_mask])
@pytest.mark.parametrize(
    ("x", "k", "options", "error", "pattern"),
    [
        (XS, 4, {}, ValueError, "^k: expected at most 3, the size of axis -1 of x, got 4"),
        (XS, 6, {"axis": 0}, ValueError, "^k: expected at most 5, the size of axis 0 of x, got 6"),
        (XS, 0, {}, ValueError, "^k: expected at least 1, got 0"),
        (XS, -1, {}, ValueError, "^k: expected at least 1, got -1"),
        (XS, 1.0, {}, TypeError, "^k: expected an int, got 1.0"),
        (XS, True, {}, TypeError, "^k: expected an int, got True"),
        (YS, 1, {}, TypeError, "^x: expected a floating-point array, got int32"),
        (XS > 0, 1, {}, TypeError, "^x: expected a floating-point array, got bool"),
        (jnp.ones(()), 1, {}, ValueError, r"^x: expected an axis -1, got shape \[\]"),
        (XS, 1, {"axis": 2}, ValueError, r"^x: expected an axis 2, got shape \[5, 3\]"),
        (XS, 1, {"axis": -3}, ValueError, r"^x: expected an axis -3, got shape \[5, 3\]"),
    ],
)
def test_k_cap(function, x, k, options, error, pattern):
    refuses(lambda: function(x, k, **options), error, pattern)


# Networks.

SQUARE_OF_ZEROS = jnp.zeros((2, 2))


def run(xs: Any = XS, ys: Any = YS, tables: Any = TABLES, network: Any = NETWORK):
    return lambda: plasticity.plastic_pass(network, tables, zeros(network), xs, ys)


def mlp(widths: Any = (3, 4, 5, 2), cap: Any = 2, **options: Any):
    return lambda: k_cap_mlp(widths, cap, **options)


def graph(widths: Any = (3, 4, 2), cap: Any = 2, **options: Any):
    return lambda: k_cap_recurrent(widths, cap, **options)


@parametrize_cases(
    {
        "cap > width": (mlp(cap=5), ValueError, "^cap of hidden layer 1: expected at most 4, .*got 5"),
        "second cap": (mlp(cap=(4, 6)), ValueError, "^cap of hidden layer 2: expected at most 5, .*, got 6"),
        "cap 0": (mlp(cap=0), ValueError, "^cap of hidden layer 1: expected at least 1, got 0"),
        "float cap": (mlp(cap=2.0), TypeError, "^cap of hidden layer 1: expected an int, got 2.0"),
        "caps": (
            mlp(cap=(2, 2, 2)), ValueError, r"^cap: expected one .* of 2 hidden layers, got \(2, 2, 2\)",
        ),
        "graph cap > width": (graph(cap=5), ValueError, "^cap: expected at most 4, the width.*got 5"),
        "graph cap 0": (graph(cap=0), ValueError, "^cap: expected at least 1, got 0"),
        "two widths": (mlp((3, 2)), ValueError, r"^widths: expected at least an input, .*got \(3, 2\)"),
        "no widths": (mlp(()), ValueError, r"^widths: expected .*got \(\)"),
        "width 0": (mlp((3, 4, 0, 2)), ValueError, r"^widths\[2\]: expected at least 1, got 0"),
        "float width": (mlp((3.0, 4, 2)), TypeError, r"^widths\[0\]: expected an int, got 3.0"),
        "graph widths": (graph((3, 4, 4, 2)), ValueError, r"^widths: expected sizes of input.*got \(3, 4, 4"),
        "graph width 0": (graph((0, 4, 2)), ValueError, r"^widths\[0\]: expected at least 1, got 0"),
        "rounds": (graph(rounds=-1), ValueError, "^rounds: expected at least 0, got -1"),
        "31 rounds": (graph(rounds=31), ValueError, "^rounds: expected at most 14, .*got 31"),
        "huge rounds": (graph(rounds=10**9), ValueError, "^rounds: expected at most 14, "),
        "huge widths": (
            mlp((10, 10**6, 10**6, 2)), ValueError,
            r"^widths: expected arrays of at most 2147483647 entries, got one of shape \[1000000, 1000000\]",
        ),
        "huge graph": (graph((3, 10**5, 2)), ValueError, "^widths: expected arrays of at most 2147483647"),
        "many layers": (mlp((3,) * 2000, 1), ValueError, "^widths: expected at most 1000 layers, got 1999"),
        "one width": (mlp(3), TypeError, "^widths: expected sizes of the input.*got 3"),
        "dtype": (mlp(dtype=int), TypeError, "^dtype: expected a floating-point dtype, got int"),
        "scheme": (graph(scheme="additive"), TypeError, "^scheme: expected a Scheme, got 'additive'"),
        "w_init": (mlp(w_init=None), TypeError, "^w_init: expected an initialiser.*got None"),
        "rule": (mlp(rule=lambda pre, post, w: w), TypeError, "^rule: expected a TableRule.*got function"),
        "bins": (
            mlp(rule=plasticity.TableRule(True, plasticity.Bins(lambda cap: 2, lambda count, n: 9 + count))),
            ValueError, r"^rule.bins.place: expected bins in 0 \.\. 1, got 9 for 0 of 0 inputs",
        ),
        "bins of one argument": (
            mlp(rule=plasticity.TableRule(True, plasticity.Bins(lambda cap: 2, lambda count: count))),
            TypeError, r"^rule.bins.place: expected a function of \(count \[out\], num_inputs \[out\]\), got",
        ),
        "axis": (lambda: k_cap(XS, 1, axis=None), TypeError, "^axis: expected an int, got None"),
        "no mask": (
            lambda: NETWORK.apply(tuple({"w": layer["w"]} for layer in STATE), XS), ValueError,
            r"^state\[0\]: expected a dict with the entries 'w' and 'mask', got \['w'\]",
        ),
        "integer tables": (
            run(tables=Tables((jnp.zeros((2, 2), int),), SQUARE_OF_ZEROS)), TypeError,
            "^tables.hidden for layer 1: expected a floating-point array, got int32",
        ),
        "loss": (
            lambda: plasticity.meta_rule(NETWORK, STATE, loss="mse"), TypeError,
            "^loss: expected a function .*got 'mse'",
        ),
        "shared": (
            lambda: plasticity.meta_init(NETWORK, STATE, shared=1), TypeError,
            "^shared: expected True or False, got 1",
        ),
        "float rounds": (graph(rounds=1.5), TypeError, "^rounds: expected an int, got 1.5"),
        "probabilities": (
            mlp(edge_probability=(0.5,)), ValueError,
            r"^edge_probability: expected one .* each of 2 hidden layers, got \(0.5,\)",
        ),
        "second probability": (
            mlp(edge_probability=(0.5, 1.5)), ValueError,
            "^edge_probability: expected a number in 0..1, got 1.5",
        ),
    }
)  # fmt: skip
def test_networks(call, error, pattern):
    refuses(call, error, pattern)


@pytest.mark.parametrize("make", [mlp, graph])
@pytest.mark.parametrize("p", [-0.1, 1.1, 2, float("nan"), float("inf"), "0.5", None])
def test_edge_probability(make, p):
    pattern = "^edge_probability: expected a number in 0..1, got"
    refuses(make(edge_probability=(p, p) if isinstance(p, str) and make is mlp else p), ValueError, pattern)


@pytest.mark.parametrize("make", [mlp, graph])
@pytest.mark.parametrize("fired", ["values", "", None, 1])
def test_fired(make, fired):
    refuses(make(fired=fired), ValueError, f"^fired: expected one of .*, got {fired!r}")


@pytest.mark.parametrize("name", ["update", "rows", "samples"])
@pytest.mark.parametrize("value", ["unknown", "", None, True])
def test_choices_of_a_scheme(name, value):
    refuses(lambda: Scheme(**{name: value}), ValueError, f"^{name}: expected one of .*, got {value!r}")


@pytest.mark.parametrize("step_size", [0, 0.0, -0.01, float("nan"), float("inf"), "0.01", None, True])
def test_step_size(step_size):
    refuses(lambda: Scheme(step_size=step_size), ValueError, "^step_size: expected a finite number > 0, got")


# What goes through a network.


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("num_layers", [0, 2, 5])
def test_state_of_another_depth(kind, num_layers):
    network = NETWORKS[kind]
    state = (*STATE, *STATE)[:num_layers]
    pattern = f"^state: expected {len(network.shapes)} layers, got {num_layers}"
    refuses(lambda: network.apply(state, XS), ValueError, pattern)
    refuses(lambda: plasticity.plastic_pass(network, TABLES, state, XS, YS), ValueError, pattern)
    refuses(lambda: plasticity.meta_rule(network, state), ValueError, pattern)
    refuses(lambda: plasticity.meta_init(network, state), ValueError, pattern)
    online = plasticity.table_plasticity(network)
    refuses(lambda: online.update(TABLES, state, XS[0], 0), ValueError, pattern)


@pytest.mark.parametrize("entry", ["w", "mask"])
def test_state_of_other_widths(entry):
    other = zeros(k_cap_mlp((3, 4, 6, 2), 2))
    state = (STATE[0], {**STATE[1], entry: other[1][entry]}, STATE[2])
    pattern = rf"^state\[1\]\['{entry}'\]: expected shape \[4, 5\], got \[4, 6\]"
    refuses(lambda: NETWORK.apply(state, XS), ValueError, pattern)
    refuses(lambda: plasticity.plastic_pass(NETWORK, TABLES, state, XS, YS), ValueError, pattern)
    refuses(lambda: UPDATE(TABLES, state, XS[0], 0), ValueError, pattern)
    refuses(lambda: plasticity.meta_rule(NETWORK, state), ValueError, pattern)


def one(x: Any = XS[0], y: Any = 1, tables: Any = TABLES):
    return lambda: UPDATE(tables, STATE, x, y)


SQUARE = jnp.zeros((2, 2))


@parametrize_cases(
    {
        "empty": (run(XS[:0], YS[:0]), ValueError, r"^xs: expected at least one sample, got shape \[0, 3\]"),
        "features": (run(jnp.ones((5, 4))), ValueError, r"^x: expected shape \[..., 3\], got \[5, 4\]"),
        "one sample": (run(XS[0]), ValueError, r"^xs: expected shape \[samples, 3\], got \[3\]"),
        "images": (run(XS[None]), ValueError, r"^xs: expected shape \[samples, 3\], got \[1, 5, 3\]"),
        "integer xs": (run(jnp.ones((5, 3), int)), TypeError, "^x: expected a floating.*got int32"),
        "short ys": (run(ys=YS[:4]), ValueError, r"^ys: expected shape \[5\] as in xs, got \[4\]"),
        "one-hot ys": (run(ys=jax.nn.one_hot(YS, 2)), ValueError, r"^ys: expected shape \[5\].*got \[5, 2\]"),
        "label 2": (run(ys=YS.at[3].set(2)), ValueError, r"^ys: expected labels in 0 \.\. 1, got 2"),
        "label -1": (run(ys=YS.at[0].set(-1)), ValueError, r"^ys: expected labels in 0 \.\. 1, got -1"),
        "float ys": (run(ys=jnp.ones(5)), TypeError, "^ys: expected integer labels, got float32"),
        "bool ys": (run(ys=YS > 0), TypeError, "^ys: expected integer labels, got bool"),
        "y 2": (one(y=2), ValueError, r"^y: expected labels in 0 \.\. 1, got 2"),
        "y -1": (one(y=-1), ValueError, r"^y: expected labels in 0 \.\. 1, got -1"),
        "float y": (one(y=1.0), TypeError, "^y: expected integer labels, got float32"),
        "batch": (one(XS), ValueError, r"^x, y: expected one sample, got shapes \[5, 3\] and \[\]"),
        "one-hot y": (one(y=jnp.array([0, 1])), ValueError, r"^x, y: .*got shapes \[3\] and \[2\]"),
        "x": (one(jnp.ones(4)), ValueError, r"^x: expected shape \[..., 3\], got \[4\]"),
        "integer x": (one(jnp.ones(3, int)), TypeError, "^x: expected a floating-point array, got int32"),
    }
)  # fmt: skip
def test_samples(call, error, pattern):
    refuses(call, error, pattern)


@pytest.mark.parametrize("x", [jnp.ones((5, 4)), jnp.ones(()), jnp.ones((3, 5))])
def test_x_of_a_network(x):
    refuses(lambda: NETWORK.apply(STATE, x), ValueError, r"^x: expected shape \[\.\.\., 3\], got \[")


@parametrize_cases(
    {
        "hidden": (
            run(tables=Tables((jnp.zeros((2, 3)),), SQUARE)), ValueError,
            r"^tables.hidden for layer 1: expected shape \[2, 2\], got \[2, 3\]",
        ),
        "output": (
            run(tables=Tables((SQUARE,), jnp.zeros((2, 2, 21)))), ValueError,
            r"^tables.output: expected shape \[2, 2\], got \[2, 2, 21\]",
        ),
        "no hidden": (run(tables=Tables((), SQUARE)), ValueError, "^tables.hidden: .* each of 1 .*got 0"),
        "too many": (run(tables=Tables((SQUARE,) * 2, SQUARE)), ValueError, "^tables.hidden: .*got 2"),
        "recurrent": (
            run(network=RECURRENT), ValueError,
            r"^tables.hidden for layer 1: expected shape \[4, 4\], got \[2, 2\]",
        ),
        "online": (
            one(tables=Tables((SQUARE,), jnp.zeros(2))), ValueError,
            r"^tables.output: expected shape \[2, 2\], got \[2\]",
        ),
        "transfer": (
            lambda: plasticity.transfer(TABLES, RECURRENT), ValueError,
            r"^tables.hidden for layer 1: expected shape \[4, 4\], got \[2, 2\]",
        ),
    }
)  # fmt: skip
def test_tables(call, error, pattern):
    refuses(call, error, pattern)


@pytest.mark.parametrize("rule", [plasticity.pre_post_count, plasticity.post_count])
def test_shared_tables_where_caps_differ(rule):
    network = k_cap_mlp((3, 4, 5, 6, 2), (2, 3, 4), rule=rule)
    pattern = "^shared: expected hidden layers with tables of one shape, got"
    refuses(lambda: network.init_tables(KEY), ValueError, pattern)
    refuses(lambda: plasticity.meta_init(network, zeros(network)), ValueError, pattern)
    assert [table.shape[-1] for table in network.init_tables(KEY, shared=False).hidden] == [3, 4]


# Meta-learning.


@pytest.mark.parametrize("y", [jnp.zeros((5, 3)), jnp.zeros((4, 2)), jnp.zeros(5), YS])
def test_y_of_meta_learning(y):
    rule, params = plasticity.meta_rule(NETWORK, STATE), MetaParams(TABLES, jnp.asarray(STATE[0]["w"]))
    refuses(
        lambda: rule.value_and_grad(KEY, params, (), XS, y), ValueError, r"^y: expected shape \[5, 2\], got"
    )


@pytest.mark.parametrize("row", [[0, 0], [1, 1], [0.7, 0.3], [-1, 2], [float("nan"), 1]])
def test_y_of_meta_learning_is_one_hot(row):
    rule, params = plasticity.meta_rule(NETWORK, STATE), MetaParams(TABLES, jnp.asarray(STATE[0]["w"]))
    y = jax.nn.one_hot(YS, 2).at[3].set(jnp.array(row))
    refuses(
        lambda: rule.value_and_grad(KEY, params, (), XS, y),
        ValueError,
        r"^y\[3\]: expected a one-hot row, got \[",
    )


def test_params_of_meta_learning():
    rule, w = plasticity.meta_rule(NETWORK, STATE), jnp.asarray(STATE[0]["w"])
    y = jax.nn.one_hot(YS, 2)

    def value(params):
        return lambda: rule.value_and_grad(KEY, params, (), XS, y)

    refuses(
        value(MetaParams(TABLES, w[:, :3])), ValueError, r"^params.w: expected shape \[3, 4\], got \[3, 3\]"
    )
    refuses(value(MetaParams(Tables((), SQUARE), w)), ValueError, "^tables.hidden: expected one .*got 0")


@pytest.mark.parametrize("name", ["num_updates", "batch_size"])
def test_counts_of_meta_learning(name):
    options: Any = {"num_updates": 2, "batch_size": 2, name: 0}
    refuses(
        lambda: plasticity.meta_learn(NETWORK, STATE, optax.sgd(0.1), **options),
        ValueError,
        f"^{name}: expected at least 1, got 0",
    )


# Data and accuracy.


@pytest.mark.parametrize("make", [half_space, relu_net])
@pytest.mark.parametrize(
    ("options", "error", "pattern"),
    [
        ({"sizes": (10, 5)}, ValueError, r"^sizes: expected numbers of training.*got \(10, 5\)"),
        ({"sizes": ()}, ValueError, r"^sizes: expected .*got \(\)"),
        ({"sizes": (10, -1, 5)}, ValueError, r"^sizes\[1\]: expected at least 0, got -1"),
        ({"sizes": (10, 0, 5.0)}, TypeError, r"^sizes\[2\]: expected an int, got 5.0"),
        ({"num_features": 0}, ValueError, "^num_features: expected at least 1, got 0"),
        ({"num_features": 2.0}, TypeError, "^num_features: expected an int, got 2.0"),
    ],
    ids=str,
)
def test_data(make, options, error, pattern):
    refuses(lambda: make(KEY, **options), error, pattern)


def test_units_of_a_relu_net():
    refuses(lambda: relu_net(KEY, num_units=0), ValueError, "^num_units: expected at least 1, got 0")


@pytest.mark.parametrize("y", [jnp.zeros(5), jnp.zeros((5, 3)), jnp.zeros((1, 2))])
def test_balanced_accuracy(y):
    refuses(
        lambda: ll.balanced_accuracy(jnp.ones((5, 2)), y),
        ValueError,
        r"^y: expected shape \[5, 2\] as output",
    )


INITIALISERS = {
    "w_init": lambda init: k_cap_mlp((3, 4, 5, 2), 2, w_init=init).init(KEY),
    "hidden_init": lambda init: NETWORK.init_tables(KEY, hidden_init=init),
    "output_init": lambda init: NETWORK.init_tables(KEY, output_init=init),
}


@pytest.mark.parametrize("name", INITIALISERS)
@pytest.mark.parametrize(
    ("init", "error", "pattern"),
    [
        (
            lambda key, shape: jnp.ones(shape),
            TypeError,
            r": expected an initialiser .*got <lambda>\(key, shape\)",
        ),
        (lambda *a: None, TypeError, r"\(key, shape, dtype\): expected a floating-point array, got None"),
        (lambda *a: jnp.ones((2, 2), int), TypeError, r"\(.*\): expected a floating-point array, got int32"),
        (lambda *a: jnp.ones(7), ValueError, r"\(.*\): expected shape \[., .\], got \[7\]"),
    ],
)
def test_initialisers(name, init, error, pattern):
    refuses(lambda: INITIALISERS[name](init), error, f"^{name}{pattern}")


def test_what_initialisers_draw_has_the_dtype_of_the_network():
    network = k_cap_mlp((3, 4, 5, 2), 2, w_init=lambda key, shape, dtype: np.ones(shape), dtype=jnp.bfloat16)
    assert network.init(KEY)[0]["w"].dtype == jnp.bfloat16


@parametrize_cases(
    {
        "size of bins": (
            lambda: k_cap_mlp((3, 4, 2), 2, rule=plasticity.TableRule(True, plasticity.Bins(lambda: 3, max))),
            TypeError, r"^rule.bins.size: expected a function of the cap, got <lambda>\(\)",
        ),
        "estimator": (
            lambda: plasticity.meta_rule(NETWORK, STATE, estimator=lambda: 3), TypeError,
            r"^estimator: expected a factory of estimators .*got <lambda>\(\)",
        ),
        "state of a drive": (
            lambda: NETWORK.drive(None, XS), TypeError, "^state: expected a tuple .*got None",
        ),
        "drive": (lambda: NETWORK.respond(STATE, XS), TypeError, "^drive: expected a Drive, .*got float32"),
        "w of params": (
            lambda: plasticity.with_params(STATE, MetaParams(TABLES, None)), TypeError,
            "^params.w: expected a floating-point array, got None",
        ),
    }
)  # fmt: skip
def test_parts(call, error, pattern):
    refuses(call, error, pattern)
