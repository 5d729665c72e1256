"""The public code's arrays, reproduced to 1e-10 in float64 with the same draws."""

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lax_learning as ll
from lax_learning import metrics, plasticity
from lax_learning.plasticity import Scheme, Tables
from tests.compare import assert_close
from tests.registry import as_model

pytestmark = pytest.mark.usefixtures("x64")

KEY = 0
Golden = Callable[[str], Mapping[str, np.ndarray]]


def close(got: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(got), expected, rtol=0, atol=1e-10)
    assert np.asarray(got).dtype == np.float64


def given(value: Any) -> Callable[[Any, Any], Any]:
    """Noise that is what it was told to be, whatever the key."""
    return lambda key, like: value


def in_order(values: Any) -> Callable[[Any, Any], Any]:
    """Noise with these leaves, in the order of what it is added to."""

    def noise(key: Any, like: Any) -> Any:
        pairs = zip(jax.tree.leaves(values), jax.tree.leaves(like), strict=True)
        return jax.tree.unflatten(jax.tree.structure(like), [v.reshape(leaf.shape) for v, leaf in pairs])

    return noise


class Tutorial:
    """The tutorial's small network. Its arrays are features first, with the bias as last column."""

    network = ll.mlp((12, 7, 4), activation=jax.nn.sigmoid, output_activation=jax.nn.sigmoid)

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.arrays = arrays
        self.key = jax.random.key(KEY)
        self.x, self.y = jnp.asarray(arrays["x"].T), jnp.asarray(arrays["t"].T)
        self.sigma = float(arrays["noise_sd"])
        hidden, output = self.layers("w_")
        self.params = (hidden, output)
        self.with_feedback = (hidden, {**output, "feedback": jnp.asarray(arrays["feedback"])})

    def layers(self, prefix: str, scale: float = 1.0) -> tuple[dict[str, jax.Array], ...]:
        """The two arrays of that prefix as params, times `scale`."""

        def layer(matrix: np.ndarray) -> dict[str, jax.Array]:
            matrix = scale * matrix
            return {"w": jnp.asarray(matrix[:, :-1].T), "b": jnp.asarray(matrix[:, -1])}

        return tuple(layer(self.arrays[prefix + name]) for name in ("hidden", "output"))

    def weight_noise(self) -> Callable[[Any, Any], Any]:
        return given(self.layers("wp_noise_", 1 / self.sigma))

    def node_noise(self) -> Callable[[Any, Any], Any]:
        names = ("np_noise_hidden", "np_noise_output")
        return given(tuple(jnp.asarray(self.arrays[name].T / self.sigma) for name in names))

    def check(self, rule: ll.Rule, params: Any, prefix: str, scale: float = 1.0) -> Any:
        """The rule's gradients, times `scale`, are the arrays of that prefix."""
        loss, grads = rule.value_and_grad(self.key, params, self.x, self.y)
        close(loss, self.arrays["loss"])
        for got, expected in zip(grads, self.layers(prefix, scale), strict=True):
            close(got["w"], expected["w"])
            close(got["b"], expected["b"])
        return grads


@pytest.fixture
def tutorial(golden: Golden, x64: None) -> Tutorial:
    return Tutorial(golden("microlearning"))


def test_forward_pass_and_losses(tutorial: Tutorial) -> None:
    trace = tutorial.network.forward(tutorial.params, tutorial.x)
    close(trace.inputs[1].T, tutorial.arrays["hidden"])
    close(trace.output.T, tutorial.arrays["output"])
    close(ll.squared_error(trace.output, tutorial.y), tutorial.arrays["loss_per_sample"])


