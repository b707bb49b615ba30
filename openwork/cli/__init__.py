"""The command line: one file a command, each a thin skin over the library.

Data goes to stdout, talk to stderr. Exit status: 0 done, 1 failed, 2 wrong use, 130 interrupted.
A command is named here by a string and imported when it runs, so ``openwork --help`` never waits for torch.
"""

import os
import sys
from collections.abc import Sequence
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

import openwork
from openwork.cli.output import complaint, say


def _typed(default: object) -> str | None:
    """A default as one would type it; None, and so no word of it, where leaving the option out is all there is to say."""
    if isinstance(default, tuple):
        return " ".join(map(str, default)) or None
    return None if default is None or default is False else str(default)


app = App(
    name="openwork",
    help="Sparse neural networks: find them, train them, prune to them, run them faster, and prove it.",
    version=lambda: openwork.__version__,
    default_parameter=Parameter(negative=(), show_default=_typed),
)
app.suppress_keyboard_interrupt = app.meta.suppress_keyboard_interrupt = False  # main answers it
app.command(
    "openwork.cli.bench:bench", name="bench", help="Measure from which sparsity sparse is faster, here."
)
app.command(
    "openwork.cli.compare:compare",
    name="compare",
    help="Train one network by every method, beside the baselines.",
    usage="Usage: openwork compare [OPTIONS] [METHODS...]",
)
app.command("openwork.cli.demo:demo", name="demo", help="Train a small sparse network here and measure it.")
app.command("openwork.cli.inspect:inspect", name="inspect", help="Show what is in a file without loading it.")
app.command(
    "openwork.cli.delta:delta", name="delta", help="Write a fine-tuned model as a thin delta of its base."
)
app.command(
    "openwork.cli.merge:merge",
    name="merge",
    help="Merge fine-tuned transformers, folders to folder.",
    usage="Usage: openwork merge [OPTIONS] BASE MODEL [MODELS...] OUT",
)
app.command("openwork.cli.plan:plan", name="plan", help="Show what a method would make of a model.")
app.command(
    "openwork.cli.prune:prune", name="prune", help="Make a trained transformer sparse, folder to folder."
)
app.command("openwork.cli.methods:methods", name="methods", help="List the methods, or show the page of one.")


@app.meta.default
def launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    debug: Annotated[bool, Parameter(show_default=False, help="Show the traceback of an error.")] = False,
) -> int:
    """Run one command, and turn what it raises into a message and an exit status."""
    try:
        status = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug or not _is_message(error):
            raise
        say(complaint(error))
        return 1
    return status if isinstance(status, int) else 0


def _is_message(error: Exception) -> bool:
    """Whether an error speaks to the user. Any other is a mistake of ours: its traceback is the message."""
    ours = type(error).__module__.split(".")[0] == "openwork"
    return ours or isinstance(error, (ValueError, OSError, ImportError))


def main(tokens: Sequence[str] | None = None) -> int:
    """Run the command line on ``tokens`` (default: the arguments of this process); return the exit status."""
    try:
        status = app.meta(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        say(complaint(error))
        return 2
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    return status if isinstance(status, int) else 0
