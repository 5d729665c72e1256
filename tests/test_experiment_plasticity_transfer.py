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


def test_every_model_is_the_default_and_has_a_label():
    assert Config().models == tuple(MODELS) == tuple(STYLES)


def test_meta_learning_decays_weights_by_a_hundredth():
    """Adam sees no gradient where that of the loss is -0.01 of a weight."""
    optimizer, weight = stages.decayed_adam(0.1), jnp.float32(2.0)
    for gradient, move in ((-0.02, 0.0), (-0.03, 0.1), (-0.01, -0.1)):
        found: Any = optimizer.update(gradient, optimizer.init(weight), weight)[0]
        np.testing.assert_allclose(found, move, rtol=1e-4, atol=1e-7)


def test_every_stage_attempt_and_seed_has_a_key_and_only_failed_seeds_are_repeated(monkeypatch, tmp_path):
    config = Config(width=12, cap=6, features=4, seeds=3, attempts=3)
    seen = [*experiment.keys_of(config, 0, 4)]
    monkeypatch.setattr(Model, "downstream", lambda *_: SimpleNamespace(init=lambda key, learned: key))
    order, learner = stages.one_pass(MODELS["rnn"], config).init(jax.random.key(0), (), None)
    assert order != learner

    def run_members(run, members, *_):
        (keys,) = members
        seen.extend(keys)
        accuracy = np.array([0.0, 0.9, np.nan][: len(keys)])  # of two repeated seeds, the second one succeeds
        state = SimpleNamespace(params=SimpleNamespace(tables=jnp.zeros(len(keys))))
        return SimpleNamespace(metrics={"test_balanced_accuracy": accuracy[:, None]}, state=((), state, ()))

    monkeypatch.setattr(experiment, "run_members", run_members)
    progress = tqdm(total=0, disable=True)
    metrics, (tables,), seeds = experiment.run_upstream("pre_post_l2", config, tmp_path, progress)
    assert seeds.tolist() == [0, 1, 2, 0, 2, 0] and len(tables) == 6
    np.testing.assert_array_equal(metrics["test_balanced_accuracy"][:, 0], [0, 0.9, np.nan, 0, 0.9, 0])
    assert len({jax.random.key_data(key).tobytes() for key in seen}) == len(seen) == 4 + 3 + 2 + 1
