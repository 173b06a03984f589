"""Baselines, tables and plot of docs/results/reward-models.md, for integrations.results.rewards."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cache import write_csv
from .page import fill, markdown, spread

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor

MEASURES = ("accuracy", "bt_loss", "calibration_error")
TESTED = ("held_out", "shift")
NAMES = {"bt": "BT", "grm": "GRM", "gr": "BT + GR"}

# ---- baselines ----------------------------------------------------------------------------------


def length_margins(pairs: Dataset) -> Tensor:
    """By how many characters the chosen solution is longer, (pairs,)."""
    import torch

    both = zip(pairs["chosen"], pairs["rejected"], strict=True)
    return torch.tensor([float(len(a) - len(b)) for a, b in both])


def author_margins(pairs: Dataset, train: Dataset) -> Tensor:
    """1 where the chosen solution's kind of author is right more often on the training pairs, -1
    where the rejected one's is, 0 where it is undecided, (pairs,).

    The kind is what follows the model's size: "verification" in "6b_verification".
    """
    import torch

    def kinds(row: Any) -> tuple[str, str]:
        names = row["chosen_source"], row["rejected_source"]
        return names[0].partition("_")[2], names[1].partition("_")[2]

    right: dict[str, int] = {}
    for row in train:
        won, lost = kinds(row)
        right[won] = right.get(won, 0) + 1
        right[lost] = right.get(lost, 0) - 1
    found = [[right.get(kind, 0) for kind in kinds(row)] for row in pairs]
    return torch.tensor([float((a > b) - (a < b)) for a, b in found])


def likelihood(lm: Path) -> Callable[[str, str], float]:
    """The function (prompt, solution) -> mean log-probability of the solution's tokens, in nats."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(lm)
    model = AutoModelForCausalLM.from_pretrained(lm).eval()

    @functools.cache  # the seeds share most of their pairs
    def score(prompt: str, solution: str) -> float:
        ids = tokenizer(prompt + solution + tokenizer.eos_token)["input_ids"]
        ids = torch.tensor(ids[: model.config.max_position_embeddings])
        begin = len(tokenizer(prompt)["input_ids"])
        with torch.inference_mode():
            logps = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
        return logps.gather(1, ids[1:, None])[begin - 1 :].mean().item()

    return score


def likelihood_margins(pairs: Dataset, score: Callable[[str, str], float]) -> Tensor:
    """Difference in mean log-probability per token (nats), chosen minus rejected, (pairs,)."""
    import torch

    rows: list[Any] = list(pairs)
    both = [(score(r["prompt"], r["chosen"]), score(r["prompt"], r["rejected"])) for r in rows]
    return torch.tensor([chosen - rejected for chosen, rejected in both])


def baselines(
    parts: Mapping[str, Dataset], score: Callable[[str, str], float], seed: int
) -> list[dict[str, Any]]:
    """Pair accuracy of scorers that were not trained on the texts, a row for each and part.

    "longer wins" is fixed; "length" is longer or shorter, as it is more often on the training
    pairs; "author" knows who wrote a solution, which no reward model is told; "likelihood" is
    `score`, of the language model that the reward models start from.
    """
    from ..reward_models.metrics import pair_accuracy

    sign = 1 if pair_accuracy(length_margins(parts["train"])) >= 0.5 else -1
    rows = []
    for part in ("train", *TESTED):
        pairs = parts[part]
        longer = length_margins(pairs)
        scorers = {
            "longer wins": longer,
            "length": sign * longer,
            "author": author_margins(pairs, parts["train"]),
            "likelihood": likelihood_margins(pairs, score),
        }
        for name, margins in scorers.items():
            row = {"baseline": name, "seed": seed, "part": part, "pairs": len(margins)}
            rows.append(row | {"accuracy": pair_accuracy(margins)})
    return rows


def group_accuracies(pairs: Dataset, train: Dataset, margins: Tensor) -> dict[str, float | None]:
    """Pair accuracy by what a cue would say, None where there is no such pair.

    In "longer" pairs the right solution is the longer one, in "shorter" pairs the shorter one; in
    "usual" pairs it is by the kind of author that is right more often, in "unusual" by the other.
    """
    from ..reward_models.metrics import pair_accuracy

    length, author = length_margins(pairs), author_margins(pairs, train)
    groups = {
        "longer": length > 0,
        "shorter": length < 0,
        "usual": author > 0,
        "unusual": author < 0,
    }
    return {k: pair_accuracy(margins[of]) if of.any() else None for k, of in groups.items()}


# ---- tables -------------------------------------------------------------------------------------


