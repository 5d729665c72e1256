"""The public code's arrays, reproduced to 1e-10 in float64 with the same draws."""

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
from tests.compare import assert_close, slow_but

pytestmark = pytest.mark.usefixtures("x64")

KEY = jax.random.key(0)
Golden = Callable[[str], Mapping[str, np.ndarray]]


def close(got: Any, expected: Any, name: str = "") -> None:
    np.testing.assert_allclose(np.asarray(got), expected, rtol=0, atol=1e-10, err_msg=name)
    assert np.asarray(got).dtype == np.float64


def in_order(values: Any) -> Callable[[Any, Any], Any]:
    """Noise with these leaves, in the order of what it is added to, whatever the key."""

    def noise(key: Any, like: Any) -> Any:
        pairs = zip(jax.tree.leaves(values), jax.tree.leaves(like), strict=True)
        return jax.tree.unflatten(jax.tree.structure(like), [v.reshape(leaf.shape) for v, leaf in pairs])

    return noise


def test_tutorial(golden: Golden) -> None:
    """Arrays are features first, with the bias as last column; deltas are added to the weights.

    The tutorial's own units are half the batch, 3, times those of the gradient.
    """
    arrays = golden("microlearning")

    def layers(prefix: str, scale: float = 1.0) -> tuple[dict[str, jax.Array], ...]:
        matrices = [scale * arrays[prefix + name] for name in ("hidden", "output")]
        return tuple({"w": jnp.asarray(m[:, :-1].T), "b": jnp.asarray(m[:, -1])} for m in matrices)

    sigma, activations = float(arrays["noise_sd"]), (jax.nn.sigmoid, jax.nn.sigmoid)
    model = ll.mlp((12, 7, 4), activation=activations[0], output_activation=activations[1])
    of_model = model, ll.squared_error
    wp: Any = {"sigma": sigma, "noise": in_order(layers("wp_noise_", 1 / sigma))}
    of_nodes = [arrays[f"np_noise_{layer}"].T / sigma for layer in ("hidden", "output")]
    np_: Any = {"sigma": sigma, "noise": in_order(of_nodes)}
    backprop = ll.backprop(*of_model)
    in_its_units = notebook.in_notebook_units(backprop)
    rules: dict[str, tuple[ll.Rule, str, float]] = {  # with the arrays of the gradients, and their factor
        "bp": (backprop, "grad_", 1),
        "bp-tutorial": (in_its_units, "bp_delta_", -1),
        "fa": (ll.feedback_alignment(*of_model), "fa_delta_", -1 / 3),
        "kp-tutorial": (notebook.kolen_pollack(*of_model, optimizer=optax.sgd(1.0)), "kp_delta_", -1),
        "wp": (ll.weight_perturbation(*of_model, **wp), "wp_delta_", -1),
        "wp-central": (
            ll.weight_perturbation(*of_model, difference="central", **wp), "wp_central_grad_", 1
        ),
        "np": (ll.node_perturbation(*of_model, **np_), "np_pre_grad_", 1),
        "np-tutorial": (notebook.node_perturbation(activations, ll.squared_error, **np_), "np_delta_", -1),
        "fg": (ll.forward_gradient(*of_model, noise=in_order(layers("fg_tangent_"))), "fg_grad_", 1),
    }  # fmt: skip
    feedback, per_example = jnp.asarray(arrays["feedback"]), arrays["per_sample_delta_hidden"]

    @jax.jit
    def run(params: Any, x: Any, y: Any) -> Any:
        found = {}
        for name, (rule, *_) in rules.items():
            state = rule.init(KEY, params, x)
            if hasattr(state, "feedback"):
                state = state._replace(feedback=({"w": None, "b": None}, {"w": feedback, "b": None}))
            found[name] = rule.value_and_grad(KEY, params, state, x, y)
        run = ll.tapped(model).run(params, x)
        moments = metrics.example_moments(model, in_its_units, KEY, params, (), x, y).parts(depth=1)["0"]
        both = moments, jnp.asarray(per_example)
        ratios = [metrics.snr(samples, variant="tutorial").total.value for samples in both]
        of_passes = {
            "hidden": run.inputs["1/w"][0].T,
            "output": run.output.T,
            "loss_per_sample": ll.squared_error(run.output, y),
            "kp_delta_feedback": found["kp-tutorial"][2].feedback[1]["w"] - feedback,  # by SGD with rate 1
            "cosine_fa_bp": metrics.cosine_similarity(found["fa"][1][0], found["bp"][1][0]),
        }
        return found, of_passes, moments, ratios

    x, y = jnp.asarray(arrays["x"].T), jnp.asarray(arrays["t"].T)
    found, of_passes, moments, ratios = run(layers("w_"), x, y)
    for name, value in of_passes.items():
        close(value, arrays[name], name)
    for name, (_, prefix, scale) in rules.items():
        loss, grads, _ = found[name]
        close(loss, arrays["loss"])
        for got, expected in zip(grads, layers(prefix, scale), strict=True):
            for leaf in ("w", "b"):
                close(got[leaf], expected[leaf], name)
    for name, part in (("0/w", per_example[:, :, :-1]), ("0/b", per_example[:, :, -1])):
        close(-moments.mean[name].T, part.mean(0))
        close(moments.variance[name].T, part.var(0, ddof=1))
    for ratio in ratios:
        close(ratio, arrays["snr_tutorial"])


