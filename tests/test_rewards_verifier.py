"""The comparison by math-verify: the time limit holds in any thread, the worker is looked after."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from integrations.rewards import boxed_correctness, math_answer
from integrations.rewards.verifier import Verifier
from integrations.rewards.verify_worker import WALL

ROOT = "\\sqrt{2}"
TOWER = "9^{9^{9^{9}}}"  # C code that no signal handler written in Python interrupts

ENDLESS = "(" * 140 + "2" + ")" * 140  # a reference whose parsing takes exponential time


@pytest.fixture(scope="module")
def shared() -> Iterator[Verifier]:
    with Verifier(limit=0.5) as verifier:
        verifier.start()
        yield verifier


def pid(verifier: Verifier) -> int:
    assert verifier._worker is not None
    return verifier._worker.pid


@pytest.mark.parametrize("answer", [TOWER, f"{TOWER}+\\sqrt{{2}}", "(x+1)^{99999}-1"])
def test_time_limit(shared: Verifier, answer: str) -> None:
    worker = pid(shared)
    start = time.monotonic()
    assert shared.compare(ROOT if "x" not in answer else "(x+1)^2", answer) == "timeout"
    # 5 s is the wall-clock limit; the rest is for a machine that is busy with other things
    assert time.monotonic() - start < 5 + 3
    assert pid(shared) == worker, "a comparison that takes too long costs no new process"
    assert shared.compare(ROOT, "2^{1/2}") == "equal"


@pytest.mark.parametrize("pair", ["()", "{}", "[]"])
def test_deep_nesting(shared: Verifier, pair: str) -> None:
    answer = pair[0] * 140 + "2" + pair[1] * 140
    assert math_answer.compare(ROOT, answer) == "different"  # not even asked
    start = time.monotonic()
    assert shared.compare(ROOT, answer) in ("timeout", "different", "crash")
    assert time.monotonic() - start < 5 + 3


def test_time_limit_and_verdicts_in_threads(shared: Verifier) -> None:
    verdicts: dict[int, str] = {}

    def ask(i: int) -> None:
        answer = f"{TOWER}+{i}" if i == 2 else f"\\frac{{{2 * i}}}{{\\sqrt{{2}}}}"
        verdicts[i] = shared.compare(f"{i}\\sqrt{{2}}", answer)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(5, 1, -1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert verdicts == {5: "equal", 4: "equal", 3: "equal", 2: "timeout"}


def test_a_reference_is_parsed_once_and_a_pair_asked_once(shared: Verifier) -> None:
    before = shared.references_parsed, shared.comparisons
    for reference in ("x^2-1", "x^2-4"):
        for number in range(5):
            expected = "equal" if reference == f"x^2-{number**2}" else "different"
            assert shared.compare(reference, f"(x-{number})(x+{number})") == expected
    after = shared.references_parsed, shared.comparisons
    assert (after[0] - before[0], after[1] - before[1]) == (2, 10)
    assert shared.compare("x^2-4", "(x-2)(x+2)") == "equal"
    assert (shared.references_parsed, shared.comparisons) == after


def test_a_plain_number_needs_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = Verifier()
    monkeypatch.setattr(math_answer, "VERIFIER", verifier)
    for answer in ("0.5", "1/2", TOWER, "\\sqrt{2}", "1/2 or 1/3"):
        math_answer.compare("\\frac{1}{2}", answer)
    assert verifier.comparisons == 0
    assert verifier._worker is None


def test_a_reference_without_end_is_given_up_once(shared: Verifier) -> None:
    for answer in ("1", "2"):
        start = time.monotonic()
        assert shared.compare(ENDLESS, answer) == "timeout"
    assert time.monotonic() - start < 0.1
    assert shared.compare(ROOT, "\\sqrt[2]{2}") == "equal"


def child_of(worker: int) -> int | None:
    children = Path(f"/proc/{worker}/task/{worker}/children").read_text().split()
    return int(children[0]) if children else None


@pytest.mark.skipif(
    not Path(f"/proc/self/task/{os.getpid()}/children").exists(), reason="no list of children"
)
@pytest.mark.parametrize("ended_by", [signal.SIGALRM, signal.SIGKILL])
def test_what_the_machine_ended_is_asked_again(
    shared: Verifier, ended_by: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGALRM is the end of the wall-clock time, SIGKILL that of a machine without memory."""

    def end_child() -> None:
        while (child := child_of(worker)) is None:
            time.sleep(0.01)
        os.kill(child, ended_by)

    monkeypatch.setattr(shared, "limit", 20.0)
    shared.compare(ROOT, "3")
    worker, before = pid(shared), shared.comparisons
    for count in (1, 2):
        thread = threading.Thread(target=end_child)
        thread.start()
        said = shared.compare(ROOT, TOWER)
        thread.join()
        assert said == ("timeout" if ended_by == signal.SIGALRM else "crash")
        assert shared.comparisons == before + count
    assert pid(shared) == worker


