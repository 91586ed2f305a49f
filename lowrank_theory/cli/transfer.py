"""Study a trained network."""

import argparse
import functools
from typing import Any

from lowrank_theory.cli._options import OTHER_CODES, Refuse
from lowrank_theory.cli._studies import NETWORK, add_options, carry_out
from lowrank_theory.models import catalogue
from lowrank_theory.reports import tables
from lowrank_theory.reports import transfer as report_page
from lowrank_theory.studies.transfer import BUDGETS, transfer
from lowrank_theory.studies.ways import OTHERS


def add(commands: Any) -> None:
    """The options of the command."""
    command = commands.add_parser(
        "transfer",
        help="study a trained network: its layers under the theorems, and the network compressed",
        description="Study a trained network: each layer under the theorems, and the network "
        "compressed to shares of its weights, certified and timed.",
        epilog=f"Exit code: 0 if the report was written, {OTHER_CODES}. Where the data of the "
        "network are not there, that is bad usage.",
    )
    command.set_defaults(run=run, refuse=command.error)
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument("network", nargs="?", **NETWORK)
    which.add_argument(
        "--list",
        action="store_true",
        help="say which networks there are, whether their data are there, and else what to get",
    )
    others = [way.name for way in OTHERS]
    command.add_argument(
        "--ways",
        nargs="+",
        choices=others,
        default=(),
        metavar="WAY",
        help="more ways to compress the network, of: " + ", ".join(map(repr, others)),
    )
    add_options(
        command,
        budgets=BUDGETS,
        of="bytes",
        nearest="certificates and times are of the one nearest to 0.5",
        folder="transfer",
        files="report.html, report.json and figures",
    )


def run(options: argparse.Namespace, refuse: Refuse) -> int:
    """Study the network, and write the report."""
    if options.list:
        console = tables.make_console()
        missing = {case.name: case.missing() for case in catalogue.CASES.values()}
        console.print(tables.cases(missing))
        for name, reason in missing.items():
            if reason is not None:
                console.print(f"{name}: {reason}\n", soft_wrap=True)
        return 0
    return carry_out(
        functools.partial(transfer, ways=options.ways),
        options,
        refuse,
        folder="transfer",
        report=report_page,
        page="report.html",
        table=tables.compressed_networks,
    )
