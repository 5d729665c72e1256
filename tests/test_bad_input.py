"""Bad input of models, rules, estimators, training, ensembles and data: every message names the argument.

The checks of annotations that `conftest` adds are off here: these are the errors that a user sees.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lax_learning
from lax_learning.noise import normal
from tests.compare import slow_but
from tests.refusal import refusals, refuses
from tests.registry import RULES

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

# What a type checker would refuse is asked for here.
ll: Any = lax_learning
data, estimators, squared_error = ll.data, ll.estimators, ll.squared_error

KEY, W, SGD = jax.random.key(0), np.ones(2, "f"), optax.sgd(0.1)
X, Y = np.ones((5, 3), "f"), np.zeros((5, 2), "f")
MLP, MODEL = ll.mlp((3, 4, 2)), ll.Model(lambda w, x: x @ w)


def params_of(model: Any) -> Any:
    """Params without drawing them."""
    return jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), jax.eval_shape(model.init, KEY))


PARAMS = params_of(MLP)
FEEDBACK: dict[str, Any] = {
    "fa": ll.feedback_alignment,
    "dfa": ll.direct_feedback_alignment,
    "frsf": partial(ll.sign_symmetry, magnitude="fixed"),
    "kp": partial(ll.kolen_pollack, optimizer=SGD),
}


def drawn_feedback(value: Any) -> Any:
    made = [of(MLP, squared_error, feedback_init=lambda key, like: value) for of in FEEDBACK.values()]
    return [partial(jax.eval_shape, rule.init, KEY, PARAMS, X) for rule in made]


gains, node = estimators.spall_gains, partial(ll.node_perturbation, MLP, squared_error, sigma=0.1)
wp_estimator = partial(estimators.weight_perturbation, jnp.sum)


@pytest.mark.parametrize("name", FEEDBACK)
def test_feedback(name):
    rule = FEEDBACK[name](MLP, squared_error)
    state = jax.eval_shape(rule.init, KEY, PARAMS, X)
    larger = jax.tree.map(lambda leaf: np.ones((7, *leaf.shape)), state.feedback)
    structure = ": expected (the structure of params|a dict with the entries)"
    cases = [(larger, r".*: expected shape .*got \[7,"), *((of, structure) for of in (None, PARAMS[:1], "w"))]
    if name != "dfa":
        nothing = jax.tree.map(lambda leaf: None, PARAMS)
        cases.append((nothing, ": expected an array at '1/w', through which errors pass, got None"))
    for wrong, expected in cases:
        call = partial(rule.value_and_grad, KEY, PARAMS, state._replace(feedback=wrong), X, Y)
        refuses(call, ValueError, "^state.feedback" + expected)
    for wrong in (None, (), {}, PARAMS):
        call = partial(rule.value_and_grad, KEY, PARAMS, wrong, X, Y)
        refuses(call, TypeError, "^state: expected the state of the rule's init.*got ")


def of_rule(make: Any, sigma: Any, dtype: Any) -> Any:
    model = ll.mlp((3, 2), dtype=dtype)
    return make(model, squared_error, sigma=sigma).value_and_grad(KEY, params_of(model), (), X, Y)


def wide_loss(w: Any) -> Any:
    return jnp.sum(jnp.float32(w))


SIGMAS = {
    "weights": lambda sigma, dtype: estimators.weight_perturbation(wide_loss, sigma=sigma)(KEY, dtype(W)),
    "rule": partial(of_rule, ll.weight_perturbation),
    "nodes": partial(of_rule, ll.node_perturbation),
    "spsa": lambda c, dtype: estimators.spsa(wide_loss, perturbation=lambda n: c)(KEY, dtype(W), count=0),
}


@pytest.mark.parametrize("name", SIGMAS)
def test_sigma_that_the_dtype_cannot_hold(name):
    called = r"perturbation\(count\)" if name == "spsa" else "sigma"
    for sigma, dtype, limit in (
        (1e-9, jnp.float16, "float16 can tell from 0"),
        (1e39, jnp.float16, "float(16|32) can tell from infinity"),
        (1e-40, jnp.bfloat16, "(bfloat16|float32) can tell from 0"),
    ):
        pattern = f"^{called}: expected a number that {limit}"
        refuses(partial(jax.eval_shape, partial(SIGMAS[name], sigma, dtype)), ValueError, pattern)


# Own networks.

NETWORKS = {
    "mlp": (partial(ll.mlp, (3, 4, 2)), (3,)),
    "convnet": (partial(ll.convnet, (4, 4, 1), (2,), (3, 2)), (4, 4, 1)),
    "rnn": (partial(ll.rnn, (3, 4, 2)), (6, 3)),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_what_a_network_gets(kind):
    make, shape = NETWORKS[kind]
    model, x = make(), np.ones((5, *shape))
    params = params_of(model)
    names = r"batch, steps, 3" if kind == "rnn" else ", ".join(["batch", *map(str, shape)])
    a_dict = r"^params\[0\]: expected a dict with the entry 'w', got "
    cases: list[tuple[Any, Any, Any, str]] = [
        *(
            (params, wrong, ValueError, rf"^x: expected shape \[{names}\], got \[")
            for wrong in (x[0], x[..., None], np.concatenate([x, x], -1))
        ),
        (params, "x", TypeError, "^x: expected an array of real numbers, got 'x'"),
        *(
            (wrong, x, TypeError, f"^params: expected a sequence with the weights.*got {got}")
            for wrong, got in ((None, None), ("w", "'w'"), ({"0": 1}, "dict"))
        ),
        (params[:1], x, ValueError, f"^params: expected {len(params)} layers, got 1"),
        ((W, *params[1:]), x, ValueError, a_dict + r"float32\[2\]"),
        (({"b": W}, *params[1:]), x, ValueError, a_dict + r"\['b'\]"),
    ]
    if "u" in params[0]:
        without = {**params[0], "u": None}
        pattern = r"^params\[0\]: expected the entry 'u', got \['b', 'w'\]"
        cases.append(((without, *params[1:]), x, ValueError, pattern))
    for name, leaf in params[0].items():
        for wrong, error, expected in (
            (np.ones((7, *leaf.shape)), ValueError, r"shape \[.*\], got \["),
            (leaf.ravel()[:1], ValueError, r"shape \[.*\], got \["),
            ("w", TypeError, ".*got 'w'"),
            (leaf.astype(int), TypeError, "a floating.*got int"),
        ):
            given = ({**params[0], name: wrong}, *params[1:])
            cases.append((given, x, error, rf"^params\[0\]\['{name}'\]: expected {expected}"))
    for given, inputs, error, pattern in cases:
        refuses(partial(model.apply, given, inputs), error, pattern)


def drawing(value: Any) -> Any:
    made = [make(w_init=lambda key, shape, dtype: value) for make, _ in NETWORKS.values()]
    return [partial(model.init, KEY) for model in made]


image = partial(ll.convnet, channels=(2,), widths=(2,))


def test_what_is_converted():
    lists = [{k: v.tolist() for k, v in layer.items()} for layer in PARAMS]
    no_bias, zero_bias = (({**PARAMS[0], "b": b}, PARAMS[1]) for b in (None, 0 * PARAMS[0]["b"]))
    cases = (PARAMS, X), (lists, X.tolist()), (PARAMS, np.uint8(X)), (zero_bias, X), (no_bias, X)
    first, *same, without, other = jax.jit(lambda: [MLP.apply(*case) for case in cases])()
    for found, expected in (*((found, first) for found in same), (other, without)):
        np.testing.assert_array_equal(found, expected)
    assert jax.eval_shape(ll.mlp(np.array([3, 2])).init, KEY)[0]["w"].shape == (3, 2)
    assert wp_estimator(sigma=0.1)(KEY, 1.0)[0] == 1.0
    np.testing.assert_array_equal(data.one_hot([2, 0], 3), [[0, 0, 1], [1, 0, 0]])


# What goes into a rule.

TAKING = "node_perturbation", "spsa", "direct_feedback_alignment", "decorrelated_feedback_alignment"


@pytest.mark.parametrize("name", slow_but(TAKING, RULES))
def test_what_a_rule_gets(name):
    rule: Any = RULES[name](MLP, squared_error)
    good = {"key": KEY, "params": PARAMS, "x": X}
    state = jax.eval_shape(rule.init, KEY, PARAMS, X)

    def start(**given):
        return jax.eval_shape(lambda: rule.init(**given))

    def run(y=Y, of=rule.value_and_grad, **given):
        return jax.eval_shape(lambda state: of(state=state, y=y, **given), state)

    both = (
        ("key", 0, TypeError, r"one key, such as jax.random.key\(0\), got 0"),
        ("key", jax.random.split(KEY), ValueError, r"one key.*got key<fry>\[2\]"),
        ("params", None, ValueError, "at least one parameter, got an empty"),
        ("params", jax.tree.map(np.int32, PARAMS), TypeError, "a floating-point .*'0/b', got int32"),
        ("params", ({"w": "w"}, {}), TypeError, "an array, got 'w'"),
        ("x", "x", TypeError, "an array, got 'x'"),
        ("x", X[:0], ValueError, "at least one example, got 0"),
        *(("x", of, ValueError, "arrays with one leading axis") for of in (None, 1.0, {"a": X, "b": X[:2]})),
    )
    cases: Any = (
        *((of, *case) for of in (start, run) for case in both),
        (run, "params", PARAMS[:1], ValueError, "2 layers, got 1"),
        (run, "x", np.ones((5, 4)), ValueError, r"shape \[batch, 3\], got \[\d, 4\]"),
        (run, "y", Y[:4], ValueError, r"5 examples as in x, got float32\[4, 2\]"),
        (run, "y", Y + 1j, TypeError, "an array of real numbers, got complex64"),
        *((run, "y", wrong, TypeError, "an array.*, got") for wrong in ("y", {"a": Y})),
    )
    if rule.signals:
        refuses(partial(run, of=rule.signals, **good), ValueError, "^x: expected a batch of one example")
    for call, option, wrong, error, expected in cases:
        at = r"(\[0\]\['w'\])?" if option == "params" else ""
        refuses(partial(call, **{**good, option: wrong}), error, f"^{option}{at}: expected {expected}")

    per_example = r"one number per example, shape \[5\], got float32\["
    for loss, error, pattern in (
        (lambda o, y: jnp.mean(o - y), ValueError, per_example + r"\]"),
        (optax.l2_loss, ValueError, per_example + r"5, 2\]"),
        (lambda o, y: jnp.argmax(o, axis=-1), TypeError, "a floating.*int32"),
        (lambda o, y: (o, {}), TypeError, "a floating.*got tuple"),
    ):
        call = partial(run, of=RULES[name](MLP, loss).value_and_grad, **good)
        refuses(call, error, "^loss: expected " + pattern)


MISFIT = "^apply: expected params and x that fit the model, got "
decorrelated: Any = RULES["decorrelated_feedback_alignment"](MODEL, squared_error)
at_w, without_aux = ll.Model(lambda p, x: x @ p["w"]), ll.Model(MODEL.apply, has_aux=True)

ESTIMATORS = {
    "backprop": estimators.backprop,
    "weights": partial(estimators.weight_perturbation, sigma=0.1),
    "forward": estimators.forward_gradient,
    "spsa": lambda f, **options: partial(estimators.spsa(f, perturbation=lambda n: 0.1, **options), count=0),
}


@pytest.mark.parametrize("make", ESTIMATORS.values(), ids=ESTIMATORS)
def test_what_an_estimator_gets(make):
    scalar = "a scalar floating-point loss, or one loss per example, got "
    for loss_fn, error, expected in (
        (lambda w: jnp.sum(w > 0), TypeError, scalar + "int32"),
        (lambda w: (jnp.sum(w), w), TypeError, scalar + "tuple"),
        (lambda w: jnp.ones((3, 2)), TypeError, scalar + r"float32\[3, 2\]"),
        (lambda w: w[:0], ValueError, r"the loss of at least one .*float32\[0\]"),
    ):
        refuses(partial(make(loss_fn), KEY, W), error, f"^loss_fn: expected {expected}")
    pair = r"^loss_fn: expected a pair \(loss, aux\) because of has_aux, got "
    refuses(partial(make(jnp.sum, has_aux=True), KEY, W), TypeError, pair)
    for key, error in ((W, TypeError), (jax.random.split(KEY), ValueError)):
        for estimate in (make(jnp.sum), jax.jit(make(jnp.sum))):
            refuses(
                partial(estimate, key, W), error, r"^key: expected one key, .*got (float32|key<fry>)\[2\]"
            )
    for params, at, got in (
        ({"w": W, "n": np.arange(2)}, r"\['n'\]", r"int32\[2\]"),
        (["weights"], r"\[0\]", "'weights'"),
        (W > 0, "", r"bool\[2\]"),
    ):
        pattern = f"^params{at}: expected a floating-point array, got {got}"
        refuses(partial(make(lambda p: jnp.sum(W)), KEY, params), TypeError, pattern)


@pytest.mark.parametrize(("num_samples", "transform"), [(1, jax.jit), (2, lambda f: f)])
def test_forward_mode_through_a_function_without_one(num_samples, transform):
    function = jax.custom_vjp(lambda w: jnp.sum(w))
    function.defvjp(lambda w: (jnp.sum(w), None), lambda saved, d: (W * d,))
    estimate = transform(estimators.forward_gradient(function, num_samples=num_samples))
    pattern = "^loss_fn: expected functions with a forward-mode derivative.*got a custom_vjp"
    refuses(partial(estimate, KEY, W), TypeError, pattern)


def with_noise(drawn: Any, like: Any = W) -> Any:
    estimate = ESTIMATORS["weights"](lambda p: jnp.sum(jax.tree.leaves(p)[0]), noise=lambda key, like: drawn)
    return partial(estimate, KEY, like)


spsa = ll.spsa(MLP, squared_error, perturbation=lambda count: 0.1).value_and_grad


# Training runs.

SPLITS = data.Splits(*[data.Dataset(X, Y)] * 3)


def train(splits: Any = SPLITS, model: Any = MODEL, key: Any = KEY, **more: Any) -> Any:
    options = {"num_updates": 6, "batch_size": 1, "init": lambda key: np.ones((3, 2), "f"), **more}
    run = ll.make_train(ll.backprop(model, squared_error), SGD, **options)
    return partial(jax.eval_shape, lambda: run(key, splits))


absorbing = partial(train, model=ll.Model(lambda w, x: (x @ w, w), has_aux=True))


def of_train(x: Any = X, y: Any = Y) -> Any:
    return train(data.Splits(data.Dataset(x, y), None, None))


def members(*args: Any, **options: Any) -> Any:
    return partial(ll.ensemble(lambda *args: jax.tree.map(lambda leaf: 2 * leaf, args), **options), *args)


axes = r"^args: expected leading axes of one size, at least one, got "


def test_data_of_half_precision_are_labelled_in_float32():
    drawn = data.relu_net(KEY, 16, num_units=50, sizes=(4000, 0, 0), dtype=jnp.bfloat16).train
    pairs = zip(jax.random.split(KEY, 3), ((16, 50), (50, 2)), strict=False)
    w, v = (np.array(jax.random.uniform(key, shape, jnp.bfloat16, -1, 1), float) for key, shape in pairs)
    labels = np.argmax(np.maximum(np.array(drawn.x, float) @ w, 0) @ v, axis=-1)
    assert np.mean(np.argmax(np.float32(drawn.y), axis=-1) == labels) > 0.999
    problem = data.planted(70_000, 1, dtype=jnp.float16)  # whose sum of squares is beyond float16
    x, y = problem.sample(KEY, problem.init(KEY), 4)
    np.testing.assert_allclose(np.linalg.norm(np.float32(x), axis=1), 1, rtol=0.01)
    assert np.any(y)


planted, batches = data.planted(3, 2), data.batches(4, 2)


def test_an_idx_file_of_more_axes_than_numpy_has(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(bytes([0, 0, 8, 100]) + bytes([0, 0, 0, 1]) * 100 + b"x")
    refuses(partial(data.read_idx, path), ValueError, "expected axes that NumPy can hold, got 100")


test_refused = refusals(
    values={
        # rules
        "^share_noise: expected False with batch=True.*got True": partial(node, batch=True, share_noise=True),
        "^a: expected a number that float32 can tell from 0, got 1e-50": lambda: gains(a=1e-50, c=1.0),
        "^count: .*updates done, at least 0, got -1": lambda: gains(a=1.0, c=1.0).perturbation(-1),
        r"^feedback_init: expected shape \[4, 2\], got \[3\]": drawn_feedback(np.ones(3)),
        # networks
        "^widths: expected at least an input and an output": lambda: ll.mlp((3,)),
        "^widths: expected at least an input, a recurrent and an output": lambda: ll.rnn((3, 2)),
        "^activation: expected 2, one per.*got 1": lambda: ll.mlp((3, 4, 4, 2), activation=[jnp.tanh]),
        r"^input_shape: expected \(height, width, channels\), got \(4, 4\)": lambda: image((4, 4)),
        "^kernel, pool: .*room for layer 0": partial(image, (2, 2, 1), kernel=5, padding="VALID"),
        r"^w_init: expected shape \[.*\], got \[9\]": drawing(np.ones(9)),
        # models
        "^x: expected arrays .*got none": lambda: ll.tapped(MODEL).shapes(W, None),
        MISFIT + r"params\['v'\] float32\[2\] and x float32\[1, 3\]: KeyError\('w'\) at .*test_bad_input": (
            lambda: ll.sites(at_w, {"v": W}, X)
        ),
        MISFIT + "(?!.*" + MISFIT[1:] + ")": lambda: decorrelated.value_and_grad(
            KEY, np.ones((4, 2)), jax.eval_shape(decorrelated.init, KEY, np.ones((3, 2)), X), X, Y
        ),
        # estimators
        "^noise: expected the structure of the values": with_noise([W]),
        r"^noise\['b'\]: .*got \[3\]": with_noise({"a": W, "b": np.ones(3)}, {"a": W, "b": W}),
        r"^sigma: .*got float32\[2\]": lambda: jax.jit(lambda s: wp_estimator(sigma=s)(KEY, W))(W),
        # training
        r"^every: expected a divisor of num_updates \(6\), got 4": lambda: train(every=4),
        "^absorb: expected the structure of params": absorbing(absorb=lambda params, aux: None),
        "^data.train: expected as many y as x, got 2 and 5": of_train(y=Y[:2]),
        "^data.train: expected at .*got none": train(SPLITS._replace(train=None)),
        f"^data.train.y: .* that int32 can hold, got {2**40}": of_train(y=np.full((5, 2), 2**40)),
        # ensembles
        r"^in_axes: expected 0 or None.*\(1,\)": lambda: members(in_axes=(1,)),
        r"^in_axes: expected one entry for each of 2 arguments, got \(0,\)": members(X, X, in_axes=(0,)),
        axes + r"{'args\[0\]': 2, 'args\[1\]': 5}": members(W, X, in_axes=(0, 0)),
        axes: [members({"a": W, "b": X}), members({})],
        r"^args\[0\]: expected a leading axis of members, got a scalar": members(np.ones(())),
        # data
        "^sizes: expected arrays of at most": lambda: data.half_space(KEY, 3, sizes=(10**12, 0, 0)),
        "^num_classes: expected arrays of at most": lambda: data.one_hot([0], 10**10),
        r"^teacher\[0\]\['w'\]: expected shape \[3, 2\], got \[4, 2\]": partial(
            planted.sample, KEY, ({"w": np.ones((4, 2))}, {"w": np.ones((2, 1))}), 5
        ),
    },
    types={
        # rules
        "^feedback_init: expected a floating-point array, got 'w'": drawn_feedback("w"),
        # networks
        "^w_init: expected a floating-point array, got 'w'": drawing("w"),
        # models
        "^init: expected a model with an initialiser.*got one": lambda: MODEL.init(KEY),
        r"^apply: expected a pair .*has_aux=True, got ": lambda: ll.sites(without_aux, X.T, X),
        # estimators
        r"^noise: expected an array of real numbers, got bool\[2\]": with_noise(W > 0),
        r"^like\['a'\]: expected": lambda: normal(KEY, {"a": np.arange(3)}),
        r"^loss_fn: .* float32 or wider.*got bfloat16": lambda: wp_estimator(sigma=0.1)(KEY, jnp.bfloat16(W)),
        "^state: expected the state of the rule's.*got tuple": partial(spsa, KEY, PARAMS, (), X, Y),
        # training
        r"^evaluate\['a'\]: expected an array, got 'b'": train(evaluate=lambda *of: {"a": "b"}),
        "^absorb: expected a function .*got None": absorbing(absorb=None),
        "^absorb: expected None for a model.*got function": train(absorb=lambda params, aux: params),
        "^absorb: expected float32 as in params, got int32": absorbing(absorb=lambda p, aux: jnp.int32(aux)),
        "^key: expected one key.*got 0": train(key=0),
        r"^data: expected Splits, such as Splits\(train=.*got tuple": train((X, Y)),
        r"^data.train.x: expected an array of real.*got float64\[5, 3\]": of_train(np.ma.ones((5, 3))),
        # ensembles
        r"^args\[0\]: expected an array, got ShapeDtypeStruct float32": members(jax.eval_shape(lambda: W)),
        "^function: expected an.*got 'a'": lambda: ll.ensemble(lambda key: "a")(jax.random.split(KEY, 2)),
        # data
        "^step: expected one integer, got 0.5": lambda: batches.next(jax.eval_shape(batches.init, KEY), 0.5),
        "^labels: .* outside of jit, got traced": lambda: jax.eval_shape(lambda y: data.one_hot(y, 3), Y),
    },
)
