"""Build, train, evaluate and record one run."""
