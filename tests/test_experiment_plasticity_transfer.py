"""Plasticity transfer: its models, keys and weight decay."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import experiments.plasticity_transfer.__main__ as experiment
from experiments.plasticity_transfer import stages
from experiments.plasticity_transfer.config import Config
from experiments.plasticity_transfer.models import MODELS, Model
from experiments.plasticity_transfer.report import STYLES
from lax_learning.plasticity import Tables


def test_every_model_is_the_default_and_has_a_label():
    assert Config().models == tuple(MODELS) == tuple(STYLES)


def test_meta_learning_decays_weights_by_a_hundredth():
    """Adam sees no gradient where that of the loss is -0.01 of a weight."""
    optimizer, weight = stages.decayed_adam(0.1), jnp.float32(2.0)
    for gradient, move in ((-0.02, 0.0), (-0.03, 0.1), (-0.01, -0.1)):
        found: Any = optimizer.update(gradient, optimizer.init(weight), weight)[0]
        np.testing.assert_allclose(found, move, rtol=1e-4, atol=1e-7)


def test_the_keys_of_a_pass_differ(monkeypatch):
    monkeypatch.setattr(Model, "downstream", lambda *_: SimpleNamespace(init=lambda key, learned: key))
    order, learner = stages.one_pass(MODELS["rnn"], Config()).init(jax.random.key(0), (), None)
    assert order != learner


def test_failed_seeds_are_repeated_with_keys_of_their_own(monkeypatch, tmp_path):
    """Seed 1 succeeds at once, seed 2 in the second attempt and seed 0 never; tables are numbers of runs."""
    config, seen = Config(seeds=3, attempts=3, rule_epochs=1, evaluations=1), []

    def run_members(run, members, *_):
        keys, *learned = members
        if learned:
            ((tables,),) = learned
            return SimpleNamespace(metrics={"test_loss": tables.output[:, None]}, state=((), tables.output))
        runs: Any = np.arange(len(seen), len(seen) + len(keys), dtype=float)
        seen.extend(keys)
        accuracy = np.array([0.0, 0.9, np.nan][: len(keys)])
        state = (), SimpleNamespace(params=SimpleNamespace(tables=Tables((), runs))), ()
        return SimpleNamespace(metrics={"test_balanced_accuracy": accuracy[:, None]}, state=state)

    monkeypatch.setattr(experiment, "run_members", run_members)
    monkeypatch.setattr(experiment, "save_params", lambda *_: None)
    progress = tqdm(total=0, disable=True)
    found = experiment.run_model("pre_post_l2", config, None, tmp_path, progress).isel(model=0)
    assert found.attempts.values.tolist() == [3, 1, 2]
    runs = np.array([[0, 1, 2], [5, 1, 4]])
    np.testing.assert_array_equal(found.output_table_pre_post_l2, runs)
    np.testing.assert_array_equal(found.downstream_test_loss[..., 0], np.stack([runs, runs], axis=-1))
    accuracy = found.upstream_test_balanced_accuracy[..., 0]
    np.testing.assert_array_equal(accuracy, [[0, 0.9, np.nan], [0, 0.9, 0.9]])
    attempts = {1: [0, 1, 2], 3: [0, 2], 5: [0]}
    expected = [experiment.keys_of(config, n, 3)[np.array(seeds)] for n, seeds in attempts.items()]
    assert jnp.array_equal(jnp.stack(seen), jnp.concatenate(expected))
    keys = [experiment.keys_of(config, stage, 6) for stage in (0, *attempts)]
    assert len(np.unique(jax.random.key_data(jnp.concatenate(keys)), axis=0)) == 4 * 6
