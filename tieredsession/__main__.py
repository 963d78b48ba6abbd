"""``python -m tieredsession`` is the command ``tieredsession``."""

import sys

from tieredsession.cli import main

if __name__ == "__main__":
    sys.exit(main())
