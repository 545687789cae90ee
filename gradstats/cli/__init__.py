"""The command line: commands, their options, what they print, and the demo."""


def main() -> None:
    """Run the command line; exit with 0, 1 (it failed) or 2 (it was called wrongly)."""
    from gradstats.cli.app import main

    main()
