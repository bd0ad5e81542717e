"""The bandit experiment of Group Robust Preference Optimization (arXiv 2405.20304)."""
