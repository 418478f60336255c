"""HTML reports from run folders; reads files, never a model."""
