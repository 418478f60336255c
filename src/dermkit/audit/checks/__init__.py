"""The coded checks DA001 to DA072, a function each."""
