"""Runs of one rule on one problem: trials of learning rates, tests at the best one, and time measurements."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from tqdm import tqdm

import lax_learning as ll
from benchmarks import machine, pairs
from benchmarks.rules.config import Config
from benchmarks.rules.problems import DATA, LOSS, PROBLEMS, Problem
from experiments.microlearning.measures import of_layers
from experiments.registry import rule_of
from experiments.running import side_by_side
from lax_learning.metrics import by_path, cosine_similarity, snr


@jax.jit
def compared(grads: Any, reference: Any) -> dict[str, jax.Array]:
    """Returns mean cosine to the reference and signal to noise over batches, `[layers + 1]`, the total last.

    Compiled once per model, not once per rule.
    """
    cosines = jax.vmap(partial(of_layers, cosine_similarity))(grads, reference)
    return {"cosine": cosines.mean(axis=0), "snr": of_layers(lambda g: snr(g).total.value, grads)}


class Contest(NamedTuple):
    """Runs of one rule on one problem."""

    rule: str
    problem: Problem
    config: Config

    def make_rule(self, rate: Any) -> ll.Rule:
        """Returns the rule; learned feedback uses the learning rate of the weights."""
        c = self.config
        made = rule_of(self.rule, sigma=c.sigma, decay=c.decay, gain=c.gain, optimizer=optax.sgd(rate))
        return made(self.problem.model, LOSS)

    def make_train(self, rate: Any) -> ll.Train:
        """Returns training by gradient descent."""
        model, updates, rule = self.problem.model, self.config.chosen.updates, self.make_rule(rate)

        def evaluate(key: Any, params: Any, state: Any, data: ll.data.Splits) -> dict[str, jax.Array]:
            net, parts = rule.model_at(model, state), {"validation": data.validation, "test": data.test}
            return {name: ll.accuracy(net.apply(params, x), y) for name, (x, y) in parts.items()}

        return ll.make_train(
            rule, optax.sgd(rate), init=model.init, num_updates=updates,
            batch_size=self.config.batch_size, evaluate=evaluate, every=updates // self.config.evaluations,
        )  # fmt: skip

    def run(self, member: tuple[Any, Any], data: ll.data.Splits) -> tuple[Any, ll.TrainState, ll.TrainState]:
        """Runs training; a pure function of key and learning rate, so trials and tests share one program.

        Returns accuracies `[1 + evaluations]` on validation and test data, and the state before and after.
        """
        key, rate = member
        train = self.make_train(rate)
        history = train(key, data)
        return history.evaluations, train.init(key, data), history.state

    def gradients(self, key: jax.Array, params: Any, state: Any, batches: Any) -> Any:
        """Returns the gradients of all batches, `(x, y) [batches, examples, ...]`, along a leading axis."""
        rule = self.make_rule(0.0)
        keys = jax.random.split(key, self.config.batches)
        return jax.lax.map(lambda of: rule.value_and_grad(of[0], params, state, *of[1])[1], (keys, batches))

    @property
    def reference(self) -> "Contest":
        """Runs of backprop on the same problem, or `self` for a rule that wraps the model."""
        return self if self.make_rule(0.0).wrapped else self._replace(rule="backprop")

    def exact(self, params: Any, state: Any, batches: Any) -> Any:
        """Returns backprop's gradients of all batches, on the model as the rule wraps it."""
        rule = ll.backprop(self.make_rule(0.0).model_at(self.problem.model, state), LOSS)
        key = jax.random.key(0)  # backprop draws nothing
        return jax.lax.map(lambda of: rule.value_and_grad(key, params, (), *of)[1], batches)

    def update(self, state: ll.TrainState, data: ll.data.Splits) -> Any:
        """Runs the updates between two evaluations with a learning rate of 0, to measure their time."""
        return self.make_train(0.0).advance(state, 0, data)


@lru_cache(maxsize=4)
def programs(contest: Contest) -> tuple[Any, Any]:
    """Returns compiled `exact` and `update`; all rules on a problem share those of backprop."""
    return jax.jit(contest.exact), jax.jit(contest.update)


def all_of(function: Callable[..., Any], members: Any, data: Any, progress: tqdm) -> Any:
    """Maps a function over all members, a fixed number side by side, so that any number uses one program."""
    before = progress.n

    def advance(done: int, total: int) -> None:
        progress.update(before + done - progress.n)

    many = ll.ensemble(function, batch_size=side_by_side(), progress=advance)
    return ll.gather(many(members, data))


