"""The command line: verbs over the library. Nothing heavy is imported before the arguments are understood.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

import argparse
import difflib
import sys
import warnings
from collections.abc import Sequence

from infer2train.cli.arguments import build_parser, flags_of, parse
from infer2train.cli.verbs import VERBS
from infer2train.observe.warned import OneLine

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the entry point of `infer2train`."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    whole = warnings.formatwarning
    try:
        if not debug:
            warnings.formatwarning = OneLine()
        return _run([argument for argument in given if argument != "--debug"])
    except argparse.ArgumentError as error:
        return _explain_usage(error, given)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:  # whatever it is, a person reads one line of it; --debug shows the rest
        if debug:
            raise
        return _explain(error, given)
    finally:
        warnings.formatwarning = whole


def _explain(error: Exception, arguments: Sequence[str]) -> int:
    """One or two lines for an expected error; an unexpected one says how to see more."""
    from infer2train.checkpoint.checkpoint import CheckpointError
    from infer2train.data.images import DataError
    from infer2train.training.interrupt import Interrupted
    from infer2train.training.loop import DivergedError

    if isinstance(error, Interrupted):
        command = (
            "the same command"
            if {"--resume", "demo", "reproduce"} & set(arguments)
            else "the same command with --resume"
        )
        print(f"\n{error}; {command} goes on", file=sys.stderr)
        return INTERRUPTED
    expected = isinstance(error, ValueError | OSError | DivergedError | CheckpointError | ImportError)
    name = "" if expected else f"{type(error).__name__}: "
    hint = "" if expected else "\n(--debug shows where)"
    print(f"infer2train: {name}{error}{hint}", file=sys.stderr)
    return USAGE if isinstance(error, ValueError) and not isinstance(error, DataError) else FAILED


def _explain_usage(error: argparse.ArgumentError, arguments: Sequence[str]) -> int:
    """Two lines for what the parser refused: what, and where all settings are explained."""
    verb = next((argument for argument in arguments if argument in VERBS), None)
    message = " ".join(error.message.split())
    flags = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
    known = {flag[2:]: flag for flag in flags_of(verb, arguments)}
    unknown = [flag[2:] for flag in flags if flag in message and flag[2:] not in known]
    near = [known[match] for name in unknown for match in difflib.get_close_matches(name, known, n=1)]
    suggestion = f"; did you mean {' '.join(near)}?" if near else ""
    help_command = " ".join(["infer2train", *([verb] if verb else []), "--help"])
    print(f"infer2train: {message}{suggestion}\n{help_command} explains every setting", file=sys.stderr)
    return USAGE


def _run(arguments: list[str]) -> int:
    if not arguments:
        build_parser(arguments).print_help()
        return USAGE
    verb, options = parse(arguments)
    VERBS[verb](options)
    return DONE
