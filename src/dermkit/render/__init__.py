"""Charts, image sheets and HTML pages, made from plain values."""
