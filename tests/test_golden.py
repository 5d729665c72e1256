"""The public code's arrays, reproduced to 1e-10 in float64 with the same draws."""

import importlib
import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lax_learning as ll
from experiments.decorrelation import notebook as notebook_decorrelation
from experiments.microlearning import notebook
from lax_learning import metrics, plasticity
from lax_learning.plasticity import Scheme, Tables
from tests.compare import assert_close, slow_but

pytestmark = pytest.mark.usefixtures("x64", "always_default_passes")

KEY = 0
Golden = Callable[[str], Mapping[str, np.ndarray]]


def close(got: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(got), expected, rtol=0, atol=1e-10)
    assert np.asarray(got).dtype == np.float64


def in_order(values: Any) -> Callable[[Any, Any], Any]:
    """Noise with these leaves, in the order of what it is added to, whatever the key."""

    def noise(key: Any, like: Any) -> Any:
        pairs = zip(jax.tree.leaves(values), jax.tree.leaves(like), strict=True)
        return jax.tree.unflatten(jax.tree.structure(like), [v.reshape(leaf.shape) for v, leaf in pairs])

    return noise


class Tutorial:
    """The tutorial's small network. Its arrays are features first, with the bias as last column."""

    activations = (jax.nn.sigmoid, jax.nn.sigmoid)
    model = ll.mlp((12, 7, 4), activation=jax.nn.sigmoid, output_activation=jax.nn.sigmoid)

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.arrays = arrays
        self.key = jax.random.key(KEY)
        self.x, self.y = jnp.asarray(arrays["x"].T), jnp.asarray(arrays["t"].T)
        self.sigma = float(arrays["noise_sd"])
        self.params = self.layers("w_")

    def layers(self, prefix: str, scale: float = 1.0) -> tuple[dict[str, jax.Array], ...]:
        """The two arrays of that prefix as params, times `scale`."""

        def layer(matrix: np.ndarray) -> dict[str, jax.Array]:
            matrix = scale * matrix
            return {"w": jnp.asarray(matrix[:, :-1].T), "b": jnp.asarray(matrix[:, -1])}

        return tuple(layer(self.arrays[prefix + name]) for name in ("hidden", "output"))

    def weight_noise(self) -> dict[str, Any]:
        return {"sigma": self.sigma, "noise": in_order(self.layers("wp_noise_", 1 / self.sigma))}

    def node_noise(self) -> dict[str, Any]:
        names = ("np_noise_hidden", "np_noise_output")
        return {"sigma": self.sigma, "noise": in_order([self.arrays[name].T / self.sigma for name in names])}

    def update(self, rule: ll.Rule) -> Any:
        """`(loss, grads, state)` of the rule, with the tutorial's feedback."""

        def run(params: Any, x: Any, y: Any) -> Any:
            state = rule.init(self.key, params, x)
            if hasattr(state, "feedback"):
                feedback = jnp.asarray(self.arrays["feedback"])
                state = state._replace(feedback=({"w": None, "b": None}, {"w": feedback, "b": None}))
            return rule.value_and_grad(self.key, params, state, x, y)

        return jax.jit(run)(self.params, self.x, self.y)


@pytest.fixture
def tutorial(golden: Golden, x64: None) -> Tutorial:
    return Tutorial(golden("microlearning"))


def test_forward_pass_and_losses(tutorial: Tutorial) -> None:
    run = ll.tapped(tutorial.model).run(tutorial.params, tutorial.x)
    close(run.inputs["1/w"][0].T, tutorial.arrays["hidden"])
    close(run.output.T, tutorial.arrays["output"])
    close(ll.squared_error(run.output, tutorial.y), tutorial.arrays["loss_per_sample"])


def of_library(make: Callable[..., ll.Rule], options: Callable[[Tutorial], Any] = lambda t: {}) -> Any:
    """A rule of the library on the tutorial's network."""
    return lambda t: make(t.model, ll.squared_error, **options(t))


def notebook_nodes(t: Tutorial) -> ll.Rule:
    return notebook.node_perturbation(t.activations, ll.squared_error, **t.node_noise())


def notebook_pairs(t: Tutorial) -> ll.Rule:
    return notebook.kolen_pollack(t.model, ll.squared_error, optimizer=optax.sgd(1.0))


