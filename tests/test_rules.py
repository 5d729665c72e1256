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
from tests.compare import assert_close, assert_mean, assert_near, draws_of, jitted, normal, squares, update
from tests.refusal import refusals

KEY, LOSS = jax.random.key(3), ll.squared_error
BATCH, WIDTHS = 6, (4, 5, 3, 2)
PARAMS = [normal(i, *shape) for i, shape in enumerate(itertools.pairwise(WIDTHS))]
X, Y = normal(9, BATCH, WIDTHS[0]), jnp.eye(2)[jnp.arange(BATCH) % 2]
same = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)


def gradient(apply: Any, params: Any, x: Any = X, y: Any = Y) -> Any:
    return jax.jit(jax.grad(lambda p: LOSS(apply(p, x), y).mean()))(params)


# --- what is sent straight from the output


def hidden(params: Any, x: Any) -> list[Any]:
    activities = [x]
    for w in params[:-1]:
        activities.append(jnp.tanh(activities[-1] @ w))
    return activities


def apply(params: Any, x: Any) -> Any:
    return hidden(params, x)[-1] @ params[-1]


MODEL = ll.Model(apply)


def test_feedback_of_targets_and_feedback_that_learns_from_activities_and_errors() -> None:
    activities, output = jax.jit(lambda p: (hidden(p, X), apply(p, X)))(PARAMS)
    rule = ll.direct_random_target_projection(MODEL, ll.softmax_cross_entropy)
    state, _, grads, _ = update(rule, KEY, PARAMS, X, Y)
    for layer, b in enumerate(state.feedback.values()):
        delta = (Y / BATCH) @ b.T * (1 - activities[layer + 1] ** 2)
        same(grads[layer], activities[layer].T @ delta)
    same(grads[-1], activities[-1].T @ (jax.nn.softmax(output) - Y) / BATCH)

    rate, decay = 0.1, 0.2
    rule = ll.direct_kolen_pollack(MODEL, LOSS, optimizer=optax.sgd(rate), decay=decay)
    state, _, grads, after = update(rule, KEY, PARAMS, X, Y)
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

    wide = [normal(i, 3, 3) for i in range(3)], X[:, :3], X[:, 1:]
    narrow = [jnp.array([[0.5]]), jnp.array([[2.0]])], jnp.ones((2, 4, 1)), jnp.ones((2, 1))
    models, cases = [ll.Model(residual), ll.Model(leak)], (wide, narrow)
    rules = [ll.forward_direct_feedback(model, LOSS, optimizer=optax.sgd(1.0)) for model in models]
    states = [rule.init(KEY, p, x) for rule, (p, x, _) in zip(rules, cases, strict=True)]

    def draw(key: Any) -> Any:
        given = zip(rules, cases, states, strict=True)
        return [rule.value_and_grad(key, p, state, x, y)[2].feedback for rule, (p, x, y), state in given]

    of_residual, of_leak = draws_of(draw, KEY, 4_000)
    # `dy/da` of what the second and the third product read; dy/dh is u^3, u^2 and u at the three steps.
    (_, b, c), x, y = wide
    jacobians = dict(zip(states[0].feedback, ((jnp.eye(3) + b) @ c, c), strict=True))
    assert_mean(of_residual, jacobians)
    assert_mean(of_leak, dict.fromkeys(of_leak, np.full((1, 1), np.mean([0.5**3, 0.5**2, 0.5]))))
    grads = update(rules[0], KEY, wide[0], x, y, feedback=jacobians)[2]
    assert_close(grads, gradient(residual, *wide), ulps=100)


# --- weight mirrors


