"""What a run leaves on disk: checkpoints, logs, results and the model card."""
