"""Links of README, changelog and docs lead to files and headings that exist."""

import re
from functools import cache
from pathlib import Path

import pytest
from docs_pages import FENCE, INLINE, PAGES, ROOT, name_of

LINK = re.compile(r"\]\(([^)\s]+)\)")
ELSEWHERE = re.compile(r"[a-z]+:")
HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)


def prose(page: Path) -> str:
    """The page without code."""
    return INLINE.sub("`", FENCE.sub("\n", page.read_text(encoding="utf-8")))


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, by GitHub's rule, which mkdocs.yml follows."""
    found: set[str] = set()
    for heading in HEADING.findall(FENCE.sub("\n", page.read_text(encoding="utf-8"))):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        again = 1
        while slug in found:
            slug, again = f"{slug.removesuffix(f'-{again - 1}')}-{again}", again + 1
        found.add(slug)
    return found


@pytest.mark.parametrize("page", [ROOT / "CHANGELOG.md", *PAGES], ids=name_of)
def test_links_of_a_page(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        if ELSEWHERE.match(link):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), f"{name_of(page)}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{name_of(page)}: no heading for {link}"


def test_anchors_are_those_of_github(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A & B: `code`, [link](x.md)\n\n## Again\n## Again\n\n```\n# not one\n```\n",
        encoding="utf-8",
    )
    assert anchors(page) == {"a--b-code-link", "again", "again-1"}


def test_readme_is_read() -> None:
    assert len(LINK.findall(prose(ROOT / "README.md"))) > 10