@pytest.mark.parametrize(
    ("rule", "params", "prefix", "scale"),
    [
        (lambda t: ll.backprop(t.network, ll.squared_error), "params", "grad_", 1),
        (lambda t: ll.backprop(t.network, ll.squared_error, scale="tutorial"), "params", "bp_delta_", -1),
        (
            lambda t: ll.feedback_alignment(t.network, ll.squared_error, scale="tutorial"),
            "with_feedback",
            "fa_delta_",
            -1,
        ),
        (
            lambda t: ll.kolen_pollack(t.network, ll.squared_error, decay_bias=True, scale="tutorial"),
            "with_feedback",
            "kp_delta_",
            -1,
        ),
        (
            lambda t: ll.weight_perturbation(
                t.network, ll.squared_error, sigma=t.sigma, noise=t.weight_noise()
            ),
            "params",
            "wp_delta_",
            -1,
        ),
        (
            lambda t: ll.weight_perturbation(
                t.network, ll.squared_error, sigma=t.sigma, noise=t.weight_noise(), difference="central"
            ),
            "params",
            "wp_central_grad_",
            1,
        ),
        (
            lambda t: ll.node_perturbation(
                t.network, ll.squared_error, sigma=t.sigma, noise=t.node_noise(), variant="tutorial"
            ),
            "params",
            "np_delta_",
            -1,
        ),
        (
            lambda t: ll.node_perturbation(t.network, ll.squared_error, sigma=t.sigma, noise=t.node_noise()),
            "params",
            "np_pre_grad_",
            1,
        ),
        (
            lambda t: ll.forward_gradient(t.network, ll.squared_error, noise=given(t.layers("fg_tangent_"))),
            "params",
            "fg_grad_",
            1,
        ),
    ],
    ids=["bp", "bp-tutorial", "fa", "kp", "wp", "wp-central", "np-tutorial", "np", "fg"],
)
def test_rules_of_the_tutorial(
    tutorial: Tutorial, rule: Callable[[Tutorial], ll.Rule], params: str, prefix: str, scale: int
) -> None:
    # The tutorial's deltas are added to the weights: minus a gradient.
    tutorial.check(rule(tutorial), getattr(tutorial, params), prefix, scale)


@pytest.mark.parametrize(
    ("make", "prefix", "scale"),
    [
        (lambda t, m: ll.backprop(m, ll.squared_error), "grad_", 1.0),
        # The tutorial's deltas are minus half the batch times a gradient.
        (lambda t, m: ll.feedback_alignment(m, ll.squared_error), "fa_delta_", lambda t: -2 / len(t.x)),
        (
            lambda t, m: ll.weight_perturbation(
                m, ll.squared_error, sigma=t.sigma, noise=in_order(t.weight_noise()(None, None))
            ),
            "wp_delta_",
            -1.0,
        ),
        (
            lambda t, m: ll.weight_perturbation(
                m,
                ll.squared_error,
                sigma=t.sigma,
                noise=in_order(t.weight_noise()(None, None)),
                difference="central",
            ),
            "wp_central_grad_",
            1.0,
        ),
        (
            lambda t, m: ll.node_perturbation(
                m, ll.squared_error, sigma=t.sigma, noise=in_order(t.node_noise()(None, None))
            ),
            "np_pre_grad_",
            1.0,
        ),
    ],
    ids=["bp", "fa", "wp", "wp-central", "np"],
)
def test_rules_of_the_tutorial_on_a_model(tutorial: Tutorial, make: Any, prefix: str, scale: Any) -> None:
    rule = make(tutorial, as_model(tutorial.network))
    state = rule.init(tutorial.key, tutorial.params, tutorial.x)
    if prefix == "fa_delta_":
        feedback = jnp.asarray(tutorial.arrays["feedback"])
        state = state._replace(feedback=({"w": None, "b": None}, {"w": feedback, "b": None}))

    def value_and_grad(key: Any, params: Any, x: Any, y: Any) -> Any:
        return rule.value_and_grad(key, params, state, x, y)[:2]

    scale = scale(tutorial) if callable(scale) else scale
    tutorial.check(ll.Rule(tutorial.network.init, value_and_grad), tutorial.params, prefix, scale)


def test_kolen_pollack_feedback(tutorial: Tutorial) -> None:
    rule = ll.kolen_pollack(tutorial.network, ll.squared_error, decay_bias=True, scale="tutorial")
    grads = tutorial.check(rule, tutorial.with_feedback, "kp_delta_", -1)
    close(-grads[1]["feedback"], tutorial.arrays["kp_delta_feedback"])


