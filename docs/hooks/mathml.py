"""A MkDocs hook that renders formulas as MathML when the site is built.

``pymdownx.arithmatex`` marks each formula in the HTML of a page. This hook replaces the mark by
MathML, which browsers draw without a script or a download.
"""

import html
import re
import xml.etree.ElementTree as ElementTree
from typing import Any

import latex2mathml.converter

_MATHML = "http://www.w3.org/1998/Math/MathML"
_LIMITS = {"max", "min", "sup", "inf", "lim"}

_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">(?:\\\(|\\\[)(?P<latex>.*?)(?:\\\)|\\\])</(?P=tag)>',
    re.DOTALL,
)


def to_mathml(page: str) -> str:
    r"""Returns the HTML of a page with every ``\(…\)`` and ``\[…\]`` as MathML."""

    def convert(match: re.Match[str]) -> str:
        tag, latex = match["tag"], html.unescape(match["latex"]).strip()
        math = formula(latex, display=tag == "div")
        return f'<{tag} class="formula">{math}</{tag}>'

    return _FORMULA.sub(convert, page)


def formula(latex: str, *, display: bool) -> str:
    r"""Returns one formula as MathML, its source as the label for screen readers.

    In a displayed formula, the subscript of ``\max`` and the like stands below it.
    """
    source = latex2mathml.converter.convert(latex, display="block" if display else "inline")
    math = ElementTree.fromstring(source)
    math.set("aria-label", latex)
    for node in math.iter(f"{{{_MATHML}}}msub"):
        base, below = node
        if display and base.text in _LIMITS:
            node.tag = f"{{{_MATHML}}}munder"
        for word in below.iter(f"{{{_MATHML}}}mo"):
            if word.text in _LIMITS:
                word.tag = f"{{{_MATHML}}}mi"
    ElementTree.register_namespace("", _MATHML)
    return ElementTree.tostring(math, encoding="unicode")


def on_page_content(content: str, **_: Any) -> str:
    """Renders the formulas of a page."""
    return to_mathml(content)