def test_deep_network(golden: Golden) -> None:
    """Three layers: `feedback{i}` belongs to layer i, `direct{i}` carries the output's error to layer i."""
    arrays = {name: jnp.asarray(values) for name, values in golden("deep_feedback").items()}
    params = tuple({"w": arrays[f"w{i}"]} for i in range(3))
    of_model = ll.mlp((9, 8, 6, 5), activation=jnp.tanh, b_init=None), ll.squared_error
    rules = {"bp": ll.backprop(*of_model), "fa": ll.feedback_alignment(*of_model)}
    rules |= {"dfa": ll.direct_feedback_alignment(*of_model), "usf": ll.sign_symmetry(*of_model)}

    @jax.jit
    def run(params: Any) -> Any:
        states = {name: rule.init(KEY, params, arrays["x"]) for name, rule in rules.items()}
        feedback = ({"w": None}, *({"w": arrays[f"feedback{i}"]} for i in (1, 2)))
        names = sorted(states["dfa"].feedback)
        direct = {name: arrays[f"direct{i}"] for i, name in enumerate(names)}
        for name, given in (("fa", feedback), ("dfa", direct)):
            assert jax.tree.structure(states[name].feedback) == jax.tree.structure(given)
            states[name] = states[name]._replace(feedback=given)
        given = arrays["x"], arrays["t"]
        return {name: rule.value_and_grad(KEY, params, states[name], *given) for name, rule in rules.items()}

    for name, (loss, grads, _) in run(params).items():
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
CHOICES = ("add.all.every", "add.two.wrong", "mul.all.every", "mul.two.wrong")
RECURRENT = ("all.every", "two.wrong")
FAST = "prepostpercent.mul.two.wrong", "two.wrong"


