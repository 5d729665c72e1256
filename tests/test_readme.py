"""The Python of the pages runs as written, and what they name exists."""

import importlib.util
import re
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

import lax_learning as ll

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

ROOT = Path(__file__).parents[1]


def readme(of: Any) -> None:
    assert jax.tree.structure(of.grads) == jax.tree.structure(of.own_params)


def systems(of: Any) -> None:
    correct = np.asarray(of.predictions) == np.asarray(of.labels)
    # Over the last 1,000 of 4,000 samples; chance is 0.1 with a standard error of 0.0095.
    assert correct[-1000:].mean() > 0.1 + 5 * 0.0095
    losses = np.asarray(of.losses)
    assert losses.shape == (100,) and losses[-20:].mean() < 0.5 * losses[:20].mean()
    assert (of.kills >= 0).all() and of.kills.shape == (100,)
    accuracy = np.asarray(of.found.accuracy)
    assert accuracy.shape == (3, 200, 5)
    # 10 curves an epoch, seen for the first time at its first step: chance is 0.5.
    assert accuracy[1:, -50:, 0].mean() > 0.5 + 5 * np.sqrt(0.25 / (2 * 50 * 10))


def rules(of: Any) -> None:
    params = of.model.init(jax.random.key(2))
    x, y = np.ones((5, 784), "f"), np.ones((5, 10), "f")
    state = of.kolen_pollack.init(jax.random.key(0), params, x)
    _, _, after = of.kolen_pollack.value_and_grad(jax.random.key(1), params, state, x, y)
    assert np.any(after.feedback[1]["w"] != state.feedback[1]["w"]) and after.feedback[0]["w"] is None
    assert jax.tree.structure(of.of_own_rule) == jax.tree.structure(of.recurrent_weights)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(of.of_own_rule))
    assert list(of.cosines) == ["0/b", "0/u", "0/w", "1/b", "1/w"] and len(of.ratios) == 2


def any_model(of: Any) -> None:
    assert set(of.losses_by_library) == {"linen", "nnx", "equinox", "haiku"}
    for name, values in of.losses_by_library.items():
        assert values.shape == (20,) and values[-5:].mean() < values[:5].mean(), name
    assert len(set(map(float, of.losses_with_dropout))) == 3
    mean = of.variables["statistics"]["norm"]["mean"][...]
    assert np.any(mean) and np.isfinite(mean).all()


def many_seeds(of: Any) -> None:
    assert list(of.losses.axes) == ["seed", "learning_rate"] and of.losses.results.shape == (8, 5, 20)


def choose_a_rule(of: Any) -> None:
    rates = set(map(float, of.rates))
    assert len(of.best) == 3 and set(of.best.values()) <= rates - {min(rates)}


def your_loop(of: Any) -> None:
    assert len(of.losses) == 200 and np.mean(of.losses[-20:]) < 0.7 * np.mean(of.losses[:20])
    assert of.best > 0.8


def online(of: Any) -> None:
    losses = np.asarray(of.losses)
    assert len(losses) == 300 and losses[-20:].mean() < 0.5 * losses[:20].mean()
    assert np.isfinite(of.own_loss)


def sharp_bits(of: Any) -> None:
    params, x, y = of.logits.init(jax.random.key(0)), np.ones((5, 16), "f"), np.zeros((5, 2), "f")
    state = of.rule.init(jax.random.key(1), params, x)
    _, grads, _ = of.rule.value_and_grad(jax.random.key(2), params, state, x, y)
    exact = jax.grad(lambda w: of.squared_error_of_sigmoid(of.logits.apply(w, x), y).mean())(params)
    np.testing.assert_allclose(grads[1]["w"], exact[1]["w"], rtol=1e-5)  # sums of 32 terms in float32


CHECKS = (readme, systems, rules, any_model, many_seeds, choose_a_rule, your_loop, online, sharp_bits)


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
def test_python_of_a_page_runs_and_does_what_the_page_says(check: Callable[[Any], None]) -> None:
    pytest.importorskip("mlxtend")
    page, names = "README.md" if check is readme else f"docs/{check.__name__}.md", {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL):
        exec(compile(block, page, "exec"), names)
    check(SimpleNamespace(**names))


PAGES = ["README.md", *(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("docs/**/*.md")))]


def test_pages_name_what_exists() -> None:
    """In their Python, which is slow to run on some of them."""
    found = set()
    for page in PAGES:
        for block in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL):
            compile(block, page, "exec")
            found |= {(page, name) for name in re.findall(r"\bll((?:\.[a-zA-Z_]\w*)+)", block)}
    assert len(found) > 50
    for page, name in sorted(found):
        try:
            attrgetter(name[1:])(ll)
        except AttributeError as error:
            raise AssertionError(f"{page}: ll{name}") from error


def test_every_public_name_has_a_topic_of_the_reference() -> None:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs/reference.py")
    assert spec is not None and spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    listed = {f"{module}.{name}" for module, names in reference.topics().values() for name in names}
    packages = [name for name in ll.__all__ if isinstance(getattr(ll, name), ModuleType)]
    public = {f"lax_learning.{name}" for name in ll.__all__ if name not in packages}
    public |= {
        f"lax_learning.{package}.{name}" for package in packages for name in getattr(ll, package).__all__
    }
    assert listed == public
    assert [
        name for name in reference.TOPICS["Rules"].split() if not (ROOT / f"docs/rules/{name}.md").exists()
    ] == []


@pytest.mark.parametrize("page", ["README.md", "docs/rules.md"])
def test_rules_of_the_table_exist(page: str) -> None:
    table = re.search(r"\n\| rule \|.*?\n\n", (ROOT / page).read_text(), flags=re.DOTALL)
    assert table is not None
    named = set(re.findall(r"`ll\.(\w+)[(`]", table[0]))
    assert {"backprop", "weight_perturbation", "kolen_pollack", "sign_symmetry"} <= named
    assert all(hasattr(ll, name) for name in named)


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", *PAGES])
def test_links_within_the_project_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)\)", (ROOT / page).read_text())
    missing = [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    assert missing == []
