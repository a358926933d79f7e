"""`python -m shared COMMAND`: the course's command line."""

import sys

from shared.app.cli import main

if __name__ == "__main__":
    sys.exit(main())