@pytest.mark.parametrize(("sign", "name"), [(1, "wp_loss_plus"), (-1, "wp_loss_minus")])
def test_perturbed_losses(tutorial: Tutorial, sign: int, name: str) -> None:
    noise = tutorial.layers("wp_noise_", sign)

    def losses_at(step: Any) -> Any:
        perturbed = jax.tree.map(lambda w, n: w + step * n, tutorial.params, noise)
        return ll.squared_error(tutorial.network.apply(perturbed, tutorial.x), tutorial.y)

    close(jnp.mean(losses_at(1.0)), tutorial.arrays[name])
    # and the estimator sees this loss: along a unit direction it returns the difference quotient
    estimate = ll.estimators.weight_perturbation(losses_at, sigma=1.0, noise=given(jnp.ones(())))
    value, change = estimate(tutorial.key, jnp.zeros(()))
    close(value + change, tutorial.arrays[name])


def test_per_example_gradients(tutorial: Tutorial) -> None:
    expected = tutorial.arrays["per_sample_delta_hidden"]
    rule = ll.backprop(tutorial.network, ll.squared_error, scale="tutorial")

    def alone(x: jax.Array, y: jax.Array) -> Any:
        return rule.value_and_grad(tutorial.key, tutorial.params, x[None], y[None])[1][0]

    @jax.jit
    def both(x: jax.Array, y: jax.Array) -> Any:
        moments = metrics.example_moments(tutorial.network, rule, tutorial.key, tutorial.params, x, y)
        return jax.vmap(alone)(x, y), moments

    each, moments = jax.tree.map(np.asarray, both(tutorial.x, tutorial.y))
    close(-each["w"].swapaxes(1, 2), expected[:, :, :-1])
    close(-each["b"], expected[:, :, -1])

    hidden = moments.layers()[0]
    for name, part in (("w", expected[:, :, :-1]), ("b", expected[:, :, -1])):
        close(-hidden.mean[name].T, part.mean(0))
        close(hidden.variance[name].T, part.var(0, ddof=1))


def test_signal_to_noise_ratio(tutorial: Tutorial) -> None:
    expected = tutorial.arrays["snr_tutorial"]
    rule = ll.backprop(tutorial.network, ll.squared_error, scale="tutorial")
    hidden = metrics.example_moments(
        tutorial.network, rule, tutorial.key, tutorial.params, tutorial.x, tutorial.y
    ).layers()[0]
    close(metrics.snr(hidden, variant="tutorial").total.value, expected)
    stacked = jnp.asarray(tutorial.arrays["per_sample_delta_hidden"])
    close(metrics.snr(stacked, variant="tutorial").total.value, expected)


def test_cosine_between_feedback_alignment_and_backprop(tutorial: Tutorial) -> None:
    batch = (tutorial.x, tutorial.y)
    aligned = ll.feedback_alignment(tutorial.network, ll.squared_error)
    exact = ll.backprop(tutorial.network, ll.squared_error)
    _, (of_aligned, _) = aligned.value_and_grad(tutorial.key, tutorial.with_feedback, *batch)
    _, (of_exact, _) = exact.value_and_grad(tutorial.key, tutorial.params, *batch)
    close(metrics.cosine_similarity(of_aligned, of_exact), tutorial.arrays["cosine_fa_bp"])


# Three layers: feedback{i} belongs to layer i, direct{i} carries the output's error to hidden layer i.
NO_FEEDBACK = (None, None, None)


