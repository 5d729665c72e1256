"""Draws the decision tree of `choose_a_rule.md`, in the colours of the page's theme."""

from html import escape

from docutils import nodes
from docutils.parsers.rst import Directive

TREE: tuple[tuple[str, tuple[tuple[str, tuple[str, ...]], ...]], ...] = (
    (
        "Must weights change while a sequence runs?",
        (
            ("an error at every step", ("rflo", "eprop")),
            ("the same, but few units", ("rtrl",)),
            ("a delayed reward only", ("three_factor",)),
        ),
    ),
    (
        "Can only the loss be measured?",
        (
            ("no derivatives", ("weight_perturbation", "spsa")),
            ("forward-mode derivatives", ("forward_gradient",)),
        ),
    ),
    (
        "Can units be perturbed, but no errors be sent back?",
        (("one number per example", ("node_perturbation",)), ("a second pass instead", ("pepita",))),
    ),
    (
        "Can errors go back layer by layer, but not through the forward weights?",
        (
            ("feedback may learn", ("weight_mirror", "kolen_pollack")),
            ("signs may be shared", ("sign_symmetry",)),
            ("neither", ("feedback_alignment",)),
        ),
    ),
    (
        "Can errors go directly from the output to every layer?",
        (
            ("feedback may learn", ("forward_direct_feedback", "direct_kolen_pollack")),
            ("feedback is fixed", ("direct_feedback_alignment",)),
            ("targets, not errors", ("direct_random_target_projection",)),
        ),
    ),
    (
        "Does every layer know the targets?",
        (("a readout per layer", ("local_errors",)), ("a head per block", ("local_losses",))),
    ),
    ("Otherwise", (("exact", ("backprop",)),)),
)
"""Questions in order; for each, conditions, and the rules that they lead to, by the names of their pages."""

NAMES = {
    "rflo": "RFLO", "eprop": "e-prop", "rtrl": "RTRL", "spsa": "SPSA", "pepita": "PEPITA",
    "kolen_pollack": "Kolen-Pollack", "direct_kolen_pollack": "direct Kolen-Pollack",
    "three_factor": "three-factor rule",
}  # fmt: skip
WIDTH, LEFT, MIDDLE, RIGHT, ROW, GAP = 820, 230, 285, 500, 30, 26


def _wrapped(text: str, width: int = 27) -> list[str]:
    lines = [""]
    for word in text.split():
        lines = (
            [*lines[:-1], f"{lines[-1]} {word}".strip()] if len(lines[-1] + word) < width else [*lines, word]
        )
    return lines


def draw(page: str = "rules/{}.html") -> str:
    """Returns the tree as SVG; text and links take the colours of the surrounding page."""
    parts, top = [], 1
    for question, answers in TREE:
        lines = _wrapped(question)
        height = max(ROW * len(answers), 20 * len(lines) + 16)
        center = top + height / 2
        parts.append(f'<rect x="1" y="{top}" width="{LEFT}" height="{height}" rx="6"/>')
        for i, line in enumerate(lines):
            y = center + 5 + 20 * (i - (len(lines) - 1) / 2)
            parts.append(f'<text x="{LEFT / 2}" y="{y}" text-anchor="middle">{escape(line)}</text>')
        for i, (condition, rules) in enumerate(answers):
            y = center + ROW * (i - (len(answers) - 1) / 2)
            parts.append(
                f'<path d="M{LEFT + 1} {center} C{LEFT + 30} {center} {LEFT + 20} {y} {MIDDLE - 6} {y}"/>'
            )
            parts.append(f'<text x="{MIDDLE}" y="{y + 5}" class="condition">{escape(condition)}</text>')
            links = (
                f'<a href="{page.format(rule)}">{NAMES.get(rule, rule.replace("_", " "))}</a>'
                for rule in rules
            )
            parts.append(f'<text x="{RIGHT}" y="{y + 5}">{", ".join(links)}</text>')
        bottom = top + height
        top = bottom + GAP
        if question != TREE[-1][0]:
            parts.append(f'<path d="M{LEFT / 2} {bottom} V{top}"/>')
            parts.append(f'<text x="{LEFT / 2 + 8}" y="{bottom + GAP - 8}" class="condition">no</text>')
    title = "Decision tree: questions from top to bottom, and the rules that each leads to"
    size = f'viewBox="0 0 {WIDTH} {top - GAP + 2}" role="img" aria-label="{title}"'
    return f'<svg class="decision-tree" xmlns="http://www.w3.org/2000/svg" {size}>{"".join(parts)}</svg>'


class DecisionTree(Directive):
    """Directive `{decision-tree}`, without arguments."""

    has_content = False

    def run(self) -> list[nodes.Node]:
        env = self.state.document.settings.env
        env.note_dependency(__file__)
        pages = {f"rules/{rule}" for _, answers in TREE for _, rules in answers for rule in rules}
        if missing := pages - env.found_docs:
            raise self.error(f"expected a page for every rule, got none for {', '.join(sorted(missing))}")
        return [nodes.raw("", draw(), format="html")]
