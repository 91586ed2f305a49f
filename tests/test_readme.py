"""Whatever the documents show as Python is executed, in order, as a reader would."""

import io
import re
from contextlib import redirect_stdout
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "paper_notes").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(document: Path) -> list[tuple[str, str]]:
    return FENCE.findall(document.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "document",
    [d for d in DOCUMENTS if any(language == "python" for language, _ in blocks(d))],
    ids=lambda document: document.name,
)
def test_code_runs_and_prints_what_is_shown(
    document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # for the files that it writes
    namespace: dict[str, object] = {}
    printed = ""
    for language, code in blocks(document):
        if language == "python":
            output = io.StringIO()
            with redirect_stdout(output):
                exec(compile(code, str(document), "exec"), namespace)
            printed = output.getvalue()
        elif language == "text":
            assert printed == code


def test_readme_leads_with_a_checked_bound() -> None:
    first_screen = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:25]
    error, bound = next(line.split("<=") for line in first_screen if re.match(r"[\d.]+ <=", line))
    assert 0 < float(error) <= float(bound)
