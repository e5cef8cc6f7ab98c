"""A Griffe extension that turns the reStructuredText in flatreg's docstrings into Markdown.

The docstrings use what ``help()`` shows well: Google-style sections, double backticks, roles such
as ``:func:`flatreg.sam``` and links in angle brackets. The API pages need Markdown.
"""

import re
import textwrap
from pathlib import Path
from typing import Any

import griffe

_API = Path(__file__).parents[1] / "api"
_ROLE = re.compile(r":(?:func|class|mod|meth|attr|data):`(?P<name>[^`]+)`")
_LINK = re.compile(r"`(?P<text>[^`<]+?)\s*<(?P<url>https?://[^>]+)>`_+")
_LITERAL = re.compile(r"(?<!`)``(?P<code>[^`]+)``(?!`)")
_LITERAL_BLOCK = re.compile(r"::[ ]*\n\n((?:[ ]{2,}.*\n?|\n)+)")
_CODE_BLOCK = re.compile(r"^\.\. code-block:: (\w+)\n\n((?:[ ]{2,}.*\n?|\n)+)", re.MULTILINE)
_RULE = r"={2,}(?: +={2,})+\n"
_TABLE = re.compile(rf"^({_RULE})(.*\n){_RULE}((?:(?!=).+\n)+){_RULE}", re.MULTILINE)


def public_names() -> dict[str, str]:
    """Returns the path of every documented name, by its path and by its last part if unique."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(_API.glob("*.md")))
    paths = re.findall(r"^::: (\S+)", text, flags=re.MULTILINE)
    last: dict[str, list[str]] = {}
    for path in paths:
        last.setdefault(path.rpartition(".")[2], []).append(path)
    unique = {name: found[0] for name, found in last.items() if len(found) == 1}
    return unique | {path: path for path in paths}


def to_markdown(text: str, names: dict[str, str]) -> str:
    """Returns the docstring with links, roles, blocks of code and tables in Markdown."""

    def role(match: re.Match[str]) -> str:
        name = match["name"].removeprefix("~")
        return f"[`{name}`][{names[name]}]" if name in names else f"`{name}`"

    def link(match: re.Match[str]) -> str:
        return f"[{' '.join(match['text'].split())}]({match['url']})"

    def fenced(code: str, language: str) -> str:
        code = textwrap.dedent(code).strip("\n")
        return f"```{language}\n{code}\n```\n\n"

    def table(match: re.Match[str]) -> str:
        columns = [slice(*rule.span()) for rule in re.finditer("=+", match[1])]
        columns[-1] = slice(columns[-1].start, None)
        head, *body = [
            [line[column].strip() for column in columns]
            for line in (match[2] + match[3]).splitlines()
        ]
        rows = [head, ["---"] * len(head), *body]
        return "".join(f"| {' | '.join(row)} |\n" for row in rows)

    text = _TABLE.sub(table, text)
    text = _CODE_BLOCK.sub(lambda match: fenced(match[2], match[1]), text)
    text = _LITERAL_BLOCK.sub(lambda match: ":\n\n" + fenced(match[1], "python"), text)
    return _LITERAL.sub(r"`\g<code>`", _ROLE.sub(role, _LINK.sub(link, text)))


class Docstrings(griffe.Extension):
    """Rewrites every docstring of the package once it is loaded."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Rewrites the docstrings of the package's own objects."""
        names = public_names()
        stack: list[Any] = [pkg]
        while stack:
            item = stack.pop()
            if item.docstring is not None:
                item.docstring.value = to_markdown(item.docstring.value, names)
            stack += [member for member in item.members.values() if not member.is_alias]
