"""dermkit: train, compare and serve skin-lesion image classifiers, and say whether to believe them.

Research use only. Not a medical device.
"""

__version__ = "0.1.0"
