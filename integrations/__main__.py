"""`python -m integrations <scenario> ...`: starts a scenario; heavy imports wait until it runs."""

from __future__ import annotations

import importlib
import sys

SCENARIOS = {
    "judge": "a small policy learns from a learned judge that can be hacked",
    "rlhf": "SFT, preferences, reward model, GRPO or RLOO against it, evaluation",
}
USAGE = """usage: python -m integrations <scenario> [options]

scenarios:
{scenarios}

`python -m integrations <scenario> --help` lists the options of a scenario.
"""


def main(arguments: list[str]) -> int:
    """Run the scenario that the first argument names; the exit status is the scenario's."""
    lines = "\n".join(f"  {name:8} {text}" for name, text in SCENARIOS.items())
    usage = USAGE.format(scenarios=lines)
    if not arguments:
        print(usage, file=sys.stderr)
        return 2
    if arguments[0] in ("-h", "--help"):
        print(usage)
        return 0
    name, *rest = arguments
    if name not in SCENARIOS:
        known = ", ".join(SCENARIOS)
        print(f"error: unknown scenario {name!r}; known: {known}", file=sys.stderr)
        return 2
    return importlib.import_module(f".{name}", __package__).main(rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