def test_feedback_of_a_mirror_is_on_average_the_parameter() -> None:
    """However it is read: as it is, stacked, transposed, normalised and as a vector."""
    shapes = {
        "first": (3, 3, 2, 2), "kernel": (2, 2, 2, 3), "vector": (12,), "stacked": (2, 12, 12),
        "normalised": (12, 5), "transposed": (3, 5),
    }  # fmt: skip
    params = {name: normal(i, *shape) for i, (name, shape) in enumerate(shapes.items())}
    convolve = partial(jax.lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def apply(p: Any, x: Any) -> Any:
        x = jnp.tanh(convolve(x, p["first"], (1, 1), "SAME"))
        x = jnp.tanh(convolve(x, p["kernel"], (2, 2), "SAME")).reshape(len(x), -1)
        x = x * (x @ p["vector"])[:, None]
        x = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["stacked"])[0]
        x = jnp.tanh(x @ (p["normalised"] / jnp.linalg.norm(p["normalised"])))
        return jnp.einsum("bi,oi->bo", x, p["transposed"])

    # After a step of SGD with rate 1 the feedback is (1 - decay) B + the mean response, whose mean is w.
    x, y, decay, number = normal(9, 8, 4, 4, 2), jnp.zeros((8, 3)), 0.25, 1_000
    rule = ll.weight_mirror(ll.Model(apply), squares, optimizer=optax.sgd(1.0), decay=decay)
    state = jax.jit(rule.init)(KEY, params, x)
    after = draws_of(lambda key: rule.value_and_grad(key, params, state, x, y)[2].feedback, KEY, number)
    assert state.feedback["first"] is None  # no error passes
    rows = {"kernel": (0, 1, 2), "stacked": (1,), "normalised": (0,), "transposed": (1,), "vector": ()}
    for name, summed in rows.items():
        w, drawn = params[name], np.asarray(after[name]) - (1 - decay) * np.asarray(state.feedback[name])
        assert_mean(drawn, w)
        # By hand: the columns that a product sums over have a variance of (|column|^2 + w^2) / N.
        variance = (np.sum(w**2, axis=summed, keepdims=True) + w**2) / len(x)
        # A sample variance with a kurtosis below 12 has an error below sqrt(11 / number) of it.
        ratio = drawn.var(axis=0) / variance
        np.testing.assert_array_less(np.abs(ratio - 1), 5 * (11 / number) ** 0.5, err_msg=name)
    # Matrices of a stack have draws of their own: correlations are 0 with an error of 1 / sqrt(number).
    apart = np.asarray(after["stacked"]) - after["stacked"].mean(axis=0)
    correlations = np.mean(apart[:, 0] * apart[:, 1], axis=0) / np.prod(apart.std(axis=0), axis=0)
    assert np.abs(correlations).max() < 5 / number**0.5


# --- PEPITA


