"""The command line: ``python -m tracking_server serve``. Each command loads only what it needs."""

import argparse
import sys

from tracking_server.errors import OperatorError


def main(arguments: list[str] | None = None) -> None:
    """Runs one command; what is the operator's to mend is one line and exit status 1."""
    parser = argparse.ArgumentParser(prog="tracking_server", description="The tracking server and its operator's tools")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="start the server")
    commands.add_parser("health", help="tell whether the server in this container answers")
    given = parser.parse_args(arguments)
    try:
        run(given)
    except OperatorError as error:
        sys.exit(f"error: {error}")


def run(given: argparse.Namespace) -> None:
    """Runs the command that was given.

    Raises:
        OperatorError: If the command says so.
    """
    match given.command:
        case "serve":
            from tracking_server.serve import serve

            serve()
        case "health":
            from tracking_server.health import check_health

            check_health()


if __name__ == "__main__":
    main()