@pytest.mark.parametrize(
    ("name", "factory", "feedback"),
    [
        ("bp", ll.backprop, NO_FEEDBACK),
        ("fa", ll.feedback_alignment, (None, "feedback1", "feedback2")),
        ("dfa", ll.direct_feedback_alignment, ("direct0", "direct1", None)),
        ("usf", ll.sign_symmetry, NO_FEEDBACK),
    ],
)
def test_deep_network(golden: Golden, name: str, factory: Callable[..., ll.Rule], feedback: Any) -> None:
    arrays = golden("deep_feedback")
    network = ll.mlp((9, 8, 6, 5), activation=jnp.tanh, b_init=None)
    params = tuple(
        {"w": jnp.asarray(arrays[f"w{i}"])}
        | ({} if entry is None else {"feedback": jnp.asarray(arrays[entry])})
        for i, entry in enumerate(feedback)
    )
    rule = factory(network, ll.squared_error)
    x, t = jnp.asarray(arrays["x"]), jnp.asarray(arrays["t"])
    loss, grads = rule.value_and_grad(jax.random.key(KEY), params, x, t)
    close(loss, arrays["loss"])
    for i, layer in enumerate(grads):
        close(layer["w"], arrays[f"{name}_grad_w{i}"])


@pytest.mark.parametrize("name", ["bp", "fa", "dfa"])
def test_deep_network_as_a_model(golden: Golden, name: str) -> None:
    arrays = golden("deep_feedback")
    network = ll.mlp((9, 8, 6, 5), activation=jnp.tanh, b_init=None)
    params = tuple({"w": jnp.asarray(arrays[f"w{i}"])} for i in range(3))
    make = {"bp": ll.backprop, "fa": ll.feedback_alignment, "dfa": ll.direct_feedback_alignment}[name]
    rule = make(as_model(network), ll.squared_error)
    x, t = jnp.asarray(arrays["x"]), jnp.asarray(arrays["t"])
    state = rule.init(jax.random.key(KEY), params, x)
    if name == "fa":
        feedback = ({"w": None}, *({"w": jnp.asarray(arrays[f"feedback{i}"])} for i in (1, 2)))
        assert jax.tree.structure(state.feedback) == jax.tree.structure(feedback)
        state = state._replace(feedback=feedback)
    if name == "dfa":
        direct = (jnp.asarray(arrays[f"direct{i}"]) for i in (0, 1))
        state = state._replace(feedback=dict(zip(sorted(state.feedback), direct, strict=True)))
    loss, grads, _ = rule.value_and_grad(jax.random.key(KEY), params, state, x, t)
    close(loss, arrays["loss"])
    for i, layer in enumerate(grads):
        close(layer["w"], arrays[f"{name}_grad_w{i}"])


# --- k-cap networks and plasticity tables

TABLE_RULES = {
    "prepost": plasticity.pre_post,
    "prepostcount": plasticity.pre_post_count,
    "prepostpercent": plasticity.pre_post_percent,
    "postcount": plasticity.post_count,
}
UPDATES = {"add": "additive", "mul": "multiplicative"}
SAMPLES = {"every": "every", "wrong": "misclassified"}
FORWARD = jax.jit(plasticity.k_cap_mlp((12, 16, 16, 16, 3), 5).apply)
NUM_SAMPLES = 16