def flat(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each run and part; one row for a failed run."""
    rows = []
    for run in runs:
        head = {name: run.get(name) for name in ("label", "method", "share", "seed", "trained_on")}
        for part, found in run.get("parts", {}).items():
            numbers = {name: found[name] for name in ("pairs", "left_out", *MEASURES)}
            numbers |= found.get("groups", {}) | {"seconds": run["seconds"]}
            rows.append(head | {"part": part} | numbers)
        if "failed" in run:
            rows.append(head | {"failed": run["failed"]})
    return rows


def write_rounded(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """The rows as a table, numbers with five digits after the point."""
    short = [
        {k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()} for row in rows
    ]
    write_csv(path, short)


def _pick(rows: Sequence[dict[str, Any]], **want: Any) -> list[dict[str, Any]]:
    return [r for r in rows if all(r.get(k) == v for k, v in want.items())]


def results_table(
    rows: Sequence[dict[str, Any]], simple: Sequence[dict[str, Any]], part: str
) -> str:
    """One line per share of the pairs and method, then the baselines."""
    body = []
    for share, label in dict.fromkeys((r["share"], r["label"]) for r in rows):
        mine = _pick(rows, share=share, label=label, part=part)
        failed = sum("failed" in r for r in _pick(rows, share=share, label=label))
        cells = [label + (f" ({failed} failed)" if failed else "")]
        cells += [spread([r["trained_on"] for r in mine], 0), str(len(mine))]
        body.append(cells + [spread([r[m] for r in mine], 3) for m in MEASURES])
    for name in dict.fromkeys(r["baseline"] for r in simple):
        mine = _pick(simple, baseline=name, part=part)
        body.append([name, "-", str(len(mine)), spread([r["accuracy"] for r in mine], 3), "-", "-"])
    head = ["method", "training pairs", "seeds", "pair accuracy", "BT loss", "calibration error"]
    return markdown(head, body)


def groups_table(rows: Sequence[dict[str, Any]]) -> str:
    """Accuracy by what a cue would say."""
    names = ("longer", "shorter", "usual", "unusual")
    body = []
    for part in TESTED:
        for share, label in dict.fromkeys((r["share"], r["label"]) for r in rows):
            mine = _pick(rows, share=share, label=label, part=part)
            cells = [part, f"{share:g}", label]
            body.append(cells + [spread([r.get(n) for r in mine], 2) for n in names])
    head = ["part", "share", "method", "the longer is right", "the shorter is right"]
    return markdown([*head, "the usual author is right", "the other author is right"], body)


def differences(
    rows: Sequence[dict[str, Any]], method: str, share: float, part: str, measure: str
) -> list[float]:
    """`method` minus BT, one value for each seed that both have."""

    def values(name: str) -> dict[int, float]:
        mine = _pick(rows, method=name, share=share, part=part)
        return {r["seed"]: r[measure] for r in mine}

    mine, bt = values(method), values("bt")
    return [mine[seed] - bt[seed] for seed in sorted(mine.keys() & bt.keys())]


def paired_table(rows: Sequence[dict[str, Any]]) -> str:
    """Accuracy and loss of GRM and GR minus BT's, seed by seed."""
    body = []
    for share in dict.fromkeys(r["share"] for r in rows):
        for method in ("grm", "gr"):
            for part in TESTED:
                found = [differences(rows, method, share, part, m) for m in MEASURES[:2]]
                each = " ".join(f"{x:+.3f}" for x in found[0])
                cells = [f"{share:g}", f"{NAMES[method]} - BT", part, each]
                body.append(cells + [_mean(x) for x in found])
    head = ["share", "difference", "part", "accuracy, seed by seed", "accuracy", "BT loss"]
    return markdown(head, body)


def _mean(values: Sequence[float]) -> str:
    if not values:
        return "-"
    spread = f" +- {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):+.3f}{spread}"


def tuning_table(rows: Sequence[dict[str, Any]], chosen: Sequence[str]) -> str:
    """Every candidate on the validation questions; the chosen ones are marked."""
    body = []
    for label in dict.fromkeys(r["label"] for r in rows):
        mine = _pick(rows, label=label, part="validation")
        name = f"**{label}**" if label in chosen else label
        body.append([name, *(spread([r[m] for r in mine], 3) for m in MEASURES[:2])])
    return markdown(["candidate", "validation accuracy", "validation BT loss"], body)


def plot(path: Path, rows: Sequence[dict[str, Any]], simple: Sequence[dict[str, Any]]) -> None:
    """Pair accuracy of every run on both tested parts; lines are baselines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    shares = sorted({r["share"] for r in rows})
    for panel, part in zip(figure.subplots(1, 2, sharey=True), TESTED, strict=True):
        for i, method in enumerate(NAMES):
            for j, share in enumerate(shares):
                found = [r["accuracy"] for r in _pick(rows, method=method, share=share, part=part)]
                if not found:
                    continue
                x = j + 0.2 * (i - 1)
                label = NAMES[method] if j == 0 else None
                panel.plot([x] * len(found), found, f"C{i}o", ms=4, alpha=0.5, label=label)
                panel.plot([x - 0.07, x + 0.07], [statistics.fmean(found)] * 2, f"C{i}", lw=2.5)
        styles = {"length": ":", "likelihood": "--", "author": "-."}
        for name, style in styles.items():
            found = [r["accuracy"] for r in _pick(simple, baseline=name, part=part)]
            panel.axhline(statistics.fmean(found), color="0.4", ls=style, lw=1, label=name)
        panel.axhline(0.5, color="0.8", lw=0.8)
        panel.set_xticks(range(len(shares)), [f"{share:.0%} of the pairs" for share in shares])
        panel.set_title({"held_out": "held out: 6B model", "shift": "shift: 175B model"}[part])
    figure.axes[0].set_ylabel("pair accuracy")
    figure.axes[1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def write_page(
    pages: Path,
    tuning: Sequence[dict[str, Any]],
    runs: Sequence[dict[str, Any]],
    simple: Sequence[dict[str, Any]],
) -> dict[str, str]:
    """Data and plot into `pages`, the tables into the page `pages`.md if there is one."""
    write_rounded(pages / "tuning.csv", tuning)
    write_rounded(pages / "runs.csv", runs)
    write_rounded(pages / "baselines.csv", simple)
    tables = {part: results_table(runs, simple, part) for part in ("train", *TESTED)}
    tables["paired"] = paired_table(runs)
    tables["groups"] = groups_table(runs)
    tables["tuning"] = tuning_table(tuning, [r["label"] for r in runs])
    plot(pages / "accuracy.png", runs, simple)
    page = pages.with_suffix(".md")
    if page.exists():
        fill(page, tables)
    return tables
