"""A trained classifier outside of training."""
