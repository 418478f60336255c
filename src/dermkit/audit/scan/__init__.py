"""The one pass over all images: what is measured on each."""
