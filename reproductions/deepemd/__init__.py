"""DeepEMD (Zhang et al., CVPR 2020): few-shot classification by the earth mover's distance between sets of nodes."""
