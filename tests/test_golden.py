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

pytestmark = pytest.mark.usefixtures("x64")

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
        self.params, sigma = self.layers("w_"), float(arrays["noise_sd"])
        self.weight_noise: Any = {"sigma": sigma, "noise": in_order(self.layers("wp_noise_", 1 / sigma))}
        of_nodes = [arrays[f"np_noise_{layer}"].T / sigma for layer in ("hidden", "output")]
        self.node_noise: Any = {"sigma": sigma, "noise": in_order(of_nodes)}

    def layers(self, prefix: str, scale: float = 1.0) -> tuple[dict[str, jax.Array], ...]:
        """The two arrays of that prefix as params, times `scale`."""
        matrices = [scale * self.arrays[prefix + name] for name in ("hidden", "output")]
        return tuple({"w": jnp.asarray(m[:, :-1].T), "b": jnp.asarray(m[:, -1])} for m in matrices)

    def rules(self) -> dict[str, tuple[ll.Rule, str, float]]:
        """Rules, the arrays of their gradients, and the factor of these.

        The tutorial's deltas are added to the weights: minus a gradient. Its own units are half the batch,
        3, times those of the gradient.
        """
        of_model = (self.model, ll.squared_error)
        on_weights = partial(ll.weight_perturbation, *of_model, **self.weight_noise)
        backprop = ll.backprop(*of_model)
        tangents = in_order(self.layers("fg_tangent_"))
        return {
            "bp": (backprop, "grad_", 1),
            "bp-tutorial": (notebook.in_notebook_units(backprop), "bp_delta_", -1),
            "fa": (ll.feedback_alignment(*of_model), "fa_delta_", -1 / 3),
            "kp-tutorial": (notebook.kolen_pollack(*of_model, optimizer=optax.sgd(1.0)), "kp_delta_", -1),
            "wp": (on_weights(), "wp_delta_", -1),
            "wp-central": (on_weights(difference="central"), "wp_central_grad_", 1),
            "np": (ll.node_perturbation(*of_model, **self.node_noise), "np_pre_grad_", 1),
            "np-tutorial": (
                notebook.node_perturbation(self.activations, ll.squared_error, **self.node_noise),
                "np_delta_", -1,
            ),
            "fg": (ll.forward_gradient(*of_model, noise=tangents), "fg_grad_", 1),
        }  # fmt: skip


def test_rules_of_the_tutorial(golden: Golden) -> None:
    tutorial = Tutorial(golden("microlearning"))
    rules, arrays = tutorial.rules(), tutorial.arrays

    @jax.jit
    def run(params: Any, x: Any, y: Any) -> Any:
        found = {}
        for name, (rule, *_) in rules.items():
            state = rule.init(tutorial.key, params, x)
            if hasattr(state, "feedback"):
                feedback = jnp.asarray(arrays["feedback"])
                state = state._replace(feedback=({"w": None, "b": None}, {"w": feedback, "b": None}))
            found[name] = rule.value_and_grad(tutorial.key, params, state, x, y)
        run = ll.tapped(tutorial.model).run(params, x)
        return found, run.inputs["1/w"][0], run.output

    found, hidden, output = run(tutorial.params, tutorial.x, tutorial.y)
    close(hidden.T, arrays["hidden"])
    close(output.T, arrays["output"])
    close(ll.squared_error(output, tutorial.y), arrays["loss_per_sample"])
    for name, (_, prefix, scale) in rules.items():
        loss, grads, _ = found[name]
        close(loss, arrays["loss"])
        for got, expected in zip(grads, tutorial.layers(prefix, scale), strict=True):
            for leaf in ("w", "b"):
                np.testing.assert_allclose(got[leaf], expected[leaf], rtol=0, atol=1e-10, err_msg=name)
    moved = found["kp-tutorial"][2].feedback[1]["w"] - arrays["feedback"]
    close(moved, arrays["kp_delta_feedback"])  # a step of SGD with the rate 1
    cosine = metrics.cosine_similarity(found["fa"][1][0], found["bp"][1][0])
    close(cosine, arrays["cosine_fa_bp"])


