"""The prediction log: a row for each answer, written before it is given, in a chain of hashes.

Serving writes it, monitoring reads it, and neither imports the other. It holds no file names, no EXIF and no images.
"""
