"""Rules against their equations written out, and in the mean; models of other libraries are among the zoo."""

import itertools
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lax_learning as ll
from lax_learning.metrics import cosine_similarity, inner_product
from tests import compare
from tests.compare import assert_close, assert_mean, assert_near, normal, squares, update
from tests.refusal import refusals

KEY, LOSS = jax.random.key(3), ll.squared_error
BATCH, WIDTHS = 6, (4, 5, 3, 2)
PARAMS = [np.asarray(normal(i, *shape)) for i, shape in enumerate(itertools.pairwise(WIDTHS))]
X, Y = np.asarray(normal(9, BATCH, WIDTHS[0])), np.eye(2, dtype=np.float32)[np.arange(BATCH) % 2]
same = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)


def gradient(apply: Any, params: Any, x: Any, y: Any) -> Any:
    return jax.grad(lambda p: LOSS(apply(p, x), y).mean())(params)


# --- what is sent straight from the output


def apply(params: Any, x: Any) -> Any:
    for w in params[:-1]:
        x = jnp.tanh(x @ w)
    return x @ params[-1]


MODEL = ll.Model(apply)


def test_feedback_of_targets_and_feedback_that_learns_from_activities_and_errors() -> None:
    activities = [X]
    for w in PARAMS[:-1]:
        activities.append(np.tanh(activities[-1] @ w))
    output = activities[-1] @ PARAMS[-1]
    rule = ll.direct_random_target_projection(MODEL, ll.softmax_cross_entropy)
    state, _, grads, _ = jax.tree.map(np.asarray, update(rule, KEY, PARAMS, X, Y))
    for layer, b in enumerate(state.feedback.values()):
        delta = (Y / BATCH) @ b.T * (1 - activities[layer + 1] ** 2)
        same(grads[layer], activities[layer].T @ delta)
    softmax = np.exp(output) / np.exp(output).sum(axis=1, keepdims=True)
    same(grads[-1], activities[-1].T @ (softmax - Y) / BATCH)

    rate, decay = 0.1, 0.2
    rule = ll.direct_kolen_pollack(MODEL, LOSS, optimizer=optax.sgd(rate), decay=decay)
    state, _, grads, after = jax.tree.map(np.asarray, update(rule, KEY, PARAMS, X, Y))
    error, pairs = 2 * (output - Y) / BATCH, [list(s.feedback.values()) for s in (state, after)]
    for a, b, moved in zip(activities[1:], *pairs, strict=True):
        same(moved, b - rate * (a.T @ error + decay * b))
    # The read-out and its feedback meet.
    read_out = PARAMS[-1] - rate * (grads[-1] + decay * PARAMS[-1])
    same(read_out - pairs[1][-1], (1 - rate * decay) * (PARAMS[-1] - pairs[0][-1]))


def test_feedback_is_on_average_the_jacobian_which_gives_backprop() -> None:
    """After one update from zeros at rate 1; the mean of Jacobians where it is shared over time."""

    def residual(params: Any, x: Any) -> Any:
        h = x @ params[0]
        return (h + h @ params[1]) @ params[2]

    def leak(params: Any, x: Any) -> Any:  # one linear unit that is read at every step of a scan
        def step(h: Any, x: Any) -> Any:
            return h @ params[0] + x @ params[1], None

        return jax.lax.scan(step, x[:, 0] @ params[1], jnp.swapaxes(x, 0, 1)[1:])[0]

    wide = [np.asarray(normal(i, 3, 3)) for i in range(3)], X[:, :3], X[:, 1:]
    narrow = [np.full((1, 1), value, np.float32) for value in (0.5, 2)], np.ones((2, 4, 1)), np.ones((2, 1))
    models, cases = [ll.Model(residual), ll.Model(leak)], (wide, narrow)
    rules = [ll.forward_direct_feedback(model, LOSS, optimizer=optax.sgd(1.0)) for model in models]

    def draw(key: Any) -> Any:
        given = [(rule, p, rule.init(KEY, p, x), x, y) for rule, (p, x, y) in zip(rules, cases, strict=True)]
        return [rule.value_and_grad(key, *of)[2].feedback for rule, *of in given]

    # `dy/da` of what the second and the third product read; dy/dh is u^3, u^2 and u at the three steps.
    (_, b, c), x, y = wide
    jacobians = {"1/0": jnp.asarray(c + b @ c), "2/0": jnp.asarray(c)}

    @jax.jit
    def run(keys: Any) -> Any:
        state = rules[0].init(KEY, wide[0], x)._replace(feedback=jacobians)
        grads = rules[0].value_and_grad(KEY, wide[0], state, x, y)[1]
        return jax.vmap(draw)(keys), grads, gradient(residual, *wide)

    (of_residual, of_leak), grads, exact = run(jax.random.split(KEY, 4_000))
    assert_close(grads, exact, ulps=100)
    assert_mean(of_residual, jacobians)
    assert_mean(of_leak, dict.fromkeys(of_leak, np.full((1, 1), np.mean([0.5**3, 0.5**2, 0.5]))))


