"""`python -m gradstats`: the command line."""

from gradstats.cli import main

main()
