"""What every room may use: errors, text from outside, paths, optional packages, quiet libraries."""
