"""Bad input to k-cap networks and plasticity: as in `test_bad_input_options`, the errors that a user sees."""

# pyright: reportArgumentType=false

from functools import partial
from typing import Any

import jax
import numpy as np

from lax_learning import plasticity as pl
from lax_learning.plasticity import Bins, MetaParams, TableRule, Tables, k_cap_mlp, k_cap_recurrent
from tests.refusal import each, refusals

KEY = jax.random.key(0)
NETWORK = k_cap_mlp((3, 4, 5, 2), 2)
RECURRENT = k_cap_recurrent((3, 4, 2), 2, rounds=1)
XS, YS = np.ones((5, 3), np.float32), np.array([0, 1, 1, 0, 1])
SQUARE = np.zeros((2, 2), np.float32)
TABLES = Tables((SQUARE,), SQUARE)

mlp, graph = partial(k_cap_mlp, (3, 4, 5, 2)), partial(k_cap_recurrent, (3, 4, 4, 2))


def drawing(init: Any) -> Any:
    return [lambda: mlp(2, w_init=init).init(KEY), partial(NETWORK.init_tables, KEY, output_init=init)]


def binned(place: Any) -> Any:
    return partial(mlp, 2, rule=TableRule(True, Bins(lambda cap: 2, place)))


test_networks = refusals(
    values={
        "^k: expected at most 3, got 4": partial(pl.k_cap, XS, 4),
        r"^x: expected an axis -1, got shape \[\]": partial(pl.top_k_mask, np.ones((), np.float32), 1),
        "^cap of hidden layer 1: expected at most 4, .*got 5": partial(mlp, 5),
        r"^cap: expected one .* of 2 hidden layers, got \(2, 2, 2\)": partial(mlp, (2, 2, 2)),
        r"^widths: expected at least an input, .*got \(3, 2\)": partial(k_cap_mlp, (3, 2), 2),
        r"^widths: expected sizes of input.*got \(3, 4, 4": partial(graph, 2),
        r"^widths: expected arrays .*\[1000000, 1000000\]": partial(k_cap_mlp, (10, 10**6, 10**6, 2), 2),
        "^widths: expected at most 1000 layers, got 1999": partial(k_cap_mlp, (3,) * 2000, 1),
        r"^rule.bins.place: expected bins in 0 \.\. 1, got 9 when 0 of 0": binned(lambda count, n: 9 + count),
        r"_init\(key, shape, dtype\): expected shape \[., .\], got \[7\]": drawing(lambda *_: np.ones(7)),
    },
    types={
        "^x: expected a floating-point array, got int32": partial(pl.k_cap, YS, 1),
        r"^rule.bins.place: expected a function of \(count \[out\], num_in.*got": binned(lambda count: count),
        r"_init\(.*\): expected a floating-point array, got None": drawing(lambda *_: None),
    },
)


def zeros(network: pl.KCapNetwork) -> Any:
    """A state, without drawing it: that takes longer than the tests."""
    return tuple({"w": np.zeros(shape, np.float32), "mask": np.ones(shape, bool)} for shape in network.shapes)


STATE = zeros(NETWORK)


def users_of(state: Any) -> Any:
    """All that takes a state."""
    return [
        partial(NETWORK.apply, state, XS),
        partial(pl.plastic_pass, NETWORK, TABLES, state, XS, YS),
        partial(pl.meta_rule, NETWORK, state),
        partial(pl.meta_init, NETWORK, state),
        lambda: pl.table_plasticity(NETWORK).update(TABLES, state, XS[0], 0),
    ]


def second(**entries: Any) -> Any:
    return users_of((STATE[0], {**STATE[1], **entries}, STATE[2]))


def run(xs: Any = XS, ys: Any = YS, tables: Any = TABLES, network: Any = NETWORK) -> Any:
    return partial(pl.plastic_pass, network, tables, zeros(network), xs, ys)


def one(x: Any = XS[0], y: Any = 1, tables: Any = TABLES) -> Any:
    return lambda: pl.table_plasticity(NETWORK).update(tables, STATE, x, y)


def both(**tables: Any) -> Any:
    return [make(tables=TABLES._replace(**tables)) for make in (run, one)]


def shared(network: Any) -> Any:
    return [partial(network.init_tables, KEY), partial(pl.meta_init, network, zeros(network))]


def learn(y: Any) -> Any:
    params = MetaParams(TABLES, STATE[0]["w"])
    return pl.meta_rule(NETWORK, STATE).value_and_grad(KEY, params, (), XS, y)


first = "^tables.hidden for layer 1: expected "
test_states_samples_and_tables = refusals(
    values={
        "^state: expected 3 layers, got 2": users_of(STATE[:2]),
        r"^state\[1\]\['w'\]: expected shape \[4, 5\], got \[4, 6\]": second(w=np.zeros((4, 6), np.float32)),
        r"^state\[1\]\['mask'\]: expected shape \[4, 5\], got \[4, 6\]": second(mask=np.ones((4, 6), bool)),
        r"^xs?: expected shape \[5, 3\], got \[5, 4\]": [
            call(np.ones((5, 4), np.float32)) for call in (run, partial(partial, NETWORK.apply, STATE))
        ],
        r"^xs: expected shape \[3, 3\], got \[3\]": run(XS[0]),
        "^number of samples in xs: expected at least 1, got 0": run(XS[:0], YS[:0]),
        r"^ys: expected shape \[5\], got \[4\]": run(ys=YS[:4]),
        r"^ys?: expected labels in 0 \.\. 1, got 2": [run(ys=2 * YS), one(y=2)],
        r"^x: expected shape \[3\], got \[5, 3\]": one(XS),
        r"^y: expected shape \[\], got \[5\]": one(y=YS),
        "^tables.hidden: .* each of 1 .*got 0": both(hidden=()),
        first + r"shape \[2, 2\], got \[2, 3\]": both(hidden=(np.zeros((2, 3), np.float32),)),
        r"^tables.output: expected shape \[2, 2\], got \[2\]": both(output=np.zeros(2, np.float32)),
        first + r"shape \[4, 4\], got \[2, 2\]": partial(pl.transfer, TABLES, RECURRENT),
        "^shared: expected hidden tables of the same shape, got": shared(
            k_cap_mlp((3, 4, 5, 6, 2), (2, 3, 4), rule=pl.post_count)
        ),
        r"^y: expected shape \[5, 2\], got": each(learn, np.zeros((5, 3)), np.zeros((4, 2)), YS),
        r"^y\[3\]: expected a one-hot row, got \[": [
            partial(learn, np.array([[1, 0], [0, 1], [1, 0], row, [0, 1]], float))
            for row in ([0, 0], [1, 1], [0.7, 0.3], [-1, 2], [np.nan, 1])
        ],
    },
    types={
        "^state: expected a tuple .*got None": partial(NETWORK.drive, None, XS),
        "^params.w: expected a floating.*got None": partial(pl.with_params, STATE, MetaParams(TABLES, None)),
        "^x: expected a floating-point array, got int32": [run(XS.astype(int)), one(XS[0].astype(int))],
        "^ys: expected integer labels, got float32": run(ys=np.ones(5)),
        first + "a floating-point array, got int32": both(hidden=(SQUARE.astype(int),)),
    },
)
