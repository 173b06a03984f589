"""Build steps of the documentation: formulas as MathML, the changelog, pages of source files."""

import html
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parent.parent
FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\\(?:\((.*?)\\\)|\[(.*?)\\\])</\1>', re.DOTALL
)
LINK = re.compile(r"(\]\()([^)#:\s]+)(#[^)\s]*)?(\))")
# primes are high already, and as superscripts become too small to read
PRIME = re.compile(r"<msup>(<mi>[^<]*</mi>)<mi>(&#x0?203[23];)</mi></msup>")
# without these spaces |x| and a/b look as in print
TIGHT = re.compile(r"<mo([^>]*)>(&#x0007C;|&#x0002F;|/)</mo>")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".md": "markdown", ".sh": "bash"}
CHANGELOG = "changelog.md"


def on_files(files: Files, config: Any) -> Files:
    """Add the changelog, and a page for each file outside of docs/ that a page links to."""
    files.append(File.generated(config, CHANGELOG, content=changelog()))
    sources: set[str] = set()
    for file in files.documentation_pages():
        for link in LINK.finditer(file.content_string):
            source = outside(file.src_uri, link[2])
            if source:
                sources.add(source)
    for source in sorted(sources):
        page = File.generated(config, source_page(source), content=source_text(source))
        page.inclusion = InclusionLevel.NOT_IN_NAV
        files.append(page)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to files outside of docs/ lead to their pages."""

    def follow(link: re.Match[str]) -> str:
        source = outside(page.file.src_uri, link[2])
        if not source:
            return link[0]
        here = posixpath.dirname(page.file.src_uri)
        target = posixpath.relpath(source_page(source), here or ".")
        return f"]({target}{link[3] or ''})"

    return LINK.sub(follow, markdown)


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Formulas become MathML, which a browser shows without scripts, fonts or a network."""

    def formula(found: re.Match[str]) -> str:
        block = found[1] == "div"
        # latex2mathml does not know \arg
        latex = html.unescape(found[3] if block else found[2]).replace(r"\arg", r"\mathrm{arg}\,")
        math = convert(latex, display="block" if block else "inline")
        if "\\" in re.sub(r'alttext="[^"]*"', "", math):
            raise PluginError(f"{page.file.src_uri}: no MathML for {latex}")
        math = PRIME.sub(r"<mrow>\1<mo>\2</mo></mrow>", math)
        math = TIGHT.sub(r'<mo lspace="0" rspace="0"\1>\2</mo>', math)
        return f'<div class="formula">{math}</div>' if block else math

    return FORMULA.sub(formula, content)


def changelog() -> str:
    """CHANGELOG.md with links as they are inside docs/."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    return text.replace("](docs/", "](")


def outside(page: str, link: str) -> str | None:
    """The path, from the repository's root, of a file that lies outside of docs/; else None."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    if path.startswith(("docs/", "..", "/")) or not (ROOT / path).is_file():
        return None
    return path


def source_page(source: str) -> str:
    """Where the page of a source file is: source/theory/flow.py.md."""
    return f"source/{source}.md"


def source_text(source: str) -> str:
    """A page that shows a file, and that the search leaves out."""
    text = (ROOT / source).read_text(encoding="utf-8")
    fence = "`" * (2 + max((len(run) for run in re.findall(r"`{3,}", text)), default=2))
    language = LANGUAGES.get(Path(source).suffix, "text")
    head = "---\nsearch:\n  exclude: true\n---\n"
    return f"{head}\n# {source}\n\n{fence}{language}\n{text}\n{fence}\n"
