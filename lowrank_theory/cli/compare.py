"""Compare methods on a trained network."""

import argparse
import functools
from pathlib import Path
from typing import Any

from lowrank_theory.cli._options import OTHER_CODES, Refuse, seed, share
from lowrank_theory.cli._options import case as case_of
from lowrank_theory.cli._studies import carry_out
from lowrank_theory.reports import compare as report
from lowrank_theory.reports import tables
from lowrank_theory.studies.compare import BUDGETS, FAMILIES, compare


def add(commands: Any) -> None:
    """The options of the command."""
    command = commands.add_parser(
        "compare",
        help="compare methods on a trained network: error, bits, bytes, time and the metric",
        description="Compare methods on a trained network: the error of each layer at all sizes, "
        "what the network loses at several budgets, how well errors order that, and what bits "
        "become in bytes and time.",
        epilog=f"Exit code: 0 if the report was written, {OTHER_CODES}. Where the data of the "
        "network are not there, that is bad usage.",
    )
    command.set_defaults(run=run, refuse=command.error)
    command.add_argument(
        "network",
        type=case_of,
        metavar="NETWORK",
        help="of those that `lowrank-theory transfer --list` names, or one of yours: a file and "
        "the `Case` in it, such as mine.py:case",
    )
    command.add_argument(
        "--budget",
        nargs="+",
        type=share,
        default=BUDGETS,
        metavar="SHARE",
        help="shares of the weights' bits to compress to "
        f"(default: {' '.join(f'{each:g}' for each in BUDGETS)}); "
        "times are of the one nearest to 0.25",
    )
    command.add_argument(
        "--families",
        nargs="+",
        choices=tuple(FAMILIES),
        default=tuple(FAMILIES),
        metavar="FAMILY",
        help="of: " + ", ".join(map(repr, FAMILIES)) + " (default: all)",
    )
    command.add_argument("--seed", type=seed, default=0, metavar="N", help="default: 0")
    command.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of report.json and compare.svg (default: out/compare/NETWORK), otherwise as "
        "for verify",
    )
    command.add_argument(
        "--json", type=Path, metavar="FILE", help="write what report.json holds here as well"
    )


def run(options: argparse.Namespace, refuse: Refuse) -> int:
    """Compare, and write what was found."""
    study = functools.partial(
        compare,
        options.network,
        budgets=options.budget,
        families=options.families,
        seed=options.seed,
    )
    return carry_out(
        study,
        options,
        refuse,
        folder="compare",
        report=report,
        page="report.json",
        table=tables.compared_methods,
    )
