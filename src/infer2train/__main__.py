"""`python -m infer2train`."""

import sys

from infer2train.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
