"""Models of Linen and NNX as a stranger writes them: attention, coupled examples, dropout, scans."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import lax_learning

ll: Any = lax_learning

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

KEY = jax.random.key(0)
# The bias of a difference with symmetric noise is of second order in sigma, and the rounding of a loss in
# float32 divided by sigma is 1e-5.
SIGMA = 1e-2


def squares(output: Any, y: Any) -> Any:
    """Loss of each example."""
    return jnp.sum((output - y) ** 2, axis=-1)


def make_rule(name: str, model: Any, **options: Any) -> Any:
    """The rule `name` on a model, by the options that it cannot do without."""
    required: dict[str, dict[str, Any]] = {
        "weight_perturbation": {"sigma": SIGMA},
        "node_perturbation": {"sigma": SIGMA},
        "activity_gradient": {"perturb": "activities"},
        "kolen_pollack": {"optimizer": optax.sgd(0.1)},
    }
    factory = ll.forward_gradient if name == "activity_gradient" else getattr(ll, name)
    return factory(model, squares, **required.get(name, {}), **options)


FEEDBACK = ("feedback_alignment", "direct_feedback_alignment", "sign_symmetry", "kolen_pollack")
ON_UNITS = ("node_perturbation", "activity_gradient")
ALL_RULES = ("backprop", "weight_perturbation", "forward_gradient", *FEEDBACK, *ON_UNITS)


class Problem(NamedTuple):
    """A function of other people with its parameters, and data."""

    apply: Callable[[Any, Any], Any]
    params: Any
    x: Any
    y: Any

    def exact(self) -> Any:
        """The gradients of the mean loss."""
        return jax.jit(jax.grad(lambda p: squares(self.apply(p, self.x), self.y).mean()))(self.params)

    def credit(self, rule: Any, **replaced: Any) -> Any:
        """The gradients of one call of a rule, in whose state some fields are replaced."""
        state = rule.init(KEY, self.params, self.x)
        state = state._replace(**replaced) if replaced else state
        return jax.jit(rule.value_and_grad)(KEY, self.params, state, self.x, self.y)[1]


def problem_of(module: Any, x: Any, num_outputs: int) -> Problem:
    """An NNX module as a function of its parameters."""
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    y = jax.random.normal(jax.random.key(2), (len(x), num_outputs))
    return Problem(lambda params, x: nnx.merge(graph, params, rest, copy=True)(x), params, x, y)


def named_leaves(tree: Any) -> dict[str, np.ndarray]:
    """Leaves by path."""
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}


def assert_same(found: Any, exact: Any) -> None:
    """Equal but for sums of some hundred numbers of float32 in another order."""
    assert jax.tree.structure(found) == jax.tree.structure(exact)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(exact))
    for path, leaf in named_leaves(exact).items():
        np.testing.assert_allclose(named_leaves(found)[path], leaf, 1e-4, 1e-5 * largest, err_msg=path)


def assert_unbiased(rule: Any, problem: Problem, num_draws: int = 4000) -> None:
    """The mean over draws is the gradient to five standard errors, which are small beside the gradient."""
    state = rule.init(KEY, problem.params, problem.x)

    def estimate(key: Any) -> Any:
        return rule.value_and_grad(key, problem.params, state, problem.x, problem.y)[1]

    estimates = jax.jit(jax.vmap(estimate))(jax.random.split(jax.random.key(1), num_draws))
    exact = problem.exact()
    assert jax.tree.structure(estimates) == jax.tree.structure(exact)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(exact))
    errors, norm = 0.0, 0.0
    for path, leaf in named_leaves(exact).items():
        draws = named_leaves(estimates)[path]
        error = draws.std(axis=0, ddof=1) / np.sqrt(num_draws)
        assert (np.abs(draws.mean(axis=0) - leaf) <= 5 * error + 1e-3 * largest).all(), path
        errors, norm = errors + np.sum(error**2), norm + np.sum(leaf**2)
    assert errors <= 0.5**2 * norm


def message_of(call: Callable[[], object]) -> str:
    """The message with which a call is refused."""
    try:
        call()
    except (TypeError, ValueError) as error:
        return str(error)
    raise AssertionError("expected a refusal, got a result")


# --- whole models


class NnxBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.attention = nnx.MultiHeadAttention(num_heads=2, in_features=6, decode=False, rngs=rngs)
        self.norm = nnx.LayerNorm(6, rngs=rngs)
        self.up = nnx.Linear(6, 6, rngs=rngs)
        self.out = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.out(nnx.relu(self.up(self.norm(x + self.attention(x)))).mean(axis=1))


class LinenBlock(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        x = linen.LayerNorm()(x + linen.MultiHeadDotProductAttention(num_heads=2, name="attention")(x, x))
        return linen.Dense(2, name="out")(linen.relu(linen.Dense(6, name="up")(x)).mean(axis=1))


SEQUENCES = jax.random.normal(jax.random.key(1), (4, 3, 6))


def linen_block() -> Problem:
    module: Any = LinenBlock()
    y = jax.random.normal(jax.random.key(2), (4, 2))
    return Problem(module.apply, module.init(KEY, SEQUENCES), SEQUENCES, y)


BLOCKS: dict[str, Callable[[], Problem]] = {
    "nnx": lambda: problem_of(NnxBlock(nnx.Rngs(0)), SEQUENCES, 2),
    "linen": linen_block,
}
blocks = pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS.keys())


def in_use(exact: Any) -> dict[str, np.ndarray]:
    """The leaves on which the loss depends: all but the bias of the keys, which softmax takes out."""
    found = {path: leaf for path, leaf in named_leaves(exact).items() if np.abs(leaf).max() > 1e-5}
    assert len(found) == len(jax.tree.leaves(exact)) - 1
    return found


@blocks
@pytest.mark.parametrize("name", ["feedback_alignment", "direct_feedback_alignment", *ON_UNITS])
def test_every_parameter_gets_credit(name: str, block: Callable[[], Problem]) -> None:
    problem = block()
    grads, exact = problem.credit(make_rule(name, ll.Model(problem.apply))), problem.exact()
    assert jax.tree.structure(grads) == jax.tree.structure(exact)
    assert not [path for path in in_use(exact) if not np.any(named_leaves(grads)[path])]


@blocks
def test_no_weights_of_attention_carry_errors_back_unasked(block: Callable[[], Problem]) -> None:
    problem = block()
    rule, exact = make_rule("feedback_alignment", ll.Model(problem.apply)), problem.exact()
    assert_same(problem.credit(rule, feedback=problem.params), exact)
    random = named_leaves(problem.credit(rule))
    for path, leaf in in_use(exact).items():
        distance = np.linalg.norm(random[path] - leaf) / np.linalg.norm(leaf)
        assert distance < 1e-4 if "'out'" in path and "attention" not in path else distance > 1e-2, path


@blocks
def test_node_perturbation_of_attention_is_unbiased(block: Callable[[], Problem]) -> None:
    problem = block()
    assert_unbiased(make_rule("node_perturbation", ll.Model(problem.apply)), problem)


@blocks
def test_table_of_sites_names_every_parameter(block: Callable[[], Problem], capsys: Any) -> None:
    problem = block()
    table = str(ll.sites(ll.Model(problem.apply), problem.params, problem.x)) + capsys.readouterr().out
    for path, _ in jax.tree.leaves_with_path(problem.params):
        assert jax.tree_util.keystr(path[:-1], simple=True, separator="/") in table
    assert "dot_general" in table and "kernel" in table


# --- half of a model, asked for


def two_layers() -> Problem:
    """Two layers in plain JAX, with parameters in dicts."""

    def apply(params: Any, x: Any) -> Any:
        hidden = jnp.tanh(x @ params["first"]["w"] + params["first"]["b"])
        return hidden @ params["second"]["w"] + params["second"]["b"]

    keys = jax.random.split(KEY, 6)
    shapes = {"first": {"w": (3, 4), "b": (4,)}, "second": {"w": (4, 2), "b": (2,)}}
    leaves, structure = jax.tree.flatten(shapes, is_leaf=lambda shape: isinstance(shape, tuple))
    drawn = [jax.random.normal(key, shape) for key, shape in zip(keys, leaves, strict=False)]
    return Problem(
        apply,
        jax.tree.unflatten(structure, drawn),
        jax.random.normal(keys[4], (5, 3)),
        jax.random.normal(keys[5], (5, 2)),
    )


@pytest.mark.parametrize("name", ON_UNITS)
def test_units_that_are_not_chosen_get_no_noise(name: str) -> None:
    problem = two_layers()
    grads = problem.credit(make_rule(name, ll.Model(problem.apply), where="first/**"))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(grads["first"]))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads["second"]))


def test_sites_that_are_not_chosen_pass_errors_through_their_weights() -> None:
    problem = two_layers()
    model, exact = ll.Model(problem.apply), problem.exact()
    assert_same(problem.credit(make_rule("feedback_alignment", model, where="first/**")), exact)
    chosen = problem.credit(make_rule("feedback_alignment", model, where="second/**"))
    assert_same(chosen["second"], exact["second"])
    assert np.linalg.norm(chosen["first"]["w"] - exact["first"]["w"]) > 1e-2


def test_where_that_matches_nothing_is_refused() -> None:
    problem = two_layers()
    model = ll.Model(problem.apply)
    message = message_of(lambda: problem.credit(make_rule("node_perturbation", model, where="third/**")))
    assert message.startswith("where: expected") and "third/**" in message


# --- examples that are coupled


class Normalised(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.a = nnx.Linear(4, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.b = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.b(jnp.tanh(self.norm(self.a(x))))


def normalised() -> Problem:
    return problem_of(Normalised(nnx.Rngs(0)), jax.random.normal(jax.random.key(1), (6, 4)), 2)


@pytest.mark.parametrize("name", ON_UNITS)
def test_noise_on_coupled_examples_is_refused(name: str) -> None:
    problem = normalised()
    assert "batch=True" in message_of(lambda: problem.credit(make_rule(name, ll.Model(problem.apply))))


@pytest.mark.parametrize("name", ON_UNITS)
def test_noise_on_coupled_examples_is_credited_by_the_batch(name: str) -> None:
    problem = normalised()
    # An example credited by its own loss is off by 0.4 of the norm, and the standard errors add up to 0.05.
    assert_unbiased(make_rule(name, ll.Model(problem.apply), batch=True), problem, num_draws=40_000)


def test_rules_that_take_the_batch_as_it_is_are_right_on_coupled_examples() -> None:
    problem = normalised()
    model, exact = ll.Model(problem.apply), problem.exact()
    assert_same(problem.credit(make_rule("backprop", model)), exact)
    aligned = make_rule("feedback_alignment", model)
    assert_same(problem.credit(aligned, feedback=problem.params), exact)
    assert_unbiased(make_rule("weight_perturbation", model), problem)


# --- dropout and running statistics


class WithDropout(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        hidden = linen.Dropout(0.5, deterministic=False)(jnp.tanh(linen.Dense(6)(x)))
        return linen.Dense(2)(hidden)


class WithStatistics(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        hidden = linen.BatchNorm(use_running_average=False, momentum=0.9)(linen.Dense(4)(x))
        return linen.Dense(2)(jnp.tanh(hidden))


def test_dropout_masks_follow_the_keys_of_the_examples() -> None:
    module: Any = WithDropout()
    images, y = (jax.random.normal(jax.random.key(i), (8, size)) for i, size in ((1, 3), (2, 2)))
    params = module.init({"params": KEY, "dropout": KEY}, images)

    def apply(params: Any, x: Any) -> Any:
        def one(image: Any, key: Any) -> Any:
            return module.apply(params, image[None], rngs={"dropout": key})[0]

        return jax.vmap(one)(x["image"], x["key"])

    model = ll.Model(apply)
    inputs = [{"image": images, "key": jax.random.split(jax.random.key(i), 8)} for i in range(4)]
    for name in ("backprop", "node_perturbation"):
        rule = make_rule(name, model)
        state = rule.init(KEY, params, inputs[0])
        loss = jax.jit(lambda x, rule=rule, state=state: rule.value_and_grad(KEY, params, state, x, y)[0])
        losses = [float(loss(x)) for x in [*inputs, inputs[0]]]
        assert len(set(losses[:4])) == 4 and losses[4] == losses[0], name
    # Clean and noisy passes see the same mask.
    assert_unbiased(make_rule("node_perturbation", model), Problem(apply, params, inputs[0], y))


@pytest.mark.parametrize("name", ["backprop", "feedback_alignment", "node_perturbation"])
def test_running_statistics_move_and_are_no_weights(name: str) -> None:
    module: Any = WithStatistics()
    x, y = (jax.random.normal(jax.random.key(i), (8, size)) + 1 for i, size in ((1, 3), (2, 2)))
    params = module.init(KEY, x)

    def apply(params: Any, x: Any) -> Any:
        output, moved = module.apply(params, x, mutable=["batch_stats"])
        return output, moved["batch_stats"]

    options = {"batch": True} if name == "node_perturbation" else {}
    rule = make_rule(name, ll.Model(apply, has_aux=True, trainable="params/**"), **options)
    state, optimizer = rule.init(KEY, params, x), optax.sgd(0.01)
    optimizer_state, seen, step = optimizer.init(params), [], jax.jit(rule.value_and_grad)
    for key in jax.random.split(KEY, 4):
        (loss, statistics), grads, state = step(key, params, state, x, y)
        np.testing.assert_allclose(loss, squares(apply(params, x)[0], y).mean(), rtol=1e-5)
        assert jax.tree.structure(grads) == jax.tree.structure(params)
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads["batch_stats"]))
        assert any(np.any(leaf) for leaf in jax.tree.leaves(grads["params"]))
        updates, optimizer_state = optimizer.update(grads, optimizer_state, params)
        moved: Any = optax.apply_updates(params, updates)
        params = {**moved, "batch_stats": statistics}
        seen.append(np.asarray(statistics["BatchNorm_0"]["mean"]))
    assert all((before != after).all() for before, after in zip([np.zeros(4), *seen], seen, strict=False))


# --- transformations inside of models


class Layers(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.inner = nnx.Linear(4, 4, rngs=rngs)
        self.out = nnx.Linear(4, 2, rngs=rngs)


class InRnn(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.rnn = nnx.RNN(nnx.GRUCell(3, 4, rngs=rngs))
        self.out = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        states: Any = self.rnn(x)
        return self.out(states[:, -1])


class InScan(Layers):
    def __call__(self, x: Any) -> Any:
        def step(h: Any, x: Any) -> Any:
            return jnp.tanh(self.first(x) + self.inner(h)), None

        h, _ = jax.lax.scan(step, jnp.zeros((len(x), 4)), x.swapaxes(0, 1))
        return self.out(h)


class InRemat(Layers):
    def __call__(self, x: Any) -> Any:
        return self.out(nnx.remat(lambda layer, x: jnp.tanh(layer(x)))(self.first, x[:, 0]))


class InCheckpoint(Layers):
    def __call__(self, x: Any) -> Any:
        return self.out(jax.checkpoint(lambda x: jnp.tanh(self.first(x)))(x[:, 0]))


class InJit(Layers):
    def __call__(self, x: Any) -> Any:
        return self.out(nnx.jit(lambda layer, x: jnp.tanh(layer(x)))(self.first, x[:, 0]))


class InVmap(Layers):
    def __call__(self, x: Any) -> Any:
        return jax.vmap(lambda x: self.out(jnp.tanh(self.first(x[0]))))(x)


class InCond(Layers):
    def __call__(self, x: Any) -> Any:
        def layers(x: Any) -> Any:
            return self.out(jnp.tanh(self.first(x[:, 0])))

        return jax.lax.cond(True, layers, lambda x: jnp.zeros((len(x), 2)), x)


TRANSFORMED: dict[str, Callable[[nnx.Rngs], nnx.Module]] = {
    "rnn": InRnn,
    "scan": InScan,
    "remat": InRemat,
    "checkpoint": InCheckpoint,
    "jit": InJit,
    "vmap": InVmap,
    "cond": InCond,
}
STEPS = jax.random.normal(jax.random.key(1), (4, 3, 3))


@pytest.mark.parametrize("inside", TRANSFORMED)
def test_node_perturbation_is_unbiased_inside(inside: str) -> None:
    problem = problem_of(TRANSFORMED[inside](nnx.Rngs(0)), STEPS, 2)
    assert_unbiased(make_rule("node_perturbation", ll.Model(problem.apply)), problem)


@pytest.mark.parametrize("inside", [name for name in TRANSFORMED if name != "cond"])
def test_feedback_alignment_by_the_weights_is_backprop_inside(inside: str) -> None:
    problem = problem_of(TRANSFORMED[inside](nnx.Rngs(0)), STEPS, 2)
    rule, exact = make_rule("feedback_alignment", ll.Model(problem.apply)), problem.exact()
    assert_same(problem.credit(rule, feedback=problem.params), exact)
    differ = [
        not np.allclose(leaf, named_leaves(exact)[path], rtol=1e-2)
        for path, leaf in named_leaves(problem.credit(rule)).items()
        if "'out'" not in path and np.any(named_leaves(exact)[path])
    ]
    assert differ and all(differ)


def test_feedback_through_several_products_in_a_cond_is_refused() -> None:
    problem = problem_of(InCond(nnx.Rngs(0)), STEPS, 2)
    message = message_of(lambda: problem.credit(make_rule("feedback_alignment", ll.Model(problem.apply))))
    assert "cond" in message and "kernel" in message


# --- feedback is no parameter


def own_mlp() -> tuple[Any, Problem]:
    """A network of the library."""
    model, problem = ll.mlp((3, 4, 2)), two_layers()
    return model, problem._replace(apply=model.apply, params=model.init(KEY))


def of_nnx() -> tuple[Any, Problem]:
    """A network of NNX."""
    module = nnx.Sequential(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), jnp.tanh, nnx.Linear(4, 2, rngs=nnx.Rngs(1)))
    problem = problem_of(module, two_layers().x, 2)
    return ll.Model(problem.apply), problem


@pytest.mark.parametrize("make", [own_mlp, of_nnx])
@pytest.mark.parametrize("name", FEEDBACK)
def test_decay_and_clipping_act_on_params_alone(name: str, make: Callable[[], tuple[Any, Problem]]) -> None:
    model, problem = make()
    rule, params = make_rule(name, model), problem.params
    start = rule.init(KEY, params, problem.x)
    _, grads, state = rule.value_and_grad(KEY, params, start, problem.x, problem.y)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    assert not [path for path in named_leaves(params) if "feedback" in path]

    decay, rate, norm = 0.1, 0.5, 1e-3
    optimizer = optax.chain(
        optax.clip_by_global_norm(norm), optax.add_decayed_weights(decay), optax.sgd(rate)
    )
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    length = np.sqrt(sum(np.sum(leaf.astype(float) ** 2) for leaf in named_leaves(grads).values()))
    assert length > norm
    by_hand = jax.tree.map(lambda g, p: -rate * (g * (norm / length) + decay * p), grads, params)
    for path, leaf in named_leaves(by_hand).items():
        np.testing.assert_allclose(named_leaves(updates)[path], leaf, rtol=1e-4, atol=1e-7, err_msg=path)
    if name in ("feedback_alignment", "direct_feedback_alignment"):
        before, after = named_leaves(start.feedback), named_leaves(state.feedback)
        assert before and before.keys() == after.keys()
        assert all((before[path] == after[path]).all() for path in before)


def test_feedback_of_another_shape_is_refused() -> None:
    problem = two_layers()
    rule = make_rule("feedback_alignment", ll.Model(problem.apply))
    other = jax.tree.map(lambda leaf: jnp.ones((7, *leaf.shape)), problem.params)
    message = message_of(lambda: problem.credit(rule, feedback=other))
    assert message.startswith("state.feedback") or message.startswith("feedback")
    assert "expected" in message and "got" in message and "7" in message


# --- tied weights


class Tied(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.a, self.b = (nnx.Linear(4, 4, use_bias=False, rngs=rngs) for _ in range(2))
        self.b.kernel = self.a.kernel

    def __call__(self, x: Any) -> Any:
        return self.b(jnp.tanh(self.a(x)))


def test_tied_weight_is_one() -> None:
    x = jax.random.normal(jax.random.key(1), (6, 4))
    problem = problem_of(Tied(nnx.Rngs(0)), x, 4)
    model, exact = ll.Model(problem.apply), problem.exact()
    assert len(jax.tree.leaves(exact)) == 1
    assert_same(problem.credit(make_rule("backprop", model)), exact)
    aligned = make_rule("feedback_alignment", model)
    assert_same(problem.credit(aligned, feedback=problem.params), exact)
    for name in ("weight_perturbation", "node_perturbation"):
        assert_unbiased(make_rule(name, model), problem)


# --- taps


def test_taps_of_another_shape_are_refused() -> None:
    problem = two_layers()
    tapped = ll.tapped(ll.Model(problem.apply))
    shapes = tapped.shapes(problem.params, problem.x)

    def run(*more: int) -> Any:
        taps = {name: jnp.zeros((*more, *like.shape)) for name, like in shapes.items()}
        return tapped.run(problem.params, problem.x, taps)

    np.testing.assert_array_equal(run()[0], problem.apply(problem.params, problem.x))
    message = message_of(lambda: run(7))
    assert message.startswith("taps") and "expected" in message and "got" in message and "7" in message


# --- frozen parameters


def with_frozen() -> Problem:
    """Two layers and a shift between them; a weight and the shift are to be frozen."""
    whole = two_layers()

    def apply(params: Any, x: Any) -> Any:
        layers = {"first": params["frozen"]["first"], "second": params["learned"]["second"]}
        return whole.apply(layers, x @ params["learned"]["w"] + params["frozen"]["shift"])

    params = {
        "learned": {"w": jnp.eye(3), "second": whole.params["second"]},
        "frozen": {"first": whole.params["first"], "shift": jnp.ones(3)},
    }
    return whole._replace(apply=apply, params=params)


@pytest.mark.parametrize("name", ALL_RULES)
def test_frozen_parameters_get_no_credit(name: str) -> None:
    problem = with_frozen()
    rule = make_rule(name, ll.Model(problem.apply, trainable="learned/**"))
    grads = problem.credit(rule)
    assert jax.tree.structure(grads) == jax.tree.structure(problem.params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads["frozen"]))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(grads["learned"]))


@pytest.mark.parametrize("name", ["weight_perturbation", "forward_gradient"])
def test_frozen_parameters_are_not_perturbed(name: str) -> None:
    problem = two_layers()

    def apply(params: Any, x: Any) -> Any:
        return problem.apply(params["frozen"], x) + 0 * params["learned"]["b"]

    params = {"frozen": problem.params, "learned": {"b": jnp.ones(2)}}
    rule = make_rule(name, ll.Model(apply, trainable="learned/**"))
    grads = problem._replace(apply=apply, params=params).credit(rule)
    # A rounding error of the loss divided by sigma is 1e-4; had the others moved, it were of order one.
    assert np.abs(grads["learned"]["b"]).max() < 1e-3
