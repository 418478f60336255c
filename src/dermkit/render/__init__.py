"""How a picture or a page is drawn; knows nothing of runs."""
