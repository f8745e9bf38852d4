"""``python -m storyreel`` is the command ``storyreel``."""

from storyreel.cli import main

if __name__ == "__main__":
    main()
