"""Plasticity transfer: its models, keys and weight decay."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tqdm import tqdm

import experiments.plasticity_transfer.__main__ as experiment
from experiments.plasticity_transfer import stages
from experiments.plasticity_transfer.config import Config
from experiments.plasticity_transfer.models import MODELS
from experiments.plasticity_transfer.report import LABELS


def test_every_model_is_the_default_and_has_a_label():
    assert Config().models == tuple(MODELS) == tuple(LABELS)


def test_meta_learning_decays_weights_by_a_hundredth(monkeypatch):
    """Then Adam sees no gradient where that of the loss is -0.01 of a weight."""
    made = []

    def stop(network, structure, optimizer, **options):
        made.append(optimizer)
        raise InterruptedError

    monkeypatch.setattr(stages.plasticity, "meta_learn", stop)
    config = Config(width=12, cap=6, features=4)
    upstream = MODELS["pre_post_l2"].upstream(config)
    assert upstream is not None
    with pytest.raises(InterruptedError):
        jax.eval_shape(stages.meta_learning(upstream, config).init, jax.random.key(0), ())
    (optimizer,), weight = made, jnp.float32(2.0)
    moves = [optimizer.update(g, optimizer.init(weight), weight)[0] for g in (-0.02, -0.03, -0.01)]
    np.testing.assert_allclose(moves, [0, config.learning_rate, -config.learning_rate], rtol=1e-4, atol=1e-7)


def test_every_stage_attempt_and_seed_has_a_key_of_its_own(monkeypatch, tmp_path):
    config = Config(width=12, cap=6, features=4, seeds=2, attempts=3)
    seen = [*experiment.keys_of(config, 0, 4)]
    downstream: Any = SimpleNamespace(init=lambda key, learned: key, multiple=1)
    order, learner = stages.one_pass(downstream, config).init(jax.random.key(0), (), None)
    assert order != learner

    def fail(run, members, *_):
        (keys,) = members
        seen.extend(keys)
        train = SimpleNamespace(params=SimpleNamespace(tables=jnp.zeros(len(keys))))
        metrics = {"test_balanced_accuracy": np.zeros((len(keys), 1))}
        return SimpleNamespace(metrics=metrics, state=SimpleNamespace(train=train))

    monkeypatch.setattr(experiment, "run_members", fail)
    _, attempts = experiment.run_upstream("pre_post_l2", config, tmp_path, tqdm(total=0, disable=True))
    assert attempts.tolist() == [3, 3]
    assert len({jax.random.key_data(key).tobytes() for key in seen}) == len(seen) == 4 + 3 * 2
