"""Search for the instances on which sure statements are nearest to failing."""

import argparse
import functools
from pathlib import Path
from typing import Any

import jax

from lowrank_theory._files import plain, to_json, write_atomically
from lowrank_theory.cli import _progress as showing
from lowrank_theory.cli._options import (
    EXIT_CODES,
    OTHER_CODES,
    Refuse,
    add_common,
    check_folder,
    check_json,
    refusing,
    selected,
    workplace,
)
from lowrank_theory.reports import tables
from lowrank_theory.theorems import AbstractStatement
from lowrank_theory.verification.attack import Witness, attack
from lowrank_theory.verification.sampling import by_name, reference


def add(commands: Any) -> None:
    """The options of the command."""
    command = commands.add_parser(
        "attack",
        help="search for the instances on which sure statements are nearest to failing",
        description="Search by gradient for the instances on which sure statements are nearest to "
        "failing. A bound that is sharp is reached; one that is wrong is broken.",
        epilog="Exit code: 0 if no bound is broken and every sharp one is reached to 1 %%, 1 if "
        f"any is broken, 3 if a sharp one is not reached, {OTHER_CODES}.",
    )
    add_common(command, run)
    command.add_argument(
        "--out", type=Path, metavar="DIR", help="write the worst instance of each statement here"
    )


def run(options: argparse.Namespace, refuse: Refuse) -> int:
    """Attack, and write the worst instances."""
    chosen = {n: s for n, s in selected(options).items() if s.adversary is not None}
    if not chosen:
        refuse("none of these can be attacked; only sure statements can")
    with refusing(refuse):
        check_json(options.json)
        if options.out is not None:
            check_folder(options.out, [f"{name}.json" for name in chosen])
    console = tables.make_console()
    jobs = {
        name: functools.partial(_climb, reference(statement), options.seed)
        for name, statement in chosen.items()
    }
    found: dict[str, Witness] = {}
    with workplace(options, refuse) as executor:
        for name, witness in showing.jobs(jobs, executor, console):
            found[name] = witness
            if options.out is not None:
                witness.save(options.out / f"{name}.json")
    witnesses = [found[name] for name in jobs]
    if options.json:
        write_atomically(options.json, to_json(plain([witness.row() for witness in witnesses])))
    console.print(tables.witnesses(witnesses))
    codes = {EXIT_CODES[witness.finding] for witness in witnesses}
    return 1 if 1 in codes else max(codes)


def _climb(statement: str | AbstractStatement, seed: int) -> Witness:
    return attack(by_name(statement), key=jax.random.key(seed))
