"""`python -m theory`: names, files, the exit status, and what an error leaves."""

import json
import sys
from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure

from tests import theory_statements
from theory import STATEMENTS, __main__, report
from theory.check import Check, Outcome

GOOD = Check("good | one", 2.0, 1.99, 0.05, 1.0)
BAD = Check("bad one", 2.0, 3.0, 0.05, 1.0)


def plot(tables):
    figure = Figure()
    figure.subplots().plot(tables["curve"]["x"], tables["curve"]["y"])
    return figure


def statement(*checks, error=None):
    def check(progress):
        progress("a part")
        if error:
            raise error
        return Outcome(list(checks), {"curve": {"x": [0, 1], "y": [0.5, 1 / 3], "who": ["a", "b"]}})

    return SimpleNamespace(check=check, plot=plot)


@pytest.fixture
def statements(monkeypatch):
    """Stand-ins: one statement that holds, one that fails, one that raises."""
    modules = {
        "right_one": statement(GOOD),
        "false_one": statement(GOOD, BAD),
        "broken": statement(error=ZeroDivisionError("of zero")),
        "stopped": statement(error=KeyboardInterrupt()),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, f"theory.{name}", module)
    monkeypatch.setattr(__main__, "STATEMENTS", tuple(modules))


@pytest.mark.parametrize(
    ("names", "status"),
    [(["right"], 0), (["false"], 1), (["one"], 1), (["broken"], 1), (["right", "broken"], 1)],
)
def test_exit_status(statements, names, status, capsys):
    assert __main__.main(names) == status
    assert "checks hold" in capsys.readouterr().out


def test_an_error_in_one_statement_is_reported_and_the_others_run(statements, tmp_path, capsys):
    file = tmp_path / "new" / "checks.json"
    assert __main__.main(["broken", "right", "--json", str(file)]) == 1
    assert "ZeroDivisionError: of zero" in capsys.readouterr().out
    found = json.loads(file.read_text())["statements"]
    assert found["broken"] == {"holds": False, "error": "ZeroDivisionError: of zero"}
    assert found["right_one"]["holds"]


def test_an_interruption_shows_what_is_there(statements, capsys):
    # "stopped" comes last of all
    assert __main__.main([]) == 1
    shown = capsys.readouterr().out
    assert "interrupted" in shown
    assert "bad one" in shown


def test_json_holds_the_numbers_and_the_verdicts(statements, tmp_path):
    file = tmp_path / "checks.json"
    __main__.main(["false", "--json", str(file)])
    data = json.loads(file.read_text())
    assert {"torch", "python"} <= data["environment"].keys()
    checks = data["statements"]["false_one"]["checks"]
    assert [check["holds"] for check in checks] == [True, False]
    assert checks[0]["predicted"] == 2.0
    assert checks[0]["measured"] == 1.99
    assert checks[0]["tolerance"] == 0.05


def test_json_has_null_for_what_is_not_a_number():
    outcome = Outcome([Check("x", 2.0, float("nan"), 0.1, 1.0)])
    text = report.as_json({"s": outcome}, {}, {"s": 0.0})
    (check,) = json.loads(text, parse_constant=pytest.fail)["statements"]["s"]["checks"]
    assert check["measured"] is None


def test_plots_leave_a_picture_and_its_data(statements, tmp_path):
    assert __main__.main(["right", "--plots", str(tmp_path)]) == 0
    folder = tmp_path / "right_one"
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "curve.csv").read_text() == "x,y,who\n0,0.5,a\n1,0.333333,b\n"
    assert {path.name for path in folder.iterdir()} == {"figure.png", "curve.csv"}


def test_pages_get_a_new_table_and_keep_their_prose(statements, tmp_path):
    page = tmp_path / "right_one.md"
    page.write_text(f"before\n{report.BEGIN}\nthe former\n{report.END}\nafter\n")
    assert __main__.main(["right", "--pages", str(tmp_path)]) == 0
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "former" not in text
    assert r"| good \| one | 2 | 1.99 | ± 5 % | 1 | holds |" in text


def test_a_page_without_a_place_for_the_table(statements, tmp_path, capsys):
    page = tmp_path / "right_one.md"
    page.write_text("no place\n")
    with pytest.raises(SystemExit) as stop:
        __main__.main(["right", "--pages", str(tmp_path)])
    assert stop.value.code == 2
    assert "has no lines" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "no statement is called 'nonsense'"),
        (["--json", "."], "is a folder"),
        (["--plots", "pyproject.toml"], "is a file"),
        (["--plots", "pyproject.toml/x"], "cannot be made"),
        (["--pages", "docs/results"], "there is no page"),
    ],
)
def test_bad_command_lines_end_before_any_work(arguments, message, capsys, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    with pytest.raises(SystemExit) as stop:
        __main__.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_names_by_parts():
    assert __main__.chosen([]) == list(STATEMENTS)
    found = __main__.chosen(["resets", "flow"])
    assert {"flow", "flow_limits", "reference_resets"} <= set(found)
    assert all("flow" in name or "resets" in name for name in found)
    assert found == sorted(found, key=STATEMENTS.index)


def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path, monkeypatch):
    file = tmp_path / "x.csv"
    report.write(file, "old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(report.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        report.write(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_an_old_page_is_found_out(tmp_path, monkeypatch):
    """What guards docs/theory: a table or a CSV that this code would not write is refused."""
    monkeypatch.setattr(theory_statements, "PAGES", tmp_path)
    check = Check("slope", 2.0, 1.99, 0.05, 1.0)
    outcome = Outcome([check], {"curve": {"x": [1, 2], "y": [0.5, 0.25], "who": ["a", "b"]}})
    page, table = tmp_path / "s.md", tmp_path / "s" / "curve.csv"

    def written() -> None:
        page.write_text(f"{report.BEGIN}\n{report.END}\n")
        report.update_page(page, outcome)
        figure = Figure()
        figure.subplots()
        report.write_figure(tmp_path / "s", outcome, figure)

    def refused() -> bool:
        try:
            theory_statements.assert_page_is_current("s", outcome)
        except AssertionError:
            return True
        return False

    written()
    assert not refused()
    for old, new in (
        ("| 2 | ", "| 2.1 | "),  # the prediction
        ("| 1.99 | ", "| 1.7 | "),  # the measurement
        ("± 5 %", "± 6 %"),
        ("| 1 | holds", "| 1.5 | holds"),
        ("| holds", "| FAILS"),
        ("slope", "slopes"),
    ):
        text = page.read_text()
        assert old in text
        page.write_text(text.replace(old, new))
        assert refused(), new
        written()
    for old, new in (("x,y", "x,z"), ("0.5,a\n2,0.25", "0.9,a\n2,0.1"), ("2,0.25,b\n", "")):
        text = table.read_text()
        assert old in text
        table.write_text(text.replace(old, new))
        assert refused(), new
        written()
