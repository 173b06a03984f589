"""Every public name is documented: functions, classes, methods and properties."""

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import flatopt

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(m.name for m in pkgutil.iter_modules(flatopt.__path__, "flatopt."))


def own(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """The public functions and classes that a module defines, and the classes' members."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value) or inspect.isclass(value):
            yield name, value
        if inspect.isclass(value):
            for member, raw in vars(value).items():
                plain = getattr(raw, "__func__", raw)  # of a class method or a static one
                if member.startswith("_") or getattr(plain, "__name__", "") == "<lambda>":
                    continue  # a field whose default is a function is told of by its class
                if inspect.isfunction(plain) or isinstance(plain, property):
                    yield f"{name}.{member}", plain


def documented(name: str, value: Any) -> bool:
    """Whether there is a docstring that a person wrote: dataclass writes the signature as one."""
    text = value.__doc__ or ""
    return bool(text.strip()) and not text.startswith(f"{name}(")


@pytest.mark.parametrize("module", ["flatopt", *MODULES])
def test_every_public_name_of_flatopt_is_documented(module: str) -> None:
    silent = [
        name for name, value in own(importlib.import_module(module)) if not documented(name, value)
    ]
    assert not silent


def test_the_exported_names_are_documented() -> None:
    for name in flatopt.__all__:
        assert documented(name, getattr(flatopt, name)), name


def undocumented(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    """Public functions, classes and members without a docstring; setters share the getter's."""
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        setter = any(
            isinstance(d, ast.Attribute) and d.attr == "setter" for d in node.decorator_list
        )
        if not setter and not ast.get_docstring(node):
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield from undocumented(node.body, f"{prefix}{node.name}.")


def test_undocumented_finds_what_has_no_docstring() -> None:
    code = '''
def told():
    """Says what it does."""
def untold(): ...
def _private(): ...
class Box:
    """A box."""
    @property
    def size(self): ...
    @size.setter
    def size(self, value): ...
'''
    assert list(undocumented(ast.parse(code).body)) == ["untold", "Box.size"]


@pytest.mark.parametrize("folder", ["integrations", "theory", "benchmarks"])
def test_every_public_name_beside_flatopt_is_documented(folder: str) -> None:
    silent = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for name in undocumented(ast.parse(path.read_text(encoding="utf-8")).body)
    ]
    assert not silent