def end_stopped(process: int) -> None:
    os.kill(process, signal.SIGALRM)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGCONT)  # a stopped process sees the alarm when it goes on


@pytest.mark.parametrize("late", [True, False])
def test_a_reference_that_the_machine_held_up_is_asked_again(
    shared: Verifier, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared.start()
    answer = f"{8 if late else 16}^{{1/{6 if late else 8}}}"  # not asked before
    if late:
        monkeypatch.setattr("integrations.rewards.verifier._GRACE", 0.2 - WALL)  # 0.2 s in all
    else:
        threading.Timer(0.2, end_stopped, (pid(shared),)).start()
    os.kill(pid(shared), signal.SIGSTOP)
    assert shared.compare(ROOT, answer) == "timeout"
    monkeypatch.undo()
    assert shared.compare(ROOT, answer) == "equal"


def test_another_limit_forgets_the_timeouts(
    shared: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shared.compare(ROOT, "2^{1/2}") == "equal"
    before = shared.comparisons
    monkeypatch.setattr(shared, "limit", 0.1)
    for _ in range(2):
        assert shared.compare(ROOT, TOWER) == "timeout"
        assert shared.compare(ENDLESS, "2") == "timeout"
        assert shared._endless == {ENDLESS}
    assert shared.comparisons == before + 2, "a timeout of processor time stays"
    monkeypatch.setattr(shared, "limit", 0.11)
    assert shared._endless == set()
    assert shared.compare(ROOT, "2^{1/2}") == "equal"
    assert shared.comparisons == before + 2, "an answer stays"
    assert shared.compare(ROOT, TOWER) == "timeout"
    assert shared.comparisons == before + 3
    with pytest.raises(ValueError, match="must be above 0"):
        shared.limit = 0.0


def test_a_worker_that_was_killed_is_replaced(shared: Verifier) -> None:
    shared.start()
    os.kill(pid(shared), signal.SIGKILL)
    assert shared.compare(ROOT, "\\frac{2}{\\sqrt{2}}") == "equal"


def test_ctrl_c_leaves_no_verdict_for_the_next_question(
    shared: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared.start()
    monkeypatch.setattr(shared, "limit", 10)
    alarm = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    alarm.start()
    with pytest.raises(KeyboardInterrupt):
        shared.compare(ROOT, f"{TOWER}+8")
    assert shared.compare(ROOT, "8") == "different"
    assert shared.compare(ROOT, "8^{1/6}") == "equal"


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_has_a_worker_of_its_own(shared: Verifier) -> None:
    shared.compare(ROOT, "3")
    worker = pid(shared)
    child = os.fork()
    if not child:
        status = 1
        try:
            equal = shared.compare("\\sqrt{3}", "3^{1/2}") == "equal"
            status = 0 if equal and pid(shared) != worker else 2
            shared.close()
        finally:
            os._exit(status)
    _, code = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(code) == 0
    assert shared.compare(ROOT, "4") == "different"
    assert pid(shared) == worker


def test_timeouts_are_logged_and_count_as_wrong(
    shared: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(math_answer, "VERIFIER", shared)
    logged: dict[str, float] = {}
    texts = [f"\\boxed{{{TOWER}}}", "\\boxed{2^{1/2}}"]
    rewards = boxed_correctness([], texts, [ROOT] * 2, log_metric=logged.__setitem__)
    assert rewards == [0, 2]
    assert logged == {"rules/timeouts": 0.5}


def test_wrong_limit() -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        Verifier(limit=0)


def test_without_math_verify_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'math-verify\[antlr4_13_2\]'"):
        Verifier().start()
