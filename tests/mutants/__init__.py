"""Mutants: small errors in the code, each with the tests that have to notice it.

`make mutants` makes them one by one in a copy of the package and runs their tests; see
analyses/07_soak. `tests/test_mutants.py` holds that each still fits the code.
"""

from tests.mutants import advice, compressing, exchanging, fitting, selecting, storing

MUTANTS = (
    *compressing.MUTANTS,
    *selecting.MUTANTS,
    *exchanging.MUTANTS,
    *fitting.MUTANTS,
    *advice.MUTANTS,
    *storing.MUTANTS,
)
