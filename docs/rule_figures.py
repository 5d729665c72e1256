"""Measures and draws the figures of the rules' pages during the build: bias, variance, cosine, accuracy."""

import functools
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from docutils import nodes
from docutils.parsers.rst import Directive
from joblib import Parallel, delayed
from sphinx.application import Sphinx

import lax_learning as ll
from benchmarks.quality import make_rule, measure_draws

WIDTH, SEEDS, DRAWS, BATCH, SIGMA = 32, 4, 32, 32, 0.01
UPDATES, EVERY = 1500, 150
FLOOR = 1e-3


class Problem(NamedTuple):
    """Task that a rule learns while its figure is measured.

    Fields:
      model: the network.
      data: its examples.
      make: `(model, loss) -> rule`.
      counted: selects the outputs and targets that count for accuracy.
      chance: accuracy of guessing.
      caption: data and network.
    """

    model: Any
    data: ll.data.Splits
    make: Callable[..., ll.Rule]
    counted: Callable[[Any], Any]
    chance: float
    caption: str


ONLINE: dict[str, Callable[..., ll.Rule]] = {
    "rflo": ll.online.rflo,
    "eprop": ll.online.eprop,
    "rtrl": ll.online.rtrl,
    "three_factor": functools.partial(ll.online.three_factor, sigma=0.3, decay=0.9),
}
"""Rules for recurrent networks; all others come from the registry."""


@functools.cache
def images() -> ll.data.Splits:
    """Returns MNIST-1D: 40 inputs, 10 classes."""
    return ll.data.mnist1d(jax.random.key(0))


@functools.cache
def sequences() -> ll.data.Splits:
    """Returns delayed match to sample: at the last step, are the two symbols the same?"""
    parts = [ll.data.delayed_match(key, 1000, delay=4) for key in jax.random.split(jax.random.key(0), 2)]
    train, test = (ll.data.Dataset(part.x, part.y) for part in parts)
    return ll.data.Splits(train, test, test)


def problem_of(name: str) -> Problem:
    """Returns the task for the rule of a name."""
    if name in ONLINE:
        units = WIDTH // 4
        net = ll.online.leaky_rnn((2, units, 2), alpha=0.2)
        caption = f"Delayed match to sample, {units} leaky units with alpha = 0.2"
        return Problem(net, sequences(), ONLINE[name], lambda steps: steps[:, -1], 0.5, caption)
    network = ll.mlp((40, WIDTH, WIDTH, 10), activation=jnp.tanh)
    make = functools.partial(make_rule, name, sigma=SIGMA)
    caption = f"MNIST-1D, 40-{WIDTH}-{WIDTH}-10 tanh network"
    return Problem(network, images(), make, lambda output: output, 0.1, caption)


def measure(problem: Problem, rate: float) -> dict[str, np.ndarray]:
    """Returns gradient quality and test accuracy while the rule trains the network: `[seed, evaluation]`."""
    model, loss = problem.model, ll.softmax_cross_entropy
    rule, exact = problem.make(model, loss), ll.backprop(model, loss)

    def evaluate(key: jax.Array, params: Any, state: Any, data: Any) -> dict[str, jax.Array]:
        x, y = data.train.x[:BATCH], data.train.y[:BATCH]
        _, reference, _ = exact.value_and_grad(key, params, (), x, y)
        found = measure_draws(rule, params, state, x, y, key, DRAWS, reference=reference)
        output, y = problem.counted(model.apply(params, data.test.x)), problem.counted(data.test.y)
        return {name: value[-1] for name, value in found.items()} | {"accuracy": ll.accuracy(output, y)}

    train = ll.make_train(
        rule,
        optax.sgd(rate),
        init=model.init,
        num_updates=UPDATES,
        batch_size=BATCH,
        evaluate=evaluate,
        every=EVERY,
    )
    # Run in pieces, so that the evaluation is compiled only once, not also inside the scan.
    init, advance, look = (
        jax.jit(jax.vmap(piece, in_axes=(0, *shared)))
        for piece, shared in ((train.init, [None]), (train.advance, [None] * 2), (train.evaluate, [None] * 2))
    )
    state = init(jax.random.split(jax.random.key(2), SEEDS), problem.data)
    found = [look(state, 0, problem.data)]
    for step in range(0, UPDATES, EVERY):
        state, _ = advance(state, step, problem.data)
        found.append(look(state, step + EVERY, problem.data))
    return {name: np.stack([each[name] for each in found], axis=1) for name in found[0]}


