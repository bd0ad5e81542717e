"""Experiments that reproduce what a paper found: each is a module here and a row of `outscore.studies.registry`."""
