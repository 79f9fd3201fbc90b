"""Every benchmark in turn: python tests/bench [--quick] [--out FILE] [CASE ...]."""

from __future__ import annotations

import argparse
from importlib import import_module

CASES = (  # modules beside this one; their main(argv) takes --quick, --out FILE
    "attention_cpu",
    "attention_long",
    "retrieval",
    "running",
    "edge_attribution",
    "path_patching",
    "acdc",
    "sae_codes",
    "neuron_effects",
)


def main() -> None:
    """Run the chosen cases, all of them unless some are named."""
    parser = argparse.ArgumentParser(prog="interp bench", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all unless given")
    parser.add_argument(
        "--quick", action="store_true", help="one short length, a minute or two; nothing is recorded without --out"
    )
    parser.add_argument("--out", help="CSV that rows are added to, in place of each benchmark's own record")
    given = parser.parse_args()
    unknown = [case for case in given.cases if case not in CASES]
    if unknown:
        parser.error(f"unknown benchmark {unknown[0]!r}; valid choices: {', '.join(CASES)}")
    options = [*(["--quick"] if given.quick else []), *(["--out", given.out] if given.out else [])]
    for case in given.cases or CASES:
        import_module(case).main(options)


if __name__ == "__main__":
    main()
