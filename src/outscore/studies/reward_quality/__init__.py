"""What a run is worth when its reward is not: noise in it, and a policy that exploits it."""
