"""Every fault, many times, in flatopt and in pytorch_optimizer's SAM: what is broken afterwards.

    python -m benchmarks.faults                        # print the table
    python -m benchmarks.faults --results docs         # also write its data and docs/reliability.md

A step counts as failed where it leaves the weights perturbed, a number that is not finite, or an
optimizer whose next step is not that of one that never had the fault; a run, where its final
weights or optimizer state are not those of the undisturbed run. Moments, places, settings and
kinds of error are drawn at random from ``--seed``.
"""

import argparse
import copy
import json
import math
import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.fault_job import SETTINGS, Setting, make_job
from benchmarks.fault_runs import DRILLS, Drill
from benchmarks.fault_steps import (
    ERRORS,
    PLACES,
    Outcome,
    bad_gradient,
    bad_loss,
    interrupt,
    left_out,
    other_graph,
    out_of_memory,
    plain,
    raising,
    same,
    try_fault,
)

COUNTED = ("perturbed", "not_finite", "wrong_next")
BAD = (math.nan, math.inf, -math.inf)
BEGIN, END = "<!-- faults -->", "<!-- end -->"
Try = Callable[[random.Random, Setting], Outcome]


def _raises(rng: random.Random, setting: Setting) -> Outcome:
    call, place = rng.randint(1, setting.passes), rng.choice(PLACES)
    return try_fault(
        setting, raising(call, place, rng.choice(list(ERRORS))), seed=rng.randrange(99)
    )


def _spread(number_to_arm: Callable[..., Any], most: int) -> Try:
    """A fault at a random one of the moments that a step of this setting has."""

    def attempt(rng: random.Random, setting: Setting) -> Outcome:
        while True:
            more = (package("pytorch_optimizer"),) if setting.peer else ()
            arm = number_to_arm(rng.randrange(most), *more)
            outcome = try_fault(setting, arm, seed=rng.randrange(99))
            if outcome.sprung:
                return outcome

    return attempt


def package(name: str) -> str:
    """The folder of an installed package."""
    return str(Path(__import__(name).__file__ or "").parent)


def _loss(first: bool) -> Try:
    def attempt(rng: random.Random, setting: Setting) -> Outcome:
        call = 1 if first else rng.randint(2, setting.passes)
        arm = bad_loss(call, rng.choice(BAD))
        return try_fault(setting, arm, left_out if first else plain, seed=rng.randrange(99))

    return attempt


def _entries(first: bool) -> Try:
    def attempt(rng: random.Random, setting: Setting) -> Outcome:
        call = 1 if first else rng.randint(2, setting.passes)
        arm = bad_gradient(call, rng.choice(BAD), rng.choice([1, 5, None]))
        return try_fault(setting, arm, left_out if first else plain, seed=rng.randrange(99))

    return attempt


def _graph(new: bool) -> Try:
    def attempt(rng: random.Random, setting: Setting) -> Outcome:
        return other_graph(setting, rng.randint(2, setting.passes), new, seed=rng.randrange(99))

    return attempt


def _foreign(rng: random.Random, setting: Setting) -> Outcome:
    """A state that is another model's or another optimizer's, or that is none at all."""
    job, twin = make_job(setting, 0, 1), make_job(setting, 0, 1)
    other = copy.deepcopy(job.optimizer.state_dict())
    kind = rng.choice(["other sizes", "other count", "other kind", "a model's", "half"])
    if kind == "other sizes":
        state = {
            k: {n: torch.zeros(7, 7) if v.dim() else v for n, v in s.items() if torch.is_tensor(v)}
            for k, s in other["state"].items()
        }
        foreign: Any = other | {"state": state}
    elif kind == "other count":
        groups = [g | {"params": g["params"][:-1]} for g in other["param_groups"]]
        foreign = other | {"param_groups": groups}
    elif kind == "other kind":
        net = torch.nn.ParameterList(p.detach().clone() for p in job.params)
        sgd = torch.optim.SGD(net, lr=0.1, momentum=0.9)
        foreign = sgd.state_dict()
    else:
        foreign = job.net.state_dict() if kind == "a model's" else {"state": {}}
    error = None
    try:
        job.optimizer.load_state_dict(foreign)
    except (ValueError, KeyError, TypeError, AttributeError) as raised:
        error = type(raised).__name__
    wrong = error is None  # taken for its own
    try:
        for one in (job, twin):
            one.step(7)
        wrong |= not same([*job.params], [*twin.params])
    except (KeyError, RuntimeError, AttributeError):
        wrong = True
    return Outcome(False, False, wrong, error)


