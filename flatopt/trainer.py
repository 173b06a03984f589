"""attach(trainer, ...): GR in any transformers or TRL trainer, one line."""

import copy
import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from flatopt import trainer_parts as parts
from flatopt.guards import exclusions, name_matches
from flatopt.old_logps import MicroBatch, fix_old_logps, keep_ratio, sequence_ratio
from flatopt.optimizer import GradRegOptimizer
from flatopt.perturb import RNGState
from flatopt.schedule import Strength
from flatopt.stats import Stats
from flatopt.trainer_parts import check_parts
from flatopt.trainer_reference import ReferenceStandIn, check_reference
from flatopt.trainer_vllm import check_sampler

SAMPLES = ("importance", "sequence", "score")
# the method of TRL's policy trainers through which all log-probs pass
LOGPS = "_get_per_token_logps_and_entropies"
_SCALARS = (bool, int, float, str, type(None))


def attach(
    trainer: Any,
    strength: Strength | None = None,
    *,
    ratio: float | None = None,
    samples: str = "importance",
    exclude: str | Iterable[str] = (),
    **options: Any,
) -> "TrainerPlug":
    """Apply GR in a transformers Trainer, or any TRL trainer built on it. Call before train().

    At the end of each accumulation window the micro-batches are replayed at theta' through the
    trainer's own ``training_step`` (its loss, its scaling, the same random numbers), before the
    trainer clips the gradient. A replay leaves no trace in the trainer's metrics, counters or
    buffers; a module's own running statistics (BatchNorm) see each replay.

    Args:
        trainer: SFT, DPO, Reward, RLOO, GRPO or any other Trainer; not yet trained.
        strength, ratio: as in `GradRegOptimizer`.
        options: more of its settings: radius, eps, difference, max_ratio, warmup, every,
            reference, memory, offload. A ``reference=ReferenceReset(...)`` takes the place of TRL's
            reference model in the KL term of GRPO and RLOO (``beta`` > 0), also with PEFT. For
            resets alone: ``attach(trainer, 0.0, reference=...)``.
        samples: for policy-gradient trainers, whose rollouts were drawn at theta, what g2 is.
            "importance" (default): the old log-probs stay those of theta, so g2 carries the ratio
            pi_theta' / pi_theta, and the penalty is that of the surrogate loss on fixed samples.
            "sequence": every token carries the ratio of its whole completion, so that H g1 is the
            Hessian product of the expected reward itself (GRPO's ratio of single tokens leaves out
            the products between tokens; RLOO's is of the completion in any case). Under bf16 that
            ratio sums the rounding noise of all its tokens' log-probs: prefer float32.
            "score": the ratio stays what it was at theta (1 on policy; the paper's code without
            vLLM): the score-function term of the Hessian is left out. Other trainers ignore it.
        fraction (in options): take the penalty on the first ``ceil(fraction * n)`` of the n
            micro-batches of a step (gradient accumulation), along the gradient of all of them.
        batch (in options): "halves" takes the gradient from one half of the micro-batches and the
            curvature from the other, both ways: without the batch's own noise, as long as no prompt
            has completions in both halves.
        exclude: names of parameters or modules, as in `GradRegOptimizer`: whole dotted parts,
            found anywhere in a name, such as "lm_head", "layers.0" or "mlp.up_proj.weight".

    Returns:
        A `TrainerPlug`; its ``optimizer`` is the `GradRegOptimizer` once training has begun. The
        trainer's own logs get ``gr/grad_norm``, ``gr/penalty_ratio``, ``gr/strength`` and more.

    Raises:
        ValueError: fp16, DeepSpeed, FSDP1, LOMO or layerwise optimizers (not supported here),
            difference="exact" or a mask of tokens that moves with the parameters for a policy
            trainer, a reference without a KL term, settings that contradict each other or lie
            outside their range, unknown names, GR attached already.
        TypeError: not a Trainer, unknown settings.

    Warns:
        UserWarning: use_vllm in GRPO with its weights for vLLM's samples (`trainer_vllm`).

    Example:
        >>> trainer = GRPOTrainer(model, rewards, args=config, train_dataset=data)  # doctest: +SKIP
        >>> attach(trainer, ratio=1.0)  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
    """
    _check_trainer(trainer, samples, options.get("reference"))
    check_reference(trainer, options.get("reference"), policy=hasattr(trainer, LOGPS))
    if strength != 0.0:
        check_sampler(trainer, samples)
    if options.get("difference") == "exact" and hasattr(trainer, LOGPS):
        raise ValueError(
            'difference="exact" cannot be had from a policy trainer: its log-prob kernels have no '
            "second derivative, and a ratio with detached old log-probs would be differentiated "
            'token by token, whatever `samples` says. Use difference="central" (or "forward")'
        )
    settings = {"strength": strength, "ratio": ratio, **options}
    check_parts(trainer, settings)
    return TrainerPlug(trainer, settings, samples, exclusions(exclude, tensors=False))


