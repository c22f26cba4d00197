"""`python -m localr1` is `localr1`: how the program begins and ends; Ctrl-C is quiet throughout."""

import signal
import sys

from localr1.errors import INTERRUPTED


def main() -> None:
    """Entry point of the `localr1` program."""
    try:
        from localr1.cli import main as program

        program()
    except KeyboardInterrupt:  # while modules are imported; commands see to themselves
        sys.exit(INTERRUPTED)
    finally:
        # All is said and done: now it just ends, without a traceback from Python's own tidying.
        signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    main()
