"""The command line: ``bnprobe diagnose MODEL --loader X``, ``bnprobe report RUN``, ``bnprobe explain N06`` and others.

Exit status 0 is success, 1 a finding as severe as ``--fail-on`` says, 2 what could not be done: an argument or a run
that cannot be used, a model that raises. Messages go to standard error. What a command needs is imported inside it, so
that ``--help`` does not wait for it.
"""

import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from bnprobe import __version__
from bnprobe.cli.diagnosed import diagnose, explain, rules
from bnprobe.cli.recorded import drift, report
from bnprobe.cli.spectra import spectra
from bnprobe.errors import BnprobeError

__all__ = ["app", "main"]

app = typer.Typer(
    name="bnprobe",
    help="A measuring instrument for normalization in PyTorch networks.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # half of the time that --help takes would go into loading it
    pretty_exceptions_enable=False,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits.

    Args:
        arguments: instead of the process's own.
    """
    try:
        app(None if arguments is None else list(arguments), prog_name="bnprobe")
    except (BnprobeError, OSError) as error:
        print(f"bnprobe: {error}", file=sys.stderr)  # noqa: T201 - standard error is where it belongs
        sys.exit(2)
    except Exception:  # of the user's own code; Python's status for it, 1, would say that there are findings
        traceback.print_exc()
        sys.exit(2)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """A measuring instrument for normalization in PyTorch networks."""


for _command in (report, drift, spectra, diagnose, rules, explain):
    app.command()(_command)
