"""Every Python example of README and docs runs, page by page, in the order of the page.

A page's blocks share one namespace. A comment above a block says what else it needs:

    <!-- test: trainer -->       names that docs_names.py supplies under that name
    <!-- test: skip, REASON -->  it cannot run here (a GPU, a package that is not installed)
    <!-- test: output -->        above a ```text block: what the block before it prints
"""

import re
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from docs_names import SUPPLIES
from docs_pages import PAGES, Block, blocks, name_of

RUN = [p for p in PAGES if "```python" in p.read_text(encoding="utf-8")]
NUMBER = re.compile(r"-?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?")


@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    text = page.read_text(encoding="utf-8")
    found = blocks(text)
    assert sum(b.language == "python" for b in found) == text.count("```python")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, object] = {"__name__": "example"}
    printed = ""
    with ExitStack() as stack:
        for block in found:
            if block.language == "python":
                if not block.directive.startswith("skip"):
                    names |= supplied(block, stack)
                    run(block, page, names)
                    printed = capsys.readouterr().out
            elif block.directive == "output":
                assert_prints(block.text, printed)
            else:
                assert not block.directive, f"line {block.line}: a directive above no example"


def supplied(block: Block, stack: ExitStack) -> dict[str, object]:
    names: dict[str, object] = {}
    for name in block.directive.split():
        assert name in SUPPLIES, (
            f"line {block.line}: unknown {name!r}; known: {', '.join(SUPPLIES)}"
        )
        names |= stack.enter_context(SUPPLIES[name]())
    return names


def run(block: Block, page: Path, names: dict[str, object]) -> None:
    # blank lines in front, so that an error names the line of the page
    source = "\n" * (block.line - 1) + block.text
    exec(compile(source, str(page), "exec"), names)


def assert_prints(expected: str, printed: str) -> None:
    """The same words, and numbers within 10 % (other processors round otherwise)."""
    assert NUMBER.sub("#", printed).split() == NUMBER.sub("#", expected).split()
    numbers = [[float(n) for n in NUMBER.findall(text)] for text in (printed, expected)]
    assert numbers[0] == pytest.approx(numbers[1], rel=0.1, abs=1e-9)


def test_skipped_examples_say_why() -> None:
    for page in RUN:
        for block in blocks(page.read_text(encoding="utf-8")):
            if block.directive.startswith("skip"):
                assert re.fullmatch(r"skip, \w.{10,}", block.directive, re.DOTALL), name_of(page)


def test_an_error_names_the_line_of_the_page() -> None:
    text = "# Page\n\n```python\nx = 1\nraise KeyError\n```\n"
    (block,) = blocks(text)
    with pytest.raises(KeyError) as caught:
        run(block, Path("page.md"), {})
    assert caught.traceback[-1].lineno + 1 == 5


def test_what_is_printed_is_compared() -> None:
    assert_prints("loss 1.0, steps 3", "loss 1.02, steps 3\n")
    with pytest.raises(AssertionError):
        assert_prints("loss 1.0, steps 3", "loss 1.2, steps 3\n")
    with pytest.raises(AssertionError):
        assert_prints("loss 1.0", "gain 1.0\n")
