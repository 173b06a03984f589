"""`python -m integrations <command> ...`: starts a scenario or the report of its runs.

Heavy imports wait until a command runs.
"""

from __future__ import annotations

import importlib
import sys

SCENARIOS = {
    "judge": "a small policy learns from a learned judge that can be hacked",
    "rules": "rule-based rewards on mathematics: a small world, or any model and data set",
    "ladder": "stages that can be gamed, from small to worse: does gaming spread?",
    "rlhf": "SFT, preferences, reward model, GRPO or RLOO against it, evaluation",
}
TOOLS = {
    "report": "one HTML file about the runs of any scenario",
}
MODULES = {"report": "viewer"}  # where the module is not named as its command
USAGE = """usage: python -m integrations <scenario> [options]
       python -m integrations report DIR... [options]

scenarios:
{scenarios}

afterwards:
{tools}

`python -m integrations <name> --help` lists the options.
"""


def main(arguments: list[str]) -> int:
    """Run the command that the first argument names; the exit status is the command's."""
    scenarios, tools = (
        "\n".join(f"  {name:8} {text}" for name, text in table.items())
        for table in (SCENARIOS, TOOLS)
    )
    usage = USAGE.format(scenarios=scenarios, tools=tools)
    if not arguments:
        print(usage, file=sys.stderr)
        return 2
    if arguments[0] in ("-h", "--help"):
        print(usage)
        return 0
    name, *rest = arguments
    if name not in SCENARIOS | TOOLS:
        known = ", ".join(SCENARIOS | TOOLS)
        print(f"error: unknown scenario {name!r}; known: {known}", file=sys.stderr)
        return 2
    return importlib.import_module(f".{MODULES.get(name, name)}", __package__).main(rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
