"""Compare two LaTeX expressions by math-verify under a hard time limit, from any thread."""

import atexit
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import Any, Literal

from .verify_worker import WALL

Verdict = Literal["equal", "different", "timeout", "crash"]

_START = 120.0  # seconds to import sympy and math-verify on a busy machine
_LATE = "late"  # instead of an answer
_GRACE = 5.0  # seconds beyond the wall-clock limit of the worker, then it is killed
_KEPT = 65536  # verdicts
_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM)  # such an end says nothing about the question


class Verifier:
    r"""Holds one worker process, started at first use and ended at exit; POSIX only.

    Why not math-verify's own time limit: it is an alarm signal, which works in the main thread only
    and is not seen before the C code that computes `9^{9^{9}}` has returned.

    Arguments:
        limit: seconds of processor time for one comparison (wall-clock: ten times as much).

    Attributes:
        limit: as above; may be changed at any time, which forgets the timeouts found so far.
        references_parsed: references that the current worker has parsed, each once.
        comparisons: comparisons that went to a worker; a pair seen before does not.

    Example::

        >>> with Verifier() as verifier:
        ...     verifier.compare("\\frac{\\sqrt{3}}{3}", "\\frac{1}{\\sqrt{3}}")
        'equal'
    """

    def __init__(self, limit: float = 1.0) -> None:
        self.references_parsed = self.comparisons = 0
        self._verdicts: OrderedDict[tuple[str, str], Verdict] = OrderedDict()
        self._lock = threading.Lock()
        self._endless: set[str] = set()  # references that take longer than `limit` to parse
        self._worker: subprocess.Popen[bytes] | None = None
        self.limit = limit
        _ALL.add(self)

    @property
    def limit(self) -> float:
        """Seconds of processor time for one comparison; ValueError unless above 0."""
        return self._limit

    @limit.setter
    def limit(self, seconds: float) -> None:
        if not seconds > 0:
            raise ValueError(f"limit={seconds}: the time limit of a comparison must be above 0 s.")
        with self._lock:
            self._limit = seconds
            self._endless.clear()
            for key in [key for key, said in self._verdicts.items() if said == "timeout"]:
                del self._verdicts[key]

    def compare(self, reference: str, answer: str) -> Verdict:
        """Whether `answer` says the same as `reference`.

        "timeout": it could not be told within the limit; "crash": the comparison ran out of memory
        or of stack. Raises ImportError where math-verify is not installed.
        """
        key = (reference, answer)
        with self._lock:
            if key in self._verdicts:
                return self._verdicts[key]
            verdict, sure = self._ask(reference, answer)
            if sure:
                self._verdicts[key] = verdict
                if len(self._verdicts) > _KEPT:
                    self._verdicts.popitem(last=False)
            return verdict

    def start(self) -> None:
        """Start the worker now: an installation that is broken is then found before long work."""
        with self._lock:
            self._started()

    def close(self) -> None:
        """End the worker; the next comparison starts another."""
        with self._lock:
            self._kill()

    def __enter__(self) -> "Verifier":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, reference: str, answer: str) -> tuple[Verdict, bool]:
        """The verdict, and whether it would be the same another time.

        It would not where the wall-clock ran out or something else ended a process: that is the
        machine's doing, and such a verdict must not stay.
        """
        question = {"reference": reference, "answer": answer, "limit": self.limit}
        line = json.dumps(question).encode() + b"\n"  # ASCII, so half a surrogate pair passes too
        self.comparisons += 1
        sure = False
        for _ in range(2):  # again where something else ended the worker, such as a full memory
            if reference in self._endless:
                return "timeout", True
            worker = self._started()
            try:
                reply = _exchange(worker, line, 2 * WALL * self.limit + _GRACE)
            except BaseException:  # Ctrl-C here would leave a verdict for the next question
                self._kill()
                raise
            if isinstance(reply, dict):
                self.references_parsed = reply["parsed"]
                return reply["verdict"], reply["sure"]
            self._kill()
            # Only the reference is parsed in the worker itself, under the same timers.
            if worker.returncode == -signal.SIGPROF:
                self._endless.add(reference)
            elif reply == _LATE or worker.returncode == -signal.SIGALRM:
                return "timeout", False
            sure = worker.returncode not in _FROM_OUTSIDE
        return "crash", sure

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._worker is not None and self._worker.poll() is None:
            return self._worker
        self._kill()
        if importlib.util.find_spec("math_verify") is None:
            raise ImportError(
                "Answers that are not plain numbers are compared by math-verify. Install it with\n"
                "    pip install 'math-verify[antlr4_13_2]'"
            )
        script = str(Path(__file__).with_name("verify_worker.py"))
        # -P: the modules beside the script must not hide others of the same name. A script and not
        # multiprocessing: that imports the user's main module again, or forks a process that may
        # hold a GPU and many threads.
        worker = subprocess.Popen(
            [sys.executable, "-P", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        self._worker, self.references_parsed = worker, 0
        if _read(worker, _START) != "ready":
            self._kill()
            raise RuntimeError(
                "The process that compares answers did not start. To see why, run\n"
                f"    python -P {Path(script).name}    (in integrations/rewards)"
            )
        return worker

    def _kill(self) -> None:
        worker, self._worker = self._worker, None
        if worker is None:
            return
        worker.kill()
        worker.wait()
        _close_pipes(worker)

    def _forget(self) -> None:
        """In a forked process: leave the worker to the parent, whose verdicts it sends."""
        worker, self._worker = self._worker, None
        self._lock = threading.Lock()  # a thread that is not here any more may hold the old one
        if worker is not None:
            worker.returncode = 0  # not ours to wait for
            _close_pipes(worker)


def _close_pipes(worker: "subprocess.Popen[bytes]") -> None:
    for pipe in (worker.stdin, worker.stdout):
        if pipe is not None:
            pipe.close()


def _exchange(worker: "subprocess.Popen[bytes]", data: bytes, seconds: float) -> Any:
    """Send a line and return the answer; None where the worker ended, `_LATE` out of time."""
    assert worker.stdin is not None
    try:
        while data:
            data = data[worker.stdin.write(data) :]
    except BrokenPipeError:
        return None
    return _read(worker, seconds)


def _read(worker: "subprocess.Popen[bytes]", seconds: float) -> Any:
    """The next line, decoded; None where the worker ended, `_LATE` where time ran out."""
    assert worker.stdout is not None
    waiting = select.poll()
    waiting.register(worker.stdout, select.POLLIN)
    end, line = time.monotonic() + seconds, b""
    while not line.endswith(b"\n"):
        if not waiting.poll(max(0.0, end - time.monotonic()) * 1000):
            return _LATE
        part = worker.stdout.read(4096)
        if not part:
            return None
        line += part
    return json.loads(line)


def _close_all() -> None:
    for verifier in list(_ALL):
        verifier.close()


def _forget_all() -> None:
    for verifier in list(_ALL):
        verifier._forget()


_ALL: "weakref.WeakSet[Verifier]" = weakref.WeakSet()
atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget_all)

VERIFIER = Verifier()  # the one that the rewards use