# --- local errors are the gradient of the sum of all losses, where what products read counts as fixed


def around(params: Any, x: Any, product: Any) -> Any:
    """Errors pass around the second product, and what the last one reads is an output itself."""
    h = jnp.tanh(product(x, params["a"]) + params["b"])
    h = h + product(jnp.tanh(h), params["c"])
    return {"h": h, "v": product(jnp.tanh(h), params["d"])}


def both(output: Any, y: Any) -> Any:
    return squares(output["h"], y) + squares(output["v"], 2 * y)


def test_gradient_of_the_sum_of_all_losses() -> None:
    rule = ll.local_errors(ll.Model(lambda p, x: around(p, x, jnp.dot)), both, optimizer=optax.sgd(0.1))
    x, y, shapes = normal(0, 5, 3), normal(1, 5, 4), {"a": (3, 4), "b": (4,), "c": (4, 4), "d": (4, 4)}

    def total(params: Any, feedback: Any) -> Any:
        reads: list[Any] = []

        def product(a: Any, w: Any) -> Any:
            reads.append(a)
            return jax.lax.stop_gradient(a) @ w

        output = around(params, x, product)
        readouts, losses = iter(feedback.values()), [both(output, y).mean()]
        for a in reads[1:]:  # no error passes to x
            losses.append(both({name: a @ next(readouts) for name in sorted(output)}, y).mean())
        return sum(losses), losses[0]

    @jax.jit
    def run(params: Any) -> Any:
        state = rule.init(KEY, params, x)
        loss, grads, after = rule.value_and_grad(KEY, params, state, x, y)
        (of_params, slopes), last = jax.grad(total, (0, 1), has_aux=True)(params, state.feedback)
        moved = jax.tree.map(lambda b, g: b - 0.1 * g, state.feedback, slopes)
        return (loss, grads, after.feedback), (last, of_params, moved)

    assert_close(*run({name: normal(i, *shape) for i, (name, shape) in enumerate(shapes.items())}), ulps=20)


def test_layers_under_a_scan_learn_from_local_errors_as_the_same_layers_in_a_list() -> None:
    def in_scan(params: Any, x: Any) -> Any:
        h, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params["hidden"])
        return h.sum(1) @ params["out"]

    def in_list(params: Any, x: Any) -> Any:
        for w in params["hidden"]:
            x = jnp.tanh(x @ w)
        return x.sum(1) @ params["out"]

    def alike(key: Any, like: Any) -> Any:
        """Readouts that differ between units, but not between layers."""
        return jnp.broadcast_to(normal(5, *like.shape[-2:]), like.shape)

    options: Any = {"optimizer": optax.sgd(0.1), "feedback_init": alike}
    stacked, found = {"hidden": normal(3, 3, 4, 4), "out": normal(4, 4, 2)}, []
    for net, params in ((in_scan, stacked), (in_list, {**stacked, "hidden": [*stacked["hidden"]]})):
        rule = ll.local_errors(ll.Model(net), squares, **options)
        _, _, grads, after = update(rule, KEY, params, normal(2, 5, 7, 4), normal(6, 5, 2))
        found.append((np.stack([*grads["hidden"]]), grads["out"], after.feedback))
    (*scanned, feedback), (*listed, each) = found
    assert_near(scanned, listed)
    assert len(feedback) < len(each) == 3


