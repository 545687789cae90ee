"""What page and closing lines print of exchanges whose collectives differ."""

import pandas
import pytest

from gradstats.cli.summary_lines import closing_lines
from gradstats.reporting.front_page import _of_methods
from tests.replaying.test_ranking import method

LINE = {"skipped_rows": 0, "workers": 1}


@pytest.mark.parametrize("collective", ["two_shot", "ring"])
def test_the_page_warns_where_one_worker_cannot_show_the_error(collective):
    def warned(**changes):
        lines = [method("bf16", **LINE), method("nvfp4", **LINE | changes)]
        return any(
            "with one worker" in each for each in _of_methods(pandas.DataFrame(lines), None)
        )

    assert warned(collective=collective)
    assert not warned(collective=collective, workers=2)
    assert not warned(collective=collective, status="failed at step 0: ValueError: no")
    assert not warned(collective="all_gather")


def test_closing_lines_compare_what_is_sent(monkeypatch):
    """A gather hands over half of what two shots do, and sends four times as much."""
    for name in ("law_sentence", "best_distribution"):
        monkeypatch.setattr(f"gradstats.cli.summary_lines.{name}", lambda *_: "")
    lines = [
        method("mxfp8", bits=8.25, sent_bits=57.75, exchange_seconds=2.0, miss=0.0, **LINE),
        method("shots", bits=16.5, sent_bits=14.4375, exchange_seconds=1.0, miss=0.0, **LINE),
        method("bf16", bits=16.0, sent_bits=28.0, exchange_seconds=3.0, miss=0.0, **LINE),
    ]
    thresholds = pandas.DataFrame({"target_ratio": [0.1]})
    printed = list(closing_lines(pandas.DataFrame(lines), thresholds, thresholds))
    assert "1. shots: 14.4 bits sent per element, 1e+03 ms per exchange" in printed
    assert "2. mxfp8: 57.8 bits sent per element, 2e+03 ms per exchange" in printed
