"""Functions that Sphinx calls while it builds the site."""

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.errors import ExtensionError


def skip_field(app: Any, what: str, name: str, value: Any, skip: bool, options: Any) -> bool | None:
    """Skips fields of named tuples, which `Fields:` describes."""
    return True if type(value).__name__ in ("_tuplegetter", "member_descriptor") else None


def name_functions(
    app: Any, what: str, name: str, value: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None] | None:
    """Shows default values that are functions by name; Sphinx finds no source for those of dataclasses."""
    return (re.sub(r"<function (\w+)>", r"\1", signature), returns) if signature else None


def append_bibtex(app: Any, docname: str, source: list[str]) -> None:
    """Ends the page of a rule with the BibTeX entries of the papers that it cites."""
    if not docname.startswith("rules/"):
        return
    entries = Path(app.srcdir, "references.bib").read_text().split("\n@")
    by_key = {entry[entry.index("{") + 1 : entry.index(",")]: f"@{entry.lstrip('@')}" for entry in entries}
    cited = ",".join(re.findall(r"\{cite\w*\}`([^`]+)`", source[0])).split(",")
    shown = "\n".join(by_key[key.strip()].strip() for key in dict.fromkeys(cited))
    source[0] += f"\n:::{{dropdown}} BibTeX\n```bibtex\n{shown}\n```\n:::\n"


def unlink(app: Any, doctree: nodes.document) -> None:
    """Replaces links to project files and folders that are not pages of the site by their text."""
    folder = Path(app.env.doc2path(app.env.docname)).parent
    for node in list(doctree.findall(addnodes.pending_xref)):
        target = node["reftarget"]
        if node["reftype"] == "myst" and target not in app.env.found_docs:
            outside = (folder / target, folder / f"{target}.md", Path(app.srcdir).parent / target)
            if any(path.exists() for path in outside):
                node.replace_self(node.children)


def check_offline(app: Any, error: Exception | None) -> None:
    """Raises ExtensionError if a page loads a script, style, image or frame from another site."""
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
