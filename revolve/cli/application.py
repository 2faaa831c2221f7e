"""The command ``revolve-plan``.

Results go to standard output, everything else to standard error. Exit codes: 0 done; 1 ``verify`` found
a difference or a peak above the budget; 2 wrong input, said in one line; 3 infeasible budget; 130
interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from revolve import __version__
from revolve.schedules.exceptions import RevolveError

from .comparing import compare_strategies, show_frontier
from .exceptions import INTERRUPTED, PIPE_CLOSED, WRONG_INPUT, exit_code
from .output import close_stdout, print_error
from .planning import plan_chain, plot_plan
from .stepping import list_steps
from .training import plan_model, verify_model

__all__ = ["app", "main"]

EPILOG = (
    "Exit codes: 0 done, 1 verify found a difference or a peak above the budget, 2 wrong input, "
    "3 infeasible budget, 130 interrupted."
)


class PlanGroup(TyperGroup):
    """The group of commands, which turns errors into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            try:
                return super().invoke(ctx)
            finally:
                sys.stdout.flush()
        except RevolveError as error:
            print_error(str(error))
            raise typer.Exit(exit_code(error)) from error
        except BrokenPipeError as error:
            close_stdout()
            raise typer.Exit(PIPE_CLOSED) from error
        except KeyboardInterrupt as error:
            raise typer.Exit(INTERRUPTED) from error
        except OSError as error:
            close_stdout()
            print_error(f"{error.filename or 'standard output'}: {error.strerror or error}")
            raise typer.Exit(WRONG_INPUT) from error

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Parse the arguments and run; usage errors take one line too."""
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        except Exception as error:
            if not hasattr(error, "format_message"):
                raise
            code = report_usage(error)
        sys.exit(code if isinstance(code, int) else 0)


def report_usage(error: Any) -> int:
    """Print a usage error; no arguments at all are answered with the help, as on ``--help``."""
    message = error.format_message()
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(message)
        return 0
    hint = f" (see {context.command_path} --help)" if context is not None else ""
    print_error(message.rstrip(".") + hint)
    return WRONG_INPUT


app = typer.Typer(
    name="revolve-plan",
    cls=PlanGroup,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": 100},
    epilog=EPILOG,
)
app.command("steps", short_help="List a classic schedule of a uniform chain.")(list_steps)
app.command("chain", short_help="Plan a measured chain inside a budget.")(plan_chain)
app.command("model", short_help="Measure a model and plan its training inside a budget.")(plan_model)
app.command("verify", short_help="Run one planned step of a model beside a plain one.")(verify_model)
app.command("frontier", short_help="Show what every budget costs: least peak, knee, plain training.")(show_frontier)
app.command("compare", short_help="Plan within one budget by every known strategy.")(compare_strategies)
app.command("plot", short_help="Draw a saved plan.")(plot_plan)


def print_version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        typer.echo(f"revolve-plan {__version__}")
        raise typer.Exit


@app.callback()
def set_up(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Train a PyTorch model inside a byte budget, in the least time: optimal checkpointing schedules."""


def main() -> None:
    """Run the command line; the console script's entry."""
    if sys.stdout is None:  # closed by the caller
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - lives as long as the process
    # Names of stages may hold characters that the terminal's encoding lacks.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # the profiler warns of blocks older than its trace
    app(prog_name="revolve-plan")


if __name__ == "__main__":
    main()
