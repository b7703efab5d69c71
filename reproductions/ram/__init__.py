"""RAM: open-vocabulary multi-label recognition by knowledge-constrained optimal transport (CVPR 2025)."""
