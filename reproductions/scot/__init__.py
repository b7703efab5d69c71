"""SCOT: semantic correspondence as optimal transport between the feature maps of two images."""
