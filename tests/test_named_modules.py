"""Modules and files that texts name exist: in docs, README, Makefile, code and its comments."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("docs", "flatopt", "integrations", "theory", "benchmarks")
SUFFIXES = {".md", ".py", ".yaml", ".yml"}
DOTTED = re.compile(r"\b(?:integrations|benchmarks)(?:\.[A-Za-z_]\w*)+")
PATH = re.compile(r"\b(?:flatopt|integrations|benchmarks|theory|tests)/[\w/.-]*\.(?:py|yaml)\b")


def texts() -> list[Path]:
    """What a person reads, but for the log and the changelog, which tell of earlier states."""
    found = [p for folder in FOLDERS for p in (ROOT / folder).rglob("*")] + list(ROOT.glob("*"))
    told = [p for p in found if p.is_file() and (p.suffix in SUFFIXES or p.name == "Makefile")]
    return [p for p in told if p.name not in ("log.md", "CHANGELOG.md")]


def named(pattern: re.Pattern[str]) -> dict[str, str]:
    """What is named, and the first file that names it."""
    places: dict[str, str] = {}
    for path in texts():
        for name in pattern.findall(path.read_text(encoding="utf-8")):
            places.setdefault(name, str(path.relative_to(ROOT)))
    return places


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or what a module defines or imports; nothing is run."""
    place, parts = ROOT, name.split(".")
    while parts and (place / parts[0]).is_dir():
        place /= parts.pop(0)
    if parts and (place / f"{parts[0]}.py").is_file():
        code = place / f"{parts.pop(0)}.py"
    else:
        code = place / "__init__.py"
    if not code.is_file():
        return False
    return not parts or parts[0] in defined(code)


def defined(code: Path) -> set[str]:
    """The names at the top of a module."""
    names: set[str] = set()
    for node in ast.parse(code.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
    return names


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("integrations.results.judge", True),
        ("integrations.results", True),
        ("integrations.results.page.spread", True),
        ("integrations.rewards.verifier.Verifier.limit", True),
        ("integrations.rewards.RULES", True),
        ("integrations.judge_results", False),
        ("integrations.results.nothing", False),
        ("integrations.results.page.spreed", False),
        ("nowhere.page", False),
    ],
)
def test_exists(name: str, there: bool) -> None:
    assert exists(name) == there


def test_every_module_that_is_named_exists() -> None:
    places = named(DOTTED)
    assert {"integrations.results.judge", "benchmarks.cost"} <= places.keys()
    assert not {name: where for name, where in places.items() if not exists(name)}


def test_every_file_that_is_named_exists() -> None:
    places = named(PATH)
    assert len(places) > 10
    assert not {name: where for name, where in places.items() if not (ROOT / name).exists()}
