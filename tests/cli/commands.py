"""What a command refuses, and the JSON that it writes."""

import json
from pathlib import Path

from lowrank_theory import cli


def strict(path: Path) -> dict:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def refused(capsys, *arguments: object) -> str:
    assert cli.main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err and not printed.out
    return printed.err.strip().splitlines()[-1]