def test_gradients_of_pepita_by_hand(x64: None) -> None:
    sizes, batch = (5, 7, 6, 3), 4
    params = [
        {"w": normal(i, m, n), "b": normal(10 + i, n)} for i, (m, n) in enumerate(itertools.pairwise(sizes))
    ]
    x, y = normal(3, batch, sizes[0]), np.eye(3)[np.arange(batch) % 3]
    rule = ll.pepita(ll.mlp(sizes), ll.softmax_cross_entropy)
    state, loss, grads, _ = update(rule, KEY, params, x, y)
    assert [f.shape for f in state.feedback] == [(3, 5)]
    assert np.abs(state.feedback[0]).max() < 0.05 * (6 / 5) ** 0.5

    def passed(x: Any) -> tuple[list[np.ndarray], np.ndarray]:
        a = [x]
        for layer in params:
            a.append(np.maximum(a[-1] @ layer["w"] + layer["b"], 0 if len(a) < 3 else -np.inf))
        p = np.exp(a[-1])
        return a, p / p.sum(axis=1, keepdims=True) - y

    first, e = passed(x)
    second, e_after = passed(np.asarray(x) + e @ np.asarray(state.feedback[0]))
    for i, delta in enumerate([first[1] - second[1], first[2] - second[2], e_after]):
        np.testing.assert_allclose(grads[i]["w"], second[i].T @ delta / batch, rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(grads[i]["b"], delta.mean(axis=0), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(loss, ll.softmax_cross_entropy(first[-1], y).mean(), rtol=1e-12)


def test_activities_in_a_scan_and_sums_of_gates(x64: None) -> None:
    """A leaky unit whose sum is read by two things is compared by its sum, one of a scan by its activity."""
    params = {name: normal(i, 3, 3) for i, name in enumerate("wvu")}

    def gates(p: Any, x: Any) -> Any:
        z = x @ p["w"]
        return jnp.tanh(z) * jax.nn.sigmoid(z)

    def apply(p: Any, x: Any) -> Any:
        gated = gates(p, x) + jnp.cos(x)  # alone, then with the input
        h, _ = jax.lax.scan(lambda h, a: (jnp.sin(h + a @ p["v"]), None), gated, jnp.stack([gated] * 2))
        return h @ p["u"]

    x, y = normal(3, 2, 3), jnp.zeros((2, 3))
    state, _, grads, _ = update(ll.pepita(ll.Model(apply), LOSS), KEY, params, x, y)

    @jax.jit
    def by_hand(p: Any) -> Any:
        after_x = x + 2 * (apply(p, x) - y) @ state.feedback[0]
        alone = [gates(p, at) for at in (x, after_x)]
        gated = [a + jnp.cos(at) for a, at in zip(alone, (x, after_x), strict=True)]
        h, moved = list(gated), jnp.zeros((2, 3))
        for _ in range(2):
            h = [jnp.sin(each + a @ p["v"]) for each, a in zip(h, gated, strict=True)]
            moved += h[0] - h[1]
        return after_x.T @ (alone[0] - alone[1]) / 2, gated[1].T @ moved / 2

    for name, expected in zip("wv", by_hand(params), strict=True):
        np.testing.assert_allclose(grads[name], expected, rtol=1e-9)


OUTPUTS = {
    "masked": lambda p, z, x: jnp.where(x[:, :3] > 0, z, -9.0),
    "scaled": lambda p, z, x: z * jnp.exp(p["scale"]),
    "gated": lambda p, z, x: z * jax.nn.sigmoid(jnp.sin(z) + x[:, :1]),
    "rectified": lambda p, z, x: jax.nn.relu(z) + x[:, :3],
    "in a scan": lambda p, z, x: jax.lax.scan(lambda h, a: (h + a * x[:, :3], None), z, jnp.ones(2))[0],
}


def test_what_follows_the_last_product_and_changes_of_shape(x64: None) -> None:
    """The read-out gets its true error on the second pass, hidden units that of their activities."""
    params = {"a": normal(0, 2, 2), "b": normal(1, 4, 3), "scale": normal(2, 3)}
    x, y = normal(3, 5, 4), jnp.ones((5, 3))

    def apply(name: str, p: Any, x: Any) -> Any:
        product = lambda x: x.reshape(-1, 2, 2) @ p["a"]  # noqa: E731
        product = jax.checkpoint(product) if name == "masked" else product  # the nonlinearity outside of it
        return OUTPUTS[name](p, jax.nn.relu(product(x)).reshape(len(x), -1) @ p["b"], x)

    @jax.jit
    def run(params: Any) -> Any:
        found = {}
        for name in OUTPUTS:
            f = partial(apply, name)
            rule = ll.pepita(ll.Model(f), LOSS)
            state = rule.init(KEY, params, x)
            grads = rule.value_and_grad(KEY, params, state, x, y)[1]
            after = x + 2 * (f(params, x) - y) @ state.feedback[0]
            exact = jax.grad(lambda p, f=f, at=after: LOSS(f(p, at), y).mean())(params)
            first, second = (jax.nn.relu(at.reshape(-1, 2, 2) @ params["a"]) for at in (x, after))
            by_hand = jnp.einsum("npi,npj->ij", after.reshape(-1, 2, 2), first - second) / 5
            found[name] = grads, exact | {"a": by_hand}
        return found

    for name, (grads, expected) in run(params).items():
        for leaf, wanted in expected.items():
            np.testing.assert_allclose(grads[leaf], wanted, rtol=1e-9, err_msg=f"{name}, {leaf}")


# --- guided gradients are the projection of the gradient on the span of the guesses

SMALL = ll.Model(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"])
OF_SMALL: Any = {"a": normal(0, 2, 1), "b": normal(1, 1, 2)}, normal(2, 6, 2), jnp.ones((6, 2))
EXACT = gradient(SMALL.apply, *OF_SMALL)


def guess(grads: Any) -> ll.Rule:
    return ll.Rule(lambda key, params, x: (), lambda key, params, state, x, y: (0.0, grads, state))


def guided(*guesses: ll.Rule) -> Any:
    params, x, y = OF_SMALL
    rule = jitted(ll.guided_gradient(SMALL, LOSS, guesses))
    return rule.value_and_grad(KEY, params, rule.init(KEY, params, x), x, y)


def test_exact_if_the_gradient_is_in_the_span() -> None:
    # Roundings of 6e-8 are multiplied by the length of a guess over what it adds, about 1e3 at most here.
    for guesses in ([ll.backprop(SMALL, LOSS)], [ll.forward_gradient(SMALL, LOSS)] * 4):  # of 4 parameters
        loss, grads, _ = guided(*guesses)
        np.testing.assert_allclose(loss, LOSS(SMALL.apply(*OF_SMALL[:2]), OF_SMALL[2]).mean(), rtol=1e-6)
        for found, exact in zip(jax.tree.leaves(grads), jax.tree.leaves(EXACT), strict=True):
            np.testing.assert_allclose(found, exact, atol=1e-3 * np.abs(exact).max())


def test_one_guess_by_hand() -> None:
    """`(dL/dw . u) u / |u|^2`; guesses that say the same, or nothing, change nothing."""
    params, x, y = OF_SMALL
    rule = ll.feedback_alignment(SMALL, LOSS)
    _, grads, (state,) = guided(rule)
    u = jitted(rule).value_and_grad(KEY, params, state, x, y)[1]
    share = inner_product(u, EXACT) / inner_product(u, u)
    expected = jax.tree.map(lambda leaf: share * leaf, u)
    assert_close(grads, expected, ulps=100)
    for other in (u, jax.tree.map(jnp.zeros_like, u)):
        assert_close(guided(guess(u), guess(other))[1], expected, ulps=1000)


def test_never_uphill_and_better_with_every_guess() -> None:
    @jax.jit
    def cosine(*guesses: Any) -> Any:
        rule = ll.guided_gradient(SMALL, LOSS, [guess(u) for u in guesses])
        grads = rule.value_and_grad(KEY, OF_SMALL[0], ((),) * len(guesses), *OF_SMALL[1:])[1]
        return cosine_similarity(grads, EXACT)

    directions = [jax.tree.map(lambda leaf, i=i: normal(10 + i, *leaf.shape), EXACT) for i in range(3)]
    assert cosine(jax.tree.map(np.negative, EXACT)) > 0.999
    assert 0 <= cosine(directions[0]) < cosine(*directions)
    # Two guesses 0.01 apart, one of them many times, still span the gradient between them.
    for scale in np.array([1e-25, 1e25], np.float32):
        one, other = (
            jax.tree.map(lambda g, a=scale, s=share: a * (1 + s * np.asarray(g)), EXACT)
            for share in np.array([0, 0.01], np.float32)
        )
        # Of the difference of the guesses, 1 % of them, roundings are 1e-5.
        assert cosine(*[one] * 20, other) > 1 - 1e-6


# --- losses of blocks: gradients are those of the blocks alone, under any rule


def dense(p: Any, x: Any) -> Any:
    return jnp.tanh(x @ p["w"] + p["b"])


def read_out(w: Any, a: Any) -> Any:
    return a @ w


BLOCKS: Any = [(dense, read_out)] * 3
IN_BLOCKS: Any = [({"w": w, "b": normal(11, w.shape[1])}, normal(10, w.shape[1], 2)) for w in PARAMS]
local: Any = ll.local_losses


@jax.jit
@jax.grad
def gradient_of_blocks(params: Any) -> Any:
    """Of the sum of the losses of all blocks, the flow cut between them."""
    x, total = X, 0.0
    for p, q in params:
        x = dense(p, jax.lax.stop_gradient(x))
        total += LOSS(read_out(q, x), Y).mean()
    return total


def test_gradients_and_states_are_those_of_the_blocks() -> None:
    of_backprop = update(local(partial(ll.backprop, loss=LOSS), BLOCKS), KEY, IN_BLOCKS, X, Y)
    assert_near(of_backprop[2], gradient_of_blocks(IN_BLOCKS))
    of_blocks = []
    for make in (
        partial(ll.kolen_pollack, loss=LOSS, optimizer=optax.sgd(0.1)),
        partial(ll.forward_gradient, loss=LOSS, perturb="activities"),
    ):
        state, loss, grads, after = update(local(make, BLOCKS), KEY, IN_BLOCKS, X, Y)
        alone, x = jitted(make(ll.Model(lambda p, x: read_out(p[1], dense(p[0], x))))), X
        parts = zip(jax.random.split(KEY, 3), IN_BLOCKS, state, grads, after, strict=True)
        for key, params, before, *found in parts:
            of_block, *expected = alone.value_and_grad(key, params, before, x, Y)
            assert_close(found, expected, ulps=64)
            x = dense(params[0], x)
            of_blocks.append(of_block)
        same([of_backprop[1], loss], of_blocks[-1])  # the loss is that of the last block


def test_leaves_that_a_rule_does_not_train_stay() -> None:
    start = [(p, {"w": q}) for p, q in IN_BLOCKS]
    rule = local(
        lambda model: ll.backprop(replace(model, trainable="*w"), LOSS),
        [(dense, lambda p, a: a @ p["w"])] * 3,
    )
    train = ll.make_train(
        rule, optax.adamw(0.1, weight_decay=0.5), init=lambda key: start, num_updates=2, batch_size=BATCH
    )
    end = jax.jit(train)(KEY, ll.data.Splits(*[ll.data.Dataset(X, Y)] * 3)).state.params
    for (before, _), (after, _) in zip(start, end, strict=True):
        np.testing.assert_array_equal(before["b"], after["b"])
        assert (before["w"] != after["w"]).any()


# --- bad input

of_model: Any = {
    make: partial(getattr(ll, make), MODEL, LOSS)
    for make in (
        "direct_kolen_pollack", "forward_direct_feedback", "weight_mirror",
        "pepita", "guided_gradient", "backprop",
    )
}  # fmt: skip
LOCAL = local(lambda model: of_model["backprop"](), BLOCKS)
test_bad_input = refusals(
    values={
        r"^targets: expected shape \[6, 2\] as in the output, got \[6\]": lambda: update(
            ll.direct_random_target_projection(MODEL, lambda output, y: output.sum(axis=1)),
            KEY,
            PARAMS,
            X,
            jnp.arange(BATCH),
        ),
        "^x: expected a floating-point leaf": lambda: ll.pepita(ll.Model(lambda w, x: w[x]), LOSS).init(
            KEY, jnp.ones((4, 2)), jnp.ones(3, int)
        ),
        "^guesses: expected at least one rule": lambda: of_model["guided_gradient"]([]),
        "^blocks: expected at least one": lambda: local(lambda model: LOCAL, []),
        r"^blocks\[0\]: expected a pair": lambda: local(lambda model: LOCAL, [(dense, read_out, dense)]),
        "^params: expected a list of 3 pairs": [
            lambda: LOCAL.init(KEY, IN_BLOCKS[:2], X),
            lambda: LOCAL.value_and_grad(KEY, [1, 2, 3], ((), (), ()), X, Y),
        ],
    },
    types={
        "^state: expected the state of the rule's init": lambda: of_model["forward_direct_feedback"](
            optimizer=optax.sgd(0.1)
        ).value_and_grad(KEY, PARAMS, (), X, Y),
        r"^guesses\[1\]: expected a Rule, got": lambda: of_model["guided_gradient"]([LOCAL, ll.backprop]),
        "^make_rule: ": [lambda: local(3, BLOCKS), lambda: local(lambda model: None, BLOCKS)],
        r"^blocks\[0\]: head: expected a function": lambda: local(lambda model: LOCAL, [(dense, 3)]),
        "^state: ": lambda: LOCAL.value_and_grad(KEY, IN_BLOCKS, None, X, Y),
    },
)
