"""`python -m worldscape` is the `worldscape` command."""

import sys

from worldscape.cli import main

sys.exit(main())
