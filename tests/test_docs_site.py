"""The documentation as a site: its API pages are complete, and it needs no network."""

import importlib
import inspect
import re
from typing import Any

import pytest
import yaml
from docs_pages import ROOT

import flatopt

DOCS = ROOT / "docs"
SHOWN = {
    name
    for page in (DOCS / "api").glob("*.md")
    for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
}
# their docstrings need no example, because ...
NO_EXAMPLE = {
    "CheckResult": "gradreg_check makes it, and its example shows it",
    "Stats": "it is read off an optimizer; GradRegOptimizer's example does",
    "TrainerPlug": "attach makes it, and its example shows it",
    "gradient": "the gradient of a closure, as in hessian_product's example",
    "curvature_along_gradient": "called as hessian_product is in its example",
}


class _Loader(yaml.SafeLoader):
    """mkdocs.yml names Python functions, which nothing here needs."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
SETTINGS: dict[str, Any] = yaml.load(  # a SafeLoader's subclass
    (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=_Loader
)


@pytest.mark.parametrize("name", flatopt.__all__)
def test_every_public_name_is_on_an_api_page(name: str) -> None:
    assert f"flatopt.{name}" in SHOWN


@pytest.mark.parametrize("name", flatopt.__all__)
def test_every_public_name_has_an_example(name: str) -> None:
    doc = inspect.getdoc(getattr(flatopt, name)) or ""
    assert ("Example:" in doc and ">>>" in doc) != (name in NO_EXAMPLE)


@pytest.mark.parametrize("name", sorted(SHOWN))
def test_what_the_api_pages_show_exists(name: str) -> None:
    module, _, last = name.rpartition(".")
    assert hasattr(importlib.import_module(module), last)


def test_references_to_names_have_a_target() -> None:
    """`[text][flatopt.name]` leads to an API page, which must show that name."""
    for page in DOCS.rglob("*.md"):
        for name in re.findall(r"\]\[(flatopt[\w.]*)\]", page.read_text(encoding="utf-8")):
            assert name in SHOWN, f"{page.name}: {name}"


def test_every_page_is_in_the_navigation() -> None:
    """Beside the strict build, which needs mkdocs: the pages that exist, and no others."""

    def pages(entries: Any) -> list[str]:
        if isinstance(entries, str):
            return [entries]
        values = entries.values() if isinstance(entries, dict) else entries
        return [page for entry in values for page in pages(entry)]

    listed = pages(SETTINGS["nav"])
    assert len(listed) == len(set(listed))
    there = {p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md")}
    assert set(listed) == there | {"changelog.md"}


def test_nothing_is_fetched_from_elsewhere() -> None:
    """No web fonts, scripts or styles of other hosts; no repository whose host does not exist."""
    assert SETTINGS["theme"]["font"] is False
    assert "repo_url" not in SETTINGS
    urls = [*SETTINGS["extra_css"], *SETTINGS.get("extra_javascript", ())]
    assert not [url for url in urls if "//" in url]
    for page in DOCS.rglob("*.md"):
        text = page.read_text(encoding="utf-8")
        assert "```mermaid" not in text, f"{page}: mermaid is loaded from a CDN"
        assert not re.search(r"!\[[^\]]*\]\(https?:|<img[^>]*src=.https?:", text), page


def test_dead_links_and_anchors_are_errors() -> None:
    """All kinds of validation warn, and `make docs` is strict, which makes warnings errors."""
    kinds = SETTINGS["validation"]
    assert {kinds[place][kind] for place in kinds for kind in kinds[place]} == {"warn"}
    assert {"omitted_files", "not_found"} <= set(kinds["nav"])
    assert {"not_found", "anchors", "unrecognized_links"} <= set(kinds["links"])
    assert "mkdocs build --strict" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "make docs" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
