"""Measure everything, and write `results.json`, `README.md` and `benchmarks.svg` beside this file.

python benchmarks/run.py [--quick] [--fresh] [--only WORD]

A case that the same code has measured on the same machine is skipped, so that a run that was
stopped goes on where it was; `--fresh` measures all anew. A quick run takes small sizes and writes
to `out/benchmarks`. Without `PyTorch` or `scikit-learn` their rows are left out.
"""

import argparse

import accumulate
import accuracy
import finish
import growth
import law
import strategies
import verification
from _measure import ROOT, run
from _report import write

MODULES = (accumulate, finish, accuracy, verification, strategies, law, growth)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description="Measure everything, side by side with others.")
    parser.add_argument("--quick", action="store_true", help="small; writes to out/benchmarks")
    parser.add_argument("--fresh", action="store_true", help="measure anew what is known")
    parser.add_argument("--only", default="", help="cases whose name begins with this")
    chosen = parser.parse_args()
    folder = ROOT / "out" / "benchmarks" if chosen.quick else ROOT / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    cases = [case for module in MODULES for case in module.cases(quick=chosen.quick)]
    file = folder / "results.json"
    run(cases, file, only=chosen.only, quick=chosen.quick, fresh=chosen.fresh)
    write(file)


if __name__ == "__main__":
    main()
