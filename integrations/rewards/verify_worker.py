"""A process of its own that compares answers by math-verify; `verifier` starts it and talks to it.

It reads one JSON object per line (`reference`, `answer`, `limit` in seconds) and answers each with
one (`verdict`; `sure`: whether another time would say the same; `parsed`: how many references it
has parsed). A reference is parsed once; each
answer is parsed and compared in a forked child under a timer of the kernel, whose signal ends the
child whatever it is doing. So an answer can neither hang nor crash this process, and ending one
costs nothing: no library has to be imported again.
"""

import json
import os
import signal
import sys
from collections import OrderedDict
from typing import Any

EQUAL, DIFFERENT = 10, 11  # exit statuses of a child; any other is a crash
MEMORY = 4 << 30  # bytes of address space
KEPT = 4096  # parsed references
DIGITS = 1e-6  # relative difference of two numbers that count as equal
WALL = 10  # a child may take this many times its processor time: a busy machine gives it a tenth
BY_CHANCE = (signal.SIGALRM, signal.SIGKILL, signal.SIGTERM)  # a busy machine, or a full one


def parse(text: str) -> Any:
    """The sympy object that a LaTeX expression says; None where it is no mathematics."""
    import math_verify
    from latex2sympy2_extended import NormalizationConfig

    # No units: they would turn the variable of `2 t` into tonnes.
    form = NormalizationConfig(basic_latex=True, malformed_operators=True, nits=True, boxed="last")
    config = math_verify.LatexExtractionConfig(boxed_match_priority=0, normalization_config=form)
    found = math_verify.parse(
        f"\\boxed{{{text}}}", [config], fallback_mode="no_fallback", parsing_timeout=0
    )
    return found[0] if found else None


def same(gold: Any, answer: Any) -> bool:
    """Whether math-verify calls the two equal; numbers must also agree to six digits.

    math-verify rounds decimals to six places, so that 0.0 would be right wherever 10^-8 is.
    """
    import math_verify

    if gold is None or answer is None:
        return False
    expected, given = number(gold), number(answer)
    if undone(answer) and not undone(gold):
        return False
    # Numbers that differ are told apart at once; simplifying their difference takes far longer.
    if expected is not None and given is not None:
        close = abs(expected - given) <= DIGITS * abs(expected)
        if not close:
            return False
    return math_verify.verify(gold, answer, timeout_seconds=0)


def undone(value: Any) -> bool:
    """Whether an expression holds a derivative, integral, limit, sum or product to work out."""
    from sympy import Derivative, Integral, Limit, Product, Sum

    has = getattr(value, "has", None)
    return has is not None and bool(has(Derivative, Integral, Limit, Product, Sum))


def number(value: Any) -> Any:
    """The value of an expression without variables; None for anything else."""
    from sympy import Expr

    if not isinstance(value, Expr) or value.free_symbols:
        return None
    try:
        found = value.evalf()
    except Exception:  # sympy raises many kinds, all of which mean that it does not know
        return None
    return found if found.is_number and found.is_finite else None


def compare(gold: Any, answer: str, limit: float) -> tuple[str, bool]:
    """ "equal", "different", "timeout" or "crash", found out in a child; whether that is sure.

    It is not where the wall-clock ended the child, which depends on what else the machine does.
    """
    child = os.fork()
    if not child:
        status = 1
        try:
            set_timers(limit)
            status = EQUAL if same(gold, parse(answer)) else DIFFERENT
        finally:
            os._exit(status)  # also for an error: nothing of the parent may run here
    _, code = os.waitpid(child, 0)
    if os.WIFSIGNALED(code):
        ended = os.WTERMSIG(code)
        timeout = ended in (signal.SIGPROF, signal.SIGALRM)
        return "timeout" if timeout else "crash", ended not in BY_CHANCE
    return {EQUAL: "equal", DIFFERENT: "different"}.get(os.WEXITSTATUS(code), "crash"), True


def set_timers(limit: float) -> None:
    """End this process by signal after `limit` seconds of work; 0 takes the timers off."""
    # Processor time first, so that verdicts do not hang on what else the machine does.
    signal.setitimer(signal.ITIMER_PROF, limit)
    signal.setitimer(signal.ITIMER_REAL, WALL * limit)


def limit_memory() -> None:
    """Let a huge result fail here, and not the machine; left out where the system cannot."""
    import contextlib
    import resource

    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def main() -> None:
    """Serve until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    for ends in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(ends, signal.SIG_DFL)
    out = os.dup(1)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)  # a library that prints would break the protocol
    import gc
    import logging

    logging.disable(logging.CRITICAL)  # math-verify warns that its own time limit is off
    same(parse(r"\frac{1}{2}"), parse(r"\sqrt{2}"))  # what is built at first use, for all children
    limit_memory()
    gc.collect()
    gc.freeze()  # children then copy less memory
    os.write(out, b'"ready"\n')
    parsed: OrderedDict[str, Any] = OrderedDict()
    count = 0
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        reference, limit = asked["reference"], asked["limit"]
        if reference not in parsed:
            set_timers(limit)  # a reference that never ends takes the whole process along
            parsed[reference] = parse(reference)
            set_timers(0)
            count += 1
            if len(parsed) > KEPT:
                parsed.popitem(last=False)
        verdict, sure = compare(parsed[reference], asked["answer"], limit)
        reply = {"verdict": verdict, "sure": sure, "parsed": count}
        os.write(out, json.dumps(reply).encode() + b"\n")


if __name__ == "__main__":
    main()