def draw(name: str, rate: float, path: Path) -> None:
    """Draws the figure of a rule into a file."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 3.1), layout="constrained")
    problem = problem_of(name)
    found = measure(problem, rate)
    for metric, label, marker in (
        ("relative_bias", "squared bias", "o"),
        ("relative_variance", "variance", "s"),
    ):
        _line(left, np.maximum(found[metric], FLOOR), label, marker)
    left.set(yscale="log", ylim=(0.7 * FLOOR, max(10, left.get_ylim()[1])), title="over |gradient|²")
    left.legend()
    _line(middle, found["cosine"], None, ".")
    middle.set(ylim=(min(-0.05, middle.get_ylim()[0]), 1.05), title="cosine to backprop, one draw")
    _line(right, found["accuracy"], None, ".")
    right.set(ylim=(0, max(0.8, right.get_ylim()[1])), title="test accuracy")
    right.axhline(problem.chance, color="0.6", linestyle=":")
    figure.supxlabel("updates by the rule", fontsize="medium")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _line(axes: Any, of_seeds: np.ndarray, label: str | None, marker: str) -> None:
    updates = np.arange(0, UPDATES + 1, EVERY)
    (line,) = axes.plot(updates, of_seeds.mean(axis=0), marker=marker, label=label)
    axes.fill_between(updates, of_seeds.min(axis=0), of_seeds.max(axis=0), color=line.get_color(), alpha=0.2)
    axes.grid(alpha=0.3)


CAPTION = (
    f"{{problem}}, batches of {BATCH}, gradient descent at a rate of {{rate:g}}. Left: squared bias and "
    f"variance of a gradient over {DRAWS} draws; values below {FLOOR:g} are drawn at {FLOOR:g}. The squared "
    f"bias of an unbiased rule scatters around 0 by its variance / {DRAWS}. Lines: means over {SEEDS} seeds; "
    "bands: minimum and maximum. Dotted: chance."
)


DIRECTIVE = re.compile(r"^```\{rule-figure\} (\S+) (\S+)$", re.MULTILINE)


def path_of(folder: str, name: str, rate: float) -> Path:
    """Returns the path of a figure, which changes with the source of this module."""
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    return Path(folder, "_build", "figures", f"{name}-{rate:g}-{version}.png")


def draw_missing(app: Sphinx) -> None:
    """Draws all missing figures of the pages, in parallel."""
    if not app.config.draw_rule_figures:
        return
    pages = "\n".join(page.read_text() for page in Path(app.srcdir, "rules").glob("*.md"))
    wanted = [(name, float(rate)) for name, rate in DIRECTIVE.findall(pages)]
    missing = [(*each, path) for each in wanted if not (path := path_of(app.srcdir, *each)).exists()]
    path_of(app.srcdir, "", 0).parent.mkdir(parents=True, exist_ok=True)
    Parallel(n_jobs=os.cpu_count())(delayed(draw)(*each) for each in missing)


class RuleFigure(Directive):
    """Directive `{rule-figure} NAME RATE`, with a name in `experiments/registry.py` or `ONLINE`."""

    required_arguments = 2
    has_content = False

    def run(self) -> list[nodes.Node]:
        env = self.state.document.settings.env
        env.note_dependency(__file__)
        name, rate = self.arguments[0], float(self.arguments[1])
        if not env.config.draw_rule_figures:
            return []
        path = path_of(env.app.srcdir, name, rate)
        figure = nodes.figure()
        figure += nodes.image(uri=f"/_build/figures/{path.name}", alt=f"Bias, variance and cosine of {name}")
        figure += nodes.caption("", CAPTION.format(problem=problem_of(name).caption, rate=rate))
        return [figure]
