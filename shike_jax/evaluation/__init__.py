"""Scoring networks: the evaluator, its metrics, adjustments to priors, and the classifier that is loaded and served."""