def measure(
    contest: Contest, key: jax.Array, ends: list[ll.TrainState], data: ll.data.Splits
) -> dict[str, np.ndarray]:
    """Returns cosine and signal to noise before and after training, `[when, seed, layer]`."""
    size, number, seeds = contest.config.batch_size, contest.config.batches, contest.config.chosen.seeds
    batches = tuple(leaf[: size * number].reshape(number, size, *leaf.shape[1:]) for leaf in data.train)
    of_rule, (exact, _) = jax.jit(contest.gradients), programs(contest.reference)
    shared = contest.reference is not contest

    def of_seed(end: ll.TrainState, seed: int) -> dict[str, jax.Array]:
        params, state = jax.tree.map(lambda leaf: leaf[seed], (end.params, end.rule_state))
        reference = exact(params, () if shared else state, batches)
        return compared(of_rule(jax.random.fold_in(key, seed), params, state, batches), reference)

    found = [[of_seed(end, seed) for seed in range(seeds)] for end in ends]
    return {name: np.array([[one[name] for one in of_end] for of_end in found]) for name in found[0][0]}


def best(validation: np.ndarray) -> int:
    """Returns the index of the best rate by accuracies `[rate, seed]`; rates with a NaN never win."""
    return int(np.nan_to_num(validation.mean(axis=1), nan=-1.0).argmax())


def load(config: Config) -> dict[str, ll.data.Splits]:
    """Loads the data sets of all problems, shared by all seeds."""
    key = jax.random.key(config.seed)
    names = dict.fromkeys(PROBLEMS[problem].data for problem in config.chosen.problems)
    data = {name: jax.tree.map(jnp.asarray, DATA[name].load(key, config.data)) for name in names}
    least = config.batch_size * config.batches
    for name, splits in data.items():
        size = len(splits.train.x)
        config.expect("batches", f"at most the {size} examples of {name} in all", least <= size)
    return data


def run_part(name: str, config: Config, data: dict[str, ll.data.Splits], progress: tqdm) -> xr.Dataset:
    """Returns the results of one rule on one problem, or its error message if the model is not supported."""
    problem, rule = config.parts()[name]
    contest, splits = Contest(rule, PROBLEMS[problem], config), data[PROBLEMS[problem].data]
    progress.set_description(name)
    key = jax.random.key(config.seed)
    try:
        jax.eval_shape(contest.run, (key, jnp.zeros(())), splits)
    except (TypeError, ValueError) as error:
        progress.update(config.runs)
        found = xr.Dataset({"refused": str(error)})
    else:
        found = compete(contest, splits, progress)
    busy = machine.load()
    found = found.assign(problem=problem, rule=rule, machine_load=np.nan if busy is None else busy)
    return found.expand_dims(part=[name])


def compete(contest: Contest, data: ll.data.Splits, progress: tqdm) -> xr.Dataset:
    """Tries every learning rate with the tuning seeds, and tests the best one with the test seeds."""
    config, chosen = contest.config, contest.config.chosen
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    tuning_key, test_key, measure_key = jax.random.split(key, 3)
    shape = len(chosen.rates), chosen.tuning_seeds
    keys = jnp.tile(jax.random.split(tuning_key, shape[1]), shape[0])
    rates = np.repeat(np.asarray(chosen.rates, np.float32), shape[1])
    trials, *_ = all_of(contest.run, (keys, rates), data, progress)
    tuning = np.asarray(trials["validation"])[:, -1].reshape(shape)
    rate = chosen.rates[best(tuning)]
    members = jax.random.split(test_key, chosen.seeds), np.full(chosen.seeds, rate, np.float32)
    accuracies, *ends = all_of(contest.run, members, data, progress)

    measured = measure(contest, measure_key, ends, data)
    first = jax.tree.map(lambda leaf: leaf[0], ends[0])
    ours = partial(programs(contest)[1], first, data)
    backprops = partial(programs(contest._replace(rule="backprop"))[1], first._replace(rule_state=()), data)
    timed = pairs.compare(ours, backprops, seconds=config.seconds)
    every = chosen.updates // config.evaluations
    return xr.Dataset(
        {
            "refused": "",
            "tuning_accuracy": (("rate", "tuning_seed"), tuning),
            "learning_rate": rate,
            "test_accuracy": (("seed", "step"), np.asarray(accuracies["test"])),
            **{name: (("when", "seed", "layer"), values) for name, values in measured.items()},
            "seconds": timed.ours_s / every,
            "backprop_seconds": timed.reference_s / every,
            "relative_seconds": timed.ratio,
        },
        {
            "rate": list(chosen.rates),
            "step": np.arange(config.evaluations + 1) * every,
            "when": ["start", "end"],
            "layer": [*by_path(lambda leaves: 0.0, first.params, depth=1), "total"],
        },
    )
