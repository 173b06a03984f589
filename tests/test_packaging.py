"""What ships and what it asks for: import arrows, pins, the wheel's packages, public names."""

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import flatopt

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("flatopt", "integrations", "theory", "benchmarks", "tests")
EXTRAS = (
    "transformers",
    "trl",
    "datasets",
    "accelerate",
    "peft",
    "matplotlib",
    "rich",
    "scipy",
    "yaml",
)
# for each folder, the folders it must not import
FORBIDDEN = {
    "flatopt": {"integrations", "theory", "benchmarks", "tests"},
    "theory": {"integrations", "benchmarks", "tests"},
    "integrations": {"theory", "benchmarks", "tests"},
    "benchmarks": {"tests"},
}
# the one file of the library that may name the extra's packages at its top
TRAINER = {"transformers", "trl", "accelerate", "peft", "datasets"}

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def python_files(*folders: str) -> list[Path]:
    """Every Python file under these top folders."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    """The path as a test id."""
    return path.relative_to(ROOT).as_posix()


def parse(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported(nodes: Iterator[ast.AST]) -> set[str]:
    """The top-level names that these nodes import; relative imports stay inside their folder."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found


def run_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when the module is imported: not function bodies, not type checking."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield other
                yield from run_at_import(other)
            continue
        yield child
        yield from run_at_import(child)


def constraints() -> dict[str, str]:
    """The pins: canonical name to version."""
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][0-9A-Za-z.]*)", line)
            assert match, f"not of the form name==version: {line!r}"
            pins[canonicalize_name(match[1])] = match[2]
    return pins


def in_a_new_process(code: str) -> str:
    """Run code in a fresh interpreter that sees this checkout, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_no_extra():
    """Importing flatopt loads torch, and none of the optional packages."""
    loaded = in_a_new_process(
        "import sys, flatopt\nprint(*sorted({name.partition('.')[0] for name in sys.modules}))"
    ).split()
    assert "torch" in loaded
    assert not set(EXTRAS) & set(loaded)


def test_every_name_without_the_extras():
    """`from flatopt import *` works where no optional package is installed."""
    in_a_new_process(
        "import sys\n"
        "class Absent:\n"
        "    @staticmethod\n"
        "    def find_spec(name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {EXTRAS!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Absent)\n"
        "from flatopt import *\n"
    )


@pytest.mark.parametrize("path", python_files("flatopt"), ids=name_of)
def test_library_needs_torch_alone(path: Path):
    """At import, a file of flatopt asks for the standard library and torch."""
    allowed = {"torch", "flatopt"} | set(sys.stdlib_module_names)
    if path.name == "trainer.py":
        allowed |= TRAINER
    assert not imported(run_at_import(parse(path))) - allowed


@pytest.mark.parametrize("path", python_files(*FORBIDDEN), ids=name_of)
def test_arrows_run_one_way(path: Path):
    """No file imports, even inside a function, a folder that its own must not know."""
    folder = path.relative_to(ROOT).parts[0]
    assert not imported(ast.walk(parse(path))) & FORBIDDEN[folder]


@pytest.mark.parametrize("path", python_files(*FOLDERS), ids=name_of)
def test_file_says_what_it_is(path: Path):
    """Every Python file begins with a docstring."""
    assert ast.get_docstring(parse(path))


def test_run_at_import_sees_what_runs():
    """The reader of imports finds those under try and if, and passes over the deferred ones."""
    tree = ast.parse(
        "import a\n"
        "try:\n    import b\nexcept ImportError:\n    pass\n"
        "if TYPE_CHECKING:\n    import c\nelse:\n    import d.e\n"
        "def f():\n    import g\n"
        "class H:\n    from i import j\n"
    )
    assert imported(run_at_import(tree)) == {"a", "b", "d", "i"}


def test_torch_is_the_only_dependency():
    """What a user of the library must install."""
    assert [Requirement(line).name for line in PROJECT["project"]["dependencies"]] == ["torch"]


@pytest.mark.parametrize("extra", ["trl", "plots", "dev", "docs"])
def test_extras_are_pinned_within_their_bounds(extra: str):
    """Each package that `make venv` asks for has a pin, and the pin satisfies its bound."""
    pins = constraints()
    lines = PROJECT["project"]["optional-dependencies"][extra] + PROJECT["project"]["dependencies"]
    for requirement in map(Requirement, lines):
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin, f"{requirement.name} has no pin"
        assert pin in requirement.specifier, f"{requirement} is pinned at {pin}"


def test_makefile_installs_with_the_pins():
    """Every pip command of the Makefile that installs reads constraints.txt."""
    lines = (ROOT / "Makefile").read_text(encoding="utf-8").splitlines()
    installs = [line for line in lines if "pip install" in line and not line.startswith("#")]
    assert installs
    assert all("-c constraints.txt" in line for line in installs)


def test_wheel_lists_every_package():
    """The packages that ship are flatopt and whatever folders it has, and it is marked typed."""
    packages = {
        path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for path in (ROOT / "flatopt").rglob("__init__.py")
    }
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == packages
    assert (ROOT / "flatopt" / "py.typed").is_file()


def test_version_is_said_once():
    """Where flatopt states a version, it is pyproject's, and the changelog knows it."""
    version = PROJECT["project"]["version"]
    assert getattr(flatopt, "__version__", version) == version
    assert version in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_public_names():
    """The names that users' code relies on are exported."""
    fixed = {"GradRegOptimizer", "attach", "gradreg_check"}
    assert fixed <= set(flatopt.__all__)
    assert len(flatopt.__all__) == len(set(flatopt.__all__))


@pytest.mark.parametrize("name", flatopt.__all__)
def test_public_name_is_documented(name: str):
    """Each exported name exists; each class and function has a docstring of its own."""
    thing = getattr(flatopt, name)
    if inspect.isclass(thing) or inspect.isroutine(thing):
        doc = thing.__doc__ or ""
        assert doc.strip(), f"flatopt.{name} has no docstring"
        assert not doc.startswith(f"{name}("), f"flatopt.{name} has dataclass's own docstring"
