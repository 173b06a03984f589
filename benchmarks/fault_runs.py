"""Faults in whole runs: kill -9, a full disk, broken checkpoints. Real processes, real files.

The runs are those of `fault_training`. Processes are forked from one that has imported everything
and holds no threads:

    python -m benchmarks.fault_runs kill --tries 20 --seed 0
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.fault_training import STEPS, build_trainer, last_whole, quiet, step_of, train

# what a run needs to go on; a checkpoint also holds descriptions of the model and the arguments
FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


@dataclass(frozen=True)
class Drill:
    """One fault in a run, and what came of it.

    Attributes:
        what: where it struck.
        error: the last line of what the process said, where it ended with an error.
        resumed_from: the step of the checkpoint that the run went on from; 0: from the beginning.
        identical: the final weights and optimizer state are those of the undisturbed run, bit for
            bit. None where a checkpoint was refused and nothing went on.
        silent: it went on from what was broken as if nothing had been.
    """

    what: str
    error: str | None = None
    resumed_from: int = 0
    identical: bool | None = None
    silent: bool = False

    @property
    def failed(self) -> bool:
        """Whether the fault went unseen, or the resumed run ended elsewhere."""
        return self.silent or self.identical is False


def same_end(folder: Path, other: Path) -> bool:
    """Two finished runs hold the same weights and the same optimizer state, bit for bit."""
    import torch

    from benchmarks.fault_steps import same

    return same(*(torch.load(f / "final.pt", weights_only=True) for f in (folder, other)))


# ---- processes ----------------------------------------------------------------------------------


def fork(work: Callable[[], Any], says: Path | None = None) -> int:
    """Do the work in a process of its own, which ends with 0 or 1; what it says goes to a file."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        if says is not None:
            os.dup2(os.open(says, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def wait(child: int) -> int:
    """The exit status of a process; minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _signal_when_begun(write_end: int) -> Any:
    from transformers import TrainerCallback

    class Begun(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            os.write(write_end, b".")

    return Begun()


def whole_run(place: Path) -> tuple[Path, float]:
    """The undisturbed run and the seconds it took."""
    folder = place / "whole"
    folder.mkdir()
    begin = time.monotonic()
    if wait(fork(lambda: train(folder))):
        raise RuntimeError("the undisturbed run failed")
    return folder, time.monotonic() - begin


def kill_drills(place: Path, tries: int, seed: int) -> list[Drill]:
    """kill -9 at random moments, resumed each time; several runs if one comes to its end."""
    rng = random.Random(seed)
    whole, seconds = whole_run(place)
    drills: list[Drill] = []
    number = 0
    while len(drills) < tries:
        folder = place / f"cut{number}"
        folder.mkdir()
        number += 1
        kills: list[Drill] = []
        while True:
            begun, write_end = os.pipe()
            child = fork(lambda f=folder, w=write_end: train(f, _signal_when_begun(w)))
            os.close(write_end)
            os.read(begun, 1)  # also returns when the process has ended
            os.close(begun)
            if len(drills) + len(kills) < tries:
                time.sleep(rng.uniform(0.0, 0.5 * seconds))
                os.kill(child, signal.SIGKILL)
            status = wait(child)
            if status == 0:
                break
            if status != -signal.SIGKILL:
                raise RuntimeError(f"a resumed run failed with {status}")
            left = sorted(p.name for p in folder.glob("checkpoint-*"))
            torn = [p for p in left if not (folder / p / "complete").exists()]
            what = "while a checkpoint was written" if torn else "between checkpoints"
            kills.append(Drill(what, resumed_from=step_of(last_whole(folder))))
        identical = same_end(folder, whole)
        drills += [Drill(k.what, None, k.resumed_from, identical) for k in kills]
    return drills


def _interrupted(folder: Path, write_end: int) -> None:
    """Train until Ctrl-C; then say whether the weights are those of the begin or end of a step."""
    from transformers import TrainerCallback

    seen: dict[str, Any] = {}

    class Look(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            seen["model"] = kwargs["model"]
            seen["before"] = [p.detach().clone() for p in kwargs["model"].parameters()]
            seen["steps"] = None

        def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            seen["steps"] = True  # from here on the base optimizer changes the weights

    try:
        train(folder, _signal_when_begun(write_end), Look())
    except KeyboardInterrupt:
        from benchmarks.fault_steps import same

        if (
            seen
            and not seen["steps"]
            and not same(list(seen["model"].parameters()), seen["before"])
        ):
            (folder / "perturbed").touch()
        raise


def interrupt_drills(place: Path, tries: int, seed: int) -> list[Drill]:
    """Ctrl-C at random moments: an error comes out, the weights are whole, the run can go on."""
    rng = random.Random(seed)
    whole, seconds = whole_run(place)
    drills: list[Drill] = []
    number = 0
    while len(drills) < tries:
        folder, says = place / f"stopped{number}", place / f"stopped{number}.txt"
        folder.mkdir()
        number += 1
        begun, write_end = os.pipe()
        child = fork(lambda f=folder, w=write_end: _interrupted(f, w), says)
        os.close(write_end)
        os.read(begun, 1)
        os.close(begun)
        time.sleep(rng.uniform(0.0, 0.5 * seconds))
        os.kill(child, signal.SIGINT)
        if wait(child) == 0:
            continue  # it had come to its end
        perturbed = (folder / "perturbed").exists()
        resumed = step_of(last_whole(folder))
        again = wait(fork(lambda f=folder: train(f), says.with_suffix(".again")))
        identical = again == 0 and same_end(folder, whole) and not perturbed
        drills.append(Drill("perturbed" if perturbed else "", last_line(says), resumed, identical))
    return drills


def _limit_at(step: int, size: int) -> Any:
    from transformers import TrainerCallback

    class DiskIsFull(TrainerCallback):
        """From this step on no file may grow beyond ``size`` bytes."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    return DiskIsFull()


def last_line(path: Path) -> str:
    """The last line of a log that is not empty."""
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "")


def disk_drills(place: Path, tries: int, seed: int) -> list[Drill]:
    """The disk is full while a checkpoint is written; room is made, and the run resumed."""
    rng = random.Random(seed)
    whole, _ = whole_run(place)
    sizes = [(whole / f"checkpoint-{STEPS}" / name).stat().st_size for name in FILES]
    drills = []
    for number in range(tries):
        folder, says = place / f"full{number}", place / f"full{number}.txt"
        folder.mkdir()
        step, size = rng.randrange(1, STEPS), rng.randrange(0, max(sizes))
        status = wait(fork(lambda f=folder, s=step, n=size: train(f, _limit_at(s, n)), says))
        if status == 0:
            raise RuntimeError(f"a disk with files of at most {size} bytes was large enough")
        resumed = step_of(last_whole(folder))
        if wait(fork(lambda f=folder: train(f), says.with_suffix(".again"))):
            drills.append(Drill(f"{size} bytes", last_line(says), resumed, identical=False))
            continue
        drills.append(Drill(f"{size} bytes", last_line(says), resumed, same_end(folder, whole)))
    return drills


def _break_file(path: Path, rng: random.Random) -> int:
    """Cut a file off at a random length, which may be 0."""
    size = rng.randrange(0, path.stat().st_size)
    os.truncate(path, size)
    return size


def broken_file_drills(place: Path, tries: int, seed: int) -> list[Drill]:
    """A file of the newest checkpoint is cut off; then that checkpoint is removed by hand."""
    rng = random.Random(seed)
    whole, _ = whole_run(place)
    drills = []
    for number in range(tries):
        folder, says = place / f"torn{number}", place / f"torn{number}.txt"
        folder.mkdir()
        for step in (4, 5):  # as a run that was stopped at step 5 leaves them
            shutil.copytree(_kept(place, step), folder / f"checkpoint-{step}")
        name = FILES[number % len(FILES)]
        cut = _break_file(folder / "checkpoint-5" / name, rng)
        what = f"{name} cut to {cut} bytes"
        if wait(fork(lambda f=folder: train(f), says)) == 0:
            drills.append(Drill(what, None, 5, same_end(folder, whole), silent=True))
            continue
        shutil.rmtree(folder / "checkpoint-5")
        again = wait(fork(lambda f=folder: train(f), says.with_suffix(".again")))
        identical = again == 0 and same_end(folder, whole)
        drills.append(Drill(what, last_line(says), 4, identical))
    return drills


def _kept(place: Path, step: int) -> Path:
    """The checkpoint at ``step`` of a run that keeps all of them."""
    folder = place / "all"
    if not folder.exists():

        def run() -> None:
            build_trainer(folder, save_total_limit=None).train()

        if wait(fork(run)):
            raise RuntimeError("the run that keeps its checkpoints failed")
    return folder / f"checkpoint-{step}"


DRILLS = {
    "kill": kill_drills,
    "interrupt": interrupt_drills,
    "disk": disk_drills,
    "torn": broken_file_drills,
}


def main() -> None:
    """Drill one kind of fault and print what was found, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("fault", choices=DRILLS)
    parser.add_argument("--tries", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch

    torch.set_num_threads(1)
    quiet()
    with tempfile.TemporaryDirectory(prefix="flatopt-faults-") as folder:
        # a first trainer, so that the forked processes find everything imported
        build_trainer(Path(folder) / "unused")
        drills = DRILLS[args.fault](Path(folder), args.tries, args.seed)
    print(json.dumps([asdict(d) | {"failed": d.failed} for d in drills], indent=1))


if __name__ == "__main__":
    main()
