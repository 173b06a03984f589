"""The theory behind gradient regularization, statement by statement: predicted, then measured.

Each file states one thing: assumptions, derivation, what would falsify it, and a function
``check()`` that measures it. ``python -m theory`` runs them all; ``python -m theory landscape``
runs those whose name contains the word.
"""

# in the order in which they are best read
STATEMENTS = (
    "finite_difference",
    "finite_difference_rounding",
    "flow",
    "flow_limits",
    "flow_noise",
    "flow_batch_noise",
    "preconditioned_turn",
    "preconditioned",
    "preconditioned_noise",
    "diagonal_network",
    "stochastic_gradient",
    "stochastic_policy",
    "reused_samples",
    "sharp_to_inaccurate",
    "sharp_to_inaccurate_gaussian",
    "flat_to_robust",
    "landscape",
    "landscape_width",
    "landscape_sampled",
    "flat_but_wrong",
    "completed_hack",
    "hack_monitor",
    "reference_resets",
    "reference_cycles",
)
