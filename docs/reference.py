"""Writes the pages of the API reference, one a topic, from what the packages export."""

import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.errors import ExtensionError

import lax_learning as ll

TOPICS = {
    "Models": "Model mlp convnet rnn sites tapped",
    "Rules": "backprop weight_perturbation spsa node_perturbation forward_gradient feedback_alignment "
    "direct_feedback_alignment direct_random_target_projection direct_kolen_pollack forward_direct_feedback "
    "sign_symmetry kolen_pollack weight_mirror pepita local_losses guided_gradient",
    "Losses and accuracy": "softmax_cross_entropy squared_error accuracy balanced_accuracy",
    "Training": "make_train Train TrainState",
    "Seeds, grids and devices": "ensemble grid replicate gather",
    "Contracts": "Rule Signals Loss Dynamics",
}
"""Names of `lax_learning` itself; the packages below it are topics of their own."""


def topics() -> dict[str, tuple[str, list[str]]]:
    """Returns title -> (module, names) for every public name.

    Raises:
      ValueError: unless `TOPICS` holds every name of `lax_learning` once.
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
    """Writes `index.rst` and a page a topic; a page that would not change is left alone."""
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
        lines.append(f".. {kind}:: {name}\n{'   :members:' if kind == 'autoclass' else ''}\n\n")
    return "".join(lines)


def skip_field(app: Any, what: str, name: str, value: Any, skip: bool, options: Any) -> bool | None:
    """Skips fields of named tuples, which `Fields:` describes."""
    return True if type(value).__name__ in ("_tuplegetter", "member_descriptor") else None


def unlink(app: Any, doctree: nodes.document) -> None:
    """Leaves the text of links to files and folders of the project that are no pages of the site."""
    root = Path(app.srcdir).parent
    folder = Path(app.env.doc2path(app.env.docname)).parent
    for node in list(doctree.findall(addnodes.pending_xref)):
        if node["reftype"] not in ("myst", "doc"):
            continue
        target = node["reftarget"]
        outside = [p for p in (folder / target, folder / f"{target}.md", root / target) if p.exists()]
        if (
            node["reftype"] in ("myst", "doc")
            and outside
            and not outside[0].resolve().is_relative_to(app.srcdir)
        ):
            node.replace_self(node.children)


def check_offline(app: Any, error: Exception | None) -> None:
    """Raises ExtensionError if a page loads a script, style, image or frame from elsewhere."""
    if error is not None or app.builder.format != "html":
        return
    loads = re.compile(
        r"""<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=["'](?:https?:)?//[^>]*>"""
    )
    found = {
        f"{page.relative_to(app.outdir)}: {tag}"
        for page in Path(app.outdir).rglob("*.html")
        for tag in loads.findall(page.read_text())
    }
    if found:
        raise ExtensionError("pages load from elsewhere:\n" + "\n".join(sorted(found)))