class TrainerPlug:
    """The connection between a trainer and its `GradRegOptimizer`; made by `attach`.

    Attributes:
        optimizer: the `GradRegOptimizer`, or None before training has begun.
        stats: the last step's `Stats`.
    """

    def __init__(
        self, trainer: Any, settings: dict[str, Any], samples: str, exclude: tuple[str, ...]
    ) -> None:
        self.trainer, self.settings = trainer, settings
        self.samples, self.exclude = samples, exclude
        self.optimizer: GradRegOptimizer | None = None
        self._window: list[MicroBatch] = []
        self._recording: MicroBatch | None = None
        self._replaying: MicroBatch | None = None
        self._log_sums: dict[str, tuple[Any, int]] = {}  # sum and count since the last log
        rule = settings.get("reference")
        self._stand_in = None if rule is None else ReferenceStandIn(trainer)
        _probe_settings(settings)
        self._check_names()
        if trainer.optimizer is not None:
            trainer.optimizer = self._with_gr(trainer.optimizer)

        self._training_step: Callable[..., Tensor] = trainer.training_step
        self._prepare_inputs: Callable[..., Any] = trainer._prepare_inputs
        self._create_optimizer: Callable[..., Any] = trainer.create_optimizer
        self._log: Callable[..., None] = trainer.log
        trainer.training_step = self.training_step
        trainer._prepare_inputs = self.prepare_inputs
        trainer.create_optimizer = self.create_optimizer
        trainer.log = self.log
        self._logps: Callable[..., Any] | None = None
        if hasattr(trainer, LOGPS):
            self._logps = trainer._get_per_token_logps_and_entropies
            trainer._get_per_token_logps_and_entropies = self.logps

    @property
    def stats(self) -> Stats:
        """The last step's numbers."""
        return self.optimizer.stats if self.optimizer is not None else Stats()

    # ---- the trainer's methods, with GR ---------------------------------------------------------

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """The trainer's own optimizer, wrapped. The trainer calls it whenever training begins."""
        self._window.clear()  # of a training that was interrupted
        self._log_sums.clear()
        created = self._create_optimizer(*args, **kwargs)
        optimizer = self._with_gr(self.trainer.optimizer if created is None else created)
        self.trainer.optimizer = optimizer
        if self._stand_in is not None:
            self._stand_in.take_over(self.optimizer)
        return optimizer

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """The trainer's step; after the last micro-batch of a window, the replays at theta'."""
        if self.optimizer is None:
            return self._training_step(*args, **kwargs)
        self._follow_sharding()  # before `passes`, which looks at the parameters
        if not self.optimizer.passes:
            return self._training_step(*args, **kwargs)
        batch = MicroBatch(args, kwargs, _scalars(self.trainer))
        self._recording = batch
        try:
            loss = self._training_step(*args, **kwargs)
        finally:
            self._recording = None
        self._window.append(batch)
        count = parts.first_part(self.optimizer, self.trainer)
        if len(self._window) == count:
            parts.mark(self.optimizer, self.trainer, self._window, count)
        if self.trainer.accelerator.sync_gradients:
            window, self._window = self._window, []
            with parts.as_whole(self.optimizer, count == 0):
                self._replay(window, count)
            # tensors are summed on their device, without waiting for it
            skipped = float(self.stats.skipped is not None)
            for name, value in (self.stats.known() | {"skipped": skipped}).items():
                total, count = self._log_sums.get(name, (0.0, 0))
                self._log_sums[name] = (total + value, count + 1)
        return loss

    def prepare_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """The trainer's prepared inputs; in a replay, those of the first pass (no new rollouts)."""
        if self._replaying is not None:
            batch = self._replaying
            assert batch.rng is not None
            batch.rng.restore()
            return batch.inputs
        inputs = self._prepare_inputs(*args, **kwargs)
        if self._recording is not None:
            # A shallow copy: compute_loss may pop from it
            self._recording.inputs = copy.copy(inputs)
            self._recording.rng = RNGState.capture(self._devices())
        return inputs

    def logps(self, *args: Any, **kwargs: Any) -> Any:
        """The trainer's per-token log-probs; the first pass's are kept as the old ones."""
        assert self._logps is not None
        if self._stand_in is not None and args and args[0] is self._stand_in:
            return self._stand_in.logps(self._logps, *args[1:], **kwargs)
        result = self._logps(*args, **kwargs)
        first = self._recording
        if first is not None and first.rng is not None and first.logps is None:
            first.logps = result[0].detach()
        elif self._replaying is not None and self.samples == "score":
            keep_ratio(self._replaying, result[0].detach())
        elif self._replaying is not None and self.samples == "sequence":
            sequence_ratio(self._replaying, result[0].detach())
        return result

    def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """The trainer's log, with the means of the steps since the last one under ``gr/``."""
        if "loss" in logs and self._log_sums:
            for name, (total, count) in self._log_sums.items():
                logs[f"gr/{name}"] = float(total) / count
            self._log_sums.clear()
        if self._stand_in is None:
            self._log(logs, *args, **kwargs)
        else:
            self._stand_in.log(self._log, logs, *args, **kwargs)

    # ---- replay ---------------------------------------------------------------------------------

    def _replay(self, window: list[MicroBatch], part: int) -> None:
        assert self.optimizer is not None
        if self.samples == "importance":
            for batch in window:
                fix_old_logps(batch)
        attributes = self.trainer.__dict__
        before = dict(attributes)
        rng = RNGState.capture(self._devices())
        # TRL's trainers append to _metrics in place; a stand-in takes what the replay appends
        if "_metrics" in attributes:
            attributes["_metrics"] = _last_entries(attributes["_metrics"])
        try:
            for number in range(self.optimizer.passes):
                batches = parts.replayed(self.optimizer, window, part, number)
                with self.optimizer.perturbed():
                    for batch in batches:
                        self._replay_one(batch, last=batch is batches[-1])
        finally:
            self._replaying = None
            for name in set(attributes) - set(before):
                del attributes[name]
            attributes.update(before)
            rng.restore()

    def _replay_one(self, batch: MicroBatch, last: bool) -> None:
        self.trainer.__dict__.update(batch.attributes)
        model = batch.arguments[0] if batch.arguments else batch.keywords["model"]
        accelerator = self.trainer.accelerator
        # As in the Trainer's own loop: DDP reduces gradients at the last micro-batch only
        context = nullcontext() if last else accelerator.no_sync(model=model)
        inputs = batch.inputs
        batch.inputs = copy.copy(inputs)
        self._replaying = batch
        try:
            with context:
                self._training_step(*batch.arguments, **batch.keywords)
        finally:
            batch.inputs = inputs

    # ---- set-up ---------------------------------------------------------------------------------

    def _with_gr(self, optimizer: Any) -> Any:
        """GR around the optimizer, but inside accelerate's wrapper, left by an earlier train()."""
        if optimizer is self.optimizer:
            return optimizer
        if type(optimizer).__module__.startswith("accelerate."):
            optimizer.optimizer = self._with_gr(optimizer.optimizer)
            return optimizer
        return self._wrap(optimizer)

    def _wrap(self, base: Any) -> GradRegOptimizer:
        self.optimizer = GradRegOptimizer(base, exclude=self._excluded(base), **self.settings)
        if getattr(self.trainer.args, "bf16", False):
            self.optimizer.precision = "16 bits"  # autocast
        return self.optimizer

    def _excluded(self, optimizer: Any) -> tuple[Tensor, ...]:
        """The excluded parameters among those that an optimizer steps."""
        named = _named(self.trainer.model).items()
        matched = {id(p) for item in self.exclude for n, p in named if name_matches(n, item)}
        stepped = (p for group in optimizer.param_groups for p in group["params"])
        return tuple(p for p in stepped if id(p) in matched)

    def _follow_sharding(self) -> None:
        """Find the excluded parameters again where FSDP2 has put shards in their place."""
        assert self.optimizer is not None
        stepped = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        if any(id(p) not in stepped for p in self.optimizer.exclude):
            self.optimizer.exclude = self._excluded(self.optimizer)

    def _check_names(self) -> None:
        names = _named(self.trainer.model)
        for item in self.exclude:
            if not any(name_matches(n, item) for n in names):
                raise ValueError(
                    f"exclude: no parameter of the model is named {item!r}; "
                    f"names begin with {list(names)[:3]}"
                )

    def _devices(self) -> list[Any]:
        devices = [p.device for p in self.trainer.model.parameters()]
        gpus = getattr(self.trainer.args, "n_gpu", 0)  # of DataParallel, which copies the model
        if gpus > 1:
            devices += [torch.device("cuda", number) for number in range(gpus)]
        return devices


