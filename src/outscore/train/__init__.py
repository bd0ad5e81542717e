"""Running recipes: the loop, the step, checkpoints, evaluation."""
