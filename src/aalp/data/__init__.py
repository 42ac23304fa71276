"""Images and labels: sources, splits, loaders, augmentation."""
