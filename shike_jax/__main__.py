"""`python -m shike_jax COMMAND`, which the installed command `shike-jax` is too."""

from shike_jax.commands.program import entry

if __name__ == "__main__":
    entry()
