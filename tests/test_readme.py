"""The Python of the pages runs as written, and what they name exists."""

import importlib.util
import re
from operator import attrgetter
from types import ModuleType, SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

import lax_learning as ll
from tests.command_line import ROOT

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")
KEY = jax.random.key(0)
PAGES = ["README.md", *(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("docs/**/*.md")))]


def python_of(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


RUN = (
    "README", "docs/systems", "docs/rules", "docs/any_model", "docs/many_seeds", "docs/choose_a_rule",
    "docs/your_loop", "docs/online", "docs/sharp_bits",
)  # fmt: skip


def check(page: str, of: Any) -> None:
    """Claims of a page about the names that its Python leaves behind."""
    match page.removeprefix("docs/"):
        case "README":
            assert jax.tree.structure(of.grads) == jax.tree.structure(of.own_params)
        case "systems":
            correct, losses = np.asarray(of.predictions) == np.asarray(of.labels), np.asarray(of.losses)
            # Over the last 1,000 of 4,000 samples; chance is 0.1 with a standard error of 0.0095.
            assert correct[-1000:].mean() > 0.1 + 5 * 0.0095
            assert losses.shape == of.kills.shape == (100,) and losses[-20:].mean() < 0.5 * losses[:20].mean()
            # 10 curves an epoch, seen for the first time at its first step: chance is 0.5.
            accuracy = np.asarray(of.found.accuracy)
            assert accuracy.shape == (3, 200, 5)
            assert accuracy[1:, -50:, 0].mean() > 0.5 + 5 * np.sqrt(0.25 / (2 * 50 * 10))
        case "rules":
            params, (x, y) = of.model.init(KEY), (np.ones((5, size), "f") for size in (784, 10))
            state = of.kolen_pollack.init(KEY, params, x)
            after = of.kolen_pollack.value_and_grad(KEY, params, state, x, y)[2]
            assert np.any(after.feedback[1]["w"] != state.feedback[1]["w"]) and after.feedback[0]["w"] is None
            assert jax.tree.structure(of.of_own_rule) == jax.tree.structure(of.recurrent_weights)
            assert all(np.any(leaf) for leaf in jax.tree.leaves(of.of_own_rule))
            assert list(of.cosines) == ["0/b", "0/u", "0/w", "1/b", "1/w"] and len(of.ratios) == 2
        case "any_model":
            assert set(of.losses_by_library) == {"linen", "nnx", "equinox", "haiku"}
            for name, values in of.losses_by_library.items():
                assert values.shape == (20,) and values[-5:].mean() < values[:5].mean(), name
            assert len(set(map(float, of.losses_with_dropout))) == 3
            mean = of.variables["statistics"]["norm"]["mean"][...]
            assert np.any(mean) and np.isfinite(mean).all()
        case "many_seeds":
            assert list(of.losses.axes) == ["seed", "learning_rate"]
            assert of.losses.results.shape == (8, 5, 20)
        case "choose_a_rule":
            rates = set(map(float, of.rates))
            assert len(of.best) == 3 and set(of.best.values()) <= rates - {min(rates)}
        case "your_loop":
            assert len(of.losses) == 200 and np.mean(of.losses[-20:]) < 0.7 * np.mean(of.losses[:20])
            assert of.best > 0.8
        case "online":
            losses = np.asarray(of.losses)
            assert len(losses) == 300 and losses[-20:].mean() < 0.5 * losses[:20].mean()
            assert np.isfinite(of.own_loss)
        case "sharp_bits":
            params, x, y = of.logits.init(KEY), np.ones((5, 16), "f"), np.zeros((5, 2), "f")
            grads = of.rule.value_and_grad(KEY, params, of.rule.init(KEY, params, x), x, y)[1]
            exact = jax.grad(lambda w: of.squared_error_of_sigmoid(of.logits.apply(w, x), y).mean())(params)
            np.testing.assert_allclose(grads[1]["w"], exact[1]["w"], rtol=1e-5)  # sums of 32 terms
        case _:
            raise AssertionError(page)


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_python_of_a_page_runs_and_does_what_the_page_says(page: str) -> None:
    pytest.importorskip("mlxtend")
    names: dict[str, Any] = {}
    for block in python_of(f"{page}.md"):
        exec(compile(block, page, "exec"), names)
    check(page, SimpleNamespace(**names))


def test_pages_name_what_exists() -> None:
    """In their text and in their Python, which is slow to run on some of them."""
    found = set()
    for page in PAGES:
        for block in python_of(page):
            compile(block, page, "exec")
        found |= {(page, name) for name in re.findall(r"\bll\.((?:\w+\.)*\w+)", (ROOT / page).read_text())}
    assert len(found) > 100 and {("docs/rules.md", name) for name in ("sign_symmetry", "pepita")} < found
    for page, name in sorted(found - {("docs/rules.md", "NAME")}):
        assert attrgetter(name)(ll) is not None, page


def test_every_public_name_has_a_topic_of_the_reference() -> None:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs/reference.py")
    assert spec is not None and spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    listed = {f"{module}.{name}" for module, names in reference.topics().values() for name in names}
    packages = {name: getattr(ll, name) for name in ll.__all__ if isinstance(getattr(ll, name), ModuleType)}
    public = {f"lax_learning.{name}" for name in {*ll.__all__} - {*packages}}
    public |= {f"lax_learning.{name}.{each}" for name, of in packages.items() for each in of.__all__}
    assert listed == public
    rules = [f"docs/rules/{name}.md" for name in reference.TOPICS["Rules"].split()]
    assert [page for page in rules if page not in PAGES] == []


def test_links_within_the_project_lead_somewhere() -> None:
    missing = [
        (page, link)
        for page in ("CONTRIBUTING.md", *PAGES)
        for link in re.findall(r"\]\((?!https?://|#)([^)#]+)\)", (ROOT / page).read_text())
        if not (ROOT / page).parent.joinpath(link).exists()
    ]
    assert missing == []
