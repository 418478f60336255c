"""Image-blind rules: classes told without looking at the lesion, by classifiers fitted on a run's training images.

A net that is not clearly better may have learned no more than such a rule. Here: their names and what they see.
"""

RULE_TITLES = {
    "majority": "always the commonest class",
    "metadata": "age, sex and body site",
    "source": "the archive that the image is from",
    "file": "file size, pixel dimensions and JPEG tables",
    "border": "the border of the image",
    "mean_colour": "mean colour",
    "colour_histogram": "the colour histogram",
}
"""Rule -> what it sees, as a sentence says it before "alone"."""

MEAN_COLOUR = "mean_colour"
