"""What the pages that are written for readers share: numbers, formulas, figures, one style.

A page needs nothing but its own file: formulas are MathML, figures are inline, and nothing is
fetched.
"""

import base64
import enum
import importlib.metadata
import io
import math
import platform
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, SupportsFloat

import jinja2
import latex2mathml.converter
import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from lowrank_theory._names import short
from lowrank_theory._rows import AbstractRow

PACKAGES = ("lowrank_theory", "jax", "jaxlib", "numpy", "scipy")

_SPAN = re.compile(
    r"\$\$(?P<display>[^$]+)\$\$|\$(?P<math>[^$]+)\$|`(?P<code>[^`]+)`|\*\*(?P<strong>[^*]+)\*\*"
)
_NEXT_ITEM = re.compile(r"\n- (?=[^$]*(?:\$[^$]*\$[^$]*)*\Z)")  # not the minus of a formula

# Where no mathematical font is installed, browsers leave out the sign of a root, draw norms at odd
# heights, and forget letter styles: a formula would be wrong, not just plain.
_PORTABLE = {
    ' xmlns="http://www.w3.org/1998/Math/MathML"': "",
    "<msqrt>": '<mrow><mo stretchy="false" lspace="0" rspace="0">√</mo><mrow class="root">',
    "</msqrt>": "</mrow></mrow>",
    "<mo>&#x02016;</mo>": '<mo stretchy="false" lspace="0" rspace="0">‖</mo>',
    '<mi mathvariant="double-struck">E</mi>': "<mi>𝔼</mi>",
}


def render(template: Path, figures: Mapping[str, bytes], **context: Any) -> str:
    """A page of the template, which extends `page.html.jinja`; its figures, SVG by name, are data
    addresses there.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number, "percent": percent, "prose": prose, "short": short, "shown": shown,
    }  # fmt: skip
    addresses = {
        name: Markup("data:image/svg+xml;base64,") + base64.b64encode(content).decode()
        for name, content in figures.items()
    }
    return environment.get_template(template.name).render(figures=addresses, **context)


def versions() -> dict[str, str]:
    """The versions on which the numbers of a page depend."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"  # run from a checkout


def svg(figure: Figure) -> bytes:
    """The figure; the same one gives the same bytes. Letters that the font has not are boxes, and
    names that leave no room for panels lie over them.
    """
    buffer = io.BytesIO()
    # Without a salt and with a date, no two runs would write the same file.
    settings: Any = {"svg.hashsalt": "lowrank_theory", "svg.fonttype": "path"}
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing|constrained_layout not", UserWarning)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def number(value: SupportsFloat | None, digits: int = 3) -> str:
    """`value` to a few significant digits; a dash where there is none."""
    value = math.nan if value is None else float(value)
    if not math.isfinite(value):
        return "–"
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 10**digits else f"{value:.{digits}g}"


def percent(value: float | None) -> str:
    """A fraction as a percentage; a dash where there is none."""
    return "–" if value is None else f"{100 * value:.4g} %"


def headings(row: type[AbstractRow]) -> dict[str, str]:
    """Of a table of such rows, by the name of the column."""
    return {column.name: column.heading for column in row.columns()}


def shown(value: Any) -> str:
    """What stands in a row, as a table shows it; a dash where there is nothing."""
    if value is None:
        return "–"
    if isinstance(value, enum.Enum):
        return str(value.value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " × ".join(map(str, value))
    if isinstance(value, int):
        return f"{value:,}"
    return value if isinstance(value, str) else number(value)


def prose(text: str) -> Markup:
    r"""A docstring as HTML: paragraphs, lists, `code`, **strong**, and $\TeX$ as MathML."""
    blocks = []
    for block in re.split(r"\n\s*\n", text.strip()):
        if block.startswith("- "):
            items = [Markup().join(_spans(item)) for item in _NEXT_ITEM.split(block[2:])]
            listed = Markup("\n").join(Markup("<li>{}</li>").format(item) for item in items)
            blocks.append(Markup("<ul>{}</ul>").format(listed))
        else:
            blocks.append(Markup("<p>{}</p>").format(Markup().join(_spans(block))))
    return Markup("\n").join(blocks)


def _spans(text: str) -> Iterable[Markup]:
    end = 0
    for match in _SPAN.finditer(text):
        yield escape(text[end : match.start()])
        end = match.end()
        if match["display"]:
            yield _mathml(match["display"], "block")
        elif match["math"]:
            yield _mathml(match["math"], "inline")
        else:
            tag = "code" if match["code"] else "strong"
            yield Markup(f"<{tag}>{{}}</{tag}>").format(match["code"] or match["strong"])
    yield escape(text[end:])


def _mathml(tex: str, display: Literal["block", "inline"]) -> Markup:
    mathml = latex2mathml.converter.convert(tex, display=display)
    for old, new in _PORTABLE.items():
        mathml = mathml.replace(old, new)
    return Markup(mathml)