@pytest.fixture
def quick_caps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search within a cap in fewer and larger steps: the same result, compiled several times faster."""
    monkeypatch.setattr(importlib.import_module("lax_learning.plasticity.k_cap"), "_BITS_A_ROUND", 8)


class Case:
    """One case of a file of golden arrays, as the library takes them: `[in, out]`."""

    def __init__(self, arrays: Mapping[str, np.ndarray], name: str, dtype: Any) -> None:
        prefix = name + "."
        self.arrays = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
        self.dtype = dtype
        self.x, self.y = self.array("x"), jnp.asarray(self.arrays["y"])

    def array(self, name: str) -> jax.Array:
        return jnp.asarray(self.arrays[name], self.dtype)

    def state(self, w: str, masks: list[str], start: float) -> plasticity.State:
        """The first layer's weights as given, all others at `start`, and the output fully connected."""
        of_layers = [jnp.asarray(self.arrays[mask].T > 0) for mask in masks]
        of_layers.append(jnp.ones((16, 3), bool))
        first, *plastic = of_layers
        layers = [{"w": jnp.full(mask.shape, start, self.dtype), "mask": mask} for mask in plastic]
        return ({"w": self.array(w).T, "mask": first}, *layers)

    def check(self, network: plasticity.KCapNetwork, tables: Tables, state: Any, weights: list[str]) -> None:
        """The pass ends with these weights, and the network with these outputs.

        A weight goes through one change a sample, of two roundings each: of the change and of the sum or
        product. A logit is made of as many weights as the network has layers and of as many sums, of at
        most 16 terms. Softmax and losses of it move by no more than the logits do.
        """
        after, _, _ = jax.jit(partial(plasticity.plastic_pass, network))(tables, state, self.x, self.y)
        of_weights = 2 * NUM_SAMPLES
        expected = tuple(self.array(name).T for name in weights)
        assert_close(tuple(layer["w"] for layer in after[1:]), expected, ulps=of_weights)

        logits = (FORWARD if len(state) == 4 else jax.jit(network.apply))(after, self.x)
        roundings = len(state) * (of_weights + 16) * float(jnp.finfo(self.dtype).eps)
        tolerance = roundings * max(1.0, float(jnp.max(jnp.abs(logits))))
        probs = jax.nn.softmax(logits)
        losses = ll.softmax_cross_entropy(probs, jax.nn.one_hot(self.y, 3, dtype=self.dtype))
        for got, name in ((probs, "probs_after"), (jnp.mean(losses), "loss_after")):
            assert got.dtype == self.dtype
            np.testing.assert_allclose(got, self.arrays[name], rtol=0, atol=tolerance)


def check_feed_forward(arrays: Mapping[str, np.ndarray], table: str, choices: str, dtype: Any) -> None:
    update, rows, samples = choices.split(".")
    case = Case(arrays, f"{table}.{choices}", dtype)
    scheme = Scheme(update=UPDATES[update], rows=rows, samples=SAMPLES[samples])
    network = plasticity.k_cap_mlp(
        (12, 16, 16, 16, 3), 5, rule=TABLE_RULES[table], scheme=scheme, dtype=dtype
    )
    state = case.state("w0", ["mask0", "mask1", "mask2"], start=1.0 if update == "mul" else 0.0)
    tables = Tables((case.array("hidden_rule"),), case.array("output_rule"))
    case.check(network, tables, state, ["w1_after", "w2_after", "w_out_after"])


@pytest.mark.usefixtures("quick_caps")
@pytest.mark.parametrize("choices", ["add.all.every", "add.two.wrong", "mul.all.every", "mul.two.wrong"])
@pytest.mark.parametrize("table", TABLE_RULES)
def test_table_plasticity(golden: Golden, table: str, choices: str) -> None:
    check_feed_forward(golden("plasticity_ff"), table, choices, jnp.float64)


@pytest.mark.usefixtures("quick_caps")
@pytest.mark.parametrize(
    ("table", "choices"),
    [
        ("prepost", "add.all.every"),
        ("prepostcount", "add.two.wrong"),
        ("prepostpercent", "mul.all.every"),
        ("postcount", "mul.two.wrong"),
    ],
)
def test_table_plasticity_in_single_precision(golden: Golden, table: str, choices: str) -> None:
    check_feed_forward(golden("plasticity_ff"), table, choices, jnp.float32)


@pytest.mark.usefixtures("quick_caps")
@pytest.mark.parametrize("choices", ["all.every", "two.wrong"])
def test_recurrent_table_plasticity(golden: Golden, choices: str) -> None:
    rows, samples = choices.split(".")
    case = Case(golden("plasticity_rnn"), choices, jnp.float64)
    scheme = Scheme(rows=rows, samples=SAMPLES[samples], non_edges=True)
    network = plasticity.k_cap_recurrent(
        (12, 16, 3), 5, rounds=2, fired="index", scheme=scheme, dtype=jnp.float64
    )
    state = case.state("w_in", ["mask_in", "mask_graph"], start=0.0)
    tables = Tables((case.array("graph_rule"),), case.array("output_rule"))
    case.check(network, tables, state, ["w_graph_after", "w_out_after"])