# --- weight mirrors


def test_feedback_of_a_mirror_is_on_average_the_parameter() -> None:
    """A parameter may be read as it is, stacked, transposed, normalised, as a vector, behind a fixed leaf."""
    shapes = {
        "fixed": (2,), "first": (2, 2), "kernel": (2, 2, 2, 3), "vector": (12,), "stacked": (2, 12, 12),
        "normalised": (12, 5), "transposed": (3, 5),
    }  # fmt: skip
    params = {name: normal(i, *shape) for i, (name, shape) in enumerate(shapes.items())}
    convolve = partial(jax.lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def apply(p: Any, x: Any) -> Any:
        x = jnp.tanh(x @ p["first"]) * p["fixed"]
        x = jnp.tanh(convolve(x, p["kernel"], (2, 2), "SAME")).reshape(len(x), -1)
        x = x * (x @ p["vector"])[:, None]
        x = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["stacked"])[0]
        x = jnp.tanh(x @ (p["normalised"] / jnp.linalg.norm(p["normalised"])))
        return jnp.einsum("bi,oi->bo", x, p["transposed"])

    # After a step of SGD with rate 1 the feedback is (1 - decay) B + the mean response, whose mean is w.
    x, y, decay, number = normal(9, 8, 4, 4, 2), jnp.zeros((8, 3)), 0.25, 1_000
    model = ll.Model(apply, trainable=lambda path: path != "fixed")
    rule = ll.weight_mirror(model, squares, optimizer=optax.sgd(1.0), decay=decay)

    @jax.jit
    def run(params: Any) -> Any:
        state = rule.init(KEY, params, x)
        draw = lambda key: rule.value_and_grad(key, params, state, x, y)[2].feedback  # noqa: E731
        return state, jax.vmap(draw)(jax.random.split(KEY, number))

    state, after = run(params)
    assert state.feedback["first"] is None and state.feedback["fixed"] is None  # no error passes
    rows = {"kernel": (0, 1, 2), "stacked": (1,), "normalised": (0,), "transposed": (1,), "vector": ()}
    for name, summed in rows.items():
        w, before = np.asarray(params[name]), np.asarray(state.feedback[name])
        drawn = np.asarray(after[name]) - (1 - decay) * before
        assert_mean(drawn, w)
        # By hand: the columns that a product sums over have a variance of (|column|^2 + w^2) / N.
        variance = (np.sum(w**2, axis=summed, keepdims=True) + w**2) / len(x)
        # A sample variance with a kurtosis below 12 has an error below sqrt(11 / number) of it.
        ratio = drawn.var(axis=0) / variance
        np.testing.assert_array_less(np.abs(ratio - 1), 5 * (11 / number) ** 0.5, err_msg=name)
    # Matrices of a stack have draws of their own: correlations are 0 with an error of 1 / sqrt(number).
    apart = np.asarray(after["stacked"])
    apart = apart - apart.mean(axis=0)
    correlations = np.mean(apart[:, 0] * apart[:, 1], axis=0) / np.prod(apart.std(axis=0), axis=0)
    assert np.abs(correlations).max() < 5 / number**0.5


# --- PEPITA


def gates(p: Any, x: Any) -> Any:
    z = x @ p["gates"] + p["bias"]
    return jnp.tanh(z) * jax.nn.sigmoid(z)


def by_gates(p: Any, x: Any) -> Any:
    gated = gates(p, x) + jnp.cos(x)  # alone, then with the input
    return jax.lax.scan(lambda h, a: (jnp.sin(h + a @ p["v"]), None), gated, jnp.stack([gated] * 2))[0]


def of_gates(p: Any, x: Any) -> Any:
    h = gated = gates(p, x) + jnp.cos(x)
    steps = [h := jnp.sin(h + gated @ p["v"]) for _ in range(2)]
    of_sum = [("gates", x, gates(p, x)), ("bias", jnp.ones((len(x), 1)), gates(p, x))]
    return [*of_sum, *(("v", gated, h) for h in steps)]


