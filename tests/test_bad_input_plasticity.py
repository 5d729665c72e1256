"""Bad input to k-cap networks and plasticity: as in `test_bad_input`, the errors that a user sees."""

# pyright: reportArgumentType=false

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lax_learning as ll
from lax_learning import plasticity
from lax_learning.data import half_space, relu_net
from lax_learning.plasticity import (
    Bins,
    MetaParams,
    Scheme,
    TableRule,
    Tables,
    k_cap,
    k_cap_mlp,
    k_cap_recurrent,
    top_k_mask,
)
from tests.refusal import each, refusals

KEY = jax.random.key(0)
NETWORK = k_cap_mlp((3, 4, 5, 2), 2)
RECURRENT = k_cap_recurrent((3, 4, 2), 2, rounds=1)
XS, YS = jnp.ones((5, 3)), jnp.array([0, 1, 1, 0, 1])
SQUARE = jnp.zeros((2, 2))
TABLES = Tables((SQUARE,), SQUARE)


def zeros(network: plasticity.KCapNetwork) -> Any:
    """A state, without drawing it: that takes longer than the tests."""
    return tuple({"w": np.zeros(shape, np.float32), "mask": np.ones(shape, bool)} for shape in network.shapes)


STATE = zeros(NETWORK)
W = jnp.asarray(STATE[0]["w"])


def caps(x: Any, k: Any, **options: Any) -> Any:
    return [lambda f=f: f(x, k, **options) for f in (k_cap, top_k_mask)]


test_k_cap = refusals(
    values={
        "^k: expected at most 3, the size of axis -1 of x, got 4": caps(XS, 4),
        "^k: expected at least 1, got 0": caps(XS, 0),
        r"^x: expected an axis -1, got shape \[\]": caps(jnp.ones(()), 1),
    },
    types={
        "^k: expected an int, got 1.0": caps(XS, 1.0),
        "^x: expected a floating-point array, got int32": caps(YS, 1),
    },
)


def mlp(widths: Any = (3, 4, 5, 2), cap: Any = 2, **options: Any) -> Any:
    return lambda: k_cap_mlp(widths, cap, **options)


def graph(widths: Any = (3, 4, 2), cap: Any = 2, **options: Any) -> Any:
    return lambda: k_cap_recurrent(widths, cap, **options)


def both(**options: Any) -> Any:
    return [mlp(**options), graph(**options)]


def binned(size: Any, place: Any) -> Any:
    return mlp(rule=TableRule(True, Bins(size, place)))


test_networks = refusals(
    values={
        "^cap of hidden layer 1: expected at most 4, .*got 5": mlp(cap=5),
        "^cap of hidden layer 1: expected at least 1, got 0": mlp(cap=0),
        r"^cap: expected one .* of 2 hidden layers, got \(2, 2, 2\)": mlp(cap=(2, 2, 2)),
        r"^widths: expected at least an input, .*got \(3, 2\)": mlp((3, 2)),
        r"^widths\[2\]: expected at least 1, got 0": mlp((3, 4, 0, 2)),
        r"^widths: expected sizes of input.*got \(3, 4, 4": graph((3, 4, 4, 2)),
        r"^widths: expected arrays of at most .*\[1000000, 1000000\]": mlp((10, 10**6, 10**6, 2)),
        "^widths: expected at most 1000 layers, got 1999": mlp((3,) * 2000, 1),
        "^rounds: expected at least 0, got -1": graph(rounds=-1),
        "^rounds: expected at most 14, .*got 15": graph(rounds=15),
        r"^rule.bins.place: expected bins in 0 \.\. 1, got 9 for 0 of 0 inputs": binned(
            lambda cap: 2, lambda count, n: 9 + count
        ),
        r"^edge_probability: expected one .* of 2 hidden layers, got \(0.5,\)": mlp(edge_probability=(0.5,)),
        "^edge_probability: expected a number in 0..1, got": [
            call for p in (-0.1, 2, np.nan, None) for call in both(edge_probability=p)
        ],
        "^fired: expected one of .*, got": [call for name in ("values", None) for call in both(fired=name)],
        "^step_size: expected a finite number > 0, got": each(
            Scheme, 0, -0.01, np.nan, np.inf, "1", None, True
        ),
        **{
            f"^{name}: expected one of .*, got": each(Scheme, **{name: ("unknown", None, True)})
            for name in ("update", "rows", "samples")
        },
    },
    types={
        r"^widths\[0\]: expected an int, got 3.0": mlp((3.0, 4, 2)),
        "^dtype: expected a floating-point dtype, got int": both(dtype=int),
        "^scheme: expected a Scheme, got 'additive'": both(scheme="additive"),
        "^rule: expected a TableRule.*got function": mlp(rule=lambda pre, post, w: w),
        r"^rule.bins.place: expected a function of \(count \[out\], num_inputs \[out\]\), got": binned(
            lambda cap: 2, lambda count: count
        ),
    },
)


