"""Images of attention and of ranked lists, for callbacks, commands and reports."""
