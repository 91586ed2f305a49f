"""Names from outside, of networks, layers, metrics or statements, as a reader is to see them."""

import re

_STEP = r"\['[\w/~-]+'\]|\[\d+\]|\.\w+"  # what a path is mostly made of
_PATH = re.compile(rf"(?P<steps>(?:{_STEP})+)(?P<part> #\d+)?")
_LONGEST = 60  # characters that find room beside a panel


def short(path: str) -> str:
    """A path of `jax.tree_util.keystr` without its brackets and quotes, and without the word
    `kernel` that many end in.

    It is never empty, and the paths of one tree stay different: those that have anything but plain
    words stay as they are.
    """
    found = _PATH.fullmatch(path)
    if found is None:
        return path or "parameters"  # one array has no path
    words = [step.strip("[]'.") for step in re.findall(_STEP, found["steps"])]
    if len(words) > 1 and words[-1] == "kernel":
        words.pop()
    return ".".join(words) + (found["part"] or "")


def drawable(name: str) -> str:
    r"""A name as matplotlib draws it, whatever it is: on one line, no longer than finds room, and
    its dollars no mathematics.
    """
    shown = "".join(
        " " if letter.isspace() else letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}"
        for letter in name
    ).strip()
    if len(shown) > _LONGEST:
        half = _LONGEST // 2
        shown = f"{shown[: half - 1]}…{shown[-half:]}"
    shown = (shown or "(no name)").replace("$", r"\$")
    # Matplotlib takes what begins with a line for a name of its own, and leaves it out of legends.
    return f" {shown}" if shown.startswith("_") else shown
