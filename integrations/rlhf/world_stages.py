"""The preference worlds' stages before RL, and what their policies are evaluated on.

Their results lie in the user's cache, where the worlds themselves look for them: A and B share
them, and so do all runs.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cache import cache_root, fingerprint
from .files import write_rows
from .stages import Stage, Work

if TYPE_CHECKING:
    from ..evaluate import Bench
    from ..worlds.preference_task import PreferenceWorld
    from ..worlds.preferences import RewardSettings

PROMPTS = 30_000  # where the seeds of held-out prompts begin; pairs and RL have lower ones


def _labels(settings: RewardSettings) -> dict[str, Any]:
    """What decides the pairs and their labels, and not the reward model."""
    plain = dataclasses.asdict(settings)
    names = ("policy", "seed", "pairs", "sharpness", "version")
    return {name: plain[name] for name in names}


def world_stages(settings: RewardSettings) -> list[Stage]:
    """SFT policy, pairs, labels and reward model of a world.

    A run whose world is not there yet builds it alike without these files, from the same seeds.
    """
    from ..worlds import preferences

    def stage(name: str, kind: str, made: Any, build: Any, *after: Stage) -> Stage:
        folder = cache_root() / f"{kind}-{fingerprint(made)}"
        plain = made if isinstance(made, dict) else dataclasses.asdict(made)
        return Stage(name, folder, plain, build, after)

    def rows(work: Work, name: str) -> Any:
        work.say(name, 0, settings.pairs, "the policy writes")
        pairs = preferences.sample_pairs(settings)
        work.say(name, settings.pairs, settings.pairs, "the policy writes")
        return pairs

    def sample(work: Work) -> None:
        unordered = []
        for row in rows(work, "pairs"):
            texts = sorted((row["chosen"], row["rejected"]))  # which is better is not yet said
            unordered.append({"prompt": row["prompt"], "first": texts[0], "second": texts[1]})
        write_rows(work.folder / "pairs.jsonl", unordered)

    def label(work: Work) -> None:
        write_rows(work.folder / "pairs.jsonl", list(rows(work, "labels")))

    def policy(work: Work) -> None:
        preferences.build_policy(settings.policy, work.say)

    def reward(work: Work) -> None:
        from datasets import Dataset

        file = labels.folder / "pairs.jsonl"
        pairs = Dataset.from_list([json.loads(line) for line in file.read_text().splitlines()])
        preferences.build_reward_model(settings, work.say, pairs)

    labelled = _labels(settings)
    sampled = {k: v for k, v in labelled.items() if k != "sharpness"}
    sft = stage("sft", "preference-policy", settings.policy, policy)
    pairs = stage("pairs", "preference-pairs", sampled, sample, sft)
    labels = stage("labels", "preference-labels", labelled, label, pairs)
    return [sft, pairs, labels, stage("reward", "preference-reward", settings, reward, labels)]


def policy_folder(settings: RewardSettings) -> Path:
    """Where the SFT policy of a world lies."""
    return world_stages(settings)[0].folder


def unseen_prompts(settings: RewardSettings, size: int) -> list[str]:
    """`size` different prompts that RL does not draw; ValueError where there are not so many."""
    from ..worlds.preference_task import rl_prompts

    texts_of = settings.policy.language
    seen = set(rl_prompts(settings))
    drawn = texts_of.prompts(40 * (size + 100), PROMPTS + settings.seed)
    unseen = [prompt for prompt in dict.fromkeys(drawn) if prompt not in seen]
    if len(unseen) < size:
        raise ValueError(f"--eval_prompts {size}: this world has {len(unseen)} that RL leaves out")
    return unseen[:size]


def world_bench(world: PreferenceWorld, prompts: int, samples: int, seed: int) -> Bench:
    """Prompts of the world's language that RL does not draw, its gold reward and its proxy."""
    from transformers import AutoTokenizer

    from ..evaluate import Bench
    from ..worlds import topics as language
    from ..worlds.preference_task import KINDS
    from ..worlds.preferences import Proxy, build_policy, build_reward_model

    texts_of = world.reward.policy.language
    proxy = Proxy(build_reward_model(world.reward), texts_of, KINDS[world.kind])
    folder = build_policy(world.reward.policy)
    return Bench(
        tokenizer=AutoTokenizer.from_pretrained(folder, padding_side="left"),
        prompts=unseen_prompts(world.reward, prompts),
        tokens=language.LENGTH,
        to_text=language.to_text,
        proxy=proxy,
        gold=language.Gold(texts_of),
        unit=proxy.facts["sd"],
        samples=samples,
        batch=512,
        seed=seed,
    )
