"""Reads the documentation's pages: code blocks with their test directives, and command lines."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
DIRECTIVE = re.compile(r"<!-- test: ((?:(?!-->).)*?) -->\s*\Z", re.DOTALL)
FENCE = re.compile(r"^( *)(`{3,})([\w-]*)[^\n`]*\n(.*?)^\1\2 *$", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"(?:^ {4,}\S.*\n?)+", re.MULTILINE)
INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
COMMANDS = ("python -m", "make", "accelerate launch", "torchrun", "pytest", "pip install")
ELLIPSIS = re.compile(r"(?:--[\w-]+ )?\.\.\.")
SETTING = re.compile(r"^(?:[A-Z][A-Z0-9_]*=\S+ +)+")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, text, first line, and what the comment above it asks for."""

    language: str
    text: str
    line: int
    directive: str


@dataclass(frozen=True)
class Command:
    """A command line of a page. `whole` if it stands in a block, so that nothing may be missing."""

    words: tuple[str, ...]
    whole: bool


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(text: str) -> list[Block]:
    """The fenced blocks in their order."""
    found = []
    for fence in FENCE.finditer(text):
        directive = DIRECTIVE.search(text[: fence.start()])
        line = text.count("\n", 0, fence.start()) + 2
        found.append(Block(fence[3], fence[4], line, directive[1] if directive else ""))
    return found


def commands(text: str) -> list[Command]:
    """Command lines of fenced blocks (a shell's, or of no language), indented blocks and spans."""
    listings = [b.text for b in blocks(text) if b.language in ("", "bash", "sh", "console")]
    prose = FENCE.sub("\n", text)
    listings += [block[0] for block in INDENTED.finditer(prose)]
    spans = [" ".join(span[1].split()) for span in INLINE.finditer(INDENTED.sub("\n", prose))]
    found = []
    for listing in listings:
        for line in listing.replace("\\\n", " ").splitlines():
            found += [Command(words, True) for words in _split(line)]
    for span in spans:
        found += [Command(words, False) for words in _split(span)]
    return found


def _split(line: str) -> list[tuple[str, ...]]:
    """The words of the commands in a line, without settings of the environment and ellipses."""
    found = []
    for part in line.split("&&"):
        part = SETTING.sub("", part.strip().removeprefix("$ "))
        if part.startswith(tuple(f"{name} " for name in COMMANDS)):
            found.append(tuple(shlex.split(ELLIPSIS.sub("", part), comments=True)))
    return found
