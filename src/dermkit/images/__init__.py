"""From an image file to pixels, safely."""
