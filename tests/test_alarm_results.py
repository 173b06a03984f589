"""The alarm's evaluation: chosen on tuning runs only, and its tables counted by hand."""

import json

from integrations.results import rlhf_alarm as results
from integrations.watch.alarm import AlarmRule


def make_run(folder, golds, world="A", method="kl", kl=None):
    folder.mkdir(parents=True)
    rows = [
        {
            "step": 4 * (i + 1),
            "true": gold,
            "proxy": 0.1 * i,
            "kl_start": 0.0 if kl is None else kl[i],
            "spread": 1.0,
            "grad_norm": 1.0,
            "entropy": 2.0,
            "reward_accuracy": 0.7,
        }
        for i, gold in enumerate(golds)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return {
        "label": method, "method": method, "world": world, "world_seed": 0, "seed": 0,
        "folder": str(folder),
    }  # fmt: skip


HONEST = [0.1 * i for i in range(20)]
HACKED = [0.1 * i for i in range(10)] + [0.9 - 0.2 * i for i in range(10)]


def test_rules_are_chosen_by_regret_on_the_runs_given(tmp_path):
    late = [0.0] * 12 + [20.0] * 8
    runs = [make_run(tmp_path / "a", HONEST), make_run(tmp_path / "b", HACKED, kl=late)]
    runs.append(make_run(tmp_path / "c", [-9.0] * 20, method="true"))  # a control: not counted
    rules = results.choose_rules(runs)
    assert set(rules) == set(results.GRIDS)
    assert rules["nothing known"].kl_limit is not None  # the one signal that tells the two apart
    found = results.replay(runs, rules)
    regret = {name: sum(r["regret"] for r in found if r["rule"] == name) for name in rules}
    # whoever knows more can do what the others do
    assert regret["gold"] <= regret["nothing known"]
    assert regret["labels"] <= regret["nothing known"]
    assert {r["label"] for r in found} == {"kl"}
    assert len(found) == 2 * len(rules)


def test_tables(tmp_path):
    runs = [make_run(tmp_path / "a", HONEST), make_run(tmp_path / "b", HACKED)]
    rules = {"gold": AlarmRule(gold_fall=0.1)}
    found = results.replay(runs, rules)
    lines = results.rates_table(found, rules).splitlines()
    assert "| gold_fall=0.1 | A | 2 | 0/1 | 0/1 |" in lines[2]
    assert len(lines) == 3  # nothing ran in world B
    stopped = results.stop_table(found).splitlines()[-1]
    assert stopped.startswith("| kl | A |")


def test_rule_text_names_only_what_is_set():
    assert results.rule_text(AlarmRule(kl_limit=6.0, patience=3)) == "kl_limit=6.0, patience=3"
    assert results.rule_text(AlarmRule(gold_fall=0.1)) == "gold_fall=0.1"
