"""The ways to train that are compared with a single process."""

from tests.distributed.problem import Case

CENTRAL = {"difference": "central"}
VIEW = {"gradient_as_bucket_view": True}

DDP = [
    Case(),
    Case(how="closure"),
    Case(options=VIEW),
    Case(how="closure", options=VIEW, settings=CENTRAL),
    Case(micro=2),
    Case(micro=2, how="closure", options=VIEW),
    Case(options={"static_graph": True}),
    Case(settings={"exclude": "head"}),
    Case(settings={"ratio": 0.5}),
    Case(settings={"memory": "lean"}),
    Case(options=VIEW, settings={"memory": "lean"}),
    Case(micro=2, settings={"fraction": 0.5}),
    Case(micro=2, settings={"batch": "halves"}),
]
FSDP = [
    Case("fsdp"),
    Case("fsdp", how="closure"),
    Case("fsdp", micro=2),
    Case("fsdp", micro=2, how="closure"),
    Case("fsdp", settings=CENTRAL),
    Case("fsdp", how="closure", settings=CENTRAL),
    Case("fsdp", settings={"exclude": "head"}),
    Case("fsdp", settings={"exclude": ("blocks.0", "embed.weight")}),
    Case("fsdp", settings={"ratio": 0.5}),
    Case("fsdp", settings={"memory": "lean"}),
    Case("fsdp", settings={"memory": "lean", "offload": True}),
    Case("fsdp", micro=2, settings={"fraction": 0.5}),
    Case("fsdp", micro=2, settings={"batch": "halves"}),
    Case("fsdp", options={"reshard_after_forward": True}),
    Case("fsdp", options={"reshard_after_forward": False}),
    Case("fsdp", micro=2, options={"reshard_after_forward": False}),
    Case("fsdp", forward_between=True),
    Case("fsdp", forward_between=True, options={"reshard_after_forward": False}),
]
BF16 = Case("fsdp", bf16=True, settings={"radius": None})
CASES = [*DDP, *FSDP, BF16]

# A pass that raises
FAULTS = [Case(), Case("fsdp"), Case("fsdp", options={"reshard_after_forward": False})]
