"""Memory tasks, drawn from a key: sequences with targets at some of their steps."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from lax_learning._checks import check_count, check_key, check_probability
from lax_learning.data._random import check_drawn
from lax_learning.types import Key


class Sequences(NamedTuple):
    """Sequences and their targets, in the shapes that `value_and_grad` takes.

    Fields:
      x: inputs, `[examples, steps, features]`.
      y: one-hot targets, `[examples, steps, classes]`; zeros at steps without a target, which
        `softmax_cross_entropy` ignores without a mask.
      mask: true at steps with a target, `[examples, steps]`; the same for all examples.
    """

    x: Float[Array, "*n steps features"]
    y: Float[Array, "*n steps classes"]
    mask: Bool[Array, "*n steps"]


def delayed_match(
    key: Key,
    num_examples: int,
    *,
    num_symbols: int = 2,
    duration: int = 2,
    delay: int = 10,
    dtype: DTypeLike = jnp.float32,
) -> Sequences:
    """Draws a delayed match-to-sample task: does a second symbol equal the first?

    A symbol for `duration` steps, `delay` blank steps, and a symbol for `duration` steps, the last of which
    has the target. With probability 1/2 the symbols match (class 1); otherwise (class 0) the second one is
    uniform among the other symbols. Chance is 1/2.

    Args:
      key: PRNG key.
      num_examples: number of sequences.
      num_symbols: number of symbols, at least 2; each has its own input.
      duration, delay: numbers of steps of each symbol, and between the two.
      dtype: dtype of x and y.

    Returns:
      Sequences of `x [examples, 2 duration + delay, symbols]` and `y [examples, steps, 2]`.

    Example:
      >>> delayed_match(jax.random.key(0), 5, delay=6).x.shape
      (5, 10, 2)

    References:
      Miller, Erickson, Desimone, https://doi.org/10.1523/JNEUROSCI.16-16-05154.1996, 1996.
    """
    _check_counts(num_symbols=(num_symbols, 2), duration=(duration, 1), delay=(delay, 0))
    steps = 2 * duration + delay
    check_key("key", key)
    check_drawn(dtype, num_examples=num_examples, steps=steps, num_symbols=num_symbols)
    first_key, match_key, other_key = jax.random.split(key, 3)
    first = jax.random.randint(first_key, (num_examples,), 0, num_symbols)
    match = jax.random.bernoulli(match_key, shape=(num_examples,))
    shift = jax.random.randint(other_key, (num_examples,), 1, num_symbols)
    second = (first + jnp.where(match, 0, shift)) % num_symbols
    blank = jnp.full((num_examples, delay), num_symbols)
    symbols = [jnp.tile(symbol[:, None], (1, duration)) for symbol in (first, second)]
    x = jnp.concatenate([symbols[0], blank, symbols[1]], axis=1)
    return _sequences(x, match.astype(int)[:, None], num_symbols, 2, dtype)


def copy_memory(
    key: Key,
    num_examples: int,
    *,
    num_symbols: int = 4,
    length: int = 3,
    delay: int = 10,
    dtype: DTypeLike = jnp.float32,
) -> Sequences:
    """Draws a delayed copy task: sequences of symbols to be repeated from memory.

    `length` random symbols, `delay` blank steps, and `length` steps of a go signal, at which the targets are
    the symbols in the same order. Chance is `1 / num_symbols`.

    Args:
      key, num_examples, dtype: as for `delayed_match`.
      num_symbols: number of symbols, at least 2; each has its own input, and so has the go signal.
      length, delay: numbers of symbols and of blank steps.

    Returns:
      Sequences of `x [examples, 2 length + delay, symbols + 1]` and `y [examples, steps, symbols]`.

    Example:
      >>> data = copy_memory(jax.random.key(0), 5, length=2, delay=1)
      >>> data.x.shape, data.mask[0].tolist()
      ((5, 5, 5), [False, False, False, True, True])

    References:
      Hochreiter, Schmidhuber, Long short-term memory, https://doi.org/10.1162/neco.1997.9.8.1735, 1997.
      Arjovsky, Shah, Bengio, https://arxiv.org/abs/1511.06464, 2016 (this form).
    """
    _check_counts(num_symbols=(num_symbols, 2), length=(length, 1), delay=(delay, 0))
    steps = 2 * length + delay
    check_key("key", key)
    check_drawn(dtype, num_examples=num_examples, steps=steps, num_symbols=num_symbols)
    symbols = jax.random.randint(key, (num_examples, length), 0, num_symbols)
    blank = jnp.full((num_examples, delay), num_symbols + 1)
    go = jnp.full((num_examples, length), num_symbols)
    x = jnp.concatenate([symbols, blank, go], axis=1)
    return _sequences(x, symbols, num_symbols + 1, num_symbols, dtype)


def cue_accumulation(
    key: Key,
    num_examples: int,
    *,
    num_cues: int = 7,
    duration: int = 2,
    pause: int = 1,
    delay: int = 10,
    bias: float = 0.7,
    dtype: DTypeLike = jnp.float32,
) -> Sequences:
    """Draws an evidence accumulation task: were there more cues on the left or on the right?

    `num_cues` cues of `duration` steps on one of two sides, each followed by `pause` blank steps; `delay`
    more blank steps; and `duration` steps of a decision signal, the last of which has the target. In each
    example, one side is more likely and has each cue with probability `bias`. The class is the side with more
    cues: 0 left, 1 right. Chance is 1/2; with the defaults, the last cue alone is correct in 73 %.

    Args:
      key, num_examples, dtype: as for `delayed_match`.
      num_cues: number of cues; odd, so that one side has more.
      duration, pause, delay: numbers of steps.
      bias: probability of a cue on the more likely side.

    Returns:
      Sequences of `x [examples, (duration + pause) cues + delay + duration, 3]`, with inputs left, right
      and signal, and `y [examples, steps, 2]`.

    Example:
      >>> cue_accumulation(jax.random.key(0), 5).x.shape
      (5, 33, 3)

    References:
      Morcos, Harvey, https://doi.org/10.1038/nn.4403, 2016.
      Bellec et al., https://doi.org/10.1038/s41467-020-17236-y, 2020.
    """
    _check_counts(num_cues=(num_cues, 1), duration=(duration, 1), pause=(pause, 0), delay=(delay, 0))
    if num_cues % 2 == 0:
        raise ValueError(f"num_cues: expected an odd number, so that one side has more, got {num_cues}")
    check_probability("bias", bias)
    steps = (duration + pause) * num_cues + delay + duration
    check_key("key", key)
    check_drawn(dtype, num_examples=num_examples, steps=steps, num_inputs=3)
    side_key, cue_key = jax.random.split(key)
    likely = jax.random.bernoulli(side_key, shape=(num_examples, 1))
    cues = (likely ^ ~jax.random.bernoulli(cue_key, bias, (num_examples, num_cues))).astype(int)
    seen = [jnp.repeat(cues[:, :, None], duration, axis=2), jnp.full((num_examples, num_cues, pause), 3)]
    blank, decide = jnp.full((num_examples, delay), 3), jnp.full((num_examples, duration), 2)
    x = jnp.concatenate([jnp.concatenate(seen, axis=2).reshape(num_examples, -1), blank, decide], axis=1)
    label = (2 * cues.sum(axis=1) > num_cues).astype(int)
    return _sequences(x, label[:, None], 3, 2, dtype)


def _check_counts(**counts: tuple[int, int]) -> None:
    """Raises unless every count is an int of at least its minimum."""
    for name, (count, minimum) in counts.items():
        check_count(name, count, minimum)


def _sequences(
    symbols: Int[Array, "n steps"],
    labels: Int[Array, "n last"],
    num_features: int,
    num_classes: int,
    dtype: DTypeLike,
) -> Sequences:
    """Returns symbols (one-hot; zeros for `num_features` or more) and labels at the last steps."""
    number, steps = symbols.shape
    x = jax.nn.one_hot(symbols, num_features, dtype=dtype)
    before = steps - labels.shape[1]
    y = jnp.pad(jax.nn.one_hot(labels, num_classes, dtype=dtype), ((0, 0), (before, 0), (0, 0)))
    return Sequences(x, y, jnp.broadcast_to(jnp.arange(steps) >= before, (number, steps)))
