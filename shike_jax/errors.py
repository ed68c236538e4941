"""What programs that use this package catch."""

from shike_jax.common.errors import UserError

__all__ = ["UserError"]