def by_pairs(p: Any, x: Any) -> Any:
    product = jax.checkpoint(lambda x: x.reshape(-1, 2, 2) @ p["pairs"])  # the nonlinearity is outside of it
    return jax.nn.relu(product(x)).reshape(len(x), -1)


def of_pairs(p: Any, x: Any) -> Any:
    rows = x.reshape(-1, 2)
    return [("pairs", rows, jax.nn.relu(rows @ p["pairs"]))]


def in_scan(p: Any, z: Any, x: Any) -> Any:
    return jax.lax.scan(lambda h, a: (h + a * x[:, :3], None), z, jnp.ones(2))[0]


def masked_and_gated(p: Any, z: Any, x: Any) -> Any:
    return jnp.where(x[:, :3] > 0, z * jax.nn.sigmoid(p["scale"] * jnp.sin(z) + x[:, :1]), -9.0)


# Hidden units, `(parameter, inputs, activity)` of their products by hand, and what follows the read-out.
PARTS = [(by_gates, of_gates, in_scan), (by_pairs, of_pairs, masked_and_gated)]


def test_pepita_compares_activities_and_the_read_out_gets_its_true_error(x64: None) -> None:
    """A sum that two things read is compared by itself, one in a scan by its activity."""
    shapes = {"gates": (4, 4), "v": (4, 4), "pairs": (2, 2), "out": (4, 3), "scale": (3,), "bias": (1, 4)}
    params = {name: normal(i, *shape) for i, (name, shape) in enumerate(shapes.items())}
    x, y = normal(9, 5, 4), jnp.ones((5, 3))

    @jax.jit
    def run(params: Any) -> Any:
        found = []
        for before, by_hand, behind in PARTS:
            f = lambda p, x, before=before, behind=behind: behind(p, before(p, x) @ p["out"], x)  # noqa: E731
            rule = ll.pepita(ll.Model(f), LOSS)
            state = rule.init(KEY, params, x)
            loss, grads, _ = rule.value_and_grad(KEY, params, state, x, y)
            after = x + 2 * (f(params, x) - y) @ state.feedback[0]
            expected = gradient(f, params, after, y)  # that of the read-out
            products = [*zip(by_hand(params, x), by_hand(params, after), strict=True)]
            expected |= {leaf: jnp.zeros_like(params[leaf]) for (leaf, *_), _ in products}
            for (leaf, _, first), (_, inputs, second) in products:
                expected[leaf] += inputs.T @ (first - second) / 5
            found.append(((loss, grads), (LOSS(f(params, x), y).mean(), expected)))
        return found

    for pair in run(params):
        assert_near(*pair, rtol=1e-9, atol=0)


# --- guided gradients are the projection of the gradient on the span of the guesses