@pytest.mark.parametrize(
    "name", slow_but(FAST, [*map(".".join, itertools.product(TABLE_RULES, CHOICES)), *RECURRENT])
)
def test_table_plasticity(golden: Golden, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A pass over 16 samples ends with these weights, and the network with these outputs.

    A weight goes through one change a sample, of two roundings each: of the change and of the sum or
    product. A logit is made of as many weights as the network has layers and of as many sums, of at
    most 16 terms. Softmax and losses of it move by no more than the logits do.
    """
    # The search within a cap in fewer and larger steps: the same result, compiled several times faster.
    monkeypatch.setattr("lax_learning.plasticity._k_cap._BITS_A_ROUND", 8)
    *table, rows, samples = name.split(".")
    options: dict[str, Any] = {"rows": rows, "samples": {"every": "every", "wrong": "misclassified"}[samples]}
    of_all = golden("plasticity_ff" if table else "plasticity_rnn")
    arrays = {k.removeprefix(name + "."): jnp.asarray(v) for k, v in of_all.items() if k.startswith(name)}
    start = 0.0
    if table:
        start, kind = {"add": (0.0, "additive"), "mul": (1.0, "multiplicative")}[table[1]]
        network = plasticity.k_cap_mlp(
            (12, 16, 16, 16, 3), 5, rule=TABLE_RULES[table[0]], dtype=jnp.float64,
            scheme=plasticity.Scheme(update=kind, **options),  # pyright: ignore[reportArgumentType]
        )  # fmt: skip
        first, masks, hidden, ends = "w0", ("mask0", "mask1", "mask2"), "hidden_rule", ("w1", "w2", "w_out")
    else:
        network = plasticity.k_cap_recurrent(
            (12, 16, 3), 5, rounds=2, fired="index", scheme=plasticity.Scheme(**options), dtype=jnp.float64
        )
        first, masks, hidden, ends = "w_in", ("mask_in", "mask_graph"), "graph_rule", ("w_graph", "w_out")
    # The first layer's weights are given, all others at `start`, and the output is fully connected.
    of_first, *plastic = [*(arrays[mask].T > 0 for mask in masks), jnp.ones((16, 3), bool)]
    layers = [{"w": jnp.full(mask.shape, start, float), "mask": mask} for mask in plastic]
    state = ({"w": arrays[first].T, "mask": of_first}, *layers)
    tables = plasticity.Tables((arrays[hidden],), arrays["output_rule"])

    @jax.jit
    def run(state: Any) -> Any:
        after, _, done = plasticity.plastic_pass(network, tables, state, arrays["x"], arrays["y"])
        return after, done, network.apply(after, arrays["x"])

    after, done, logits = run(state)
    found = [layer["w"] for layer in after[1:]]
    if not table:
        # The public code changes pairs without a synapse by the first entry of the table, for each sample
        # that it learns from, and masks these weights in the forward pass.
        elsewhere = network.scheme.step_size * tables.hidden[0][0, 0] * jnp.sum(done.updated)
        found[0] = jnp.where(after[1]["mask"], found[0], elsewhere)
    assert_close(found, [arrays[f"{end}_after"].T for end in ends], ulps=2 * 16)
    tolerance = len(state) * (2 * 16 + 16) * float(jnp.finfo(float).eps) * max(1.0, np.abs(logits).max())
    probs = jax.nn.softmax(logits)
    losses = ll.softmax_cross_entropy(probs, jax.nn.one_hot(arrays["y"], 3))
    for got, expected in ((probs, "probs_after"), (jnp.mean(losses), "loss_after")):
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(got, arrays[expected], rtol=0, atol=tolerance)


# --- neuron birth-death


def test_birth_death(golden: Golden) -> None:
    """Random choices of the public code are given as uniform numbers; neurons are only carried around."""
    arrays = golden("birth_death")
    alpha, number = float(arrays["alpha"]), len(arrays["w2"])
    clones, others, survivors = np.flatnonzero(arrays["clone"]), arrays["non_clones"], arrays["survivors"]

    def population(w: str, c: str) -> dict[str, jax.Array]:
        """These two arrays as params: `[in, neuron]` and `[neuron, 1]`."""
        return {"w": jnp.asarray(arrays[w].T), "c": jnp.asarray(arrays[c][:, None])}

    u: dict[str, Any] = {
        "kill": arrays["u_kill"],
        "survivor": (arrays["pick_kill"] + 0.5) / len(survivors),
        "clone": arrays["u_clone"],
        "slot": np.full(number, 0.5),
    }
    # Each clone chooses the golden one of all that are not cloned; or clones come in their own order, and
    # what they overwrite in the order of the golden choices.
    independent, distinct = np.zeros(number), np.full(number, 0.75)
    independent[clones] = (arrays["pick_clone"] + 0.5) / len(others)
    distinct[clones] = distinct[others[arrays["pick_clone"]]] = np.linspace(0, 0.5, len(clones))
    fresh = population("prior_draw", "w2")  # fresh charges are 0 whatever the prior says
    cases: dict[str, tuple[str, Any, Any]] = {
        "kill": ("after_kill", {"clone": np.full(number, np.inf)}, {}),
        "independent": ("after", {"slot": independent}, {"slots": "independent"}),
        "distinct": ("after", {"slot": distinct}, {"slots": "distinct"}),
        "prior": ("prior", {}, {"scheme": "prior", "prior": lambda key, params: fresh}),
        "centred": ("", {}, {"center": "mean"}),
    }

    @jax.jit
    def run(params: Any, slopes: Any) -> Any:
        gradients = {"w": jnp.full_like(params["w"], jnp.nan), "c": slopes["c"]}  # only those of c count
        found = {}
        for name, (_, changes, options) in cases.items():
            draws = ll.birth_death.Draws(**{k: jnp.asarray(v) for k, v in (u | changes).items()})
            dynamics = ll.birth_death.dynamics(
                alpha, axes={"w": 1, "c": 0}, charges=lambda p: p["c"],
                draws=lambda key, n, draws=draws: draws, **options,
            )  # fmt: skip
            (after, _), events = dynamics.update(KEY, params, dynamics.init(params), gradients)
            found[name] = after, events
        return found

    found = run(population("w1", "w2"), population("w1", "grad_w2"))
    close(alpha * found["kill"][1].rates, arrays["rate"])
    close(alpha * found.pop("centred")[1].rates, arrays["rate_centred"])
    for name, (after, events) in found.items():
        end = cases[name][0]
        assert_close(after, population(f"w1_{end}", f"w2_{end}"), ulps=0)
        np.testing.assert_array_equal(events.killed, arrays["kill"])
        np.testing.assert_array_equal(events.cloned, arrays["clone"] & (end == "after"))
        if end == "after":
            np.testing.assert_array_equal(np.flatnonzero(~events.killed), survivors)
    np.testing.assert_array_equal(found["prior"][1].origin == -1, arrays["kill"])


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

    @jax.jit
    def run(x: jax.Array) -> Any:
        found = {}
        for name, make in DECORRELATION.items():
            dynamics = make(arrays.get(f"{name}.eta", 0.01))

            def step(state: ll.decorrelation.State, x: jax.Array, dynamics: Any = dynamics) -> Any:
                state, diagnostics = dynamics.update(KEY, state, x)
                return state, (state.R, diagnostics.loss)

            found[name] = jax.lax.scan(step, dynamics.init(x.shape[-1]), x)
        return found

    for name, (state, (path, losses)) in run(jnp.asarray(arrays["x"])).items():
        assert path.dtype == losses.dtype == jnp.float64 and state.step == len(arrays["x"])
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
    state = jax.eval_shape(rule.init, KEY, params, x)
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
