"""How right a policy is: rows, figures, confidence intervals, tables, one question by hand."""