# --- neuron birth-death


class Resampling:
    """The golden population, and the random choices of the public code as uniform numbers."""

    def __init__(self, arrays: Mapping[str, np.ndarray], dtype: Any, neurons: str) -> None:
        self.arrays, self.dtype, self.first = arrays, dtype, neurons == "first"
        self.alpha = float(arrays["alpha"])
        self.clones, self.others = np.flatnonzero(arrays["clone"]), arrays["non_clones"]

    def population(self, w: str, c: str) -> dict[str, jax.Array]:
        """These two arrays as params: `[neuron, in]` and `[neuron]`, or `[in, neuron]` and `[neuron, 1]`."""
        pair = self.arrays[w], self.arrays[c]
        w_, c_ = pair if self.first else (pair[0].T, pair[1][:, None])
        return {"w": jnp.asarray(w_, self.dtype), "c": jnp.asarray(c_, self.dtype)}

    def draws(self, **changes: np.ndarray) -> ll.Draws:
        survivor = (self.arrays["pick_kill"] + 0.5) / len(self.arrays["survivors"])
        u = {"kill": self.arrays["u_kill"], "survivor": survivor, "clone": self.arrays["u_clone"]} | changes
        u.setdefault("slot", np.full(len(survivor), 0.5))
        return ll.Draws(**{name: jnp.asarray(values, self.dtype) for name, values in u.items()})

    def independent_slots(self) -> np.ndarray:
        """Each clone chooses the golden one of all that are not cloned."""
        u = np.zeros(len(self.arrays["w2"]))
        u[self.clones] = (self.arrays["pick_clone"] + 0.5) / len(self.others)
        return u

    def distinct_slots(self) -> np.ndarray:
        """Clones come in their own order, and what they overwrite in the order of the golden choices."""
        u = np.full(len(self.arrays["w2"]), 0.75)
        turns = np.linspace(0, 0.5, len(self.clones))
        u[self.clones], u[self.others[self.arrays["pick_clone"]]] = turns, turns
        return u

    def update(self, draws: ll.Draws, **options: Any) -> tuple[Any, ll.Events]:
        axes = {"w": 0, "c": 0} if self.first else {"w": 1, "c": 0}
        dynamics = ll.birth_death(
            self.alpha, axes=axes, charges=lambda p: p["c"], draws=lambda key, n: draws, **options
        )
        params, slopes = self.population("w1", "w2"), self.population("w1", "grad_w2")
        gradients = {"w": jnp.full_like(params["w"], jnp.nan), "c": slopes["c"]}  # only those of c count
        (params, _), events = dynamics.update(jax.random.key(KEY), params, dynamics.init(params), gradients)
        return params, events

    def check(self, params: Any, w: str, c: str) -> None:
        """Neurons are only carried around: equal to the last bit."""
        assert_close(params, self.population(w, c), ulps=0)


@pytest.mark.parametrize(
    ("dtype", "neurons"), [(jnp.float64, "first"), (jnp.float64, "last"), (jnp.float32, "first")]
)
def test_birth_death(golden: Golden, dtype: Any, neurons: str) -> None:
    case = Resampling(golden("birth_death"), dtype, neurons)
    never = np.full(len(case.arrays["w2"]), np.inf)
    after_kill, events = case.update(case.draws(clone=never))
    case.check(after_kill, "w1_after_kill", "w2_after_kill")
    assert not events.cloned.any()

    for slots, u in (("independent", case.independent_slots()), ("distinct", case.distinct_slots())):
        after, events = case.update(case.draws(slot=u), slots=slots)
        case.check(after, "w1_after", "w2_after")
        np.testing.assert_array_equal(events.killed, case.arrays["kill"])
        np.testing.assert_array_equal(events.cloned, case.arrays["clone"])
        np.testing.assert_array_equal(np.flatnonzero(~events.killed), case.arrays["survivors"])


