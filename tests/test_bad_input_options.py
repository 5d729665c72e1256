"""Bad options: for every option of every public function, the values of its kind that are refused.

The checks of annotations that `conftest` adds are off in all tests of bad input: these are the errors that a
user sees.
"""

import inspect
import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lax_learning
from tests.refusal import refuses

ll: Any = lax_learning
KEY, W, NAN = jax.random.key(0), jnp.ones(2), float("nan")

# Kinds of options: the error, what is expected, and what is refused.

Kind = list[tuple[type[Exception], str, tuple[Any, ...]]]


def nothing() -> int:
    return 0


def function(expected: str, *more: Any) -> Kind:
    return [(TypeError, expected, (0.1, "text", *more))]


def instance(expected: str) -> Kind:
    return [(TypeError, expected, (None, 3, (3, 2), jnp.tanh, "text"))]


NO_NUMBERS = (NAN, np.inf, "0.1", None, True, 1j, W)
POSITIVE: Kind = [(ValueError, "a finite number > 0", (0, -0.1, *NO_NUMBERS))]
NOT_NEGATIVE: Kind = [(ValueError, "a finite number >= 0", (-0.1, *NO_NUMBERS))]
PROBABILITY: Kind = [(ValueError, r"a number in 0\.\.1", (-0.1, 1.1, *NO_NUMBERS))]
INT: Kind = [(TypeError, "an int", (2.0, True, "2", {2}))]
COUNT: Kind = [*INT, (ValueError, "at least [123]", (0, -3))]
NATURAL: Kind = [*INT, (ValueError, "at least 0", (-1,))]
FLAG: Kind = [(TypeError, "True or False", ("no", 1, None, W[0] > 0))]
CHOICE: Kind = [(ValueError, r"one of \[", ("unknown", None, 3, W))]
HIDDEN: Kind = [
    (TypeError, "(a sequence|the sizes|sizes) of", (3, "32")),
    (TypeError, "an int", ((3.0, 4, 2), (3, True, 2))),
    (ValueError, "at least 1", ((3, 0, 2),)),
]
WIDTHS: Kind = [*HIDDEN, (ValueError, r"(at least|(the )?sizes of|\(height)", ((),))]
OF_EACH_LAYER: Kind = [
    (TypeError, "an int", (2.0, True, (2.0,), (True,))),
    (ValueError, "(at least 1|one int, or 1, one per convolution)", (0, (0,), (3, 3))),
]
INIT = function(r"an initialiser \(key, shape, dtype\)", nothing, lambda key, shape: W)
A_FUNCTION = "a (function|step|factory of estimators)"
A_KEY = "one key, such as"
SIZES = "numbers of training, validation and test"

