"""The HTML report: what it says of known runs, hostile texts, broken folders, its command."""

import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from integrations.__main__ import main
from integrations.report import write_samples
from integrations.viewer.arms import NOTHING, group_runs, place
from integrations.viewer.command import write_page
from integrations.viewer.page import build_page, sentences
from integrations.viewer.runs import Run, find_runs, parse_samples, read_run
from integrations.viewer.tables import outcomes

VOID = {"meta", "input", "br", "link", "img"}
HOSTILE = "</style></script><script>alert('x')</script>\"' onload=x & <b>"


class Page(HTMLParser):
    """The page as a browser would see it: elements, attributes and text; checks the nesting."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.text.append(data)


def visible(source: str) -> str:
    return " ".join(" ".join(Page(source).text).split())


def make_run(
    folder: Path,
    method: str = "none",
    seed: int = 0,
    true: Sequence[float] = (0.4, 0.6),
    finished: bool = True,
    gr: dict[str, Any] | None = None,
    samples: Sequence[dict[str, str]] = (),
    **config: Any,
) -> Path:
    """A run folder as the scenarios leave it; `true` is the true reward at steps 30, 60, ..."""
    folder.mkdir(parents=True)
    plain = {"method": method, "seed": seed, "config": {"max_steps": 60} | config, "gr": gr}
    plain["judge"] = {"index": seed, "lr": 0.1}
    (folder / "settings.json").write_text(json.dumps(plain))
    rows = [
        {"step": 30 * (i + 1), "true": t, "proxy": 1 - t, "entropy": 2 - t, "auc": None}
        | ({"gr/penalty_ratio": 1.0 + i, "gr/skipped": 0.0} if gr else {})
        for i, t in enumerate(true)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if samples:
        (folder / "samples.json").write_text(json.dumps(list(samples)))
    if finished:
        summary = {
            "method": method,
            "seed": seed,
            "start": {"true": true[0], "proxy": 1 - true[0]},
            "final": {k: v for k, v in rows[-1].items() if k != "step"},
            "peak_true": max(true),
            "hacked": true[-1] < 0.2,
            "hack_step": 60 if true[-1] < 0.2 else None,
            "seconds": 90.0,
            "environment": {"torch": "2.99"},
        }
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def page_of(*folders: Path) -> str:
    return build_page([read_run(path, name) for path, name in find_runs(folders)], "Runs")


def test_real_runs_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    output = tmp_path / "runs"
    given = ["judge", "--recipe", "smoke", "--method", "none", "gr", "--steps", "2"]
    assert main([*given, "--output", str(output)]) == 0
    assert main(["report", str(output), "--title", "None & GR"]) == 0
    assert f"report in {output / 'report.html'}" in capsys.readouterr().out
    text = visible((output / "report.html").read_text(encoding="utf-8"))
    assert "None & GR" in text
    assert "2 arms in the judge world: “none” and “gr”. 2 runs, 2 steps each, all finished." in text
    assert "Penalty ratio" in text
    summary = json.loads((output / "gr-judge0-seed0" / "summary.json").read_text())
    assert f"{summary['final']['proxy']:.3f}" in text
    rows = json.loads((output / "gr-judge0-seed0" / "samples.json").read_text())
    assert len(rows) == 12
    table = parse_samples((output / "gr-judge0-seed0" / "samples.md").read_text())
    assert table == [{name: str(value) for name, value in row.items()} for row in rows]
    for row in rows:
        assert " ".join(row["after"].split()) in text


def test_the_numbers_of_a_table_by_hand(tmp_path: Path) -> None:
    for seed, final in enumerate((0.5, 0.7)):
        make_run(tmp_path / f"gr-{seed}", "gr", seed, (0.4, final), gr={"ratio": 1.0})
    make_run(tmp_path / "none-0", "none", 0, (0.4, 0.0))
    make_run(tmp_path / "none-1", "none", 1, (0.4,), finished=False)
    arms = group_runs([read_run(*found) for found in find_runs([tmp_path])])
    table = outcomes(arms)
    by_label = {
        line.head: dict(zip(table.columns[1:], line.cells, strict=True)) for line in table.lines
    }
    assert list(by_label) == ["none", "gr"]
    assert by_label["none"]["runs"] == "1 of 2"
    assert by_label["none"]["hacked"] == "1 of 1"
    assert by_label["none"]["final true"] == "0.000"
    assert by_label["gr"]["hacked"] == "0 of 2"
    assert by_label["gr"]["final true"] == "0.600 ± 0.141"  # sd of .5 and .7
    assert by_label["gr"]["final proxy"] == "0.400 ± 0.141"
    assert by_label["gr"]["start true"] == "0.400 ± 0.000"
    text = visible(page_of(tmp_path))
    assert "highest 0.600 (“gr”), lowest 0.000 (“none”)" in text
    assert "Hacked: “none” 1 of 1; no run of the others." in text
    assert "unfinished, at step 30 of 60" in text
    assert "Constant in all runs, so without a plot: Skipped 0.000." in text


def test_texts_stay_texts(tmp_path: Path) -> None:
    sample = {name: f"{name} {HOSTILE}" for name in ("prompt", "answer", "before", "after")}
    folder = make_run(tmp_path / "a<b>&'", HOSTILE, samples=[sample], optim=HOSTILE)
    rows = [{"step": 1, "true": 0.5, f"rewards/{HOSTILE}/mean": 0.2, HOSTILE: 3.0}]
    rows.append({"step": 2, "true": 0.6, f"rewards/{HOSTILE}/mean": 0.3, HOSTILE: 4.0})
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    base = {"pass_at_1": {"mean": 0.5}, "by_level": [{"level": HOSTILE, "mean": 0.5}]}
    (folder / "evaluation.json").write_text(json.dumps(base | {"base": base}))
    source = build_page([read_run(folder, folder.name)], HOSTILE)
    page = Page(source)
    assert page.seen.count("script") == page.seen.count("style") == 1
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    text = " ".join(page.text)
    for name in sample:
        assert f"{name} {HOSTILE}" in text
    assert "alert" not in source.replace("alert(&#39;x&#39;)", "").replace(
        "alert(&#x27;x&#x27;)", ""
    )


def test_nothing_is_fetched(tmp_path: Path) -> None:
    source = page_of(make_run(tmp_path / "run", gr={"ratio": 1.0}))
    names = {name for name, _ in Page(source).attributes}
    assert not names & {"src", "href", "srcset", "action", "data", "xlink:href"}
    assert "@import" not in source
    assert "url(" not in source
    assert set(re.findall(r"https?://[^\"' ]+", source)) == {"http://www.w3.org/2000/svg"}


def test_broken_folders_are_listed(tmp_path: Path) -> None:
    make_run(tmp_path / "whole")
    half = make_run(tmp_path / "half", finished=False)
    with (half / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 90, "true": 0.9, "en\xff')
    odd = make_run(tmp_path / "odd")
    lines = ['{"step": 30, "true": NaN, "proxy": 0.25}', "7", "", '{"step": "x"}', '{"true": 1}']
    lines += [f'{{"step": 40, "proxy": 1{"0" * 400}, "true": true}}', '{"step": 60, "proxy": 0.5}']
    (odd / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (odd / "samples.json").write_text("[1, {")
    (make_run(tmp_path / "empty", finished=False) / "metrics.jsonl").write_text("")
    (make_run(tmp_path / "cut", finished=False) / "settings.json").write_text('{"method": "gr", "s')
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "settings.json").write_text('{"met')
    text = visible(page_of(tmp_path))
    assert "half unfinished, at step 60 of 60 –" in text
    assert "odd finished, 60 steps metrics.jsonl: 3 lines could not be read; samples.json" in text
    assert "empty empty" in text
    assert "cut unfinished, at step 60 settings.json is no JSON" in text
    assert "begun empty settings.json is no JSON" in text
    assert "whole finished, 60 steps –" not in text
    rows = read_run(odd, "odd").rows
    assert rows == [{"step": 30, "proxy": 0.25}, {"step": 40}, {"step": 60, "proxy": 0.5}]


def test_a_report_of_nothing_but_broken_runs(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text("{")
    assert "No run has settings or metrics yet." in visible(page_of(tmp_path))


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**400), 10**400) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
inner_names = st.sampled_from(
    ("index", "kind", "reward", "seed", "model", "max_steps", "ratio", "mean", "low", "level")
)
shaped = st.recursive(
    anything,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(inner_names, inner | st.floats(), max_size=5)
    ),
    max_leaves=10,
)


def some_of(keys: str, values: st.SearchStrategy[Any] = shaped) -> st.SearchStrategy[Any]:
    """A dictionary with some of the keys that a reader asks for, and any values."""
    return st.fixed_dictionaries({}, optional={key: values for key in keys.split()})  # noqa: C420


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    plain=some_of("seed config gr world judge rules real rlhf trainer"),
    summary=some_of("method final start hacked hack_step peak_true environment seconds"),
    held=some_of("pass_at_1 formatted by_level by_quintile base gold gold_sft win_rate"),
    samples=st.lists(some_of("prompt answer before after")) | shaped,
    rows=st.lists(some_of("true proxy gr/strength level/1/true", st.floats() | anything)),
    steps=st.lists(st.integers(0, 40) | anything, min_size=1),
)
def test_any_json_makes_a_page(
    tmp_path_factory: pytest.TempPathFactory, plain: Any, summary: Any, held: Any, samples: Any,
    rows: Any, steps: Any,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("any")
    (folder / "settings.json").write_text(json.dumps(plain | {"method": "gr"}))
    files = {"summary": summary, "evaluation": held, "samples": samples}
    for name, data in files.items():
        (folder / f"{name}.json").write_text(json.dumps(data))
    lines = [json.dumps({"step": s} | row) for s, row in zip(steps, rows, strict=False)]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    Page(page_of(folder))


def test_runs_are_found_once_and_named_apart(tmp_path: Path) -> None:
    deep = make_run(tmp_path / "a" / "ratio 1" / "seed0")
    make_run(tmp_path / "b" / "seed0")
    make_run(deep / "checkpoint-2")  # belongs to the run
    make_run(tmp_path / "b" / ".hidden")
    (tmp_path / "b" / "sft").mkdir()
    (tmp_path / "b" / "sft" / "settings.json").write_text('{"lr": 1}')  # a stage, not a run
    assert [name for _, name in find_runs([tmp_path])] == ["a/ratio 1/seed0", "b/seed0"]
    folders = [tmp_path / "b", tmp_path / "b" / "seed0", tmp_path / "a"]
    assert [name for _, name in find_runs(folders)] == ["b/seed0", "a/ratio 1/seed0"]
    assert find_runs([deep]) == [(deep.resolve(), "seed0")]


def test_arms_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    plan: list[tuple[str, int, Any, dict[str, Any]]] = [
        ("gr", 0, {"ratio": 1.0}, {}),
        ("gr", 1, {"ratio": 1.0}, {}),
        ("gr", 0, {"ratio": 4.0, "every": 2}, {"learning_rate": 0.1}),
        ("kl", 0, None, {"beta": 0.1}),
        ("kl", 0, None, {"beta": 0.3}),
        ("none", 0, None, {}),
    ]
    for i, (method, seed, gr, config) in enumerate(plan):
        make_run(tmp_path / str(i), method, seed, gr=gr, **config)
    arms = group_runs([read_run(*found) for found in find_runs([tmp_path])])
    assert [(arm.label, arm.number, len(arm.runs)) for arm in arms] == [
        ("none", 0, 1),
        ("gr [ratio 1]", 1, 2),
        ("gr [ratio 4, every 2]", 2, 1),
        ("kl [beta 0.1]", 3, 1),
        ("kl [beta 0.3]", 4, 1),
    ]


def test_seeds_of_the_rule_world_are_one_arm() -> None:
    runs = [
        Run(Path(str(seed)), str(seed), {"method": "gr", "seed": 7, "rules": {"world": world}})
        for seed in (0, 1)
        for world in [{"seed": seed, "rewards": {"correctness": 1.0}}]
    ]
    (arm,) = group_runs(runs)
    assert (arm.label, len(arm.runs)) == ("gr", 2)
    assert [place(run) for run in runs] == ["seed 7, world 0", "seed 7, world 1"]
    assert "rules.world.seed 0 / 1" in visible(build_page(runs, "Rules"))
    other = {"world": {"seed": 1, "rewards": {"correctness": 2.0}}}
    runs[1].settings["rules"] = other
    assert len(group_runs(runs)) == 2


def test_no_word_about_hacking_where_it_is_not_known(tmp_path: Path) -> None:
    runs = [
        Run(tmp_path, method, {"method": method, "rules": {}}, summary={"seed": 0, "hacked": None})
        for method in ("none", "gr", "kl")
    ]
    text = visible(build_page(runs, "Rules"))
    assert "Hacked:" not in text
    assert "never" not in text
    arms = group_runs(runs)
    table = outcomes(arms)
    assert [line.cells[table.columns.index("hacked") - 1] for line in table.lines] == [NOTHING] * 3
    assert not any(sentence.startswith("Hacked") for sentence in sentences(arms))
    runs[0].summary["hacked"], runs[1].summary["hacked"] = True, False
    assert "Hacked: “none” 1 of 1; no run of “gr”." in sentences(group_runs(runs))
    runs[2].summary["hacked"] = False
    assert "Hacked: “none” 1 of 1; no run of the others." in sentences(group_runs(runs))


def test_half_a_surrogate_pair_does_not_end_the_report(tmp_path: Path) -> None:
    row = {"prompt": "1 + 1", "answer": "2", "before": "a", "after": "b \ud800 c"}
    make_run(tmp_path / "none", samples=[row])
    assert "b ? c" in visible(write_page([tmp_path]).read_text(encoding="utf-8"))


def test_labels_are_unique() -> None:
    runs = [
        Run(Path(str(i)), str(i), {"method": "gr", "gr": {f"x{k}": "y" * 30 for k in range(4)}})
        for i in range(3)
    ]
    for i, run in enumerate(runs):
        run.settings["gr"]["x0"] += str(i)  # too long for a label
    labels = [arm.label for arm in group_runs(runs)]
    assert len(set(labels)) == 3


@given(st.lists(st.tuples(*[st.text(st.characters(exclude_categories=["Cs"]))] * 4), max_size=4))
@settings(max_examples=50, deadline=None)
def test_samples_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, texts: list[tuple[str, str, str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("samples")
    make = lambda p, a, c: {"prompt": p, "answer": a, "completion": c}  # noqa: E731
    given = {
        "before": [make(p, a, before) for p, a, before, _ in texts],
        "after": [make(p, a, after) for p, a, _, after in texts],
    }
    write_samples(folder / "samples.md", given)
    names = ("prompt", "answer", "before", "after")
    expected = [dict(zip(names, row, strict=True)) for row in texts]
    assert read_run(folder, "x").samples == expected
    (folder / "samples.json").unlink()
    assert read_run(folder, "x").samples == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "missing is not a folder"),
        (["void"], "no runs under"),
        (["runs", "void"], "add --output FILE.html"),
        (["runs", "--output", "void"], "void is a folder; name a file"),
    ],
)
def test_bad_input_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "none-seed0")
    (tmp_path / "void").mkdir()
    assert main(["report", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.html"))


def test_several_folders_in_one_file(tmp_path: Path) -> None:
    make_run(tmp_path / "one" / "none-seed0")
    make_run(tmp_path / "two" / "gr-seed0", "gr", gr={"ratio": 1.0})
    output = write_page([tmp_path / "one", tmp_path / "two"], tmp_path / "new" / "both.html")
    text = visible(output.read_text(encoding="utf-8"))
    assert "Runs: one, two" in text
    assert "two/gr-seed0" in text
