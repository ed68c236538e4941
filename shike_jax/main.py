"""`python -m shike_jax.main`: another name of `python -m shike_jax train`, by which version 0.1 started its runs."""

import runpy
import sys

if __name__ == "__main__":
    sys.argv[1:1] = ["train"]
    runpy.run_module("shike_jax", run_name="__main__")
