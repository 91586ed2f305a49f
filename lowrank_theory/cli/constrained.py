"""Compress where the data cannot be used."""

import argparse
from pathlib import Path
from typing import Any

from lowrank_theory._files import plain, to_json, write_atomically
from lowrank_theory.cli import _progress as showing
from lowrank_theory.cli._options import (
    OTHER_CODES,
    Refuse,
    check_json,
    check_there,
    refusing,
    seed,
    share,
)
from lowrank_theory.models.catalogue import find
from lowrank_theory.reports import tables
from lowrank_theory.studies.data_free import NETWORKS, data_free


def add(commands: Any) -> None:
    """The options of the command."""
    command = commands.add_parser(
        "constrained",
        help="compress a network where its data cannot be used",
        description="Compress a network where its data cannot be used, and say what that costs.",
    )
    scenarios = command.add_subparsers(required=True, metavar="SCENARIO")
    scenario = scenarios.add_parser(
        "data-free",
        help="low rank by calibrations made from batch normalisation, beside real ones",
        description="Make all layers of a network low rank: by the weights alone, by calibrations "
        "made from its batch normalisation, and by training data.",
        epilog=f"Exit code: 0 if all was measured, {OTHER_CODES}. Where the network or the images "
        "to judge it are not there, that is bad usage.",
    )
    scenario.set_defaults(run=run, refuse=scenario.error)
    scenario.add_argument("network", choices=list(NETWORKS), metavar="NETWORK",
                          help=f"of {', '.join(NETWORKS)}")  # fmt: skip
    scenario.add_argument(
        "--share", type=share, default=0.75, metavar="SHARE",
        help="of the parameters (default: 0.75)",
    )  # fmt: skip
    scenario.add_argument("--seed", type=seed, default=0, metavar="N", help="default: 0")
    scenario.add_argument("--json", type=Path, metavar="FILE", help="write the rows here as well")


def run(options: argparse.Namespace, refuse: Refuse) -> int:
    """Measure, and print the table."""
    check_there(find(options.network), refuse)
    with refusing(refuse):
        check_json(options.json)
    console = tables.make_console()
    try:
        with showing.steps(console) as step:
            exact, rows = data_free(
                options.network, options.share, seed=options.seed, progress=step
            )
    except ValueError as error:  # such as a share that cannot be met
        refuse(str(error))
    if options.json:
        write_atomically(options.json, to_json(plain({"accuracy": exact, "rows": rows})))
    console.print(tables.calibrations(exact, rows))
    return 0
