"""`python -m gradstats.cli`: the command line."""

from gradstats.cli import main

main()
