"""What a mutant is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One error that could be made.

    Attributes:
        file: below the package.
        old: text that is there once.
        new: what stands in its place.
        tests: words for pytest; one of these tests has to fail.
        survives: why none can: the mutant does the same. "" for all others.
    """

    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    survives: str = ""

    @property
    def name(self) -> str:
        """File and change, in one line."""
        change = f"{self.old.strip()} → {self.new.strip()}"
        return f"{self.file}: {' '.join(change.split())}"


def within(file: str, *tests: str):
    """Makes mutants of one file that the same tests have to notice."""

    def mutant(old: str, new: str, *others: str, survives: str = "") -> Mutant:
        return Mutant(file, old, new, others or tests, survives)

    return mutant
