"""The audit of a data set: coded checks, each with its threshold, and what each does to a published accuracy."""
