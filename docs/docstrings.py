"""Docstrings as Markdown: formulas, examples and links of flatopt's docstrings for mkdocstrings."""

import re
from typing import Any

import griffe

import flatopt

DISPLAYED = re.compile(r"^\.\. math:: *(.*?)(?=\n\s*\n|\Z)", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r":math:`([^`]*)`")
# `Name` or ``Name`` alone, where the name is exported
NAME = re.compile(rf"(?<![`\w\[])(`{{1,2}})({'|'.join(flatopt.__all__)})\1(?!`)")
PROMPT = re.compile(r"^\s*(>>>|\.\.\.)")


def as_markdown(text: str) -> str:
    """The docstring with `$`-formulas, a section of examples, and links to exported names.

    Example:
        >>> as_markdown("With :math:`x` as in `attach`.")
        'With $x$ as in [`attach`][flatopt.attach].'
    """
    text = DISPLAYED.sub(lambda m: f"$${' '.join(m[1].split())}$$", text)
    text = INLINE.sub(r"$\1$", text)
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
    # griffe knows no section Warns in Google's style without a type in each line
    lines = text.split("\n")
    return "\n".join(
        line if PROMPT.match(line) else NAME.sub(r"[`\2`][flatopt.\2]", line) for line in lines
    )


class Docstrings(griffe.Extension):
    """Hands every docstring through `as_markdown` when griffe has read it."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