def test_perturbed_losses(golden: Golden) -> None:
    """Along a unit direction the estimator returns the difference to the loss at the perturbed weights."""
    tutorial = Tutorial(golden("microlearning"))
    for sign, name in ((1, "wp_loss_plus"), (-1, "wp_loss_minus")):
        noise = tutorial.layers("wp_noise_", sign)

        def losses_at(step: Any, noise: Any = noise) -> Any:
            perturbed = jax.tree.map(lambda w, n: w + step * n, tutorial.params, noise)
            return ll.squared_error(tutorial.model.apply(perturbed, tutorial.x), tutorial.y)

        estimate = ll.estimators.weight_perturbation(losses_at, sigma=1.0, noise=in_order(jnp.ones(())))
        value, change = estimate(tutorial.key, jnp.zeros(()))
        close(value + change, tutorial.arrays[name])


def test_per_example_gradients_and_their_signal_to_noise_ratio(golden: Golden) -> None:
    tutorial = Tutorial(golden("microlearning"))
    expected = tutorial.arrays["per_sample_delta_hidden"]
    rule = notebook.in_notebook_units(ll.backprop(tutorial.model, ll.squared_error))

    @jax.jit
    def measured(x: jax.Array, y: jax.Array) -> Any:
        of_model = metrics.example_moments(tutorial.model, rule, tutorial.key, tutorial.params, (), x, y)
        hidden = of_model.parts(depth=1)["0"]
        both = hidden, jnp.asarray(expected)
        return hidden, [metrics.snr(samples, variant="tutorial").total.value for samples in both]

    hidden, ratios = measured(tutorial.x, tutorial.y)
    for name, part in (("w", expected[:, :, :-1]), ("b", expected[:, :, -1])):
        close(-hidden.mean[f"0/{name}"].T, part.mean(0))
        close(hidden.variance[f"0/{name}"].T, part.var(0, ddof=1))
    for ratio in ratios:
        close(ratio, tutorial.arrays["snr_tutorial"])


def test_deep_network(golden: Golden) -> None:
    """Three layers: `feedback{i}` belongs to layer i, `direct{i}` carries the output's error to layer i."""
    arrays, key = golden("deep_feedback"), jax.random.key(KEY)
    params = tuple({"w": jnp.asarray(arrays[f"w{i}"])} for i in range(3))
    model = ll.mlp((9, 8, 6, 5), activation=jnp.tanh, b_init=None)
    makers = {
        "bp": ll.backprop,
        "fa": ll.feedback_alignment,
        "dfa": ll.direct_feedback_alignment,
        "usf": ll.sign_symmetry,
    }
    x, t = jnp.asarray(arrays["x"]), jnp.asarray(arrays["t"])

    @jax.jit
    def run(params: Any) -> Any:
        found = {}
        for name, make in makers.items():
            rule = make(model, ll.squared_error)
            state = rule.init(key, params, x)
            if name == "fa":
                feedback = ({"w": None}, *({"w": jnp.asarray(arrays[f"feedback{i}"])} for i in (1, 2)))
                assert jax.tree.structure(state.feedback) == jax.tree.structure(feedback)
                state = state._replace(feedback=feedback)
            if name == "dfa":
                direct = (jnp.asarray(arrays[f"direct{i}"]) for i in (0, 1))
                state = state._replace(feedback=dict(zip(sorted(state.feedback), direct, strict=True)))
            found[name] = rule.value_and_grad(key, params, state, x, t)[:2]
        return found

    for name, (loss, grads) in run(params).items():
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
UPDATES: dict[str, Any] = {"add": "additive", "mul": "multiplicative"}
SAMPLES: dict[str, Any] = {"every": "every", "wrong": "misclassified"}
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
        run = jax.jit(partial(plasticity.plastic_pass, network))
        after, _, done = run(tables, state, self.x, self.y)
        of_weights = 2 * NUM_SAMPLES
        expected = tuple(self.array(name).T for name in weights)
        found = [layer["w"] for layer in after[1:]]
        if non_edges:
            # The public code changes pairs without a synapse by the first entry of the table, for each sample
            # that it learns from, and masks these weights in the forward pass.
            elsewhere = network.scheme.step_size * tables.hidden[0][0, 0] * jnp.sum(done.updated)
            found[0] = jnp.where(after[1]["mask"], found[0], elsewhere)
        assert_close(tuple(found), expected, ulps=of_weights)

        logits = jax.jit(network.apply)(after, self.x)
        roundings = len(state) * (of_weights + 16) * float(jnp.finfo(self.dtype).eps)
        tolerance = roundings * max(1.0, float(jnp.max(jnp.abs(logits))))
        probs = jax.nn.softmax(logits)
        losses = ll.softmax_cross_entropy(probs, jax.nn.one_hot(self.y, 3, dtype=self.dtype))
        for got, name in ((probs, "probs_after"), (jnp.mean(losses), "loss_after")):
            assert got.dtype == self.dtype
            np.testing.assert_allclose(got, self.arrays[name], rtol=0, atol=tolerance)


