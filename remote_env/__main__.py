"""`python -m remote_env` is the `remote-env` command."""

import sys

from remote_env.cli import main

if __name__ == "__main__":
    sys.exit(main())
