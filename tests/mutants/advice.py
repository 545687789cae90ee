"""Mutants of what the report ranks and advises."""

from tests.mutants.base import within

RANKING = "tests/replaying/test_ranking.py"
tables = within("replaying/ranking.py", RANKING, "tests/replaying/test_two_shots.py")
advice = within("reporting/advice.py", RANKING)
laws = within("fitting/ranking.py", "tests/fitting/test_ranking.py")

MUTANTS = (
    tables(" * workers / (workers - 1) - 2 * reduced", " - 2 * reduced"),
    tables("(workers - 1) - 2 * reduced", "(workers - 1) - reduced"),
    tables('codes * (line["bits"] - reduced)', 'codes * line["bits"]'),
    tables("all_gather(nbytes - reduced", "all_gather(nbytes"),
    tables("if reduced else 0.0", "if reduced < 0 else 0.0"),
    tables(
        'codes = 2 if line["collective"] == "ring"', 'codes = 1 if line["collective"] == "ring"'
    ),
    tables('"ring": 2 - 1 / n', '"ring": 1'),
    tables(
        'ranked["residual_ratio"].where(ranked["feedback"] == "ef", ranked["error"])',
        'ranked["residual_ratio"]',
    ),
    tables("FAR_BEHIND = 1.5", "FAR_BEHIND = 1.6"),
    tables("FAR_BEHIND = 1.5", "FAR_BEHIND = 1.4"),
    tables("least = topk.min() if len(topk) else", "least ="),
    tables('"all_gather": n', '"all_gather": 1'),
    tables('network.all_reduce(nbytes, line["rounds"])', "network.all_reduce(nbytes)"),
    tables('network.all_gather(nbytes - reduced, line["rounds"])', "network.all_gather(nbytes)"),
    tables('.get(line["collective"], 1)', '.get(line["collective"], 0)'),
    tables("    if saved <= 0:\n        return 0.0\n", ""),
    tables("good.tail(max(1, len(good) // TAIL)) if steady else good", "good"),
    tables("MOST_RANKED = 10", "MOST_RANKED = 11"),
    advice("WORTHWHILE = 0.8", "WORTHWHILE = 0.9"),
    advice("WORTHWHILE = 0.8", "WORTHWHILE = 0.7"),
    advice("if share < WORTHWHILE:", "if share < 1:"),
    advice('and not line["behind"]]', "]"),
    advice("    return fed and line", "    return line"),
)