CHOICES = ("add.all.every", "add.two.wrong", "mul.all.every", "mul.two.wrong")
# Every table and every choice once.
TELLING = list(zip(TABLE_RULES, CHOICES, strict=True))


@pytest.mark.usefixtures("quick_caps")
@pytest.mark.parametrize(("table", "choices"), slow_but(TELLING, itertools.product(TABLE_RULES, CHOICES)))
def test_table_plasticity(golden: Golden, table: str, choices: str) -> None:
    update, rows, samples = choices.split(".")
    case = Case(golden("plasticity_ff"), f"{table}.{choices}", jnp.float64)
    options: dict[str, Any] = {"rows": rows, "samples": SAMPLES[samples]}
    scheme = Scheme(update=UPDATES[update], **options)
    network = plasticity.k_cap_mlp(
        (12, 16, 16, 16, 3), 5, rule=TABLE_RULES[table], scheme=scheme, dtype=jnp.float64
    )
    state = case.state("w0", ["mask0", "mask1", "mask2"], start=1.0 if update == "mul" else 0.0)
    tables = Tables((case.array("hidden_rule"),), case.array("output_rule"))
    case.check(network, tables, state, ["w1_after", "w2_after", "w_out_after"])


@pytest.mark.usefixtures("quick_caps")
@pytest.mark.parametrize("choices", slow_but(["two.wrong"], ["all.every", "two.wrong"]))
def test_recurrent_table_plasticity(golden: Golden, choices: str) -> None:
    rows, samples = choices.split(".")
    case = Case(golden("plasticity_rnn"), choices, jnp.float64)
    options: dict[str, Any] = {"rows": rows, "samples": SAMPLES[samples]}
    scheme = Scheme(**options)
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
        run = jax.jit(lambda p, g: dynamics.update(jax.random.key(KEY), p, dynamics.init(p), g))
        (params, _), events = run(params, gradients)
        return params, events

    def check(self, params: Any, w: str, c: str) -> None:
        """Neurons are only carried around: equal to the last bit."""
        assert_close(params, self.population(w, c), ulps=0)


@pytest.mark.parametrize(("dtype", "neurons"), [(jnp.float64, "last"), (jnp.float32, "first")])
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

    fresh = case.population("prior_draw", "w2")  # fresh charges are 0 whatever the prior says
    params, events = case.update(case.draws(), scheme="prior", prior=lambda key, params: fresh)
    case.check(params, "w1_prior", "w2_prior")
    np.testing.assert_array_equal(events.origin == -1, case.arrays["kill"])
    assert not events.cloned.any()
    if dtype == jnp.float64:
        for center, name in (("none", "rate"), ("mean", "rate_centred")):
            close(case.alpha * case.update(case.draws(), center=center)[1].rates, case.arrays[name])


# --- decorrelation

