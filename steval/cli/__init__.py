"""The `steval` command: a Typer app with a file per command; each parses, calls one function and prints."""


def main() -> None:
    """Console script."""
    from steval.cli.app import app

    app()
