"""attach under DDP: two processes equal one with twice the batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flatopt import attach
from tests.trainer_cases import RADIUS, STRENGTH, make_trainer, model_path, train, weights
from tests.trainer_oracle import difference

SCRIPT = """
import os
import sys
import time
from pathlib import Path

import torch

torch.set_num_threads(1)

from flatopt import ReferenceReset, attach
from tests import trainer_cases
from tests.trainer_cases import STRENGTH, RADIUS, make_trainer, weights

folder, model = Path(sys.argv[1]), sys.argv[2]
trainer_cases.model_path = lambda *args, **kwargs: model
for accumulation, view in ((1, False), (2, False), (2, True)):
    trainer = make_trainer(
        "sft", folder, accumulation=accumulation, steps=2, per_device_train_batch_size=2,
        optim="sgd", dataloader_num_workers=0,
    )
    wrap = trainer._wrap_model

    def wrapped(*args, wrap=wrap, trainer=trainer, view=view, **kwargs):
        model = wrap(*args, **kwargs)
        trainer.accelerator.ddp_handler.gradient_as_bucket_view = view
        return model

    trainer._wrap_model = wrapped
    plug = attach(trainer, STRENGTH, radius=RADIUS, exclude="lm_head")
    trainer.train()
    assert trainer.accelerator.num_processes == 2
    assert trainer.model_wrapped.gradient_as_bucket_view == view
    assert plug.stats.skipped is None
    name = f"{accumulation}-{view}-{trainer.accelerator.process_index}.pt"
    torch.save(weights(trainer.model), folder / name)
# A decision of `when` that differs between processes: the first one's counts.
trainer = make_trainer("grpo", folder, steps=4, beta=0.5)
rank = trainer.accelerator.process_index
rule = ReferenceReset(when=lambda metrics: metrics["step"] == 2 + rank)
plug = attach(trainer, STRENGTH, reference=rule)
trainer.train()
reference = plug.optimizer.reference
assert reference.resets == 1 and reference.since_reset == 2, (rank, reference.resets)
kept = {"reference": torch.cat([t.flatten() for t in reference.snapshot])}
torch.save(weights(trainer.model) | kept, folder / f"grpo-{rank}.pt")
# Both are done. The interpreter's teardown of gloo's threads aborts now and then; it is left out.
torch.distributed.barrier()
time.sleep(1.0)
os._exit(0)
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have left their weights."""
    folder = tmp_path_factory.mktemp("ddp")
    script = folder / "train.py"
    script.write_text(SCRIPT)
    root = str(Path(__file__).parents[1])
    environment = os.environ | {
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": root,
    }
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, "--standalone", str(script), str(folder), model_path()],
        env=environment,
        cwd=root,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.parametrize(("accumulation", "view"), [(1, False), (2, False), (2, True)])
def test_two_processes_equal_one(
    accumulation: int, view: bool, finished: Path, tmp_path: Path
) -> None:
    ours, theirs = (
        torch.load(finished / f"{accumulation}-{view}-{rank}.pt", weights_only=True)
        for rank in (0, 1)
    )
    trainer = make_trainer("sft", tmp_path, accumulation=accumulation, steps=2, optim="sgd")
    attach(trainer, STRENGTH, radius=RADIUS, exclude="lm_head")
    alone = train(trainer)
    assert difference(theirs, ours) == 0
    assert difference(ours, weights(trainer.model)) < 1e-5
    assert difference(ours, alone.before) > 1e-3


def test_processes_reset_the_reference_together(finished: Path) -> None:
    ours, theirs = (torch.load(finished / f"grpo-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert difference(theirs, ours) == 0
