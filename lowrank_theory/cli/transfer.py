"""Study a trained network."""

import argparse
import functools
from pathlib import Path
from typing import Any

from lowrank_theory.cli._options import OTHER_CODES, Refuse, seed, share
from lowrank_theory.cli._options import case as case_of
from lowrank_theory.cli._studies import carry_out
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
    which.add_argument(
        "network",
        nargs="?",
        type=case_of,
        metavar="NETWORK",
        help="of those that --list names, or one of yours: a file and the `Case` in it, such as "
        "mine.py:case",
    )
    which.add_argument(
        "--list",
        action="store_true",
        help="say which networks there are, whether their data are there, and else what to get",
    )
    command.add_argument(
        "--budget",
        nargs="+",
        type=share,
        default=BUDGETS,
        metavar="SHARE",
        help="shares of the weights' bytes to compress to "
        f"(default: {' '.join(map(str, BUDGETS))}); "
        "certificates and times are of the one nearest to 0.5",
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
    command.add_argument("--seed", type=seed, default=0, metavar="N", help="default: 0")
    command.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of report.html, report.json and figures (default: out/transfer/NETWORK), "
        "otherwise as for verify",
    )
    command.add_argument(
        "--json", type=Path, metavar="FILE", help="write what report.json holds here as well"
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
    study = functools.partial(
        transfer,
        options.network,
        budgets=options.budget,
        ways=options.ways,
        seed=options.seed,
    )
    return carry_out(
        study,
        options,
        refuse,
        folder="transfer",
        report=report_page,
        page="report.html",
        table=tables.compressed_networks,
    )
