"""A run folder becomes pages; reads files, never a model."""
