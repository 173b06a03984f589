"""A `Reference` in the place of TRL's reference model: no second model, resets on schedule."""

from collections.abc import Callable
from typing import Any

import torch

from flatopt.optimizer import GradRegOptimizer
from flatopt.reference import Reference


class ReferenceStandIn:
    """What TRL's trainer hands on where it would hand on its reference model.

    The log-probs asked of it are those of the live model, with the reference's weights swapped in.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.reference: Reference | None = None

    def take_over(self, optimizer: GradRegOptimizer | None) -> None:
        """Put the optimizer's new reference in the place of the trainer's model, which is freed."""
        assert optimizer is not None
        reference = optimizer.reference
        assert reference is not None
        if reference is self.reference:
            return
        trainer = self.trainer
        if self.reference is not None:  # train() is called a second time
            reference.load_state_dict(self.reference.state_dict())
        else:
            _copy_from(getattr(trainer, "ref_model", None), reference, trainer)
        reference.decide = self._agree
        self.reference = reference
        if reference.rule.target == "reference" or getattr(trainer, "beta", 0.0):
            trainer.ref_model = self

    def logps(self, compute: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """``compute`` on the live model, which holds the reference's weights meanwhile."""
        assert self.reference is not None
        model = self.trainer.model
        training = model.training
        model.eval()  # a reference has no dropout
        try:
            with self.reference.swapped():
                return compute(model, *args, **kwargs)
        finally:
            model.train(training)

    def log(
        self, log: Callable[..., None], logs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """The trainer's log, with the number of resets; then ``when`` is shown what was logged."""
        if self.reference is not None:
            logs["gr/reference_resets"] = self.reference.resets
        log(logs, *args, **kwargs)
        history = self.trainer.state.log_history  # TRL adds its metrics inside its own log
        if self.reference is not None and history:
            self.reference.metrics.update(history[-1])

    def _agree(self, due: bool) -> bool:
        """What the first process decided: processes must not part over their own metrics."""
        if self.trainer.accelerator.num_processes == 1:
            return due
        from accelerate.utils import broadcast_object_list

        decision = [due]
        broadcast_object_list(decision)
        return decision[0]


@torch.no_grad()
def _copy_from(model: Any, reference: Reference, trainer: Any) -> None:
    """Start from the trainer's own reference model, which a resumed policy has moved away from."""
    if model is None:  # PEFT: a new adapter is the base model
        return
    held = dict(trainer.accelerator.unwrap_model(model).named_parameters(remove_duplicate=False))
    named = trainer.model.named_parameters(remove_duplicate=False)
    names = {id(p): name for name, p in named if name in held}
    for kept, p in zip(reference.snapshot, reference.params(), strict=True):
        if id(p) in names:
            kept.copy_(held[names[id(p)]].to(kept.device))


def check_reference(trainer: Any, rule: Any, *, policy: bool) -> None:
    """Refuse a reference that would act on nothing, or that has another owner.

    Raises:
        ValueError: no KL term for it, or TRL's own ``sync_ref_model``.
    """
    if rule is None:
        return
    args = trainer.args
    if getattr(args, "sync_ref_model", False):
        raise ValueError(
            "sync_ref_model=True and reference=ReferenceReset(...) would both move the reference "
            "model; set sync_ref_model=False"
        )
    if getattr(rule, "target", None) == "policy":
        return
    if not policy:
        raise ValueError(
            f"{type(trainer).__name__} has no KL term that a reference could act through; "
            "reference=ReferenceReset(...) is for GRPO and RLOO trainers"
        )
    if not getattr(args, "beta", 0.0):
        raise ValueError(
            "the KL term is off (beta=0), so a reference would change nothing; set beta > 0, such "
            "as 0.05, in the trainer's config"
        )
