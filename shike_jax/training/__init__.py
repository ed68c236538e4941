"""Training: stages, steps, the loop over epochs, and evaluation."""
