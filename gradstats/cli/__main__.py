"""`python -m gradstats.cli`: the command line."""

from gradstats.cli.app import main

main()
