"""A trained model behind an HTTP API: what is asked, what is answered, and every limit between the two."""
