"""Sharp attention: the paper's Sec. III-A and III-D, and the soft attention it compares with."""
