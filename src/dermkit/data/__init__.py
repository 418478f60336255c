"""Data: images, manifests, splits, caches and augmentation."""
