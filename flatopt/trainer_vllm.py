"""What GR penalises where TRL samples with vLLM, or drops tokens by the present parameters."""

import warnings
from typing import Any


def check_sampler(trainer: Any, samples: str) -> None:
    """Warn where the loss has weights for vLLM's samples; refuse a mask that moves with theta'.

    Under ``use_vllm`` GRPO corrects for vLLM's slightly different policy: the loss of each
    completion (or token) is multiplied by ``w = pi_theta / pi_vLLM``, a constant of both passes,
    set to 0 (or cut) beyond ``vllm_importance_sampling_clip_max``. So GR penalises the gradient of
    the weighted loss. The ratio ``pi_theta' / pi_theta`` is as without vLLM: that of ``samples``.
    RLOO has no such weights.

    ``off_policy_mask_threshold`` drops completions by their log-probs at the present parameters:
    one that is dropped at theta' and not at theta would enter ``(g2 - g1) / step`` with its whole
    gradient over the step, which is no derivative.

    ``top_entropy_quantile`` below 1 keeps the tokens of high entropy, at the present parameters:
    the same, token by token.

    Raises:
        ValueError: off_policy_mask_threshold or top_entropy_quantile below 1, where the two passes
            may drop different completions or tokens.
    """
    args = trainer.args
    if getattr(args, "top_entropy_quantile", 1.0) < 1.0:
        raise ValueError(
            "top_entropy_quantile keeps tokens by their entropy at theta', so the two passes of GR "
            "may be of different losses: leave it at 1.0"
        )
    sampled = bool(getattr(args, "use_vllm", False))
    masks = getattr(args, "off_policy_mask_threshold", None) is not None
    # without vLLM samples="score" keeps the log-probs of theta, and so the mask
    if masks and (sampled or samples != "score"):
        raise ValueError(
            "off_policy_mask_threshold drops completions by their log-probs at theta', so the two "
            "passes of GR may be of different losses: leave it out"
            + ("" if sampled else ', or give samples="score", which keeps the mask of theta')
        )
    if not sampled or not getattr(args, "vllm_importance_sampling_correction", False):
        return
    mode = getattr(args, "vllm_importance_sampling_mode", "sequence_mask")
    most = getattr(args, "vllm_importance_sampling_clip_max", None)
    beyond = "" if most is None else f", {'0' if 'mask' in mode else 'cut'} above {most:g}"
    ratio = {
        "importance": "the ratio pi_theta'/pi_theta of each token, clipped as in the loss",
        "sequence": "the ratio pi_theta'/pi_theta of each completion, clipped as in the loss",
        "score": "the ratio of theta, as in the paper's code without vLLM",
    }[samples]
    warnings.warn(
        f"use_vllm: TRL multiplies the loss by pi_theta/pi_vLLM (mode {mode!r}{beyond}), and GR "
        f"penalises the gradient of that weighted loss, on {ratio} (samples={samples!r}). For the "
        "loss without weights, on vLLM's samples as if they were the policy's own, set "
        "vllm_importance_sampling_correction=False",
        stacklevel=3,
    )
