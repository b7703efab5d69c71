"""What the multi-label papers share: metrics, losses, alignments of regions with labels, training."""