def drawing(init: Any) -> Any:
    return [
        lambda: k_cap_mlp((3, 4, 5, 2), 2, w_init=init).init(KEY),
        lambda: NETWORK.init_tables(KEY, hidden_init=init),
        lambda: NETWORK.init_tables(KEY, output_init=init),
    ]


test_initialisers = refusals(
    values={
        r"_init\(key, shape, dtype\): expected shape \[., .\], got \[7\]": drawing(lambda *_: jnp.ones(7))
    },
    types={
        r"_init: expected an initialiser .*got <lambda>\(key, shape\)": drawing(lambda key, shape: SQUARE),
        r"_init\(.*\): expected a floating-point array, got None": drawing(lambda *_: None),
    },
)


def test_what_initialisers_draw_has_the_dtype_of_the_network() -> None:
    network = k_cap_mlp((3, 4, 5, 2), 2, w_init=lambda key, shape, dtype: np.ones(shape), dtype=jnp.bfloat16)
    assert network.init(KEY)[0]["w"].dtype == jnp.bfloat16


def users_of(state: Any, network: Any = NETWORK) -> Any:
    """All that takes a state."""
    return [
        lambda: network.apply(state, XS),
        lambda: plasticity.plastic_pass(network, TABLES, state, XS, YS),
        lambda: plasticity.meta_rule(network, state),
        lambda: plasticity.meta_init(network, state),
        lambda: plasticity.table_plasticity(network).update(TABLES, state, XS[0], 0),
    ]


OTHER = zeros(k_cap_mlp((3, 4, 6, 2), 2))
test_states = refusals(
    values={
        "^state: expected 3 layers, got 2": users_of(STATE[:2]) + users_of(STATE[:2], RECURRENT),
        **{
            rf"^state\[1\]\['{entry}'\]: expected shape \[4, 5\], got \[4, 6\]": users_of(
                (STATE[0], {**STATE[1], entry: OTHER[1][entry]}, STATE[2])
            )
            for entry in ("w", "mask")
        },
    },
    types={
        "^state: expected a tuple .*got None": lambda: NETWORK.drive(None, XS),
        "^params.w: expected a floating-point array, got None": lambda: plasticity.with_params(
            STATE, MetaParams(TABLES, None)
        ),
    },
)


def run(xs: Any = XS, ys: Any = YS, tables: Any = TABLES, network: Any = NETWORK) -> Any:
    return lambda: plasticity.plastic_pass(network, tables, zeros(network), xs, ys)


def one(x: Any = XS[0], y: Any = 1, tables: Any = TABLES) -> Any:
    return lambda: plasticity.table_plasticity(NETWORK).update(tables, STATE, x, y)


def shared(rule: Any) -> Any:
    network = k_cap_mlp((3, 4, 5, 6, 2), (2, 3, 4), rule=rule)
    return [lambda: network.init_tables(KEY), lambda: plasticity.meta_init(network, zeros(network))]


