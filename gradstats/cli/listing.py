"""Commands that list what there is to choose from: compressors, families."""

from typing import Annotated

import typer

from gradstats.cli.commands import Command
from gradstats.cli.options import AsJson
from gradstats.cli.printing import print_document, print_rows

app = typer.Typer()
Name = Annotated[
    str, typer.Argument(metavar="[NAME]", help="Print everything about this one; or my_mod:Mine.")
]


@app.command(cls=Command, epilog="Example: gradstats compressors qsgd")
def compressors(name: Name = "", as_json: AsJson = False) -> None:
    """List the compressors; with a NAME, its settings, contract, source and an example."""
    from gradstats.cli.catalogue import compressor_document, compressor_rows

    if name:
        print_document(compressor_document(name), as_json=as_json)
    else:
        print_rows("Compressors", compressor_rows(), as_json=as_json)


@app.command(cls=Command, epilog="Example: gradstats families dgamma")
def families(name: Name = "", as_json: AsJson = False) -> None:
    """List the families of distributions; with a NAME, its parameters, source and an example."""
    from gradstats.cli.catalogue import family_document, family_rows

    if name:
        print_document(family_document(name), as_json=as_json)
    else:
        print_rows("Families", family_rows(), as_json=as_json)
