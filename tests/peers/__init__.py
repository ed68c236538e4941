"""What this package is measured against: a plain port, PyTorch, Pillow. `benchmark` finds them in a clone."""