ONE_KIND: list[tuple[str, Kind]] = [
    ("decrease epsilon gain length_scale memory_budget scale sigma step_size", POSITIVE),
    ("A alpha decay eta gamma penalty prune weight_decay", NOT_NEGATIVE),
    ("edge_probability kappa rate", PROBABILITY),
    ("batch_size cap chunk_size depth duration every iterations k length number rank size", COUNT),
    ("num_classes num_cues num_epochs num_examples num_features num_inputs num_latents num_neurons", COUNT),
    ("num_points num_symbols num_units num_updates", COUNT),
    ("delay pause", NATURAL),
    ("antithetic batch bias has_aux layerwise lower share_noise shared", FLAG),
    ("center charge copies cost difference fired fitness magnitude method norm objective outputs", CHOICE),
    ("padding perturb probability rows scheme slots update variant", CHOICE),
    ("axis", INT),
    ("dtype", [(TypeError, "a floating-point dtype", (int, None, "text", W))]),
    ("w_init b_init recurrent_init hidden_init output_init", INIT),
    ("activation output_activation", function("a function of (z|u), such as", (jnp.tanh, 3))),
    ("function loss_fn perturbation", function("a (function|schedule)", None)),
    ("absorb gradient prior progress targets", function("a function", nothing)),
    ("apply cell charges draw draws estimator make_rule metric", function(A_FUNCTION, None, nothing)),
    ("modulator readout real fake start step", function(A_FUNCTION, None, nothing)),
    ("critic model rule", instance("a (Critic|Model|Rule)")),
    ("kernel stride pool", OF_EACH_LAYER),
    ("hidden embedding", HIDDEN),
    ("widths channels input_shape", WIDTHS),
    ("source text file name", [(TypeError, "a string", (None, 3, b"1"))]),
    ("path folder idx_folder data_dir", [(TypeError, "a path", (None, 3))]),
    ("where trainable", [(TypeError, "a glob such as", (1, lambda path, leaf: True))]),
]
KINDS: dict[str, Kind] = {
    **{name: kind for names, kind in ONE_KIND for name in names.split()},
    "blocks": [(TypeError, "a sequence of pairs", (None, 3, "text"))],
    "devices": [(TypeError, "a (sequence of )?device", (3, "cpu", [3]))],
    "dynamics": instance("Dynamics, from decorrelation.dynamics"),
    "evaluate": function(r"a function \(key, params, state, data\)", None, lambda key, params, data: 0),
    "extensions": [(TypeError, "a sequence of", (3, "input")), (ValueError, r"one of \[", (("input", "x"),))],
    "feedback_init": function(r"a function \(key, like\) -> feedback", nothing, lambda key, shape, dtype: W),
    "generator": instance("a Generator, such as"),
    "guesses": instance("a (Rule|rule, or a sequence of rules)"),
    "key": [(TypeError, A_KEY, (0, "key", W)), (ValueError, A_KEY, (jax.random.split(KEY),))],
    "library": instance("a Library, from parse_library"),
    "loss": function(r"a function \(output, y\) -> losses", None, nothing, lambda output: output),
    "net": instance("a Recurrent, such as"),
    "network": instance("a KCapNetwork, from"),
    "noise": [*CHOICE, (TypeError, "'normal', 'rademacher' or a function", (nothing,))],
    "num_samples": [*COUNT, (ValueError, "arrays of at most", (np.int64(2**40),))],
    "optimizer": instance("an optimizer of optax, such as"),
    "rounds": [*NATURAL, (ValueError, "at most 14", (15,))],
    "sizes": [
        (TypeError, f"({SIZES}|an int)", (30, (10, 0, 5.0))),
        (ValueError, f"({SIZES}|at least 0)", ((10, 5), (0, 0, 0), (10, -1, 0))),
    ],
    "subsample": [(ValueError, r"a (finite number > 0|number in 0\.\.1)", (0, 1.5, *NO_NUMBERS))],
}  # fmt: skip

# Of functions that have another kind by the same name, or whose check is among those of arrays.
OWN: dict[str, dict[str, Kind]] = {
    **{
        name: {"init": function("a function key -> params", nothing, (3,))}
        for name in ("Model", "online.Recurrent")
    },
    "data.cue_accumulation": {"bias": PROBABILITY},
    "data.mnist": {"source": []},
    "decorrelation.dynamics": {"every": [*COUNT, (ValueError, "at most", (2**31,))]},
    "estimators.spall_gains": {"a": POSITIVE, "c": POSITIVE},
    "make_train": {"init": function("the model's function key -> params", None, W, nothing)},
    "metrics.depth_scales": {"key": []},
    "online.leaky_rnn": {"alpha": PROBABILITY},
    "online.three_factor": {"decay": PROBABILITY},
    "plasticity.Scheme": {"samples": CHOICE},
    "plasticity.k_cap_mlp": {"rule": instance("a TableRule"), "scheme": instance("a Scheme")},
    "plasticity.k_cap_recurrent": {"scheme": instance("a Scheme")},
    "symbolic.critic": {"channels": COUNT},
    "symbolic.dsn_generator": {"alpha": [], "bias": CHOICE},
    "symbolic.function_values": {"draws": instance("FunctionDraws, from draw_functions")},
    "symbolic.gradient_penalty": {"real": [], "fake": []},
    "symbolic.init_critic": {"key": []},
}

# What other tests give, as it depends on shapes and structures.
ELSEWHERE = (
    "a arrays axes b d eps error estimates feedback in_axes labels layers logits logits_fake logits_real "
    "losses md5 optimizer_state origin output params reference rest results samples state steps tables "
    "teacher x xs y ys z"
)

# What a function needs besides the option that is wrong.

