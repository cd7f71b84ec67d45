"""`python -m conversion`."""

import sys

from conversion.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