DECORRELATION: dict[str, Callable[..., ll.Dynamics]] = {
    "seed": notebook_decorrelation.dynamics,
    "scaled": partial(notebook_decorrelation.dynamics, scaled=True),
    "paper.kappa0.0": partial(ll.decorrelation.dynamics, kappa=0.0),
    "paper.kappa0.5": partial(ll.decorrelation.dynamics, kappa=0.5),
    "decorbp.kappa0.0": partial(ll.decorrelation.dynamics, variant="decorbp", kappa=0.0),
    "decorbp.kappa0.5": partial(ll.decorrelation.dynamics, variant="decorbp", kappa=0.5),
}


def test_decorrelation(golden: Golden) -> None:
    arrays = golden("decorrelation")
    x = jnp.asarray(arrays["x"])

    @jax.jit
    def run(x: jax.Array) -> Any:
        found = {}
        for name, make in DECORRELATION.items():
            given = name.startswith(("seed", "scaled"))
            dynamics = make(float(arrays[f"{name.split('.')[0]}.eta"]) if given else 0.01)

            def step(state: ll.decorrelation.State, x: jax.Array, dynamics: Any = dynamics) -> Any:
                state, diagnostics = dynamics.update(jax.random.key(KEY), state, x)
                return state, (state.R, diagnostics.loss)

            found[name] = jax.lax.scan(step, dynamics.init(x.shape[-1]), x)
        return found

    for name, (state, (path, losses)) in run(x).items():
        assert path.dtype == losses.dtype == jnp.float64 and state.step == len(x)
        # sums of 7 and of 9 terms, and what five updates make of their roundings
        ulps = 5 * 2 * (7 + 9)
        assert_close(path, jnp.asarray(arrays[f"{name}.R"]), ulps=ulps)
        if f"{name}.loss" in arrays:
            assert_close(losses, jnp.asarray(arrays[f"{name}.loss"]), ulps=ulps)


def by_row(matrix: np.ndarray) -> np.ndarray:
    """Rows in the order (channel, row, column), of 2 channels and 3 x 3 points, as (row, column, channel)."""
    return matrix.reshape(2, 3, 3, -1).transpose(1, 2, 0, 3).reshape(matrix.shape)


def test_decorrelated_convolution(golden: Golden) -> None:
    arrays = {k.removeprefix("conv."): v for k, v in golden("decorrelation").items()}
    assert (arrays["stride"], arrays["padding"]) == (2, 1)
    options: Any = {"stride": 2, "padding": "VALID", "b_init": None, "dtype": jnp.float64}
    model = ll.convnet((8, 8, 2), (5,), (1,), kernel=3, **options)
    x = jnp.pad(arrays["image_nchw"].transpose(0, 2, 3, 1), ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel = by_row(arrays["kernel"].T).reshape(3, 3, 2, 5)
    params = ({"w": jnp.asarray(kernel)}, {"w": jnp.zeros((45, 1))})
    rule = ll.decorrelation.rule(
        lambda m: ll.backprop(m, ll.squared_error), model, ll.decorrelation.dynamics(0.01), where="0/w"
    )
    state = jax.eval_shape(rule.init, jax.random.key(KEY), params, x)
    r = jnp.asarray(by_row(by_row(arrays["R"]).T).T)
    assert state.layers["0/w"].R.shape == r.shape
    layers = {"0/w": ll.decorrelation.State(r)}

    @jax.jit
    def run(params: Any, layers: Any) -> Any:
        patches = ll.decorrelation.inputs(model, params, layers, x, where="0/w")["0/w"]
        run = ll.tapped(ll.decorrelation.wrap(model, layers, where="0/w")).run(params, x)
        return patches, run.pre_activations["0/w"], ll.decorrelation.apply(layers["0/w"], patches)

    patches, wrapped, z = run(params, layers)
    expected = by_row(arrays["patches"].reshape(27, 18).T).T
    np.testing.assert_array_equal(patches, expected)
    for got, wanted in (
        (wrapped.reshape(3, 9, 5), arrays["output_nlo"]),
        (z.T @ z / len(z), by_row(by_row(arrays["correlation"]).T).T),
    ):
        assert_close(got, jnp.asarray(wanted), ulps=2 * (18 + 27))
