"""Fills docs/results/rlhf.md: tables, plots and the data beside them, from the finished runs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..cache import write_csv, write_text
from ..watch.monitor import read_rows
from . import rlhf_alarm as alarms
from . import rlhf_claim1 as claim1
from . import rlhf_plan as plans
from . import rlhf_tables as tables
from .page import fill
from .rlhf_plan import Setting
from .rlhf_tables import Run, labels_of, ran

SHOWN = ("true", "proxy", "kl_start", "grad_norm", "reward_accuracy", "bt_loss", "entropy")
PROXIES, KLS = (0.5, 1.0, 1.5, 2.0), (1.0, 2.0, 4.0, 8.0)


def mean_curves(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Mean, least and most over the runs of each label and world, at each logged step."""
    out = []
    for label in labels_of(runs):
        for world in ("A", "B"):
            logs = [read_rows(Path(r["folder"]) / "metrics.jsonl") for r in ran(runs, label, world)]
            for rows in zip(*logs, strict=False):
                row: dict[str, Any] = {"label": label, "world": world, "step": rows[0]["step"]}
                row["runs"] = len(logs)
                for name in SHOWN:
                    values = [r[name] for r in rows if r.get(name) is not None]
                    if values:
                        row[name] = round(statistics.fmean(values), 4)
                    if values and name == "true":
                        row["true_least"], row["true_most"] = min(values), max(values)
                out.append({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
    return out


def plot_curves(path: Path, curves: Sequence[dict[str, Any]], labels: Sequence[str]) -> None:
    """Gold over time, gold over the proxy and gold over KL: mean over the runs, range shaded."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.4), layout="constrained")
    panels = figure.subplots(2, 3, sharey="row")
    across = (("step", "step"), ("proxy", "proxy (mean of the runs)"), ("kl_start", "KL, nats"))
    for line, world in zip(panels, ("A", "B"), strict=True):
        for i, label in enumerate(labels):
            mine = [r for r in curves if (r["label"], r["world"]) == (label, world)]
            if not mine:
                continue
            for panel, (name, _) in zip(line, across, strict=True):
                x, y = [r[name] for r in mine], [r["true"] for r in mine]
                panel.plot(x, y, color=f"C{i}", lw=1.4, label=label)
                if name == "step":
                    low, high = [r["true_least"] for r in mine], [r["true_most"] for r in mine]
                    panel.fill_between(x, low, high, color=f"C{i}", alpha=0.12, lw=0)
        for panel, (name, title) in zip(line, across, strict=True):
            panel.set(xlabel=title)
            panel.set_ylim(-2.5, 1.6)
            if name == "kl_start":
                panel.set_xscale("symlog", linthresh=1)
                panel.set_xlim(left=0)
            if name == "proxy" and world == "B":  # the exploit pays without end
                panel.set_xscale("symlog", linthresh=2)
        line[0].set_ylabel(f"gold, world {world}")
    panels[0][0].legend(frameon=False, fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def plot_probe(path: Path, runs: Sequence[Run]) -> None:
    """Gradient norm, sharpness, Bradley-Terry loss and gold over time; resets as dotted lines."""
    from matplotlib.figure import Figure

    names = ("grad_norm", "sharpness_0.05", "bt_loss", "true")
    figure = Figure(figsize=(13, 5.6), layout="constrained")
    panels = figure.subplots(2, 4)
    for line, world in zip(panels, ("A", "B"), strict=True):
        for i, label in enumerate(labels_of(runs)):
            logs = [claim1.rows_of(r) for r in ran(runs, label, world)]
            for panel, name in zip(line, names, strict=True):
                for j, rows in enumerate(logs):
                    x, y = [r["step"] for r in rows], [r[name] for r in rows]
                    panel.plot(x, y, color=f"C{i}", lw=0.9, alpha=0.8, label=None if j else label)
            every = _reset_period(ran(runs, label, world))
            for step in range(every, plans.STEPS, every) if every else ():
                for panel in line:
                    panel.axvline(step, color=f"C{i}", ls=":", lw=0.6)
        for panel, name in zip(line, names, strict=True):
            panel.set(title=f"{name}, world {world}", xlabel="step")
            if name == "bt_loss":
                panel.set_yscale("log")
    panels[0][0].legend(frameon=False, fontsize=7)
    figure.savefig(path, dpi=110)


def _reset_period(runs: Sequence[Run]) -> int | None:
    reference = runs[0]["settings"].get("reference") if runs else None
    return reference["every"] if reference else None


def best_label(runs: Sequence[Run], labels: Sequence[str]) -> str:
    """The label with the highest mean gold at the end."""

    def mean(label: str) -> float:
        return statistics.fmean(r["final"]["true"] for r in ran(runs, label))

    return max(labels, key=mean)


def write_page(
    data: Path, page: Path, chosen: dict[str, Setting], parts: dict[str, list[Run]]
) -> None:
    """Everything that the page shows; parts that have not been run leave their place as it is."""
    bodies: dict[str, str] = {"tuning": tables.tuning_table(plans.candidates(), parts["tuning"])}
    name_of = {family: s.label for family, s in chosen.items()}
    central = ["none", *(name_of[n] for n in plans.MAIN if n in name_of)]
    if main := parts.get("main"):
        labels = labels_of(main)
        for world in ("A", "B"):
            bodies[f"main {world}"] = tables.outcome_table(main, labels, world)
            bodies[f"proxy {world}"] = tables.matched_table(main, central, world, "proxy", PROXIES)
            bodies[f"kl {world}"] = tables.matched_table(main, central, world, "kl_start", KLS)
        ours = name_of["gr+kl"]
        bodies["paired"] = tables.paired_table(main, ours, [x for x in labels if x != ours])
        reset = name_of["reset"]
        rivals = [s.label for s in plans.candidates()["kl"]] + [name_of["decay"]]
        bodies["resets"] = tables.paired_table(main, reset, rivals)
    if more := parts.get("more"):
        labels = labels_of(more)
        for world in ("A", "B"):
            bodies[f"more {world}"] = tables.outcome_table(more, labels, world)
        others = [x for x in labels if x != name_of["gr+kl"]]
        bodies["more paired"] = tables.paired_table(more, name_of["gr+kl"], others)
    again, first = dict(name_of), list(main or [])
    if (retune := parts.get("retune")) and more:
        tried = [label for labels in plans.RETUNED.values() for label in labels]
        both = [*more, *retune]
        for world in ("A", "B"):
            bodies[f"retune {world}"] = tables.outcome_table(both, tried, world)
        again |= {f: best_label(both, labels) for f, labels in plans.RETUNED.items()}
    if confirm := parts.get("confirm"):
        fresh = [r for r in confirm if (r["world_seed"], r["seed"]) in plans.FRESH]
        labels = labels_of(fresh)
        for world in ("A", "B"):
            bodies[f"confirm {world}"] = tables.outcome_table(fresh, labels, world)
        ours = again["gr+kl"]
        others = [x for x in labels if x != ours]
        bodies["confirm paired"] = tables.paired_table(fresh, ours, others)
        first += [r for r in confirm if r not in fresh]
        central.append(ours)
        rivals = [x for x in labels_of(first) if x != ours]
        bodies["first paired"] = tables.paired_table(first, ours, rivals)
    if main:
        curves = mean_curves(first)
        write_csv(data / "curves.csv", curves)
        plot_curves(data / "curves.png", curves, central)
    if control := parts.get("control"):
        labels = labels_of(control)
        for world in ("A", "B"):
            bodies[f"control {world}"] = tables.outcome_table(control, labels, world)
    if probe := parts.get("probe"):
        for world in ("A", "B"):
            bodies[f"along {world}"] = claim1.along_table(probe, world)
            bodies[f"matched {world}"] = claim1.matched_table(probe, world, PROXIES[:3])
        bodies["linear"] = claim1.linear_table(probe)
        write_csv(data / "probe_rows.csv", claim1.probe_csv(probe))
        plot_probe(data / "probe.png", probe)
    plain = [*(main or []), *(parts.get("control") or []), *(confirm or [])]
    if (scale := parts.get("scale")) and main:
        bases = ["none", again["gr"], again["gr+kl"], again["gr strength"]]
        seeds = {(r["world_seed"], r["seed"]) for r in scale}
        both = [*(r for r in plain if (r["world_seed"], r["seed"]) in seeds), *scale]
        rates = [(f"lr {r:g}", f", lr {r:g}") for r in (1.5e-4, 6e-4, 1.5e-3)]
        bodies["rates"] = tables.grid_table(both, bases, [rates[0], ("lr 3e-4", ""), *rates[1:]])
        scales = [("reward x 0.1", ", reward x 0.1"), ("x 1", ""), ("x 10", ", reward x 10")]
        bodies["scales"] = tables.grid_table(both, bases[1:], scales)
    if (reward := parts.get("reward")) and main:
        bases = ["none", f"kl {plans.BEST_IN_A}", again["gr"], again["gr+kl"]]
        pairs = [("300 pairs", ", 300 pairs"), ("1,000", ""), ("3,000", ", 3000 pairs")]
        seeds = {(r["world_seed"], r["seed"]) for r in reward}
        here = [r for r in plain if r["world"] == "A" and (r["world_seed"], r["seed"]) in seeds]
        bodies["pairs"] = tables.grid_table([*here, *reward], bases, pairs)
        bodies["pairs peak"] = tables.grid_table([*here, *reward], bases, pairs, "peak")
        ways = [(f"{m} {a:g}", f", reward model {m} {a:g}") for m, a in plans.REWARD_WAYS]
        bodies["ways"] = tables.grid_table([*here, *reward], bases[:2], [("BT", ""), *ways])
    if main:
        rules = alarms.choose_rules(parts["tuning"])
        results = alarms.replay([*main, *(more or []), *(confirm or [])], rules)
        write_csv(data / "alarm.csv", results)
        record = {name: asdict(rule) for name, rule in rules.items()}
        write_text(data / "alarm.json", json.dumps(record, indent=2))
        bodies["alarm"] = alarms.rates_table(results, rules)
        bodies["stop"] = alarms.stop_table(results)
    if page.exists():
        fill(page, bodies)
    else:
        write_csv(data / "tables.csv", [{"name": k, "table": v} for k, v in bodies.items()])
