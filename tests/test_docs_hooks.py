"""The build steps of the documentation: docstrings and formulas, links to source files."""

import pytest
from docs_pages import ROOT

pytest.importorskip("mkdocs", reason="the extra docs is not installed")
pytest.importorskip("griffe", reason="the extra docs is not installed")
pytest.importorskip("latex2mathml", reason="the extra docs is not installed")

from mkdocs.exceptions import PluginError

from docs import docstrings, hooks


class Page:
    """As much of mkdocs' page as the hooks read."""

    def __init__(self, src_uri: str) -> None:
        self.file = self
        self.src_uri = src_uri


def test_formulas_of_docstrings() -> None:
    text = "A sum.\n\n.. math:: a +\n    b\n\nwith :math:`a` small."
    assert docstrings.as_markdown(text) == "A sum.\n\n$$a + b$$\n\nwith $a$ small."


def test_names_of_docstrings_become_links_but_not_in_examples() -> None:
    text = "See ``attach``, `attach(trainer)`.\n\nExample:\n    >>> f('`attach`')\n"
    assert docstrings.as_markdown(text) == (
        "See [`attach`][flatopt.attach], `attach(trainer)`.\n\nExamples:\n    >>> f('`attach`')\n"
    )


def test_a_formula_becomes_mathml() -> None:
    html = r'<p><span class="arithmatex">\(x &lt; \frac{1}{2}\)</span></p>'
    made = hooks.on_page_content(html, Page("a.md"))
    assert "<mfrac>" in made
    assert "arithmatex" not in made
    assert "\\" not in made


def test_a_displayed_formula_can_scroll() -> None:
    html = '<div class="arithmatex">\\[\na=b\n\\]</div>'
    assert hooks.on_page_content(html, Page("a.md")).startswith('<div class="formula"><math')


def test_a_formula_that_cannot_be_shown_stops_the_build() -> None:
    html = r'<span class="arithmatex">\(\nosuchcommand x\)</span>'
    with pytest.raises(PluginError, match="nosuchcommand"):
        hooks.on_page_content(html, Page("a.md"))


@pytest.mark.parametrize(
    ("page", "link", "found"),
    [
        ("theory/flow.md", "../../theory/flow.py", "theory/flow.py"),
        ("theory/flow.md", "../results/judge.md", None),
        ("numerics.md", "../README.md", "README.md"),
        ("numerics.md", "../no_such_file.py", None),
        ("numerics.md", "../../elsewhere.py", None),
    ],
)
def test_links_out_of_docs(page: str, link: str, found: str | None) -> None:
    assert hooks.outside(page, link) == found


def test_a_link_to_a_source_file_leads_to_its_page() -> None:
    text = "[the file](../../theory/flow.py) and [a page](flow_noise.md#x)"
    assert hooks.on_page_markdown(text, Page("theory/flow.md")) == (
        "[the file](../source/theory/flow.py.md) and [a page](flow_noise.md#x)"
    )


def test_the_page_of_a_source_file_holds_all_of_it() -> None:
    source = (ROOT / "flatopt" / "simple.py").read_text(encoding="utf-8")
    page = hooks.source_text("flatopt/simple.py")
    assert f"```python\n{source}" in page
    assert "exclude: true" in page


def test_the_changelog_links_inside_the_site() -> None:
    text = hooks.changelog()
    assert "# Changelog" in text
    assert "](docs/" not in text
