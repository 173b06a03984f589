"""The first line of every file says what the file is for; integrations/README.md names them all."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("flatopt", "integrations", "theory", "benchmarks", "tests", "docs")
# how a comment begins, by suffix or name
MARKS = {
    ".yaml": "#",
    ".yml": "#",
    ".toml": "#",
    ".txt": "#",
    ".sh": "#",
    "Makefile": "#",
    ".css": "/*",
    ".js": ("//", "/*"),
    ".html": "{#",
}


def kind(path: Path) -> str:
    return path.suffix or path.name


def files() -> list[Path]:
    """The code, recipes and settings of the checkout."""
    found = [p for folder in FOLDERS for p in (ROOT / folder).rglob("*")] + list(ROOT.glob("*"))
    return sorted(p for p in found if p.is_file() and kind(p) in {*MARKS, ".py"})


def first_line(path: Path) -> str:
    """What the first line says, without the marks of a comment; "" where it is none."""
    text = path.read_text(encoding="utf-8")
    line = text.partition("\n")[0]
    if path.suffix == ".py":
        has = text.startswith(('"""', 'r"""')) and ast.get_docstring(ast.parse(text))
        return line.lstrip('r"').rstrip('"') if has else ""
    mark = MARKS[kind(path)]
    if not line.startswith(mark) or line.startswith("#!"):
        return ""
    return line.strip("/*#{}- ")


def test_the_files_are_found() -> None:
    found = {str(p.relative_to(ROOT)) for p in files()}
    assert {"flatopt/optimizer.py", "integrations/recipes/judge-tiny.yaml", "Makefile"} <= found


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.py", '"""Adds numbers."""\n', "Adds numbers."),
        ("a.py", "# Adds numbers.\n", ""),
        ("a.py", "import os\n", ""),
        ("a.py", '\n"""Adds numbers."""\n', ""),
        ("a.yaml", "# Settings of a run.\nsteps: 3\n", "Settings of a run."),
        ("a.yaml", "steps: 3  # Settings of a run.\n", ""),
        ("a.css", "/* Colours of the report. */\n", "Colours of the report."),
        ("Makefile", "all:\n", ""),
    ],
)
def test_first_line(tmp_path: Path, name: str, text: str, says: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert first_line(path) == says


def test_every_first_line_says_what_the_file_is_for() -> None:
    silent = [str(p.relative_to(ROOT)) for p in files() if len(first_line(p)) < 10]
    assert not silent, "begin them with a docstring or a comment that says what they are for"


def test_the_readme_of_integrations_names_every_entry() -> None:
    folder = ROOT / "integrations"
    text = (folder / "README.md").read_text(encoding="utf-8")
    entries = [p for p in folder.iterdir() if not p.name.startswith(("_", ".", "README"))]
    names = {p.name + "/" * p.is_dir() for p in entries}
    named = {line.split("`")[1] for line in text.splitlines() if line.startswith("| `")}
    assert named == names
