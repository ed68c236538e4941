"""The commands of this package: flags in, one call, text out."""
