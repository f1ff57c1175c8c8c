"""python -m sae_binary_ext, the same as sae-binary."""

from sae_binary_ext.cli import main

raise SystemExit(main())
