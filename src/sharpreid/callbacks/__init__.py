"""Lightning callbacks; removing one never changes what is trained."""
