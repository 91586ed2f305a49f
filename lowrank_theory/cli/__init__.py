"""The command `lowrank-theory`: check the theorems by sampling, by attack, and by their rates,
study trained networks under them, and compress networks without their data.
"""

import argparse
import contextlib
import traceback
from collections.abc import Sequence

from rich.console import Console

from lowrank_theory.cli import attack, compare, constrained, scale, transfer, verify
from lowrank_theory.cli._options import BAD_USAGE, CANNOT_WRITE, FAILED, INTERRUPTED
from lowrank_theory.verification.executors import LostWorkerError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, by default those of the process.

    Returns the exit code: 0 if every statement is consistent, 1 if any is refuted, 3 if any is
    inconclusive, 2 for bad usage, 4 if a file could not be read or written, 5 if the command itself
    failed, 130 if interrupted or a worker was lost. Only what was found is ever 0, 1 or 3.
    """
    try:
        options = _parser().parse_args(argv)
        return options.run(options, options.refuse)
    except SystemExit as exit_:  # how argparse ends, having said why, or where nobody reads
        return exit_.code if exit_.code in (0, BAD_USAGE) else CANNOT_WRITE
    except OSError as error:
        with contextlib.suppress(OSError):
            console = Console(stderr=True, markup=False)
            console.print(f"lowrank-theory: error: {error}", soft_wrap=True)
        return CANNOT_WRITE
    except KeyboardInterrupt:
        Console(stderr=True).print("Interrupted. No file was left half written.")
        return INTERRUPTED
    except LostWorkerError as error:
        Console(stderr=True).print(str(error), soft_wrap=True)
        return INTERRUPTED
    except Exception:  # noqa: BLE001  # a fault of the command is no refutation, which is code 1
        traceback.print_exc()
        return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lowrank-theory", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (verify, attack, scale, transfer, compare, constrained):
        command.add(commands)
    return parser
