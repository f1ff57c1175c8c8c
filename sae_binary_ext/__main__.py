"""python -m sae_binary_ext, the same as sae-binary."""

import sys

from sae_binary_ext.cli import main

sys.exit(main())
