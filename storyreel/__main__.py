"""The command ``storyreel``, also as ``python -m storyreel``.

It listens for signals before it imports anything that takes time.
"""

import sys

from storyreel.cli.streams import secure
from storyreel.stopping import leave, stopping


def main() -> None:
    """Run the command line, and end the process with its exit code."""
    secure()
    try:
        with stopping():
            from storyreel.cli.app import main as command

            leave(command())
    except Exception as error:
        from storyreel.errors import StoppedError

        if not isinstance(error, StoppedError):
            raise
        print(error, file=sys.stderr)
        leave(error.exit_code)


if __name__ == "__main__":
    main()
