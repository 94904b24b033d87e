"""The losses of the paper: Sec. III-B and its reference [15]."""