test_samples_and_tables = refusals(
    values={
        r"^xs: expected at least one sample, got shape \[0, 3\]": run(XS[:0], YS[:0]),
        r"^x: expected shape \[..., 3\], got \[5, 4\]": run(jnp.ones((5, 4))),
        r"^xs: expected shape \[samples, 3\], got \[3\]": run(XS[0]),
        r"^ys: expected shape \[5\] as in xs, got \[4\]": run(ys=YS[:4]),
        r"^ys: expected labels in 0 \.\. 1, got 2": run(ys=YS.at[3].set(2)),
        r"^y: expected labels in 0 \.\. 1, got 2": one(y=2),
        r"^x, y: expected one sample, got shapes \[5, 3\] and \[\]": one(XS),
        r"^tables.hidden for layer 1: expected shape \[2, 2\], got \[2, 3\]": run(
            tables=Tables((jnp.zeros((2, 3)),), SQUARE)
        ),
        r"^tables.output: expected shape \[2, 2\], got \[2\]": [
            make(tables=Tables((SQUARE,), jnp.zeros(2))) for make in (run, one)
        ],
        "^tables.hidden: .* each of 1 .*got 0": run(tables=Tables((), SQUARE)),
        r"^tables.hidden for layer 1: expected shape \[4, 4\], got \[2, 2\]": [
            run(network=RECURRENT),
            lambda: plasticity.transfer(TABLES, RECURRENT),
        ],
        "^shared: expected hidden layers with tables of one shape, got": [
            call for rule in (plasticity.pre_post_count, plasticity.post_count) for call in shared(rule)
        ],
    },
    types={
        "^x: expected a floating-point array, got int32": [run(XS.astype(int)), one(XS[0].astype(int))],
        "^ys: expected integer labels, got float32": run(ys=jnp.ones(5)),
        "^tables.hidden for layer 1: expected a floating-point array, got int32": run(
            tables=Tables((SQUARE.astype(int),), SQUARE)
        ),
        "^shared: expected True or False, got 1": lambda: plasticity.meta_init(NETWORK, STATE, shared=1),
    },
)


def learn(y: Any, params: Any = None) -> Any:
    params = params or MetaParams(TABLES, W)
    return lambda: plasticity.meta_rule(NETWORK, STATE).value_and_grad(KEY, params, (), XS, y)


ONE_HOT, NO_LABELS = jax.nn.one_hot(YS, 2), ([0, 0], [1, 1], [0.7, 0.3], [-1, 2], [np.nan, 1])
meta_learn = partial(plasticity.meta_learn, NETWORK, STATE, optax.sgd(0.1))
test_meta_learning = refusals(
    values={
        r"^y: expected shape \[5, 2\], got": [learn(jnp.zeros((5, 3))), learn(jnp.zeros((4, 2))), learn(YS)],
        r"^y\[3\]: expected a one-hot row, got \[": [
            learn(ONE_HOT.at[3].set(jnp.array(row))) for row in NO_LABELS
        ],
        "^num_updates: expected at least 1, got 0": lambda: meta_learn(num_updates=0),
        "^batch_size: expected at least 1, got 0": lambda: meta_learn(num_updates=2, batch_size=0),
    },
    types={
        "^loss: expected a function .*got 'mse'": lambda: plasticity.meta_rule(NETWORK, STATE, loss="mse"),
        r"^estimator: expected a factory of estimators .*got <lambda>\(\)": lambda: plasticity.meta_rule(
            NETWORK, STATE, estimator=lambda: 3
        ),
    },
)


MAKERS = [partial(make, KEY) for make in (half_space, relu_net)]
test_data = refusals(
    values={
        r"^sizes: expected numbers of training.*got \(10, 5\)": [partial(m, sizes=(10, 5)) for m in MAKERS],
        "^num_features: expected at least 1, got 0": [partial(make, num_features=0) for make in MAKERS],
    },
    types={r"^sizes\[2\]: expected an int, got 5.0": [partial(m, sizes=(10, 0, 5.0)) for m in MAKERS]},
)
test_units_and_accuracy = refusals(
    values={
        "^num_units: expected at least 1, got 0": lambda: relu_net(KEY, num_units=0),
        r"^y: expected shape \[5, 2\] as in output": each(
            partial(ll.balanced_accuracy, jnp.ones((5, 2))), jnp.zeros(5), jnp.zeros((1, 2))
        ),
    }
)
