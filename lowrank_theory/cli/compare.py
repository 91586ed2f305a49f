"""Compare methods on a trained network."""

import argparse
import functools
from typing import Any

from lowrank_theory.cli._options import OTHER_CODES, Refuse
from lowrank_theory.cli._studies import NETWORK, add_options, carry_out
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
    command.add_argument("network", **NETWORK)
    command.add_argument(
        "--families",
        nargs="+",
        choices=tuple(FAMILIES),
        default=tuple(FAMILIES),
        metavar="FAMILY",
        help="of: " + ", ".join(map(repr, FAMILIES)) + " (default: all)",
    )
    add_options(
        command,
        budgets=BUDGETS,
        of="bits",
        nearest="times are of the one nearest to 0.25",
        folder="compare",
        files="report.json and compare.svg",
    )


def run(options: argparse.Namespace, refuse: Refuse) -> int:
    """Compare, and write what was found."""
    return carry_out(
        functools.partial(compare, families=options.families),
        options,
        refuse,
        folder="compare",
        report=report,
        page="report.json",
        table=tables.compared_methods,
    )