STEPS: dict[str, Try] = {
    "an error in the closure (exception, Ctrl-C, exit, out of memory), anywhere in it": _raises,
    "Ctrl-C inside the optimizer's own code": _spread(interrupt, 1400),
    "no memory for an allocation, the optimizer's own included": _spread(
        lambda n, *_: out_of_memory(n), 300
    ),
    "NaN or infinite loss in pass 1": _loss(first=True),
    "NaN or infinite loss in a later pass": _loss(first=False),
    "NaN or infinite entries in g1": _entries(first=True),
    "NaN or infinite entries in g2": _entries(first=False),
    "a parameter leaves the graph in pass 2": _graph(new=False),
    "a parameter enters the graph in pass 2": _graph(new=True),
    "a foreign or damaged optimizer state": _foreign,
}
RUNS = {
    "kill -9 of a training, resumed": ("kill", 20),
    "Ctrl-C in a training (`attach`), resumed": ("interrupt", 20),
    "disk full while a checkpoint is written, resumed": ("disk", 12),
    "a file of the checkpoint cut off": ("torn", 25),
}


def step_row(name: str, attempt: Try, tries: int, seed: int, peer: bool) -> dict[str, Any]:
    """One fault in flatopt and in the peer."""
    row: dict[str, Any] = {"fault": name, "tries": tries}
    for who in ("flatopt", "peer") if peer else ("flatopt",):
        rng = random.Random(f"{name} {seed}")
        outcomes = [
            attempt(rng, Setting(peer=True) if who == "peer" else rng.choice(SETTINGS))
            for _ in range(tries)
        ]
        if not all(o.sprung for o in outcomes):
            raise RuntimeError(f"{name}: the fault did not take place")
        row[who] = {c: sum(getattr(o, c) for o in outcomes) for c in COUNTED}
        row[who]["errors"] = dict(Counter(o.error or "none" for o in outcomes))
    return row


def run_row(name: str, drills: list[Drill]) -> dict[str, Any]:
    """One fault in whole runs."""
    wrong = sum(d.failed for d in drills)
    errors = Counter((d.error or "none").partition(":")[0][:60] for d in drills)
    counts = {"perturbed": 0, "not_finite": 0, "wrong_next": wrong, "errors": dict(errors)}
    return {"fault": name, "tries": len(drills), "flatopt": counts}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Counts of failures; a dash where the peer has nothing to try."""
    lines = [
        "| fault | tries | perturbed | not finite | wrong afterwards | the same in SAM |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [str(row["flatopt"][c]) for c in COUNTED]
        peer = " / ".join(str(row["peer"][c]) for c in COUNTED) if "peer" in row else "-"
        lines.append(f"| {row['fault']} | {row['tries']} | {' | '.join(cells)} | {peer} |")
    return "\n".join(lines)


def filled(page: str, text: str) -> str:
    """The page with the text between the markers."""
    head, rest = page.split(BEGIN)
    return f"{head}{BEGIN}\n{text}\n{END}{rest.split(END, 1)[1]}"


def main() -> None:
    """Try every fault and write the table of outcomes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--tries", type=int, default=400, help="of each fault in a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-runs", action="store_true", help="steps only: no processes")
    parser.add_argument("--results", type=Path, help="folder of reliability.md, which is filled")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)
    rows = []
    if not args.no_runs:
        from benchmarks.fault_rewards import reward_drills
        from benchmarks.fault_training import build_trainer, quiet

        quiet()
        with tempfile.TemporaryDirectory(prefix="flatopt-faults-") as folder:
            build_trainer(Path(folder) / "unused")
            for number, (name, (fault, tries)) in enumerate(RUNS.items()):
                place = Path(folder) / str(number)
                place.mkdir()
                rows.append(run_row(name, DRILLS[fault](place, tries, args.seed)))
                print(table(rows[-1:]).splitlines()[-1], flush=True)
        drills = reward_drills(24, args.seed)
        rows.append(run_row("a reward function that fails (8 ways), resumed", drills))
    peer = find_spec("pytorch_optimizer") is not None
    if not peer:
        print("pytorch_optimizer is not installed: its SAM is left out")
    steps = [step_row(n, attempt, args.tries, args.seed, peer) for n, attempt in STEPS.items()]
    rows = [*steps, *rows]
    print(table(rows))
    if args.results:
        data = args.results / "results" / "faults" / "faults.json"
        data.parent.mkdir(parents=True, exist_ok=True)
        found = {"torch": torch.__version__, "seed": args.seed, "rows": rows}
        data.write_text(json.dumps(found, indent=1) + "\n")
        page = args.results / "reliability.md"
        page.write_text(filled(page.read_text(encoding="utf-8"), table(rows)), encoding="utf-8")


if __name__ == "__main__":
    main()
