"""Every command line of README, docs and Makefile is parsed by its own parser; nothing is run."""

import argparse
import importlib
import importlib.util
import inspect
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from docs_pages import PAGES, ROOT, Command, commands, name_of

OURS = ("integrations", "theory", "benchmarks")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z][a-z-]*)(?: [a-z-]+)*:", MAKEFILE, re.MULTILINE))
WITH_COMMANDS = [p for p in PAGES if commands(p.read_text(encoding="utf-8"))]


class Parsed(Exception):
    """Raised in place of running a command: what its parser made of the command line."""

    def __init__(self, options: argparse.Namespace, rest: list[str]) -> None:
        super().__init__(options, rest)
        self.options, self.rest = options, rest


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that starts a module's main up to the end of its parsing."""
    original = argparse.ArgumentParser.parse_known_args

    def parse(module: ModuleType, arguments: list[str], whole: bool) -> Parsed:
        def stop(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
            if not whole:  # a mention of an option or two in a sentence
                for action in self._actions:
                    action.required = False
            raise Parsed(*original(self, args, namespace))

        with monkeypatch.context() as patch:
            patch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
            patch.setattr(sys, "argv", [module.__name__, *arguments])
            takes = inspect.signature(module.main).parameters
            with pytest.raises(Parsed) as caught:
                module.main(arguments) if takes else module.main()
        return caught.value

    return parse


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name_of)
def test_commands_of_a_page(page: Path, parse: Any, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(ROOT)
    for command in commands(page.read_text(encoding="utf-8")):
        try:
            check(command, parse)
        except (SystemExit, ValueError, AssertionError) as error:
            said = capsys.readouterr().err.strip()
            pytest.fail(f"{' '.join(command.words)}: {said or error}", pytrace=False)


def test_commands_of_the_makefile(parse: Any) -> None:
    lines = re.findall(r"^\t.*\$\(PY\) -m (.*)$", MAKEFILE, re.MULTILINE)
    assert len(lines) > 20
    for line in lines:
        line = line.replace("$(JOBS)", "2").replace("$(DEMO_OUTPUT)", "out/demo")
        words = re.sub(r"\$\(\w+\)", "", line).split()  # flags, empty by default
        if words[0].split(".")[0] in OURS:
            check_module(words[0], words[1:], True, parse)
        else:
            assert importlib.util.find_spec(words[0]), words[0]


def check(command: Command, parse: Any) -> None:
    tool, *words = command.words
    if tool == "make":
        for word in words:
            assert "=" in word or word in TARGETS, f"the Makefile has no target {word}"
    elif tool == "python":
        check_module(words[1], words[2:], command.whole, parse)
    elif tool == "pytest":
        for word in words:
            assert word.startswith("-") or word in ("slow",) or (ROOT / word).exists(), word
    elif tool == "pip":
        check_extras(" ".join(words))
    else:
        check_launch(tool, words, parse)


def check_extras(text: str) -> None:
    """`.[a,b]` names extras of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extras in re.findall(r"\.\[([^\]]*)\]", text):
        for extra in extras.split(","):
            assert extra in project["optional-dependencies"], f"no extra {extra}"


def check_launch(tool: str, words: list[str], parse: Any) -> None:
    """accelerate launch and torchrun: their options, and the command that they start."""
    if tool == "torchrun":
        from torch.distributed.run import get_args_parser

        options = get_args_parser().parse_args(words)
    else:
        from accelerate.commands.launch import launch_command_parser

        options = launch_command_parser().parse_args(words[1:])
    assert options.module, "starts no module (-m)"
    check_module(options.training_script, options.training_script_args, True, parse)


def check_module(name: str, arguments: list[str], whole: bool, parse: Any) -> None:
    """The module exists and its parser takes these arguments; a scenario's plan as well."""
    if name.split(".")[0] not in OURS:
        assert importlib.util.find_spec(name.split(".")[0]), f"no module {name}"
        return
    if importlib.util.find_spec(name) is None:
        pytest.fail(f"no module {name}", pytrace=False)
    module = importlib.import_module(name)
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"{name}.__main__")
    source = inspect.getsource(module)
    assert "__name__ ==" in source, f"python -m {name} does nothing"
    scenario = name == "integrations" and bool(arguments)
    if not scenario and "parse" not in source:
        assert not arguments, f"{name} takes no arguments"
        return
    parsed = parse(module, arguments, whole)
    if name == "theory":
        module.chosen(parsed.options.names)
    elif scenario:
        check_scenario(module, arguments[0], arguments[1:], parsed, whole)
    else:
        assert not parsed.rest, f"unknown arguments {parsed.rest}"


def check_scenario(
    main: ModuleType, name: str, arguments: list[str], parsed: Parsed, whole: bool
) -> None:
    """The plan of a run: recipe, methods, fields of the trainer's config."""
    if name in main.TOOLS:
        assert not parsed.rest, f"unknown arguments {parsed.rest}"
        return
    from trl import GRPOConfig

    from integrations.command import trainer_fields

    trainer_fields(parsed.rest, GRPOConfig)
    module = importlib.import_module(f"integrations.{main.MODULES.get(name, name)}")
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"{module.__name__}.command")
    if whole and hasattr(module, "plan"):
        assert module.plan(parsed.options, parsed.rest)
    elif whole:
        assert module.make_plan(parsed.options, parsed.rest, arguments)


@pytest.mark.parametrize(
    "line",
    [
        "make no-such-target",
        "python -m integrations.no_such_module",
        "python -m integrations no-such-scenario",
        "python -m integrations rules --no_such_option 1 --output runs/x",
        "python -m integrations rules --method no-such-method --output runs/x",
        "python -m integrations rules --recipe no-such-recipe --output runs/x",
        "python -m theory no-such-statement",
        "python -m benchmarks.cost --no-such-option",
        "python -m benchmarks.faults --no-such-option",
        "pip install -e '.[no-such-extra]'",
        "accelerate launch --no-such-option -m integrations rules --output runs/x",
        "torchrun --nproc_per_node 2 -m integrations.no_such_module",
        "pytest tests/no_such_folder",
    ],
)
def test_a_wrong_command_is_found(line: str, parse: Any) -> None:
    (command,) = commands(f"    {line}\n")
    with pytest.raises((SystemExit, ValueError, AssertionError, pytest.fail.Exception)):
        check(command, parse)


def test_commands_are_found() -> None:
    text = (
        "Say `make demo` or `python -m theory\nflow --json ...`, `python -m\ntheory ...`.\n\n"
        "    OMP_NUM_THREADS=1 python -m theory \\\n        --json F  # a note: it's long\n\n"
        "```\nmake venv && make test   # both\n```\n\n```python\nmake = 1\n```\n"
    )
    assert sorted(c.words for c in commands(text)) == [
        ("make", "demo"),
        ("make", "test"),
        ("make", "venv"),
        ("python", "-m", "theory"),
        ("python", "-m", "theory", "--json", "F"),
        ("python", "-m", "theory", "flow"),
    ]
