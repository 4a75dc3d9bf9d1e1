"""Runs with a name: data, models, a run as a folder, sweeps, recorded grids and pairs of runs."""
