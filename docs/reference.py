"""Writes the pages of the API reference, one per topic, from the `__all__` of the packages."""

import inspect
from pathlib import Path
from types import ModuleType

import lax_learning as ll

TOPICS = {
    "Models": "Model mlp convnet rnn sites tapped",
    "Rules": "backprop weight_perturbation spsa node_perturbation forward_gradient feedback_alignment "
    "direct_feedback_alignment direct_random_target_projection direct_kolen_pollack forward_direct_feedback "
    "sign_symmetry kolen_pollack weight_mirror pepita local_errors local_losses guided_gradient",
    "Losses and accuracy": "softmax_cross_entropy squared_error accuracy balanced_accuracy",
    "Training": "make_train Train TrainState",
    "Seeds, grids and devices": "ensemble grid replicate gather",
    "Contracts": "Rule Signals Loss Dynamics",
}
"""Names of `lax_learning` itself, by topic; each of its packages is a topic of its own."""


def topics() -> dict[str, tuple[str, list[str]]]:
    """Returns title -> (module, names) for every public name.

    Raises:
      ValueError: unless `TOPICS` contains every name of `lax_learning` once.
    """
    packages = [name for name in ll.__all__ if isinstance(getattr(ll, name), ModuleType)]
    listed = [name for names in TOPICS.values() for name in names.split()]
    if sorted(listed + packages) != sorted(ll.__all__):
        differing = set(listed + packages) ^ set(ll.__all__) or {n for n in listed if listed.count(n) > 1}
        raise ValueError(
            f"TOPICS of docs/reference.py: expected every public name once, differs in {differing}"
        )
    of_top = {title: (ll.__name__, names.split()) for title, names in TOPICS.items()}
    of_packages = {f"ll.{name}": (f"{ll.__name__}.{name}", getattr(ll, name).__all__) for name in packages}
    return of_top | of_packages


def write(folder: Path) -> None:
    """Writes `index.rst` and a page per topic, without touching unchanged pages."""
    pages = {}
    for title, (module, names) in topics().items():
        pages[_slug(title)] = _page(title, module, names)
    entries = "\n".join(f"   {name}" for name in pages)
    intro = "Every public name, by topic. Bad input raises a TypeError or ValueError that names the argument."
    pages["index"] = f"{_heading('API reference')}{intro}\n\n.. toctree::\n   :maxdepth: 1\n\n{entries}\n"
    folder.mkdir(exist_ok=True)
    for old in set(folder.glob("*.rst")) - {folder / f"{name}.rst" for name in pages}:
        old.unlink()
    for name, text in pages.items():
        path = folder / f"{name}.rst"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def _slug(title: str) -> str:
    return title.removeprefix("ll.").lower().replace(",", "").replace(" ", "_")


def _heading(title: str) -> str:
    return f"{title}\n{'=' * len(title)}\n\n"


def _page(title: str, module: str, names: list[str]) -> str:
    of_module = inspect.getmodule(ll) if module == ll.__name__ else getattr(ll, module.split(".")[-1])
    lines = [_heading(title)]
    if of_module is not ll:
        lines.append(f"{inspect.getdoc(of_module)}\n\n")
    lines += [f".. currentmodule:: {module}\n\n.. autosummary::\n   :nosignatures:\n\n"]
    lines += [*(f"   {name}\n" for name in names), "\n"]
    for name in names:
        value = getattr(of_module, name)
        kind = "autoclass" if inspect.isclass(value) else "autofunction" if callable(value) else "autodata"
        option = {"autoclass": "   :members:\n", "autodata": "   :no-value:\n"}.get(kind, "")
        lines.append(f".. {kind}:: {name}\n{option}\n")
    return "".join(lines)
