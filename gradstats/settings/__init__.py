"""Settings as values: one frozen dataclass per verb, whose fields carry their sentence.

The keywords of a function, the options of its command and the provenance of its results come from
the same fields, so that nothing is spelled out twice.
"""

from gradstats.settings.errors import SettingError, naming, nearest
from gradstats.settings.fields import at_least_one, check_fields, in_words, setting
from gradstats.settings.keywords import from_keywords, lists_settings, takes_settings
from gradstats.settings.values import seconds, several, split, whole_number

__all__ = [
    "SettingError",
    "at_least_one",
    "check_fields",
    "from_keywords",
    "in_words",
    "lists_settings",
    "naming",
    "nearest",
    "seconds",
    "setting",
    "several",
    "split",
    "takes_settings",
    "whole_number",
]