def _named(model: Any) -> dict[str, Tensor]:
    return dict(model.named_parameters(remove_duplicate=False))


def _scalars(trainer: Any) -> dict[str, Any]:
    """The trainer's plain attributes, such as TRL's step counter and entropy coefficient."""
    return {k: v for k, v in trainer.__dict__.items() if isinstance(v, _SCALARS)}


def _last_entries(metrics: Any) -> Any:
    """The same dicts of lists with the last entry of each: no copy of what a long run logged."""
    if isinstance(metrics, list):
        return metrics[-1:]
    if not isinstance(metrics, dict):
        return copy.deepcopy(metrics)
    kept = copy.copy(metrics)  # a defaultdict stays one
    for name, value in metrics.items():
        kept[name] = _last_entries(value)
    return kept


def _probe_settings(settings: dict[str, Any]) -> None:
    """Let GradRegOptimizer refuse bad settings now, not when training begins."""
    probe = torch.nn.Parameter(torch.zeros(1))
    GradRegOptimizer(torch.optim.SGD([probe], lr=0.1), **settings)


def _check_fsdp(trainer: Any, reference: Any) -> None:
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if getattr(plugin, "fsdp_version", 1) != 2:
        raise ValueError(
            "attach does not support FSDP1: its flat parameters mix excluded weights with others "
            'and have no names. Use FSDP2, fsdp_config={"version": 2}, or DDP (torchrun)'
        )
    if reference is not None:
        raise ValueError(
            "reference=ReferenceReset(...) is not supported under FSDP: it is made before the "
            "weights are sharded. Use DDP (torchrun), or the trainer's own reference model"
        )