CENTRAL = {"difference": "central"}
# The tutorial's deltas are added to the weights: minus a gradient. Its own units are half the batch, 3, times
# those of the gradient.
OF_TUTORIAL: dict[str, tuple[Callable[[Tutorial], ll.Rule], str, float]] = {
    "bp": (of_library(ll.backprop), "grad_", 1),
    "bp-tutorial": (lambda t: notebook.in_notebook_units(of_library(ll.backprop)(t)), "bp_delta_", -1),
    "fa": (of_library(ll.feedback_alignment), "fa_delta_", -1 / 3),
    "kp-tutorial": (notebook_pairs, "kp_delta_", -1),
    "wp": (of_library(ll.weight_perturbation, Tutorial.weight_noise), "wp_delta_", -1),
    "wp-central": (
        of_library(ll.weight_perturbation, lambda t: {**t.weight_noise(), **CENTRAL}), "wp_central_grad_", 1
    ),
    "np": (of_library(ll.node_perturbation, Tutorial.node_noise), "np_pre_grad_", 1),
    "np-tutorial": (notebook_nodes, "np_delta_", -1),
    "fg": (
        of_library(ll.forward_gradient, lambda t: {"noise": in_order(t.layers("fg_tangent_"))}), "fg_grad_", 1
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OF_TUTORIAL)
def test_rules_of_the_tutorial(tutorial: Tutorial, name: str) -> None:
    make, prefix, scale = OF_TUTORIAL[name]
    loss, grads, state = tutorial.update(make(tutorial))
    close(loss, tutorial.arrays["loss"])
    for got, expected in zip(grads, tutorial.layers(prefix, scale), strict=True):
        close(got["w"], expected["w"])
        close(got["b"], expected["b"])
    if name == "kp-tutorial":  # a step of SGD with the rate 1
        moved = state.feedback[1]["w"] - tutorial.arrays["feedback"]
        close(moved, tutorial.arrays["kp_delta_feedback"])


@pytest.mark.parametrize(("sign", "name"), [(1, "wp_loss_plus"), (-1, "wp_loss_minus")])
def test_perturbed_losses(tutorial: Tutorial, sign: int, name: str) -> None:
    """Along a unit direction the estimator returns the difference to the loss at the perturbed weights."""
    noise = tutorial.layers("wp_noise_", sign)

    def losses_at(step: Any) -> Any:
        perturbed = jax.tree.map(lambda w, n: w + step * n, tutorial.params, noise)
        return ll.squared_error(tutorial.model.apply(perturbed, tutorial.x), tutorial.y)

    estimate = ll.estimators.weight_perturbation(losses_at, sigma=1.0, noise=in_order(jnp.ones(())))
    value, change = estimate(tutorial.key, jnp.zeros(()))
    close(value + change, tutorial.arrays[name])


def test_cosine_between_feedback_alignment_and_backprop(tutorial: Tutorial) -> None:
    of_aligned, of_exact = (
        tutorial.update(make(tutorial.model, ll.squared_error))[1][0]
        for make in (ll.feedback_alignment, ll.backprop)
    )
    close(metrics.cosine_similarity(of_aligned, of_exact), tutorial.arrays["cosine_fa_bp"])


def test_per_example_gradients_and_their_signal_to_noise_ratio(tutorial: Tutorial) -> None:
    expected = tutorial.arrays["per_sample_delta_hidden"]
    rule = notebook.in_notebook_units(ll.backprop(tutorial.model, ll.squared_error))

    @partial(jax.jit)
    def measured(x: jax.Array, y: jax.Array) -> Any:
        return metrics.example_moments(tutorial.model, rule, tutorial.key, tutorial.params, (), x, y)

    moments = measured(tutorial.x, tutorial.y)
    hidden = moments.parts(depth=1)["0"]
    for name, part in (("w", expected[:, :, :-1]), ("b", expected[:, :, -1])):
        close(-hidden.mean[f"0/{name}"].T, part.mean(0))
        close(hidden.variance[f"0/{name}"].T, part.var(0, ddof=1))
    for samples in (hidden, jnp.asarray(expected)):
        close(metrics.snr(samples, variant="tutorial").total.value, tutorial.arrays["snr_tutorial"])


DEEP = {
    "bp": ll.backprop,
    "fa": ll.feedback_alignment,
    "dfa": ll.direct_feedback_alignment,
    "usf": ll.sign_symmetry,
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_network(golden: Golden, name: str) -> None:
    """Three layers: `feedback{i}` belongs to layer i, `direct{i}` carries the output's error to layer i."""
    arrays = golden("deep_feedback")
    params = tuple({"w": jnp.asarray(arrays[f"w{i}"])} for i in range(3))
    rule = DEEP[name](ll.mlp((9, 8, 6, 5), activation=jnp.tanh, b_init=None), ll.squared_error)
    x, t = jnp.asarray(arrays["x"]), jnp.asarray(arrays["t"])
    state = jax.jit(rule.init)(jax.random.key(KEY), params, x)
    if name == "fa":
        feedback = ({"w": None}, *({"w": jnp.asarray(arrays[f"feedback{i}"])} for i in (1, 2)))
        assert jax.tree.structure(state.feedback) == jax.tree.structure(feedback)
        state = state._replace(feedback=feedback)
    if name == "dfa":
        direct = (jnp.asarray(arrays[f"direct{i}"]) for i in (0, 1))
        state = state._replace(feedback=dict(zip(sorted(state.feedback), direct, strict=True)))
    update = jax.jit(rule.value_and_grad)
    loss, grads, _ = update(jax.random.key(KEY), params, state, x, t)
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
    monkeypatch.setattr(importlib.import_module("lax_learning.plasticity._k_cap"), "_BITS_A_ROUND", 8)


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

    def check(
        self, network: plasticity.KCapNetwork, tables: Tables, state: Any, weights: list[str],
        non_edges: bool = False,
    ) -> None:  # fmt: skip
        """The pass ends with these weights, and the network with these outputs.

        A weight goes through one change a sample, of two roundings each: of the change and of the sum or
        product. A logit is made of as many weights as the network has layers and of as many sums, of at
        most 16 terms. Softmax and losses of it move by no more than the logits do.
        """
        after, _, done = jax.jit(partial(plasticity.plastic_pass, network))(tables, state, self.x, self.y)
        of_weights = 2 * NUM_SAMPLES
        expected = tuple(self.array(name).T for name in weights)
        found = [layer["w"] for layer in after[1:]]
        if non_edges:
            # The public code changes pairs without a synapse by the first entry of the table, for each sample
            # that it learns from, and masks these weights in the forward pass.
            elsewhere = network.scheme.step_size * tables.hidden[0][0, 0] * jnp.sum(done.updated)
            found[0] = jnp.where(after[1]["mask"], found[0], elsewhere)
        assert_close(tuple(found), expected, ulps=of_weights)

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


CHOICES = ("add.all.every", "add.two.wrong", "mul.all.every", "mul.two.wrong")
# Every table and every choice once.
TELLING = list(zip(TABLE_RULES, CHOICES, strict=True))


@pytest.mark.usefixtures("quick_caps")
@pytest.mark.parametrize(("table", "choices"), slow_but(TELLING, itertools.product(TABLE_RULES, CHOICES)))
def test_table_plasticity(golden: Golden, table: str, choices: str) -> None:
    check_feed_forward(golden("plasticity_ff"), table, choices, jnp.float64)


@pytest.mark.usefixtures("quick_caps")
@pytest.mark.parametrize("choices", ["all.every", "two.wrong"])
def test_recurrent_table_plasticity(golden: Golden, choices: str) -> None:
    rows, samples = choices.split(".")
    case = Case(golden("plasticity_rnn"), choices, jnp.float64)
    scheme = Scheme(rows=rows, samples=SAMPLES[samples])
    network = plasticity.k_cap_recurrent(
        (12, 16, 3), 5, rounds=2, fired="index", scheme=scheme, dtype=jnp.float64
    )
    state = case.state("w_in", ["mask_in", "mask_graph"], start=0.0)
    tables = Tables((case.array("graph_rule"),), case.array("output_rule"))
    case.check(network, tables, state, ["w_graph_after", "w_out_after"], non_edges=True)


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

    def draws(self, **changes: np.ndarray) -> ll.birth_death.Draws:
        survivor = (self.arrays["pick_kill"] + 0.5) / len(self.arrays["survivors"])
        u = {"kill": self.arrays["u_kill"], "survivor": survivor, "clone": self.arrays["u_clone"]} | changes
        u.setdefault("slot", np.full(len(survivor), 0.5))
        return ll.birth_death.Draws(**{name: jnp.asarray(values, self.dtype) for name, values in u.items()})

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

    def update(self, draws: ll.birth_death.Draws, **options: Any) -> tuple[Any, ll.birth_death.Events]:
        axes = {"w": 0, "c": 0} if self.first else {"w": 1, "c": 0}
        dynamics = ll.birth_death.dynamics(
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

DECORRELATION: dict[str, Callable[..., ll.Dynamics]] = {
    "seed": notebook_decorrelation.dynamics,
    "scaled": partial(notebook_decorrelation.dynamics, scaled=True),
    "paper.kappa0.0": partial(ll.decorrelation.dynamics, kappa=0.0),
    "paper.kappa0.5": partial(ll.decorrelation.dynamics, kappa=0.5),
    "decorbp.kappa0.0": partial(ll.decorrelation.dynamics, variant="decorbp", kappa=0.0),
    "decorbp.kappa0.5": partial(ll.decorrelation.dynamics, variant="decorbp", kappa=0.5),
}


@pytest.mark.parametrize("name", DECORRELATION)
def test_decorrelation(golden: Golden, name: str) -> None:
    arrays = golden("decorrelation")
    eta = float(arrays[f"{name.split('.')[0]}.eta"]) if name.startswith(("seed", "scaled")) else 0.01
    dynamics = DECORRELATION[name](eta)
    start = dynamics.init(arrays["x"].shape[-1])

    def step(state: ll.decorrelation.State, x: jax.Array) -> Any:
        state, diagnostics = dynamics.update(jax.random.key(KEY), state, x)
        return state, (state.R, diagnostics.loss)

    state, (path, losses) = jax.jit(partial(jax.lax.scan, step))(start, jnp.asarray(arrays["x"]))
    assert path.dtype == losses.dtype == jnp.float64 and state.step == len(arrays["x"])
    # sums of 7 and of 9 terms, and what five updates make of their roundings
    ulps = 5 * 2 * (7 + 9)
    assert_close(path, jnp.asarray(arrays[f"{name}.R"]), ulps=ulps)
    if f"{name}.loss" in arrays:
        assert_close(losses, jnp.asarray(arrays[f"{name}.loss"]), ulps=ulps)


def by_row(matrix: np.ndarray) -> np.ndarray:
    """Rows in the order (channel, row, column), of 2 channels and 3 x 3 points, as (row, column, channel)."""
    return matrix.reshape(2, 3, 3, -1).transpose(1, 2, 0, 3).reshape(matrix.shape)


def convolve(params: Any, x: jax.Array) -> jax.Array:
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, params[0]["w"], (2, 2), "VALID", dimension_numbers=layout)


# A convolution of XLA reads patches in the order of the golden arrays.
CONVOLUTIONS = {
    "lax": (ll.Model(convolve), lambda rows: rows),
    "convnet": (
        ll.convnet(
            (8, 8, 2), (5,), (1,), kernel=3, stride=2, padding="VALID", b_init=None, dtype=jnp.float64
        ),
        by_row,
    ),
}


@pytest.mark.parametrize("name", slow_but(["convnet"], CONVOLUTIONS))
def test_decorrelated_convolution(golden: Golden, name: str) -> None:
    arrays = {k.removeprefix("conv."): v for k, v in golden("decorrelation").items()}
    assert (arrays["stride"], arrays["padding"]) == (2, 1)
    model, ordered = CONVOLUTIONS[name]
    x = jnp.pad(arrays["image_nchw"].transpose(0, 2, 3, 1), ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel = by_row(arrays["kernel"].T).reshape(3, 3, 2, 5)
    params = ({"w": jnp.asarray(kernel)}, {"w": jnp.zeros((45, 1))})
    params = params[:1] if name == "lax" else params
    rule = ll.decorrelation.rule(
        lambda m: ll.backprop(m, ll.squared_error), model, ll.decorrelation.dynamics(0.01), where="0/w"
    )
    state = rule.init(jax.random.key(KEY), params, x)
    r = jnp.asarray(ordered(ordered(arrays["R"]).T).T)
    assert state.layers["0/w"].R.shape == r.shape
    layers = {"0/w": ll.decorrelation.State(r)}
    patches = ll.decorrelation.inputs(model, params, layers, x, where="0/w")["0/w"]
    expected = ordered(arrays["patches"].reshape(27, 18).T).T
    np.testing.assert_array_equal(patches, expected)
    run = ll.tapped(ll.decorrelation.wrap(model, layers, where="0/w")).run(params, x)
    z = ll.decorrelation.apply(layers["0/w"], patches)
    for got, wanted in (
        (run.pre_activations["0/w"].reshape(3, 9, 5), arrays["output_nlo"]),
        (z.T @ z / len(z), ordered(ordered(arrays["correlation"]).T).T),
    ):
        assert_close(got, jnp.asarray(wanted), ulps=2 * (18 + 27))
