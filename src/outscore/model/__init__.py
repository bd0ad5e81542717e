"""Models: loading, group rows, token log-probs, adapters, precision."""