def _check_trainer(trainer: Any, samples: str, reference: Any) -> None:
    if samples not in SAMPLES:
        raise ValueError(f"samples must be one of {', '.join(SAMPLES)}; got {samples!r}")
    missing = [
        name
        for name in ("training_step", "_prepare_inputs", "create_optimizer", "accelerator", "args")
        if not hasattr(trainer, name)
    ]
    if missing:
        raise TypeError(
            f"attach needs a transformers Trainer; {type(trainer).__name__} has no {missing}. "
            "For your own loop, wrap the optimizer: GradRegOptimizer(optimizer)"
        )
    if isinstance(getattr(trainer.training_step, "__self__", None), TrainerPlug):
        raise ValueError("this trainer already has GR attached")
    args = trainer.args
    if getattr(args, "fp16", False):
        raise ValueError(
            "attach does not support fp16: its loss scale changes between steps. Use bf16=True, or "
            "float32"
        )
    if getattr(trainer, "is_deepspeed_enabled", False) or getattr(args, "deepspeed", None):
        raise ValueError(
            "attach does not support DeepSpeed: its engine reduces each micro-batch into buffers "
            "of its own, to which a replay would add. Use DDP or FSDP2 (torchrun) instead"
        )
    if getattr(trainer, "is_fsdp_enabled", False):
        _check_fsdp(trainer, reference)
    optim = getattr(args, "optim", "")
    optim = getattr(optim, "value", optim)  # an enum
    if isinstance(optim, str) and ("lomo" in optim or "layerwise" in optim):
        raise ValueError(
            f"optim={optim!r} updates each weight during the backward pass, before the gradient is "
            'whole; use an optimizer that steps after it, such as optim="adamw_torch"'
        )
    epsilon = getattr(args, "epsilon", None)
    if isinstance(epsilon, float) and epsilon < 1e-2:
        warnings.warn(
            f"epsilon={epsilon:g} clips the ratio of many tokens at theta', which then drop out of "
            "the penalty; the usual 0.2 leaves it whole",
            stacklevel=3,
        )