@pytest.mark.parametrize(("center", "name"), [("none", "rate"), ("mean", "rate_centred")])
def test_birth_death_rates(golden: Golden, center: str, name: str) -> None:
    case = Resampling(golden("birth_death"), jnp.float64, "first")
    _, events = case.update(case.draws(), center=center)
    close(case.alpha * events.rates, case.arrays[name])


@pytest.mark.parametrize("neurons", ["first", "last"])
def test_birth_death_from_a_prior(golden: Golden, neurons: str) -> None:
    case = Resampling(golden("birth_death"), jnp.float64, neurons)
    fresh = case.population("prior_draw", "w2")  # fresh charges are 0 whatever the prior says
    params, events = case.update(case.draws(), scheme="prior", prior=lambda key, params: fresh)
    case.check(params, "w1_prior", "w2_prior")
    np.testing.assert_array_equal(events.origin == -1, case.arrays["kill"])
    assert not events.cloned.any()


# --- decorrelation

DECORRELATION: dict[str, dict[str, Any]] = {
    "seed": {"variant": "seed", "variance": 1.0},
    "scaled": {"variant": "scaled", "variance": 1.0},
    "paper.kappa0.0": {"kappa": 0.0},
    "paper.kappa0.5": {"kappa": 0.5},
    "decorbp.kappa0.0": {"variant": "decorbp", "kappa": 0.0},
    "decorbp.kappa0.5": {"variant": "decorbp", "kappa": 0.5},
}


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
@pytest.mark.parametrize("name", DECORRELATION)
def test_decorrelation(golden: Golden, name: str, dtype: Any) -> None:
    arrays = golden("decorrelation")
    eta = float(arrays[f"{name.split('.')[0]}.eta"]) if name.startswith(("seed", "scaled")) else 0.01
    dynamics = ll.decorrelation(eta, **DECORRELATION[name])
    start = dynamics.init((arrays["x"].shape[-1],))
    start = start._replace(layers=jax.tree.map(lambda leaf: leaf.astype(dtype), start.layers))

    def step(state: ll.DecorrelationState, x: jax.Array) -> Any:
        state, diagnostics = dynamics.update(jax.random.key(KEY), state, (x,))
        return state, (state.layers[0]["R"], diagnostics.loss[0])

    state, (path, losses) = jax.jit(partial(jax.lax.scan, step))(start, jnp.asarray(arrays["x"], dtype))
    assert path.dtype == losses.dtype == dtype and state.step == len(arrays["x"])
    # sums of 7 and of 9 terms, and what five updates make of their roundings
    ulps = 5 * 2 * (7 + 9)
    assert_close(path, jnp.asarray(arrays[f"{name}.R"], dtype), ulps=ulps)
    if f"{name}.loss" in arrays:
        assert_close(losses, jnp.asarray(arrays[f"{name}.loss"], dtype), ulps=ulps)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_decorrelated_convolution(golden: Golden, dtype: Any) -> None:
    arrays = {k.removeprefix("conv."): v for k, v in golden("decorrelation").items()}
    images = jnp.asarray(arrays["image_nchw"].transpose(0, 2, 3, 1), dtype)
    stride, padding = int(arrays["stride"]), int(arrays["padding"])
    layer = ll.convolution(2, 5, 3, stride=stride, padding=padding, b_init=None)
    network = ll.Network((layer,), images.shape[1:])
    reads = layer.reads
    assert reads is not None

    patches = reads.take(images, None)
    np.testing.assert_array_equal(patches.reshape(3, 9, 18), arrays["patches"].astype(dtype))
    learned = {"R": jnp.asarray(arrays["R"], dtype)}
    state = ll.decorrelation(0.01).init(network)._replace(layers=(learned,))
    params = ({"w": reads.unflat(jnp.asarray(arrays["kernel"].T, dtype), (3, 3, 2, 5))},)
    output = ll.decorrelated(network, state).apply(params, images)
    z = ll.decorrelate(learned, patches)
    for got, name in ((output.reshape(3, 9, 5), "output_nlo"), (z.T @ z / len(z), "correlation")):
        assert_close(got, jnp.asarray(arrays[name], dtype), ulps=2 * (18 + 27))
