"""Local losses: every block learns from its own loss, by any rule, and no credit passes between blocks."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax

from lax_learning._checks import check_callable, check_instance, check_key, check_sequence
from lax_learning._structure import sequence_like
from lax_learning.models import Model, selects
from lax_learning.rules._common import Result
from lax_learning.rules._feedback import check_state
from lax_learning.types import Key, Rule

Block = tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]
"""`(body, head)`: `body(p, x) -> activities` that the next block reads, `head(q, activities) -> output`."""


def local_losses(make_rule: Callable[[Model], Rule], blocks: Sequence[Block]) -> Rule:
    """Trains every block of a network on the loss at its own head.

    `a_l = body_l(p_l, a_{l-1})`, `g_l = rule on L(head_l(q_l, body_l(p_l, a_{l-1})), y)` with `a_{l-1}` fixed

    Perturbations of one block do not affect the learning of another, so forward gradients and node
    perturbation have the variance of one block instead of the whole network. Learning is greedy: no block
    learns features that only later blocks could use. All heads except the last are discarded after training.

    Args:
      make_rule: `model -> Rule`, called for every block, for example
        `lambda model: ll.forward_gradient(model, ll.softmax_cross_entropy, perturb="activities")`.
      blocks: pairs `(body, head)` of functions of parameters and a batch, in order.

    Returns:
      The rule for params `[(p_1, q_1), ..., (p_L, q_L)]`, a list or tuple. Its state contains the states of
      the blocks, and its loss is that of the last block.

    Example:
      >>> import jax.numpy as jnp
      >>> import lax_learning as ll
      >>> def dense(w, x):
      ...     return jnp.tanh(x @ w)
      >>> def read_out(w, a):
      ...     return a @ w
      >>> rule = local_losses(lambda model: ll.backprop(model, ll.squared_error), [(dense, read_out)] * 2)
      >>> params = [(jnp.eye(3), jnp.ones((3, 2))), (jnp.eye(3), jnp.ones((3, 2)))]
      >>> key, x, y = jax.random.key(0), jnp.ones((5, 3)), jnp.zeros((5, 2))
      >>> state = rule.init(key, params, x)
      >>> loss, grads, state = jax.jit(rule.value_and_grad)(key, params, state, x, y)
      >>> jax.tree.map(jnp.shape, grads[0])
      ((3, 3), (3, 2))

    References:
      Ren, Kornblith, Liao, Hinton, Scaling forward gradient with local losses,
      https://arxiv.org/abs/2210.03310, 2023.
    """
    check_callable("make_rule", make_rule, "a function model -> Rule", num_arguments=1)
    check_sequence("blocks", blocks, "a sequence of pairs (body, head)")
    if not blocks:
        raise ValueError("blocks: expected at least one pair (body, head), got none")
    rules = []
    for i, block in enumerate(blocks):
        check_sequence(f"blocks[{i}]", block, "a pair (body, head)")
        if len(block) != 2:
            raise ValueError(f"blocks[{i}]: expected a pair (body, head), got {len(block)} entries")
        for name, function in zip(("body", "head"), block, strict=True):
            check_callable(f"blocks[{i}]: {name}", function, "a function (params, x)", num_arguments=2)
        rules.append(make_rule(Model(partial(_with_head, *block))))
        check_instance("make_rule", rules[-1], Rule, "a function that returns a Rule")

    def check_params(params: Any) -> None:
        is_right = isinstance(params, list | tuple) and len(params) == len(blocks)
        if not (is_right and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in params)):
            raise ValueError(
                f"params: expected a list of {len(blocks)} pairs, (params of the body, params of the head), "
                f"got {jax.tree.structure(params)}"
            )

    def init(key: Key, params: Any, x: Any) -> tuple[Any, ...]:
        check_key("key", key)
        check_params(params)
        states = []
        keys = jax.random.split(key, len(rules))
        for k, rule, (body, _), of_block in zip(keys, rules, blocks, params, strict=True):
            states.append(rule.init(k, of_block, x))
            x = jax.eval_shape(body, of_block[0], x)
        return tuple(states)

    def value_and_grad(key: Key, params: Any, state: tuple[Any, ...], x: Any, y: Any) -> Result:
        check_key("key", key)
        check_params(params)
        check_state(state, tuple)
        value, grads, after = None, [], []
        keys = jax.random.split(key, len(rules))
        for k, rule, (body, _), of_block, of_state in zip(keys, rules, blocks, params, state, strict=True):
            value, grad, moved = rule.value_and_grad(k, of_block, of_state, x, y)
            grads.append(grad)
            after.append(moved)
            x = body(of_block[0], x)
        return value, sequence_like(params, grads), tuple(after)

    def trainable(path: str) -> bool:
        """Returns whether a block's rule trains the leaf at `path`, `block/0/...` or `block/1/...`."""
        block, inside = path.split("/", 1)
        return selects(rules[int(block)].trainable, inside)

    is_free = all(rule.trainable is None for rule in rules)
    return Rule(init, value_and_grad, None if is_free else trainable)


def _with_head(body: Callable[..., Any], head: Callable[..., Any], params: Any, x: Any) -> Any:
    return head(params[1], body(params[0], x))
