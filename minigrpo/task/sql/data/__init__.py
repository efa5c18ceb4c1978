"""Where questions and their tables come from: one file for each data set."""
