"""The report: one HTML file out of the records of runs."""
