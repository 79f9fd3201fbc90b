"""`python tests/newcomer [WORD]`: runs the tasks, those whose `want` has the word, and prints what each cost."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tasks import TASKS, prepare, run


def main(words: list[str]) -> int:
    """Exit status: 1 where a task has a fault."""
    chosen = [task for task in TASKS if all(word in task.want for word in words)]
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        sys.stdout.write(f"{'wall s':>7} {'cpu s':>7}  task\n")
        for task in chosen:
            outcome = run(task, Path(folder))
            bad += bool(outcome.faults)
            sys.stdout.write(f"{outcome.wall:7.1f} {outcome.cpu:7.1f}  {task.want}\n")
            for fault in outcome.faults:
                sys.stdout.write(f"{'':17}FAULT {fault}\n")
            if outcome.faults:
                sys.stdout.write(outcome.output[-2000:] + "\n")
            sys.stdout.flush()
    sys.stdout.write(f"{len(chosen) - bad} of {len(chosen)} without a fault\n")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
