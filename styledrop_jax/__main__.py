"""`python -m styledrop_jax` is `styledrop`."""

from styledrop_jax.cli import main

main()
