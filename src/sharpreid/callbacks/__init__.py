"""Lightning callbacks. Removing one does not change the trained network."""
