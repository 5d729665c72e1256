"""The Python of the pages runs as written, and what they name exists."""

import importlib.util
import re
from collections.abc import Callable
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


def falls(losses: Any, to: float) -> bool:
    losses = np.asarray(losses)
    return losses[-20:].mean() < to * losses[:20].mean()


def is_the_gradient(of: Any) -> bool:
    params, x, y = of.logits.init(KEY), np.ones((5, 16), "f"), np.zeros((5, 2), "f")
    grads = of.rule.value_and_grad(KEY, params, of.rule.init(KEY, params, x), x, y)[1]
    exact = jax.grad(lambda w: of.squared_error_of_sigmoid(of.logits.apply(w, x), y).mean())(params)
    return np.allclose(grads[1]["w"], exact[1]["w"], rtol=1e-5, atol=0)  # sums of 32 terms


CLAIMS: dict[str, Callable[[Any], Any]] = {
    "README": lambda of: jax.tree.structure(of.grads) == jax.tree.structure(of.own_params),
    # Chance is 0.1 over 1,000 samples, and 0.5 over 2 seeds, 50 epochs and 10 curves that are new in each.
    "docs/systems": lambda of: (
        falls(of.losses, 0.5)
        and np.equal(of.predictions, of.labels)[-1000:].mean() > 0.1 + 5 * 0.0095
        and of.found.accuracy[1:, -50:, 0].mean() > 0.5 + 5 * np.sqrt(0.25 / (2 * 50 * 10))
    ),
    "docs/rules": lambda of: (
        all(np.any(leaf) for leaf in jax.tree.leaves(of.of_own_rule))
        and list(of.cosines) == ["0/b", "0/u", "0/w", "1/b", "1/w"]
    ),
    "docs/any_model": lambda of: (
        set(of.losses_by_library) == {"linen", "nnx", "equinox", "haiku"}
        and all(losses[-5:].mean() < losses[:5].mean() for losses in of.losses_by_library.values())
        and len({*map(float, of.losses_with_dropout)}) == 3
        and np.any(of.variables["statistics"]["norm"]["mean"][...])
    ),
    "docs/many_seeds": lambda of: of.losses.results.shape == (8, 5, 20),
    "docs/choose_a_rule": lambda of: (
        len(of.best) == 3 and {*of.best.values()} <= {*map(float, of.rates)} - {min(map(float, of.rates))}
    ),
    "docs/your_loop": lambda of: falls(of.losses, 0.7) and of.best > 0.8,
    "docs/online": lambda of: falls(of.losses, 0.5) and np.isfinite(of.own_loss),
    "docs/sharp_bits": is_the_gradient,
}
"""Claims of pages about the names that their Python leaves behind."""


@pytest.mark.slow
@pytest.mark.parametrize("page", CLAIMS)
def test_python_of_a_page_runs_and_does_what_the_page_says(page: str) -> None:
    pytest.importorskip("mlxtend")
    names: dict[str, Any] = {}
    for block in python_of(f"{page}.md"):
        exec(compile(block, page, "exec"), names)
    assert CLAIMS[page](SimpleNamespace(**names))


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
