"""Every example in the docstrings runs."""

import doctest
import importlib
import pkgutil

import pytest
import torch

import flatopt
import integrations

MODULES = sorted(m.name for m in pkgutil.iter_modules(flatopt.__path__, "flatopt."))
SCENARIOS = sorted(
    m.name
    for m in pkgutil.walk_packages(integrations.__path__, "integrations.")
    if not m.ispkg and not m.name.endswith("__main__")
)


@pytest.mark.parametrize("name", MODULES + SCENARIOS)
def test_examples(name: str) -> None:
    torch.manual_seed(0)
    result = doctest.testmod(importlib.import_module(name), raise_on_error=False)
    assert result.failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder()
    with_examples = {
        t.name for m in MODULES for t in finder.find(importlib.import_module(m)) if t.examples
    }
    for name in ("GradRegOptimizer", "gradreg_gradient", "gradreg_check", "hessian_product"):
        assert any(found.endswith(f".{name}") for found in with_examples), name
