"""Trainers of transformers and TRL in several processes."""

from pathlib import Path
from typing import Any

import accelerate.state
import torch
from accelerate.utils import DistributedType
from torch import Tensor

from flatopt import ReferenceReset, attach
from tests import trainer_cases
from tests.distributed.problem import whole
from tests.trainer_cases import RADIUS, STRENGTH, make_trainer

BATCH = 8  # of all processes together
FSDP: dict[str, Any] = {
    "fsdp": True,
    "fsdp_config": {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
    },
}
SETTINGS: dict[str, Any] = {"ratio": 1.0, "radius": RADIUS, "exclude": ("lm_head", "layers.0")}


def begin(folder: Path, *, fsdp: bool) -> None:
    """Load the model that lies in the folder, and let accelerate choose its engine anew."""
    trainer_cases.model_path = lambda *args, **kwargs: str(folder / "model")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    if fsdp:
        _let_accelerate_shard_on_cpu()


def _let_accelerate_shard_on_cpu() -> None:
    """accelerate hands FSDP settings on for accelerators only; FSDP2 itself runs on the CPU."""
    state = accelerate.state.AcceleratorState
    original = state.__init__

    def init(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = DistributedType.FSDP
            shared = accelerate.state.PartialState._shared_state
            shared["distributed_type"] = DistributedType.FSDP

    state.__init__ = init


def sft(folder: Path, world: int, accumulation: int = 1, **options: Any) -> Any:
    """A supervised trainer whose processes together see batches of `BATCH`."""
    return make_trainer(
        "sft",
        folder,
        accumulation=accumulation,
        per_device_train_batch_size=BATCH // world,
        dataloader_num_workers=0,
        **options,
    )


def grpo(folder: Path, world: int, accumulation: int, loss_type: str) -> Any:
    """A GRPO trainer whose completions hang on prompt, place and step alone, not on random numbers.

    Each process draws its own random numbers, so sampled completions cannot be the same in one
    process and in two.
    """
    trainer = make_trainer(
        "grpo",
        folder,
        steps=2,
        accumulation=accumulation,
        optim="sgd",
        per_device_train_batch_size=BATCH // world,
        loss_type=loss_type,
        num_iterations=1,
    )

    def generate(prompts: list[list[int]], *_: Any, **__: Any) -> tuple[list[list[int]], None]:
        completions = []
        for place, prompt in enumerate(prompts):
            seed = 1000 * sum(prompt) + 10 * trainer.state.global_step + place % 4
            generator = torch.Generator().manual_seed(seed)
            length = 2 + int(torch.randint(5, (), generator=generator))
            completions.append(torch.randint(4, 60, (length,), generator=generator).tolist())
        return completions, None

    trainer._generate_single_turn = generate
    return trainer


def finish(trainer: Any, **train: Any) -> dict[str, Any]:
    """Train, and what that left: weights by name, and the last numbers of GR."""
    trainer.train(**train)
    named = trainer.model.named_parameters()
    logged = [e for e in trainer.state.log_history if "gr/strength" in e]
    weights = {name: whole(p) for name, p in named}
    assert trainer.accelerator.num_processes * trainer.args.train_batch_size == BATCH
    return {"weights": weights, "strengths": [e["gr/strength"] for e in logged]}


GRPO = [(1, "dr_grpo"), (2, "dr_grpo"), (2, "grpo")]


def run_grpo(folder: Path, world: int, accumulation: int, loss_type: str) -> dict[str, Any]:
    trainer = grpo(folder, world, accumulation, loss_type)
    attach(trainer, STRENGTH, radius=RADIUS, exclude="lm_head")
    return finish(trainer)


def run_sft(folder: Path, world: int, accumulation: int, **options: Any) -> dict[str, Any]:
    trainer = sft(folder, world, accumulation, steps=4, optim="sgd", **options)
    plug = attach(trainer, **SETTINGS)
    result = finish(trainer)
    assert plug.optimizer is not None
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    return result | {"excluded": sorted(names[id(p)] for p in plug.optimizer.exclude)}


def run_resumed(folder: Path, world: int, **options: Any) -> list[dict[str, Tensor]]:
    """Four steps in one go, and the last two of them again from the checkpoint between."""
    weights = []
    for resume in (None, str(folder / "checkpoint-2")):
        saving = {"save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch"}
        trainer = sft(folder, world, steps=4, **saving, **options)
        attach(trainer, **SETTINGS)
        weights.append(finish(trainer, resume_from_checkpoint=resume)["weights"])
    return weights


def refusals(folder: Path, world: int) -> dict[str, str]:
    """What attach says to settings that FSDP cannot have."""
    texts = {}
    cases = {"fsdp1": (1, {}), "fsdp reference": (2, {"reference": ReferenceReset(every=2)})}
    for name, (version, settings) in cases.items():
        trainer = sft(folder, world, **FSDP)
        trainer.accelerator.state.fsdp_plugin.fsdp_version = version
        try:
            attach(trainer, **settings)
        except ValueError as error:
            texts[name] = str(error)
    return texts
