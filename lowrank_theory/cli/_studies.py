"""What the commands that study a trained network share: options, and how a study is carried out and
written.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from lowrank_theory._files import to_json, write_atomically
from lowrank_theory.cli import _progress as showing
from lowrank_theory.cli._options import POINTS, Refuse, case, check_there, prepare, seed, share
from lowrank_theory.reports import tables

NETWORK: dict[str, Any] = {
    "type": case,
    "metavar": "NETWORK",
    "help": "of those that `lowrank-theory transfer --list` names, or one of yours: a file and the "
    "`Case` in it, such as mine.py:case",
}


def add_options(
    command: argparse.ArgumentParser,
    *,
    budgets: Sequence[float],
    of: str,
    nearest: str,
    folder: str,
    files: str,
) -> None:
    """How far to compress: to shares `of` what, by default `budgets`, and what is shown of the
    `nearest` to one. Where to write: the `files` of the report, by default in `out/folder/NETWORK`.
    """
    command.add_argument(
        "--budget",
        nargs="+",
        type=share,
        default=budgets,
        metavar="SHARE",
        help=f"shares of the weights' {of} to compress to "
        f"(default: {' '.join(f'{each:g}' for each in budgets)}); {nearest}",
    )
    command.add_argument("--seed", type=seed, default=0, metavar="N", help="default: 0")
    command.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help=f"folder of {files} (default: out/{folder}/NETWORK), otherwise as for verify",
    )
    command.add_argument(
        "--json", type=Path, metavar="FILE", help="write what report.json holds here as well"
    )


def carry_out(
    study: Callable[..., Any],
    options: argparse.Namespace,
    refuse: Refuse,
    *,
    folder: str,
    report: ModuleType,
    page: str,
    table: Callable[..., Any],
) -> int:
    """Call `study` with the options above, which goes on from the points in its folder; write the
    `report`, and print the `table` of its networks, its sentences and where its `page` is.
    """
    check_there(options.network, refuse)
    options.out = options.out or Path("out", folder) / options.network.name
    prepare(options, report.FILES, refuse)
    console = tables.make_console()
    try:
        with showing.steps(console) as step:
            found = study(
                options.network,
                budgets=options.budget,
                seed=options.seed,
                folder=options.out / POINTS,
                progress=step,
            )
    except ValueError as error:  # such as a budget that cannot be met
        refuse(str(error))
    report.write(found, options.out)
    if options.json:
        write_atomically(options.json, to_json(report.record(found)))
    console.print(table(found.networks, found.metric))
    for sentence in report.sentences(found):
        console.print(sentence)
    console.print(f"Report: {options.out / page}", soft_wrap=True)
    return 0
