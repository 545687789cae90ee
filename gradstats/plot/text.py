"""Text in figures: names as they are, in letters that some font has."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, ParamSpec

from gradstats import extras

FALLBACK = "DejaVu Sans"  # comes with matplotlib, and has the letters of our own labels

Settings = ParamSpec("Settings")


def shown(name: object) -> str:
    r"""A name as the text of a figure.

    Dollars are no mathematics, a letter that no font has is written as its number, and a name
    with a leading underscore is not left out of legends.

    Example:
        >>> print(shown("a$b$c"))
        a\$b\$c
    """
    letters = _letters()
    text = "".join(each if ord(each) in letters else _number(each) for each in str(name))
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _number(letter: str) -> str:
    return f"\\u{ord(letter):04x}"


def _letters() -> frozenset[int]:
    """The letters of the fonts that figures use."""
    fonts = extras.load("matplotlib.font_manager")
    properties = [fonts.FontProperties(family=[each]) for each in _families()]
    return frozenset().union(*(_letters_of(fonts.findfont(each)) for each in properties))


@lru_cache(maxsize=16)
def _letters_of(path: str) -> frozenset[int]:
    return frozenset(extras.load("matplotlib.font_manager").get_font(path).get_charmap())


def named(rows: Any, *columns: str) -> Any:
    """A table whose names are texts of a figure."""
    texts = {column: {name: shown(name) for name in rows[column].unique()} for column in columns}
    return rows.assign(**{column: rows[column].map(texts[column]) for column in columns})


def lettered(draw: Callable[Settings, Any]) -> Callable[Settings, Any]:
    """Give every text of a figure a second font, for the letters that the first lacks."""

    @wraps(draw)
    def drawn(*args: Settings.args, **settings: Settings.kwargs) -> Any:
        for given in (*args, *settings.values()):
            if hasattr(given, "tick_params"):
                _add_font(given)
        with extras.load("matplotlib").rc_context({"font.family": _families()}):
            ax = draw(*args, **settings)  # seaborn lays a heat map out at once
        _add_font(ax)
        return ax

    return drawn


def _families() -> list[str]:
    families = extras.load("matplotlib").rcParams["font.family"]
    return list(dict.fromkeys([*families, FALLBACK]))


def _add_font(axes: Any) -> None:
    axes.tick_params(which="both", labelfontfamily=_families())
    for text in axes.findobj(extras.load("matplotlib.text").Text):
        text.set_fontfamily(list(dict.fromkeys([*text.get_fontfamily(), FALLBACK])))
