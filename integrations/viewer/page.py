"""Puts the report together: what it says about the runs, its parts, the template."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from ..report import WINDOW
from . import held_out, ladder, tables
from .arms import Arm, group_runs
from .completions import side_by_side
from .panels import GR_PLOTS, constants, sections
from .runs import Run, as_dict
from .svg import css

HERE = Path(__file__).parent
FEW = 3  # finished runs of an arm below which the page warns


def scenario(run: Run) -> str:
    """What a run was trained on, in words."""
    settings = run.settings
    for name, text in (
        ("rlhf", "RLHF with"),
        ("real", "an LLM judge with"),
        ("rules", "rules with"),
        ("ladder", "the ladder with"),
    ):
        model = as_dict(settings.get(name)).get("model")
        if isinstance(model, str):
            return f"{text} {Path(model).name}"
    if "rules" in settings:
        return "the rule world"
    if "ladder" in settings:
        return "the ladder of environments"
    if "world" in settings:
        return f"preference world {as_dict(settings['world']).get('kind', '')}".strip()
    return "the judge world" if "judge" in settings else "an unknown task"


def listing(words: Sequence[str]) -> str:
    """Words as a sentence has them.

    >>> listing(["a", "b", "c"]), listing(["a"])
    ('a, b and c', 'a')
    """
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def sentences(arms: Sequence[Arm]) -> list[str]:
    """What is compared and how it came out, in words, from the runs."""
    runs = [run for arm in arms for run in arm.runs]
    if not runs:
        return ["No run has settings or metrics yet."]
    done = sum(len(arm.finished) for arm in arms)
    tasks = list(dict.fromkeys(map(scenario, runs)))
    where = listing(tasks)
    steps = sorted({run.steps for run in runs if run.steps})
    length = (
        f", {steps[0]}{f' to {steps[-1]}' if len(steps) > 1 else ''} steps each" if steps else ""
    )
    arm_words = f"{len(arms)} arms" if len(arms) > 1 else "1 arm"
    run_words = f"{len(runs)} runs" if len(runs) > 1 else "1 run"
    state = "all finished" if done == len(runs) else f"{done} finished"
    labels = listing([f"“{arm.label}”" for arm in arms])
    said = [f"{arm_words} in {where}: {labels}. {run_words}{length}, {state}."]
    means = {}
    for arm in arms:
        ends = [v for run in arm.finished if (v := tables.final(run, "true")) is not None]
        if ends:
            means[arm.label] = statistics.fmean(ends)
    away = ladder.ends_on_truth(runs)  # then the final reward is no outcome of the method
    if len(means) > 1 and len(tasks) == 1 and not away:  # rewards of two tasks do not compare
        best, worst = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
        ends = [f"{tables.show(means[label])} (“{label}”)" for label in (best, worst)]
        said.append(f"Final true reward, mean over runs: highest {ends[0]}, lowest {ends[1]}.")
    judged = [(a.label, tables.hacked(a.finished)) for a in arms]
    judged = [(label, count) for label, count in judged if count != tables.NOTHING]
    some = [f"“{label}” {count}" for label, count in judged if not count.startswith("0 ")]
    if judged:
        none = [f"“{label}”" for label, count in judged if count.startswith("0 ")]
        unknown = len(judged) < len(arms)  # of which nothing may be said
        others = f"no run of {listing(none) if unknown else 'the others'}" if none else ""
        words = [*some, others] if some and others else some or ["no run"]
        said.append(f"Hacked: {'; '.join(words)}.")
    few = [f"“{arm.label}”" for arm in arms if len(arm.finished) < FEW]
    if few:
        whom = "every arm" if len(few) == len(arms) else listing(few)
        said.append(f"Fewer than {FEW} finished runs in {whom}: differences may be chance.")
    return said


@cache
def template() -> Template:
    """The page's template, which escapes every text it is given."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["css"] = css
    return environment.get_template("page.html")


def build_page(runs: Sequence[Run], title: str) -> str:
    """The whole report as HTML; every text in it is escaped by the template.

    `runs`: at least one, as `integrations.viewer.runs.read_run` gives them.
    """
    # what holds nothing at all is listed as unreadable only
    arms = group_runs([run for run in runs if run.settings or run.summary or run.rows])
    places, left_out = side_by_side(arms)
    plots = sections(arms)
    different, shared = tables.settings_tables(arms)
    parts: dict[str, Any] = {
        "title": title,
        "made": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        "window": WINDOW,
        "arms": arms,
        "sentences": sentences(arms),
        "outcomes": tables.outcomes(arms),
        "each_run": tables.each_run(arms),
        "problems": tables.problems(runs),
        "accuracy": held_out.accuracy_table(arms),
        "gold": held_out.gold_table(arms),
        "gaming": ladder.gaming_matrix(arms),
        "ends_on_truth": ladder.ends_on_truth(runs),
        "level_panels": held_out.level_panels(arms),
        "sections": [s for s in plots if s.heading != GR_PLOTS],
        "gr_plots": [s for s in plots if s.heading == GR_PLOTS],
        "constants": [f"{title} {tables.show(value)}" for title, value in constants(arms)],
        "gr": tables.gr_numbers(arms),
        "places": places,
        "left_out": left_out,
        "different": different,
        "shared": shared,
        "environment": tables.environment_table(runs),
        # our own files, without anything from a run
        "style": Markup((HERE / "style.css").read_text(encoding="utf-8")),
        "script": Markup((HERE / "script.js").read_text(encoding="utf-8")),
    }
    return template().render(parts) + "\n"