SMALL = ll.Model(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"])
OF_SMALL: Any = {"a": normal(0, 2, 1), "b": normal(1, 1, 2)}, normal(2, 6, 2), jnp.ones((6, 2))
EXACT = jax.tree.map(np.asarray, jax.jit(partial(gradient, SMALL.apply))(*OF_SMALL))


def guess(grads: Any) -> ll.Rule:
    return ll.Rule(lambda key, params, x: (), lambda key, params, state, x, y: (0.0, grads, state))


@jax.jit
def of_twenty(guesses: Any) -> Any:
    rule = ll.guided_gradient(SMALL, LOSS, [guess(u) for u in guesses])
    grads = rule.value_and_grad(KEY, OF_SMALL[0], ((),) * len(guesses), *OF_SMALL[1:])[1]
    return grads, cosine_similarity(grads, EXACT)


def projected(*guesses: Any) -> Any:
    """The gradient on the span of guesses, and its cosine to the true one; a guess again changes nothing."""
    return of_twenty([guesses[0]] * (20 - len(guesses)) + [*guesses])


def test_exact_if_the_gradient_is_in_the_span() -> None:
    rule = ll.guided_gradient(SMALL, LOSS, [ll.forward_gradient(SMALL, LOSS)] * 4)  # of 4 parameters
    grads = update(rule, KEY, *OF_SMALL)[2]
    # Roundings of 6e-8 are multiplied by the length of a guess over what it adds, about 1e3 at most here.
    for found, exact in zip(jax.tree.leaves(grads), jax.tree.leaves(EXACT), strict=True):
        np.testing.assert_allclose(found, exact, atol=1e-3 * np.abs(exact).max())


def test_one_guess_by_hand() -> None:
    """`(dL/dw . u) u / |u|^2`; guesses that say the same, or nothing, change nothing."""
    rule = ll.feedback_alignment(SMALL, LOSS)
    guided, (_, x, y) = ll.guided_gradient(SMALL, LOSS, rule), OF_SMALL

    @jax.jit
    def run(params: Any) -> Any:
        state = guided.init(KEY, params, x)
        u = rule.value_and_grad(KEY, params, state[0], x, y)[1]
        share = inner_product(u, EXACT) / inner_product(u, u)
        expected = LOSS(SMALL.apply(params, x), y).mean(), jax.tree.map(lambda leaf: share * leaf, u)
        return u, guided.value_and_grad(KEY, params, state, x, y)[:2], expected

    u, found, expected = run(OF_SMALL[0])
    assert_close(found, expected, ulps=100)
    for other in (u, jax.tree.map(np.zeros_like, u)):
        assert_close(projected(u, other)[0], expected[1], ulps=1000)


def test_never_uphill_and_better_with_every_guess() -> None:
    directions = [jax.tree.map(lambda leaf, i=i: normal(10 + i, *leaf.shape), EXACT) for i in range(3)]
    assert projected(jax.tree.map(np.negative, EXACT))[1] > 0.999
    assert 0 <= projected(directions[0])[1] < projected(*directions)[1]
    # Two guesses 0.01 apart, one of them many times, still span the gradient between them.
    for scale in np.array([1e-25, 1e25], np.float32):
        shares = np.array([0, 0.01], np.float32)
        one, other = (jax.tree.map(lambda g, a=scale, s=s: a * (1 + s * g), EXACT) for s in shares)
        # Of the difference of the guesses, 1 % of them, roundings are 1e-5.
        assert projected(one, other)[1] > 1 - 1e-6


def test_guesses_0_001_apart_span_what_lies_between_them() -> None:
    # What a guess adds is 0.001 of it, of which roundings are 1e-4; a single projection would leave 0.05.
    a, b, c = (np.asarray(normal(i, 200)) for i in range(3))
    guesses = [guess(u) for u in (a, a + np.float32(0.001) * b, a + np.float32(0.001) * c)]
    exact, model = a + b + c, ll.Model(lambda w, x: x @ w)
    rule = ll.guided_gradient(model, lambda output, y: output, guesses)
    grads = rule.value_and_grad(KEY, np.zeros_like(a), ((), (), ()), exact[None], np.zeros(1))[1]
    assert np.linalg.norm(grads - exact) < 1e-3 * np.linalg.norm(exact)


# --- forward gradients


def test_selected_weights_get_the_gradient_of_a_model_whose_others_are_fixed() -> None:
    fixed = replace(SMALL, trainable="b")
    rules = [ll.forward_gradient(SMALL, LOSS, where="b"), ll.forward_gradient(fixed, LOSS)]
    (_, *selected), (_, *trained) = compare.updates(rules, KEY, *OF_SMALL)
    compare.assert_same(selected, trained)
    assert np.any(selected[1]["b"]) and not np.any(selected[1]["a"])


# --- losses of blocks: gradients are those of the blocks alone, under any rule


def dense(p: Any, x: Any) -> Any:
    return jnp.tanh(x @ p["w"] + p["b"])


def read_out(w: Any, a: Any) -> Any:
    return a @ w


BLOCKS: Any = [(dense, read_out)] * 2
IN_BLOCKS: Any = [({"w": w, "b": normal(11, w.shape[1])}, normal(10, w.shape[1], 2)) for w in PARAMS[:2]]
local: Any = ll.local_losses


def test_gradients_and_states_are_those_of_the_blocks() -> None:
    makers: Any = [
        partial(ll.backprop, loss=LOSS),
        partial(ll.kolen_pollack, loss=LOSS, optimizer=optax.sgd(0.1)),
        partial(ll.forward_gradient, loss=LOSS),
    ]

    def total(params: Any) -> Any:
        """Sum of the losses of all blocks, the flow cut between them."""
        x, losses = X, []
        for p, q in params:
            x = dense(p, jax.lax.stop_gradient(x))
            losses.append(LOSS(read_out(q, x), Y).mean())
        return sum(losses), losses[-1]

    @jax.jit
    def run(params: Any) -> Any:
        found = []
        for make in makers:
            rule, alone = local(make, BLOCKS), make(ll.Model(lambda w, x: read_out(w[1], dense(w[0], x))))
            x, state, of_blocks = X, rule.init(KEY, params, X), []
            for key, of_block, before in zip(jax.random.split(KEY), params, state, strict=True):
                of_blocks.append(alone.value_and_grad(key, of_block, before, x, Y))
                x = dense(of_block[0], x)
            loss, *after = rule.value_and_grad(KEY, params, state, X, Y)
            losses, *expected = zip(*of_blocks, strict=True)
            found.append(((loss, *after), (losses[-1], list(expected[0]), expected[1])))
        return found, jax.grad(total, has_aux=True)(params)

    found, (exact, loss) = run(IN_BLOCKS)
    for of_rule, of_blocks in found:
        assert_close(of_rule, of_blocks, ulps=64)
        same(of_rule[0], loss)  # that of the last block
    assert_near(found[0][0][1], exact)


def test_leaves_that_a_rule_does_not_train_stay() -> None:
    start = [(p, {"w": q}) for p, q in IN_BLOCKS]
    blocks = [(dense, lambda p, a: a @ p["w"])] * 2
    rule = local(lambda model: ll.backprop(replace(model, trainable="*w"), LOSS), blocks)
    options: Any = {"init": lambda key: start, "num_updates": 2, "batch_size": BATCH}
    train = ll.make_train(rule, optax.adamw(0.1, weight_decay=0.5), **options)
    end = jax.jit(train)(KEY, ll.data.Splits(*[ll.data.Dataset(X, Y)] * 3)).state.params
    for (before, _), (after, _) in zip(start, end, strict=True):
        np.testing.assert_array_equal(before["b"], after["b"])
        assert (before["w"] != after["w"]).any()


# --- bad input

LEARNED: Any = ll.forward_direct_feedback(MODEL, LOSS, optimizer=optax.sgd(0.1))
SUMMED: Any = ll.direct_random_target_projection(MODEL, lambda output, y: output.sum(axis=1))
LOOK_UP: Any = ll.pepita(ll.Model(lambda w, x: w[x]), LOSS)
LOCAL = local(lambda model: ll.backprop(MODEL, LOSS), BLOCKS)
guided_by: Any = partial(ll.guided_gradient, MODEL, LOSS)
of_blocks = partial(local, lambda model: LOCAL)
test_bad_input = refusals(
    values={
        r"^targets: expected shape \[6, 2\] as in the output, got \[6\]": lambda: update(
            SUMMED, KEY, PARAMS, X, np.arange(BATCH)
        ),
        "^x: expected a floating-point leaf": lambda: LOOK_UP.init(KEY, jnp.ones((4, 2)), np.ones(3, int)),
        "^guesses: expected at least one rule": lambda: guided_by([]),
        "^blocks: expected at least one": lambda: of_blocks([]),
        r"^blocks\[0\]: expected a pair": lambda: of_blocks([(dense, read_out, dense)]),
        "^params: expected a list of 2 pairs": [
            lambda: LOCAL.init(KEY, IN_BLOCKS[:1], X),
            lambda: LOCAL.value_and_grad(KEY, [1, 2], ((), ()), X, Y),
        ],
    },
    types={
        "^state: expected the state of the rule's init": lambda: LEARNED.value_and_grad(
            KEY, PARAMS, (), X, Y
        ),
        r"^guesses\[1\]: expected a Rule, got": lambda: guided_by([LOCAL, ll.backprop]),
        "^make_rule: ": [lambda: local(3, BLOCKS), lambda: local(lambda model: None, BLOCKS)],
        r"^blocks\[0\]: head: expected a function": lambda: of_blocks([(dense, 3)]),
        "^state: ": lambda: LOCAL.value_and_grad(KEY, IN_BLOCKS, None, X, Y),
    },
)
