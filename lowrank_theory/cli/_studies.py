"""What the commands that study a trained network share: how a study is carried out and written."""

import argparse
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from lowrank_theory._files import to_json, write_atomically
from lowrank_theory.cli import _progress as showing
from lowrank_theory.cli._options import POINTS, Refuse, check_there, prepare
from lowrank_theory.reports import tables


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
    """Call `study(folder=..., progress=...)` of `options.network`, which goes on from the points in
    its folder; write the `report`, and print the `table` of its networks, its sentences and where
    its `page` is. Its folder is `out/folder/NETWORK`, unless `options.out` names one.
    """
    check_there(options.network, refuse)
    options.out = options.out or Path("out", folder) / options.network.name
    prepare(options, report.FILES, refuse)
    console = tables.make_console()
    try:
        with showing.steps(console) as step:
            found = study(folder=options.out / POINTS, progress=step)
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