MLP, SGD = ll.mlp((3, 4, 2)), optax.sgd(0.1)
SY, CRITIC = ll.symbolic, ll.symbolic.critic(4, hidden=(3,))
K_CAP, DECORRELATION = ll.plasticity.k_cap_mlp((3, 4, 5, 2), 2), ll.decorrelation.dynamics(0.1)
STATE = [{"w": np.zeros(shape, np.float32), "mask": np.ones(shape, bool)} for shape in K_CAP.shapes]
ONES = np.ones((4, 3))
NEEDED = {
    "a": 1.0, "alpha": 1.0, "apply": jnp.dot, "arrays": W, "axes": 0, "batch_size": 1, "blocks": (), "c": 1.0,
    "cap": 2, "cell": jnp.clip, "channels": (2,), "charges": jnp.sin, "decrease": 0.1, "draw": jnp.sin,
    "critic": SY.Critic(lambda key: W, jnp.dot, (4,)), "data_dir": ".", "dynamics": DECORRELATION, "eta": 0.1,
    "fake": jnp.sin, "folder": ".", "function": jnp.sin, "generator": SY.mlp_generator(1, 3), "guesses": (),
    "gradient": jnp.sin, "idx_folder": ".", "init": MLP.init, "input_shape": (4, 4, 1), "k": 1, "key": KEY,
    "labels": [0], "library": SY.parse_library("X[:,0]"), "logits": W, "logits_fake": W, "logits_real": W,
    "loss": ll.squared_error, "loss_fn": jnp.sum, "losses": [2.0, 1.0], "make_rule": jnp.sin, "model": MLP,
    "net": ll.online.leaky_rnn((2, 3, 2), alpha=0.1), "network": K_CAP, "num_classes": 2, "num_epochs": 1,
    "num_examples": 10, "num_inputs": 2, "num_latents": 3, "num_neurons": 3, "num_points": 4,
    "num_samples": 3, "num_updates": 6, "number": 2, "optimizer": SGD, "origin": [0, 1], "params": W,
    "path": ".", "perturbation": nothing, "readout": jnp.dot, "real": jnp.sin, "samples": ONES, "sigma": 0.1,
    "rule": ll.backprop(MLP, ll.squared_error), "source": "1", "start": jnp.sin, "state": STATE,
    "step": SY.critic_step(CRITIC, SGD), "text": "1", "widths": (3, 4, 2), "x": W, "xs": ONES, "z": ONES,
}  # fmt: skip


def by_path(metric: Any = ll.metrics.relative_norm, depth: Any = None) -> Any:
    return ll.metrics.by_path(metric, W, W, depth=depth)


PARTS = [ll.birth_death, ll.data, ll.decorrelation, ll.estimators, ll.metrics, ll.online, ll.plasticity]
FUNCTIONS: dict[str, Any] = {
    f"{module.__name__}.{name}".partition(".")[2]: getattr(module, name)
    for module in (ll, SY, *PARTS)
    for name in module.__all__
    if inspect.isfunction(getattr(module, name))
}
FUNCTIONS |= {
    "Model": ll.Model, "online.Recurrent": ll.online.Recurrent, "plasticity.Scheme": ll.plasticity.Scheme,
    "metrics.by_path": by_path, "Model.init": MLP.init, "KCapNetwork.init": K_CAP.init,
    "KCapNetwork.init_tables": K_CAP.init_tables, "Critic.init": CRITIC.init,
    "Dynamics.init": DECORRELATION.init, "Batches.init": ll.data.batches(4, 2).init,
    "Planted.init": ll.data.planted(3, 2).init, "Planted.sample": ll.data.planted(3, 2).sample,
}  # fmt: skip


@pytest.mark.usefixtures("as_a_user_sees_it")
@pytest.mark.parametrize("of", FUNCTIONS)
def test_refused(of: str) -> None:
    parameters = inspect.signature(FUNCTIONS[of]).parameters.values()
    options = {option.name: option.default for option in parameters if "VAR" not in option.kind.name}
    needed = {
        name: NEEDED.get(name) for name, default in options.items() if default is inspect.Parameter.empty
    }
    kinds = KINDS | OWN.get(of, {})
    for name in options:
        assert name in kinds or name in ELSEWHERE.split(), f"{name}: expected a row in KINDS or ELSEWHERE"
        for error, expected, values in kinds.get(name, []):
            for value in values:
                is_shown = value is None or isinstance(value, bool | int | float | complex | str)
                got = re.escape(repr(value)) if is_shown else ""
                pattern = rf"^(\w+, )?{name}\b[^:]*: expected {expected}.*got {got}"
                refuses(partial(FUNCTIONS[of], **{**needed, name: value}), error, pattern)
