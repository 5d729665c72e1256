"""The Python of the pages runs as written, and what they name exists."""

import importlib.util
import re
from collections.abc import Callable
from functools import cache
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest

import lax_learning as ll

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def names_of() -> Callable[[str], dict[str, Any]]:
    """Runs the Python of a page once: `names_of("docs/rules.md")` are the names that it defines."""
    pytest.importorskip("mlxtend")

    @cache
    def run(page: str) -> dict[str, Any]:
        names: dict[str, Any] = {}
        for block in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL):
            exec(compile(block, page, "exec"), names)
        return names

    return run


@pytest.fixture
def namespace(request: pytest.FixtureRequest, names_of: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """Names that the page of a test defines."""
    return names_of(request.param)


def page(name: str) -> pytest.MarkDecorator:
    """The page that a test reads."""
    return pytest.mark.parametrize("namespace", [name], indirect=True)


@pytest.mark.slow
@page("docs/systems.md")
def test_transferred_tables_learn_digits(namespace):
    correct = np.asarray(namespace["predictions"]) == np.asarray(namespace["labels"])
    # Over the last 1,000 of 4,000 samples; chance is 0.1 with a standard error of 0.0095.
    assert correct[-1000:].mean() > 0.1 + 5 * 0.0095


@pytest.mark.slow
@page("docs/systems.md")
def test_population_learns_and_resamples_itself(namespace):
    losses = np.asarray(namespace["losses"])
    assert losses.shape == (100,) and losses[-20:].mean() < 0.5 * losses[:20].mean()
    assert (namespace["kills"] >= 0).all() and namespace["kills"].shape == (100,)


@pytest.mark.slow
@page("docs/systems.md")
def test_critics_learn_to_tell_functions_from_networks(namespace):
    accuracy = np.asarray(namespace["found"].accuracy)
    assert accuracy.shape == (3, 200, 5)
    # 10 curves an epoch, seen for the first time at its first step: chance is 0.5.
    assert accuracy[1:, -50:, 0].mean() > 0.5 + 5 * np.sqrt(0.25 / (2 * 50 * 10))


@pytest.mark.slow
@page("docs/rules.md")
def test_feedback_of_kolen_pollack_moves_with_its_optimizer(namespace):
    rule, model = namespace["kolen_pollack"], namespace["model"]
    params = model.init(jax.random.key(2))
    x, y = np.ones((5, 784), "f"), np.ones((5, 10), "f")
    state = rule.init(jax.random.key(0), params, x)
    _, _, after = rule.value_and_grad(jax.random.key(1), params, state, x, y)
    assert np.any(after.feedback[1]["w"] != state.feedback[1]["w"]) and after.feedback[0]["w"] is None


@pytest.mark.slow
@page("docs/any_model.md")
def test_models_of_other_libraries_learn_by_feedback(namespace):
    losses = namespace["losses_by_library"]
    assert set(losses) == {"linen", "nnx", "equinox", "haiku"}
    for name, values in losses.items():
        assert values.shape == (20,) and values[-5:].mean() < values[:5].mean(), name


@pytest.mark.slow
@page("docs/rules.md")
def test_signals_of_ones_own_become_gradients(namespace):
    signals, weights = namespace["of_own_rule"], namespace["recurrent_weights"]
    assert jax.tree.structure(signals) == jax.tree.structure(weights)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(signals))
    assert list(namespace["cosines"]) == ["0/b", "0/u", "0/w", "1/b", "1/w"] and len(namespace["ratios"]) == 2


@pytest.mark.slow
@page("docs/any_model.md")
def test_recipe_of_dropout_and_statistics_moves_both(namespace):
    first, second, third = namespace["losses_with_dropout"]
    assert len({float(first), float(second), float(third)}) == 3
    mean = namespace["variables"]["statistics"]["norm"]["mean"][...]
    assert np.any(mean) and np.isfinite(mean).all()


@pytest.mark.slow
@page("docs/many_seeds.md")
def test_grid_of_seeds_and_rates(namespace):
    losses = namespace["losses"]
    assert list(losses.axes) == ["seed", "learning_rate"] and losses.results.shape == (8, 5, 20)


@pytest.mark.slow
@page("docs/choose_a_rule.md")
def test_best_rates_lie_within_the_grid(namespace):
    rates = set(map(float, namespace["rates"]))
    assert len(namespace["best"]) == 3 and set(namespace["best"].values()) <= rates - {min(rates)}


@pytest.mark.slow
@page("docs/your_loop.md")
def test_own_loop_learns(namespace):
    losses = namespace["losses"]
    assert len(losses) == 200 and np.mean(losses[-20:]) < 0.7 * np.mean(losses[:20])
    assert namespace["best"] > 0.8


@pytest.mark.slow
@page("docs/online.md")
def test_weights_that_move_within_sequences_learn(namespace):
    losses = np.asarray(namespace["losses"])
    assert len(losses) == 300 and losses[-20:].mean() < 0.5 * losses[:20].mean()
    assert np.isfinite(namespace["own_loss"])


@page("docs/sharp_bits.md")
def test_sigmoid_moves_into_the_loss(namespace):
    rule, model, loss = (namespace[name] for name in ("rule", "logits", "squared_error_of_sigmoid"))
    params, x, y = model.init(jax.random.key(0)), np.ones((5, 16), "f"), np.zeros((5, 2), "f")
    state = rule.init(jax.random.key(1), params, x)
    _, grads, _ = rule.value_and_grad(jax.random.key(2), params, state, x, y)
    exact = jax.grad(lambda params: loss(model.apply(params, x), y).mean())(params)
    np.testing.assert_allclose(grads[1]["w"], exact[1]["w"], rtol=1e-5)  # sums of 32 terms in float32


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
